"""docs/metrics.md names every metric of hub and node with its type, labels and buckets, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from entrepot.adapters import metrics as node
from entrepot_hub.adapters import metrics as hub

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def quick() -> tuple[float, ...]:
    found = re.search(r"`quick` buckets are ([0-9., ]+)\.\n", PAGE)
    assert found is not None
    return tuple(float(each) for each in found[1].split(", "))


def documented(title: str) -> dict[str, tuple[str, tuple[str, ...], tuple[float, ...], str]]:
    """What the page says: type, labels, buckets and meaning by name."""
    rows = {}
    for name, kind, labels, buckets, meaning in _ROW.findall(section(title)):
        bounds = quick() if buckets == "quick" else () if buckets == "–" else tuple(map(float, buckets.split(", ")))
        rows[name] = (kind, tuple(re.findall(r"`(\w+)`", labels)), bounds, meaning)
    return rows


def counted(registry: CollectorRegistry) -> dict[str, tuple[str, tuple[str, ...], tuple[float, ...], str]]:
    """What there is, in the same form."""
    found = {}
    collectors: list[Any] = list(registry._collector_to_names)  # the library tells labels and buckets nowhere else
    for one in collectors:
        name = one._name + ("_total" if one._type == "counter" else "")
        found[name] = (one._type, one._labelnames, tuple(one._kwargs.get("buckets", ())), one._documentation)
    return found


@pytest.mark.parametrize(
    ("title", "registry"),
    [("The hub's", hub.HubMetrics().registry), ("The node's", node.NodeMetrics().registry)],
    ids=["hub", "node"],
)
def test_the_page_names_what_is_counted(title: str, registry: CollectorRegistry) -> None:
    """Name, type, labels, buckets and meaning on the page are those of the code."""
    assert documented(title) == counted(registry)


def test_the_buckets_of_external_storage_are_those_that_were_promised() -> None:
    """Dashboards of miniblock storage go on to work: its two histograms have the names and buckets they always had."""
    names = counted(node.NodeMetrics().registry)
    assert names["external_storage_upload_duration_seconds"][2] == (1, 2.5, 5, 10, 20)
    assert names["external_storage_download_duration_seconds"][2] == (0.5, 1, 2.5, 5, 10, 15)
    assert counted(hub.HubMetrics().registry)["external_storage_upload_duration_seconds"][2] == (1, 2.5, 5, 10, 20)


def test_only_so_many_channels_have_a_label() -> None:
    """However many channels and errors there are, the number of series is bounded."""
    metrics = hub.HubMetrics()
    for number in range(hub.MOST_LABELS + 200):
        metrics.granted(f"channel{number}", f"node{number}")
        metrics.ended("channel0", "node", f"made-up-{number}")
    lines = metrics.exposition().decode().splitlines()
    grants = [line for line in lines if line.startswith("entrepot_hub_grants_total{")]
    assert len(grants) == hub.MOST_LABELS + 1
    assert 'entrepot_hub_grants_total{channel="other"} 200.0' in grants
    assert [line for line in lines if line.startswith("entrepot_hub_grants_ended_total{")] == [
        f'entrepot_hub_grants_ended_total{{channel="channel0",reason="other"}} {hub.MOST_LABELS + 200}.0'
    ]
    assert not any("node" in line for line in grants)


def test_two_registries_do_not_meet() -> None:
    """Several hubs and daemons in one process count each for itself."""
    first, second = hub.HubMetrics(), hub.HubMetrics()
    first.dropped("node")
    assert b'entrepot_hub_messages_dropped_total{reason="node"} 1.0' in first.exposition()
    assert b"entrepot_hub_messages_dropped_total{" not in second.exposition()
