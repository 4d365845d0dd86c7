"""Who has its turn when there is much to do: no node and no dead bucket keeps the hub from hearing the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, Self

import structlog

from entrepot.adapters.bus import Message as BusMessage
from entrepot.core import subjects
from entrepot.core.messages import Ack, Missing, decode, encode
from entrepot.core.nkeys import KeyKind, encode_public
from entrepot_hub.core.rates import Rate
from entrepot_hub.core.restraint import RATES
from entrepot_hub.services.dispatcher import Dispatcher, DispatchSettings

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
