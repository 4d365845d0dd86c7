"""Signed GETs, one per object and shared by all its readers, renewed before they get short."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from entrepot.core.api import ReadTrial
from entrepot.core.keys import owner_mark_key
from entrepot.core.messages import Signed
from entrepot_hub.adapters.buckets import SignedRequest
from entrepot_hub.core.journal import Event, EventKind, Note, unheard
from entrepot_hub.core.ledger import ObjectRecord, ObjectRef
from entrepot_hub.services.channels import OpenChannel
from entrepot_hub.services.metering import Metering

#: Seconds for which a member may try whether it reaches a bucket.
_TRIAL = 60


def as_message(request: SignedRequest, now: float) -> Signed:
    """A signed request as it travels: its end becomes a duration."""
    left = max(request.expires_at - now, 0.0)
    return Signed(method=request.method, url=request.url, headers=dict(request.headers), expires=int(left * 1000))


async def read_trial(channel: OpenChannel, now: float) -> ReadTrial:
    """A signed GET of the small object that marks the channel's bucket as the hub's."""
    signed = await channel.bucket.sign_get(owner_mark_key(channel.record.bucket.prefix), None, _TRIAL)
    return ReadTrial(url=signed.url, headers=dict(signed.headers), expires=max(signed.expires_at - now, 0.0))


class ReadUrls:
    """The shared signed GET of every object in use. At most ``most`` are kept."""

    def __init__(
        self,
        clock: Callable[[], float],
        life: float,
        metering: Metering,
        note: Note = unheard,
        most: int = 20_000,
    ) -> None:
        self._clock = clock
        self._note = note
        self._metering = metering
        self._life = life
        self._most = most
        self._kept: OrderedDict[tuple[ObjectRef, str | None, int], SignedRequest] = OrderedDict()

    async def get(self, channel: OpenChannel, record: ObjectRecord, readers: Iterable[str] = ()) -> Signed:
        """A GET of the object, good for at least half of the full life. ``readers``: the nodes that are told."""
        now = self._clock()
        key = (record.ref, record.etag, channel.edition)
        kept = self._kept.get(key)
        if kept is None or kept.expires_at < now + self._life / 2:
            kept = await channel.bucket.sign_get(channel.key(record.ref), record.etag, int(self._life))
            self._kept[key] = kept
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        for node in readers:
            if self._metering.told(record, node, kept.expires_at):
                ref = record.ref
                self._note(Event(ref.channel, ref.stream, EventKind.TOLD, now, node, ref.number, bytes=record.size))
        return as_message(kept, now)
