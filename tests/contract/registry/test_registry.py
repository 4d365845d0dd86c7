"""What the registry promises about channels, nodes, members, nonces, the audit log and settings."""

from __future__ import annotations

import asyncio

import pytest
from tests.contract.registry.conftest import ANNA, BERT, QUOTA

from entrepot.core.errors import Conflict, Denied, EntrepotError, InvalidInput, NotFound
from entrepot.core.identifiers import StreamKind
from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.members import NodeStatus, Rights


def refused(caught: pytest.ExceptionInfo[EntrepotError], kind: str) -> None:
    assert caught.value.kind == kind


async def test_a_channel_is_kept_as_it_was_made(registry: Registry) -> None:
    """Name, quota, lock, bucket and sealed credentials come back; the credentials show in no repr."""
    channel = await registry.channel("demo")
    assert (channel.name, channel.quota, channel.lock, channel.charged) == ("demo", QUOTA, SchemaLock("demo"), 0)
    assert (channel.bucket.url, channel.bucket.prefix, channel.bucket.credentials) == ("s3://bucket", "p", b"sealed")
    assert channel.bucket.binds == {"length": True}
    assert not channel.public_read
    assert "sealed" not in repr(channel)
    assert await registry.channels() == [channel]


async def test_a_channels_name_is_taken_once(registry: Registry) -> None:
    """The second channel of a name is a conflict and leaves no trace."""
    with pytest.raises(Conflict) as caught:
        await registry.create_channel(
            "demo", quota=QUOTA, lock=SchemaLock("demo"), bucket="s3://other", now=2.0, actor="admin"
        )
    refused(caught, "exists")
    assert [entry.action for entry in await registry.audit_log()] == ["channel.create"]


@pytest.mark.parametrize("name", ["", "Demo", "de-mo", "d" * 33])
async def test_a_bad_channel_name_is_refused(registry: Registry, name: str) -> None:
    """A channel's name is a token of a subject."""
    with pytest.raises(InvalidInput):
        await registry.create_channel(
            name, quota=QUOTA, lock=SchemaLock("demo"), bucket="s3://other", now=2.0, actor="admin"
        )


async def test_a_lock_names_its_channel(registry: Registry) -> None:
    """The lock of another channel is refused."""
    with pytest.raises(InvalidInput) as caught:
        await registry.create_channel("new", quota=QUOTA, lock=SchemaLock("demo"), bucket="b", now=2.0, actor="a")
    refused(caught, "invalid-lock")


async def test_the_smallest_quota_is_four_objects(registry: Registry) -> None:
    """Less cannot keep a transfer moving; four are enough."""
    with pytest.raises(InvalidInput) as caught:
        await registry.set_quota("demo", (16 << 20) - 1, now=2.0, actor="admin")
    refused(caught, "invalid-setting")
    assert (await registry.set_quota("demo", 16 << 20, now=2.0, actor="admin")).quota == 16 << 20


async def test_channels_may_share_a_bucket_and_change_its_credentials(registry: Registry) -> None:
    """The record of one URL and prefix is one; new credentials are those of both channels."""
    made = await registry.create_channel(
        "second", quota=QUOTA, lock=SchemaLock("second"), bucket="s3://bucket", prefix="p", now=2.0, actor="a"
    )
    assert made.bucket == (await registry.channel("demo")).bucket
    await registry.set_bucket("second", credentials=b"new", binds={"length": False}, now=3.0, actor="a")
    bucket = (await registry.channel("demo")).bucket
    assert (bucket.credentials, bucket.binds) == (b"new", {"length": False})


async def test_public_reading_is_declared(registry: Registry) -> None:
    """A channel may be declared public-read and back."""
    assert (await registry.set_public_read("demo", True, now=2.0, actor="a")).public_read
    assert not (await registry.set_public_read("demo", False, now=2.0, actor="a")).public_read


async def test_an_unknown_channel_is_not_found(registry: Registry) -> None:
    """Everything about a channel that is not there says so."""
    for call in (
        registry.channel("gone"),
        registry.set_quota("gone", QUOTA, now=2.0, actor="a"),
        registry.members("gone"),
        registry.member("gone", ANNA),
        registry.grant_rights("gone", ANNA, Rights.parse("read"), now=2.0, actor="a"),
        registry.invites("gone"),
    ):
        with pytest.raises(NotFound) as caught:
            await call
        refused(caught, "no-such-channel")


async def test_a_node_is_found_by_key_name_or_beginning(registry: Registry) -> None:
    """The whole key or name, or four characters that fit only one."""
    await registry.add_node(BERT, "bert", now=2.0)
    await registry.add_node("UBERTHA" + "C" * 49, "bertha", now=2.0)
    anna = await registry.node(ANNA)
    for text in ("anna", "UANN", "UANNAAAA"):
        assert await registry.node(text) == anna
    assert (await registry.node("bert")).public == BERT
    with pytest.raises(Conflict) as ambiguous:
        await registry.node("UBERT")
    refused(ambiguous, "ambiguous")
    for text in ("ann", "nobody", "%ann", "UAN_"):
        with pytest.raises(NotFound) as missing:
            await registry.node(text)
        refused(missing, "no-such-node")


async def test_a_node_may_take_another_name(registry: Registry) -> None:
    """Adding a known node again renames it and keeps the rest."""
    await registry.suspend(ANNA, now=2.0, actor="admin")
    node = await registry.add_node(ANNA, "anna's new laptop", now=9.0)
    assert (node.name, node.created_at, node.status) == ("anna's new laptop", 1.0, NodeStatus.SUSPENDED)
    assert await registry.nodes() == [node]
    for name in ("", " x", "a\nb", "x" * 65):
        with pytest.raises(InvalidInput):
            await registry.add_node(ANNA, name, now=9.0)


async def test_a_node_was_seen_last_when_it_was_seen_last(registry: Registry) -> None:
    """Times only grow; unknown nodes are ignored."""
    await registry.seen({ANNA: 5.0, BERT: 5.0})
    await registry.seen({ANNA: 4.0})
    await registry.seen({})
    assert (await registry.node(ANNA)).seen_at == 5.0


async def test_rights_are_granted_replaced_and_revoked(registry: Registry) -> None:
    """A member has exactly what was granted last, until it is revoked, and may come back."""
    granted = await registry.grant_rights("demo", ANNA, Rights.parse("request,provide"), now=2.0, actor="admin")
    assert granted.active
    assert granted.rights.may_provide(StreamKind.TREE)
    granted = await registry.grant_rights("demo", ANNA, Rights.parse("read"), now=3.0, actor="admin")
    assert str(granted.rights) == "read"
    assert [(channel.name, member) for channel, member in await registry.channels_of(ANNA)] == [("demo", granted)]
    revoked = await registry.revoke("demo", ANNA, now=4.0, actor="admin")
    assert (revoked.revoked_at, revoked.active) == (4.0, False)
    assert await registry.revoke("demo", ANNA, now=5.0, actor="admin") == revoked
    assert await registry.channels_of(ANNA) == []
    assert await registry.members("demo") == [revoked]
    back = await registry.grant_rights("demo", ANNA, Rights.parse("owner"), now=6.0, actor="admin")
    assert back.active


async def test_rights_go_to_known_nodes_only(registry: Registry) -> None:
    """A stranger is not found; no rights at all are refused; who never was a member is denied."""
    with pytest.raises(NotFound) as stranger:
        await registry.grant_rights("demo", BERT, Rights.parse("read"), now=2.0, actor="admin")
    refused(stranger, "no-such-node")
    with pytest.raises(InvalidInput):
        await registry.grant_rights("demo", ANNA, Rights(), now=2.0, actor="admin")
    with pytest.raises(Denied) as outside:
        await registry.member("demo", ANNA)
    refused(outside, "no-right")


async def test_a_suspended_node_is_active_nowhere(registry: Registry) -> None:
    """Suspending stops all memberships at once, resuming brings them back."""
    await registry.grant_rights("demo", ANNA, Rights.parse("read"), now=2.0, actor="admin")
    assert (await registry.suspend(ANNA, now=3.0, actor="admin")).status is NodeStatus.SUSPENDED
    assert not (await registry.member("demo", ANNA)).active
    assert await registry.channels_of(ANNA) == []
    await registry.resume(ANNA, now=4.0, actor="admin")
    assert (await registry.member("demo", ANNA)).active


async def test_a_nonce_counts_once(registry: Registry) -> None:
    """The same nonce of the same node is a replay until it is forgotten; of another node it is not."""
    await registry.nonce(ANNA, "n1", expires=70.0, now=10.0)
    await registry.nonce(BERT, "n1", expires=70.0, now=10.0)
    with pytest.raises(Denied) as caught:
        await registry.nonce(ANNA, "n1", expires=80.0, now=70.0)
    refused(caught, "replayed")
    await registry.nonce(ANNA, "n1", expires=140.0, now=71.0)


async def test_a_nonce_sent_many_times_at_once_counts_once(registry: Registry) -> None:
    """Of sixteen copies of one request exactly one is taken."""
    results = await asyncio.gather(
        *(registry.nonce(ANNA, "n1", expires=70.0, now=10.0) for _ in range(16)), return_exceptions=True
    )
    assert results.count(None) == 1
    assert {result.kind for result in results if isinstance(result, EntrepotError)} == {"replayed"}


async def test_every_change_is_in_the_audit_log(registry: Registry) -> None:
    """Who did what to what, oldest first, in pages; what changed nothing leaves no line."""
    await registry.grant_rights("demo", ANNA, Rights.parse("read"), now=2.0, actor="admin")
    await registry.set_quota("demo", QUOTA * 2, now=3.0, actor=ANNA)
    await registry.revoke("demo", ANNA, now=4.0, actor="admin")
    await registry.revoke("demo", ANNA, now=5.0, actor="admin")
    await registry.suspend(ANNA, now=6.0, actor="admin")
    await registry.audit("admin", "credentials.use", "demo", {"purpose": "doctor"}, now=7.0)
    log = await registry.audit_log()
    assert [(entry.at, entry.actor, entry.action, entry.subject) for entry in log] == [
        (1.0, "admin", "channel.create", "demo"),
        (2.0, "admin", "member.grant", "demo"),
        (3.0, ANNA, "channel.quota", "demo"),
        (4.0, "admin", "member.revoke", "demo"),
        (6.0, "admin", "node.suspend", ANNA),
        (7.0, "admin", "credentials.use", "demo"),
    ]
    assert log[2].detail == {"quota": QUOTA * 2, "before": QUOTA}
    assert await registry.audit_log(log[1].id, 2) == log[2:4]
    assert await registry.audit_log(log[-1].id) == []


async def test_what_fails_is_not_in_the_audit_log(registry: Registry) -> None:
    """The line and the change are one transaction."""
    before = await registry.audit_log()
    with pytest.raises(NotFound):
        await registry.set_quota("gone", QUOTA, now=2.0, actor="admin")
    assert await registry.audit_log() == before


async def test_settings_are_kept(registry: Registry) -> None:
    """A value may be replaced, or made only where there is none."""
    assert await registry.setting("identity") is None
    await registry.set_setting("identity", b"one", create=True)
    with pytest.raises(Conflict) as caught:
        await registry.set_setting("identity", b"two", create=True)
    refused(caught, "exists")
    assert await registry.setting("identity") == b"one"
    await registry.set_setting("identity", b"\x00three")
    assert await registry.setting("identity") == b"\x00three"
