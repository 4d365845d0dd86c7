"""Stream ids and openings: what a stream is called and what its name proves.

A stream id is 32 bytes whose first byte is the kind. The id of a file or a tree binds the length and the
Merkle root of its bytes (:mod:`entrepot.core.merkle`); the id of a feed binds its owner's key and its name;
the id of a result binds a task and its inputs. Everything here is computed offline. The layout is in
``docs/format.md``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Final, Self

import rfc8785

from entrepot.core.errors import InvalidInput

ID_LENGTH: Final = 32
OPENING_LENGTH: Final = 40
#: The longest stream, in bytes: the largest length that fits a signed 64-bit column.
MAX_LENGTH: Final = 2**63 - 1
MAX_FEED_NAME: Final = 255

_NO_BYTES_ROOT: Final = bytes(32)
_HEX_ID: Final = re.compile(r"[0-9a-f]{64}")

type Json = bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None


class StreamKind(IntEnum):
    """The first byte of a stream id."""

    FILE = 0xFF
    FEED = 0xFE
    RESULT = 0xFD
    TREE = 0xFC

    @property
    def has_opening(self) -> bool:
        """Whether ids of this kind bind the content: files and trees."""
        return self in _CONTENT_DOMAINS


_CONTENT_DOMAINS: Final[Mapping[StreamKind, bytes]] = {
    StreamKind.FILE: b"entrepot.file\0",
    StreamKind.TREE: b"entrepot.tree\0",
}
_FEED_DOMAIN: Final = b"entrepot.feed\0"
_RESULT_DOMAIN: Final = b"entrepot.result\0"


@dataclass(frozen=True, slots=True, order=True)
class StreamId:
    """A stream id: 32 bytes, the first one a :class:`StreamKind`.

    ``str()`` and ``hex`` give 64 lower-case hexadecimal digits. Raises :class:`InvalidInput`
    (``invalid-id``).
    """

    raw: bytes

    def __post_init__(self) -> None:
        if type(self.raw) is not bytes or len(self.raw) != ID_LENGTH:
            raise InvalidInput("a stream id is 32 bytes", kind="invalid-id")
        if self.raw[0] not in _KINDS:
            raise InvalidInput(
                f"a stream id cannot begin with {self.raw[0]:02x}",
                kind="invalid-id",
                hint="Files begin with ff, feeds with fe, results with fd, trees with fc",
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """The id written as exactly 64 lower-case hexadecimal digits. Raises :class:`InvalidInput`."""
        if _HEX_ID.fullmatch(text) is None:
            raise InvalidInput("a stream id is written as 64 lower-case hexadecimal digits", kind="invalid-id")
        return cls(bytes.fromhex(text))

    @property
    def kind(self) -> StreamKind:
        """What the first byte says."""
        return _KINDS[self.raw[0]]

    @property
    def hex(self) -> str:
        """64 lower-case hexadecimal digits."""
        return self.raw.hex()

    def __str__(self) -> str:
        return self.raw.hex()

    def __repr__(self) -> str:
        return f"StreamId({self.raw.hex()})"

    def __bytes__(self) -> bytes:
        return self.raw


_KINDS: Final[Mapping[int, StreamKind]] = {int(kind): kind for kind in StreamKind}


@dataclass(frozen=True, slots=True)
class Opening:
    """What a file or tree id commits to: the length in bytes and the Merkle root, 40 bytes together.

    An opening alone proves nothing; :meth:`proves` says whether a given id commits to it. The stream of
    length zero has the root of 32 zero bytes and no other. Raises :class:`InvalidInput` (``invalid-id``).
    """

    length: int
    root: bytes

    def __post_init__(self) -> None:
        if type(self.length) is not int or not 0 <= self.length <= MAX_LENGTH:
            raise InvalidInput("a stream's length lies between 0 and 2^63 - 1 bytes", kind="invalid-id")
        if type(self.root) is not bytes or len(self.root) != 32:
            raise InvalidInput("a stream's root is 32 bytes", kind="invalid-id")
        if self.length == 0 and self.root != _NO_BYTES_ROOT:
            raise InvalidInput("a stream of length zero has the root of 32 zero bytes", kind="invalid-id")

    def encode(self) -> bytes:
        """40 bytes: the length as an unsigned big-endian 64-bit number, then the root."""
        return self.length.to_bytes(8, "big") + self.root

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of :meth:`encode`. Raises :class:`InvalidInput` (``invalid-id``)."""
        if len(data) != OPENING_LENGTH:
            raise InvalidInput("an opening is 40 bytes", kind="invalid-id")
        return cls(int.from_bytes(data[:8], "big"), bytes(data[8:]))

    def stream_id(self, kind: StreamKind = StreamKind.FILE) -> StreamId:
        """The id of the file or tree with this opening. Other kinds raise :class:`InvalidInput`."""
        if kind not in _CONTENT_DOMAINS:
            raise InvalidInput(f"a {kind.name.lower()} is not named by its content", kind="unsupported")
        return _derive(kind, _CONTENT_DOMAINS[kind], self.encode())

    def proves(self, stream: StreamId) -> bool:
        """Whether ``stream`` is the file or tree id of exactly this length and root."""
        return stream.kind in _CONTENT_DOMAINS and self.stream_id(stream.kind) == stream


def feed_id(public_key: bytes, name: str) -> StreamId:
    """The id of the feed that the owner of an Ed25519 public key (32 raw bytes) calls ``name``.

    A name is 1 to 255 bytes of UTF-8 in normalization form C without control characters, so that two names
    that look alike to a keyboard are alike. Raises :class:`InvalidInput` (``invalid-id``).
    """
    if len(public_key) != 32:
        raise InvalidInput("an Ed25519 public key is 32 bytes", kind="invalid-id")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise InvalidInput("a feed's name must be valid text", kind="invalid-id") from None
    if not 1 <= len(encoded) <= MAX_FEED_NAME:
        raise InvalidInput(f"a feed's name is 1 to {MAX_FEED_NAME} bytes of UTF-8", kind="invalid-id")
    if any(unicodedata.category(c) == "Cc" for c in name) or not unicodedata.is_normalized("NFC", name):
        raise InvalidInput("a feed's name is in normalization form C and has no control characters", kind="invalid-id")
    return _derive(StreamKind.FEED, _FEED_DOMAIN, bytes(public_key) + encoded)


def result_id(task: str, version: str, params: Json, inputs: Json) -> StreamId:
    """The id of what ``task`` in ``version`` makes of ``params`` and ``inputs``.

    The four are hashed as one RFC 8785 document, so the order of keys does not matter. Raises
    :class:`InvalidInput` (``invalid-id``) for values JSON cannot carry exactly: NaN, infinities, integers
    past 2^53 - 1, broken text, endless nesting.
    """
    document = {"task": task, "version": version, "params": params, "inputs": inputs}
    try:
        canonical = rfc8785.dumps(document)
    except (rfc8785.CanonicalizationError, ValueError, RecursionError) as error:
        raise InvalidInput(f"a result's description is not canonical JSON: {error}", kind="invalid-id") from None
    return _derive(StreamKind.RESULT, _RESULT_DOMAIN, canonical)


def _derive(kind: StreamKind, domain: bytes, body: bytes) -> StreamId:
    return StreamId(bytes([kind]) + sha256(domain + body).digest()[:31])
