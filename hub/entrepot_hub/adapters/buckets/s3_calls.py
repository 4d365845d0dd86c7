"""The blocking half of the S3 driver: one operation of the hub, made of requests that are tried again."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError

from entrepot.core.errors import Conflict, RetryLater
from entrepot.core.keys import OWNER_MARK
from entrepot_hub.adapters.buckets.interface import MAX_READ, Binds, DigestKind, Entry, Head, Listing, is_key
from entrepot_hub.adapters.buckets.s3_errors import code_of, status_of
from entrepot_hub.adapters.buckets.s3_retries import Tries
from entrepot_hub.adapters.buckets.s3_settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ABSENT: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_PIECE: Final = 256 << 10
_LONGEST_ETAG: Final = 200


class Calls:
    """One operation at a time: looks, reads and changes, as the interface says. Raises what boto3 raises."""

    def __init__(self, client: S3Client, settings: S3Settings, binds: Binds, tries: Tries) -> None:
        self._client = client
        self._settings = settings
        self._binds = binds
        self._tries = tries

    def start(self) -> None:
        """See that the bucket is there, or make it if the settings say so."""
        try:
            self._list_one(self._settings.prefix)
        except ClientError as error:
            code = code_of(error)
            if code == "NoSuchBucket" and self._settings.create:
                self._make_bucket()
            elif code != "AccessDenied":
                raise

    def head(self, key: str) -> Head | None:
        """The object, ``None`` if there is none."""
        kind = self._settings.digest_kind
        options: dict[str, Any] = {"ChecksumMode": "ENABLED"} if kind == "sha256" else {}
        try:
            answer = self._ask(self._client.head_object, Key=key, **options)
        except ClientError as error:
            if code_of(error) in _ABSENT:
                return None
            if status_of(error) == 403 and self._is_absent(key):
                return None
            raise
        return head_of(answer, self._binds, kind)

    def read(self, key: str, offset: int, length: int, etag: str | None) -> bytes:
        """Exactly these bytes, or fewer at the end."""
        if length == 0:
            return b""
        try:
            return self._tries.make(partial(self._read, key, offset, length, etag))
        except ClientError as error:
            if status_of(error) == 416:
                return b""
            raise

    def delete(self, key: str, etag: str | None) -> bool:
        """Whether there was one and it is gone."""
        before = self.head(key)
        if before is None:
            return False
        _check_same(key, before, etag)
        options: dict[str, Any] = {"IfMatch": f'"{etag}"'} if etag is not None and self._binds.delete_if else {}
        try:
            self._ask(self._client.delete_object, Key=key, **options)
        except ClientError as error:
            if code_of(error) in _ABSENT:
                return self._tries.repeated
            # A repetition whose first try was answered into the void finds nothing to compare with.
            if status_of(error) == 412 and self._tries.repeated and self.head(key) is None:
                return True
            raise
        return True

    def tombstone(self, key: str, etag: str | None) -> Head:
        """The object of 0 bytes that stands there now."""
        before = self.head(key)
        if before is not None and before.length == 0:
            return before
        _check_same(key, before, etag)
        options: dict[str, Any] = {"IfMatch": f'"{etag}"'} if etag is not None and self._binds.replace_if else {}
        try:
            answer = self._ask(self._client.put_object, Key=key, Body=b"", **options)
        except ClientError as error:
            # A repetition of a write whose answer was lost finds the etag gone, by its own doing.
            after = self.head(key) if status_of(error) in {404, 409, 412} else None
            if after is not None and after.length == 0:
                return after
            if status_of(error) == 404:
                raise Conflict("the object was removed", kind="changed", key=key) from error
            raise
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        modified = email.utils.parsedate_to_datetime(date).timestamp() if date else time.time()
        return Head(length=0, etag=_etag(answer), digest=None, modified=modified)

    def create(self, key: str, data: bytes) -> bool:
        """Whether it was written, and not there before."""
        # Looked at first for the servers that ignore the precondition.
        if self.head(key) is not None:
            return False
        options: dict[str, Any] = {"IfNoneMatch": "*"} if self._settings.traits.conditional_put else {}
        try:
            self._ask(self._client.put_object, Key=key, Body=data, **options)
        except ClientError as error:
            if status_of(error) not in {409, 412}:
                raise
            # Taken. By ourselves, if an earlier try arrived and its answer did not: look.
            if self._tries.repeated:
                return self._holds(key, data)
            if status_of(error) == 409 and self.head(key) is None:
                raise
            return False
        return True

    def list(self, prefix: str, start_after: str | None, limit: int) -> Listing:
        """A page."""
        options: dict[str, Any] = {"StartAfter": start_after} if start_after else {}
        answer = self._ask(self._client.list_objects_v2, Prefix=prefix, MaxKeys=limit, **options)
        contents = answer.get("Contents", [])
        entries = tuple(
            Entry(
                key=said(found, "Key"),
                length=said(found, "Size"),
                etag=_etag(found),
                modified=said(found, "LastModified").timestamp(),
            )
            for found in contents
            if is_key(said(found, "Key"))
        )
        return Listing(entries=entries, next=contents[-1]["Key"] if said(answer, "IsTruncated") and contents else None)

    def try_conditions(self, key: str) -> tuple[bool, bool]:
        """Whether a delete and a replacement under a wrong etag are refused, and under the right one are not."""
        put, head, delete = (
            partial(self._ask, request, Key=key)
            for request in (self._client.put_object, self._client.head_object, self._client.delete_object)
        )
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
            # Some compare only with what is there, and make what was gone.
            from_nothing = refused(partial(put, Body=b"zeroth", IfMatch=wrong))
            put(Body=b"first")
            right = head()["ETag"]
            replace_if = (
                from_nothing
                and refused(partial(put, Body=b"second", IfMatch=wrong))
                and head()["ETag"] == right
                and not refused(partial(put, Body=b"third", IfMatch=right))
            )
            put(Body=b"fourth")
            right = head()["ETag"]
            delete_if = (
                refused(partial(delete, IfMatch=wrong))
                and self.head(key) is not None
                and not refused(partial(delete, IfMatch=right))
                and self.head(key) is None
            )
        finally:
            delete()
        return delete_if, replace_if

    def _ask(self, request: Callable[..., Any], **fields: Any) -> Any:
        return self._tries.make(partial(request, Bucket=self._settings.bucket, **fields))

    def _list_one(self, prefix: str) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = self._ask(self._client.list_objects_v2, Prefix=prefix, MaxKeys=1)
        return answer

    def _make_bucket(self) -> None:
        options: dict[str, Any] = {}
        if self._settings.traits.location_constraint and self._settings.region != "us-east-1":
            options["CreateBucketConfiguration"] = {"LocationConstraint": self._settings.region}
        try:
            self._ask(self._client.create_bucket, **options)
        except ClientError as error:
            if code_of(error) not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                raise
            # Made meanwhile; by whom shows in whether it can be used.
            self._list_one(self._settings.prefix)

    def _is_absent(self, key: str) -> bool:
        """Whether a 403 for ``key`` means that it is absent.

        S3 says 403 instead of 404 to who may not list. So: who may list, looks there. Who may not, reads the
        mark of the prefix's owner: where that can be read the keys are good, and what gives 403 is not there.
        Anything else is a denial, for taking every object for absent would be worse than an error.
        """
        try:
            answer = self._list_one(key)
        except ClientError as error:
            if code_of(error) != "AccessDenied":
                raise
        else:
            return all(found["Key"] != key for found in answer.get("Contents", []))
        mark = mark_of(self._settings.prefix)
        if key == mark:
            return False
        try:
            self._ask(self._client.head_object, Key=mark)
        except ClientError:
            return False
        return True

    def _holds(self, key: str, data: bytes) -> bool:
        head = self.head(key)
        return head is not None and head.length == len(data) and self.read(key, 0, len(data), head.etag) == data

    def _read(self, key: str, offset: int, length: int, etag: str | None) -> bytes:
        options: dict[str, Any] = {} if etag is None else {"IfMatch": f'"{etag}"'}
        answer = self._client.get_object(
            Bucket=self._settings.bucket, Key=key, Range=f"bytes={offset}-{offset + length - 1}", **options
        )
        with contextlib.closing(answer["Body"]) as body:
            skip, wanted = span_of(answer, key, offset, length, etag)
            pieces, missing = [], skip + wanted
            while missing > 0:
                if self._tries.left <= 0:
                    raise TimeoutError("the object comes too slowly")
                piece = body.read(min(missing, _PIECE))
                if not piece:
                    raise ConnectionError("the object's bytes end early")
                pieces.append(piece)
                missing -= len(piece)
            return b"".join(pieces)[skip:]


def head_of(answer: Mapping[str, Any], binds: Binds, kind: DigestKind) -> Head:
    """The object that an answer to a look shows."""
    etag = _etag(answer)
    digest = None
    if binds.head_digest:
        digest = _sha256(answer.get("ChecksumSHA256")) if kind == "sha256" else _md5(etag)
    return Head(
        length=said(answer, "ContentLength"),
        etag=etag,
        digest=digest,
        modified=said(answer, "LastModified").timestamp(),
    )


def span_of(answer: Mapping[str, Any], key: str, offset: int, length: int, etag: str | None) -> tuple[int, int]:
    """Of the bytes that an answer to a read brings: how many to skip, and how many after those are meant."""
    # Some servers ignore a condition; none leaves the etag out.
    if etag is not None and _etag(answer) != etag:
        raise Conflict("the object was replaced", kind="changed", key=key)
    # Without a Content-Range the server ignored the range and sends everything.
    first, total = _content_range(answer.get("ContentRange")) or (0, said(answer, "ContentLength"))
    skip, wanted = offset - first, max(min(offset + length, total) - offset, 0)
    if not 0 <= skip <= MAX_READ:
        raise RetryLater("the bucket answers with another range", kind="bucket-unreachable", key=key)
    return skip, wanted


def mark_of(prefix: str) -> str:
    """The key of the mark that names the prefix's owner."""
    return f"{prefix}/{OWNER_MARK}" if prefix else OWNER_MARK


def said(answer: Mapping[str, Any], name: str) -> Any:
    """A field that every answer of this kind has."""
    try:
        return answer[name]
    except KeyError as error:
        raise RetryLater(
            f"what answers at the bucket's endpoint leaves out {name}",
            kind="bucket-unreachable",
            hint="Is it an S3 server?",
        ) from error


def _check_same(key: str, head: Head | None, etag: str | None) -> None:
    if etag is not None and (head is None or head.etag != etag):
        raise Conflict("the object was replaced or removed", kind="changed", key=key)


def _etag(answer: Mapping[str, Any]) -> str:
    """Without its quotes. Any byte can stand in a header, and a control character in a listing."""
    etag: str = said(answer, "ETag").strip('"')
    if len(etag) > _LONGEST_ETAG or not etag.isascii() or not etag.isprintable():
        raise RetryLater(
            "what answers at the bucket's endpoint gives an ETag that is none",
            kind="bucket-unreachable",
            hint="Is it an S3 server?",
        )
    return etag


def _sha256(text: str | None) -> bytes | None:
    """The SHA-256 of the whole object. That of a multipart upload ("…-3") is one of digests and tells
    nothing."""
    if text is None:
        return None
    try:
        digest = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return digest if len(digest) == 32 else None


def _md5(etag: str) -> bytes | None:
    """The MD5 that an ETag is, if it has the form of one."""
    try:
        digest = bytes.fromhex(etag)
    except ValueError:
        return None
    return digest if len(digest) == 16 and len(etag) == 32 else None


def _content_range(text: str | None) -> tuple[int, int] | None:
    """First byte and length of the whole, of ``bytes 0-9/100``; a range that cannot be understood is none we asked
    for."""
    if text is None:
        return None
    span, _, total = text.removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    if not (first.isascii() and first.isdecimal() and total.isascii() and total.isdecimal()):
        raise RetryLater("the bucket answers with a range that says nothing", kind="bucket-unreachable")
    return int(first), int(total)
