"""The S3 driver: Amazon's S3 and what speaks its protocol (MinIO, R2, Wasabi, Ceph, GCS with HMAC keys).

Uploads and downloads are URLs signed with Signature Version 4 in the query. A PUT signs the headers
``content-length``, ``if-none-match: *`` and the one that names its digest (``x-amz-checksum-sha256`` or
``content-md5``): a server that checks signatures refuses a request that changes or drops one of them, and one that
honours them binds length, digest and create-only. How much of that is true is found by :meth:`S3Bucket.probe`, for
some servers ignore what they do not know.

boto3 is used for the hub's own looks and changes, in threads (:mod:`.s3_calls`), but for the first try of the looks
that every object needs (:mod:`.s3_looks`) and for signing (:mod:`.s3_signing`), which lets the headers be signed.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from botocore.credentials import ReadOnlyCredentials

from entrepot.core.errors import InvalidInput, RetryLater
from entrepot_hub.adapters.buckets.interface import (
    MAX_PAGE,
    MAX_READ,
    Binds,
    DigestKind,
    Facts,
    Head,
    Listing,
    Method,
    SignedRequest,
    check_etag,
    check_expires,
    check_key,
    check_limit,
    check_prefix,
    check_put,
    check_range,
)
from entrepot_hub.adapters.buckets.probe import probe_uploads, scratch_key
from entrepot_hub.adapters.buckets.s3_calls import Calls
from entrepot_hub.adapters.buckets.s3_client import make_s3_client
from entrepot_hub.adapters.buckets.s3_errors import translation
from entrepot_hub.adapters.buckets.s3_facts import Examination
from entrepot_hub.adapters.buckets.s3_keys import KeyRing, Keys
from entrepot_hub.adapters.buckets.s3_looks import SHORT, Looks, Unfit, goes_by_proxy
from entrepot_hub.adapters.buckets.s3_retries import Tries
from entrepot_hub.adapters.buckets.s3_settings import S3Settings
from entrepot_hub.adapters.buckets.s3_signing import Signer
from entrepot_hub.adapters.buckets.s3_transport import Sockets, guard

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: An examination asks a dozen questions, a probe of conditions as many: so many times the time of one operation.
_LONG: Final = 3.0
#: The seconds that closing leaves to what is under way, and then to what it has ended.
_GRACE: Final = 4.0


class S3Bucket:
    """A bucket on an S3 server. See the interface for what it promises.

    ``binds`` is the profile's until :meth:`probe` has looked. ``clock`` gives unix seconds; the times inside
    signatures are the machine's own.
    """

    def __init__(self, settings: S3Settings, *, name: str, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.prefix = settings.prefix
        self.binds = settings.binds
        self._settings = settings
        self._clock = clock
        self._digest_kind = settings.digest_kind
        self._signer = Signer(settings.public_base, settings.region)
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix=f"bucket-{name}")
        self._making = threading.Lock()
        self._made: S3Client | None = None
        self._looks: Looks | None = None
        self._no_looks = False  # boto3 makes all requests
        self._closing = threading.Event()
        self._sockets = Sockets()
        self._running: set[concurrent.futures.Future[Any]] = set()
        self._keys = KeyRing(settings, clock, self._closing.wait, self._sockets)

    def __repr__(self) -> str:
        return f"S3Bucket({self.name!r}, {self._settings!r})"

    async def start(self) -> None:
        """See that the bucket is there, or make it if the settings say so.

        That the hub may not list the bucket is no error: serving needs no list. Raises
        ``InvalidInput(invalid-setting)`` for a bucket that is not there, ``Denied`` for wrong keys.
        """
        await self._run(Calls.start)

    async def probe(self, prefix: str = "", *, expiry: bool = True) -> Binds:
        """Try what the provider enforces, under a scratch key below ``prefix``, and take it as :attr:`binds`.

        Takes a few seconds, three of them for ``expiry``; without it the profile's word stands. Leaves
        nothing behind. Raises what a good upload raises: then the bucket cannot be used at all.
        """
        # The hub may not reach its bucket under the name that nodes use.
        inner = S3Bucket(replace(self._settings, public_endpoint=None), name=self.name, clock=self._clock)
        inner.binds = replace(inner.binds, head_digest=True)  # show what the server says: it is what is judged
        try:
            binds = await probe_uploads(inner, prefix, expiry=expiry, ca=self._settings.ca)
        finally:
            await inner.aclose()
        delete_if, replace_if = await self._run(Calls.try_conditions, scratch_key(prefix), times=_LONG)
        self.binds = replace(binds, delete_if=delete_if, replace_if=replace_if)
        return self.binds

    @property
    def digest_kind(self) -> DigestKind:
        """As the interface says."""
        return self._digest_kind

    async def examine(self) -> Facts:
        """As the interface says. Whether anybody may write is found by trying: what is taken is removed again."""
        return await self._in_thread(self._examine, times=_LONG)

    async def sign_put(self, key: str, length: int, digest: bytes, expires: int) -> SignedRequest:
        """As the interface says."""
        check_put(key, length, digest, expires, self.digest_kind)
        headers = {"Content-Length": str(length)}
        if self._settings.traits.conditional_put:
            headers["If-None-Match"] = "*"
        name = "x-amz-checksum-sha256" if self.digest_kind == "sha256" else "Content-MD5"
        headers[name] = base64.b64encode(digest).decode()
        return await self._sign("PUT", key, headers, expires)

    async def sign_get(self, key: str, etag: str | None, expires: int) -> SignedRequest:
        """As the interface says. The condition on the etag is a signed ``If-Match`` header."""
        check_key(key)
        check_etag(etag)
        check_expires(expires)
        return await self._sign("GET", key, {} if etag is None else {"If-Match": f'"{etag}"'}, expires)

    async def head(self, key: str) -> Head | None:
        """As the interface says. Who may not list a bucket gets 403 for what is absent: see
        ``Calls._is_absent``."""
        check_key(key)
        return await self._first(lambda looks, pair: looks.head(pair, self.binds, key), Calls.head, key)

    async def read(self, key: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """As the interface says."""
        check_key(key)
        check_etag(etag)
        check_range(offset, length)
        if not 0 < length <= SHORT:
            return await self._run(Calls.read, key, offset, length, etag)
        return await self._first(
            lambda looks, pair: looks.read(pair, key, offset, length, etag), Calls.read, key, offset, length, etag
        )

    async def delete(self, key: str, etag: str | None = None) -> bool:
        """As the interface says. One object per request: providers differ in how they delete many."""
        check_key(key)
        check_etag(etag)
        return await self._run(Calls.delete, key, etag)

    async def put_tombstone(self, key: str, etag: str | None = None) -> Head:
        """As the interface says."""
        check_key(key)
        check_etag(etag)
        return await self._run(Calls.tombstone, key, etag)

    async def create(self, key: str, data: bytes) -> bool:
        """As the interface says."""
        check_key(key)
        if len(data) > MAX_READ:
            raise InvalidInput(f"the hub itself writes at most {MAX_READ} bytes")
        return await self._run(Calls.create, key, data)

    async def list(self, prefix: str, start_after: str | None = None, limit: int = MAX_PAGE) -> Listing:
        """As the interface says. What stands there under a name that is no key does not show."""
        check_prefix(prefix)
        check_limit(limit)
        return await self._run(Calls.list, prefix, start_after, limit)

    async def aclose(self) -> None:
        """As the interface says. What is under way has a few seconds; then its connections are ended."""
        if not self._closing.is_set():
            self._closing.set()
            if self._looks is not None:
                await self._looks.aclose()
            await asyncio.to_thread(self._end)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- signing ------------------------------------------------------------------------------------------

    async def _sign(self, method: Method, key: str, headers: Mapping[str, str], expires: int) -> SignedRequest:
        keys = await self._ready()
        now = self._clock()
        # A URL dies with the keys that signed it: it does not promise more.
        life = expires if keys.ends is None else max(1, min(expires, int(keys.ends - now)))
        url = self._signer.url(keys.pair, method, key, headers, life, time.time())
        return SignedRequest(method=method, url=url, headers=dict(headers), expires_at=now + life)

    async def _ready(self) -> Keys:
        """The keys of the moment."""
        keys = self._keys.ready()
        return keys if keys is not None else await self._in_thread(self._keys.fresh)

    # --- blocking halves, run in the bucket's threads -----------------------------------------------------

    def _examine(self) -> Facts:
        with translation(self._settings.bucket):
            return Examination(self._client(), self._settings, self._tries(_LONG), self._clock, self._sockets).facts()

    def _call[T](self, work: Callable[..., T], tries: Tries, *args: Any) -> T:
        with translation(self._settings.bucket):
            return work(Calls(self._client(), self._settings, self.binds, tries), *args)

    def _tries(self, times: float, failed: Exception | None = None, spent: float = 0.0) -> Tries:
        return Tries(
            attempts=self._settings.attempts,
            total=self._settings.total * times - spent,
            wait=self._closing.wait,
            renew=self._renew,
            failed=failed,
        )

    def _renew(self) -> bool:
        self._keys.drop()
        return self._keys.renewable

    def _client(self) -> S3Client:
        with self._making:
            if self._made is None:
                self._made = make_s3_client(self._settings, self._keys.for_client())
                guard(self._made, self._sockets, self._settings.total)
            return self._made

    def _make_looks(self) -> None:
        with translation(self._settings.bucket):
            client = self._client()
            with self._making:
                if self._looks is None and not self._no_looks:
                    self._no_looks = goes_by_proxy(client, self._settings)
                    self._looks = None if self._no_looks else Looks(self._settings, client)

    def _end(self) -> None:
        self._threads.shutdown(wait=False)
        under_way = concurrent.futures.wait(tuple(self._running), _GRACE).not_done
        self._sockets.end()
        stuck = concurrent.futures.wait(under_way, _GRACE).not_done
        self._threads.shutdown(wait=not stuck)
        with self._making:
            if self._made is not None:
                self._made.close()
                self._made = None

    async def _run[T](self, work: Callable[..., T], *args: Any, times: float = 1.0) -> T:
        """One operation of :class:`Calls`, in a thread."""
        return await self._in_thread(lambda: self._call(work, self._tries(times), *args), times=times)

    async def _first[T](
        self, ask: Callable[[Looks, ReadOnlyCredentials], Awaitable[T]], work: Callable[..., T], *args: Any
    ) -> T:
        """The same for one that begins with a request on the event loop. If that fails the thread takes it from there:
        what to make of an error, and whether to ask again, is decided in one place."""
        if self._looks is None and not self._no_looks:
            await self._in_thread(self._make_looks)
        if self._looks is None or self._looks.shunned:
            return await self._run(work, *args)
        keys = await self._ready()
        self._check_open()  # nothing that closing would not know of is begun
        began = time.monotonic()
        try:
            return await ask(self._looks, keys.pair)
        except Unfit:
            return await self._run(work, *args)
        except Exception as error:  # noqa: BLE001  # judged in the thread, which lets none escape
            failed = error
        tries = self._tries(1.0, failed, time.monotonic() - began)
        return await self._in_thread(lambda: self._call(work, tries, *args))

    async def _in_thread[T](self, work: Callable[[], T], *, times: float = 1.0) -> T:
        self._check_open()
        # The work has a deadline of its own; this one is for a server that trickles, and for full threads.
        limit = self._settings.total * times + self._settings.connect_timeout + self._settings.read_timeout
        try:
            async with asyncio.timeout(limit):
                future = self._threads.submit(self._unless_closing, work)
                self._running.add(future)
                future.add_done_callback(self._running.discard)
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise RetryLater(
                f"the bucket did not answer within {limit:.0f} seconds", kind="bucket-unreachable", bucket=self.name
            ) from error

    def _unless_closing[T](self, work: Callable[[], T]) -> T:
        """What waited for a thread until the bucket was closed is not begun."""
        self._check_open()
        try:
            return work()
        finally:
            self._sockets.let_go()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise RetryLater("the bucket is closed", kind="bucket-unreachable", bucket=self.name)
