"""What a session says to its hub: messages of the same moment go together, so that hundreds of small streams cost a few
messages instead of thousands.

A message that is alone goes alone, at once. While there is more to say, what is said within a millisecond to the same
channel waits for each other and goes as one :class:`~entrepot.core.messages.Many`. One that is lost is lost as all of
its parts would have been: whoever relies on them says them again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final

from entrepot.adapters.bus import Bus
from entrepot.core import subjects
from entrepot.core.errors import Denied, EntrepotError, RetryLater
from entrepot.core.messages import (
    ENVELOPE,
    MAX_MESSAGE,
    MAX_PARTS,
    PART_ENVELOPE,
    Many,
    ManyReply,
    Said,
    decode,
    encode,
)

#: Seconds for which a message waits for others, if one was sent less than twice as long ago.
GATHERED_FOR: Final = 0.001
#: Questions in one message: their answers, with a signed URL each, have to fit into one too.
_QUESTIONS: Final = 48
_OF_VERB: Final = {verb: batch for batch, verbs in subjects.BATCHES.items() for verb in verbs}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where messages go that may go together."""

    channel: str
    batch: str
    instance: str | None = None


@dataclass(frozen=True, slots=True)
class _Waiting:
    verb: str
    payload: bytes
    answer: asyncio.Future[bytes] | None = None
    seconds: float = 0.0


class Outbox:
    """The messages of ``node`` on their way out. ``bus`` gives the connection, or raises why there is none; ``spawn``
    runs what sends them; ``room``: messages without an answer that may wait, further ones are lost."""

    def __init__(
        self,
        node: str,
        bus: Callable[[], Bus],
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        room: int,
    ) -> None:
        #: Messages without an answer that found no room, and those the bus could not take.
        self.lost = 0
        self._node = node
        self._bus = bus
        self._spawn = spawn
        self._room = room
        self._told = 0  # messages without an answer that are not sent yet
        self._queues: dict[_Place, deque[_Waiting]] = {}
        self._due: dict[_Place, asyncio.Handle] = {}
        self._sent_at: dict[_Place, float] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._one_by_one: set[str] = set()
        self._closed = False

    async def request(self, channel: str, verb: str, payload: bytes, seconds: float) -> bytes:
        """Send and return the answer. Raises as :meth:`Bus.request`."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._put(_Place(channel, _OF_VERB[verb]), _Waiting(verb, payload, answer, seconds))
        return await answer

    def tell(self, channel: str, verb: str, payload: bytes, instance: str | None = None) -> None:
        """Send without waiting; it may be lost. An offer names the hub ``instance``."""
        if self._told >= self._room:
            self.lost += 1
            return
        self._told += 1
        self._put(_Place(channel, _OF_VERB[verb], instance), _Waiting(verb, payload))

    def reconnected(self) -> None:
        """There is a new connection, and with it perhaps a hub that takes several messages at once."""
        self._one_by_one.clear()

    async def drain(self) -> None:
        """Return when all that was told is sent, or lost."""
        for place in list(self._queues):
            self._flush(place)
        while self._sending:
            await asyncio.wait(self._sending)

    def close(self) -> None:
        """Send nothing more; whoever waits for an answer hears so."""
        self._closed = True
        for handle in self._due.values():
            handle.cancel()
        self._due.clear()
        queues, self._queues = self._queues, {}
        for waiting in queues.values():
            self._fail(list(waiting), RetryLater("the session ends", kind="cancelled"))
        for task in self._sending | self._asking:
            task.cancel()

    def _put(self, place: _Place, message: _Waiting) -> None:
        if self._closed:
            self._fail([message], RetryLater("the session ends", kind="cancelled"))
            return
        queue = self._queues.setdefault(place, deque())
        queue.append(message)
        if len(queue) >= MAX_PARTS:
            self._flush(place)
        elif place not in self._due:
            loop = asyncio.get_running_loop()
            if loop.time() < self._sent_at.get(place, 0.0) + 2 * GATHERED_FOR:
                self._due[place] = loop.call_later(GATHERED_FOR, self._flush, place)
            else:
                self._due[place] = loop.call_soon(self._flush, place)

    def _flush(self, place: _Place) -> None:
        handle = self._due.pop(place, None)
        if handle is not None:
            handle.cancel()
        queue = self._queues.pop(place, None)
        if len(self._sent_at) > 1000:
            self._sent_at.clear()
        self._sent_at[place] = asyncio.get_running_loop().time()
        while queue:
            batch = self._next(queue, place)
            if not batch:
                continue
            asks = any(message.answer is not None for message in batch)
            task = self._spawn(self._ask(place, batch) if asks else self._send(place, batch))
            group = self._asking if asks else self._sending
            group.add(task)
            task.add_done_callback(group.discard)

    def _next(self, queue: deque[_Waiting], place: _Place) -> list[_Waiting]:
        """What goes in one message, from the front of the queue; nobody waits for the answer to a question that was
        taken back."""
        batch: list[_Waiting] = []
        most = 1 if place.channel in self._one_by_one else MAX_PARTS
        room, questions = MAX_MESSAGE - ENVELOPE, 0
        while queue and len(batch) < most:
            message = queue[0]
            if message.answer is not None and message.answer.done():
                queue.popleft()
                continue
            room -= len(message.payload) + PART_ENVELOPE
            questions += message.answer is not None
            if batch and (room < 0 or questions > _QUESTIONS):
                break
            batch.append(queue.popleft())
        return batch

    def _message(self, place: _Place, batch: list[_Waiting]) -> tuple[str, bytes]:
        """Subject and bytes."""
        alone = len(batch) == 1
        if alone:
            data = batch[0].payload
        else:
            data = encode(Many(parts=tuple(Said(verb=message.verb, payload=message.payload) for message in batch)))
        if place.instance is not None:
            make = subjects.hub_offer if alone else subjects.hub_offers
            return make(place.channel, place.instance, self._node), data
        return subjects.hub_verb(place.channel, batch[0].verb if alone else place.batch, self._node), data

    async def _send(self, place: _Place, batch: list[_Waiting]) -> None:
        try:
            await self._bus().publish(*self._message(place, batch))
        except EntrepotError:
            self.lost += len(batch)  # lossy by contract: whoever relies on it repeats it
        finally:
            self._told -= len(batch)

    async def _ask(self, place: _Place, batch: list[_Waiting]) -> None:
        error: EntrepotError = RetryLater("the session ends", kind="cancelled")
        try:
            seconds = max(message.seconds for message in batch)
            data = await self._bus().request(*self._message(place, batch), seconds)
            if len(batch) == 1:
                self._answer(batch[0], data)
            else:
                reply = decode(ManyReply, data)
                error = RetryLater("the hub left this unanswered", kind="deadline", waited=seconds)
                if reply.error is not None:
                    error = reply.error.error()
                elif len(reply.answers) == len(batch):
                    for message, answer in zip(batch, reply.answers, strict=True):
                        if answer is not None:
                            self._answer(message, answer)
        except EntrepotError as failed:
            error = failed
            if isinstance(failed, Denied) and len(batch) > 1:  # an older hub has no such subject: as it always was
                self._one_by_one.add(place.channel)
                for message in batch:
                    self._put(place, message)
                batch = []
        finally:
            self._fail(batch, error)

    @staticmethod
    def _answer(message: _Waiting, data: bytes) -> None:
        if message.answer is not None and not message.answer.done():
            message.answer.set_result(data)

    @staticmethod
    def _fail(batch: list[_Waiting], error: EntrepotError) -> None:
        """Whoever of them still waits hears ``error``, as an object of its own: it collects a traceback, and data."""
        for message in batch:
            if message.answer is not None and not message.answer.done():
                again = type(error)(error.message, kind=error.kind, hint=error.hint, **error.data)
                message.answer.set_exception(again)
                message.answer.exception()  # taken note of, or asyncio complains if the asker has gone
