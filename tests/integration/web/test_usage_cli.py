"""``channel usage``, ``limit``, ``quota`` and ``price`` as an admin runs them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration.web.test_cli import Command

from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_usage import SqlUsage
from entrepot_hub.core.usage import Tally, day_of

GIB = 1 << 30


class Admin(Command):
    """The command, whose JSON may be looked into."""

    def json(self, *arguments: str, **how: Any) -> Any:
        return super().json(*arguments, **how)


@pytest.fixture
def ready(tmp_path: Path) -> Admin:
    """The command with a hub's folder and a channel, with six days of traffic in it."""
    command = Admin(tmp_path / "hub")
    command("init", "--url", "http://127.0.0.1:8480")
    (command.home / "bucket").mkdir()
    command("channel", "create", "demo", "--bucket", (command.home / "bucket").as_uri())
    today = day_of(time.time())
    database = Database(f"sqlite:///{command.home}/hub.db")
    SqlUsage(database).add(
        {
            ("demo", "UNODE", today - back): Tally(
                uploads=256, uploaded=(6 - back) * GIB, downloads=512, downloaded=2 * (6 - back) * GIB, requests_a=256,
                requests_b=512,
            )
            for back in range(6)
        }
        | {("demo", "", today - 1): Tally(requests_b=300, deletes=5, evicted=GIB, byte_seconds=86_400.0 * GIB)}
    )  # fmt: skip
    database.close()
    return command


def test_usage_is_told_by_day_with_its_cost(ready: Admin) -> None:
    """Totals, days, a plot and what it costs by the prices of the moment; down is called an upper bound."""
    ready("price", "set", "channel:demo", "--egress", "0.10", "--storage", "0.73", "--currency", "EUR")
    done = ready("channel", "usage", "demo")
    assert "21.0 GiB in 1536 objects" in done.stdout
    assert "up to 42.0 GiB in 3072 objects" in done.stdout
    assert "up to 4.22 EUR: storage 0.0240, requests 0.00, egress 4.20" in done.stdout
    assert "channel:demo" in done.stdout
    assert "█" in done.stdout
    assert "upper bound" in done.stderr
    report = ready.json("channel", "usage", "demo", "--days", "3")
    assert [day["counts"]["uploaded"] // GIB for day in report["days"]] == [4, 5, 6]
    assert report["days"][1]["stored"] == GIB
    assert report["total"]["cost"] == "3.024000"
    by_node = ready("channel", "usage", "demo", "--by", "node").stdout
    assert "the hub" in by_node
    assert "UNODE" in by_node


def test_usage_of_a_month(ready: Admin) -> None:
    """A month has all of its days so far; one without traffic is empty; what is no month is refused."""
    report = ready.json("channel", "usage", "demo", "--month", "2020-02")
    assert (report["first"], report["last"], len(report["days"])) == ("2020-02-01", "2020-02-29", 29)
    assert report["total"]["cost"] == "0.000000"
    assert "nothing passed" in ready("channel", "usage", "demo", "--month", "2020-02").stdout
    this = ready.json("channel", "usage", "demo", "--month", time.strftime("%Y-%m", time.gmtime()))
    assert len(this["days"]) <= 31
    assert ready.error("channel", "usage", "demo", "--month", "2020-13", code=2)["kind"] == "invalid-input"
    assert ready.error("channel", "usage", "demo", "--month", "2020-02", "--days", "3", code=2)["hint"]
    assert ready.error("channel", "usage", "none", code=3)["kind"] == "no-such-channel"


@pytest.mark.parametrize(("name", "begins"), [("usage.png", b"\x89PNG"), ("usage.svg", b"<?xml")])
def test_usage_is_drawn_into_a_file(ready: Admin, tmp_path: Path, name: str, begins: bytes) -> None:
    """The picture is of the kind that the file's name says."""
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    ready("channel", "usage", "demo", "--plot", str(path))
    assert path.read_bytes().startswith(begins)
    assert (
        ready.error("channel", "usage", "demo", "--plot", str(tmp_path / "no" / name), code=4)["kind"] == "unreadable"
    )


def test_a_plot_that_cannot_be_is_refused_first(ready: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another kind of file, or no matplotlib: refused with what to do, and nothing is written."""
    assert ready.error("channel", "usage", "demo", "--plot", str(tmp_path / "usage.gif"), code=2)["hint"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    error = ready.error("channel", "usage", "demo", "--plot", str(tmp_path / "usage.png"), code=2)
    assert error["kind"] == "unsupported"
    assert "pip install" in error["hint"]
    assert list(tmp_path.glob("usage.*")) == []


def test_a_budget_that_nothing_counts_against(ready: Admin) -> None:
    """Where all prices are 0, who sets a budget is told that it means nothing; with a price it means something."""
    told = ready("channel", "limit", "demo", "--budget", "20/month").stderr
    assert "never reached" in told
    assert "entrepot-hub price set channel:demo" in told
    assert "never reached" not in ready("channel", "limit", "demo", "--objects", "7").stderr
    ready("price", "set", "channel:demo", "--egress", "0.05")
    assert "never reached" not in ready("channel", "limit", "demo", "--budget", "30/month").stderr


def test_limits_are_set_told_and_lifted(ready: Admin) -> None:
    """What is set is shown with what is used of it, by ``limit`` and by ``show``; what is lifted is gone."""
    assert "no limits" in ready("channel", "limit", "demo").stdout
    ready("channel", "limit", "demo", "--up-per-day", "10G", "--largest-stream", "1T", "--budget", "20/month")
    ready("channel", "limit", "demo", "--each-node", "--down-per-day", "3G", "--objects", "7")
    done = ready("channel", "limit", "demo")
    assert "6.0 GiB of 10.0 GiB" in done.stdout
    assert "20 a month" in done.stdout
    assert "each node" in done.stdout
    assert "each node" in ready("channel", "show", "demo").stdout
    assert ready.json("channel", "show", "demo")["limits"][0]["budget"] == "20"
    report = ready.json("channel", "usage", "demo")
    assert report["budget"]["budget"] == "20"
    assert not report["budget"]["reached"]
    assert "budget" in ready("channel", "usage", "demo").stdout
    found = ready.json("channel", "limit", "demo", "--clear", "up-per-day", "--clear", "budget")
    assert (found[0]["day_up"], found[0]["stream"], found[0]["budget"]) == (None, 1 << 40, None)
    ready("channel", "limit", "demo", "--clear", "all")
    ready("channel", "limit", "demo", "--each-node", "--clear", "all")
    assert "no limits" in ready("channel", "limit", "demo").stdout
    actions = [line["action"] for line in ready.json("audit")]
    assert actions.count("channel.limit") == 5


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--up-per-day", "10GB"), 2),
        (("--budget", "20"), 2),
        (("--budget", "20/month", "--each-node"), 2),
        (("--clear", "colour"), 2),
        (("--each-node",), 2),
        (("--each-node", "--node", "x", "--objects", "1"), 2),
        (("--node", "*", "--objects", "1"), 2),
        (("--node", "nobody", "--objects", "1"), 3),
        (("--objects", "-1"), 2),
    ],
)
def test_a_limit_that_cannot_be_changes_nothing(ready: Admin, arguments: tuple[str, ...], code: int) -> None:
    """Wrong words are refused, with a hint where there is one, and no limit is there."""
    ready.error("channel", "limit", "demo", *arguments, code=code)
    assert ready.json("channel", "limit", "demo") == []


def test_a_quota_is_changed(ready: Admin) -> None:
    """The new quota is told with the old one; less than four objects is refused."""
    assert "quota of demo: 1.0 GiB (was 10.0 GiB)" in ready("channel", "quota", "demo", "1G").stdout
    assert ready.json("channel", "show", "demo")["channel"]["quota"] == GIB
    assert ready.error("channel", "quota", "demo", "1M", code=2)["kind"] == "invalid-setting"
    assert ready.error("channel", "quota", "none", "1G", code=3)["kind"] == "no-such-channel"


def test_prices_are_listed_set_and_reset(ready: Admin) -> None:
    """A list says who goes by it; a channel's own begins as its provider's and goes again."""
    lists = {each["name"]: each for each in ready.json("price", "list")}
    assert lists["folder"]["channels"] == ["demo"]
    assert (lists["aws"]["storage"], lists["aws"]["changed"]) == ("0.023", False)
    ready("price", "set", "folder", "--storage", "0.01")
    found = {each["name"]: each for each in ready.json("price", "set", "channel:demo", "--egress", "0.02")}
    assert (found["channel:demo"]["storage"], found["channel:demo"]["egress"]) == ("0.01", "0.02")
    assert found["channel:demo"]["channels"] == ["demo"]
    assert found["folder"]["channels"] == []
    assert "folder*" in ready("price", "list").stdout
    ready("price", "reset", "channel:demo")
    ready("price", "reset", "folder")
    after = {each["name"]: each for each in ready.json("price", "list")}
    assert after == lists
    assert ready.error("price", "set", "amazon", "--egress", "1", code=3)["hint"]
    assert ready.error("price", "set", "channel:none", "--egress", "1", code=3)["kind"] == "no-such-channel"
    assert ready.error("price", "set", "aws", "--egress", "a lot", code=2)["hint"]
    assert ready.error("price", "set", "aws", code=2)["hint"]
