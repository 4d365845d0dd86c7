"""The golden data, and the contents it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return DATA


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    return json.loads((DATA / "vectors.json").read_bytes())


@pytest.fixture(scope="session")
def content():
    """Makes the bytes of a vector's recipe."""

    def make(recipe: dict[str, Any]) -> bytes:
        if "pattern" in recipe:
            unit, length = bytes(i * 7 % 251 for i in range(251)), recipe["pattern"]
        else:
            unit, length = bytes.fromhex(recipe["repeat"]), recipe["length"]
        return (unit * (length // max(len(unit), 1) + 1))[:length]

    return make
