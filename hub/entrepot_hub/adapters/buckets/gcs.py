"""The driver for Google Cloud Storage.

Uploads and downloads are URLs signed by the V4 process (GOOG4-RSA-SHA256), for the XML API. A PUT signs
``Content-MD5``, ``x-goog-content-length-range: n,n`` and ``x-goog-if-generation-match: 0``: Google refuses a request
that changes or drops one of them, and enforces digest, length and create-only by them. So the digest of this driver is
an MD5: it guards a grant against being used for other bytes; what an object is, its Merkle nodes prove.

**Etags.** The ``ETag`` of a GET is the MD5 of the content in hex, and so is the driver's. Google documents two kinds of
objects for which it is something else, those without an MD5 (composed ones) and those under a customer's key: for them
the driver's etag is ``generation-<number>`` and a signed GET pins that generation. For the hub's own changes an etag is
looked up and the change is made under the condition that its generation still stands: one step for the provider.

google-cloud-storage makes the hub's own calls, in threads. Where it hides what has to be seen (the range that was
answered, the date) the request is made on its authorized session.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

from google.api_core import exceptions as api

from entrepot.core.errors import Conflict, InvalidInput, NotFound, RetryLater
from entrepot.core.keys import OWNER_MARK
from entrepot_hub.adapters.buckets.answers import PATIENCE
from entrepot_hub.adapters.buckets.gcs_errors import is_missing_bucket, missing_bucket, translation
from entrepot_hub.adapters.buckets.gcs_facts import examine
from entrepot_hub.adapters.buckets.gcs_link import GcsLink, nonsense
from entrepot_hub.adapters.buckets.gcs_settings import DOCUMENTED, GcsSettings
from entrepot_hub.adapters.buckets.interface import (
    MAX_PAGE,
    MAX_READ,
    Binds,
    DigestKind,
    Entry,
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
    is_key,
)
from entrepot_hub.adapters.buckets.probe import probe_uploads, scratch_key

#: The life in seconds of what the IAM service signs: Google changes its keys, and says that one is good for 12 hours.
MAX_SIGNED_BY_IAM: Final = 12 * 3600
#: Beginning of the etag of an object whose ETag over HTTP is not its MD5.
_PINNED: Final = "generation-"
_BINARY: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class _Seen:
    """An object as Google shows it; ``md5`` is ``None`` where it shows none."""

    length: int
    generation: int
    md5: bytes | None
    etag: str
    modified: float


class GcsBucket:
    """A bucket on Google Cloud Storage. See the interface for what it promises.

    ``binds`` is what Google documents until :meth:`probe` has looked. ``clock`` gives unix seconds; the times inside
    signatures are the library's own.
    """

    def __init__(self, settings: GcsSettings, *, name: str, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.prefix = settings.prefix
        self.binds = DOCUMENTED
        self._settings = settings
        self._clock = clock
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix=f"bucket-{name}")
        self._link = GcsLink(settings, clock)
        self._running: set[Future[Any]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"GcsBucket({self.name!r}, {self._settings!r})"

    async def start(self) -> None:
        """See that the bucket is there, or make it if the settings say so.

        That the hub may not list the bucket is no error: serving needs no list. Raises
        ``InvalidInput(invalid-setting)`` for a bucket that is not there, ``Denied`` for a wrong key.
        """
        await self._run(self._start)

    async def probe(self, prefix: str = "", *, expiry: bool = True) -> Binds:
        """Try what is enforced, under a scratch key below ``prefix``, and take it as :attr:`binds`.

        Takes a few seconds, three of them for ``expiry``; without it the documentation's word stands. Leaves nothing
        behind. Raises what a good upload raises: then the bucket cannot be used at all.
        """
        # The hub may not reach its bucket under the name that nodes use.
        inner = GcsBucket(replace(self._settings, public_endpoint=None), name=self.name, clock=self._clock)
        try:
            binds = await probe_uploads(inner, prefix, expiry=expiry)
        finally:
            await inner.aclose()
        delete_if, replace_if = await self._run(self._try_conditions, scratch_key(prefix))
        self.binds = replace(binds, delete_if=delete_if, replace_if=replace_if)
        return self.binds

    @property
    def digest_kind(self) -> DigestKind:
        """MD5: Google checks and shows no other digest."""
        return "md5"

    async def examine(self) -> Facts:
        """As the interface says."""
        return await self._run(examine, self._link, self._settings)

    async def sign_put(self, key: str, length: int, digest: bytes, expires: int) -> SignedRequest:
        """As the interface says. No I/O with the key of a service account; a workload identity signs through the IAM
        service, for at most :data:`MAX_SIGNED_BY_IAM`."""
        check_put(key, length, digest, expires, self.digest_kind)
        bound = {
            "Content-MD5": base64.b64encode(digest).decode(),
            "x-goog-content-length-range": f"{length},{length}",
            "x-goog-if-generation-match": "0",
        }
        # Content-Length is sent, not signed: Google's range of lengths is what holds.
        return await self._sign("PUT", key, bound, expires, sent={"Content-Length": str(length)})

    async def sign_get(self, key: str, etag: str | None, expires: int) -> SignedRequest:
        """As the interface says. The condition on the etag is a signed ``If-Match`` header, or the generation."""
        check_key(key)
        check_etag(etag)
        check_expires(expires)
        if etag is None:
            return await self._sign("GET", key, {}, expires)
        if etag.startswith(_PINNED):
            return await self._sign("GET", key, {}, expires, generation=etag.removeprefix(_PINNED))
        return await self._sign("GET", key, {"If-Match": f'"{etag}"'}, expires)

    async def head(self, key: str) -> Head | None:
        """As the interface says. Who may not list a bucket gets 403 for what is absent: see :meth:`_is_absent`."""
        check_key(key)
        return await self._run(self._head, key)

    async def read(self, key: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """As the interface says."""
        check_key(key)
        check_etag(etag)
        check_range(offset, length)
        return await self._run(self._read, key, offset, length, etag)

    async def delete(self, key: str, etag: str | None = None) -> bool:
        """As the interface says."""
        check_key(key)
        check_etag(etag)
        return await self._run(self._delete, key, etag)

    async def put_tombstone(self, key: str, etag: str | None = None) -> Head:
        """As the interface says."""
        check_key(key)
        check_etag(etag)
        return await self._run(self._tombstone, key, etag)

    async def create(self, key: str, data: bytes) -> bool:
        """As the interface says."""
        check_key(key)
        if len(data) > MAX_READ:
            raise InvalidInput(f"the hub itself writes at most {MAX_READ} bytes")
        return await self._run(self._create, key, data)

    async def list(self, prefix: str, start_after: str | None = None, limit: int = MAX_PAGE) -> Listing:
        """As the interface says. What stands there under a name that is no key does not show."""
        check_prefix(prefix)
        check_limit(limit)
        return await self._run(self._list, prefix, start_after, limit)

    async def aclose(self) -> None:
        """As the interface says, within some ten seconds: calls that have not ended by then are cut off."""
        if not self._closed:
            self._closed = True
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

    async def _sign(
        self,
        method: Method,
        key: str,
        bound: Mapping[str, str],
        expires: int,
        *,
        sent: Mapping[str, str] | None = None,
        generation: str | None = None,
    ) -> SignedRequest:
        if self._link.signer is None:
            await self._run(self._link.connect)
        now = int(self._clock())
        if self._link.signer == "iam":
            expires = min(expires, MAX_SIGNED_BY_IAM)
            url = await self._run(self._link.sign, method, key, bound, expires, generation)
        else:
            url = self._translated(partial(self._link.sign, method, key, bound, expires, generation))
        return SignedRequest(method=method, url=url, headers={**(sent or {}), **bound}, expires_at=now + expires)

    # --- blocking halves, run in the bucket's threads -----------------------------------------------------

    def _start(self) -> None:
        try:
            self._look_in()
        except api.NotFound:
            if not self._settings.create:
                raise missing_bucket(self._settings.bucket) from None
            self._make_bucket()
        except api.Forbidden:
            pass

    def _look_in(self) -> None:
        self._link.page(self.prefix, 1)

    def _make_bucket(self) -> None:
        settings = self._settings
        project = settings.project or self._link.project()
        if project is None:
            raise InvalidInput(
                "it is not known in which project to create the bucket",
                kind="invalid-setting",
                hint="State the project",
            )
        body: dict[str, Any] = {
            "name": settings.bucket,
            "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}},
            "softDeletePolicy": {"retentionDurationSeconds": "0"},
        }
        if settings.location is not None:
            body["location"] = settings.location
        if settings.storage_class is not None:
            body["storageClass"] = settings.storage_class
        try:
            self._link.ask("POST", "/storage/v1/b", params={"project": project}, json=body)
        except api.Conflict:
            # Made meanwhile; by whom shows in whether it can be used.
            self._look_in()

    def _look(self, key: str) -> _Seen | None:
        blob = self._link.blob(key)
        try:
            blob.reload(**self._link.call())
        except api.NotFound as error:
            if is_missing_bucket(error):
                raise
            return None
        except api.Forbidden:
            if self._is_absent(key):
                return None
            raise
        return _seen(blob)

    def _is_absent(self, key: str) -> bool:
        """Whether a 403 for ``key`` means that it is absent.

        Google says 403 instead of 404 to who may not list. So: who may list, looks there. Who may not, reads the mark
        of the prefix's owner: where that can be read the account is good, and what gives 403 is not there. Anything
        else is a denial, for taking every object for absent would be worse than an error.
        """
        try:
            found, _ = self._link.page(key, 1)
        except api.Forbidden:
            pass
        else:
            return all(blob.name != key for blob in found)
        mark = f"{self.prefix}/{OWNER_MARK}" if self.prefix else OWNER_MARK
        if key == mark:
            return False
        try:
            self._link.blob(mark).reload(**self._link.call())
        except api.GoogleAPICallError:
            return False
        return True

    def _head(self, key: str) -> Head | None:
        seen = self._look(key)
        return None if seen is None else self._as_head(seen)

    def _as_head(self, seen: _Seen) -> Head:
        digest = seen.md5 if self.binds.head_digest else None
        return Head(length=seen.length, etag=seen.etag, digest=digest, modified=seen.modified)

    def _read(self, key: str, offset: int, length: int, etag: str | None) -> bytes:
        if length == 0:
            return b""
        params = {"alt": "media"}
        if etag is not None:
            seen = self._look(key)
            if seen is None:
                raise NotFound("there is no such object", kind="no-such-object", key=key)
            _check_same(key, seen, etag)
            params["generation"] = str(seen.generation)
        path = f"/download/storage/v1/b/{self._settings.bucket}/o/{quote(key, safe='')}"
        try:
            return self._link.ask("GET", path, params=params, piece=(offset, length)).body
        except api.RequestRangeNotSatisfiable:
            return b""
        except api.NotFound as error:
            if etag is not None and not is_missing_bucket(error):
                raise Conflict("the object was replaced or removed", kind="changed", key=key) from None
            raise

    def _delete(self, key: str, etag: str | None) -> bool:
        seen = self._look(key)
        if seen is None:
            return False
        _check_same(key, seen, etag)
        try:
            self._link.blob(key).delete(
                if_generation_match=None if etag is None else seen.generation, **self._link.call()
            )
        except api.NotFound:
            return False
        return True

    def _tombstone(self, key: str, etag: str | None) -> Head:
        before = self._look(key)
        if before is not None and before.length == 0:
            return self._as_head(before)
        _check_same(key, before, etag)
        blob = self._link.blob(key)
        generation = before.generation if before is not None and etag is not None else None
        try:
            blob.upload_from_string(b"", content_type=_BINARY, if_generation_match=generation, **self._link.call())
        except api.PreconditionFailed:
            # A repetition of a write whose answer was lost finds the generation gone, by its own doing.
            after = self._look(key)
            if after is not None and after.length == 0:
                return self._as_head(after)
            raise
        return self._as_head(_seen(blob))

    def _create(self, key: str, data: bytes) -> bool:
        call = self._link.call()
        try:
            self._link.blob(key).upload_from_string(data, content_type=_BINARY, if_generation_match=0, **call)
        except api.PreconditionFailed:
            if not call["retry"].repeated:
                return False
            # An earlier try of this very call may be what is there.
            seen = self._look(key)
            return seen is not None and seen.md5 == hashlib.md5(data, usedforsecurity=False).digest()
        return True

    def _list(self, prefix: str, start_after: str | None, limit: int) -> Listing:
        # Google begins at a name, the interface after one: "!" sorts before all that a key goes on with.
        begin = None if start_after is None else f"{start_after}!"
        found, more = self._link.page(prefix, limit, begin)
        entries = tuple(
            Entry(key=blob.name, length=seen.length, etag=seen.etag, modified=seen.modified)
            for blob in found
            if is_key(blob.name)
            for seen in (_seen(blob),)
        )
        return Listing(entries=entries, next=found[-1].name if more and found else None)

    def _try_conditions(self, key: str) -> tuple[bool, bool]:
        """Whether a delete and a replacement under a wrong generation are refused, and under the right one are not."""

        def write(data: bytes, generation: int | None = None) -> int:
            blob = self._link.blob(key)
            blob.upload_from_string(data, content_type=_BINARY, if_generation_match=generation, **self._link.call())
            return _seen(blob).generation

        def refused(call: Callable[[], object]) -> bool:
            try:
                call()
            except api.PreconditionFailed:
                return True
            return False

        try:
            right = write(b"first")
            replace_if = refused(partial(write, b"second", right + 1)) and not refused(partial(write, b"third", right))
            right = write(b"fourth")
            delete = self._link.blob(key).delete
            delete_if = (
                refused(partial(delete, if_generation_match=right + 1, **self._link.call()))
                and self._look(key) is not None
                and not refused(partial(delete, if_generation_match=right, **self._link.call()))
                and self._look(key) is None
            )
        finally:
            with contextlib.suppress(api.NotFound):
                self._link.blob(key).delete(**self._link.call())
        return delete_if, replace_if

    # --- threads ------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self._threads.shutdown(wait=False)
        wait(tuple(self._running), timeout=PATIENCE)
        self._link.cut()
        if not wait(tuple(self._running), timeout=PATIENCE).not_done:
            self._threads.shutdown(wait=True)
            self._link.close()

    async def _run[**P, T](self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise RetryLater("the bucket is closed", kind="bucket-unreachable", bucket=self.name)
        call = partial(self._translated, partial(work, *args, **kwargs))
        running = self._threads.submit(call)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return await asyncio.wrap_future(running)

    def _translated[T](self, work: Callable[[], T]) -> T:
        with translation(self._settings.bucket):
            return work()


def _seen(blob: Any) -> _Seen:
    """An object as the client shows it."""
    try:
        generation = int(blob.generation)
        made = blob.time_created or blob.updated
        length = int(blob.size)
        modified = made.timestamp()
        kept, md5 = blob.kms_key_name, None if blob.md5_hash is None else base64.b64decode(blob.md5_hash, validate=True)
    except (AttributeError, TypeError, ValueError, binascii.Error) as error:
        raise nonsense() from error
    md5 = md5 if md5 is not None and len(md5) == 16 else None
    # Under a customer's key the MD5 is true, but the ETag of a GET is another.
    etag = md5.hex() if md5 is not None and kept is None else f"{_PINNED}{generation}"
    return _Seen(length=length, generation=generation, md5=md5, etag=etag, modified=modified)


def _check_same(key: str, seen: _Seen | None, etag: str | None) -> None:
    if etag is not None and (seen is None or seen.etag != etag):
        raise Conflict("the object was replaced or removed", kind="changed", key=key)
