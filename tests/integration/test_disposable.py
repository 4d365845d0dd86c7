"""The hub is disposable: killed and its database deleted in the middle of a transfer, it comes back from its export."""

from __future__ import annotations

import filecmp
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.servers.ministack import run_ministack
from tests.servers.nodes import MIB, SMALL, Command, Ended, Machine, Site
from tests.servers.relay import Relay, noted

PASSWORD = "correct horse battery"


@pytest.fixture
def site(tmp_path: Path, empty_home: Path) -> Iterator[Site]:
    """A site without a hub that runs."""
    made = Site(tmp_path, empty_home / secrets.token_hex(4))
    yield made
    made.close()


@pytest.fixture
def password(tmp_path: Path) -> Path:
    """A file with the export's password."""
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    return path


def exported(site: Site, password: Path) -> Path:
    """An export of the site's hub."""
    path = site.folder / "hub.export"
    site.hub.command("export", str(path), "--password-file", str(password)).fine()
    return path


def lose(site: Site) -> None:
    """The hub is killed, and all that it had on its disk is gone."""
    site.hub.kill()
    shutil.rmtree(site.hub.folder)


def rebuilt(site: Site, export: Path, password: Path, *more: str) -> Ended:
    """The hub's folder out of the export."""
    return site.hub.command("rebuild", "--from", str(export), "--password-file", str(password), "--json", *more)


def told(site: Site) -> dict[str, Any]:
    """Who may do what in the channel, as the hub tells it."""
    shown = site.hub.admin("channel.show", name="demo")
    members = [(member["node"], member["rights"], member["revoked_at"]) for member in shown["members"]]
    pins = site.hub.admin("channel.pins", name="demo")["pins"]
    return {
        "members": members,
        "invites": shown["invites"],
        "quota": shown["channel"]["quota"],
        "pins": [(pin["stream"], pin["kind"], pin["at"]) for pin in pins],
    }


def transfer(site: Site, relay: Relay) -> tuple[Command, Machine, Path, Machine, str]:
    """A transfer that stands still half-way: the get, who runs it, the original, a member who was revoked, the URI."""
    holder, reader, stranger = (site.machine(name) for name in ("holder", "reader", "stranger"))
    site.hub.admin("channel.revoke", name="demo", node="stranger")
    original = holder.file("original.bin", 8 * MIB)
    (uri,) = holder.add(original)
    holder.up()
    relay.hold("PUT", 4 * MIB)
    get = reader.start("get", uri, "-o", "copy.bin", "--json")
    relay.wait_held("PUT")
    site.hub.admin("channel.pin", name="demo", stream=uri)
    return get, reader, original, stranger, uri


@pytest.mark.timeout(300)
def test_a_transfer_survives_the_loss_of_the_hub(site: Site, password: Path, report: Callable[..., None]) -> None:
    """The hub is killed in the middle of a transfer and its whole folder deleted; out of the export it comes back on
    the same address, and the running get ends with the right bytes, with nobody joining again. Rights, invites and pins
    are what they were, and who was revoked is refused."""
    site.start()
    get, reader, original, stranger, uri = transfer(site, site.relay)
    before, export = told(site), exported(site, password)
    lose(site)
    lost = time.monotonic()
    site.relay.release()
    found = rebuilt(site, export, password).fine().document
    site.hub.start()
    get.wait().fine()
    seconds = time.monotonic() - lost
    report("recoveries", fault="hub's database lost", point="mid-transfer", seconds=round(seconds, 1))
    noted("hub's folder deleted, until the file is there", seconds)
    assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)
    assert len(site.hub.objects()) == 32
    (channel,) = found["channels"]
    assert channel["adopted"] >= 8
    assert told(site) == before
    assert stranger.run("get", uri, "-o", "copy.bin", "--timeout", "20s").code == 4


@pytest.mark.timeout(300)
def test_on_s3_and_in_the_same_folder(site: Site, password: Path, tmp_path: Path, report: Callable[..., None]) -> None:
    """On S3, where URLs that were signed before go on working, and with only the database deleted: the running get ends
    with the right bytes, the quota holds, and what landed meanwhile is taken in."""
    with run_ministack(tmp_path) as server:
        relay = Relay(int(server.endpoint.rpartition(":")[2])).start()
        try:
            site.hub.start()
            keys = json.dumps({"access_key": server.access_key, "secret_key": server.secret_key})
            # What nodes do there goes through a relay, which sees what is below /bucket/; the hub goes its own way.
            fields = {
                "endpoint": server.endpoint,
                "public_endpoint": f"http://127.0.0.1:{relay.port}",
                "region": server.region,
                "create": "true",
            }
            url = "s3://bucket/lab?" + "&".join(f"{name}={quote(value, safe=':/')}" for name, value in fields.items())
            site.hub.admin("channel.create", name="demo", bucket=url, credentials=keys, quota=16 * MIB, **SMALL)
            get, reader, original, _, _ = transfer(site, relay)
            before, export = told(site), exported(site, password)
            data = export.read_bytes()
            assert server.secret_key.encode() not in data
            assert server.access_key.encode() not in data
            site.hub.kill()
            for path in site.hub.folder.glob("hub.db*"):
                path.unlink()
            lost = time.monotonic()
            relay.release()
            (channel,) = rebuilt(site, export, password).fine().document["channels"]
            site.hub.start()
            get.wait().fine()
            report(
                "recoveries", fault="hub's database lost (S3)", point="mid-transfer",
                seconds=round(time.monotonic() - lost, 1),
            )  # fmt: skip
            assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)
            assert channel["adopted"] >= 8
            assert channel["held"] > 0
            assert told(site) == before
            (listed,) = site.hub.admin("channel.list")
            assert 8 * MIB < listed["charged"] <= 16 * MIB
            compared = site.hub.command("channel", "reconcile", "demo", "--json").fine().document
            assert set(compared["counts"]) <= {"found"}
        finally:
            relay.close()
