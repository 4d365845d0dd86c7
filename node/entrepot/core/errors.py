"""The errors of entrepot: one small tree, grouped by what the caller can do.

Every error carries a stable ``kind`` (for programs), a sentence (for people), data fields (for both) and,
where there is something to do about it, a ``hint``. The same four travel in messages between hub and node, so
a reason stated by the hub reaches the user unchanged: :func:`to_wire` and :func:`from_wire`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

type Scalar = str | int | float | bool | None
type Data = Mapping[str, Scalar]


class EntrepotError(Exception):
    """Base of all errors that entrepot raises on purpose.

    ``kind`` is one of :data:`KINDS`; without one it is the default kind of the class. ``data`` holds plain
    values that a program may want to read. ``hint`` says what a person can do about it.
    """

    default_kind: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, kind: str | None = None, hint: str | None = None, **data: Scalar) -> None:
        self.kind = self.default_kind if kind is None else kind
        if not isinstance(self, KINDS[self.kind]):
            raise TypeError(f"kind {self.kind!r} belongs to {KINDS[self.kind].__name__}, not {type(self).__name__}")
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.data: Data = data

    def __str__(self) -> str:
        return self.message


class NotFound(EntrepotError):
    """What was asked for is not there. Asking later or elsewhere may help; retrying at once does not."""

    default_kind = "not-found"
    exit_code = 3


class Denied(EntrepotError):
    """The caller may not do this. Somebody has to grant a right or mend a key or a clock."""

    default_kind = "denied"
    exit_code = 4


class Conflict(EntrepotError):
    """Something is already there, or changed meanwhile. Look, then decide."""

    default_kind = "conflict"
    exit_code = 5


class RetryLater(EntrepotError):
    """Nothing is wrong with the request: the same one may succeed later."""

    default_kind = "retry-later"
    exit_code = 6


class Corrupt(EntrepotError):
    """Bytes do not prove what they claim to be. Nothing of them was shown or stored."""

    default_kind = "corrupt"
    exit_code = 7


class InvalidInput(EntrepotError):
    """The caller's words are wrong: a malformed URI, id, token, setting or message."""

    default_kind = "invalid-input"
    exit_code = 2


class Internal(EntrepotError):
    """Our own mistake: a broken invariant. Please report it."""

    default_kind = "internal"
    exit_code = 1


#: Every kind there is and the class it belongs to. Kinds are part of the public interface: never renamed.
KINDS: Mapping[str, type[EntrepotError]] = {
    # not found
    "not-found": NotFound,
    "no-holder": NotFound,  # nobody who is online offers the stream
    "no-such-channel": NotFound,
    "no-such-stream": NotFound,
    "no-such-object": NotFound,
    "no-such-node": NotFound,
    "no-such-file": NotFound,
    "not-joined": NotFound,  # the hub named by a URI was never joined
    "not-running": NotFound,  # no daemon, no hub, no server at this address
    # denied
    "denied": Denied,
    "no-right": Denied,
    "revoked": Denied,
    "suspended": Denied,
    "bad-signature": Denied,
    "replayed": Denied,
    "clock-skew": Denied,
    "expired": Denied,
    "bad-invite": Denied,
    "unreadable": Denied,  # the operating system refuses the file
    "too-large": Denied,  # a stream larger than the channel lets pass
    # conflict
    "conflict": Conflict,
    "exists": Conflict,
    "changed": Conflict,  # a linked file is no longer what it was
    "stale-lock": Conflict,  # another schema lock is current
    "ambiguous": Conflict,  # several channels or hubs fit and none was named
    "last-copy": Conflict,
    "stale-grant": Conflict,
    "in-use": Conflict,
    # retry later
    "retry-later": RetryLater,
    "hub-unreachable": RetryLater,
    "bus-unreachable": RetryLater,
    "bucket-unreachable": RetryLater,
    "over-quota": RetryLater,
    "over-limit": RetryLater,  # a channel or node used up what it may use, of a day or at once
    "over-budget": RetryLater,  # the channel's money for this month is used up
    "holder-too-slow": RetryLater,
    "deadline": RetryLater,
    "busy": RetryLater,
    "too-many-requests": RetryLater,  # asked more often than one node or address may
    "disk-full": RetryLater,
    "cancelled": RetryLater,
    # corrupt
    "corrupt": Corrupt,
    "corrupt-object": Corrupt,
    "corrupt-store": Corrupt,
    "wrong-length": Corrupt,
    # invalid input
    "invalid-input": InvalidInput,
    "invalid-uri": InvalidInput,
    "invalid-id": InvalidInput,
    "invalid-key": InvalidInput,
    "invalid-lock": InvalidInput,
    "invalid-message": InvalidInput,
    "invalid-token": InvalidInput,
    "invalid-setting": InvalidInput,
    "unsupported": InvalidInput,
    # ours
    "internal": Internal,
}

_MAX_TEXT = 2000
_MAX_FIELDS = 32


def to_wire(error: EntrepotError) -> dict[str, object]:
    """The error as plain values: ``{"kind", "message", "hint", "data"}``, texts cut to 2,000 characters.

    It can always be written: what is no character (half of a pair, as a header or an argument may hold it) is escaped.
    """
    return {
        "kind": error.kind,
        "message": _writable(error.message)[:_MAX_TEXT],
        "hint": None if error.hint is None else _writable(error.hint)[:_MAX_TEXT],
        "data": {
            name: _writable(value) if isinstance(value, str) else value
            for name, value in list(error.data.items())[:_MAX_FIELDS]
        },
    }


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def from_wire(kind: str, message: str, hint: str | None = None, data: Data | None = None) -> EntrepotError:
    """The error that :func:`to_wire` described. An unknown kind (a newer peer's) becomes ``retry-later``."""
    taken = {"self", "message", "kind", "hint"}
    fields = {k: v for k, v in (data or {}).items() if k.isidentifier() and k not in taken}
    known = kind if kind in KINDS else "retry-later"
    return KINDS[known](message, kind=known, hint=hint, **fields)
