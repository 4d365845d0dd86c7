"""Many streams into one folder: what is planned, and when no new one is begun."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from entrepot.core.errors import Denied, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot.core.identifiers import StreamId, StreamKind
from entrepot.services.gathering import Gathering, Wish, planned
from entrepot.services.output import prepared
from entrepot.services.progress import OnProgress
from entrepot.services.targets import Meant


def stream(number: int) -> StreamId:
    return StreamId(bytes([StreamKind.FILE]) + number.to_bytes(31))


def wish(number: int, *, taken: bool = False) -> Wish:
    return Wish(str(number), Meant(stream(number), "demo", None), Path(f"/out/{number}"), taken)


async def held(_: Sequence[StreamId]) -> None:
    """Nobody is told."""


async def test_no_file_is_begun_once_the_folder_takes_none() -> None:
    """After the folder's own refusal the others have the same reason untried, but for those whose file is there; a
    reason of one file's own stops nothing."""
    tried: list[str] = []

    async def get(wish: Wish, path: Path, progress: OnProgress | None) -> str:
        tried.append(path.name)
        await asyncio.sleep(0)
        if path.name == "1":
            raise RetryLater("too large for what is left", kind="disk-full")
        if path.name == "3":
            raise RetryLater("no room in /out", kind="disk-full", output="/out")
        return path.name

    wishes = [wish(number, taken=number == 7) for number in range(10)]
    gathering = Gathering(wishes, get, held, at_once=1)
    found = {wish.target: result async for wish, result in gathering.results()}
    assert tried == ["0", "1", "2", "3", "7"]
    assert [key for key, result in found.items() if not isinstance(result, EntrepotError)] == ["0", "2", "7"]
    assert {str(found[str(number)]) for number in (3, 4, 5, 6, 8, 9)} == {"no room in /out"}


@pytest.mark.blocking
def test_nothing_is_planned_for_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has the reason before anything is fetched, but for what is there already; one stream is a get of its own."""
    (tmp_path / "there").write_bytes(b"x")
    meant = [(str(at), Meant(stream(at), "demo", None, name)) for at, name in enumerate(["a", "there", "b"])]
    assert [one.path for one in planned(meant, tmp_path)] == [tmp_path / name for name in ("a", "there", "b")]
    monkeypatch.setattr(os, "access", lambda *_: False)
    wishes = planned(meant, tmp_path)
    assert [isinstance(one.path, Denied) for one in wishes] == [True, False, True]
    with pytest.raises(Denied, match=str(tmp_path)):
        prepared(tmp_path, "a")
    assert prepared(tmp_path, "there") == (tmp_path / "there", True)


@pytest.mark.blocking
def test_a_slash_at_the_end_means_a_folder(tmp_path: Path) -> None:
    """It is made; a missing one without the slash is told with the mend, and a file in its place is no folder."""
    assert prepared(f"{tmp_path}/new/er/", "name") == (tmp_path / "new" / "er" / "name", False)
    assert (tmp_path / "new" / "er").is_dir()
    assert prepared(f"{tmp_path}/plain", "name") == (tmp_path / "plain", False)
    with pytest.raises(NotFound) as caught:
        prepared(str(tmp_path / "no" / "file"), "name")
    assert "slash" in (caught.value.hint or "")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InvalidInput, match="no folder"):
        prepared(f"{tmp_path}/file/", "name")
    with pytest.raises(InvalidInput):
        prepared(f"{tmp_path}/unmade/", ".bashrc")
