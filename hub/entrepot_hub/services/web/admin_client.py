"""The admin's side of the hub's socket: what a command needs to ask a running hub, and no more: it starts fast."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from entrepot.core.api import FaultAnswer
from entrepot.core.errors import Denied, RetryLater, from_wire
from entrepot_hub.services.desk import Request
from entrepot_hub.services.operations import OPERATIONS

_TIMEOUT: Final = 120.0  # seconds: surveying a bucket takes its time


def answers(path: Path) -> bool:
    """Whether somebody listens at this socket. Blocking, for a moment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(2.0)
        try:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise Denied(f"{path} is no socket", kind="unreadable", path=str(path))
            asking.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except TimeoutError:
            return True
        except OSError as error:
            raise Denied(
                f"the hub's socket cannot be opened: {error.strerror}",
                kind="unreadable",
                hint="Run this as the user that the hub runs as.",
                path=str(path),
            ) from None
        return True


class _Connection(http.client.HTTPConnection):
    """HTTP on a socket in the file system. The standard library's: a command that asks one thing starts faster by half
    than with a client that can do more."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("hub", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open the socket. Blocking."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


class AdminClient:
    """Asks a running hub through its socket. Raises what the hub answered, and RetryLater
    (``hub-unreachable``). ``timeout`` in seconds, for each wait for the hub."""

    def __init__(self, path: Path, *, timeout: float = _TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._open = False

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ask nothing more: each question has a connection of its own. Idempotent."""
        self._open = False

    async def call(self, operation: str, asked: Request) -> Any:
        """The answer to one operation of :data:`OPERATIONS`, in its form."""
        if not self._open:
            raise RetryLater("the connection to the hub is closed", kind="hub-unreachable")
        try:
            status, data = await asyncio.to_thread(self._post, operation, msgspec.json.encode(asked))
        except TimeoutError:
            raise RetryLater("the hub did not answer in time", kind="deadline") from None
        except (http.client.HTTPException, OSError) as error:
            raise RetryLater(
                f"the hub cannot be reached through its socket: {type(error).__name__}", kind="hub-unreachable"
            ) from None
        try:
            if status == 200:
                return msgspec.json.decode(data, type=OPERATIONS[operation].answer)
            fault = msgspec.json.decode(data, type=FaultAnswer).error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise RetryLater(
                f"the hub's answer ({status}) cannot be read", hint="Is the hub of another version?"
            ) from None
        raise from_wire(fault.kind, fault.message, fault.hint, fault.data)

    def _post(self, operation: str, body: bytes) -> tuple[int, bytes]:
        connection = _Connection(self._path, self._timeout)
        try:
            connection.request("POST", f"/admin/{operation}", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
