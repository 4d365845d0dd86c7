"""The tables and plots of docs/performance.md, made of rows."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from scripts import bench_page, bench_transfer
from scripts.bench_bed import FAILED, Plan, limited
from scripts.bench_gauge import GIB, MIB, Row, Rows
from scripts.bench_page import PAGE, ROWS, SECTIONS, placed, plot, tables, versus, write
from scripts.bench_targets import TARGETS, Verdict, halves, ratios
from scripts.bench_transfer import SCENARIOS

pytestmark = pytest.mark.blocking

CASE = "1 GiB, rclone"


def ours(run: int, wall: float, **more: float) -> Row:
    """A get of 1 GiB."""
    used = {f"{what}_{part}": 1.0 for what in ("cpu", "rss") for part in ("requester", "provider", "hub")}
    return Row("loopback", CASE, "entrepot", run, {"wall": wall, "size": GIB, **used, **more})


def tool(who: str, run: int, up: float, down: float) -> Row:
    """A tool with the same."""
    values = {"up_wall": up, "up_cpu": 0.5, "up_rss": 10 * MIB, "down_wall": down, "down_cpu": 0.5, "down_rss": MIB}
    return Row("loopback", CASE, who, run, values)


def rows(*found: Row) -> Rows:
    return Rows({"processor": "a processor", "cores": "2"}, found)


SOME = rows(
    ours(0, 4.0), tool("rclone", 0, 6.0, 2.0), tool("s5cmd", 0, 3.0, 3.0), tool("curl on nginx", 0, 1.0, 1.0),
    ours(1, 8.0), tool("rclone", 1, 8.0, 2.0), tool("s5cmd", 1, 4.0, 3.0), tool("curl on nginx", 1, 1.0, 1.0),
    ours(2, 4.0), tool("rclone", 2, 6.0, 2.0), tool("s5cmd", 2, 4.0, 5.0), tool("curl on nginx", 2, 1.0, 1.0),
)  # fmt: skip


def verdict(what: str, found: Rows) -> Verdict | None:
    return next(one for one in TARGETS if one.what.startswith(what)).judge(found)


def test_ratios_are_of_the_same_run() -> None:
    """A tool is compared with our get of its own run, not with medians of all: a slow moment meets both."""
    found = ratios(SOME.where("loopback", CASE, "rclone"), SOME.where("loopback", CASE, "entrepot"))
    assert found is not None
    assert (found.median, found.least, found.most, found.count) == (2.0, 1.25, 2.0, 3)


def test_the_fastest_halves_may_be_of_two_tools_and_go_through_the_same_server() -> None:
    """The best uploader and the best downloader are chosen for themselves, and neither curl on nginx nor another that
    goes elsewhere."""
    found = halves(SOME, "loopback", CASE)
    assert found is not None
    up, down, ratio = found
    assert (up, down) == ("s5cmd", "rclone")
    assert (ratio.least, ratio.median, ratio.most) == (4 / 6, 4 / 5, 8 / 6)


def test_who_took_part_once_is_not_the_fastest() -> None:
    """A tool that was measured in one run of three is not chosen, however fast it was then."""
    found = halves(rows(*SOME.rows, tool("git-annex", 1, 0.1, 0.1)), "loopback", CASE)
    assert found == halves(SOME, "loopback", CASE)


def test_a_target_is_met_or_missed_by_the_median() -> None:
    """What is measured of the design's size is judged, and a change of the figure changes the verdict."""
    met = verdict("the same on bare loopback", SOME)
    slower = [ours(row.run, row.values["wall"] * 2) if row.who == "entrepot" else row for row in SOME.rows]
    missed = verdict("the same on bare loopback", rows(*slower))
    assert met is not None
    assert met.met is True
    assert missed is not None
    assert missed.met is False
    assert "s5cmd up, rclone down" in met.figure


def test_a_smaller_stream_is_not_judged() -> None:
    """A quick run says its figure and size, but neither met nor missed: the target says nothing of such a stream."""
    small = [ours(row.run, row.values["wall"], size=MIB) if row.who == "entrepot" else row for row in SOME.rows]
    found = verdict("the same on bare loopback", rows(*small))
    assert found is not None
    assert found.met is None
    assert found.figure.endswith("at 1 MiB")


def test_lapsed_leases_miss_the_target() -> None:
    """One lapsed lease in any run is too many."""
    fine = Row("single", "1 GiB", "entrepot", 0, {"wall": 9.0, "size": GIB, "lapsed": 0})
    bad = Row("single", "1 GiB", "entrepot", 1, {"wall": 9.0, "size": GIB, "lapsed": 1})
    assert [getattr(verdict("hub, provider", rows(*some)), "met", None) for some in ((fine,), (fine, bad))] == [
        True,
        False,
    ]


def test_a_table_has_a_line_for_each_tool_and_says_which_lack() -> None:
    """Ours stands first, then tools by their time, then those that go elsewhere; what lacks is told."""
    text = versus("loopback", rows(*SOME.rows, Row("loopback", CASE, "obstore", 0, lacks="there is no obstore")))
    names = re.findall(r"^\| ([*\w ¹]+?) \|", text, re.MULTILINE)
    assert names == ["**entrepot**", "s5cmd", "rclone", "curl on nginx ¹"]
    assert "2.00 (1.25–2.00)" in text
    assert "Without obstore: there is no obstore." in text


def test_rows_survive_the_file(tmp_path: Path) -> None:
    """What is written is read again, the machine included, so that a page can be made anew."""
    SOME.write(tmp_path / "rows.jsonl")
    again = Rows.read(tmp_path / "rows.jsonl")
    assert list(again.rows) == list(SOME.rows)
    assert again.machine == SOME.machine


def test_the_page_has_every_section_and_is_made_twice_alike(tmp_path: Path) -> None:
    """Rendering puts tables and plots into the page that there is; a second time changes nothing of either."""
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write(SOME, page, tmp_path / "images")
    first = page.read_text(encoding="utf-8")
    picture = (tmp_path / "images" / "performance-loopback.svg").read_bytes()
    write(SOME, page, tmp_path / "images")
    assert page.read_text(encoding="utf-8") == first
    assert (tmp_path / "images" / "performance-loopback.svg").read_bytes() == picture
    assert "| a processor |" in first
    assert "| **entrepot** |" in first
    assert picture.count(b"s5cmd") >= 1
    assert not (tmp_path / "images" / "performance-shaped.svg").exists()  # nothing of it was measured


def test_a_page_without_a_section_is_refused() -> None:
    """A section that is gone from the page is no table that is silently left out."""
    with pytest.raises(ValueError, match="loopback"):
        placed("# a page\n", "loopback", "a table")


def test_the_page_is_that_of_its_rows(tmp_path: Path) -> None:
    """docs/performance.md is what its rows make of it: nobody changed a figure by hand."""
    if not ROWS.exists():
        assert bench_page.NOTHING in PAGE.read_text(encoding="utf-8") or "-->\n<!-- end -->" in PAGE.read_text()
        return
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write(Rows.read(ROWS), page, tmp_path)
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_every_target_has_a_scenario_and_every_scenario_a_section() -> None:
    """What the design asks for is measured by something that exists, or the page says why not."""
    assert all((one.scenario in SCENARIOS) if one.scenario else one.lacks for one in TARGETS)
    assert set(SCENARIOS) <= set(SECTIONS)


def test_what_ours_did_not_finish_is_told() -> None:
    """A scenario that failed is not taken for one that was not run."""
    text = tables(rows(Row("single", "", "entrepot", 0, lacks="failed: 1 leases lapsed on one core")))
    assert "**Not finished**, failed: 1 leases lapsed on one core." in text


def test_no_rows_are_no_figures() -> None:
    """Without rows there is no verdict, no table and no plot, and nothing fails."""
    nothing = rows()
    assert [one.judge(nothing) for one in TARGETS] == [None] * len(TARGETS)
    assert "entrepot" not in tables(nothing).partition("targets")[0]
    plot(nothing, "loopback", Path("/nonexistent/never.svg"))


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str, **scenarios: Callable[[Plan], None]) -> int:
    """The command with these scenarios, no tools and a page of its own; its exit code."""
    found = {name: bench_transfer.Scenario(work, 1, 1) for name, work in scenarios.items()}
    monkeypatch.setattr(bench_transfer, "SCENARIOS", found)
    monkeypatch.setattr(bench_transfer, "tools", list)
    monkeypatch.setattr(bench_transfer, "warm", lambda size: None)
    monkeypatch.setattr(bench_transfer, "versions", dict)
    monkeypatch.setattr(bench_page, "write", lambda rows: None)
    return bench_transfer.main(["--quick", "--rows", str(tmp_path / "rows"), *words])


def test_what_failed_is_told_by_the_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A scenario that fails, as one whose lease lapsed, and a tool that is there and fails, end the command with 1; the
    other scenarios are run all the same. What a machine lacks is no failure."""

    def lapses(plan: Plan) -> None:
        raise RuntimeError("1 leases lapsed on one core")

    def stumbles(plan: Plan) -> None:
        plan.add(Row("wire", CASE, "rclone", 0, lacks=f"{FAILED} it ended with 1"))

    def lacks(plan: Plan) -> None:
        plan.add(Row("again", CASE, "s5cmd", 0, lacks="there is no s5cmd"))

    assert run(monkeypatch, tmp_path, single=lapses, again=lacks) == 1
    assert [row.scenario for row in Rows.read(tmp_path / "rows").rows] == ["single", "again"]
    assert run(monkeypatch, tmp_path, wire=stumbles) == 1
    assert run(monkeypatch, tmp_path, again=lacks) == 0


def test_rows_are_written_as_they_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When the command is ended, what it has measured until then is in the file, and of the rest the rows of the last
    time; a scenario that has not come to its end replaces nothing."""

    def tiny(plan: Plan) -> None:
        plan.add(Row("tiny", "1 KiB", "entrepot", 0, {"wall": 0.5}))

    def loopback(plan: Plan) -> None:
        plan.add(ours(7, 2.0))
        raise KeyboardInterrupt

    former = rows(ours(0, 4.0), Row("tiny", "1 KiB", "entrepot", 0, {"wall": 0.01}))
    Rows(former.machine, former.rows, {"loopback": {"run": "whole"}, "tiny": {"run": "whole"}}).write(tmp_path / "rows")
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path, "--write", tiny=tiny, loopback=loopback)
    found = Rows.read(tmp_path / "rows")
    assert [(row.scenario, row.values["wall"]) for row in found.rows] == [("loopback", 4.0), ("tiny", 0.5)]
    assert [found.runs[name]["run"] for name in ("loopback", "tiny")] == ["whole", "quick"]


def test_a_scenario_that_takes_too_long_does_not_hold_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that does not end has failed, and the next begins; one that should begin after the time for all keeps its
    former rows. Both are told by the exit code."""
    monkeypatch.setattr(bench_transfer, "_PATIENCE", 0.1)
    monkeypatch.setattr(bench_transfer, "_GRACE", 0.0)

    def hangs(plan: Plan) -> None:
        with limited(60):
            threading.Event().wait(60)

    def tiny(plan: Plan) -> None:
        with limited(60):
            plan.add(Row("tiny", "1 KiB", "entrepot", 0, {"wall": 0.5}))

    assert run(monkeypatch, tmp_path, single=hangs, tiny=tiny) == 1
    failed, fine = Rows.read(tmp_path / "rows").rows
    assert failed.lacks == "failed: it did not end within 0 s"
    assert fine.scenario == "tiny"
    assert run(monkeypatch, tmp_path, "--write", "--within", "0", tiny=tiny) == 1
    assert Rows.read(tmp_path / "rows").rows == [failed, fine]


def test_what_is_late_is_not_repeated() -> None:
    """A scenario measures once whatever the time, and again only while there is some; a part of ours that fails is a
    row and the next part follows."""
    made: list[Row] = []
    plan = Plan(False, (), made.append, lambda text: None, late=lambda: bool(made))
    assert list(plan.turns(3)) == [0, 1, 2]
    for case in ("one", "other"):
        with plan.part("loopback", case):
            for number in plan.turns(3):
                plan.add(Row("loopback", case, "entrepot", number, {"wall": 1.0}))
            raise RuntimeError("no such luck")
    assert [(row.case, row.run, row.lacks) for row in made] == [
        (case, 0, lacks) for case in ("one", "other") for lacks in (None, f"{FAILED} no such luck")
    ]


def test_scenarios_that_were_not_run_keep_their_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Written rows replace those of their own scenarios and no others."""

    def loopback(plan: Plan) -> None:
        plan.add(ours(7, 2.0))

    rows(ours(0, 4.0), Row("tiny", "1 KiB", "entrepot", 0, {"wall": 0.01})).write(tmp_path / "rows")
    assert run(monkeypatch, tmp_path, "--write", loopback=loopback) == 0
    assert [(row.scenario, row.run) for row in Rows.read(tmp_path / "rows").rows] == [("tiny", 0), ("loopback", 7)]
