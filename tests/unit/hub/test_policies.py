"""The least that a provider has to allow."""

from __future__ import annotations

import json

import pytest

from entrepot_hub.core.policies import WITHOUT_LIST, azure_role, folder_commands, gcs_commands, lost, s3_policy


def test_the_s3_policy_is_no_wider_than_the_prefix() -> None:
    """Objects below the prefix, the listing of that prefix alone, and the doctor's looks, which read no object."""
    policy = s3_policy("lab", "a/b")
    objects, listing, doctor = policy["Statement"]
    assert objects["Resource"] == "arn:aws:s3:::lab/a/b/*"
    assert set(objects["Action"]) == {"s3:DeleteObject", "s3:GetObject", "s3:PutObject"}
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["a/b", "a/b/*"]}}
    assert all(action.startswith(("s3:GetBucket", "s3:GetLifecycle")) for action in doctor["Action"])
    assert policy["Version"] == "2012-10-17"
    assert len(json.dumps(policy)) < 2048  # what AWS takes for a user's inline policy


def test_without_listing_and_with_making() -> None:
    """Without the listing its statement is gone; making the bucket is allowed only where it was asked for."""
    actions = [action for statement in s3_policy("lab", listing=False)["Statement"] for action in statement["Action"]]
    assert "s3:ListBucket" not in actions
    assert "s3:CreateBucket" not in actions
    made = [action for statement in s3_policy("lab", create=True)["Statement"] for action in statement["Action"]]
    assert "s3:CreateBucket" in made
    assert not any("*" in action for action in made)


def test_the_google_commands_bind_the_prefix() -> None:
    """The role of the objects has a condition on their names; listing stands in the other role, or nowhere."""
    commands = gcs_commands("lab", "a")
    assert any('startsWith("projects/_/buckets/lab/objects/a/")' in command for command in commands)
    assert sum("storage.objects.list" in command for command in commands) == 1
    assert not any("storage.objects.list" in command for command in gcs_commands("lab", listing=False))
    assert any("TokenCreator" in command for command in gcs_commands("lab", ambient=True))


def test_the_azure_role_is_for_one_container() -> None:
    """It may read, write and delete blobs there and have URLs signed, and nothing with the account."""
    role = azure_role("acc", "box")
    assert role["AssignableScopes"][0].endswith("storageAccounts/acc/blobServices/default/containers/box")
    assert all("blobs/" in action for action in role["DataActions"])


@pytest.mark.parametrize(("provider", "count"), [("s3", 3), ("gs", 2), ("azblob", 0), ("file", 0)])
def test_what_is_lost_is_said(provider: str, count: int) -> None:
    """With the listing nothing is lost; without it what each provider loses."""
    assert lost(provider, listing=True) == ()
    assert lost(provider, listing=False) == WITHOUT_LIST[:count]


def test_a_folder_is_the_hubs_alone() -> None:
    """Others may not even look."""
    assert folder_commands("/srv/b")[-1] == "chmod 700 /srv/b"
