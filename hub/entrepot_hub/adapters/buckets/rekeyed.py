"""A bucket whose keys change while it is in use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

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


@dataclass(slots=True, eq=False)
class _Held:
    """A bucket with its keys, and how many calls it is at."""

    bucket: Bucket
    calls: int = 0


class RekeyedBucket:
    """The same bucket, opened again and again: every call goes to the latest. Calls that had begun finish with the keys
    they began with, and the last of them closes what it used. ``edition`` counts the changes."""

    def __init__(self, bucket: Bucket) -> None:
        self.name = bucket.name
        self.prefix = bucket.prefix
        self.edition = 0
        self._held = _Held(bucket)
        self._former: set[_Held] = set()

    def __repr__(self) -> str:
        return f"RekeyedBucket({self._held.bucket!r}, edition {self.edition})"

    async def replace(self, bucket: Bucket) -> None:
        """From now on this one, opened with other keys, is the bucket."""
        former, self._held = self._held, _Held(bucket)
        self.edition += 1
        self._former.add(former)
        await self._let_go(former)

    @property
    def binds(self) -> Binds:
        """As the interface says."""
        return self._held.bucket.binds

    @binds.setter
    def binds(self, binds: Binds) -> None:
        self._held.bucket.binds = binds

    @property
    def digest_kind(self) -> DigestKind:
        """As the interface says."""
        return self._held.bucket.digest_kind

    async def start(self) -> None:
        """As the interface says."""
        async with self._used() as bucket:
            await bucket.start()

    async def probe(self, prefix: str = "", *, expiry: bool = True) -> Binds:
        """As the interface says."""
        async with self._used() as bucket:
            return await bucket.probe(prefix, expiry=expiry)

    async def examine(self) -> Facts:
        """As the interface says."""
        async with self._used() as bucket:
            return await bucket.examine()

    async def sign_put(self, key: str, length: int, digest: bytes, expires: int) -> SignedRequest:
        """As the interface says."""
        async with self._used() as bucket:
            return await bucket.sign_put(key, length, digest, expires)

    async def sign_get(self, key: str, etag: str | None, expires: int) -> SignedRequest:
        """As the interface says."""
        async with self._used() as bucket:
            return await bucket.sign_get(key, etag, expires)

    async def head(self, key: str) -> Head | None:
        """As the interface says."""
        async with self._used() as bucket:
            return await bucket.head(key)

    async def read(self, key: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """As the interface says."""
        async with self._used() as bucket:
            return await bucket.read(key, offset, length, etag)

    async def delete(self, key: str, etag: str | None = None) -> bool:
        """As the interface says."""
        async with self._used() as bucket:
            return await bucket.delete(key, etag)

    async def put_tombstone(self, key: str, etag: str | None = None) -> Head:
        """As the interface says."""
        async with self._used() as bucket:
            return await bucket.put_tombstone(key, etag)

    async def create(self, key: str, data: bytes) -> bool:
        """As the interface says."""
        async with self._used() as bucket:
            return await bucket.create(key, data)

    async def list(self, prefix: str, start_after: str | None = None, limit: int = MAX_PAGE) -> Listing:
        """As the interface says."""
        async with self._used() as bucket:
            return await bucket.list(prefix, start_after, limit)

    async def aclose(self) -> None:
        """As the interface says; calls with former keys end too."""
        for held in (self._held, *self._former):
            await held.bucket.aclose()
        self._former.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @asynccontextmanager
    async def _used(self) -> AsyncIterator[Bucket]:
        held = self._held
        held.calls += 1
        try:
            yield held.bucket
        finally:
            held.calls -= 1
            await self._let_go(held)

    async def _let_go(self, held: _Held) -> None:
        if held in self._former and not held.calls:
            self._former.discard(held)
            await held.bucket.aclose()
