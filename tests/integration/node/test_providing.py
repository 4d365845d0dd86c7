"""What a daemon offers, to whom, and what happens when files, rights, hubs and daemons change under it."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from tests.integration.node.conftest import Site
from tests.servers.grid import Content

from entrepot.core.errors import Conflict, EntrepotError, NotFound
from entrepot.core.lock import SchemaLock
from entrepot.core.uri import StreamUri
from entrepot.services.daemon import Daemon

LOCK = SchemaLock("demo", miniblock=16384, object=65536)


async def up_at(daemon: Daemon, state: str, seconds: float = 20.0) -> None:
    """Return when the daemon's only hub is in this state."""
    async with asyncio.timeout(seconds):
        while (await daemon.status()).hubs[0].state != state:
            await asyncio.sleep(0.02)


async def test_nothing_is_offered_where_it_was_not_added(site: Site, original: Path, tmp_path: Path) -> None:
    """A stream added to one channel is not offered in another of the same hub, although both hear the daemon."""
    await site.grid.channel("other")
    giver, taker = await site.node("giver", "demo", "other"), await site.node("taker", "demo", "other")
    daemon = await site.up("giver")
    added = await giver.add(original, channel="demo")
    elsewhere = StreamUri("other", added.uri.hub, added.stream)
    with pytest.raises(NotFound) as caught:
        await taker.get(elsewhere, tmp_path / "copy", deadline=2.5)
    assert caught.value.kind == "no-holder"
    view = (await daemon.status()).hubs[0]
    assert view.seeks > 0
    assert view.offers == 0
    await giver.add(original, channel="other")
    await taker.get(elsewhere, tmp_path / "copy")


async def test_what_was_fetched_stays_in_its_channel(site: Site, original: Path, tmp_path: Path) -> None:
    """A stream fetched from one channel is not offered in another by the node that fetched it."""
    await site.grid.channel("other")
    giver = await site.node("giver", "demo")
    middle, taker = await site.node("middle", "demo", "other"), await site.node("taker", "other")
    await site.up("giver")
    daemon = await site.up("middle")
    added = await giver.add(original)
    await middle.get(added.uri, tmp_path / "one")
    with pytest.raises(NotFound):
        await taker.get(StreamUri("other", None, added.stream), tmp_path / "two", deadline=2.5)
    assert (await daemon.status()).hubs[0].offers == 0


async def test_a_grant_out_of_scope_is_refused(site: Site, original: Path) -> None:
    """Even a hub that grants without an offer gets nothing that does not belong to the channel."""
    from entrepot.core import subjects
    from entrepot.core.messages import Grant, encode

    other = await site.grid.channel("other")
    giver = await site.node("giver", "demo", "other")
    daemon = await site.up("giver")
    added = await giver.add(original, channel="demo")
    entry = (await giver.entries())[0]
    member = next(iter(daemon._members.values()))
    assert member.session is not None
    grant = Grant(
        lock=other.id,
        stream=added.stream.raw,
        number=0,
        grant=secrets.token_bytes(16),
        opening=entry.opening.encode(),
        lease=5000,
    )
    hub = site.grid.hub
    assert hub is not None
    await hub._bus.publish(subjects.grant(member.session.node, member.session.id), encode(grant))
    async with asyncio.timeout(10):
        while (await daemon.status()).hubs[0].failures == 0:
            await asyncio.sleep(0.02)
    failure = (await daemon.status()).hubs[0].last_failure
    assert failure is not None
    assert failure.kind == "no-such-object"
    assert site.grid.objects("other") == {}


async def test_a_file_that_changed_is_not_served_as_what_it_was(
    site: Site, original: Path, data: bytes, tmp_path: Path
) -> None:
    """After an edit the old id is offered no more, and the file added again is served under its new id."""
    giver, taker = await site.node("giver"), await site.node("taker")
    daemon = await site.up("giver")
    added = await giver.add(original)
    original.write_bytes(data[::-1])
    with pytest.raises(EntrepotError) as caught:
        await taker.get(added.uri, tmp_path / "copy", deadline=2.5)
    assert caught.value.kind in {"no-holder", "changed"}
    assert site.grid.objects() == {}
    assert (await daemon.status()).hubs[0].offers == 0
    again = await giver.add(original)
    assert again.stream != added.stream
    got = await taker.get(again.uri, tmp_path / "copy")
    assert await asyncio.to_thread(got.path.read_bytes) == data[::-1]


async def test_a_file_that_changes_after_the_offer(site: Site, original: Path, data: bytes) -> None:
    """A grant for a file that was edited meanwhile is handed back with that reason, and nothing is uploaded."""
    giver = await site.node("giver")
    daemon = await site.up("giver")
    await giver.add(original)
    content = Content(data, LOCK)
    peer = await site.grid.peer("peer")
    await peer.follow("demo", content.stream)
    member = next(iter(daemon._members.values()))
    assert member.providing is not None
    store = member.providing._store
    offered = await store.holds(content.stream, next(iter(member.hub.channels)).scope, LOCK)
    assert offered is not None

    async def as_before(*_: object) -> object:
        return offered

    store.holds = as_before  # type: ignore[method-assign, assignment]  # the look before the edit
    original.write_bytes(data[::-1])
    await peer.want(content)
    async with asyncio.timeout(10):
        while (await daemon.status()).hubs[0].failures == 0:
            await asyncio.sleep(0.02)
    failure = (await daemon.status()).hubs[0].last_failure
    assert failure is not None
    assert failure.kind == "changed"
    assert site.grid.objects() == {}


async def test_a_daemon_that_ends_hands_back_its_grants(site: Site, tmp_path: Path) -> None:
    """A get that was served by a daemon which ends goes on with another holder at once."""
    path = tmp_path / "large"
    path.write_bytes(secrets.token_bytes(60 * 65536))
    one, two, taker = await site.node("one"), await site.node("two"), await site.node("taker")
    await site.up("one")
    await site.up("two")
    added = await one.add(path)
    await two.add(path)
    getting = asyncio.create_task(taker.get(added.uri, tmp_path / "copy", deadline=20))
    async with asyncio.timeout(20):
        while len(site.grid.objects()) < 5:
            await asyncio.sleep(0.005)
    await site.down("one")
    got = await getting
    assert await asyncio.to_thread(got.path.read_bytes) == await asyncio.to_thread(path.read_bytes)


async def test_a_daemon_that_is_cancelled_is_replaced(site: Site, tmp_path: Path) -> None:
    """A get whose holder vanishes in the middle is finished by another holder."""
    path = tmp_path / "large"
    path.write_bytes(secrets.token_bytes(60 * 65536))
    one, two, taker = await site.node("one"), await site.node("two"), await site.node("taker")
    await site.up("one")
    await site.up("two")
    added = await one.add(path)
    await two.add(path)
    getting = asyncio.create_task(taker.get(added.uri, tmp_path / "copy", deadline=30))
    async with asyncio.timeout(20):
        while len(site.grid.objects()) < 5:
            await asyncio.sleep(0.005)
    await site.cancel("one")
    got = await getting
    assert await asyncio.to_thread(got.path.read_bytes) == await asyncio.to_thread(path.read_bytes)


async def test_a_hub_that_restarts_finds_its_daemons_again(
    site: Site, original: Path, data: bytes, tmp_path: Path
) -> None:
    """After the hub was away a daemon comes back by itself and serves."""
    giver, taker = await site.node("giver"), await site.node("taker")
    daemon = await site.up("giver")
    added = await giver.add(original)
    await site.grid.stop()
    async with asyncio.timeout(20):
        while (await daemon.status()).hubs[0].state == "up":
            await asyncio.sleep(0.02)
    down = (await daemon.status()).hubs[0]
    assert down.reason is not None
    await site.grid.start()
    await up_at(daemon, "up")
    got = await taker.get(added.uri, tmp_path / "copy", deadline=30)
    assert await asyncio.to_thread(got.path.read_bytes) == data


async def test_a_daemon_starts_while_the_hub_is_away(site: Site, original: Path, tmp_path: Path) -> None:
    """A daemon whose hub cannot be reached says so in its status, keeps trying, and serves when the hub is back."""
    giver, taker = await site.node("giver"), await site.node("taker")
    added = await giver.add(original)
    await site.grid.stop()
    daemon = Daemon(site.settings("giver"))
    task = asyncio.create_task(daemon.run(signals=False))
    try:
        async with asyncio.timeout(20):
            while not (hubs := (await giver.status()).daemon) or [hub.state for hub in hubs.hubs] != ["unreachable"]:
                await asyncio.sleep(0.02)
        reason = hubs.hubs[0].reason
        assert reason is not None
        assert reason.kind == "hub-unreachable"
        await site.grid.start()
        await up_at(daemon, "up")
        await taker.get(added.uri, tmp_path / "copy")
    finally:
        daemon.stop()
        await task


async def test_a_revoked_node_is_told_and_offers_nothing(site: Site, original: Path) -> None:
    """A daemon whose node lost its rights stops offering within seconds; its status shows no channel."""
    giver = await site.node("giver")
    daemon = await site.up("giver")
    await giver.add(original)
    await site.grid.admin("channel.revoke", name="demo", node=(await giver.whoami())[0].node_public)
    async with asyncio.timeout(20):
        while True:
            view = (await daemon.status()).hubs[0]
            if not view.offered_channels or view.state == "denied":
                break
            await asyncio.sleep(0.05)


async def test_a_channel_joined_while_the_daemon_runs(site: Site, original: Path, tmp_path: Path) -> None:
    """A daemon learns of a further channel of its hub from the join itself and serves there."""
    giver = await site.node("giver")
    daemon = await site.up("giver")
    await site.grid.channel("later")
    taker = await site.node("taker", "later")
    await giver.join(await site.grid.invite("later"), name="giver")
    added = await giver.add(original, channel="later")
    got = await taker.get(added.uri, tmp_path / "copy", deadline=30)
    assert got.length == original.stat().st_size
    assert set((await daemon.status()).hubs[0].offered_channels) == {"demo", "later"}


async def test_a_second_daemon_is_refused(site: Site) -> None:
    """One store has one daemon; another one is told."""
    await site.node("giver")
    await site.up("giver")
    with pytest.raises(Conflict) as caught:
        await Daemon(site.settings("giver")).run(signals=False)
    assert caught.value.kind == "in-use"
