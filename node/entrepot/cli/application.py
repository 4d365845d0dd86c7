"""The commands, in the order in which ``entrepot --help`` lists them."""

from __future__ import annotations

from typing import Final

import typer

from entrepot.cli import doctor, holdings, membership, naming, serving, timeline, transfer

app: Final = typer.Typer(
    name="entrepot",
    rich_markup_mode=None,  # plain help: the same on a terminal, in a pipe and in the documentation
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback(invoke_without_command=True)
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


app.command("join")(membership.join)
app.command("add")(transfer.add)
app.command("get")(transfer.get)
app.command("cat")(transfer.cat)
app.command("ls")(holdings.ls)
app.command("info")(holdings.info)
app.command("why")(timeline.why)
app.command("status")(serving.status)
app.command("id")(naming.id_)
app.command("uri")(naming.uri)
app.command("verify")(holdings.verify)
app.command("rm")(holdings.rm)
app.command("up")(serving.up)
app.command("down")(serving.down)
app.command("doctor")(doctor.doctor)
app.command("whoami")(membership.whoami)
app.command("version")(membership.version)
