"""What the commands say and where: results on stdout, everything else on stderr.

A result is either text made for pipes (a URI, a path, an id alone on its line) or, with ``--json``, one JSON
document. Notes, progress, errors and hints go to stderr, except that with ``--json`` an error is the document
``{"error": {...}}`` on stdout: a program reads one stream and learns the rest from the exit code.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, TextIO

import typer

from entrepot.core.errors import EntrepotError, RetryLater, to_wire
from entrepot.core.units import format_duration

#: Exit code of a command that was interrupted by Ctrl-C: 128 + SIGINT, as shells have it.
INTERRUPTED: Final = 130
#: Exit code when the reader of stdout went away: 128 + SIGPIPE.
READER_GONE: Final = 141

#: Names that are told of those that failed for one reason, and characters of a name.
_SHOWN: Final = 3
_LONGEST: Final = 60

type Plain = str | int | float | bool | list[Plain] | dict[str, Plain] | None


class Output:
    """The two streams of one command. ``quiet`` leaves notes and progress out; errors are always told."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._above: Callable[[str], None] | None = None
        self._results_above = False

    def go_above(self, show: Callable[[str], None] | None, *, results: bool = False) -> None:
        """From now on lines for stderr are shown by ``show``, above what is drawn there; with ``results`` those for
        stdout too, which is the same terminal. None: no more."""
        self._above, self._results_above = show, results

    def result(self, document: Mapping[str, object], *lines: str) -> None:
        """The result: ``document`` with ``--json``, else ``lines``."""
        if self.as_json:
            write(sys.stdout, json.dumps(plain(document)))
        else:
            self.lines(*lines)

    def lines(self, *lines: str) -> None:
        """Text on stdout, at once; nothing with ``--json``, whose one document comes last."""
        if not self.as_json:
            for line in lines:
                if self._above is not None and self._results_above:
                    self._above(line)
                else:
                    write(sys.stdout, line)

    def note(self, text: str) -> None:
        """A remark for the person at the terminal."""
        if not self.quiet:
            self._remark(text)

    def failed(self, error: EntrepotError, about: str | None = None) -> None:
        """One of several things failed and the command goes on; nothing with ``--json``."""
        if not self.as_json:
            for line in told(error, about):
                self._remark(line)

    def failed_alike(self, kind: str, first: str, others: Sequence[str]) -> None:
        """These failed as ``first`` did, which was told; nothing with ``--json``."""
        if not self.as_json:
            shown = ", ".join(map(_short, others[:_SHOWN])) + (", …" if len(others) > _SHOWN else "")
            self._remark(f"entrepot: as {_short(first)}, so failed {counted(len(others), 'other')} ({kind}): {shown}")

    def interrupted(self, remark: str) -> None:
        """The command ends because of Ctrl-C."""
        if self.as_json:
            error = RetryLater("interrupted", kind="cancelled", hint=remark)
            write(sys.stdout, json.dumps({"error": to_wire(error)}))
        else:
            self._remark(f"entrepot: interrupted. {remark}")

    def _remark(self, line: str) -> None:
        if self._above is not None:
            self._above(line)
        else:
            write(sys.stderr, line)


class Failures:
    """What failed of several things that were to be done; the others were done nevertheless. What failed for the same
    reason as one before it is told at the end, with a count and a few names; the document has all of them."""

    def __init__(self, output: Output, named: str = "path") -> None:
        """``named``: what the document calls the thing that failed."""
        self._output = output
        self._named = named
        self._failed: list[tuple[str, EntrepotError]] = []
        self._like: dict[tuple[str, ...], list[str]] = {}  # by cause: the names, that of the one that was told first

    @property
    def count(self) -> int:
        """How many failed."""
        return len(self._failed)

    def add(self, name: str, error: EntrepotError) -> None:
        """This one failed."""
        self._failed.append((name, error))
        names = self._like.setdefault(_cause(name, error), [])
        names.append(name)
        if len(names) == 1:
            self._output.failed(error, name)

    def end(self, document: dict[str, object]) -> None:
        """Print ``document``, with what failed. If anything did, exit with the code of the first error."""
        for (kind, *_), (first, *others) in self._like.items():
            if others:
                self._output.failed_alike(kind, first, others)
        document["failed"] = [{self._named: name, "error": error} for name, error in self._failed]
        if self._failed:
            document["error"] = self._failed[0][1]
        self._output.result(document)
        if self._failed:
            raise typer.Exit(self._failed[0][1].exit_code)


def _cause(name: str, error: EntrepotError) -> tuple[str, ...]:
    """What errors have in common that differ only in what they are about and in figures. Its kind is the first."""
    own = {name, name.rpartition("/")[2], *(value for value in error.data.values() if isinstance(value, str))}
    texts = [error.message, error.hint or ""]
    for word in sorted(filter(None, own), key=len, reverse=True):
        whole = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
        texts = [whole.sub("\0", text) for text in texts]
    return (error.kind, *(re.sub(r"\d[\d,.]*", "\0", text) for text in texts))


def _short(name: str) -> str:
    """A path as it is, of a URI the name or id at its end; on one line."""
    from entrepot.core.uri import SCHEME

    text = one_line(name.rpartition("/")[2] if name.startswith(SCHEME) else name)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def fail(error: EntrepotError, *, as_json: bool) -> int:
    """Tell why the command failed; its exit code."""
    if as_json:
        write(sys.stdout, json.dumps({"error": to_wire(error)}))
    else:
        tell(error)
    return error.exit_code


def tell(error: EntrepotError, about: str | None = None) -> None:
    """The error and its hint on stderr."""
    for line in told(error, about):
        write(sys.stderr, line)


def told(error: EntrepotError, about: str | None = None) -> list[str]:
    """The error in one sentence and its hint in another line."""
    lead = "" if about is None or about in error.message else f"{about}: "
    lines = [f"entrepot: {lead}{one_line(error.message)}{_seen(error)}"]
    if error.hint:
        lines.append(f"  {one_line(error.hint)}")
    return lines


def _seen(error: EntrepotError) -> str:
    """When who had it last was last there, where that is known."""
    seen = error.data.get("last_seen")
    if isinstance(seen, bool) or not isinstance(seen, (int, float)):
        return ""
    return f", last seen {format_duration(max(time.time() - seen, 0))} ago"


def show_trace(error: BaseException) -> None:
    """Where a failure happened, for ``ENTREPOT_DEBUG=1``."""
    traceback.print_exception(error, file=sys.stderr)


def one_line(text: str) -> str:
    """``text`` on one line and without control characters: it may hold a file's or a stranger's words."""
    return "".join(
        c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )


class ReaderGone(Exception):
    """Nobody reads this stream any more: ``entrepot ls | head -1``. Not an :class:`OSError`, of which typer
    would make exit code 1."""


def write(stream: TextIO, line: str) -> None:
    """One line, flushed. Bytes of a file name that are no text go out as they are; characters that the stream
    cannot encode are escaped. Raises :class:`ReaderGone`."""
    try:
        try:
            stream.write(line + "\n")
        except UnicodeEncodeError:
            stream.flush()
            stream.buffer.write(_encoded(line, stream.encoding or "utf-8") + b"\n")
        stream.flush()
    except BrokenPipeError:
        raise ReaderGone from None


def write_bytes(data: bytes) -> None:
    """Bytes on stdout, at once. Blocks for as long as the reader does. Raises :class:`ReaderGone`."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ReaderGone from None


def _encoded(line: str, encoding: str) -> bytes:
    try:
        return line.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        return line.encode(encoding, "backslashreplace")


def silence() -> None:
    """Send what is still buffered nowhere: the reader of stdout has gone, and Python would say so at exit."""
    with open(os.devnull, "w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                os.dup2(nowhere.fileno(), stream.fileno())


def plain(value: object) -> Plain:
    """``value`` as JSON can hold it: bytes as hex, paths and ids as text, records as objects."""
    match value:
        case enum.Enum():
            return plain(value.value)
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return value.hex()
        case Path():
            return os.fsencode(value).decode("utf-8", "backslashreplace")
        case Mapping():
            return {str(key): plain(one) for key, one in value.items()}
        case set() | frozenset():
            return sorted((plain(one) for one in value), key=str)
        case list() | tuple():
            return [plain(one) for one in value]
        case EntrepotError():
            return plain(to_wire(value))
    fields = getattr(type(value), "__struct_fields__", None)
    if fields is not None:  # of msgspec
        return {name: plain(getattr(value, name)) for name in fields}
    if dataclasses.is_dataclass(value) and type(value).__str__ is object.__str__:
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return str(value)


def table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows as lines with aligned columns, two blanks apart; the columns ``right`` end aligned. Wide characters
    count as the two cells they take."""
    from rich.cells import cell_len

    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(cell_len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        parts = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blanks = " " * (width - cell_len(cell))
            parts.append(blanks + cell if number in right else cell + blanks)
        lines.append("  ".join(parts).rstrip())
    return lines


def counted(number: int, what: str) -> str:
    """``1 object``, ``2 objects``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
