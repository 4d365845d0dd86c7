"""How a bucket on Google Cloud Storage is set up, as the hub tells its owner."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.servers.gcs import GcsServer, run_gcs

from entrepot_hub.adapters.buckets.gcs import GcsBucket
from entrepot_hub.adapters.buckets.gcs_facts import lifecycle_in_words, public_by_policy
from entrepot_hub.adapters.buckets.gcs_settings import GcsSettings

NAME = "facts"
DELETE = {"type": "Delete"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """The fake server behind the proxy."""
    with run_gcs(tmp_path_factory.mktemp("gcs")) as running:
        yield running


@pytest.fixture
async def bucket(server: GcsServer) -> AsyncIterator[GcsBucket]:
    """A bucket whose record, policy and list tests may change, put back afterwards."""
    control = server.control
    settings = GcsSettings(
        bucket=NAME, prefix="ours", endpoint=server.endpoint, credentials=server.credentials, create=True
    )
    async with GcsBucket(settings, name=NAME) as bucket:
        yield bucket
    control.denied.clear()
    for kept in (control.records, control.policies, control.lists):
        kept.pop(NAME, None)


def binding(role: str, *members: str) -> dict[str, Any]:
    """A policy of one role."""
    return {"bindings": [{"role": role, "members": list(members)}]}


async def test_a_plain_bucket_has_nothing_to_mend(bucket: GcsBucket) -> None:
    """A bucket that the hub made itself is private, keeps nothing that was deleted, and everything is known."""
    facts = await bucket.examine()
    assert facts.unknown == {}
    assert (facts.versioning, facts.soft_delete, facts.object_lock, facts.lifecycle) == (False, 0.0, False, ())
    assert (facts.public_read, facts.public_write, facts.cors) == (False, False, False)
    assert facts.storage_class == "STANDARD"
    assert facts.region
    assert facts.clock_skew is not None
    assert abs(facts.clock_skew) < 60


async def test_what_the_record_says_is_told(bucket: GcsBucket, server: GcsServer) -> None:
    """Versions, soft delete, retention, class, place, origins and rules are told as the record says."""
    server.control.records[NAME] = {
        "location": "EUROPE-WEST4",
        "storageClass": "NEARLINE",
        "autoclass": {"enabled": True},
        "versioning": {"enabled": True},
        "softDeletePolicy": {"retentionDurationSeconds": "604800"},
        "retentionPolicy": {"retentionPeriod": "86400"},
        "cors": [{"origin": ["*"]}],
        "lifecycle": {"rule": [{"action": DELETE, "condition": {"age": 30}}]},
        "iamConfiguration": {"publicAccessPrevention": "enforced"},
    }
    server.control.policies[NAME] = binding("roles/storage.objectViewer", "allUsers")
    facts = await bucket.examine()
    assert (facts.region, facts.storage_class) == ("EUROPE-WEST4", "NEARLINE (autoclass)")
    assert (facts.versioning, facts.soft_delete, facts.object_lock, facts.cors) == (True, 604800.0, True, True)
    assert facts.lifecycle == ("deletes objects after 30 days",)
    assert (facts.public_read, facts.public_write) == (False, False)


async def test_a_hold_by_default_locks(bucket: GcsBucket, server: GcsServer) -> None:
    """A hold that new objects get keeps them from being deleted."""
    server.control.records[NAME] = {"defaultEventBasedHold": True}
    assert (await bucket.examine()).object_lock is True


@pytest.mark.parametrize(
    ("policy", "listed", "uniform", "expected"),
    [
        (binding("roles/storage.objectViewer", "allUsers"), False, True, (True, False)),
        (binding("roles/storage.objectAdmin", "allAuthenticatedUsers"), False, True, (True, True)),
        (binding("roles/storage.objectCreator", "allUsers"), False, True, (False, True)),
        (binding("roles/storage.legacyBucketWriter", "allUsers"), False, True, (False, True)),
        (binding("roles/storage.legacyBucketReader", "allUsers"), False, True, (False, False)),
        (binding("roles/storage.objectViewer", "user:a@b"), False, True, (False, False)),
        (binding("projects/p/roles/own", "allUsers"), False, True, (None, None)),
        ({}, True, False, (True, False)),
        ({}, True, True, (False, False)),
    ],
)
async def test_who_is_anybody(
    bucket: GcsBucket,
    server: GcsServer,
    policy: dict[str, Any],
    listed: bool,
    uniform: bool,
    expected: tuple[bool | None, bool | None],
) -> None:
    """Whether anybody may read or write follows from the policy and, where objects have lists, from those."""
    server.control.records[NAME] = {"iamConfiguration": {"uniformBucketLevelAccess": {"enabled": uniform}}}
    server.control.policies[NAME] = policy
    server.control.lists[NAME] = [{"entity": "allUsers", "role": "READER"}] if listed else []
    facts = await bucket.examine()
    assert (facts.public_read, facts.public_write) == expected
    assert (set(facts.unknown) == {"public_read", "public_write"}) is (expected[0] is None)


async def test_what_is_denied_is_unknown_with_the_permission(bucket: GcsBucket, server: GcsServer) -> None:
    """What the account may not see is not known, and the permission that it takes is named; the clock always is."""
    server.control.denied |= {"storage.buckets.get", "storage.buckets.getIamPolicy"}
    facts = await bucket.examine()
    assert facts.clock_skew is not None
    assert replace(facts, clock_skew=None, unknown={}) == type(facts)()
    assert facts.unknown["lifecycle"] == "it takes storage.buckets.get"
    assert facts.unknown["public_read"] == "it takes storage.buckets.getIamPolicy"
    assert len(facts.unknown) == 9


@pytest.mark.parametrize(
    ("action", "condition", "words"),
    [
        (DELETE, {"age": 1}, "deletes objects after 1 days"),
        (DELETE, {}, "deletes objects"),
        (DELETE, {"age": 1, "matchesPrefix": ["ours/a", "x"]}, "deletes objects after 1 days below ours/a, x"),
        (DELETE, {"matchesPrefix": ["o"]}, "deletes objects below o"),
        (DELETE, {"age": 1, "matchesPrefix": ["theirs"]}, None),
        (DELETE, {"age": 1, "isLive": False}, None),
        (DELETE, {"numNewerVersions": 3}, None),
        (DELETE, {"daysSinceNoncurrentTime": 3}, None),
        (DELETE, {"daysSinceCustomTime": 3}, None),
        (DELETE, {"createdBefore": "2030-01-01"}, "deletes objects if made before 2030-01-01"),
        (
            {"type": "SetStorageClass", "storageClass": "ARCHIVE"},
            {"age": 7, "matchesStorageClass": ["STANDARD"]},
            "moves objects to ARCHIVE after 7 days of class STANDARD",
        ),
        ({"type": "AbortIncompleteMultipartUpload"}, {"age": 1}, None),
        ({"type": "Novelty"}, {"matchesSuffix": ["0"]}, "does Novelty to objects ending in 0"),
    ],
)
def test_rules_are_told_if_they_would_touch_our_objects(
    action: dict[str, str], condition: dict[str, Any], words: str | None
) -> None:
    """A rule is told in words if it could remove or move a live object below the prefix, else not at all."""
    found = lifecycle_in_words([{"action": action, "condition": condition}], "ours")
    assert found == (() if words is None else (words,))


def test_a_policy_without_anything_is_private() -> None:
    """An empty policy lets nobody in."""
    assert public_by_policy({}) == (False, False)
