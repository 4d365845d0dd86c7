"""The journal in the database: runs are kept, grow, come back in order and are forgotten; on both engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from entrepot.core.errors import NotFound, RetryLater
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.adapters.sql_events import SqlEvents
from entrepot_hub.core.journal import Event, EventKind, Run
from entrepot_hub.services.journal import Journal, JournalSettings

STREAM, OTHER = b"\xff" * 32, b"\x01" * 32


def event(at: float, number: int | None = 0, *, stream: bytes = STREAM, node: str = "lab") -> Event:
    return Event("demo", stream, EventKind.UPLOADED, at, node, number, b"transfer", 100, 0.5, (("reason", "x"),))


def shown(runs: list[Run]) -> list[tuple[object, ...]]:
    return [(run.kind, run.node, run.first, run.last, run.count, run.at, run.until) for run in runs]


async def test_what_happened_comes_back(database: Database, registry: Registry) -> None:
    """A run comes back as it was told, and only to who asks for its stream."""
    journal = Journal(database, lambda: 20.0)
    journal.note(event(10.0, 3))
    journal.note(event(11.0, 4, stream=OTHER))
    (run,) = await journal.of("demo", STREAM)
    assert shown([run]) == [(EventKind.UPLOADED, "lab", 3, 3, 1, 10.0, 10.0)]
    assert (run.transfer, run.bytes, run.seconds, run.detail) == (b"transfer", 100, 0.5, (("reason", "x"),))
    with pytest.raises(NotFound):
        await journal.of("nowhere", STREAM)


async def test_a_run_grows_where_it_is_kept(database: Database, registry: Registry) -> None:
    """More of the same after a flush makes the kept run longer, not a second one."""
    journal = Journal(database, lambda: 20.0)
    journal.note(event(10.0, 0))
    await journal.flush()
    journal.note(event(12.0, 7))
    runs = await journal.of("demo", STREAM)
    assert shown(runs) == [(EventKind.UPLOADED, "lab", 0, 7, 2, 10.0, 12.0)]


async def test_the_past_survives_the_hub(database: Database, registry: Registry) -> None:
    """Another hub, or the same one after a restart, tells what was kept, the oldest first."""
    first = Journal(database, lambda: 20.0)
    first.note(event(10.0, node="b"))
    first.note(event(9.0, node="a"))
    await first.aclose()
    second = Journal(database, lambda: 30.0)
    second.note(event(21.0, node="c"))
    assert [run.node for run in await second.of("demo", STREAM)] == ["a", "b", "c"]


async def test_a_database_that_fails_costs_nothing(
    database: Database, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be kept is kept by the next flush."""
    journal = Journal(database, lambda: 20.0)
    journal.note(event(10.0, 0))
    keep: Callable[[SqlEvents, list[Run]], dict[int, int]] = SqlEvents.keep

    def fails(events: SqlEvents, runs: list[Run]) -> dict[int, int]:
        raise RetryLater("locked")

    with monkeypatch.context() as patch:
        patch.setattr(SqlEvents, "keep", fails)
        with pytest.raises(RetryLater):
            await journal.flush()
    assert SqlEvents.keep is keep
    journal.note(event(11.0, 1))
    assert shown(await journal.of("demo", STREAM)) == [(EventKind.UPLOADED, "lab", 0, 1, 2, 10.0, 11.0)]


async def test_what_is_old_or_too_much_is_forgotten(database: Database, registry: Registry) -> None:
    """Runs that ended long ago go, and of each channel all but the latest, in however many steps."""
    settings = JournalSettings(keep=1000.0, of_channel=3, step=1)
    journal = Journal(database, lambda: 2000.0, settings)
    journal.note(event(10.0, node="old"))
    for number in range(5):
        journal.note(event(1990.0 + number, node=f"n{number}"))
    await journal.flush()
    assert await journal.prune() == 3
    assert [run.node for run in await journal.of("demo", STREAM)] == ["n2", "n3", "n4"]
    assert await journal.prune() == 0
