"""A hub and nodes as processes of their own, as people run them, and what befalls them.

:class:`Site` is a hub (``entrepot-hub serve`` with its nats-server, SQLite and folder buckets) behind a
:class:`~tests.servers.relay.Relay`, and machines: each has a home, runs ``entrepot`` commands and one daemon. Joining
and adding are done in this process, which saves starting one. Everything can be killed, stopped, continued and started
again; :meth:`Site.close` ends what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.servers.process import free_port
from tests.servers.relay import Relay, until
from tests.servers.sqlite import new_hub

from entrepot.core.errors import NotFound, RetryLater
from entrepot.services.control import DaemonStatus, HubView
from entrepot.services.daemon_client import DaemonClient
from entrepot.services.estimate import Info
from entrepot.services.node import Node
from entrepot.services.settings import NodeSettings
from entrepot_hub.services.settings import Listen

KIB, MIB = 1 << 10, 1 << 20
_SHOWN = 3000  # characters of a log
#: Small objects make many of them out of little data.
SMALL = {"miniblock": 16 * KIB, "object": 256 * KIB}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What it printed with ``--json``."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def error(self) -> dict[str, Any]:
        """The error in what it printed with ``--json``."""
        found: dict[str, Any] = self.document["error"]
        return found

    @property
    def reason(self) -> str:
        """The first line that it told on stderr."""
        return next((line for line in self.err.splitlines() if line.startswith("entrepot:")), "")

    def fine(self) -> Self:
        """Itself, if the command succeeded."""
        assert self.code == 0, f"{self.code}\n{self.out}\n{self.err}"
        return self


class Command:
    """A command that runs; its output goes to files, so that it never waits for a reader."""

    def __init__(
        self, words: Sequence[str | Path], environment: Mapping[str, str], log: Path, user: int | None = None
    ) -> None:
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [str(word) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=dict(environment),
                cwd=log.parent,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )

    def wait(self, seconds: float = 90.0) -> Ended:
        """How it ended."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it does not end:\n{self._read(self._err)}") from None
        return Ended(code, self._read(self._out), self._read(self._err))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.process.kill()
        self.process.wait()

    @property
    def told(self) -> str:
        """What it wrote on stderr until now."""
        return self._read(self._err)

    @staticmethod
    def _read(path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="replace")


class HubProcess:
    """``entrepot-hub serve`` on fixed ports, behind a relay, whose address is the hub's public URL."""

    def __init__(self, folder: Path, relay: Callable[[int], Relay] = Relay) -> None:
        self.base = folder
        self.folder = folder / "hub"
        #: What it has in its environment beside ours.
        self.environment: dict[str, str] = {}
        self.port, self.nats_port = free_port(), free_port()
        self.relay = relay(self.port).start()
        self.url = f"http://127.0.0.1:{self.relay.port}"
        self.public = new_hub(
            self.folder, self.url, Listen("127.0.0.1", self.port), Listen("127.0.0.1", self.nats_port)
        )
        self.words: tuple[str, ...] = ()  # further ones of ``entrepot-hub serve``
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """The hub as URIs name it."""
        return self.url.partition("://")[2]

    def start(self) -> Self:
        """Start it and wait until it is ready. After a kill, again."""
        with (self.base / "hub.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "entrepot_hub.cli.main", "serve", *self.words, "--folder", self.folder]
                if shutil.which("entrepot-hub", path=str(Path(sys.executable).parent)) is None
                else [Path(sys.executable).parent / "entrepot-hub", "serve", *self.words, "--folder", self.folder],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                cwd=self.base,
            )
        until(self._ready, 60, "the hub's start")
        return self

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.base / "hub.log").read_text()[-4000:]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no word to anybody."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it in order. May be called again."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def close(self) -> None:
        """End it and the relay."""
        self.stop()
        self.relay.close()

    @property
    def nats_pid(self) -> int:
        """The process of its nats-server."""
        assert self._process is not None
        listed = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        servers = [int(pid) for pid in listed if "nats-server" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(servers) == 1, listed
        return servers[0]

    def kill_nats(self) -> None:
        """SIGKILL its nats-server, which it starts again, and wait until that one answers."""
        old = self.nats_pid
        os.kill(old, signal.SIGKILL)

        def back() -> bool:
            with contextlib.suppress(AssertionError, OSError), socket.create_connection(("127.0.0.1", self.nats_port)):
                return self.nats_pid != old
            return False

        until(back, 30, "a new nats-server")

    def admin(self, operation: str, **fields: Any) -> Any:
        """An operation through the hub's socket."""
        connection = http.client.HTTPConnection("hub", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(str(self.folder / "hub.sock"))
        with contextlib.closing(connection):
            connection.request(
                "POST", f"/admin/{operation}", json.dumps(fields), headers={"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert response.status == 200, answer
            return answer

    def command(self, *words: str) -> Ended:
        """An ``entrepot-hub`` command."""
        done = subprocess.run(
            [Path(sys.executable).parent / "entrepot-hub", *words, "--folder", self.folder],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def bucket(self, channel: str = "demo") -> Path:
        """The folder that is a channel's bucket."""
        return self.base / f"bucket-{channel}"

    def channel(self, name: str = "demo", *, quota: int = 4 << 30, **fields: Any) -> None:
        """Make a channel with a folder bucket of its own."""
        self.bucket(name).mkdir()
        self.admin("channel.create", name=name, bucket=self.bucket(name).as_uri(), quota=quota, **(SMALL | fields))

    def invite(self, channel: str = "demo", rights: str = "request,provide") -> str:
        """The URL of a new invite."""
        return str(self.admin("channel.invite", name=channel, rights=rights, uses=1000)["url"])

    def objects(self, channel: str = "demo") -> dict[str, Path]:
        """The objects in a channel's bucket by key; tombstones are none."""
        root = self.bucket(channel)
        return {
            str(path.relative_to(root)): path
            for path in sorted(root.rglob("*"))
            if not any(part.startswith(".") for part in path.relative_to(root).parts)
            and path.is_file()
            and path.stat().st_size
        }


class Machine:
    """One machine: a home, its commands and its daemon."""

    def __init__(self, hub: HubProcess, name: str, home: Path, folder: Path) -> None:
        self.hub = hub
        self.name = name
        self.home = home
        self.folder = folder
        self.daemon: Command | None = None
        self.commands: list[Command] = []
        #: What its commands have in their environment beside ours.
        self.more: dict[str, str] = {}
        self.settings = NodeSettings(home=home)
        folder.mkdir()

    def environment(self, **more: str) -> dict[str, str]:
        """What its commands have as environment."""
        return {**os.environ, "ENTREPOT_HOME": str(self.home), "PYTHONWARNINGS": "error", **self.more, **more}

    def start(self, *words: str | Path, user: int | None = None, **more: str) -> Command:
        """Start an ``entrepot`` command. ``user``: as this user of the system, where the tests are root."""
        log = self.folder / f"command-{len(self.commands)}"
        command = Command([sys.executable, "-m", "entrepot", *words], self.environment(**more), log, user)
        self.commands.append(command)
        return command

    def run(self, *words: str | Path, user: int | None = None, **more: str) -> Ended:
        """Run an ``entrepot`` command to its end."""
        return self.start(*words, user=user, **more).wait()

    def join(self, *channels: str, rights: str = "request,provide") -> Self:
        """Join these channels (``demo`` if none is named). A running daemon is told, as by the command."""

        async def work() -> None:
            async with Node(self.settings) as node:
                for channel in channels or ("demo",):
                    await node.join(self.hub.invite(channel, rights), name=self.name)

        asyncio.run(work())
        return self

    def file(self, name: str, size: int = 0, data: bytes | None = None) -> Path:
        """A file of random bytes, or of these."""
        path = self.folder / name
        path.write_bytes(os.urandom(size) if data is None else data)
        return path

    def add(self, *paths: Path, channel: str | None = None) -> list[str]:
        """Add files; their URIs. A running daemon is told, none is started."""

        async def work() -> list[str]:
            async with Node(self.settings) as node:
                return [str((await node.add(path, channel=channel)).uri) for path in paths]

        return asyncio.run(work())

    def info(self, uri: str) -> Info:
        """What is known of a stream here and at the hub."""

        async def work() -> Info:
            async with Node(self.settings) as node:
                return await node.info(uri)

        return asyncio.run(work())

    def holders(self, uri: str) -> int:
        """How many holders of a stream the hub knows."""
        with contextlib.suppress(NotFound):
            return len(self.info(uri).holders)
        return 0

    def wanted(self, uri: str) -> int:
        """How many nodes want a stream, as the hub knows."""
        with contextlib.suppress(NotFound):
            return self.info(uri).wanted_by or 0
        return 0

    def up(self) -> Self:
        """Start its daemon and wait until it is up at its hubs."""
        return self.begin_up().wait_up()

    def begin_up(self) -> Self:
        """Start its daemon."""
        self.daemon = self.start("up")
        return self

    def wait_up(self) -> Self:
        """Wait until its daemon is up at its hubs."""

        def is_up() -> bool:
            views = self.views()
            return bool(views) and all(view.state == "up" for view in views)

        until(is_up, 60, f"{self.name}'s daemon")
        return self

    def views(self) -> Sequence[HubView]:
        """How its daemon stands with its hubs."""
        status = self.status()
        return () if status is None else status.hubs

    def view(self) -> HubView:
        """How its daemon stands with its hub."""
        (view,) = self.views()
        return view

    def status(self) -> DaemonStatus | None:
        """What its daemon tells; None if none answers."""
        with contextlib.suppress(NotFound, RetryLater):
            return asyncio.run(DaemonClient(self.settings).status())
        return None

    @property
    def daemon_ended(self) -> bool:
        """Whether its daemon has ended."""
        return self.daemon is None or self.daemon.process.poll() is not None

    def down(self) -> None:
        """End its daemon in order."""
        assert self.daemon is not None
        self.daemon.signal(signal.SIGTERM)
        assert self.daemon.wait().code == 0

    def kill(self) -> None:
        """SIGKILL its daemon."""
        assert self.daemon is not None
        self.daemon.kill()

    def close(self) -> None:
        """Kill what still runs."""
        for command in self.commands:
            if command.process.poll() is None:
                command.signal(signal.SIGCONT)
                command.kill()


class Site:
    """A hub with a channel ``demo`` and machines, under ``folder``; homes under ``homes``, a short path (sockets)."""

    def __init__(self, folder: Path, homes: Path, relay: Callable[[int], Relay] = Relay) -> None:
        self.folder = folder
        self.homes = homes
        self.hub = HubProcess(folder, relay)
        self.relay = self.hub.relay
        self.machines: list[Machine] = []

    def start(self, **channel: Any) -> Self:
        """Start the hub and make the channel."""
        self.hub.start()
        self.hub.channel(**channel)
        return self

    def machine(self, name: str, *channels: str, rights: str = "request,provide") -> Machine:
        """A machine that joined these channels (``demo`` if none is named)."""
        machine = Machine(self.hub, name, self.homes / name, self.folder / name)
        self.machines.append(machine)
        return machine.join(*channels, rights=rights)

    def close(self) -> None:
        """End everything, and print what was said: pytest shows it where a test failed."""
        for machine in self.machines:
            machine.close()
        self.hub.close()
        print(f"hub: {(self.folder / 'hub.log').read_text()[-_SHOWN:]}")
        for machine in self.machines:
            for number, command in enumerate(machine.commands):
                print(f"{machine.name}, command {number}: {command.told[-_SHOWN:]}")
        shutil.rmtree(self.homes, ignore_errors=True)


def setting(hub: HubProcess, section: str, name: str, value: Any) -> None:
    """Add a setting to ``hub.toml``, before the hub is started."""
    path = hub.folder / "hub.toml"
    text = path.read_text() + f"\n[{section}]\n{name} = {value}\n"
    tomllib.loads(text)
    path.write_text(text)


def elapsed(since: float) -> float:
    """Seconds since a moment of ``time.monotonic()``."""
    return time.monotonic() - since
