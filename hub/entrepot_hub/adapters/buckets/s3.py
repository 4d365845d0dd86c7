"""The S3 driver: Amazon's S3 and what speaks its protocol (MinIO, R2, Ceph, Garage, GCS with HMAC keys).

Uploads and downloads are URLs signed with Signature Version 4 in the query. A PUT signs the headers
``content-length``, ``x-amz-checksum-sha256`` and ``if-none-match: *``: a server that checks signatures
refuses a request that changes or drops one of them, and one that honours them binds length, digest and
create-only. How much of that is true is found by :meth:`S3Bucket.probe`, for some servers ignore what they do
not know.

boto3 is used for the hub's own looks and changes, in threads; signing is botocore's signer called directly,
which is three times as fast as a client's ``generate_presigned_url`` and lets the headers be signed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.utils
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import boto3
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from entrepot.core.errors import (
    Conflict,
    InvalidInput,
    RetryLater,
)
from entrepot.core.keys import OWNER_MARK
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
from entrepot_hub.adapters.buckets.s3_errors import code_of, status_of, translation
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ABSENT: Final = frozenset({"NoSuchKey", "404", "NotFound"})


class S3Bucket:
    """A bucket on an S3 server. See the interface for what it promises.

    ``binds`` is the profile's until :meth:`probe` has looked. ``clock`` gives unix seconds; the times inside
    signatures are botocore's own.
    """

    def __init__(self, settings: S3Settings, *, name: str, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.prefix = settings.prefix
        self.binds = settings.binds
        self._settings = settings
        self._clock = clock
        self._base = settings.public_base
        given = settings.credentials
        self._credentials = Credentials(given.access_key, given.secret_key, given.session_token)
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix=f"bucket-{name}")
        self._making = threading.Lock()
        self._made: S3Client | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"S3Bucket({self.name!r}, {self._settings!r})"

    async def start(self) -> None:
        """See that the bucket is there, or make it if the settings say so.

        That the hub may not list the bucket is no error: serving needs no list. Raises
        ``InvalidInput(invalid-setting)`` for a bucket that is not there, ``Denied`` for wrong keys.
        """
        await self._run(self._start)

    async def probe(self, prefix: str = "", *, expiry: bool = True) -> Binds:
        """Try what the provider enforces, under a scratch key below ``prefix``, and take it as :attr:`binds`.

        Takes a few seconds, three of them for ``expiry``; without it the profile's word stands. Leaves
        nothing behind. Raises what a good upload raises: then the bucket cannot be used at all.
        """
        # The hub may not reach its bucket under the name that nodes use.
        inner = S3Bucket(replace(self._settings, public_endpoint=None), name=self.name)
        inner.binds = replace(inner.binds, head_digest=True)  # show what the server says: it is what is judged
        try:
            binds = await probe_uploads(inner, prefix, expiry=expiry)
        finally:
            await inner.aclose()
        delete_if, replace_if = await self._run(self._try_conditions, scratch_key(prefix))
        self.binds = replace(binds, delete_if=delete_if, replace_if=replace_if)
        return self.binds

    @property
    def digest_kind(self) -> DigestKind:
        """As the interface says."""
        return "sha256"

    async def examine(self) -> Facts:
        """As the interface says."""
        return Facts()

    async def sign_put(self, key: str, length: int, digest: bytes, expires: int) -> SignedRequest:
        """As the interface says."""
        check_put(key, length, digest, expires)
        headers = {
            "Content-Length": str(length),
            "If-None-Match": "*",
            "x-amz-checksum-sha256": base64.b64encode(digest).decode(),
        }
        return self._sign("PUT", key, headers, expires)

    async def sign_get(self, key: str, etag: str | None, expires: int) -> SignedRequest:
        """As the interface says. The condition on the etag is a signed ``If-Match`` header."""
        check_key(key)
        check_etag(etag)
        check_expires(expires)
        return self._sign("GET", key, {} if etag is None else {"If-Match": f'"{etag}"'}, expires)

    async def head(self, key: str) -> Head | None:
        """As the interface says. Who may not list a bucket gets 403 for what is absent: see
        :meth:`_is_absent`."""
        check_key(key)
        return await self._run(self._head, key)

    async def read(self, key: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """As the interface says."""
        check_key(key)
        check_etag(etag)
        check_range(offset, length)
        return await self._run(self._read, key, offset, length, etag)

    async def delete(self, key: str, etag: str | None = None) -> bool:
        """As the interface says. One object per request: providers differ in how they delete many."""
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
        """As the interface says."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._end)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- signing ------------------------------------------------------------------------------------------

    def _sign(self, method: Method, key: str, headers: Mapping[str, str], expires: int) -> SignedRequest:
        request = AWSRequest(method, f"{self._base}/{key}", headers=dict(headers))
        now = self._clock()
        S3SigV4QueryAuth(self._credentials, "s3", self._settings.region, expires=expires).add_auth(request)
        url = request.url
        assert isinstance(url, str)
        return SignedRequest(method=method, url=url, headers=dict(headers), expires_at=now + expires)

    # --- blocking halves, run in the bucket's threads -----------------------------------------------------

    def _start(self) -> None:
        client = self._client()
        try:
            client.list_objects_v2(Bucket=self._settings.bucket, Prefix=self.prefix, MaxKeys=1)
        except ClientError as error:
            code = code_of(error)
            if code == "NoSuchBucket" and self._settings.create:
                self._make_bucket(client)
            elif code != "AccessDenied":
                raise

    def _make_bucket(self, client: S3Client) -> None:
        options: dict[str, Any] = {}
        if self._settings.endpoint is None and self._settings.region != "us-east-1":
            options["CreateBucketConfiguration"] = {"LocationConstraint": self._settings.region}
        try:
            client.create_bucket(Bucket=self._settings.bucket, **options)
        except ClientError as error:
            if code_of(error) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                raise
            # Made meanwhile; by whom shows in whether it can be used.
            client.list_objects_v2(Bucket=self._settings.bucket, Prefix=self.prefix, MaxKeys=1)

    def _head(self, key: str) -> Head | None:
        try:
            answer = self._client().head_object(Bucket=self._settings.bucket, Key=key, ChecksumMode="ENABLED")
        except ClientError as error:
            if code_of(error) in _ABSENT:
                return None
            if status_of(error) == 403 and self._is_absent(key):
                return None
            raise
        return Head(
            length=_said(answer, "ContentLength"),
            etag=_bare(_said(answer, "ETag")),
            digest=_digest(answer.get("ChecksumSHA256")) if self.binds.head_digest else None,
            modified=_said(answer, "LastModified").timestamp(),
        )

    def _is_absent(self, key: str) -> bool:
        """Whether a 403 for ``key`` means that it is absent.

        S3 says 403 instead of 404 to who may not list. So: who may list, looks there. Who may not, reads the
        mark of the prefix's owner: where that can be read the keys are good, and what gives 403 is not there.
        Anything else is a denial, for taking every object for absent would be worse than an error.
        """
        client = self._client()
        try:
            answer = client.list_objects_v2(Bucket=self._settings.bucket, Prefix=key, MaxKeys=1)
        except ClientError as error:
            if code_of(error) != "AccessDenied":
                raise
        else:
            return all(found["Key"] != key for found in answer.get("Contents", []))
        mark = f"{self.prefix}/{OWNER_MARK}" if self.prefix else OWNER_MARK
        if key == mark:
            return False
        try:
            client.head_object(Bucket=self._settings.bucket, Key=mark)
        except ClientError:
            return False
        return True

    def _read(self, key: str, offset: int, length: int, etag: str | None) -> bytes:
        if length == 0:
            return b""
        options: dict[str, Any] = {} if etag is None else {"IfMatch": f'"{etag}"'}
        try:
            answer = self._client().get_object(
                Bucket=self._settings.bucket, Key=key, Range=f"bytes={offset}-{offset + length - 1}", **options
            )
        except ClientError as error:
            if status_of(error) == 416:
                return b""
            raise
        with contextlib.closing(answer["Body"]) as body:
            # Some servers ignore a condition; none leaves the etag out.
            if etag is not None and _bare(_said(answer, "ETag")) != etag:
                raise Conflict("the object was replaced", kind="changed", key=key)
            # Without a Content-Range the server ignored the range and sends everything.
            skip = offset - (_first_byte(answer["ContentRange"]) if "ContentRange" in answer else 0)
            if not 0 <= skip <= MAX_READ:
                raise RetryLater("the bucket answers with another range", kind="bucket-unreachable", key=key)
            data: bytes = body.read(skip + length)
            return data[skip:]

    def _delete(self, key: str, etag: str | None) -> bool:
        before = self._head(key)
        if before is None:
            return False
        _check_same(key, before, etag)
        options: dict[str, Any] = {"IfMatch": f'"{etag}"'} if etag is not None and self.binds.delete_if else {}
        try:
            self._client().delete_object(Bucket=self._settings.bucket, Key=key, **options)
        except ClientError as error:
            if code_of(error) in _ABSENT:
                return False
            raise
        return True

    def _tombstone(self, key: str, etag: str | None) -> Head:
        before = self._head(key)
        if before is not None and before.length == 0:
            return before
        _check_same(key, before, etag)
        options: dict[str, Any] = {"IfMatch": f'"{etag}"'} if etag is not None and self.binds.replace_if else {}
        try:
            answer = self._client().put_object(Bucket=self._settings.bucket, Key=key, Body=b"", **options)
        except ClientError as error:
            # A repetition of a write whose answer was lost finds the etag gone, by its own doing.
            after = self._head(key) if status_of(error) in {404, 412} else None
            if after is not None and after.length == 0:
                return after
            if status_of(error) == 404:
                raise Conflict("the object was removed", kind="changed", key=key) from error
            raise
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        modified = email.utils.parsedate_to_datetime(date).timestamp() if date else self._clock()
        return Head(length=0, etag=_bare(answer["ETag"]), digest=None, modified=modified)

    def _create(self, key: str, data: bytes) -> bool:
        # Looked at first for the servers that ignore the precondition.
        if self._head(key) is not None:
            return False
        try:
            self._client().put_object(Bucket=self._settings.bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if status_of(error) == 412:
                return False
            raise
        return True

    def _list(self, prefix: str, start_after: str | None, limit: int) -> Listing:
        options: dict[str, Any] = {"StartAfter": start_after} if start_after else {}
        answer = self._client().list_objects_v2(Bucket=self._settings.bucket, Prefix=prefix, MaxKeys=limit, **options)
        contents = answer.get("Contents", [])
        entries = tuple(
            Entry(
                key=_said(found, "Key"),
                length=_said(found, "Size"),
                etag=_bare(_said(found, "ETag")),
                modified=_said(found, "LastModified").timestamp(),
            )
            for found in contents
            if is_key(_said(found, "Key"))
        )
        return Listing(entries=entries, next=contents[-1]["Key"] if _said(answer, "IsTruncated") and contents else None)

    def _try_conditions(self, key: str) -> tuple[bool, bool]:
        """Whether a delete and a replacement under a wrong etag are refused, and under the right one are
        not."""
        client = self._client()
        place: Any = {"Bucket": self._settings.bucket, "Key": key}
        wrong = f'"{"0" * 32}"'

        def refused(call: Callable[[], object]) -> bool:
            try:
                call()
            except ClientError as error:
                if status_of(error) < 500 or status_of(error) == 501:
                    return True
                raise
            return False

        try:
            client.put_object(**place, Body=b"first")
            right = client.head_object(**place)["ETag"]
            replace_if = (
                refused(partial(client.put_object, **place, Body=b"second", IfMatch=wrong))
                and client.head_object(**place)["ETag"] == right
                and not refused(partial(client.put_object, **place, Body=b"third", IfMatch=right))
            )
            client.put_object(**place, Body=b"fourth")
            right = client.head_object(**place)["ETag"]
            delete_if = (
                refused(partial(client.delete_object, **place, IfMatch=wrong))
                and self._head(key) is not None
                and not refused(partial(client.delete_object, **place, IfMatch=right))
                and self._head(key) is None
            )
        finally:
            client.delete_object(**place)
        return delete_if, replace_if

    def _client(self) -> S3Client:
        with self._making:
            if self._made is None:
                settings = self._settings
                self._made = boto3.session.Session().client(
                    "s3",
                    region_name=settings.region,
                    endpoint_url=settings.endpoint,
                    aws_access_key_id=settings.credentials.access_key,
                    aws_secret_access_key=settings.credentials.secret_key,
                    aws_session_token=settings.credentials.session_token,
                    config=Config(
                        signature_version="s3v4",
                        s3={"addressing_style": "virtual" if settings.virtual else "path"},
                        # Else an https PUT turns into aws-chunked with a trailer, which R2 and GCS refuse.
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                        connect_timeout=settings.connect_timeout,
                        read_timeout=settings.read_timeout,
                        max_pool_connections=settings.threads,
                        retries={"mode": "standard", "total_max_attempts": settings.attempts},
                    ),
                )
                self._made.meta.events.register_last("before-parameter-build.s3", _stay)
            return self._made

    def _end(self) -> None:
        self._threads.shutdown(wait=True)
        with self._making:
            if self._made is not None:
                self._made.close()
                self._made = None

    async def _run[**P, T](self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise RetryLater("the bucket is closed", kind="bucket-unreachable", bucket=self.name)
        call = partial(self._translated, partial(work, *args, **kwargs))
        return await asyncio.wrap_future(self._threads.submit(call))

    def _translated[T](self, work: Callable[[], T]) -> T:
        with translation(self._settings.bucket):
            return work()


def _stay(context: dict[str, Any], **_: object) -> None:
    """Keep botocore from looking for the bucket in other regions: ours is stated, a wrong one is to be told.

    A server that answers everything with 301 would send it into an endless recursion besides.
    """
    context.setdefault("s3_redirect", {})["redirected"] = True


def _check_same(key: str, head: Head | None, etag: str | None) -> None:
    if etag is not None and (head is None or head.etag != etag):
        raise Conflict("the object was replaced or removed", kind="changed", key=key)


def _said(answer: Mapping[str, Any], name: str) -> Any:
    """A field that every answer of this kind has."""
    try:
        return answer[name]
    except KeyError as error:
        raise RetryLater(
            f"what answers at the bucket's endpoint leaves out {name}",
            kind="bucket-unreachable",
            hint="Is it an S3 server?",
        ) from error


def _bare(etag: str) -> str:
    return etag.strip('"')


def _digest(text: str | None) -> bytes | None:
    """The SHA-256 of the whole object. That of a multipart upload ("…-3") is one of digests and tells
    nothing."""
    if text is None:
        return None
    try:
        digest = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return digest if len(digest) == 32 else None


def _first_byte(content_range: str) -> int:
    first = content_range.removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdecimal() else -1
