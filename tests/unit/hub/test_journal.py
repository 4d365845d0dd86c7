"""The journal of streams gathers like events into runs, within bounds."""

from __future__ import annotations

import pytest

from entrepot_hub.core.journal import (
    OPEN_OF_BOTH,
    OPEN_OF_CHANNEL,
    OPEN_OF_NODE,
    OPEN_OF_STREAM,
    QUIET,
    Event,
    EventKind,
    Gatherer,
)

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
        gatherer.add(event(1.0, 0, node=f"n{number}", kind=EventKind.ASKED))
    assert gatherer.lost == 5
    gatherer.add(Event("demo", b"\x01" * 32, EventKind.ASKED, 1.0))
    assert gatherer.lost == 5
    assert len(gatherer.changed(1.0)) == OPEN_OF_STREAM + 1
    gatherer.changed(3.0 + QUIET)
    gatherer.add(event(4.0 + QUIET, 0, node="later", kind=EventKind.ASKED))
    assert gatherer.lost == 5


def asked(number: int, *, channel: str = "demo", node: str = "bad", stream: bytes | None = None) -> Event:
    """A want of a stream of its own, or of a transfer of its own."""
    name = number.to_bytes(32)
    return Event(channel, stream or name, EventKind.ASKED, 1.0, node, None, name[:16] if stream is None else name)


def test_one_node_cannot_fill_the_journal() -> None:
    """Who names streams without end fills its own share; others of its channel are still written down."""
    gatherer = Gatherer()
    for number in range(OPEN_OF_NODE + 5):
        gatherer.add(asked(number))
    assert gatherer.lost == 5
    gatherer.add(asked(1, node="good"))
    assert gatherer.lost == 5


def test_one_channel_cannot_fill_the_journal() -> None:
    """A channel whose members name streams without end fills its own share, not that of others."""
    gatherer = Gatherer()
    for number in range(OPEN_OF_CHANNEL + 5):
        gatherer.add(asked(number, node=f"n{number // 1000}"))
    assert gatherer.lost == 5
    gatherer.add(asked(1, channel="other"))
    assert gatherer.lost == 5
    gatherer.changed(2.0 + QUIET, most=0)
    gatherer.add(asked(1, node="good"))
    assert gatherer.lost == 5, "what is over gives its share back"


def test_one_node_cannot_blind_a_stream() -> None:
    """Who asks for a stream under ever new transfers leaves room for what others do with it."""
    gatherer = Gatherer()
    for number in range(OPEN_OF_STREAM + 5):
        gatherer.add(asked(number, stream=STREAM))
    assert gatherer.lost == OPEN_OF_STREAM + 5 - OPEN_OF_BOTH
    gatherer.add(asked(1, node="good", stream=STREAM))
    assert gatherer.lost == OPEN_OF_STREAM + 5 - OPEN_OF_BOTH


@pytest.mark.parametrize("kind", [EventKind.UPLOADED, EventKind.FAILED, EventKind.EVICTED, EventKind.CONDEMNED])
def test_what_the_bucket_got_and_lost_is_never_crowded_out(kind: EventKind) -> None:
    """However full a stream's share is, who brought, spoiled or failed it is written down."""
    gatherer = Gatherer()
    for number in range(OPEN_OF_STREAM + 5):
        gatherer.add(event(1.0, 0, node=f"n{number}", kind=EventKind.ASKED))
    gatherer.add(event(1.0, 0, node="n1", kind=kind))
    assert [run.kind for run in gatherer.changed(1.0) if run.kind is not EventKind.ASKED] == [kind]
    assert gatherer.lost == 5


@pytest.mark.parametrize("kind", [EventKind.NO_ROOM, EventKind.GRANTED])
def test_an_object_that_is_refused_again_counts_once(kind: EventKind) -> None:
    """Objects that are proposed again and again are as many objects, of as many bytes, as there are."""
    gatherer = Gatherer()
    for at in range(20):
        gatherer.add(event(float(at), at % 3, kind=kind))
    (run,) = gatherer.changed(20.0)
    assert (run.first, run.last, run.count, run.bytes) == (0, 2, 3, 300)
    gatherer.add(event(21.0, 0, kind=kind))
    assert gatherer.changed(21.0) == [run]  # it lasts, and that is kept
    assert run.until == 21.0


def test_asking_and_stopping_take_turns() -> None:
    """A node that asks again after it stopped is told of twice, in that order; other nodes' runs go on."""
    gatherer = Gatherer()
    asked, waited, stopped = EventKind.ASKED, EventKind.WAITED, EventKind.STOPPED
    gatherer.add(event(1.0, kind=asked, node="other"))
    for at, kind in enumerate((asked, asked, waited, stopped, stopped, asked, waited, stopped), start=2):
        gatherer.add(event(float(at), kind=kind))
    gatherer.add(event(10.0, kind=asked, node="other"))
    runs = sorted(gatherer.changed(10.0), key=lambda run: run.at)
    assert [(run.kind, run.at, run.until) for run in runs if run.node == "lab"] == [
        (asked, 2.0, 3.0),
        (waited, 4.0, 4.0),
        (stopped, 5.0, 6.0),
        (asked, 7.0, 7.0),
        (waited, 8.0, 8.0),
        (stopped, 9.0, 9.0),
    ]
    assert [(run.at, run.until, run.count) for run in runs if run.node == "other"] == [(1.0, 10.0, 2)]
    assert gatherer.changed(11.0 + QUIET) == []
    assert not gatherer._open
    assert not gatherer._turns


def test_turns_without_end_are_bounded() -> None:
    """Who asks and stops without end has that counted, not kept, until it was quiet."""
    gatherer = Gatherer()
    for at in range(1000):
        gatherer.add(event(float(at) / 1000, kind=EventKind.STOPPED if at % 2 else EventKind.ASKED))
    assert gatherer.lost > 0
    assert len(gatherer.changed(1.0)) <= OPEN_OF_STREAM
