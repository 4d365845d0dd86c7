"""``entrepot-hub`` as its users run it: a process, its output, its exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

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
        assert done.stdout == ""
        return json.loads(done.stderr)["error"]


@pytest.fixture
def command(tmp_path) -> Command:
    """The command, with a home of its own."""
    return Command(tmp_path / "hub")


@pytest.fixture
def ready(command) -> Command:
    """The same with a hub and a channel."""
    command("init", "--url", "http://127.0.0.1:8480")
    command("channel", "create", "demo", "--bucket", (command.home / "bucket").as_uri())
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
    assert command.json("channel", "create", "demo", "--bucket", bucket, apart=True)["bucket"] == bucket
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
    assert human.stderr.startswith("error: ")
    assert human.stdout == ""
    assert ready("channel", "nothing", code=2).stdout == ""
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
    assert "request:files" in done.stdout
    done = ready("channel", "revoke", "demo", "[red]")
    assert "when it starts" in done.stderr


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
        status = command.json("status")
        assert (status["running"], status["checks"]) == (True, {"database": "ok", "nats": "ok", "buckets": "ok"})
        assert command.json("channel", "create", "demo", "--bucket", bucket)["name"] == "demo"
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


def test_starting_imports_nothing_heavy():
    """The help must come at once: what talks to databases, servers and buckets is imported when it is
    used."""
    code = "import sys, entrepot_hub.cli.main; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"aiohttp", "alembic", "boto3", "cryptography", "nats", "psycopg", "rich", "sqlalchemy", "structlog"}
    assert heavy.isdisjoint(done.stdout.split())
