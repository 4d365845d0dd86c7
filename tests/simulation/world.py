"""A world: hubs, holders and readers on one virtual clock, driven from a plan, its invariants looked at throughout."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

from tests.simulation.bucket import Place
from tests.simulation.content import CHANNEL, OBJECT, Content, content, node_key
from tests.simulation.hub import SETTINGS, Durable, HubProcess, member, without_rights
from tests.simulation.loop import Standstill, VirtualLoop, finish
from tests.simulation.network import Network
from tests.simulation.node import NODE_SETTINGS, Held, ModelSession, ModelStore, ModelTransfers, model
from tests.simulation.plan import (
    DISTURBED,
    Crash,
    Cut,
    Flap,
    Liar,
    Plan,
    Reader,
    Revoke,
    Skew,
    SlowCalls,
    SlowUploads,
    Stall,
    Storm,
    Vandal,
)
from tests.simulation.process import EPOCH, Process
from tests.simulation.trace import Trace
from tests.simulation.watch import Violation, Watch, WatchedLedger, truth_of

from entrepot.core.errors import Denied, EntrepotError
from entrepot.services.fetching import Getter
from entrepot.services.providing import Providing
from entrepot_hub.adapters.accounts import ConnectionEvent
from entrepot_hub.core.members import Rights
from entrepot_hub.core.pins import Pin, PinKind
from entrepot_hub.core.transitions import STRIKE_WINDOW

#: Seconds after the last fault in which every honest reader must have everything.
SERVED: Final = 150.0
#: Seconds after that in which ledger and bucket come to rest: wants that nobody cancelled end, URLs end, PUTs land.
REST: Final = SETTINGS.want_deadline + SETTINGS.put_url + SETTINGS.put_grace + 15.0
#: A get may be still for so long: its deadline, twice, since it may learn the opening in between.
STILL: Final = 2 * SETTINGS.want_deadline + 5.0
RIGHTS: Final = "request:files,provide:files"
assert STRIKE_WINDOW > REST


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a world ended."""

    plan: Plan
    violation: Violation | None
    digest: str
    seconds: float
    steps: int
    messages: int
    puts: int
    ends: Counter[str] = field(default_factory=Counter)
    trace: Trace | None = None


class World:
    """One world; :meth:`run` it once."""

    def __init__(self, plan: Plan, loop: VirtualLoop | None = None) -> None:
        self.plan = plan
        self.loop = loop or VirtualLoop()
        self.trace = Trace()
        self.violation: Violation | None = None
        self.ends: Counter[str] = Counter()
        self.place = Place(plan, self.loop, self.trace)
        self.network = Network(plan, self.loop, self.trace)
        self.watch = Watch(self.loop, self.place, SETTINGS.put_grace, self._failed)
        self.ledger = WatchedLedger(self.watch, self.place, self.trace, self.loop)
        self.durable = Durable(plan, self.ledger, self.watch)
        self.contents: list[Content] = [content(i, count) for i, count in enumerate(plan.streams)]
        self.random = Random(f"world {plan.seed}")
        self.hubs: dict[str, HubProcess] = {}
        self.sessions: dict[str, ModelSession] = {}
        self.processes: dict[str, Process] = {}
        self.held: dict[str, Held] = {}
        self.places_in_line: dict[str, int] = {}  # how many of its streams a reader has had
        self.done: set[str] = set()
        self.moved: dict[str, float] = {}  # when a get last came forward
        self._expelled: set[str] = set()
        self._lies = {name: frozenset(liar.how for liar in plan.of(Liar) if liar.who == name) for name in self._nodes()}
        self._by_stream = {each.stream.raw: each for each in self.contents}
        self._begun = 0
        if any(isinstance(fault, (Stall, SlowCalls, Storm)) for fault in plan.faults):
            self.watch.slack += 4.0
        if plan.of(Skew):
            self.watch.slack += 1.0
        self.watch.truth = truth_of(self.contents)
        self.network.hammered = lambda who, wants: self._failed(
            Violation("hammer", f"{who} said {wants} wants within a second")
        )
        self.place.changed = lambda _key: self.watch.look()

    def run(self) -> Outcome:
        """Let it happen; the first violation ends it."""
        enabled = gc.isenabled()
        gc.disable()  # when it runs would be part of the history
        self.loop.set_exception_handler(self._mistake)
        try:
            self._set_up()
            self.loop.create_task(self._watch_over())
            self.loop.run_forever()
        except Standstill as error:
            self._failed(Violation("no-end", str(error)))
        finally:
            finish(self.loop)
            if enabled:
                gc.enable()
        return Outcome(
            self.plan,
            self.violation,
            self.trace.digest(),
            self.loop.time(),
            self.watch.changes,
            self.network.sent,
            self.place.puts,
            self.ends,
            self.trace,
        )

    # -- setting up ---------------------------------------------------------------------------------------------

    def _nodes(self) -> list[str]:
        return [f"holder{i}" for i in range(len(self.plan.holders))] + [
            f"reader{i}" for i in range(len(self.plan.readers))
        ]

    def _set_up(self) -> None:
        plan, ledger = self.plan, self.ledger
        ledger.add_channel(CHANNEL, plan.quota * OBJECT)
        self.durable.record = replace(self.durable.record, quota=plan.quota * OBJECT)
        rights = Rights.parse(RIGHTS)
        for name in self._nodes():
            key = node_key(name)
            ledger.add_member(CHANNEL, key, name, rights)
            self.durable.members[key] = member(key, name, rights)
            self.held[name] = Held()
        for i, held in enumerate(plan.holders):
            for each, numbers in zip(self.contents, held, strict=True):
                self.held[f"holder{i}"].of(each.stream.raw).update(n for n in numbers if n < each.geometry.object_count)
        for serial in plan.pinned:
            each = self.contents[serial]
            ledger.learn(CHANNEL, each.stream.raw, each.opening)
            ledger.pin(CHANNEL, Pin(each.stream.raw, PinKind.ARCHIVE, "owner", EPOCH), 0)
            self.watch.archive.add(each.stream.raw)
        for i in range(plan.hubs):
            self._start_hub(f"hub{i}")
        for name in self._nodes():
            self._start_node(name)
        for flap in plan.of(Flap):
            self.loop.call_later(flap.start, self._flap, flap)
        for cut in plan.of(Cut):
            if cut.noticed:
                self.loop.call_later(cut.start + 0.5, self._noticed, cut.who, False)
                self.loop.call_later(cut.stop + 0.01, self._noticed, cut.who, True)
            self.loop.call_later(cut.stop + 0.02, self._came_up, cut.who)
        for revoke in plan.of(Revoke):
            self.loop.call_later(revoke.start, self._revoke, revoke.who)
        for vandal in plan.of(Vandal):
            self.loop.call_later(vandal.start, self._vandalise, vandal)

    def _process(self, name: str) -> Process:
        process = Process(name, self.loop, self.trace, self._died)
        process.arm(
            [fault for fault in self.plan.of(Crash) if fault.who == name],
            [fault for fault in self.plan.of(Stall) if fault.who == name],
        )
        self.processes[name] = process
        self._begun += 1
        self.trace.add(self.loop.time(), name, "starts")
        return process

    def _start_hub(self, name: str) -> None:
        process = self._process(name)
        process.skew = sum(skew.seconds for skew in self.plan.of(Skew) if skew.who == name)
        process.skew = max(min(process.skew, 0.5), -0.5)
        random = Random(f"{name} {self._begun} {self.plan.seed}")
        hub = HubProcess(process, f"{random.getrandbits(64):016x}", self.durable, self.place, self.network, random)
        self.hubs[name] = hub
        process.start(self._life(name, hub.run()))

    def _start_node(self, name: str) -> None:
        if name in self._expelled:
            return
        process = self._process(name)
        random = Random(f"{name} {self._begun} {self.plan.seed}")
        lies = self._lies[name]
        session = ModelSession(process, f"{random.getrandbits(64):016x}", node_key(name), self.network, RIGHTS, lies)
        self.sessions[name] = session
        store = ModelStore(process, self._by_stream, self.held[name], lies, random)
        transfers = ModelTransfers(
            process, self.place, self.watch, self.plan.of(SlowUploads), self.plan.slowest, lies, random
        )
        if name.startswith("holder"):
            work = Providing(model(session), model(store), model(transfers), NODE_SETTINGS).run()
        else:
            work = self._reading(name, self.plan.readers[int(name[6:])], session, store, transfers)
        process.start(self._life(name, work))
        self.loop.call_later(random.uniform(0.001, 0.05), self._tell_hubs, session, True)

    async def _life(self, name: str, work: Any) -> None:
        try:
            await work
        except Exception as error:
            if self.processes[name].alive:
                import traceback

                self._failed(Violation("mistake", f"{name}: {error!r}\n{traceback.format_exc()}"))

    def _died(self, process: Process, down: float) -> None:
        name = process.name
        self.network.left(process)
        if name.startswith("hub"):
            self.loop.call_later(down, self._start_hub, name)
            return
        session = self.sessions[name]
        self.loop.call_later(min(down / 2, 0.3), self._tell_hubs, session, False)
        self.loop.call_later(down, self._start_node, name)

    # -- readers ------------------------------------------------------------------------------------------------

    async def _reading(
        self, name: str, reader: Reader, session: ModelSession, store: ModelStore, transfers: ModelTransfers
    ) -> None:
        if self.loop.time() < reader.start:
            await asyncio.sleep(reader.start - self.loop.time())
        while (place := self.places_in_line.get(name, 0)) < len(reader.streams):
            known = self.contents[reader.streams[place]]
            self.moved[name] = self.loop.time()
            getter = Getter(
                model(session),
                session.channels[CHANNEL],
                known.stream,
                model(store),
                model(transfers),
                NODE_SETTINGS,
                in_order=reader.in_order,
                keep=reader.keep,
                on_object=lambda _number: self.moved.update({name: self.loop.time()}),
            )
            try:
                fetched = await getter.run()
            except EntrepotError as error:
                self._ended(name, error.kind)
                if isinstance(error, Denied) and error.kind == "revoked":
                    break
                await asyncio.sleep(0.5)
                continue
            if not fetched.complete:
                self._failed(Violation("bad-bytes", f"{name} ended well without everything"))
            self._ended(name, "ready")
            self.places_in_line[name] = place + 1
            if place + 1 < len(reader.streams) and reader.streams[place + 1] in reader.streams[: place + 1]:
                self.held[name].of(self.contents[reader.streams[place + 1]].stream.raw).clear()
            await asyncio.sleep(reader.pause)
        self.done.add(name)
        await self.loop.create_future()

    def _ended(self, name: str, kind: str) -> None:
        self.moved.pop(name, None)
        self.ends[kind] += 1
        self.trace.add(self.loop.time(), name, f"get ends: {kind}")
        if kind == "internal":
            self._failed(Violation("mistake", f"{name} was told of a mistake of ours"))

    # -- faults -------------------------------------------------------------------------------------------------

    def _tell_hubs(self, session: ModelSession, connected: bool) -> None:
        event = ConnectionEvent(
            node=session.node, session=session.id, kind="daemon", connected=connected, reason="", connection=session.id
        )
        for name in sorted(self.hubs):
            hub = self.hubs[name]
            if not self.network.is_cut(name):
                hub.happened(event)

    def _noticed(self, who: str, connected: bool) -> None:
        if who in self.sessions and self.processes[who].alive and who not in self._expelled:
            self._tell_hubs(self.sessions[who], connected)

    def _came_up(self, who: str) -> None:
        session = self.sessions.get(who)
        if session is not None and self.processes[who].alive and session.on_up is not None:
            session.on_up()

    def _flap(self, flap: Flap) -> None:
        self.trace.add(self.loop.time(), flap.who, "is said to be gone")
        self._noticed(flap.who, False)
        if flap.seconds:
            self.loop.call_later(flap.seconds, self._noticed, flap.who, True)

    def _revoke(self, who: str) -> None:
        key = node_key(who)
        if who in self._expelled:
            return
        self.trace.add(self.loop.time(), who, "is revoked")
        self._expelled.add(who)
        self.durable.members[key] = without_rights(self.durable.members[key], EPOCH + self.loop.time())
        self.ledger.remove_member(CHANNEL, key)
        self.watch.revoked[key] = self.loop.time()
        session = self.sessions[who]
        session.expel()
        self._tell_hubs(session, False)
        for name in sorted(self.hubs):
            hub = self.hubs[name]
            if hub.process.alive and hub.ready:
                hub.arbiter._spawn(hub.revoked(key))
                break

    def _vandalise(self, vandal: Vandal) -> None:
        keys = sorted(key for key, blob in self.place.blobs.items() if blob.data)
        if not keys:
            return
        key = keys[vandal.pick % len(keys)]
        self.place.touched.add(key)
        data = self.place.blobs[key].data
        if vandal.alter:
            self.place.write(key, data[:-1] + bytes([data[-1] ^ 1]), "vandal", "alter")
        else:
            self.place.remove(key, "vandal")

    def _mistake(self, _loop: Any, context: dict[str, Any]) -> None:
        """A callback raised. (What nobody asked a future for is no mistake: its asker died.)"""
        if str(context.get("message", "")).startswith("Exception in callback"):
            self._failed(Violation("mistake", f"{context.get('handle')}: {context.get('exception')!r}"))

    # -- watching -----------------------------------------------------------------------------------------------

    def _failed(self, violation: Violation) -> None:
        if self.violation is None:
            self.violation = violation
            self.trace.add(self.loop.time(), "watch", str(violation).splitlines()[0])
            self.loop.stop()

    def _honest(self) -> Iterable[str]:
        """Readers that must be served."""
        return [
            f"reader{i}"
            for i in range(len(self.plan.readers))
            if not self._lies[f"reader{i}"] and f"reader{i}" not in self._expelled
        ]

    async def _watch_over(self) -> None:
        end = (DISTURBED if self.plan.faults else max(r.start for r in self.plan.readers)) + SERVED
        while not self.done.issuperset(self._honest()):
            await asyncio.sleep(0.5)
            now = self.loop.time()
            for name, since in self.moved.items():
                if now > since + STILL and not self._lies[name] and self.processes[name].alive:
                    self._failed(Violation("no-end", f"the get of {name} has not moved for {STILL:g} s"))
            if now > end:
                late = sorted(set(self._honest()) - self.done)
                self._failed(Violation("not-served", f"{', '.join(late)} still without everything"))
                return
        for name in sorted(self.processes):
            if name.startswith("reader") and name not in self.done:
                self.processes[name].kill()  # a liar would go on for ever
                self._tell_hubs(self.sessions[name], False)
        end = max(self.loop.time(), DISTURBED if self.plan.faults else 0.0) + REST
        while self.loop.time() < end:
            await asyncio.sleep(1.0)
            if self._at_rest():
                break
        self.watch.quiet()
        self.loop.stop()

    def _at_rest(self) -> bool:
        """Whether nothing can land any more and the final invariants hold."""
        if self.plan.faults and self.loop.time() < DISTURBED:
            return False
        for permit in self.place.permits.values():
            if permit.under_way or (permit.until > self.place.now and permit.key not in self.place.blobs):
                return False
        quiet: list[Violation] = []
        told, self.watch._failed = self.watch._failed, quiet.append
        try:
            self.watch.quiet()
        finally:
            self.watch._failed = told
        return not quiet


def run(plan: Plan) -> Outcome:
    """The outcome of a plan: the same every time."""
    return World(plan).run()


def every(plans: Iterable[Plan], tell: Callable[[Outcome], None]) -> None:
    """One after the other; memory is tidied in between."""
    for i, plan in enumerate(plans):
        tell(run(plan))
        if i % 20 == 19:
            gc.collect()
