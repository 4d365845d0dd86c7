"""The folder driver: a bucket in a directory of the hub's machine, served by the hub itself.

For a lab without object storage, for trials and for tests. It binds everything a grant names: length, digest,
create-only and expiry (an upload that is not complete when its URL ends is dropped, so nothing lands later).
:mod:`entrepot_hub.adapters.buckets.folder_files` keeps the objects,
:mod:`entrepot_hub.adapters.buckets.folder_web` serves the signed URLs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from entrepot.core.errors import Conflict, Denied, InvalidInput, RetryLater
from entrepot_hub.adapters.buckets.folder_files import FolderFiles, Upload
from entrepot_hub.adapters.buckets.folder_urls import Permission, UrlSigner
from entrepot_hub.adapters.buckets.interface import (
    MAX_PAGE,
    MAX_READ,
    Binds,
    DigestKind,
    Entry,
    Facts,
    Head,
    Listing,
    SignedRequest,
    check_etag,
    check_expires,
    check_key,
    check_prefix,
    check_put,
)
from entrepot_hub.adapters.buckets.probe import probe_uploads

_BINDS = Binds(
    length=True,
    digest=True,
    create_only=True,
    expiry=True,
    head_digest=True,
    get_if=True,
    delete_if=True,
    replace_if=True,
)

#: Uploads of one object at once.
_UPLOADS_PER_KEY: Final = 2
_BUFFER: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSettings:
    """``stall``: seconds without a byte after which a transfer is given up. ``threads``: that touch the disk.
    ``sync``: objects survive a power cut once they are reported."""

    stall: float = 30.0
    threads: int = 8
    sync: bool = True


class FolderBucket:
    """A bucket in the directory ``path``, an absolute one. See the interface for what it promises.

    ``secret`` signs the URLs: whoever has it can write anything. ``public_url`` is the hub's, as nodes reach
    it. ``create``: make the folder at the start if it is missing. ``clock`` gives unix seconds. One process at a time
    may own a folder.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        secret: bytes,
        public_url: str,
        prefix: str = "",
        create: bool = True,
        settings: FolderSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not path.is_absolute():
            raise InvalidInput(f"a folder bucket needs an absolute path, not {path}", kind="invalid-setting")
        self.name = name
        self.prefix = check_prefix(prefix)
        self.binds = _BINDS
        self.settings = settings or FolderSettings()
        self.clock = clock
        self._path = path
        self._files = FolderFiles(path, sync=self.settings.sync, create=create)
        self._signer = UrlSigner(name, public_url, secret)
        self._former: tuple[UrlSigner, ...] = ()
        self._former_until = 0.0
        self._threads = ThreadPoolExecutor(self.settings.threads, thread_name_prefix=f"bucket-{name}")
        self._buffers = threading.local()
        self._uploads: Counter[str] = Counter()
        self._closed = False

    def __repr__(self) -> str:
        return f"FolderBucket({self.name!r}, {str(self._path)!r})"

    async def start(self) -> None:
        """See that the folder is there, or make it if it was so asked, and sweep it.

        Raises ``InvalidInput(invalid-setting)`` for a folder that is not there, and if its file system has no hard
        links.
        """
        await self._run(self._files.start, 2 * self.settings.stall)

    async def probe(self, prefix: str = "", *, expiry: bool = True) -> Binds:
        """Try through the public URL, as a node would, that everything is bound. The hub must be serving."""
        self.binds = await probe_uploads(self, prefix, expiry=expiry)
        return self.binds

    @property
    def digest_kind(self) -> DigestKind:
        """As the interface says."""
        return "sha256"

    async def examine(self) -> Facts:
        """As the interface says. A folder has none of what providers add to a bucket."""
        return Facts(
            versioning=False,
            soft_delete=0.0,
            object_lock=False,
            lifecycle=(),
            storage_class="file system",
            cors=False,
            public_read=False,
            public_write=False,
            clock_skew=0.0,
        )

    async def sign_put(self, key: str, length: int, digest: bytes, expires: int) -> SignedRequest:
        """As the interface says. The PUT must send ``Content-Length``; nothing else is asked of its
        headers."""
        check_put(key, length, digest, expires)
        end = int(self.clock()) + expires
        url = self._signer.sign(Permission(method="PUT", key=key, expires=end, length=length, digest=digest))
        return SignedRequest(method="PUT", url=url, headers={"Content-Length": str(length)}, expires_at=end)

    async def sign_get(self, key: str, etag: str | None, expires: int) -> SignedRequest:
        """As the interface says. The etag is part of the URL: no header is needed."""
        check_key(key)
        check_etag(etag)
        check_expires(expires)
        end = int(self.clock()) + expires
        url = self._signer.sign(Permission(method="GET", key=key, expires=end, etag=etag))
        return SignedRequest(method="GET", url=url, headers={}, expires_at=end)

    async def head(self, key: str) -> Head | None:
        """As the interface says. ``digest`` is what arrived, or what was read from the disk if that is not
        known."""
        return await self._run(self._files.head, key)

    async def read(self, key: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """As the interface says."""
        return await self._run(self._files.read, key, offset, length, etag)

    async def delete(self, key: str, etag: str | None = None) -> bool:
        """As the interface says. Parents that become empty go with it."""
        return await self._run(self._files.delete, key, etag)

    async def put_tombstone(self, key: str, etag: str | None = None) -> Head:
        """As the interface says."""
        return await self._run(self._files.tombstone, key, etag)

    async def create(self, key: str, data: bytes) -> bool:
        """As the interface says."""
        if len(data) > MAX_READ:
            raise InvalidInput(f"the hub itself writes at most {MAX_READ} bytes")
        return await self._run(self._files.create, key, data)

    async def list(self, prefix: str, start_after: str | None = None, limit: int = MAX_PAGE) -> Listing:
        """As the interface says. Files whose names are no keys do not show."""
        return await self._run(self._files.list, prefix, start_after, limit)

    async def pending_bytes(self) -> int:
        """The bytes of unfinished uploads on the disk, those that a crash left behind included."""
        return await self._run(self._files.pending_bytes)

    async def sweep(self, older_than: float) -> int:
        """Remove what crashes left behind and nobody wrote to for ``older_than`` seconds: the bytes freed."""
        return await self._run(self._files.sweep, older_than)

    async def aclose(self) -> None:
        """Refuse further work and let the threads end. Idempotent."""
        if not self._closed:
            self._closed = True
            # Work that waits in the queue is done: its callers are waiting for it.
            await asyncio.to_thread(self._threads.shutdown, wait=True)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def change_secret(self, secret: bytes, former: Sequence[bytes], until: float) -> None:
        """Sign with this secret from now on. What the former ones signed is taken until then (unix seconds)."""
        name, public_url = self._signer.name, self._signer.public_url
        self._signer = UrlSigner(name, public_url, secret)
        self._former = tuple(UrlSigner(name, public_url, one) for one in former)
        self._former_until = until

    # --- for the web half ---------------------------------------------------------------------------------

    def permission(self, method: str, key: str, query: Sequence[tuple[str, str]]) -> Permission:
        """What the URL of a request permits now. Raises ``Denied(bad-signature | expired)``."""
        now = self.clock()
        for former in self._former if now < self._former_until else ():
            with suppress(Denied):
                return former.verify(method, key, query, now)
        return self._signer.verify(method, key, query, now)

    async def exists(self, key: str) -> bool:
        """Whether the key is taken at this moment."""
        return await self._run(self._files.exists, key)

    @contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Hold one of the few uploads that a key may have at once. Raises ``RetryLater(busy)`` if all are taken.

        One URL opens as many connections as its holder likes, and each may leave a whole object but for a byte on
        the disk, beside the quota. Two: who lost a connection need not wait until the hub has noticed too.
        """
        if self._uploads[key] >= _UPLOADS_PER_KEY:
            raise RetryLater("this object is being uploaded already", kind="busy", key=key)
        self._uploads[key] += 1
        try:
            yield
        finally:
            self._uploads[key] -= 1
            if not self._uploads[key]:
                del self._uploads[key]

    async def begin(self, key: str | None = None) -> Upload:
        """A new upload, for the caller to discard. Raises ``Conflict(exists)`` if there is an object at ``key``."""
        return await self._hold(partial(self._begin, key), Upload.discard)

    def write(self, upload: Upload, pieces: Sequence[bytes]) -> asyncio.Future[int]:
        """Append to an upload, in a thread that is at work already when this returns; the bytes so far."""
        return asyncio.wrap_future(self._submit(partial(upload.write, pieces)))

    def draw(self, work: Callable[[memoryview], None]) -> asyncio.Future[None]:
        """Run ``work`` with a buffer of 1 MiB, in a thread that is at work already when this returns."""
        return asyncio.wrap_future(self._submit(lambda: work(self._buffer())))

    async def publish(self, upload: Upload, permission: Permission) -> Entry:
        """Make an upload visible as permitted, if it is complete before the permission ends. It is over then.

        Raises ``Denied(expired)``, ``Conflict(exists)``, ``InvalidInput(wrong bytes)``.
        """
        return await self._run(self._publish, upload, permission)

    async def discard(self, upload: Upload) -> None:
        """Remove an upload's temporary file, even while the caller is being cancelled or the bucket
        closes."""
        if upload.over:
            return
        try:
            future = self._threads.submit(upload.discard)
        except RuntimeError:  # the threads have ended
            upload.discard()
            return
        await asyncio.shield(asyncio.wrap_future(future))

    async def open(self, key: str, etag: str | None) -> tuple[FileIO, Entry]:
        """The object's file for reading, for the caller to close, and what it is.

        Raises ``NotFound(no-such-object)``, ``Conflict(changed)``.
        """
        return await self._hold(partial(self._files.open, key, etag), lambda opened: opened[0].close())

    async def pread(self, file: FileIO, length: int, offset: int) -> bytes:
        """A piece of an open object."""
        return await self._run(self._files.pread, file, length, offset)

    def _begin(self, key: str | None) -> Upload:
        if key is not None and self._files.exists(key):
            raise Conflict("there is an object already", kind="exists", key=key)
        return self._files.begin()

    def _publish(self, upload: Upload, permission: Permission) -> Entry:
        with upload:
            return upload.publish(
                permission.key,
                permission.length,
                permission.digest,
                before=lambda: self._signer.check_time(permission, self.clock()),
            )

    def _buffer(self) -> memoryview:
        """This thread's own: the first touch of new memory costs as much as half of the hash."""
        found: memoryview | None = getattr(self._buffers, "view", None)
        if found is None:
            found = self._buffers.view = memoryview(bytearray(_BUFFER))
        return found

    async def _hold[T](self, work: Callable[[], T], let_go: Callable[[T], object]) -> T:
        """Run what returns a resource; if nobody waits for it any more, let it go."""
        future = self._submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(partial(self._let_go, let_go))
            raise

    def _let_go[T](self, let_go: Callable[[T], object], done: Future[T]) -> None:
        """Called in whichever thread notices; the work itself is for the bucket's threads."""
        if done.cancelled() or done.exception() is not None:
            return
        try:
            self._threads.submit(let_go, done.result())
        except RuntimeError:  # they have ended
            let_go(done.result())

    async def _run[**P, T](self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._submit(partial(work, *args, **kwargs)))

    def _submit[T](self, work: Callable[[], T]) -> Future[T]:
        if self._closed:
            raise RetryLater("the bucket is closed", kind="bucket-unreachable", bucket=self.name)
        return self._threads.submit(work)
