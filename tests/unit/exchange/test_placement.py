"""Choice among offers."""

from __future__ import annotations

from collections import Counter

import pytest

from entrepot.core.placement import choose, weight

NODES = [f"U{i:03}" for i in range(10)]


def _shares(weights: dict[str, float], keys: int = 4000) -> Counter[str]:
    return Counter(choose(f"lock/stream/{k:08x}", weights.items()) or "" for k in range(keys))


def test_equal_nodes_get_equal_shares() -> None:
    """Ten nodes of one weight get a tenth of the objects each, within chance."""
    shares = _shares(dict.fromkeys(NODES, 1.0))
    assert all(300 < shares[node] < 500 for node in NODES)


def test_shares_follow_the_weights() -> None:
    """One node of weight 10 against ten of weight 1 gets half of the objects, not nine tenths."""
    shares = _shares(dict.fromkeys(NODES, 1.0) | {"big": 10.0})
    assert 0.45 < shares["big"] / 4000 < 0.55


def test_a_leaving_node_moves_only_its_share() -> None:
    """When a node goes, objects of the others stay where they were."""
    every = dict.fromkeys(NODES, 1.0)
    fewer = {node: w for node, w in every.items() if node != NODES[3]}
    for k in range(500):
        before = choose(f"k{k}", every.items())
        if before != NODES[3]:
            assert choose(f"k{k}", fewer.items()) == before


def test_nobody_is_chosen_among_nobody() -> None:
    """Without offers there is no choice."""
    assert choose("k", []) is None


def test_the_order_of_the_offers_does_not_matter() -> None:
    """Every hub chooses alike, whatever order the offers came in."""
    offers = [(node, 1.0 + i) for i, node in enumerate(NODES)]
    assert {choose("k", offers), choose("k", reversed(offers))} == {choose("k", sorted(offers))}


@pytest.mark.parametrize(("uplink", "expected"), [(None, 4.0), (0.0, 1.0), (3 * 2**20, 3.0), (10**12, 16.0)])
def test_weights_are_clamped(uplink: float | None, expected: float) -> None:
    """A measured uplink counts in MiB/s between 1 and 16; an unmeasured node counts as 4."""
    assert weight(uplink) == expected
