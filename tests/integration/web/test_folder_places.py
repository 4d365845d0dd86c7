"""What is no place for a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.web.test_cli import Command

pytestmark = pytest.mark.blocking  # looks at files


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """The command with a hub."""
    made = Command(tmp_path / "hub")
    made("init", "--url", "http://127.0.0.1:8480")
    return made


@pytest.mark.parametrize("which", ["hub", "above"])
def test_the_hubs_own_folder_is_no_bucket(command: Command, tmp_path: Path, which: str) -> None:
    """Neither it nor a folder that holds it: keys and database would be served as objects' neighbours."""
    place = command.home if which == "hub" else tmp_path
    before = sorted(path.name for path in command.home.iterdir())
    assert command.error("channel", "create", "demo", "--bucket", place.as_uri(), code=2)["kind"] == "invalid-setting"
    assert sorted(path.name for path in command.home.iterdir()) == before
