"""The daemon: offers what the node holds at every hub that was joined, and tells how it goes.

One daemon serves one store. Whoever has a socket bound at ``daemon.sock`` that answers is it; no lock file is needed,
and a socket left over from a kill does not answer and is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from entrepot.adapters.files import make_folder, translated
from entrepot.adapters.metrics import NodeMetrics
from entrepot.adapters.store import Store
from entrepot.adapters.transfer import Transfers
from entrepot.core.errors import Conflict, Denied, EntrepotError, Internal, InvalidInput, RetryLater, to_wire
from entrepot.core.identifiers import StreamId
from entrepot.services.control import (
    MAX_BODY,
    MAX_UPLOADS,
    AddedRequest,
    DaemonStatus,
    Done,
    HubView,
    UploadView,
    fault_of,
    status_of,
)
from entrepot.services.hubs import Hubs, JoinedHub
from entrepot.services.keychain import Keychain
from entrepot.services.observation import MetricsAddress, Observation, Seen
from entrepot.services.providing import Providing
from entrepot.services.session import Session
from entrepot.services.settings import NodeSettings

_log: Final = logging.getLogger("entrepot.daemon")
_MAX_SOCKET_PATH: Final = 100  # bytes; the system's limit is 104 to 108

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class _Hub:
    """One hub and the task that stays with it."""

    hub: JoinedHub
    state: str = "connecting"
    since: float = field(default_factory=time.time)
    reason: EntrepotError | None = None
    session: Session | None = None
    providing: Providing | None = None
    task: asyncio.Task[None] | None = None
    poke: asyncio.Event = field(default_factory=asyncio.Event)

    def stands(self, state: str, reason: EntrepotError | None = None) -> None:
        if (state, None if reason is None else reason.kind) != (
            self.state,
            None if self.reason is None else self.reason.kind,
        ):
            self.since = time.time()
            _log.info("%s is %s%s", self.hub.host, state, "" if reason is None else f": {reason}")
        self.state, self.reason = state, reason


class Daemon:
    """:meth:`run` it once. Raises ``in-use`` if another one serves the store. ``metrics_at``: where its metrics are
    served besides its socket."""

    def __init__(self, settings: NodeSettings, *, metrics_at: MetricsAddress | None = None) -> None:
        self.instance = secrets.token_hex(8)
        self.metrics = NodeMetrics(self.instance)
        #: The port of ``metrics_at``, once it runs.
        self.metrics_port: int | None = None
        self._metrics_at = metrics_at
        self._observation = Observation(self.metrics, self._seen)
        self._settings = settings
        self._hubs = Hubs(settings.hubs_file)
        self._keys = Keychain(settings.seed_file)
        self._store = Store(settings.store_folder, settings.store)
        self._transfers = Transfers(settings.transfer_settings(), self.metrics)
        self._members: dict[str, _Hub] = {}
        self._started = time.time()
        self._version = ""
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Have it withdraw its grants and end. From the event loop's thread."""
        self._stop.set()

    async def run(self, *, ready: Callable[[], None] | None = None, signals: bool = True) -> None:
        """Serves until :meth:`stop`, SIGTERM or SIGINT. ``ready`` is called once the socket answers."""
        self._version = await asyncio.to_thread(version, "entrepot")
        async with contextlib.AsyncExitStack() as stack:
            bound = await asyncio.to_thread(_bind, self._settings.socket)
            stack.push_async_callback(asyncio.to_thread, _unbind, bound, self._settings.socket)
            await stack.enter_async_context(self._store)
            await stack.enter_async_context(self._transfers)
            await stack.enter_async_context(self._serving(bound))
            self.metrics_port = await stack.enter_async_context(self._observation.serving(self._metrics_at))
            if signals:
                stack.enter_context(self._signals())
            async with asyncio.TaskGroup() as group:
                self._group = group
                watch = group.create_task(self._watch(bound))
                beat = group.create_task(self._observation.watch())
                await self._follow_hubs()
                if ready is not None:
                    ready()
                await self._stop.wait()
                _log.info("stopping")
                watch.cancel()
                beat.cancel()
                for member in self._members.values():
                    if member.task is not None:
                        member.task.cancel()

    @contextlib.contextmanager
    def _signals(self):  # type: ignore[no-untyped-def]  # a generator of nothing
        loop = asyncio.get_running_loop()
        caught = []
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
                caught.append(number)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    # -- hubs ---------------------------------------------------------------------------------------------------

    async def _follow_hubs(self) -> None:
        """Stay with every hub in ``hubs.json``; those already known refresh their channels."""
        for hub in await self._hubs.list():
            member = self._members.get(hub.public)
            if member is None:
                member = self._members[hub.public] = _Hub(hub)
                member.task = self._group.create_task(self._stay(member))
            else:
                member.hub = hub
                member.poke.set()
                if member.session is not None:
                    member.session.refresh_soon(at_once=True)

    async def _stay(self, member: _Hub) -> None:
        """A session with the hub, again and again; one hub's trouble is no other's."""
        settings = self._settings.daemon
        pause = settings.retry_first
        while True:
            began = time.monotonic()
            try:
                await self._be_there(member)
            except EntrepotError as error:
                member.stands("denied" if isinstance(error, Denied) else "unreachable", error)
            finally:
                member.session = member.providing = None
            if time.monotonic() - began > settings.retry_longest:
                pause = settings.retry_first
            member.poke.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(pause / 2, pause)):  # noqa: S311  # spreads, hides nothing
                    await member.poke.wait()
            pause = min(pause * 2.0, settings.retry_longest)

    async def _be_there(self, member: _Hub) -> None:
        key = await self._keys.hub_key(member.hub.public)
        async with Session(member.hub, key, self._settings, kind="daemon", hubs=self._hubs) as session:
            providing = Providing(session, self._store, self._transfers, self._settings, self.metrics)
            member.session, member.providing = session, providing
            serving = asyncio.create_task(providing.run())
            over = asyncio.create_task(self._until_over(member, session))
            try:
                await asyncio.wait([serving, over], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (serving, over):
                    task.cancel()
                await asyncio.wait([serving, over])
            if not serving.cancelled():
                _reraise(serving)
            raise over.result()

    async def _until_over(self, member: _Hub, session: Session) -> EntrepotError:
        """Return the reason why the session has to be set up anew."""
        loop = asyncio.get_running_loop()
        ended = asyncio.ensure_future(session.ended())
        try:
            down_since: float | None = loop.time()
            while True:
                if session.connected:
                    down_since = None
                    member.stands("up")
                else:
                    down_since = loop.time() if down_since is None else down_since
                    member.stands("down" if member.state in {"up", "down"} else "connecting", session.reason)
                    if loop.time() - down_since > self._settings.daemon.rebuild_after:
                        return session.reason or RetryLater("the bus does not come up", kind="bus-unreachable")
                member.hub = session.hub
                done, _ = await asyncio.wait([ended], timeout=0.25)
                if done:
                    return ended.result()
        finally:
            ended.cancel()

    async def _watch(self, bound: _Bound) -> None:
        """End if another daemon took the socket's place: it saw ours not answering."""
        while True:
            await asyncio.sleep(self._settings.daemon.watch)
            if not await asyncio.to_thread(bound.is_at, self._settings.socket):
                _log.error("another daemon serves this store now")
                self.stop()

    # -- the local API ------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _serving(self, bound: _Bound):  # type: ignore[no-untyped-def]  # as above
        app = web.Application(middlewares=[_answer_errors], client_max_size=MAX_BODY)
        app.router.add_routes(
            [
                web.get("/v1/status", self._get_status),
                web.post("/v1/added", self._post_added),
                web.post("/v1/hubs", self._post_hubs),
                web.post("/v1/stop", self._post_stop),
                *self._observation.routes(),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.SockSite(runner, bound.socket).start()
            yield
        finally:
            await runner.cleanup()

    async def status(self) -> DaemonStatus:
        """How it goes."""
        size = await self._store.size()
        return DaemonStatus(
            pid=os.getpid(),
            instance=self.instance,
            version=self._version,
            started=self._started,
            home=str(self._settings.home),
            hubs=tuple(_view(member) for member in self._members.values()),
            streams=size.streams,
            stored_bytes=size.stored,
            linked_bytes=size.linked,
            bwlimit=str(self._settings.bandwidth),
        )

    async def _seen(self) -> Seen:
        sessions = [member.session for member in self._members.values() if member.session is not None]
        providing = {member.hub.public: member.providing for member in self._members.values()}
        return Seen(
            await self.status(),
            {session.id: session.bus.stats for session in sessions if session.opened},
            {f"{hub} {id(one)}": one.counts.dropped for hub, one in providing.items() if one is not None},
        )

    async def _get_status(self, _request: web.Request) -> web.StreamResponse:
        return _json(await self.status())

    async def _post_added(self, request: web.Request) -> web.StreamResponse:
        added = await _body(request, AddedRequest)
        streams = [StreamId.parse(stream) for stream in added.streams]
        told = 0
        trouble: EntrepotError | None = None
        for member in list(self._members.values()):
            if member.providing is None or member.state != "up":
                continue  # it asks what is waited for when it comes up
            try:
                told += await member.providing.added(streams)
            except EntrepotError as error:
                trouble = error
        if trouble is not None and not told:
            raise trouble
        return _json(Done(told=told))

    async def _post_hubs(self, _request: web.Request) -> web.StreamResponse:
        await self._follow_hubs()
        return _json(Done())

    async def _post_stop(self, _request: web.Request) -> web.StreamResponse:
        asyncio.get_running_loop().call_later(0.05, self.stop)  # after the answer
        return _json(Done())


def _view(member: _Hub) -> HubView:
    providing, session = member.providing, member.session
    channels = member.hub.channels if session is None else tuple(session.channels.values())
    view = HubView(
        host=member.hub.host,
        url=member.hub.url,
        name=member.hub.name,
        node=member.hub.node,
        state=member.state,
        since=member.since,
        reason=fault_of(member.reason),
        channels=tuple(channel.name for channel in channels),
        offered_channels=tuple(channel.name for channel in channels if channel.provides),
        uploads=(),
    )
    if providing is None:
        return view
    counts = providing.counts
    return msgspec.structs.replace(
        view,
        uploads=tuple(
            UploadView(
                channel=upload.channel,
                stream=upload.stream.hex,
                object=upload.object,
                stage=upload.stage,
                sent=upload.sent,
                size=upload.size,
            )
            for upload in providing.uploads[:MAX_UPLOADS]
        ),
        seeks=counts.seeks,
        offers=counts.offers,
        grants=counts.grants,
        uploaded_objects=counts.uploads,
        uploaded_bytes=counts.uploaded_bytes,
        failures=counts.failures,
        last_failure=fault_of(providing.trouble),
    )


def _reraise(task: asyncio.Task[None]) -> None:
    """Raise what ended the task: one of our errors as it is, out of whatever groups."""
    error: BaseException | None = task.exception()
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if error is not None:
        raise error


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong is answered as our error JSON."""
    try:
        return await handler(request)
    except EntrepotError as error:
        return _refused(error, status_of(error))
    except web.HTTPException as error:
        known = InvalidInput(f"the daemon has no {request.method} {request.path}"[:300], kind="unsupported")
        return _refused(known, error.status)
    except Exception as error:  # noqa: BLE001  # nothing may escape to the client as HTML; the log has it all
        _log.exception("a request failed")
        return _refused(Internal(f"the daemon failed: {type(error).__name__}"), 500)


def _refused(error: EntrepotError, status: int) -> web.Response:
    return web.Response(
        body=msgspec.json.encode({"error": to_wire(error)}), status=status, content_type="application/json"
    )


def _json(value: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def _body[T](request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the request is not understood: {str(error)[:300]}", kind="invalid-message") from None


@dataclass(frozen=True, slots=True)
class _Bound:
    """The daemon's socket, listening; ``inode`` tells its file from another's."""

    socket: socket.socket
    inode: int

    def is_at(self, path: Path) -> bool:
        """Whether the path is still this socket's."""
        try:
            return path.lstat().st_ino == self.inode
        except OSError:
            return False


def _bind(path: Path) -> _Bound:
    """A listening socket at ``path`` (0600). Raises ``in-use`` if somebody listens there; blocks."""
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise InvalidInput(
            f"{path} is too long for a socket",
            kind="invalid-setting",
            hint="Choose a home with a shorter path.",
            path=str(path),
        )
    make_folder(path.parent)
    with translated(path):
        if _answers(path):
            raise Conflict("a daemon serves this store already", kind="in-use", path=str(path))
        # Listening before it has its name: whoever finds the name finds somebody who listens.
        own = path.with_name(f".{secrets.token_hex(4)}.sock")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(own))
            own.chmod(0o600)
            listening.listen(64)
            listening.setblocking(False)
            inode = own.lstat().st_ino
            try:
                os.link(own, path)
            except FileExistsError:
                if _answers(path):
                    raise Conflict("a daemon serves this store already", kind="in-use", path=str(path)) from None
                os.rename(own, path)  # left over from a kill
        except BaseException:
            listening.close()
            raise
        finally:
            own.unlink(missing_ok=True)
    return _Bound(listening, inode)


def _answers(path: Path) -> bool:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(2.0)
    try:
        probe.connect(str(path))
    except OSError:
        return False
    finally:
        probe.close()
    return True


def _unbind(bound: _Bound, path: Path) -> None:
    if bound.is_at(path):
        path.unlink(missing_ok=True)
    bound.socket.close()
