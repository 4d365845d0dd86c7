"""What passed through a running hub, by channel and by node: sums since it started, of as many of each as fit."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final

#: Channels and nodes that are remembered each; of more, the half that did least is forgotten.
MOST: Final = 10_000


@dataclass(slots=True)
class Sums:
    """Messages and those of them that were refused; objects and bytes that arrived, bytes signed for reading; grants;
    requests to the bucket, those of them that failed, and the seconds that all of them took."""

    messages: int = 0
    refused: int = 0
    uploads: int = 0
    uploaded: int = 0
    downloads: int = 0
    downloaded: int = 0
    evicted: int = 0
    grants: int = 0
    failed: int = 0
    requests: int = 0
    request_failures: int = 0
    request_seconds: float = 0.0

    def add(self, **more: float) -> None:
        """Add to the sums, by name."""
        for name, value in more.items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def weight(self) -> float:
        """How much it did, for whoever has to forget somebody."""
        return float(sum(getattr(self, each.name) for each in fields(self)))


@dataclass(slots=True)
class Traffic:
    """The sums of each channel and of each node."""

    channels: dict[str, Sums] = field(default_factory=dict)
    nodes: dict[str, Sums] = field(default_factory=dict)
    most: int = MOST

    def of_channel(self, channel: str) -> Sums:
        """A channel's, to add to."""
        return self._of(self.channels, channel)

    def of_node(self, node: str) -> Sums:
        """A node's (public key), to add to."""
        return self._of(self.nodes, node)

    def _of(self, table: dict[str, Sums], name: str) -> Sums:
        found = table.get(name)
        if found is None:
            if len(table) >= self.most:
                for least in sorted(table, key=lambda one: table[one].weight)[: max(len(table) // 2, 1)]:
                    del table[least]
            found = table[name] = Sums()
        return found
