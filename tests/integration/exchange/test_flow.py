"""A file much larger than the quota passes through a real bucket to readers apart from each other."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.servers.nodes import KIB, MIB, Site
from tests.servers.quota import through
from tests.servers.relay import noted


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


@pytest.mark.blocking
def test_a_file_of_eight_quotas_flows_to_three_readers(make_site: Callable[..., Site]) -> None:
    """64 MiB pass through 8 MiB to three readers that begin one after the other: the bytes in the bucket never exceed
    the quota, all of them get the file, and it is uploaded no more than 1.3 times."""
    quota, size = 8 * MIB, 64 * MIB
    site = make_site(quota=quota, miniblock=64 * KIB, object=256 * KIB)
    flow = through(site, quota=quota, size=size, readers=3, starts=(0.0, 0.1, 0.2), pause=0.01)
    noted("through a small quota", flow)
    assert flow.samples > 1
    assert 0 < flow.stored_most <= quota
    assert flow.uploads <= 1.3
    assert all(flow.verified)
