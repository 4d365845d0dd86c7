"""Ways to the bucket: TLS with a private authority, and proxies."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.servers.proxy import Proxy

from entrepot.adapters.transfer import SignedRequest, Transfers, TransferSettings
from entrepot.adapters.transfer.connections import Connections
from entrepot.core.errors import InvalidInput, RetryLater
from entrepot.core.lock import SchemaLock


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def secure(bucket, certificate: Path):
    """The bucket, speaking TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    bucket.server.socket = context.wrap_socket(bucket.server.socket, server_side=True)
    bucket.scheme = "https"
    return bucket


async def test_private_authority(secure, stream, certificate: Path) -> None:
    """With its certificate named, uploads and downloads go over TLS; without, the error names the setting."""
    async with Transfers(TransferSettings(ca_file=str(certificate), backoff=0.001)) as transfers:
        assert (await transfers.put(secure.put(), stream.sources[0])).created
        async with await stream.here.begin(stream.stream, stream.opening, stream.lock, "c") as fetch:
            assert await transfers.get_object(secure.get(), fetch, 0) == 65536
    async with Transfers() as transfers:
        with pytest.raises(RetryLater) as caught:
            await transfers.put(secure.put(), stream.sources[0])
    assert "authority" in (caught.value.hint or "")


async def test_early_answer_over_tls(secure, tmp_path, stream, certificate: Path) -> None:
    """An early 403 is seen over TLS too, whose own messages are not taken for an answer."""
    from entrepot.adapters.store import Store
    from entrepot.core.errors import Denied

    path = tmp_path / "large"
    with path.open("wb") as writer:
        writer.truncate(64 << 20)
    lock = SchemaLock("demo", object=0)

    def step(handler) -> None:
        handler.reply(403, b"")
        handler.wfile.flush()
        threading.Event().wait(0.3)
        handler.close_connection = True

    secure.script.append(step)
    async with Store(tmp_path / "s") as store, Transfers(TransferSettings(ca_file=str(certificate))) as transfers:
        added = await store.add(path, channel="c", lock=lock)
        source = await store.object_source(added.stream, lock, 0)
        with pytest.raises(Denied):
            await transfers.put(secure.put(), source)
        assert (await transfers.put(secure.put(), source)).created
    assert len(secure.objects["/o"]) == source.size


async def test_unusable_certificates() -> None:
    """An authority's file that is not there is an invalid setting."""
    with pytest.raises(InvalidInput):
        async with Transfers(TransferSettings(ca_file="/nonexistent/ca.pem")):
            pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


async def test_http_goes_through_a_proxy(bucket, stream, proxy: Proxy) -> None:
    """Plain requests name the whole URL to the proxy and show it the password; the bucket gets the object."""
    settings = TransferSettings(http_proxy=f"http://me:s%40cret@127.0.0.1:{proxy.port}")
    async with Transfers(settings) as transfers:
        assert (await transfers.put(bucket.put(), stream.sources[0])).created
    assert proxy.lines == [f"PUT {bucket.url('o')} HTTP/1.1"]
    assert proxy.passwords == ["Basic bWU6c0BjcmV0"]


async def test_https_tunnels_through_a_proxy(secure, stream, proxy: Proxy, certificate: Path) -> None:
    """Encrypted requests go through CONNECT, so the proxy sees host and port only."""
    settings = TransferSettings(https_proxy=f"http://127.0.0.1:{proxy.port}", ca_file=str(certificate))
    async with Transfers(settings) as transfers:
        assert (await transfers.put(secure.put(), stream.sources[0])).created
    assert proxy.lines == [f"CONNECT 127.0.0.1:{secure.port} HTTP/1.1"] or proxy.lines == [
        f"CONNECT 127.0.0.1:{secure.port} HTTP/1.0"
    ]


@pytest.mark.parametrize(
    ("names", "direct"),
    [
        ((), False),
        (("*",), True),
        (("example.org",), True),
        ((".example.org",), True),
        (("bucket.example.org",), True),
        (("bucket.example.org:8443",), True),
        (("bucket.example.org:1",), False),
        (("ample.org",), False),
        (("",), False),
    ],
)
def test_no_proxy(names: tuple[str, ...], direct: bool) -> None:
    """NO_PROXY's items name hosts, domains, ports or everything."""
    settings = TransferSettings(https_proxy="http://proxy:1", no_proxy=names)
    target = Connections(settings).target(SignedRequest("GET", "https://bucket.example.org:8443/k?q=%2F"))
    assert (target.proxy is None) == direct
    assert target.line == "/k?q=%2F"
