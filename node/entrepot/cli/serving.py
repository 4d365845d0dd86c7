"""The commands around the daemon: ``up``, ``down`` and ``status``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from entrepot.cli.options import Bwlimit, Json, Quiet, limited
from entrepot.cli.output import Output, counted, one_line, plain, table
from entrepot.cli.running import interruptible, run
from entrepot.core.errors import InvalidInput, RetryLater
from entrepot.core.units import format_duration, format_size

if TYPE_CHECKING:
    from entrepot.adapters.store import Size
    from entrepot.core.identifiers import StreamId
    from entrepot.services.control import DaemonStatus, HubView
    from entrepot.services.observation import MetricsAddress
    from entrepot.services.settings import NodeSettings

#: Seconds that ``add`` waits for the hub to know what was added, and between two tries.
_ANNOUNCING: Final = 5.0
_ANNOUNCE_EVERY: Final = 0.1


def up(
    detach: Annotated[
        bool, typer.Option("--detach/--foreground", "-d", help="Go on in the background, or stay (the default).")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", metavar="HOST:PORT", help="Serve /metrics for Prometheus there, on this machine."),
    ] = None,
    metrics_anywhere: Annotated[
        bool, typer.Option("--metrics-anywhere", help="Let --metrics name an address that others reach.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every step of every upload, with its transfer's id.")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log in JSON.")] = False,
    bwlimit: Bwlimit = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve what this node holds, until Ctrl-C, SIGTERM or entrepot down.

    One daemon serves one store, for all hubs that were joined; a hub that cannot be reached is tried again.
    """
    from entrepot.cli.environment import read_environment
    from entrepot.services.daemon_client import DaemonClient
    from entrepot.services.observation import MetricsAddress

    out = Output(as_json=json, quiet=quiet)
    settings = limited(read_environment().settings(), bwlimit)
    at = None if metrics is None else MetricsAddress.parse(metrics, anywhere=metrics_anywhere)
    if detach:
        words = [] if metrics is None else ["--metrics", metrics]
        words += [] if bwlimit is None else ["--bwlimit", bwlimit]
        for option, given in (
            ("--metrics-anywhere", metrics_anywhere),
            ("--verbose", verbose),
            ("--log-json", log_json),
        ):
            words += [option] if given else []
        status = run(DaemonClient(settings).start_detached(words))
        out.note(f"The daemon runs (process {status.pid}); its log is {settings.log_file}.")
        if bwlimit is not None:
            run(remark_on_limit(settings, out))
        out.result({"daemon": status})
        return
    if json:
        raise InvalidInput("up --json needs --detach", hint="In the foreground it tells how it goes on stderr.")
    from entrepot.cli.logs import set_up_logs

    set_up_logs(as_json=log_json, verbose=verbose, quiet=quiet)
    _serve(settings, out, at)


def _serve(settings: NodeSettings, out: Output, metrics_at: MetricsAddress | None) -> None:
    from entrepot.services.daemon import Daemon

    def ready() -> None:
        out.note(f"Serving {settings.store_folder}. Ctrl-C ends it.")

    # The daemon takes Ctrl-C itself and withdraws; one that comes before or after that is this one.
    with interruptible(out, "Nothing is served now."):
        run(Daemon(settings, metrics_at=metrics_at).run(ready=ready))
    out.note("Nothing is served now.")


def down(json: Json = False, quiet: Quiet = False) -> None:
    """End the daemon. What it was uploading passes to others who hold it."""
    from entrepot.cli.environment import read_environment
    from entrepot.services.daemon_client import DaemonClient

    out = Output(as_json=json, quiet=quiet)
    run(DaemonClient(read_environment().settings()).stop())
    out.note("The daemon has ended. Nothing is served now.")
    out.result({"stopped": True})


async def ensure_daemon(
    settings: NodeSettings, streams: Sequence[StreamId], out: Output, words: Sequence[str] = ()
) -> bool:
    """See to it that a daemon serves ``streams`` and that their hub knows; whether it does. ``words``: further ones of
    ``entrepot up`` for one that is started.

    A failure is told, not raised: what was added stays added, and the daemon goes on trying.
    """
    from entrepot.core.errors import EntrepotError
    from entrepot.services.daemon_client import DaemonClient

    client = DaemonClient(settings)
    try:
        if not await client.running():
            started = await client.start_detached(words)
            out.note(f"A daemon was started to serve it (process {started.pid}). To end it: entrepot down")
        for _ in range(round(_ANNOUNCING / _ANNOUNCE_EVERY)):
            if await client.added(streams):
                return True
            hubs = (await client.status()).hubs
            if all(view.state in {"unreachable", "denied"} for view in hubs):
                break
            await asyncio.sleep(_ANNOUNCE_EVERY)
        down = [view for view in (await client.status()).hubs if view.state != "up"]
    except EntrepotError as error:
        out.note(f"It is added, but nothing serves it now: {one_line(error.message)}")
        out.note("  Start the daemon: entrepot up")
        return False
    reasons = [f"{view.host} is {view.state}" for view in down] or ["no hub took it"]
    out.note(f"It is added and will be served as soon as its hub can be reached: {one_line('; '.join(reasons))}.")
    return False


async def remark_on_limit(settings: NodeSettings, out: Output) -> None:
    """Say so if the daemon that runs has another limit of bandwidth than ``settings``: it keeps its own."""
    from entrepot.core.errors import EntrepotError
    from entrepot.services.daemon_client import DaemonClient

    try:
        limit = (await DaemonClient(settings).status()).bwlimit
    except EntrepotError:
        return  # it has just ended: there is no limit to be told
    if limit != str(settings.bandwidth):
        out.note(
            f"The daemon that runs has the limit {one_line(limit)}, not {settings.bandwidth}. "
            "To change it: entrepot down, then entrepot up"
        )


def status(
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 6 unless a daemon serves and each hub that was joined is up.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell how the daemon, the store, the hubs, the channels and the transfers stand."""
    from entrepot.adapters.store import Size
    from entrepot.cli.environment import read_environment
    from entrepot.core.errors import NotFound
    from entrepot.services.daemon_client import DaemonClient
    from entrepot.services.hubs import Hubs

    out = Output(as_json=json, quiet=quiet)
    settings = read_environment().settings()

    async def ask() -> tuple[DaemonStatus | None, Size, list[dict[str, object]]]:
        hubs = [hub_document(hub) for hub in await Hubs(settings.hubs_file).list()]
        try:
            running = await DaemonClient(settings).status()
        except NotFound:
            return None, await _size(settings), hubs
        return running, Size(running.stored_bytes, running.linked_bytes, running.streams), hubs

    running, size, hubs = run(ask())
    problem = _down(running, hubs) if check else None
    lines = [f"home      {settings.home}"]
    if running is None:
        lines.append("daemon    none: nothing is served (start it: entrepot up)")
    else:
        age = format_duration(max(time.time() - running.started, 0))
        lines.append(f"daemon    process {running.pid}, version {running.version}, up for {age}")
        if running.bwlimit != "off":
            lines.append(f"bwlimit   {one_line(running.bwlimit)}")
    lines.append(
        f"store     {counted(size.streams, 'stream')}, {format_size(size.stored)} stored, "
        f"{format_size(size.linked)} linked"
    )
    if running is not None:
        for view in running.hubs:
            lines += _hub_lines(view)
    else:
        lines += [f"hub       {one_line(str(hub['host']))}  {channel_list(hub)}" for hub in hubs]
    if not hubs:
        lines.append("hubs      none joined (ask for an invite, then: entrepot join URL)")
    document = {
        "home": settings.home,
        "daemon": running,
        "store": {"streams": size.streams, "stored_bytes": size.stored, "linked_bytes": size.linked},
        "hubs": hubs,
    }
    out.result(document if problem is None else {**document, "error": problem}, *lines)
    if problem is not None:
        out.failed(problem)
        raise typer.Exit(problem.exit_code)


async def _size(settings: NodeSettings) -> Size:
    """What the store takes. One that was never made is not made now."""
    from entrepot.adapters.store import Size, Store
    from entrepot.adapters.store.store import CATALOGUE

    if not await asyncio.to_thread((settings.store_folder / CATALOGUE).exists):
        return Size(0, 0, 0)
    async with Store(settings.store_folder, settings.store) as store:
        return await store.size()


def _down(running: DaemonStatus | None, hubs: Sequence[object]) -> RetryLater | None:
    """Why this node does not serve all that it could, if it does not."""
    if running is None:
        return RetryLater("no daemon runs here: nothing is served", hint="Start it: entrepot up")
    down = [view for view in running.hubs if view.state != "up"]
    if down:
        states = "; ".join(f"{view.host} is {view.state}" for view in down)
        return RetryLater(f"not every hub is up: {states}", kind="hub-unreachable", hint="The daemon goes on trying.")
    if not hubs:
        return RetryLater("no hub was joined", hint="Ask for an invite, then: entrepot join URL")
    if len(running.hubs) < len(hubs):
        return RetryLater("the daemon has not heard of every hub yet", kind="hub-unreachable")
    return None


def _hub_lines(view: HubView) -> list[str]:
    since = format_duration(max(time.time() - view.since, 0))
    lines = [f"hub       {one_line(view.host)}  {view.state} for {since}, as {one_line(view.name)}"]
    if view.reason is not None:
        lines.append(f"          {one_line(view.reason.message)}")
        # The bus's hint is for commands, which end: a daemon stays.
        hint = "The daemon goes on trying." if view.reason.kind == "bus-unreachable" else view.reason.hint
        if hint:
            lines.append(f"          {one_line(hint)}")
    if view.channels:
        lines.append(f"channels  {', '.join(view.channels)}")
    if view.uploaded_objects or view.grants:
        lines.append(
            f"uploaded  {counted(view.uploaded_objects, 'object')}, {format_size(view.uploaded_bytes)};"
            f" {view.failures} failed"
        )
    if view.last_failure is not None:
        lines.append(f"          last failure: {one_line(view.last_failure.message)}")
    rows = [
        [
            "uploading",
            f"{one.channel}/{one.stream[:12]}",
            f"object {one.object}",
            one.stage,
            f"{format_size(one.sent)} / {format_size(one.size)}",
        ]
        # An object that is granted anew while the hub has not heard of the grant before is one upload: the newer.
        for one in {(each.channel, each.stream, each.object): each for each in view.uploads}.values()
    ]
    return lines + table(rows)


def hub_document(hub: object) -> dict[str, object]:
    """A joined hub as JSON shows it."""
    from entrepot.services.hubs import JoinedHub

    assert isinstance(hub, JoinedHub)
    return {
        "url": hub.url,
        "host": hub.host,
        "hub": hub.public,
        "node": hub.node,
        "name": hub.name,
        "channels": [
            {
                "name": channel.name,
                "rights": channel.rights.split(","),
                "quota": channel.quota,
                "public_read": channel.public_read,
                "lock": channel.lock.hex,
                "schema_lock": plain(
                    {
                        "channel": channel.lock.channel,
                        "codec": channel.lock.codec,
                        "format": channel.lock.format,
                        "miniblock": channel.lock.miniblock,
                        "object": channel.lock.object,
                    }
                ),
            }
            for channel in hub.channels
        ],
    }


def channel_list(hub: dict[str, object]) -> str:
    """The names of the channels of a hub's document."""
    channels = hub["channels"]
    assert isinstance(channels, list)
    return ", ".join(one["name"] for one in channels) or "no channel"
