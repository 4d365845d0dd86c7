"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entrepot_hub.cli.access import HOME_VARIABLE

Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        envvar=HOME_VARIABLE,
        help="The hub's folder.",
        show_default=False,
        metavar="DIR",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ChannelName = Annotated[str, typer.Argument(help="The channel.", metavar="NAME")]
NodeText = Annotated[
    str, typer.Argument(help="The node: its name, its key, or the beginning of either.", metavar="NODE")
]
