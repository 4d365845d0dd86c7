"""What goes together on its way to the hub, what goes alone, and what becomes of it when something fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from entrepot.core import subjects
from entrepot.core.errors import Denied, EntrepotError, RetryLater
from entrepot.core.messages import MAX_MESSAGE, Many, ManyReply, decode, encode, reason_of
from entrepot.core.nkeys import KeyKind, encode_public
from entrepot.services.outbox import Outbox

NODE = encode_public(KeyKind.USER, bytes(32))


class Bus:
    """Takes messages down; answers each part with its own payload, as far as ``answer`` does not say otherwise."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.answer: Callable[[str, bytes], bytes] = self.echo
        self.trouble: EntrepotError | None = None

    async def publish(self, subject: str, payload: bytes) -> None:
        self.sent.append((subject.split(".")[2], payload))
        if self.trouble is not None:
            raise self.trouble

    async def request(self, subject: str, payload: bytes, _seconds: float) -> bytes:
        await self.publish(subject, payload)
        await asyncio.sleep(0)
        return self.answer(subject.split(".")[2], payload)

    @staticmethod
    def echo(verb: str, payload: bytes) -> bytes:
        if verb not in subjects.BATCHES:
            return payload
        return encode(ManyReply(answers=tuple(part.payload for part in decode(Many, payload).parts)))

    @property
    def verbs(self) -> list[str]:
        return [verb for verb, _ in self.sent]


@asynccontextmanager
async def outbox(bus: Bus, room: int = 1024) -> AsyncIterator[Outbox]:
    tried: Any = bus
    async with asyncio.TaskGroup() as group:
        box = Outbox(NODE, lambda: tried, group.create_task, room)
        try:
            yield box
        finally:
            box.close()


async def test_one_message_goes_alone_and_as_it_is() -> None:
    """A single question is no message of several."""
    bus = Bus()
    async with outbox(bus) as box:
        assert await box.request("demo", "want", b"question", 1.0) == b"question"
    assert bus.sent == [("want", b"question")]


async def test_what_is_said_at_once_goes_together() -> None:
    """Questions and what needs no answer, said in one turn, are one message; each asker gets its own answer. Another
    channel, a provider's verbs and offers go for themselves."""
    bus = Bus()
    async with outbox(bus) as box:
        questions = [asyncio.create_task(box.request("demo", "want", b"%d" % number, 1.0)) for number in range(10)]
        await asyncio.sleep(0)
        box.tell("demo", "got", b"told")
        box.tell("other", "got", b"told")
        box.tell("demo", "offer", b"offered", "0" * 16)
        box.tell("demo", "offer", b"offered", "0" * 16)
        box.tell("demo", "progress", b"told")
        assert await asyncio.gather(*questions) == [b"%d" % number for number in range(10)]
        await box.drain()
    assert sorted(bus.verbs) == ["asks", "got", "offers", "progress"]
    parts = decode(Many, next(data for verb, data in bus.sent if verb == "asks")).parts
    assert sorted(part.verb for part in parts) == ["got"] + ["want"] * 10


async def test_a_message_of_several_has_bounds() -> None:
    """However much is said at once, each message fits the bus, and so do the answers to its questions."""
    bus = Bus()
    async with outbox(bus) as box:
        for _ in range(300):
            box.tell("demo", "got", bytes(1000))
        await box.drain()
        assert all(len(data) <= MAX_MESSAGE for _, data in bus.sent)
        assert sum(len(decode(Many, data).parts) for _, data in bus.sent) == 300
        bus.sent.clear()
        await asyncio.gather(*(box.request("demo", "want", b"?", 1.0) for _ in range(100)))
    assert [len(decode(Many, data).parts) for _, data in bus.sent] == [48, 48, 4]


async def test_an_answer_that_is_missing_is_no_answer() -> None:
    """Whoever's part the hub left open hears that nothing came, the others have their answers."""
    bus = Bus()
    bus.answer = lambda _verb, _payload: encode(ManyReply(answers=(b"yes", None)))
    async with outbox(bus) as box:
        yes, no = await asyncio.gather(
            box.request("demo", "want", b"1", 1.0), box.request("demo", "want", b"2", 1.0), return_exceptions=True
        )
    assert yes == b"yes"
    assert isinstance(no, RetryLater)
    assert no.kind == "deadline"


async def test_a_refusal_of_all_is_told_to_each() -> None:
    """An error of the whole message, from the hub or on the way, reaches every asker as an object of its own."""
    bus = Bus()
    bus.answer = lambda _verb, _payload: encode(ManyReply(error=reason_of(RetryLater("too much", kind="busy"))))
    async with outbox(bus) as box:
        for kind in ("busy", "deadline"):
            errors = await asyncio.gather(
                *(box.request("demo", "want", b"1", 1.0) for _ in range(3)), return_exceptions=True
            )
            assert [error.kind for error in errors if isinstance(error, RetryLater)] == [kind] * 3
            assert len({id(error) for error in errors}) == 3
            bus.trouble = RetryLater("lost", kind="deadline")


async def test_a_hub_that_takes_no_several_is_spoken_to_as_ever() -> None:
    """Where the server refuses the subject, an older hub's, each message goes alone; after the next connection it is
    tried again."""
    bus = Bus()

    def answer(verb: str, payload: bytes) -> bytes:
        if verb == "asks":
            raise Denied("no such subject", kind="no-right")
        return payload

    bus.answer = answer
    async with outbox(bus) as box:
        for verbs in (["asks", "want", "want"], ["want", "want"]):
            both = await asyncio.gather(*(box.request("demo", "want", b"%d" % number, 1.0) for number in range(2)))
            assert (both, bus.verbs) == ([b"0", b"1"], verbs)
            bus.sent.clear()
        box.reconnected()
        await asyncio.gather(*(box.request("demo", "want", b"1", 1.0) for _ in range(2)))
        assert bus.verbs == ["asks", "want", "want"]


async def test_what_cannot_be_sent_is_counted() -> None:
    """What needs no answer is lost where there is no room or no connection; it is counted, and nobody waits for it."""
    bus = Bus()
    async with outbox(bus, room=5) as box:
        for _ in range(8):
            box.tell("demo", "got", b"told")
        assert box.lost == 3
        bus.trouble = RetryLater("no connection", kind="bus-unreachable")
        await box.drain()
        assert box.lost == 8
        bus.trouble = None
        box.tell("demo", "got", b"told")
        await box.drain()
        assert box.lost == 8


async def test_a_question_taken_back_is_not_asked() -> None:
    """Whoever stops waiting before anything was sent costs no message."""
    bus = Bus()
    async with outbox(bus) as box:
        asking = asyncio.create_task(box.request("demo", "want", b"1", 1.0))
        other = asyncio.create_task(box.request("demo", "want", b"2", 1.0))
        await asyncio.sleep(0)
        asking.cancel()
        assert await other == b"2"
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_the_end_is_told_to_who_waits() -> None:
    """When the session ends, whoever waits for an answer hears so, also who asks after it."""
    bus = Bus()
    async with outbox(bus) as box:
        asking = asyncio.create_task(box.request("demo", "want", b"1", 1.0))
        await asyncio.sleep(0)
        box.close()
        for question in (asking, box.request("demo", "want", b"2", 1.0)):
            with pytest.raises(RetryLater) as caught:
                await question
            assert caught.value.kind == "cancelled"
