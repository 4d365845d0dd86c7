"""What commands say to the daemon of their store, if one runs; and how one is started in the background."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from entrepot.adapters.files import make_folder, translated
from entrepot.core.api import FaultAnswer
from entrepot.core.errors import EntrepotError, NotFound, RetryLater, from_wire
from entrepot.core.identifiers import StreamId
from entrepot.services.control import MAX_BODY, MAX_STREAMS, AddedRequest, DaemonStatus, Done
from entrepot.services.settings import NodeSettings

#: Streams told at once: a hub has them recorded well within the time that an answer may take.
_AT_ONCE: Final = min(MAX_STREAMS, 1024)
#: Settings reach the detached process as the environment variables that its command line reads.
_START: Final = (
    "import os, sys\n"
    "home, ca_file = sys.argv[1:3]\n"
    "os.environ['ENTREPOT_HOME'] = home\n"
    "if ca_file: os.environ['ENTREPOT_CA_FILE'] = ca_file\n"
    "from entrepot.cli.main import main\n"
    "sys.exit(main(['up', *sys.argv[3:]]))\n"
)


class DaemonClient:
    """Speaks to the daemon of the home in ``settings``. Every call opens and closes its own connection.

    Every method but :meth:`running` raises ``not-running`` if there is none, ``deadline`` if it does not answer.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings

    async def running(self) -> bool:
        """Whether a daemon answers."""
        try:
            await self.status()
        except (NotFound, RetryLater):
            return False
        return True

    async def status(self) -> DaemonStatus:
        """How it goes."""
        return await self._call("GET", "/v1/status", None, DaemonStatus)

    async def added(self, streams: Iterable[StreamId]) -> int:
        """These streams are held now; returns how many hubs and channels were told."""
        told, names = 0, [stream.hex for stream in streams]
        for at in range(0, len(names), _AT_ONCE):
            request = AddedRequest(streams=tuple(names[at : at + _AT_ONCE]))
            told += (await self._call("POST", "/v1/added", request, Done)).told
        return told

    async def joined(self) -> None:
        """A hub or a channel was joined."""
        await self._call("POST", "/v1/hubs", None, Done)

    async def poke(self, streams: Iterable[StreamId] = ()) -> bool:
        """Tell it of new streams and hubs, whatever comes of it; returns whether one runs."""
        held = list(streams)
        if held:
            return (await self.tell(held))[0]
        try:
            await self.joined()
        except NotFound:
            return False
        except EntrepotError:
            return True
        return True

    async def tell(self, streams: Iterable[StreamId]) -> tuple[bool, bool]:
        """Tell it of new streams, whatever comes of it; returns whether one runs, and whether a hub heard of them."""
        held = list(streams)
        try:
            return True, await self.added(held) >= len(held)
        except NotFound:
            return False, False
        except EntrepotError:
            return True, False  # it runs; what it was not told it asks its hubs for

    async def stop(self) -> None:
        """Have it withdraw and end; returns when it has ended."""
        await self._call("POST", "/v1/stop", None, Done)
        settings = self._settings.daemon
        patience = settings.withdrawal + settings.answer_timeout + 5.0
        with contextlib.suppress(NotFound):
            async with _deadline(patience, "the daemon does not end"):
                while True:
                    await asyncio.sleep(0.05)
                    await self._call("GET", "/v1/status", None, DaemonStatus)

    async def start_detached(self, words: Sequence[str] = ()) -> DaemonStatus:
        """Start ``entrepot up`` with these further words in the background, unless one runs; return when it answers.

        Raises ``not-running`` with the end of its log if it ends at once, ``deadline``.
        """
        with contextlib.suppress(NotFound):
            return await self.status()
        process = await asyncio.to_thread(self._start, words)
        async with _deadline(self._settings.daemon.start_timeout, "the daemon does not answer"):
            while True:
                with contextlib.suppress(NotFound):
                    return await self.status()
                if await asyncio.to_thread(process.poll) is not None:
                    with contextlib.suppress(NotFound):
                        return await self.status()  # another one was first
                    said = await asyncio.to_thread(_tail, self._settings.log_file)
                    raise NotFound(
                        f"the daemon ended at once: {said}",
                        kind="not-running",
                        hint=f"Its log is {self._settings.log_file}; entrepot up shows it at work.",
                        code=process.returncode,
                    )
                await asyncio.sleep(0.05)

    def _start(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        settings = self._settings
        make_folder(settings.home)
        with translated(settings.log_file), open(settings.log_file, "ab", buffering=0) as log:
            settings.log_file.chmod(0o600)
            process = subprocess.Popen(
                [sys.executable, "-c", _START, str(settings.home), settings.ca_file or "", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=settings.home,
                start_new_session=True,
                close_fds=True,
            )
        # It lives on without us; as long as we live somebody has to take note of its end.
        threading.Thread(target=process.wait, name="daemon-end", daemon=True).start()
        return process

    async def _call[A](self, method: str, path: str, request: msgspec.Struct | None, answer: type[A]) -> A:
        seconds = self._settings.daemon.answer_timeout
        socket = self._settings.socket
        if not await asyncio.to_thread(socket.exists):
            raise _not_running()
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(path=str(socket)),
                    timeout=aiohttp.ClientTimeout(total=seconds),
                    cookie_jar=aiohttp.DummyCookieJar(),
                ) as http,
                http.request(
                    method,
                    f"http://daemon{path}",
                    data=None if request is None else msgspec.json.encode(request),
                ) as response,
            ):
                data = await response.content.read(MAX_BODY + 1)
                while not response.content.at_eof() and len(data) <= MAX_BODY:
                    data += await response.content.read(MAX_BODY + 1)
                status = response.status
        except TimeoutError:
            raise RetryLater("the daemon does not answer", kind="deadline", seconds=seconds) from None
        except (aiohttp.ClientError, OSError):
            raise _not_running() from None
        try:
            if status == 200:
                return msgspec.json.decode(data, type=answer)
            fault = msgspec.json.decode(data, type=FaultAnswer).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise RetryLater(
                "the daemon answers as another version does", hint="Restart it: entrepot down, entrepot up."
            ) from None
        raise from_wire(fault.kind, fault.message, fault.hint, fault.data)


@contextlib.asynccontextmanager
async def _deadline(seconds: float, what: str):  # type: ignore[no-untyped-def]  # a generator of nothing
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RetryLater(f"{what} within {seconds:g} s", kind="deadline", seconds=seconds) from None


def _not_running() -> NotFound:
    return NotFound("no daemon serves this store", kind="not-running", hint="Start one: entrepot up")


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace")[-2000:].strip().splitlines()
    except OSError:
        return "it left no log"
    return lines[-1][:500] if lines else "it said nothing"
