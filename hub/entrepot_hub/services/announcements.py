"""How the readers of a stream hear of its objects: at once of what is ready, a moment later of all else.

A reader waits for an object that is ready; that one is sought or on its way is only good to know. So that is told
together, of many objects in one message, and not at all of what is ready by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from entrepot.core import subjects
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.messages import MAX_OBJECTS, Message, ObjectState, State
from entrepot_hub.adapters.database import Database
from entrepot_hub.core.ledger import GrantStatus, Ledger, ObjectRef, ObjectStatus, ObjectView
from entrepot_hub.core.rounds import Rounds
from entrepot_hub.services.channels import Channels, OpenChannel
from entrepot_hub.services.metering import Metering
from entrepot_hub.services.urls import ReadUrls

#: Seconds after which readers hear of what is not ready.
LATER = 0.05


class Announcements:
    """One hub instance's. ``publish(subject, message)`` sends without waiting; ``spawn`` runs in the background."""

    def __init__(
        self,
        *,
        database: Database,
        ledger: Ledger,
        channels: Channels,
        metering: Metering,
        rounds: Rounds,
        urls: ReadUrls,
        settings: ExchangeSettings,
        clock: Callable[[], float],
        publish: Callable[[str, Message], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._channels = channels
        self._metering = metering
        self._rounds = rounds
        self._urls = urls
        self._settings = settings
        self._clock = clock
        self._publish = publish
        self._spawn = spawn
        self._waiting: dict[tuple[str, bytes], dict[ObjectRef, None]] = {}  # by channel and stream

    async def now(self, refs: Sequence[ObjectRef]) -> None:
        """Tell the readers of a stream how its objects stand, and lend them what they are told to read."""
        for ref in refs:
            self._waiting.get((ref.channel, ref.stream), {}).pop(ref, None)
        if refs:
            await self._tell_all(refs, ready=True)

    def later(self, ref: ObjectRef) -> None:
        """The same in a moment and together with others, unless the object is ready by then: that was told at once."""
        key = (ref.channel, ref.stream)
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = {}
            if self._spawn(self._soon(key)) is False:  # too much runs already
                del self._waiting[key]
        waiting[ref] = None

    def tell(self, channel: str, state: State) -> None:
        """Send readers this."""
        self._publish(subjects.state(channel, state.stream.hex()), state)

    async def state(self, channel: OpenChannel, view: ObjectView, readers: Sequence[str] = ()) -> ObjectState:
        """An object as ``readers`` are told of it, with a signed GET when it is ready."""
        record = view.record
        if record.status is ObjectStatus.READY:
            get = await self._urls.get(channel, record, readers)
            return ObjectState(number=record.ref.number, state="ready", length=record.size, etag=record.etag, get=get)
        if view.grant is not None and view.grant.status is GrantStatus.ACCEPTED:
            return ObjectState(
                number=record.ref.number, state="uploading", length=view.grant.length, sent=view.grant.sent
            )
        return ObjectState(number=record.ref.number, state="seeking")

    async def _soon(self, key: tuple[str, bytes]) -> None:
        try:
            await asyncio.sleep(LATER)
        finally:
            refs = list(self._waiting.pop(key, ()))
        for first in range(0, len(refs), MAX_OBJECTS):
            await self._tell_all(refs[first : first + MAX_OBJECTS], ready=False)

    async def _tell_all(self, refs: Sequence[ObjectRef], *, ready: bool) -> None:
        now = self._clock()
        channel = await self._channels.channel(refs[0].channel)
        # Where nothing is signed for anybody, readers hear why when they ask next.
        signed = ready and await self._metering.may_read(channel.name) is None
        readers = {ref: await self._able(ref, now) for ref in refs} if signed else {}
        until = now + self._settings.read_lease

        def look() -> list[ObjectView]:
            views = [self._ledger.view(ref) for ref in refs]
            for view in views:
                ref = view.record.ref
                if view.record.status is ObjectStatus.READY and readers.get(ref):
                    self._ledger.lend([ref], readers[ref], until, now)
            return views

        states: list[ObjectState] = []
        for view in (await self._database.together(look))[:MAX_OBJECTS]:
            nodes: tuple[str, ...] = ()
            if view.record.status is ObjectStatus.READY:
                if not signed:
                    continue
                asked = readers[view.record.ref]
                nodes = await self._able(view.record.ref, now)
                if self._rounds.interested(view.record.ref, now) and not nodes:
                    continue  # whoever waits for it may read no more, and hears why when it asks next
                if not set(nodes) <= set(asked):  # they came meanwhile
                    await self._database.call(self._ledger.lend, [view.record.ref], nodes, until, now)
            # Signed at once after the check, so that announcements side by side do not all pass it.
            states.append(await self.state(channel, view, nodes))
        if states:
            self.tell(channel.name, State(lock=refs[0].lock, stream=refs[0].stream, objects=tuple(states)))

    async def _able(self, ref: ObjectRef, now: float) -> tuple[str, ...]:
        """Who wants the object and may read."""
        asked = self._rounds.interested(ref, now)
        return tuple([node for node in asked if await self._metering.may_read(ref.channel, node) is None])
