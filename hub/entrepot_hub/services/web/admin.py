"""The admin's socket: the operations of :mod:`entrepot_hub.services.operations` over HTTP on a file.

The socket's file is for the hub's user alone; whoever may open it is the admin. ``POST /admin/<operation>``
with the request in JSON.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from entrepot.core.errors import Conflict, Denied, InvalidInput, NotFound
from entrepot_hub.services.administration import ADMIN
from entrepot_hub.services.desk import Desk
from entrepot_hub.services.operations import OPERATIONS
from entrepot_hub.services.web.admin_client import answers
from entrepot_hub.services.web.errors import json_answer
from entrepot_hub.services.web.signatures import decode_body, read_body

#: The longest path of a socket, in bytes, that Linux (108) and macOS (104) both take.
_MAX_PATH: Final = 103


class AdminRoutes:
    """Every operation at a path of its own."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[web.RouteDef]:
        """The routes, for ``app.router.add_routes``."""
        return [web.post("/admin/{operation}", self.operate)]

    async def operate(self, request: web.Request) -> web.Response:
        """Do what is asked for."""
        operation = OPERATIONS.get(request.match_info["operation"])
        if operation is None:
            raise NotFound("there is no such operation", hint="Is the hub of another version?")
        asked = decode_body(request, await read_body(request), operation.request)
        return json_answer(await operation.call(self._desk, asked, ADMIN))


class AdminSocket:
    """A listening socket at ``path`` that only this user can open (0600), owned by this process alone.

    It is made under another name, restricted, and then moved into place, so that it is never open to others
    and never half there. One that a dead hub left is replaced; where a hub still answers, Conflict
    (``in-use``). A lock on ``<path>.lock`` keeps two hubs that start together apart.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None
        self.socket: socket.socket | None = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Take the socket away. Idempotent."""
        await asyncio.to_thread(self._close)

    def _open(self) -> None:
        made = self._path.parent / f".{secrets.token_hex(3)}"
        if len(os.fsencode(self._path)) > _MAX_PATH or len(os.fsencode(made)) > _MAX_PATH:
            raise InvalidInput(
                f"the path of the hub's socket is too long: {self._path}",
                kind="invalid-setting",
                hint=f"Choose a folder whose path has fewer than {_MAX_PATH - 10} bytes.",
            )
        try:
            self._take_lock()
            if answers(self._path):
                raise Conflict("a hub is running in this folder already", kind="in-use", path=str(self._path))
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket = listening
            listening.bind(os.fspath(made))
            try:
                made.chmod(0o600)
                listening.listen(64)
                made.replace(self._path)
            except BaseException:
                made.unlink(missing_ok=True)
                raise
            listening.setblocking(False)
        except OSError as error:
            self._close()
            raise Denied(
                f"the hub's socket cannot be made: {error.strerror}", kind="unreadable", path=str(self._path)
            ) from None
        except BaseException:
            self._close()
            raise

    def _take_lock(self) -> None:
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("a hub is running in this folder already", kind="in-use", path=str(self._path)) from None
        except OSError as error:
            # A file system without locks: the look at who answers has to do.
            if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise

    def _close(self) -> None:
        if self.socket is not None:
            with suppress(OSError):
                self._path.unlink()
            self.socket.close()
            self.socket = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
