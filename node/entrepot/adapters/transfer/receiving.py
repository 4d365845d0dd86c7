"""One attempt to download from an object, each miniblock verified before it goes anywhere. Blocks; runs in a thread.

Nothing of an answer is used whose status, length or range is not exactly the one asked for. The body is read
miniblock by miniblock into one buffer that is used again and again.
"""

from __future__ import annotations

import http.client
import itertools
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from entrepot.adapters.store.fetch import Fetch
from entrepot.adapters.store.placing import SmallFetch
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
from entrepot.adapters.transfer.throttle import Throttle
from entrepot.core.errors import Corrupt, NotFound
from entrepot.core.format import Header, decode_header, unpack_miniblock, verify_miniblock
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock

_REST_READ_AWAY: Final = 1 << 16  # a shorter rest of a body costs less than another connection


@dataclass(slots=True)
class Download:
    """What attempts share: where the bytes come from and what was learnt on the way.

    ``ranges`` turns False when the server answered a range with everything: then whole objects are asked for.
    ``header``: that of the object with this ``etag``. Where the codec leaves a choice, another holder's object at the
    same key has another header: ``replaced`` says that what was known before is not that of the object there now.
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
    header: Header | None = None
    replaced: bool = False
    throttle: Throttle = field(default_factory=lambda: Throttle(None))

    @property
    def geometry(self) -> Geometry:
        """The partition of the stream."""
        return Geometry(self.opening.length, self.lock)

    @property
    def exact(self) -> bool:
        """Whether the stream and the lock alone say where each miniblock lies in the object."""
        return self.lock.codec == "none"

    @property
    def lengths(self) -> range:
        """How many bytes the object can have, by what is known so far."""
        if self.header is None or self.exact:
            return self.geometry.object_lengths(self.number)
        return range(self.header.object_length, self.header.object_length + 1)

    def arrived(self, etag: str | None, host: str) -> None:
        """An answer comes from the object with this etag: not necessarily the one of which the header is known."""
        if self.header is not None and not self.exact and etag != self.etag:
            self.header, self.etag, self.replaced = None, etag, True
            raise Setback(unreachable("it has another object than a moment ago", host), at_once=True)
        self.etag = etag if etag is not None else self.etag

    def learnt(self, header: Header, body: Body) -> Header:
        """The verified header that ``body`` began with; refused if the object is longer or shorter than it says."""
        if body.total is not None and body.total != header.object_length:
            raise self.corrupt(wrong_length(self, body.total), None)
        self.header = header
        return header

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
    """The bytes of one answer, from ``position`` in the object on. ``total``: bytes of the whole object, if it says."""

    def __init__(
        self, response: http.client.HTTPResponse, host: str, position: int, length: int, total: int | None
    ) -> None:
        self.total = total
        self._response = response
        self._host = host
        self.position = position
        self.end = position + length
        self.pace: Callable[[int], int] | None = None

    def read_into(self, buffer: memoryview) -> None:
        """Fills ``buffer``; a body that ends early is a :class:`Setback`."""
        done = 0
        while done < len(buffer):
            most = len(buffer) - done if self.pace is None else self.pace(len(buffer) - done)
            count = self._response.readinto(buffer[done : done + most])
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
    connections = download.connections
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
            if response.status in (200, 206):
                download.arrived(response.headers.get("ETag"), host)
            body = _check(download, response, host, span)
            body.pace = lambda count: download.throttle.take(count, token)
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


def _check(download: Download, response: http.client.HTTPResponse, host: str, span: tuple[int, int] | None) -> Body:
    status = response.status
    if status not in (200, 206):
        body = error_body(response)
        response.close()  # one without a length keeps the socket for itself
        if status == 416:
            if response.headers.get("Content-Range", "").endswith("/0"):
                raise _tombstone(download)
            if (etag := response.headers.get("ETag")) is not None:
                download.arrived(etag, host)
            raise wrong_length(download, None)
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
        if length not in download.lengths:
            raise wrong_length(download, length)
        return Body(response, host, 0, length, length)
    if status == 200:
        download.ranges = False
        raise Setback(unreachable("it answered a range with everything", host), at_once=True)
    found = content_range(response)
    if found is not None and found[2] is not None and found[2] not in download.lengths:
        raise wrong_length(download, found[2])
    if found is None or found[:2] != (span[0], span[0] + span[1] - 1) or length != span[1]:
        raise Setback(unreachable("it answered with another range than was asked for", host))
    return Body(response, host, span[0], span[1], found[2])


def _tombstone(download: Download) -> NotFound:
    return NotFound(
        "the object is gone from the bucket", kind="no-such-object", stream=str(download.stream), number=download.number
    )


def wrong_length(download: Download, length: int | None) -> Corrupt:
    """The error for an object of ``length`` bytes (None: fewer than were asked for). Where its header says how long it
    is, that is one of what does not fit in it."""
    total = download.lengths[-1]
    if not download.exact:
        return download.corrupt(Corrupt("the object in the bucket has another length than its header says"), None)
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
    fetch: Fetch | SmallFetch,
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
    if not (download.exact or download.replaced or download.header) and (origin := fetch.origin(number)) is not None:
        download.header, download.etag = origin
    header = fetch.header(number) if download.exact else download.header
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
        header = fetch.header(number) if download.exact else download.header
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


def _take_header(download: Download, fetch: Fetch | SmallFetch, body: Body) -> Header:
    raw = bytearray(download.geometry.header_length(download.number))
    body.read_into(memoryview(raw))
    try:
        header = fetch.accept_header(download.number, bytes(raw), download.etag)
    except Corrupt as error:
        raise download.corrupt(error, None) from error
    return download.learnt(header, body)


def _take_all(
    download: Download,
    fetch: Fetch | SmallFetch,
    body: Body,
    buffer: memoryview,
    progress: Moved | None,
    token: CancelToken,
) -> None:
    header = _take_header(download, fetch, body)
    _take_run(download, fetch, header, fetch.missing_miniblocks(download.number), body, buffer, progress, token)


def _take_run(
    download: Download,
    fetch: Fetch | SmallFetch,
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
            plain = unpack_miniblock(header, index, data)
            fetch.write_verified(header, index, plain)
        except Corrupt as error:
            raise download.corrupt(error, index) from error
        download.moved += len(plain)
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
    header = header if download.exact else download.header
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
            download.learnt(header, body)
        assert header is not None
        if body.end == length:
            return
        for index in wanted:
            offset, stored = header.miniblock_span(index)
            body.skip_to(offset, buffer)
            body.read_into(buffer[:stored])
            try:
                plain = unpack_miniblock(header, index, buffer[:stored])
                verify_miniblock(header, index, plain)
            except Corrupt as error:
                raise download.corrupt(error, index) from error
            data.extend(plain)

    def ask(span: tuple[int, int] | None) -> None:
        exchange(download, span, take, buffer=buffer, token=token, fresh=fresh)

    if not download.ranges:
        ask(None)
    else:
        if header is None and not download.exact:
            ask((0, length))
        start, end = _span(geometry, number, wanted) if header is None else _stored(header, wanted)
        if header is None and start == length:
            start = 0
        elif header is None:
            ask((0, length))
        ask((start, end - start))
    assert header is not None
    return header, bytes(data)


def _stored(header: Header, wanted: range) -> tuple[int, int]:
    """Where in the object these miniblocks begin and end."""
    return header.offsets[wanted[0]], header.offsets[wanted[-1] + 1]


def _span(geometry: Geometry, number: int, wanted: range) -> tuple[int, int]:
    """The same without the header, where nothing is packed."""
    own, before = geometry.miniblocks_of(number), geometry.header_length(number) - geometry.object_span(number)[0]
    last, size = geometry.miniblock_span(own[wanted[-1]])
    return before + geometry.miniblock_span(own[wanted[0]])[0], before + last + size
