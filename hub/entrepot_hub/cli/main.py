"""The command ``entrepot-hub``. Exit codes are those of the error classes; errors go to the standard error, with
``--json`` to the standard output."""

from __future__ import annotations

import os
import sys

import typer

from entrepot.core.errors import EntrepotError, Internal, InvalidInput
from entrepot_hub.cli import channels, credentials, disposable, doctor, hub, nodes, pins, reconcile, top, usage
from entrepot_hub.cli.display import print_error
from entrepot_hub.cli.options import give_help

#: Set to anything, a mistake of ours shows its traceback.
DEBUG_VARIABLE = "ENTREPOT_DEBUG"
#: Exit code when the reader of the standard output went away: 128 + SIGPIPE, as for ``entrepot``.
_READER_GONE = 141

app = typer.Typer(
    name="entrepot-hub",
    help="Run and look after an entrepot hub.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
give_help(app)
app.command("init")(hub.init)
app.command("serve")(hub.serve)
app.command("status")(hub.status)
app.command("top")(top.top)
app.command("audit")(hub.audit)
app.command("nats-config")(hub.nats_config)
app.command("policy")(doctor.policy)
channels.app.command("doctor")(doctor.doctor)
channels.app.command("reconcile")(reconcile.reconcile)
channels.app.command("usage")(usage.usage)
channels.app.command("limit")(usage.limit)
channels.app.command("quota")(usage.quota)
channels.app.command("pin")(pins.pin)
channels.app.command("unpin")(pins.unpin)
channels.app.command("pins")(pins.pins)
channels.app.add_typer(credentials.app, name="credentials")
app.command("rotate-master-key")(credentials.rotate_master_key)
app.command("export")(disposable.export)
app.command("rebuild")(disposable.rebuild)
app.add_typer(channels.app, name="channel")
app.add_typer(nodes.app, name="node")
app.add_typer(usage.prices, name="price")


def main() -> None:
    """The entry point. Ends the process."""
    as_json = "--json" in sys.argv
    try:
        code = app(prog_name="entrepot-hub", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.TyperException as error:
        usage = _usage(error)
        print_error(usage, as_json=as_json)
        sys.exit(usage.exit_code)
    except EntrepotError as error:
        print_error(error, as_json=as_json)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has had enough; Python must not complain about it when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_READER_GONE)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        mistake = Internal(
            f"entrepot-hub made a mistake: {type(error).__name__}",
            hint=f"Run it again with {DEBUG_VARIABLE}=1 to see where, and report it.",
        )
        print_error(mistake, as_json=as_json)
        sys.exit(mistake.exit_code)


def _usage(error: typer.TyperException) -> InvalidInput:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    command = "entrepot-hub" if context is None else context.command_path
    return InvalidInput(message[:1].lower() + message[1:], hint=f"Try: {command} --help")


if __name__ == "__main__":
    main()
