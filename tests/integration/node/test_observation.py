"""What commands and daemons, as processes, tell of themselves: metrics where they are asked for, and quiet logs."""

from __future__ import annotations

import contextlib
import secrets
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.node.test_seeing import value
from tests.servers.grid import free_port
from tests.servers.nodes import Site

from entrepot.core.errors import InvalidInput
from entrepot.services.observation import MetricsAddress


def page(url: str) -> tuple[int, str]:
    """A GET: status and body."""
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            return error.code, error.read().decode()


@pytest.mark.blocking
def test_metrics_are_told_where_they_are_asked_for(tmp_path: Path, empty_home: Path) -> None:
    """``up --metrics`` serves a daemon's metrics and health at its address, ``get --metrics-file`` leaves a get's in a
    file, also of one that fails; and without ``--verbose`` no log has a line of the stream."""
    site = Site(tmp_path, empty_home / secrets.token_hex(4)).start()
    try:
        provider, requester = site.machine("provider"), site.machine("requester")
        port = free_port()
        provider.daemon = provider.start("up", "--metrics", f"127.0.0.1:{port}")
        provider.wait_up()
        (uri,) = provider.add(provider.file("data.bin", 600_000))
        file = tmp_path / "get.prom"
        requester.run("get", uri, "--metrics-file", file).fine()
        got = list(text_string_to_metric_families(file.read_text()))
        assert value(got, "entrepot_downloads_total", outcome="ok") == 3
        assert value(got, "entrepot_download_bytes_total") == 600_000
        assert value(got, "external_storage_download_duration_seconds_count") == 3
        assert not any(family.type == "gauge" for family in got)
        assert not list(tmp_path.glob(".get.prom*"))

        sent = list(text_string_to_metric_families(page(f"http://127.0.0.1:{port}/metrics")[1]))
        assert value(sent, "external_storage_upload_duration_seconds_count") == 3
        assert value(sent, "entrepot_info", version="0.1.0") == 1
        assert page(f"http://127.0.0.1:{port}/readyz")[0] == 200
        assert page(f"http://127.0.0.1:{port}/v1/status")[0] == 404

        stream = uri.split("/")[3]
        assert len(stream) == 64
        assert stream not in (tmp_path / "hub.log").read_text()
        assert stream not in provider.daemon.told

        gone = uri.replace(stream, "ff" + "0" * 62)
        failed = requester.run("get", gone, "-o", tmp_path / "no", "--timeout", "1s", "--metrics-file", file, "--json")
        assert failed.code != 0, failed.out
        assert len(str(failed.error["data"]["transfer"])) == 16
        assert "entrepot_download_bytes_total 0.0" in file.read_text()
    finally:
        site.close()


@pytest.mark.parametrize("text", ["127.0.0.1:0", "localhost:9465", "[::1]:9465", "127.8.8.8:1"])
def test_an_address_of_this_machine_is_taken(text: str) -> None:
    """Metrics may be served at any address of the loopback interface."""
    found = MetricsAddress.parse(text)
    assert found.port == int(text.rpartition(":")[2])
    assert "[" not in found.host


@pytest.mark.parametrize("text", ["0.0.0.0:9465", "192.0.2.1:9465", "[::]:9465", "node.example.org:9465"])
def test_an_address_that_others_reach_has_to_be_meant(text: str) -> None:
    """Beyond this machine metrics are served only with ``--metrics-anywhere``."""
    with pytest.raises(InvalidInput) as caught:
        MetricsAddress.parse(text)
    assert "--metrics-anywhere" in str(caught.value.hint)
    assert MetricsAddress.parse(text, anywhere=True).anywhere


@pytest.mark.parametrize("text", ["", "9465", ":9465", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:-1", "127.0.0.1:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """Anything else is an invalid setting that says what to write."""
    with pytest.raises(InvalidInput) as caught:
        MetricsAddress.parse(text, anywhere=True)
    assert caught.value.kind == "invalid-setting"
