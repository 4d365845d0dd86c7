"""Usage by day as a picture: blocks on a terminal, or a file by matplotlib where that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from entrepot.core.errors import Denied, InvalidInput
from entrepot.core.units import format_size

if TYPE_CHECKING:
    from entrepot_hub.services.usage import UsageReport

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_HEIGHT: Final = 4
_KINDS: Final = (".png", ".svg")
#: The widest plot, in columns; more days share columns.
_WIDEST: Final = 100


def bars(title: str, values: Sequence[int], *, first: str, last: str) -> list[str]:
    """Lines of a bar chart with a column for each value; the largest fills the height. Many values share columns, which
    then show the largest of theirs."""
    share = -(-len(values) // _WIDEST)
    columns = [max(values[at : at + share]) for at in range(0, len(values), share)]
    most = max(*columns, 1)
    wide = 2 if len(columns) <= _WIDEST // 2 else 1
    margin = 10
    lines = []
    for row in range(_HEIGHT - 1, -1, -1):
        label = format_size(most) if row == _HEIGHT - 1 else "0 B" if row == 0 else ""
        cells = "".join(_block(value, most, row) * wide for value in columns)
        lines.append(f"{label:>{margin}} ┤{cells}".rstrip())
    width = len(columns) * wide
    days = f"{first}{last:>{max(width - len(first), len(last) + 1)}}"
    return [f"{title} per day" if title != "stored" else "stored, mean of the day", *lines, f"{'':>{margin}}  {days}"]


def _block(value: int, most: int, row: int) -> str:
    # Eighths of a row, at least one for anything at all.
    eighths = max(round(value * _HEIGHT * 8 / most), 1) if value else 0
    return _BLOCKS[min(max(eighths - row * 8, 0), 8)]


def check_file(path: Path) -> None:
    """InvalidInput (also where matplotlib is missing) if nothing can be drawn into it."""
    if path.suffix.lower() not in _KINDS:
        raise InvalidInput(f"{path.name} is no file to draw into", hint="End its name in .png or .svg.")
    _figure()


def draw(report: UsageReport, path: Path) -> None:
    """Bytes stored, up and down, by day, into a PNG or SVG file. Denied (``unreadable``) if it cannot be written."""
    from matplotlib.ticker import MultipleLocator

    figure = _figure()(figsize=(10, 7), layout="constrained")
    days = [day.day for day in report.days]
    panels = (
        ("stored (mean of the day)", [day.stored for day in report.days], "#4c72b0"),
        ("up", [day.counts.uploaded for day in report.days], "#55a868"),
        ("down (signed for reading: an upper bound)", [day.counts.downloaded for day in report.days], "#c44e52"),
    )
    every = -(-len(days) // 16)
    axes: Any = figure.subplots(len(panels), 1, sharex=True)
    for axis, (title, values, color) in zip(axes, panels, strict=True):
        axis.bar(range(len(days)), values, color=color, width=0.8)
        axis.set_title(title, loc="left", fontsize=10)
        axis.yaxis.set_major_formatter(lambda value, _place: format_size(value))
        axis.set_ylim(bottom=0, top=max(*values, 1) * 1.1)
        axis.yaxis.set_major_locator(MultipleLocator(_step(max(*values, 1))))
        axis.margins(x=0.01)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    if max(day.stored for day in report.days) * 3 > report.quota:  # else it would flatten what there is
        axes[0].axhline(report.quota, color="#888888", linestyle="--", linewidth=1)
        axes[0].set_ylim(top=report.quota * 1.1)
        axes[0].set_title("stored (mean of the day; dashed: the quota now)", loc="left", fontsize=10)
    axes[-1].set_xticks(range(0, len(days), every), days[::every], rotation=45, ha="right")
    figure.suptitle(f"Channel {report.channel}, {report.first} to {report.last} (UTC)")
    try:
        figure.savefig(path)
    except OSError as error:
        raise Denied(f"{path} cannot be written: {error.strerror}", kind="unreadable", path=str(path)) from None


def _step(most: int) -> int:
    """The distance of marks on an axis of bytes: a power of two, three to six of them."""
    return 1 << max((most // 3).bit_length() - 1, 0)


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidInput(
            "matplotlib, which draws files, is not installed",
            kind="unsupported",
            hint="Install it with: pip install 'entrepot[hub,plot]'",
        ) from None
    return Figure
