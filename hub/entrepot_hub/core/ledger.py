"""The hub's durable truth about objects: records, pure rules and the :class:`Ledger` that keeps them.

A ledger is a transactional store; the rules that decide are the pure functions of this module, so the SQL
ledger of production and the in-memory ledger of the simulator cannot disagree about them. Every method of
:class:`Ledger` is one transaction: it happens whole or not at all, and repeating it changes nothing more.

The invariant: for every channel, at every instant, the sum of :func:`charge` over its objects is at most its
quota. Bytes are charged when a grant is made and given back only when the key is known to hold nothing. Two things
alone take a channel beyond its quota, a lowered quota, and an object that somebody else deletes while a longer one can
still be put there: nothing that would need more is granted until it fits again.

Times are seconds since the epoch by the hub's clock and always passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from entrepot.core.identifiers import Opening
from entrepot_hub.core.pins import Pin, Pinned
from entrepot_hub.core.wishes import Front


class ObjectStatus(StrEnum):
    """What the hub knows about one key of the bucket."""

    ABSENT = "absent"
    RESERVED = "reserved"  # granted at least once: something may land
    READY = "ready"  # looked at and found as granted
    EVICTING = "evicting"  # leaving: still charged, no longer handed out
    TOMBSTONE = "tombstone"  # a 0-byte object holds the key against a late PUT


class GrantStatus(StrEnum):
    """The life of one grant. OFFERED and ACCEPTED are live: at most one live grant per object."""

    OFFERED = "offered"
    ACCEPTED = "accepted"
    DONE = "done"
    FAILED = "failed"
    LAPSED = "lapsed"
    CANCELLED = "cancelled"


#: The reason of a grant whose object turned out to be bad.
BAD_OBJECT = "bad-object"

LIVE = frozenset({GrantStatus.OFFERED, GrantStatus.ACCEPTED})


#: Where an object stands among those of one lock, in the order of their keys: stream, number.
type Place = tuple[bytes, int]


@dataclass(frozen=True, slots=True, order=True)
class ObjectRef:
    """One object of one stream in one channel under one schema lock."""

    channel: str
    lock: bytes
    stream: bytes
    number: int


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """What is known of an object. ``size`` is its length in the bucket; ``put_until`` the last instant at which
    a signed PUT may begin (0.0: none was ever signed); ``tombstone`` says that a 0-byte object lies at the key."""

    ref: ObjectRef
    status: ObjectStatus
    size: int = 0
    digest: bytes | None = None
    etag: str | None = None
    put_until: float = 0.0
    tombstone: bool = False
    used_at: float = 0.0
    uploader: str | None = None


@dataclass(frozen=True, slots=True)
class GrantRecord:
    """The hub's permission for one session of one node to upload one object."""

    grant: bytes
    ref: ObjectRef
    node: str
    session: str
    status: GrantStatus
    length: int
    digest: bytes | None
    lease_until: float
    put_until: float
    granted_at: float
    accepted_at: float = 0.0
    sent: int = 0  # bytes reported so far
    sent_at: float = 0.0  # when the lease was last renewed by growing bytes
    reason: str | None = None  # kind of the error that ended it
    transfer: bytes | None = None  # the get that it was made for first of all


@dataclass(frozen=True, slots=True)
class ObjectView:
    """An object and its live grant, if any."""

    record: ObjectRecord
    grant: GrantRecord | None = None


@dataclass(frozen=True, slots=True)
class WantOrder:
    """What one node asks for. ``ranges`` are inclusive pairs of object numbers in the order of wish, ``window``
    how many objects from their front it wants now. ``keep``: still wanted when the asker is gone. ``transfer``: what
    the node calls this get."""

    channel: str
    lock: bytes
    stream: bytes
    node: str
    ranges: tuple[tuple[int, int], ...]
    window: int
    until: float
    keep: bool = False
    transfer: bytes | None = None


@dataclass(frozen=True, slots=True)
class WantRecord:
    """A kept want. ``heard_at``: when its node last said so."""

    order: WantOrder
    created_at: float
    heard_at: float


@dataclass(frozen=True, slots=True)
class HolderRecord:
    """A node that said it holds a stream, its name, and when it last said so."""

    node: str
    name: str
    seen_at: float


@dataclass(frozen=True, slots=True)
class WantView:
    """The answer to a want: the opening if known, the asked objects in their order, and which objects of the whole
    stream are in the bucket or on their way, as inclusive ascending ranges (at most 64 each)."""

    opening: Opening | None
    objects: tuple[ObjectView, ...]
    ready: tuple[tuple[int, int], ...]
    uploading: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A grant that the hub would like to make, for the sake of this transfer."""

    ref: ObjectRef
    grant: bytes
    node: str
    session: str
    size: int
    lease_until: float
    transfer: bytes | None = None


class Refusal(StrEnum):
    """Why a proposal came to nothing."""

    HELD = "held"  # another grant is live
    READY = "ready"  # the object is there already
    BUSY = "busy"  # it is just being evicted
    OVER = "over"  # no room under the quota


@dataclass(frozen=True, slots=True)
class GrantOutcome:
    """What became of a proposal: ``grant`` (the new one; the live one for HELD), or a refusal. ``short``: bytes
    missing under the quota, for OVER."""

    proposal: Proposal
    grant: GrantRecord | None
    refusal: Refusal | None = None
    short: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What a look into the bucket found at a key."""

    length: int
    etag: str
    digest: bytes | None


@dataclass(frozen=True, slots=True)
class Usage:
    """A channel's account in bytes: ``charged`` = ``stored`` (ready or leaving) + ``reserved``."""

    quota: int
    charged: int
    stored: int
    reserved: int
    objects: int


# -- pure rules ------------------------------------------------------------------------------------------------


def charge(record: ObjectRecord) -> int:
    """Bytes that the object counts against the quota."""
    charged = {ObjectStatus.RESERVED, ObjectStatus.READY, ObjectStatus.EVICTING}
    return record.size if record.status in charged else 0


def judge(
    proposal: Proposal, record: ObjectRecord | None, live: GrantRecord | None, free: int
) -> tuple[Refusal | None, int]:
    """Whether a proposal may become a grant, and the bytes that it newly charges (or lacks, for OVER).

    ``free`` is quota − charged. An object that is already RESERVED keeps its reservation: a successor's grant
    charges nothing again.
    """
    if live is not None and live.status in LIVE:
        return Refusal.HELD, 0
    status = ObjectStatus.ABSENT if record is None else record.status
    if status is ObjectStatus.READY:
        return Refusal.READY, 0
    if status is ObjectStatus.EVICTING:
        return Refusal.BUSY, 0
    held = 0 if record is None else charge(record)
    more = max(proposal.size - held, 0)
    if more > 0 and more > free:
        return Refusal.OVER, more - max(free, 0)
    return None, more


def renewed(grant: GrantRecord, sent: int, now: float, lease: float, floor: float) -> GrantRecord:
    """The grant after a progress report: the lease is renewed by growing bytes above ``floor`` bytes/s since the
    last renewal, and never past the end of the PUT URL. Fewer bytes than before or more than the object change
    nothing."""
    if grant.status is not GrantStatus.ACCEPTED or not grant.sent < sent <= grant.length:
        return grant
    since = max(now - max(grant.sent_at, grant.accepted_at), 0.0)
    if sent < grant.length and sent - grant.sent < floor * since:
        return grant
    return replace(grant, sent=sent, sent_at=now, lease_until=min(now + lease, grant.put_until))


def matching(found: Found, grants: Iterable[GrantRecord], now: float, grace: float) -> list[GrantRecord]:
    """The unexpired grants that a found object answers to: same length, and same digest where the bucket shows one.

    Live grants come first. A grant is unexpired until ``grace`` seconds after its PUT URL can last be used; only
    one that was accepted (so that a URL exists) counts, and none whose object was condemned.
    """
    able = [
        g
        for g in grants
        if g.digest is not None
        and g.reason != BAD_OBJECT
        and g.put_until > 0
        and now <= g.put_until + grace
        and g.length == found.length
        and (found.digest is None or found.digest == g.digest)
    ]
    able.sort(key=lambda g: (g.status not in LIVE, -g.granted_at))
    return able


def may_land(record: ObjectRecord, now: float, grace: float) -> bool:
    """Whether a PUT with a URL that was signed for this key could still put something there."""
    return record.put_until > 0 and now <= record.put_until + grace


class Ledger(Protocol):
    """The exchange's durable truth. Synchronous: callers run it off the event loop. Thread-safe by transactions.

    Unknown channels raise NotFound (no-such-channel). A database that is locked or gone raises RetryLater.
    """

    # wants and holders
    def want(self, order: WantOrder, numbers: Sequence[int], read_until: float, now: float) -> WantView:
        """Keep or renew the want of (channel, stream, node) and look up ``numbers``. Ready ones get a read lease for
        the node until ``read_until``, are marked used, and are visited where it was not reading them already; its
        leases on other objects of the stream end, for it does not want them now. An earlier ``created_at`` is kept."""

    def unwant(self, channel: str, stream: bytes, node: str) -> bool:
        """Forget the want and the node's read leases of the stream. False: there was none."""

    def wants(self, channel: str, stream: bytes, now: float) -> list[WantRecord]:
        """All wants of one stream with ``until`` after ``now``, oldest first."""

    def open_wants(self, now: float, channel: str | None, after: int, limit: int) -> list[tuple[int, WantRecord]]:
        """A page of wants still open, in order of a growing cursor: rows with cursor > ``after``."""

    def learn(self, channel: str, stream: bytes, opening: Opening) -> None:
        """Remember a stream's opening (already proved against its id)."""

    def opening(self, channel: str, stream: bytes) -> Opening | None:
        """The opening, if known in this channel."""

    def hold(self, channel: str, streams: Sequence[tuple[bytes, Opening]], node: str, now: float) -> None:
        """The node says it holds these streams; learns their openings too."""

    def unhold(self, channel: str, stream: bytes, node: str) -> None:
        """The node no longer holds the stream."""

    def holders(self, channel: str, stream: bytes, limit: int = 32) -> list[HolderRecord]:
        """Who said they hold it, latest first; members whose right to provide was revoked are left out."""

    def thin_holders(self, channel: str, of_member: int, of_channel: int, limit: int = 10_000) -> int:
        """Forget, by :func:`~entrepot_hub.core.holdings.kept`, what is too much of who holds what: of each member what
        it said longest ago. At most ``limit``; how many."""

    def forget_absent(self, before: float, limit: int = 10_000) -> int:
        """Forget what was said to be held before ``before`` by nodes that were not heard since then. At most ``limit``;
        how many."""

    def forget_streams(self, channel: str, after: bytes, limit: int = 1000) -> tuple[int, bytes | None]:
        """Forget the openings of streams that nobody holds or wants, that are not pinned and of whose objects nothing
        is known: among the ``limit`` streams that follow ``after``. How many, and where to go on (None: at the end)."""

    # grants
    def grant(self, proposals: Sequence[Proposal], now: float) -> list[GrantOutcome]:
        """Judge proposals in order, in one transaction, by :func:`judge`; charge and keep what is granted."""

    def accept(
        self,
        grant: bytes,
        node: str,
        digest: bytes,
        lease_until: float,
        put_until: float,
        now: float,
        length: int | None = None,
    ) -> ObjectView:
        """OFFERED → ACCEPTED with the digest and the end of its PUT URL (also kept on the object, never lowered).
        ``length``: the object's, at most that of the grant, which shrinks to it; so does the object's reservation,
        as far as no other grant's PUT may put something longer there. Repeating it with the same digest and length
        changes nothing; raises Conflict (stale-grant) when the grant is not live, not this node's, lapsed by ``now``,
        or had another digest or length."""

    def progress(self, grant: bytes, node: str, sent: int, lease: float, floor: float, now: float) -> GrantRecord:
        """Apply :func:`renewed`. Raises Conflict (stale-grant) as :meth:`accept`."""

    def end_grant(self, grant: bytes, status: GrantStatus, reason: str | None, now: float) -> GrantRecord | None:
        """A live grant ends as FAILED, LAPSED or CANCELLED; None if it was not live. The reservation stays."""

    def find_grant(self, grant: bytes) -> GrantRecord | None:
        """The grant, live or not."""

    def lapse(self, now: float, limit: int = 1000) -> list[GrantRecord]:
        """End as LAPSED every live grant whose lease is over; return them."""

    def uploading(self, sessions: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of these sessions (node, session) that have live grants."""

    def shorten(self, node: str, session: str, lease_until: float, now: float) -> list[GrantRecord]:
        """The session disconnected: its live grants' leases end at ``lease_until`` if that is sooner."""

    def restore(self, node: str, session: str, lease_until: float, now: float) -> list[GrantRecord]:
        """The session is back: its live grants' leases are at least ``lease_until`` again (never past the URL)."""

    # what lies in the bucket
    def view(self, ref: ObjectRef) -> ObjectView:
        """The object (ABSENT when nothing is known) and its live grant."""

    def settle(self, ref: ObjectRef, found: Found | None, now: float, grace: float) -> ObjectView | None:
        """Take in what a look found. A match by :func:`matching` → READY (with its size, etag, uploader; that grant
        DONE, any other live one CANCELLED). Already READY with this etag: unchanged. Found but matching nothing →
        None: the caller deletes it (conditionally) and calls again with None. A 0-byte find where the record says
        ``tombstone`` counts as nothing there.

        With ``found=None``: READY → RESERVED if :func:`may_land`, else ABSENT; RESERVED without live grant → ABSENT
        (released) unless it may land; RESERVED with a live grant stays. A tombstone that was seen where there is one
        keeps everything from landing: RESERVED without live grant → TOMBSTONE. Returns the new view."""

    def adopt(self, ref: ObjectRef, found: Found, opening: Opening, now: float) -> ObjectView | None:
        """An object that nobody here knows was found in the bucket and proved by its header: it is READY from now on,
        charged, without an uploader, and its stream's opening is known. None, and nothing changed, where the object is
        not ABSENT or there is no room."""

    def charted(
        self, channel: str, lock: bytes, after: Place | None, through: Place | None, limit: int = 1000
    ) -> list[ObjectView]:
        """What should lie in the bucket under a lock, in the order of its keys, with live grants: after one place, up
        to and with another. ABSENT objects are left out."""

    def clear_tombstone(self, ref: ObjectRef, now: float) -> None:
        """The 0-byte object at the key was deleted: TOMBSTONE → ABSENT, on RESERVED only the flag goes."""

    def stale(self, now: float, grace: float, limit: int = 100, channel: str | None = None) -> list[ObjectRecord]:
        """What wants looking after, in one channel or (None) in all: RESERVED without live grant that can no longer
        land (or was never accepted, or lies over a tombstone), EVICTING ones, tombstones that can go. Nothing where the
        channel is unknown."""

    def evict_begin(
        self,
        channel: str,
        need: int,
        now: float,
        grace: float,
        limit: int = 64,
        *,
        wish: int = 0,
        head: Front | None = None,
        stalled: Collection[Front] = (),
    ) -> list[ObjectRecord]:
        """Choose READY objects worth at least ``need`` bytes by :func:`~entrepot_hub.core.eviction.choose`,
        none with a live read lease and none of a pinned stream; mark them EVICTING; return them, or mark nothing and
        return [] when all together would not free a single byte.

        Objects that no active want lacks go first, of these up to ``wish`` bytes if that is more; then, for ``need``
        alone, those that are needed last. ``head``: the reader's front that the room is for; what another reader has
        only just been able to read stays then, and leases end that must give way to it
        (:func:`~entrepot_hub.core.wishes.yielding`). ``stalled``: readers that had their time and got nothing; their
        leases end too."""

    def condemn(self, ref: ObjectRef, etag: str | None, now: float) -> ObjectRecord | None:
        """READY (with this etag, if given) → EVICTING: it is bad and leaves next, and the grant that it came by is no
        longer one that anything at the key answers to. None: not READY."""

    def evict_end(self, ref: ObjectRef, tombstone: bool, now: float) -> None:
        """An EVICTING object is known to be gone: TOMBSTONE or ABSENT; its bytes are free."""

    def got(self, channel: str, stream: bytes, node: str, numbers: Sequence[int], now: float) -> None:
        """The node verified these objects: its read leases on them end."""

    def lend(self, refs: Sequence[ObjectRef], nodes: Sequence[str], until: float, now: float) -> None:
        """Read leases on ready objects for nodes that are about to be told a URL."""

    def summary(self, channel: str, stream: bytes, lock: bytes) -> tuple[int, int]:
        """(objects, bytes) of a stream that are READY."""

    def usage(self, channel: str) -> Usage:
        """The channel's account."""

    def pin(self, channel: str, pin: Pin, reserve: int) -> Pinned:
        """Keep a stream's objects in the bucket: none is evicted from now on. Repeating it changes its kind at most.

        A stream counts as long as it is, or as what of it lies in the bucket if that is more. Raises NotFound
        (no-such-stream) for one that the channel does not know, RetryLater (over-quota) where less than ``reserve``
        bytes of the quota would be left for everything else."""

    def unpin(self, channel: str, stream: bytes, actor: str, now: float) -> bool:
        """The stream's objects may be evicted again. False: it was not pinned."""

    def pins(self, channel: str) -> list[Pinned]:
        """All pins of the channel, oldest first."""

    def strike(self, channel: str, node: str, reason: str, now: float) -> int:
        """Note a misbehaviour of a node; how many it has in the last hour."""

    def prune(self, before: float, limit: int = 10_000) -> int:
        """Forget what no longer matters: wants and read leases that were over, grants that had ended and could not
        land, and absent objects without grants, all before ``before``. At most ``limit`` of each kind; how many."""
