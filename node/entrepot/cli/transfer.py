"""The commands that move streams: ``add``, ``get`` and ``cat``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.cli.options import Channel, Hub, Json, Quiet, Timeout, check_channel, check_host
from entrepot.cli.output import Failures, Output, one_line, write_bytes
from entrepot.cli.progress import display
from entrepot.cli.running import interruptible, run
from entrepot.core.errors import EntrepotError, InvalidInput
from entrepot.core.units import format_duration, format_rate, format_size, parse_duration, parse_size, parse_span
from entrepot.core.uri import SCHEME, StreamUri

if TYPE_CHECKING:
    from entrepot.core.identifiers import StreamId
    from entrepot.services.node import Got

#: What ``--timeout`` is if nobody says otherwise: as in the exchange.
TIMEOUT = "60s"


def add(
    paths: Annotated[
        list[Path],
        # Whether it can be read is told file by file, with our own reason.
        typer.Argument(metavar="PATH", readable=False, help="Files to share. They stay where they are."),
    ],
    channel: Channel = None,
    hub: Hub = None,
    copy: Annotated[bool, typer.Option("--copy", help="Keep a copy in the store: the file may then change.")] = False,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="Start no daemon.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Share files with a channel and print their URIs.

    Nothing is uploaded: the daemon sends a file when somebody asks for it. It is started if none runs.
    """
    from entrepot.cli.environment import read_environment
    from entrepot.cli.serving import ensure_daemon
    from entrepot.services.node import Node

    out = Output(as_json=json, quiet=quiet)
    settings = read_environment().settings()
    check_channel(channel)
    check_host(hub)
    found: list[dict[str, object]] = []
    streams: list[StreamId] = []
    failures = Failures(out)

    async def work() -> None:
        async with Node(settings) as node:
            for path in paths:
                meter = shown.meter(path.name, "reading")
                try:
                    added = await node.add(path, channel=channel, hub=hub, copy=copy, progress=meter.take)
                except EntrepotError as error:
                    if error.kind in {"ambiguous", "not-joined", "no-such-channel"}:
                        raise  # it is the same for all files
                    failures.add(str(path), error)
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
                streams.append(added.stream)
                out.lines(str(added.uri))

    with interruptible(out, "Files whose URI was printed are added; add the others again."):
        with display(out) as shown:
            run(work())
        served = bool(streams) and not no_serve and run(ensure_daemon(settings, streams, out))
    failures.end({"added": found, "served": served})


def get(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A URI, or a stream id of a channel that was joined.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="A file, or a folder for it; by default ./NAME."),
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
    channel: Channel = None,
    hub: Hub = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch a stream, verify it and print the path of the file.

    What is here already is not fetched again, so the same command resumes after an interruption, and once the file is
    there it does nothing.
    """
    from entrepot.cli.environment import read_environment
    from entrepot.services.node import Node

    out = Output(as_json=json, quiet=quiet)
    settings = read_environment().settings()
    name = read_name(uri, channel, hub)
    patience = None if wait is None else parse_duration(wait)
    deadline = positive(parse_duration(timeout), "--timeout")
    if dry_run:
        from entrepot.cli.holdings import show_info

        show_info(settings, uri, channel, hub, out)
        return
    if output is not None and str(output) == "-":
        raise InvalidInput("get writes to a file", hint="To write to stdout: entrepot cat URI")
    began = time.monotonic()
    metrics = None
    if metrics_file is not None:
        from entrepot.adapters.metrics import NodeMetrics

        metrics = NodeMetrics()

    async def work() -> Got:
        meter = shown.meter(name if output is None else output.name, "fetching")
        async with Node(settings, metrics=metrics) as node:
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
    out.note(summary(got, took))
    out.result(
        {
            "path": got.path.absolute(),
            "stream": got.stream,
            "length": got.length,
            "how": got.how,
            "fetched_bytes": got.fetched_bytes,
            "from_bucket_bytes": got.from_bucket_bytes,
            "seconds": round(took, 3),
            "transfer": got.transfer,
        },
        str(got.path),
    )


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
    settings = read_environment().settings()
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
