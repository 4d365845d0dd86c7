"""The model ledger's holdings: what is forgotten of who holds what."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter

from entrepot_hub.core.holdings import kept
from entrepot_hub.core.model_pins import ModelPins
from entrepot_hub.core.model_rows import Channel


class ModelHoldings(ModelPins):
    """A part of :class:`~entrepot_hub.core.model_ledger.ModelLedger`."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}
        super().__init__()

    @abstractmethod
    def _channel(self, name: str) -> Channel:
        """The channel; NotFound (no-such-channel)."""

    @abstractmethod
    def _has_objects(self, channel: str, stream: bytes) -> bool:
        """Whether anything is known of an object of the stream, under any lock."""

    def thin_holders(self, channel: str, of_member: int, of_channel: int, limit: int = 10_000) -> int:
        """See ``Ledger.thin_holders``."""
        of = self._channel(channel)
        counts = Counter(node for nodes in of.holders.values() for node in nodes)
        gone = 0
        for node, keep in sorted(kept(counts, of_member, of_channel).items()):
            held = sorted((nodes[node], stream) for stream, nodes in of.holders.items() if node in nodes)
            for _, stream in held[: min(len(held) - keep, limit - gone)]:
                del of.holders[stream][node]
                gone += 1
        return gone

    def forget_absent(self, before: float, limit: int = 10_000) -> int:
        """See ``Ledger.forget_absent``."""
        gone = 0
        for of in self._channels.values():
            for nodes in of.holders.values():
                for node in [n for n, at in nodes.items() if max(at, self._seen.get(n, at)) < before]:
                    if gone < limit:
                        del nodes[node]
                        gone += 1
        return gone

    def forget_streams(self, channel: str, after: bytes, limit: int = 1000) -> tuple[int, bytes | None]:
        """See ``Ledger.forget_streams``."""
        of = self._channel(channel)
        page = sorted(stream for stream in of.openings if stream > after)[:limit]
        wanted = {stream for stream, _ in of.wants}
        needless = [
            stream
            for stream in page
            if not of.holders.get(stream)
            and stream not in wanted
            and stream not in self._pins.get(channel, {})
            and not self._has_objects(channel, stream)
        ]
        for stream in needless:
            del of.openings[stream]
        return len(needless), page[-1] if len(page) == limit else None
