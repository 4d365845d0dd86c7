"""A bucket that counts the hub's own requests to it, as providers bill them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal, Self

from entrepot.core.errors import EntrepotError
from entrepot_hub.adapters.buckets.interface import (
    MAX_PAGE,
    Binds,
    Bucket,
    DigestKind,
    Facts,
    Head,
    Listing,
    SignedRequest,
)
from entrepot_hub.adapters.metrics import Stopwatch

#: Told the operation, its outcome (``ok`` or the kind of an error) and its seconds.
type Observe = Callable[[str, str, float], None]

#: Class A: writes and lists. Class B: looks and reads. Deletes are mostly free.
type RequestClass = Literal["a", "b", "delete"]


class MeteredBucket:
    """Another bucket, with ``count`` called before each request that the hub makes. What is signed is counted by
    whoever hands it out; a probe and the questions of a doctor, rare and few, are not counted; nor is what a driver
    repeats. ``observe`` is told how each request, and each signing, went."""

    def __init__(
        self, inner: Bucket, count: Callable[[RequestClass], None], observe: Observe = lambda *_: None
    ) -> None:
        self.inner = inner
        self._count = count
        self._observe = observe

    async def _observed[T](self, operation: str, work: Awaitable[T]) -> T:
        watch, outcome = Stopwatch(), "cancelled"
        try:
            found = await work
            outcome = "ok"
        except EntrepotError as error:
            outcome = error.kind
            raise
        finally:
            self._observe(operation, outcome, watch.seconds)
        return found

    def __repr__(self) -> str:
        return f"MeteredBucket({self.inner!r})"

    @property
    def name(self) -> str:
        """See ``Bucket``."""
        return self.inner.name

    @name.setter
    def name(self, name: str) -> None:
        self.inner.name = name

    @property
    def prefix(self) -> str:
        """See ``Bucket``."""
        return self.inner.prefix

    @prefix.setter
    def prefix(self, prefix: str) -> None:
        self.inner.prefix = prefix

    @property
    def binds(self) -> Binds:
        """See ``Bucket``."""
        return self.inner.binds

    @binds.setter
    def binds(self, binds: Binds) -> None:
        self.inner.binds = binds

    @property
    def digest_kind(self) -> DigestKind:
        """See ``Bucket.digest_kind``."""
        return self.inner.digest_kind

    async def start(self) -> None:
        """See ``Bucket.start``."""
        await self.inner.start()

    async def probe(self, prefix: str = "", *, expiry: bool = True) -> Binds:
        """See ``Bucket.probe``."""
        return await self.inner.probe(prefix, expiry=expiry)

    async def examine(self) -> Facts:
        """See ``Bucket.examine``."""
        return await self.inner.examine()

    async def sign_put(self, key: str, length: int, digest: bytes, expires: int) -> SignedRequest:
        """See ``Bucket.sign_put``."""
        return await self._observed("sign_put", self.inner.sign_put(key, length, digest, expires))

    async def sign_get(self, key: str, etag: str | None, expires: int) -> SignedRequest:
        """See ``Bucket.sign_get``."""
        return await self._observed("sign_get", self.inner.sign_get(key, etag, expires))

    async def head(self, key: str) -> Head | None:
        """See ``Bucket.head``."""
        self._count("b")
        return await self._observed("head", self.inner.head(key))

    async def read(self, key: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """See ``Bucket.read``."""
        self._count("b")
        return await self._observed("read", self.inner.read(key, offset, length, etag))

    async def delete(self, key: str, etag: str | None = None) -> bool:
        """See ``Bucket.delete``."""
        self._count("delete")
        return await self._observed("delete", self.inner.delete(key, etag))

    async def put_tombstone(self, key: str, etag: str | None = None) -> Head:
        """See ``Bucket.put_tombstone``."""
        self._count("a")
        return await self._observed("put_tombstone", self.inner.put_tombstone(key, etag))

    async def create(self, key: str, data: bytes) -> bool:
        """See ``Bucket.create``."""
        self._count("a")
        return await self._observed("create", self.inner.create(key, data))

    async def list(self, prefix: str, start_after: str | None = None, limit: int = MAX_PAGE) -> Listing:
        """See ``Bucket.list``."""
        self._count("a")
        return await self._observed("list", self.inner.list(prefix, start_after, limit))

    async def aclose(self) -> None:
        """See ``Bucket.aclose``."""
        await self.inner.aclose()

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.inner.__aexit__(kind, error, trace)
