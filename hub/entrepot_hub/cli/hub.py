"""``entrepot-hub init, serve, status, audit, nats-config``: the hub itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from entrepot.core.errors import Conflict, Denied, RetryLater
from entrepot_hub.cli.access import access, ask, home, runs, settings_of
from entrepot_hub.cli.display import (
    exactly,
    note,
    print_error,
    print_fields,
    print_json,
    print_json_with,
    print_table,
    say,
    used,
    when,
)
from entrepot_hub.cli.options import Folder, Json

if TYPE_CHECKING:
    from entrepot_hub.services.administration import Status
    from entrepot_hub.services.settings import HubSettings, Listen

_PAGE = 1000
_LISTEN = "127.0.0.1:8480"
_TIMES = {"expires"}  #: details of the audit log that are points in time


def init(
    url: Annotated[str, typer.Option(help="Where nodes will reach the hub: https://hub.example.org")],
    listen: Annotated[
        str | None,
        typer.Option(
            help="Address and port to listen at. [default: the URL's own if it is http:// on this machine, else "
            "127.0.0.1:8480]",
            show_default=False,
        ),
    ] = None,
    nats_listen: Annotated[str, typer.Option(help="The same for the hub's own message bus.")] = "127.0.0.1:4222",
    nats: Annotated[
        list[str] | None,
        typer.Option(help="Use these NATS servers and run none.", metavar="URL", show_default=False),
    ] = None,
    nats_url: Annotated[
        list[str] | None,
        typer.Option(help="Where nodes find the message bus, if not there.", metavar="URL", show_default=False),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Allow http:// beyond this machine, in a closed network.")
    ] = False,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Leave a hub that is in this folder already as it is.")
    ] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Set up a hub: its folder, keys, database and settings."""
    from entrepot_hub.services.identity import create_hub
    from entrepot_hub.services.settings import FILE_NAME, Listen, load_settings

    place = home(folder)
    if if_missing and (place / FILE_NAME).exists():
        _say_there(folder, url, as_json=as_json)
        return
    made = create_hub(
        place,
        url,
        _own_address(url) if listen is None else Listen.parse(listen),
        Listen.parse(nats_listen),
        plain=plain,
        nats=nats or (),
        nats_urls=nats_url or (),
    )
    settings = load_settings(place)
    warning = settings.nats_warning()
    if warning is not None:
        note(f"note: {warning}")
    if listen is None and not settings.secure and urlsplit(settings.urls[0]).port != settings.listen.port:
        note(f"note: it listens at {settings.listen}, see listen in its hub.toml; nodes will ask {settings.urls[0]}")
    if as_json:
        files = [str(path) for path in made.backup]
        print_json({"folder": str(made.folder), "hub": made.hub_public, "backup": files, "made": True})
        return
    say(f"hub {made.hub_public} set up in {made.folder}")
    say()
    say("Back these up, apart from each other if you can; without the first the second is worth nothing:")
    for path in made.backup:
        say(f"    {path}")
    say()
    say("Or, once it has channels and members, keep one encrypted file of all that: entrepot-hub export FILE")
    say()
    say("next: entrepot-hub serve")


def _own_address(url: str) -> Listen:
    """Where a hub listens if nobody says: at its own address for a trial on one machine, else where a proxy in front
    finds it."""
    from entrepot.core.invite import is_loopback
    from entrepot_hub.services.settings import Listen

    with contextlib.suppress(ValueError):  # a bad URL is told by whoever reads it
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "http" and parts.port and is_loopback(host):
            return Listen("127.0.0.1" if host == "localhost" else host, parts.port)
    return Listen.parse(_LISTEN)


def _say_there(folder: Path | None, url: str, *, as_json: bool) -> None:
    """A hub is there already. One that cannot be opened is an error nevertheless."""
    from entrepot_hub.services.identity import hub_files, load_identity, load_keys

    settings = settings_of(folder)
    hub = load_identity(settings, load_keys(settings)).hub_public
    if url.rstrip("/") not in settings.urls:
        note(f"note: its address is {', '.join(settings.urls)}, not {url}: see urls in its hub.toml")
    if as_json:
        files = [str(path) for path in hub_files(settings.folder) if path.exists()]
        print_json({"folder": str(settings.folder), "hub": hub, "backup": files, "made": False})
        return
    say(f"hub {hub} is there already, in {settings.folder}")


def serve(
    nats: Annotated[
        list[str] | None,
        typer.Option(help="Use these NATS servers and run none.", metavar="URL", show_default=False),
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log in JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every step of every transfer, with its id.")] = False,
    folder: Folder = None,
) -> None:
    """Run the hub until it is stopped (Ctrl-C, SIGTERM)."""
    settings = settings_of(folder)
    if nats:
        settings = settings.with_nats(nats)
    from entrepot_hub.adapters.memory import keep_freed_memory
    from entrepot_hub.cli.logs import set_up_logs
    from entrepot_hub.services.hub import Hub

    if runs(settings):
        raise Conflict("a hub is running in this folder already", kind="in-use", folder=str(settings.folder))
    keep_freed_memory()
    set_up_logs(as_json=log_json, verbose=verbose)

    async def run() -> None:
        async with Hub(settings, verbose=verbose) as hub:
            note(f"hub ready: {settings.urls[0]}, listening at {settings.listen.host} port {hub.port}; Ctrl-C stops it")
            if (warning := hub.nats_warning()) is not None:
                note(f"note: {warning}")
            await hub.serve_until_stopped()

    asyncio.run(run())


def status(
    check: Annotated[bool, typer.Option("--check", help="Exit with 6 unless it runs and has all it needs.")] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Show whether the hub runs, and what it holds."""
    from entrepot_hub.services.administration import Nothing

    if check and not runs(settings_of(folder)):
        raise RetryLater("no hub is running here", hint="Start it: entrepot-hub serve")
    found, _ = ask(folder, "status", Nothing())
    problem = _missing(found.checks) if check else None
    if as_json:
        print_json_with(found, problem)
    else:
        _print_status(found)
    if problem is not None:
        if not as_json:
            print_error(problem, as_json=False)
        raise typer.Exit(problem.exit_code)


def _missing(checks: Mapping[str, str]) -> RetryLater | None:
    """Why the hub is not ready, as /readyz has it."""
    bad = [f"{name} ({state})" for name, state in sorted(checks.items()) if state not in {"ok", "degraded"}]
    return RetryLater(f"the hub is not ready: {', '.join(bad)}", hint="Its log tells more.") if bad else None


def _print_status(found: Status) -> None:
    for warning in found.warnings:
        note(f"note: {warning}")
    print_fields(
        [
            ("hub", found.hub),
            ("address", ", ".join(found.urls)),
            *([("bus", ", ".join(found.nats))] if found.nats else []),
            ("running", "yes" if found.running else "no"),
            *((name, state) for name, state in sorted(found.checks.items())),
            ("channels", found.channels),
            ("nodes", found.nodes),
            ("used", used(found.charged, found.quota, found.held, found.held_until)),
        ]
    )


def audit(
    after: Annotated[int, typer.Option(help="Only lines after the one with this number.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="At most so many lines, the latest.", min=1)] = 100,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Show who changed what."""
    entries = asyncio.run(_audit(settings_of(folder), after, limit))
    if as_json:
        print_json(entries)
        return
    print_table(
        ("no.", "when", "who", "what", "to what", "detail"),
        [
            (
                entry.id,
                when(entry.at),
                entry.actor[:12],
                entry.action,
                entry.subject[:40],
                " ".join(f"{name}={_detail(name, value)}" for name, value in entry.detail.items()),
            )
            for entry in entries
        ],
        empty="nothing was changed yet",
    )


def _detail(name: str, value: object) -> object:
    return exactly(value) if name in _TIMES and isinstance(value, int | float) else value


async def _audit(settings: HubSettings, after: int, limit: int) -> list[Any]:
    """The last ``limit`` lines after one, read page by page."""
    from entrepot_hub.services.administration import AuditPage

    kept: deque[Any] = deque(maxlen=limit)
    async with access(settings) as way:
        while page := await way.hub.call("audit", AuditPage(after=after, limit=_PAGE)):
            kept.extend(page)
            after = page[-1].id
    return list(kept)


def nats_config(
    stock: Annotated[Path, typer.Option(help="Folder to write the configuration into.", metavar="DIR")],
    websocket: Annotated[bool, typer.Option(help="Listen for WebSocket too.")] = True,
    certificate: Annotated[
        str | None, typer.Option(help="The server's certificate chain, as the server sees it.", show_default=False)
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The certificate's key, as the server sees it.", show_default=False)
    ] = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Write the configuration for a NATS server of your own (the stock nats image). It holds no secret."""
    from entrepot.core.errors import InvalidInput
    from entrepot_hub.core.nats_identity import TlsFiles
    from entrepot_hub.services.identity import load_identity, load_keys

    if (certificate is None) != (key is None):
        raise InvalidInput("a certificate and its key belong together")
    settings = settings_of(folder)
    identity = load_identity(settings, load_keys(settings))
    tls = None if certificate is None or key is None else TlsFiles(certificate=certificate, key=key)
    text = identity.image_config(time.time(), tls=tls, websocket=websocket)
    path = stock / "nats-server.conf"
    try:
        stock.mkdir(parents=True, exist_ok=True)
        making = stock / f".nats-server.conf.{os.getpid()}"
        making.write_text(text)
        making.replace(path)
    except OSError as error:
        raise Denied(f"{path} cannot be written: {error.strerror}", kind="unreadable", path=str(path)) from None
    if as_json:
        print_json({"file": str(path)})
        return
    say(str(path))
    note("Mount it as /etc/nats/nats-server.conf, keep /data in a volume, and start the hub with")
    note("    entrepot-hub serve --nats nats://HOST:4222")
