"""Running the asynchronous work of a command, and ending it well."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager

import typer

from entrepot.cli.output import INTERRUPTED, Output


@contextmanager
def interruptible(output: Output, remark: str) -> Iterator[None]:
    """Ctrl-C ends the block with exit code 130 and ``remark``, which says what became of the work."""
    try:
        yield
    except KeyboardInterrupt:
        output.interrupted(remark)
        raise typer.Exit(INTERRUPTED) from None


def run[T](work: Coroutine[object, object, T]) -> T:
    """What ``work`` gives. Ctrl-C cancels it, lets it clean up, and then raises KeyboardInterrupt.

    A group of one error is that error: tasks of the services run in groups.
    """
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        inner: BaseException = group
        while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
            inner = inner.exceptions[0]
        if inner is group:
            raise
        raise inner from None
