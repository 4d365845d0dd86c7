"""The messages of the exchange: msgpack maps, versioned, bounded, strict.

Encoding is canonical (keys sorted, shortest forms), so equal messages are equal bytes. Decoding is typed and strict:
an unknown field, a wrong type, a value out of bounds, trailing bytes or more than :data:`MAX_MESSAGE` bytes raise
InvalidInput. All durations are whole milliseconds; clocks are never compared.

The verb and the sender stand in the subject (:mod:`entrepot.core.subjects`); ``docs/protocol.md`` describes each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Literal

import msgspec

from entrepot.core.errors import EntrepotError, InvalidInput, from_wire, to_wire
from entrepot.core.ranges import LAST_NUMBER, MAX_PAIRS

VERSION = 1
#: Bytes; also the server's ``max_payload``.
MAX_MESSAGE = 65536
#: Objects in one want reply or state message.
MAX_OBJECTS = 64
#: Headers longer than this are not sent with an accept: the hub reads them from the bucket at ``done``.
MAX_HEADER = 32768
#: Streams in one ``added`` message.
MAX_STREAMS = 256
#: Messages in one :class:`Many`.
MAX_PARTS = 256

Lock = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Stream = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
OpeningBytes = Annotated[bytes, msgspec.Meta(min_length=40, max_length=40)]
GrantId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Digest = Annotated[bytes, msgspec.Meta(min_length=16, max_length=32)]
DigestKind = Literal["sha256", "md5"]
#: One get of one stream, by whoever it is served: 8 random bytes, in hexadecimal in every log.
TransferId = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
SessionId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
Number = Annotated[int, msgspec.Meta(ge=0, le=LAST_NUMBER)]
Ranges = Annotated[tuple[tuple[Number, Number], ...], msgspec.Meta(max_length=MAX_PAIRS)]
Numbers = Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_OBJECTS)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=366 * 86_400_000)]
Length = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
Short = Annotated[str, msgspec.Meta(max_length=200)]
Url = Annotated[str, msgspec.Meta(max_length=4096)]
Headers = Annotated[dict[Short, Text], msgspec.Meta(max_length=16)]
Data = Annotated[dict[Short, str | int | float | bool | None], msgspec.Meta(max_length=32)]


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base of all messages."""

    v: Literal[1] = 1


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what messages are made of."""


class Reason(Part, frozen=True, kw_only=True):
    """An error as it travels: see :mod:`entrepot.core.errors`."""

    kind: Short
    message: Text
    hint: Text | None = None
    data: Data = {}

    def error(self) -> EntrepotError:
        """The error that the sender meant."""
        return from_wire(self.kind, self.message, self.hint, self.data)


def transfer_of(message: Want | Grant) -> bytes | None:
    """The transfer that a message names, if it names one."""
    return None if message.transfer is msgspec.UNSET else message.transfer


def reason_of(error: EntrepotError) -> Reason:
    """The error as a part of a message. A number of its data that msgpack cannot hold is cut to 64 bits."""
    reason = msgspec.convert(to_wire(error), Reason)
    data = {
        name: max(-(2**63), min(value, 2**64 - 1)) if type(value) is int else value
        for name, value in reason.data.items()
    }
    return msgspec.structs.replace(reason, data=data)


class Signed(Part, frozen=True, kw_only=True):
    """A signed request: method, URL, the headers that must be sent with it, and how long it can be used."""

    method: Literal["GET", "PUT"]
    url: Url
    headers: Headers = {}
    expires: Millis


class ObjectState(Part, frozen=True, kw_only=True):
    """What the hub knows of one object. ``sent``: bytes uploaded so far, while uploading. ``get`` and ``etag``:
    while ready, for readers. ``reason``: why it is still sought or has failed."""

    number: Number
    state: Literal["seeking", "uploading", "ready", "failed"]
    length: Length = 0
    sent: Length = 0
    etag: Short | None = None
    get: Signed | None = None
    reason: Reason | None = None


class Want(Message, frozen=True, kw_only=True):
    """I want these objects (in this order, inclusive ranges; the first ``window`` of them now). The want is kept for
    ``deadline`` unless renewed; with ``keep`` it is served even when I am gone. ``transfer`` names this get in the logs
    of everybody who takes part."""

    lock: Lock
    stream: Stream
    session: SessionId
    ranges: Ranges
    window: Annotated[int, msgspec.Meta(ge=1, le=MAX_OBJECTS)]
    deadline: Millis
    keep: bool = False
    transfer: TransferId | msgspec.UnsetType = msgspec.UNSET


class WantReply(Message, frozen=True, kw_only=True):
    """The hub's answer: the opening if known, the state of the first ``window`` objects, which objects of the whole
    stream are ready or uploading, and after how long to ask again if nothing was heard."""

    opening: OpeningBytes | None = None
    objects: Annotated[tuple[ObjectState, ...], msgspec.Meta(max_length=MAX_OBJECTS)] = ()
    ready: Ranges = ()
    uploading: Ranges = ()
    again_in: Millis = 1000
    reason: Reason | None = None
    error: Reason | None = None


class Seek(Message, frozen=True, kw_only=True):
    """Who has this stream? Answer as ``hub`` within ``within`` if SHA-256(stream ‖ node key) as a fraction is below
    ``sample`` / 65536."""

    lock: Lock
    stream: Stream
    hub: SessionId
    within: Millis = 1000
    sample: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 65536


class Offer(Message, frozen=True, kw_only=True):
    """I hold these objects (ascending inclusive ranges) and have free upload slots."""

    lock: Lock
    stream: Stream
    session: SessionId
    opening: OpeningBytes
    ranges: Ranges
    slots: Annotated[int, msgspec.Meta(ge=0, le=64)]


class Grant(Message, frozen=True, kw_only=True):
    """Upload this object: accept within ``lease``, naming its ``digest`` of this kind. ``transfer``: the get that it is
    for first of all. ``stop``: not any more, another holder does; nothing is to be said about it."""

    lock: Lock
    stream: Stream
    number: Number
    grant: GrantId
    opening: OpeningBytes
    lease: Millis
    digest: DigestKind = "sha256"
    transfer: TransferId | msgspec.UnsetType = msgspec.UNSET
    stop: bool | msgspec.UnsetType = msgspec.UNSET


class Accept(Message, frozen=True, kw_only=True):
    """I will. The object's header (empty when longer than :data:`MAX_HEADER`) and the digest of the whole object, of
    the kind that the grant asked for. ``length``: bytes of the object, where neither the lock nor a header says it."""

    lock: Lock
    grant: GrantId
    session: SessionId
    header: Annotated[bytes, msgspec.Meta(max_length=MAX_HEADER)]
    digest: Digest
    length: Length | msgspec.UnsetType = msgspec.UNSET


class AcceptReply(Message, frozen=True, kw_only=True):
    """Where to PUT it and for how long the lease holds without progress; or why not."""

    put: Signed | None = None
    lease: Millis = 0
    error: Reason | None = None


class Progress(Message, frozen=True, kw_only=True):
    """So many bytes of the granted object went out."""

    lock: Lock
    grant: GrantId
    sent: Length


class Done(Message, frozen=True, kw_only=True):
    """The PUT ended: a hint to look. ``error`` says why if it failed."""

    lock: Lock
    grant: GrantId
    error: Reason | None = None


class State(Message, frozen=True, kw_only=True):
    """What changed about objects of a stream."""

    lock: Lock
    stream: Stream
    objects: Annotated[tuple[ObjectState, ...], msgspec.Meta(max_length=MAX_OBJECTS)]
    opening: OpeningBytes | None = None


class Got(Message, frozen=True, kw_only=True):
    """I verified these objects: my read leases may end."""

    lock: Lock
    stream: Stream
    numbers: Numbers


class Cancel(Message, frozen=True, kw_only=True):
    """I no longer want this stream."""

    lock: Lock
    stream: Stream


class Missing(Message, frozen=True, kw_only=True):
    """The GET for this object answered 404, or another etag than I was told."""

    lock: Lock
    stream: Stream
    number: Number
    etag: Short | None = None


class Bad(Message, frozen=True, kw_only=True):
    """This object (of this etag) does not verify: its header (miniblock None) or the given miniblock of it."""

    lock: Lock
    stream: Stream
    number: Number
    etag: Short | None = None
    miniblock: Annotated[int, msgspec.Meta(ge=0, le=2**47)] | None = None


class Added(Message, frozen=True, kw_only=True):
    """I now hold these streams (stream id and opening each)."""

    lock: Lock
    session: SessionId
    streams: Annotated[tuple[tuple[Stream, OpeningBytes], ...], msgspec.Meta(max_length=MAX_STREAMS)]


class Open(Message, frozen=True, kw_only=True):
    """I am (still) here. Which streams are wanted that nobody could serve? A page after ``cursor``."""

    lock: Lock
    session: SessionId
    cursor: Length = 0


class OpenReply(Message, frozen=True, kw_only=True):
    """Wanted streams and the cursor of the next page (None: that was all)."""

    streams: Annotated[tuple[Stream, ...], msgspec.Meta(max_length=MAX_STREAMS)] = ()
    cursor: Length | None = None
    error: Reason | None = None


class Ack(Message, frozen=True, kw_only=True):
    """Heard and acted upon; or why not."""

    error: Reason | None = None


class Said(Part, frozen=True, kw_only=True):
    """One message of a :class:`Many`: its verb and its bytes."""

    verb: Annotated[str, msgspec.Meta(pattern="^[a-z]{1,16}$")]
    payload: Annotated[bytes, msgspec.Meta(max_length=MAX_MESSAGE)]


class Many(Message, frozen=True, kw_only=True):
    """Several messages of one channel at once, each as if it had come alone. None of them is a Many."""

    parts: Annotated[tuple[Said, ...], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]


class ManyReply(Message, frozen=True, kw_only=True):
    """The answers to a :class:`Many`, in its order. None: there is none (yet), or there was no room for it."""

    answers: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_MESSAGE)] | None, ...], msgspec.Meta(max_length=MAX_PARTS)
    ] = ()
    error: Reason | None = None


#: Bytes of a message that are not the parts of a Many or the answers of a ManyReply, at most; and of each of those,
#: beside its payload.
ENVELOPE = 64
PART_ENVELOPE = 48


class _Version(msgspec.Struct):
    v: int


@cache
def _decoder(kind: type[Message]) -> msgspec.msgpack.Decoder[Message]:
    return msgspec.msgpack.Decoder(kind, strict=True)


#: Every field and key in the order of its name, everything in its shortest form: what ``msgpack`` makes of sorted maps.
_encoder = msgspec.msgpack.Encoder(order="sorted")
_version: Callable[[bytes], _Version] = msgspec.msgpack.Decoder(_Version).decode


def encode(message: Message) -> bytes:
    """The message's canonical bytes. Raises InvalidInput (invalid-message) if longer than :data:`MAX_MESSAGE`."""
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE:
        raise InvalidInput(
            f"a {type(message).__name__} of {len(data)} bytes is longer than a message may be",
            kind="invalid-message",
            limit=MAX_MESSAGE,
        )
    return data


def decode[M: Message](kind: type[M], data: bytes) -> M:
    """The message, checked in every field. Raises InvalidInput: ``unsupported`` for another version,
    ``invalid-message`` for anything else that is wrong."""
    name = kind.__name__
    if len(data) > MAX_MESSAGE:
        raise InvalidInput(f"a {name} of {len(data)} bytes is longer than a message may be", kind="invalid-message")
    try:
        version = _version(data).v
        if version != VERSION:
            raise InvalidInput(
                f"a {name} of version {version} arrived; this side speaks version {VERSION}",
                kind="unsupported",
                hint="Upgrade the older side.",
                version=version,
            )
        message = _decoder(kind).decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidInput(f"not a valid {name}: {str(error)[:300]}", kind="invalid-message") from None
    assert isinstance(message, kind)
    return message
