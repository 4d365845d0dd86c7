"""What is known of a stream, here and at its hub: how it stands, and what happened to it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from entrepot.adapters.store import Entry, Store
from entrepot.core.api import StreamInfo, Timeline
from entrepot.core.errors import Conflict, Denied, EntrepotError, NotFound, RetryLater
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening
from entrepot.core.uri import StreamUri, courtesy_name
from entrepot.services.connections import Connections
from entrepot.services.estimate import HolderView, Info, estimate, ready_bytes
from entrepot.services.hubs import JoinedChannel
from entrepot.services.targets import Meant


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of a stream and what its hub says happened to it."""

    info: Info
    timeline: Timeline


class Inquiry:
    """Asks the store and the hubs. Fetches nothing."""

    def __init__(self, store: Store, connections: Connections) -> None:
        self._store = store
        self._connections = connections

    async def info(self, meant: Meant) -> Info:
        """What is known of a stream here and at its hub, and what a get would take.

        A hub that cannot be reached is told in ``hub_reason``. Raises ``no-such-stream`` if nobody knows it.
        """
        present, entry = await self._here(meant)
        known: JoinedChannel | None = None
        reason: str | None = None
        told: StreamInfo | None = None
        try:
            known = await self._connections.channel(meant.channel, meant.host)
        except (NotFound, Conflict):
            if entry is None:
                raise
        except (Denied, RetryLater) as error:
            if entry is None:
                raise
            reason = error.message
        if known is not None:
            try:
                session, known = await self._connections.enter(known.name, known.hub.host)
                told = await session.client.stream_info(known.name, meant.stream)
            except EntrepotError as error:
                if entry is None:
                    raise
                reason = error.message
        return self._info(meant, entry, present, known, told, reason)

    async def why(self, meant: Meant) -> Story:
        """What happened to a stream, by its hub. Raises as the hub answers: ``no-such-stream``, ``hub-unreachable``."""
        present, entry = await self._here(meant)
        session, known = await self._connections.enter(meant.channel, meant.host)
        timeline = await session.client.timeline(known.name, meant.stream)
        return Story(self._info(meant, entry, present, known, timeline.info, None), timeline)

    async def _here(self, meant: Meant) -> tuple[int, Entry | None]:
        """The bytes that are here now, and what the store then has of the stream."""
        present = await self._store.present(meant.stream)
        with contextlib.suppress(NotFound):
            return present, await self._store.entry(meant.stream)
        return 0, None

    def _info(
        self,
        meant: Meant,
        entry: Entry | None,
        present: int,
        known: JoinedChannel | None,
        told: StreamInfo | None,
        reason: str | None,
    ) -> Info:
        opening = None if entry is None else entry.opening
        if opening is None and told is not None and told.opening is not None:
            opening = Opening.decode(bytes.fromhex(told.opening))
            if not opening.proves(meant.stream):
                raise RetryLater("the hub's opening does not prove the stream id", stream=str(meant.stream))
        held = entry is not None and entry.complete and present == entry.opening.length
        geometry = None if opening is None or known is None else Geometry(opening.length, known.lock)
        missing = None if opening is None else opening.length - present
        uri = StreamUri(
            meant.channel or (known.name if known is not None else "unknown"),
            meant.host or (known.hub.host if known is not None else None),
            meant.stream,
            meant.name or (courtesy_name(entry.name) if entry is not None else None),
        )
        return Info(
            uri=uri,
            stream=meant.stream,
            length=None if opening is None else opening.length,
            name=meant.name or (None if entry is None else entry.name or None),
            sha256=None if entry is None else entry.sha256,
            held=held,
            missing=missing,
            object_count=None if geometry is None else geometry.object_count,
            objects=None if told is None else told.objects,
            bucket_bytes=None if told is None else told.bytes,
            holders=()
            if told is None
            else tuple(HolderView(holder.name, holder.online, holder.last_seen) for holder in told.holders),
            wanted_by=None if told is None else told.wanted_by,
            estimate=None
            if geometry is None or missing is None
            else estimate(geometry, missing, 0 if told is None else ready_bytes(geometry, told.objects)),
            hub_reason=reason,
        )
