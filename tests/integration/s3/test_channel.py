"""A channel on S3 is made with keys that nobody sees again, and what its provider holds is found out and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.integration.s3.conftest import PREFIX, Ground, Stage, content_of, credentials, helping, location, serve
from tests.servers.grid import Content, Grid
from tests.servers.ministack import ACCESS_KEY, SECRET_KEY

HELD = {
    "ministack": {"length": True, "digest": True, "create_only": True, "expiry": True},
    "rclone": {"length": True, "digest": False, "create_only": False, "expiry": True, "head_digest": False},
    "careless": dict.fromkeys(
        ("length", "digest", "create_only", "expiry", "head_digest", "get_if", "delete_if", "replace_if"), False
    ),
}


async def ask(grid: Grid, operation: str, **fields: Any) -> tuple[int, str]:
    """An operation through the hub's socket: status and text."""
    connector = aiohttp.UnixConnector(str(grid.socket))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"http://hub/admin/{operation}", json=fields) as response,
    ):
        return response.status, await response.text()


def files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file of a hub."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


async def test_what_the_provider_holds_is_probed_and_shown(stage: Callable[..., Any]) -> None:
    """``channel show`` says for each server what it was found to hold, and the bucket is left clean."""
    async with stage() as at:
        shown = await at.grid.admin("channel.show", name="demo")
        binds = shown["channel"]["binds"]
        assert shown["channel"] == at.ground.answers["demo"]["channel"]
        assert binds | HELD[at.ground.kind] == binds
        assert all("probe" not in key for key in await at.owner.sizes(PREFIX))


async def test_the_keys_are_seen_nowhere(stage: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the database nor any file of the hub, no answer, no log and no session hold the bucket's secret."""
    async with stage() as at:
        answers = json.dumps(at.ground.answers)
        for operation, fields in (
            ("channel.list", {}),
            ("channel.show", {"name": "demo"}),
            ("audit", {}),
            ("status", {}),
        ):
            answers += (await ask(at.grid, operation, **fields))[1]
        holder = await at.grid.peer("holder")
        content = at.content()
        async with helping(serve(holder, content)):
            reader = await at.grid.peer("reader")
            await reader.want(content)
        answers += repr(reader.info) + repr(holder.grants)
        await at.grid.stop()
    said = capfd.readouterr()
    assert SECRET_KEY not in answers + said.out + said.err
    for path, data in files(at.grid.folder / "hub"):
        assert SECRET_KEY.encode() not in data, path
    assert "Traceback" not in said.out + said.err


async def test_wrong_keys_make_no_channel_and_are_not_repeated(
    grounds: Mapping[str, Ground], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Keys that the server refuses, or that are none, are an error that says so without showing them, and nothing was
    made; the right ones then work."""
    secret = "not-the-secret-of-this-bucket"
    ground = grounds["ministack"]
    grid = ground.copy(tmp_path, None)
    asked = {"name": "fresh", "bucket": location(ground.server, "lab/wrong", create="false")}
    try:
        await grid.start()
        for given in (
            json.dumps({"access_key": ACCESS_KEY, "secret_key": secret}),
            json.dumps({"access_key": "not-a-key", "secret_key": secret}),
            json.dumps({"access_key": ACCESS_KEY, "secret_key": secret, "more": "x"}),
            json.dumps({"access_key": "", "secret_key": secret}),
            secret,
            None,
        ):
            status, text = await ask(grid, "channel.create", **asked, credentials=given)
            assert status in (400, 403), (given, text)
            assert secret not in text
            assert (await ask(grid, "channel.show", name="fresh"))[0] == 404
        await grid.channel("fresh", bucket=asked["bucket"], credentials=credentials(ground.server))
    finally:
        await grid.aclose()
    said = capfd.readouterr()
    assert secret not in said.out + said.err
    for path, data in files(grid.folder / "hub"):
        assert secret.encode() not in data, path


async def test_the_prefix_of_another_hub_is_left_alone(grounds: Mapping[str, Ground], tmp_path: Path) -> None:
    """A second hub that is given the same bucket and prefix refuses it."""
    ground = grounds["rclone"]
    grid = Grid(tmp_path)
    try:
        await grid.start()
        url = location(ground.server)
        status, text = await ask(
            grid, "channel.create", name="fresh", bucket=url, credentials=credentials(ground.server)
        )
        assert (status, json.loads(text)["error"]["kind"]) == (409, "in-use")
    finally:
        await grid.aclose()


async def test_a_second_channel_shares_the_bucket(stage: Callable[..., Any]) -> None:
    """Another channel on the same bucket needs no keys, has the same account of what is held, and works."""
    at: Stage
    async with stage() as at:
        lock = await at.grid.channel("second", bucket=location(at.ground.server))
        shown = await at.grid.admin("channel.show", name="second")
        assert shown["channel"]["binds"] == at.ground.answers["demo"]["channel"]["binds"]
        content = Content(b"x" * 70_000, lock)
        holder, taker = await at.grid.peer("holder", "second"), await at.site.node("taker", "second")
        async with helping(serve(holder, content)):
            got = await taker.get(content.stream.hex, at.folder / "copy")
        assert await content_of(got.path) == content.data
        await at.balanced(content)
