"""What is complete in the store is read without any hub, in pieces, with clear errors at the edges."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from entrepot.adapters.store import Store, StoreSettings
from entrepot.adapters.transfer import Transfers
from entrepot.core.errors import InvalidInput, RetryLater
from entrepot.core.lock import SchemaLock
from entrepot.services.hubs import JoinedChannel
from entrepot.services.reading import RemoteFile
from entrepot.services.session import Session
from entrepot.services.settings import NodeSettings

DATA = os.urandom(3_000_000)


async def unreachable() -> tuple[Session, JoinedChannel]:
    """There is no hub."""
    raise RetryLater("no hub", kind="hub-unreachable")


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[RemoteFile]:
    """A stream that was added here."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    async with Store(tmp_path / "store", StoreSettings(reserve=0)) as store, Transfers() as transfers:
        added = await store.add(path, channel="hub/demo", lock=SchemaLock("demo"))
        settings = NodeSettings(home=tmp_path)
        async with RemoteFile(added.stream, added.opening, store, transfers, settings, unreachable) as remote:
            yield remote


async def test_local_bytes_need_no_hub(file: RemoteFile) -> None:
    """Any range of a complete stream is read, cut at its end."""
    assert await file.read(0, 10) == DATA[:10]
    assert await file.read(1_000_000, 1_500_000) == DATA[1_000_000:2_500_000]
    assert await file.read(len(DATA) - 5, 100) == DATA[-5:]
    assert await file.read(len(DATA) + 1, 1) == b""
    assert b"".join([piece async for piece in file.stream_range(5)]) == DATA[5:]
    assert b"".join([piece async for piece in file.stream_range(5, 2_000_000)]) == DATA[5:2_000_005]


async def test_impossible_ranges_and_closed_files(file: RemoteFile) -> None:
    """Negative numbers and reading after the end of the file's life are invalid input."""
    for offset, length in ((-1, 1), (0, -1)):
        with pytest.raises(InvalidInput):
            await file.read(offset, length)
    await file.aclose()
    await file.aclose()
    with pytest.raises(InvalidInput):
        await file.read(0, 1)


async def test_a_file_that_changed_is_asked_for_elsewhere(file: RemoteFile, tmp_path: Path) -> None:
    """After an edit the bytes are no longer taken from the file: the hub is asked, and its absence is the reason."""
    (tmp_path / "data").write_bytes(DATA[::-1])
    with pytest.raises(RetryLater) as caught:
        await file.read(0, 10)
    assert caught.value.kind == "hub-unreachable"
