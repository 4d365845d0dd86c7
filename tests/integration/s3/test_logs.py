"""One get is followed by its id through the logs of all who took part: both nodes, the hub, and the bucket."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.integration.s3.conftest import Ground, credentials, location
from tests.servers.nodes import SMALL, Site

from entrepot_hub.core.journal import EventKind

AGENT = re.compile(r"entrepot/[0-9.]+ \(transfer=([0-9a-f]{16})\)")


def lines(text: str) -> list[dict[str, Any]]:
    """The lines of a log that are JSON, as they are."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.blocking
def test_one_id_leads_through_all_logs(grounds: Mapping[str, Ground], tmp_path: Path, empty_home: Path) -> None:
    """The id that ``get --json`` prints is on the hub's and the providing daemon's lines of every object, and in the
    User-Agent of every upload and download that a real S3 server takes; another get has another one."""
    ground = grounds["ministack"]
    ground.relay.troubles.clear()
    site = Site(tmp_path, empty_home / secrets.token_hex(4))
    try:
        site.hub.words = ("--verbose", "--log-json")
        site.hub.start()
        bucket = location(ground.server, f"lab/{secrets.token_hex(4)}", public_endpoint=ground.relay.endpoint)
        site.hub.admin("channel.create", name="traced", bucket=bucket, quota=1 << 30,
                       credentials=credentials(ground.server), **SMALL)  # fmt: skip
        provider, requester = site.machine("provider", "traced"), site.machine("requester", "traced")
        provider.daemon = provider.start("up", "--verbose", "--log-json")
        provider.wait_up()
        objects = 4
        (uri,) = provider.add(provider.file("data.bin", objects * SMALL["object"]))
        ground.relay.agents.clear()
        got = requester.run("get", uri, "--json").fine().document
        transfer = got["transfer"]
        agents = list(ground.relay.agents)
        seen = [(method, found[1]) for method, agent in agents if (found := AGENT.fullmatch(agent))]
        assert sorted(seen) == sorted([("PUT", transfer)] * objects + [("GET", transfer)] * objects)

        hub = [line for line in lines((tmp_path / "hub.log").read_text()) if line.get("transfer") == transfer]
        by_kind = {kind: [line for line in hub if line["event"] == kind] for kind in EventKind}
        for kind in (EventKind.GRANTED, EventKind.UPLOADED):
            assert sorted(line["object"] for line in by_kind[kind]) == list(range(objects))
        assert by_kind[EventKind.ASKED]
        assert {line["stream"] for line in hub} == {got["stream"]}

        told = [line for line in lines(provider.daemon.told) if line.get("transfer") == transfer]
        assert sorted(line["object"] for line in told if line["event"] == "granted") == list(range(objects))
        assert sorted(line["object"] for line in told if line["event"] == "uploaded") == list(range(objects))

        other = site.machine("other", "traced")
        assert other.run("get", uri, "--json").fine().document["transfer"] != transfer
    finally:
        site.close()
