"""Records the trace ``recorded`` of ``scripts/bench eviction``: ``.venv/bin/python -m scripts.bench_record``.

Readers come and go in virtual time; each is the real requester (``entrepot.core.exchange.requester``) with its windows,
its order and its questions. They read streams of 4 MiB objects whole, in order, or in part. What stands for the hub
answers every want, has what is missing uploaded at the speed of the stream's provider, and evicts nothing, so that the
trace does not depend on a policy. What is recorded is the order in which objects are fetched.
"""

from __future__ import annotations

import heapq
import json
import zlib
from collections.abc import Callable
from functools import partial
from itertools import count
from random import Random

from scripts.bench_traces import OBJECT, RECORDED, UPLINKS

from entrepot.core.exchange import requester as requesting
from entrepot.core.exchange.requester import Requester
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import ObjectState, Signed, State, Want, WantReply
from entrepot.core.ranges import clip, front, of_numbers
from entrepot_hub.core.eviction import LATENCY

LOCK = SchemaLock("demo", object=OBJECT)
SETTINGS = ExchangeSettings()
READS = 40_000
STREAMS = 400
GET = Signed(method="GET", url="u", expires=600_000)


type Again = Callable[[list[requesting.Effect]], None]


class Stream:
    """A stream with its provider's uplink; ``ready`` and ``coming``: its objects in the bucket and on their way."""

    def __init__(self, index: int, objects: int, uplink: float, root: bytes) -> None:
        self.index = index
        self.objects = objects
        self.uplink = uplink
        self.opening = Opening(objects * OBJECT, root)
        self.geometry = Geometry(self.opening.length, LOCK)
        self.ready: set[int] = set()
        self.coming: set[int] = set()
        self.readers: dict[int, tuple[Requester, Again]] = {}


class Recording:
    """The readers, what stands for the hub, and a clock that jumps to the next event."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self.serial = count()
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.reads: list[tuple[int, int]] = []
        lengths = [self.random.choice((1, 1, 2, 5, 10, 25, 60, 150)) for _ in range(STREAMS)]
        self.streams = [
            Stream(index, length, self.random.choice(UPLINKS), self.random.randbytes(32))
            for index, length in enumerate(lengths)
        ]
        self.popular = list(self.streams)

    def later(self, pause: float, act: Callable[[], None]) -> None:
        """Have something happen after a pause."""
        heapq.heappush(self.heap, (self.now + max(pause, 1e-6), next(self.serial), act))

    def run(self) -> None:
        """Until enough was read."""
        self.arrive()
        while len(self.reads) < READS:
            self.now, _, act = heapq.heappop(self.heap)
            act()

    def arrive(self) -> None:
        """A reader comes, and the next one soon; interest moves on."""
        self.later(self.random.expovariate(1 / 20), self.arrive)
        rank = min(int(self.random.paretovariate(0.6)) - 1, STREAMS - 1)
        if self.random.random() < 0.1:
            other = self.random.randrange(STREAMS)
            self.popular[rank], self.popular[other] = self.popular[other], self.popular[rank]
        stream, reader = self.popular[rank], next(self.serial)
        manner = self.random.choice(("whole", "in order", "part"))
        machine = Requester(stream.opening.stream_id(), LOCK.id, f"{reader:016x}", SETTINGS, in_order=manner != "whole")
        wish = (0, stream.objects - 1)
        if manner == "part":
            first = self.random.randrange(stream.objects)
            wish = first, min(first + self.random.randint(0, max(stream.objects // 5, 1)), stream.objects - 1)
        speed = self.random.choice((2e6, 12.5e6, 100e6))
        stream.readers[reader] = machine, partial(self.act, stream, reader, speed, wish)
        self.act(stream, reader, speed, wish, machine.start(self.now))

    def act(
        self, stream: Stream, reader: int, speed: float, wish: tuple[int, int], effects: list[requesting.Effect]
    ) -> None:
        """Carry out what a reader decided, and call it again when it wants to be called."""
        if reader not in stream.readers:
            return
        machine, again = stream.readers[reader]
        for effect in effects:
            match effect:
                case requesting.Learned():
                    again(machine.begin((wish,), self.now))
                case requesting.Ask(want):
                    reply = self.wanted(stream, want)
                    self.later(0.02, lambda reply=reply: again(machine.replied(reply, self.now)))  # type: ignore[misc]
                case requesting.Fetch(number, _, _):
                    self.reads.append((stream.index, number))
                    self.later(OBJECT / speed, lambda n=number: again(machine.fetched(n, self.now)))  # type: ignore[misc]
                case requesting.Finish() | requesting.Fail():
                    stream.readers.pop(reader, None)
                case requesting.Tell() | requesting.StopFetch():
                    pass
        timer = machine.timer()
        if timer is not None and reader in stream.readers:
            self.later(timer - self.now, lambda: self.tick(machine, timer, again))

    def tick(self, machine: Requester, timer: float, again: Again) -> None:
        """The reader's own timer, if it is still the one that was set."""
        if machine.timer() == timer:
            again(machine.tick(self.now))

    def wanted(self, stream: Stream, want: Want) -> WantReply:
        """The answer to a want; what is missing of its window is uploaded from now on, one object after the other."""
        numbers = tuple(front(clip(want.ranges, stream.objects), want.window))
        for number in numbers:
            if number not in stream.ready and number not in stream.coming:
                stream.coming.add(number)
                pause = LATENCY + len(stream.coming) * OBJECT / stream.uplink
                self.later(pause, partial(self.arrived, stream, number))
        return WantReply(
            opening=stream.opening.encode(),
            objects=tuple(self.state(stream, number) for number in numbers),
            ready=of_numbers(sorted(stream.ready), 64),
            uploading=of_numbers(sorted(stream.coming), 64),
        )

    def arrived(self, stream: Stream, number: int) -> None:
        """An object is in the bucket: its stream's readers hear of it."""
        stream.coming.discard(number)
        stream.ready.add(number)
        state = State(lock=LOCK.id, stream=stream.opening.stream_id().raw, objects=(self.state(stream, number),))
        for machine, again in list(stream.readers.values()):
            again(machine.heard(state, self.now))

    def state(self, stream: Stream, number: int) -> ObjectState:
        """How an object stands."""
        if number in stream.ready:
            length = stream.geometry.object_length(number)
            return ObjectState(number=number, state="ready", length=length, etag="e", get=GET)
        return ObjectState(number=number, state="uploading")


def main() -> None:
    """Record and write."""
    recording = Recording(2026)
    recording.run()
    starts, total = [], 0
    for stream in recording.streams:
        starts.append(total)
        total += stream.objects
    packed = b"".join((starts[stream] + number).to_bytes(2) for stream, number in recording.reads)
    document = {
        "about": "objects fetched by readers of the real requester, by scripts/bench_record.py",
        "streams": [[stream.objects, stream.uplink] for stream in recording.streams],
        "requests": zlib.compress(packed, 9).hex(),
    }
    RECORDED.parent.mkdir(parents=True, exist_ok=True)
    RECORDED.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    hours = (recording.now - 1000) / 3600
    print(f"{len(recording.reads)} reads of {len(set(recording.reads))} objects in {hours:.1f} hours")


if __name__ == "__main__":
    main()
