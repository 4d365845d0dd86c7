"""The command ``entrepot-hub``. Exit codes are those of the error classes; errors go to the standard
error."""

from __future__ import annotations

import os
import sys

import typer

from entrepot.core.errors import EntrepotError, Internal
from entrepot_hub.cli import channels, hub, nodes
from entrepot_hub.cli.display import print_error

#: Set to anything, a mistake of ours shows its traceback.
DEBUG_VARIABLE = "ENTREPOT_DEBUG"

app = typer.Typer(
    name="entrepot-hub",
    help="Run and look after an entrepot hub.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("init")(hub.init)
app.command("serve")(hub.serve)
app.command("status")(hub.status)
app.command("audit")(hub.audit)
app.command("nats-config")(hub.nats_config)
app.add_typer(channels.app, name="channel")
app.add_typer(nodes.app, name="node")


def main() -> None:
    """The entry point. Ends the process."""
    as_json = "--json" in sys.argv
    try:
        app()
    except EntrepotError as error:
        print_error(error, as_json=as_json)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has had enough; Python must not complain about it when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        mistake = Internal(
            f"entrepot-hub made a mistake: {type(error).__name__}",
            hint=f"Run it again with {DEBUG_VARIABLE}=1 to see where, and report it.",
        )
        print_error(mistake, as_json=as_json)
        sys.exit(mistake.exit_code)


if __name__ == "__main__":
    main()
