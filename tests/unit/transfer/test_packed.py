"""Objects of codec zstd over real HTTP: what is asked for, and what is refused before a byte of it is stored."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from entrepot.adapters.store import Fetch, ObjectSource, Store, StoreSettings
from entrepot.adapters.transfer import Transfers
from entrepot.core.errors import Corrupt
from entrepot.core.format import decode_header, verify_object, with_stored_lengths
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock

LOCK = SchemaLock("demo", "zstd", miniblock=16384, object=65536)
TEXT = b"a line of text, and another line of text\n" * 2000


@dataclass
class Packed:
    """A stream of two objects: text, random, text, random; and one short miniblock."""

    data: bytes
    stream: StreamId
    opening: Opening
    objects: list[bytes]
    here: Store

    async def begin(self) -> Fetch:
        return await self.here.begin(self.stream, self.opening, LOCK, "hub/demo")

    def made(self, blocks: dict[int, bytes], claimed: dict[int, int] | None = None) -> bytes:
        """Object 0 with other stored miniblocks, the lengths in its header being theirs or the ``claimed`` ones."""
        header = decode_header(self.objects[0][: 96 + 4 * 36 + 32], stream=self.stream, lock=LOCK, number=0)
        spans = [header.miniblock_span(index) for index in range(4)]
        stored = [blocks.get(i, self.objects[0][at : at + size]) for i, (at, size) in enumerate(spans)]
        lengths = [(claimed or {}).get(i, len(block)) for i, block in enumerate(stored)]
        return with_stored_lengths(header, lengths) + b"".join(stored)


def whole(source: ObjectSource) -> bytes:
    return source.header + source.path.read_bytes()[source.offset : source.offset + source.length]


@pytest.fixture
async def packed(tmp_path: Path) -> AsyncIterator[Packed]:
    data = b"".join((TEXT[:16384], os.urandom(16384)) * 2) + TEXT[:3000]
    path = tmp_path / "file"
    path.write_bytes(data)
    settings = StoreSettings(reserve=0, flush_after=0.02)
    async with Store(tmp_path / "there", settings) as there, Store(tmp_path / "here", settings) as here:
        added = await there.add(path, channel="hub/demo", lock=LOCK)
        sources = [await there.object_source(added.stream, LOCK, number) for number in range(2)]
        objects = [whole(source) for source in sources]
        for number, data_of in enumerate(objects):
            verify_object(data_of, stream=added.stream, lock=LOCK, number=number)
        assert len(objects[0]) < 96 + 4 * 36 + 32 + 2 * 16384 + 2000
        yield Packed(data, added.stream, added.opening, objects, here)


def ranges(bucket: Any) -> list[str | None]:
    return [headers.get("Range") for _, _, headers in bucket.seen]


async def test_a_packed_stream_comes_over(bucket: Any, transfers: Transfers, packed: Packed) -> None:
    """Each whole object is one request; what is counted is what was verified."""
    async with await packed.begin() as fetch:
        for number, data in enumerate(packed.objects):
            bucket.objects[f"/{number}"] = data
            count = await transfers.get_object(bucket.get(str(number)), fetch, number)
            assert count == Geometry(len(packed.data), LOCK).object_span(number)[1]
        assert await fetch.finish()
    assert ranges(bucket) == [None, None]
    assert await packed.here.read(packed.stream, 0, len(packed.data)) == packed.data


async def test_a_range_asks_for_the_header_and_the_stored_bytes_of_its_blocks(
    bucket: Any, transfers: Transfers, packed: Packed
) -> None:
    """Header first, then exactly the stored bytes; the next range of the same object needs no header any more."""
    bucket.objects["/o"] = packed.objects[0]
    header = decode_header(packed.objects[0][:272], stream=packed.stream, lock=LOCK, number=0)
    async with await packed.begin() as fetch:
        for block in (2, 1):
            await transfers.get_object(bucket.get(), fetch, 0, miniblocks=(block,))
            assert fetch.missing_miniblocks(0) == tuple(sorted({0, 1, 2, 3} - {2, block}))
        at = header.offsets
        assert ranges(bucket) == ["bytes=0-271", f"bytes={at[2]}-{at[3] - 1}", f"bytes={at[1]}-{at[2] - 1}"]
        assert await packed.here.read(packed.stream, 16384, 32768) == packed.data[16384:49152]
    part = await transfers.get_range(bucket.get(), packed.stream, LOCK, packed.opening, 0, range(1, 3))
    assert part == packed.data[16384:49152]


async def test_another_holders_object_is_read_by_its_own_header(
    bucket: Any, transfers: Transfers, packed: Packed
) -> None:
    """When other bytes of the same object took the place of those whose header is known, the header is asked for
    again: nobody's object is called corrupt."""
    other = packed.made({0: packed.data[:16384]})
    assert len(other) > len(packed.objects[0])
    bucket.objects["/o"] = packed.objects[0]
    async with await packed.begin() as fetch:
        await transfers.get_object(bucket.get(), fetch, 0, miniblocks=(0,))

        def replaced(handler: Any) -> None:
            wanted = handler.headers.get("Range")
            first, last = (int(x) for x in wanted.removeprefix("bytes=").split("-"))
            span = f"bytes {first}-{last}/{len(other)}"
            handler.reply(206, other[first : last + 1], ETag='"other"', **{"Content-Range": span})

        bucket.script.extend([replaced] * 4)
        await transfers.get_object(bucket.get(), fetch, 0)
        assert await fetch.finish() is False
        assert fetch.missing_miniblocks(0) == ()
    header = decode_header(other[:272], stream=packed.stream, lock=LOCK, number=0)
    assert ranges(bucket)[-2:] == ["bytes=0-271", f"bytes={header.offsets[1]}-{header.offsets[4] - 1}"]


async def test_a_server_without_ranges_serves_packed_ranges(bucket: Any, transfers: Transfers, packed: Packed) -> None:
    """Where a range is answered with everything, the miniblocks are found in it."""
    bucket.objects["/o"] = packed.objects[0]
    bucket.script.append(lambda h: h.reply(200, packed.objects[0], ETag='"e"'))
    part = await transfers.get_range(bucket.get(), packed.stream, LOCK, packed.opening, 0, range(2, 4))
    assert part == packed.data[32768:65536]


@pytest.mark.parametrize("change", ["longer", "shorter", "as long as plain", "longer than plain", "header alone"])
async def test_an_object_of_another_length_than_its_header_says_is_refused(
    bucket: Any, transfers: Transfers, packed: Packed, change: str
) -> None:
    """Content-Length is header and stored lengths, exactly: otherwise nothing is stored, and it is the object that is
    reported."""
    data, plain = packed.objects[0], 272 + 65536
    bucket.objects["/o"] = {
        "longer": data + b"!",
        "shorter": data[:-1],
        "as long as plain": data + bytes(plain - len(data)),
        "longer than plain": data + bytes(plain + 1 - len(data)),
        "header alone": data[:272],
    }[change]
    async with await packed.begin() as fetch:
        for part in (None, (3,)):
            with pytest.raises(Corrupt) as caught:
                await transfers.get_object(bucket.get(), fetch, 0, miniblocks=part)
            assert (caught.value.kind, caught.value.data["miniblock"]) == ("corrupt-object", None)
            assert caught.value.data["etag"] == '"e"'
        assert fetch.verified_bytes == 0


def frame(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(data)


@pytest.mark.parametrize(
    "wrong",
    ["bomb", "other bytes", "shorter", "longer", "two frames", "trailing", "cut", "no frame", "no length", "skippable"],
)
async def test_a_hostile_miniblock_is_refused_alone(
    bucket: Any, transfers: Transfers, packed: Packed, wrong: str
) -> None:
    """A frame that is not exactly the miniblock's is refused with its number, before a byte of it is stored; the
    miniblocks before it stay."""
    block = packed.data[32768:49152]
    hostile = {
        "bomb": frame(bytes(100 << 20)),
        "other bytes": frame(bytes(16384)),
        "shorter": frame(block[:-1]),
        "longer": frame(block + b"!"),
        "two frames": frame(block[:100]) + frame(block[100:]),
        "trailing": frame(block) + b"!",
        "cut": frame(block)[:-1],
        "no frame": b"!" * 50,
        "no length": frame(block, write_content_size=False),
        "skippable": b"\x50\x2a\x4d\x18\x00\x00\x00\x00" + frame(block),
    }[wrong]
    assert len(hostile) < 16384
    bucket.objects["/o"] = packed.made({2: hostile})
    async with await packed.begin() as fetch:
        with pytest.raises(Corrupt) as caught:
            await transfers.get_object(bucket.get(), fetch, 0)
        assert (caught.value.kind, caught.value.data["miniblock"]) == ("corrupt-object", 2)
        assert fetch.missing_miniblocks(0) == (2, 3)
    with pytest.raises(Corrupt) as caught:
        await transfers.get_range(bucket.get(), packed.stream, LOCK, packed.opening, 0, range(2, 3))
    assert caught.value.data["miniblock"] == 2
