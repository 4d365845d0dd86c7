"""What a profile says of the stacks that were seen."""

from __future__ import annotations

import pytest
from scripts.bench_gauge import Row, Rows
from scripts.bench_page import tables
from scripts.bench_profile import shares

STACKS = """\
<module> (entrepot-hub:8);run (asyncio/runners.py:194);Exchange.want (entrepot_hub/services/exchange.py:173) 5
<module> (entrepot-hub:8);run (asyncio/runners.py:194);Exchange.want (entrepot_hub/services/exchange.py:175) 1
Thread._bootstrap (threading.py:1030);do_execute (sqlalchemy/engine/default.py:952) 2
Thread._bootstrap (threading.py:1030);_prepare (sqlalchemy/engine/base.py:1) 1
_find_and_load (<frozen importlib._bootstrap>:1360) 1
Thread._bootstrap (threading.py:1030);put (/srv/some/entrepot/core/lock.py:3) 4
Thread._bootstrap (threading.py:1030);ask (/srv/some/elsewhere.py:3) 3
Row.__init__ (<string>:3) 1
<module> (entrepot-hub:8);EpollSelector.select (selectors.py:468) 1
Thread._bootstrap (threading.py:1030);_worker (concurrent/futures/thread.py:89) 1
no stack at all
"""


def test_shares_are_of_what_a_function_does_itself() -> None:
    """Each stack counts for its innermost function: ours by their modules, others by their package, whatever line, and
    without the folders of this machine."""
    found = shares(STACKS.splitlines())
    assert found["samples"] == 20
    assert found["module entrepot_hub.services.exchange"] == pytest.approx(0.3)
    assert found["function entrepot_hub.services.exchange: Exchange.want"] == pytest.approx(0.3)
    assert found["module sqlalchemy"] == pytest.approx(0.15)
    assert found["module entrepot.core.lock"] == pytest.approx(0.2)
    assert found["module elsewhere"] == pytest.approx(0.15)
    assert found["module importlib"] == pytest.approx(0.05)
    assert found["module generated code"] == pytest.approx(0.05)
    assert found["module waking up"] == found["function waking up"] == pytest.approx(0.1)
    assert not any("somebody" in name for name in found)


def test_nothing_seen_is_no_share() -> None:
    """A process that was never busy has no shares."""
    assert shares([]) == {"samples": 0}


def test_a_profile_is_a_line_for_each_process() -> None:
    """Modules and functions stand in the order of their shares, small ones are left out; a missing py-spy is told."""
    rows = [Row("profile", "1 GiB", "hub", 0, shares([*STACKS.splitlines(), "one (rare.py:1) 0"])),
            Row("profile", "", "py-spy", 0, lacks="there is no py-spy")]  # fmt: skip
    text = tables(Rows({}, rows)).partition("profile\n\n")[2]
    (line,) = (line for line in text.splitlines() if line.startswith("| hub |"))
    assert "| 0.2 | `entrepot_hub.services.exchange` 30 %, `entrepot.core.lock` 20 %" in line
    assert "rare" not in line
    assert "Without py-spy: there is no py-spy." in text
