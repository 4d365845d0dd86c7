"""What a seed stands for: a world and a list of faults, all drawn up front, so that each can be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from random import Random
from typing import Final

#: How long the simulated network, processes and clocks are disturbed at most, in seconds.
DISTURBED: Final = 14.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One disturbance. Times in seconds of the world."""

    def __str__(self) -> str:
        words = []
        for each in fields(self):
            value = getattr(self, each.name)
            words.append(f"{each.name}={value:.3f}" if isinstance(value, float) else f"{each.name}={value}")
        return f"{type(self).__name__}({', '.join(words)})"


@dataclass(frozen=True, slots=True)
class Lossy(Fault):
    """Messages are lost, repeated and late, each with its rate."""

    start: float
    stop: float
    loss: float
    twice: float
    late: float


@dataclass(frozen=True, slots=True)
class Cut(Fault):
    """A process is cut off from the bus."""

    who: str
    start: float
    stop: float
    noticed: bool  # the servers tell of it


@dataclass(frozen=True, slots=True)
class Crash(Fault):
    """A process dies at its n-th call to anything outside it after a moment, before or after the effect; comes back."""

    who: str
    start: float
    call: int
    after: bool
    down: float


@dataclass(frozen=True, slots=True)
class Stall(Fault):
    """A process stands still between two of its calls."""

    who: str
    start: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Storm(Fault):
    """The bucket answers 503."""

    start: float
    stop: float
    rate: float


@dataclass(frozen=True, slots=True)
class LostAnswers(Fault):
    """What was asked of the bucket happens, and its answer is lost."""

    start: float
    stop: float
    rate: float


@dataclass(frozen=True, slots=True)
class BusyDatabase(Fault):
    """Transactions fail: before they begin, or (``after``) their success is not told."""

    start: float
    stop: float
    rate: float
    after: bool


@dataclass(frozen=True, slots=True)
class SlowCalls(Fault):
    """Some calls to the bucket take up to so many seconds."""

    start: float
    stop: float
    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class LatePuts(Fault):
    """PUTs land so much later than they were sent."""

    start: float
    stop: float
    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class SlowUploads(Fault):
    """A holder's uplink is so many times slower."""

    who: str
    start: float
    stop: float
    factor: float


@dataclass(frozen=True, slots=True)
class Skew(Fault):
    """The clock of a hub is off."""

    who: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Flap(Fault):
    """The servers tell that a session went, and that it came back after so many seconds (0: never said)."""

    who: str
    start: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Revoke(Fault):
    """A node loses its membership."""

    who: str
    start: float


@dataclass(frozen=True, slots=True)
class Vandal(Fault):
    """Somebody with the bucket's own key deletes or alters what lies there."""

    start: float
    pick: int
    alter: bool


@dataclass(frozen=True, slots=True)
class Liar(Fault):
    """A node lies all the time. Providers: ``empty`` (done without bytes), ``poison`` (the right header, other bytes),
    ``short`` (cut where the bucket lets it), ``stall`` (progress without bytes, told again and again).
    Readers: ``mute`` (never says got),
    ``slander`` (calls good objects bad), ``idle`` (asks and never reads)."""

    who: str
    how: str


@dataclass(frozen=True, slots=True)
class Reader:
    """A node that wants streams one after the other."""

    streams: tuple[int, ...]
    start: float
    in_order: bool
    pause: float  # seconds between two gets
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A world. ``streams``: how many objects each has. ``holders``: for each the objects it holds of each stream.
    ``quota`` in objects. ``bucket``: ``strict``, ``blind`` (shows and binds no digest) or ``careless`` (enforces
    nothing). ``pinned``: streams of class archive."""

    seed: int
    scenario: str
    hubs: int
    streams: tuple[int, ...]
    holders: tuple[tuple[frozenset[int], ...], ...]
    readers: tuple[Reader, ...]
    quota: int
    bucket: str
    pinned: tuple[int, ...] = ()
    faults: tuple[Fault, ...] = ()
    slowest: float = 0.4  # seconds for the upload of one object
    delays: float = field(default=0.003)  # of a transaction, seconds

    def of[F: Fault](self, kind: type[F]) -> list[F]:
        """The faults of one kind."""
        return [fault for fault in self.faults if type(fault) is kind]

    def describe(self) -> list[str]:
        """In lines, for people."""
        lines = [
            f"{self.hubs} hub(s), streams of {list(self.streams)} objects, quota {self.quota} objects, "
            f"bucket {self.bucket}" + (f", archive: streams {list(self.pinned)}" if self.pinned else "")
        ]
        for i, holder in enumerate(self.holders):
            lines.append(f"holder{i} holds {[sorted(held) for held in holder]}")
        for i, reader in enumerate(self.readers):
            order = "in order" if reader.in_order else "as it comes"
            lines.append(f"reader{i} wants streams {list(reader.streams)} from {reader.start:.2f} s, {order}")
        return lines + [str(fault) for fault in self.faults]


#: Names of the scenarios, and the kinds of faults each draws from.
SCENARIOS: Final[dict[str, tuple[str, ...]]] = {
    "calm": (),
    "network": ("lossy", "cut", "flap"),
    "crashes": ("crash", "stall", "lossy"),
    "bucket": ("storm", "lost", "late", "vandal", "crash", "calls"),
    "liars": ("liar", "lossy", "slow"),
    "quota": ("lossy", "late", "crash", "slow", "calls"),
    "eviction": ("calls", "storm", "lost", "stall"),
    "archive": ("lossy", "crash", "storm", "lost"),
    "revocation": ("revoke", "lossy", "flap"),
    "uneven": ("slow",),
    "everything": (
        "lossy", "cut", "flap", "crash", "stall", "storm", "lost", "late", "busy", "skew", "slow", "revoke", "liar",
        "vandal", "calls",
    ),
}  # fmt: skip
_MIX: Final = (
    "everything",
    "everything",
    "everything",
    "network",
    "crashes",
    "bucket",
    "liars",
    "quota",
    "eviction",
    "eviction",
    "archive",
    "revocation",
)


def draw(seed: int, scenario: str | None = None) -> Plan:
    """The plan of a seed: the same in every process."""
    random = Random(f"plan {seed}")
    name = scenario or ("calm" if seed % 50 == 0 else random.choice(_MIX))
    small = random.random() < 0.35
    count = 1 if small else random.choice((1, 1, 2, 3))
    streams = tuple(random.randint(1, 4 if small else 7 if count == 1 else 5) for _ in range(count))
    if name == "archive":
        streams = (random.randint(1, 3), random.randint(4, 7))
        count = 2
    if name == "eviction":
        streams = (random.randint(6, 8),)
        count = 1
    hubs = (
        1
        if name == "calm"
        else 2
        if name == "eviction"
        else random.choice((1, 2))
        if name in {"bucket", "quota"}
        else random.choice((1, 1, 2))
    )
    holders = random.choice((1, 2, 2, 3))
    held: list[tuple[frozenset[int], ...]] = []
    for i in range(holders):
        whole = i == 0 or random.random() < 0.6
        held.append(
            tuple(
                frozenset(range(n)) if whole else frozenset(x for x in range(n) if random.random() < 0.5)
                for n in streams
            )
        )
    readers = []
    for _ in range(4 if name == "eviction" else random.choice((1, 2, 2, 3, 4))):
        wanted = tuple(random.sample(range(count), random.randint(1, count)))
        again = wanted + wanted[:1] if random.random() < 0.2 else wanted
        readers.append(
            Reader(
                again, random.uniform(0.0, 4.0), random.random() < 0.4, random.uniform(0.0, 2.0), random.random() < 0.1
            )
        )
    total = sum(streams)
    quota = random.choice((4, 4, 5, 6, max(total, 4), total + 4)) if name not in {"quota", "eviction"} else 4
    if name == "archive":
        quota = streams[0] + 4
    bucket = random.choice(("strict", "strict", "strict", "blind", "careless"))
    pinned: tuple[int, ...] = ()
    if count > 1 and (name == "archive" or random.random() < 0.35):
        fits = [i for i, n in enumerate(streams) if n + 4 <= quota]
        pinned = tuple(fits[:1])
    nodes = [f"holder{i}" for i in range(holders)]
    asking = [f"reader{i}" for i in range(len(readers))]
    machines = [f"hub{i}" for i in range(hubs)] * 3 + nodes + asking
    faults = _faults(random, SCENARIOS[name], [f"hub{i}" for i in range(hubs)], nodes, asking, machines, bool(pinned))
    return Plan(
        seed=seed,
        scenario=name,
        hubs=hubs,
        streams=streams,
        holders=tuple(held),
        readers=tuple(readers),
        quota=quota,
        bucket=bucket,
        pinned=pinned,
        faults=tuple(faults),
        slowest=random.choice((0.2, 0.4, 1.0)),
        delays=random.choice((0.001, 0.003, 0.02)),
    )


def _span(random: Random) -> tuple[float, float]:
    start = random.uniform(0.0, DISTURBED * 0.6)
    return start, min(start + random.uniform(0.5, 8.0), DISTURBED)


def _faults(
    random: Random,
    kinds: Sequence[str],
    hubs: list[str],
    holders: list[str],
    readers: list[str],
    machines: list[str],
    archive: bool,
) -> list[Fault]:
    faults: list[Fault] = []
    rate = 1.0 if kinds == SCENARIOS["eviction"] else 0.75 if len(kinds) <= 5 else 0.35
    chosen = [kind for kind in kinds if random.random() < rate] or list(kinds[:1])
    for kind in chosen:
        for _ in range(random.choice((1, 1, 2, 3))):
            start, stop = _span(random)
            match kind:
                case "lossy":
                    rate = random.choice((0.05, 0.1, 0.3))
                    faults.append(Lossy(start, stop, rate, rate * random.random(), rate * random.random()))
                case "cut":
                    faults.append(Cut(random.choice(machines), start, min(stop, start + 5.0), random.random() < 0.5))
                case "flap":
                    faults.append(Flap(random.choice(holders), start, random.choice((0.0, 0.1, 0.3, 1.0))))
                case "crash":
                    call = random.choice((1, 2, 3, 5, 8, 13, 21, 34, 55))
                    down = random.choice((0.05, 0.5, 2.0, 5.0))
                    faults.append(Crash(random.choice(machines), start, call, random.random() < 0.5, down))
                case "stall":
                    faults.append(Stall(random.choice(machines), start, random.uniform(0.1, 0.8)))
                case "storm":
                    faults.append(Storm(start, stop, random.choice((0.2, 0.6, 1.0))))
                case "lost":
                    faults.append(LostAnswers(start, stop, random.choice((0.1, 0.3, 0.6))))
                case "late":
                    faults.append(LatePuts(start, stop, random.choice((0.3, 1.0)), random.uniform(0.1, 2.5)))
                case "calls":
                    faults.append(SlowCalls(start, stop, random.choice((0.1, 0.3)), random.choice((0.5, 1.0))))
                case "busy":
                    faults.append(BusyDatabase(start, stop, random.choice((0.05, 0.2)), random.random() < 0.5))
                case "skew":
                    faults.append(Skew(random.choice(hubs), random.uniform(-0.5, 0.5)))
                case "slow":
                    faults.append(SlowUploads(random.choice(holders), start, stop, random.choice((3.0, 10.0, 40.0))))
                case "revoke":
                    spare = [*holders[1:], *readers[1:]]
                    if spare:
                        faults.append(Revoke(random.choice(spare), start))
                case "vandal":
                    if not archive:
                        faults.append(Vandal(start, random.randrange(64), random.random() < 0.5))
                case "liar":
                    lies = [(who, how) for who in holders[1:] for how in ("empty", "poison", "short", "stall")]
                    lies += [(who, how) for who in readers[1:] for how in ("mute", "slander", "idle")]
                    if lies:
                        faults.append(Liar(*random.choice(lies)))
    return faults
