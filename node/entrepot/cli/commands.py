"""The table of commands, and an application of those that a command line needs.

Making all of them means importing and inspecting all of them, which takes as long as many a command itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Final

import typer

#: Each command, in the order of the help, and its module and function.
COMMANDS: Final = {
    "join": "membership:join",
    "add": "transfer:add",
    "get": "transfer:get",
    "cat": "transfer:cat",
    "ls": "holdings:ls",
    "info": "holdings:info",
    "why": "timeline:why",
    "status": "serving:status",
    "id": "naming:id_",
    "uri": "naming:uri",
    "verify": "holdings:verify",
    "rm": "holdings:rm",
    "up": "serving:up",
    "down": "serving:down",
    "doctor": "doctor:doctor",
    "whoami": "membership:whoami",
    "version": "membership:version",
}


def application(names: Iterable[str]) -> typer.Typer:
    """``entrepot`` with these commands of the table."""
    app = typer.Typer(
        name="entrepot",
        rich_markup_mode=None,  # plain help: the same on a terminal, in a pipe and in the documentation
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback(invoke_without_command=True)(entrepot)
    for name in names:
        module, _, function = COMMANDS[name].partition(":")
        app.command(name)(getattr(import_module(f"entrepot.cli.{module}"), function))
    return app


def spelled(words: list[str]) -> list[str]:
    """The command line that is meant: ``--version`` for ``version``, ``help`` for ``--help``, ``help get`` for ``get
    --help``."""
    match words:
        case ["--version", *rest]:
            return ["version", *rest]
        case ["help", *rest]:
            return [*rest, "--help"]
    return words


def needed(words: Sequence[str]) -> Iterable[str]:
    """The commands that can have a part in this command line: its own, or all of them where it has none."""
    return words[:1] if words and words[0] in COMMANDS else COMMANDS


def entrepot(
    context: typer.Context,
) -> None:
    """Files kept where they are, fetched by those who may read them.

    Results go to stdout, remarks and errors to stderr. Exit codes: 0 done, 1 our mistake, 2 invalid input,
    3 not found, 4 denied, 5 conflict, 6 may succeed later, 7 corrupt, 130 interrupted.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)
