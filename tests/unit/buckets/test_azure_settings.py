"""How a container of Azure is described, and what is refused before anything is asked."""

from __future__ import annotations

import base64
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.azure_settings import AzureSettings
from entrepot_hub.adapters.buckets.credentials import AzureClient, AzureKey

SECRET = base64.b64encode(b"hidden").decode()
KEY = AzureKey(account="acme01", key=SECRET)
CLIENT = AzureClient(account="acme01", tenant="acme.example.org", client="app", secret="hidden")
SETTINGS = AzureSettings(container="cache", credentials=KEY)
LOCK = Path(__file__).resolve().parents[3] / "requirements" / "azurite" / "package-lock.json"


def test_an_account_has_an_address_of_its_own() -> None:
    """Without an endpoint the account's own in the public cloud is used, by hub and nodes."""
    assert SETTINGS.base == "https://acme01.blob.core.windows.net"
    assert SETTINGS.public_base == "https://acme01.blob.core.windows.net/cache"
    assert SETTINGS.authority == "https://login.microsoftonline.com"


def test_hub_and_nodes_may_use_different_addresses() -> None:
    """The public endpoint stands in URLs, the other one is the hub's; a slash at the end makes no difference."""
    settings = replace(SETTINGS, endpoint="http://10.0.0.5:10000/acme01/", public_endpoint="https://blobs.example.org/")
    assert settings.base == "http://10.0.0.5:10000/acme01"
    assert settings.public_base == "https://blobs.example.org/cache"


@pytest.mark.parametrize(
    ("endpoint", "authority"),
    [
        ("https://acme01.blob.core.chinacloudapi.cn", "https://login.chinacloudapi.cn"),
        ("https://acme01.blob.core.usgovcloudapi.net", "https://login.microsoftonline.us"),
        ("https://usgovcloudapi.net.example.org", "https://login.microsoftonline.com"),
    ],
)
def test_national_clouds_have_tokens_of_their_own(endpoint: str, authority: str) -> None:
    """Where an application gets its tokens follows from where the account is."""
    assert AzureSettings(container="cache", credentials=CLIENT, endpoint=endpoint).authority == authority


@pytest.mark.parametrize(
    "container", ["", "ab", "a" * 64, "Cache", "a_b", "-ab", "ab-", "a--b", "a/b", "a.b", "$root", "cache\n"]
)
def test_what_is_no_containers_name_is_refused(container: str) -> None:
    """Containers have 3 to 63 small letters, digits and single hyphens."""
    with pytest.raises(InvalidInput) as caught:
        replace(SETTINGS, container=container)
    assert caught.value.kind == "invalid-setting"


@pytest.mark.parametrize(
    "credentials",
    [
        replace(KEY, account="ab"),
        replace(KEY, account="evil.example.org/x"),
        replace(KEY, account="a" * 25),
        replace(KEY, key="not base64: hidden"),
        replace(KEY, key=SECRET + "ä"),
        replace(CLIENT, tenant=""),
        replace(CLIENT, tenant="a/../b"),
        replace(CLIENT, client=""),
        replace(CLIENT, secret=""),
    ],
)
def test_credentials_that_cannot_be_are_refused_without_showing_them(credentials: AzureKey | AzureClient) -> None:
    """Accounts, keys, tenants and secrets of a wrong form are told, and no secret is in the error."""
    with pytest.raises(InvalidInput) as caught:
        AzureSettings(container="cache", credentials=credentials)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hidden" not in repr(error)
        assert SECRET not in repr(error)
        error = error.__cause__


@pytest.mark.parametrize("field", ["endpoint", "public_endpoint"])
@pytest.mark.parametrize(
    "value", ["", "acme", "ftp://a", "http://", "http://a:b", "http://u:p@a", "http://a?x=y", "http://a#b", "http://[a"]
)
def test_what_is_no_endpoint_is_refused(field: str, value: str) -> None:
    """An endpoint is http or https with a host, and without anything that could carry a signature."""
    with pytest.raises(InvalidInput):
        AzureSettings(container="cache", credentials=KEY, **{field: value})  # type: ignore[arg-type]


def test_an_application_wants_https() -> None:
    """A token is not sent in clear; a key, which signs and is never sent, may be used over http."""
    with pytest.raises(InvalidInput):
        AzureSettings(container="cache", credentials=CLIENT, endpoint="http://10.0.0.5:10000/acme01")
    assert replace(SETTINGS, endpoint="http://10.0.0.5:10000/acme01").base.startswith("http://")


@pytest.mark.parametrize("change", [{"connect_timeout": 0}, {"read_timeout": -1}, {"attempts": 0}, {"threads": 0}])
def test_limits_are_positive(change: dict[str, float]) -> None:
    """Nothing waits for ever, and somebody works."""
    with pytest.raises(InvalidInput):
        replace(SETTINGS, **change)  # type: ignore[arg-type]


def test_secrets_do_not_show() -> None:
    """The repr of settings names the account and hides key and secret."""
    for credentials in (KEY, CLIENT):
        text = repr(AzureSettings(container="cache", credentials=credentials))
        assert "acme01" in text
        assert SECRET not in text
        assert "hidden" not in text


@pytest.mark.parametrize("missing", ["azure.core", "azure.identity", "azure.storage.blob"])
def test_without_its_libraries_the_driver_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed the error names it."""
    for name in ("azure", "azure_account", "azure_errors"):
        monkeypatch.delitem(sys.modules, f"entrepot_hub.adapters.buckets.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InvalidInput) as caught:
        importlib.import_module("entrepot_hub.adapters.buckets.azure")
    assert (caught.value.kind, caught.value.hint) == ("invalid-setting", "Install entrepot[hub,azure]")


def test_the_lock_of_the_test_server_names_no_host() -> None:
    """Every package of Azurite's lock has a version and a hash, and comes from whichever registry npm is set up to
    use."""
    text = LOCK.read_text(encoding="utf-8")
    assert "://" not in text
    packages = {name: package for name, package in json.loads(text)["packages"].items() if name}
    assert len(packages) > 100
    assert all(package["integrity"].startswith("sha512-") and package["version"] for package in packages.values())
