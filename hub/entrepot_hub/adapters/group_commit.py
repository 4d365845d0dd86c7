"""Transactions that come at the same time are made durable together.

One worker thread takes whatever waits, runs each piece of it in a savepoint of one transaction, and commits once: one
wait for the disk, one way from the event loop to the thread and one back, however many they are. A piece that fails is
rolled back alone. Nobody is answered before the commit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, cast

from sqlalchemy.engine import Connection

from entrepot_hub.adapters.steady import Lane

#: Pieces that are committed together at most.
_MOST: Final = 64


class Piece:
    """Work of one caller, who waits for ``future``. ``run`` makes a transaction of its own or joins an open one."""

    __slots__ = ("future", "result", "run")

    def __init__(self, run: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self.run = run
        self.future = future
        self.result: tuple[Any, BaseException | None] | None = None  # None: it was not run


class GroupCommit:
    """The worker of a database that has one writer. ``transaction`` opens a transaction (with a :class:`.Lane`) on the
    calling thread, which pieces then join; ``alone`` runs a piece that is by itself."""

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Connection]],
        alone: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._transaction = transaction
        self._alone = alone
        self._inbox: SimpleQueue[list[Piece] | None] = SimpleQueue()
        self._gathered: tuple[asyncio.AbstractEventLoop, list[Piece]] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, run: Callable[[], Any]) -> asyncio.Future[Any]:
        """Have it run. What is put in one turn of the event loop reaches the worker together. Whoever cancels the
        future before its turn has it not run."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if self._gathered is None or self._gathered[0] is not loop:
            self._gathered = (loop, [])
            loop.call_soon(self._send, self._gathered[1])
        self._gathered[1].append(Piece(run, future))
        return future

    def close(self) -> None:
        """Wait for what runs; what waits is cancelled. Blocking. May be called again."""
        self._closed = True
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join()
            self._thread = None

    def _send(self, pieces: list[Piece]) -> None:
        if self._gathered is not None and self._gathered[1] is pieces:
            self._gathered = None
        if self._closed:
            for piece in pieces:
                piece.future.cancel()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="database", daemon=True)
            self._thread.start()
        self._inbox.put(pieces)

    # -- in the thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        ended = False
        while not ended:
            pieces: list[Piece] = []
            some = self._inbox.get()
            with suppress(Empty):
                while some is not None and len(pieces) + len(some) < _MOST:
                    pieces += some
                    some = self._inbox.get_nowait()
                pieces += some or ()
            ended = some is None
            for first in range(0, len(pieces), _MOST):
                self._run(pieces[first : first + _MOST])

    def _run(self, pieces: Sequence[Piece]) -> None:
        waiting = [piece for piece in pieces if not (self._closed or piece.future.done())]
        if len(waiting) > 1:
            self._run_together(waiting)
        for piece in waiting:
            if piece.result is None:
                piece.result = _outcome(self._alone, piece.run)
        loops: dict[asyncio.AbstractEventLoop, list[Piece]] = {}
        for piece in pieces:
            loops.setdefault(piece.future.get_loop(), []).append(piece)
        for loop, of_loop in loops.items():
            with suppress(RuntimeError):  # nobody waits: the loop is closed
                loop.call_soon_threadsafe(_tell, of_loop)

    def _run_together(self, pieces: Sequence[Piece]) -> None:
        """Run them in one transaction. Where it comes to nothing, which no caller was told yet, each is left to be run
        alone; but what keeps the transaction from being begun is the answer to all."""
        begun = False
        try:
            with self._transaction() as connection:
                begun = True
                lane = cast(Lane, connection)
                raw = lane.raw
                results = []
                for piece in pieces:
                    raw.execute("SAVEPOINT piece")
                    result = _outcome(piece.run)
                    if result[1] is not None:
                        # After some errors SQLite has rolled back everything: then this raises.
                        raw.execute("ROLLBACK TO piece")
                        lane.forget()
                    raw.execute("RELEASE piece")
                    results.append(result)
        except Exception as error:  # noqa: BLE001
            if not begun:
                for piece in pieces:
                    piece.result = (None, error)
            return
        for piece, result in zip(pieces, results, strict=True):
            piece.result = result


def _outcome(run: Callable[..., Any], *values: Any) -> tuple[Any, BaseException | None]:
    try:
        return run(*values), None
    except BaseException as error:  # noqa: BLE001
        return None, error  # its caller's


def _tell(pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        if piece.future.done():
            continue
        if piece.result is None:
            piece.future.cancel()
        elif piece.result[1] is not None:
            piece.future.set_exception(piece.result[1])
        else:
            piece.future.set_result(piece.result[0])
