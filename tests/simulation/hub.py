"""A hub process: the services of production, put together as :mod:`entrepot_hub.services.hub` does, over models of
database, bucket and bus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, Final, cast

from tests.simulation.bucket import ModelBucket, Place
from tests.simulation.content import CHANNEL, LOCK
from tests.simulation.network import Network
from tests.simulation.plan import BusyDatabase, Plan
from tests.simulation.process import Process
from tests.simulation.watch import Watch, WatchedLedger

from entrepot.adapters.bus_subscription import Message as BusMessage
from entrepot.core.errors import Denied, NotFound, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.messages import Message, encode
from entrepot_hub.adapters.accounts import ConnectionEvent
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.core.limits import Standing
from entrepot_hub.core.members import BucketRecord, Channel, Member, Node, NodeStatus, Rights
from entrepot_hub.core.rounds import Rounds
from entrepot_hub.services.arbiter import Arbiter
from entrepot_hub.services.background import Background
from entrepot_hub.services.bucket_keeper import BucketKeeper
from entrepot_hub.services.channels import Channels, ChannelSettings
from entrepot_hub.services.dispatcher import Dispatcher
from entrepot_hub.services.exchange import Exchange
from entrepot_hub.services.metering import Metering
from entrepot_hub.services.presence import Presence
from entrepot_hub.services.reconciliation import Reconciler

#: The exchange in quick: the proportions of production, so that a world ends in a minute of its own time.
SETTINGS: Final = ExchangeSettings(
    want_deadline=30.0,
    lease=2.0,
    put_url=10.0,
    put_grace=6.0,
    get_url=30.0,
    read_lease=8.0,
    window=4,
    fetches=2,
    fetches_most=2,
    slots=2,
    queue=3,
    offer_life=8.0,
    offer_refresh=4.0,
    disconnect_grace=0.5,
    floor_rate=1000.0,
    exclusion=10.0,
)
#: Seconds between two of the hub's looks, as ``entrepot_hub.services.hub`` has them, in the same proportion.
LAPSE: Final = 0.25
SWEEP: Final = 2.0
QUOTA: Final = 3.0
RECONCILE: Final = 7.0
TICK: Final = 1.0


class Durable:
    """What outlives every process: the ledger and the memberships. One transaction at a time, each whole."""

    def __init__(self, plan: Plan, ledger: WatchedLedger, watch: Watch) -> None:
        self.ledger = ledger
        self.watch = watch
        self.delays = plan.delays
        self.random = Random(f"database {plan.seed}")
        self.busy = plan.of(BusyDatabase)
        self.members: dict[str, Member] = {}
        self.record = Channel(CHANNEL, 0, LOCK, BucketRecord(1, "sim:bucket", "", {}), False, 0.0)
        self.calls = 0

    def trouble(self, now: float) -> str | None:
        """Whether the database fails now: ``before`` or ``after`` the transaction."""
        for busy in self.busy:
            if busy.start <= now < busy.stop and self.random.random() < busy.rate:
                return "after" if busy.after else "before"
        return None


class ModelDatabase:
    """The face of :class:`entrepot_hub.adapters.database.Database` for one process."""

    def __init__(self, durable: Durable, process: Process) -> None:
        self._durable = durable
        self._process = process

    async def call(self, method: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """A method in a transaction."""
        return await self.together(partial(method, *args, **more))

    async def together(self, work: Callable[[], Any]) -> Any:
        """``work()`` in one transaction."""
        durable, now = self._durable, self._process._loop.time()
        durable.calls += 1
        trouble = durable.trouble(now) if durable.busy else None

        def transact() -> Any:
            if trouble == "before":
                raise RetryLater("the database has too much to do", kind="busy")
            result = work()
            if isinstance(result, Iterator):
                result = list(result)
            if durable.ledger.dirty:
                durable.ledger.dirty = False
                durable.watch.look()
            if trouble == "after":
                raise RetryLater("the database did not answer in time", kind="deadline")
            return result

        return await self._process.outside(durable.delays * (0.5 + durable.random.random()), transact)


class ModelRegistry:
    """As much of :class:`entrepot_hub.adapters.registry.Registry` as the exchange asks for."""

    def __init__(self, database: ModelDatabase, durable: Durable) -> None:
        self._database = database
        self._durable = durable

    async def channel(self, name: str) -> Channel:
        """The channel."""
        if name != CHANNEL:
            raise NotFound("no such channel", kind="no-such-channel")
        record: Channel = await self._database.together(lambda: self._durable.record)
        return record

    async def channels(self) -> list[Channel]:
        """All of them."""
        return [await self.channel(CHANNEL)]

    async def member(self, channel: str, node: str) -> Member:
        """A member, revoked or not."""
        found = await self._database.together(lambda: self._durable.members.get(node))
        if found is None:
            raise Denied("never a member", kind="no-right")
        member: Member = found
        return member

    async def members(self, channel: str) -> list[Member]:
        """All members."""
        every: list[Member] = await self._database.together(lambda: list(self._durable.members.values()))
        return every


class FreeMetering(Metering):
    """Counts as production does; nothing is limited and nothing written."""

    _free = Standing(day=0)

    async def standing(self, channel: str) -> Standing:
        """No limits."""
        return self._free


@dataclass(slots=True)
class Log:
    """What services write into the log: mistakes are what counts."""

    watch: Watch
    name: str

    def warning(self, event: str, **more: object) -> None:
        """Trouble outside, which a service outlives; a message refused as Internal is none."""
        if more.get("kind") == "internal":
            self.watch.fail("mistake", f"{self.name}: {event}: {more.get('why')}")

    def exception(self, event: str, **more: object) -> None:
        """Our own mistake."""
        import traceback

        self.watch.fail("mistake", f"{self.name}: {event}: {traceback.format_exc()}")

    info = debug = error = warning


class HubBus:
    """The dispatcher's bus."""

    def __init__(self, network: Network, process: Process, answer: Callable[[str, bytes], None]) -> None:
        self._network = network
        self._process = process
        self._answer = answer

    async def subscribe(
        self, pattern: str, handler: Callable[[BusMessage], None], *, queue: str = "", pending: int = 0
    ) -> None:
        """Hear ``hub.*.<verb>.*``, or the offers to this instance."""
        parts = pattern.split(".")
        verb = f"offer.{parts[3]}" if parts[2] == "offer" else parts[2]
        nothing = cast(Any, None)
        self._network.serve(
            verb, self._process, lambda subject, payload, reply: handler(BusMessage(subject, payload, reply, nothing))
        )

    async def publish(self, subject: str, payload: bytes) -> None:
        """An answer."""
        self._network.publish(self._process, subject, payload)


class HubProcess:
    """One life of a hub."""

    def __init__(
        self, process: Process, instance: str, durable: Durable, place: Place, network: Network, random: Random
    ) -> None:
        self.process = process
        self.instance = instance
        self.arbiter: Arbiter
        self.presence: Presence
        self.channels: Channels
        self._durable = durable
        self._place = place
        self._network = network
        self._random = random
        self.ready = False

    async def run(self) -> None:
        """Serve until it is killed."""
        process, durable = self.process, self._durable
        clock, ledger = process.clock, cast(SqlLedger, durable.ledger)
        model = ModelDatabase(durable, process)
        database = cast(Database, model)
        log = Log(durable.watch, process.name)

        async def open_bucket(record: Channel) -> ModelBucket:
            return ModelBucket(self._place, process)

        async with Background() as background:
            background._log = log
            metering = FreeMetering(database, clock)
            channels = self.channels = Channels(
                cast(Registry, ModelRegistry(model, durable)), open_bucket, clock, ChannelSettings(trust=1.0)
            )
            presence = self.presence = Presence(
                clock=clock, spawn=background.spawn, grace=SETTINGS.disconnect_grace, revocations=dict
            )
            keeper = BucketKeeper(database, ledger, channels, SETTINGS, clock, metering)
            arbiter = self.arbiter = Arbiter(
                instance=self.instance,
                database=database,
                ledger=ledger,
                channels=channels,
                keeper=keeper,
                metering=metering,
                rounds=Rounds(SETTINGS, lambda: self._random.randbytes(16)),
                settings=SETTINGS,
                clock=clock,
                publish=self._publish,
                spawn=background.spawn,
            )
            exchange = Exchange(
                arbiter,
                database=database,
                ledger=ledger,
                channels=channels,
                keeper=keeper,
                clock=clock,
                spawn=background.spawn,
            )
            presence.serve(arbiter)
            bus = HubBus(self._network, process, self._publish_bytes)
            dispatcher = Dispatcher(cast(Any, bus), exchange, channels, presence, background.spawn)
            dispatcher._log = log
            await dispatcher.start()
            self.ready = True
            background.spawn(self._restore(arbiter))
            background.spawn(self._rounds_timer(background, arbiter))
            background.every(LAPSE, arbiter.lapse)
            background.every(SWEEP, arbiter.sweep)
            background.every(QUOTA, arbiter.within_quota)
            reconciler = Reconciler(database, ledger, channels, keeper, clock, arbiter.mended)
            background.every(RECONCILE, lambda: reconciler.step(CHANNEL))
            await asyncio.get_running_loop().create_future()

    async def _restore(self, arbiter: Arbiter) -> None:
        """Restore, and then see that no want was forgotten."""
        ledger, now = self._durable.ledger, self.process.clock()
        before = ledger.open_wants(now, CHANNEL, 0, 1000)
        await arbiter.restore()
        rounds = arbiter.rounds._rounds
        for _, want in ledger.open_wants(self.process.clock(), CHANNEL, 0, 1000):
            order = want.order
            known = rounds.get((CHANNEL, order.stream))
            if any(w.order.node == order.node and w.order.stream == order.stream for _, w in before) and (
                known is None or order.node not in known.wants
            ):
                self._durable.watch.fail("lost-want", f"{self.process.name} started without a want of the ledger")

    async def _rounds_timer(self, background: Background, arbiter: Arbiter) -> None:
        """As the hub's."""
        due: float | None = None

        async def tick() -> None:
            nonlocal due
            due = await arbiter.tick()

        while True:
            arbiter.woken.clear()
            due = None
            await background.guard(tick())
            pause = TICK if due is None else min(max(due - self.process.clock(), 0.001), TICK)
            try:
                async with asyncio.timeout(pause):
                    await arbiter.woken.wait()
            except TimeoutError:
                continue

    def happened(self, event: ConnectionEvent) -> None:
        """The servers tell of a connection."""
        if self.process.alive and self.ready:
            self.presence.happened(event)

    async def revoked(self, node: str) -> None:
        """What the hub does when an admin revokes through it."""
        self.channels.forget(node=node, channel=CHANNEL)
        await self.arbiter.expelled(node, CHANNEL)

    def _publish(self, subject: str, message: Message) -> None:
        self._network.publish(self.process, subject, encode(message))

    def _publish_bytes(self, subject: str, payload: bytes) -> None:
        self._network.publish(self.process, subject, payload)


def member(key: str, name: str, rights: Rights) -> Member:
    """A member of the channel."""
    return Member(CHANNEL, Node(key, name, NodeStatus.ACTIVE, 0.0), rights, 0.0)


def without_rights(known: Member, now: float) -> Member:
    """The same, revoked."""
    return replace(known, revoked_at=now)
