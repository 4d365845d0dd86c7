"""A subscription for each stream, or one for many of a channel."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from entrepot.adapters.bus import Message
from entrepot.core.errors import Denied
from entrepot.core.identifiers import StreamId
from entrepot.services.listening import FEW, Ear, Listening

STREAMS = [StreamId(b"\xff" + number.to_bytes(31)) for number in range(3 * FEW)]


class Bus:
    """Keeps subscriptions."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}
        self.asked = 0
        self.refuses = False

    async def subscribe(self, subject: str, handler: Any) -> Any:
        self.asked += 1
        await asyncio.sleep(0)
        if self.refuses:
            raise Denied("no", kind="no-right")
        self.handlers[subject] = handler
        return Subscription(self, subject)

    def say(self, stream: StreamId) -> None:
        subject = f"c.demo.state.{stream.hex}"
        for pattern in (subject, "c.demo.state.*"):
            if pattern in self.handlers:
                self.handlers[pattern](Message(subject, b"", None, None))  # type: ignore[arg-type]


class Subscription:
    def __init__(self, bus: Bus, subject: str) -> None:
        self._bus = bus
        self._subject = subject

    async def unsubscribe(self) -> None:
        del self._bus.handlers[self._subject]


async def listen(listening: Listening, heard: list[StreamId], streams: list[StreamId]) -> list[Ear]:
    return list(
        await asyncio.gather(
            *(listening.listen("demo", stream, lambda _, stream=stream: heard.append(stream)) for stream in streams)  # type: ignore[misc]
        )
    )


async def test_many_streams_share_a_subscription() -> None:
    """The first streams of a channel have a subscription each, the others one together; each hears what is its own,
    once, and nothing is left when all have ended."""
    bus, heard = Bus(), list[StreamId]()
    tried: Any = bus
    listening = Listening(lambda: tried)
    ears = await listen(listening, heard, STREAMS)
    assert (len(bus.handlers), bus.asked) == (FEW + 1, FEW + 1)
    for stream in STREAMS:
        bus.say(stream)
    bus.say(StreamId(b"\xff" * 32))
    assert heard == STREAMS
    await ears[-1].unsubscribe()
    bus.say(STREAMS[-1])
    assert heard == STREAMS
    for ear in ears:
        await ear.unsubscribe()
    assert bus.handlers == {}
    (again,) = await listen(listening, heard, STREAMS[:1])
    bus.say(STREAMS[0])
    assert heard == [*STREAMS, STREAMS[0]]
    await again.unsubscribe()


async def test_two_ears_of_one_stream_hear_both() -> None:
    """Whoever reads the same stream a second time hears it as well, and goes on when the first has ended."""
    bus, heard = Bus(), list[StreamId]()
    tried: Any = bus
    listening = Listening(lambda: tried)
    await listen(listening, heard, STREAMS[:FEW])
    first, second = await listen(listening, heard, [STREAMS[-1]] * 2)
    bus.say(STREAMS[-1])
    await first.unsubscribe()
    bus.say(STREAMS[-1])
    assert heard == [STREAMS[-1]] * 3
    await second.unsubscribe()
    assert len(bus.handlers) == FEW


async def test_a_refusal_is_told_to_each_and_leaves_nothing() -> None:
    """Where the server refuses, each asker hears so, and the next is asked for again."""
    bus = Bus()
    tried: Any = bus
    listening = Listening(lambda: tried)
    ears = await listen(listening, [], STREAMS[:FEW])
    bus.refuses = True
    results = await asyncio.gather(
        *(listening.listen("demo", stream, lambda _: None) for stream in STREAMS[FEW:]), return_exceptions=True
    )
    assert {type(one) for one in results} == {Denied}
    await ears[0].unsubscribe()
    with pytest.raises(Denied):
        await listening.listen("demo", STREAMS[0], lambda _: None)
    bus.refuses = False
    await listen(listening, [], STREAMS[:2])
    assert len(bus.handlers) == FEW + 1
