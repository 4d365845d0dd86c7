"""A hub, machines and a relay between them and the bucket, all processes of their own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.servers.nodes import Site


@pytest.fixture
def make_site(tmp_path: Path, empty_home: Path) -> Iterator[Callable[..., Site]]:
    """Makes a running site; ``channel`` fields shape its channel ``demo``."""
    made: list[Site] = []

    def make(**channel: Any) -> Site:
        folder = tmp_path / f"site{len(made)}"
        folder.mkdir()
        made.append(Site(folder, empty_home / secrets.token_hex(4)))
        return made[-1].start(**channel)

    yield make
    for site in made:
        site.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A site whose channel has miniblocks of 16 KiB and objects of 256 KiB."""
    return make_site()
