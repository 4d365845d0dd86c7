"""A real S3 server that checks signatures: ministack, from an environment of its own (it pins botocore).

It checks signature, expiry, signed headers, ``x-amz-checksum-sha256`` and ``If-None-Match: *``; objects live
in its memory. If it cannot be had, starting it fails: no test of it is skipped.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.process import ServerProcess, answers_http

ROOT = Path(__file__).resolve().parents[2]
ACCESS_KEY = "AKIAENTREPOTTESTS000"
SECRET_KEY = "a-secret-of-the-tests-and-of-nothing-else"
REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """Where a server listens and who may use it."""

    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = REGION


@contextmanager
def run_ministack(folder: Path) -> Iterator[S3Server]:
    """A running ministack that wants signatures; its log goes into ``folder``."""
    executable = program()

    def environment(port: int) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "AUTH": "true",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }

    with ServerProcess(
        lambda port: [executable], answers_http, log=folder / "ministack.log", environment=environment
    ) as server:
        yield S3Server(f"http://127.0.0.1:{server.port}")


def program() -> Path:
    """The server's program, installed if it is not there yet."""
    found = ROOT / ".venv-ministack" / "bin" / "ministack"
    if not found.exists():
        made = subprocess.run(
            [ROOT / "scripts" / "environment", "--ministack"], capture_output=True, text=True, check=False
        )
        if made.returncode != 0 or not found.exists():
            raise RuntimeError(f"scripts/environment --ministack made no S3 server:\n{made.stderr[-3000:]}")
    return found
