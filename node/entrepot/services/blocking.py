"""The same node for programs that do not use asyncio: each call waits. One event loop runs in a thread of its own.

with Blocking(NodeSettings(home=…)) as node:
    uri = node.add("big.nwb").uri
    with node.open(uri) as file:
        file.seek(-1024, 2)
        tail = file.read()
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Final, Self

from entrepot.adapters.store import Entry, Verification
from entrepot.core.errors import EntrepotError, InvalidInput
from entrepot.services.estimate import Info
from entrepot.services.gathering import AT_ONCE
from entrepot.services.inquiry import Story
from entrepot.services.node import Added, Got, Identity, Joined, Node, Status
from entrepot.services.progress import OnProgress
from entrepot.services.reading import RemoteFile
from entrepot.services.settings import NodeSettings
from entrepot.services.targets import Target

_WORKERS: Final = 8  # threads for short blocking work, beside the store's own


class Blocking:
    """A :class:`Node` whose methods block. Use as ``with``, or :meth:`start` and :meth:`close`; thread-safe."""

    def __init__(self, settings: NodeSettings | None = None) -> None:
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._node: Node | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Opens the node. Raises what opening a store raises."""
        if self._loop is not None:
            raise InvalidInput("a node can be opened once")
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="entrepot", daemon=True)
        self._thread.start()
        try:
            self._node = self.wait(_opened(self._settings))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        # All threads at once: while the interpreter ends, when a node may still have to be closed, none can be started.
        workers = concurrent.futures.ThreadPoolExecutor(_WORKERS, "entrepot-worker")
        together = threading.Barrier(_WORKERS)
        for _ in range(_WORKERS):
            workers.submit(together.wait)
        loop.set_default_executor(workers)
        try:
            loop.run_forever()
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.run_until_complete(loop.shutdown_asyncgens())
            workers.shutdown()
            loop.close()

    def close(self) -> None:
        """Closes the node and ends the thread. May be called again."""
        loop, thread, node = self._loop, self._thread, self._node
        if loop is None or thread is None or loop.is_closed():
            return
        try:
            if node is not None:
                self._node = None
                self.wait(node.aclose())
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def wait[T](self, work: Coroutine[object, object, T]) -> T:
        """What ``work`` gives, run on the node's loop. Interrupting the wait cancels it."""
        loop = self._loop
        if loop is None or loop.is_closed():
            work.close()
            raise InvalidInput("the node is not open")
        if threading.current_thread() is self._thread:
            work.close()
            raise InvalidInput("a blocking call from the node's own thread would wait for itself")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            concurrent.futures.wait([future], timeout=5.0)
            raise

    @property
    def node(self) -> Node:
        """The node itself; its coroutines are run by :meth:`wait`."""
        if self._node is None:
            raise InvalidInput("the node is not open")
        return self._node

    def join(self, invite_url: str, *, name: str | None = None) -> Joined:
        """See :meth:`Node.join`."""
        return self.wait(self.node.join(invite_url, name=name))

    def add(
        self,
        path: Path | str,
        *,
        channel: str | None = None,
        hub: str | None = None,
        copy: bool = False,
        progress: OnProgress | None = None,
    ) -> Added:
        """See :meth:`Node.add`. ``progress`` is called in the node's thread."""
        return self.wait(self.node.add(path, channel=channel, hub=hub, copy=copy, progress=progress))

    def add_many(
        self,
        paths: Iterable[Path | str],
        *,
        channel: str | None = None,
        hub: str | None = None,
        copy: bool = False,
        progress: OnProgress | None = None,
    ) -> Iterator[tuple[Path, Added | EntrepotError]]:
        """See :meth:`Node.add_many`. ``progress`` is called in the node's thread."""
        results = self.node.add_many(paths, channel=channel, hub=hub, copy=copy, progress=progress)
        try:
            while (result := self.wait(_next(results))) is not None:
                yield result
        finally:
            self.wait(_close(results))

    def get(
        self,
        target: Target,
        output: Path | str | None = None,
        *,
        force: bool = False,
        channel: str | None = None,
        hub: str | None = None,
        deadline: float | None = None,
        wait: float | None = None,
        progress: OnProgress | None = None,
    ) -> Got:
        """See :meth:`Node.get`. ``progress`` is called in the node's thread."""
        return self.wait(
            self.node.get(
                target,
                output,
                force=force,
                channel=channel,
                hub=hub,
                deadline=deadline,
                wait=wait,
                progress=progress,
            )
        )

    def get_many(
        self,
        targets: Iterable[Target],
        folder: Path | str | None = None,
        *,
        force: bool = False,
        channel: str | None = None,
        hub: str | None = None,
        deadline: float | None = None,
        wait: float | None = None,
        at_once: int = AT_ONCE,
        progress: OnProgress | None = None,
    ) -> Iterator[tuple[Target, Got | EntrepotError]]:
        """See :meth:`Node.get_many`. ``progress`` is called in the node's thread."""
        results = self.node.get_many(
            targets,
            folder,
            force=force,
            channel=channel,
            hub=hub,
            deadline=deadline,
            wait=wait,
            at_once=at_once,
            progress=progress,
        )
        try:
            while (result := self.wait(_next(results))) is not None:
                yield result
        finally:
            self.wait(_close(results))

    def open(
        self, target: Target, *, channel: str | None = None, hub: str | None = None, deadline: float | None = None
    ) -> BlockingFile:
        """See :meth:`Node.open`: a binary file to read and seek in."""
        remote = self.wait(self.node.open(target, channel=channel, hub=hub, deadline=deadline))
        return BlockingFile(self, remote)

    def cat(
        self,
        target: Target,
        offset: int = 0,
        length: int | None = None,
        *,
        channel: str | None = None,
        hub: str | None = None,
        deadline: float | None = None,
    ) -> Iterator[bytes]:
        """See :meth:`Node.cat`."""
        pieces = self.node.cat(target, offset, length, channel=channel, hub=hub, deadline=deadline)
        try:
            while (piece := self.wait(_next(pieces))) is not None:
                yield piece
        finally:
            self.wait(_close(pieces))

    def info(self, target: Target, *, channel: str | None = None, hub: str | None = None) -> Info:
        """See :meth:`Node.info`."""
        return self.wait(self.node.info(target, channel=channel, hub=hub))

    def why(self, target: Target, *, channel: str | None = None, hub: str | None = None) -> Story:
        """See :meth:`Node.why`."""
        return self.wait(self.node.why(target, channel=channel, hub=hub))

    def entries(self, channel: str | None = None, hub: str | None = None) -> list[Entry]:
        """See :meth:`Node.entries`."""
        return self.wait(self.node.entries(channel, hub))

    def status(self) -> Status:
        """See :meth:`Node.status`."""
        return self.wait(self.node.status())

    def verify(self, target: Target | None = None, *, progress: OnProgress | None = None) -> list[Verification]:
        """See :meth:`Node.verify`."""
        return self.wait(self.node.verify(target, progress=progress))

    def remove(self, target: Target, *, force: bool = False) -> bool:
        """See :meth:`Node.remove`."""
        return self.wait(self.node.remove(target, force=force))

    def whoami(self) -> tuple[Identity, ...]:
        """See :meth:`Node.whoami`."""
        return self.wait(self.node.whoami())


class BlockingFile(io.RawIOBase):
    """A :class:`RemoteFile` as a binary file: readable and seekable, position and all. Closing it closes both."""

    def __init__(self, owner: Blocking, remote: RemoteFile) -> None:
        super().__init__()
        self._owner = owner
        self._remote = remote
        self._at = 0

    @property
    def length(self) -> int:
        """Bytes of the stream."""
        return self._remote.length

    @property
    def name(self) -> str:
        """The file's name, or the stream id."""
        return self._remote.name or self._remote.stream.hex

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; past the end is allowed and reads nothing."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}.get(whence)
        if start is None or start + offset < 0:
            raise ValueError("no such position")
        self._at = start + offset
        return self._at

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``, whatever the position."""
        return self._owner.wait(self._remote.read(offset, length))

    def readinto(self, buffer: memoryview | bytearray) -> int:  # type: ignore[override]  # typeshed names Buffer
        """Fill ``buffer`` from the position on."""
        view = memoryview(buffer).cast("B")
        data = self.read_at(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Everything from the position on."""
        data = self.read_at(self._at, max(self.length - self._at, 0))
        self._at += len(data)
        return data

    def close(self) -> None:
        """Closes it. May be called again."""
        if not self.closed:
            try:
                self._owner.wait(self._remote.aclose())
            finally:
                super().close()


async def _opened(settings: NodeSettings | None) -> Node:
    return await Node(settings).__aenter__()


async def _next[T](pieces: AsyncGenerator[T]) -> T | None:
    return await anext(pieces, None)


async def _close[T](pieces: AsyncGenerator[T]) -> None:
    await pieces.aclose()
