"""Many streams into one folder, in few messages, and one that fails stops none of the others."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from tests.integration.node.conftest import Site

from entrepot.core.errors import EntrepotError, InvalidInput
from entrepot.core.identifiers import StreamId, StreamKind
from entrepot.core.uri import StreamUri
from entrepot.services.blocking import Blocking
from entrepot.services.node import Node
from entrepot.services.progress import Progress
from entrepot.services.targets import Target

NOBODYS = StreamId(bytes([StreamKind.FILE]) + bytes(31))


@pytest.fixture
def originals(tmp_path: Path) -> list[Path]:
    """Small files, and one of several objects among them."""
    folder = tmp_path / "originals"
    folder.mkdir()
    paths = [folder / f"f{number:03}" for number in range(60)]
    for number, path in enumerate(paths):
        path.write_bytes(secrets.token_bytes(200_000 if number == 7 else number * 10))
    return paths


async def added(node: Node, paths: list[Path]) -> list[str]:
    """The URIs of these files, added by a node."""
    return [str(one.uri) async for _, one in node.add_many(paths) if not isinstance(one, EntrepotError)]


async def test_many_files_come_into_a_folder(site: Site, originals: list[Path], tmp_path: Path) -> None:
    """All files arrive as they are, also empty ones and those named twice, and the second time nothing is
    fetched."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    uris = await added(giver, originals)
    seen: list[Progress] = []
    folder = tmp_path / "new" / "folder"
    found = {uri: one async for uri, one in taker.get_many([*uris, uris[3]], folder, progress=seen.append)}
    assert [error for error in found.values() if isinstance(error, EntrepotError)] == []
    assert set(found) == set(uris)
    for path in originals:
        assert await asyncio.to_thread((folder / path.name).read_bytes) == await asyncio.to_thread(path.read_bytes)
    total = sum([await asyncio.to_thread(lambda path=path: path.stat().st_size) for path in originals])  # type: ignore[misc]
    assert (seen[-1].kind, seen[-1].done) == ("get", total)
    assert (seen[-1].name or "").startswith("60 of 60 files")
    assert seen[-1].total == total
    shares = [one.share for one in seen if one.kind == "get" and not one.total]
    assert all(share is not None and 0 <= share <= 1.0001 for share in shares)
    again = [one async for _, one in taker.get_many(uris, folder)]
    assert [one if isinstance(one, EntrepotError) else one.how for one in again] == ["there"] * 60


async def test_one_that_fails_stops_no_other(site: Site, originals: list[Path], tmp_path: Path) -> None:
    """A stream that nobody has, a file in the way and a name that is not taken unasked are told in their places."""
    giver, taker = await site.node("giver"), await site.node("taker", want_deadline=2.0)
    await site.up("giver")
    uris = await added(giver, originals[:5])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "f001").write_text("mine")
    parsed = StreamUri.parse(uris[2])
    hidden = str(StreamUri(parsed.channel, parsed.hub, parsed.stream, ".bashrc"))
    nobody = str(StreamUri(parsed.channel, parsed.hub, NOBODYS, "nobody"))
    found = {uri: one async for uri, one in taker.get_many([*uris[:2], hidden, nobody, *uris[3:]], folder)}
    kinds = {str(uri): one.kind if isinstance(one, EntrepotError) else None for uri, one in found.items()}
    assert kinds == {
        uris[0]: None,
        uris[1]: "exists",
        hidden: "invalid-input",
        nobody: "no-holder",
        uris[3]: None,
        uris[4]: None,
    }
    assert (folder / "f001").read_text() == "mine"


async def test_names_that_clash_are_told_before_anything_is_fetched(
    site: Site, originals: list[Path], tmp_path: Path
) -> None:
    """Two streams that would be one file are an error, and so is a word that is no target: neither fetches anything."""
    giver, taker = await site.node("giver"), await site.node("taker")
    uris = await added(giver, originals[1:4])
    first, second = (StreamUri.parse(uri) for uri in uris[:2])
    clash = StreamUri(second.channel, second.hub, second.stream, first.name)
    folder = tmp_path / "folder"
    cases: list[tuple[list[Target], str]] = [
        ([uris[2], first, clash], "invalid-input"),
        ([uris[2], "what"], "invalid-uri"),
    ]
    for targets, kind in cases:
        with pytest.raises(InvalidInput) as caught:
            [one async for one in taker.get_many(targets, folder)]
        assert caught.value.kind == kind
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="no folder"):
        [one async for one in taker.get_many(uris, tmp_path / "file")]
    assert await taker.entries() == []


async def test_leaving_early_stops_the_rest(site: Site, originals: list[Path], tmp_path: Path) -> None:
    """Whoever stops taking results stops what is under way; what came stays and need not be fetched again."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    uris = await added(giver, originals[:30])
    results = taker.get_many(uris, tmp_path / "folder", at_once=2)
    await anext(results)
    await results.aclose()
    assert 1 <= len(await taker.entries()) < 30
    found = [one async for _, one in taker.get_many(uris, tmp_path / "folder")]
    assert [one for one in found if isinstance(one, EntrepotError)] == []


@pytest.mark.blocking
async def test_the_blocking_face_gets_many(site: Site, originals: list[Path], tmp_path: Path) -> None:
    """Without asyncio the results are an iterator."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    uris = await added(giver, originals[:5])
    settings = taker.settings
    await taker.aclose()

    def work() -> list[str]:
        with Blocking(settings) as node:
            return sorted(
                one.path.name
                for _, one in node.get_many(uris, tmp_path / "folder")
                if not isinstance(one, EntrepotError)
            )

    assert await asyncio.to_thread(work) == [path.name for path in originals[:5]]
