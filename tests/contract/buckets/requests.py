"""Plain HTTP requests on signed URLs, as a node makes them, and as somebody makes them who should not."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from entrepot_hub.adapters.buckets import Bucket, SignedRequest

TIMEOUT = 30.0


@dataclass(frozen=True)
class Reply:
    """A whole answer; status 0 when the connection ended without one. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def accepted(self) -> bool:
        """Whether it is a 2xx."""
        return 200 <= self.status < 300


def digest_of(data: bytes, bucket: Bucket | None = None) -> bytes:
    """The digest that the bucket's PUTs name; without a bucket the SHA-256."""
    kind = "sha256" if bucket is None else bucket.digest_kind
    return hashlib.new(kind, data, usedforsecurity=False).digest()


def make(method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
    """One request on a connection of its own, in this thread."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT)
    try:
        connection.putrequest(method, f"{parts.path}?{parts.query}", skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        try:
            if body:
                connection.send(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before everything was sent: the answer is there to be read
        response = connection.getresponse()
        data = b"" if method == "HEAD" else response.read()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, data)
    except (http.client.HTTPException, ConnectionError):
        return Reply(0, {}, b"")
    finally:
        connection.close()


async def send(
    signed: SignedRequest,
    body: bytes = b"",
    *,
    method: str | None = None,
    url: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """The signed request, in a thread; any part of it may be replaced."""
    return await asyncio.to_thread(
        make, method or signed.method, url or signed.url, signed.headers if headers is None else headers, body
    )


async def upload(bucket: Bucket, key: str, data: bytes) -> Reply:
    """Sign a PUT of these bytes and make it."""
    return await send(await bucket.sign_put(key, len(data), digest_of(data, bucket), 300), data)


async def download(bucket: Bucket, key: str, etag: str | None = None, **headers: str) -> Reply:
    """Sign a GET and make it, with more headers if given (``Range="bytes=0-1"``)."""
    signed = await bucket.sign_get(key, etag, 300)
    return await send(signed, headers={**signed.headers, **headers})


def begin(signed: SignedRequest, body: bytes) -> http.client.HTTPConnection:
    """Send the head and these bytes; the answer is not read. The caller closes the connection."""
    parts = urlsplit(signed.url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT)
    connection.putrequest(signed.method, f"{parts.path}?{parts.query}", skip_accept_encoding=True)
    for name, value in signed.headers.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    return connection


def with_query(url: str, change: Mapping[str, str | None]) -> str:
    """The URL with query fields set, or left out (``None``)."""
    parts = urlsplit(url)
    fields = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name, value in change.items():
        if value is None:
            fields.pop(name)
        else:
            fields[name] = value
    return urlunsplit(parts._replace(query=urlencode(fields)))
