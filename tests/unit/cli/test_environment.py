"""What the commands take from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from entrepot.cli.environment import read_environment
from entrepot.core.errors import InvalidInput, NotFound

PROXIES = ["http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        *PROXIES,
        "REQUEST_METHOD",
        "ENTREPOT_HOME",
        "ENTREPOT_CA_FILE",
        "ENTREPOT_DEBUG",
        "ENTREPOT_PLAIN_HTTP",
        "ENTREPOT_BWLIMIT",
    ]:
        monkeypatch.delenv(name, raising=False)


def test_the_home_lies_in_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting the node lives in the user's data folder, also where there is no runtime folder."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    home = read_environment().home
    assert home.is_absolute()
    assert home.name == "entrepot"


def test_the_home_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ENTREPOT_HOME names the home; a tilde is the user's folder and an empty value counts as not set."""
    monkeypatch.setenv("ENTREPOT_HOME", str(tmp_path / "n"))
    assert read_environment().home == tmp_path / "n"
    monkeypatch.setenv("ENTREPOT_HOME", "~/n")
    assert read_environment().home == Path("~/n").expanduser()
    monkeypatch.setenv("ENTREPOT_HOME", "")
    assert read_environment().home.name == "entrepot"


def test_a_relative_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that depends on the working folder would be another one in each."""
    monkeypatch.setenv("ENTREPOT_HOME", "store")
    with pytest.raises(InvalidInput, match="absolute") as error:
        read_environment()
    assert error.value.kind == "invalid-setting"


def test_certificates_reach_every_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ENTREPOT_CA_FILE is trusted by hub, bus and bucket alike."""
    file = tmp_path / "ca.pem"
    file.write_text("")
    monkeypatch.setenv("ENTREPOT_CA_FILE", str(file))
    settings = read_environment().settings()
    assert settings.ca_file == str(file)
    assert settings.transfer_settings().ca_file == str(file)
    assert settings.hub_settings("https://hub.example.org").ca_file == str(file)


def test_missing_certificates_are_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of certificates that is not there is an error before anything is dialled."""
    monkeypatch.setenv("ENTREPOT_CA_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(NotFound, match="ENTREPOT_CA_FILE"):
        read_environment()


def test_proxies_reach_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual variables set the proxies of the bulk transfers and of the hub."""
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:3128")
    monkeypatch.setenv("http_proxy", "http://plain:3128")
    monkeypatch.setenv("NO_PROXY", "localhost, .lab.example ,10.0.0.1")
    environment = read_environment()
    settings = environment.settings()
    assert settings.hub_settings("https://hub.example.org").proxy == "http://user:secret@proxy:3128"
    transfer = settings.transfer_settings()
    assert transfer.https_proxy == "http://user:secret@proxy:3128"
    assert transfer.http_proxy == "http://plain:3128"
    assert transfer.no_proxy == ("localhost", ".lab.example", "10.0.0.1")
    assert settings.hub_settings("https://hub.lab.example:8443").proxy is None
    assert "secret" not in repr(environment)
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(("value", "debugging"), [("1", True), ("", False), ("0", False), ("yes", True)])
def test_debugging_is_asked_for(monkeypatch: pytest.MonkeyPatch, value: str, debugging: bool) -> None:
    """ENTREPOT_DEBUG is on unless it is empty or 0."""
    monkeypatch.setenv("ENTREPOT_DEBUG", value)
    assert read_environment().debug is debugging


@pytest.mark.parametrize(("value", "plain"), [("1", True), ("", False), ("0", False)])
def test_plain_http_is_asked_for(monkeypatch: pytest.MonkeyPatch, value: str, plain: bool) -> None:
    """A hub beyond this machine is reached without TLS only where ENTREPOT_PLAIN_HTTP says so."""
    monkeypatch.setenv("ENTREPOT_PLAIN_HTTP", value)
    assert read_environment().settings().hub.plain is plain


def test_a_limit_of_bandwidth_reaches_transfers_and_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENTREPOT_BWLIMIT limits what transfers move, and how many objects at once where it is small."""
    monkeypatch.setenv("ENTREPOT_BWLIMIT", "64K:10M")
    settings = read_environment().settings()
    assert str(settings.transfer_settings().bandwidth) == "64K:10M"
    assert (settings.pace.slots, settings.exchange.slots) == (1, 4)
    monkeypatch.setenv("ENTREPOT_BWLIMIT", "fast")
    with pytest.raises(InvalidInput, match="ENTREPOT_BWLIMIT") as error:
        read_environment()
    assert error.value.kind == "invalid-setting"
