"""Objects that vanish from the bucket or are damaged in it, and source files that change under their holder."""

from __future__ import annotations

import filecmp
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.servers.nodes import KIB, MIB, Machine, Site, elapsed
from tests.servers.relay import noted, until


def flip(path: Path) -> None:
    """Damage one bit in the last miniblock as a bad disk does: length and times stay."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_objects_that_vanish_are_uploaded_again(site: Site) -> None:
    """All objects are deleted from the bucket between ready and the reader's GETs: it gets 404s, says so, and the
    holder uploads them again."""
    holder, reader = site.machine("holder"), site.machine("reader")
    original = holder.file("original.bin", 4 * MIB)
    (uri,) = holder.add(original)
    holder.up()
    site.relay.hold("GET")
    get = reader.start("get", uri, "-o", "copy.bin", "--json")
    site.relay.wait_held("GET")
    until(lambda: len(site.hub.objects()) >= 4, what="some objects")
    gone = site.hub.objects()
    for path in gone.values():
        path.unlink()
    site.relay.release()
    get.wait().fine()
    assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)
    assert site.relay.gets(404)
    keys = [p.key for p in site.relay.puts(200)]
    again = {key for key in keys if keys.count(key) > 1}
    assert again, "nothing was uploaded again"
    assert again <= gone.keys()


def test_a_damaged_object_is_quarantined_and_replaced(site: Site) -> None:
    """A bit flips in the bucket while a get runs: the reader tells, the hub finds the same, the object leaves the
    bucket and a good one takes its place; the right bytes arrive, from the same and only holder."""
    holder, reader = site.machine("holder"), site.machine("reader")
    original = holder.file("original.bin", 2 * MIB)
    (uri,) = holder.add(original)
    holder.up()
    site.relay.hold("GET")
    get = reader.start("get", uri, "-o", "copy.bin", "--json")
    site.relay.wait_held("GET")
    until(lambda: len(site.hub.objects()) == 8, what="all objects")
    key, path = next(iter(site.hub.objects().items()))
    damaged = path.read_bytes()
    flip(path)
    bad = path.read_bytes()
    assert bad != damaged
    began = time.monotonic()
    site.relay.release()
    get.wait().fine()
    noted("an object damaged in the bucket, until the file is there", elapsed(began))
    assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)
    assert path.read_bytes() != bad
    assert [p.key for p in site.relay.puts(200)].count(key) == 2


def test_a_damaged_object_without_a_holder_is_a_stated_reason(site: Site) -> None:
    """A bit flips in the bucket and the holder is gone: the get ends with the reason and without an output, and the bad
    object has left the bucket."""
    holder, reader, other = (site.machine(name) for name in ("holder", "reader", "other"))
    original = holder.file("original.bin", 2 * MIB)
    (uri,) = holder.add(original)
    holder.up()
    other.run("get", uri, "-o", "copy.bin").fine()
    holder.down()
    path = next(iter(site.hub.objects().values()))
    flip(path)
    bad = path.read_bytes()
    ended = reader.run("get", uri, "-o", "copy.bin", "--timeout", "8s", "--json")
    assert ended.code == 3, ended
    assert ended.error["kind"] == "no-holder"
    assert "holder" in ended.error["message"]
    assert not (reader.folder / "copy.bin").exists()
    assert not path.exists() or path.read_bytes() != bad


@pytest.mark.parametrize("harm", ["change", "truncate", "delete", "replace"])
def test_a_source_that_changes_is_not_served_as_what_it_was(site: Site, harm: str) -> None:
    """A file that is changed, cut, deleted or replaced by another while it is being served: the reader gets no wrong
    byte and no output, and both sides say why."""
    holder, reader = site.machine("holder"), site.machine("reader")
    original = holder.file("original.bin", 4 * MIB)
    before = original.read_bytes()
    (uri,) = holder.add(original)
    holder.up()
    site.relay.hold("PUT", MIB)
    get = reader.start("get", uri, "-o", "copy.bin", "--timeout", "5s", "--json")
    site.relay.wait_held("PUT")
    spoil(holder, original, harm)
    site.relay.release()
    ended = get.wait()
    assert ended.code in {5, 6}, ended
    assert "original.bin was changed or removed" in ended.error["message"]
    assert not (reader.folder / "copy.bin").exists()
    for key, path in site.hub.objects().items():
        at = int(key.rpartition("/")[2], 16) * 256 * KIB
        assert path.read_bytes().endswith(before[at : at + 256 * KIB]), f"object {key} has other bytes"
    print(f"{harm}: reader: {ended.error['message']}")
    trouble = holder.view().last_failure
    assert trouble is not None
    print(f"{harm}: holder: {trouble.message}")
    assert trouble.kind == "changed"
    assert "original.bin" in trouble.message


def spoil(holder: Machine, path: Path, harm: str) -> None:
    """Do something to a file that is being served."""
    match harm:
        case "change":
            with path.open("r+b") as file:
                file.write(b"changed" * 1000)
        case "truncate":
            os.truncate(path, MIB // 2)
        case "delete":
            path.unlink()
        case "replace":
            holder.file("new.bin", 4 * MIB).replace(path)


def test_small_strange_and_sparse_files_travel(make_site: Callable[..., Site]) -> None:
    """Empty, of one byte, of 4 KiB, with a name that is not ASCII, read-only, mostly hole: all arrive as they were."""
    site = make_site(miniblock=MIB, object=4 * MIB)
    holder, reader = site.machine("holder"), site.machine("reader")
    sparse = holder.folder / "sparse.img"
    with sparse.open("wb") as file:
        file.seek(9 * MIB)
        file.write(b"end")
    locked = holder.file("read-only.bin", 5000)
    locked.chmod(0o400)
    files = [
        holder.file("empty.bin", 0),
        holder.file("one.bin", 1),
        holder.file("page.bin", 4096),
        holder.file("grüße aus köln.txt", 100),
        locked,
        sparse,
    ]
    holder.up()
    uris = holder.add(*files)
    there = reader.folder / "there"
    there.mkdir()
    commands = [reader.start("get", uri, "-o", there / path.name) for uri, path in zip(uris, files, strict=True)]
    for command in commands:
        command.wait().fine()
    for path in files:
        assert filecmp.cmp(path, there / path.name, shallow=False), path.name
    assert uris[3].endswith("/gr%C3%BC%C3%9Fe%20aus%20k%C3%B6ln.txt")
    reader.run("get", uris[3]).fine()
    assert (reader.folder / "grüße aus köln.txt").read_bytes() == files[3].read_bytes()
