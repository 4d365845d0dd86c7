"""The commands that move streams: ``add``, ``get`` and ``cat``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.cli.options import Bwlimit, Channel, Hub, Json, Quiet, Timeout, check_channel, check_host, limited
from entrepot.cli.output import Failures, Output, counted, one_line, write_bytes
from entrepot.cli.progress import display
from entrepot.cli.running import interruptible, run
from entrepot.core.errors import EntrepotError, InvalidInput, NotFound
from entrepot.core.units import format_duration, format_rate, format_size, parse_duration, parse_size, parse_span
from entrepot.core.uri import SCHEME, StreamUri

if TYPE_CHECKING:
    from entrepot.core.identifiers import StreamId
    from entrepot.services.node import Got
    from entrepot.services.progress import Progress

#: What ``--timeout`` is if nobody says otherwise: as in the exchange.
TIMEOUT = "60s"
#: Characters of a line of a list that an error shows.
_SHOWN = 80


def add(
    paths: Annotated[
        list[str],  # typer takes long to make paths of thousands; whether each can be read is told with our own reason
        typer.Argument(metavar="PATH", help="Files to share. They stay where they are."),
    ],
    channel: Channel = None,
    hub: Hub = None,
    copy: Annotated[bool, typer.Option("--copy", help="Keep a copy in the store: the file may then change.")] = False,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="Start no daemon.")] = False,
    bwlimit: Bwlimit = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Share files with a channel and print their URIs.

    Nothing is uploaded: the daemon sends a file when somebody asks for it. It is started if none runs.
    """
    from entrepot.cli.environment import read_environment
    from entrepot.cli.serving import ensure_daemon, remark_on_limit
    from entrepot.services.node import Node

    out = Output(as_json=json, quiet=quiet)
    settings = limited(read_environment().settings(), bwlimit)
    words = [] if bwlimit is None else ["--bwlimit", bwlimit]
    check_channel(channel)
    check_host(hub)
    found: list[dict[str, object]] = []
    streams: list[StreamId] = []
    failures = Failures(out)

    async def work() -> None:
        async with Node(settings) as node:
            meter = shown.meter(Path(paths[0]).name, "reading")

            def moving(report: Progress) -> None:
                telling = report.note is not None and report.done >= report.total
                meter.doing = "announcing" if telling else "reading"
                meter.rename(counted(len(paths), "file") if telling else report.name or meter.name)
                meter.take(report)

            async for path, added in node.add_many(paths, channel=channel, hub=hub, copy=copy, progress=moving):
                if isinstance(added, EntrepotError):
                    failures.add(str(path), added)
                    continue
                found.append(
                    {
                        "path": path,
                        "uri": added.uri,
                        "stream": added.stream,
                        "length": added.length,
                        "sha256": added.sha256,
                        "name": added.name,
                        "unchanged": added.unchanged,
                    }
                )
                if not added.told:
                    streams.append(added.stream)
                out.lines(str(added.uri))

    with interruptible(out, "Files whose URI was printed are added. Add the others again: it goes on where it was."):
        with display(out) as shown:
            run(work())
        # Where a daemon runs and its hub is up, the hub knows of them already.
        served = bool(found) and not no_serve and (not streams or run(ensure_daemon(settings, streams, out, words)))
        if bwlimit is not None and served:
            run(remark_on_limit(settings, out))
    failures.end({"added": found, "served": served})


def get(
    uris: Annotated[
        list[str] | None,
        typer.Argument(metavar="URI", help="URIs, or stream ids of a channel that was joined.", show_default=False),
    ] = None,
    from_file: Annotated[
        str | None,
        typer.Option("--from-file", metavar="LIST", help="A file with one URI on each line; - is stdin."),
    ] = None,
    output: Annotated[
        str | None,  # a path would forget the slash at its end
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="A file, or a folder for it; a folder for several. FOLDER/ is made. By default ./NAME.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace what is there.")] = False,
    wait: Annotated[
        str | None,
        typer.Option("--wait", metavar="DURATION", help="Wait so long for somebody who has it to come online."),
    ] = None,
    timeout: Timeout = TIMEOUT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Fetch nothing; say what it would take, as info does.")
    ] = False,
    metrics_file: Annotated[
        Path | None,
        typer.Option("--metrics-file", metavar="FILE", help="Write metrics there at the end, for node_exporter."),
    ] = None,
    bwlimit: Bwlimit = None,
    channel: Channel = None,
    hub: Hub = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch streams, verify them and print the paths of the files.

    What is here already is not fetched again, so the same command resumes after an interruption, and once a file is
    there it does nothing. Several are fetched at once; one that fails stops none of the others.
    """
    from entrepot.cli.environment import read_environment
    from entrepot.services.node import Node

    out = Output(as_json=json, quiet=quiet)
    settings = limited(read_environment().settings(), bwlimit)
    names = [read_name(one, channel, hub) for one in uris or []]
    targets = [*(uris or []), *([] if from_file is None else uris_of(from_file, channel, hub))]
    if not targets:
        if from_file is not None:
            raise InvalidInput(f"{_place(from_file)} is empty: it names no stream", hint="One URI on each line.")
        raise InvalidInput("nothing to fetch was named", hint="Name URIs, or a file that holds them (--from-file).")
    patience = None if wait is None else parse_duration(wait)
    deadline = positive(parse_duration(timeout), "--timeout")
    many = from_file is not None or len(targets) > 1
    if dry_run and many:
        raise InvalidInput("--dry-run looks at one stream at a time", hint="Or: entrepot info URI")
    uri, name = (targets[0], names[0]) if not many else ("", "")
    if dry_run:
        from entrepot.cli.holdings import show_info

        show_info(settings, uri, channel, hub, out)
        return
    if output == "-":
        raise InvalidInput("get writes to a file", hint="To write to stdout: entrepot cat URI")
    called = name if output is None or Path(output).is_dir() else Path(output).name
    began = time.monotonic()
    metrics = None
    if metrics_file is not None:
        from entrepot.adapters.metrics import NodeMetrics

        metrics = NodeMetrics()

    several = _Several(out)

    async def work() -> Got | None:
        async with Node(settings, metrics=metrics) as node:
            if many:
                meter = shown.meter(f"{len(targets)} files", "fetching")

                def moving(report: Progress) -> None:
                    meter.rename(report.name or meter.name)
                    meter.take(report)

                async for target, result in node.get_many(
                    targets,
                    output,
                    force=force,
                    channel=channel,
                    hub=hub,
                    deadline=deadline,
                    wait=patience,
                    progress=moving,
                ):
                    several.take(str(target), result)
                return None
            meter = shown.meter(called, "fetching")
            return await node.get(
                uri,
                output,
                force=force,
                channel=channel,
                hub=hub,
                deadline=deadline,
                wait=patience,
                progress=meter.take,
            )

    try:
        with (
            interruptible(out, "What was fetched is kept: the same command goes on from there."),
            display(out) as shown,
        ):
            got = run(work())
    finally:
        if metrics is not None and metrics_file is not None:
            metrics.write(metrics_file)
    took = max(time.monotonic() - began, 1e-3)
    if got is None:
        several.end(took)
        return
    out.note(summary(got, took))
    out.result(_document(got) | {"seconds": round(took, 3)}, str(got.path))


def _document(got: Got) -> dict[str, object]:
    return {
        "path": got.path.absolute(),
        "stream": got.stream,
        "length": got.length,
        "how": got.how,
        "fetched_bytes": got.fetched_bytes,
        "from_bucket_bytes": got.from_bucket_bytes,
        "transfer": got.transfer,
    }


class _Several:
    """What became of several streams that were to be got."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._failures = Failures(out, "uri")
        self._got: list[tuple[str, Got]] = []

    def take(self, target: str, result: Got | EntrepotError) -> None:
        """One of them has ended."""
        if isinstance(result, EntrepotError):
            self._failures.add(target, result)
            return
        self._got.append((target, result))
        self._out.lines(str(result.path))

    def end(self, took: float) -> None:
        """Print the document and one line for all; ``took`` in seconds. Exits with the first error's code."""
        self._out.note(summary_of_several([got for _, got in self._got], self._failures.count, took))
        documents = [{"uri": target} | _document(got) for target, got in self._got]
        self._failures.end({"got": documents, "seconds": round(took, 3)})


def summary_of_several(found: Sequence[Got], failed: int, took: float) -> str:
    """What a ``get`` of several tells at its end: what was fetched in ``took`` seconds, then what was here before. An
    empty file and a second one of what was fetched now are neither."""
    fetched = sum(one.fetched_bytes for one in found)
    new = {one.stream for one in found if one.fetched_bytes}
    here = [
        one for one in found if one.how == "there" or (one.length and not one.fetched_bytes and one.stream not in new)
    ]
    text = counted(len(found), "file")
    if fetched:
        text += f", {format_size(fetched)} fetched in {format_duration(took)}, {format_rate(fetched / took)}"
    if here:
        count = "all" if len(here) == len(found) else f"{len(here):,}"
        were = "it was" if len(found) == 1 else "them was" if len(here) == 1 else "them were"
        text += f"; {count} of {were} here already, {format_size(sum(one.length for one in here))}"
    begun = sum(one.length - one.fetched_bytes for one in found if 0 < one.fetched_bytes < one.length)
    if begun:
        text += f"; {format_size(begun)} of the others were here already"
    if failed:
        text += f"; {failed:,} failed"
    return f"{text}."


def summary(got: Got, took: float) -> str:
    """What a finished ``get`` tells; ``took`` in seconds."""
    if got.how == "there":
        return f"{one_line(str(got.path))} is already there, unchanged."
    if got.length == 0:
        return "0 B: the file is empty."
    if got.fetched_bytes == 0:
        return f"{format_size(got.length)}, all of it was here already."
    text = f"{format_size(got.fetched_bytes)} in {format_duration(took)}, {format_rate(got.fetched_bytes / took)}"
    if got.from_bucket_bytes:
        text += f"; {format_size(got.from_bucket_bytes)} of it lay in the bucket"
    if got.fetched_bytes < got.length:
        text += f"; {format_size(got.length - got.fetched_bytes)} were here already"
    return f"{text}."


def cat(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A URI, or a stream id of a channel that was joined.")],
    range_: Annotated[
        str | None, typer.Option("--range", metavar="FIRST-LAST", help="These bytes, both ends included; FIRST- too.")
    ] = None,
    offset: Annotated[str | None, typer.Option("--offset", metavar="SIZE", help="Begin there.")] = None,
    length: Annotated[str | None, typer.Option("--length", metavar="SIZE", help="So many bytes and no more.")] = None,
    timeout: Timeout = TIMEOUT,
    bwlimit: Bwlimit = None,
    channel: Channel = None,
    hub: Hub = None,
    quiet: Quiet = False,
) -> None:
    """Write a stream, or a range of it, to stdout. Only the objects that it touches are fetched.

    Every byte is verified before it is written. There is no --json: stdout carries the bytes.
    """
    from entrepot.cli.environment import read_environment
    from entrepot.services.node import Node

    out = Output(quiet=quiet)
    start, count = read_range(range_, offset, length)
    settings = limited(read_environment().settings(), bwlimit)
    read_name(uri, channel, hub)
    deadline = positive(parse_duration(timeout), "--timeout")

    async def work() -> None:
        async with Node(settings) as node:
            pieces = node.cat(uri, start, count, channel=channel, hub=hub, deadline=deadline)
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    # In a thread: a slow reader must not stop the connections.
                    await asyncio.to_thread(write_bytes, piece)

    with interruptible(out, "What was fetched is kept."):
        run(work())


def read_range(span: str | None, offset: str | None, length: str | None) -> tuple[int, int | None]:
    """Offset and length (None: to the end) of ``--range`` or of ``--offset`` and ``--length``."""
    if span is None:
        return 0 if offset is None else parse_size(offset), None if length is None else parse_size(length)
    if offset is not None or length is not None:
        raise InvalidInput("--range goes with neither --offset nor --length", hint="Use one or the other.")
    return parse_span(span)


def uris_of(name: str, channel: str | None = None, hub: str | None = None) -> list[str]:
    """The URIs in a file, one on each line (``-``: in stdin); blank lines and those that begin with # are passed over.
    Raises ``no-such-file``, ``unreadable``, ``invalid-input`` for a file that is no text, and with the number of its
    line what one raises that is no target or names another ``channel`` or ``hub``."""
    from entrepot.adapters.files import translated
    from entrepot.services.targets import check_target

    try:
        if name == "-":
            text = sys.stdin.read()
        else:
            with translated(Path(name)):
                text = Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(f"{name} is no list of URIs", hint="One URI on each line.", path=name) from None
    except NotFound as error:
        hint = "It is a file with one URI on each line; - is stdin. A URI itself needs no option."
        raise NotFound(error.message, kind=error.kind, hint=hint, path=name) from None
    found = []
    for number, line in enumerate((line.strip() for line in text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        try:
            check_target(line)
            read_name(line, channel, hub)
        except InvalidInput as error:
            reason = error.message if line[:_SHOWN] in error.message else f"{error.message}: {line[:_SHOWN]!r}"
            place = f"{_place(name)}, line {number}"
            raise InvalidInput(f"{place}: {reason}", kind=error.kind, hint=error.hint, line=number) from None
        found.append(line)
    return found


def _place(name: str) -> str:
    return "stdin" if name == "-" else name


def read_name(text: str, channel: str | None, hub: str | None) -> str:
    """What a target is called while it is fetched. Raises what a malformed URI, channel or hub raises, before
    anything is opened."""
    check_channel(channel)
    check_host(hub)
    if not text.startswith(SCHEME):
        return text
    uri = StreamUri.parse(text)
    if channel not in {None, uri.channel} or (hub is not None and uri.hub not in {None, hub}):
        raise InvalidInput("the URI names another channel or hub than the options", hint="Leave the options out.")
    return uri.name or uri.stream.hex


def positive(seconds: float, option: str) -> float:
    """``seconds``, if it is more than none. Raises ``invalid-input``."""
    if seconds <= 0:
        raise InvalidInput(f"{option} must be more than 0", hint="For example 60s or 10m.")
    return seconds
