"""What a hub remembers of its traffic, where its metrics are served, and what people see of a quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from entrepot.core.errors import InvalidInput
from entrepot_hub.cli.top import _bar
from entrepot_hub.core.traffic import Traffic
from entrepot_hub.services.settings import Listen, parse_settings


def test_of_many_nodes_those_that_do_most_are_remembered() -> None:
    """However many nodes there are, memory is bounded, and whoever moves much stays."""
    traffic = Traffic(most=100)
    traffic.of_node("busy").add(uploads=5, uploaded=10**9)
    for number in range(1000):
        traffic.of_node(f"node{number}").add(messages=1)
    assert len(traffic.nodes) <= 100
    assert traffic.nodes["busy"].uploaded == 10**9
    assert traffic.nodes["node999"].messages == 1


def settings(line: str):
    return parse_settings(Path("/srv/hub"), f'urls = ["https://hub.example.org"]\n{line}\n'.encode())


def test_metrics_have_no_address_unless_one_is_given() -> None:
    """By default /metrics is on the admin's socket alone."""
    assert settings("").metrics is None
    assert settings('metrics = "127.0.0.1:9464"').metrics == Listen("127.0.0.1", 9464)


@pytest.mark.parametrize("text", ["", "9464", "127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:9464"])
def test_what_is_no_address_for_metrics_is_refused(text: str) -> None:
    """A wrong address is an invalid setting when the hub starts, not later."""
    with pytest.raises(InvalidInput) as caught:
        settings(f'metrics = "{text}"')
    assert caught.value.kind == "invalid-setting"


@pytest.mark.parametrize(
    ("stored", "reserved", "quota", "shown"),
    [
        (0, 0, 100, "················   0 %"),
        (50, 25, 100, "████████▒▒▒▒····  75 %"),
        (100, 0, 100, "████████████████ 100 %"),
        (150, 0, 100, "████████████████ 100 %"),
        (3, 0, 100, "▌···············   3 %"),
        (0, 0, 0, "················   0 %"),
    ],
)
def test_a_quota_is_a_bar(stored: int, reserved: int, quota: int, shown: str) -> None:
    """Stored, reserved and free share a bar of sixteen characters, whatever the numbers are."""
    assert _bar(stored, reserved, quota).plain == shown
