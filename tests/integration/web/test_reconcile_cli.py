"""``entrepot-hub channel reconcile`` as its users run it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.integration.web.test_cli import Command
from tests.servers.grid import Content

from entrepot.core.lock import SchemaLock

pytestmark = pytest.mark.blocking  # looks at files


@pytest.fixture
def ready(tmp_path: Path) -> Command:
    """The command with a hub and a channel on a folder."""
    command = Command(tmp_path / "hub")
    (tmp_path / "bucket").mkdir()
    command("init", "--url", "http://127.0.0.1:8480")
    command("channel", "create", "demo", "--create-bucket", "--bucket", (tmp_path / "bucket").as_uri())
    return command


def charged(command: Command) -> int:
    channels: Any = command.json("channel", "list")
    return int(channels[0]["charged"])


def test_it_tells_what_differs_and_mends_it(ready: Command, tmp_path: Path) -> None:
    """A dry run names what it would do and does nothing; the run does it; afterwards all agrees."""
    lock = SchemaLock("demo")
    content = Content(os.urandom(100_000), lock)
    folder = tmp_path / "bucket" / lock.hex / content.stream.hex
    folder.mkdir(parents=True)
    (folder / "00000000").write_bytes(content.object(0))
    (folder / "00000001").write_bytes(b"garbage")
    dry = ready("channel", "reconcile", "demo", "--dry-run")
    assert "proved by its header" in dry.stdout
    assert "nothing was changed" in dry.stderr
    assert charged(ready) == 0
    done: Any = ready.json("channel", "reconcile", "demo")
    assert done["counts"] == {"adopted": 1, "removed": 1}
    assert {finding["found"] for finding in done["findings"]} == {"adopted", "removed"}
    assert charged(ready) == len(content.object(0))
    assert not (folder / "00000001").exists()
    again = ready("channel", "reconcile", "demo")
    assert "the bucket holds what the ledger says" in again.stdout
    assert "1 keys with " in again.stdout
    assert " in the bucket; 1 objects are as the ledger says" in again.stdout


def test_a_channel_that_is_not_there(ready: Command) -> None:
    """It says so."""
    assert ready.error("channel", "reconcile", "nothing", code=3)["kind"] == "no-such-channel"
