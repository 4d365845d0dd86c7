"""Changing the master key is killed at every step: the hub starts, every secret opens, and repeating it finishes it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.servers.grid import Grid

from entrepot.core.errors import Denied, RetryLater
from entrepot.core.invite import Invite
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sealed_rows import SealedRows
from entrepot_hub.adapters.tables import buckets
from entrepot_hub.core.master_keys import MasterKeys
from entrepot_hub.core.sealing import SEAL_RANDOM, MasterKey, bucket_place, seal
from entrepot_hub.services.identity import database_url, load_identity, load_keys, load_master
from entrepot_hub.services.rotation import RotateMaster
from entrepot_hub.services.settings import CHANGE_NAME, MASTER_NAME, HubSettings, load_settings
from entrepot_hub.services.web.admin_client import AdminClient, answers

URL = "s3://bucket?region=eu-central-1"
KEYS = b"the keys of a bucket"
NEXT = MasterKey(b"n" * 32)
VARIABLE = "ENTREPOT_HUB_MASTER_KEY"

#: Reads ``[nth, folder, arguments, variables, log]`` in JSON for each process to be: ``entrepot-hub`` that kills
#: itself right before the Nth thing that it does to the disk since a change began (a file opened for writing, linked,
#: moved or removed, a transaction committed), with N = 0 never. Writes its id, and when it has ended its exit code. The
#: processes are forks of one that has everything imported, which saves a second for each.
_COMMANDS = """
import json, os, signal, sys
import sqlalchemy as sa
from alembic import command, config
from entrepot_hub.adapters import database, tables
from entrepot_hub.cli import access
from entrepot_hub.cli.main import main
from entrepot_hub.services import hub
def become(nth, folder, arguments, variables, log):
    armed, count = False, 0
    def step():
        nonlocal count
        count += armed
        if armed and count == nth:
            os.kill(os.getpid(), signal.SIGKILL)
    def hook(event, given):
        nonlocal armed
        if event in ("os.link", "os.rename", "os.remove") or (
            event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            path = os.fsdecode(given[0]) if not isinstance(given[0], int) else ""
            if path.startswith(folder) and ("master." in path or "identity." in path):
                armed = armed or "master.change" in path
                step()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number in (1, 2):
        os.dup2(out, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(variables, ENTREPOT_HUB_HOME=folder)
    sys.addaudithook(hook)
    sa.event.listen(sa.Engine, "commit", lambda _: step())
    sys.argv = ["entrepot-hub", *arguments]
    main()
for line in sys.stdin:
    child = os.fork()
    if not child:
        become(*json.loads(line))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Commands:
    """Processes of ``entrepot-hub``, one at a time."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMANDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, folder: Path, nth: int, *arguments: str, **variables: str) -> int:
        """Start one on this hub, to be killed at its Nth step; its id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([nth, str(folder), arguments, variables, str(self._log)]) + "\n")
        self._process.stdin.flush()
        return self._number()

    def ended(self) -> int:
        """Wait for its end: the exit code."""
        return self._number()

    def run(self, folder: Path, nth: int, *arguments: str, **variables: str) -> tuple[int, str]:
        """Start one and wait for its end: exit code and output."""
        self.start(folder, nth, *arguments, **variables)
        return self.ended(), self._log.read_text()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    made = Commands(tmp_path_factory.mktemp("commands") / "log")
    yield made
    made.close()


class Ground:
    """A hub with one secret of each kind, and copies of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.grid = Grid(folder)
        self.invite = ""
        self.old = MasterKey(bytes(32))
        self.copies = 0

    async def prepare(self) -> None:
        await self.grid.start()
        await self.grid.channel()
        self.invite = await self.grid.invite()
        await self.grid.stop()
        settings = load_settings(self.folder / "hub")
        self.old = load_master(settings)
        blob = seal(KEYS, key=self.old, associated=bucket_place(URL), random=secrets.token_bytes(SEAL_RANDOM))
        database = Database(database_url(settings))
        with database.transaction() as connection:
            connection.execute(sa.insert(buckets).values(url=URL, prefix="", binds={}, credentials=blob))
        database.close()

    def copy(self) -> Grid:
        """A copy, not running, at the same address."""
        self.copies += 1
        folder = self.folder.parent / f"copy{self.copies}"
        shutil.copytree(self.folder / "hub", folder / "hub", ignore=shutil.ignore_patterns("*.sock*", "nats"))
        os.chmod(folder / "hub", 0o700)
        grid = Grid(folder)
        grid.port, grid.nats_port, grid.url = self.grid.port, self.grid.nats_port, self.grid.url
        grid.hub_public = self.grid.hub_public
        return grid

    async def check(self, grid: Grid, given: MasterKey | None = None) -> MasterKeys:
        """The hub starts, its message bus runs by its own keys, a node gets in by the old invite, and every secret
        opens. The master keys that do it."""
        hub = grid.folder / "hub"
        settings = replace(load_settings(hub), master_key=None if given is None else given.raw.hex())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tests.servers.grid.load_settings", lambda _: settings)
            await grid.start()
        try:
            peer = await grid.peer("lab", connect=False)
            await peer.client.join(Invite.parse(self.invite), "lab")
            await peer.connect(hear=False)
        finally:
            await grid.aclose()
        return await self.secrets_open(settings, load_keys(settings))

    async def secrets_open(self, settings: HubSettings, keys: MasterKeys) -> MasterKeys:
        """Every secret opens with these keys and is what it was."""
        assert load_identity(settings, keys).hub_public == self.grid.hub_public
        async with Database(database_url(settings)) as database:
            assert await SealedRows(database).check(keys) >= 2
            with database.transaction() as connection:
                blob = connection.execute(sa.select(buckets.c.credentials).where(buckets.c.url == URL)).scalar_one()
        assert keys.unseal(bytes(blob), associated=bucket_place(URL)) == KEYS
        return keys


@pytest.fixture
async def ground(tmp_path: Path) -> Ground:
    made = Ground(tmp_path / "ground")
    await made.prepare()
    return made


def left_behind(hub: Path) -> list[str]:
    """What a change leaves while it is not done."""
    return [path.name for path in hub.iterdir() if path.name == CHANGE_NAME or path.name.startswith(".")]


@pytest.mark.blocking
@pytest.mark.timeout(300)
async def test_killed_at_every_step_of_a_change_on_the_disk(ground: Ground, commands: Commands) -> None:
    """No hub runs; the key is in its file. Wherever the command is killed, a hub starts and opens everything; repeated,
    it ends with the old key gone, which opens nothing any more."""
    steps = 0
    while True:
        steps += 1
        grid = ground.copy()
        hub = grid.folder / "hub"
        code, _ = commands.run(hub, steps, "rotate-master-key")
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if steps % 4 == 0:  # a whole hub each time would take long
            await ground.check(grid)
        else:
            settings = load_settings(hub)
            await ground.secrets_open(settings, load_keys(settings))
        code, said = commands.run(hub, 0, "rotate-master-key", "--json")
        assert code == 0, said
        assert json.loads(said)["done"]
        assert left_behind(hub) == []
        assert load_master(load_settings(hub)) != ground.old
        keys = await ground.secrets_open(load_settings(hub), load_keys(load_settings(hub)))
        assert len(keys.all) == 1
        with pytest.raises(Denied):
            await ground.secrets_open(load_settings(hub), MasterKeys(ground.old))
    assert steps > 8
    await ground.check(grid)


@pytest.mark.blocking
@pytest.mark.timeout(300)
async def test_killed_with_a_key_from_the_environment(ground: Ground, commands: Commands) -> None:
    """The key is in the environment, where the command cannot put the new one: a hub that is given the old key starts
    until it is given the new one, after which the old one opens nothing."""
    old, new = ground.old.raw.hex(), NEXT.raw.hex()
    steps = -1
    while True:
        steps += 2  # each of them is tried above
        grid = ground.copy()
        hub = grid.folder / "hub"
        (hub / MASTER_NAME).unlink()
        (grid.folder / "new").write_text(new)
        arguments = ("rotate-master-key", "--json", "--new-key-file", str(grid.folder / "new"))
        code, _ = commands.run(hub, steps, *arguments, **{VARIABLE: old})
        if code == 0:
            break
        assert code == -signal.SIGKILL
        begun = (hub / CHANGE_NAME).exists()
        settings = replace(load_settings(hub), master_key=old)
        await ground.secrets_open(settings, load_keys(settings))
        if begun and steps % 4 == 1:  # already given the new one, half way: it still opens everything
            settings = replace(settings, master_key=new)
            await ground.secrets_open(settings, load_keys(settings))
        code, said = commands.run(hub, 0, *arguments, **{VARIABLE: old})
        assert code == 0, said
        answer = json.loads(said)
        assert (answer["done"], answer["new"], answer["source"]) == (False, NEXT.fingerprint, "environment")
        await ground.secrets_open(settings, MasterKeys(NEXT))
    await ground.check(grid, ground.old)
    await ground.check(grid, NEXT)
    assert left_behind(hub) == []
    with pytest.raises(Denied):
        await ground.check(grid, ground.old)


async def serving(hub: Path) -> None:
    """Wait until a hub answers here."""
    end = time.monotonic() + 60
    while not answers(hub / "hub.sock"):
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


@pytest.mark.blocking
@pytest.mark.parametrize("nth", [2, 5, 8, 11, 0])
async def test_killed_in_a_running_hub(ground: Ground, commands: Commands, nth: int) -> None:
    """The change is asked of a running hub, which is killed in the middle of it (0: is not). The next hub opens
    everything and finishes."""
    grid = ground.copy()
    hub = grid.folder / "hub"
    process = commands.start(hub, nth, "serve")
    await serving(hub)
    async with AdminClient(hub / "hub.sock") as client:
        if nth:
            with pytest.raises(RetryLater):
                await client.call("master.rotate", RotateMaster())
        else:
            assert (await client.call("master.rotate", RotateMaster())).done
            os.kill(process, signal.SIGTERM)
    assert await asyncio.to_thread(commands.ended) == (-signal.SIGKILL if nth else 0)
    keys = await ground.check(grid)
    if nth:
        assert commands.run(hub, 0, "rotate-master-key")[0] == 0
        keys = load_keys(load_settings(hub))
    assert keys.all == (load_master(load_settings(hub)),)
    assert ground.old not in keys.all
    assert left_behind(hub) == []
    await ground.secrets_open(load_settings(hub), keys)
