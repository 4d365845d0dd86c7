"""A site on which faults are made: hub, daemon, commands, nats-server and an S3 server, each a process of its own.

:class:`Ground` is a :class:`~tests.servers.nodes.Site` with a holder and a reader whose channel lies on an S3 server
(or in a folder), with a relay between the nodes and the bucket that can also keep back the answers to PUTs. One ground
outlives many faults: whatever befell it, the next transfer has to work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

import boto3
import pytest
from botocore.config import Config
from tests.servers.ministack import ACCESS_KEY, REGION, SECRET_KEY, program
from tests.servers.nodes import SMALL, Machine, Site
from tests.servers.process import answers_http, free_port
from tests.servers.relay import Passage, Relay, until

from entrepot.core.errors import NotFound
from entrepot.core.lock import SchemaLock
from entrepot.core.uri import StreamUri
from entrepot.services.node import Node

type Kind = Literal["s3", "folder"]

MIB = 1 << 20
#: The S3 bucket's name makes its paths look like those of a folder bucket at the hub, which the relay knows.
BUCKET, PREFIX = "bucket", "demo"
#: A store leaves 64 MiB of its disk free, so a small disk has to be larger than that.
NODE_DISK, HUB_DISK = 112 * MIB, 48 * MIB
_LOCK = SchemaLock("demo", miniblock=SMALL["miniblock"], object=SMALL["object"]).hex


class _Answers:
    """The answers of a bucket; those to PUTs wait at the relay's gate."""

    def __init__(self, back: asyncio.StreamReader, relay: AnswerRelay, current: list[Passage | None]) -> None:
        self._back, self._relay, self._current = back, relay, current

    async def read(self, count: int) -> bytes:
        """The next bytes."""
        piece = await self._back.read(count)
        passage = self._current[0]
        if piece and passage is not None and passage.method == "PUT" and passage.status is None:
            await self._relay.pass_answer()
        return piece


class AnswerRelay(Relay):
    """A relay that can also keep back the answers to PUTs: ``hold("ANSWER", n)`` lets n of them pass."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._passed["ANSWER"], self._due["ANSWER"] = 0, 0.0
        self._held["ANSWER"] = threading.Event()

    def release(self, method: str | None = None) -> None:
        """Let pass what was held."""
        for one in ("PUT", "GET", "ANSWER") if method is None else (method,):
            super().release(one)

    async def pass_answer(self) -> None:
        """Return when one more answer may pass."""
        await self._gate("ANSWER", 1)

    async def _answers(
        self, back: asyncio.StreamReader, writer: asyncio.StreamWriter, current: list[Passage | None]
    ) -> None:
        await super()._answers(_Answers(back, self, current), writer, current)  # type: ignore[arg-type]


class S3Process:
    """ministack as a process that can be killed, stopped and started again at its port; its objects are files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "s3"
        self.folder.mkdir()
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = boto3.client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def start(self) -> Self:
        """Start it, or start it again, and wait until it answers."""
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "AUTH": "true",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(self.folder / "data"),
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.folder
            )
        until(lambda: answers_http(self.port), what="the S3 server's start")
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it."""
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.kill()

    # -- what lies in the bucket ----------------------------------------------------------------------------------

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Keys of objects and their lengths; neither tombstones nor what begins with a dot."""
        found: dict[str, int] = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{PREFIX}/{prefix}"):
            for item in page.get("Contents", []):
                key = item["Key"].removeprefix(f"{PREFIX}/")
                if item["Size"] and not key.startswith("."):
                    found[key] = item["Size"]
        return found

    def read(self, key: str) -> bytes:
        """An object's bytes."""
        data: bytes = self.client.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{key}")["Body"].read()
        return data

    def write(self, key: str, data: bytes) -> None:
        """Replace an object, as somebody else with the bucket's keys would."""
        self.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{key}", Body=data)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self.client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{key}")

    def rot(self, key: str) -> None:
        """Damage a bit of an object where the server keeps it: length and ETag stay, as on a bad disk."""
        paths = [path for path in (self.folder / "data").rglob(f"*{key.rpartition('/')[2]}") if key in str(path)]
        assert len(paths) == 1, paths
        flip(paths[0])


class FolderBucket:
    """A folder bucket, seen as :class:`S3Process` shows its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Keys of objects and their lengths; neither tombstones nor what begins with a dot."""
        found = {}
        for path in self.root.rglob("*"):
            key = str(path.relative_to(self.root))
            if path.is_file() and key.startswith(prefix) and "/." not in f"/{key}" and (size := path.stat().st_size):
                found[key] = size
        return found

    def read(self, key: str) -> bytes:
        """An object's bytes."""
        return (self.root / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Replace an object."""
        (self.root / key).write_bytes(data)

    def delete(self, key: str) -> None:
        """Remove an object."""
        (self.root / key).unlink()

    def rot(self, key: str) -> None:
        """Damage a bit of an object; length and times stay."""
        flip(self.root / key)


class Clock:
    """The clock of one process, by libfaketime; :meth:`set` moves it while the process runs, within a second."""

    def __init__(self, file: Path) -> None:
        spec = find_spec("libfaketime")
        assert spec is not None
        assert spec.origin is not None
        library = Path(spec.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
        assert library.exists()
        self._file = file
        self.set(0)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",  # without it every look at a clock reads the file
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        """So many seconds before or behind the machine's clock, from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)


class SmallDisk:
    """A file system of its own at ``folder``, with what is there already, to be filled and emptied. Raises
    PermissionError if it may not be made."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        former = folder.rename(folder.with_name(f"{folder.name}-former"))
        folder.mkdir(mode=0o700)
        options = f"size={size},mode=0700"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            raise PermissionError(f"mount is not permitted here: {done.stderr.decode().strip()}")
        shutil.copytree(former, folder, dirs_exist_ok=True)
        shutil.rmtree(former)

    def fill(self) -> None:
        """Take every free byte."""
        with (self.folder / ".hog").open("wb", buffering=0) as hog, contextlib.suppress(OSError):
            while True:
                hog.write(bytes(1 << 16))
        with (self.folder / ".crumbs").open("wb", buffering=0) as hog, contextlib.suppress(OSError):
            while True:
                hog.write(bytes(512))

    def empty(self) -> None:
        """Give it back."""
        for name in (".hog", ".crumbs"):
            (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


def _may_mount(folder: Path) -> bool:
    """Whether small disks can be made here."""
    try:
        SmallDisk(folder, MIB).close()
    except PermissionError:
        return False
    return True


class Ground:
    """A running site with a holder (its daemon is up) and a reader. ``clocks``: hub, holder and reader have clocks that
    can be set. ``disks``: the hub's folder and both homes lie on small disks of their own (needs root)."""

    def __init__(self, folder: Path, homes: Path, kind: Kind, *, clocks: bool = False, disks: bool = False) -> None:
        self.folder, self.kind = folder, kind
        self.disks: dict[str, SmallDisk] = {}
        self.clocks: dict[str, Clock] = {}
        self.s3: S3Process | None = None
        self._relays: list[Relay] = []
        self._count = 0
        self.site: Site | None = None
        try:
            self.site = Site(folder, homes, AnswerRelay if kind == "folder" else Relay)
            self.hub = self.site.hub
            if disks:
                self.disks["hub"] = SmallDisk(self.hub.folder, HUB_DISK)
                self.disks["holder"] = SmallDisk(homes / "holder", NODE_DISK)
                self.disks["reader"] = SmallDisk(homes / "reader", NODE_DISK)
            if clocks:
                self.clocks = {name: Clock(folder / f"{name}.clock") for name in ("hub", "holder", "reader")}
                self.hub.environment |= self.clocks["hub"].environment
            self.hub.start()
            self.bucket: S3Process | FolderBucket
            self.relay: AnswerRelay
            if kind == "s3":
                self.bucket = self.s3 = S3Process(folder).start()
                self.relay = AnswerRelay(self.s3.port)
                self.relay.start()
                self._relays.append(self.relay)
                url = (
                    f"s3://{BUCKET}/{PREFIX}?region={REGION}&endpoint={self.s3.endpoint}&create=true"
                    f"&public_endpoint=http://127.0.0.1:{self.relay.port}"
                )
                keys = json.dumps({"access_key": ACCESS_KEY, "secret_key": SECRET_KEY})
                self.hub.admin("channel.create", name="demo", bucket=url, credentials=keys, quota=4 << 30, **SMALL)
            else:
                assert isinstance(self.site.relay, AnswerRelay)
                self.relay = self.site.relay
                self.hub.channel()
                self.bucket = FolderBucket(self.hub.bucket())
            self.holder, self.reader = self.site.machine("holder"), self.site.machine("reader")
            for machine in (self.holder, self.reader):
                if clocks:
                    machine.more |= self.clocks[machine.name].environment
            self.holder.up()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End everything. Prints what was said."""
        if self.site is not None:
            with contextlib.suppress(AssertionError, ProcessLookupError):
                self.hub.signal(signal.SIGCONT)
            self.site.close()
        for relay in self._relays:
            relay.close()
        if self.s3 is not None:
            self.s3.close()
        for disk in self.disks.values():
            disk.close()

    # -- what tests ask ------------------------------------------------------------------------------------------

    def name(self, stem: str) -> str:
        """A name that no file had yet."""
        self._count += 1
        return f"{stem}-{self._count}.bin"

    def objects(self, uri: str) -> dict[int, str]:
        """The keys of a stream's objects in the bucket, by number."""
        stream = StreamUri.parse(uri).stream.hex
        return {int(key[-8:], 16): key for key in sorted(self.bucket.sizes(f"{_LOCK}/{stream}/"))}

    def reconcile(self) -> dict[str, int]:
        """Compare the bucket with the ledger and mend it; what was found, counted."""
        counts: dict[str, int] = {}
        cursor = None
        while True:
            page = self.hub.admin("channel.reconcile", name="demo", cursor=cursor)
            for word, count in page["counts"].items():
                counts[word] = counts.get(word, 0) + count
            cursor = page["cursor"]
            if cursor is None:
                return counts

    @staticmethod
    def verified(machine: Machine, uri: str) -> bool:
        """Whether everything that a machine holds of a stream is right, hashed again."""

        async def work() -> bool:
            async with Node(machine.settings) as node:
                try:
                    (found,) = await node.verify(uri)
                except NotFound:
                    return True
                return not found.bad and not found.missing

        return asyncio.run(work())

    @staticmethod
    def forget(machine: Machine, uri: str) -> None:
        """Let go of a stream; a linked file stays."""

        async def work() -> None:
            async with Node(machine.settings) as node:
                await node.remove(uri, force=True)

        asyncio.run(work())

    @property
    def nats_stops(self) -> bool:
        """Whether the nats-server is stopped."""
        return Path(f"/proc/{self.hub.nats_pid}/stat").read_text().split()[2] == "T"


class Grounds:
    """Grounds by name (``s3``, ``folder``, ``clocks``, ``disks``), each made when it is first asked for. One on which a
    test failed is not used again."""

    def __init__(self, folder: Callable[[str], Path], homes: Path) -> None:
        self._folder, self._homes = folder, homes
        self._made: dict[str, Ground] = {}

    @contextmanager
    def use(self, name: str) -> Iterator[Ground]:
        """A ground for one fault."""
        if name not in self._made:
            self._made[name] = self._make(name)
        try:
            yield self._made[name]
        except BaseException:
            self._made.pop(name).close()
            raise

    def _make(self, name: str) -> Ground:
        folder, homes = self._folder(name), self._homes / secrets.token_hex(4)
        if name == "disks" and not _may_mount(folder / "try"):
            pytest.skip("small file systems may not be mounted here: this needs root")
        kind: Kind = "folder" if name == "folder" else "s3"
        return Ground(folder, homes, kind, clocks=name == "clocks", disks=name == "disks")

    def close(self) -> None:
        """End them all."""
        for ground in self._made.values():
            ground.close()


def flip(path: Path, offset: int = -1000) -> None:
    """Damage one bit, by default of the last miniblock; length and times stay."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
