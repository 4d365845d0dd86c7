"""Many nodes in this process that get one file of one machine at the same moment."""

from __future__ import annotations

import asyncio
import filecmp
import shutil
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.servers.nodes import MIB, Site

from entrepot.adapters.store import StoreSettings
from entrepot.services.node import Node
from entrepot.services.settings import NodeSettings


@dataclass(frozen=True)
class FanOut:
    """What it took. ``puts`` are all PUTs that reached the bucket, also refused ones; ``same``: readers that have the
    right bytes; ``seconds``: from the first ask to the last file."""

    objects: int
    puts: int
    gets: int
    put_bytes: int
    get_bytes: int
    same: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.objects} objects, {self.puts} PUTs, {self.gets} GETs, up {self.put_bytes / MIB:.0f} MiB, "
            f"down {self.get_bytes / MIB:.0f} MiB, {self.seconds:.1f} s"
        )


def fan_out(site: Site, *, nodes: int, size: int) -> FanOut:
    """A machine's daemon serves a file of ``size`` random bytes to so many nodes that start at once."""
    holder = site.machine("holder").up()
    original = holder.file("original.bin", size)
    (uri,) = holder.add(original)
    invite = site.hub.invite()
    folder = site.folder / "readers"
    folder.mkdir()
    seconds, same = asyncio.run(_all_get(uri, invite, folder, original, nodes))
    return FanOut(
        objects=len(site.hub.objects()),
        puts=len(site.relay.puts()),
        gets=len(site.relay.gets()),
        put_bytes=site.relay.put_bytes,
        get_bytes=site.relay.get_bytes,
        same=same,
        seconds=seconds,
    )


async def _all_get(uri: str, invite: str, folder: Path, original: Path, count: int) -> tuple[float, int]:
    async with AsyncExitStack() as stack:
        readers = []
        for number in range(count):
            home = folder / str(number)
            store = StoreSettings(workers=1, hashers=1, synced=False)
            reader = await stack.enter_async_context(Node(NodeSettings(home=home, store=store)))
            await reader.join(invite, name=f"reader{number}")
            readers.append(reader)
        began = time.monotonic()
        results = await asyncio.gather(
            *(reader.get(uri, folder / f"{number}.bin", deadline=120) for number, reader in enumerate(readers))
        )
        seconds = time.monotonic() - began
    same = 0
    for got in results:
        same += await asyncio.to_thread(filecmp.cmp, original, got.path, False)
    await asyncio.to_thread(shutil.rmtree, folder)
    return seconds, same
