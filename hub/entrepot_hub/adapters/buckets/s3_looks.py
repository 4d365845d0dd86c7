"""The hub's most frequent requests to an S3 bucket, made past boto3: a look at an object, and a short read of it.

boto3 takes five times as long for such a request as the request itself, and a thread. So its first try is made here, on
the event loop, with the same signature, authorities and limits; it raises what boto3 would raise. Whatever fails is
left to :mod:`.s3_calls`, which judges it, waits, tries again and looks closer as if it had made that try itself.

An endpoint may send anything. What one answer can cost the event loop is bounded (:class:`_Rationed`); whoever goes
beyond that is asked in threads for a while.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError, SSLError
from botocore.httpsession import create_urllib3_context, get_cert_path
from botocore.parsers import create_parser

from entrepot_hub.adapters.buckets.interface import Binds, Head
from entrepot_hub.adapters.buckets.s3_calls import head_of, span_of
from entrepot_hub.adapters.buckets.s3_settings import S3Settings
from entrepot_hub.adapters.buckets.s3_signing import Signer
from entrepot_hub.adapters.buckets.s3_transport import GOOD, MAX_HEADS, clean

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: The most bytes that are read on the event loop. More is a thread's.
SHORT: Final = 1 << 20
#: An error that is longer is a thread's: it takes time to be read for its code.
_SHORT_ERROR: Final = 8 << 10
#: What the event loop takes of one answer, in bytes: of its head, of all of it, and of it without a stated length.
_HEAD: Final = 32 << 10
_WHOLE: Final = 2 * SHORT
_CHUNKED: Final = 8 << 10
#: In how many reads it may come: so many, and one more for each so many bytes.
_READS: Final = 64
_PER_READ: Final = 512
#: So many bytes are parsed at once while they may hold anything. A hundred heads take about a millisecond.
_MORSEL: Final = 1 << 10
#: The seconds for which a bucket whose endpoint went beyond that is left to boto3 and its threads.
_SHUNNED: Final = 60.0
#: The seconds that closing leaves to what it has ended.
_GRACE: Final = 4.0


class Unfit(Exception):
    """An answer that boto3 has to ask for anew: it is too long for the event loop, or only boto3 makes sense of it."""


class Looks:
    """One bucket's, for one event loop. ``client`` is boto3's for the bucket: its authorities count. Blocking to make,
    for those are read from a file.

    Raises what boto3 raises, :class:`Unfit`, ``TimeoutError`` after :meth:`aclose` and when the whole takes too long,
    and ``RetryLater(bucket-unreachable)`` for an answer that is none of an S3 server.
    """

    def __init__(self, settings: S3Settings, client: S3Client) -> None:
        self._settings = settings
        self._tls = _trust(client) if settings.hub_base.startswith("https:") else None
        self._base = settings.hub_base
        self._digest_kind = settings.digest_kind
        self._signer = Signer(self._base, settings.region)
        self._session: aiohttp.ClientSession | None = None
        self._scopes: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._shunned = 0.0

    @property
    def shunned(self) -> bool:
        """Whether the endpoint lately sent what would keep the event loop busy: it is asked in threads for a while."""
        return time.monotonic() < self._shunned

    async def head(self, pair: ReadOnlyCredentials, binds: Binds, key: str) -> Head:
        """The object."""
        kind = self._digest_kind
        headers = {"x-amz-checksum-mode": "ENABLED"} if kind == "sha256" else {}
        async with self._asked("HEAD", pair, key, headers) as answer:
            return head_of(_fields(answer), binds, kind)

    async def read(self, pair: ReadOnlyCredentials, key: str, offset: int, length: int, etag: str | None) -> bytes:
        """Exactly these bytes, or fewer at the end."""
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        if etag is not None:
            headers["If-Match"] = f'"{etag}"'
        async with self._asked("GET", pair, key, headers) as answer:
            skip, wanted = span_of(_fields(answer), key, offset, length, etag)
            most = skip + wanted
            if most > SHORT:
                raise Unfit
            # Read to its end an answer leaves its connection to the next request.
            data = await _some(answer, most, most if answer.content_length == most else most - 1)
            if len(data) < most:
                raise ConnectionError("the object's bytes end early")
            return data[skip:most]

    async def aclose(self) -> None:
        """End what is under way and let go of the connections."""
        self._closed = True
        for scope in self._scopes:
            scope.reschedule(0.0)
        try:
            async with asyncio.timeout(_GRACE):
                await self._idle.wait()
        except TimeoutError:
            pass  # it meets closed connections
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _asked(
        self, method: str, pair: ReadOnlyCredentials, key: str, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good answer, within the time that an operation may take."""
        if self._closed:
            raise TimeoutError("the bucket is closed")
        signed = self._signer.headers(pair, method, key, headers, time.time())
        secret = "\n".join(signed.get(name, "") for name in ("Authorization", "X-Amz-Security-Token"))
        failed: Exception
        try:
            async with (
                asyncio.timeout(self._settings.total) as scope,
                self._under_way(scope),
                self._opened().request(method, f"{self._base}/{key}", headers=signed, allow_redirects=False) as answer,
            ):
                if answer.status < 300 and answer.status not in GOOD:
                    raise Unfit
                if method == "HEAD" and 300 <= answer.status < 404:
                    raise Unfit  # some say why behind such a head; boto3 hears them
                if answer.status >= 300:
                    raise await _refusal(answer, method, secret)
                yield answer
                return
        except _Trouble as trouble:
            failed = trouble.told
        except aiohttp.ClientError as error:
            failed = HTTPClientError(error=type(error).__name__)
        # What the endpoint said is in none of what is told.
        raise failed from None

    @asynccontextmanager
    async def _under_way(self, scope: asyncio.Timeout) -> AsyncIterator[None]:
        self._scopes.add(scope)
        self._idle.clear()
        try:
            yield
        finally:
            self._scopes.discard(scope)
            if not self._scopes:
                self._idle.set()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            settings = self._settings
            connector = aiohttp.TCPConnector(
                limit=settings.threads,
                ssl=True if self._tls is None else self._tls,
                resolver=aiohttp.ThreadedResolver(),
            )
            # aiohttp has no setting for what it reads with.
            connector._factory = functools.partial(  # type: ignore[assignment]
                _Rationed, asyncio.get_running_loop(), self._shun
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(sock_connect=settings.connect_timeout, sock_read=settings.read_timeout),
                headers={"Accept-Encoding": "identity", "User-Agent": "entrepot-hub"},
                auto_decompress=False,
                middlewares=(_once,),
            )
        return self._session

    def _shun(self) -> None:
        self._shunned = time.monotonic() + _SHUNNED


def goes_by_proxy(client: S3Client, settings: S3Settings) -> bool:
    """Whether the machine sends requests to this bucket through a proxy: that is boto3's business."""
    return _session_of(client)._proxy_config.proxy_url_for(settings.hub_base) is not None


class _Trouble(Exception):
    """A request that failed. aiohttp would repeat it at once, not knowing how often that was done."""

    def __init__(self, told: Exception) -> None:
        super().__init__()
        self.told = told


async def _once(request: aiohttp.ClientRequest, handler: Callable[..., Any]) -> aiohttp.ClientResponse:
    """The errors of aiohttp on the way as boto3's, without what the endpoint said."""
    try:
        answer: aiohttp.ClientResponse = await handler(request)
    except TimeoutError:
        raise
    except aiohttp.ClientConnectorCertificateError as error:
        raise _Trouble(SSLError(endpoint_url=_place(request), error=error.certificate_error)) from None
    except aiohttp.ClientSSLError as error:
        raise _Trouble(SSLError(endpoint_url=_place(request), error=error.os_error)) from None
    except aiohttp.ClientConnectorError as error:
        raise _Trouble(EndpointConnectionError(endpoint_url=_place(request), error=error.os_error)) from None
    except aiohttp.ClientResponseError:
        raise Unfit from None  # aiohttp is stricter than boto3
    except aiohttp.ClientError as error:
        raise _Trouble(HTTPClientError(error=type(error).__name__)) from None
    return answer


class _Rationed(ResponseHandler):
    """aiohttp's end of a connection, which takes of an answer no more than an S3 server would send.

    One with more heads, bytes or pieces is cut off with :class:`Unfit`, and ``told`` is called: else an endpoint
    could keep the event loop busy for as long as it likes. What may hold anything is parsed in morsels, for aiohttp
    would parse a quarter of a megabyte of it, ten thousand heads, before anybody could look at the first.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, told: Callable[[], None]) -> None:
        super().__init__(loop)
        self._told = told
        self._shut = False
        self._body: aiohttp.StreamReader | None = None
        self._length: int | None = None
        self._restart()

    def set_response_params(self, **params: Any) -> None:
        """The next answer is to come."""
        self._restart()
        super().set_response_params(**params)

    def feed_data(self, data: tuple[RawResponseMessage, aiohttp.StreamReader], size: int = 0) -> None:
        """A head."""
        message, body = data
        self._heads += 1
        if self._body is None and (message.code >= 200 or message.code == 101):
            length = message.headers.get("Content-Length", "")
            self._body = body
            self._length = int(length) if length.isdecimal() else None
            if message.chunked:
                self._morsel = _MORSEL
                self._most = self._taken + _CHUNKED
            else:
                self._morsel = self._most = _WHOLE
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """A read; an empty one lets aiohttp go on with what it put off."""
        if self._shut:
            return
        if not data:
            super().data_received(data)
            return
        self._reads += 1
        start = 0
        while start < len(data) and self.exception() is None:
            if self._body is not None and self._body.is_eof():
                self._cut()  # nobody asked for what comes now
                return
            if self._heads > MAX_HEADS or self._taken >= self._most or self._reads > self._reads_allowed():
                self._told()
                self._cut(Unfit())
                return
            morsel = data[start : start + self._next()]
            start += len(morsel)
            self._taken += len(morsel)
            super().data_received(morsel)

    def _restart(self) -> None:
        self._heads = self._reads = self._taken = 0
        self._most = _HEAD
        self._morsel = _MORSEL
        self._body = None
        self._length = None

    def _reads_allowed(self) -> int:
        return _READS + self._taken // _PER_READ

    def _next(self) -> int:
        """How much to parse at once. A body goes as one piece, and what follows it apart."""
        if self._body is None or self._length is None:
            return self._morsel
        return max(self._length - self._body.total_bytes, 1)

    def _cut(self, error: Exception | None = None) -> None:
        self._shut = True
        self.force_close()
        if error is not None:
            self.set_exception(error)
            if self._payload is not None:
                self._payload.set_exception(error)
                self._payload = None
        if self.transport is not None:
            self.transport.abort()


async def _some(answer: aiohttp.ClientResponse, most: int, enough: int) -> bytes:
    """The body until its end, until there are more than ``most`` bytes or more than ``enough`` of them."""
    data = bytearray()
    async for piece in answer.content.iter_any():
        data += piece
        if len(data) > min(most, enough):
            break
    return bytes(data)


async def _refusal(answer: aiohttp.ClientResponse, method: str, secret: str) -> Exception:
    """What boto3 raises for an answer that is none of the good ones."""
    body = b""
    if method != "HEAD":
        if (answer.content_length or 0) > _SHORT_ERROR:
            raise Unfit
        body = await _some(answer, _SHORT_ERROR, _SHORT_ERROR)
        # What declarations make of it may be long. UTF-16 would hide them.
        if len(body) > _SHORT_ERROR or b"<!" in body or b"\0" in body:
            raise Unfit
    headers = {name.lower(): value for name, value in answer.headers.items()}
    parsed: dict[str, Any] = {}
    if body and answer.status > 300:
        parsed = create_parser("rest-xml").parse(
            {"status_code": answer.status, "headers": headers, "body": body},
            None,  # type: ignore[arg-type]  # of an error no shape is known
        )
    clean(parsed, answer.status, secret)
    parsed["ResponseMetadata"] = {"HTTPStatusCode": answer.status, "HTTPHeaders": headers}
    return ClientError(parsed, f"{method.title()}Object")  # type: ignore[arg-type]


def _fields(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """The headers of a good answer, by the names that boto3 has for them. Raises ``ValueError`` for a number or a date
    that is none."""
    headers = answer.headers
    fields: dict[str, Any] = {
        "ETag": headers.get("ETag"),
        "ContentRange": headers.get("Content-Range"),
        "ChecksumSHA256": headers.get("x-amz-checksum-sha256"),
    }
    if "Content-Length" in headers:
        fields["ContentLength"] = int(headers["Content-Length"])
    if "Last-Modified" in headers:
        fields["LastModified"] = email.utils.parsedate_to_datetime(headers["Last-Modified"])
    return {name: value for name, value in fields.items() if value is not None}


def _session_of(client: S3Client) -> Any:
    """The session of botocore itself of HTTP, under the one that guards it."""
    session: Any = client._endpoint.http_session  # type: ignore[attr-defined]
    return getattr(session, "_session", session)


def _trust(client: S3Client) -> ssl.SSLContext:
    """The authorities that boto3 trusts for this bucket. Reads a file."""
    context: ssl.SSLContext = create_urllib3_context()
    place: Any = get_cert_path(_session_of(client)._verify)
    context.load_verify_locations(**{"capath" if os.path.isdir(place) else "cafile": place})  # noqa: PTH112
    context.check_hostname = True  # urllib3 does that by itself, asyncio leaves it to the context
    return context


def _place(request: aiohttp.ClientRequest) -> str:
    return str(request.url.origin())
