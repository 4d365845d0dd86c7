"""A real Azure Blob server: Azurite, Microsoft's own emulator, from an npm folder of its own.

It checks signatures, their permissions and their end, and holds conditions; blobs live in its memory. It needs node and
npm: where they are missing, tests of it skip themselves, saying so.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.servers.process import ServerProcess, answers_http

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "entrepottests"
KEY = base64.b64encode(b"a key of the tests and of nothing else; it has sixty-four bytes.").decode()


@dataclass(frozen=True)
class AzureServer:
    """Where a server listens and who may use it."""

    endpoint: str
    account: str = ACCOUNT
    key: str = KEY


@contextmanager
def run_azurite(folder: Path, *options: str | Path, scheme: str = "http") -> Iterator[AzureServer]:
    """A running Azurite with one account; its log goes into ``folder``. Skips the test where it cannot be had."""
    executable = program()

    def command(port: int) -> list[str | Path]:
        # Versions are not checked: the library is newer than the server.
        return [
            executable, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent",
            "--disableTelemetry", "--skipApiVersionCheck", *options,
        ]  # fmt: skip

    def environment(port: int) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}",
        }

    with ServerProcess(
        command, answers_http if scheme == "http" else accepts, log=folder / "azurite.log", environment=environment
    ) as server:
        yield AzureServer(f"{scheme}://127.0.0.1:{server.port}/{ACCOUNT}")


def program() -> Path:
    """The server's program, installed if it is not there yet."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Azurite needs node and npm, which are not installed here")
    made = subprocess.run([ROOT / "scripts" / "environment", "--azurite"], capture_output=True, text=True, check=False)
    found = ROOT / ".azurite" / "node_modules" / ".bin" / "azurite-blob"
    if made.returncode != 0 or not found.exists():
        raise RuntimeError(f"scripts/environment --azurite made no Azure server:\n{made.stderr[-3000:]}")
    return found


def accepts(port: int) -> bool:
    """Whether something on this loopback port takes connections."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False
