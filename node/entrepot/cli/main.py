"""The entry point: runs one command and turns however it ends into an exit code.

| code | meaning |
|---|---|
| 0 | done |
| 1 | our own mistake |
| 2 | invalid input or usage |
| 3 | not found |
| 4 | denied |
| 5 | conflict |
| 6 | nothing wrong with it: the same command may succeed later |
| 7 | corrupt |
| 130 | interrupted |
| 141 | the reader of stdout went away |
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typer import TyperException

    from entrepot.core.errors import InvalidInput


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` (by default the process's) name; the exit code.

    Installed as ``entrepot``. Tells every failure in one sentence and a hint, without a traceback.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        # Imported in here so that Ctrl-C during start-up is as quiet as later on.
        from entrepot.cli.output import READER_GONE, ReaderGone, silence

        try:
            return _run(words)
        except ReaderGone:
            silence()
            return READER_GONE
    except KeyboardInterrupt:
        return 130


def _run(words: list[str]) -> int:
    from entrepot.cli.output import ReaderGone, fail, show_trace
    from entrepot.core.errors import EntrepotError, Internal

    as_json = wants_json(words)
    try:
        return _command(words, as_json=as_json)
    except ReaderGone:
        raise
    except EntrepotError as error:
        if _debugging():
            show_trace(error)
        return fail(error, as_json=as_json)
    except Exception as error:  # noqa: BLE001  # the last resort: whatever escaped is our mistake
        if _debugging():
            show_trace(error)
        name = type(error).__name__
        detail = f"{name}: {error}" if str(error) else name
        return fail(
            Internal(
                f"an error of entrepot itself: {detail}",
                hint="Please report it. ENTREPOT_DEBUG=1 shows where it happened.",
            ),
            as_json=as_json,
        )


def _command(words: list[str], *, as_json: bool) -> int:
    import typer

    from entrepot.cli.commands import application, needed, spelled
    from entrepot.cli.output import fail

    words = spelled(words)
    try:
        code = application(needed(words))(args=words, prog_name="entrepot", standalone_mode=False)
    except typer.TyperException as error:
        return fail(_usage(error, words), as_json=as_json)
    except typer.Abort:
        from entrepot.cli.output import INTERRUPTED

        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _usage(error: TyperException, words: Sequence[str]) -> InvalidInput:
    from entrepot.cli.commands import COMMANDS
    from entrepot.core.errors import InvalidInput

    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    command = "entrepot" if context is None else context.command_path
    hint = f"Try: {command} --help"
    named = next((word for word in words if word in COMMANDS), None)
    if named is not None and words[0].startswith("-"):
        hint = f"Options go after the command: entrepot {named} {words[0]}"
    return InvalidInput(message[:1].lower() + message[1:], hint=hint)


def wants_json(words: Sequence[str]) -> bool:
    """Whether ``--json`` was asked for: also where the rest of the command line makes no sense."""
    options = words[: words.index("--")] if "--" in words else words
    return "--json" in options


def _debugging() -> bool:
    from entrepot.cli.environment import is_debugging

    return is_debugging()
