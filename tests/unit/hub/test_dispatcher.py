"""Who has its turn when there is much to do: no node and no dead bucket keeps the hub from hearing the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, Self

from entrepot.adapters.bus import Message as BusMessage
from entrepot.core import subjects
from entrepot.core.messages import Ack, Missing, encode
from entrepot.core.nkeys import KeyKind, encode_public
from entrepot_hub.services.dispatcher import Dispatcher, DispatchSettings

SETTINGS = DispatchSettings(at_once=12, of_one=3, of_channel=6, waiting_of_one=20)


def key(number: int) -> str:
    return encode_public(KeyKind.USER, number.to_bytes(32))


class Hub:
    """A dispatcher before an exchange that answers for all channels but those that hang."""

    def __init__(self) -> None:
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
            SimpleNamespace(publish=None),  # type: ignore[arg-type]
            exchange,
            SimpleNamespace(member=self.member, channel=self.channel),  # type: ignore[arg-type]
            SimpleNamespace(heard=lambda _: None),  # type: ignore[arg-type]
            self.spawn,
            SETTINGS,
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

    def say(self, channel: str, node: int, times: int = 1) -> None:
        message = Missing(lock=bytes(8), stream=bytes(32), number=0)
        for _ in range(times):
            subject = subjects.hub_verb(channel, "missing", key(node))
            self.dispatcher._receive(BusMessage(subject, encode(message), None, None))  # type: ignore[arg-type]

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
