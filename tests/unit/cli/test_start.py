"""What a command loads before it begins: a short transfer is mostly the start of its process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from entrepot.cli.commands import COMMANDS, application, needed

#: Modules that take long to load, or hold what a command has no part in.
HEAVY = {"rich", "prometheus_client", "aiohttp.web", "uvloop", "matplotlib", "boto3", "sqlalchemy", "h5py", "fsspec"}
NETWORK = {"aiohttp", "nats", "http_message_signatures", "sqlite3"}


def loaded(code: str) -> set[str]:
    """The modules that a process has loaded after ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


def test_a_get_loads_nothing_that_it_has_no_part_for() -> None:
    """All that a get uses, without what draws, measures or serves."""
    found = loaded("import entrepot.cli.transfer, entrepot.services.node, entrepot.cli.environment")
    assert not HEAVY & found
    assert not {"entrepot.cli.serving", "entrepot.cli.doctor", "entrepot.services.daemon"} & found


@pytest.mark.parametrize("words", [["version"], ["get", "--help"], ["id", "--help"]])
def test_help_and_version_load_no_network(words: list[str]) -> None:
    """What is answered from the program itself needs neither the hub's nor the store's libraries."""
    found = loaded(f"from entrepot.cli.main import main\nmain({words!r})")
    assert not (HEAVY | NETWORK) & found


def test_only_the_command_that_is_named_is_made() -> None:
    """Its own where one is named, all of them for help and for words that name none."""
    assert list(needed(["get", "uri"])) == ["get"]
    for words in ([], ["--help"], ["fetch"], ["--install-completion"]):
        assert list(needed(words)) == list(COMMANDS)
    assert [one.name for one in application(needed(["ls"])).registered_commands] == ["ls"]
