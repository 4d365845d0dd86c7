"""Metering and limits: what passes is counted in memory and kept in batches; what is used up is signed no more.

The exchange tells of every object that arrived, left or was signed for reading, and asks before it signs. Both are
answered from memory: counts are written every few seconds, on shutdown and before an answer about usage, and what
limits are checked against is looked up as often. A hub that is killed loses the counts of its last seconds, never what
lies in the bucket: that is taken from the ledger. Where the database was lost in the very moment of writing, a batch
may be counted twice.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final

import structlog

from entrepot.core.errors import EntrepotError
from entrepot_hub.adapters.buckets.metered import MeteredBucket, RequestClass
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.metrics import Metrics
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.adapters.sql_usage import SqlUsage
from entrepot_hub.core.ledger import ObjectRecord, ObjectRef, Proposal
from entrepot_hub.core.limits import Standing, marks_reached, may_provide, may_read, may_upload, spent_percent
from entrepot_hub.core.prices import cost, prices_for, rounded
from entrepot_hub.core.usage import DAY, HUB, Meter, Place, Tally, day_of, month_days, month_of
from entrepot_hub.services.channels import Channels, ChannelSettings, OpenBucket, OpenChannel

_REQUESTS: Final[Mapping[RequestClass, Tally]] = {
    "a": Tally(requests_a=1),
    "b": Tally(requests_b=1),
    "delete": Tally(deletes=1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteringSettings:
    """``flush``: seconds between two writings of counts. ``sample``: between two looks at the bytes stored.
    ``refresh``: for so long limits and what is used of them are believed. ``told``: signed reads that are remembered,
    so that telling them again counts nothing."""

    flush: float = 5.0
    sample: float = 60.0
    refresh: float = 3.0
    told: int = 200_000


@dataclass(frozen=True, slots=True)
class Refused:
    """A proposal that is not put to the ledger. ``nobody``: no other node may upload the object either."""

    proposal: Proposal
    error: EntrepotError
    nobody: bool


class Metering:
    """One hub's. Counting never waits and never fails; asking may wait for the database, every few seconds."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        settings: MeteringSettings | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.metrics = metrics or Metrics()
        self.settings = settings or MeteringSettings()
        self.usage = SqlUsage(database)
        self._database = database
        self._clock = clock
        self._meter = Meter()
        self._sending: _Batch | None = None
        self._turn = asyncio.Lock()
        self._standings: dict[str, tuple[float, Standing]] = {}
        self._told: OrderedDict[tuple[str, ObjectRef, float], None] = OrderedDict()
        self._marked: set[tuple[str, str, int]] = set()
        self._warnings: dict[str, str] = {}
        self._log = structlog.get_logger("metering")

    # -- what happened ---------------------------------------------------------------------------------------

    def arrived(self, record: ObjectRecord) -> None:
        """An upload became a ready object."""
        node = record.uploader or HUB
        self.metrics.arrived(record.ref.channel, node, record.size)
        self._count(record.ref.channel, node, Tally(uploads=1, uploaded=record.size, requests_a=1))
        self._more(record, 1)

    def evicted(self, record: ObjectRecord) -> None:
        """An object left the bucket."""
        self.metrics.evicted(record.ref.channel, record.size)
        self._count(record.ref.channel, HUB, Tally(evicted=record.size))
        self._more(record, -1)

    def told(self, record: ObjectRecord, node: str, until: float) -> bool:
        """A node was told the URL of an object that can be used ``until`` then. The same one again counts nothing and
        is False."""
        key = (node, record.ref, until)
        if key in self._told:
            return False
        self._told[key] = None
        while len(self._told) > self.settings.told or next(iter(self._told))[2] < self._clock():
            self._told.popitem(last=False)
            if not self._told:
                break
        self.metrics.lent(record.ref.channel, node, record.size)
        self._count(record.ref.channel, node, Tally(downloads=1, downloaded=record.size, requests_b=1))
        return True

    def requested(self, channel: str, kind: RequestClass) -> None:
        """The hub itself asks something of a channel's bucket."""
        self._count(channel, HUB, _REQUESTS[kind])

    # -- what may be -----------------------------------------------------------------------------------------

    async def may_read(self, channel: str, node: str | None = None) -> EntrepotError | None:
        """Why no read is signed, for this node or (None) for anybody; None if it is."""
        return may_read(await self.standing(channel), node)

    async def refused(self, proposals: tuple[Proposal, ...], length: int | None) -> list[Refused]:
        """Those proposals, all of one stream of ``length`` bytes, that limits do not let pass."""
        standing = await self.standing(proposals[0].ref.channel)
        if not standing.limited:
            return []
        found: list[Refused] = []
        for proposal in proposals:
            error = may_upload(standing, length or 0)
            nobody = error is not None
            error = error or may_provide(standing, proposal.node, length or 0)
            if error is not None:
                found.append(Refused(proposal, error, nobody))
        return found

    async def standing(self, channel: str) -> Standing:
        """How the channel stands at its limits, as of a few seconds ago and with all that this hub saw since."""
        standing = self._standing(channel)
        if standing is not None:
            return standing
        async with self._turn:
            standing = self._standing(channel)  # somebody else may have looked it up meanwhile
            return await self._look_up(channel) if standing is None else standing

    def forget(self, channel: str | None = None) -> None:
        """Look limits and prices up afresh: of a channel, or of all."""
        for name in [name for name in self._standings if channel in (None, name)]:
            del self._standings[name]
        self._marked = {mark for mark in self._marked if channel not in (None, mark[0])}

    def warnings(self) -> tuple[str, ...]:
        """What the owners of budgets should know, in sentences."""
        return tuple(self._warnings[name] for name in sorted(self._warnings))

    # -- keeping ---------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Keep what was counted. What the database does not take now is kept next time."""
        async with self._turn:
            await self._flush()

    async def sample(self) -> None:
        """Count the bytes stored until now, everywhere, and look whether budgets are being used up."""
        for name in await self._database.call(self.usage.channels):
            await self._database.call(self.usage.sample, name, self._clock())
        budgeted = await self._database.call(self.usage.budgeted)
        self._warnings = {name: text for name, text in self._warnings.items() if name in budgeted}
        for name in budgeted:
            async with self._turn:
                await self._look_up(name)

    async def sample_channel(self, channel: str) -> None:
        """Count the bytes stored in one channel until now."""
        await self._database.call(self.usage.sample, channel, self._clock())

    async def aclose(self) -> None:
        """Count what is stored until now and keep everything. May be called again."""
        for name in await self._database.call(self.usage.channels):
            await self._database.call(self.usage.sample, name, self._clock())
        await self.flush()

    # -- how -------------------------------------------------------------------------------------------------

    def _count(self, channel: str, node: str, tally: Tally) -> None:
        self._meter.add(channel, node, day_of(self._clock()), tally)
        standing = self._standing(channel)
        if standing is not None and standing.limited:
            standing.count(node, tally)

    def _more(self, record: ObjectRecord, count: int) -> None:
        standing = self._standing(record.ref.channel)
        if standing is not None:
            standing.more(record.uploader or HUB, count)

    def _standing(self, channel: str) -> Standing | None:
        known = self._standings.get(channel)
        now = self._clock()
        return known[1] if known is not None and now < known[0] and known[1].day == day_of(now) else None

    async def _flush(self) -> None:
        if self._sending is not None:
            if not self._sending.over():
                return  # the database is still at it
            self._meter.put_back(self._sending.left)
            self._sending = None
        counts = self._meter.take()
        if not counts:
            return
        batch = self._sending = _Batch(counts)
        try:
            await self._database.call(batch.send, self.usage)
        finally:
            if batch.over():
                self._meter.put_back(batch.left)
                self._sending = None

    async def _look_up(self, channel: str) -> Standing:
        """The caller has the turn, so nothing is written between what is read and what is added from memory."""
        await self._flush()
        now = self._clock()
        day = day_of(now)
        month = month_days(month_of(day))
        account = await self._database.call(self.usage.account, channel, day, month)
        standing = Standing(day=day, limits=account.limits, resets=float(month[1] * DAY))
        if standing.limited:
            standing.objects = dict(account.objects)
            for node, tally in account.today.items():
                standing.count(node, tally)
            if standing.whole.budget is not None:
                url, changed = await self._database.call(self.usage.price_basis, channel)
                _, standing.prices = prices_for(channel, url, changed)
                standing.spent = cost(account.month, standing.prices).total
            # What is not in the database yet: counted by now, also while it was looked up.
            sending = {} if self._sending is None else self._sending.left
            for (name, node, of), tally in chain(self._meter.items(), sending.items()):
                if name == channel and of == day:
                    standing.count(node, tally)
        self._standings[channel] = (now + self.settings.refresh, standing)
        await self._tell(channel, standing, month_of(day), now)
        return standing

    async def _tell(self, channel: str, standing: Standing, month: str, now: float) -> None:
        """Tell of a budget's marks, each once a month: in the audit log, in the hub's log, in the status."""
        percent = spent_percent(standing)
        reached = marks_reached(percent)
        self._warnings.pop(channel, None)
        if not reached:
            return
        budget = standing.whole.budget
        spent = f"{rounded(standing.spent, 2)} of {budget} {standing.prices.currency}"
        stopped = ": nothing is signed any more until next month" if reached[-1] >= 100 else ""
        self._warnings[channel] = f"channel {channel} used {percent} % of its budget of {month}, {spent}{stopped}"
        for mark in reached:
            if (channel, month, mark) in self._marked:
                continue
            detail = {"month": month, "spent": str(rounded(standing.spent)), "budget": str(budget)}
            first = await self._database.call(self.usage.mark, channel, month, mark, now=now, detail=detail)
            self._marked.add((channel, month, mark))
            if first:
                self._log.warning("budget", channel=channel, percent=mark, **detail)


@dataclass(frozen=True, slots=True)
class _MeteredChannel(OpenChannel):
    inner: OpenChannel

    @property
    def edition(self) -> int:
        """See ``OpenChannel.edition``: whoever opened the bucket knows."""
        return self.inner.edition


class MeteredChannels(Channels):
    """Channels whose buckets count the hub's requests, each for its channel."""

    def __init__(
        self,
        registry: Registry,
        open_bucket: OpenBucket,
        clock: Callable[[], float],
        metering: Metering,
        settings: ChannelSettings | None = None,
    ) -> None:
        super().__init__(registry, open_bucket, clock, settings)
        self._metering = metering
        self._wrapped: dict[str, tuple[OpenChannel, OpenChannel]] = {}

    async def channel(self, name: str) -> OpenChannel:
        """See ``Channels.channel``."""
        found = await super().channel(name)
        known = self._wrapped.get(name)
        if known is None or known[0] is not found:
            bucket = MeteredBucket(
                found.bucket,
                lambda kind: self._metering.requested(name, kind),
                partial(self._metering.metrics.bucket, name),
            )
            known = self._wrapped[name] = (found, _MeteredChannel(found.record, bucket, found))
        return known[1]


class _Batch:
    """Counts on their way into the database, where only the thread that writes them knows how that ends."""

    def __init__(self, counts: Mapping[Place, Tally]) -> None:
        self._counts = counts
        self._lock = threading.Lock()
        self._state = "waiting"

    def send(self, usage: SqlUsage) -> None:
        """Write them, in a thread; again after a deadlock, and never once :meth:`over` has said that it is."""
        with self._lock:
            if self._state == "withdrawn":
                return
            self._state = "running"
        try:
            usage.add(self._counts)
        except BaseException:
            self._state = "failed"
            raise
        self._state = "kept"

    def over(self) -> bool:
        """Whether nothing more will be written: it is, or it failed, or it never began and now never will."""
        with self._lock:
            if self._state in {"waiting", "failed"}:
                self._state = "withdrawn"
            return self._state != "running"

    @property
    def left(self) -> Mapping[Place, Tally]:
        """What was not written, as far as is known."""
        return {} if self._state == "kept" else self._counts
