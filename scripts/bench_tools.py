"""What a user would otherwise type, measured as whole processes: the competitors of ``scripts/bench``.

A :class:`Tool` brings a file to a :class:`Place` and from there to another file. Each step is a :class:`Run`: from the
start of its process to its end, start-up of the interpreter and the handshakes included. Steps that a user makes once
for a file, whoever wants it (git-annex's hash, a torrent), are :meth:`Tool.prepare` and measured for themselves.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, override

from scripts.bench_peers import Curl, GitAnnex, Torrent
from scripts.bench_runs import BENCH, MADE, OURS, Failed, Place, Run, Running, Tool, run

if TYPE_CHECKING:
    from tests.servers.namespaces import Party

__all__ = [
    "Boto3",
    "Curl",
    "Failed",
    "GitAnnex",
    "Obstore",
    "Place",
    "Rclone",
    "Run",
    "Running",
    "S5cmd",
    "Tool",
    "Torrent",
    "run",
    "tools",
    "tuned_rclone",
]


class Rclone(Tool):
    """``rclone copyto`` and ``rclone copy`` as they are, or with these options."""

    _program = OURS / "rclone"

    def __init__(self, name: str = "rclone", *options: str) -> None:
        super().__init__()
        self.name = name
        # It would skip a file that looks the same as what is there.
        self._options = ("--ignore-times", "--config", os.devnull, *options)

    @override
    def missing(self) -> str | None:
        return None if self._program.exists() else "there is no rclone: scripts/environment makes it"

    @override
    def up(self, file: Path, place: Place, party: Party | None = None) -> Run:
        return self._run("copyto", file, self._remote(place), place, party)

    @override
    def down(self, place: Place, file: Path, party: Party | None = None) -> Run:
        return self._run("copyto", self._remote(place), file, place, party)

    @override
    def up_many(self, folder: Path, place: Place, party: Party | None = None) -> Run:
        return self._run("copy", folder, self._remote(place), place, party)

    @override
    def down_many(self, place: Place, folder: Path, party: Party | None = None) -> Run:
        return self._run("copy", self._remote(place), folder, place, party)

    def _run(self, verb: str, source: str | Path, target: str | Path, place: Place, party: Party | None) -> Run:
        prefix = "RCLONE_CONFIG_PLACE_"
        config = {
            f"{prefix}TYPE": "s3",
            f"{prefix}PROVIDER": "Other",
            f"{prefix}ENDPOINT": place.endpoint,
            f"{prefix}ACCESS_KEY_ID": place.access_key,
            f"{prefix}SECRET_ACCESS_KEY": place.secret_key,
            f"{prefix}REGION": place.region,
        }
        return run([self._program, verb, *self._options, source, target], self.environment(config), party)

    @staticmethod
    def _remote(place: Place) -> str:
        return f"place:{place.bucket}/{place.key}"


def tuned_rclone() -> Rclone:
    """With what is advised for speed: parts of 16 MiB, eight at a time, and no questions that can be left out."""
    streams = ("--s3-chunk-size=16M", "--s3-upload-cutoff=16M", "--s3-upload-concurrency=8")
    threads = ("--multi-thread-cutoff=16M", "--multi-thread-streams=8")
    files = ("--transfers=64", "--checkers=64", "--no-traverse", "--s3-no-check-bucket", "--s3-no-head")
    return Rclone("rclone tuned", *streams, *threads, *files)


class S5cmd(Tool):
    """``s5cmd cp``."""

    name = "s5cmd"

    @override
    def missing(self) -> str | None:
        return None if self._program() else f"there is no s5cmd: {MADE}"

    @override
    def up(self, file: Path, place: Place, party: Party | None = None) -> Run:
        return self._copy(file, f"s3://{place.bucket}/{place.key}", place, party)

    @override
    def down(self, place: Place, file: Path, party: Party | None = None) -> Run:
        return self._copy(f"s3://{place.bucket}/{place.key}", file, place, party)

    @override
    def up_many(self, folder: Path, place: Place, party: Party | None = None) -> Run:
        return self._copy(f"{folder}/", f"s3://{place.bucket}/{place.key}/", place, party)

    @override
    def down_many(self, place: Place, folder: Path, party: Party | None = None) -> Run:
        return self._copy(f"s3://{place.bucket}/{place.key}/*", f"{folder}/", place, party)

    def _copy(self, source: str | Path, target: str | Path, place: Place, party: Party | None) -> Run:
        program = self._program()
        assert program is not None
        words: list[str | Path] = [program, "--endpoint-url", place.endpoint, "--log", "error", "cp", source, target]
        return run(words, self.environment(place.aws()), party)

    @staticmethod
    def _program() -> Path | None:
        # The program itself: the script in bin/ is a Python that starts it.
        return next(BENCH.glob("lib/python3*/site-packages/s5cmd/bin/s5cmd"), None)


class Boto3(Tool):
    """boto3's ``upload_file`` and ``download_file`` with their defaults, in a Python of their own; of many files ten at
    once, in threads."""

    name = "boto3"
    _text = """
import sys
import boto3
from botocore.config import Config
verb, endpoint, bucket, key, file = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=endpoint, config=Config(s3={"addressing_style": "path"}))
if verb == "up":
    s3.upload_file(file, bucket, key)
elif verb == "down":
    s3.download_file(bucket, key, file)
else:  # as many at once as its client keeps connections by default
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    with ThreadPoolExecutor(10) as threads:
        if verb == "up many":
            files = Path(file).iterdir()
            work = [threads.submit(s3.upload_file, str(one), bucket, f"{key}/{one.name}") for one in files]
        else:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{key}/")
            keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
            target = Path(file)
            work = [threads.submit(s3.download_file, bucket, one, str(target / one.rpartition("/")[2])) for one in keys]
        for one in work:
            one.result()
"""

    @override
    def up(self, file: Path, place: Place, party: Party | None = None) -> Run:
        return self._run("up", file, place, party)

    @override
    def down(self, place: Place, file: Path, party: Party | None = None) -> Run:
        return self._run("down", file, place, party)

    @override
    def up_many(self, folder: Path, place: Place, party: Party | None = None) -> Run:
        return self._run("up many", folder, place, party)

    @override
    def down_many(self, place: Place, folder: Path, party: Party | None = None) -> Run:
        return self._run("down many", folder, place, party)

    def _run(self, verb: str, file: Path, place: Place, party: Party | None) -> Run:
        words: list[str | Path] = [
            sys.executable,
            "-c",
            self._text,
            verb,
            place.endpoint,
            place.bucket,
            place.key,
            file,
        ]
        return run(words, self.environment(place.aws()), party)


class Obstore(Tool):
    """obstore with its defaults, a stream into a file, in a Python of its own; of many files 64 at once, in tasks."""

    name = "obstore"
    _program = BENCH / "bin" / "python"
    _text = """
import sys
from pathlib import Path
import obstore
from obstore.store import S3Store
verb, endpoint, bucket, key, file = sys.argv[1:]
store = S3Store(
    bucket,
    endpoint=endpoint,
    virtual_hosted_style_request=False,
    client_options={"allow_http": True, "timeout": "1h"},
)
if verb == "up":
    obstore.put(store, key, Path(file))
elif verb == "down":
    with open(file, "wb") as target:
        for piece in obstore.get(store, key).stream():
            target.write(piece)
else:
    import asyncio
    async def one(slots, path, key):
        async with slots:
            if verb == "up many":
                await obstore.put_async(store, key, path.read_bytes())
            else:
                path.write_bytes(await (await obstore.get_async(store, key)).bytes_async())
    async def many():
        slots, folder = asyncio.Semaphore(64), Path(file)
        if verb == "up many":
            pairs = [(path, f"{key}/{path.name}") for path in folder.iterdir()]
        else:
            found = [meta["path"] for page in obstore.list(store, key) for meta in page]
            pairs = [(folder / path.rpartition("/")[2], path) for path in found]
        await asyncio.gather(*(one(slots, *pair) for pair in pairs))
    asyncio.run(many())
"""

    @override
    def missing(self) -> str | None:
        found = next(BENCH.glob("lib/python3*/site-packages/obstore"), None)
        return None if found else f"there is no obstore: {MADE}"

    @override
    def up(self, file: Path, place: Place, party: Party | None = None) -> Run:
        return self._run("up", file, place, party)

    @override
    def down(self, place: Place, file: Path, party: Party | None = None) -> Run:
        return self._run("down", file, place, party)

    @override
    def up_many(self, folder: Path, place: Place, party: Party | None = None) -> Run:
        return self._run("up many", folder, place, party)

    @override
    def down_many(self, place: Place, folder: Path, party: Party | None = None) -> Run:
        return self._run("down many", folder, place, party)

    def _run(self, verb: str, file: Path, place: Place, party: Party | None) -> Run:
        words: list[str | Path] = [self._program, "-c", self._text, verb, place.endpoint, place.bucket, place.key, file]
        return run(words, self.environment(place.aws()), party)


def tools() -> list[Tool]:
    """All of them, whether they are there or not; each to be closed."""
    return [Rclone(), tuned_rclone(), S5cmd(), Boto3(), Obstore(), GitAnnex(), Torrent(), Curl()]
