"""The commands about who this node is and where it belongs: ``join``, ``whoami`` and ``version``."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.cli.options import Json, Quiet
from entrepot.cli.output import Output, one_line
from entrepot.cli.running import interruptible, run
from entrepot.core.errors import EntrepotError, InvalidInput
from entrepot.core.rights import shorten_rights

if TYPE_CHECKING:
    from entrepot.services.hubs import JoinedHub
    from entrepot.services.settings import NodeSettings

_MAX_INVITE = 4096
_PATIENCE = 3.0  # seconds for the hubs to answer whoami


def join(
    url: Annotated[str, typer.Argument(metavar="URL", help="The invite; - reads it from stdin.", show_default=False)],
    name: Annotated[
        str | None,
        typer.Option("--name", help="What others see this node as; by default as before, else the machine's name."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take up an invite to a channel of a hub.

    An invite is a secret: with - it stays out of the shell's history and the list of processes.
    """
    from entrepot.cli.environment import read_environment
    from entrepot.services.node import Joined, Node

    out = Output(as_json=json, quiet=quiet)
    settings = read_environment().settings()
    if url == "-":
        url = sys.stdin.readline(_MAX_INVITE).strip()
        if not url:
            raise InvalidInput("there is no invite on stdin", kind="invalid-token")

    async def work() -> Joined:
        async with Node(settings) as node:
            return await node.join(url, name=name)

    with interruptible(out, "Whether it was taken up is not known: the same command may be repeated."):
        joined = run(work())
    rights = shorten_rights(joined.rights)
    out.note(f"This node is {one_line(joined.name)} at {joined.host}, with the rights {one_line(rights)}.")
    out.result(
        {
            "url": joined.hub_url,
            "host": joined.host,
            "channel": joined.channel,
            "rights": joined.rights.split(","),
            "name": joined.name,
            "node": joined.node_public,
            "channels": joined.channels,
        },
        f"{joined.channel}@{joined.host}",
    )


def whoami(json: Json = False, quiet: Quiet = False) -> None:
    """Tell who this node is at each hub, and its channels and rights: as the hub says now, or as last heard."""
    from entrepot.cli.environment import read_environment
    from entrepot.cli.serving import hub_document

    out = Output(as_json=json, quiet=quiet)
    settings = read_environment().settings()
    heard = run(_heard(settings))
    lines = []
    for hub, reason in heard:
        lines.append(f"{hub.host}  as {one_line(hub.name)}")
        if reason is not None:
            lines.append(f"  as last heard: {one_line(reason)}")
        lines.append(f"  node    {hub.node}")
        lines.append(f"  hub     {hub.public}")
        lines += [f"  channel {one.name}  {one_line(shorten_rights(one.rights))}" for one in hub.channels]
    if not heard:
        out.note("This node has joined no hub. Ask for an invite, then: entrepot join URL")
    documents = [{**hub_document(hub), "reason": reason} for hub, reason in heard]
    out.result({"home": settings.home, "hubs": documents}, *lines)


async def _heard(settings: NodeSettings) -> list[tuple[JoinedHub, str | None]]:
    """Each joined hub as it says now, or as last heard and why."""
    from entrepot.services.connections import Connections
    from entrepot.services.hubs import Hubs
    from entrepot.services.keychain import Keychain

    hubs = Hubs(settings.hubs_file)
    connections = Connections(settings, hubs, Keychain(settings.seed_file))

    async def ask(hub: JoinedHub) -> str | None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await connections.refresh(hub)
        except TimeoutError:
            return f"the hub at {hub.url} did not answer within {_PATIENCE:g} s"
        except EntrepotError as error:
            return error.message
        return None

    before = await hubs.list()
    reasons = await asyncio.gather(*(ask(hub) for hub in before))
    now = {hub.public: hub for hub in await hubs.list()}
    return [(now.get(hub.public, hub), reason) for hub, reason in zip(before, reasons, strict=True)]


def version(json: Json = False, quiet: Quiet = False) -> None:
    """Print the version of entrepot."""
    from importlib.metadata import version as version_of

    found = version_of("entrepot")
    Output(as_json=json, quiet=quiet).result(
        {"version": found, "python": ".".join(str(part) for part in sys.version_info[:3])}, f"entrepot {found}"
    )
