"""What a hub alone can do: grants and signed GETs for each second of its processor time.

A real hub (``entrepot-hub serve``: SQLite, its own nats-server) as a process, an S3 bucket on rclone's server, and in
this process many nodes that speak the exchange by hand: they offer, accept, PUT and report objects of 64 KiB, and want
them. The objects are real and lie in the bucket; what is measured is the processor time of the hub's process.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

if __package__ in {None, ""}:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.servers.grid import Content, Grid, Peer
from tests.servers.nodes import HubProcess
from tests.servers.rclone import run_rclone
from tests.servers.relay import Relay

from entrepot.adapters.bus import Message as BusMessage
from entrepot.core import subjects
from entrepot.core.errors import RetryLater
from entrepot.core.invite import Invite
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Grant, Seek, Signed, State, WantReply, decode

_MINIBLOCK, _OBJECT = 16 << 10, 64 << 10
_WINDOW = 32
#: Seconds after which a measurement is given up.
_PATIENCE = 300.0


class _Direct:
    """Stands for the relay of a hub process that nodes reach directly."""

    def __init__(self, port: int) -> None:
        self.port = port

    def start(self) -> _Direct:
        """Nothing is to be started."""
        return self

    def close(self) -> None:
        """Nothing is to be ended."""


def measure(*, objects: int = 1024, streams: int = 8, readers: int = 16) -> dict[str, Any]:
    """Figures of one run: ``objects`` are granted, uploaded and found in ``streams`` streams with a provider and a
    reader each; then each of ``readers`` further nodes asks for all of them.

    ``grants``, ``grant_cpu`` (seconds of the hub's process), ``grants_per_cpu_second``, ``grant_wall``; the same of
    ``gets``: signed GETs that readers were told. ``ms_per_object``: processor time of the hub for one granted object.
    """
    folder = Path(tempfile.mkdtemp(prefix="entrepot-bench-hub-"))
    try:
        with ExitStack() as stack:
            server = stack.enter_context(run_rclone(folder))
            (folder / "buckets" / "bench").mkdir()
            hub = HubProcess(folder, cast("type[Relay]", _Direct))
            stack.callback(hub.close)
            hub.start()
            keys = folder / "keys"
            keys.touch(0o600)
            keys.write_text(json.dumps({"access_key": server.access_key, "secret_key": server.secret_key}))
            hub.command(
                "channel", "create", "demo", "--quota", "64G", "--miniblock", str(_MINIBLOCK), "--object",
                str(_OBJECT), "--credentials-file", str(keys),
                "--bucket", f"s3://bench/hub?endpoint={server.endpoint}&region={server.region}",
            ).fine()  # fmt: skip
            return asyncio.run(_measure(hub, objects, streams, readers))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _measure(hub: HubProcess, objects: int, streams: int, readers: int) -> dict[str, Any]:
    lock = SchemaLock("demo", miniblock=_MINIBLOCK, object=_OBJECT)
    each = objects // streams
    contents = [Content(os.urandom(each * _OBJECT), lock) for _ in range(streams)]
    async with AsyncExitStack() as stack:
        invite = await asyncio.to_thread(hub.invite)

        async def peer(name: str, kind: type[Peer]) -> Any:
            made = kind(cast(Grid, SimpleNamespace(url=hub.url, hub_public=hub.public)), os.urandom(32), name)
            await stack.enter_async_context(made.client)
            await made.client.join(Invite.parse(invite), name)
            await made.connect()
            stack.push_async_callback(made.disconnect)
            return made

        threads = stack.enter_context(ThreadPoolExecutor(8))
        async with asyncio.timeout(_PATIENCE):
            pairs = []
            for number, content in enumerate(contents):
                provider: _Provider = await peer(f"provider{number}", _Provider)
                provider.begin(content, threads)
                reader: _Reader = await peer(f"reader{number}", _Reader)
                await provider.added(content)
                pairs.append((reader, content))
            others = [cast(_Reader, await peer(f"other{number}", _Reader)) for number in range(readers)]
            began, cpu = time.monotonic(), _cpu(_pid(hub))
            await asyncio.gather(*(reader.read(content) for reader, content in pairs))
            granted, grant_cpu = time.monotonic() - began, _cpu(_pid(hub)) - cpu
            began, cpu = time.monotonic(), _cpu(_pid(hub))
            told = sum(await asyncio.gather(*(other.ask_all(contents) for other in others)))
            asked, get_cpu = time.monotonic() - began, _cpu(_pid(hub)) - cpu
    count = each * streams
    return {
        "grants": count,
        "grant_wall": round(granted, 3),
        "grant_cpu": round(grant_cpu, 3),
        "grants_per_cpu_second": round(count / max(grant_cpu, 0.01), 1),
        "ms_per_object": round(grant_cpu / count * 1000, 3),
        "gets": told,
        "get_wall": round(asked, 3),
        "get_cpu": round(get_cpu, 3),
        "gets_per_cpu_second": round(told / max(get_cpu, 0.01), 1),
    }


class _Provider(Peer):
    """Offers its stream and uploads what is granted of it, several objects at once."""

    def begin(self, content: Content, threads: ThreadPoolExecutor) -> None:
        """Serve this from now on."""
        self._content = content
        self._threads = threads
        self._tasks: set[asyncio.Task[None]] = set()

    def _sought(self, message: BusMessage) -> None:
        seek = decode(Seek, message.payload)
        if seek.stream == self._content.stream.raw:
            self._spawn(self.offer(self._content, seek, slots=8))

    def _granted(self, message: BusMessage) -> None:
        self._spawn(self._serve(decode(Grant, message.payload)))

    async def _serve(self, grant: Grant) -> None:
        for _ in range(5):
            try:
                reply = await self.accept(self._content, grant)
                if reply.put is None:
                    return
                data = self._content.object(grant.number)
                await asyncio.get_running_loop().run_in_executor(self._threads, _put, reply.put, data)
                await self.done(self._content, grant)
            except RetryLater:
                continue  # no answer: said again, as a provider does
            return

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Reader(Peer):
    """Wants streams, and counts what it is told."""

    async def read(self, content: Content) -> None:
        """Want a stream until all of it was told ready, as a requester that fetches in no time."""
        ready: set[int] = set()
        more = asyncio.Event()

        def heard(message: BusMessage) -> None:
            for state in decode(State, message.payload).objects:
                if state.state == "ready":
                    ready.add(state.number)
            more.set()

        assert self.bus is not None
        await self.bus.subscribe(subjects.state("demo", str(content.stream)), heard)
        count = content.geometry.object_count
        while len(ready) < count:
            lacking = [number for number in range(count) if number not in ready]
            before = len(ready)
            reply = await self._want(content, ((lacking[0], count - 1),))
            ready.update(state.number for state in reply.objects if state.state == "ready")
            end = time.monotonic() + 1.0
            while len(ready) < min(before + _WINDOW // 2, count) and time.monotonic() < end:
                more.clear()
                try:
                    async with asyncio.timeout(max(end - time.monotonic(), 0.001)):
                        await more.wait()
                except TimeoutError:
                    break

    async def ask_all(self, contents: list[Content]) -> int:
        """Want all objects of these streams, which are there; the signed GETs that it was told."""
        told = 0
        for content in contents:
            count = content.geometry.object_count
            for first in range(0, count, _WINDOW):
                reply = await self._want(content, ((first, min(first + _WINDOW, count) - 1),))
                told += sum(1 for state in reply.objects if state.get is not None)
        return told

    async def _want(self, content: Content, ranges: tuple[tuple[int, int], ...]) -> WantReply:
        while True:
            try:
                return await self.want(content, ranges, window=_WINDOW)
            except RetryLater:
                continue


def _put(signed: Signed, data: bytes) -> None:
    parts = urlsplit(signed.url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=30)) as connection:
        connection.request("PUT", f"{parts.path}?{parts.query}", data, dict(signed.headers))
        status = connection.getresponse().status
    if status not in {200, 201, 204}:
        raise RuntimeError(f"the bucket answered {status}")


def _pid(hub: HubProcess) -> int:
    assert hub._process is not None
    return hub._process.pid


def _cpu(pid: int) -> float:
    """User and system seconds of a process until now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
