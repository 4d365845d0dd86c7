"""URIs and folders that try to reach further than the file that was asked for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from entrepot.adapters.store import StoreSettings
from entrepot.core.errors import Conflict, EntrepotError, InvalidInput
from entrepot.core.identifiers import Opening
from entrepot.core.merkle import StreamHasher
from entrepot.core.uri import StreamUri
from entrepot.services.node import Node
from entrepot.services.settings import NodeSettings


def settings(home: Path) -> NodeSettings:
    """A machine without a hub."""
    return NodeSettings(home=home, store=StoreSettings(reserve=0, workers=1, hashers=1))


def opening(data: bytes) -> Opening:
    """The opening of these bytes."""
    hasher = StreamHasher(6)
    hasher.update(data)
    return hasher.finish().opening


@pytest.mark.parametrize("name", [".zshenv", ".bashrc", "-rf", "--help", "..%2Fx", "%2e%2e", "a%0Ab", "x%E2%80%AEgpj"])
async def test_a_uri_names_no_file_that_harms(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without -o, no hidden file, option, path or text that turns is made in the folder one is in; -o decides."""
    monkeypatch.chdir(tmp_path)
    stream = opening(b"").stream_id()  # needs nobody: the empty stream is always here
    uri = f"entrepot://demo@hub.example.org/{stream}/{name}"
    async with Node(settings(empty_home / "n")) as node:
        with pytest.raises(InvalidInput):
            await node.get(uri)
    assert not os.listdir(tmp_path)


def test_the_names_above_are_what_they_seem() -> None:
    """A name that is allowed stands in the URI as it is: only those with a dot or a hyphen in front are left to get."""
    stream = opening(b"").stream_id()
    for name in (".zshenv", "-rf"):
        assert StreamUri.parse(f"entrepot://demo/{stream}/{name}").name == name


async def test_folders_of_a_node_are_its_owners(empty_home: Path) -> None:
    """The home and every folder in it that the node makes can be entered by its owner only."""
    old = os.umask(0)
    try:
        home = empty_home / "deep" / "home"
        async with Node(settings(home)):
            folders = [path for path in (empty_home / "deep", *(empty_home / "deep").rglob("*")) if path.is_dir()]
    finally:
        os.umask(old)
    assert home in folders
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


async def test_an_output_that_is_a_link_is_replaced_and_not_followed(empty_home: Path, tmp_path: Path) -> None:
    """Exporting over a symbolic link touches the link, with force, and never what it points to."""
    from entrepot.adapters.store import Store
    from entrepot.core.lock import SchemaLock

    original, precious, link = tmp_path / "original", tmp_path / "precious", tmp_path / "link"
    original.write_bytes(b"data" * 1000)
    precious.write_bytes(b"precious")
    link.symlink_to(precious)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nothing")
    async with Store(empty_home / "store", StoreSettings(reserve=0, workers=1, hashers=1)) as store:
        added = await store.add(original, channel="c", lock=SchemaLock("demo"))
        for place in (link, dangling):
            with pytest.raises(Conflict):
                await store.export(added.stream, place, False)
            await store.export(added.stream, place, True)
            assert not place.is_symlink()
            assert place.read_bytes() == b"data" * 1000
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists()


async def test_an_edited_output_is_never_served_as_the_original(empty_home: Path, tmp_path: Path) -> None:
    """The output may be the only copy: edited, it is noticed, and no byte of it is passed off as the stream."""
    from entrepot.adapters.store import Store
    from entrepot.core.lock import SchemaLock

    original, output = tmp_path / "original", tmp_path / "output"
    original.write_bytes(os.urandom(100_000))
    lock = SchemaLock("demo")
    async with Store(empty_home / "store", StoreSettings(reserve=0, workers=1, hashers=1)) as store:
        added = await store.add(original, channel="c", lock=lock)
        await store.export(added.stream, output, False)
        original.unlink()
        times = output.stat()
        with output.open("r+b") as file:
            file.seek(50_000)
            file.write(b"X")
        os.utime(output, ns=(times.st_atime_ns, times.st_mtime_ns))  # the size and this time say nothing now
        with pytest.raises(EntrepotError):
            await store.object_source(added.stream, lock, 0)
