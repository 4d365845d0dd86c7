"""What can be seen of a hub and of daemons while a stream passes: metrics, health, and the overview."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.node.conftest import Site

type Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def over_socket(path: Path, what: str) -> tuple[int, str]:
    """A GET over a socket in the file system: status and body."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
        http.get(f"http://local{what}") as response,
    ):
        return response.status, await response.text()


async def scraped(path: Path) -> list[Metric]:
    """What ``/metrics`` of a socket says, as Prometheus would read it."""
    status, text = await over_socket(path, "/metrics")
    assert status == 200, text
    return list(text_string_to_metric_families(text))


def value(families: Iterable[Metric], name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels."""
    found = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert found, f"{name} {labels}"
    return sum(found)


async def passed(site: Site, original: Path) -> None:
    """A file is added on one machine, served by its daemon, and fetched on another."""
    provider, requester = await site.node("provider"), await site.node("requester")
    await site.up("provider")
    added = await provider.add(original)
    got = await requester.get(str(added.uri), original.with_name("copy.bin"))
    assert got.path.read_bytes() == original.read_bytes()


async def test_a_scrape_of_the_hub_tells_what_passed(site: Site, original: Path, data: bytes) -> None:
    """After nine objects passed, the hub's metrics tell of as many grants, objects and bytes, and of the quota."""
    await passed(site, original)
    families = await scraped(site.grid.socket)
    demo = {"channel": "demo"}
    assert value(families, "entrepot_hub_objects_ready_total", **demo) == 9
    assert value(families, "entrepot_hub_object_ready_bytes_total", **demo) > len(data)
    assert value(families, "entrepot_hub_grants_total", **demo) == 9
    assert value(families, "entrepot_hub_grants_ended_total", reason="done", **demo) == 9
    assert value(families, "entrepot_hub_reads_signed_total", **demo) == 9
    assert value(families, "external_storage_upload_duration_seconds_count", **demo) == 9
    assert value(families, "entrepot_hub_channel_quota_bytes", **demo) == 1 << 30
    stored = value(families, "entrepot_hub_channel_stored_bytes", **demo)
    assert stored == value(families, "entrepot_hub_object_ready_bytes_total", **demo)
    assert value(families, "entrepot_hub_channel_reserved_bytes", **demo) == 0
    assert value(families, "entrepot_hub_messages_total", verb="want", outcome="ok") >= 1
    assert value(families, "entrepot_hub_message_seconds_count", verb="accept") == 9
    assert value(families, "entrepot_hub_signatures_total", method="put", **demo) == 9
    assert value(families, "entrepot_hub_bucket_requests_total", operation="head", outcome="ok", **demo) >= 9
    assert value(families, "entrepot_hub_http_request_seconds_count", route="/v1/session", status="200") >= 2
    assert value(families, "entrepot_hub_database_seconds_count", outcome="ok") > 9
    assert value(families, "entrepot_hub_nats_connected") == 1
    assert value(families, "entrepot_hub_ready", check="database") == 1
    assert value(families, "entrepot_hub_seeks_total", **demo) >= 1
    assert value(families, "process_resident_memory_bytes") > 1 << 20
    assert not any(sample.name.endswith("_created") for family in families for sample in family.samples)


async def test_a_scrape_of_a_daemon_tells_what_it_sent(site: Site, original: Path) -> None:
    """The provider's daemon tells its grants, objects, bytes, durations, hubs and store on its own socket."""
    await passed(site, original)
    families = await scraped(site.settings("provider").socket)
    assert value(families, "entrepot_grants_total") == 9
    assert value(families, "entrepot_uploads_total", outcome="ok") == 9
    assert value(families, "external_storage_upload_duration_seconds_count") == 9
    assert value(families, "entrepot_upload_bytes_total") > original.stat().st_size
    assert value(families, "entrepot_offers_total") >= 1
    assert value(families, "entrepot_hubs", state="up") == 1
    assert value(families, "entrepot_bus_connects_total") >= 1
    assert value(families, "entrepot_store_streams") == 1
    assert value(families, "entrepot_store_linked_bytes") == original.stat().st_size


async def test_the_hub_never_serves_metrics_where_nodes_ask(site: Site) -> None:
    """/metrics at the hub's public address is nothing."""
    async with aiohttp.ClientSession() as http, http.get(f"{site.grid.url}/metrics") as response:
        assert response.status == 404
        assert b"entrepot_hub" not in await response.read()


async def test_the_overview_names_channels_and_nodes(site: Site, original: Path) -> None:
    """The operation ``top`` tells of the channel's bytes, of who brought and fetched them, and that all is well."""
    await passed(site, original)
    top: dict[str, Any] = await site.grid.admin("top")
    (channel,) = top["channels"]
    assert channel["name"] == "demo"
    assert channel["stored"] == channel["sums"]["uploaded"] == channel["sums"]["downloaded"]
    assert channel["bucket"] == "ok"
    assert channel["sums"]["requests"] > 0
    nodes = {node["name"]: node["sums"] for node in top["nodes"]}
    assert nodes["provider"]["uploads"] == nodes["requester"]["downloads"] == 9
    assert top["nats"] is True
    assert {state for name, state in top["checks"].items() if name != "event-loop"} == {"ok"}


async def test_a_daemon_is_ready_while_a_hub_is_up(site: Site) -> None:
    """/healthz answers whatever happens; /readyz turns 503 when no hub that was joined is up any more."""
    await site.node("provider")
    await site.up("provider")
    socket = site.settings("provider").socket
    status, text = await over_socket(socket, "/readyz")
    assert status == 200, text
    await site.grid.stop()
    async with asyncio.timeout(30):
        while (await over_socket(socket, "/readyz"))[0] == 200:
            await asyncio.sleep(0.05)
    assert (await over_socket(socket, "/healthz"))[0] == 200
