"""The hub: everything put together, started in order and stopped in reverse."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib.metadata import version
from types import TracebackType
from typing import Self

import msgspec
import structlog

from entrepot.adapters.bus import Bus
from entrepot.core import subjects
from entrepot.core.errors import EntrepotError, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.keys import owner_mark_key
from entrepot.core.messages import Message, encode
from entrepot_hub.adapters.accounts import Accounts
from entrepot_hub.adapters.buckets.folder import FolderBucket
from entrepot_hub.adapters.buckets.folder_web import FolderWeb
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.metrics import HubMetrics
from entrepot_hub.adapters.nats_server import NatsServer, NatsServerSettings
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.adapters.sql_overview import SqlOverview
from entrepot_hub.core.members import Channel
from entrepot_hub.core.nats_identity import NatsIdentity
from entrepot_hub.core.rounds import Rounds
from entrepot_hub.services.administration import Administration
from entrepot_hub.services.arbiter import Arbiter
from entrepot_hub.services.background import Background, Lanes
from entrepot_hub.services.bucket_keeper import BucketKeeper
from entrepot_hub.services.chronicle import Chronicle
from entrepot_hub.services.custody import Custody
from entrepot_hub.services.desk import Desk
from entrepot_hub.services.dispatcher import Dispatcher
from entrepot_hub.services.exchange import Exchange
from entrepot_hub.services.identity import database_url, load_identity, load_keys, ready_database
from entrepot_hub.services.journal import Journal
from entrepot_hub.services.metering import MeteredChannels, Metering
from entrepot_hub.services.overview import Overview
from entrepot_hub.services.presence import Presence
from entrepot_hub.services.reconciliation import Reconciler
from entrepot_hub.services.rotation import finish_change
from entrepot_hub.services.settings import HubSettings, Listen
from entrepot_hub.services.timeline import Timelines
from entrepot_hub.services.upkeep import Upkeep, UpkeepSettings
from entrepot_hub.services.vault import Vault
from entrepot_hub.services.web.app import WebServer, admin_app, node_app
from entrepot_hub.services.web.context import WebContext
from entrepot_hub.services.web.health import Readiness
from entrepot_hub.services.web.metrics import MetricsRoutes, MetricsServer

_LAPSE = 0.25  # seconds between two looks for leases that are over
_SWEEP = 30.0
_SEEN = 60.0
_LOOK = 60.0  # seconds between two looks for who is connected: events may be lost
_QUOTA = 30.0  # between two looks for channels that hold more than a quota that was lowered
_PRUNE = 300.0
_DUE = 300.0  # seconds between two looks for buckets that are due to be compared with the ledger
_COMPARING = 8  # such looks at once: the next one does not wait for a bucket that is slow or endless
_BUCKET_SLOW = 2.5  # seconds after which a bucket counts as one that does not answer
_BUCKET_WAIT = 0.5  # seconds that is waited for buckets whose state is known
_BUCKET_KNOWN = 60.0  # seconds for which it is
_BUCKET_OK = 10.0  # seconds for which one that answered is not asked again: anybody may ask whether the hub is ready
_BUCKET_LOOK = 30.0  # seconds after which nobody waits for it any more
_FORGET = 3600.0  # between two looks for what nobody holds any more
_LOUD = 5  # nodes that say too much are named in the status
_TICK = 1.0  # the longest pause of the rounds' timer
_REVOCATIONS = "revocations"
_VERSION = version("entrepot")


class Hub:
    """One hub process. Use as ``async with``: entered, it serves. ``master`` is the master key's text when it comes
    from the environment. ``verbose``: every step of every transfer is a line of the log (level debug)."""

    def __init__(
        self,
        settings: HubSettings,
        *,
        master: str | None = None,
        exchange: ExchangeSettings | None = None,
        verbose: bool = False,
    ) -> None:
        self.settings = settings
        self.instance = secrets.token_hex(8)
        self.metrics = HubMetrics(_VERSION, self.instance)
        self._verbose = verbose
        self._given = master
        self._exchange_settings = exchange or ExchangeSettings(uploads=settings.limits.uploads)
        self._stack = AsyncExitStack()
        self._stop = asyncio.Event()
        self._log = structlog.get_logger("hub")
        self._nats: NatsServer | None = None
        self._web: WebServer | None = None
        self._metrics_server: MetricsServer | None = None
        self._looks: dict[str, tuple[float, asyncio.Event]] = {}  # at buckets, under way: since when, and their ends
        self._seen: dict[str, tuple[str, float]] = {}  # what the last look at each channel's bucket found, and when
        self._degraded: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop serving, in reverse order; idempotent."""
        self._stop.set()
        await self._stack.aclose()

    async def serve_until_stopped(self) -> None:
        """Return on SIGTERM, SIGINT or :meth:`stop`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            await self._stop.wait()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Have :meth:`serve_until_stopped` return."""
        self._stop.set()

    @property
    def port(self) -> int:
        """The port that nodes reach the hub at."""
        assert self._web is not None
        return self._web.port

    @property
    def metrics_port(self) -> int | None:
        """The port of ``/metrics``, where the settings have an address for it."""
        return None if self._metrics_server is None else self._metrics_server.port

    @property
    def handled(self) -> int:
        """Messages of nodes that this hub has handled since it started."""
        return self._dispatcher.handled

    def nats_urls(self) -> Sequence[str]:
        """Where nodes are told to find NATS."""
        return self.settings.told_nats(self._nats_port)

    def nats_warning(self) -> str | None:
        """What is wrong with that; see :meth:`HubSettings.nats_warning`."""
        return self.settings.nats_warning(self._nats_port)

    @property
    def _nats_port(self) -> int | None:
        return None if self._nats is None else self._nats.port

    # -- start ----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        settings, enter = self.settings, self._stack.enter_async_context
        keys = await asyncio.to_thread(load_keys, settings, self._given)
        identity = await asyncio.to_thread(load_identity, settings, keys)
        self._identity = identity
        database = await asyncio.to_thread(lambda: Database(database_url(settings), metrics=self.metrics))
        self._database = await enter(database)
        await database.call(ready_database, settings, database)
        for told in await finish_change(settings, database, keys):
            self._log.warning("master key", why=told)
        registry = self._registry = Registry(database, keys)
        ledger = SqlLedger(database)
        vault = Vault(keys, identity.hub_public, settings.urls[0], time.time)
        metering = self._metering = Metering(database, time.time, metrics=self.metrics)
        journal = self._journal = Journal(database, time.time)
        self._stack.push_async_callback(self._keep_counts)  # after all that counts has ended
        background = self._background = await enter(Background())
        custody = Custody(registry, vault, time.time, f"hub {self.instance}")
        channels = self._channels = await enter(MeteredChannels(registry, custody.open, time.time, metering))
        servers = await self._servers(identity)
        bus = self._bus = Bus(
            servers,
            name=f"hub {self.instance}",
            inbox_prefix=subjects.inbox(identity.hub_user.public),
            credentials=lambda: identity.hub_credentials(time.time()),
            on_error=self._bus_error,
        )
        system = Bus(
            servers,
            name=f"hub-system {self.instance}",
            inbox_prefix=subjects.inbox(identity.system_user.public),
            credentials=lambda: identity.system_credentials(time.time()),
            on_up=self._system_up,
            on_error=self._bus_error,
        )
        self._accounts = Accounts(system, identity, clock=time.time, life=settings.jwt_life)
        self._accounts.load(await self._load_revocations())
        presence = self._presence = Presence(
            clock=time.time,
            spawn=background.spawn,
            grace=self._exchange_settings.disconnect_grace,
            revocations=lambda: self._accounts.revocations,
            kick=self._accounts.kick,
        )
        keeper = BucketKeeper(database, ledger, channels, self._exchange_settings, time.time, metering)
        arbiter = self._arbiter = Arbiter(
            instance=self.instance,
            database=database,
            ledger=ledger,
            channels=channels,
            keeper=keeper,
            metering=metering,
            rounds=Rounds(self._exchange_settings, lambda: secrets.token_bytes(16)),
            settings=self._exchange_settings,
            clock=time.time,
            publish=self._publish,
            spawn=background.spawn,
            note=Chronicle(self.metrics, (journal.note,), verbose=self._verbose).note,
        )
        limits = self.settings.limits
        holdings = UpkeepSettings(of_member=limits.holders_of_member, of_channel=limits.holders_of_channel)
        upkeep = self._upkeep = Upkeep(database, ledger, channels, time.time, background.spawn, holdings)
        exchange = self._exchange = Exchange(
            arbiter,
            database=database,
            ledger=ledger,
            channels=channels,
            keeper=keeper,
            clock=time.time,
            spawn=background.spawn,
            held=upkeep.grew,
        )
        presence.serve(arbiter)
        for name, error in (await channels.open_all()).items():
            self._log.warning("bucket not opened", channel=name, kind=error.kind, why=error.message)
        await enter(bus)
        await enter(system)
        await self._accounts.listen(presence.happened)
        self._dispatcher = Dispatcher(bus, exchange, channels, presence, background.spawn, metrics=self.metrics)
        self._overview = self._overlook()
        await self._dispatcher.start()
        await self._serve_web(vault, ledger, keeper, presence)
        background.spawn(arbiter.restore())
        background.spawn(self._rounds_timer())
        background.spawn(self._overview.watch())
        background.every(_LAPSE, arbiter.lapse)
        background.every(_SWEEP, arbiter.sweep)
        reconciler = Reconciler(database, ledger, channels, keeper, time.time, arbiter.mended)
        comparing = Lanes(background.spawn, wide=_COMPARING, most=1)
        due = partial(reconciler.due, self.settings.limits.reconcile)
        background.every(_DUE, lambda: _begun(comparing, due))
        background.every(metering.settings.flush, metering.flush)
        background.every(metering.settings.sample, metering.sample)
        background.every(journal.settings.flush, journal.flush)
        background.every(_PRUNE, journal.prune)
        background.every(_QUOTA, arbiter.within_quota)
        background.every(_SEEN, self._note_seen)
        background.every(_LOOK, self._look_who_is_here)
        background.every(_PRUNE, upkeep.prune)
        if self._nats is not None:
            background.every(_SWEEP, self._nats.shorten_log)
        background.every(_FORGET, upkeep.forget)

    async def _servers(self, identity: NatsIdentity) -> Sequence[str]:
        nats = self.settings.nats
        if nats.server:
            return nats.server
        listen = Listen.parse(nats.listen)
        websocket = None if nats.websocket is None else (Listen.parse(nats.websocket).port or -1)
        self._nats = NatsServer(
            identity,
            self.settings.folder / "nats",
            clock=time.time,
            settings=NatsServerSettings(host=listen.host, port=listen.port or -1, websocket_port=websocket),
            revocations=lambda: self._accounts.revocations if hasattr(self, "_accounts") else {},
        )
        await self._stack.enter_async_context(self._nats)
        return (self._nats.url,)

    async def _serve_web(self, vault: Vault, ledger: SqlLedger, keeper: BucketKeeper, presence: Presence) -> None:
        settings, identity = self.settings, self._identity
        readiness = Readiness(
            {
                "database": self._probe_database,
                "nats": self._probe_nats,
                "exchange": self._overview.check_exchange,
                "buckets": self._probe_buckets,
                "event-loop": self._overview.check_loop,
            },
            time.monotonic,
            lambda: () if self.nats_warning() is None else ("nats-address",),
            lesser=("buckets", "event-loop"),
        )
        self._overview.checks = readiness.look
        administration = Administration(
            self._registry,
            vault,
            hub_public=identity.hub_public,
            urls=settings.urls,
            clock=time.time,
            changes=self,
            bus=self._told_of_bus,
            checks=readiness.look,
        )
        context = WebContext(
            settings=settings,
            identity=identity,
            database=self._database,
            registry=self._registry,
            ledger=ledger,
            presence=presence,
            nats_urls=self.nats_urls,
            instance=self.instance,
            clock=time.time,
            timelines=Timelines(
                database=self._database,
                registry=self._registry,
                usage=self._metering.usage,
                journal=self._journal,
                reason=self._arbiter.reason,
                clock=time.time,
            ),
            channels=self._channels,
        )
        desk = Desk(
            administration=administration,
            registry=self._registry,
            database=self._database,
            ledger=ledger,
            vault=vault,
            channels=self._channels,
            keeper=keeper,
            settings=settings,
            clock=time.time,
            arbiter=self._arbiter,
            overview=self._overview,
        )
        folders = FolderWeb(self._folder).routes()
        nodes = node_app(context, administration, readiness, more=folders, metrics=self.metrics)
        seeing = [*MetricsRoutes(self._overview).routes(), *readiness.routes()]
        self._web = await self._stack.enter_async_context(WebServer(settings, nodes, admin_app(desk, seeing)))
        if settings.metrics is not None:
            self._metrics_server = MetricsServer(settings.metrics, self._overview, readiness)
            await self._stack.enter_async_context(self._metrics_server)

    def _overlook(self) -> Overview:
        return Overview(
            hub=self._identity.hub_public,
            version=_VERSION,
            instance=self.instance,
            clock=time.time,
            metrics=self.metrics,
            state=SqlOverview(self._database),
            database=self._database,
            registry=self._registry,
            dispatcher=self._dispatcher,
            arbiter=self._arbiter,
            background=self._background,
            presence=self._presence,
            bus=self._bus,
            buckets=lambda: {name: kind for name, (kind, _) in self._seen.items()},
        )

    # -- who must know of changes (administration.Changes) --------------------------------------------------------

    async def on_revoked(self, node: str, channel: str | None) -> None:
        """A node lost rights: its connections end, and it comes back with what it still may do, if anything."""
        self._channels.forget(node=node, channel=channel)
        try:
            await self._accounts.revoke(node)
        finally:
            await self._save_revocations()
        await self._arbiter.expelled(node, channel)

    async def on_granted(self, node: str, channel: str | None) -> None:
        """A node gained rights: they count from its next session on."""
        self._channels.forget(node=node, channel=channel)

    async def on_channel(self, channel: str) -> None:
        """A channel was made: open its bucket."""
        self._channels.forget(channel=channel)
        await self._metering.sample_channel(channel)  # bytes stored count from now on
        await self._channels.channel(channel)

    # -- background -----------------------------------------------------------------------------------------------

    async def _rounds_timer(self) -> None:
        """Let time pass for the rounds exactly when they want it."""
        due: float | None = None

        async def tick() -> None:
            nonlocal due
            due = await self._arbiter.tick()

        while True:
            self._arbiter.woken.clear()
            due = None
            await self._background.guard(tick())  # a database that is away for a moment must not stop it for good
            self._overview.ticked()
            pause = _TICK if due is None else min(max(due - time.time(), 0.001), _TICK)
            try:
                async with asyncio.timeout(pause):
                    await self._arbiter.woken.wait()
            except TimeoutError:
                continue

    async def _keep_counts(self) -> None:
        await self._background.guard(self._metering.aclose())
        await self._background.guard(self._journal.aclose())

    def _told_of_bus(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Where nodes are told to find NATS, and all that the admin should know."""
        nats, warnings = self.settings.nats_told(self._nats_port)
        degraded = tuple(
            f"the bucket of channel {name} does not answer as it should ({kind}): nothing moves there"
            for name, kind in sorted(self._degraded.items())
        )
        loud = tuple(
            f"node {node} says more than a node may: {count} of its messages went unheard"
            for node, count in self._dispatcher.excessive()[:_LOUD]
        )
        return nats, warnings + self._metering.warnings() + degraded + loud

    async def _note_seen(self) -> None:
        heard = self._presence.heard_since(time.time() - 2 * _SEEN)
        if heard:
            await self._registry.seen(heard)

    def _publish(self, subject: str, message: Message) -> None:
        self._background.spawn(self._send(subject, encode(message)))

    async def _send(self, subject: str, payload: bytes) -> None:
        """A message may be lost, so a bus that is down is nothing to stop for: what matters is said again."""
        if self._bus.connected:
            await self._bus.publish(subject, payload)

    async def _system_up(self) -> None:
        """Servers that were away may have missed a revocation, and so may this hub one that another made."""
        self._accounts.load(await self._load_revocations())
        await self._accounts.push()
        await self._presence.look(self._accounts.connections)

    async def _look_who_is_here(self) -> None:
        if self._bus.connected:
            await self._presence.look(self._accounts.connections)

    def _bus_error(self, error: EntrepotError, where: str) -> None:
        self._log.warning("bus", kind=error.kind, why=error.message, where=where)

    def _folder(self, name: str) -> FolderBucket | None:
        bucket = self._channels.bucket_named(name)
        return bucket if isinstance(bucket, FolderBucket) else None

    # -- what must be there ---------------------------------------------------------------------------------------

    async def _probe_database(self) -> None:
        await self._overview.check_database()
        if self._background.mistakes:
            raise RetryLater("the hub made a mistake since it started: see its log", kind="retry-later")

    async def _probe_nats(self) -> None:
        if self._bus.reason is not None:
            raise self._bus.reason

    async def _probe_buckets(self) -> None:
        """Look at all of them side by side, each look by itself: one that hangs is not begun again, and counts as
        before until it is slow. One that answered just now is taken at its word."""
        records = await self._registry.channels()
        for record in records:
            kind, at = self._seen.get(record.name, ("", 0.0))
            answered = kind == "ok" and time.monotonic() < at + _BUCKET_OK
            if record.name not in self._looks and not answered:
                begun = self._looks[record.name] = (time.monotonic(), asyncio.Event())
                if not self._background.spawn(self._look_at_bucket(record, begun[1])):
                    del self._looks[record.name]
        known = time.monotonic() - _BUCKET_KNOWN
        fresh = all(self._seen.get(record.name, ("", known))[1] > known for record in records)
        with suppress(TimeoutError):
            async with asyncio.timeout(_BUCKET_WAIT if fresh else _BUCKET_SLOW):
                for _, ended in list(self._looks.values()):
                    await ended.wait()
        now = time.monotonic()
        for name, (since, _) in self._looks.items():
            if now >= since + _BUCKET_SLOW:
                self._seen[name] = ("deadline", now)
        found = {record.name: self._seen.get(record.name, ("deadline", now))[0] for record in records}
        self._degraded = {name: kind for name, kind in found.items() if kind != "ok"}
        if self._degraded:
            raise RetryLater("not every bucket answers", kind="bucket-unreachable")

    async def _look_at_bucket(self, record: Channel, ended: asyncio.Event) -> None:
        kind = "deadline"
        try:
            async with asyncio.timeout(_BUCKET_LOOK):
                channel = await self._channels.channel(record.name)
                await channel.bucket.head(owner_mark_key(record.bucket.prefix))
            kind = "ok"
        except EntrepotError as error:
            kind = error.kind
        except TimeoutError:
            pass
        finally:
            self._seen[record.name] = (kind, time.monotonic())
            self._looks.pop(record.name, None)
            ended.set()

    async def _load_revocations(self) -> dict[str, float]:
        stored = await self._registry.setting(_REVOCATIONS)
        return {} if stored is None else msgspec.json.decode(stored, type=dict[str, float])

    async def _save_revocations(self) -> None:
        self._accounts.load(await self._load_revocations())
        await self._registry.set_setting(_REVOCATIONS, msgspec.json.encode(dict(self._accounts.revocations)))


async def _begun(lanes: Lanes, work: Callable[[], Awaitable[object]]) -> None:
    """Begin work that nobody waits for."""
    lanes.put("", work)
