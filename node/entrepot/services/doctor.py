"""The doctor: tries everything that a node needs, from its disk to its hubs' buckets, and says what mends it.

Nothing is changed: a node that never joined is left without a key.
"""

from __future__ import annotations

import asyncio
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from entrepot.adapters.hub_client import HubClient
from entrepot.adapters.store import Store
from entrepot.adapters.transfer import SignedRequest, Transfers
from entrepot.core.errors import Denied, EntrepotError, NotFound, RetryLater
from entrepot.core.signing import WINDOW
from entrepot.core.units import format_duration, format_size
from entrepot.services.daemon_client import DaemonClient
from entrepot.services.hubs import Hubs, JoinedChannel, JoinedHub
from entrepot.services.keychain import Keychain
from entrepot.services.session import Session
from entrepot.services.settings import NodeSettings

#: From best to worst.
type Outcome = Literal["ok", "note", "warning", "failure"]

#: Bytes free on the disk below which that is worth a warning.
LOW: Final = 1 << 30
_PATIENCE: Final = 15.0  # seconds for one look
_FILES: Final = 8.0  # seconds in which the store's files are looked at
_SKEW: Final = 5.0  # seconds that a clock may be off without a word


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: its ``name``, how it is, a sentence, what mends it, and for a failure the error."""

    name: str
    outcome: Outcome
    text: str
    mend: str | None = None
    error: EntrepotError | None = None


class Doctor:
    """One examination of the node that lives at ``settings.home``."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._hubs = Hubs(settings.hubs_file)
        self._keys = Keychain(settings.seed_file)

    async def examine(self) -> AsyncIterator[Check]:
        """Look at one thing after another. Raises nothing of ours: what fails is a check."""
        for check in await asyncio.to_thread(_look_at_home, self._settings):
            yield check
        yield await self._tried("store", self._store())
        yield await self._daemon()
        try:
            hubs = await self._hubs.list()
        except EntrepotError as error:
            yield _failed("hubs", error)
            return
        if not hubs:
            yield Check("hubs", "note", "no hub was joined", "Ask somebody for an invite: entrepot join URL")
        for hub in hubs:
            async for check in self._hub(hub):
                yield check

    # -- here ---------------------------------------------------------------------------------------------------

    async def _store(self) -> Check:
        if not await asyncio.to_thread(self._settings.store_folder.exists):
            return Check("store", "note", "empty: nothing was added or fetched yet")
        async with Store(self._settings.store_folder, self._settings.store) as store:
            size = await store.size()
            stale: dict[str, None] = {}
            loop = asyncio.get_running_loop()
            after: int | None = 0
            until = loop.time() + _FILES
            while after is not None and loop.time() < until:
                found, after = await store.altered(after)
                stale |= dict.fromkeys(found)
        text = f"{size.streams:,} streams, {format_size(size.stored)} stored and {format_size(size.linked)} linked"
        if after is not None:
            text += "; too many to look at each file"
        if stale:
            some = ", ".join(list(stale)[:3]) + (" …" if len(stale) > 3 else "")
            mend = "Add them again, put the files back, or let go of them: entrepot rm."
            return Check("store", "warning", f"{text}; changed or gone and not served: {some}", mend)
        return Check("store", "ok", text)

    async def _daemon(self) -> Check:
        try:
            status = await DaemonClient(self._settings).status()
        except (NotFound, RetryLater):
            return Check("daemon", "note", "none runs: nothing is offered to others", "Start one: entrepot up")
        except EntrepotError as error:
            return _failed("daemon", error)
        down = [
            f"{hub.host}{f' ({hub.reason.message})' if hub.reason else ''}" for hub in status.hubs if hub.state != "up"
        ]
        if down:
            reason = f"runs (pid {status.pid}), not connected to {', '.join(down)}"
            mend = "It goes on trying by itself; the lines below say how each hub is now."
            return Check("daemon", "warning", reason, mend)
        return Check("daemon", "ok", f"runs (pid {status.pid}), offers {status.streams:,} streams")

    # -- there --------------------------------------------------------------------------------------------------

    async def _hub(self, hub: JoinedHub) -> AsyncIterator[Check]:
        name, loop = hub.host, asyncio.get_running_loop()
        try:
            key = await self._keys.hub_key(hub.public)
            async with HubClient(hub.url, key, hub.public, self._settings.hub_settings(hub.url)) as client:
                began = loop.time()
                async with asyncio.timeout(_PATIENCE):
                    told = await client.hub()
                took = loop.time() - began
                yield Check(f"{name} hub", "ok", f"answers in {1000 * took:.0f} ms, version {told.version}")
                yield _clock(name, client.clock_offset)
        except TimeoutError:
            yield _failed(f"{name} hub", _silent("the hub", "hub-unreachable"))
            return
        except EntrepotError as error:
            yield _failed(f"{name} hub", error)
            return
        async with AsyncExitStack() as stack:
            session = Session(hub, key, self._settings, kind="command")
            entered = await self._tried(f"{name} rights", self._enter(stack, session))
            yield entered
            if entered.error is not None:
                yield Check(f"{name} bus", "note", "not tried, nor any bucket: the hub has to let this node in first")
                return
            bus = await self._tried(f"{name} bus", self._bus(session))
            yield bus
            transfers = await stack.enter_async_context(Transfers(self._settings.transfer_settings()))
            for channel in session.channels.values():
                if channel.reads or channel.provides:
                    yield await self._tried(f"{name} {channel.name} bucket", self._bucket(session, transfers, channel))

    async def _enter(self, stack: AsyncExitStack, session: Session) -> Check:
        await stack.enter_async_context(session)
        name, channels = f"{session.hub.host} rights", session.channels.values()
        if not channels:
            text, mend = "none: this node is in no channel there", "Ask an owner for an invite, or for the rights back."
            return Check(name, "failure", text, mend, Denied(f"{name}: {text}", kind="no-right", hint=mend))
        return Check(name, "ok", "; ".join(f"{channel.name}: {channel.rights or 'none'}" for channel in channels))

    async def _bus(self, session: Session) -> Check:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await session.ready(_PATIENCE)
        return Check(f"{session.hub.host} bus", "ok", f"connected in {1000 * (loop.time() - began):.0f} ms")

    async def _bucket(self, session: Session, transfers: Transfers, channel: JoinedChannel) -> Check:
        loop = asyncio.get_running_loop()
        trial = await session.client.read_trial(channel.name)
        name, began = f"{session.hub.host} {channel.name} bucket", loop.time()
        try:
            await transfers.reach(SignedRequest("GET", trial.url, trial.headers))
        except EntrepotError as error:
            mend = error.hint or f"The hub's operator can look closer: entrepot-hub channel doctor {channel.name}"
            return Check(name, "failure", f"{error.message} (asked: {urlsplit(trial.url).netloc})", mend, error)
        return Check(name, "ok", f"reached in {1000 * (loop.time() - began):.0f} ms")

    async def _tried(self, name: str, look: Awaitable[Check]) -> Check:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await look
        except TimeoutError:
            return _failed(name, _silent("it", "deadline"))
        except EntrepotError as error:
            return _failed(name, error)


def _look_at_home(settings: NodeSettings) -> list[Check]:
    home, seed = settings.home, settings.seed_file
    found: list[Check] = []
    try:
        mode = home.stat().st_mode
    except FileNotFoundError:
        found.append(Check("home", "note", f"{home} does not exist yet: it is made when it is needed"))
    except OSError as error:
        mend = "Is it yours, and is the disk there?"
        found.append(Check("home", "failure", f"{home} cannot be looked at: {error.strerror}", mend, _unreadable(home)))
    else:
        open_to = stat.S_IMODE(mode) & 0o022
        mend = f"Run: chmod go-w {home}"
        found.append(
            Check("home", "warning", f"{home} can be changed by others", mend)
            if open_to
            else Check("home", "ok", str(home))
        )
    with suppress(OSError):
        if stat.S_IMODE(seed.stat().st_mode) & 0o077:
            found.append(
                Check("key", "failure", f"{seed} can be read by others", f"Run: chmod 600 {seed}", _open_seed())
            )
        else:
            found.append(Check("key", "ok", "only yours"))
    found.append(_disk(home, settings.store.reserve))
    return found


def _disk(home: Path, reserve: int) -> Check:
    """``reserve``: bytes that the store leaves free: with fewer, nothing can be fetched."""
    place = home
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        return Check("disk", "warning", f"cannot be looked at: {error.strerror}")
    text = f"{format_size(usage.free)} of {format_size(usage.total)} free"
    mend = "Free some space, or move the home to a larger disk."
    if usage.free < reserve:
        text += f": nothing can be fetched, for {format_size(reserve)} are kept free"
        return Check("disk", "failure", text, mend, RetryLater(f"no room: {text}", kind="disk-full", hint=mend))
    if usage.free < LOW:
        return Check("disk", "warning", text, mend)
    return Check("disk", "ok", text)


def _clock(name: str, offset: float | None) -> Check:
    if offset is None:
        return Check(f"{name} clock", "note", "the hub does not say what time it is")
    # The hub tells whole seconds.
    off, way = abs(offset), "behind" if offset > 0 else "ahead of"
    text = f"{format_duration(off)} {way} the hub's" if off >= 2 else "as the hub's"
    mend = "Set this machine's clock (for example, install chrony): "
    if off > WINDOW:
        mend += "what it signs is refused."
        error = Denied(f"this machine's clock is {text}", kind="clock-skew", hint=mend)
        return Check(f"{name} clock", "failure", text, mend, error)
    mend += f"beyond {format_duration(WINDOW)} what it signs is refused."
    return Check(f"{name} clock", "warning" if off > _SKEW else "ok", text, mend if off > _SKEW else None)


def _failed(name: str, error: EntrepotError) -> Check:
    return Check(name, "failure", error.message, error.hint, error)


def _silent(who: str, kind: str) -> RetryLater:
    return RetryLater(f"{who} did not answer within {_PATIENCE:g} s", kind=kind)


def _unreadable(path: Path) -> EntrepotError:
    return Denied(f"{path} cannot be read", path=str(path))


def _open_seed() -> EntrepotError:
    return Denied("the node's key can be read by others: whoever has it is this node")
