"""The table of decoders is complete, and says truly what its targets reach."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FrameType

import pytest
from tests.fuzz.table import NOT_OUTSIDE, TARGETS
from tests.fuzz.targets import Target, attempt

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"entrepot": ROOT / "node" / "entrepot", "entrepot_hub": ROOT / "hub" / "entrepot_hub"}
#: What a function is called that reads bytes or text as something.
_DECODES = re.compile(r"(decode|parse|load|unseal|loads)(_.*)?|from_(wire|seed|nodes|document)|read_(?!into)\w+")


@cache
def decoders() -> frozenset[str]:
    """Every function of both packages with the name of a decoder, as module:qualified name."""
    return frozenset(
        f"{module}:{name}"
        for package, folder in PACKAGES.items()
        for path in sorted(folder.rglob("*.py"))
        for module in [".".join((package, *path.relative_to(folder).with_suffix("").parts))]
        for name in _functions(ast.parse(path.read_text(encoding="utf-8")), "")
        if _DECODES.fullmatch(name.rpartition(".")[2])
    )


def _functions(tree: ast.AST, inside: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{inside}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{inside}{node.name}"
        elif isinstance(node, ast.If | ast.Try):
            yield from _functions(node, inside)


def covered() -> set[str]:
    """What targets say they reach."""
    return {name for target in TARGETS for name in target.covers}


def test_every_decoder_is_fuzzed_or_has_a_reason() -> None:
    """A function called decode, parse, load … is reached by a target or listed with the reason why it is not."""
    assert decoders() - covered() - set(NOT_OUTSIDE) == set()


def test_no_reason_is_given_for_nothing() -> None:
    """What is listed as not fuzzed is there, and is not fuzzed."""
    assert set(NOT_OUTSIDE) <= decoders()
    assert not set(NOT_OUTSIDE) & covered()
    assert all(len(reason) > 10 for reason in NOT_OUTSIDE.values())


def test_targets_have_names_of_their_own() -> None:
    """A target is found by its name."""
    assert len({target.name for target in TARGETS}) == len(TARGETS)


@pytest.mark.blocking
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_target_reaches_what_it_covers(target: Target) -> None:
    """The samples of a target call every function that it is said to cover."""
    called: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.add(f"{frame.f_globals.get('__name__')}:{frame.f_code.co_qualname}")

    samples = target.samples()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for sample in samples:
            attempt(target, sample)
    finally:
        sys.setprofile(before)
    assert set(target.covers) - called == set()
