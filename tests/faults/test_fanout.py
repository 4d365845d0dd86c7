"""Many who want the same file at the same moment."""

from __future__ import annotations

import pytest
from tests.servers.fanout import fan_out
from tests.servers.nodes import MIB, Site
from tests.servers.relay import noted


def test_twenty_readers_cost_one_upload(make_site) -> None:
    """Twenty nodes ask for one file of 64 MiB at once: every object is PUT once and no more, and all have the file."""
    site: Site = make_site(miniblock=MIB, object=MIB)
    result = fan_out(site, nodes=20, size=64 * MIB)
    noted("20 readers of 64 MiB", result)
    assert result.puts == result.objects == 64
    assert result.same == 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_readers_of_a_large_file_cost_one_upload(request: pytest.FixtureRequest, make_site) -> None:
    """The same with 256 MiB and objects of 4 MiB; runs where the slow tests are asked for (``-m slow``)."""
    if "slow" not in str(request.config.getoption("markexpr")):
        pytest.skip("only with: -m slow (about 7 GiB of disk)")
    site: Site = make_site(miniblock=MIB, object=4 * MIB)
    result = fan_out(site, nodes=20, size=256 * MIB)
    noted("20 readers of 256 MiB", result)
    assert result.puts == result.objects == 64
    assert result.same == 20
