"""A bucket as providers have them, with their faults: one truth in memory, and each hub's and node's way to it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, Final, Self

from tests.simulation.loop import VirtualLoop
from tests.simulation.plan import LatePuts, LostAnswers, Plan, SlowCalls, Storm
from tests.simulation.process import EPOCH, Process
from tests.simulation.trace import Trace

from entrepot.core.errors import Conflict, Denied, NotFound, RetryLater
from entrepot_hub.adapters.buckets.interface import (
    MAX_PAGE,
    Binds,
    DigestKind,
    Entry,
    Facts,
    Head,
    Listing,
    SignedRequest,
)

STRICT: Final = Binds(
    length=True, digest=True, create_only=True, expiry=True, head_digest=True, get_if=True, delete_if=True,
    replace_if=True,
)  # fmt: skip
BLIND: Final = Binds(
    length=True, digest=False, create_only=True, expiry=True, head_digest=False, get_if=True, delete_if=True,
    replace_if=True,
)  # fmt: skip
CARELESS: Final = Binds(
    length=False, digest=False, create_only=False, expiry=True, head_digest=False, get_if=False, delete_if=False,
    replace_if=False,
)  # fmt: skip
KINDS: Final = {"strict": STRICT, "blind": BLIND, "careless": CARELESS}


@dataclass(frozen=True, slots=True)
class Blob:
    """What lies at a key."""

    data: bytes
    etag: str
    modified: float


@dataclass(slots=True)
class Permit:
    """A signed PUT. ``until`` by the bucket's clock; ``under_way``: PUTs that began and may still land."""

    key: str
    length: int
    digest: bytes
    until: float
    under_way: int = 0


class Place:
    """The truth: what lies where. Every change of it is told to ``changed`` at once."""

    def __init__(self, plan: Plan, loop: VirtualLoop, trace: Trace) -> None:
        self.binds = KINDS[plan.bucket]
        self.blobs: dict[str, Blob] = {}
        self.permits: dict[str, Permit] = {}
        self.gets: dict[str, tuple[str, str | None, float]] = {}
        self.loop = loop
        self.random = Random(f"bucket {plan.seed}")
        self.puts = 0
        self.touched: set[str] = set()  # keys that a vandal had its hands on
        self.changed: Callable[[str], None] = lambda key: None
        self._serial = 0
        self._trace = trace
        self._storms = plan.of(Storm)
        self._losses = plan.of(LostAnswers)
        self._late = plan.of(LatePuts)
        self._slow = plan.of(SlowCalls)

    @property
    def now(self) -> float:
        """Unix time by the bucket's clock, which is right."""
        return EPOCH + self.loop.time()

    def trouble(self) -> None:
        """Raises RetryLater in a storm."""
        now = self.loop.time()
        for storm in self._storms:
            if storm.start <= now < storm.stop and self.random.random() < storm.rate:
                raise RetryLater("the bucket says 503", kind="bucket-unreachable")

    def forgets(self) -> bool:
        """Whether the answer to what was just done is lost."""
        now = self.loop.time()
        return any(f.start <= now < f.stop and self.random.random() < f.rate for f in self._losses)

    def delay(self) -> float:
        """How long a call takes."""
        now, seconds = self.loop.time(), self.random.uniform(0.003, 0.03)
        for slow in self._slow:
            if slow.start <= now < slow.stop and self.random.random() < slow.rate:
                seconds += self.random.uniform(0.0, slow.seconds)
        return seconds

    def lateness(self) -> float:
        """How long after it was sent a PUT lands."""
        now = self.loop.time()
        for late in self._late:
            if late.start <= now < late.stop and self.random.random() < late.rate:
                return late.seconds
        return self.random.uniform(0.001, 0.02)

    def token(self, prefix: str) -> str:
        """A new URL."""
        self._serial += 1
        return f"sim://{prefix}/{self._serial}"

    def write(self, key: str, data: bytes, who: str, what: str) -> Blob:
        """Replace whatever lies there."""
        self._serial += 1
        blob = self.blobs[key] = Blob(data, f"e{self._serial}", self.now)
        self._trace.add(self.loop.time(), who, f"bucket: {what} {short(key)} {len(data)} bytes {blob.etag}")
        self.changed(key)
        return blob

    def remove(self, key: str, who: str) -> None:
        """It is gone."""
        blob = self.blobs.pop(key)
        self._trace.add(self.loop.time(), who, f"bucket: delete {short(key)} {blob.etag}")
        self.changed(key)

    def land(self, permit: Permit, data: bytes, who: str) -> Blob:
        """A PUT comes to its end. Raises Conflict (exists) and what the bucket enforces."""
        permit.under_way -= 1
        self.trouble()
        if (self.binds.length and len(data) != permit.length) or (
            self.binds.digest and hashlib.sha256(data).digest() != permit.digest
        ):
            raise Denied("the bucket refuses the upload: it is not what was signed", kind="denied")
        if self.binds.create_only and permit.key in self.blobs:
            raise Conflict("the bucket already has an object at this key", kind="exists")
        self.puts += 1
        return self.write(permit.key, data, who, "put")

    def bytes(self) -> int:
        """Bytes that lie here."""
        return sum(len(blob.data) for blob in self.blobs.values())


class ModelBucket:
    """:class:`entrepot_hub.adapters.buckets.interface.Bucket` for one hub process."""

    prefix = ""
    digest_kind: DigestKind = "sha256"

    def __init__(self, place: Place, process: Process) -> None:
        self.name = "bucket"
        self.binds = place.binds
        self._place = place
        self._process = process

    async def start(self) -> None:
        """It is there."""

    async def probe(self, prefix: str = "", *, expiry: bool = True) -> Binds:
        """What is known."""
        return self.binds

    async def examine(self) -> Facts:
        """Nothing is known."""
        return Facts()

    async def sign_put(self, key: str, length: int, digest: bytes, expires: int) -> SignedRequest:
        """As the interface says; signed with the hub's clock, so what is told of its end is by that clock."""
        if not self._process.alive:
            raise asyncio.CancelledError
        place, url = self._place, self._place.token("put")
        place.permits[url] = Permit(key, length, digest, self._process.clock() + expires)
        place.changed(key)
        return SignedRequest(method="PUT", url=url, headers={}, expires_at=self._process.clock() + expires)

    async def sign_get(self, key: str, etag: str | None, expires: int) -> SignedRequest:
        """As the interface says."""
        place, url = self._place, self._place.token("get")
        place.gets[url] = (key, etag, self._process.clock() + expires)
        return SignedRequest(method="GET", url=url, headers={}, expires_at=self._process.clock() + expires)

    async def head(self, key: str) -> Head | None:
        """As the interface says."""

        def effect() -> Head | None:
            blob = self._place.blobs.get(key)
            return None if blob is None else self._head(blob)

        found: Head | None = await self._call(effect)
        return found

    async def read(self, key: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """As the interface says."""

        def effect() -> bytes:
            blob = self._place.blobs.get(key)
            if blob is None:
                raise NotFound("nothing is there", kind="no-such-object")
            if etag is not None and blob.etag != etag:
                raise Conflict("it is another one", kind="changed")
            return blob.data[offset : offset + length]

        data: bytes = await self._call(effect)
        return data

    async def delete(self, key: str, etag: str | None = None) -> bool:
        """As the interface says."""
        if not self.binds.delete_if:
            head = await self.head(key)
            if head is not None and etag not in (None, head.etag):
                raise Conflict("it is another one", kind="changed")
            etag = None

        def effect() -> bool:
            blob = self._place.blobs.get(key)
            if blob is None:
                return False
            if etag is not None and blob.etag != etag:
                raise Conflict("it is another one", kind="changed")
            self._place.remove(key, self._process.name)
            return True

        done: bool = await self._call(effect)
        return done

    async def put_tombstone(self, key: str, etag: str | None = None) -> Head:
        """As the interface says."""
        if not self.binds.replace_if:
            head = await self.head(key)
            if head is not None and head.length == 0:
                return head
            if etag is not None and (head is None or head.etag != etag):
                raise Conflict("it is another one", kind="changed")
            etag = None

        def effect() -> Head:
            blob = self._place.blobs.get(key)
            if blob is not None and not blob.data:
                return self._head(blob)
            if etag is not None and (blob is None or blob.etag != etag):
                raise Conflict("it is another one", kind="changed")
            return self._head(self._place.write(key, b"", self._process.name, "tombstone"))

        head = await self._call(effect)
        assert head is not None
        return head

    async def create(self, key: str, data: bytes) -> bool:
        """As the interface says."""

        def effect() -> bool:
            if key in self._place.blobs:
                return False
            self._place.write(key, data, self._process.name, "create")
            return True

        done: bool = await self._call(effect)
        return done

    async def list(self, prefix: str, start_after: str | None = None, limit: int = MAX_PAGE) -> Listing:
        """As the interface says."""

        def effect() -> Listing:
            keys = sorted(
                k for k in self._place.blobs if k.startswith(prefix) and (start_after is None or k > start_after)
            )
            page = keys[:limit]
            blobs = self._place.blobs
            entries = tuple(
                Entry(key=k, length=len(blobs[k].data), etag=blobs[k].etag, modified=blobs[k].modified) for k in page
            )
            return Listing(entries=entries, next=page[-1] if len(keys) > limit else None)

        listing: Listing = await self._call(effect)
        return listing

    async def aclose(self) -> None:
        """Nothing is held."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def _head(self, blob: Blob) -> Head:
        digest = hashlib.sha256(blob.data).digest() if self.binds.head_digest and blob.data else None
        return Head(length=len(blob.data), etag=blob.etag, digest=digest, modified=blob.modified)

    async def _call(self, effect: Callable[[], Any]) -> Any:
        place = self._place

        def happen() -> Any:
            place.trouble()
            result = effect()
            if place.forgets():
                raise RetryLater("the bucket's answer was lost", kind="bucket-unreachable")
            return result

        return await self._process.outside(place.delay(), happen)


def short(key: str) -> str:
    """The part of a key that tells objects apart."""
    parts = key.split("/")
    return f"{parts[-2][2:8]}/{int(parts[-1], 16)}" if len(parts) >= 2 else key
