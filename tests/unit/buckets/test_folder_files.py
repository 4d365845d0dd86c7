"""Objects as files: atomic, conditional, swept, and honest about what is on the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from entrepot.core.errors import Conflict, Denied, InvalidInput, NotFound, RetryLater
from entrepot_hub.adapters.buckets.folder_files import FolderFiles

DATA = b"0123456789" * 100


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder."""
    return tmp_path / "bucket"


@pytest.fixture
def files(root: Path) -> FolderFiles:
    """A started folder that does not wait for the disk."""
    made = FolderFiles(root, sync=False)
    made.start(60)
    return made


def visible(root: Path) -> list[str]:
    """The files below the folder that are neither uploads nor records."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and not path.relative_to(root).parts[0].startswith((".pending", ".records"))
    )


def test_an_object_is_exactly_its_file(files: FolderFiles, root: Path) -> None:
    """The file under the key holds the bytes and nothing else; no upload is left."""
    files.create("a/b", DATA)
    assert (root / "a/b").read_bytes() == DATA
    assert list((root / ".pending").iterdir()) == []
    assert files.pending_bytes() == 0


def test_an_unfinished_upload_is_counted_and_invisible(files: FolderFiles, root: Path) -> None:
    """What is being written counts as pending, shows nowhere, and goes when it is given up."""
    upload = files.begin()
    upload.write([DATA, DATA])
    assert files.pending_bytes() == 2 * len(DATA)
    assert visible(root) == []
    assert files.list("", None, 10).entries == ()
    upload.discard()
    upload.discard()
    assert files.pending_bytes() == 0
    with pytest.raises(RetryLater):
        upload.write([DATA])


def test_a_sweep_takes_the_dead_and_leaves_the_living(files: FolderFiles, root: Path) -> None:
    """After a crash its uploads are swept by age; one that this process is writing stays however old it
    is."""
    crashed = root / ".pending" / "left-behind"
    crashed.write_bytes(DATA)
    recent = root / ".pending" / "recent"
    recent.write_bytes(b"x")
    upload = files.begin()
    upload.write([DATA])
    for path in (crashed, upload.path):
        os.utime(path, (1, 1))
    assert files.pending_bytes() == 2 * len(DATA) + 1
    assert FolderFiles(root).start(60) >= len(DATA)
    assert not crashed.exists()
    assert recent.exists()
    with files.begin() as mine:
        os.utime(mine.path, (1, 1))
        files.sweep(60)
        assert mine.path.exists()


def test_a_crash_before_the_link_leaves_a_record_that_is_swept(files: FolderFiles, root: Path) -> None:
    """A record whose object never appeared is removed by age; that of an object stays."""
    files.create("kept", DATA)
    stray = root / ".records" / "ab" / ("ab" * 16)
    stray.parent.mkdir(exist_ok=True)
    stray.write_text(f"{'0' * 64} 5 gone\n")
    for path in (root / ".records").glob("*/*"):
        os.utime(path, (1, 1))
    files.sweep(60)
    assert not stray.exists()
    assert len(list((root / ".records").glob("*/*"))) == 1


@pytest.mark.parametrize("damage", ["remove", "garbage", "empty", "other"])
def test_a_lost_record_is_made_again(files: FolderFiles, root: Path, damage: str) -> None:
    """The digest of an object whose record is gone or wrong comes from its bytes, and is kept again."""
    files.create("a", DATA)
    (record,) = (root / ".records").glob("*/*")
    line = record.read_text()
    if damage == "remove":
        record.unlink()
    else:
        record.write_text(
            {"garbage": "\udcff" * 3, "empty": "", "other": line.replace(" a\n", " b\n")}[damage], errors="replace"
        )
    head = files.head("a")
    assert head is not None
    assert head.digest == hashlib.sha256(DATA).digest()
    assert record.read_text() == line


def test_a_file_that_was_changed_in_place_is_another_content(files: FolderFiles, root: Path) -> None:
    """Somebody's hand in the folder shows: another etag, and the digest of what is there now."""
    files.create("a", DATA)
    before = files.head("a")
    assert before is not None
    (root / "a").write_bytes(DATA[::-1])
    after = files.head("a")
    assert after is not None
    assert after.etag != before.etag
    assert after.digest == hashlib.sha256(DATA[::-1]).digest()
    with pytest.raises(Conflict):
        files.read("a", 0, 10, before.etag)


def test_etags_differ_even_within_one_clock_tick(files: FolderFiles) -> None:
    """A hundred objects of one length made and removed at one key have a hundred etags."""
    etags = set()
    for i in range(100):
        files.create("a", b"%03d" % i)
        head = files.head("a")
        assert head is not None
        etags.add(head.etag)
        files.delete("a", head.etag)
    assert len(etags) == 100


def test_an_open_object_outlives_its_deletion(files: FolderFiles) -> None:
    """A reader that began keeps its content while the key is deleted and used again."""
    files.create("a", DATA)
    file, entry = files.open("a")
    with file:
        files.delete("a", entry.etag)
        files.create("a", b"new")
        assert file.read() == DATA


def test_parents_come_and_go(files: FolderFiles, root: Path) -> None:
    """Folders appear with the first object below them and go with the last."""
    files.create("a/b/c", DATA)
    files.create("a/d", DATA)
    files.delete("a/b/c", None)
    assert (root / "a").is_dir()
    assert not (root / "a/b").exists()
    files.delete("a/d", None)
    assert not (root / "a").exists()
    assert root.is_dir()


def test_no_object_is_lost_while_parents_come_and_go(files: FolderFiles) -> None:
    """Threads that create and delete under one parent never lose an object nor fail."""
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for _ in range(100):
                assert files.create(f"p/q/{name}", DATA)
                assert files.read(f"p/q/{name}", 0, 5, None) == DATA[:5]
                assert files.delete(f"p/q/{name}", None)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert files.list("", None, 10).entries == ()


def test_only_plain_files_are_objects(files: FolderFiles, root: Path, tmp_path: Path) -> None:
    """Links, folders, pipes and files whose names are no keys are neither shown nor opened."""
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    (root / ".hidden").write_bytes(b"x")
    (root / "with space").write_bytes(b"x")
    assert files.list("", None, 10).entries == ()
    for key in ("link", "folder", "pipe", "link/below"):
        assert files.head(key) is None
        with pytest.raises(NotFound):
            files.open(key)
        assert files.delete(key, None) is False
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_no_object_below_an_object(files: FolderFiles) -> None:
    """A key below another object's is refused as a key, and nothing is there."""
    files.create("a", DATA)
    with pytest.raises(InvalidInput) as caught:
        files.create("a/b", DATA)
    assert caught.value.kind == "invalid-key"
    assert files.head("a/b") is None


@pytest.mark.parametrize(
    ("number", "error", "kind"),
    [
        (errno.ENOSPC, RetryLater, "disk-full"),
        (errno.EDQUOT, RetryLater, "disk-full"),
        (errno.EIO, RetryLater, "bucket-unreachable"),
        (errno.EROFS, Denied, "unreadable"),
    ],
)
def test_what_the_disk_refuses(
    files: FolderFiles, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception], kind: str
) -> None:
    """A full, failing or read-only disk is told as such; nothing is visible and nothing is left."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(error) as caught:
        files.create("a/b", DATA)
    monkeypatch.undo()
    assert getattr(caught.value, "kind", None) == kind
    assert visible(root) == []
    assert files.pending_bytes() == 0
    assert files.create("a/b", DATA)


def test_a_folder_that_is_not_mounted_holds_nothing_back(files: FolderFiles, root: Path) -> None:
    """Without its folder a bucket cannot be reached: nothing is taken for absent, nothing is written
    elsewhere."""
    root.rename(root.with_name("away"))
    for call in (
        lambda: files.head("a"),
        lambda: files.list("", None, 10),
        lambda: files.delete("a", None),
        lambda: files.create("a", DATA),
        lambda: files.tombstone("a", None),
    ):
        with pytest.raises(RetryLater) as caught:
            call()
        assert caught.value.kind == "bucket-unreachable"
    assert not root.exists()


def test_a_file_system_without_hard_links_is_refused_at_the_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create-only needs hard links: their lack is a wrong setting, told before the first upload."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InvalidInput) as caught:
        FolderFiles(root).start(60)
    assert caught.value.kind == "invalid-setting"


def test_synced_objects_are_the_same(root: Path) -> None:
    """With waiting for the disk everything works alike."""
    files = FolderFiles(root)
    files.start(60)
    assert files.create("a/b", DATA)
    assert not files.create("a/b", DATA)
    assert files.tombstone("a/b", None).length == 0
    assert files.delete("a/b", None)
