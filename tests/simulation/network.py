"""The bus between nodes and hubs: it loses, repeats, delays and reorders, and it can be cut."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from tests.simulation.loop import VirtualLoop
from tests.simulation.plan import Cut, Lossy, Plan
from tests.simulation.process import Process
from tests.simulation.trace import Trace

#: A reader says no more wants than this in a second, whatever fails.
HAMMER: Final = 60

type Handler = Callable[[str, bytes, str | None], None]


class Network:
    """Subjects as on NATS. Delivery takes milliseconds; a process that stands still hears later, a dead one never."""

    def __init__(self, plan: Plan, loop: VirtualLoop, trace: Trace) -> None:
        self._loop = loop
        self._trace = trace
        self._random = Random(f"network {plan.seed}")
        self._lossy = plan.of(Lossy)
        self._cuts = plan.of(Cut)
        self._subjects: dict[str, list[tuple[Process, Handler]]] = {}
        self._hubs: dict[str, list[tuple[Process, Handler]]] = {}
        self._instances: dict[str, tuple[Process, Handler]] = {}
        self.sent = 0
        self.hammered: Callable[[str, int], None] = lambda who, wants: None
        self._wants: dict[str, tuple[int, int]] = {}

    def is_cut(self, name: str) -> bool:
        """Whether the process hears and says nothing now."""
        now = self._loop.time()
        return any(cut.who == name and cut.start <= now < cut.stop for cut in self._cuts)

    def subscribe(self, subject: str, who: Process, handler: Handler) -> Callable[[], None]:
        """Hear a subject; what is returned ends it."""
        entry = (who, handler)
        self._subjects.setdefault(subject, []).append(entry)

        def end() -> None:
            heard = self._subjects.get(subject, [])
            if entry in heard:
                heard.remove(entry)
            if not heard:
                self._subjects.pop(subject, None)

        return end

    def serve(self, verb: str, who: Process, handler: Handler) -> None:
        """A hub takes messages of a verb, in turn with the others; ``offer.<instance>`` are its own."""
        if verb.startswith("offer."):
            self._instances[verb] = (who, handler)
        else:
            self._hubs.setdefault(verb, []).append((who, handler))

    def left(self, who: Process) -> None:
        """The process's subscriptions are gone."""
        for table in (self._subjects, self._hubs):
            for subject, entries in list(table.items()):
                table[subject] = [entry for entry in entries if entry[0] is not who]
                if not table[subject]:
                    del table[subject]

    def to_hub(self, sender: Process, subject: str, payload: bytes, reply: str | None) -> None:
        """A node publishes to the hubs' queue group, or to one instance."""
        parts = subject.split(".")
        verb = parts[2]
        if verb == "offer":
            entry = self._instances.get(f"offer.{parts[3]}")
            takers = [] if entry is None else [entry]
        else:
            takers = self._hubs.get(verb, [])
        if not sender.alive or not takers:
            return
        if verb == "want":
            second = int(self._loop.time())
            known, count = self._wants.get(sender.name, (second, 0))
            self._wants[sender.name] = (second, count + 1 if known == second else 1)
            if count >= HAMMER and known == second:
                self.hammered(sender.name, count + 1)
        taker, handler = takers[self._random.randrange(len(takers))] if len(takers) > 1 else takers[0]
        self._carry(sender, taker, verb, handler, subject, payload, reply)

    def publish(self, sender: Process, subject: str, payload: bytes) -> None:
        """A hub publishes: to each subscriber for itself."""
        if not sender.alive:
            return
        for taker, handler in tuple(self._subjects.get(subject, ())):
            self._carry(sender, taker, subject.rpartition(".")[2][:8], handler, subject, payload, None)

    def _carry(
        self,
        sender: Process,
        taker: Process,
        verb: str,
        handler: Handler,
        subject: str,
        payload: bytes,
        reply: str | None,
    ) -> None:
        self.sent += 1
        random, now = self._random, self._loop.time()
        delay = 0.0005 + 0.0045 * random.random()
        copies = 1
        for lossy in self._lossy:
            if lossy.start <= now < lossy.stop:
                draw = random.random()
                if draw < lossy.loss:
                    copies = 0
                elif draw < lossy.loss + lossy.twice:
                    copies = 2
                if random.random() < lossy.late:
                    delay += random.uniform(0.05, 1.5)
        if self.is_cut(sender.name) or self.is_cut(taker.name):
            copies = 0
        if copies == 0:
            self._trace.add(now, sender.name, f"{verb} to {taker.name}: lost")
        for copy in range(copies):
            extra = 0.0 if copy == 0 else random.uniform(0.0, 1.0)
            self._loop.call_later(delay + extra, self._arrive, sender, taker, verb, handler, subject, payload, reply)

    def _arrive(
        self,
        sender: Process,
        taker: Process,
        verb: str,
        handler: Handler,
        subject: str,
        payload: bytes,
        reply: str | None,
    ) -> None:
        if not taker.alive or self.is_cut(taker.name):
            return
        now = self._loop.time()
        if taker.stalled_until > now:
            self._loop.call_later(
                taker.stalled_until - now, self._arrive, sender, taker, verb, handler, subject, payload, reply
            )
            return
        self._trace.add(now, sender.name, f"{verb} to {taker.name}")
        handler(subject, payload, reply)
