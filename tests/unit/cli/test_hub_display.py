"""Tables of the hub's commands, as wide as what they are printed to."""

from __future__ import annotations

import io
import re
import sys

import pytest

from entrepot_hub.cli.display import print_table

HEADS = ("day", "stored", "up", "down", "writes", "looks", "deletes", "evicted", "cost USD")
ROW = ("2026-11-21", "48.0 MiB", "48.0 MiB", "96.0 MiB", 12, 300, 4, "12.0 MiB", "0.0012")
KEY = "ab" * 70


class Screen(io.StringIO):
    """A standard output that is a terminal, or not."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eighty columns without colours."""
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return monkeypatch


def shown(patch: pytest.MonkeyPatch, heads: tuple[str, ...], *rows: tuple[object, ...], terminal: bool) -> list[str]:
    screen = Screen(terminal=terminal)
    patch.setattr(sys, "stdout", screen)
    print_table(heads, rows, empty="nothing")
    return [re.sub(r"\x1b\[\d*m", "", line).rstrip() for line in screen.getvalue().splitlines()]


@pytest.mark.parametrize("terminal", [True, False])
def test_short_cells_are_never_broken(narrow: pytest.MonkeyPatch, terminal: bool) -> None:
    """Dates and sizes stand in one line, whether it is eighty columns or a pipe."""
    lines = shown(narrow, HEADS, ROW, terminal=terminal)
    assert lines[-1].replace(" MiB", "_MiB").split() == [str(cell).replace(" MiB", "_MiB") for cell in ROW]
    if terminal:
        assert max(map(len, lines)) <= 80
        assert "deletes" in lines[1]


def test_a_cell_moves_no_cursor(narrow: pytest.MonkeyPatch) -> None:
    """What strangers name themselves is shown as it is spelt, and on one line."""
    lines = shown(narrow, ("node", "bytes"), ("\x1b[2Jlab\nroot", "0 B"), terminal=False)
    assert lines[-1] == "\\x1b[2Jlab root   0 B"


def test_long_cells_are_folded_on_a_terminal_alone(narrow: pytest.MonkeyPatch) -> None:
    """A key is folded to the terminal's width, with nothing of it lost; into a pipe it goes whole."""
    rows = ((KEY, "1.0 MiB"), ("a", "0 B"))
    assert any(line.startswith(KEY + "   1.0 MiB") for line in shown(narrow, ("key", "bytes"), *rows, terminal=False))
    lines = shown(narrow, ("key", "bytes"), *rows, terminal=True)
    assert max(map(len, lines[2:])) <= 80
    assert "".join(line.split()[0] for line in lines[2:-1]) == KEY


def test_what_cannot_fit_is_not_cut_off(narrow: pytest.MonkeyPatch) -> None:
    """More columns than a terminal has room for run over its edge."""
    row = tuple(f"{'x' * 20}{number}" for number in range(6))
    assert shown(narrow, tuple("abcdef"), row, terminal=True)[-1].split() == list(row)
