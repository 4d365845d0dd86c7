"""What the server itself lets a node say and hear: each try is a real connection to a real server."""

from __future__ import annotations

import asyncio

import pytest
from tests.servers.nats import Member, Nats

from entrepot.adapters.bus import Bus, Message
from entrepot.core import subjects
from entrepot.core.errors import Denied, EntrepotError

INSTANCE = "00112233445566ff"
STREAM = "ff" + "a" * 62
OTHER_STREAM = "ff" + "b" * 62


async def refused_to_publish(bus: Bus, subject: str) -> None:
    with pytest.raises(Denied) as caught:
        await bus.publish(subject, b"x", confirm=True)
    assert caught.value.kind == "no-right"


async def refused_to_subscribe(bus: Bus, subject: str) -> None:
    with pytest.raises(Denied) as caught:
        await bus.subscribe(subject, lambda _: None)
    assert caught.value.kind == "no-right"


def forged(subject: str, member: Member, other: Member) -> str:
    return subject.replace(member.public, other.public)


async def test_a_reader_reads_and_a_provider_provides(nats: Nats) -> None:
    """Each right opens its verbs and its subjects, and not those of the other."""
    reader, provider = nats.member([("demo", ["request"])]), nats.member([("demo", ["provide"])])
    async with reader.bus() as reads, provider.bus() as provides:
        await reads.wait_connected(5)
        await provides.wait_connected(5)
        for verb in subjects.READER_VERBS:
            await reads.publish(subjects.hub_verb("demo", verb, reader.public), b"", confirm=True)
            await refused_to_publish(provides, subjects.hub_verb("demo", verb, provider.public))
        for verb in subjects.PROVIDER_VERBS:
            await provides.publish(subjects.hub_verb("demo", verb, provider.public), b"", confirm=True)
            await refused_to_publish(reads, subjects.hub_verb("demo", verb, reader.public))
        await provides.publish(subjects.hub_offer("demo", INSTANCE, provider.public), b"", confirm=True)
        await refused_to_publish(reads, subjects.hub_offer("demo", INSTANCE, reader.public))
        await reads.subscribe(subjects.state("demo", STREAM), lambda _: None)
        await refused_to_subscribe(provides, subjects.state("demo", STREAM))
        await provides.subscribe(subjects.channel_seek("demo"), lambda _: None)
        await refused_to_subscribe(reads, subjects.channel_seek("demo"))
        for member, bus in ((reader, reads), (provider, provides)):
            await bus.subscribe(subjects.node_seek(member.public), lambda _: None)
            await bus.subscribe(subjects.grant(member.public, INSTANCE), lambda _: None)


async def test_a_read_only_member_wants_and_cannot_offer(nats: Nats) -> None:
    """With `read` alone a node may want and hear states; offering and accepting are refused."""
    member = nats.member([("demo", ["read"])])
    async with member.bus() as bus:
        await bus.wait_connected(5)
        await bus.publish(subjects.hub_verb("demo", "want", member.public), b"", confirm=True)
        await bus.subscribe(subjects.state("demo", STREAM), lambda _: None)
        await refused_to_publish(bus, subjects.hub_offer("demo", INSTANCE, member.public))
        await refused_to_publish(bus, subjects.hub_verb("demo", "accept", member.public))


async def test_a_sender_cannot_be_forged(nats: Nats) -> None:
    """No member says anything in another's name, in any verb."""
    rights = [("demo", ["request", "provide"])]
    member, other = nats.member(rights), nats.member(rights)
    async with member.bus() as bus:
        await bus.wait_connected(5)
        for verb in subjects.HUB_VERBS:
            await refused_to_publish(bus, subjects.hub_verb("demo", verb, other.public))
        await refused_to_publish(bus, subjects.hub_offer("demo", INSTANCE, other.public))


async def test_other_channels_are_walled_off(nats: Nats) -> None:
    """A member of one channel neither speaks nor hears in another; the hub's own subjects are closed too."""
    member = nats.member([("demo", ["request", "provide"])])
    async with member.bus() as bus:
        await bus.wait_connected(5)
        await refused_to_publish(bus, subjects.hub_verb("other", "want", member.public))
        await refused_to_publish(bus, subjects.hub_offer("other", INSTANCE, member.public))
        await refused_to_subscribe(bus, subjects.state("other", STREAM))
        await refused_to_subscribe(bus, subjects.channel_seek("other"))
        await refused_to_publish(bus, subjects.state("demo", STREAM))
        await refused_to_publish(bus, subjects.channel_seek("demo"))


@pytest.mark.parametrize(
    "pattern",
    [
        ">",
        "*",
        "*.>",
        "c.>",
        "c.*.seek",
        "c.*.state.>",
        "c.demo.>",
        "c.demo.*",
        "n.>",
        "n.*.seek",
        "hub.>",
        "hub.demo.>",
        "_INBOX.>",
        "_INBOX.*.>",
        "$SYS.>",
        "$JS.>",
    ],
)
async def test_wildcards_do_not_widen_rights(nats: Nats, pattern: str) -> None:
    """A pattern that covers more than the member's own subjects is refused."""
    member = nats.member([("demo", ["request", "provide"])])
    async with member.bus() as bus:
        await bus.wait_connected(5)
        await refused_to_subscribe(bus, pattern)


async def test_others_inboxes_and_sessions_are_closed(nats: Nats) -> None:
    """A node neither hears nor fills another's inbox, grants and seeks."""
    rights = [("demo", ["request", "provide"])]
    member, other = nats.member(rights), nats.member(rights)
    async with member.bus() as bus:
        await bus.wait_connected(5)
        await refused_to_subscribe(bus, f"_INBOX.{other.public}.>")
        await refused_to_subscribe(bus, f"n.{other.public}.>")
        await refused_to_publish(bus, f"_INBOX.{other.public}.x")
        await refused_to_publish(bus, subjects.grant(other.public, INSTANCE))
        await refused_to_publish(bus, subjects.node_seek(other.public))


@pytest.mark.parametrize(
    "subject",
    [
        "$JS.API.INFO",
        "$JS.API.STREAM.CREATE.x",
        "$JS.API.CONSUMER.CREATE.x.y",
        "$SYS.REQ.CLAIMS.UPDATE",
        "$SYS.REQ.USER.INFO.x",
        "anything",
    ],
)
async def test_servers_apis_are_closed(nats: Nats, subject: str) -> None:
    """A node reaches neither JetStream's nor the server's API."""
    member = nats.member([("demo", ["request", "provide"])])
    async with member.bus() as bus:
        await bus.wait_connected(5)
        await refused_to_publish(bus, subject)


async def test_a_node_cannot_answer_what_it_was_sent(nats: Nats) -> None:
    """There is no permission to respond: a seek with a reply subject opens nothing."""
    member = nats.member([("demo", ["provide"])])
    refusals: asyncio.Queue[str] = asyncio.Queue()

    def on_violation(verb: str, subject: str) -> None:
        refusals.put_nowait(f"{verb} {subject}")

    async with nats.hub() as hub, member.bus(on_violation=on_violation) as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await bus.subscribe(subjects.channel_seek("demo"), lambda message: message.respond(b"x"))
        reply = f"_INBOX.{nats.identity.hub_user.public}.x"
        await hub.publish(subjects.channel_seek("demo"), b"", reply=reply)
        async with asyncio.timeout(10):
            assert await refusals.get() == f"publish {reply}".lower()
        assert bus.stats.violations == 1


async def test_a_reply_subject_is_the_hubs_to_check(nats: Nats) -> None:
    """The server passes any reply subject on, so the hub's check is what keeps it from being a deputy."""
    member = nats.member([("demo", ["request"])])
    seen: asyncio.Queue[Message] = asyncio.Queue()
    async with nats.hub() as hub, member.bus() as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await hub.subscribe(subjects.hub_pattern("want"), seen.put)
        want = subjects.hub_verb("demo", "want", member.public)
        await bus.publish(want, b"", reply=subjects.state("other", STREAM), confirm=True)
        await bus.publish(want, b"", reply=f"_INBOX.{member.public}.x.1", confirm=True)
        async with asyncio.timeout(10):
            bad, good = await seen.get(), await seen.get()
        assert not subjects.reply_allowed(subjects.parse_hub(bad.subject).node, bad.reply)
        assert subjects.reply_allowed(subjects.parse_hub(good.subject).node, good.reply)


async def test_states_reach_the_readers_of_their_stream_only(nats: Nats) -> None:
    """What the hub tells about one stream is heard by its readers, not by those of another stream or
    channel.
    """
    reader = nats.member([("demo", ["request"])])
    outsider = nats.member([("other", ["request"])])
    heard: asyncio.Queue[str] = asyncio.Queue()
    wrong: list[str] = []
    async with nats.hub() as hub, reader.bus() as reads, outsider.bus() as outside:
        for bus in (hub, reads, outside):
            await bus.wait_connected(5)
        await reads.subscribe(subjects.state("demo", STREAM), lambda m: heard.put_nowait(m.subject))
        await outside.subscribe(subjects.state("other", STREAM), lambda m: wrong.append(m.subject))
        await hub.publish(subjects.state("demo", OTHER_STREAM), b"")
        await hub.publish(subjects.state("demo", STREAM), b"")
        async with asyncio.timeout(10):
            assert await heard.get() == subjects.state("demo", STREAM)
        await outside.flush()
        assert wrong == []
        assert heard.empty()


async def test_one_hundred_channels_fit(nats: Nats) -> None:
    """A member of a hundred channels logs in and may speak in the last of them."""
    member = nats.member([(f"channel{i}", ["request", "provide"]) for i in range(100)])
    async with member.bus() as bus:
        await bus.wait_connected(10)
        await bus.publish(subjects.hub_verb("channel99", "want", member.public), b"", confirm=True)
        await refused_to_publish(bus, subjects.hub_verb("channel100", "want", member.public))


async def test_a_jwt_of_another_hub_is_refused(nats: Nats) -> None:
    """A JWT signed by anybody else does not log in."""
    from entrepot_hub.core.nats_identity import RANDOM_LENGTH, NatsIdentity

    member = nats.member([("demo", ["request"])])
    foreign = NatsIdentity.create(bytes(i % 7 for i in range(RANDOM_LENGTH)))
    member.jwt = foreign.user_jwt(member.public, member.rights, 1_900_000_000, 3600)
    member.denied = Denied("who are you", kind="no-right")
    async with member.bus() as bus:
        with pytest.raises(EntrepotError) as caught:
            await bus.wait_connected(10)
        assert caught.value.kind == "revoked"


async def test_a_stolen_jwt_is_worth_nothing_without_the_key(nats: Nats) -> None:
    """A JWT shown with another key's signature does not log in."""
    member, thief = nats.member([("demo", ["request"])]), nats.member([])
    thief.jwt = member.jwt
    thief.denied = Denied("who are you", kind="no-right")
    async with thief.bus() as bus:
        with pytest.raises(EntrepotError) as caught:
            await bus.wait_connected(10)
        assert caught.value.kind == "revoked"
