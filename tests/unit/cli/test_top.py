"""``entrepot-hub top`` on screens of several sizes, and how it is ended."""

from __future__ import annotations

import asyncio
import io
import os
import re
import sys
import termios

import pytest
from rich.console import Console

from entrepot_hub.cli.top import Look, _document, _print, _quitting, _screen
from entrepot_hub.services.overview import ChannelTop, NodeTop, SumsView, TopView, UploadTop

MIB = 1 << 20
MANY = SumsView(
    messages=123_456, refused=12_345, uploaded=987 * MIB, downloaded=1_234 * MIB, grants=999, failed=77,
    requests=500, request_seconds=61.5,
)  # fmt: skip


def view(at: float, sums: SumsView, held: int = 0) -> TopView:
    """A busy hub."""
    channel = ChannelTop(
        name="neurophysiology", quota=987 * MIB, stored=654 * MIB, reserved=210 * MIB, held=held, wants=1_234,
        uploading=88, bucket="bucket-unreachable", sums=sums,
    )  # fmt: skip
    upload = UploadTop(
        channel="neurophysiology", stream="fc" + "ab" * 31, object=12_345, node="N" * 56, name="workstation-in-the-lab",
        sent=3 * MIB, size=16 * MIB, seconds=123.4, rate=1.5 * MIB, lease=12.3, transfer="0123456789abcdef",
    )  # fmt: skip
    return TopView(
        hub="H", version="0.1.0", instance="i", at=at, started=0.0, sums=sums, handled=1, refused=1, dropped=12_345,
        waiting=1_000, at_work=32, rounds=1_234, sessions=2_345, tasks=345, mistakes=0, database_waiting=12, lag=0.0123,
        nats=True, checks={"nats": "ok"}, channels=[channel] * 30, uploads=[upload] * 30,
        nodes=[NodeTop(node="N" * 56, name="workstation-in-the-lab", online=True, sums=sums)] * 10,
    )  # fmt: skip


LOOK = Look(view(1_002.0, MANY), view(1_000.0, SumsView()))


def drawn(width: int, height: int) -> list[str]:
    """The screen as lines, blanks at their ends left out."""
    console = Console(width=width, height=height, file=io.StringIO(), markup=False, highlight=False, emoji=False)
    with console.capture() as text:
        console.print(_screen(LOOK, width, height))
    return [line.rstrip() for line in text.get().splitlines()]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 50)])
def test_nothing_but_names_is_cut(width: int, height: int) -> None:
    """All fits the screen: columns are left out where there is no room for them, and no number or head is cut."""
    lines = drawn(width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines if re.match("channel |slowest |busiest ", line)] == [
        "channel", "slowest", "busiest",
    ]  # fmt: skip
    for line in lines:
        _, cut, rest = line.partition("…")
        assert not cut or (line.startswith("neuro") and "…" not in rest and rest.startswith(" ")), line
    channel = next(line for line in lines if line.startswith("neuro"))
    for number in ("88 %", "654 MiB", "494 MiB/s", "617 MiB/s", "unreachable"):
        assert number in channel, channel
    upload = next(line for line in lines if line.startswith("neuro") and "/fc" in line)
    for number in ("3.0 MiB", "16.0 MiB", "1.5 MiB/s"):
        assert number in upload, upload
    assert "q or Ctrl-C" in lines[-1]


def test_all_columns_where_there_is_room() -> None:
    """A wide screen has what a narrow one leaves out."""
    wide, narrow = "\n".join(drawn(200, 50)), "\n".join(drawn(80, 24))
    for head in ("reserved", "transfer", "messages/s"):
        assert head in wide
        assert head not in narrow


def test_bytes_that_are_held_back_are_named() -> None:
    """After a rebuilding what is held back has a column of its own, else there is none."""
    console = Console(width=200, file=io.StringIO())
    with console.capture() as text:
        console.print(_screen(Look(view(1_002.0, MANY, held=57 * MIB)), 200, None))
    told = text.get()
    assert ("held back" in told, "57.0 MiB" in told) == (True, True)
    assert "held back" not in "\n".join(drawn(200, 50))


def test_uploads_under_way_are_told_before_they_arrive() -> None:
    """What is being sent shows at once, beside what has arrived: the sum over all uploads, not of those shown."""
    assert "sending 45.0 MiB/s" in "\n".join(drawn(80, 24))
    document = _document(LOOK)
    assert (document["sending"], len(document["uploads"])) == (45.0 * MIB, 10)


def test_what_is_printed_once_has_no_padding(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines for a file or a pipe end where their words end, and are whole however long."""
    _print(LOOK)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert any("0123456789abcdef" in line for line in lines)
    assert not any("workstation-in…" in line for line in lines)


@pytest.mark.blocking
async def test_q_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key q ends it, another does not, and the terminal is left as it was."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "r") as terminal, os.fdopen(ours, "wb", buffering=0) as keyboard:
        monkeypatch.setattr(sys, "stdin", terminal)
        before = termios.tcgetattr(theirs)
        stop = asyncio.Event()
        with _quitting(stop):
            keyboard.write(b"x")
            for _ in range(5):
                await asyncio.sleep(0.01)
            assert not stop.is_set()
            keyboard.write(b"q")
            await asyncio.wait_for(stop.wait(), 20)
        assert termios.tcgetattr(theirs) == before
