"""Streams with real bytes: small objects that prove themselves, made once for all worlds of a process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Final

from entrepot.core.format import encode_header
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import StreamHasher
from entrepot.core.nkeys import KeyKind, encode_public

CHANNEL: Final = "demo"
LOCK: Final = SchemaLock(CHANNEL, miniblock=16384, object=16384)
#: Bytes of the largest object of any stream here: what a quota in objects is counted in.
OBJECT: Final = 16384 + 96 + 36 + 6 * 32


@dataclass(frozen=True, slots=True)
class Content:
    """A stream: all its objects as they lie in the bucket, their headers and their digests."""

    stream: StreamId
    opening: Opening
    geometry: Geometry
    objects: tuple[bytes, ...]
    headers: tuple[bytes, ...]
    digests: tuple[bytes, ...]


@lru_cache(maxsize=2048)
def content(serial: int, count: int) -> Content:
    """The ``serial``-th stream of ``count`` objects; the last object is shorter."""
    length = (count - 1) * LOCK.object + 1 + (serial * 4099) % LOCK.object
    block = sha256(f"{serial}/{count}".encode()).digest()
    data = (block * (length // len(block) + 1))[:length]
    hasher = StreamHasher(LOCK.level)
    hasher.update(data)
    hashed = hasher.finish()
    stream = hashed.opening.stream_id()
    geometry = Geometry(hashed.opening.length, LOCK)
    headers = tuple(encode_header(stream, hashed.opening, LOCK, n, hashed.nodes) for n in range(geometry.object_count))
    objects = []
    for number, header in enumerate(headers):
        offset, size = geometry.object_span(number)
        objects.append(header + data[offset : offset + size])
    digests = tuple(sha256(data).digest() for data in objects)
    return Content(stream, hashed.opening, geometry, tuple(objects), headers, digests)


@lru_cache(maxsize=65536)
def node_key(name: str) -> str:
    """The public key of the node of this name."""
    return encode_public(KeyKind.USER, sha256(name.encode()).digest())
