"""Hub, daemon, command, nats-server and S3 server as processes: each is killed and stopped at each point of a transfer,
objects are spoiled in the bucket behind the hub's back, clocks jump, and disks fill up."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.servers.faults import (
    BUCKET_FAULTS,
    CLOCK_FAULTS,
    DISK_FAULTS,
    POINTS,
    PROCESS_FAULTS,
    befall,
    settle,
    transfer,
)
from tests.servers.ground import Clock, Grounds
from tests.servers.nodes import elapsed

#: What every test run looks at; all else is for scripts/faults.
CHOSEN = {
    ("s3", "hub killed", "between upload and done"),
    ("s3", "hub stopped", "in an upload"),
    ("s3", "holder killed", "in an upload"),
    ("s3", "reader killed", "in a download"),
    ("s3", "S3 server killed", "in an upload"),
    ("s3", "object rots", "in an upload"),
    ("s3", "object replaced", "between upload and done"),
    ("disks", "hub's disk full", "in an upload"),
    ("disks", "reader's disk full", "in a download"),
}
#: What says nothing: a daemon that is down anyway, objects that are not there yet.
SENSELESS = {
    *itertools.product(("holder killed", "holder stopped", "holder's disk full"), ("at the seek",)),
    *itertools.product((name for name in BUCKET_FAULTS if name.startswith("object")), ("at the seek", "at the grant")),
}
#: Which faults are made on which ground.
GROUNDS: dict[str, Iterable[str]] = {
    "s3": [*PROCESS_FAULTS, *BUCKET_FAULTS],
    "folder": [*PROCESS_FAULTS, *(name for name in BUCKET_FAULTS if name.startswith("object"))],
    "clocks": CLOCK_FAULTS,
    "disks": DISK_FAULTS,
}


def cells() -> Iterator[Any]:
    """Every fault at every point."""
    for kind, faults in GROUNDS.items():
        for fault, point in itertools.product(faults, POINTS):
            if (fault, point) not in SENSELESS:
                marks = () if (kind, fault, point) in CHOSEN else (pytest.mark.soak,)
                name = f"{kind}-{fault}-{point}".replace(" ", "_")
                yield pytest.param(kind, fault, point, id=name, marks=marks)


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory, empty_home: Path) -> Iterator[Grounds]:
    """The grounds of this module."""
    found = Grounds(tmp_path_factory.mktemp, empty_home)
    yield found
    found.close()


@pytest.mark.blocking
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "fault", "point"), list(cells()))
def test_nothing_is_lost(kind: str, fault: str, point: str, grounds: Grounds, report: Callable[..., None]) -> None:
    """Whatever befalls a transfer and wherever, the file arrives, at the latest when the get is repeated after a stated
    reason; both stores verify and the bucket holds what the ledger says."""
    with grounds.use(kind) as ground:
        outcome = befall(ground, fault, point)
    told = f"{fault} (folder bucket)" if kind == "folder" else fault
    report("faults", fault=told, point=point, outcome=outcome.words, seconds=round(outcome.seconds, 1))
    report("recoveries", fault=told, point=point, seconds=round(outcome.seconds, 1))


@pytest.mark.blocking
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [600, pytest.param(-600, marks=pytest.mark.soak)])
def test_a_get_with_a_wrong_clock_is_told_so(
    seconds: int, grounds: Grounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., None]
) -> None:
    """A get on a machine whose clock is ten minutes off ends with ``clock-skew`` and a hint which way to set it; with
    the clock set right it completes."""
    with grounds.use("s3") as ground:
        work, clock = transfer(ground), Clock(tmp_path / "clock")
        clock.set(seconds)
        monkeypatch.setattr(ground.reader, "more", clock.environment)
        wrong = ground.reader.run("get", work.uri, "-o", work.copy, "--json")
        assert (wrong.code, wrong.error["kind"]) == (4, "clock-skew"), wrong
        assert "ahead" in wrong.error["hint"] if seconds > 0 else "behind" in wrong.error["hint"]
        assert abs(wrong.error["data"]["seconds"] - seconds) < 60
        assert not work.copy.exists()
        clock.set(0)
        began = time.monotonic()
        ground.reader.run("get", work.uri, "-o", work.copy, "--json").fine()
        passed = round(elapsed(began), 1)
        settle(work)
    told = f"clock of the get's machine {seconds // 60:+d} min"
    report(
        "faults", fault=told, point="before the want", outcome="ended: clock-skew; set right, completed", seconds=passed
    )
