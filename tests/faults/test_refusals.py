"""What cannot go on says why in one sentence, with its exit code, and leaves nothing half-written."""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.servers.nodes import KIB, MIB, Ended, Machine, Site

#: A user of the system with no rights to anything.
NOBODY = 65534


def refused(ended: Ended, code: int, kind: str) -> str:
    """The command's one sentence; it failed with this code and kind and shows no traceback."""
    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    error = ended.error
    assert error["kind"] == kind, error
    assert "\n" not in error["message"]
    print(f"{code} {kind}: {error['message']} [{error['hint']}]")
    return str(error["message"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 76 MiB: 12 MiB more than a store leaves free."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=76m", "tmpfs", place], capture_output=True, encoding="utf-8", check=False
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_told_before_and_during_a_get(site: Site, small_disk: Path) -> None:
    """A stream that does not fit on the store's disk is refused before anything moves; a disk that fills up meanwhile
    ends the get with that reason, no output, and a store that is as good as before."""
    holder = site.machine("holder")
    large, small = holder.file("large.bin", 16 * MIB), holder.file("small.bin", 8 * MIB)
    holder.up()
    uri_large, uri_small = holder.add(large, small)
    reader = Machine(site.hub, "reader", small_disk / "home", site.folder / "reader").join()
    site.machines.append(reader)
    message = refused(reader.run("get", uri_large, "-o", "copy.bin", "--json"), 6, "disk-full")
    assert str(small_disk) in message or "disk" in message
    assert not site.relay.gets()
    site.relay.hold("GET", 2 * MIB)
    get = reader.start("get", uri_small, "-o", "copy.bin", "--json")
    site.relay.wait_held("GET")
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(MIB))
                file.flush()
        except OSError:
            pass
    site.relay.release()
    refused(get.wait(), 6, "disk-full")
    assert not (reader.folder / "copy.bin").exists()
    assert not list((small_disk / "home").rglob("*.part"))
    filler.unlink()
    reader.run("get", uri_small, "-o", "copy.bin", "--json").fine()
    assert (reader.folder / "copy.bin").read_bytes() == small.read_bytes()


def test_a_hub_that_cannot_be_reached_is_told(site: Site) -> None:
    """With the hub gone a get of what is not here ends with that reason; what is here is given all the same."""
    holder, reader = site.machine("holder"), site.machine("reader")
    original = holder.file("original.bin", 256 * KIB)
    (uri,) = holder.add(original)
    site.hub.kill()
    message = refused(reader.run("get", uri, "-o", "copy.bin", "--timeout", "3s", "--json"), 6, "hub-unreachable")
    assert site.hub.host in message
    assert not (reader.folder / "copy.bin").exists()
    holder.run("get", uri, "-o", "again.bin").fine()
    assert (holder.folder / "again.bin").read_bytes() == original.read_bytes()
    site.relay.close()
    refused(reader.run("get", uri, "-o", "copy.bin", "--timeout", "3s", "--json"), 6, "hub-unreachable")


def test_a_file_that_may_not_be_read_is_told(site: Site) -> None:
    """A file of somebody else's is refused by name, and the others of the same command are added."""
    if os.getuid() != 0:
        pytest.skip("only root can run a command as another user")
    machine = site.machine("machine")
    secret, public = machine.file("secret.bin", 1000), machine.file("public.bin", 1000)
    secret.chmod(0o600)
    public.chmod(0o644)
    for path in (machine.home, *machine.home.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for folder in (machine.folder, *machine.folder.parents, *machine.home.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, "add", secret, public, "--no-serve", "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        env=machine.environment(PYTHONWARNINGS="default"),
        timeout=60,
        check=False,
    )
    ended = Ended(done.returncode, done.stdout, done.stderr)
    assert ended.code == 4, ended
    (failed,) = ended.document["failed"]
    assert failed["error"]["kind"] == "unreadable"
    assert "secret.bin" in failed["error"]["message"]
    assert [added["name"] for added in ended.document["added"]] == ["public.bin"]


#: The command of another user, who may not be able to read this Python: everything is imported first.
_AS_NOBODY = f"""
import os, sys
import aiohttp, asyncio, concurrent.futures.thread, encodings.idna, encodings.utf_16_be
import encodings.utf_16_le, json, msgspec.json, sqlite3, zoneinfo
import entrepot.cli.application, entrepot.cli.transfer, entrepot.cli.serving, entrepot.cli.environment
import entrepot.services.node, entrepot.services.daemon_client, rich.progress, rich.live
from entrepot.cli.main import main
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("get", "entrepot://demo/zz"), "invalid-uri"),
        (("get", "entrepot://DEMO/" + "ff" * 32), "invalid-uri"),
        (("get", "entrepot://demo/" + "ff" * 32 + "/../../etc/passwd"), "invalid-uri"),
        (("get", "00" * 32), "invalid-id"),
        (("join", "http://127.0.0.1:1/j/short"), "invalid-token"),
        (("get", "ff" * 32, "--timeout", "soon"), "invalid-input"),
        (("cat", "ff" * 32, "--range", "9-1"), "invalid-input"),
    ],
)
def test_malformed_words_are_invalid_input(tmp_path: Path, empty_home: Path, words: tuple[str, ...], kind: str) -> None:
    """A malformed URI, id, token, duration or range is refused as such; no file appears."""
    home = empty_home / secrets.token_hex(4)
    done = run_alone(tmp_path, home, *words, *([] if words[0] == "cat" else ["--json"]))
    if words[0] == "cat":
        assert done.code == 2
        assert "Traceback" not in done.err
    else:
        refused(done, 2, kind)
    assert not list(tmp_path.glob("*.bin"))


def run_alone(folder: Path, home: Path, *words: str, **more: str) -> Ended:
    """An ``entrepot`` command without any hub."""
    done = subprocess.run(
        [sys.executable, "-m", "entrepot", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "ENTREPOT_HOME": str(home), "PYTHONWARNINGS": "error", **more},
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("damage", "code", "kind"),
    [
        (b'{"version": 1, "hubs": [', 7, "corrupt-store"),
        (b'{"version": 99, "hubs": []}', 2, "unsupported"),
        (b"\xff\xfe\x00", 7, "corrupt-store"),
    ],
)
def test_a_damaged_configuration_is_told(tmp_path: Path, empty_home: Path, damage: bytes, code: int, kind: str) -> None:
    """A list of hubs that is cut, of a newer version or no text at all is named with what to do, and stays as it is."""
    home = empty_home / secrets.token_hex(4)
    home.mkdir(mode=0o700)
    (home / "hubs.json").write_bytes(damage)
    done = run_alone(tmp_path, home, "get", "ff" * 32, "-o", "copy.bin", "--json")
    assert "hubs.json" in refused(done, code, kind)
    assert done.error["hint"]
    assert (home / "hubs.json").read_bytes() == damage


def test_a_malformed_setting_of_the_hub_is_named(tmp_path: Path) -> None:
    """A hub whose settings are wrong does not start and names the setting."""
    (tmp_path / "hub.toml").write_text('urls = ["http://127.0.0.1:1"]\n[limits]\njwt = 5\n')
    done = subprocess.run(
        [Path(sys.executable).parent / "entrepot-hub", "serve", "--folder", tmp_path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done
    assert "jwt" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_clock_that_is_off_is_told_by_how_much(site: Site) -> None:
    """A machine whose clock is four minutes off is refused with exactly that, and what to do."""
    # Only found, not imported: importing it loads libraries that this suite's warnings forbid.
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        pytest.skip("libfaketime is not here")
    library = Path(found.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    reader = site.machine("reader")
    ended = reader.run(
        *("get", "ff" * 32, "-o", "copy.bin", "--json"),
        LD_PRELOAD=str(library),
        DONT_FAKE_MONOTONIC="1",
        FAKETIME_NO_CACHE="1",
        FAKETIME="-240s",
    )
    message = refused(ended, 4, "clock-skew")
    assert "4 minutes" in message or "240 s" in message, message
    assert ended.error["hint"]
    assert not (reader.folder / "copy.bin").exists()
