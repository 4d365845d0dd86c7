"""Signed URLs that end, are refused or lead nowhere, and connections that break: whole nodes go on all the same."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.integration.s3.conftest import CHECKING, Ground, Stage, content_of
from tests.integration.s3.relay import Trouble
from tests.servers.grid import until

from entrepot.services.node import Node


@pytest.fixture(params=CHECKING)
def ground(request: pytest.FixtureRequest, grounds: Mapping[str, Ground]) -> Ground:
    """Those that know when a URL ends."""
    found = grounds[request.param]
    found.relay.troubles.clear()
    found.relay.seen.clear()
    return found


async def pair(at: Stage, length: int) -> tuple[Node, str, bytes]:
    """A giver whose daemon offers a file in ``relayed``, and a taker that has nothing yet."""
    data = secrets.token_bytes(length)
    path = at.folder / "original"
    await asyncio.to_thread(path.write_bytes, data)
    giver, taker = await at.site.node("giver", "relayed"), await at.site.node("taker", "relayed")
    await at.site.up("giver")
    return taker, str((await giver.add(path)).uri), data


async def arrives(taker: Node, uri: str, data: bytes, to: Path) -> None:
    """The file comes, byte for byte."""
    got = await taker.get(uri, to, deadline=40)
    assert await content_of(got.path) == data


async def test_urls_that_have_ended_are_replaced(stage: Callable[..., Any]) -> None:
    """The first PUT and the first GET reach the server after their URLs' ends and are refused; fresh URLs are asked
    for, and the file comes."""
    at: Stage
    async with stage(put_url=1, get_url=1, failures=50) as at:
        relay = at.ground.relay
        relay.troubles += [Trouble(method="PUT", delay=2.2), Trouble(method="GET", delay=2.2)]
        taker, uri, data = await pair(at, 60_000)
        await arrives(taker, uri, data, at.folder / "copy")
        assert relay.troubles == []
        assert (await at.usage("relayed")).objects == 1

        def refused(method: str) -> bool:
            return any(seen == method and status in (400, 403) for seen, status in relay.seen)

        # The late PUT may be answered after the file has come by another.
        await until(lambda: refused("PUT") and refused("GET"))


async def test_troubles_on_the_way_cost_time_only(stage: Callable[..., Any]) -> None:
    """GETs answered 403, 404, 500 and with a spoilt byte, PUTs answered 403, 500 and cut in the middle: the file comes
    whole, no node has a strike, and nothing is lost from the bucket."""
    at: Stage
    async with stage(failures=20) as at:
        at.ground.relay.troubles += [
            Trouble(method="GET", status=403),
            Trouble(method="GET", status=404),
            Trouble(method="GET", status=500),
            Trouble(method="GET", flip=True),
            Trouble(method="PUT", status=403),
            Trouble(method="PUT", status=500),
            Trouble(method="PUT", cut=True),
        ]
        taker, uri, data = await pair(at, 6 * 65_536)
        await arrives(taker, uri, data, at.folder / "copy")
        assert at.ground.relay.troubles == []
        assert await at.reports() == []
        usage = await at.usage("relayed")
        assert (usage.objects, usage.reserved) == (6, 0)
