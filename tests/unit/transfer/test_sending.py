"""How the bytes of an object get into a socket: passed on by the system, read first, or encrypted."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from tests.unit.transfer.test_routes import certificate, secure  # noqa: F401

from entrepot.adapters.store import ObjectSource, Store
from entrepot.adapters.transfer import Transfers, TransferSettings, sending
from entrepot.adapters.transfer.connections import Connections
from entrepot.core.errors import Conflict
from entrepot.core.lock import SchemaLock

LOCK = SchemaLock("demo", object=0)
SIZE = 9 << 20


@pytest.fixture
async def large(tmp_path: Path) -> tuple[ObjectSource, bytes]:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(SIZE))
    async with Store(tmp_path / "s") as store:
        added = await store.add(path, channel="c", lock=LOCK)
        source = await store.object_source(added.stream, LOCK, 0)
    return source, source.header + path.read_bytes()


def slow(handler) -> None:
    """Reads in fits and starts, so that the sender meets a full socket again and again."""
    left, parts = int(handler.headers["Content-Length"]), []
    while left:
        part = handler.rfile.read(min(left, 700_001))
        parts.append(part)
        left -= len(part)
        threading.Event().wait(0.01)
    handler.server.bucket.objects[handler.path] = b"".join(parts)
    handler.reply(200, b"")


async def test_a_slow_reader_gets_every_byte(bucket, large) -> None:
    """Whatever the socket takes at once, the object arrives as it is and progress only grows, to its end."""
    source, whole = large
    moved: list[int] = []
    bucket.script.append(slow)
    async with Transfers() as transfers:
        assert (await transfers.put(bucket.put(), source, moved.append)).created
    assert bucket.objects["/o"] == whole
    assert moved == sorted(set(moved))
    assert moved[-1] == source.size


async def test_a_slow_reader_over_tls_gets_every_byte(secure, certificate: Path, large) -> None:  # noqa: F811
    """Encrypted in large pieces, each of which may have to wait half sent: twice over one connection."""
    source, whole = large
    async with Transfers(TransferSettings(ca_file=str(certificate))) as transfers:
        for key, step in (("a", None), ("b", slow), ("c", None)):
            secure.script.append(step)
            assert (await transfers.put(secure.put(key), source)).created
            assert secure.objects[f"/{key}"] == whole
    assert secure.connections == 1


async def test_a_file_that_the_system_cannot_pass_on_is_read(bucket, large, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without sendfile: the object arrives all the same."""
    source, whole = large
    calls = []

    def refuse(*args: object) -> int:
        calls.append(args)
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(sending, "_DIRECT", True)
    monkeypatch.setattr(os, "sendfile", refuse, raising=False)
    async with Transfers() as transfers:
        assert (await transfers.put(bucket.put(), source)).created
    assert bucket.objects["/o"] == whole
    assert len(calls) == 1


@pytest.mark.blocking
async def test_a_file_that_gets_shorter_is_noticed(bucket, large, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is sent: the upload fails with its own reason and does not wait for the rest."""
    source, _ = large
    cut = False

    def shorten(_: int) -> None:
        nonlocal cut
        if not cut:
            cut = True
            os.truncate(source.path, 0)

    bucket.script.append(slow)
    monkeypatch.setattr(sending, "_TURN", 64 << 10)
    async with Transfers() as transfers:
        with pytest.raises(Conflict) as caught:
            await transfers.put(bucket.put(), source, shorten)
    assert caught.value.kind == "changed"


@pytest.mark.blocking
async def test_a_fast_connection_is_given_more_at_once(bucket) -> None:
    """What may wait unsent, and what TLS is given at once, grows with the rate and shrinks again; a slow line keeps
    little, for what was handed over counts as sent."""
    connections = Connections(TransferSettings())
    connections.prepare()
    connection = connections.take(connections.target(bucket.put()))
    try:
        assert (connection.piece, connection.unsent) == (16 << 10, 256 << 10)
        connection.ran(1 << 30)
        assert (connection.piece, connection.unsent) == (256 << 10, 1 << 20)
        connection.ran(2 << 20)
        assert (connection.piece, connection.unsent) == (64 << 10, 256 << 10)
        connection.ran(16_000)
        assert (connection.piece, connection.unsent) == (16 << 10, 256 << 10)
    finally:
        connection.close()
