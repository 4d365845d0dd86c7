"""A real S3 server that is badly behaved: ``rclone serve s3``.

It checks signatures and their expiry, but ignores ``If-None-Match`` and checksums, and shows a truncated
upload. Buckets that do the same exist; entrepot has to notice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.ministack import ACCESS_KEY, SECRET_KEY, S3Server
from tests.servers.process import ServerProcess, answers_http


@contextmanager
def run_rclone(folder: Path, secret: str = SECRET_KEY) -> Iterator[S3Server]:
    """A running ``rclone serve s3`` that takes the tests' key with this secret; buckets are the folders in
    ``folder / "buckets"``."""
    program = Path(sys.executable).parent / "rclone"
    if not program.exists():
        raise RuntimeError(f"there is no {program}: install the dev requirements")
    buckets = folder / "buckets"
    buckets.mkdir(exist_ok=True)

    def command(port: int) -> list[str | Path]:
        keys = f"{ACCESS_KEY},{secret}"
        address = f"127.0.0.1:{port}"
        options = ["--auth-key", keys, "--etag-hash", "MD5", "--config", os.devnull]
        return [program, "serve", "s3", "--addr", address, *options, buckets]

    def environment(_: int) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "TMPDIR": str(folder)}

    with ServerProcess(command, answers_http, log=folder / "rclone.log", environment=environment) as server:
        yield S3Server(f"http://127.0.0.1:{server.port}", secret_key=secret)
