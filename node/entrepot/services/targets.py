"""What people name a stream by: a URI, a stream id, or the SHA-256 of a file that is here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from entrepot.adapters.store import Store
from entrepot.core.errors import InvalidInput, NotFound
from entrepot.core.identifiers import StreamId
from entrepot.core.uri import SCHEME, StreamUri, courtesy_name

_ALIAS: Final = re.compile(r"sha256:([0-9a-f]{64})")
_ID: Final = re.compile(r"[0-9a-f]{64}")

type Target = str | StreamUri | StreamId


@dataclass(frozen=True, slots=True)
class Meant:
    """What a target names. ``channel`` None: only what is here can be used."""

    stream: StreamId
    channel: str | None
    host: str | None
    name: str | None = None
    local_only: bool = field(default=False)


def check_target(text: str) -> None:
    """Raises ``invalid-uri`` for a text that names no stream."""
    text = text.strip()
    if _ALIAS.fullmatch(text) or _ID.fullmatch(text):
        return
    if not text.startswith(SCHEME):
        raise InvalidInput(
            f"not a URI, a stream id or a sha256: {text[:80]!r}",
            kind="invalid-uri",
            hint="A URI looks like entrepot://channel@hub.example.org/ff0123.../name",
        )
    StreamUri.parse(text)


async def meant_by(store: Store, target: Target, channel: str | None = None, hub: str | None = None) -> Meant:
    """The stream that a target names, in the channel and at the hub that it or the caller names.

    Raises ``invalid-uri``, ``invalid-input``, ``no-such-stream`` for an alias that is not known here.
    """
    if isinstance(target, StreamId):
        return Meant(target, channel, hub)
    if isinstance(target, str):
        text = target.strip()
        alias = _ALIAS.fullmatch(text)
        if alias is not None:
            return await _by_alias(store, bytes.fromhex(alias[1]))
        if _ID.fullmatch(text):
            return Meant(StreamId.parse(text), channel, hub)
        check_target(text)
        target = StreamUri.parse(text)
    if channel not in {None, target.channel} or (hub is not None and target.hub not in {None, hub}):
        raise InvalidInput("the URI names another channel or hub", hint="Leave the channel and hub out.")
    return Meant(target.stream, target.channel, target.hub or hub, target.name)


async def _by_alias(store: Store, sha256: bytes) -> Meant:
    stream = await store.find_alias(sha256)
    if stream is None:
        raise NotFound(
            f"no stream with the SHA-256 {sha256.hex()} is known here",
            kind="no-such-stream",
            hint="An alias is a claim that only whoever has the file can check: use the URI.",
        )
    entry = await store.entry(stream)
    return Meant(stream, None, None, courtesy_name(entry.name), local_only=True)
