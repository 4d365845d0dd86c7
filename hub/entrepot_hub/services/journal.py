"""The journal of one hub: gathers what happens to streams, keeps it every few seconds, and tells it to who asks why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_events import SqlEvents
from entrepot_hub.core.journal import Event, Gatherer, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalSettings:
    """``flush``: seconds between two writes; ``keep``: for how long it remembers, in seconds; ``of_channel``: how many
    runs of a channel at most; ``told``: how many of a stream it tells; ``step``: how many it forgets at once."""

    flush: float = 2.0
    keep: float = 14 * 86_400.0
    of_channel: int = 200_000
    told: int = 500
    step: int = 10_000


class Journal:
    """Telling it never waits and never fails; what was told since the last flush is lost with a kill. ``clock``:
    seconds since the epoch."""

    def __init__(self, database: Database, clock: Callable[[], float], settings: JournalSettings | None = None) -> None:
        self.settings = settings or JournalSettings()
        self._database = database
        self._events = SqlEvents(database)
        self._clock = clock
        self._gatherer = Gatherer()
        self._turn = asyncio.Lock()

    def note(self, event: Event) -> None:
        """Something happened to a stream."""
        self._gatherer.add(event)

    @property
    def lost(self) -> int:
        """Events that exceeded the bounds of what is gathered."""
        return self._gatherer.lost

    async def flush(self) -> None:
        """Keep what was gathered. What the database does not take now is kept next time."""
        async with self._turn:
            while runs := self._gatherer.changed(self._clock()):
                try:
                    made = await self._database.call(self._events.keep, runs)
                except BaseException:
                    # It may have been written all the same: a run told twice is better than none.
                    self._gatherer.failed(runs)
                    raise
                for place, row in made.items():
                    runs[place].row = row

    async def of(self, channel: str, stream: bytes) -> list[Run]:
        """What happened to a stream, the oldest first; also what happened just now. NotFound (``no-such-channel``)."""
        await self.flush()
        return await self._database.call(self._events.of, channel, stream, self.settings.told)

    async def prune(self) -> int:
        """Forget what is too old or too much; how many runs."""
        before = self._clock() - self.settings.keep
        of_channel, step, gone = self.settings.of_channel, self.settings.step, 0
        while some := await self._database.call(self._events.prune, before, of_channel, step):
            gone += some
        return gone

    async def aclose(self) -> None:
        """Keep everything. May be called again."""
        await self.flush()
