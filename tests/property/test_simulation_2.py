"""More seeds of the simulator, and the bugs that it must find."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.property.test_simulation import BLOCK, simulate
from tests.simulation.mutations import MUTATIONS, Mutation, hunt_apart, mutated, source_of

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(600)]


@pytest.mark.parametrize("first", range(501, 1001, BLOCK))
def test_every_invariant_holds(first: int, report: Callable[..., None]) -> None:
    """Whatever fails, every want ends in ready or a stated reason, and nothing is lost, exceeded or leaked."""
    simulate(first, report)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_is_still_one(mutation: Mutation) -> None:
    """The text that a mutation replaces occurs exactly once in the source, and what comes out is Python."""
    source = mutated(source_of(mutation), mutation)
    compile(source, mutation.module, "exec")


@pytest.mark.parametrize("index", [i for i, m in enumerate(MUTATIONS) if m.quick], ids=lambda i: MUTATIONS[i].name)
def test_the_simulator_finds_a_planted_bug(index: int) -> None:
    """The bugs that are found soon are found in the ordinary run too; ``scripts/mutate`` plants them all."""
    found = hunt_apart(index, 1, 100)
    assert found["invariant"] is not None
