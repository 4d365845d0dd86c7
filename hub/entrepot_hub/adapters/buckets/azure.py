"""The Azure Blob driver.

Uploads and downloads are URLs with a shared access signature for one blob: of the permission "create" alone for a PUT
(which refuses to replace anything), "read" for a GET.

Such a signature binds neither length nor digest, and the holder of a PUT may also take snapshots of the blob or name
its tier. So what was uploaded is looked at afterwards, snapshots are removed along with what they were taken of, and an
archived blob is :class:`~entrepot.core.errors.Corrupt` to whoever reads it. The MD5 that HEAD shows may be the
uploader's own invention (a page blob's is never checked), so :attr:`Head.digest` is always ``None``.

The libraries are the extra ``azure``: importing this module without them raises ``InvalidInput(invalid-setting)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from entrepot.core.errors import Conflict, InvalidInput, RetryLater

try:
    from azure.core import MatchConditions
    from azure.core.exceptions import HttpResponseError

    from entrepot_hub.adapters.buckets.azure_account import AzureAccount, note_headers
    from entrepot_hub.adapters.buckets.azure_errors import code_of, status_of, translation
except ImportError as error:
    raise InvalidInput(
        f"a container of Azure needs a library that is not installed: {error.name}",
        kind="invalid-setting",
        hint="Install entrepot[hub,azure]",
    ) from error

from entrepot_hub.adapters.buckets.answers import PATIENCE, word_of
from entrepot_hub.adapters.buckets.azure_settings import BINDS, AzureSettings
from entrepot_hub.adapters.buckets.credentials import AzureKey
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

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

#: The largest block blob in bytes that one PUT makes.
MAX_PUT: Final = 5000 << 20
#: Pages of Azure's that one page of ours may leap over, where a server does not begin a listing where it is asked to.
_MOST_PAGES: Final = 200
_LARGEST_PAGE: Final = 5000
_NOT_TOLD: Final = "only Azure's management interface tells"


class AzureBucket:
    """A container of an Azure storage account. See the interface for what it promises.

    ``binds`` is what Azure documents until :meth:`probe` has looked. ``clock`` gives unix seconds. ``token``: what gets
    an application's tokens, instead of its secret.
    """

    def __init__(
        self,
        settings: AzureSettings,
        *,
        name: str,
        clock: Callable[[], float] = time.time,
        token: TokenCredential | None = None,
    ) -> None:
        self.name = name
        self.prefix = settings.prefix
        self.binds = BINDS
        self._settings = settings
        self._clock = clock
        self._token = token
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix=f"bucket-{name}")
        self._account = AzureAccount(settings, clock, token)
        self._learned: dict[str, Any] = {}  # from writing and looking, for examine
        self._running: set[Future[Any]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"AzureBucket({self.name!r}, {self._settings!r})"

    @property
    def digest_kind(self) -> DigestKind:
        """As the interface says. It is a name only: Azure checks no SHA-256."""
        return "sha256"

    async def start(self) -> None:
        """See that the container is there, or make it if the settings say so, and that URLs can be signed.

        Raises ``InvalidInput(invalid-setting)`` for a container that is not there and for an account with a
        hierarchical namespace, where folders would pass for objects; ``Denied`` for wrong keys.
        """
        await self._run(self._start)

    async def probe(self, prefix: str = "", *, expiry: bool = True) -> Binds:
        """Try what the account enforces, under a scratch key below ``prefix``, and take it as :attr:`binds`."""
        # The hub may not reach its container under the name that nodes use.
        inner = AzureBucket(
            replace(self._settings, public_endpoint=None), name=self.name, clock=self._clock, token=self._token
        )
        try:
            binds = await probe_uploads(inner, prefix, expiry=expiry)
        finally:
            await inner.aclose()
        delete_if, replace_if = await self._run(self._try_conditions, scratch_key(prefix))
        self.binds = replace(binds, delete_if=delete_if, replace_if=replace_if)
        return self.binds

    async def examine(self) -> Facts:
        """As the interface says. Versioning and the tier of new blobs show only in what was written: ask after
        :meth:`probe`."""
        return await self._run(self._examine)

    async def sign_put(self, key: str, length: int, digest: bytes, expires: int) -> SignedRequest:
        """As the interface says, but that a taken key answers 403 or 409. I/O only where an application's key has to be
        fetched or renewed: that may raise what any request does. A blob has at most :data:`MAX_PUT` bytes."""
        check_put(key, length, digest, expires)
        if length > MAX_PUT:
            raise InvalidInput(f"Azure takes at most {MAX_PUT} bytes in one PUT, not {length}")
        headers = {"Content-Length": str(length), "If-None-Match": "*", "x-ms-blob-type": "BlockBlob"}
        return await self._sign("PUT", key, headers, expires)

    async def sign_get(self, key: str, etag: str | None, expires: int) -> SignedRequest:
        """As the interface says. The ``If-Match`` is not part of the signature: it guards the reader who sends it."""
        check_key(key)
        check_etag(etag)
        check_expires(expires)
        return await self._sign("GET", key, {} if etag is None else {"If-Match": f'"{etag}"'}, expires)

    async def head(self, key: str) -> Head | None:
        """As the interface says."""
        check_key(key)
        return await self._run(self._head, key)

    async def read(self, key: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """As the interface says; ``Corrupt`` for what its uploader sent to the archive."""
        check_key(key)
        check_etag(etag)
        check_range(offset, length)
        return await self._run(self._read, key, offset, length, etag)

    async def delete(self, key: str, etag: str | None = None) -> bool:
        """As the interface says, with all snapshots."""
        check_key(key)
        check_etag(etag)
        return await self._run(self._delete, key, etag)

    async def put_tombstone(self, key: str, etag: str | None = None) -> Head:
        """As the interface says, with all snapshots."""
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

    async def _sign(self, method: Method, key: str, headers: Mapping[str, str], expires: int) -> SignedRequest:
        end = self._clock() + expires
        signer = self._account.ready_signer()
        if signer is None:
            signer = await self._run(self._account.signer)
        last = int(min(end, signer[1]))  # the end of a signature has whole seconds
        url = f"{self._settings.public_base}/{key}?{self._account.signature(signer, method, key, last)}"
        return SignedRequest(method=method, url=url, headers=dict(headers), expires_at=float(last))

    # --- blocking halves, run in the bucket's threads -----------------------------------------------------

    def _start(self) -> None:
        container = self._account.container()
        try:
            container.get_container_properties()
        except HttpResponseError as error:
            if code_of(error) != "ContainerNotFound" or not self._settings.create:
                raise
            try:
                container.create_container()
            except HttpResponseError as late:
                if code_of(late) != "ContainerAlreadyExists":
                    raise
        if self._account.about().get("x-ms-is-hns-enabled", "").lower() == "true":
            raise InvalidInput(
                "the storage account has a hierarchical namespace, where folders would pass for objects",
                kind="invalid-setting",
                hint="Take an account without Data Lake Storage Gen2",
                bucket=self._settings.container,
            )
        if not isinstance(self._settings.credentials, AzureKey):
            self._account.signer()

    def _head(self, key: str) -> Head | None:
        try:
            found = self._account.blob(key).get_blob_properties()
        except HttpResponseError as error:
            if _is_absent(error):
                return None
            raise
        # Who writes a tier at all does so by name; else it is the account's.
        if found.blob_tier_inferred and found.blob_tier:
            self._learned["tier"] = str(found.blob_tier)
        return _as_head(found.size, found.etag, found.last_modified)

    def _read(self, key: str, offset: int, length: int, etag: str | None) -> bytes:
        if length == 0:
            return b""
        headers: dict[str, str] = {}
        answers = contextlib.ExitStack()

        def note(answer: Any) -> None:
            note_headers(headers, answer)
            answers.callback(answer.http_response.internal_response.close)

        try:
            data: bytes = (
                self._account.blob(key)
                .download_blob(offset, length, max_concurrency=1, raw_response_hook=note, **_condition(etag))
                .readall()
            )
        except Exception as error:
            answers.close()  # the library leaves open what it does not understand
            if isinstance(error, HttpResponseError) and status_of(error) == 416:
                return b""
            raise
        if headers.get("content-range", "").partition("/")[0] != f"bytes {offset}-{offset + len(data) - 1}":
            raise RetryLater("the account answers with another range", kind="bucket-unreachable", key=key)
        return data

    def _delete(self, key: str, etag: str | None) -> bool:
        try:
            self._account.blob(key).delete_blob(delete_snapshots="include", **_condition(etag))
        except HttpResponseError as error:
            if _is_absent(error) or (status_of(error) == 412 and self._head(key) is None):
                return False
            raise
        return True

    def _tombstone(self, key: str, etag: str | None) -> Head:
        before = self._head(key)
        if before is None or before.length > 0:
            if etag is not None and (before is None or before.etag != etag):
                raise Conflict("the object was replaced or removed", kind="changed", key=key)
            before = self._replaced(key, etag)
        # Whoever holds the PUT may have taken snapshots; those of a tombstone weigh nothing.
        try:
            self._account.blob(key).delete_blob(delete_snapshots="only")
        except HttpResponseError as error:
            if not _is_absent(error):
                raise
        return before

    def _replaced(self, key: str, etag: str | None) -> Head:
        try:
            return self._put(key, b"", overwrite=True, **_condition(etag))
        except HttpResponseError as error:
            # A repetition of a write whose answer was lost finds the etag gone, by its own doing.
            after = self._head(key) if status_of(error) in {404, 409, 412} else None
            if after is not None and after.length == 0:
                return after
            if code_of(error) != "BlobArchived":
                raise
        # What is archived cannot be replaced, only removed.
        self._delete(key, etag)
        return self._put(key, b"", overwrite=False)

    def _create(self, key: str, data: bytes) -> bool:
        try:
            self._put(key, data, overwrite=False)
        except HttpResponseError as error:
            if code_of(error) == "BlobAlreadyExists" or status_of(error) == 412:
                return False
            raise
        return True

    def _put(self, key: str, data: bytes, *, overwrite: bool, **options: Any) -> Head:
        answer = self._account.blob(key).upload_blob(
            data, length=len(data), overwrite=overwrite, max_concurrency=1, **options
        )
        self._learned["versioning"] = answer.get("version_id") is not None
        return _as_head(len(data), answer.get("etag"), answer.get("last_modified"))

    def _list(self, prefix: str, start_after: str | None, limit: int) -> Listing:
        # The account's own marks are its secret; it begins at a name, which it includes. Servers of older versions
        # begin at the beginning, so what is not asked for is left out here, by pages of the largest size.
        options: dict[str, Any] = {"start_from": start_after} if start_after else {}
        size, mark, last = limit + 1, None, ""
        for _ in range(_MOST_PAGES):
            pages = (
                self._account.container()
                .list_blobs(name_starts_with=prefix or None, results_per_page=size, response_format="xml", **options)
                .by_page(mark)
            )
            entries: list[Entry] = []
            taken = 0
            for found in next(pages, ()):
                name = _said(found.name, "a name")
                if name <= last:
                    raise InvalidInput("the account lists blobs in another order", kind="invalid-setting")
                if taken == limit:
                    return Listing(entries=tuple(entries), next=last)
                last = name
                if start_after is not None and name <= start_after:
                    continue
                taken += 1
                if is_key(name):
                    head = _as_head(found.size, found.etag, found.last_modified)
                    entries.append(Entry(key=name, length=head.length, etag=head.etag, modified=head.modified))
            mark = getattr(pages, "continuation_token", None)
            if taken or not mark:
                return Listing(entries=tuple(entries), next=last if mark else None)
            size = _LARGEST_PAGE
        raise RetryLater("the account does not list from where it is asked to", kind="bucket-unreachable")

    def _try_conditions(self, key: str) -> tuple[bool, bool]:
        """Whether a delete and a replacement under a wrong etag are refused, and under the right one are not."""

        def refused(call: Callable[[], object]) -> bool:
            try:
                call()
            except HttpResponseError as error:
                status = status_of(error)
                if status is not None and 400 <= status < 500:
                    return True
                raise
            return False

        wrong = "0x8000000000000"
        blob = self._account.blob(key)
        try:
            right = self._put(key, b"first", overwrite=True).etag
            replace_if = (
                refused(lambda: self._put(key, b"second", overwrite=True, **_condition(wrong)))
                and _etag(self._head(key)) == right
                and not refused(lambda: self._put(key, b"third", overwrite=True, **_condition(right)))
            )
            right = self._put(key, b"fourth", overwrite=True).etag
            delete_if = (
                refused(lambda: blob.delete_blob(**_condition(wrong)))
                and self._head(key) is not None
                and not refused(lambda: blob.delete_blob(**_condition(right)))
                and self._head(key) is None
            )
        finally:
            self._delete(key, None)
        return delete_if, replace_if

    def _examine(self) -> Facts:
        unknown = {"region": _NOT_TOLD, "lifecycle": _NOT_TOLD}
        facts: dict[str, Any] = {"public_write": False}  # Azure has no such thing
        with _asking(unknown, "object_lock", "public_read"):
            headers: dict[str, str] = {}
            sent = self._clock()
            found = self._account.container().get_container_properties(raw_response_hook=partial(note_headers, headers))
            facts["clock_skew"] = _skew(headers.get("date"), sent, self._clock())
            facts["public_read"] = found.public_access is not None
            facts["object_lock"] = bool(
                found.has_immutability_policy or found.has_legal_hold or found.immutable_storage_with_versioning_enabled
            )
        with _asking(unknown, "soft_delete", "cors"):
            service = self._account.service().get_service_properties()
            kept = service.get("delete_retention_policy")
            facts["soft_delete"] = float(kept.days or 0) * 86400 if kept is not None and kept.enabled else 0.0
            facts["cors"] = any(
                rule.allowed_origins and "GET" in str(rule.allowed_methods).upper()
                for rule in service.get("cors") or []
            )
        kind = self._account.about().get("x-ms-sku-name")
        words = [word for word in map(word_of, (kind, self._learned.get("tier"))) if word]
        facts["storage_class"] = " ".join(words) or None
        facts["versioning"] = self._learned.get("versioning")
        for name in ("storage_class", "versioning", "clock_skew"):
            if facts.get(name) is None:
                unknown.setdefault(name, "nothing has shown it yet: it is learned from what the probe writes")
        return Facts(**facts, unknown=unknown)

    def _end(self) -> None:
        self._threads.shutdown(wait=False)
        wait(tuple(self._running), timeout=PATIENCE)
        self._account.cut()
        if not wait(tuple(self._running), timeout=PATIENCE).not_done:
            self._threads.shutdown(wait=True)
            self._account.close()

    async def _run[**P, T](self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise RetryLater("the bucket is closed", kind="bucket-unreachable", bucket=self.name)
        call = partial(self._translated, partial(work, *args, **kwargs))
        running = self._threads.submit(call)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return await asyncio.wrap_future(running)

    def _translated[T](self, work: Callable[[], T]) -> T:
        with translation(self._settings.container):
            return work()


def _condition(etag: str | None) -> dict[str, Any]:
    """That the blob is still the one of this etag, as the library wants to be told."""
    return {} if etag is None else {"etag": f'"{etag}"', "match_condition": MatchConditions.IfNotModified}


def _is_absent(error: HttpResponseError) -> bool:
    """Whether it says that there is no such blob, in a container that is there."""
    return status_of(error) == 404 and code_of(error) != "ContainerNotFound"


@contextlib.contextmanager
def _asking(unknown: dict[str, str], *names: str) -> Any:
    """Questions whose refusal is itself an answer: these fields are not known, for that reason."""
    try:
        yield
    except HttpResponseError as error:
        status = status_of(error)
        if status is None or (status >= 500 and status != 501):
            raise
        reason = f"the account answers {status} {code_of(error)}".rstrip()
        unknown.update(dict.fromkeys(names, reason))


def _skew(date: str | None, sent: float, received: float) -> float | None:
    """The account's clock minus ours in seconds, within the whole seconds of a Date."""
    if date is None:
        return None
    # A date without fractions was half a second later on average.
    return email.utils.parsedate_to_datetime(date).timestamp() + 0.5 - (sent + received) / 2


def _as_head(length: int | None, etag: str | None, modified: datetime | None) -> Head:
    return Head(
        length=int(_said(length, "a length")),
        etag=_said(etag, "an etag").strip('"'),
        digest=None,
        modified=_said(modified, "a time").timestamp(),
    )


def _said[T](value: T | None, what: str) -> T:
    """What every answer of this kind has."""
    if value is None:
        raise RetryLater(
            f"what answers at the account's endpoint leaves out {what}",
            kind="bucket-unreachable",
            hint="Is it Azure Blob Storage?",
        )
    return value


def _etag(head: Head | None) -> str | None:
    return None if head is None else head.etag
