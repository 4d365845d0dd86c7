"""Pinning streams: what of a channel is never evicted, as the admin sees and sets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from entrepot.core.errors import InvalidInput
from entrepot.core.identifiers import StreamId
from entrepot.core.lock import SchemaLock
from entrepot.core.uri import SCHEME, StreamUri
from entrepot_hub.core.pins import RESERVED_OBJECTS, Pin, PinKind, Pinned
from entrepot_hub.services.administration import ChannelNamed, Name
from entrepot_hub.services.desk import Desk, Operation, Request, View

#: A URI with a name of the greatest length, every byte of it percent-encoded.
StreamText = Annotated[str, msgspec.Meta(max_length=2000)]


class PinSet(Request, frozen=True, kw_only=True):
    """Keep a stream (its URI, or its id in 64 digits) in the bucket; ``archive``: the bucket is its home."""

    name: Name
    stream: StreamText
    archive: bool = False


class PinRemove(Request, frozen=True, kw_only=True):
    """A stream may be evicted again."""

    name: Name
    stream: StreamText


class PinView(View, frozen=True, kw_only=True):
    """A pinned stream. ``length`` of the stream in bytes, null if not known; ``stored``: its bytes in the bucket, in so
    many ``objects``; ``kept``: what counts against the room for others."""

    stream: str
    kind: str
    actor: str
    at: float
    length: int | None
    objects: int
    stored: int
    kept: int


class PinsView(View, frozen=True, kw_only=True):
    """A channel's pins, oldest first. ``kept``: their bytes; ``reserve``: bytes of the quota that no pin may take."""

    channel: str
    quota: int
    kept: int
    stored: int
    reserve: int
    pins: list[PinView]


class Unpinned(View, frozen=True, kw_only=True):
    """A stream that is not pinned now. ``was``: it had been."""

    stream: str
    was: bool


async def pin(desk: Desk, asked: PinSet, actor: str) -> PinView:
    """Pin a stream, or change the kind of its pin. NotFound (``no-such-channel``, ``no-such-stream``), InvalidInput,
    RetryLater (``over-quota``) when too little room would be left."""
    channel = await desk.registry.channel(asked.name)
    stream = _stream(asked.stream, asked.name)
    wish = Pin(stream.raw, PinKind.ARCHIVE if asked.archive else PinKind.PIN, actor, desk.clock())
    return _view(await desk.database.call(desk.ledger.pin, asked.name, wish, reserve(channel.lock)))


async def unpin(desk: Desk, asked: PinRemove, actor: str) -> Unpinned:
    """Unpin a stream; one that was not pinned is no error. NotFound (``no-such-channel``), InvalidInput."""
    stream = _stream(asked.stream, asked.name)
    was = await desk.database.call(desk.ledger.unpin, asked.name, stream.raw, actor, desk.clock())
    return Unpinned(stream=stream.hex, was=was)


async def pins(desk: Desk, asked: ChannelNamed, _actor: str) -> PinsView:
    """All pins of a channel. NotFound (``no-such-channel``)."""
    channel = await desk.registry.channel(asked.name)
    found = await desk.database.call(desk.ledger.pins, asked.name)
    return PinsView(
        channel=channel.name,
        quota=channel.quota,
        kept=sum(pinned.kept for pinned in found),
        stored=sum(pinned.stored for pinned in found),
        reserve=reserve(channel.lock),
        pins=[_view(pinned) for pinned in found],
    )


def reserve(lock: SchemaLock) -> int:
    """Bytes of a quota that pins leave to everything else: the smallest quota there is. Where an object is a whole
    stream, so many miniblocks."""
    return RESERVED_OBJECTS * (lock.object or lock.miniblock)


def _stream(text: str, channel: str) -> StreamId:
    if not text.startswith(SCHEME):
        return StreamId.parse(text)
    uri = StreamUri.parse(text)
    if uri.channel != channel:
        raise InvalidInput(
            f"this is a stream of the channel {uri.channel}, not of {channel}",
            kind="invalid-uri",
            hint="Give the channel of the URI, or the stream's id alone",
        )
    return uri.stream


def _view(pinned: Pinned) -> PinView:
    return PinView(
        stream=pinned.pin.stream.hex(),
        kind=pinned.pin.kind.value,
        actor=pinned.pin.actor,
        at=pinned.pin.at,
        length=pinned.length,
        objects=pinned.objects,
        stored=pinned.stored,
        kept=pinned.kept,
    )


#: What can be asked for.
OPERATIONS: Final[Mapping[str, Operation[Any, Any]]] = {
    "channel.pin": Operation(PinSet, PinView, pin),
    "channel.unpin": Operation(PinRemove, Unpinned, unpin),
    "channel.pins": Operation(ChannelNamed, PinsView, pins),
}
