"""What the store says about streams: plain values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from entrepot.adapters.files import FileIdentity
from entrepot.adapters.store.packing import Spool
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.ranges import Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """How a store behaves. Sizes in bytes, times in seconds."""

    journal: str = "wal"  #: "delete" on a shared file system
    busy_timeout: float = 20.0  #: longest wait for another process's transaction
    synced: bool = True  #: False: faster, and a power cut may cost the store
    workers: int = 4  #: threads for files
    hashers: int = 2  #: further threads for hashing
    reserve: int = 64 << 20  #: left free at all times on the disk, and on that of a file that is fetched
    flush_bytes: int = 32 << 20  #: verified bytes not yet recorded before writers wait
    flush_after: float = 0.25  #: longest time a verified miniblock stays unrecorded
    tree_cache: int = 32 << 20  #: memory for Merkle nodes of streams in use
    alias: bool = True  #: take the SHA-256 of the whole file when adding


@dataclass(frozen=True, slots=True)
class Added:
    """What ``add`` found. ``sha256`` (32 bytes) is the alias, None where the settings leave it out."""

    stream: StreamId
    opening: Opening
    sha256: bytes | None
    length: int
    name: str
    unchanged: bool


@dataclass(frozen=True, slots=True)
class Holding:
    """What is here of a stream that belongs to the scope asked for. ``objects`` is the set of whole verified
    objects under the lock asked for, as inclusive pairs."""

    stream: StreamId
    opening: Opening
    complete: bool
    objects: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One stream in the catalogue. ``stored`` tells whether bytes of it lie in the store's own folder,
    ``links`` where else they lie. Times in unix seconds."""

    stream: StreamId
    opening: Opening
    name: str
    sha256: bytes | None
    complete: bool
    stored: bool
    links: tuple[Path, ...]
    stale: bool
    scopes: frozenset[str]
    pinned: bool
    added: float
    used: float


@dataclass(frozen=True, slots=True)
class ObjectSource:
    """Where the bytes of one object lie: ``header``, then ``length`` bytes of the file from ``offset`` on.

    ``digest`` is that of the whole object, of the kind that was asked for. The file must still be ``identity`` when it
    is sent (:meth:`Store.confirm`). Where the channel's codec made other bytes, the file is a spool of this process:
    :meth:`release` it when they are not needed any more.
    """

    stream: StreamId
    number: int
    header: bytes
    path: Path
    offset: int
    length: int
    digest: bytes
    identity: FileIdentity
    linked: bool
    content: int = field(repr=False)
    spool: Spool | None = field(default=None, repr=False, compare=False)

    def release(self) -> None:
        """The object is not sent any more. May be called again."""
        if self.spool is not None:
            self.spool.release()

    @property
    def size(self) -> int:
        """Bytes of the object in the bucket."""
        return len(self.header) + self.length

    def matches(self, found: FileIdentity | None) -> bool:
        """Whether a file in the state ``found`` still has the bytes. The times of a stored file say nothing:
        it is ours, and more of it may be coming in."""
        if found is None:
            return False
        if self.linked:
            return self.identity.same(found)
        return (self.identity.size, self.identity.inode) == (found.size, found.inode)


class How(enum.StrEnum):
    """How an export gave the output its bytes."""

    REFLINK = "reflink"  # shares the blocks of the store's file
    MOVED = "moved"  # is the store's file; the store links to it
    COPIED = "copied"  # has its own; the store's were dropped if it had any
    LINKED = "linked"  # was the linked file already


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check of a stream found: ``bad`` maps each file to the numbers of its bad miniblocks; ``whole``: how many
    files have all of the stream."""

    stream: StreamId
    checked: int
    bad: Mapping[Path, tuple[int, ...]]
    missing: tuple[Path, ...]
    whole: int = 0


@dataclass(frozen=True, slots=True)
class Size:
    """``stored`` bytes on disk in the store's folder, ``linked`` bytes of files elsewhere, ``streams``."""

    stored: int
    linked: int
    streams: int
