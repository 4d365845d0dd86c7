"""Members with real keys who really try: every wall of the exchange, by the server that holds it."""

from __future__ import annotations

import asyncio
import os

import pytest
from tests.servers.grid import QUICK, Content, Grid, Peer, until

from entrepot.adapters.bus import Bus
from entrepot.adapters.bus import Message as BusMessage
from entrepot.core import subjects
from entrepot.core.errors import Denied, EntrepotError
from entrepot.core.keyring import Credentials
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Ack, Cancel, Offer, Want, WantReply, decode, encode


def want_of(content: Content, peer: Peer) -> bytes:
    """A want that would be answered, were it allowed."""
    return encode(
        Want(
            lock=content.lock.id,
            stream=content.stream.raw,
            session=peer.session,
            ranges=(),
            window=1,
            deadline=1000,
        )
    )


async def keep_wanting(peer: Peer, content: Content) -> None:
    """Want again and again until that is refused."""
    async with asyncio.timeout(20):
        while True:
            await peer.want(content)
            await asyncio.sleep(0.05)


@pytest.fixture
async def other(grid: Grid) -> SchemaLock:
    """A second channel of the same hub."""
    return await grid.channel("other")


async def test_another_channel_cannot_be_spoken_to(grid: Grid, content: Content, other: SchemaLock) -> None:
    """A member of one channel can send no verb into another: the server refuses the subject."""
    member = await grid.peer("member", "demo")
    elsewhere = Content(content.data, other)
    assert member.bus is not None
    for verb in subjects.READER_VERBS + subjects.PROVIDER_VERBS:
        subject = subjects.hub_verb("other", verb, member.node)
        with pytest.raises(Denied) as caught:
            await member.bus.publish(subject, want_of(elsewhere, member), confirm=True)
        assert caught.value.kind == "no-right"
    with pytest.raises(Denied):
        await member.bus.publish(subjects.hub_offer("other", "0" * 16, member.node), b"", confirm=True)


@pytest.mark.usefixtures("lock", "other")
@pytest.mark.parametrize(
    "subject",
    [
        "c.other.state.>",
        "c.other.seek",
        "c.*.state.>",
        "c.>",
        ">",
        "*.*.seek",
        "hub.>",
        "hub.demo.want.*",
        "n.*.seek",
        "_INBOX.>",
        "_INBOX.hub.>",
        "$SYS.>",
        "$JS.API.>",
    ],
)
async def test_nothing_can_be_overheard(grid: Grid, subject: str) -> None:
    """Wildcards, other channels, other nodes, inboxes, the hub's own subjects: every such subscription is refused."""
    member = await grid.peer("member", "demo")
    assert member.bus is not None
    with pytest.raises(Denied) as caught:
        await member.bus.subscribe(subject, lambda message: None)
    assert caught.value.kind == "no-right"


async def test_no_node_can_speak_for_another(grid: Grid, content: Content) -> None:
    """A forged sender in the subject is refused by the server, whatever the verb."""
    member, victim = await grid.peer("member"), await grid.peer("victim")
    assert member.bus is not None
    for subject in (
        subjects.hub_verb("demo", "want", victim.node),
        subjects.hub_verb("demo", "done", victim.node),
        subjects.grant(victim.node, victim.session),
        subjects.node_seek(victim.node),
        subjects.channel_seek("demo"),
        subjects.state("demo", str(content.stream)),
        f"_INBOX.{victim.node}.x.1",
    ):
        with pytest.raises(Denied):
            await member.bus.publish(subject, want_of(content, member), confirm=True)


async def test_the_hub_is_nobodys_deputy(grid: Grid, content: Content, other: SchemaLock) -> None:
    """A request with a reply subject outside the sender's inbox is not answered: the hub publishes nothing there."""
    member, victim = await grid.peer("member", "demo"), await grid.peer("victim", "demo", "other")
    elsewhere = Content(content.data, other)
    heard: list[BusMessage] = []
    assert member.bus is not None
    assert victim.bus is not None
    await victim.bus.subscribe(f"_INBOX.{victim.node}.trap.>", heard.append)
    await victim.bus.subscribe(subjects.state("other", str(elsewhere.stream)), heard.append)
    for reply in (
        f"_INBOX.{victim.node}.trap.1",
        subjects.state("other", str(elsewhere.stream)),
        subjects.node_seek(victim.node),
        f"_INBOX.{member.node}.>",
        "$SYS.REQ.SERVER.PING",
    ):
        subject = subjects.hub_verb("demo", "want", member.node)
        try:
            await member.bus.publish(subject, want_of(content, member), reply=reply, confirm=True)
        except EntrepotError:
            continue  # the bus itself would not send it
    assert (await member.want(content, ranges=())).error is None  # the hub has handled what came before
    await asyncio.sleep(0.2)
    assert heard == []
    assert not [s for _, s in victim.seeks if s.stream != content.stream.raw]


async def test_a_reader_cannot_provide_and_a_provider_cannot_request(grid: Grid, content: Content) -> None:
    """Rights are walls at the bus: who may only request cannot offer, who may only provide cannot want."""
    reader = await grid.peer("reader", rights="request")
    provider = await grid.peer("provider", rights="provide")
    assert reader.bus is not None
    with pytest.raises(Denied):
        await reader.bus.publish(subjects.hub_offer("demo", "0" * 16, reader.node), b"", confirm=True)
    with pytest.raises(Denied):
        await reader.bus.subscribe(subjects.channel_seek("demo"), lambda message: None)
    with pytest.raises(Denied):
        await provider.want(content)
    assert provider.bus is not None
    with pytest.raises(Denied):
        await provider.bus.subscribe(subjects.state("demo", str(content.stream)), lambda message: None)


async def test_who_may_only_read_gets_the_bucket_and_nothing_more(grid: Grid, content: Content) -> None:
    """A member with ``read`` is served what lies there, and makes nobody upload."""
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    visitor = await grid.peer("visitor", rights="read")
    refused = await visitor.want(content)
    assert refused.error is not None
    assert refused.error.kind == "no-right"
    await asyncio.sleep(0.2)
    assert holder.seeks == []
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    await holder.provide(content)
    served = await visitor.want(content)
    assert [state.state for state in served.objects] == ["ready"] * 5


async def test_a_revoked_node_is_gone_and_stays_gone(grid: Grid, content: Content) -> None:
    """Revoked from the command line's socket, a connected node loses its connection, its channel and its URLs' source;
    the hub lets it into no new session of that channel."""
    member, other = await grid.peer("member"), await grid.peer("other")
    await member.want(content)
    await grid.admin("channel.revoke", name="demo", node=member.node)
    assert member.bus is not None
    bus = member.bus
    await until(lambda: bus.stats.losses > 0 or not bus.connected)
    with pytest.raises(EntrepotError):
        await keep_wanting(member, content)
    assert (await member.client.session()).channels == ()
    assert (await other.want(content)).error is None


@pytest.mark.usefixtures("lock")
async def test_an_old_login_dies_with_the_revocation(grid: Grid) -> None:
    """The JWT that a revoked node kept opens no new connection, though it has not expired."""
    member = await grid.peer("member")
    assert member.info is not None
    stolen = Credentials(member.info.jwt, member.key)
    await grid.admin("channel.revoke", name="demo", node=member.node)
    bus = Bus(
        member.info.nats,
        name=subjects.connection_name("f" * 16, "daemon"),
        inbox_prefix=member.info.inbox,
        credentials=lambda: stolen,
        settings=QUICK,
        on_error=lambda error, where: None,
    )
    async with bus:
        with pytest.raises(EntrepotError):
            await bus.wait_connected(1.0)
        assert bus.stats.connects == 0


async def test_a_suspended_node_can_do_nothing_until_it_is_resumed(grid: Grid, content: Content) -> None:
    """Suspension closes HTTP and NATS alike; resumed, the node works again with what it had."""
    member = await grid.peer("member")
    await grid.admin("node.suspend", node=member.node)
    with pytest.raises(Denied) as caught:
        await member.client.session()
    assert caught.value.kind == "suspended"
    await member.disconnect()
    await grid.admin("node.resume", node=member.node)
    await member.connect()
    assert (await member.want(content)).error is None


async def test_rights_taken_away_count_for_what_is_said_next(grid: Grid, content: Content) -> None:
    """A provider whose right was taken between grant and accept gets no URL."""
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    await reader.want(content)
    await holder.offer(content, await holder.sought(content))
    grant = await holder.granted(0)
    await grid.admin("channel.grant", name="demo", node=holder.node, rights="request")
    assert holder.bus is not None
    bus = holder.bus
    await until(lambda: bus.connected and bus.stats.connects > 1)
    with pytest.raises(Denied):
        await holder.accept(content, grant)
    assert grid.objects() == {}


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", os.urandom(60_000), encode(Ack())])
async def test_rubbish_is_answered_not_obeyed(grid: Grid, content: Content, payload: bytes) -> None:
    """Bytes that are no message get an error; the hub goes on as if nothing had been said."""
    member = await grid.peer("member")
    assert member.bus is not None
    answer = await member.bus.request(subjects.hub_verb("demo", "want", member.node), payload, 10)
    reply = decode(WantReply, answer)
    assert reply.error is not None
    assert reply.error.kind == "invalid-message"
    assert (await member.want(content)).error is None


async def test_one_channels_offer_serves_no_other(grid: Grid, content: Content, other: SchemaLock) -> None:
    """A stream offered in one channel is granted and made known there only, though both channels' members want it."""
    twin = Content(content.data, other)
    holder = await grid.peer("holder", "demo", "other")
    here, there = await grid.peer("here", "demo"), await grid.peer("there", "other")
    await there.follow("other", twin.stream)
    await here.want(content)
    await there.want(twin)
    seek = next(s for _, s in [*holder.seeks, ("", await holder.sought(content))] if s.lock == content.lock.id)
    offer = Offer(
        lock=content.lock.id,
        stream=content.stream.raw,
        session=holder.session,
        opening=content.opening.encode(),
        ranges=((0, 4),),
        slots=9,
    )
    assert holder.bus is not None
    await holder.bus.publish(subjects.hub_offer("demo", seek.hub, holder.node), encode(offer))
    # The same offer, sent into the other channel, is refused there: it is under another lock.
    await holder.bus.publish(subjects.hub_offer("other", seek.hub, holder.node), encode(offer))
    await holder.provide(content)
    assert len(grid.objects("demo")) == 5
    assert grid.objects("other") == {}
    assert there.states == []
    assert there.openings == []
    cancel = Cancel(lock=content.lock.id, stream=content.stream.raw)
    refused = await there.ask("other", "cancel", cancel, Ack)
    assert refused.error is not None
    assert refused.error.kind == "stale-lock"
