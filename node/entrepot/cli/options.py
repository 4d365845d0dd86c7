"""Options that several commands share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.core.errors import InvalidInput
from entrepot.core.lock import is_channel
from entrepot.core.rate import Bandwidth
from entrepot.core.uri import check_hub

if TYPE_CHECKING:
    from entrepot.services.settings import NodeSettings

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, also for an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks; errors are told.")]
Channel = Annotated[
    str | None, typer.Option("--channel", "-c", metavar="NAME", help="The channel, if several are joined.")
]
Hub = Annotated[
    str | None, typer.Option("--hub", metavar="HOST[:PORT]", help="The hub, if several have such a channel.")
]
Timeout = Annotated[
    str, typer.Option("--timeout", metavar="DURATION", help="Give up after so long without a verified byte.")
]

Bwlimit = Annotated[
    str | None,
    typer.Option("--bwlimit", metavar="RATE", help="At most so many bytes/s: 10M, 2M:10M (up:down), off."),
]


def limited(settings: NodeSettings, bwlimit: str | None) -> NodeSettings:
    """``settings`` with ``--bwlimit``, if it was given. Raises ``invalid-input``."""
    return settings if bwlimit is None else replace(settings, bandwidth=Bandwidth.parse(bwlimit))


def check_channel(name: str | None) -> str | None:
    """``name`` itself, if it can name a channel. Raises ``invalid-input``."""
    if name is not None and not is_channel(name):
        raise InvalidInput(f"{name[:100]!r} is not a channel's name", hint="It is 1 to 32 of a-z and 0-9.")
    return name


def check_host(hub: str | None) -> str | None:
    """``hub`` itself, if it is a hub's host and port as in a URI. Raises ``invalid-uri``."""
    return None if hub is None else check_hub(hub)
