"""Reading what the store holds: which file to trust, byte ranges, and objects ready to be sent.

A stored file is ours. A linked file is somebody else's: it is trusted only while size, times and inode are those
it had when it was hashed, looked at before and after every use; a file that differs is marked stale and not used
again until it was hashed again. All methods block: the store calls them in worker threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from entrepot.adapters.files import (
    FileIdentity,
    identify,
    identify_open,
    open_source,
    read_into,
)
from entrepot.adapters.hashing import NEVER, Flag, Progress, gather, hash_file, split_nodes
from entrepot.adapters.store import catalogue, proofs
from entrepot.adapters.store.bitmap import Bitmap
from entrepot.adapters.store.catalogue import Content, Known
from entrepot.adapters.store.database import Database
from entrepot.adapters.store.packing import Packed, pack_object
from entrepot.adapters.store.records import Holding, ObjectSource
from entrepot.core.errors import Conflict, Corrupt, EntrepotError, InvalidInput, NotFound
from entrepot.core.format import decode_header, encode_header, with_stored_lengths
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import StreamId
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import LEAF, NODE_LENGTH, AuditPaths, from_nodes
from entrepot.core.messages import DigestKind
from entrepot.core.ranges import Pair, of_numbers

BUFFER: Final = 1 << 20

#: Whether bytes written by a fetch of this process, not recorded yet, cover miniblocks of a size (level).
type Live = Callable[[StreamId, int, range], bool]


@dataclass(frozen=True, slots=True)
class _Tree:
    nodes: bytes
    paths: AuditPaths
    cost: int


class Reader:
    """Reads streams for one store. ``folder`` is where its own files lie, and ``reserve`` bytes stay free there."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        pool: ThreadPoolExecutor,
        *,
        tree_cache: int,
        live: Live,
        reserve: int = 0,
    ) -> None:
        self._database = database
        self._folder = folder
        self._pool = pool
        self._tree_cache = tree_cache
        self._live = live
        self._reserve = reserve
        self._trees: OrderedDict[tuple[StreamId, bytes], _Tree] = OrderedDict()
        self._trees_cost = 0
        self._guard = threading.Lock()
        self._buffers = threading.local()

    # ---- which file

    def known(self, stream: StreamId) -> Known:
        """What the catalogue has of the stream, paths absolute. Raises ``no-such-stream``."""
        found = self._database.run_from_thread(catalogue.known, stream)
        if found is None:
            raise NotFound(f"the store has nothing of {stream}", kind="no-such-stream", stream=str(stream))
        return replace(found, contents=tuple(map(self.located, found.contents)))

    def located(self, content: Content) -> Content:
        """The content with its path absolute."""
        return replace(content, path=self._folder / content.path) if content.stored else content

    def current(self, content: Content, length: int) -> FileIdentity | None:
        """The identity of the content's file if it can be trusted now, None otherwise.

        A linked file that changed is marked stale, a stored file that is gone is forgotten.
        """
        if content.stale:
            return None
        try:
            found = identify(content.path)
        except EntrepotError:
            return None  # unreadable now: not served now
        if content.stored:
            if found is not None and found.size == length:
                return found
            self._database.run_from_thread(catalogue.drop_content, content.id)
            return None
        if found is not None and found.same(content.identity):
            return found
        self._database.run_from_thread(catalogue.mark_stale, content.id)
        return None

    @staticmethod
    def unaltered(content: Content, length: int) -> bool:
        """Whether a look at the content's file finds what it was. Changes nothing."""
        try:
            found = identify(content.path)
        except EntrepotError:
            return False
        return found is not None and (found.size == length if content.stored else found.same(content.identity))

    def complete(self, known: Known) -> tuple[Content, FileIdentity] | None:
        """A file that holds the whole stream, None if there is none now."""
        for content in known.contents:
            if content.complete and (identity := self.current(content, known.opening.length)) is not None:
                return content, identity
        return None

    def partial(self, known: Known) -> Content | None:
        """The stored file that holds some of the stream."""
        for content in known.contents:
            if content.stored and not content.complete and self.current(content, known.opening.length):
                return content
        return None

    def absent(self, known: Known) -> EntrepotError:
        """The error for a stream that no file holds (any more)."""
        linked = [content.path for content in known.contents if not content.stored]
        if linked:
            return Conflict(
                f"{linked[0]} is no longer what it was when it was added",
                kind="changed",
                hint="Add the file again: its new content has another stream id.",
                stream=str(known.stream),
                path=str(linked[0]),
            )
        return NotFound(f"the store has not all of {known.stream}", kind="no-such-stream", stream=str(known.stream))

    @contextlib.contextmanager
    def opened(self, content: Content, identity: FileIdentity) -> Iterator[int]:
        """A descriptor of the content's file, which must be ``identity`` when it is opened and, if it is linked,
        still when the block ends. Otherwise raises ``changed``."""
        descriptor = open_source(content.path)
        try:
            self._insist(content, identity, identify_open(descriptor))
            yield descriptor
            self._insist(content, identity, identify_open(descriptor))
        finally:
            os.close(descriptor)

    def _insist(self, content: Content, expected: FileIdentity, found: FileIdentity | None) -> None:
        if found is not None and (
            (found.size, found.inode) == (expected.size, expected.inode) if content.stored else found.same(expected)
        ):
            return
        if not content.stored:
            self._database.run_from_thread(catalogue.mark_stale, content.id)
        raise Conflict(
            f"{content.path} changed while it was in use",
            kind="changed",
            hint="Add the file again: its new content has another stream id.",
            path=str(content.path),
        )

    # ---- bits

    def bits(self, content: Content, geometry: Geometry) -> Bitmap:
        """Which miniblocks of the lock's size the partial stored file has."""
        bitmap = Bitmap(geometry.miniblock_count)
        for chunk, row in self._database.run_from_thread(proofs.verified, content.id, geometry.lock.level):
            bitmap.merge(chunk, row)
        return bitmap

    def held_objects(self, known: Known, lock: SchemaLock) -> tuple[Pair, ...]:
        """The objects that can be served from a partial stored file: all miniblocks and the header are here."""
        content = self.partial(known)
        if content is None:
            return ()
        geometry = Geometry(known.opening.length, lock)
        bitmap = self.bits(content, geometry)
        headers = self._database.run_from_thread(proofs.header_numbers, known.id, lock.id)
        return of_numbers(number for number in sorted(headers) if bitmap.has_all(geometry.miniblocks_of(number)))

    def holding(self, known: Known, lock: SchemaLock) -> Holding | None:
        """What can be served of a stream as the catalogue has it, None if nothing is left of it."""
        known = replace(known, contents=tuple(map(self.located, known.contents)))
        geometry = Geometry(known.opening.length, lock)
        if self.complete(known) is not None:
            objects = ((0, geometry.object_count - 1),) if geometry.object_count else ()
            return Holding(known.stream, known.opening, True, objects)
        held = self.held_objects(known, lock)
        return Holding(known.stream, known.opening, False, held) if held else None

    def present(self, known: Known) -> int:
        """Bytes of the stream that are here and verified, as the files are now. What was fetched with miniblocks of
        several sizes counts with the size that covers most."""
        if self.complete(known) is not None:
            return known.opening.length
        content = self.partial(known)
        if content is None:
            return 0
        length, most = known.opening.length, 0
        for level in self._database.run_from_thread(proofs.verified_levels, content.id):
            size = LEAF << level
            bitmap = Bitmap(-(-length // size))
            for chunk, row in self._database.run_from_thread(proofs.verified, content.id, level):
                bitmap.merge(chunk, row)
            last = bitmap.count - 1
            short = bitmap.count * size - length if bitmap.count and last in bitmap else 0
            most = max(most, bitmap.set_count * size - short)
        return most

    # ---- bytes

    def read(self, stream: StreamId, offset: int, length: int) -> bytes:
        """See :meth:`Store.read`."""
        known = self.known(stream)
        if offset < 0 or length < 0 or offset + length > known.opening.length:
            raise InvalidInput(
                f"{length} bytes at {offset} do not lie in a stream of {known.opening.length} bytes",
                offset=offset,
                length=length,
            )
        if length == 0:
            return b""
        data = bytearray(length)
        whole = self.complete(known)
        if whole is not None:
            content, identity = whole
        else:
            found = self.partial(known)
            if found is None or not self._covered(known, found, offset, length):
                raise self.absent(known)
            content, identity = found, self._identity(found)
        with self.opened(content, identity) as descriptor:
            if read_into(descriptor, memoryview(data), offset) != length:
                raise Corrupt(f"{content.path} ends early", kind="corrupt-store", path=str(content.path))
        return bytes(data)

    def _identity(self, content: Content) -> FileIdentity:
        found = identify(content.path)
        if found is None:
            raise NotFound(f"{content.path} is gone", kind="no-such-file", path=str(content.path))
        return found

    def _covered(self, known: Known, content: Content, offset: int, length: int) -> bool:
        levels = self._database.run_from_thread(proofs.verified_levels, content.id)
        for level in dict.fromkeys((*levels, *range(13))):
            size = LEAF << level
            wanted = range(offset // size, (offset + length - 1) // size + 1)
            if self._live(known.stream, level, wanted):
                return True
            if level in levels:
                bitmap = Bitmap(-(-known.opening.length // size))
                for chunk, row in self._database.run_from_thread(proofs.verified, content.id, level):
                    bitmap.merge(chunk, row)
                if bitmap.has_all(wanted):
                    return True
        return False

    # ---- nodes and objects

    def nodes(self, known: Known, level: int, stop: Flag = NEVER, progress: Progress | None = None) -> bytes:
        """All nodes at ``level`` (log2(miniblock / 16 KiB)), proved: kept ones, or folded from finer ones, or from
        hashing a complete file again. Raises ``changed`` or ``no-such-stream`` if there is no way to them."""
        opening = known.opening
        count = -(-opening.length // (LEAF << level))
        if count == 0:
            return b""
        if count == 1:
            return opening.root
        for kept in self._database.run_from_thread(proofs.node_levels, known.id):
            if kept > level:
                break
            raw = self._database.run_from_thread(proofs.nodes, known.id, kept)
            if len(raw) != -(-opening.length // (LEAF << kept)) * NODE_LENGTH:
                continue
            if from_nodes(opening.length, raw, kept) == opening:
                return raw if kept == level else gather(split_nodes(raw), kept, level)
        whole = self.complete(known)
        if whole is None:
            raise self.absent(known)
        content, identity = whole
        with self.opened(content, identity) as descriptor:
            hashed = hash_file(descriptor, opening.length, level, self._pool, alias=False, progress=progress, stop=stop)
        if hashed.opening != opening:
            raise self.spoiled(content)
        self._database.run_from_thread(proofs.put_nodes, known.id, level, hashed.nodes)
        return hashed.nodes

    def spoiled(self, content: Content) -> EntrepotError:
        """The error for a file whose bytes are not the stream's although nothing else tells; it is not used again."""
        if not content.stored:
            self._database.run_from_thread(catalogue.mark_stale, content.id)
        return Corrupt(
            f"{content.path} does not hold the bytes it held",
            kind="corrupt-store",
            hint="Run entrepot verify: it finds the bad parts and fetches them again.",
            path=str(content.path),
        )

    def _tree(self, known: Known, lock: SchemaLock, geometry: Geometry) -> _Tree:
        key = (known.stream, lock.id)
        with self._guard:
            tree = self._trees.get(key)
            if tree is not None:
                self._trees.move_to_end(key)
                return tree
        nodes = self.nodes(known, lock.level)
        tree = _Tree(nodes, AuditPaths(nodes, geometry), len(nodes) + 160 * geometry.object_count)
        with self._guard:
            if key not in self._trees:
                self._trees[key] = tree
                self._trees_cost += tree.cost
                while self._trees_cost > self._tree_cache and len(self._trees) > 1:
                    self._trees_cost -= self._trees.popitem(last=False)[1].cost
        return tree

    def forget(self, stream: StreamId) -> None:
        """Drops what memory holds of the stream."""
        with self._guard:
            for key in [key for key in self._trees if key[0] == stream]:
                self._trees_cost -= self._trees.pop(key).cost

    def object_source(self, stream: StreamId, lock: SchemaLock, number: int, kind: DigestKind) -> ObjectSource:
        """See :meth:`Store.object_source`."""
        known = self.known(stream)
        geometry = Geometry(known.opening.length, lock)
        offset, length = geometry.object_span(number)
        whole = self.complete(known)
        if whole is not None:
            content, identity = whole
            tree, packed = self._tree(known, lock, geometry), self._packed(content, identity, geometry, number)
            lengths = None if packed is None else packed.stored_lengths
            header = encode_header(
                stream, known.opening, lock, number, tree.nodes, paths=tree.paths, stored_lengths=lengths
            )
        else:
            found = self.partial(known)
            kept = self._database.run_from_thread(proofs.header, known.id, lock.id, number)
            if found is None or kept is None:
                raise self.absent(known)
            if not self.bits(found, geometry).has_all(geometry.miniblocks_of(number)):
                raise self.absent(known)
            content, identity = found, self._identity(found)
            packed = self._packed(content, identity, geometry, number)
            lengths = None if packed is None else packed.stored_lengths
            other = decode_header(kept, stream=stream, lock=lock, number=number, opening=known.opening)
            header = with_stored_lengths(other, lengths)
        if packed is not None:
            return self._spooled(stream, number, kind, header, packed, content)
        digest = self._digest(known, lock, number, kind, header, content, identity, offset, length)
        return ObjectSource(
            stream=stream,
            number=number,
            header=header,
            path=content.path,
            offset=offset,
            length=length,
            digest=digest,
            identity=identity,
            linked=not content.stored,
            content=content.id,
        )

    def _packed(self, content: Content, identity: FileIdentity, geometry: Geometry, number: int) -> Packed | None:
        """The object as the lock's codec stores it; None where that is as it lies in the file."""
        if geometry.lock.codec == "none":
            return None
        with self.opened(content, identity) as descriptor:

            def read(buffer: memoryview, offset: int) -> None:
                if read_into(descriptor, buffer, offset) != len(buffer):
                    raise self.spoiled(content)

            return pack_object(geometry, number, read, self._folder, self._reserve)

    @staticmethod
    def _spooled(
        stream: StreamId, number: int, kind: DigestKind, header: bytes, packed: Packed, content: Content
    ) -> ObjectSource:
        """Its digest is taken each time: another version of the library may pack otherwise."""
        spool, length = packed.spool, sum(packed.stored_lengths)
        digest = hashlib.new(kind, header, usedforsecurity=False)
        buffer = memoryview(bytearray(min(BUFFER, length)))
        for offset in range(0, length, len(buffer)):
            digest.update(buffer[: read_into(spool.descriptor, buffer, offset)])
        return ObjectSource(
            stream=stream,
            number=number,
            header=header,
            path=spool.path,
            offset=0,
            length=length,
            digest=digest.digest(),
            identity=identify_open(spool.descriptor),
            linked=False,
            content=content.id,
            spool=spool,
        )

    def _digest(
        self,
        known: Known,
        lock: SchemaLock,
        number: int,
        kind: DigestKind,
        header: bytes,
        content: Content,
        identity: FileIdentity,
        offset: int,
        length: int,
    ) -> bytes:
        cached = self._database.run_from_thread(proofs.digest, known.id, lock.id, number, kind)
        if cached is not None:
            return cached
        digest = hashlib.new(kind, header, usedforsecurity=False)
        buffer = self._buffer()
        with self.opened(content, identity) as descriptor:
            end = offset + length
            while offset < end:
                piece = buffer[: min(len(buffer), end - offset)]
                if read_into(descriptor, piece, offset) != len(piece):
                    raise self.spoiled(content)
                digest.update(piece)
                offset += len(piece)
        value = digest.digest()
        self._database.run_from_thread(proofs.put_digest, known.id, lock.id, number, kind, value)
        return value

    def _buffer(self) -> memoryview:
        """This thread's own: the first touch of new memory costs as much as half of the hash."""
        found: memoryview | None = getattr(self._buffers, "view", None)
        if found is None:
            found = self._buffers.view = memoryview(bytearray(BUFFER))
        return found

    def confirm(self, source: ObjectSource) -> None:
        """See :meth:`Store.confirm`."""
        if source.spool is not None:
            return  # nobody else writes there, and the file was what it was when it was packed
        known = self.known(source.stream)
        for content in known.contents:
            if content.id == source.content:
                self._insist(content, source.identity, identify(source.path))
                return
        for content in known.contents:  # a stored file that was exported meanwhile is a linked one now
            found = self.current(content, known.opening.length)
            if found is not None and (found.inode, found.mtime_ns) == (
                source.identity.inode,
                source.identity.mtime_ns,
            ):
                return
        raise Conflict(f"{source.path} left the store while it was sent", kind="changed", path=str(source.path))

    def alias(self, known: Known, stop: Flag = NEVER) -> bytes:
        """The SHA-256 of the whole stream, taken now if it is not known."""
        if known.sha256 is not None:
            return known.sha256
        whole = self.complete(known)
        if whole is None:
            raise self.absent(known)
        content, identity = whole
        with self.opened(content, identity) as descriptor:
            hashed = hash_file(descriptor, known.opening.length, 6, self._pool, alias=True, stop=stop)
        if hashed.opening != known.opening or hashed.sha256 is None:
            raise self.spoiled(content)
        self._database.run_from_thread(catalogue.set_alias, known.stream, hashed.sha256)
        return hashed.sha256
