"""A subscription of the bus: a bounded queue and a task that calls the handler with one message after
another.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nats.aio.subscription import Subscription as NatsSubscription

from entrepot.adapters.bus_link import Deliver, Link
from entrepot.core.errors import EntrepotError, InvalidInput, RetryLater

if TYPE_CHECKING:
    from entrepot.adapters.bus import Bus

#: Messages that a handler gets before everything else has its turn; and bytes that count as one message more.
TURN: Final = 16
TURN_BYTES: Final = 1024

type Handler = Callable[[Message], Awaitable[None] | None]
type OnError = Callable[[EntrepotError, str], None]


@dataclass(frozen=True, slots=True)
class Message:
    """A message that came in. ``reply`` is where the sender wants its answer: check it before you answer."""

    subject: str
    payload: bytes
    reply: str | None
    _bus: Bus = field(repr=False, compare=False)

    async def respond(self, payload: bytes) -> None:
        """Publish an answer. Raises InvalidInput when the sender asked for none, else as ``Bus.publish``."""
        if self.reply is None:
            raise InvalidInput("this message asks for no answer", kind="invalid-message")
        await self._bus.publish(self.reply, payload)


class Subscription:
    """A standing order for messages; made by ``Bus.subscribe``."""

    def __init__(
        self,
        bus: Bus,
        subject: str,
        handler: Handler,
        queue: str,
        pending: int,
        *,
        receive: Deliver | None = None,
    ) -> None:
        self.subject = subject
        self.queue = queue
        self.dropped = 0  #: messages that found the queue full
        self.task: asyncio.Task[None] | None = None
        self._bus = bus
        self._handler = handler
        self._deliver: Deliver = receive or self._enqueue
        self._pending = pending
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._ended = False
        self._link: Link | None = None
        self._handle: NatsSubscription | None = None

    @property
    def waiting(self) -> int:
        """Messages that wait for the handler."""
        return len(self._messages)

    async def unsubscribe(self) -> None:
        """End it; idempotent. Waiting messages are dropped and a handler at work elsewhere is cancelled."""
        if self._ended:
            return
        self._ended = True
        self._bus.forget(self)
        self._messages.clear()
        self._arrived.set()
        task = self.task
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        await self._detach_if_ended()

    async def attach(self, link: Link) -> None:
        """Order the messages on this link, once."""
        if self._link is link or self._ended:
            return
        self._link = link
        handle = await link.subscribe(self.subject, self.queue, self._deliver)
        self._handle = handle
        await self._detach_if_ended()  # it may have been unsubscribed meanwhile

    async def _detach_if_ended(self) -> None:
        if not self._ended:
            return
        link, handle, self._handle = self._link, self._handle, None
        if link is not None and handle is not None and not link.closed:
            await link.unsubscribe(handle)

    async def run(self) -> None:
        """Call the handler with each message until the subscription ends. A handler that never waits is no reason for
        everything else to: the event loop has its turn after :data:`TURN` messages, or fewer that are long."""
        handled = 0
        while not self._ended:
            while self._messages and not self._ended:
                message = self._messages.popleft()
                self._bytes -= len(message.payload)
                try:
                    result = self._handler(message)
                    if inspect.isawaitable(result):
                        await result
                except EntrepotError as error:
                    self._bus.failed(error, self.subject)
                except asyncio.CancelledError:
                    if self.task is None or self.task.cancelling():
                        raise
                    # Something the handler waited for was cancelled, not this subscription.
                    gone = RetryLater("what the handler waited for was cancelled", kind="cancelled")
                    self._bus.failed(gone, self.subject)
                handled += 1 + len(message.payload) // TURN_BYTES
                if handled >= TURN:
                    handled = 0
                    await asyncio.sleep(0)
            self._arrived.clear()
            if not self._messages and not self._ended:
                await self._arrived.wait()

    def _enqueue(self, subject: str, payload: bytes, reply: str | None, _unanswered: bool) -> None:
        if self._ended:
            return
        if len(self._messages) >= self._pending or self._bytes + len(payload) > self._bus.pending_bytes:
            self.dropped += 1
            self._bus.stats.dropped += 1
            return
        self._messages.append(Message(subject, payload, reply, self._bus))
        self._bytes += len(payload)
        self._arrived.set()
