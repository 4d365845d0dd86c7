"""Who has its turn when there is much to do: no node and no dead bucket keeps the hub from hearing the others."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, Self

import pytest
import structlog

from entrepot.adapters.bus import Message as BusMessage
from entrepot.core import subjects
from entrepot.core.errors import InvalidInput
from entrepot.core.messages import (
    Ack,
    Many,
    ManyReply,
    Message,
    Missing,
    ObjectState,
    Offer,
    Said,
    Signed,
    Want,
    WantReply,
    decode,
    encode,
)
from entrepot.core.nkeys import KeyKind, encode_public
from entrepot_hub.core.rates import Rate
from entrepot_hub.core.restraint import BATCH_BYTES, RATES
from entrepot_hub.services import dispatcher
from entrepot_hub.services.dispatcher import Dispatcher, DispatchSettings, _Batch

SETTINGS = DispatchSettings(at_once=12, of_one=3, of_channel=6, waiting_of_one=20)


def key(number: int) -> str:
    return encode_public(KeyKind.USER, number.to_bytes(32))


class Hub:
    """A dispatcher before an exchange that answers for all channels but those that hang."""

    def __init__(self, settings: DispatchSettings = SETTINGS) -> None:
        self.time = 1000.0
        self.published: list[tuple[str, bytes]] = []
        self.hanging: set[str] = set()
        self.release = asyncio.Event()
        self.answered: list[tuple[str, str]] = []
        self.most: dict[str, int] = {}
        self.now: dict[str, int] = {}
        self.tasks: list[asyncio.Task[None]] = []
        exchange: Any = SimpleNamespace(
            instance="0" * 16, missing=self.missing, **dict.fromkeys(
                ("want", "got", "cancel", "bad", "offer", "accept", "progress", "done", "added", "open"), None
            )
        )  # fmt: skip
        self.dispatcher = Dispatcher(
            SimpleNamespace(publish=self.publish),  # type: ignore[arg-type]
            exchange,
            SimpleNamespace(member=self.member, channel=self.channel),  # type: ignore[arg-type]
            SimpleNamespace(heard=lambda _: None),  # type: ignore[arg-type]
            self.spawn,
            settings,
            clock=lambda: self.time,
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> bool:
        self.tasks.append(asyncio.create_task(work))
        return True

    async def member(self, _channel: str, node: str) -> str:
        return node

    async def channel(self, name: str) -> str:
        return name

    async def missing(self, channel: Any, member: Any, _message: Missing) -> Ack:
        for one in (channel, member):
            self.now[one] = self.now.get(one, 0) + 1
            self.most[one] = max(self.most.get(one, 0), self.now[one])
        if channel in self.hanging:
            await self.release.wait()
        for one in (channel, member):
            self.now[one] -= 1
        self.answered.append((channel, member))
        return Ack()

    async def publish(self, subject: str, payload: bytes) -> None:
        self.published.append((subject, payload))

    def say(self, channel: str, node: int, times: int = 1, *, reply: bool | str = False) -> None:
        message = Missing(lock=bytes(8), stream=bytes(32), number=0)
        for _ in range(times):
            subject = subjects.hub_verb(channel, "missing", key(node))
            inbox = f"{subjects.inbox(key(node))}.1" if reply is True else reply or None
            self.dispatcher._receive(BusMessage(subject, encode(message), inbox, None))  # type: ignore[arg-type]

    def say_many(
        self, channel: str, node: int, *parts: tuple[str, bytes], verb: str = "asks", reply: bool = True
    ) -> None:
        """Several messages at once."""
        message = Many(parts=tuple(Said(verb=one, payload=payload) for one, payload in parts))
        self.receive(channel, node, verb, encode(message), reply=reply)

    def receive(self, channel: str, node: int, verb: str, payload: bytes, *, reply: bool = True) -> None:
        """These bytes."""
        inbox = f"{subjects.inbox(key(node))}.1" if reply else None
        subject = subjects.hub_verb(channel, verb, key(node))
        self.dispatcher._receive(BusMessage(subject, payload, inbox, None))  # type: ignore[arg-type]

    @property
    def replies(self) -> list[ManyReply]:
        """The answers to several messages at once."""
        return [decode(ManyReply, payload) for _, payload in self.published]

    async def settle(self) -> None:
        """Let everything happen that can."""
        for _ in range(500):
            await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        await self.settle()


async def test_a_dead_bucket_leaves_the_others_heard() -> None:
    """However many members of its channel ask, the channel keeps only its share; others are answered."""
    async with Hub() as hub:
        hub.hanging.add("dead")
        for node in range(20):
            hub.say("dead", node, 3)
        hub.say("alive", 99, 5)
        await hub.settle()
        assert hub.answered == [("alive", key(99))] * 5
        assert hub.most["dead"] == SETTINGS.of_channel
        hub.release.set()
        await hub.settle()
        assert len(hub.answered) == 65
        assert hub.most["dead"] == SETTINGS.of_channel


async def test_a_node_has_its_share_over_all_its_channels() -> None:
    """One node in many channels has no more in work than one in a single channel, and none of its channels starves."""
    async with Hub() as hub:
        hub.hanging.update({"a", "b", "c"})
        for channel in ("a", "b", "c"):
            hub.say(channel, 1, 6)
        hub.say("d", 2)
        await hub.settle()
        assert hub.answered == [("d", key(2))]
        assert hub.most[key(1)] == SETTINGS.of_one
        hub.release.set()
        await hub.settle()
        channels = [channel for channel, node in hub.answered if node == key(1)]
        assert len(channels) == 18
        assert set(channels[SETTINGS.of_one : SETTINGS.of_one + 3]) == {"a", "b", "c"}


async def test_what_waits_too_long_a_queue_is_dropped() -> None:
    """A node has so many messages waiting, in all its channels together; the rest it says again."""
    async with Hub() as hub:
        hub.hanging.add("a")
        hub.say("a", 1, 15)
        hub.say("b", 1, 15)
        assert hub.dispatcher.dropped == 30 - SETTINGS.of_one - SETTINGS.waiting_of_one
        hub.release.set()
        await hub.settle()
        assert len(hub.answered) == 30 - hub.dispatcher.dropped
        hub.say("a", 1)
        await hub.settle()
        assert len(hub.answered) == 31 - hub.dispatcher.dropped


async def test_a_flood_is_shed_and_others_are_heard_in_their_turn(report: Callable[..., None]) -> None:
    """Whoever says far more than it may is heard as often as it may; another node's message waits for no more of the
    flood than may be in work at once."""
    rates = {**RATES, "tell": Rate(1.0, 30.0)}
    settings = DispatchSettings(at_once=12, of_one=3, of_channel=6, waiting_of_one=1000, rates=rates)
    async with Hub(settings) as hub:
        hub.hanging.add("a")
        hub.say("a", 1, 100_000)
        hub.say("b", 2)
        await hub.settle()
        assert hub.answered == [("b", key(2))]
        hub.hanging.clear()
        hub.release.set()
        hub.say("b", 2)
        await hub.settle()
        assert hub.answered.index(("b", key(2)), 1) <= 1 + 2 * settings.of_one
        assert hub.answered.count(("a", key(1))) == 30
        assert hub.dispatcher.dropped == 100_000 - 30
        assert hub.dispatcher.excessive() == [(key(1), 100_000 - 30)]
        assert sum(1 for task in hub.tasks) < 100, "what is dropped costs no task"
    report("attacks", attack="messages without end", defended_by="a rate per node and kind of verb, and turns")


async def test_who_says_too_much_hears_it_once_a_second() -> None:
    """The first message too many is answered with a reason that names the pause; the log has one line."""
    settings = DispatchSettings(rates={**RATES, "tell": Rate(0.5, 1.0)})
    async with Hub(settings) as hub:
        with structlog.testing.capture_logs() as logs:
            hub.say("a", 1, 50, reply=True)
            await hub.settle()
        acks = [decode(Ack, payload) for _, payload in hub.published]
        errors = [ack.error for ack in acks if ack.error is not None]
        assert len(acks) - len(errors) == 1
        assert [error.kind for error in errors] == ["too-many-requests"]
        assert errors[0].error().data["retry_after"] == 2.0
        assert {subject.rpartition(".")[0] for subject, _ in hub.published} == {f"_INBOX.{key(1)}"}
        assert [(line["event"], line["count"]) for line in logs] == [("too many messages", 1)]
        hub.time += 61.0
        with structlog.testing.capture_logs() as logs:
            hub.say("a", 1, 2)
        assert [(line["event"], line["count"]) for line in logs] == [("too many messages", 49)]


async def test_nobody_is_answered_elsewhere_for_saying_too_much() -> None:
    """The hub is made no deputy by a flood either: a reply subject that is not the sender's is not answered."""
    settings = DispatchSettings(rates={**RATES, "tell": Rate(0.5, 1.0)})
    async with Hub(settings) as hub:
        hub.say("a", 1, 1)
        hub.say("a", 1, 5, reply=f"_INBOX.{key(2)}.x")
        await hub.settle()
        assert hub.published == []


MISSING = ("missing", encode(Missing(lock=bytes(8), stream=bytes(32), number=0)))


def kinds(reply: ManyReply) -> list[str | None]:
    """How each of several messages was answered: None for well, ``nothing`` where there is no answer."""
    acks: list[Message | None] = [None if data is None else decode(Ack, data) for data in reply.answers]
    return ["nothing" if ack is None else ack.error and ack.error.kind for ack in acks]  # type: ignore[attr-defined]


async def test_several_messages_are_answered_together() -> None:
    """Each part of a message of several is worked on as if it had come alone, within its node's share of what is in
    work, and the answers come back in one message, in order; a part that is no message spoils none of the others."""
    async with Hub() as hub:
        hub.say_many("a", 1, *[MISSING] * 3, ("missing", b"rubbish"), *[MISSING] * 6)
        await hub.settle()
        assert [kinds(reply) for reply in hub.replies] == [[None] * 3 + ["invalid-message"] + [None] * 6]
        assert hub.published[0][0] == f"_INBOX.{key(1)}.1"
        assert hub.answered == [("a", key(1))] * 9
        assert hub.most[key(1)] <= SETTINGS.of_one
        hub.say_many("a", 1, MISSING, MISSING, reply=False)
        await hub.settle()
        assert (len(hub.answered), len(hub.published)) == (11, 1)


async def test_a_part_that_hangs_does_not_keep_the_others_answers() -> None:
    """What is answered in time goes out after the patience, the rest is left open; its end is told nobody twice."""
    async with Hub(DispatchSettings(patience=0.01)) as hub:
        done = asyncio.Event()
        answer = hub.missing

        async def missing(channel: object, member: object, message: Missing) -> Ack:
            if message.number:
                await done.wait()
            return await answer(channel, member, message)

        hub.dispatcher._known["missing"] = dataclasses.replace(hub.dispatcher._known["missing"], handler=missing)  # type: ignore[index]
        hanging = ("missing", encode(Missing(lock=bytes(8), stream=bytes(32), number=1)))
        hub.say_many("a", 1, hanging, MISSING)
        async with asyncio.timeout(20):
            while not hub.published:
                await asyncio.sleep(0.005)
        assert [kinds(reply) for reply in hub.replies] == [["nothing", None]]
        done.set()
        await hub.settle()
        assert (len(hub.answered), len(hub.published)) == (2, 1)


async def test_each_of_several_counts_as_what_it_is() -> None:
    """Saying much at once is no way around the rates: what is beyond them is answered so, each part for itself."""
    settings = DispatchSettings(rates={**RATES, "tell": Rate(1.0, 4.0)})
    async with Hub(settings) as hub:
        hub.say_many("a", 1, *[MISSING] * 6)
        await hub.settle()
        assert [kinds(reply) for reply in hub.replies] == [[None] * 3 + ["too-many-requests"] * 3]
        assert hub.dispatcher.dropped == 3


@pytest.mark.parametrize("reply", [True, False], ids=["asked", "told"])
async def test_a_flood_of_several_at_once_is_hardly_read(monkeypatch: pytest.MonkeyPatch, reply: bool) -> None:
    """Parts beyond the rate are paid for too, so that what follows is refused unread; one answer a second is made for
    all of them, and none where none is asked for."""
    made: list[type[Message]] = []
    read: list[type[Message]] = []

    def counting_encode(message: Message) -> bytes:
        made.append(type(message))
        return encode(message)

    def counting_decode[M: Message](kind: type[M], data: bytes) -> M:
        read.append(kind)
        return decode(kind, data)

    monkeypatch.setattr(dispatcher, "encode", counting_encode)
    monkeypatch.setattr(dispatcher, "decode", counting_decode)
    settings = DispatchSettings(rates={**RATES, "tell": Rate(20.0, 100.0)})
    async with Hub(settings) as hub:
        empty = encode(Many(parts=(Said(verb="missing", payload=b""),) * 150))
        for _ in range(2):
            for _ in range(500):
                hub.receive("a", 1, "asks", empty, reply=reply)
            hub.time += 0.9  # time enough for the message, not for what it owes
        await hub.settle()
        admitted = 100 - 1 - len(empty) // BATCH_BYTES
        assert read.count(Many) == 1
        assert hub.dispatcher.dropped == 150 - admitted + 999
        assert hub.dispatcher.excessive() == [(key(1), 150 - admitted + 999)]
        answers = [kinds(answer) for answer in hub.replies]
        refused = ["too-many-requests"] * (150 - admitted)
        assert answers == ([["invalid-message"] * admitted + refused] if reply else [])
        # What was within the rate has an answer each, the rest has one; and so has the whole.
        assert len(made) == (admitted + 2 if reply else 0)
        hub.time += 100.0
        hub.say_many("a", 1, MISSING)
        await hub.settle()
        assert hub.answered == [("a", key(1))], "what it owes it has paid"


async def test_what_is_too_much_of_one_class_leaves_the_others() -> None:
    """Messages of another class that came with too many are worked on; refused ones are not answered twice a second."""
    settings = DispatchSettings(rates={**RATES, "report": Rate(0.1, 1.0)})
    async with Hub(settings) as hub:
        bad = ("bad", b"")
        hub.say_many("a", 1, bad, bad, MISSING, bad, MISSING)
        await hub.settle()
        hub.say_many("a", 1, bad, MISSING)
        hub.say_many("a", 1, bad, bad)
        await hub.settle()
        often = "too-many-requests"
        assert [kinds(reply) for reply in hub.replies] == [
            ["invalid-message", often, None, often, None],
            ["nothing", None],
        ]
        assert hub.dispatcher.dropped == 5


@pytest.mark.parametrize("together", [False, True], ids=["alone", "among others"])
async def test_an_answer_too_long_for_the_bus_tells_of_the_first(together: bool) -> None:
    """A want whose objects have long addresses is answered with as many of them, from the front, as a message holds;
    its reader is to ask for the others soon."""
    get = Signed(method="GET", url="https://bucket/" + "x" * 1100, expires=60_000)
    states = tuple(ObjectState(number=number, state="ready", get=get) for number in range(64))
    full = WantReply(objects=states, ready=((0, 63),), again_in=60_000)
    with pytest.raises(InvalidInput):
        encode(full)

    async def want(_channel: object, _member: object, _message: Want) -> WantReply:
        return full

    async with Hub() as hub:
        hub.dispatcher._known["want"] = dataclasses.replace(hub.dispatcher._known["want"], handler=want)  # type: ignore[index]
        message = Want(lock=bytes(8), stream=bytes(32), session="0" * 16, ranges=((0, 63),), window=64, deadline=1000)
        if together:
            hub.say_many("a", 1, MISSING, ("want", encode(message)))
        else:
            hub.receive("a", 1, "want", encode(message))
        await hub.settle()
        [(_, data)] = hub.published
        if together:
            found = decode(ManyReply, data).answers[1]
            assert found is not None
            data = found
        reply = decode(WantReply, data)
        assert reply.objects == states[: len(reply.objects)]
        assert 40 <= len(reply.objects) < 64
        assert (reply.ready, reply.again_in) == (((0, 63),), 1000)
        for count in range(40, 65):  # there is room for one among the answers to several, however long it is
            answer = dispatcher._encoded(WantReply(objects=states[:count]))
            assert _Batch("inbox", 2).put(0, answer) is None
            assert len(answer) <= 60 * 1024


async def test_no_more_wait_because_they_came_together() -> None:
    """The bound of what may wait of one node holds for parts too: those beyond it have no answer and are said again."""
    async with Hub() as hub:
        hub.say_many("a", 1, *[MISSING] * (SETTINGS.waiting_of_one + 5))
        await hub.settle()
        found = kinds(hub.replies[0])
        assert found.count("nothing") == 5
        assert found.count(None) == SETTINGS.waiting_of_one


OFFER = encode(Offer(lock=bytes(8), stream=bytes(32), session="0" * 16, opening=bytes(40), ranges=(), slots=0))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        encode(Ack()),
        encode(Many(parts=(Said(verb="asks", payload=encode(Many(parts=(Said(verb="got", payload=b""),)))),))),
        encode(Many(parts=(Said(verb="done", payload=b""),))),
        encode(Many(parts=(Said(verb="offer", payload=OFFER), Said(verb="missing", payload=MISSING[1])))),
    ],
    ids=["nothing", "another message", "several in several", "a provider's verb", "an offer"],
)
async def test_what_may_not_come_together_is_refused(payload: bytes) -> None:
    """Only verbs that the subject allows its sender stand in a message of several, and no further such message; nothing
    of another one is done."""
    async with Hub() as hub:
        hub.receive("a", 1, "asks", payload)
        await hub.settle()
        assert [reply.error and reply.error.kind for reply in hub.replies] == ["invalid-message"]
        assert (hub.answered, hub.dispatcher.refused) == ([], 1)


async def test_several_messages_make_the_hub_no_deputy() -> None:
    """Answers go nowhere but into the sender's inbox, and nothing is done of what asks for another place."""
    async with Hub() as hub:
        subject = subjects.hub_verb("a", "asks", key(1))
        message = Many(parts=(Said(verb=MISSING[0], payload=MISSING[1]),) * 2)
        hub.dispatcher._receive(BusMessage(subject, encode(message), f"_INBOX.{key(2)}.x", None))  # type: ignore[arg-type]
        await hub.settle()
        assert (hub.published, hub.answered) == ([], [])


async def test_answers_that_do_not_fit_are_left_out() -> None:
    """The answers of several messages are one message that the bus carries; what does not fit is said again."""
    batch = _Batch("inbox", 5)
    replies = [batch.put(place, bytes(20_000)) for place in range(5)]
    assert replies[:4] == [None] * 4
    assert replies[4] is not None
    assert [answer is not None for answer in replies[4].answers] == [True, True, True, False, False]
    assert len(encode(replies[4])) < 65536
