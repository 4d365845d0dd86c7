"""Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere, nothing when quiet.

Both show what is done of what, the rate, the time left and what a transfer waits for. The figures come in by
:class:`Meter`, from whatever thread does the work.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final, Protocol, Self

from entrepot.cli.output import Output, ReaderGone, one_line, write
from entrepot.core.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

#: Seconds between two plain lines.
PLAIN_EVERY: Final = 5.0
#: The rate is that of so many seconds.
RATE_OVER: Final = 10.0
#: What is waited for is shown after so many seconds of waiting: every transfer waits for a moment.
PATIENCE: Final = 2.0
_REDRAWS: Final = 8  # per second
_SHORTEST_BAR: Final = 10  # cells
_LONGEST_BAR: Final = 40


class Report(Protocol):
    """What a service reports while it works: bytes, a total of 0 while that is not known, what it waits for (None:
    nothing), how many of the bytes were here before it began, and what is done, 0 to 1, where that is known without
    the total."""

    @property
    def done(self) -> int: ...  # noqa: D102

    @property
    def total(self) -> int: ...  # noqa: D102

    @property
    def note(self) -> str | None: ...  # noqa: D102

    @property
    def here(self) -> int: ...  # noqa: D102

    @property
    def share(self) -> float | None: ...  # noqa: D102


class Meter:
    """The figures of one piece of work. ``doing`` is a word such as ``fetching``; thread-safe.

    ``clock`` gives seconds that never go back.
    """

    def __init__(self, name: str, doing: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = one_line(name)
        self.doing = doing
        self.done = 0
        self.total: int | None = None
        self._clock = clock
        self._waits_for: str | None = None
        self._waits_since = 0.0
        self._here = 0
        self._guard = threading.Lock()
        self._share: float | None = None
        self._samples: deque[tuple[float, int, float]] = deque()

    def report(
        self,
        done: int,
        total: int | None = None,
        waits_for: str | None = None,
        here: int = 0,
        share: float | None = None,
    ) -> None:
        """So many bytes are done, of ``total`` where it is known; ``here`` of them before it began: they are no
        rate, whenever it turns out. ``share``: what is done, 0 to 1, where the total is not known."""
        with self._guard:
            now = self._clock()
            if here != self._here:
                more, self._here = here - self._here, here
                self._samples = deque((at, had + more, part) for at, had, part in self._samples)
            if not self._samples or done < self.done or (self.total is None and total is not None):
                # What was here before we began is no rate; it is not known before the total is.
                self._samples.clear()
                self._samples.append((now, done, share or 0.0))
            if self._waits_for is None or done != self.done:
                self._waits_since = now
            self.done, self._waits_for, self._share = done, waits_for, share
            self.total = total if total is not None else self.total
            if now - self._samples[-1][0] >= RATE_OVER / 50:
                self._samples.append((now, done, share or 0.0))
            self._forget(now)

    def rename(self, name: str) -> None:
        """From now on it is about this one."""
        self.name = one_line(name)

    def take(self, report: Report) -> None:
        """The same, from what a service reports."""
        self.report(report.done, report.total or None, report.note, report.here, report.share)

    @property
    def waits_for(self) -> str | None:
        """What is waited for, once that takes longer than a moment."""
        waits = self._waits_for
        return waits if waits and self._clock() - self._waits_since >= PATIENCE else None

    @property
    def rate(self) -> float:
        """Bytes per second over the last ten seconds; 0 before anything is known."""
        with self._guard:
            now = self._clock()
            self._forget(now)
            if not self._samples:
                return 0.0
            then, had, _ = self._samples[0]
            return max(self.done - had, 0) / (now - then) if now - then >= RATE_OVER / 50 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds until the end at this rate; None where nothing can be said."""
        rate, total = self.rate, self.total
        if total is not None:
            return None if rate <= 0 else max(total - self.done, 0) / rate
        with self._guard:
            now, share = self._clock(), self._share
            if share is None or not self._samples:
                return None
            then, _, had = self._samples[0]
            return (1 - share) * (now - then) / (share - had) if share > had else None

    @property
    def share(self) -> float | None:
        """What is done, 0 to 1; None where that is not known. Nothing of nothing is all of it."""
        if self.total is None:
            return None if self._share is None else min(self._share, 1.0)
        return min(self.done / self.total, 1.0) if self.total else 1.0

    def figures(self) -> list[str]:
        """From the most to the least important: percent, sizes, rate, time left."""
        share, left = self.share, self.left
        sizes = format_size(self.done)
        if self.total is not None:
            sizes += f" / {format_size(self.total)}"
        parts = [sizes]
        if share is not None:
            parts.insert(0, f"{int(share * 100)}%")
        if self.rate > 0:
            parts.append(format_rate(self.rate))
        if left is not None and left > 0:
            parts.append(f"ETA {format_duration(left)}")
        return parts

    def _forget(self, now: float) -> None:
        while len(self._samples) > 1 and self._samples[1][0] <= now - RATE_OVER:
            self._samples.popleft()


class Display(Protocol):
    """Shows the meters that it is given until it is left."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def meter(self, name: str, doing: str) -> Meter:
        """A meter that is shown from now on, in place of the one before."""
        ...


def display(output: Output) -> Display:
    """The display that fits: bars where stderr is a terminal that can redraw, plain lines elsewhere."""
    if output.quiet:
        return Silence()
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True, highlight=False, markup=False)
        if console.is_terminal and not console.is_dumb_terminal:
            return Bars(console, output)
    return Lines()


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def meter(self, name: str, doing: str) -> Meter:
        """A meter that nobody looks at."""
        return Meter(name, doing)


class Lines:
    """A plain line every ``every`` seconds, for logs; also while nothing moves, to say what is waited for."""

    def __init__(self, every: float = PLAIN_EVERY) -> None:
        self._every = every
        self._meter: Meter | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def meter(self, name: str, doing: str) -> Meter:
        """A meter that is told of from now on."""
        self._meter = Meter(name, doing)
        return self._meter

    def _run(self) -> None:
        while not self._over.wait(self._every):
            meter = self._meter
            if meter is not None:
                try:
                    write(sys.stderr, line_of(meter))
                except ReaderGone:
                    return  # nobody reads it; the work goes on


def line_of(meter: Meter) -> str:
    """The plain line: ``big.nwb: fetching, 45%, 1.2 GiB / 2.7 GiB, 34 MiB/s, ETA 45s; waiting: ...``."""
    text = f"{meter.name}: {', '.join([meter.doing, *meter.figures()])}"
    return f"{text}; {one_line(meter.waits_for)}" if meter.waits_for else text


class Bars:
    """Two or three lines at the bottom of the terminal, drawn again several times a second and gone at the
    end: the name; bar and figures; what is waited for. Whatever does not fit a narrow terminal is left out,
    the least important first. What ``output`` says meanwhile stands above them.
    """

    def __init__(self, console: Console, output: Output | None = None) -> None:
        self._console = console
        self._output = output
        self._meter: Meter | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(
            get_renderable=self._draw,
            console=self._console,
            refresh_per_second=_REDRAWS,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=True,
        )
        self._live.start()
        if self._output is not None:
            self._output.go_above(self._show, results=_same_terminal(self._console.file, sys.stdout))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._output is not None:
            self._output.go_above(None)
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def meter(self, name: str, doing: str) -> Meter:
        """A meter that is drawn from now on."""
        self._meter = Meter(name, doing)
        return self._meter

    def _show(self, line: str) -> None:
        """One line of its own, however long: only the terminal breaks it. Bytes that are no text show as such."""
        from rich.text import Text

        encoding = self._console.encoding
        shown = line.encode(encoding, "backslashreplace" if encoding == "ascii" else "surrogateescape")
        self._console.print(Text(shown.decode(encoding, "replace")), soft_wrap=True)

    def _draw(self) -> RenderableType:
        from rich.text import Text

        meter = self._meter
        if meter is None:
            return Text("")
        return drawing(meter, self._console.width, ascii_only=not self._console.encoding.startswith("utf"))


def _same_terminal(first: IO[str], second: IO[str]) -> bool:
    try:
        return (
            first.isatty() and second.isatty() and os.fstat(first.fileno()).st_rdev == os.fstat(second.fileno()).st_rdev
        )
    except (OSError, ValueError):
        return False  # one of them is closed, or no file


def drawing(meter: Meter, width: int, *, ascii_only: bool = False) -> RenderableType:
    """The lines for a terminal of ``width`` cells, none of them wider."""
    from rich.cells import cell_len
    from rich.text import Text

    room = max(width - 1, 1)
    head = f"{meter.doing} "
    if room < cell_len(head) + 12:
        head = ""
    lines = [Text(head + shorten(meter.name, room - cell_len(head)), no_wrap=True, overflow="ellipsis")]
    figures = meter.figures()
    while len(figures) > 1 and cell_len("  ".join(["", *figures])) > room:
        figures.pop()
    text = "  ".join(["", *figures])
    rest = room - cell_len(text) - 2
    bar = Text("", no_wrap=True, overflow="ellipsis")
    share = meter.share
    if share is not None and rest >= _SHORTEST_BAR:
        cells = min(rest, _LONGEST_BAR)
        full = int(share * cells)
        on, off = ("#", "-") if ascii_only else ("━", "─")
        bar.append("  ").append(on * full, style="green").append(off * (cells - full), style="dim")
    bar.append(text)
    lines.append(bar)
    if meter.waits_for:
        waits = one_line(meter.waits_for)
        lines.append(Text(f"  {waits}", style="yellow", no_wrap=True, overflow="ellipsis"))
    for line in lines:
        line.truncate(room, overflow="ellipsis")
    return Text("\n").join(lines)


def shorten(name: str, cells: int) -> str:
    """``name`` in so many cells: the middle goes, so that the beginning and the suffix stay."""
    from rich.cells import cell_len

    if cell_len(name) <= cells:
        return name
    if cells < 5:
        return _cut(name, cells)
    tail_cells = (cells - 1) // 2
    return f"{_cut(name, cells - 1 - tail_cells)}…{_cut(reversed(name), tail_cells)[::-1]}"


def _cut(characters: Iterable[str], cells: int) -> str:
    from rich.cells import cell_len

    kept, used = [], 0
    for one in characters:
        used += cell_len(one)
        if used > cells:
            break
        kept.append(one)
    return "".join(kept)
