"""The commands about what is here and what is known: ``ls``, ``info``, ``verify`` and ``rm``."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.cli.options import Channel, Hub, Json, Quiet, check_channel, check_host
from entrepot.cli.output import Output, counted, one_line, table
from entrepot.cli.progress import display
from entrepot.cli.running import interruptible, run
from entrepot.core.errors import Conflict, Corrupt, EntrepotError, InvalidInput
from entrepot.core.units import format_duration, format_rate, format_size
from entrepot.core.uri import StreamUri, courtesy_name

if TYPE_CHECKING:
    from entrepot.adapters.store import Entry, Verification
    from entrepot.services.estimate import Info
    from entrepot.services.hubs import JoinedHub
    from entrepot.services.progress import Progress
    from entrepot.services.settings import NodeSettings


def ls(
    channel: Channel = None,
    hub: Hub = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="Size, state, place and date too.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the streams that this node holds: their URIs. Works offline."""
    from entrepot.cli.environment import read_environment
    from entrepot.services.node import Node

    out = Output(as_json=json, quiet=quiet)
    settings = read_environment().settings()
    check_channel(channel)
    check_host(hub)

    async def ask() -> tuple[list[Entry], tuple[JoinedHub, ...]]:
        async with Node(settings) as node:
            return await node.entries(channel, hub), (await node.status()).hubs

    entries, hubs = run(ask())
    places = {one.scope: (one.name, joined.host) for joined in hubs for one in joined.channels}
    rows = []
    documents = []
    for entry in sorted(entries, key=lambda one: (one.name, one.stream)):
        found = sorted(places[scope] for scope in entry.scopes if scope in places)
        if channel is not None:
            found = [one for one in found if one[0] == channel]
        uri = StreamUri(*found[0], entry.stream, courtesy_name(entry.name)) if found else None
        state = "changed" if entry.stale else "complete" if entry.complete else "partial"
        rows.append(
            [
                format_size(entry.opening.length),
                state,
                "linked" if entry.links and not entry.stored else "stored",
                datetime.fromtimestamp(entry.added, UTC).astimezone().strftime("%Y-%m-%d %H:%M"),
                str(uri or entry.stream),
            ]
        )
        documents.append(
            {
                "stream": entry.stream,
                "uri": uri,
                "name": entry.name,
                "length": entry.opening.length,
                "sha256": entry.sha256,
                "state": state,
                "stored": entry.stored,
                "links": entry.links,
                "channels": [f"{name}@{host}" for name, host in found],
                "pinned": entry.pinned,
                "added": entry.added,
                "used": entry.used,
            }
        )
    if not rows:
        out.note("Nothing is here yet.")
    out.result({"streams": documents}, *(table(rows, right={0}) if long else [row[-1] for row in rows]))


def info(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A URI, or a stream id of a channel that was joined.")],
    channel: Channel = None,
    hub: Hub = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell what is known of a stream: size, holders, what lies in the bucket and here, time and cost to fetch.

    Nothing is fetched or uploaded.
    """
    from entrepot.cli.environment import read_environment

    check_channel(channel)
    check_host(hub)
    show_info(read_environment().settings(), uri, channel, hub, Output(as_json=json, quiet=quiet))


def show_info(settings: NodeSettings, target: str, channel: str | None, hub: str | None, out: Output) -> None:
    """What ``info`` and ``get --dry-run`` print."""
    from entrepot.services.node import Node

    async def ask() -> Info:
        async with Node(settings) as node:
            return await node.info(target, channel=channel, hub=hub)

    with interruptible(out, "Nothing was changed."):
        found = run(ask())
    out.result(info_document(found), *info_lines(found, time.time()))


def info_document(found: Info) -> dict[str, object]:
    """``info`` for programs."""
    return {
        "uri": found.uri,
        "stream": found.stream,
        "name": found.name,
        "length": found.length,
        "sha256": found.sha256,
        "held": found.held,
        "missing": found.missing,
        "object_count": found.object_count,
        "objects_in_bucket": found.objects,
        "bucket_bytes": found.bucket_bytes,
        "holders": found.holders,
        "holders_online": sum(holder.online for holder in found.holders),
        "wanted_by": found.wanted_by,
        "estimate": found.estimate,
        "hub_reason": found.hub_reason,
    }


def info_lines(found: Info, now: float) -> list[str]:
    """``info`` for people. ``now`` in unix seconds."""
    rows = [["uri", str(found.uri)]]
    if found.name is not None:
        rows.append(["name", found.name])
    rows.append(["size", "not known" if found.length is None else _bytes(found.length)])
    if found.sha256 is not None:
        rows.append(["sha256", found.sha256.hex()])
    rows.append(["here", _here(found)])
    if found.hub_reason is not None:
        rows.append(["hub", f"did not tell: {found.hub_reason}"])
    else:
        bucket = "not known"
        if found.objects is not None:
            of = "" if found.object_count is None else f" of {found.object_count:,}"
            bucket = f"{found.objects:,}{of} objects, {format_size(found.bucket_bytes or 0)}"
        rows.append(["bucket", bucket])
        for number, holder in enumerate(found.holders):
            seen = "online" if holder.online else f"last seen {format_duration(max(now - holder.last_seen, 0))} ago"
            rows.append(["" if number else "holders", f"{holder.name} ({seen})"])
        if not found.holders:
            rows.append(["holders", "none is known"])
        if found.wanted_by:
            rows.append(["wanted by", counted(found.wanted_by, "node")])
    rows += [["to fetch" if not number else "", line] for number, line in enumerate(_estimate_lines(found))]
    return table(rows)


def _here(found: Info) -> str:
    if found.held:
        return "all of it"
    if found.length is None or found.missing is None or found.missing >= found.length:
        return "nothing"
    return f"{format_size(found.length - found.missing)} of {format_size(found.length)}"


def _estimate_lines(found: Info) -> list[str]:
    from entrepot.services.estimate import Assumptions

    guess = found.estimate
    if guess is None:
        return []
    if guess.download == 0:
        return ["nothing"]
    upload = f", {format_size(guess.upload)} of it to be uploaded first" if guess.upload else ""
    rates = Assumptions()
    return [
        f"{format_size(guess.download)}{upload}",
        f"about {format_duration(guess.seconds)} at {format_rate(rates.download)},"
        f" and ${guess.dollars:.2f} for the bucket's owner at list prices",
    ]


def _bytes(size: int) -> str:
    return format_size(size) if size < 1024 else f"{format_size(size)} ({size:,} bytes)"


def verify(
    target: Annotated[str | None, typer.Argument(metavar="[ID|URI]", help="One stream.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All streams that are here.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Hash again what this node holds and compare.

    What is bad is not served any more and can be fetched again. Exit code 7 if anything is bad, 5 if a linked
    file has changed or gone.
    """
    from entrepot.cli.environment import read_environment
    from entrepot.services.node import Node

    out = Output(as_json=json, quiet=quiet)
    if (target is None) is not every:
        raise InvalidInput("verify takes one stream, or --all", hint="For example: entrepot verify --all")
    settings = read_environment().settings()
    documents: list[dict[str, object]] = []
    problems: list[EntrepotError] = []

    async def work() -> None:
        async with Node(settings) as node:
            entries = await node.entries()
            names = {one.stream: one.name for one in entries}
            empty = {one.stream for one in entries if one.opening.length == 0}
            lengths = {one.stream: one.opening.length for one in entries}
            before, total = 0, sum(lengths.values())
            meter = shown.meter(target or "", "verifying")

            def of_all(report: Progress, before: int, length: int) -> None:
                if report.total:  # one bar for all, to which each stream adds what it is long
                    meter.report(before + report.done * length // report.total, total)

            for one in [target] if target is not None else list(names):
                moving = meter.take
                if not isinstance(one, str):
                    meter.rename(names[one] or str(one))
                    moving = partial(of_all, before=before, length=lengths[one])
                    before += lengths[one]
                for result in await node.verify(one, progress=moving):
                    name = names.get(result.stream) or result.stream.hex
                    problem = _problem(result, name)
                    if problem is not None:
                        problems.append(problem)
                        out.failed(problem)
                    elif not result.checked and result.stream not in empty:
                        out.lines(f"nothing here  {result.stream}  {one_line(name)}")
                    else:
                        out.lines(f"ok  {result.stream}  {one_line(name)}")
                    documents.append(
                        {
                            "stream": result.stream,
                            "name": name,
                            "ok": problem is None and (result.checked > 0 or result.stream in empty),
                            "checked": result.checked,
                            "bad": {str(path): numbers for path, numbers in result.bad.items()},
                            "missing": result.missing,
                        }
                    )

    with interruptible(out, "What was verified until now is in order, but for what was told."), display(out) as shown:
        run(work())
    document: dict[str, object] = {"verified": documents}
    if problems:
        worst = max(problems, key=lambda problem: problem.exit_code)
        out.result({**document, "error": worst})
        raise typer.Exit(worst.exit_code)
    if not documents:
        out.note("Nothing is here yet.")
    out.result(document)


def _problem(found: Verification, name: str) -> EntrepotError | None:
    if found.bad:
        count = sum(len(numbers) for numbers in found.bad.values())
        return Corrupt(
            f"{name}: {count} of {found.checked} miniblocks are bad in {', '.join(map(str, found.bad))}",
            hint="They are not served. Fetch it again, and look at the disk.",
            stream=found.stream.hex,
        )
    if found.missing:
        hint = "The stream is not served. Put the file back, add it again, or let go of the stream: entrepot rm."
        if found.whole:
            others = "another file here is whole" if found.whole == 1 else f"{found.whole:,} other files here are whole"
            hint = (
                f"That file is not served, but the stream is: {others}. "
                "Put the file back, or add it as what it is now: entrepot add."
            )
        return Conflict(
            f"{name}: {', '.join(map(str, found.missing))} has changed or gone",
            kind="changed",
            hint=hint,
            stream=found.stream.hex,
        )
    return None


def rm(
    target: Annotated[str, typer.Argument(metavar="ID|URI", help="One stream.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Even if it is pinned or the last copy known.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Forget a stream. Files that were added stay where they are; what was fetched is deleted from the store."""
    from entrepot.cli.environment import read_environment
    from entrepot.services.node import Node

    out = Output(as_json=json, quiet=quiet)
    settings = read_environment().settings()

    async def work() -> bool:
        async with Node(settings) as node:
            return await node.remove(target, force=force)

    with interruptible(out, "It may or may not have been removed: entrepot ls tells."):
        gone = run(work())
    out.note("It is forgotten here. Files that were added stay where they are.")
    out.result({"target": target, "removed": gone})
