"""The commands that need no hub, run as processes: names, errors, exit codes, what goes to which stream."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.cli.conftest import Cli

from entrepot.adapters.store import Store
from entrepot.core.lock import SchemaLock

EMPTY = "ffe7b33958dd5ce7079aee57184e33f68cf5d8c49856ab9828530a086d94d634"
THREE_MILLION = "ff55a951c37248e968155b15fd1625dba004ccb17bf1d481fac8755d839fd0d6"
LOCK = "4ec2aebd7769b2f6"
FOREIGN = ("--channel", "demo", "--hub", "hub.example.org")


def pattern(length: int) -> bytes:
    period = bytes(i * 7 % 251 for i in range(251))
    return (period * (length // 251 + 1))[:length]


@pytest.fixture
def big(cli: Cli) -> Path:
    path = cli.folder / "big.nwb"
    path.write_bytes(pattern(3_000_000))
    return path


def test_an_id_stands_alone(cli: Cli, big: Path) -> None:
    """The id of a file is all that is printed, and it is the golden one; nothing is written anywhere."""
    done = cli.run("id", big)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{THREE_MILLION}\n", "")
    assert not cli.home.exists()


def test_several_ids_come_with_names(cli: Cli, big: Path) -> None:
    """For several files each line has the id and the name as it was given, and with --sha256 that digest."""
    (cli.folder / "größe 大.txt").touch()
    done = cli.run("id", "big.nwb", "größe 大.txt", "--sha256")
    digests = hashlib.sha256(big.read_bytes()).hexdigest(), hashlib.sha256().hexdigest()
    assert done.stdout == f"{THREE_MILLION}  {digests[0]}  big.nwb\n{EMPTY}  {digests[1]}  größe 大.txt\n"


def test_an_id_of_stdin(cli: Cli) -> None:
    """A dash is standard input."""
    assert cli.run("id", "-", given="").stdout == f"{EMPTY}\n"


def test_one_missing_file_does_not_hold_up_the_others(cli: Cli, big: Path) -> None:
    """The others are printed, the missing one is told, and the exit code says not found."""
    done = cli.run("id", "none", "big.nwb")
    assert (done.returncode, done.stdout) == (3, f"{THREE_MILLION}  big.nwb\n")
    assert done.stderr.splitlines()[0] == "entrepot: none is not there"


def test_json_of_ids(cli: Cli, big: Path) -> None:
    """With --json there is one document on stdout with what was found and what failed, and nothing else."""
    done = cli.run("id", "none", "big.nwb", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (3, "")
    assert document["files"] == [{"path": "big.nwb", "stream": THREE_MILLION, "length": 3_000_000, "sha256": None}]
    assert document["failed"][0]["path"] == "none"
    assert document["error"]["kind"] == "no-such-file"


@pytest.mark.parametrize("words", [("id", "."), ("id", "/dev/null")])
def test_what_is_no_file_has_no_id(cli: Cli, words: tuple[str, ...]) -> None:
    """A folder or a device is refused as input, not hashed."""
    assert cli.run(*words).returncode == 2


def test_a_name_that_is_no_text(cli: Cli) -> None:
    """A file whose name is not UTF-8 is hashed, and its name is printed byte by byte."""
    (cli.folder / os.fsdecode(b"a\xff")).touch()
    assert cli.data("id", os.fsdecode(b"a\xff"), os.fsdecode(b"a\xff")).endswith(b"  a\xff\n")


def test_a_uri_of_a_channel_elsewhere(cli: Cli, big: Path) -> None:
    """With channel and hub given, the URI is computed offline; it says that the lock is a guess."""
    done = cli.run("uri", big, *FOREIGN)
    assert done.stdout == f"entrepot://demo@hub.example.org/{THREE_MILLION}/big.nwb\n"
    assert "was not joined" in done.stderr
    assert cli.run("uri", big, *FOREIGN, "--quiet").stderr == ""


def test_object_keys(cli: Cli, big: Path) -> None:
    """The keys are prefix, lock, stream and number: the same for a file, an id with a length, and a URI."""
    lock = '{"channel":"demo","codec":"none","format":1,"miniblock":1048576,"object":1048576}'
    hub = ("--hub", "hub.example.org", "--lock", lock, "--objects", "--prefix", "a/b")
    from_file = cli.run("uri", big, *hub)
    assert from_file.returncode == 0, from_file.stderr
    keys = from_file.stdout.splitlines()
    assert [key.rpartition("/")[2] for key in keys] == ["00000000", "00000001", "00000002"]
    assert all(key.startswith("a/b/") and f"/{THREE_MILLION}/" in key for key in keys)
    assert cli.run("uri", THREE_MILLION, *hub, "--length", "3000000").stdout == from_file.stdout
    named = f"entrepot://demo@hub.example.org/{THREE_MILLION}/x"
    assert cli.run("uri", named, *hub[2:], "--length", "3000000").stdout == from_file.stdout


def test_json_of_a_uri(cli: Cli, big: Path) -> None:
    """The document has the URI, its parts, the lock, the length and, if asked for, the keys."""
    document = json.loads(cli.run("uri", big, *FOREIGN, "--json", "--quiet").stdout)
    assert document == {
        "uri": f"entrepot://demo@hub.example.org/{THREE_MILLION}/big.nwb",
        "stream": THREE_MILLION,
        "channel": "demo",
        "hub": "hub.example.org",
        "lock": LOCK,
        "length": 3_000_000,
        "objects": None,
    }
    keys = json.loads(cli.run("uri", EMPTY, *FOREIGN, "--length", "0", "--json", "--objects").stdout)["objects"]
    assert keys == []


def test_debugging_shows_where_it_happened(cli: Cli) -> None:
    """ENTREPOT_DEBUG=1 adds the traceback; the exit code stays."""
    done = cli.run("uri", EMPTY, ENTREPOT_DEBUG="1")
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_a_relative_home_is_refused(cli: Cli) -> None:
    """A home that would be another one in each folder is an error of the settings."""
    done = cli.run("whoami", ENTREPOT_HOME="store")
    assert done.returncode == 2
    assert "ENTREPOT_HOME" in done.stderr


def test_a_reader_that_goes_away_is_no_error_to_tell(cli: Cli, big: Path) -> None:
    """When the next command in a pipe has enough, this one ends quietly, as other tools do."""
    process = subprocess.Popen(
        cli.command("id", *(["big.nwb"] * 200)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cli.environment(),
        cwd=cli.folder,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    told = process.stderr.read()
    process.stderr.close()
    assert (process.wait(30), told) == (141, b"")


def test_ctrl_c_is_quiet(cli: Cli) -> None:
    """Ctrl-C during a long work says one sentence and ends with 130; stdout stays empty."""
    huge = cli.folder / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    process = cli.start("id", "huge")
    assert process.stderr is not None
    first = process.stderr.readline()  # of the plain progress: it is at work
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert first.startswith(b"huge: reading, 0%")
    assert (process.returncode, out) == (130, b"")
    assert err.splitlines()[-1] == b"entrepot: interrupted. Nothing was changed."
    assert b"Traceback" not in err


def test_help_needs_no_heavy_module(cli: Cli) -> None:
    """Help and ids come at once: they load neither the network nor the database."""
    program = (
        "import sys\n"
        "from entrepot.cli.main import main\n"
        "main(sys.argv[1:])\n"
        "heavy = {'aiohttp', 'nats', 'cryptography', 'sqlite3', 'rich', 'asyncio.events'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    for words in (["--help"], ["get", "--help"], ["id", __file__, "--quiet"], ["version"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            capture_output=True,
            text=True,
            env=cli.environment(),
            check=False,
        )
        loaded = done.stderr.strip()
        assert "aiohttp" not in loaded
        assert "nats" not in loaded
        assert "cryptography" not in loaded
        assert "sqlite3" not in loaded
        assert "rich" not in loaded, words


def test_a_daemon_comes_and_goes(cli: Cli) -> None:
    """Up --detach starts one, status tells of it, a second is refused, down ends it."""
    document = json.loads(cli.run("up", "--detach", "--json").stdout)
    pid = document["daemon"]["pid"]
    assert json.loads(cli.run("status", "--json").stdout)["daemon"]["pid"] == pid
    second = cli.run("up")
    assert (second.returncode, second.stderr.splitlines()[-1][:9]) == (5, "entrepot:")
    assert json.loads(cli.run("up", "--detach", "--json").stdout)["daemon"]["pid"] == pid
    down = cli.run("down", "--json")
    assert json.loads(down.stdout) == {"stopped": True}
    assert json.loads(cli.run("status", "--json").stdout)["daemon"] is None


def test_status_tells_of_the_store_without_a_daemon(cli: Cli) -> None:
    """What the store holds is told although nothing serves it, and a store that was never made is not made."""
    assert "store     0 streams, 0 B stored, 0 B linked\n" in cli.run("status").stdout
    assert not cli.home.exists()

    async def fill() -> None:
        async with Store(cli.home / "store") as store:
            await store.add_bytes(bytes(5000), channel="x/demo", lock=SchemaLock("demo"))

    asyncio.run(fill())
    assert "store     1 stream, " in cli.run("status").stdout
    store = json.loads(cli.run("status", "--json").stdout)["store"]
    assert (store["streams"], store["linked_bytes"], store["stored_bytes"] > 0) == (1, 0, True)


def test_verify_tells_of_a_changed_file_each_time(cli: Cli, big: Path) -> None:
    """A linked file that changed or went ends with 5 at every call; one that is back with its bytes is in order, and
    an empty stream too."""
    (cli.folder / "empty").touch()

    async def fill() -> None:
        async with Store(cli.home / "store") as store:
            for path in (big, cli.folder / "empty"):
                await store.add(path, channel="x/demo", lock=SchemaLock("demo"))

    asyncio.run(fill())
    fine = f"ok  {EMPTY}  empty\n"
    both = [fine.strip(), f"ok  {THREE_MILLION}  big.nwb"]
    assert sorted(cli.run("verify", "--all").stdout.splitlines()) == sorted(both)
    data = big.read_bytes()
    big.write_bytes(data + b"y")
    for words in (("--all",), (THREE_MILLION,), ("--all",)):
        done = cli.run("verify", *words)
        assert (done.returncode, done.stdout) == (5, fine if words == ("--all",) else "")
        assert done.stderr.startswith(f"entrepot: big.nwb: {big} has changed or gone\n")
    big.unlink()
    done = cli.run("verify", "--all", "--json")
    verified = {one["name"]: one["ok"] for one in json.loads(done.stdout)["verified"]}
    assert (done.returncode, verified) == (5, {"big.nwb": False, "empty": True})
    big.write_bytes(data)
    for _ in range(2):
        done = cli.run("verify", "--all")
        assert (done.returncode, sorted(done.stdout.splitlines())) == (0, sorted(both))


def test_a_health_check_says_why_it_fails(cli: Cli) -> None:
    """Status --check ends with 6 and a reason while no daemon runs, and while no hub was joined."""
    done = cli.run("status", "--check")
    assert (done.returncode, done.stderr.splitlines()) == (
        6,
        ["entrepot: no daemon runs here: nothing is served", "  Start it: entrepot up"],
    )
    assert "daemon    none" in done.stdout
    cli.run("up", "--detach")
    done = cli.run("status", "--check", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["error"]["message"]) == (6, "no hub was joined")
    assert document["daemon"]["pid"]
    cli.run("down")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_daemon_in_the_foreground_ends_when_told(cli: Cli, number: signal.Signals) -> None:
    """In the foreground it says that it serves, and ends in order on Ctrl-C and SIGTERM."""
    process = cli.start("up")
    assert process.stderr is not None
    lines: list[bytes] = []
    while not any(b"Ctrl-C ends it" in line for line in lines):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"")
    assert b"Traceback" not in err
    assert err.splitlines()[-1] == b"Nothing is served now."


def test_whoami_and_version_work_anywhere(cli: Cli) -> None:
    """Without a hub, whoami says what to do, and version is one line."""
    done = cli.run("whoami", "--json")
    assert json.loads(done.stdout) == {"home": str(cli.home), "hubs": []}
    assert "entrepot join" in cli.run("whoami").stderr
    assert cli.run("version").stdout.startswith("entrepot ")
    assert json.loads(cli.run("version", "--json").stdout)["version"] == cli.run("version").stdout.split()[1]
