"""Whom to ask for a stream, and when to ask again."""

from __future__ import annotations

from collections.abc import Collection

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot_hub.core.effects import Effect, SendSeek
from entrepot_hub.core.round import Round

#: Seconds after which an unanswered seek means that nobody who is online has the stream.
SILENCE = 0.5


def seek(
    channel: str, stream: bytes, found: Round, lacking: Collection[int], settings: ExchangeSettings, now: float
) -> list[Effect]:
    """Ask known holders first, then a growing sample of the channel, with growing pauses, while objects are
    ``lacking`` that nobody offers; and have offers renewed before they are old."""
    fresh = found.able(now).values()
    refresh_at = max((o.heard_at for o in fresh), default=0.0) + settings.offer_refresh
    if fresh and not lacking and now < refresh_at:
        found.seek_at, found.seeks, found.calm = refresh_at, 0, True
        return []
    if found.calm:
        found.seek_at, found.calm = now, False
    if now < found.seek_at:
        return []
    quick = min(settings.seek_again * 2.0 ** min(found.seeks, 16), settings.seek_again_quick)
    waited = 0.0 if found.unmet_since is None else now - found.unmet_since
    pause = max(quick, min(waited / 8, settings.seek_again_most))
    found.seek_at = now + pause
    found.seeks += 1
    known = tuple(h.node for h in found.holders if h.node not in found.wants)[: settings.known_holders]
    if known and found.seeks == 1:
        return [SendSeek(channel, found.lock, stream, known)]
    sample = min(65536 * 64 * 4 ** (found.seeks - 1) // max(found.members, 1), 65536)
    return [SendSeek(channel, found.lock, stream, None, max(sample, 1))]
