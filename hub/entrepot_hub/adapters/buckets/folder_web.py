"""The hub serves its folder buckets: signed PUT and GET of whole objects, streamed.

Answers (errors carry ``{"error": {kind, message, hint, data}}``):

- PUT: 200 with ``ETag``. 403 for any other URL, method, key, time; 411 without ``Content-Length``; 400 for
  another length, too few bytes, other bytes than the granted digest, or a ``Content-Encoding``; 408 when no
  byte came for the stall time, or fewer than the floor rate; 412 when the key is taken; 503 while two uploads
  of the key are under way; 507 when the disk is full. Nothing is visible after any of these.
- GET: 200 or, for one range, 206; 503 while so many readers of the same URL are served. 404 and 412 (the
  object is gone, or not the etag's any more); 416 for a
  range outside the object, for several ranges and for anything in ``Range`` that is not one byte range: who
  asks for a range never gets the whole object instead. An ``If-Range`` that does not match is 412 for the
  same reason.
- HEAD and others: 405.

How a body gets to the disk: :mod:`entrepot_hub.adapters.buckets.folder_intake`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from io import FileIO
from typing import Final

import msgspec
from aiohttp import web

from entrepot.core.errors import (
    Conflict,
    Corrupt,
    Denied,
    EntrepotError,
    InvalidInput,
    NotFound,
    RetryLater,
    to_wire,
)
from entrepot_hub.adapters.buckets.folder import FolderBucket
from entrepot_hub.adapters.buckets.folder_intake import take_in
from entrepot_hub.adapters.buckets.folder_urls import BUCKET_PATH, Permission
from entrepot_hub.adapters.buckets.interface import Entry
from entrepot_hub.core.rates import Crowd

#: What is sent between two looks at the clock: a reader slower than this per stall time is let go.
_SENDFILE_PIECE: Final = 1 << 20
#: Readers of one URL at once: it is one for all readers of a channel, and may be overheard.
_READERS: Final = 32
_ALL_READERS: Final = 1 << 20  # whoever lets requests in bounds them all together
#: What an upload brings at least, and a reader takes of a last piece, in bytes a second; less renews no lease either.
_FLOOR: Final = 16 << 10
_START: Final = 5.0  # seconds that are not counted when a reader's rate is
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))")


class FolderWeb:
    """The routes of all folder buckets. ``lookup`` gives the bucket of a name, ``None`` for one that is not
    there."""

    def __init__(self, lookup: Callable[[str], FolderBucket | None]) -> None:
        self._lookup = lookup
        self._readers = Crowd(_READERS, _ALL_READERS)

    def routes(self) -> list[web.RouteDef]:
        """The routes, for ``app.router.add_routes``. They need no signature in the headers: the URL is
        signed."""
        path = BUCKET_PATH + "{name}/{key:.+}"
        return [
            web.put(path, self.put, expect_handler=self._expect),
            web.get(path, self.get, allow_head=False),
        ]

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Take an object's bytes."""
        try:
            bucket, permission = self._check_put(request)
            with bucket.turn(permission.key):
                entry = await _receive(request, bucket, permission)
        except EntrepotError as error:
            return _answer(error)
        return web.Response(status=200, headers={"ETag": f'"{entry.etag}"'})

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Give an object's bytes, all or one range."""
        try:
            bucket, permission = self._permission(request)
            url = f"{request.match_info['name']} {permission}"
            if not self._readers.enter(url):
                raise RetryLater("too many read by this URL just now", kind="busy")
        except EntrepotError as error:
            return _answer(error)
        try:
            return await self._give(request, bucket, permission)
        finally:
            self._readers.leave(url)

    @staticmethod
    async def _give(request: web.Request, bucket: FolderBucket, permission: Permission) -> web.StreamResponse:
        try:
            file, entry = await bucket.open(permission.key, permission.etag)
        except EntrepotError as error:
            return _answer(error)
        with file:
            try:
                _check_conditions(request, entry)
                span = _range(request.headers.getall("Range", []), entry)
            except EntrepotError as error:
                return _answer(error, length=entry.length)
            return await _send(request, bucket, file, entry, span)

    async def _expect(self, request: web.Request) -> web.StreamResponse | None:
        """``Expect: 100-continue``: a refusal before the body is sent."""
        try:
            if request.headers.get("Expect", "").lower() != "100-continue":
                raise InvalidInput("nothing but 100-continue can be expected")
            bucket, permission = self._check_put(request)
            await self._check_free(bucket, permission)
        except EntrepotError as error:
            return _answer(error)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The line does not count as the answer's beginning.
        request.writer.output_size = 0
        return None

    def _permission(self, request: web.Request) -> tuple[FolderBucket, Permission]:
        bucket = self._lookup(request.match_info["name"])
        if bucket is None:
            raise NotFound("there is no such bucket", kind="not-found")
        query = list(request.query.items())
        return bucket, bucket.permission(request.method, request.match_info["key"], query)

    def _check_put(self, request: web.Request) -> tuple[FolderBucket, Permission]:
        bucket, permission = self._permission(request)
        if request.content_length is None:
            raise _LengthRequired("a PUT states its Content-Length")
        if request.content_length != permission.length:
            raise InvalidInput(
                f"{permission.length} bytes were granted, not {request.content_length}",
                length=request.content_length,
                granted=permission.length,
            )
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise InvalidInput("the bytes of an object come as they are, without a Content-Encoding")
        if "Content-Range" in request.headers:
            raise InvalidInput("an object is put whole")
        return bucket, permission

    @staticmethod
    async def _check_free(bucket: FolderBucket, permission: Permission) -> None:
        """Refuse early what publishing would refuse late."""
        if await bucket.exists(permission.key):
            raise Conflict("there is an object already", kind="exists", key=permission.key)


class _LengthRequired(InvalidInput):
    """Status 411."""


async def _receive(request: web.Request, bucket: FolderBucket, permission: Permission) -> Entry:
    upload = await bucket.begin(permission.key)
    try:
        try:
            async with asyncio.timeout(bucket.settings.stall + (request.content_length or 0) / _FLOOR):
                await take_in(request, bucket, upload)
        except TimeoutError:
            raise RetryLater(f"fewer than {_FLOOR} bytes came a second", kind="deadline", rate=_FLOOR) from None
        return await bucket.publish(upload, permission)
    finally:
        await bucket.discard(upload)


async def _send(
    request: web.Request, bucket: FolderBucket, file: FileIO, entry: Entry, span: tuple[int, int]
) -> web.StreamResponse:
    offset, count = span
    headers = {
        "ETag": f'"{entry.etag}"',
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes",
        "Cache-Control": "private",
    }
    whole = "Range" not in request.headers
    if not whole:
        headers["Content-Range"] = f"bytes {offset}-{offset + count - 1}/{entry.length}"
    response = web.StreamResponse(status=200 if whole else 206, headers=headers)
    response.content_length = count
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    end = offset + count
    try:
        while offset < end:
            piece = min(_SENDFILE_PIECE, end - offset)
            transport = request.transport
            if transport is None or transport.is_closing():
                return response
            async with asyncio.timeout(min(bucket.settings.stall, _START + piece / _FLOOR)):
                try:
                    sent = await loop.sendfile(transport, file, offset, piece)
                except NotImplementedError:  # a loop or transport without sendfile
                    data = await bucket.pread(file, piece, offset)
                    await response.write(data)
                    sent = len(data)
            if sent == 0:  # somebody cut the file: the reader must not take this for the end
                transport.abort()
                return response
            offset += sent
        await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    except ConnectionError:
        pass  # the reader went away
    return response


def _check_conditions(request: web.Request, entry: Entry) -> None:
    quoted = f'"{entry.etag}"'
    match = request.headers.get("If-Match")
    if match is not None and match.strip() != "*" and quoted not in (part.strip() for part in match.split(",")):
        raise Conflict("the object was replaced", kind="changed")
    if "Range" in request.headers and request.headers.get("If-Range", quoted).strip() != quoted:
        raise Conflict("the object was replaced", kind="changed")


class _RangeNotSatisfiable(InvalidInput):
    """Status 416."""


def _range(values: list[str], entry: Entry) -> tuple[int, int]:
    """Offset and length of what is asked for."""
    if not values:
        return 0, entry.length
    match = _RANGE.fullmatch(values[0].strip()) if len(values) == 1 else None
    if match is None:
        raise _RangeNotSatisfiable("one byte range at a time: bytes=<first>-<last>")
    first, last, suffix = match.groups()
    if suffix is not None:
        offset, end = max(0, entry.length - int(suffix)), entry.length
    else:
        offset, end = int(first), entry.length
        if last is not None:
            if int(last) < offset:
                raise _RangeNotSatisfiable("the range ends before it begins")
            end = min(end, int(last) + 1)
    if offset >= end:
        raise _RangeNotSatisfiable("the range lies outside the object", length=entry.length)
    return offset, end - offset


def _answer(error: EntrepotError, *, length: int | None = None) -> web.Response:
    headers = {}
    status = 500
    match error:
        case _LengthRequired():
            status = 411
        case _RangeNotSatisfiable():
            status = 416
            headers["Content-Range"] = f"bytes */{length}"
        case InvalidInput():
            status = 400
        case Denied():
            status = 403
        case NotFound():
            status = 404
        case Conflict():
            status = 412
        case Corrupt():
            status = 422
        case RetryLater(kind="disk-full"):
            status = 507
        case RetryLater(kind="deadline"):
            status = 408
        case RetryLater():
            status = 503
            headers["Retry-After"] = "1"
    return web.Response(
        status=status,
        headers=headers,
        body=msgspec.json.encode({"error": to_wire(error)}),
        content_type="application/json",
    )
