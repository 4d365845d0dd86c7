"""Many nodes: how many messages an object costs, and how much work of the hub.

The hub's work is the processor time of its own code and of the model ledger, which stands in for the database; messages
are encoded, checked and decoded as in production. Nothing fails here and no invariant is looked at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Final

from tests.simulation.loop import Timer, VirtualLoop
from tests.simulation.network import Handler, Network
from tests.simulation.plan import Plan, Reader
from tests.simulation.process import WHO, Process
from tests.simulation.world import World

#: Objects of a stream.
OBJECTS: Final = 4
HOLDERS: Final = 4
#: In the second row of each size so many nodes want the same stream.
TOGETHER: Final = 10


class _Clock:
    """Processor time that went into the hub's code."""

    seconds = 0.0

    def run(self, work: Callable[..., object], *args: Any) -> None:
        """Run and count it."""
        since = time.process_time()
        try:
            work(*args)
        finally:
            self.seconds += time.process_time() - since


class _Handle(asyncio.Handle):
    """A callback whose time counts if it is the hub's."""

    def _run(self) -> None:
        if self._context.get(WHO) == "hub0":  # type: ignore[attr-defined]
            self._loop.clock.run(super()._run)  # type: ignore[attr-defined]
        else:
            super()._run()


class _Timer(Timer):
    """The same for a timer: transactions, for one."""

    def _run(self) -> None:
        if self._context.get(WHO) == "hub0":  # type: ignore[attr-defined]
            self._loop.clock.run(super()._run)  # type: ignore[attr-defined]
        else:
            super()._run()


class _Loop(VirtualLoop):
    """Counts the hub's time."""

    def __init__(self) -> None:
        super().__init__()
        self.timer = _Timer
        self.clock = _Clock()

    def _call_soon(
        self, callback: Callable[..., object], args: Sequence[Any], context: Context | None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle


class _Network(Network):
    """Messages to the hub arrive in the hub's own context."""

    clock: _Clock

    def serve(self, verb: str, who: Process, handler: Handler) -> None:
        """See ``Network.serve``."""

        def receive(subject: str, payload: bytes, reply: str | None) -> None:
            self.clock.run(who.context.copy().run, handler, subject, payload, reply)

        super().serve(verb, who, receive)


class _Big(World):
    """A world without invariants and without a trace."""

    def __init__(self, plan: Plan, loop: _Loop) -> None:
        super().__init__(plan, loop)
        network = _Network(plan, loop, self.trace)
        network.clock = loop.clock
        self.network = network
        self.watch.look = lambda: None  # type: ignore[method-assign]
        self.trace.add = lambda now, who, what: None  # type: ignore[method-assign]


def plan_of(nodes: int, streams: int) -> Plan:
    """So many readers of so many streams, at about the same time."""
    return Plan(
        seed=1,
        scenario="scale",
        hubs=1,
        streams=(OBJECTS,) * streams,
        holders=((frozenset(range(OBJECTS)),) * streams,) * HOLDERS,
        readers=tuple(Reader((i % streams,), 2.0 * i / nodes, False, 0.0) for i in range(nodes)),
        quota=OBJECTS * streams + 4,
        bucket="strict",
    )


def measure(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Rows for the table ``scale``, printed as they come."""
    rows = []
    for nodes in sizes:
        for streams in dict.fromkeys((1, max(nodes // TOGETHER, 1))):
            loop = _Loop()
            world = _Big(plan_of(nodes, streams), loop)
            since = time.monotonic()
            outcome = world.run()
            if outcome.violation is not None:
                raise outcome.violation
            objects = nodes * OBJECTS
            columns = {
                "nodes": f"{nodes:,}, {streams:,} stream{'s' if streams > 1 else ''}",
                "objects": objects,
                "messages_per_object": round(outcome.messages / objects, 2),
                "hub_ms_per_object": round(1000 * loop.clock.seconds / objects, 3),
            }
            rows.append({"table": "scale", "columns": columns})
            print(
                f"{columns['nodes']:<24} {objects:>8} objects, {columns['messages_per_object']} messages and "
                f"{columns['hub_ms_per_object']} ms of the hub for each; {outcome.puts} uploads, "
                f"{outcome.seconds:.1f} s of its own time, {time.monotonic() - since:.1f} s of ours",
                flush=True,
            )
    return rows
