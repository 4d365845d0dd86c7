"""What the hub's log takes of others' noise."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator

import pytest
import structlog
from aiohttp import web

from entrepot_hub.cli.logs import set_up_logs

told = structlog.get_logger()


@pytest.fixture
def logs() -> Iterator[None]:
    """The process's logging as it was, afterwards."""
    root, server = logging.getLogger(), logging.getLogger("aiohttp.server")
    before = root.handlers[:], root.level, server.filters[:]
    yield
    root.handlers[:], server.filters[:] = before[0], before[2]
    root.setLevel(before[1])


async def test_what_is_no_http_does_not_fill_the_log(
    logs: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Malformed requests of strangers make one short line, however many they are; another kind of error is told too."""
    set_up_logs(as_json=True)
    runner = web.AppRunner(web.Application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        for _ in range(20):
            reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n")
            async with asyncio.timeout(30):
                assert (await reader.readline()).startswith(b"HTTP/1.0 400 ")
            writer.close()
    finally:
        await runner.cleanup()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert len(lines[0]) < 250
    server = logging.getLogger("aiohttp.server")
    for _ in range(5):
        try:
            raise ValueError("ours")
        except ValueError:
            server.exception("Unhandled exception")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "Traceback" in lines[0]


@pytest.mark.parametrize("once", ["once", "again"])
def test_a_log_ends_with_its_test(once: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test set up does not reach the next: each finds the log unset, and the same logger writes to its own
    standard error."""
    assert not structlog.is_configured()
    assert not [each for each in logging.getLogger().handlers if type(each) is logging.StreamHandler]
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        set_up_logs(as_json=True)
        told.info("told", turn=once)
        logging.getLogger().warning("said")
    lines = stream.getvalue().splitlines()
    assert [word in line for word, line in zip(("told", "said"), lines, strict=True)] == [True, True]
    stream.close()
