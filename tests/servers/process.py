"""A server process of the tests: started on a free loopback port, waited for, ended by its id."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

START_TIMEOUT = 60.0


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """Runs ``command(port)`` as a context manager; ``ready(port)`` says whether it serves. Output goes to
    ``log``.

    A port may be taken between being found free and being bound: then another is tried.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str | Path]],
        ready: Callable[[int], bool],
        *,
        log: Path,
        environment: Callable[[int], Mapping[str, str]] | None = None,
    ) -> None:
        self.port = 0
        self._command = command
        self._ready = ready
        self._log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for _ in range(5):
            self.port = free_port()
            self._start()
            if self._wait():
                return self
            self.stop()
        raise RuntimeError(f"the server does not start:\n{self._log.read_text(errors='replace')[-3000:]}")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process. Idempotent."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in self._command(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=None if self._environment is None else dict(self._environment(self.port)),
                cwd=self._log.parent,
            )

    def _wait(self) -> bool:
        assert self._process is not None
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            if self._process.poll() is not None:
                return False
            if self._ready(self.port):
                return True
            time.sleep(0.05)
        return False


def answers_http(port: int) -> bool:
    """Whether something on this loopback port answers a request."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return connection.recv(5) == b"HTTP/"
    except OSError:
        return False
