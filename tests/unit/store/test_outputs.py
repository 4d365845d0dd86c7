"""The folder of an output: what a kill left in it, and what is told where it takes no file."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from entrepot.adapters import outputs
from entrepot.adapters.files import disk_full, translate
from entrepot.adapters.outputs import (
    make_output_folder,
    remove_leftovers,
    require_writable,
    temporary_beside,
    writing_output,
)
from entrepot.adapters.store import Store, StoreSettings
from entrepot.core.errors import Conflict, Denied, EntrepotError, RetryLater
from entrepot.core.lock import SchemaLock


def left_by_another(folder: Path) -> Path:
    """A hidden file of a process that has ended."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom entrepot.adapters.outputs import temporary_beside\n"
        "path = temporary_beside(Path(sys.argv[1]) / 'x')\npath.write_bytes(b'half')\nprint(path.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True, timeout=60
    )
    return folder / done.stdout.strip()


def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    """Hidden files of processes that are gone go; those of a living one, of other makers and other names stay."""
    dead = left_by_another(tmp_path)
    assert dead.exists()
    living = temporary_beside(tmp_path / "y")
    others = [tmp_path / name for name in (".entrepot-1234.part", "mine.part", f"{dead.name}.bak", f"x{dead.name}")]
    for path in (living, *others):
        path.write_bytes(b"mine")
    folder = dead.with_name(f"{dead.name[:-6]}{'0' if dead.name[-6] != '0' else '1'}.part")
    folder.mkdir()
    assert remove_leftovers(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == sorted([living, folder, *others])


def test_what_cannot_be_looked_for_goes_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hidden file that another machine or container makes stays for a day; one of another user for ever."""
    dead = left_by_another(tmp_path)
    monkeypatch.setattr(outputs, "_system", lambda: "zzzz")
    assert remove_leftovers(tmp_path) == 0
    then = time.time() - outputs.ABANDONED_AFTER - 60
    os.utime(dead, (then, then))
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert remove_leftovers(tmp_path) == 0
    assert remove_leftovers(tmp_path) == 1
    assert remove_leftovers(tmp_path / "nowhere") == 0


def test_hidden_names_differ(tmp_path: Path) -> None:
    """Each is fresh, beside the file, and of one form."""
    names = {temporary_beside(tmp_path / ("long" * 60)).name for _ in range(1000)}
    assert len(names) == 1000
    assert all(re.fullmatch(r"\.entrepot-[0-9a-f]{16}\.part", name) for name in names)
    assert temporary_beside(tmp_path / "a").parent == tmp_path


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says of a hidden file in it is said of the folder, and that no other file will do better."""
    told = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(Denied) as caught, writing_output(tmp_path, 0):
        raise translate(told, temporary_beside(tmp_path / "x")) from told
    assert caught.value.message == f"the folder {tmp_path} cannot be written to: read-only file system"
    assert (caught.value.kind, caught.value.data["output"]) == ("denied", str(tmp_path))
    require_writable(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(Denied, match=r"cannot be written to: permission denied"):
        require_writable(tmp_path)


@pytest.mark.parametrize(("needed", "free", "stops"), [(200, 100, True), (300, 199, False), (None, 5, True)])
def test_a_full_disk_of_the_output_is_named(tmp_path: Path, needed: int | None, free: int, stops: bool) -> None:
    """It is the output's disk, not the store's; where more is free than has to stay, a smaller file may have room."""
    with pytest.raises(RetryLater) as caught, writing_output(tmp_path, 100):
        raise disk_full(tmp_path / "x", needed, free, 100)
    error = caught.value
    assert error.kind == "disk-full"
    assert error.message.startswith(f"no room in {tmp_path}: ")
    assert "the output's disk" in (error.hint or "")
    assert "move the store" not in (error.hint or "")
    assert ("output" in error.data) is stops


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    """What is about another place, or about one file, passes."""
    for error in (
        disk_full(tmp_path.parent / "store" / "x", 2, 1),
        translate(PermissionError(errno.EACCES, "Permission denied"), tmp_path.parent / "original"),
        Conflict("there", kind="exists", path=str(tmp_path / "x")),
    ):
        with pytest.raises(EntrepotError) as caught, writing_output(tmp_path, 0):
            raise error
        assert caught.value is error


def test_folders_are_made(tmp_path: Path) -> None:
    """With all that is missing above them, and again without harm."""
    for _ in range(2):
        make_output_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


async def test_an_export_to_a_full_disk_names_the_outputs_disk(
    tmp_path: Path, lock: SchemaLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reserve holds there too, and nothing is left behind."""
    monkeypatch.setattr("entrepot.adapters.store.export.reflink", lambda *_: False)
    original = tmp_path / "original"
    original.write_bytes(b"data" * 1000)
    (tmp_path / "out").mkdir()
    async with Store(tmp_path / "store", StoreSettings(reserve=0)) as store:
        added = await store.add(original, channel="c", lock=lock)
    async with Store(tmp_path / "store", StoreSettings(reserve=1 << 60)) as store:
        with pytest.raises(RetryLater) as caught:
            await store.export(added.stream, tmp_path / "out" / "copy")
    assert caught.value.message.startswith(f"no room in {tmp_path / 'out'}: ")
    assert caught.value.data["output"] == str(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
