"""One attempt to download from an object, each miniblock verified before it goes anywhere. Blocks; runs in a thread.

Nothing of an answer is used whose status, length or range is not exactly the one asked for. The body is read
miniblock by miniblock into one buffer that is used again and again.
"""

from __future__ import annotations

import http.client
import itertools
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from entrepot.adapters.store.fetch import Fetch
from entrepot.adapters.transfer.answers import (
    Setback,
    cancelled,
    content_length,
    content_range,
    error_body,
    network_errors,
    refusal,
    unreachable,
)
from entrepot.adapters.transfer.connections import Connection, Connections
from entrepot.adapters.transfer.requests import CancelToken, Moved, SignedRequest
from entrepot.adapters.transfer.sending import attached, begin
from entrepot.core.errors import Corrupt, NotFound
from entrepot.core.format import Header, decode_header, verify_miniblock
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock

_REST_READ_AWAY: Final = 1 << 16  # a shorter rest of a body costs less than another connection


@dataclass(slots=True)
class Download:
    """What attempts share: where the bytes come from and what was learnt on the way.

    ``ranges`` turns False when the server answered a range with everything: then whole objects are asked for.
    """

    connections: Connections
    request: SignedRequest
    stream: StreamId
    lock: SchemaLock
    opening: Opening
    number: int
    ranges: bool = True
    etag: str | None = None
    moved: int = 0

    @property
    def geometry(self) -> Geometry:
        """The partition of the stream."""
        return Geometry(self.opening.length, self.lock)

    def corrupt(self, error: Corrupt, index: int | None) -> Corrupt:
        """``error`` with what a report of it needs. ``index``: the miniblock within the object (None: the header);
        reports number it within the stream."""
        miniblock = None if index is None else self.geometry.miniblocks_of(self.number)[index]
        return Corrupt(
            error.message,
            kind="corrupt-object",
            hint="The object is reported and asked for from another holder.",
            stream=str(self.stream),
            number=self.number,
            miniblock=miniblock,
            etag=self.etag,
        )


class Body:
    """The bytes of one answer, from ``position`` in the object on."""

    def __init__(self, response: http.client.HTTPResponse, host: str, position: int, length: int) -> None:
        self._response = response
        self._host = host
        self.position = position
        self.end = position + length

    def read_into(self, buffer: memoryview) -> None:
        """Fills ``buffer``; a body that ends early is a :class:`Setback`."""
        done = 0
        while done < len(buffer):
            count = self._response.readinto(buffer[done:])
            if count == 0:
                raise Setback(unreachable("its answer ended early", self._host))
            done += count
        self.position += done

    def skip_to(self, position: int, buffer: memoryview) -> None:
        """Reads on to ``position``, which is not behind."""
        while self.position < position:
            self.read_into(buffer[: min(len(buffer), position - self.position)])


def exchange(
    download: Download,
    span: tuple[int, int] | None,
    take: Callable[[Body], None],
    *,
    buffer: memoryview,
    token: CancelToken,
    fresh: bool,
) -> None:
    """Asks for ``span`` (offset, length) of the object, or all of it, and hands the verified answer to ``take``."""
    connections, total = download.connections, download.geometry.object_length(download.number)
    target = connections.target(download.request)
    host = target.host
    if token.is_set():
        raise cancelled()
    with network_errors(host, token):
        connection = connections.take(target, fresh=fresh)
    with attached(connection, token):
        extra = {} if span is None else {"Range": f"bytes={span[0]}-{span[0] + span[1] - 1}"}
        with network_errors(host, token, stale=connection.reused):
            begin(connection, download.request, extra)
            response = connection.http.getresponse()
        with network_errors(host, token):
            download.etag = response.headers.get("ETag", download.etag)
            body = _check(download, response, host, span, total)
            take(body)
            _release(connections, connection, response, body, buffer)


def _release(
    connections: Connections,
    connection: Connection,
    response: http.client.HTTPResponse,
    body: Body,
    buffer: memoryview,
) -> None:
    rest = body.end - body.position
    if 0 < rest <= _REST_READ_AWAY:
        body.skip_to(body.end, buffer)
        rest = 0
    if rest == 0:
        response.close()
        if not response.will_close:
            connections.give_back(connection)
            return
    connection.close()


def _check(
    download: Download, response: http.client.HTTPResponse, host: str, span: tuple[int, int] | None, total: int
) -> Body:
    status = response.status
    if status not in (200, 206):
        body = error_body(response)
        response.close()  # one without a length keeps the socket for itself
        if status == 416:
            if response.headers.get("Content-Range", "").endswith("/0"):
                raise _tombstone(download)
            raise _wrong_length(download, None, total)
        refused = refusal(host, response, body)
        raise refused
    length = content_length(response)
    if length == 0:
        raise _tombstone(download)
    if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise unreachable("it changes the encoding of objects", host)
    if length is None or response.headers.get("Transfer-Encoding"):
        raise Setback(unreachable("its answer has no length", host))
    if span is None:
        if status != 200:
            raise Setback(unreachable("it answered with a part that was not asked for", host))
        if length != total:
            raise _wrong_length(download, length, total)
        return Body(response, host, 0, length)
    if status == 200:
        download.ranges = False
        raise Setback(unreachable("it answered a range with everything", host), at_once=True)
    found = content_range(response)
    if found is not None and found[2] is not None and found[2] != total:
        raise _wrong_length(download, found[2], total)
    if found is None or found[:2] != (span[0], span[0] + span[1] - 1) or length != span[1]:
        raise Setback(unreachable("it answered with another range than was asked for", host))
    return Body(response, host, span[0], span[1])


def _tombstone(download: Download) -> NotFound:
    return NotFound(
        "the object is gone from the bucket", kind="no-such-object", stream=str(download.stream), number=download.number
    )


def _wrong_length(download: Download, length: int | None, total: int) -> Corrupt:
    return Corrupt(
        "the object in the bucket has another length than the stream's",
        kind="wrong-length",
        stream=str(download.stream),
        number=download.number,
        length=length,
        expected=total,
        etag=download.etag,
    )


# ---- into a fetch


def receive_object(
    download: Download,
    fetch: Fetch,
    wanted: Container[int] | None = None,
    *,
    buffer: memoryview,
    progress: Moved | None,
    token: CancelToken,
    fresh: bool,
) -> None:
    """Brings what the fetch lacks of the object, or of the ``wanted`` miniblocks of it; what an earlier attempt
    brought is not asked for again."""
    number = download.number
    missing = [index for index in fetch.missing_miniblocks(number) if wanted is None or index in wanted]
    if not missing:
        return
    count = len(download.geometry.miniblocks_of(number))
    header = fetch.header(number)
    if not download.ranges or (header is None and len(missing) == count):
        exchange(
            download,
            None,
            lambda body: _take_all(download, fetch, body, buffer, progress, token),
            buffer=buffer,
            token=token,
            fresh=fresh,
        )
        return
    if header is None:
        length = download.geometry.header_length(number)

        def take_header(body: Body) -> None:
            _take_header(download, fetch, body)

        exchange(
            download,
            (0, length),
            take_header,
            buffer=buffer,
            token=token,
            fresh=fresh,
        )
        header = fetch.header(number)
        assert header is not None
    known = header
    for run in _runs(missing):
        start = known.offsets[run[0]]
        exchange(
            download,
            (start, known.offsets[run[-1] + 1] - start),
            lambda body, run=run: _take_run(download, fetch, known, run, body, buffer, progress, token),  # type: ignore[misc]
            buffer=buffer,
            token=token,
            fresh=fresh,
        )


def _take_header(download: Download, fetch: Fetch, body: Body) -> Header:
    raw = bytearray(download.geometry.header_length(download.number))
    body.read_into(memoryview(raw))
    try:
        return fetch.accept_header(download.number, bytes(raw))
    except Corrupt as error:
        raise download.corrupt(error, None) from error


def _take_all(
    download: Download,
    fetch: Fetch,
    body: Body,
    buffer: memoryview,
    progress: Moved | None,
    token: CancelToken,
) -> None:
    header = _take_header(download, fetch, body)
    _take_run(download, fetch, header, fetch.missing_miniblocks(download.number), body, buffer, progress, token)


def _take_run(
    download: Download,
    fetch: Fetch,
    header: Header,
    run: Sequence[int],
    body: Body,
    buffer: memoryview,
    progress: Moved | None,
    token: CancelToken,
) -> None:
    for index in run:
        if token.is_set():
            raise cancelled()
        offset, length = header.miniblock_span(index)
        body.skip_to(offset, buffer)
        data = buffer[:length]
        body.read_into(data)
        try:
            fetch.write_verified(header, index, data)
        except Corrupt as error:
            raise download.corrupt(error, index) from error
        download.moved += length
        if progress is not None:
            progress(download.moved)


def _runs(indices: Sequence[int]) -> Iterator[list[int]]:
    """Numbers that follow each other, together."""
    for _, group in itertools.groupby(enumerate(indices), lambda pair: pair[1] - pair[0]):
        yield [index for _, index in group]


# ---- into memory


def receive_range(
    download: Download,
    wanted: range,
    header: Header | None,
    *,
    buffer: memoryview,
    token: CancelToken,
    fresh: bool,
) -> tuple[Header, bytes]:
    """The verified bytes of consecutive miniblocks, numbered within the object; and the header for the next time."""
    number, geometry = download.number, download.geometry
    length = geometry.header_length(number)
    data = bytearray()

    def take(body: Body) -> None:
        nonlocal header
        data.clear()
        if body.position == 0:
            raw = bytearray(length)
            body.read_into(memoryview(raw))
            try:
                header = decode_header(
                    raw, stream=download.stream, lock=download.lock, number=number, opening=download.opening
                )
            except Corrupt as error:
                raise download.corrupt(error, None) from error
        assert header is not None
        if body.end == length:
            return
        for index in wanted:
            offset, stored = header.miniblock_span(index)
            body.skip_to(offset, buffer)
            body.read_into(buffer[:stored])
            try:
                verify_miniblock(header, index, buffer[:stored])
            except Corrupt as error:
                raise download.corrupt(error, index) from error
            data.extend(buffer[:stored])

    first = geometry.object_span(number)[0]
    start = length + geometry.miniblock_span(geometry.miniblocks_of(number)[wanted[0]])[0] - first
    offset, stored = geometry.miniblock_span(geometry.miniblocks_of(number)[wanted[-1]])
    end = length + offset + stored - first
    spans: list[tuple[int, int] | None]
    if not download.ranges:
        spans = [None]
    elif header is None and start == length:
        spans = [(0, end)]
    elif header is None:
        spans = [(0, length), (start, end - start)]
    else:
        spans = [(start, end - start)]
    for span in spans:
        exchange(download, span, take, buffer=buffer, token=token, fresh=fresh)
    assert header is not None
    return header, bytes(data)
