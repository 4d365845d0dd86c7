"""Many files added at once, while a daemon serves them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.integration.node.conftest import Site

from entrepot.core.errors import EntrepotError
from entrepot.core.identifiers import StreamId
from entrepot.services import adding
from entrepot.services.daemon_client import DaemonClient
from entrepot.services.node import Added
from entrepot.services.progress import Progress


@pytest.mark.blocking
async def test_files_large_and_small_are_added_and_told(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones are told to the daemon together; each can be fetched at once; the figures end at what there was."""
    contents = {f"{number:03}": os.urandom(1000 + number) for number in range(300)}
    contents["150"] = os.urandom(5_000_000)  # in the middle: it is added by itself
    paths = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        paths.append(tmp_path / name)
    paths.insert(3, tmp_path / "none")
    told: list[int] = []
    before = DaemonClient.added

    async def counting(self: DaemonClient, streams: list[StreamId]) -> int:
        told.append(len(streams))
        return await before(self, streams)

    monkeypatch.setattr(DaemonClient, "added", counting)
    seen: list[Progress] = []
    node = await site.node("giver")
    await site.up("giver")
    found = [one async for one in node.add_many(paths, progress=seen.append)]
    assert [path for path, _ in found] == paths
    refused = [one for _, one in found if isinstance(one, EntrepotError)]
    added = [one for _, one in found if isinstance(one, Added)]
    assert [one.kind for one in refused] == ["no-such-file"]
    assert [one.name for one in added] == list(contents)
    assert all(one.served for one in added)
    assert told == [150, 1, 149]
    assert all(one.done <= one.total for one in seen)
    assert seen[-1].total == sum(map(len, contents.values()))
    assert {one.name for one in seen} <= {path.name for path in paths}
    taker = await site.node("taker", rights="request")
    for name in ("000", "150", "299"):
        uri = next(one.uri for one in added if one.name == name)
        got = await taker.get(uri, tmp_path / f"{name}.got")
        assert got.path.read_bytes() == contents[name]


@pytest.mark.blocking
async def test_what_is_unchanged_is_no_work(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files added before count as unchanged, alone or together, also where several batches are needed."""
    monkeypatch.setattr(adding, "MOST_AT_ONCE", 7)
    paths = [tmp_path / f"{number:02}" for number in range(24)]
    for path in paths:
        path.write_bytes(path.name.encode() * 50)
    paths[9].write_bytes(os.urandom(3_000_000))
    node = await site.node("giver")
    first = [one async for _, one in node.add_many(paths)]
    alone = await node.add(paths[5])
    again = [one async for _, one in node.add_many(map(str, paths), copy=False)]
    assert alone.unchanged
    for before, after in zip(first, again, strict=True):
        assert isinstance(before, Added)
        assert isinstance(after, Added)
        assert (before.unchanged, after.unchanged) == (False, True)
        assert (before.uri, before.sha256, before.length) == (after.uri, after.sha256, after.length)


@pytest.mark.blocking
async def test_copies_tell_both_halves_of_the_work(site: Site, tmp_path: Path) -> None:
    """With copy each file is kept, and its bytes count to their number once, however often they are moved."""
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(os.urandom(4_000_000))
    node = await site.node("giver")
    seen: list[Progress] = []
    found = [one async for _, one in node.add_many(paths, copy=True, progress=seen.append)]
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    for one, content in zip(found, contents, strict=True):
        assert isinstance(one, Added)
        async with await node.open(one.uri) as stream:
            assert await stream.read(0, one.length) == content
    counts = [one.done for one in seen]
    assert counts == sorted(counts)
    assert (seen[-1].done, seen[-1].total) == (8_000_000, 8_000_000)
