"""Whether a hub can work is told truly; its metrics have an address of their own if one is given; ``top`` shows it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.servers.grid import Content, Grid

from entrepot_hub.services.overview import OverviewSettings

type Checks = dict[str, str]


async def readyz(grid: Grid) -> tuple[int, Checks]:
    """What ``/readyz`` says: its status, and the checks."""
    async with aiohttp.ClientSession() as http, http.get(f"{grid.url}/readyz") as response:
        return response.status, (await response.json())["checks"]


async def becomes(grid: Grid, true: Callable[[int, Checks], bool]) -> Checks:
    """The checks, once it says that."""
    async with asyncio.timeout(40):
        while True:
            status, checks = await readyz(grid)
            if true(status, checks):
                return checks
            await asyncio.sleep(0.1)


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """An ``entrepot-hub`` command."""
    command = [sys.executable, "-m", "entrepot_hub.cli.main", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def test_a_database_that_takes_no_writes_makes_it_unready(grid: Grid) -> None:
    """Where nothing can be written /readyz says 503 and why, and 200 once it can; the metrics are told all the same."""
    hub = grid.hub
    assert hub is not None

    def only_reads(on: str) -> None:
        kept = hub._database._kept
        assert kept is not None
        with kept._turn:  # between two transactions of the one connection
            kept._raw.execute(f"PRAGMA query_only = {on}")

    await becomes(grid, lambda status, _: status == 200)
    await asyncio.to_thread(only_reads, "ON")
    checks = await becomes(grid, lambda status, _: status == 503)
    assert checks["database"] == "unreadable"
    assert checks["nats"] == "ok"
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(grid.socket))) as http,
        http.get("http://hub/metrics") as response,
    ):
        assert response.status == 200
        assert 'entrepot_hub_ready{check="database"} 0.0' in await response.text()
    await asyncio.to_thread(only_reads, "OFF")
    await becomes(grid, lambda status, _: status == 200)


async def test_time_that_stands_still_for_the_rounds_makes_it_unready(grid: Grid) -> None:
    """A hub whose timer hangs arranges no upload any more: it answers, but it is not ready."""
    hub = grid.hub
    assert hub is not None
    going_on = asyncio.Event()
    tick = hub._arbiter.tick

    async def hanging() -> float | None:
        await going_on.wait()
        return await tick()

    hub._overview.settings = OverviewSettings(stuck=1.5)
    await becomes(grid, lambda status, checks: checks["exchange"] == "ok")
    hub._arbiter.tick = hanging  # type: ignore[method-assign]
    await becomes(grid, lambda status, checks: status == 503 and checks["exchange"] == "busy")
    going_on.set()
    await becomes(grid, lambda status, checks: status == 200 and checks["exchange"] == "ok")


async def test_messages_that_do_not_end_make_it_unready(grid: Grid, content: Content) -> None:
    """When as many messages as may be are in work and none ends, nobody is served: 503."""
    hub = grid.hub
    assert hub is not None
    going_on = asyncio.Event()
    hub._overview.settings = OverviewSettings(stuck=1.5)
    hub._dispatcher._settings = type(hub._dispatcher._settings)(at_once=1)
    want = hub._exchange.want

    async def hanging(*told: Any) -> Any:
        await going_on.wait()
        return await want(*told)

    hub._exchange.want = hanging  # type: ignore[method-assign,assignment]
    hub._dispatcher._known = hub._dispatcher._verbs()
    peer = await grid.peer("reader")
    asking = asyncio.create_task(peer.want(content))
    await becomes(grid, lambda status, checks: status == 503 and checks["exchange"] == "busy")
    going_on.set()
    await asking
    await becomes(grid, lambda status, _: status == 200)


@pytest.mark.blocking
async def test_a_late_event_loop_is_told_and_no_reason_to_stop(grid: Grid) -> None:
    """What holds the event loop is seen by the watch: the hub is degraded, and its lateness is in the metrics."""
    hub = grid.hub
    assert hub is not None
    await becomes(grid, lambda status, _: status == 200)
    hub._overview.settings = OverviewSettings(late=0.5)
    time.sleep(1.5)  # what must never happen
    await becomes(grid, lambda status, checks: status == 200 and checks["event-loop"] == "degraded")
    assert hub._overview.lag > 0.5


async def test_without_a_bus_it_is_not_ready(grid: Grid) -> None:
    """When NATS is gone and does not come back, /readyz names it."""
    hub = grid.hub
    assert hub is not None
    assert hub._nats is not None
    await becomes(grid, lambda status, _: status == 200)
    await hub._nats.aclose()
    checks = await becomes(grid, lambda status, _: status == 503)
    assert checks["nats"] != "ok"
    assert checks["database"] == "ok"


async def test_metrics_have_an_address_of_their_own_if_it_is_given(tmp_path: Path) -> None:
    """``metrics`` in hub.toml serves /metrics and the health pages there; the operations of the admin are not there."""
    grid = Grid(tmp_path)
    await grid.prepare()
    path = tmp_path / "hub" / "hub.toml"
    text = await asyncio.to_thread(path.read_text)
    await asyncio.to_thread(path.write_text, 'metrics = "127.0.0.1:0"\n' + text)
    try:
        await grid.start()
        assert grid.hub is not None
        assert grid.hub.metrics_port
        base = f"http://127.0.0.1:{grid.hub.metrics_port}"
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{base}/metrics") as response:
                assert response.status == 200
                assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                names = {family.name for family in text_string_to_metric_families(await response.text())}
            assert "entrepot_hub_info" in names
            async with asyncio.timeout(40):  # on a busy machine a hub that has just started may be behind
                ready = 0
                while ready != 200:
                    await asyncio.sleep(0.1)
                    async with http.get(f"{base}/readyz") as response:
                        ready = response.status
            async with http.post(f"{base}/admin/status", json={}) as response:
                assert response.status == 404
    finally:
        await grid.aclose()


async def test_top_shows_what_passes(grid: Grid, content: Content) -> None:
    """``top --json`` has sums and rates for the hub, its channels and nodes; ``--once`` is a table for people."""
    holder, reader = await grid.peer("holder"), await grid.peer("reader")
    serving = asyncio.create_task(holder.serve_all(content))
    try:
        asking = asyncio.create_task(asyncio.to_thread(run, "top", "--json", "--folder", grid.folder / "hub"))
        await reader.want(content)
        async with asyncio.timeout(20):
            while len(set(holder.uploaded)) < 5:
                await asyncio.sleep(0.05)
        done = await asking
        assert done.returncode == 0, done.stderr
        first = json.loads(done.stdout)
        assert first["interval"] > 0
        assert {"messages", "uploaded", "evicted"} <= set(first["rates"])
        done = await asyncio.to_thread(run, "top", "--json", "--folder", grid.folder / "hub")
        told = json.loads(done.stdout)
        (channel,) = told["channels"]
        assert (channel["name"], channel["sums"]["uploads"]) == ("demo", 5)
        assert channel["stored"] == channel["sums"]["uploaded"]
        assert channel["rates"]["uploaded"] == 0
        assert {node["name"] for node in told["nodes"]} >= {"holder"}
        done = await asyncio.to_thread(run, "top", "--once", "--folder", grid.folder / "hub")
        assert done.returncode == 0
        assert "ready" in done.stdout
        assert "demo" in done.stdout
        assert "holder" in done.stdout
    finally:
        serving.cancel()
        await asyncio.wait([serving])


async def test_top_needs_a_running_hub(tmp_path: Path) -> None:
    """Where no hub runs, ``top`` says so and ends with 3."""
    grid = Grid(tmp_path)
    await grid.prepare()
    done = await asyncio.to_thread(run, "top", "--folder", tmp_path / "hub")
    assert done.returncode == 3
    assert "no hub is running" in done.stderr
