"""``why`` tells the life of a stream, and ``doctor`` what a node lacks, at a real hub."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from tests.integration.cli.conftest import Cli, HubProcess, Nodes


@pytest.fixture
def lab(members: tuple[Cli, Cli]) -> Cli:
    return members[0]


@pytest.fixture
def office(members: tuple[Cli, Cli], tmp_path: Path) -> Cli:
    """The other node, in an empty folder."""
    return Cli(members[1].home, tmp_path)


def added(cli: Cli, name: str, size: int = 300_000) -> str:
    (cli.folder / name).write_bytes(os.urandom(size))
    done = cli.run("add", name)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_life_of_a_stream(lab: Cli, office: Cli) -> None:
    """Who asked, who offered and uploaded which objects, who read them, by one transfer, and that nobody waits now."""
    uri = added(lab, "life.nwb")
    got = office.run("get", uri)
    assert got.returncode == 0, got.stderr
    document = json.loads(office.run("why", uri, "--json").stdout)
    events = document["timeline"]["events"]
    told = {event["kind"]: event for event in events}
    assert {"asked", "sought", "offered", "granted", "uploaded", "told", "read", "stopped"} <= set(told)
    assert [told[kind]["node"] for kind in ("asked", "offered", "granted", "uploaded", "read")] == [
        "office", "lab", "lab", "lab", "office",
    ]  # fmt: skip
    objects = 300_000 // 65_536 + 1
    assert [(told[kind]["first"], told[kind]["last"]) for kind in ("uploaded", "read")] == [(0, objects - 1)] * 2
    assert told["uploaded"]["count"] == told["read"]["count"] == objects
    assert told["uploaded"]["bytes"] == document["timeline"]["info"]["bytes"]
    assert told["asked"]["transfer"] == told["granted"]["transfer"] == told["uploaded"]["transfer"]
    assert re.fullmatch("[0-9a-f]{16}", told["asked"]["transfer"])
    shown = office.run("why", uri)
    assert shown.returncode == 0, shown.stderr
    assert f"uploaded  by lab: objects 0–{objects - 1}" in shown.stdout
    assert "Nobody waits for it now." in shown.stdout
    assert "Cost: about " in shown.stdout


def test_what_a_stream_waits_for(lab: Cli, office: Cli, hub: HubProcess) -> None:
    """A stream that nobody who is online has is waited for, and why says so."""
    uri = added(lab, "gone.nwb")
    assert lab.run("down").returncode == 0
    try:
        failed = office.run("get", uri, "--timeout", "2s")
        assert failed.returncode == 3, failed.stderr
        waiting = office.run("why", uri)
        assert "waited   office: nobody who is online has it" in waiting.stdout, waiting.stdout
    finally:
        assert lab.run("up", "--detach").returncode == 0
    unknown = office.run("why", "entrepot://demo@" + hub.host + "/ff" + "0" * 62)
    assert (unknown.returncode, "nobody in this channel" in unknown.stderr) == (3, True)


def test_a_node_that_is_well(lab: Cli, hub: HubProcess) -> None:
    """Everything that a node needs is tried and found in order, down to the bucket of each channel."""
    added(lab, "well.nwb")
    document = json.loads(lab.run("doctor", "--json").stdout)
    outcomes = {check["name"]: check["outcome"] for check in document["checks"]}
    host = hub.host
    names = ["home", "key", "disk", "store", "daemon", f"{host} hub", f"{host} clock", f"{host} rights", f"{host} bus"]
    assert outcomes == dict.fromkeys([*names, f"{host} demo bucket"], "ok")
    shown = lab.run("doctor")
    assert (shown.returncode, "FAILED" in shown.stdout) == (0, False)
    assert lab.run("doctor", "--quiet").stdout == ""


def test_a_node_that_is_new(cli: Cli) -> None:
    """A node that joined nothing is told how to, and is left as it was."""
    shown = cli.run("doctor")
    assert shown.returncode == 0, shown.stderr
    assert "entrepot join" in shown.stdout
    assert not (cli.home / "seed").exists()


def test_a_node_that_is_ill(nodes: Nodes, hub: HubProcess) -> None:
    """A key that others can read, a bucket and a hub that are away are failures that say what mends them; the exit
    code is that of the first."""
    ill = nodes.member("ill", hub, "demo")
    (ill.home / "seed").chmod(0o644)
    bucket, away = hub.folder / "bucket-demo", hub.folder / "bucket-away"
    bucket.rename(away)
    try:
        shown = ill.run("doctor")
    finally:
        shutil.rmtree(bucket, ignore_errors=True)  # the hub may have made it again
        away.rename(bucket)
    assert shown.returncode == 4
    assert "FAILED   key: " in shown.stdout
    assert "chmod 600" in shown.stdout
    assert f"FAILED   {hub.host} demo bucket: " in shown.stdout
    assert f"(asked: {hub.host})" in shown.stdout
    assert "entrepot-hub channel doctor demo" in shown.stdout
    hubs = ill.home / "hubs.json"
    hubs.write_text(hubs.read_text().replace(hub.url, "http://127.0.0.1:9"))
    (ill.home / "seed").chmod(0o600)
    gone = ill.run("doctor")
    assert (gone.returncode, "is the hub running" in gone.stdout.lower()) == (6, True), gone.stdout


def test_files_that_changed_are_noticed_at_once(lab: Cli) -> None:
    """A linked file that was changed is named by doctor before anything else looked at it, which changes nothing; and
    why does not say that it is here."""
    uri = added(lab, "edited.nwb")
    assert re.search("^here +all of it$", lab.run("why", uri).stdout, re.MULTILINE)
    with (lab.folder / "edited.nwb").open("ab") as file:
        file.write(b"x")
    shown = lab.run("doctor", "--quiet")
    assert (shown.returncode, "changed or gone and not served: edited.nwb" in shown.stdout) == (0, True), shown.stdout
    assert re.search("^here +nothing$", lab.run("why", uri).stdout, re.MULTILINE)
    (lab.folder / "edited.nwb").unlink()
    assert lab.run("rm", uri, "--force").returncode == 0


def test_a_part_that_is_here_is_told(lab: Cli, office: Cli) -> None:
    """After a range was read, info and why tell how much is here, in the same fields."""
    uri = added(lab, "part.nwb")
    assert len(office.data("cat", uri, "--range", "0-20000")) == 20_001
    info = json.loads(office.run("info", uri, "--json").stdout)
    assert info["missing"] == 300_000 - 2 * 16_384
    assert info["held"] is False
    assert re.search("^here +32.0 KiB of 293 KiB$", office.run("info", uri).stdout, re.MULTILINE)
    story = json.loads(office.run("why", uri, "--json").stdout)
    assert set(story["info"]) == set(info)
    assert story["info"]["missing"] == info["missing"]


def test_a_node_that_was_revoked(nodes: Nodes, hub: HubProcess) -> None:
    """A node in no channel any more has failed, and with it what could not be tried."""
    gone = nodes.member("gone", hub, "demo")
    hub.run("channel", "revoke", "demo", "gone")
    shown = gone.run("doctor")
    assert shown.returncode == 4, shown.stdout
    assert f"FAILED   {hub.host} rights: " in shown.stdout
    assert f"note     {hub.host} bus: not tried" in shown.stdout
