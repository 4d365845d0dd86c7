"""Gets many streams into one folder: dozens at once, each on its own, and one that fails stops none of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from entrepot.adapters.outputs import remove_leftovers, require_writable
from entrepot.core.errors import EntrepotError, InvalidInput
from entrepot.core.identifiers import StreamId
from entrepot.services.output import is_taken, output_folder, output_path
from entrepot.services.progress import Meter, OnProgress, Progress
from entrepot.services.targets import Meant, Target

#: Streams that are got at once: more would only wait at the hub, and ask again meanwhile. Of large ones fewer move at a
#: time: the transfers have their own bound.
AT_ONCE: Final = 64
#: Streams that a daemon is told of in one message, at most.
_TOLD: Final = 256


@dataclass(frozen=True, slots=True)
class Wish:
    """A stream that is wanted as a file, ``path``; or why it cannot be one. ``taken``: a file is there."""

    target: Target
    meant: Meant
    path: Path | EntrepotError
    taken: bool = False


def planned(meant: Iterable[tuple[Target, Meant]], folder: Path) -> list[Wish]:
    """Which file of ``folder``, made if it is not there, each stream becomes; one that is named twice is got once. What
    killed processes left in the folder goes. Raises ``invalid-input`` where two streams would be the same file. Looks
    at the file system and blocks."""
    output_folder(folder)
    remove_leftovers(folder)
    streams: dict[Path, tuple[StreamId, Target]] = {}
    wishes: list[Wish] = []
    for target, one in meant:
        path: Path | EntrepotError
        there = False
        try:
            path = output_path(folder, one.name or one.stream.hex)
        except EntrepotError as error:
            path = error
        else:
            held, first = streams.setdefault(path, (one.stream, target))
            if held != one.stream:
                raise InvalidInput(
                    f"two of the streams are called {path.name}: {first} and {target}",
                    hint="Get them into different folders. Nothing was fetched.",
                    name=path.name,
                    first=held.hex,
                    second=one.stream.hex,
                )
            try:
                there = is_taken(path)
            except EntrepotError as error:
                path = error
        wishes.append(Wish(target, one, path, there))
    once = list({(wish.meant.stream, str(wish.path)): wish for wish in wishes}.values())
    try:
        require_writable(folder)
    except EntrepotError as error:
        return [
            wish if wish.taken or isinstance(wish.path, EntrepotError) else replace(wish, path=error) for wish in once
        ]
    return once


class Gathering[T]:
    """Gets ``wishes`` by ``get(wish, path, progress)``, at most ``at_once`` at a time; ``held`` is told of the streams
    that are here now, many at once. ``meter`` counts the bytes of all of them together. Once the folder takes no more
    files, no new one is begun: each of them has that reason."""

    def __init__(
        self,
        wishes: Sequence[Wish],
        get: Callable[[Wish, Path, OnProgress | None], Awaitable[T]],
        held: Callable[[Sequence[StreamId]], Awaitable[object]],
        *,
        meter: Meter | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        self._wishes = wishes
        self._get = get
        self._held = held
        self._meter = meter
        self._at_once = max(at_once, 1)
        self._done = self._here = self._total = 0  # bytes
        self._ended = self._known = 0  # streams
        self._shares = 0.0  # streams, those that are under way by their share
        self._refused: EntrepotError | None = None  # why the folder takes no more files

    async def results(self) -> AsyncGenerator[tuple[Wish, T | EntrepotError]]:
        """Each wish with what it came to, in the order in which they end. What is no EntrepotError ends all."""
        left = iter(self._wishes)
        ended: asyncio.Queue[tuple[Wish, T | Exception]] = asyncio.Queue(self._at_once)

        async def work() -> None:
            for wish in left:
                try:
                    result: T | Exception = await self._one(wish)
                except Exception as error:  # noqa: BLE001  # raised to whoever takes the results
                    result = error
                await ended.put((wish, result))

        workers = [asyncio.create_task(work()) for _ in range(min(self._at_once, len(self._wishes)))]
        got: list[StreamId] = []
        try:
            for count in range(1, len(self._wishes) + 1):
                wish, result = await ended.get()
                if isinstance(result, Exception) and not isinstance(result, EntrepotError):
                    raise result
                if not isinstance(result, EntrepotError):
                    got.append(wish.meant.stream)
                if len(got) >= _TOLD or (got and count == len(self._wishes)):
                    held, got = got, []
                    await self._held(held)
                yield wish, result
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            if got:
                await self._held(got)

    async def _one(self, wish: Wish) -> T | EntrepotError:
        path = wish.path
        if isinstance(path, EntrepotError):
            return path

        moved = here = total = 0
        share = 0.0

        def moving(report: Progress) -> None:
            nonlocal moved, here, total, share
            if report.kind == "get":
                self._done += report.done - moved
                self._here += report.here - here
                moved, here = report.done, report.here
                if report.total:
                    self._known += total == 0
                    self._total += report.total - total
                    self._shares += moved / report.total - share
                    total, share = report.total, moved / report.total
            self._count(path.name, report.note)

        try:
            if self._refused is not None and not wish.taken:
                return self._refused
            return await self._get(wish, path, None if self._meter is None else moving)
        except EntrepotError as error:
            if "output" in error.data:
                self._refused = error
            return error
        finally:
            self._ended += 1
            self._known += total == 0
            self._total -= total - moved  # of one that failed no more comes
            self._shares += 1 - share
            self._count(path.name, None)

    def _count(self, name: str, note: str | None) -> None:
        if self._meter is not None:
            # By bytes where the length of each is known, else by files.
            total = self._total if self._known == len(self._wishes) else 0
            share = None if total else self._shares / len(self._wishes)
            text = f"{self._ended} of {len(self._wishes)} files, {name}"
            self._meter.count(self._done, total, note, text, self._here, share)
