"""The journal of streams gathers like events into runs, within bounds."""

from __future__ import annotations

from entrepot_hub.core.journal import OPEN_OF_STREAM, QUIET, Event, EventKind, Gatherer

STREAM = b"\xff" * 32


def event(at: float, number: int | None = None, *, node: str = "lab", kind: EventKind = EventKind.UPLOADED) -> Event:
    return Event("demo", STREAM, kind, at, node, number, bytes=100, seconds=0.5)


def test_like_events_are_one_run() -> None:
    """Objects uploaded one after the other by the same node are one run, from the first to the last."""
    gatherer = Gatherer()
    for number in (3, 1, 2):
        gatherer.add(event(10.0 + number, number))
    (run,) = gatherer.changed(14.0)
    assert (run.first, run.last, run.count, run.bytes, run.seconds) == (1, 3, 3, 300, 1.5)
    assert (run.at, run.until) == (11.0, 13.0)


def test_what_differs_is_another_run() -> None:
    """Another node, kind or reason begins another run."""
    gatherer = Gatherer()
    gatherer.add(event(1.0, 0))
    gatherer.add(event(1.0, 0, node="office"))
    gatherer.add(event(1.0, 0, kind=EventKind.READ))
    gatherer.add(Event("demo", STREAM, EventKind.UPLOADED, 1.0, "lab", 0, detail=(("reason", "slow"),)))
    assert len(gatherer.changed(2.0)) == 4


def test_an_object_is_read_once() -> None:
    """A node that says again that it has read an object has not read another one."""
    gatherer = Gatherer()
    for number in (0, 1, 0, 1):
        gatherer.add(event(1.0, number, kind=EventKind.READ))
    (run,) = gatherer.changed(2.0)
    assert (run.first, run.last, run.count) == (0, 1, 2)


def test_silence_ends_a_run() -> None:
    """After a while of silence like events are a second run, and the first one is kept as it was."""
    gatherer = Gatherer()
    gatherer.add(event(1.0, 0))
    first = gatherer.changed(2.0)
    gatherer.add(event(2.0 + QUIET, 1))
    (second,) = gatherer.changed(3.0 + QUIET)
    assert [run.last for run in first] == [0]
    assert second is not first[0]


def test_only_what_is_new_is_given_out() -> None:
    """A run is given out again when something was added to it, and at its end no more than once."""
    gatherer = Gatherer()
    gatherer.add(event(1.0, 0))
    (run,) = gatherer.changed(1.0)
    assert gatherer.changed(1.0) == []
    gatherer.add(event(2.0, 1))
    assert gatherer.changed(2.0) == [run]
    assert gatherer.changed(3.0 + QUIET) == []


def test_what_could_not_be_kept_is_given_out_again() -> None:
    """A failed write loses nothing, whether the run is over meanwhile or not."""
    gatherer = Gatherer()
    gatherer.add(event(1.0, 0))
    runs = gatherer.changed(1.0)
    gatherer.failed(runs)
    assert gatherer.changed(2.0) == runs
    gatherer.changed(3.0 + QUIET)  # it is over now
    gatherer.failed(runs)
    assert gatherer.changed(4.0 + QUIET) == runs


def test_a_stream_has_so_many_open_runs() -> None:
    """Who makes up reasons or names without end has them counted, not kept; other streams are not touched."""
    gatherer = Gatherer()
    for number in range(OPEN_OF_STREAM + 5):
        gatherer.add(event(1.0, 0, node=f"n{number}"))
    assert gatherer.lost == 5
    gatherer.add(Event("demo", b"\x01" * 32, EventKind.ASKED, 1.0))
    assert gatherer.lost == 5
    assert len(gatherer.changed(1.0)) == OPEN_OF_STREAM + 1
    gatherer.changed(3.0 + QUIET)
    gatherer.add(event(4.0 + QUIET, 0, node="later"))
    assert gatherer.lost == 5
