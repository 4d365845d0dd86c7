"""Object keys: what an object is called in the bucket, a pure function of lock, stream and number."""

from __future__ import annotations

import re
from typing import Final

from entrepot.core.errors import InvalidInput
from entrepot.core.identifiers import StreamId
from entrepot.core.lock import LOCK_ID_LENGTH

#: The object number of a stream's index; specified, and refused as data.
INDEX_NUMBER: Final = 0xFFFFFFFF
#: The object under a bucket prefix that names the hub which owns it.
OWNER_MARK: Final = ".entrepot"
MAX_PREFIX: Final = 512

_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~-]+")
_TAIL: Final = re.compile(r"([0-9a-f]{16})/([0-9a-f]{64})/([0-9a-f]{8})")


def check_prefix(prefix: str) -> str:
    """``prefix`` itself, if it can stand before keys: segments of A-Z a-z 0-9 . _ ~ - joined by single
    slashes.

    Such a key needs no percent-encoding anywhere. Empty is allowed. Raises :class:`InvalidInput`
    (``invalid-key``).
    """
    if prefix == "":
        return prefix
    if len(prefix) > MAX_PREFIX:
        raise InvalidInput(f"a bucket prefix has at most {MAX_PREFIX} characters", kind="invalid-key")
    for segment in prefix.split("/"):
        if _SEGMENT.fullmatch(segment) is None or segment in {".", ".."}:
            raise InvalidInput(
                f"{prefix!r} cannot be a bucket prefix",
                kind="invalid-key",
                hint="Use letters, digits and . _ ~ - in segments joined by single slashes",
            )
    return prefix


def owner_mark_key(prefix: str) -> str:
    """The key of the mark that names the prefix's owner."""
    return f"{check_prefix(prefix)}/{OWNER_MARK}" if prefix else OWNER_MARK


def object_key(prefix: str, lock_id: bytes, stream: StreamId, number: int) -> str:
    """``<prefix>/<schema lock id>/<stream id>/<number, 8 hexadecimal digits>``; no leading slash without a
    prefix.

    Raises :class:`InvalidInput`: ``invalid-key``, or ``unsupported`` for the index number and for kinds of
    streams that have no objects in this version.
    """
    if len(lock_id) != LOCK_ID_LENGTH:
        raise InvalidInput("a schema lock id is 8 bytes", kind="invalid-key")
    _check_target(stream, number)
    tail = f"{lock_id.hex()}/{stream.hex}/{number:08x}"
    return f"{check_prefix(prefix)}/{tail}" if prefix else tail


def parse_object_key(prefix: str, key: str) -> tuple[bytes, StreamId, int]:
    """The schema lock id, stream and number of a key that :func:`object_key` made under ``prefix``.

    Raises :class:`InvalidInput`: ``unsupported`` for well-formed keys that a newer version may use (the
    index, feeds), ``invalid-key`` for everything else.
    """
    start = f"{check_prefix(prefix)}/" if prefix else ""
    found = _TAIL.fullmatch(key[len(start) :]) if key.startswith(start) else None
    if found is None:
        raise InvalidInput("not the key of an object", kind="invalid-key")
    try:
        stream = StreamId.parse(found[2])
    except InvalidInput as error:
        raise InvalidInput(f"not the key of an object: {error}", kind="invalid-key") from None
    number = int(found[3], 16)
    _check_target(stream, number)
    return bytes.fromhex(found[1]), stream, number


def _check_target(stream: StreamId, number: int) -> None:
    if not stream.kind.has_opening:
        raise InvalidInput(f"a {stream.kind.name.lower()} has no objects in this version", kind="unsupported")
    if not 0 <= number <= INDEX_NUMBER:
        raise InvalidInput("an object's number lies between 0 and fffffffe", kind="invalid-key")
    if number == INDEX_NUMBER:
        raise InvalidInput("the number ffffffff is kept for a stream's index, which holds no data", kind="unsupported")
