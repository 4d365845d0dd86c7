"""Choice among offers: weighted rendezvous hashing.

Among nodes that can upload an object the highest −w / ln(h) wins, where h is SHA-256(object key ‖ node) as a fraction
of 1 and w the node's weight. Each node wins objects in proportion to its weight, every hub chooses alike, and a node
that comes or goes moves only its own share. (Weighted rendezvous hashing: Schindelhauer and Schomaker, 2005.)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

#: Bytes/s of measured uplink that count as weight 1.
UNIT = 1 << 20
#: The weight of a node that was never measured.
UNKNOWN = 4.0


def score(key: str, node: str, weight: float) -> float:
    """The node's score for the object key: larger is better, always positive."""
    digest = hashlib.sha256(key.encode() + node.encode()).digest()
    fraction = (int.from_bytes(digest[:8]) + 0.5) / 2.0**64
    return -weight / math.log(min(fraction, 1.0 - 2.0**-53))


def weight(uplink: float | None) -> float:
    """Weight 1 to 16 of a node whose uplink was measured at so many bytes/s (None: never)."""
    return UNKNOWN if uplink is None else min(max(uplink / UNIT, 1.0), 16.0)


def choose(key: str, nodes: Iterable[tuple[str, float]]) -> str | None:
    """The winner among (node, weight) pairs; None if there are none. Ties go to the smaller name."""
    best = max(((score(key, node, w), node) for node, w in sorted(nodes, reverse=True)), default=None)
    return None if best is None else best[1]
