"""Progress: the figures, the plain line, the drawing for a terminal."""

from __future__ import annotations

import io
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from entrepot.cli.output import Output
from entrepot.cli.progress import Bars, Lines, Meter, Silence, display, drawing, line_of, shorten
from entrepot.cli.transfer import summary, summary_of_several
from entrepot.core.identifiers import StreamId
from entrepot.services.node import Got

LONG = "größe-der-sehr-langen-aufnahme-vom-dritten-versuchstag-mit-allen-kanälen-und-zusätzen.nwb"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Reported:
    done: int
    total: int
    note: str | None
    here: int = 0
    share: float | None = None


def meter_at(done: int, total: int | None, *, name: str = "big.nwb", waits_for: str | None = None) -> Meter:
    """A meter that began four seconds ago and has moved nothing for the last two."""
    clock = Clock()
    meter = Meter(name, "fetching", clock)
    meter.report(0, total)
    clock.now += 2.0
    meter.report(done, total, waits_for)
    clock.now += 2.0
    return meter


def drawn(meter: Meter, width: int, *, ascii_only: bool = False) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False, legacy_windows=False)
    console.print(drawing(meter, width, ascii_only=ascii_only))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def test_figures_tell_share_sizes_rate_and_time_left() -> None:
    """From what came in four seconds follow percent, sizes, rate and the time left."""
    assert meter_at(100 << 20, 400 << 20).figures() == ["25%", "100 MiB / 400 MiB", "25.0 MiB/s", "ETA 12s"]


def test_a_service_reports_zero_for_an_unknown_total() -> None:
    """A total of zero is no total: nothing is said of a share or an end."""
    meter = Meter("a", "fetching", Clock())
    meter.take(Reported(0, 0, "nobody offers it yet"))
    assert meter.figures() == ["0 B"]


def test_what_is_waited_for_is_told_after_a_moment() -> None:
    """A wait of less than two seconds is not worth a word; a longer one is, until a byte comes."""
    clock = Clock()
    meter = Meter("a", "fetching", clock)
    meter.take(Reported(0, 100, "nobody offers it yet"))
    assert meter.waits_for is None
    clock.now += 1
    meter.take(Reported(0, 100, "lab-3 is uploading it"))
    clock.now += 1
    assert meter.waits_for == "lab-3 is uploading it"
    meter.take(Reported(10, 100, "lab-3 is uploading it"))
    assert meter.waits_for is None
    clock.now += 3
    assert meter.waits_for == "lab-3 is uploading it"
    meter.take(Reported(10, 100, None))
    assert meter.waits_for is None


def test_what_was_here_before_is_no_rate() -> None:
    """A resumed transfer begins at what is there, and its rate counts only what came since."""
    clock = Clock()
    meter = Meter("a", "fetching", clock)
    meter.report(900, 1000)
    clock.now += 1
    meter.report(910, 1000)
    assert meter.rate == pytest.approx(10)
    assert meter.left == pytest.approx(9)


def test_what_was_here_is_no_rate_where_it_is_told_late() -> None:
    """Before the total is known nothing is known of what is here, and it is no rate when it turns up."""
    clock = Clock()
    meter = Meter("a", "fetching", clock)
    meter.take(Reported(0, 0, "asking"))
    clock.now += 1
    meter.take(Reported(900, 1000, None))
    assert meter.rate == 0
    clock.now += 1
    meter.take(Reported(910, 1000, None))
    assert meter.rate == pytest.approx(10)
    assert meter.left == pytest.approx(9)


def test_what_was_here_is_no_rate_though_the_total_was_known() -> None:
    """Where a file goes on turns out after its size: the bytes that need not be read again are done, but no rate."""
    clock = Clock()
    meter = Meter("a", "reading", clock)
    meter.take(Reported(0, 1000, None))
    clock.now += 1
    meter.take(Reported(900, 1000, None, here=900))
    assert meter.rate == 0
    clock.now += 1
    meter.take(Reported(920, 1000, None, here=900))
    assert meter.rate == pytest.approx(10)
    assert meter.left == pytest.approx(8)
    assert meter.share == pytest.approx(0.92)


def test_a_share_stands_in_for_the_total() -> None:
    """Of many files whose bytes nobody knows, the share of the files gives percent and time left."""
    clock = Clock()
    meter = Meter("a", "fetching", clock)
    meter.take(Reported(0, 0, None, share=0.0))
    clock.now += 2
    meter.take(Reported(2048, 0, None, share=0.25))
    assert meter.figures() == ["25%", "2.0 KiB", "1.0 KiB/s", "ETA 6s"]


@pytest.mark.parametrize(
    ("length", "fetched", "text"),
    [
        (0, 0, "0 B: the file is empty."),
        (2048, 0, "2.0 KiB, all of it was here already."),
        (2048, 1024, "1.0 KiB in 2s, 512 B/s; 1.0 KiB were here already."),
    ],
)
def test_the_summary_of_a_get(length: int, fetched: int, text: str) -> None:
    """What was fetched now and what was here are told apart, and an empty file is just that."""
    got = Got(Path("a"), StreamId.parse("ff" * 32), length, "copied", fetched, 0)
    assert summary(got, 2.0) == text


@pytest.mark.parametrize(
    ("files", "failed", "text"),
    [
        ([(1, 1024, 1024), (2, 1024, 1024)], 0, "2 files, 2.0 KiB fetched in 2s, 1.0 KiB/s."),
        ([(1, 1024, 1024), (1, 1024, 0), (2, 0, 0)], 1, "3 files, 1.0 KiB fetched in 2s, 512 B/s; 1 failed."),
        (
            [(1, 1024, 1024), (2, 4096, 0), (3, 4096, 0)],
            0,
            "3 files, 1.0 KiB fetched in 2s, 512 B/s; 2 of them were here already, 8.0 KiB.",
        ),
        (
            [(1, 1024, 1024), (2, 4096, 0), (3, 4096, 1024)],
            0,
            "3 files, 2.0 KiB fetched in 2s, 1.0 KiB/s; 1 of them was here already, 4.0 KiB; "
            "3.0 KiB of the others were here already.",
        ),
        ([(1, 1024, 0), (2, 1024, 0)], 0, "2 files; all of them were here already, 2.0 KiB."),
        ([(1, 1024, 0)], 0, "1 file; all of it was here already, 1.0 KiB."),
        ([], 3, "0 files; 3 failed."),
        ([(1, 0, 0)], 0, "1 file."),
    ],
)
def test_the_summary_of_several(files: list[tuple[int, int, int]], failed: int, text: str) -> None:
    """Amount and rate are of what was fetched now; what was here stands apart, and an empty file and a second one of
    what was fetched now are no part of that."""
    found = [
        Got(Path("a"), StreamId(b"\xff" + number.to_bytes(31)), length, "moved", fetched, 0)
        for number, length, fetched in files
    ]
    assert summary_of_several(found, failed, 2.0) == text


def test_the_rate_forgets() -> None:
    """A transfer that stopped has no rate left after a while, and no time left is claimed."""
    clock = Clock()
    meter = Meter("a", "fetching", clock)
    meter.report(0, 1000)
    for _ in range(5):
        clock.now += 1
        meter.report(meter.done + 100, 1000)
    assert meter.rate == pytest.approx(100)
    clock.now += 60
    assert meter.rate == 0
    assert meter.left is None
    assert meter.figures() == ["50%", "500 B / 1000 B"]


def test_a_second_pass_starts_the_rate_anew() -> None:
    """When what is done falls back, the rate is not negative."""
    meter = meter_at(1000, 1000)
    meter.report(0, 1000)
    assert meter.rate == 0


def test_an_empty_stream_is_done() -> None:
    """Nothing of nothing is all of it."""
    meter = Meter("a", "reading", Clock())
    meter.report(0, 0)
    assert meter.share == 1.0


def test_the_share_is_rounded_down() -> None:
    """No transfer is at 100% before it is there."""
    assert meter_at(9999, 10000).figures()[0] == "99%"


def test_a_plain_line_says_everything_on_one_line() -> None:
    """The line for logs has name, work, figures and what is waited for, whatever a name holds."""
    meter = meter_at(1 << 20, 4 << 20, name="a\nb\x1b[31m.nwb", waits_for="seeking\na holder")
    assert line_of(meter) == (
        "a b\\x1b[31m.nwb: fetching, 25%, 1.0 MiB / 4.0 MiB, 256 KiB/s, ETA 12s; seeking a holder"
    )


@pytest.mark.parametrize("name", ["big.nwb", LONG, "大きなファイル" * 12 + ".h5", "e\u0301" * 60, "🧪" * 50])
@pytest.mark.parametrize("width", [1, 4, 10, 20, 38, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    """Long, wide and combining names fit every terminal, on lines of their own."""
    meter = meter_at(50 << 20, 200 << 20, name=name, waits_for="node lab-3 is uploading, " * 10)
    lines = drawn(meter, width)
    assert len(lines) == 3
    assert all(cell_len(line) <= max(width - 1, 1) for line in lines)


def test_a_wide_terminal_shows_everything() -> None:
    """With room there are the whole name, the bar and all figures."""
    name, bar = drawn(meter_at(50 << 20, 200 << 20, name=LONG), 120)
    assert name == f"fetching {LONG}"
    assert bar.strip() == "━" * 10 + "─" * 30 + "  25%  50.0 MiB / 200 MiB  12.5 MiB/s  ETA 12s"


def test_a_narrow_terminal_keeps_what_matters_most() -> None:
    """Without room the bar goes first, then the time left and the rate; the percent stays."""
    meter = meter_at(50 << 20, 200 << 20)
    assert drawn(meter, 50)[1] == "  25%  50.0 MiB / 200 MiB  12.5 MiB/s  ETA 12s"
    assert drawn(meter, 40)[1] == "  25%  50.0 MiB / 200 MiB  12.5 MiB/s"
    assert drawn(meter, 12)[1] == "  25%"


def test_a_terminal_without_unicode_gets_a_plain_bar() -> None:
    """Where the encoding has no lines the bar is made of signs and dashes."""
    assert "##########" + "-" * 30 in drawn(meter_at(50 << 20, 200 << 20), 120, ascii_only=True)[1]


@given(st.text(max_size=80), st.integers(0, 60))
def test_a_shortened_name_fits(name: str, cells: int) -> None:
    """A name in so many cells takes no more of them, and one that fits stays as it is."""
    short = shorten(name, cells)
    assert cell_len(short) <= cells
    if cell_len(name) <= cells:
        assert short == name


def test_a_shortened_name_keeps_both_ends() -> None:
    """Beginning and suffix of a long name can be read."""
    assert shorten("recording-of-the-third-day.nwb", 15) == "recordi…day.nwb"


def test_nothing_is_shown_when_quiet() -> None:
    """A quiet command has a display that shows nothing."""
    assert isinstance(display(Output(quiet=True)), Silence)


def test_a_log_gets_lines() -> None:
    """Where stderr is no terminal there are plain lines, no bars."""
    assert isinstance(display(Output()), Lines)


def test_lines_come_while_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain line is told again and again without any report: the log shows what is waited for."""
    told = threading.Event()

    class Log(io.StringIO):
        lines = 0

        def write(self, text: str) -> int:
            self.lines += text.count("waiting for a holder")
            if self.lines >= 2:
                told.set()
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", Log())
    with Lines(every=0.01) as shown:
        shown.meter("waiting for a holder", "fetching").report(0, 100)
        assert told.wait(20)


def test_bars_leave_nothing_behind() -> None:
    """When the work is over the bar is gone and the cursor is back."""
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=10)
    with Bars(console) as shown:
        shown.meter("big.nwb", "fetching").report(10, 100)
    file = console.file
    assert isinstance(file, io.StringIO)
    text = file.getvalue()
    assert "big.nwb" in text
    assert text.rindex("\x1b[?25h") > text.rindex("big.nwb")
    assert text.rindex("\x1b[2K") > text.rindex("big.nwb")
