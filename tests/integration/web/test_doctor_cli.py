"""``entrepot-hub channel doctor`` and ``policy`` as their users run them, beside a hub that runs and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration.web.test_cli import Command
from tests.servers.grid import running_grid
from tests.servers.rclone import run_rclone

pytestmark = pytest.mark.blocking  # looks at files


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """The command with a hub."""
    made = Command(tmp_path / "hub")
    made("init", "--url", "http://127.0.0.1:8480")
    return made


def checks(found: Any) -> dict[str, str]:
    return {check["name"]: check["outcome"] for check in found["checks"]}


def test_without_a_hub_a_folder_is_looked_at_but_not_tried(command: Command, tmp_path: Path) -> None:
    """What needs the hub's own web server is said to be unknown, with how to find out."""
    (tmp_path / "bucket").mkdir()
    command("channel", "create", "demo", "--create-bucket", "--bucket", (tmp_path / "bucket").as_uri())
    found = checks(command.json("channel", "doctor", "demo"))
    assert (found["reachable"], found["owner"], found["list"], found["upload"]) == ("ok", "ok", "ok", "unknown")
    assert found["nats"] == "unknown"


def test_a_folder_that_is_gone(command: Command, tmp_path: Path) -> None:
    """What mends it is no option of a command that was run long ago; that a folder has no storage class is not told."""
    folder = tmp_path / "bucket"
    command("channel", "create", "demo", "--create-bucket", "--bucket", folder.as_uri())
    assert "storage class" not in command("channel", "doctor", "demo", "--no-upload").stdout
    folder.rename(tmp_path / "elsewhere")
    done = command("channel", "doctor", "demo", code=1)
    assert "mkdir" in done.stdout
    assert "--create-bucket" not in done.stdout


async def test_a_running_hub_tries_everything(tmp_path: Path) -> None:
    """Beside a running hub a folder's uploads are really made, and all of it is well; nothing stays behind."""
    async with running_grid(tmp_path) as grid:
        await grid.channel()
        found = await grid.admin("channel.doctor", name="demo")
        outcome = checks(found)
        for name in ("upload", "length", "digest", "create only", "expiry", "tombstone", "range", "list", "nats"):
            assert outcome[name] == "ok", name
        assert not {"failure", "warning"} & set(outcome.values())
        assert grid.objects() == {}


def test_a_bucket_that_holds_little_is_told_so(command: Command, tmp_path: Path) -> None:
    """Each thing that rclone's server does not hold has its line; what was found is kept and audited."""
    with run_rclone(tmp_path) as server:
        keys = json.dumps({"access_key": server.access_key, "secret_key": server.secret_key})
        url = f"s3://lab/p?region={server.region}&endpoint={server.endpoint}&create=true"
        made = command("channel", "create", "demo", "--bucket", url, "--credentials-stdin", stdin=keys)
        assert "note: not enforced: " in made.stderr
        assert "as found before" not in made.stderr
        assert "as found before" in command("channel", "doctor", "demo", "--no-upload").stdout
        done = command("channel", "doctor", "demo")
        assert "as found before" not in done.stdout
        assert "a URL can be used again" in done.stdout
        assert server.secret_key not in done.stdout + done.stderr
        found: Any = command.json("channel", "doctor", "demo")
        assert checks(found)["create only"] == "warning"
        assert checks(found)["tombstone"] == "warning"
        assert found["binds"]["create_only"] is False


@pytest.mark.usefixtures("brief_probe")
def test_a_bucket_that_is_away_is_a_failure(command: Command, tmp_path: Path) -> None:
    """The doctor says what is broken instead of ending in an error, and its exit code tells."""
    with run_rclone(tmp_path) as server:
        keys = json.dumps({"access_key": server.access_key, "secret_key": server.secret_key})
        url = f"s3://lab/p?region={server.region}&endpoint={server.endpoint}&create=true"
        command("channel", "create", "demo", "--bucket", url, "--credentials-stdin", stdin=keys)
    done = command("channel", "doctor", "demo", code=1)
    assert "FAIL" in done.stdout


def test_an_unknown_channel(command: Command) -> None:
    """It is an error like everywhere."""
    assert command.error("channel", "doctor", "nothing", code=3)["kind"] == "no-such-channel"


def test_the_policy_of_a_url_and_of_a_channel(command: Command, tmp_path: Path) -> None:
    """The document is printed alone, ready to be given to the provider; what is lost goes to the other channel."""
    done = command("policy", "s3://lab/a?region=eu-central-1", "--without-list")
    assert json.loads(done.stdout)["Version"] == "2012-10-17"
    assert "lost without the listing" in done.stderr
    assert "gcloud" in command("policy", "gs://lab/a").stdout
    (tmp_path / "bucket").mkdir()
    command("channel", "create", "demo", "--create-bucket", "--bucket", (tmp_path / "bucket").as_uri())
    assert "chmod 700" in command("policy", "demo").stdout
    assert command.error("policy", "nothing", code=3)["kind"] == "no-such-channel"
