"""Hearing how streams stand: a subscription for each, or one for a whole channel while many are read at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from entrepot.adapters.bus import Bus, Message, Subscription
from entrepot.core import subjects
from entrepot.core.identifiers import StreamId

#: Streams of one channel that have a subscription each. For more of them one is cheaper, although the states of streams
#: that others read come with it.
FEW = 8

type OnMessage = Callable[[Message], None]


class Ear:
    """Hears the states of one stream until :meth:`unsubscribe`."""

    def __init__(self, listening: Listening, channel: str, stream: str, handler: OnMessage) -> None:
        self._listening = listening
        self.channel = channel
        self.stream = stream
        self.handler = handler
        self.subscription: Subscription | None = None

    async def unsubscribe(self) -> None:
        """End it. May be called again."""
        await self._listening.leave(self)


class _Crowd:
    """The streams of one channel that share a subscription."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.ears: dict[str, dict[Ear, None]] = {}
        self.subscription: Subscription | None = None

    def hear(self, message: Message) -> None:
        for ear in tuple(self.ears.get(message.subject.rpartition(".")[2], ())):
            ear.handler(message)


class Listening:
    """The ears of one session. ``bus`` gives the connection, or raises why there is none."""

    def __init__(self, bus: Callable[[], Bus]) -> None:
        self._bus = bus
        self._alone: Counter[str] = Counter()
        self._crowds: dict[str, _Crowd] = {}

    async def listen(self, channel: str, stream: StreamId, handler: OnMessage) -> Ear:
        """Have ``handler`` called with each message of the stream's states. Raises as :meth:`Bus.subscribe`."""
        ear = Ear(self, channel, stream.hex, handler)
        if self._alone[channel] < FEW:
            self._alone[channel] += 1
            try:
                ear.subscription = await self._bus().subscribe(subjects.state(channel, stream.hex), handler)
            except BaseException:
                self._alone[channel] -= 1
                raise
            return ear
        crowd = self._crowds.setdefault(channel, _Crowd())
        crowd.ears.setdefault(ear.stream, {})[ear] = None
        try:
            async with crowd.turn:
                if crowd.subscription is None:
                    crowd.subscription = await self._bus().subscribe(subjects.states(channel), crowd.hear)
        except BaseException:
            self._forget(crowd, ear)
            raise
        return ear

    async def leave(self, ear: Ear) -> None:
        """Let one of them hear nothing more."""
        subscription, ear.subscription = ear.subscription, None
        if subscription is not None:
            self._alone[ear.channel] -= 1
            await subscription.unsubscribe()
            return
        crowd = self._crowds.get(ear.channel)
        if crowd is None or not self._forget(crowd, ear) or crowd.ears:
            return
        async with crowd.turn:
            if not crowd.ears:  # nobody came meanwhile
                subscription, crowd.subscription = crowd.subscription, None
                if subscription is not None:
                    await subscription.unsubscribe()

    @staticmethod
    def _forget(crowd: _Crowd, ear: Ear) -> bool:
        ears = crowd.ears.get(ear.stream, {})
        if ear not in ears:
            return False
        del ears[ear]
        if not ears:
            del crowd.ears[ear.stream]
        return True
