"""SHA-256 that can be put down and taken up again: hashlib does not give its state away, OpenSSL's own structure does.

The structure is plain bytes (``SHA256_CTX`` of OpenSSL 1.0 to 3.x). Whether the library that hashlib itself uses has
these functions, and whether they give what hashlib gives after a state was carried over, is tried once. Where not, the
hash is hashlib's and :meth:`Sha256.state` is None: whoever goes on reads what was hashed again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import struct
from typing import Final, Protocol

#: Bytes of a state: eight words, the count of bits in two, a block, its fill and the digest's length.
STATE_LENGTH: Final = 112
_STATE: Final = struct.Struct("=8I II 64s I I")
_ROOM: Final = 512  # what a later OpenSSL might make of it must fit too: the self-test sees that it is another one


class Sha256(Protocol):
    """A hash under way."""

    def update(self, data: memoryview) -> None:
        """Takes the next bytes; other threads run meanwhile."""

    def digest(self) -> bytes:
        """The digest of all bytes so far."""

    def state(self) -> bytes | None:
        """What :func:`resumed` goes on from, None where it cannot be had."""


def new() -> Sha256:
    """A hash of nothing yet."""
    library = _library()
    return _Plain() if library is None else _Carried(library, None)


def resumed(state: bytes, length: int) -> Sha256 | None:
    """The hash of ``length`` bytes whose state was kept; None if this is no such state, or none can be taken up here.

    That the bytes of a state are those that were kept is for the caller to see to: one that was altered gives a wrong
    digest.
    """
    library = _library()
    if library is None or not _fits(state, length):
        return None
    return _Carried(library, state)


def _fits(state: bytes, length: int) -> bool:
    if len(state) != STATE_LENGTH:
        return False
    *_words, low, high, _block, fill, digest_length = _STATE.unpack(state)
    return ((high << 32) | low, fill, digest_length) == (length * 8, length % 64, 32)


class _Plain:
    """By hashlib."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, data: memoryview) -> None:
        self._hash.update(data)

    def digest(self) -> bytes:
        return self._hash.digest()

    def state(self) -> bytes | None:
        return None


class _Carried:
    """By OpenSSL's functions."""

    def __init__(self, library: ctypes.CDLL, state: bytes | None) -> None:
        self._library = library
        self._context = ctypes.create_string_buffer(_ROOM)
        if state is None:
            library.SHA256_Init(self._context)
        else:
            ctypes.memmove(self._context, state, len(state))

    def update(self, data: memoryview) -> None:
        if not len(data):
            return
        view = (ctypes.c_char * len(data)).from_buffer(data) if not data.readonly else bytes(data)
        self._library.SHA256_Update(self._context, view, len(data))

    def digest(self) -> bytes:
        copy = ctypes.create_string_buffer(self._context.raw, _ROOM)
        found = ctypes.create_string_buffer(32)
        self._library.SHA256_Final(found, copy)
        return found.raw

    def state(self) -> bytes | None:
        return self._context.raw[:STATE_LENGTH]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """OpenSSL, if it does what is wanted of it. Threads that ask at once try it each for itself."""
    with contextlib.suppress(OSError, AttributeError, ImportError, ValueError):
        import _hashlib

        # Through hashlib's own module, which it is linked to: no other OpenSSL comes into the process.
        library = ctypes.CDLL(_hashlib.__file__)
        for name, third in (("SHA256_Init", ()), ("SHA256_Update", (ctypes.c_size_t,)), ("SHA256_Final", ())):
            function = getattr(library, name)
            function.restype = ctypes.c_int
            function.argtypes = [ctypes.c_void_p, *([ctypes.c_void_p] if name != "SHA256_Init" else []), *third]
        if _works(library):
            return library
    return None


def _works(library: ctypes.CDLL) -> bool:
    """Whether a hash that is put down at odd places and taken up again is hashlib's."""
    data = bytes(range(256)) * 9
    whole: Sha256 = _Carried(library, None)
    at = 0
    for size in (1, 62, 1, 64, 300, 1000):
        whole.update(memoryview(bytearray(data[at : at + size])))
        at += size
        state = whole.state()
        if state is None or not _fits(state, at) or whole.digest() != hashlib.sha256(data[:at]).digest():
            return False
        whole = _Carried(library, state)
    return True
