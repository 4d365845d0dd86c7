"""Downloading objects, from servers that behave and from others."""

from __future__ import annotations

import asyncio

import pytest

from entrepot.adapters.transfer import Transfers
from entrepot.core.errors import Conflict, Corrupt, Denied, EntrepotError, InvalidInput, NotFound, RetryLater


async def begin(stream):
    return await stream.here.begin(stream.stream, stream.opening, stream.lock, "hub/demo")


async def test_a_stream_comes_over(bucket, transfers, stream) -> None:
    """All objects make the stream complete; every one is asked for once, without a range, on few connections."""
    moved: list[int] = []
    async with await begin(stream) as fetch:
        for number in range(stream.geometry.object_count):
            bucket.objects[f"/{number}"] = stream.object(number)
            count = await transfers.get_object(bucket.get(str(number)), fetch, number, progress=moved.append)
            assert count == stream.sources[number].length
        assert await fetch.finish()
    assert await stream.here.read(stream.stream, 0, len(stream.data)) == stream.data
    assert moved[:4] == [16384, 32768, 49152, 65536]
    assert len(bucket.seen) == stream.geometry.object_count
    assert bucket.connections == 1


@pytest.mark.parametrize("here", [(0,), (1, 2), (0, 2), (3,), (0, 1, 2)])
@pytest.mark.parametrize("known", [True, False])
async def test_only_what_is_missing_is_asked_for(bucket, transfers, stream, here: tuple[int, ...], known: bool) -> None:
    """With some miniblocks here, ranges bring the missing runs, and the header only where it is not known."""
    bucket.objects["/o"] = stream.object(0)
    async with await begin(stream) as fetch:
        header = fetch.accept_header(0, stream.sources[0].header)
        for index in here:
            fetch.write_verified(header, index, stream.data[index * 16384 :][:16384])
        if not known:
            fetch._headers.clear()
            fetch._pending_headers.clear()
        assert await transfers.get_object(bucket.get(), fetch, 0) == (4 - len(here)) * 16384
        assert fetch.missing_miniblocks(0) == ()
        assert all("Range" in headers for _, _, headers in bucket.seen)
        seen = len(bucket.seen)
        assert await transfers.get_object(bucket.get(), fetch, 0) == 0
        assert len(bucket.seen) == seen


async def test_truncated_answers_resume(bucket, transfers, stream) -> None:
    """A body cut in the middle costs only the miniblock it was cut in: the rest is asked for by range."""
    whole = stream.object(0)
    cut = stream.sources[0].header + whole[len(stream.sources[0].header) :][: 2 * 16384 + 50]
    bucket.objects["/o"] = whole
    bucket.script.append(lambda h: h.reply(200, whole, send=cut))
    async with await begin(stream) as fetch:
        assert await transfers.get_object(bucket.get(), fetch, 0) == 65536
    assert [headers.get("Range") for _, _, headers in bucket.seen] == [
        None,
        f"bytes={len(whole) - 2 * 16384}-{len(whole) - 1}",
    ]


@pytest.mark.parametrize(
    ("status", "error", "kind", "tries"),
    [
        (404, NotFound, "no-such-object", 1),
        (403, Denied, "expired", 1),
        (412, Conflict, "changed", 1),
        (503, RetryLater, "bucket-unreachable", 4),
        (429, RetryLater, "bucket-unreachable", 4),
        (408, RetryLater, "bucket-unreachable", 4),
        (302, RetryLater, "bucket-unreachable", 1),
    ],
)
async def test_refusals_are_told_apart(
    bucket, transfers, stream, status: int, error: type[EntrepotError], kind: str, tries: int
) -> None:
    """Each status has its error, and only what may pass is tried again."""
    bucket.script.extend([lambda h: h.reply(status, b"", **{"Retry-After": "0"})] * tries)
    async with await begin(stream) as fetch:
        with pytest.raises(error) as caught:
            await transfers.get_object(bucket.get(), fetch, 0)
    assert (caught.value.kind, len(bucket.seen)) == (kind, tries)


async def test_retry_after_is_honoured(bucket, stream, monkeypatch) -> None:
    """The pause a server asks for is kept, as seconds or as a date, up to the limit."""
    pauses: list[float] = []

    async def pause(self: Transfers, seconds: float, cancel: object) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(Transfers, "_pause", pause)
    bucket.objects["/o"] = stream.object(0)
    for value in ("7", "Fri, 01 Jan 2100 00:00:00 GMT", "nonsense"):
        bucket.script.append(lambda h, value=value: h.reply(503, b"", **{"Retry-After": value}))
    async with Transfers() as transfers, await begin(stream) as fetch:
        await transfers.get_object(bucket.get(), fetch, 0)
    assert pauses[0] == 7
    assert pauses[1] == transfers.settings.retry_after_limit
    assert pauses[2] <= transfers.settings.backoff_limit


async def test_a_wrong_bit_is_reported_with_its_place(bucket, transfers, stream) -> None:
    """A spoilt miniblock is asked for twice, then it is corrupt-object with its number and the etag; others stay."""
    whole = bytearray(stream.object(0))
    at = len(stream.sources[0].header) + 2 * 16384 + 7
    whole[at] ^= 1
    bucket.objects["/o"] = bytes(whole)
    async with await begin(stream) as fetch:
        with pytest.raises(Corrupt) as caught:
            await transfers.get_object(bucket.get(), fetch, 0)
        assert fetch.missing_miniblocks(0) == (2, 3)
    data = caught.value.data
    assert (caught.value.kind, data["miniblock"], data["number"], data["etag"]) == ("corrupt-object", 2, 0, '"e"')
    assert len(bucket.seen) == 2


async def test_a_wrong_bit_is_numbered_within_the_stream(bucket, transfers, stream) -> None:
    """What is reported of a spoilt miniblock of a later object is its number within the stream: that is what a hub
    reads again, and another one would make the report a false one."""
    whole = stream.object(1)
    bucket.objects["/o"] = whole[:-1] + bytes([whole[-1] ^ 1])
    async with await begin(stream) as fetch:
        span = fetch.geometry.miniblocks_of(1)
        with pytest.raises(Corrupt) as caught:
            await transfers.get_object(bucket.get(), fetch, 1)
    assert caught.value.data["miniblock"] == span[-1] >= 4
    ask = (stream.stream, stream.lock, stream.opening, 1)
    with pytest.raises(Corrupt) as caught:
        await transfers.get_range(bucket.get(), *ask, range(len(span) - 1, len(span)))
    assert caught.value.data["miniblock"] == span[-1]


async def test_what_only_the_network_spoilt_is_mended(bucket, transfers, stream) -> None:
    """One bad answer followed by a good one is no corruption."""
    whole = bytearray(stream.object(0))
    whole[-1] ^= 1
    bucket.objects["/o"] = stream.object(0)
    bucket.script.append(lambda h: h.reply(200, bytes(whole)))
    async with await begin(stream) as fetch:
        assert await transfers.get_object(bucket.get(), fetch, 0) == 65536


@pytest.mark.parametrize("change", [0, 8, 20, 60, 90, 97, 101, -1])
async def test_a_wrong_header_is_corrupt(bucket, transfers, stream, change: int) -> None:
    """A header with any bit turned is refused before a byte of the body is used."""
    header = bytearray(stream.sources[0].header)
    header[change] ^= 1
    bucket.objects["/o"] = bytes(header) + stream.object(0)[len(header) :]
    async with await begin(stream) as fetch:
        with pytest.raises(Corrupt) as caught:
            await transfers.get_object(bucket.get(), fetch, 0)
        assert caught.value.kind == "corrupt-object"
        assert fetch.missing_miniblocks(0) == (0, 1, 2, 3)


@pytest.mark.parametrize("length", [1, 100, -1])
async def test_an_object_of_another_length_is_not_taken(bucket, transfers, stream, length: int) -> None:
    """A shorter or a longer object is wrong-length; nothing of it is stored."""
    whole = stream.object(0)
    bucket.objects["/o"] = whole + b"!" if length == -1 else whole[:length]
    async with await begin(stream) as fetch:
        with pytest.raises(Corrupt) as caught:
            await transfers.get_object(bucket.get(), fetch, 0)
        assert caught.value.kind == "wrong-length"
        assert fetch.verified_bytes == 0


async def test_a_tombstone_is_absence(bucket, transfers, stream) -> None:
    """A 0-byte object is no such object, whole or by range."""
    bucket.objects["/o"] = b""
    async with await begin(stream) as fetch:
        with pytest.raises(NotFound):
            await transfers.get_object(bucket.get(), fetch, 0)
        header = fetch.accept_header(0, stream.sources[0].header)
        fetch.write_verified(header, 0, stream.data[:16384])
        with pytest.raises(NotFound):
            await transfers.get_object(bucket.get(), fetch, 0)


async def test_everything_for_a_range_is_not_taken(bucket, transfers, stream) -> None:
    """A server that answers a range with 200 is then asked for the whole object, of which the missing part is used."""
    whole = stream.object(0)
    bucket.objects["/o"] = whole
    bucket.script.append(lambda h: h.reply(200, b"\0" * len(whole), **{"Content-Range": f"bytes 0-9/{len(whole)}"}))
    async with await begin(stream) as fetch:
        header = fetch.accept_header(0, stream.sources[0].header)
        fetch.write_verified(header, 1, stream.data[16384 : 2 * 16384])
        assert await transfers.get_object(bucket.get(), fetch, 0) == 3 * 16384
    assert "Range" not in bucket.seen[1][2]


@pytest.mark.parametrize(
    "said", ["bytes 0-9/{total}", "bytes {first}-{last}", "octets {first}-{last}/{total}", "", "bytes -/{total}"]
)
async def test_another_range_is_not_taken(bucket, transfers, stream, said: str) -> None:
    """A 206 that does not say exactly the range asked for is asked for again, and its bytes are not used."""
    whole = stream.object(0)
    bucket.objects["/o"] = whole
    first, last = len(whole) - 16384, len(whole) - 1
    text = said.format(first=first, last=last, total=len(whole))
    bucket.script.append(lambda h: h.reply(206, b"\0" * 16384, **{"Content-Range": text}))
    async with await begin(stream) as fetch:
        header = fetch.accept_header(0, stream.sources[0].header)
        for index in range(3):
            fetch.write_verified(header, index, stream.data[index * 16384 :][:16384])
        assert await transfers.get_object(bucket.get(), fetch, 0) == 16384
    assert len(bucket.seen) == 2


async def test_encodings_and_lengths_that_hide_the_bytes(bucket, transfers, stream) -> None:
    """A compressed answer is refused, one without a length is tried again."""
    bucket.objects["/o"] = whole = stream.object(0)
    bucket.script.append(lambda h: h.reply(200, whole, **{"Content-Encoding": "gzip"}))
    async with await begin(stream) as fetch:
        with pytest.raises(RetryLater):
            await transfers.get_object(bucket.get(), fetch, 0)
        bucket.script.append(lambda h: h.reply(200, whole, send=b"0\r\n\r\n", **{"Transfer-Encoding": "chunked"}))
        assert await transfers.get_object(bucket.get(), fetch, 0) == 65536
    assert bucket.seen[0][2]["Accept-Encoding"] == "identity"


async def test_garbage_resets_and_stale_connections(bucket, transfers, stream) -> None:
    """No HTTP, endless headers and a reset are tried again; a kept connection that the server closed is no try."""

    def garbage(handler) -> None:
        handler.wfile.write(b"\0\xff not http\r\n\r\n")
        handler.close_connection = True

    def endless(handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n")
        handler.close_connection = True

    bucket.objects["/o"] = stream.object(0)
    bucket.objects["/p"] = stream.object(1)
    bucket.script.extend([garbage, endless, lambda h: h.reset()])
    async with await begin(stream) as fetch:
        assert await transfers.get_object(bucket.get(), fetch, 0) == 65536
        bucket.script.extend([lambda h: h.reset()])
        assert await transfers.get_object(bucket.get("p"), fetch, 1) == stream.sources[1].length


async def test_many_at_once_share_few_threads(bucket, transfers, stream) -> None:
    """More transfers than slots all come through, several for one object too."""
    for number in range(stream.geometry.object_count):
        bucket.objects[f"/{number}"] = stream.object(number)
    async with await begin(stream) as fetch:
        await asyncio.gather(
            *(
                transfers.get_object(bucket.get(str(number)), fetch, number)
                for number in range(stream.geometry.object_count)
                for _ in range(6)
            )
        )
        assert await fetch.finish()
    assert await stream.here.read(stream.stream, 0, len(stream.data)) == stream.data


# ---- ranges into memory


@pytest.mark.parametrize(("first", "stop"), [(0, 1), (0, 4), (1, 3), (3, 4), (2, 2)])
async def test_ranges_of_an_object(bucket, transfers, stream, first: int, stop: int) -> None:
    """Miniblocks come verified with no more bytes than they and the header have; the header comes once."""
    bucket.objects["/o"] = stream.object(0)
    for expected in (2, 1):
        before = len(bucket.seen)
        data = await transfers.get_range(
            bucket.get(), stream.stream, stream.lock, stream.opening, 0, range(first, stop)
        )
        assert data == stream.data[first * 16384 : stop * 16384]
        assert len(bucket.seen) - before == (0 if first == stop else 1 if first == 0 else expected)


async def test_bad_ranges_give_nothing(bucket, transfers, stream) -> None:
    """A spoilt miniblock, a server without ranges and numbers outside: an error, or the right bytes by another way."""
    whole = stream.object(0)
    ask = (stream.stream, stream.lock, stream.opening, 0)
    bucket.objects["/o"] = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(Corrupt) as caught:
        await transfers.get_range(bucket.get(), *ask, range(3, 4))
    assert caught.value.data["miniblock"] == 3
    bucket.objects["/o"] = whole
    bucket.script.append(lambda h: h.reply(200, whole))
    assert await transfers.get_range(bucket.get(), *ask, range(1, 3)) == stream.data[16384 : 3 * 16384]
    for wrong in (range(3, 5), range(-1, 1), range(0, 4, 2)):
        with pytest.raises(InvalidInput):
            await transfers.get_range(bucket.get(), *ask, wrong)
