"""What commands print: JSON for programs, tables for people, errors on the other channel."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from entrepot.core.errors import EntrepotError, to_wire
from entrepot.core.units import spell_duration

if TYPE_CHECKING:
    from entrepot_hub.services.diagnosis import Check


def print_json(value: object) -> None:
    """One line of JSON on the standard output."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def print_json_with(value: object, error: EntrepotError | None) -> None:
    """The same of a record and, beside its fields, the error that goes with it."""
    import msgspec

    fields = msgspec.to_builtins(value)
    print_json(fields if error is None else {**fields, "error": to_wire(error)})


#: Characters of a cell that is never broken.
_SHORT = 24
#: How cells are padded for so many characters between two columns; the box draws one of them.
_PADDINGS = {3: (0, 1, 0, 1), 2: (0, 1, 0, 0), 1: (0, 0, 0, 0)}


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table for people; ``empty`` is said when it has no rows. Nothing in it is taken for markup or moves the cursor.
    Short cells are never broken, long ones only on a terminal that is too narrow for them."""
    lines = [[one_line(str(cell)) for cell in row] for row in rows]
    if not lines:
        say(empty)
        return
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    console = _console()
    columns = list(zip(*lines, strict=True))
    widths = [max(cell_len(cell) for cell in (head, *cells)) for head, cells in zip(heads, columns, strict=True)]
    gap, gaps = max(_PADDINGS), len(widths) - 1
    if sys.stdout.isatty() and sum(widths) + gap * gaps > console.width:
        for gap in (2, 1):
            widths = _narrowed(heads, columns, console.width - gap * gaps)
            if sum(widths) + gap * gaps <= console.width:
                break
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=_PADDINGS[gap])
    for head, width in zip(heads, widths, strict=True):
        table.add_column(head, overflow="fold", width=width)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    # What does not fit even so runs over the terminal's edge: nothing of it is cut off.
    console.width = max(console.width, sum(widths) + gap * gaps)
    console.print(table)


def _narrowed(heads: Sequence[str], columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths of columns for ``room`` characters in all. Heads are broken at their blanks, cells of up to
    ``_SHORT`` characters never; the longest give way first."""
    from rich.cells import cell_len

    widths, least = [], []
    for head, cells in zip(heads, columns, strict=True):
        word = max((cell_len(word) for word in head.split()), default=1)
        cell = max(cell_len(cell) for cell in cells)
        widths.append(max(word, cell, 1))
        least.append(max(word, min(cell, _SHORT), 1))
    while sum(widths) > room:
        over = [at for at, width in enumerate(widths) if width > least[at]]
        if not over:
            break
        widths[max(over, key=widths.__getitem__)] -= 1
    return widths


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line."""
    pairs = [(name, str(value)) for name, value in fields]
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        say(f"{name:<{width}}  {value}")


def say(text: str = "") -> None:
    """A line for people on the standard output."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """A remark for people that is no part of the answer."""
    sys.stderr.write(text + "\n")


#: How an outcome is shown to people: a mark for the eye, and its colour on a terminal.
_MARKS = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "unknown": ("?", "cyan"),
    "warning": ("warn", "yellow"),
    "failure": ("FAIL", "bold red"),
}


def print_checks(checks: Iterable[Check]) -> None:
    """What a doctor found: a line each, and under it what mends it."""
    from rich.text import Text

    console = _console()
    for check in checks:
        mark, style = _MARKS[check.outcome]
        line = Text(f"{mark:<5}", style=style)
        line.append(f"{check.name:<14}", style="bold").append(one_line(check.text), style="default")
        console.print(line)
        if check.mend:
            console.print(Text(f"      {one_line(check.mend)}", style="dim"))


@contextmanager
def progress(what: str, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A spinner on the standard error while something takes its time, if a person is looking there; what is given to
    the function stands beside it."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True, markup=False, highlight=False).status(what) as status:
        yield lambda text: status.update(f"{what}: {text}")


#: What the hub's admin can do about errors that nodes meet too, and that so bear no hint for either.
_HINTS = {"no-such-channel": "See which there are: entrepot-hub channel list"}


def print_error(error: EntrepotError, *, as_json: bool) -> None:
    """One sentence and, in another line, the hint, on the standard error; in JSON all that the error holds, on the
    standard output."""
    if as_json:
        print_json({"error": to_wire(error)})
        return
    note(f"entrepot-hub: {one_line(error.message)}")
    if hint := error.hint or _HINTS.get(error.kind):
        note(f"  {one_line(hint)}")


def one_line(text: str) -> str:
    """``text`` on one line and without control characters: it may hold a stranger's words."""
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)


def when(at: float | None) -> str:
    """A point in time, for people: local, to the minute."""
    return "never" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def exactly(at: float) -> str:
    """A point in time to the second, as an ISO date in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def until(at: float) -> str:
    """How long until then: ``in 7 days``, ``over``."""
    left = at - time.time()
    return f"in {spell_duration(left)}" if left > 0 else "over"


def used(charged: int, quota: int, held: int, held_until: float | None) -> str:
    """How much of a quota is used, in bytes, and what of that is held back after a rebuilding, and until when."""
    from entrepot.core.units import format_size

    text = f"{format_size(charged)} of {format_size(quota)}"
    return f"{text}, {held_back(held, held_until)}" if held else text


def held_back(held: int, held_until: float | None) -> str:
    """So many bytes are held back after a rebuilding, and until when."""
    from entrepot.core.units import format_size

    ends = "" if held_until is None else f" until {when(held_until)}"
    return f"{format_size(held)} held back{ends} for uploads from before the rebuild"


def _console() -> Any:
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())
