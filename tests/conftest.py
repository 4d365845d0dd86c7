"""What every test gets: a guard against blocking the event loop, an empty home, one profile of hypothesis."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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

TESTS = Path(__file__).parent
#: Seconds that the tests of a file take on an idle machine, for files of ``LONG`` and more: written by ``--weigh``.
WEIGHTS = TESTS / "data" / "seconds.json"
LONG = 3

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


@pytest.fixture
def brief_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel on a provider's bucket is made without the seconds in which its probe waits for a URL to end: of that
    the provider's claim is taken for true. What providers hold is for the tests of buckets to find out."""
    from entrepot_hub.adapters.buckets import probe

    async def claimed(probing: Any) -> bool:
        return bool(probing._bucket.binds.expiry)

    monkeypatch.setattr(probe._Probe, "expiry", claimed)


@pytest.fixture(scope="session", autouse=True)
def uncached_loggers() -> Iterator[None]:
    """Loggers ask for the configuration each time: one that keeps the first it saw would write where that test's
    standard error was, which is closed."""
    configure = structlog.configure

    def uncached(**settings: Any) -> None:
        configure(**{**settings, "cache_logger_on_first_use": False})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", uncached)
        yield


@pytest.fixture(autouse=True)
def unconfigured_logs() -> Iterator[None]:
    """A hub's log and a daemon's go to the standard error of the test that set them up: no later test is to write
    there."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
    for name in ("", "entrepot"):
        logger = logging.getLogger(name)
        for handler in [each for each in logger.handlers if type(each) is logging.StreamHandler]:
            logger.removeHandler(handler)
            logger.setLevel(logging.WARNING if logger.parent is None else logging.NOTSET)
    logging.getLogger("aiohttp.server").filters.clear()


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
    """``--report FILE``: rows for the tables of docs/reliability.md; see ``scripts/reliability``. ``--weigh``: what the
    order of the files goes by."""
    parser.addoption("--report", metavar="FILE", help="append what the suites found to this file, a line of JSON each")
    parser.addoption("--weigh", action="store_true", help=f"note how long each file took in tests/data/{WEIGHTS.name}")


def pytest_configure(config: pytest.Config) -> None:
    """Files go to the processes in the order of ours, not by the number of their tests."""
    config.option.loadscopereorder = False
    if config.getoption("--weigh") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Scales())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files that take long come first: a process that began one last would go on alone. All others stay as they are,
    which is in random order."""
    seconds: dict[str, int] = json.loads(WEIGHTS.read_text())
    items.sort(key=lambda item: seconds.get(_file(item.nodeid), 0), reverse=True)


def _file(test: str) -> str:
    """The file of a test, as the weights name it."""
    return test.partition("::")[0].removeprefix("tests/")


class Scales:
    """Notes how many seconds the tests of each file took, of those that took long."""

    def __init__(self) -> None:
        self._seconds = Counter[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        self._seconds[_file(report.nodeid)] += report.duration  # type: ignore[assignment]

    def pytest_sessionfinish(self) -> None:
        """Files that did not run keep what they had; those that are gone go."""
        seconds = {**json.loads(WEIGHTS.read_text()), **{name: round(took) for name, took in self._seconds.items()}}
        kept = {name: took for name, took in sorted(seconds.items()) if took >= LONG and (TESTS / name).exists()}
        WEIGHTS.write_text(json.dumps(kept, indent=1) + "\n")


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
