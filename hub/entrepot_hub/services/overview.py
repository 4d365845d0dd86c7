"""A running hub at a glance: for ``entrepot-hub top``, for ``/metrics``, and for what ``/readyz`` looks at."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from entrepot.core.errors import EntrepotError, NotFound, RetryLater
from entrepot_hub.services.desk import Desk, Operation, Request, View

if TYPE_CHECKING:  # a command that asks a running hub has no use for a database
    from entrepot.adapters.bus import Bus
    from entrepot_hub.adapters.database import Database
    from entrepot_hub.adapters.metrics import HubMetrics
    from entrepot_hub.adapters.registry import Registry
    from entrepot_hub.adapters.sql_overview import SqlOverview
    from entrepot_hub.core.traffic import Sums
    from entrepot_hub.services.arbiter import Arbiter
    from entrepot_hub.services.background import Background
    from entrepot_hub.services.dispatcher import Dispatcher
    from entrepot_hub.services.presence import Presence

#: Key of the setting that a look at the database writes: only a write tells that it can be written.
_WRITTEN: Final = "readiness"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewSettings:
    """``beat``: seconds between two looks at the event loop's lateness; ``remembered``: for so long the worst is told;
    ``late``: lateness that makes the hub degraded; ``stuck``: seconds after which work that does not go on makes it
    unready; ``write``: seconds for which a write into the database proves that there can be another; ``uploads``: live
    grants that are looked at."""

    beat: float = 0.25
    remembered: float = 15.0
    late: float = 2.0
    stuck: float = 30.0
    write: float = 5.0
    uploads: int = 200


class TopAsk(Request, frozen=True, kw_only=True):
    """``nodes`` and ``uploads``: at most so many of each."""

    nodes: Annotated[int, msgspec.Meta(ge=0, le=200)] = 10
    uploads: Annotated[int, msgspec.Meta(ge=0, le=200)] = 10


class SumsView(View, frozen=True, kw_only=True):
    """What passed since the hub started: see :class:`entrepot_hub.core.traffic.Sums`."""

    messages: int = 0
    refused: int = 0
    uploads: int = 0
    uploaded: int = 0
    downloads: int = 0
    downloaded: int = 0
    evicted: int = 0
    grants: int = 0
    failed: int = 0
    requests: int = 0
    request_failures: int = 0
    request_seconds: float = 0.0


class ChannelTop(View, frozen=True, kw_only=True):
    """A channel: bytes (``held``: the part of ``reserved`` that is held back after a rebuilding), and counts of open
    wants and live grants."""

    name: str
    quota: int
    stored: int
    reserved: int
    held: int
    wants: int
    uploading: int
    bucket: str
    sums: SumsView


class UploadTop(View, frozen=True, kw_only=True):
    """A live grant. ``rate``: bytes a second since it was accepted, None before; ``lease``: seconds that are left."""

    channel: str
    stream: str
    object: int
    node: str
    name: str
    sent: int
    size: int
    seconds: float
    rate: float | None
    lease: float
    transfer: str | None


class NodeTop(View, frozen=True, kw_only=True):
    """A node's part of the traffic."""

    node: str
    name: str
    online: bool
    sums: SumsView


class TopView(View, frozen=True, kw_only=True):
    """The hub now. ``channels`` by name, ``uploads`` the slowest first, ``nodes`` by bytes and messages. ``checks`` as
    ``/readyz`` has them. ``lag``: the event loop's worst lateness of the last seconds."""

    hub: str
    version: str
    instance: str
    at: float
    started: float
    sums: SumsView
    handled: int
    refused: int
    dropped: int
    waiting: int
    at_work: int
    rounds: int
    sessions: int
    tasks: int
    mistakes: int
    database_waiting: int
    lag: float
    nats: bool
    checks: dict[str, str]
    channels: list[ChannelTop]
    uploads: list[UploadTop]
    nodes: list[NodeTop]


class Overview:
    """Of one running hub. ``clock`` is unix seconds; ``buckets``: what the last look at each channel's bucket found,
    by channel."""

    def __init__(
        self,
        *,
        hub: str,
        version: str,
        instance: str,
        clock: Callable[[], float],
        metrics: HubMetrics,
        state: SqlOverview,
        database: Database,
        registry: Registry,
        dispatcher: Dispatcher,
        arbiter: Arbiter,
        background: Background,
        presence: Presence,
        bus: Bus,
        buckets: Callable[[], Mapping[str, str]],
        settings: OverviewSettings | None = None,
    ) -> None:
        self.metrics = metrics
        self.settings = settings or OverviewSettings()
        #: How the checks of ``/readyz`` stand; whoever has them sets it.
        self.checks: Callable[[], Awaitable[Mapping[str, str]]] | None = None
        self._hub = hub
        self._version = version
        self._instance = instance
        self._clock = clock
        self._started = clock()
        self._state = state
        self._database = database
        self._registry = registry
        self._dispatcher = dispatcher
        self._arbiter = arbiter
        self._background = background
        self._presence = presence
        self._bus = bus
        self._buckets = buckets
        self._lags: deque[tuple[float, float]] = deque()
        self._ticked = time.monotonic()
        self._written = float("-inf")

    # -- the event loop -------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """See how late the event loop is, for ever."""
        beat = self.settings.beat
        while True:
            due = time.monotonic() + beat
            await asyncio.sleep(beat)
            self._late(max(time.monotonic() - due, 0.0))

    def _late(self, lag: float) -> None:
        now = time.monotonic()
        self.metrics.lag(lag)
        self._lags.append((now, lag))
        while self._lags[0][0] < now - self.settings.remembered:
            self._lags.popleft()

    @property
    def lag(self) -> float:
        """The worst lateness of the last seconds."""
        return max((lag for _, lag in self._lags), default=0.0)

    def ticked(self) -> None:
        """The rounds' timer went on."""
        self._ticked = time.monotonic()

    # -- what must be there ---------------------------------------------------------------------------------------

    async def check_database(self) -> None:
        """Raises what writing into the database raises, at most every few seconds."""
        if time.monotonic() - self._written >= self.settings.write:
            await self._registry.set_setting(_WRITTEN, str(int(self._clock())).encode())
            self._written = time.monotonic()
        else:
            await self._registry.setting(_WRITTEN)

    async def check_exchange(self) -> None:
        """RetryLater (``busy``) where messages are handled no more, or time stands still for the rounds."""
        if self._dispatcher.stuck > self.settings.stuck:
            raise RetryLater("no message has been handled for a while", kind="busy")
        if time.monotonic() - self._ticked > self.settings.stuck:
            raise RetryLater("nothing has been arranged for a while", kind="busy")

    async def check_loop(self) -> None:
        """RetryLater (``busy``) where everything waits for something that holds the event loop."""
        if self.lag > self.settings.late:
            raise RetryLater(f"the hub was {self.lag:.1f} s late", kind="busy")

    # -- what is shown --------------------------------------------------------------------------------------------

    async def exposition(self) -> bytes:
        """Everything there is to scrape, with what has to be looked at first."""
        metrics = self.metrics
        try:
            channels = await self._database.call(self._state.channels, self._clock())
        except EntrepotError:
            channels = None  # what is in memory is worth the more just now; the check says why
        if channels is not None:
            metrics.set_all(metrics.quota, {each.name: each.quota for each in channels})
            metrics.set_all(metrics.stored, {each.name: each.stored for each in channels})
            metrics.set_all(metrics.reserved, {each.name: each.reserved for each in channels})
            metrics.set_all(metrics.wants, {each.name: each.wants for each in channels})
            metrics.set_all(metrics.uploading, {each.name: each.uploads for each in channels})
        checks = {} if self.checks is None else await self.checks()
        metrics.set_all(metrics.ready_checks, {name: float(state == "ok") for name, state in checks.items()})
        metrics.rounds.set(self._arbiter.rounds.arranged)
        metrics.sessions.set(self._presence.sessions)
        metrics.waiting.set(self._dispatcher.waiting)
        metrics.at_work.set(self._dispatcher.at_work)
        metrics.database_waiting.set(self._database.waiting)
        metrics.tasks.set(self._background.tasks)
        metrics.connected.set(float(self._bus.connected))
        metrics.reach(metrics.mistakes, self._background.mistakes)
        metrics.reach(metrics.refused, self._background.refused)
        metrics.reach(metrics.connects, self._bus.stats.connects)
        metrics.reach(metrics.losses, self._bus.stats.losses)
        metrics.reach(metrics.bus_dropped, self._bus.stats.dropped)
        families = []
        for family in metrics.families():
            families.append(family)
            await asyncio.sleep(0)
        return await asyncio.to_thread(metrics.render, families)

    async def look(self, asked: TopAsk) -> TopView:
        """The hub now."""
        now, traffic = self._clock(), self.metrics.traffic
        channels = await self._database.call(self._state.channels, now)
        uploads = await self._database.call(self._state.uploads, self.settings.uploads)
        slowest = sorted(uploads, key=lambda one: _speed(one.sent, one.accepted_at, now))[: asked.uploads]
        busiest = sorted(
            traffic.nodes,
            key=lambda node: (
                traffic.nodes[node].uploaded + traffic.nodes[node].downloaded,
                traffic.nodes[node].messages,
            ),
            reverse=True,
        )[: asked.nodes]
        keys = {*busiest, *(one.node for one in slowest)}
        names = await self._database.call(self._state.names, keys) if keys else {}
        checks = {} if self.checks is None else dict(await self.checks())
        buckets = self._buckets()
        return TopView(
            hub=self._hub,
            version=self._version,
            instance=self._instance,
            at=now,
            started=self._started,
            sums=_total(traffic.channels.values()),
            handled=self._dispatcher.handled,
            refused=self._dispatcher.refused,
            dropped=self._dispatcher.dropped,
            waiting=self._dispatcher.waiting,
            at_work=self._dispatcher.at_work,
            rounds=self._arbiter.rounds.arranged,
            sessions=self._presence.sessions,
            tasks=self._background.tasks,
            mistakes=self._background.mistakes,
            database_waiting=self._database.waiting,
            lag=self.lag,
            nats=self._bus.connected,
            checks=checks,
            channels=[
                ChannelTop(
                    name=each.name,
                    quota=each.quota,
                    stored=each.stored,
                    reserved=each.reserved,
                    held=each.held,
                    wants=each.wants,
                    uploading=each.uploads,
                    bucket=buckets.get(each.name, "?"),
                    sums=_view(traffic.channels.get(each.name)),
                )
                for each in channels
            ],
            uploads=[
                UploadTop(
                    channel=one.channel,
                    stream=one.stream.hex(),
                    object=one.number,
                    node=one.node,
                    name=names.get(one.node, "?"),
                    sent=one.sent,
                    size=one.length,
                    seconds=max(now - (one.accepted_at or one.granted_at), 0.0),
                    rate=_speed(one.sent, one.accepted_at, now) if one.accepted_at else None,
                    lease=max(one.lease_until - now, 0.0),
                    transfer=None if one.transfer is None else one.transfer.hex(),
                )
                for one in slowest
            ],
            nodes=[
                NodeTop(
                    node=node,
                    name=names.get(node, "?"),
                    online=self._presence.online(node),
                    sums=_view(traffic.nodes[node]),
                )
                for node in busiest
            ],
        )


def _speed(sent: int, accepted_at: float, now: float) -> float:
    """Bytes a second; 0 before the accept."""
    return sent / max(now - accepted_at, 0.001) if accepted_at else 0.0


def _view(sums: Sums | None) -> SumsView:
    return SumsView() if sums is None else SumsView(**asdict(sums))


def _total(all_sums: Any) -> SumsView:
    from entrepot_hub.core.traffic import Sums

    total = Sums()
    for sums in all_sums:
        total.add(**asdict(sums))
    return _view(total)


async def top(desk: Desk, asked: TopAsk, _actor: str) -> TopView:
    """The running hub at a glance. NotFound (``not-running``) where none runs."""
    if desk.overview is None:
        raise NotFound("no hub is running here", kind="not-running", hint="Start it: entrepot-hub serve")
    return await desk.overview.look(asked)


#: What can be asked for.
OPERATIONS: Final[Mapping[str, Operation[Any, Any]]] = {"top": Operation(TopAsk, TopView, top)}
