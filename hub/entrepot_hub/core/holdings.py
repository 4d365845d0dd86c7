"""How many streams the hub remembers its members to hold: pure rules. What is forgotten costs a seek, nothing else: the
node still offers what it holds when the channel is asked."""

from __future__ import annotations

from collections.abc import Mapping


def kept(counts: Mapping[str, int], of_member: int, of_channel: int) -> dict[str, int]:
    """How many holdings each member keeps, given how many each has: at most ``of_member``, and all together at most
    ``of_channel``; where that is too little, whoever has most gives way first, down to equal shares."""
    left = {node: min(count, of_member) for node, count in counts.items()}
    room, waiting = of_channel, len(left)
    level = of_member
    for count in sorted(left.values()):
        share = room // waiting
        if count > share:
            level = share
            break
        room -= count
        waiting -= 1
    return {node: min(count, level) for node, count in left.items()}
