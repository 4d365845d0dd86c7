"""A bucket that refuses the hub: whoever waits hears that, and the hub does not go on granting as if nothing were."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import pytest
from tests.integration.node.conftest import Site
from tests.integration.s3.conftest import content_of, credentials, location
from tests.servers.grid import Grid, running_grid
from tests.servers.ministack import S3Server
from tests.servers.rclone import run_rclone

from entrepot.core.errors import RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot_hub.core.journal import Event, EventKind

OBJECT = 65536
OBJECTS = 9
#: Leases that are soon over: what is granted for nothing could be granted again every second.
BRIEF = ExchangeSettings(lease=1.0, disconnect_grace=0.2)


class Switch:
    """One address in front of two servers: connections are passed on to ``server``, those before :meth:`turn` end."""

    def __init__(self, server: S3Server) -> None:
        self._to = server
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self._end()

    def turn(self, server: S3Server) -> None:
        """Another server from now on."""
        self._to = server
        self._end()

    def _end(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", urlsplit(self._to.endpoint).port)
        self._writers |= {writer, back}
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        self._writers -= {writer, back}

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, OSError):
            while data := await reader.read(OBJECT):
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[S3Server, S3Server]]:
    """A server, and the same with another secret."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with run_rclone(tmp_path / "one") as one, run_rclone(tmp_path / "other", "another-secret-of-the-tests") as other:
        yield one, other


def counted(grid: Grid) -> list[Event]:
    """Every grant that the hub makes from now on."""
    assert grid.hub is not None
    arbiter, granted = grid.hub._arbiter, list[Event]()
    inner = arbiter.note

    def note(event: Event) -> None:
        if event.kind is EventKind.GRANTED:
            granted.append(event)
        inner(event)

    arbiter.note = note
    return granted


async def test_a_bucket_that_refuses_the_hub_is_the_reason(
    servers: tuple[S3Server, S3Server], empty_home: Path, tmp_path: Path
) -> None:
    """The bucket takes the hub's key no more: the get ends with that as its reason and not with the holder's slowness,
    the stream's timeline says it, few objects are granted meanwhile, and the next get completes when the bucket takes
    the key again."""
    one, other = servers
    original, copy = tmp_path / "original.bin", tmp_path / "copy.bin"
    original.write_bytes(os.urandom(OBJECTS * OBJECT))
    async with Switch(one) as switch, running_grid(tmp_path, BRIEF) as grid:
        bucket = location(replace(one, endpoint=switch.endpoint))
        await grid.channel("demo", bucket=bucket, credentials=credentials(one))
        site = Site(grid, empty_home / secrets.token_hex(4))
        try:
            holder, reader = await site.node("holder"), await site.node("reader")
            await site.up("holder")
            added = await holder.add(original)
            granted = counted(grid)
            switch.turn(other)
            with pytest.raises(RetryLater) as caught:
                await reader.get(added.uri, copy, deadline=8)
            assert caught.value.kind == "bucket-unreachable"
            assert caught.value.message.startswith("the hub cannot use the channel's bucket: ")
            events = (await reader.why(added.uri)).timeline.events
            assert {"failed", "waited"} <= {event.kind for event in events}
            assert 0 < len(granted) <= 2 * OBJECTS
            switch.turn(one)
            await reader.get(added.uri, copy, deadline=40)
            assert await content_of(copy) == await content_of(original)
        finally:
            await site.aclose()
