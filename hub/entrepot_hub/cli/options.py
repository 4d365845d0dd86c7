"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from entrepot_hub.cli.access import HOME_VARIABLE


def give_help(app: typer.Typer) -> None:
    """Have a group of commands without a command tell what there is, on the standard error, with exit code 2."""

    @app.callback(invoke_without_command=True)
    def group(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help(), err=True)
            raise typer.Exit(2)


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
