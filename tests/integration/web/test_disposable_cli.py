"""``entrepot-hub export`` and ``rebuild`` as their users run them, without a hub that runs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.integration.web.test_cli import Command
from tests.servers.grid import Content
from tests.servers.postgres import PostgreSQL, running_postgres
from tests.servers.relay import until

from entrepot.core.lock import SchemaLock
from entrepot.core.nkeys import KeyKind, SigningKey
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.export import decrypt
from entrepot_hub.core.members import Rights
from entrepot_hub.core.sealing import MasterKey
from entrepot_hub.services.rebuild import rebuild_hub

pytestmark = pytest.mark.blocking  # looks at files

SECRET = "wJalrXUtnFEMI-very-secret"
PASSWORD = "correct horse battery"
LOCK = SchemaLock("demo", miniblock=16384, object=65536)
NODES = [SigningKey(KeyKind.USER, bytes([seed]) * 32).public for seed in (1, 2)]


class Place:
    """A machine with a hub on it, its bucket, and a file with a password."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub = folder / "hub"
        self.bucket = folder / "bucket"
        self.export = folder / "hub.export"
        self.password = folder / "password"
        self.password.write_text(PASSWORD + "\n")
        self.command = Command(self.hub)
        self.words = ("--password-file", str(self.password))

    def make(self, **more: str) -> Any:
        """The export, made."""
        return self.command.json("export", str(self.export), *self.words, **more)

    def told(self, *words: str) -> Any:
        """What a command tells in JSON."""
        return self.command.json(*words)

    def lose(self) -> None:
        """All that the hub had on its disk is gone."""
        shutil.rmtree(self.hub)

    def rebuild(self, *more: str, **how: Any) -> Any:
        """The hub, made again."""
        return self.command.json("rebuild", "--from", str(self.export), *self.words, *more, **how)

    def refused(self, *more: str, code: int) -> dict[str, Any]:
        """The error of a rebuilding that does not begin."""
        return self.command.error("rebuild", "--from", str(self.export), *self.words, *more, code=code)

    def log(self) -> list[dict[str, Any]]:
        """The audit log."""
        found: Any = self.command.json("audit", "--limit", "1000")
        assert isinstance(found, list)
        return found

    def put(self, content: Content, *numbers: int) -> None:
        """Objects of a stream that lie in the bucket."""
        folder = self.bucket / LOCK.hex / content.stream.hex
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            (folder / f"{number:08x}").write_bytes(content.object(number))

    def state(self) -> dict[str, Any]:
        """What the hub's commands tell of it."""
        found: dict[str, Any] = {
            name: self.command.json(*words)
            for name, words in {
                "channels": ("channel", "list"),
                "demo": ("channel", "show", "demo"),
                "more": ("channel", "show", "more"),
                "pins": ("channel", "pins", "demo"),
                "limits": ("channel", "limit", "demo"),
                "prices": ("price", "list"),
                "nodes": ("node", "list"),
                "keys": ("channel", "credentials", "show", "more"),
            }.items()
        }
        for channel in found["channels"]:
            _forget_held(channel)
        for name in ("demo", "more"):
            _forget_held(found[name]["channel"])
        found["keys"].pop("now")
        return found


def _forget_held(channel: dict[str, Any]) -> None:
    """Without what is held back for a while, which is charged."""
    for field in ("charged", "held", "held_until"):
        channel.pop(field)


def members(database: str, hub: Path) -> None:
    """Two nodes: one with rights, and one that is a member no longer and is suspended."""

    async def work() -> None:
        async with Database(database) as opened:
            registry = Registry(opened, MasterKey.parse((hub / "master.key").read_text()))
            for node in NODES:
                await registry.add_node(node, f"node {node[1:3]}", now=1.0)
                await registry.grant_rights("demo", node, Rights.parse("request,provide"), now=2.0, actor="admin")
            await registry.revoke("demo", NODES[1], now=3.0, actor="admin")
            await registry.suspend(NODES[1], now=4.0, actor="admin")

    asyncio.run(work())


def begin(place: Place, database: str | None = None, quota: str = "4M") -> None:
    """A hub with a channel."""
    command = place.command
    command("init", "--url", "http://127.0.0.1:8480")
    if database is not None:
        with (place.hub / "hub.toml").open("a") as file:
            file.write(f'\n[database]\nurl = "{database}"\n')
    place.bucket.mkdir(exist_ok=True)
    sizes = ("--quota", quota, "--miniblock", "16K", "--object", "64K")
    command("channel", "create", "demo", "--bucket", place.bucket.as_uri(), *sizes)


def populate(place: Place, database: str | None = None) -> None:
    """The same with all that an export knows of."""
    begin(place, database)
    command, other = place.command, place.folder / "other"
    other.mkdir()
    command("channel", "create", "more", "--bucket", other.as_uri())
    command("channel", "invite", "demo", "--uses", "3")
    command("channel", "limit", "demo", "--up-per-day", "1G")
    command("price", "set", "channel:demo", "--storage", "0.05")
    members(database or f"sqlite:///{place.hub / 'hub.db'}", place.hub)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A machine without a hub."""
    return Place(tmp_path)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgreSQL]:
    with running_postgres() as server:
        yield server


def stream(objects: int = 2) -> Content:
    return Content(os.urandom(65536 * objects - 1000), LOCK)


def test_everything_comes_back(place: Place) -> None:
    """Channels, nodes, rights, revocations, invites, pins, limits, prices and the audit log are what they were, under
    another master key, and the ledger knows what lies in the bucket."""
    populate(place)
    content = stream(3)
    place.put(content, 0, 1, 2)
    place.command("channel", "reconcile", "demo")
    place.command("channel", "pin", "demo", content.stream.hex, "--archive")
    before, log = place.state(), place.log()
    key = (place.hub / "master.key").read_bytes()
    made = place.make()
    assert made["made"]
    assert made["summary"]["channels"] == ["demo", "more"]
    assert (made["summary"]["members"], made["summary"]["revoked"], made["summary"]["pins"]) == (2, 2, 1)
    assert stat.S_IMODE(place.export.stat().st_mode) == 0o600
    place.lose()
    found = place.rebuild()
    assert found["hub"] == made["summary"]["hub"]
    assert place.state() == before
    now = place.log()
    assert now[: len(log)] == log
    assert now[-1]["action"] == "hub.rebuild"
    assert (place.hub / "master.key").read_bytes() != key
    demo, more = found["channels"]
    assert (demo["adopted"], demo["removed"], demo["charged"]) == (3, 0, demo["held"] + demo["bytes"])
    assert more["listed"] == 0
    assert stat.S_IMODE(place.hub.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.hub.iterdir() if path.is_file()} == {0o600}
    # An export of what came back is one of the same hub.
    assert place.make()["summary"]["hub"] == found["hub"]


def test_on_postgresql(place: Place, postgres: PostgreSQL) -> None:
    """A hub whose database was PostgreSQL's comes back into an empty one there; lines of its audit log go on counting;
    a database that is not empty is not touched."""
    populate(place, postgres.empty())
    before, log = place.state(), place.log()
    place.make()
    content = stream(2)
    place.put(content, 0, 1)
    text = place.folder / "hub.toml"
    text.write_text((place.hub / "hub.toml").read_text())
    place.lose()
    assert place.refused(code=5)["kind"] == "exists"
    assert not place.hub.exists()
    old = next(line for line in text.read_text().splitlines() if line.startswith("url = "))
    text.write_text(text.read_text().replace(old, f'url = "{postgres.empty()}"'))
    # A first attempt is killed after its database was made and before its folder was.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("entrepot_hub.services.identity._sync", _killed)
        with pytest.raises(KeyboardInterrupt):
            restored(place, text.read_text())
    shutil.rmtree(place.hub, ignore_errors=True)
    found = place.rebuild("--settings", str(text))
    assert found["channels"][0]["adopted"] == 2
    assert place.state() == before
    now = place.log()
    assert now[: len(log)] == log
    assert [entry["id"] for entry in now] == sorted({entry["id"] for entry in now})
    # From then on it is in use, and no export takes its place.
    place.lose()
    assert place.refused("--settings", str(text), code=5)["kind"] == "exists"
    assert not place.hub.exists()


def restored(place: Place, text: str) -> None:
    """A rebuilding in this process."""
    document = decrypt(place.export.read_bytes(), PASSWORD)
    asyncio.run(rebuild_hub(place.hub, document, place.export.read_bytes(), settings_text=text))


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


def test_no_secret_stands_in_an_export(place: Place) -> None:
    """Neither the bucket's key, nor the hub's own, nor a name, nor the password can be read in the file; the password
    is on no command line and in no answer."""
    begin(place)
    seeds = [SECRET.encode(), (place.hub / "master.key").read_bytes().strip(), b"SO", b"demo", PASSWORD.encode()]
    told = json.dumps(place.make())
    data = place.export.read_bytes()
    assert not [seed for seed in seeds if seed in data and len(seed) > 2]
    assert b"urls" not in data
    assert PASSWORD not in told


@pytest.mark.parametrize("damage", ["password", "cut", "flipped", "nothing", "short"])
def test_a_bad_export_changes_nothing(place: Place, damage: str) -> None:
    """A wrong password, a file that was cut or altered, or that is none: an error that says so, and no hub is made."""
    begin(place)
    place.make()
    place.lose()
    data = place.export.read_bytes()
    if damage == "password":
        place.password.write_text("another password\n")
    place.export.write_bytes(
        {
            "cut": data[:-100],
            "flipped": data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
            "nothing": b"something else",
            "short": data[:50],
        }.get(damage, data)
    )
    kinds = {"password": (4, "denied"), "cut": (7, "corrupt"), "flipped": (7, "corrupt")}
    code, kind = kinds.get(damage, (7, "corrupt") if damage == "short" else (2, "unsupported"))
    assert place.refused(code=code)["kind"] == kind
    assert not place.hub.exists()
    assert place.command.error("export", "--check", str(place.export), *place.words, code=code)["kind"] == kind


def test_an_export_is_checked_where_no_hub_is(place: Place) -> None:
    """``--check`` opens it, tells what is in it, and writes nothing."""
    populate(place)
    made = place.make()
    place.lose()
    before = sorted(place.folder.rglob("*"))
    found: Any = place.command.json("export", "--check", str(place.export), *place.words)
    assert found["summary"] == made["summary"]
    assert not found["made"]
    assert "demo, more" in place.command("export", "--check", str(place.export), *place.words).stdout
    assert sorted(place.folder.rglob("*")) == before


def test_a_key_in_place_of_a_password(place: Place) -> None:
    """An export under the master key opens with that key, from its file or the environment, and only with it."""
    begin(place)
    key = place.folder / "kept.key"
    shutil.copy(place.hub / "master.key", key)
    place.command("export", str(place.export), "--to-master-key")
    place.lose()
    assert place.refused(code=2)["kind"] == "invalid-key"
    check = ("export", "--check", str(place.export))
    assert place.command.error(*check, code=2)["kind"] == "invalid-key"
    place.command(*check, "--key-file", str(key))
    place.command(*check, ENTREPOT_HUB_MASTER_KEY=key.read_text())
    assert place.command.error(*check, code=4, ENTREPOT_HUB_MASTER_KEY="00" * 32)["kind"] == "denied"
    place.command("rebuild", "--from", str(place.export), "--key-file", str(key))
    assert (place.hub / "master.key").read_text() != key.read_text()


def test_without_a_password_nothing_is_made(place: Place) -> None:
    """Where nobody sits to be asked, the password's file has to be named; a short one is refused; another file is not
    overwritten, an older export is."""
    begin(place)
    error = place.command.error("export", str(place.export), code=2)
    assert "--password-file" in error["hint"]
    place.password.write_text("short\n")
    assert place.command.error("export", str(place.export), *place.words, code=2)["kind"] == "invalid-key"
    assert not place.export.exists()
    place.password.write_text(PASSWORD)
    place.export.write_text("my thesis")
    assert place.command.error("export", str(place.export), *place.words, code=5)["kind"] == "exists"
    assert place.export.read_text() == "my thesis"
    place.export.unlink()
    first = place.make()
    assert place.make()["summary"]["audit"] == first["summary"]["audit"] + 1
    assert [path for path in place.folder.iterdir() if path.name.startswith(".")] == []


def test_a_hub_that_is_there_is_not_touched(place: Place) -> None:
    """Into a folder with a hub, or with anything else, nothing is rebuilt."""
    begin(place)
    place.make()
    before = place.log()
    assert place.refused(code=5)["kind"] == "exists"
    assert place.log() == before
    place.lose()
    place.command("init", "--url", "http://127.0.0.1:8480")
    assert place.refused(code=5)["kind"] == "exists"
    place.lose()
    place.hub.mkdir()
    (place.hub / "thesis").write_text("mine")
    assert place.refused(code=5)["kind"] == "exists"
    assert [path.name for path in place.hub.iterdir()] == ["thesis"]


def test_where_only_the_database_was_lost(place: Place) -> None:
    """The folder of the same hub is kept, with its master key and settings; only the database is made again."""
    populate(place)
    before = place.state()
    place.make()
    content = stream(2)
    place.put(content, 0, 1)
    kept = {name: (place.hub / name).read_bytes() for name in ("master.key", "identity.sealed", "hub.toml")}
    for path in place.hub.glob("hub.db*"):
        path.unlink()
    found = place.rebuild()
    assert found["channels"][0]["adopted"] == 2
    assert place.state() == before
    assert {name: (place.hub / name).read_bytes() for name in kept} == kept


@pytest.mark.parametrize("left", ["gone", "empty"])
def test_no_empty_hub_takes_the_place_of_a_lost_one(place: Place, left: str) -> None:
    """Where the database is gone from a hub's folder, or has nothing in it, no command begins a new one: not ``serve``,
    and none that works without a hub. The error names the way back, and that way is free."""
    begin(place)
    place.make()
    for path in place.hub.glob("hub.db*"):
        path.unlink()
    if left == "empty":
        (place.hub / "hub.db").touch()
    before = sorted(place.hub.iterdir())
    done = place.command("serve", code=3)
    assert "the hub's database was lost" in done.stderr
    assert "entrepot-hub rebuild --from FILE" in done.stderr
    for words in (["channel", "list"], ["status"], ["export", str(place.export), *place.words]):
        error = place.command.error(*words, code=3)
        assert (error["kind"], "rebuild --from" in error["hint"]) == ("no-such-file", True)
    assert sorted(path for path in place.hub.iterdir() if path.name[6:] not in {"-wal", "-shm"}) == before
    place.rebuild()
    assert [channel["name"] for channel in place.told("channel", "list")] == ["demo"]


def test_another_database_is_begun_once(place: Place, postgres: PostgreSQL) -> None:
    """The tables of the database that hub.toml names are made while the one of ``init`` is unused, which goes then:
    emptied later, it is a lost one."""
    begin(place, postgres.empty())
    assert not (place.hub / "hub.db").exists()
    settings = place.hub / "hub.toml"
    old = next(line for line in settings.read_text().splitlines() if line.startswith("url = "))
    settings.write_text(settings.read_text().replace(old, f'url = "{postgres.empty()}"'))
    assert place.command.error("channel", "list", code=3)["kind"] == "no-such-file"
    settings.write_text(settings.read_text().replace("\n[database]\n", "\n[database]\n#"))
    assert place.command.error("channel", "list", code=3)["kind"] == "no-such-file"


def test_a_database_in_use_stays_where_another_is_named(place: Place, postgres: PostgreSQL) -> None:
    """The channels of a hub are not left behind unseen: where its own database knows some, an empty one is not begun.
    The same file by another name is no other database."""
    begin(place)
    settings = place.hub / "hub.toml"
    text = settings.read_text()
    settings.write_text(f'{text}\n[database]\nurl = "{postgres.empty()}"\n')
    assert place.command.error("channel", "list", code=3)["kind"] == "no-such-file"
    (place.folder / "other").symlink_to(place.hub)
    settings.write_text(f'{text}\n[database]\nurl = "sqlite:///{place.folder}/other/hub.db"\n')
    assert [channel["name"] for channel in place.told("channel", "list")] == ["demo"]
    place.lose()
    place.command("init", "--url", "http://127.0.0.1:8480")
    settings.write_text(f'{text}\n[database]\nurl = "sqlite:///{place.folder}/other/hub.db"\n')
    assert place.told("channel", "list") == []
    assert (place.hub / "hub.db").exists()


def test_a_killed_rebuilding_leaves_no_empty_hub(place: Place) -> None:
    """A rebuilding into the folder of a hub that ends before its content is written leaves no database that a hub would
    start with."""
    begin(place)
    place.make()
    for path in place.hub.glob("hub.db*"):
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("entrepot_hub.services.rebuild.write_document", _killed)
        with pytest.raises(KeyboardInterrupt):
            restored(place, "")
    assert place.command.error("channel", "list", code=3)["kind"] == "no-such-file"
    place.rebuild()


def test_a_finished_rebuilding_is_not_done_again(place: Place) -> None:
    """The same command on a hub that was rebuilt and used since says that it changed nothing, and notes nothing."""
    begin(place)
    place.make()
    place.put(stream(2), 0, 1)
    place.lose()
    assert place.rebuild()["changed"]
    place.command("channel", "quota", "demo", "8M")
    before = place.log()
    assert not place.rebuild()["changed"]
    done = place.command("rebuild", "--from", str(place.export), *place.words)
    assert done.stdout.endswith("was rebuilt from this export before: nothing is changed\n")
    assert place.log() == before
    assert place.told("channel", "list")[0]["quota"] == 8 << 20


def test_what_is_held_back_is_named(place: Place) -> None:
    """Status, channel, quota and doctor say how much of what is used is held back after a rebuilding, and until when:
    that a smaller quota does not evict it."""
    begin(place, quota="1M")
    place.make()
    place.put(stream(2), 0, 1)
    place.lose()
    demo = place.rebuild()["channels"][0]
    shown = place.told("channel", "show", "demo")["channel"]
    assert (shown["held"], shown["held_until"]) == (demo["held"], demo["held_until"])
    status = place.told("status")
    assert (status["held"], status["held_until"]) == (demo["held"], demo["held_until"])
    for words in (("status",), ("channel", "show", "demo")):
        assert "KiB held back until 20" in place.command(*words).stdout
    assert "held back" in place.command("channel", "doctor", "demo", "--no-upload").stdout
    done = place.command("channel", "quota", "demo", "256K")
    assert "128 KiB are over it and are evicted" in done.stderr
    assert "KiB held back until 20" in done.stderr
    assert place.told("channel", "quota", "demo", "256K")["held"] == demo["held"]


def test_where_an_export_cannot_go(place: Place) -> None:
    """Into a folder's place, or a folder that is not there: said before anything is asked or made. A password that
    others of this machine can read is told of."""
    begin(place)
    assert place.command.error("export", str(place.folder), *place.words, code=2)["kind"] == "invalid-input"
    assert place.command.error("export", str(place.folder / "no" / "e"), *place.words, code=3)["kind"] == "no-such-file"
    place.password.chmod(0o644)
    told = f"chmod 600 {place.password}"
    assert told in place.command("export", str(place.export), *place.words).stderr
    place.password.chmod(0o600)
    assert told not in place.command("export", "--check", str(place.export), *place.words).stderr


def test_what_lies_in_the_bucket_is_sorted(place: Place) -> None:
    """What proves itself is taken in, what does not is removed, tombstones stay, strange things are left alone; again,
    it says the same."""
    begin(place)
    place.make()
    content = stream(3)
    place.put(content, 0, 1)
    folder = place.bucket / LOCK.hex / content.stream.hex
    (folder / "00000002").write_bytes(b"")
    (folder / "00000007").write_bytes(b"garbage")
    (place.bucket / LOCK.hex / "readme").write_bytes(b"mine")
    (place.bucket / "holiday.jpg").write_bytes(b"mine")
    place.lose()
    found = place.rebuild()
    demo = found["channels"][0]
    assert (demo["listed"], demo["adopted"], demo["removed"], demo["tombstones"], demo["foreign"]) == (5, 2, 1, 1, 2)
    assert {path.name for path in folder.iterdir()} == {"00000000", "00000001", "00000002"}
    assert (place.bucket / "holiday.jpg").read_bytes() == (place.bucket / LOCK.hex / "readme").read_bytes() == b"mine"
    again = place.rebuild()
    assert again["resumed"]
    assert again["channels"] == found["channels"]
    agreed: Any = place.command.json("channel", "reconcile", "demo")
    assert agreed["counts"] == {"foreign": 2}


@pytest.mark.parametrize("strict", [False, True])
def test_part_of_the_quota_is_held_back(place: Place, strict: bool) -> None:
    """For uploads that were granted before: half of what is free, or with ``--strict`` all of it."""
    begin(place, quota="1M")
    place.make()
    place.put(stream(2), 0, 1)
    place.lose()
    demo = place.rebuild(*(["--strict"] if strict else []))["channels"][0]
    free = (1 << 20) - demo["bytes"]
    assert demo["held"] == (free if strict else free // 2)
    assert demo["charged"] == demo["bytes"] + demo["held"]
    assert demo["held_until"] > 0


def test_more_than_the_quota_is_taken_in(place: Place) -> None:
    """Nothing that proves itself is thrown away in the order of a listing: the hub evicts by its rule when it runs."""
    begin(place, quota="256K")
    place.make()
    content = stream(6)
    place.put(content, *range(6))
    place.lose()
    done = place.command("rebuild", "--from", str(place.export), *place.words)
    assert "more than its quota" in done.stderr
    (demo,) = place.rebuild()["channels"]
    assert demo["adopted"] == 6
    assert demo["charged"] == demo["bytes"] > demo["quota"]
    assert demo["held"] == 0


def test_a_bucket_that_does_not_answer_keeps_no_other_waiting(place: Place) -> None:
    """The channel is named with its reason and an exit code, the others are done; repeated, it goes on with it."""
    populate(place)
    place.make()
    place.put(stream(2), 0, 1)
    place.lose()
    away = place.bucket.rename(place.folder / "away")
    done = place.command("rebuild", "--from", str(place.export), *place.words, "--json", code=6)
    found = json.loads(done.stdout)
    demo, more = found["channels"]
    assert demo["error"] is not None
    assert demo["charged"] == demo["held"] == demo["quota"]
    assert more["error"] is None
    assert found["error"]["kind"] == "retry-later"
    away.rename(place.bucket)
    demo, more = place.rebuild()["channels"]
    assert (demo["error"], demo["adopted"]) == (None, 2)


@pytest.mark.parametrize("point", ["begun", "made", "reading"])
def test_a_killed_rebuilding_goes_on(place: Place, point: str) -> None:
    """SIGKILL while the folder is made, once it is there, and in the middle of a listing: the same command again ends
    with everything, and what was half made is gone."""
    begin(place, quota="64M")
    place.make()
    content = stream(300)
    place.put(content, *range(300))
    place.lose()
    process = subprocess.Popen(
        [sys.executable, "-m", "entrepot_hub.cli.main", "rebuild", "--from", place.export, *place.words],
        env=os.environ | {"ENTREPOT_HUB_HOME": str(place.hub)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        reached: Callable[[], Any] = {
            "begun": lambda: [*place.folder.glob(".hub.*")] or place.hub.exists(),
            "made": place.hub.exists,
            "reading": lambda: place.hub.exists() and "charged" in _adopted(place),
        }[point]
        until(lambda: reached() or process.poll() is not None, 60, "the moment")
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()
    found = place.rebuild()
    demo = found["channels"][0]
    assert demo["adopted"] + demo["agreed"] == 300
    assert demo["charged"] == demo["bytes"] + demo["held"]
    assert not [*place.folder.glob(".hub.*")]
    assert (place.bucket / LOCK.hex / content.stream.hex).exists()


def _adopted(place: Place) -> str:
    """A word once a few objects are in the ledger."""
    with closing(sqlite3.connect(f"file:{place.hub / 'hub.db'}?mode=ro", uri=True)) as database:
        (count,) = database.execute("SELECT count(*) FROM objects WHERE status = 'ready'").fetchone()
    return "charged" if count > 20 else ""
