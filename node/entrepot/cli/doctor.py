"""``doctor``: is everything there that this node needs?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from entrepot.cli.options import Json, Quiet
from entrepot.cli.output import Output, one_line
from entrepot.cli.running import interruptible, run

if TYPE_CHECKING:
    from entrepot.core.errors import EntrepotError
    from entrepot.services.doctor import Check

_MARKS: Final = {"ok": "ok", "note": "note", "warning": "WARNING", "failure": "FAILED"}


def doctor(json: Json = False, quiet: Quiet = False) -> None:
    """Try everything that this node needs: its disk and store, clock, hubs, message bus, rights and buckets.

    Nothing is changed. The exit code is that of the first failure; warnings and notes are no failures.
    """
    from entrepot.cli.environment import read_environment
    from entrepot.services.doctor import Doctor

    out = Output(as_json=json, quiet=quiet)
    settings = read_environment().settings()
    checks: list[Check] = []

    async def work() -> None:
        async for check in Doctor(settings).examine():
            checks.append(check)
            if quiet and check.outcome in {"ok", "note"}:
                continue
            out.lines(f"{_MARKS[check.outcome]:<8} {one_line(check.name)}: {one_line(check.text)}")
            if check.mend is not None:
                out.lines(f"{'':8} {one_line(check.mend)}")

    with interruptible(out, "Nothing was changed."):
        run(work())
    failed: list[EntrepotError] = [check.error for check in checks if check.error is not None]
    document: dict[str, object] = {"checks": checks}
    if failed:
        document["error"] = failed[0]
    out.result(document)
    if failed:
        raise typer.Exit(failed[0].exit_code)
