"""Who may do what: channels, nodes, members, invites and the log of changes, as plain records.

A **right** is one word such as ``request:files``. A member's :class:`Rights` are a set of them, written as
text in invites, on the command line and in the database.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from entrepot.core.errors import InvalidInput
from entrepot.core.identifiers import StreamKind
from entrepot.core.lock import SchemaLock
from entrepot.core.rights import SHORT_RIGHTS

_CHANNEL_NAME = re.compile(r"[a-z0-9]{1,32}")
_MAX_NODE_NAME = 64
#: Who acts in the audit log and in what the hub says, besides nodes.
RESERVED: Final = frozenset({"admin", "the admin", "hub", "the hub"})
_MAX_RIGHTS_TEXT = 400


class Right(StrEnum):
    """One thing a member may do. The order of declaration is the order in which rights are printed."""

    REQUEST_FILES = "request:files"
    REQUEST_FEEDS = "request:feeds"
    REQUEST_RESULTS = "request:results"
    PROVIDE_FILES = "provide:files"
    PROVIDE_FEEDS = "provide:feeds"
    PROVIDE_RESULTS = "provide:results"
    READ = "read"
    OWNER = "owner"
    KEEPER = "keeper"
    WORKER = "worker"


_ORDER: Final = {right: place for place, right in enumerate(Right)}
_SHORT: Final = {short: Right(long) for short, long in SHORT_RIGHTS.items()}
_REQUEST: Final = {
    StreamKind.FILE: Right.REQUEST_FILES,
    StreamKind.TREE: Right.REQUEST_FILES,
    StreamKind.FEED: Right.REQUEST_FEEDS,
    StreamKind.RESULT: Right.REQUEST_RESULTS,
}
_PROVIDE: Final = {
    StreamKind.FILE: Right.PROVIDE_FILES,
    StreamKind.TREE: Right.PROVIDE_FILES,
    StreamKind.FEED: Right.PROVIDE_FEEDS,
    StreamKind.RESULT: Right.PROVIDE_RESULTS,
}


@dataclass(frozen=True, slots=True)
class Rights:
    """A set of rights. An owner may do everything with the channel's data; the two classes (keeper, worker)
    say what a node is for and permit nothing by themselves."""

    granted: frozenset[Right] = frozenset()

    @classmethod
    def of(cls, rights: Iterable[Right]) -> Self:
        """The set of these rights."""
        return cls(frozenset(rights))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Rights from comma-separated words; ``request`` and ``provide`` alone mean files.

        Raises :class:`InvalidInput` for an unknown word, a repeated comma or no right at all.
        """
        if len(text) > _MAX_RIGHTS_TEXT:
            raise InvalidInput("the list of rights is too long")
        found: set[Right] = set()
        for part in text.split(","):
            word = part.strip()
            if word in _SHORT:
                found.add(_SHORT[word])
                continue
            try:
                found.add(Right(word))
            except ValueError:
                known = ", ".join([*_SHORT, *Right])
                raise InvalidInput(f"{word!r} is no right", hint=f"Rights are: {known}", right=word) from None
        return cls(frozenset(found))

    def __str__(self) -> str:
        ordered: list[Right] = sorted(self.granted, key=_ORDER.__getitem__)
        return ",".join(ordered)

    def __contains__(self, right: object) -> bool:
        return right in self.granted

    def __bool__(self) -> bool:
        return bool(self.granted)

    def __or__(self, other: Rights) -> Rights:
        return Rights(self.granted | other.granted)

    @property
    def owns(self) -> bool:
        """May change the channel: its members, invites and quota."""
        return Right.OWNER in self.granted

    def may_request(self, kind: StreamKind) -> bool:
        """May ask other nodes for streams of this kind."""
        return self.owns or _REQUEST[kind] in self.granted

    def may_provide(self, kind: StreamKind) -> bool:
        """May offer and upload streams of this kind."""
        return self.owns or _PROVIDE[kind] in self.granted

    @property
    def may_request_any(self) -> bool:
        """May ask other nodes for streams of some kind."""
        return self.owns or not self.granted.isdisjoint(_REQUEST.values())

    @property
    def may_provide_any(self) -> bool:
        """May offer streams of some kind."""
        return self.owns or not self.granted.isdisjoint(_PROVIDE.values())

    @property
    def may_read(self) -> bool:
        """May fetch what the bucket already has. Whoever may request may also read."""
        return Right.READ in self.granted or self.may_request_any


def provide_right(kind: StreamKind) -> Right:
    """The right that :meth:`Rights.may_provide` looks for."""
    return _PROVIDE[kind]


class NodeStatus(StrEnum):
    """A suspended node keeps its memberships and can do nothing with them."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class BucketRecord:
    """Where a channel's objects lie. ``url`` holds no secret; ``credentials`` are sealed (see ``sealing``)."""

    id: int
    url: str
    prefix: str
    binds: Mapping[str, bool]
    credentials: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class BucketKey:
    """A key that a bucket has or had, without the key: ``label`` is the part of it that is no secret. ``used_at``: when
    it was last opened. A retired one is needed at the provider until ``safe_at``, when the last URL that it signed is
    over."""

    label: str
    set_at: float
    set_by: str
    used_at: float | None = None
    retired_at: float | None = None
    safe_at: float | None = None


@dataclass(frozen=True, slots=True)
class Channel:
    """A bucket, a quota in bytes and a schema lock under a name that is unique at this hub.

    ``charged`` is what the channel's objects and reservations use of the quota, in bytes; ``held`` of them are held
    back after a rebuilding, for uploads that were granted before, until ``held_until`` (unix seconds).
    """

    name: str
    quota: int
    lock: SchemaLock
    bucket: BucketRecord
    public_read: bool
    created_at: float
    charged: int = 0
    held: int = 0
    held_until: float | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A node as this hub knows it: its public key here (text ``U…``) and the name it gave itself."""

    public: str
    name: str
    status: NodeStatus
    created_at: float
    seen_at: float | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A node's place in a channel. A revoked one keeps its row, so that it can be told from a stranger."""

    channel: str
    node: Node
    rights: Rights
    granted_at: float
    revoked_at: float | None = None

    @property
    def active(self) -> bool:
        """May use its rights now: neither revoked here nor suspended at the hub."""
        return self.revoked_at is None and self.node.status is NodeStatus.ACTIVE


@dataclass(frozen=True, slots=True)
class Invite:
    """Lets ``uses`` different nodes join a channel with ``rights`` until ``expires``; ``used`` of them did."""

    id: str
    channel: str
    rights: Rights
    uses: int
    used: int
    created_at: float
    expires: float
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change: who (``actor``) did what (``action``) to what (``subject``). ``id`` grows and never repeats."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: Mapping[str, object]


def check_channel_name(name: str) -> str:
    """The name, if it is 1 to 32 of ``[a-z0-9]``; otherwise :class:`InvalidInput`."""
    if _CHANNEL_NAME.fullmatch(name) is None:
        raise InvalidInput(
            f"{name[:100]!r} is no channel name", hint="A channel name has 1 to 32 of the characters a-z and 0-9"
        )
    return name


def check_node_name(name: str) -> str:
    """The name, if it is 1 to 64 printable characters with no blank at either end, and not what the hub or its admin
    go by in the log; else :class:`InvalidInput`. What is invisible or turns the direction of writing is not printable.
    """
    if not 0 < len(name) <= _MAX_NODE_NAME or not name.isprintable() or name != name.strip():
        raise InvalidInput(
            f"{name[:_MAX_NODE_NAME]!r} is no node name", hint="A node name has 1 to 64 printable characters"
        )
    if " ".join(unicodedata.normalize("NFKC", name).casefold().split()) in RESERVED:
        raise InvalidInput(f"no node may be called {name!r}", hint="Join with --name and a name for this machine.")
    return name
