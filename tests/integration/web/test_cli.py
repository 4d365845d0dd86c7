"""``entrepot-hub`` as its users run it: a process, its output, its exit code."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.integration.web.conftest import free_port

from entrepot.core.invite import Invite
from entrepot_hub.cli.main import main

SECRET = "wJalrXUtnFEMI-very-secret"


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


class Command:
    """Runs the command, in this process (a new one takes most of a second) unless ``apart``."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *arguments: str, stdin: str = "", code: int = 0, apart: bool = False, **more: str) -> Done:
        variables = {"ENTREPOT_HUB_HOME": str(self.home), "COLUMNS": "200"} | more
        done = (self._apart if apart else self._here)(arguments, stdin, variables)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def _apart(self, arguments: tuple[str, ...], stdin: str, variables: dict[str, str]) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "entrepot_hub.cli.main", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | variables,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def _here(self, arguments: tuple[str, ...], stdin: str, variables: dict[str, str]) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["entrepot-hub", *arguments])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            with pytest.raises(SystemExit) as ended:
                main()
        return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    def json(self, *arguments: str, **how) -> object:
        return json.loads(self(*arguments, "--json", **how).stdout)

    def error(self, *arguments: str, code: int, **how) -> dict:
        done = self(*arguments, "--json", code=code, **how)
        assert done.stderr == ""
        return json.loads(done.stdout)["error"]


@pytest.fixture
def command(tmp_path) -> Command:
    """The command, with a home of its own."""
    return Command(tmp_path / "hub")


@pytest.fixture
def ready(command) -> Command:
    """The same with a hub and a channel."""
    command("init", "--url", "http://127.0.0.1:8480")
    command("channel", "create", "demo", "--create-bucket", "--bucket", (command.home / "bucket").as_uri())
    return command


def test_init_makes_a_private_folder_and_names_what_to_back_up(command):
    """All files are there, for the owner alone, and a second init touches nothing."""
    made = command.json("init", "--url", "https://Hub.example.org:443/")
    assert made["hub"].startswith("O")
    assert stat.S_IMODE(command.home.stat().st_mode) == 0o700
    assert {Path(path).name for path in made["backup"]} == {"master.key", "identity.sealed", "hub.db", "hub.toml"}
    for path in made["backup"]:
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert 'urls = ["https://hub.example.org"]' in (command.home / "hub.toml").read_text()
    before = {path: path.read_bytes() for path in command.home.iterdir()}
    error = command.error("init", "--url", "https://other.example.org", code=5)
    assert error["kind"] == "exists"
    assert {path: path.read_bytes() for path in command.home.iterdir()} == before
    assert [path.name for path in command.home.parent.iterdir()] == [command.home.name]


@pytest.mark.parametrize(
    ("url", "code"), [("http://hub.example.org", 2), ("hub.example.org", 2), ("https://a/b", 2), ("https://u:p@h", 2)]
)
def test_init_refuses_a_bad_address_and_leaves_nothing(command, url, code):
    """Nothing is made for an address that nodes could not use safely."""
    error = command.error("init", "--url", url, code=code)
    assert error["kind"] == "invalid-setting"
    assert list(command.home.parent.iterdir()) == []


def test_a_channels_life_without_a_running_hub(ready):
    """Create, list, show, invite: the same answers in JSON and in tables."""
    [channel] = ready.json("channel", "list")
    assert channel["name"] == "demo"
    assert channel["quota"] == 10 << 30
    assert channel["binds"]["create_only"] is True
    assert "10.0 GiB" in ready("channel", "list").stdout
    made = ready.json("channel", "invite", "demo", "--uses", "3", "--for", "10m", "--rights", "read")
    invite = Invite.parse(made["url"])
    assert invite.id.hex() == made["invite"]["id"]
    assert (made["invite"]["uses"], made["invite"]["rights"]) == (3, "read")
    human = ready("channel", "invite", "demo")
    assert Invite.parse(human.stdout).url == "http://127.0.0.1:8480"
    detail = ready.json("channel", "show", "demo")
    assert len(detail["invites"]) == 2
    assert detail["members"] == []
    assert "no members yet" in ready("channel", "show", "demo").stdout
    everything = ready("channel", "show", "demo", "--json").stdout + ready("audit", "--json").stdout
    assert invite.token not in everything
    assert invite.secret.hex() not in everything
    assert [entry["action"] for entry in ready.json("audit")] == [
        "channel.create",
        "invite.create",
        "invite.create",
    ]
    assert [entry["id"] for entry in ready.json("audit", "--limit", "1")] == [3]
    assert ready.json("node", "list") == []
    assert ready.json("status")["running"] is False


def test_as_a_process_it_does_the_same(command):
    """The installed command: output, exit codes and JSON errors of init, channel, invite and list."""
    made = command.json("init", "--url", "http://127.0.0.1:8480", apart=True)
    assert Path(made["folder"]) == command.home
    bucket = (command.home / "bucket").as_uri()
    assert (
        command.json("channel", "create", "demo", "--create-bucket", "--bucket", bucket, apart=True)["bucket"] == bucket
    )
    Invite.parse(command.json("channel", "invite", "demo", apart=True)["url"])
    assert [c["name"] for c in command.json("channel", "list", apart=True)] == ["demo"]
    assert command.error("channel", "show", "none", code=3, apart=True)["kind"] == "no-such-channel"


def test_exit_codes_follow_the_errors(ready, tmp_path):
    """2 for wrong words, 3 for what is not there, 5 for what is in the way; one sentence and a hint."""
    bucket = (tmp_path / "b2").as_uri()
    assert ready.error("channel", "show", "none", code=3)["kind"] == "no-such-channel"
    assert ready.error("channel", "create", "demo", "--bucket", bucket, code=5)["kind"] == "exists"
    assert ready.error("channel", "create", "Bad!", "--bucket", bucket, code=2)["kind"] == "invalid-input"
    assert ready.error("channel", "create", "two", "--bucket", "ftp://x", code=2)["kind"] == "invalid-setting"
    assert ready.error("channel", "create", "two", "--bucket", bucket, "--quota", "10GB", code=2)
    assert ready.error("channel", "create", "two", "--bucket", bucket, "--quota", "1M", code=2)
    assert ready.error("channel", "create", "two", "--bucket", bucket, "--miniblock", "3M", code=2)
    assert ready.error("channel", "invite", "demo", "--for", "soon", code=2)
    assert ready.error("channel", "invite", "demo", "--rights", "everything", code=2)
    assert ready.error("channel", "grant", "demo", "nobody", "read", code=3)["kind"] == "no-such-node"
    assert ready.error("node", "suspend", "nobody", code=3)["kind"] == "no-such-node"
    human = ready("channel", "show", "none", code=3)
    assert human.stderr.splitlines() == [
        "entrepot-hub: there is no channel none",
        "  See which there are: entrepot-hub channel list",
    ]
    assert human.stdout == ""
    human = ready("channel", "create", "two", "--bucket", bucket, "--quota", "10GB", code=2)
    assert human.stderr.splitlines()[1].startswith("  Write a whole number")
    assert ready("channel", "nothing", code=2).stderr.splitlines() == [
        "entrepot-hub: no such command 'nothing'",
        "  Try: entrepot-hub channel --help",
    ]
    assert ready.error("channel", "show", code=2)["hint"] == "Try: entrepot-hub channel show --help"
    nowhere = Command(tmp_path / "none").error("status", code=3)
    assert nowhere["kind"] == "not-running"
    assert "init" in nowhere["hint"]


def test_another_hubs_bucket_is_refused(ready, tmp_path):
    """A prefix that another hub marked as its own is not taken."""
    other = Command(tmp_path / "other")
    other("init", "--url", "http://127.0.0.1:8481")
    bucket = (ready.home / "bucket").as_uri()
    assert other.error("channel", "create", "mine", "--bucket", bucket, code=5)["kind"] == "in-use"
    assert other.json("channel", "list") == []
    assert ready.json("channel", "create", "second", "--bucket", bucket)["name"] == "second"


def test_a_buckets_keys_come_by_file_or_pipe_and_show_nowhere(ready, tmp_path):
    """Wrong keys are an error without the keys in it; right ones are sealed before they are kept."""
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"access_key": "AKIA", "secret_key": SECRET, "oops": 1}))
    bucket = "s3://b-b/p?region=us-east-1&endpoint=http://127.0.0.1:1"
    create = ("channel", "create", "cloud", "--bucket", bucket)
    done = ready(*create, "--credentials-file", str(keys), code=2)
    assert "no keys" in done.stderr
    assert SECRET not in done.stderr
    good = json.dumps({"access_key": "AKIA", "secret_key": SECRET})
    done = ready(*create, "--credentials-stdin", stdin=good, code=6)
    assert SECRET not in done.stderr + done.stdout
    assert ready.error(*create, "--credentials-file", str(tmp_path / "none"), code=3)["kind"] == "no-such-file"
    assert ready.error(*create, "--credentials-file", str(keys), "--credentials-stdin", code=2)
    assert ready.error(*create, "--credentials-stdin", stdin="", code=2)
    for path in ready.home.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes()


def test_the_master_key_may_come_from_elsewhere(ready):
    """From the environment or a command; a wrong one opens nothing and is not shown."""
    file = ready.home / "master.key"
    key = file.read_text().strip()
    file.unlink()
    assert ready.error("status", code=3)["kind"] == "no-such-file"
    assert ready.json("status", ENTREPOT_HUB_MASTER_KEY=key)["channels"] == 1
    wrong = "ab" * 32
    done = ready("status", code=4, ENTREPOT_HUB_MASTER_KEY=wrong)
    assert wrong not in done.stderr
    settings = ready.home / "hub.toml"
    settings.write_text(
        settings.read_text() + f'\n[master]\ncommand = ["{sys.executable}", "-c", "print(\'{key}\')"]\n'
    )
    assert ready.json("status")["channels"] == 1


def test_settings_that_are_wrong_name_the_setting(ready):
    """A typing error in hub.toml is told with its place."""
    settings = ready.home / "hub.toml"
    text = settings.read_text()
    for more, what in (
        ("lisen = 1\n", "lisen"),
        ("\n[limits]\nrequest = 0\n", "limits.request"),
        ("\n[limits]\njwt = 'x'\n", "limits.jwt"),
    ):
        settings.write_text(more + text if more.startswith("l") else text + more)
        error = ready.error("status", code=2)
        assert error["kind"] == "invalid-setting"
        assert what in error["message"]


def test_nats_config_holds_no_secret(ready, tmp_path):
    """The file for the stock image has the operator's JWT, no seed, and can be written again."""
    for _ in range(2):
        made = ready.json("nats-config", "--stock", str(tmp_path / "nats"))
    text = Path(made["file"]).read_text()
    assert "operator:" in text
    assert "resolver_preload" in text
    assert not any(word.startswith(("SU", "SA", "SO")) and len(word) == 58 for word in text.replace('"', " ").split())
    assert [path.name for path in (tmp_path / "nats").iterdir()] == ["nats-server.conf"]
    assert ready.error("nats-config", "--stock", str(tmp_path / "n2"), "--key", "k", code=2)


def test_names_of_nodes_are_shown_as_they_are(ready):
    """A name that looks like markup does nothing to the table."""
    import asyncio
    import time

    from entrepot.core.keyring import derive_node_key
    from entrepot_hub.adapters.database import Database
    from entrepot_hub.adapters.registry import Registry
    from entrepot_hub.core.sealing import MasterKey

    key = derive_node_key(bytes(32), "O")

    async def add() -> None:
        async with await asyncio.to_thread(Database, f"sqlite:///{ready.home}/hub.db") as database:
            await Registry(database, MasterKey(bytes(32))).add_node(key.public, "[red]:bomb:[/]", now=time.time())

    asyncio.run(add())
    assert "[red]:bomb:[/]" in ready("node", "list").stdout
    done = ready("channel", "grant", "demo", key.public[:12], "request")
    assert done.stdout == "[red]:bomb:[/] in demo: request\n"
    done = ready("channel", "revoke", "demo", "[red]")
    assert "when it starts" in done.stderr


def test_a_hub_that_is_there_may_be_asked_for_again(command):
    """With --if-missing init makes a hub once, says what is there, and still refuses a folder of something else."""
    first = command.json("init", "--url", "http://127.0.0.1:8480", "--if-missing")
    before = {path: path.read_bytes() for path in command.home.iterdir()}
    again = command.json("init", "--url", "http://127.0.0.1:8480", "--if-missing")
    assert (first["made"], again["made"]) == (True, False)
    assert {**again, "made": True} == first
    done = command("init", "--url", "http://127.0.0.1:9", "--if-missing")
    assert done.stdout == f"hub {first['hub']} is there already, in {command.home}\n"
    assert "its address is http://127.0.0.1:8480, not http://127.0.0.1:9" in done.stderr
    assert {path: path.read_bytes() for path in command.home.iterdir()} == before
    (command.home / "hub.toml").unlink()
    assert command.error("init", "--url", "http://127.0.0.1:8480", "--if-missing", code=5)["kind"] == "exists"


def test_a_channel_that_is_there_may_be_asked_for_again(ready, tmp_path):
    """With --if-missing one on the same bucket is left as it is; one on another bucket is in the way."""
    bucket = (ready.home / "bucket").as_uri()
    create = ("channel", "create", "demo", "--if-missing", "--bucket")
    again = ready.json(*create, bucket, "--quota", "1g")
    assert (again["made"], again["quota"]) == (False, 10 << 30)
    assert ready(*create, bucket).stdout == f"channel demo is there already: 10.0 GiB on {bucket}\n"
    assert "its codec" not in ready(*create, bucket, "--codec", "none").stderr
    assert "note: its codec is none, not zstd: " in ready(*create, bucket, "--codec", "zstd").stderr
    assert ready.error(*create, bucket, "--codec", "gzip", code=2)["hint"].startswith("It is none or zstd")
    error = ready.error(*create, (tmp_path / "b2").as_uri(), code=5)
    assert (error["kind"], bucket in error["message"]) == ("exists", True)
    assert ready.json("channel", "create", "two", "--if-missing", "--bucket", bucket)["made"] is True
    assert [line["action"] for line in ready.json("audit")] == ["channel.create"] * 2


def test_a_health_check_fails_while_no_hub_runs(ready):
    """Status --check ends with 6 and does not look into the database."""
    (ready.home / "hub.db").unlink()
    done = ready("status", "--check", code=6)
    assert done.stderr == "entrepot-hub: no hub is running here\n  Start it: entrepot-hub serve\n"
    assert ready.error("status", "--check", code=6)["kind"] == "retry-later"
    assert not (ready.home / "hub.db").exists()


def test_init_tells_when_nodes_could_not_find_the_bus(command):
    """A public hub whose bus is announced at the loopback address is told so, with the line that mends it."""
    line = 'urls = ["wss://hub.example.org/nats"]'
    done = command("init", "--url", "https://hub.example.org")
    assert line in done.stderr
    assert "nats://127.0.0.1:4222" in done.stderr
    assert line in command("status").stderr
    status = command.json("status")
    assert status["nats"] == ["nats://127.0.0.1:4222"]
    assert [line in warning for warning in status["warnings"]] == [True]
    settings = command.home / "hub.toml"
    settings.write_text(settings.read_text() + line + "\n")
    status = command.json("status")
    assert (status["nats"], status["warnings"]) == (["wss://hub.example.org/nats"], [])


def test_init_takes_a_nats_server_and_where_nodes_find_it(command):
    """--nats and --nats-url stand in hub.toml; wrong ones are refused and nothing is made."""
    url = ("init", "--url", "https://hub.example.org")
    for option in ("--nats", "--nats-url"):
        assert command.error(*url, option, "http://bus", code=2)["kind"] == "invalid-setting"
        assert not command.home.exists()
    done = command(*url, "--nats", "nats://127.0.0.1:4222", "--nats-url", "tls://bus.example.org:4222")
    assert done.stderr == ""
    text = (command.home / "hub.toml").read_text()
    assert 'server = ["nats://127.0.0.1:4222"]' in text
    assert 'urls = ["tls://bus.example.org:4222"]' in text
    assert command.json("status")["nats"] == ["tls://bus.example.org:4222"]


def test_what_people_read_is_compact(ready):
    """No blank lines around tables; points in time in the audit log are dates; -h is --help everywhere."""
    ready("channel", "invite", "demo")
    for words in (("channel", "list"), ("channel", "show", "demo"), ("audit",)):
        assert all(line.strip() for line in ready(*words).stdout.splitlines()), words
    assert re.search(r"expires=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", ready("audit").stdout)
    for command in ("", "channel", "channel create", "node list", "status"):
        assert ready(*command.split(), "-h").stdout == ready(*command.split(), "--help").stdout


@pytest.mark.parametrize(
    ("words", "listen", "told"),
    [
        (("--url", "http://127.0.0.1:18733"), "127.0.0.1:18733", False),
        (("--url", "http://localhost:18733"), "127.0.0.1:18733", False),
        (("--url", "http://[::1]:18733"), "[::1]:18733", False),
        (("--url", "http://127.0.0.1:18733", "--listen", "127.0.0.1:9000"), "127.0.0.1:9000", False),
        (("--url", "https://hub.example.org"), "127.0.0.1:8480", False),
        (("--url", "http://10.0.0.1:18733", "--plain"), "127.0.0.1:8480", True),
    ],
)
def test_a_new_hub_listens_where_its_address_says(command, words, listen, told):
    """Without --listen a hub for this machine alone listens at its own address; where another program has to pass on
    what nodes ask, and none need be there, it says so."""
    done = command("init", *words)
    assert f'listen = "{listen}"' in (command.home / "hub.toml").read_text()
    assert (f"it listens at {listen}" in done.stderr) == told


def test_serve_tells_that_the_port_of_its_bus_is_taken(command):
    """One short line names the address, the hint the setting, and the exit code says that it may succeed later."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        command("init", "--url", "http://127.0.0.1:8480", "--listen", "127.0.0.1:0", "--nats-listen", address)
        done = command("serve", code=6)
    assert f"{address} is in use" in done.stderr
    assert "[nats]" in done.stderr
    assert "bind:" not in done.stderr


def test_commands_reach_a_running_hub(command):
    """While ``serve`` runs, commands go through its socket; SIGTERM ends it with code 0 and takes the socket
    along."""
    command("init", "--url", "http://127.0.0.1:8480", "--listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0")
    bucket = (command.home / "bucket").as_uri()
    serving = subprocess.Popen(
        [sys.executable, "-m", "entrepot_hub.cli.main", "serve", "--log-json"],
        env=os.environ | {"ENTREPOT_HUB_HOME": str(command.home)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stderr is not None
        assert "hub ready" in serving.stderr.readline()
        status = command.json("status", "--check")
        assert status["running"] is True
        assert (
            status["checks"] | {"database": "ok", "nats": "ok", "buckets": "ok", "exchange": "ok"} == status["checks"]
        )
        assert command.json("channel", "create", "demo", "--create-bucket", "--bucket", bucket)["name"] == "demo"
        assert command.error("channel", "create", "demo", "--bucket", bucket, code=5)["kind"] == "exists"
        assert "is running" in command("serve", code=5).stderr
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(timeout=30) == 0
    finally:
        serving.kill()
        serving.wait()
        if serving.stderr is not None:
            serving.stderr.close()
    assert not (command.home / "hub.sock").exists()
    assert [channel["name"] for channel in command.json("channel", "list")] == ["demo"]


@pytest.mark.parametrize("public", [True, False])
def test_serve_tells_nodes_where_its_bus_is(command, public):
    """A bus at all addresses is announced by the hub's name; one at the loopback address is warned of when it serves,
    and in /readyz."""
    port = free_port()
    address = "0.0.0.0" if public else "127.0.0.1"
    url = ("--url", "https://hub.example.org", "--listen", f"127.0.0.1:{port}")
    command("init", *url, "--nats-listen", f"{address}:0")
    serving = subprocess.Popen(
        [sys.executable, "-m", "entrepot_hub.cli.main", "serve", "--log-json"],
        env=os.environ | {"ENTREPOT_HUB_HOME": str(command.home)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stderr is not None
        assert "hub ready" in serving.stderr.readline()
        status = command.json("status", "--check")
        [told] = status["nats"]
        assert re.fullmatch(r"nats://hub\.example\.org:[1-9]\d+" if public else r"nats://127\.0\.0\.1:[1-9]\d+", told)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            ready = json.load(answer)
        assert ready["ready"] is True
        assert ready.get("warnings") == (None if public else ["nats-address"])
        if not public:
            assert serving.stderr.readline() == f"note: {status['warnings'][0]}\n"
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(timeout=30) == 0
    finally:
        serving.kill()
        serving.wait()
        if serving.stderr is not None:
            serving.stderr.close()


def test_starting_imports_nothing_heavy():
    """The help must come at once: what talks to databases, servers and buckets is imported when it is
    used."""
    code = "import sys, entrepot_hub.cli.main; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"aiohttp", "alembic", "boto3", "cryptography", "nats", "psycopg", "rich", "sqlalchemy", "structlog"}
    assert heavy.isdisjoint(done.stdout.split())


def test_asking_a_running_hub_imports_no_database():
    """A command that goes through the socket needs neither the database nor the buckets."""
    code = "import sys, entrepot_hub.services.web.admin_client; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"aiohttp", "alembic", "boto3", "nats", "psycopg", "rich", "sqlalchemy", "structlog"}.isdisjoint(
        done.stdout.split()
    )
