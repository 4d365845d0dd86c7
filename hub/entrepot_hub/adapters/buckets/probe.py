"""What a provider really enforces, found by trying: some ignore silently what they do not know.

The tries are plain HTTP requests on signed URLs, as a node makes them, on a few small scratch objects.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import re
import secrets
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from entrepot.core.errors import Denied, InvalidInput, RetryLater
from entrepot_hub.adapters.buckets.interface import Binds, Bucket, SignedRequest

_TIMEOUT: Final = 15.0
#: Seconds for one request, however the answer trickles.
_LIMIT: Final = 60.0
_LENGTH: Final = 1000
#: Seconds after which a URL of one second has ended by any clock that is a little off.
_EXPIRED: Final = 3.0
#: What of a provider's refusal is passed on: its code, if it looks like one.
_TOLD: Final = re.compile(rb"<Code>([A-Za-z0-9._-]{1,64})</Code>")
#: Headers that let an upload only create.
_CONDITIONS: Final = frozenset({"if-none-match", "x-goog-if-generation-match"})
#: Headers that name a digest of what is uploaded.
_DIGESTS: Final = frozenset({"x-amz-checksum-sha256", "content-md5", "x-goog-hash"})


@dataclass(frozen=True, slots=True)
class Answer:
    """The status of an answer, 0 if the connection ended without one, and the beginning of its body."""

    status: int
    body: bytes

    @property
    def accepted(self) -> bool:
        """Whether it is a 2xx."""
        return 200 <= self.status < 300


def scratch_key(prefix: str) -> str:
    """A key that nothing else uses."""
    name = f"probe-{secrets.token_hex(16)}"
    return f"{prefix}/{name}" if prefix else name


async def probe_uploads(bucket: Bucket, prefix: str = "", *, expiry: bool = True, ca: Path | None = None) -> Binds:
    """Which of length, digest, create-only, expiry and the digest in HEAD the provider holds for signed PUTs.

    The other fields, and ``expiry`` if it is not to be tried (it takes three seconds), are the bucket's own
    claim. The scratch objects are removed whatever happens. ``ca``: a file of authorities to trust instead of
    the usual ones. Raises ``Denied``, ``RetryLater`` or ``InvalidInput`` when not even a good upload succeeds.
    """
    probe = _Probe(bucket, prefix, ca)
    try:
        shown = await probe.good()
        if expiry:
            await probe.let_expire()
        digest, true = await probe.digest()
        binds = replace(
            bucket.binds,
            digest=digest,
            head_digest=shown and true,
            get_if=await probe.get_if(),
            create_only=await probe.create_only(),
            length=await probe.length(),
        )
        if expiry:
            binds = replace(binds, expiry=await probe.expiry())
        if await probe.open_to_all():
            # Who needs no signature is not held by what one binds.
            binds = replace(binds, length=False, digest=False, create_only=False, expiry=False)
    finally:
        for key in probe.keys:
            await bucket.delete(key)
    return binds


class _Probe:
    def __init__(self, bucket: Bucket, prefix: str, ca: Path | None) -> None:
        self.keys: list[str] = []
        self._bucket = bucket
        self._prefix = prefix
        self._ca = ca
        self._data = secrets.token_bytes(_LENGTH)
        self._other = secrets.token_bytes(_LENGTH)
        self._short: tuple[str, SignedRequest, float]

    def _key(self) -> str:
        self.keys.append(scratch_key(self._prefix))
        return self.keys[-1]

    async def _signed(self, key: str, data: bytes, expires: int = 300) -> SignedRequest:
        return await self._bucket.sign_put(key, len(data), self._digest(data), expires)

    def _digest(self, data: bytes) -> bytes:
        return hashlib.new(self._bucket.digest_kind, data, usedforsecurity=False).digest()

    async def _send(self, signed: SignedRequest, data: bytes, *, headers: Mapping[str, str] | None = None) -> Answer:
        return await send(signed, data, headers=headers, ca=self._ca)

    async def good(self) -> bool:
        """A good upload. Returns whether HEAD shows its digest."""
        key = self._key()
        signed = await self._signed(key, self._data)
        answer = await self._send(signed, self._data)
        if not answer.accepted:
            raise _refusal(answer, signed)
        head = await self._bucket.head(key)
        if head is None or head.length != _LENGTH:
            raise RetryLater("what was uploaded to the bucket is not there", kind="bucket-unreachable")
        return head.digest == self._digest(self._data)

    async def open_to_all(self) -> bool:
        """Whether anybody may write without a signature."""
        signed = await self._signed(key := self._key(), self._data)
        bare = replace(signed, url=signed.url.partition("?")[0])
        answer = await self._send(bare, self._data, headers={"Content-Length": str(_LENGTH)})
        return answer.accepted or await self._bucket.head(key) is not None

    async def create_only(self) -> bool:
        """A taken key stays as it is: by a signed PUT, by one that drops the condition, and for a
        tombstone."""
        key = self._key()
        if not (await self._send(await self._signed(key, self._data), self._data)).accepted:
            return False
        before = await self._bucket.head(key)
        signed = await self._signed(key, self._other)
        dropped = {name: value for name, value in signed.headers.items() if name.lower() not in _CONDITIONS}
        refused = not (await self._send(signed, self._other)).accepted
        if dropped != signed.headers:
            refused = not (await self._send(signed, self._other, headers=dropped)).accepted and refused
        if not refused or await self._bucket.head(key) != before:
            return False
        await self._bucket.put_tombstone(key)
        refused = not (await self._send(signed, self._other)).accepted
        after = await self._bucket.head(key)
        return refused and after is not None and after.length == 0

    async def length(self) -> bool:
        """More bytes, fewer bytes and a connection that ends early leave nothing."""
        for data in (self._data + b"+", self._data[:-1]):
            signed = await self._signed(key := self._key(), self._data)
            headers = dict(signed.headers) | {"Content-Length": str(len(data))}
            if (await self._send(signed, data, headers=headers)).accepted or await self._bucket.head(key) is not None:
                return False
        signed = await self._signed(key := self._key(), self._data)
        await self._send(signed, self._data[:-1])
        return await self._bucket.head(key) is None

    async def digest(self) -> tuple[bool, bool]:
        """Other bytes are refused, with the granted checksum, with their own and without one.

        And whether HEAD tells the truth of any that were taken, not what the uploader claimed.
        """
        refused = true = True
        own = (await self._signed(self._key(), self._other)).headers
        for change in ("granted", "own", "none"):
            signed = await self._signed(key := self._key(), self._data)
            headers = dict(own) if change == "own" else dict(signed.headers)
            if change == "none":
                headers = {name: value for name, value in headers.items() if name.lower() not in _DIGESTS}
            answer = await self._send(signed, self._other, headers=headers)
            head = await self._bucket.head(key)
            refused = refused and not answer.accepted and head is None
            true = true and (head is None or head.digest == self._digest(self._other))
        return refused, true

    async def get_if(self) -> bool:
        """A GET for one etag succeeds, and fails once the object was replaced."""
        key = self._key()
        await self._send(await self._signed(key, self._data), self._data)
        head = await self._bucket.head(key)
        if head is None:
            return False
        signed = await self._bucket.sign_get(key, head.etag, 300)
        if not (await self._send(signed, b"")).accepted:
            return False
        await self._bucket.put_tombstone(key)
        return not (await self._send(signed, b"")).accepted

    async def let_expire(self) -> None:
        """Sign the URL that :meth:`expiry` needs: it ends while other things are tried."""
        key = self._key()
        self._short = key, await self._signed(key, self._data, expires=1), time.monotonic()

    async def expiry(self) -> bool:
        """A PUT after the URL's end is refused."""
        key, signed, since = self._short
        await asyncio.sleep(since + _EXPIRED - time.monotonic())
        answer = await self._send(signed, self._data)
        return not answer.accepted and await self._bucket.head(key) is None


async def send(
    signed: SignedRequest, data: bytes, *, headers: Mapping[str, str] | None = None, ca: Path | None = None
) -> Answer:
    """Make the signed request with these bytes, in a thread; with other ``headers`` than it says, to see.

    With fewer bytes than ``Content-Length`` the connection is half closed after them. Raises
    ``RetryLater(bucket-unreachable)`` if there is no connection.
    """
    made: list[http.client.HTTPConnection] = []
    try:
        async with asyncio.timeout(_LIMIT):
            return await asyncio.to_thread(
                _send, signed, data, signed.headers if headers is None else headers, ca, made
            )
    except TimeoutError:
        return Answer(0, b"")
    finally:
        # Closed already, unless the thread still waits for it: then it is told.
        for connection in made:
            if isinstance(connection.sock, socket.socket):
                with suppress(OSError):
                    socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _send(
    signed: SignedRequest,
    data: bytes,
    headers: Mapping[str, str],
    ca: Path | None,
    made: list[http.client.HTTPConnection],
) -> Answer:
    parts = urlsplit(signed.url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT)
    if parts.scheme == "https":
        trusted = ssl.create_default_context(cafile=None if ca is None else str(ca))
        connection = http.client.HTTPSConnection(parts.netloc, timeout=_TIMEOUT, context=trusted)
    made.append(connection)
    try:
        try:
            connection.connect()
        except OSError as error:
            raise RetryLater(
                f"the bucket cannot be reached at {parts.netloc}: {error}", kind="bucket-unreachable"
            ) from error
        try:
            connection.putrequest(signed.method, f"{parts.path}?{parts.query}".rstrip("?"), skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(data)
            if len(data) < int(headers.get("Content-Length", "0")):
                _half_close(connection)
            response = connection.getresponse()
            return Answer(response.status, response.read(2000))
        except (OSError, http.client.HTTPException):
            return Answer(0, b"")
    finally:
        connection.close()


def _half_close(connection: http.client.HTTPConnection) -> None:
    if isinstance(connection, http.client.HTTPSConnection):
        connection.sock.unwrap()
    else:
        connection.sock.shutdown(1)


def _refusal(answer: Answer, signed: SignedRequest) -> Denied | RetryLater | InvalidInput:
    # Nothing else of it is told: some providers repeat the token or the whole request that they refuse.
    told = _TOLD.search(answer.body)
    code = "" if told is None else told[1].decode("ascii")
    text = code if code and code not in signed.url else f"status {answer.status}"
    if answer.status in {401, 403}:
        return Denied(
            f"the bucket refuses a signed upload: {text}",
            hint="The key needs PutObject; the region must be the bucket's; clocks must agree",
            status=answer.status,
        )
    if answer.status == 0 or answer.status >= 500:
        return RetryLater(
            f"the bucket does not answer an upload: {text}", kind="bucket-unreachable", status=answer.status
        )
    return InvalidInput(f"the bucket refuses a signed upload: {text}", kind="invalid-setting", status=answer.status)
