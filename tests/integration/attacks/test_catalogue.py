"""The list of attacks is whole, and names nothing that is not there."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from tests.integration.attacks.catalogue import ATTACKS, ISSUE
from tests.integration.attacks.conftest import Refused

ROOT = Path(__file__).resolve().parents[3]
HERE = "tests/integration/attacks/"


@cache
def names(path: str) -> frozenset[str]:
    """The tests of a module."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(each.name for each in ast.walk(tree) if isinstance(each, functions) and each.name[:5] == "test_")


def exists(test: str) -> bool:
    """Whether there is such a test, or a module of tests."""
    path, _, name = test.partition("::")
    return (ROOT / path).is_file() and bool(names(path)) and (not name or name in names(path))


def test_every_attack_of_the_list_has_an_entry() -> None:
    """Nothing that was asked for is left out."""
    assert [attack for attack in ISSUE if attack not in ATTACKS] == []


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_entry_names_what_tries_it(attack: str, refused: Refused) -> None:
    """Each test that is named exists; an attack that none tries says why."""
    entry = ATTACKS[attack]
    assert [test for test in entry.tests if not exists(test)] == []
    assert entry.tests or entry.open
    assert not entry.open or entry.open.startswith(("not built yet: ", "not defended: "))
    refused(attack)


def test_a_test_that_is_not_there_is_noticed() -> None:
    """The search above finds what exists and nothing else."""
    assert exists(HERE + "test_catalogue.py::test_a_test_that_is_not_there_is_noticed")
    assert not exists(HERE + "test_catalogue.py::test_nothing")
    assert not exists(HERE + "test_nothing.py")


def test_every_attack_of_this_folder_is_named() -> None:
    """A test here that no entry names would be told nowhere."""
    named = {test for entry in ATTACKS.values() for test in entry.tests}
    unnamed = [
        f"{HERE}{path.name}::{name}"
        for path in sorted((ROOT / HERE).glob("test_*.py"))
        if path.name != Path(__file__).name
        for name in sorted(names(f"{HERE}{path.name}"))
    ]
    helping = {
        HERE + "test_members.py::test_the_timer_outlives_trouble",
        HERE + "test_members.py::test_proposals_that_met_no_database_are_made_again",
        HERE + "test_names.py::test_the_names_above_are_what_they_seem",
        HERE + "test_names.py::test_folders_of_a_node_are_its_owners",
    }
    assert [test for test in unnamed if test not in named | helping] == []
