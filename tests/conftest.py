"""What every test gets: a guard against blocking the event loop, an empty home, one profile of hypothesis."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from blockbuster import BlockBuster
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=False, max_examples=50)
settings.register_profile("long", parent=settings.get_profile("ci"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell without job control: what the tests start would inherit that Ctrl-C means
    # nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Settings of whoever runs the tests, which must not reach what is tested.
_FOREIGN = ("AWS_", "AZURE_", "ENTREPOT_", "GOOGLE_", "NATS_")
_HOMES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME")

_guard: BlockBuster | None = None


def _blocking_guard() -> BlockBuster:
    """The guard of this process: made once, since making one looks up some sixty functions."""
    global _guard
    if _guard is None:
        _guard = BlockBuster(scanned_modules=["entrepot", "entrepot_hub"])
    return _guard


@pytest.fixture(autouse=True)
def guard_against_blocking(request: pytest.FixtureRequest) -> Iterator[None]:
    """Calls that block raise BlockingError when our code makes them on an event loop; in threads they may.

    A test marked ``blocking`` goes without, for instance to look at files between two awaits of our code.
    """
    if request.node.get_closest_marker("blocking") is not None:
        yield
        return
    guard = _blocking_guard()
    guard.activate()
    try:
        yield
    finally:
        guard.deactivate()


@pytest.fixture(autouse=True)
def unconfigured_logs() -> Iterator[None]:
    """A hub's log goes to the standard error of the test that set it up: no later test is to write there."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture(scope="session", autouse=True)
def empty_home() -> Iterator[Path]:
    """A home of this process's own, under a short path (for sockets), without foreign settings."""
    home = Path(tempfile.mkdtemp(prefix="entrepot-"))
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_FOREIGN):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        for name in _HOMES:
            folder = home / name.lower()
            folder.mkdir(mode=0o700)
            patch.setenv(name, str(folder))
        yield home
    shutil.rmtree(home, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--report FILE``: rows for the tables of docs/reliability.md; see ``scripts/reliability``."""
    parser.addoption("--report", metavar="FILE", help="append what the suites found to this file, a line of JSON each")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Tells what was found: ``report("faults", fault="hub killed", point="at the grant", seconds=1.2)`` is a row of the
    table ``faults``, of which the first column names it. A row told again replaces the former."""
    path = request.config.getoption("--report")

    def tell(table: str, **columns: str | float) -> None:
        if path is None:
            return
        line = json.dumps({"table": table, "columns": columns}) + "\n"
        with open(path, "ab", buffering=0) as file:  # one write of a short line: several processes may tell at once
            file.write(line.encode())

    return tell
