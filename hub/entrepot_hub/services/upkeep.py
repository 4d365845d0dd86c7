"""Keeps what the hub remembers within bounds: what is over goes after a while, and nobody fills the ledger with what
they say they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from entrepot_hub.adapters.database import Database
from entrepot_hub.core.ledger import Ledger
from entrepot_hub.services.channels import Channels


@dataclass(frozen=True, slots=True, kw_only=True)
class UpkeepSettings:
    """``history``: seconds for which the ledger remembers what is over; ``absent``: for which it remembers what a node
    holds that is not heard any more. ``of_member``, ``of_channel``: streams that one member, and all members together,
    are remembered to hold; looked after whenever ``growth`` more were said in a channel, so there may be that many more
    for a moment. ``page``: rows that one transaction looks at or forgets."""

    history: float = 7 * 86_400.0
    absent: float = 90 * 86_400.0
    of_member: int = 200_000
    of_channel: int = 1_000_000
    growth: int = 20_000
    page: int = 2000


class Upkeep:
    """One hub's. ``spawn`` runs work in the background and is False where it will not."""

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        channels: Channels,
        clock: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        settings: UpkeepSettings | None = None,
    ) -> None:
        self.settings = settings or UpkeepSettings()
        self._database = database
        self._ledger = ledger
        self._channels = channels
        self._clock = clock
        self._spawn = spawn
        self._grown: Counter[str] = Counter()
        self._thinning: set[str] = set()
        self._log = structlog.get_logger("upkeep")

    def grew(self, channel: str, streams: int) -> None:
        """Members of the channel said that they hold so many streams."""
        self._grown[channel] += streams
        if self._grown[channel] >= self.settings.growth and channel not in self._thinning:
            self._thinning.add(channel)
            if self._spawn(self._thin(channel)) is False:
                self._thinning.discard(channel)

    async def prune(self) -> int:
        """Forget what was over long ago, page after page, others' work between them. How many rows."""
        gone, page = 0, self.settings.page
        while True:
            some = await self._database.call(self._ledger.prune, self._clock() - self.settings.history, page)
            gone += some
            if some < page:
                return gone

    async def forget(self) -> int:
        """Forget what absent nodes held, what members hold too much of, and streams of which nothing is left. How many
        rows."""
        gone, page = 0, self.settings.page
        while some := await self._database.call(self._ledger.forget_absent, self._clock() - self.settings.absent, page):
            gone += some
        for channel in await self._channels.names():
            gone += await self._thinned(channel)
            after: bytes | None = b""
            while after is not None:
                some, after = await self._database.call(self._ledger.forget_streams, channel, after, page)
                gone += some
        return gone

    async def _thin(self, channel: str) -> None:
        try:
            gone = await self._thinned(channel)
        finally:
            self._thinning.discard(channel)
        if gone:
            self._log.warning("too many streams held", channel=channel, forgotten=gone)

    async def _thinned(self, channel: str) -> int:
        """What the channel's members said since is counted by the time that the last page is looked at."""
        settings, gone = self.settings, 0
        self._grown.pop(channel, None)
        while some := await self._database.call(
            self._ledger.thin_holders, channel, settings.of_member, settings.of_channel, settings.page
        ):
            gone += some
        return gone
