"""A bucket's secret goes in through every door, is used and misused, and is then found nowhere.

Hub and commands are processes of their own, as users run them, with tracebacks on and every library logging all it
can. What is searched: the hub's folder with its database and journals, everything any process said, every answer of the
hub, the processes' arguments and environments; for the secret as it is and in the ways in which programs write text.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.integration.s3.conftest import BUCKET, location
from tests.integration.web.test_custody import Provider, document
from tests.servers.grid import free_port
from tests.servers.ministack import S3Server, run_ministack

from entrepot.adapters.hub_client import HubClient, HubClientSettings
from entrepot.core.errors import Denied, to_wire
from entrepot.core.invite import Invite
from entrepot.core.keyring import derive_node_key
from entrepot_hub.adapters.buckets.credentials import AzureClient, AzureKey, GcsServiceAccount, S3Credentials
from entrepot_hub.adapters.buckets.interface import Binds, SignedRequest
from entrepot_hub.adapters.buckets.location import parse_location
from entrepot_hub.adapters.buckets.probe import probe_uploads
from entrepot_hub.core.master_keys import MasterKeys
from entrepot_hub.core.sealing import MasterKey
from entrepot_hub.services.administration import ChannelCreate
from entrepot_hub.services.custody import SetCredentials
from entrepot_hub.services.identity import load_keys
from entrepot_hub.services.rotation import RotateMaster
from entrepot_hub.services.settings import MASTER_NAME, DatabasePlace, load_settings
from entrepot_hub.services.vault import Vault

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="it looks at processes through /proc"),
]

NOWHERE = "http://127.0.0.1:9"
#: ``entrepot-hub`` whose libraries log all they can.
_TALKATIVE = """
import logging, sys
usual = logging.basicConfig
logging.basicConfig = lambda **how: usual(**(how | {"level": logging.DEBUG}))
from entrepot_hub.cli.main import main
sys.argv[0] = "entrepot-hub"
main()
"""


def forms(secret: str) -> set[bytes]:
    """The secret in the ways in which programs write text; in base64 wherever in a longer text it may stand."""
    raw = secret.encode()
    found = {
        raw,
        raw.hex().encode(),
        raw.hex().upper().encode(),
        quote(secret, safe="").encode(),
        quote(secret).encode(),
    }
    found |= {quote_plus(secret).encode(), json.dumps(secret)[1:-1].encode(), repr(secret)[1:-1].encode()}
    for shift in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(bytes(shift) + raw)
            found.add(text[-(-8 * shift // 6) : 8 * (shift + len(raw)) // 6])
    return found


def places(secret: str, haystack: dict[str, bytes]) -> list[str]:
    """Where a secret is found."""
    wanted = forms(secret)
    return [name for name, data in haystack.items() if any(form in data for form in wanted)]


@pytest.mark.parametrize(
    "written",
    [
        lambda s: s,
        lambda s: json.dumps({"a": s}),
        lambda s: quote(f"?a={s}&b"),
        lambda s: s.encode().hex(),
        *(lambda s, n=n: base64.b64encode(b"x" * n + s.encode() + b"more").decode() for n in range(3)),
        *(lambda s, n=n: base64.urlsafe_b64encode(b"x" * n + s.encode()).decode() for n in range(3)),
    ],
    ids=["raw", "json", "quoted", "hex", *(f"{kind}-{n}" for kind in ("base64", "urlsafe") for n in range(3))],
)
def test_the_search_finds_what_is_there(written: Any) -> None:
    """However a program wrote the secret, the search below finds it."""
    secret = 'a+b/c="d" é' + secrets.token_hex(8)
    assert places(secret, {"here": b"before " + written(secret).encode() + b" after", "there": b"nothing"}) == ["here"]


@dataclass
class Hub:
    """A hub of its own process, and everything that it and the commands said and showed."""

    folder: Path
    haystack: dict[str, bytes] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    count: int = 0

    @property
    def home(self) -> Path:
        return self.folder / "hub"

    def keep(self, name: str, data: bytes) -> None:
        self.count += 1
        self.haystack[f"{self.count} {name}"] = data

    def environment(self, **more: str) -> dict[str, str]:
        return os.environ | {"ENTREPOT_HUB_HOME": str(self.home), "ENTREPOT_DEBUG": "1"} | more

    def command(self, *arguments: str, stdin: str | None = None, private: bool = False, **variables: str) -> str:
        """Run a command to its end: its output. What can be seen of its process is kept, without its environment if
        ``private``."""
        process = subprocess.Popen(
            [sys.executable, "-c", _TALKATIVE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(**variables),
        )
        time.sleep(0.05)  # long enough to be a process of its own, and it cannot end before it is given its input
        self.look_at(process.pid, environment=not private)
        out, err = process.communicate(b"" if stdin is None else stdin.encode(), timeout=60)
        self.keep(f"output of {arguments[:3]}", out + b"\n" + err)
        return out.decode()

    def look_at(self, pid: int, *, environment: bool = True) -> None:
        """Arguments and environment of a process and of those that it started."""
        for each in (pid, *_children(pid)):
            for what in ("cmdline", "environ")[: 1 + environment]:
                with contextlib.suppress(OSError):
                    self.keep(f"{what} of {each}", Path(f"/proc/{each}/{what}").read_bytes())

    def start(self) -> None:
        log = (self.folder / "hub.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _TALKATIVE, "serve", "--log-json"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment(),
            )  # fmt: skip
        end = time.monotonic() + 60
        while b"hub ready" not in (self.folder / "hub.log").read_bytes():
            assert self.process.poll() is None, (self.folder / "hub.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def files(self) -> None:
        """Every file that there is now."""
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                self.keep(f"file {path.relative_to(self.folder)}", path.read_bytes())


def _children(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                yield int(child)
                yield from _children(int(child))


class Asker:
    """Asks a running hub through its socket and keeps what it answers."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def __call__(self, operation: str, **fields: Any) -> int:
        connector = aiohttp.UnixConnector(str(self._hub.home / "hub.sock"))
        timeout = aiohttp.ClientTimeout(total=60)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.post(f"http://hub/admin/{operation}", json=fields) as response,
        ):
            self._hub.keep(f"answer to {operation}", await response.read() + repr(response.headers).encode())
            return response.status


@pytest.fixture
def hub(tmp_path: Path, empty_home: Path) -> Iterator[Hub]:
    folder = empty_home / secrets.token_hex(3)  # a short path, for the socket
    folder.mkdir()
    made = Hub(folder)
    port, nats = free_port(), free_port()
    made.command("init", "--url", f"http://127.0.0.1:{port}", "--nats-listen", f"127.0.0.1:{nats}")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with run_ministack(tmp_path_factory.mktemp("ministack")) as found:
        yield found


def gcs_document() -> tuple[str, str]:
    """A service account's key file, and a line from the middle of its private key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    account = {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": secrets.token_hex(20),
        "private_key": pem,
        "client_email": "hub@project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": f"{NOWHERE}/token",
    }
    return json.dumps(account), pem.splitlines()[10]


def bad_documents(secret: str) -> Sequence[str]:
    """What is no keys at all, with a secret in every place of it."""
    return (
        secret,
        json.dumps({"access_key": "AKIA", "secret_key": secret, "more": secret}),
        json.dumps({secret: secret}),
        json.dumps({"access_key": "AKIA", "secret_key": [secret]}),
        json.dumps({"access_key": "AKIA", "secret_key": {secret: 1}}),
        json.dumps([secret]),
        f'{{"access_key": "AKIA", "secret_key": "{secret}',
        f'access_key = "AKIA"\nsecret_key = {secret}\n',
        f"[{secret}]\naws_secret_access_key = {secret}",
        json.dumps({"type": "service_account", "private_key": secret}),
        f"AccountName=a;AccountKey={secret};{secret}",
        json.dumps({"account": "acct", "key": secret + "!"}),
    )


@pytest.mark.blocking
async def test_a_secret_is_found_nowhere(hub: Hub, server: S3Server, tmp_path: Path) -> None:
    """Good keys, wrong ones, keys for servers that are not there and what is no keys, of every provider, by file, pipe,
    environment and socket: none of it is seen again, while labels are."""
    ask, provider = Asker(hub), await asyncio.to_thread(Provider, server)
    good = [await asyncio.to_thread(provider.key) for _ in range(3)]
    hidden = {f"good {number}": key["SecretAccessKey"] for number, key in enumerate(good)}
    tokens: dict[str, str] = {}

    def secret(name: str) -> str:
        """A new secret with characters that need care. What is random in it is looked for, whatever becomes of it."""
        hidden[name] = secrets.token_hex(16)
        return f"{name}+/{hidden[name]}="

    def file(text: str) -> str:
        path = tmp_path / secrets.token_hex(4)
        path.write_text(text)
        return str(path)

    async def command(*arguments: str, **how: Any) -> str:
        return await asyncio.to_thread(hub.command, *arguments, **how)

    url = location(server, "lab/one", create="false")
    # Good keys, by file, pipe and socket; replaced twice; used.
    await command("channel", "create", "demo", "--bucket", url, "--credentials-file", file(document(good[0])))
    await command("channel", "credentials", "set", "demo", "--credentials-stdin", stdin=document(good[1]))
    assert await ask("channel.credentials.set", name="demo", credentials=document(good[2])) == 200
    # Wrong ones: with a token, which providers repeat in their answers, for servers that are there and that are not.
    tokens["token"] = secrets.token_urlsafe(40)
    wrong = {"access_key": good[2]["AccessKeyId"], "secret_key": secret("wrong"), "session_token": tokens["token"]}
    nowhere = f"s3://{BUCKET}/x?region=us-east-1&endpoint={NOWHERE}"
    for place in (url, location(server, "lab/two", create="false"), nowhere):
        await ask("channel.create", name="more", bucket=place, credentials=json.dumps(wrong))
    await command("channel", "create", "more", "--bucket", nowhere, "--credentials-stdin", stdin=json.dumps(wrong))
    await command("channel", "credentials", "set", "demo", "--credentials-file", file(json.dumps(wrong)), "--json")
    # Other providers, none of which is there.
    google, hidden["google"] = gcs_document()
    azure = base64.b64encode(secrets.token_bytes(64)).decode()
    hidden["azure"] = azure
    client = json.dumps({"account": "acct", "tenant": "t", "client": "c", "secret": secret("client")})
    connection = f"DefaultEndpointsProtocol=https;AccountName=acct;AccountKey={azure};EndpointSuffix=core.windows.net"
    for place, documents in (
        (f"gs://bucket/x?endpoint={NOWHERE}", (google, base64.b64encode(google.encode()).decode())),
        (
            f"azblob://container/x?account=acct&endpoint={NOWHERE}/acct",
            (json.dumps({"account": "acct", "key": azure}), connection, client),
        ),
    ):
        for given in documents:
            await ask("channel.create", name="more", bucket=place, credentials=given)
        await command("channel", "create", "more", "--bucket", place, "--credentials-file", file(given))
    # What is no keys, for every provider.
    for number, given in enumerate(bad_documents(secret("spoilt"))):
        for place in (url, "gs://bucket/x", "azblob://container/x?account=acct"):
            assert await ask("channel.create", name="more", bucket=place, credentials=given) >= 400
        assert await ask("channel.credentials.set", name="demo", credentials=given) >= 400
        if number == 1:
            await command("channel", "credentials", "set", "demo", "--credentials-stdin", "--json", stdin=given)
    await ask("channel.create", name="more", bucket=url, credentials={"secret_key": secret("mistyped")})
    await ask("channel.create", name="more", bucket=f"s3://AKIA:{secret('in-url')}@bucket?region=x")
    await ask("channel.create", name="more", bucket=f"s3://bucket?region=x&secret_key={secret('in-query')}")
    await ask("master.rotate", new_key=secret("no-key"))
    # Another project's settings, by file and by environment.
    river = {"region": "us-east-1", "bucket": "b", "access_key_id": "AKIA", "secret_access_key": secret("river")}
    settings = json.dumps({"external_media_stream_storage": {"aws_s3": river, "gcs_storage": {"bucket": "b"}}})
    path = tmp_path / "river.yaml"
    await asyncio.to_thread(path.write_text, settings)
    await command("channel", "create", "more", "--bucket-from", str(path))
    await command(
        "channel", "create", "more", "--bucket-from-env", private=True, S3_ENDPOINT_URL=NOWHERE, S3_BUCKET_IN="b",
        S3_BUCKET_OUT="b", AWS_REGION="us-east-1", AWS_ACCESS_KEY_ID="AKIA", AWS_SECRET_ACCESS_KEY=secret("env"),
    )  # fmt: skip
    # Everything that the hub tells.
    for operation, fields in (
        ("channel.list", {}),
        ("channel.show", {"name": "demo"}),
        ("channel.credentials.show", {"name": "demo"}),
        ("channel.reconcile", {"name": "demo", "dry_run": True}),
        ("channel.doctor", {"name": "demo"}),
        ("audit", {}),
        ("status", {}),
        ("node.list", {}),
    ):
        await ask(operation, **fields)
    await owner_looks(hub)
    assert hub.process is not None
    hub.look_at(hub.process.pid)
    await asyncio.to_thread(hub.files)  # while it runs: with the journals of its database
    # The same without a hub, and after the master key was changed.
    await asyncio.to_thread(hub.stop)
    hidden["new master"] = secrets.token_hex(32)
    await command("rotate-master-key", "--new-key-file", file(hidden["new master"]))
    await command("channel", "credentials", "set", "demo", "--credentials-stdin", stdin=document(good[0]))
    await command("channel", "credentials", "set", "demo", "--credentials-stdin", stdin=json.dumps(wrong))
    await command("channel", "show", "demo", "--json")
    await asyncio.to_thread(hub.files)

    everything = b"".join(hub.haystack.values())
    assert good[0]["AccessKeyId"].encode() in everything  # labels are no secret: the search looked at the right place
    assert b"SQLite format 3" in everything
    assert any(name.endswith("hub.db-wal") and data for name, data in hub.haystack.items())
    assert b"botocore" in everything  # it did log all it can
    assert places(hidden.pop("new master"), hub.haystack) == [
        name for name in hub.haystack if name.endswith(MASTER_NAME) and name.split()[0] == _last(hub, MASTER_NAME)
    ]
    found = {name: where for name, one in hidden.items() if (where := places(one, hub.haystack))}
    assert found == {}
    # A session's token is part of every URL and request that is signed with it: a library that logs all it can logs it.
    quiet = {name: data for name, data in hub.haystack.items() if not name.endswith("hub.log") and "output" not in name}
    for token in tokens.values():
        assert places(token, quiet) == []


def _last(hub: Hub, ending: str) -> str:
    """The number of the last thing kept of this name."""
    return max((name for name in hub.haystack if name.endswith(ending)), key=lambda name: int(name.split()[0])).split()[
        0
    ]


async def owner_looks(hub: Hub) -> None:
    """The channel's owner joins and reads all that the API tells."""
    url = json.loads(await asyncio.to_thread(hub.command, "channel", "invite", "demo", "--rights", "owner", "--json"))[
        "url"
    ]
    invite = Invite.parse(url)
    status = json.loads(await asyncio.to_thread(hub.command, "status", "--json"))
    key = derive_node_key(secrets.token_bytes(32), status["hub"])
    async with HubClient(invite.url, key, status["hub"], HubClientSettings(timeout=20), clock=time.time) as client:
        await client.join(invite, "owner")
        hub.keep("session", repr(await client.session()).encode())
        hub.keep("channel", repr(await client.channel("demo")).encode())

    def plain() -> None:
        for path in ("/healthz", "/readyz", "/v1/hub", "/", "/metrics"):
            try:
                with urllib.request.urlopen(f"{invite.url}{path}", timeout=20) as answer:
                    hub.keep(path, answer.read())
            except urllib.error.HTTPError as error:
                hub.keep(path, error.read())
                error.close()

    await asyncio.to_thread(plain)


class _Echo(BaseHTTPRequestHandler):
    """Refuses, as Amazon does: with the token that was refused, and what was to be signed."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        token = self.path.partition("token=")[2]
        body = (
            '<?xml version="1.0"?><Error><Code>InvalidToken</Code><Message>The token is malformed.</Message>'
            f"<Token-0>{token}</Token-0><CanonicalRequest>PUT {self.path}</CanonicalRequest></Error>"
        ).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Refused:
    """A bucket at whose URLs every upload is refused."""

    digest_kind, prefix = "sha256", ""
    binds = Binds(**dict.fromkeys(Binds.__dataclass_fields__, True))

    def __init__(self, url: str) -> None:
        self._url = url

    async def sign_put(self, key: str, length: int, _digest: bytes, _expires: int) -> SignedRequest:
        headers = {"Content-Length": str(length)}
        return SignedRequest(method="PUT", url=f"{self._url}/{key}?token=THE-TOKEN", headers=headers, expires_at=0.0)

    async def delete(self, _key: str) -> bool:
        return False


async def test_a_refusal_is_passed_on_without_what_it_repeats() -> None:
    """Of a provider's refusal of an upload its code is told, not the token or the request that it quotes."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            with pytest.raises(Denied) as refused:
                await probe_uploads(_Refused(f"http://127.0.0.1:{server.server_address[1]}"))  # type: ignore[arg-type]
        finally:
            server.shutdown()
            serving.join()
    told = json.dumps(to_wire(refused.value))
    assert "InvalidToken" in told
    assert "malformed" not in told  # words of an endpoint go nowhere
    assert "THE-TOKEN" not in told


def test_no_setting_shows_a_secret(tmp_path: Path) -> None:
    """The repr of everything that holds a secret, and of what holds that, is without it."""
    secret = secrets.token_hex(32)
    google, line = gcs_document()
    s3 = S3Credentials(access_key="AKIA", secret_key=secret, session_token=secret, external_id=secret)
    gcs = GcsServiceAccount(document=google, client_email="hub@project.iam.gserviceaccount.com")
    azure = AzureKey(account="acct", key=base64.b64encode(bytes.fromhex(secret)).decode())
    client = AzureClient(account="acct", tenant="t", client="c", secret=secret)
    master = MasterKey(bytes.fromhex(secret))
    vault = Vault(MasterKeys(master), "O", "http://h", time.time)
    (tmp_path / "hub.toml").write_text(f'urls = ["http://127.0.0.1:1"]\n[database]\nurl = "postgresql://u:{secret}@/x"')
    settings = load_settings(tmp_path)
    given = replace(settings, master_key=secret)
    shown: list[object] = [
        s3, gcs, azure, client, master, vault, settings, given, load_keys(given),
        parse_location("s3://bucket?region=x").settings(s3),  # type: ignore[union-attr]
        parse_location(f"gs://bucket?endpoint={NOWHERE}").settings(gcs),  # type: ignore[union-attr]
        parse_location("azblob://container?account=acct").settings(azure),  # type: ignore[union-attr]
        parse_location("azblob://container?account=acct").settings(client),  # type: ignore[union-attr]
        ChannelCreate(name="demo", bucket="s3://b?region=x", credentials=secret),
        SetCredentials(name="demo", credentials=secret),
        RotateMaster(new_key=secret),
        DatabasePlace(url=f"postgresql://u:{secret}@/x"),
        vault.seal("s3://bucket?region=x", json.dumps({"access_key": "A", "secret_key": secret}).encode()),
    ]  # fmt: skip
    haystack = {f"{number} {type(one).__name__}": f"{one!r} {one}".encode() for number, one in enumerate(shown)}
    assert places(secret, haystack) == []
    assert places(line, haystack) == []
    assert repr(bytes.fromhex(secret))[2:-1].encode() not in b"".join(haystack.values())
