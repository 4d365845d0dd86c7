"""The timeline of a stream: its journal, with names for nodes, with how it stands, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import msgspec

from entrepot.core.api import Fault, StreamEvent, StreamInfo, Timeline
from entrepot.core.errors import EntrepotError, to_wire
from entrepot.core.identifiers import StreamId
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.adapters.sql_usage import SqlUsage
from entrepot_hub.core.journal import EventKind, Run
from entrepot_hub.core.prices import PriceList, cost, prices_for, rounded
from entrepot_hub.core.queueing import with_held
from entrepot_hub.core.usage import Tally
from entrepot_hub.services.journal import Journal

#: Why whoever waits for a stream waits now, by the rounds: channel, stream, seconds since the epoch.
type ReasonOf = Callable[[str, bytes, float], EntrepotError | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timelines:
    """Tells what happened to streams. ``clock``: seconds since the epoch."""

    database: Database
    registry: Registry
    usage: SqlUsage
    journal: Journal
    reason: ReasonOf
    clock: Callable[[], float]

    async def of(self, channel: str, stream: StreamId, info: StreamInfo) -> Timeline:
        """The timeline of a stream that stands as ``info`` says."""
        runs = await self.journal.of(channel, stream.raw)
        names = {member.node.public: member.node.name for member in await self.registry.members(channel)}
        url, changed = await self.database.call(self.usage.price_basis, channel)
        _, prices = prices_for(channel, url, changed)
        now = self.clock()
        of = await self.registry.channel(channel)
        reason = with_held(self.reason(channel, stream.raw, now), of.held, of.held_until) if info.wanted_by else None
        return Timeline(
            info=info,
            events=tuple(_event(run, names) for run in runs),
            reason=None if reason is None else msgspec.convert(to_wire(reason), Fault),
            cost=str(rounded(_cost(runs, prices))),
            currency=prices.currency,
            time=now,
        )


def _event(run: Run, names: Mapping[str, str]) -> StreamEvent:
    return StreamEvent(
        kind=run.kind.value,
        node=None if run.node is None else names.get(run.node, run.node),
        transfer=None if run.transfer is None else run.transfer.hex(),
        at=run.at,
        until=run.until,
        first=run.first,
        last=run.last,
        count=run.count,
        bytes=run.bytes,
        seconds=run.seconds,
        detail=dict(run.detail),
    )


def _cost(runs: Iterable[Run], prices: PriceList) -> Fraction:
    """Requests and egress of what is told: each upload is a PUT and a look, each URL that was told one GET."""
    total = Tally()
    for run in runs:
        if run.kind is EventKind.UPLOADED:
            total += Tally(uploads=run.count, uploaded=run.bytes, requests_a=run.count, requests_b=run.count)
        elif run.kind is EventKind.TOLD:
            total += Tally(downloads=run.count, downloaded=run.bytes, requests_b=run.count)
    return cost(total, prices).total
