"""What a bucket is to the hub: one interface, and the promises every driver keeps.

The hub holds the bucket's credentials and never moves bulk bytes itself: it signs one URL per upload and per
download, looks at what arrived, and makes room again. Nodes speak plain HTTP to the signed URLs.

Promises of every driver, held by one suite (``tests/contract/buckets``):

- **Visible whole or not at all.** An object appears under its key when all its bytes are there. Where a
  provider does not hold that, :attr:`Binds.length` is false and :meth:`Bucket.head` shows the length that did
  arrive.
- **What is bound is stated.** :class:`Binds` says what the provider enforces on a signed PUT. A driver starts
  with what its provider documents; :func:`entrepot_hub.adapters.buckets.probe.probe_uploads` finds out what
  is true.
- **Repeating is safe.** ``head``, ``read`` and ``list`` change nothing; ``delete`` of what is absent is
  ``False``; ``put_tombstone`` over a tombstone returns that tombstone; ``create`` that lost its answer says
  ``False`` next time.
- **An etag names one content at one key.** Whatever replaces an object has another etag.
- **Only our errors.** :class:`~entrepot.core.errors.RetryLater` (``bucket-unreachable``, ``busy``,
  ``disk-full``), :class:`~entrepot.core.errors.Denied`, :class:`~entrepot.core.errors.Corrupt` (an object that its
  uploader put out of reach), :class:`~entrepot.core.errors.NotFound`
  (``no-such-object``), :class:`~entrepot.core.errors.Conflict` (``exists``, ``changed``),
  :class:`~entrepot.core.errors.InvalidInput` (``invalid-key``, ``invalid-setting``). None of a library's.
- **Never on the event loop.** Blocking work runs in a bounded pool of threads that belongs to the bucket.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, Protocol, Self

from entrepot.core.errors import InvalidInput
from entrepot.core.keys import OWNER_MARK

type Method = Literal["PUT", "GET"]

#: How a provider checks and shows what was uploaded: by SHA-256 (32 bytes) or, where it knows nothing better, by MD5
#: (16 bytes). It guards a grant against being used for other bytes; what an object is, its Merkle nodes prove.
type DigestKind = Literal["sha256", "md5"]

#: Bytes of a digest of each kind.
DIGEST_LENGTH: Final[Mapping[str, int]] = {"sha256": 32, "md5": 16}

#: The longest key in characters. S3 takes 1,024; a file system's path is the shorter limit.
MAX_KEY: Final = 640
#: The longest segment of a key in characters, as on most file systems.
MAX_SEGMENT: Final = 200
#: The longest life of a signed URL in seconds: SigV4's seven days.
MAX_EXPIRES: Final = 7 * 24 * 3600
#: The most bytes that :meth:`Bucket.read` returns and :meth:`Bucket.create` takes: the hub looks, it does not
#: move.
MAX_READ: Final = 64 << 20
#: The most entries of one page of :meth:`Bucket.list`.
MAX_PAGE: Final = 1000
#: The largest object in bytes that one signed PUT can carry, as on S3.
MAX_OBJECT: Final = 5 << 30

_SEGMENT = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*")
_PREFIX = re.compile(r"[A-Za-z0-9._~/-]*")
_ETAG = re.compile(r"[\x21\x23-\x7e]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binds:
    """What the provider enforces on a signed PUT, and what it shows afterwards.

    ``length``: a PUT of another number of bytes is refused and nothing of it becomes visible.
    ``digest``: a PUT of other bytes is refused.
    ``create_only``: a PUT onto a key that is taken (by a tombstone too) is refused, whoever comes first.
    ``expiry``: a PUT begun after the URL's end is refused.
    ``head_digest``: :attr:`Head.digest` is there for every object that came through a signed PUT, and true.
    (Some servers repeat what the uploader claimed; then it is ``None``.)
    ``get_if``: a signed GET with an etag gives that content or fails; where false the reader has to compare
    the ``ETag`` of the answer.
    ``delete_if`` and ``replace_if``: the etag given to :meth:`Bucket.delete` and :meth:`Bucket.put_tombstone`
    is compared by the provider in one step with the change; where false the driver looks and then acts, and a
    write in between is lost.
    """

    length: bool
    digest: bool
    create_only: bool
    expiry: bool
    head_digest: bool
    get_if: bool
    delete_if: bool
    replace_if: bool

    def __and__(self, other: Binds) -> Binds:
        """Only what both claim."""
        return Binds(
            length=self.length and other.length,
            digest=self.digest and other.digest,
            create_only=self.create_only and other.create_only,
            expiry=self.expiry and other.expiry,
            head_digest=self.head_digest and other.head_digest,
            get_if=self.get_if and other.get_if,
            delete_if=self.delete_if and other.delete_if,
            replace_if=self.replace_if and other.replace_if,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """A request that whoever holds it may make, once or often, until ``expires_at`` (unix seconds).

    ``headers`` must be sent exactly as they are (``Content-Length`` of a PUT among them); the client may add
    ``Range`` and, to a PUT, ``Content-Type``. The URL is a capability: ``repr`` shows neither query nor
    headers.
    """

    method: Method
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One object as the bucket shows it: ``length`` in bytes, ``etag`` without quotes, ``modified`` in unix
    seconds.

    ``digest`` is that of the whole object, of the bucket's :attr:`Bucket.digest_kind`, as the provider computed it;
    ``None`` where it shows none.
    """

    length: int
    etag: str
    digest: bytes | None
    modified: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a listing: as :class:`Head`, without a digest."""

    key: str
    length: int
    etag: str
    modified: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A page of a listing in ascending order of keys. ``next`` is the ``start_after`` of the next page or
    ``None``."""

    entries: tuple[Entry, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """How a bucket is set up at its provider, as far as it can be learned; ``None`` is always "not known".

    ``region``: where it really is. ``versioning``: replaced and deleted objects are kept (and billed) as versions.
    ``soft_delete``: seconds for which deleted objects are kept and billed, 0.0 for none. ``object_lock``: objects may
    be locked against deletion by default. ``lifecycle``: rules that would remove or move objects of ours, each in
    words; an empty tuple means that there are none. ``storage_class``: where new objects land, in the provider's words.
    ``cors``: browsers of other origins may read. ``public_read`` and ``public_write``: anybody may, without a
    signature. ``clock_skew``: the provider's clock minus the hub's, in seconds. ``unknown``: what could not be learned
    (the name of a field above) and why, for example the permission that is lacking.
    """

    region: str | None = None
    versioning: bool | None = None
    soft_delete: float | None = None
    object_lock: bool | None = None
    lifecycle: tuple[str, ...] | None = None
    storage_class: str | None = None
    cors: bool | None = None
    public_read: bool | None = None
    public_write: bool | None = None
    clock_skew: float | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)


class Bucket(Protocol):
    """A place for immutable objects. Keys are whole keys: the bucket adds no prefix of its own.

    ``name`` is the hub's name for it, ``prefix`` what its owner wants keys to begin with ("" or "a/b", for
    :func:`entrepot.core.keys.object_key`), ``binds`` what it enforces, ``digest_kind`` the digest that
    :meth:`sign_put` takes and :meth:`head` shows. Constructing one does no I/O.
    Every method may raise ``RetryLater(bucket-unreachable | busy)``, ``Denied`` and
    ``InvalidInput(invalid-key)``.
    """

    name: str
    prefix: str
    binds: Binds

    @property
    def digest_kind(self) -> DigestKind:
        """The digest that a PUT names."""
        ...

    async def start(self) -> None:
        """Make ready: look whether the place exists, sweep what a crash left behind. Idempotent."""
        ...

    async def probe(self, prefix: str = "", *, expiry: bool = True) -> Binds:
        """Try with scratch objects below ``prefix`` what is enforced; the result becomes :attr:`binds`.

        A few seconds, three of them for ``expiry``. Leaves nothing behind. Raises what a good upload raises.
        """
        ...

    async def examine(self) -> Facts:
        """Ask the provider how the bucket is set up.

        Changes nothing, but for a scratch object that anybody may write, which is removed again. What the provider will
        not tell stands in :attr:`Facts.unknown`. Raises only what keeps every question from being asked
        (``bucket-unreachable``).
        """
        ...

    async def sign_put(self, key: str, length: int, digest: bytes, expires: int) -> SignedRequest:
        """Permission to create ``key`` with ``length`` bytes whose digest (of :attr:`digest_kind`) is ``digest``, for
        ``expires`` seconds, or less: a URL dies with the temporary credentials that signed it, so it is signed for no
        longer than they live (see :attr:`SignedRequest.expires_at`).

        No I/O, no promise about the bucket: the PUT itself answers 412 where the key is taken. A create-only
        PUT whose answer was lost also finds the key taken; compare :meth:`head` before believing in a
        conflict.
        """
        ...

    async def sign_get(self, key: str, etag: str | None, expires: int) -> SignedRequest:
        """Permission to read ``key``, whole or by single ranges, for ``expires`` seconds. No I/O.

        With an ``etag`` only that content: once it was replaced the GET answers 412 (or 404 when it is gone).
        """
        ...

    async def head(self, key: str) -> Head | None:
        """The object as it stands, ``None`` if there is none."""
        ...

    async def read(self, key: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """Exactly the bytes [offset, offset + length), fewer only at the object's end. At most
        :data:`MAX_READ`.

        Raises ``NotFound(no-such-object)``, and ``Conflict(changed)`` when it is not the content of ``etag``.
        """
        ...

    async def delete(self, key: str, etag: str | None = None) -> bool:
        """Remove the object: ``True``; ``False`` if there was none. ``Conflict(changed)`` if it is not
        ``etag``."""
        ...

    async def put_tombstone(self, key: str, etag: str | None = None) -> Head:
        """Replace the object by one of 0 bytes, atomically, so that create-only still refuses a late PUT.

        Without an ``etag`` whatever is there, or nothing, is replaced. With one, ``Conflict(changed)`` if
        another content or nothing is there. Where a tombstone stands already it is returned: repeating is
        safe.
        """
        ...

    async def create(self, key: str, data: bytes) -> bool:
        """Write a small object where there is none: ``True``; ``False``, nothing changed, if the key is
        taken.

        A try whose answer was lost may be repeated by the driver and then finds its own write. A lost answer
        raises ``RetryLater``; the next try may then be refused by one's own first one: on ``False`` read what
        is there.
        """
        ...

    async def list(self, prefix: str, start_after: str | None = None, limit: int = MAX_PAGE) -> Listing:
        """The keys that begin with ``prefix`` and sort after ``start_after``, at most ``limit`` of them.

        Sorted by the bytes of the key. Pages are not a snapshot: what changes meanwhile may or may not show.
        """
        ...

    async def aclose(self) -> None:
        """Let go of threads and connections. Idempotent; signed URLs outlive it."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_key(key: str) -> str:
    """The key, if it is one: segments of ``[A-Za-z0-9._~-]`` joined by single slashes.

    A segment does not begin with a dot (so neither ``.`` nor ``..`` is one), the owner's mark ``.entrepot``
    excepted.
    That is every key that entrepot derives; it needs no escaping in a URL, a path or an XML listing.
    Raises ``InvalidInput(invalid-key)``.
    """
    if not 0 < len(key) <= MAX_KEY:
        raise InvalidInput(f"a key has 1 to {MAX_KEY} characters", kind="invalid-key", length=len(key))
    for segment in key.split("/"):
        if segment == OWNER_MARK:
            continue
        if len(segment) > MAX_SEGMENT or not _SEGMENT.fullmatch(segment):
            raise InvalidInput(
                "a key is made of segments of letters, digits and . _ ~ -, none of them empty, too long or "
                f"beginning with a dot: {key[:100]!a}",
                kind="invalid-key",
            )
    return key


def is_key(text: str) -> bool:
    """Whether :func:`check_key` takes it."""
    try:
        check_key(text)
    except InvalidInput:
        return False
    return True


def check_prefix(prefix: str) -> str:
    """The prefix of a listing, if keys could begin with it. Raises ``InvalidInput(invalid-key)``."""
    if len(prefix) > MAX_KEY or not _PREFIX.fullmatch(prefix):
        raise InvalidInput(f"no key begins with {prefix[:100]!a}", kind="invalid-key")
    return prefix


def check_etag(etag: str | None) -> str | None:
    """The etag, if it is one: 1 to 200 visible ASCII characters without a quote, so fit for a header."""
    if etag is not None and not _ETAG.fullmatch(etag):
        raise InvalidInput(f"not an etag: {etag[:100]!a}", kind="invalid-input")
    return etag


def check_put(key: str, length: int, digest: bytes, expires: int, kind: DigestKind = "sha256") -> None:
    """The arguments of ``sign_put``. Raises ``InvalidInput``."""
    check_key(key)
    check_expires(expires)
    if not 0 <= length <= MAX_OBJECT:
        raise InvalidInput(f"an object has 0 to {MAX_OBJECT} bytes, not {length}")
    if len(digest) != DIGEST_LENGTH[kind]:
        raise InvalidInput(f"a digest of kind {kind} has {DIGEST_LENGTH[kind]} bytes, not {len(digest)}")


def check_expires(expires: int) -> int:
    """The life of a signed URL in seconds. Raises ``InvalidInput``."""
    if not 1 <= expires <= MAX_EXPIRES:
        raise InvalidInput(f"a signed URL lives 1 to {MAX_EXPIRES} seconds, not {expires}")
    return expires


def check_range(offset: int, length: int) -> None:
    """The arguments of ``read``. Raises ``InvalidInput``."""
    if offset < 0 or not 0 <= length <= MAX_READ:
        raise InvalidInput(f"not a range to read: {length} bytes at {offset}; the most is {MAX_READ} bytes")


def check_limit(limit: int) -> int:
    """The size of a page. Raises ``InvalidInput``."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInput(f"a page has 1 to {MAX_PAGE} entries, not {limit}")
    return limit
