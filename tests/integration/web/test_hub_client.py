"""The node's client against servers that are absent, broken or hostile: only our errors come out."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.servers.proxy import Proxy

from entrepot.adapters.hub_client import HubClient, HubClientSettings
from entrepot.core.errors import Denied, EntrepotError, InvalidInput, RetryLater
from entrepot.core.keyring import derive_node_key
from entrepot.core.nkeys import KeyKind, SigningKey
from entrepot.services.settings import NodeSettings

HUB = SigningKey(KeyKind.OPERATOR, b"h" * 32).public
KEY = derive_node_key(b"n" * 32, HUB)
QUICK = HubClientSettings(timeout=1.0, connect_timeout=1.0)


@asynccontextmanager
async def answering(answer: bytes, *, tls: ssl.SSLContext | None = None, hold: bool = False, head: int = 0):
    """A server that reads a request's head (or so many bytes) and sends these bytes, whatever was asked."""

    serving: set[asyncio.Task] = set()

    async def serve(reader, writer):
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await (reader.readexactly(head) if head else reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
            if hold:
                await asyncio.sleep(30)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await server.wait_closed()


def http(status: str, body: bytes, *more: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *more]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def fail(url: str, settings: HubClientSettings = QUICK) -> EntrepotError:
    async with HubClient(url, KEY, HUB, settings) as client:
        with pytest.raises(EntrepotError) as caught:
            await client.session()
    assert caught.value.__cause__ is None
    return caught.value


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        http("200 OK", b"{}"),
        http("200 OK", b"[" * 100_000),
        http("200 OK", b"\xff\xfe"),
        http("200 OK", b"<html>"),
        http("200 OK", b" " * (5 << 20)),
        http("204 No Content", b""),
        http("302 Found", b"", "Location: http://127.0.0.1:1/"),
        http("302 Found", b"", "Location: http://[bad/"),
        http("502 Bad Gateway", b"<html>proxy</html>"),
        http("404 Not Found", b"nginx"),
        http("500 Oops", b'{"error": 5}'),
        http("200 OK", b"{}", "Date: Thu, 99 Foo 2026 99:99:99 GMT"),
    ],
)
async def test_an_answer_that_is_no_hubs_is_told_so(answer):
    """Cut, garbled, endless, redirecting and foreign answers: the hub is not reachable there just now."""
    async with answering(answer) as url:
        error = await fail(url)
    assert isinstance(error, RetryLater)
    assert error.kind == "hub-unreachable"
    assert error.hint
    assert error.data["hub"] == url


async def test_nobody_there():
    """A refused connection names the hub and what to look at."""
    error = await fail("http://127.0.0.1:1")
    assert (error.kind, error.data["hub"]) == ("hub-unreachable", "http://127.0.0.1:1")
    assert "running" in (error.hint or "")


async def test_a_name_that_nobody_has():
    """A host that does not resolve is told as that."""
    error = await fail("https://no-such-host.invalid")
    assert error.kind == "hub-unreachable"


async def test_an_address_that_cannot_be_looked_up():
    """A label longer than names have is no crash."""
    error = await fail("https://" + "a" * 70 + ".invalid")
    assert error.kind == "hub-unreachable"


async def test_a_hub_that_does_not_answer():
    """A silent server costs the time-out and no more."""
    async with answering(b"", hold=True) as url:
        error = await fail(url, HubClientSettings(timeout=0.3))
    assert error.kind == "deadline"


async def test_a_hub_that_stops_in_the_middle():
    """Half an answer costs the time-out and no more."""
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", hold=True) as url:
        error = await fail(url, HubClientSettings(timeout=0.3))
    assert error.kind == "deadline"


async def test_plain_http_where_tls_was_expected():
    """A server that speaks no TLS is told as that."""
    async with answering(http("400 Bad Request", b""), head=5) as url:
        error = await fail(url.replace("http:", "https:"))
    assert error.kind == "hub-unreachable"
    assert "TLS" in error.message


def certificate(folder: Path, *, days: int = 10, host: str = "127.0.0.1") -> tuple[Path, ssl.SSLContext]:
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + dt.timedelta(days=min(days, 0) - 1))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain = folder / f"cert{days}{host}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain)
    return chain, context


@pytest.mark.blocking
async def test_a_certificate_nobody_vouches_for_is_refused(tmp_path):
    """An unknown authority is denied with the way out; named in the settings, the same one is taken."""
    chain, context = certificate(tmp_path)
    async with answering(http("502 Bad Gateway", b"reached"), tls=context) as url:
        error = await fail(url)
        assert isinstance(error, Denied)
        assert "ca_file" in (error.hint or "")
        error = await fail(url, HubClientSettings(ca_file=str(chain)))
        assert "502" in error.message


@pytest.mark.blocking
async def test_a_certificate_of_another_time_or_host_is_refused(tmp_path):
    """An expired one hints at the clock; one for another host is denied even by a known authority."""
    chain, context = certificate(tmp_path, days=-5)
    async with answering(b"", tls=context) as url:
        error = await fail(url, HubClientSettings(ca_file=str(chain)))
        assert isinstance(error, Denied)
        assert "clock" in (error.hint or "")
    chain, context = certificate(tmp_path, host="127.0.0.9")
    async with answering(b"", tls=context) as url:
        assert isinstance(await fail(url, HubClientSettings(ca_file=str(chain))), Denied)


async def test_a_ca_file_that_is_none(tmp_path):
    """A missing file and one without certificates are wrong settings."""
    for path in (tmp_path / "none.pem", Path(__file__)):
        client = HubClient("https://127.0.0.1:1", KEY, HUB, HubClientSettings(ca_file=str(path)))
        with pytest.raises(InvalidInput) as caught:
            await client.__aenter__()
        assert caught.value.kind == "invalid-setting"


@pytest.mark.blocking  # the proxy is set up in this thread
async def test_no_proxy_is_for_the_hub_too(hub):
    """A hub goes through the proxy of the settings unless NO_PROXY names its host."""
    proxy = Proxy()
    try:
        # An address that is this machine's and does not look like it: loopback addresses need no NO_PROXY.
        url = hub.url.replace("127.0.0.1", "0.0.0.0")
        host, _, port = url.removeprefix("http://").partition(":")
        line = f"GET {url}/v1/hub"
        for no_proxy, lines in (
            ((), [line]),
            (("example.org", f"{host}:1"), [line] * 2),
            ((host,), [line] * 2),
            ((f"{host}:{port}",), [line] * 2),
            (("*",), [line] * 2),
        ):
            settings = NodeSettings(
                home=Path("home"),
                proxy=f"http://127.0.0.1:{proxy.port}",
                no_proxy=no_proxy,
                hub=HubClientSettings(plain=True, timeout=10),
            )
            async with HubClient(url, hub.key(), hub.hub_public, settings.hub_settings(url)) as client:
                with pytest.raises(Denied, match="does not prove"):  # it answers: by this name it does not know itself
                    await client.hub()
            assert [line.partition("?")[0] for line in proxy.lines] == lines
    finally:
        proxy.close()


async def test_a_proxy_that_is_not_there():
    """The proxy is used, and named when it fails; its password is not shown."""
    settings = HubClientSettings(proxy="http://me:hunter2@127.0.0.1:1", timeout=2)
    error = await fail("https://hub.example.org", settings)
    assert error.kind == "hub-unreachable"
    assert "proxy" in error.message
    assert "hunter2" not in repr(settings) + repr(error) + str(error.data)


async def test_an_error_of_the_hub_comes_back_as_it_was():
    """Kind, hint and data of the hub's error reach the caller; an unknown kind is for trying again later."""
    body = b'{"error": {"kind": "over-quota", "message": "m", "hint": "h", "data": {"quota": 1}}}'
    async with answering(http("503 x", body)) as url:
        error = await fail(url)
    assert (error.kind, error.message, error.hint, error.data) == ("over-quota", "m", "h", {"quota": 1})
    async with answering(http("409 x", b'{"error": {"kind": "from-2031", "message": "m"}}')) as url:
        assert (await fail(url)).kind == "retry-later"


async def test_a_closed_client_says_so():
    """After aclose, which may be repeated, calls fail in our words."""
    client = HubClient("http://127.0.0.1:1", KEY, HUB)
    async with client:
        pass
    await client.aclose()
    with pytest.raises(RetryLater):
        await client.session()


def test_plain_http_is_for_this_machine_only():
    """Another machine is reached by https unless one insists."""
    with pytest.raises(InvalidInput):
        HubClient("http://10.0.0.1", KEY, HUB)
    assert HubClient("http://10.0.0.1", KEY, HUB, HubClientSettings(plain=True)).url == "http://10.0.0.1"


async def test_a_redirect_is_not_followed():
    """A signed request goes where it was signed for and nowhere else."""
    async with answering(http("302 Found", b"", "Location: http://127.0.0.1:1/")) as url:
        error = await fail(url)
    assert error.data["status"] == 302


async def test_an_endless_answer_is_cut():
    """No answer of a hub is that long: it is not read to its end."""
    async with answering(http("200 OK", b" " * (5 << 20))) as url:
        error = await fail(url)
    assert "too long" in error.message
