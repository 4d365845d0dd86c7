"""Offers what this node holds and uploads what it is granted: drives the provider for one session of a daemon.

A stream is offered in the channels it was added to or fetched from and nowhere else: the store is asked for the
channel's scope at every seek, every grant and every announcement.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from entrepot.adapters.bus import Subscription
from entrepot.adapters.metrics import Metrics
from entrepot.adapters.store import Holding, ObjectSource, Store
from entrepot.adapters.transfer import SignedRequest, Transfers, agent
from entrepot.core.errors import Conflict, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot.core.exchange.provider import (
    Effect,
    Prepare,
    Provider,
    SendAccept,
    SendDone,
    SendOffer,
    SendProgress,
    StopUpload,
    Upload,
)
from entrepot.core.identifiers import StreamId
from entrepot.core.messages import (
    MAX_STREAMS,
    Accept,
    AcceptReply,
    Ack,
    Added,
    Done,
    Grant,
    Open,
    OpenReply,
    Seek,
    Signed,
    reason_of,
    transfer_of,
)
from entrepot.services.driver import Driver
from entrepot.services.hubs import JoinedChannel
from entrepot.services.session import Session
from entrepot.services.settings import NodeSettings

_log: Final = logging.getLogger("entrepot.transfer")
_WORKERS: Final = 4
_WAITING: Final = 512  # seeks that wait for a worker
_TRIES: Final = 4
_LAST_GRANTS: Final = 0.2  # seconds after the last grant was handed back in which another may still come
_DECLINED_MOST: Final = 256
_PROGRESS_EVERY: Final = 0.25  # seconds between two counts of sent bytes


@dataclass(frozen=True, slots=True)
class UploadStatus:
    """One upload under way. ``object`` is the object's number, ``sent`` and ``size`` are bytes."""

    channel: str
    stream: StreamId
    object: int
    stage: str
    sent: int
    size: int


@dataclass(slots=True)
class Counts:
    """What was done since the session began."""

    seeks: int = 0
    offers: int = 0
    grants: int = 0
    uploads: int = 0
    uploaded_bytes: int = 0
    failures: int = 0
    dropped: int = 0  # seeks that found too many waiting


@dataclass(slots=True)
class _Job:
    grant: Grant
    channel: JoinedChannel
    source: ObjectSource | None = None
    sent: int = 0
    upload: asyncio.Task[None] | None = None

    def release(self) -> None:
        """It is not to be sent any more."""
        if self.source is not None:
            self.source.release()

    @property
    def transfer(self) -> str | None:
        """The get that this serves first of all, if the hub said."""
        named = transfer_of(self.grant)
        return None if named is None else named.hex()

    def told(self, **more: object) -> dict[str, object]:
        """What a line of the log says of it."""
        grant = self.grant
        fields = {
            "transfer": self.transfer,
            "channel": self.channel.name,
            "stream": grant.stream.hex(),
            "object": grant.number,
            **more,
        }
        return {"fields": fields}


def sampled(seek: Seek, node: str) -> bool:
    """Whether this node (public key text) belongs to the part of the channel that a seek asks."""
    digest = hashlib.sha256(seek.stream + node.encode()).digest()
    return int.from_bytes(digest[:2]) < seek.sample


class Providing:
    """The providing half of ``session``; :meth:`run` it once, cancel it to withdraw. ``metrics`` is told what is
    done."""

    def __init__(
        self,
        session: Session,
        store: Store,
        transfers: Transfers,
        settings: NodeSettings,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self.counts = Counts()
        #: Why the last upload failed.
        self.trouble: EntrepotError | None = None
        self._session = session
        self._store = store
        self._transfers = transfers
        self._settings = settings
        self._machine = Provider(session.id, settings.pace)
        self._jobs: dict[bytes, _Job] = {}
        self._seeks: asyncio.Queue[Seek] = asyncio.Queue(_WAITING)
        self._subscriptions: dict[str, Subscription] = {}
        self._channels_changed = asyncio.Event()
        self._came_up = asyncio.Event()
        self._leaving = False
        self._declined: dict[bytes, asyncio.Task[Ack | None]] = {}

    @property
    def uploads(self) -> tuple[UploadStatus, ...]:
        """What is being uploaded, or about to be."""
        stages = self._machine.stages
        return tuple(
            UploadStatus(
                job.channel.name,
                StreamId(job.grant.stream),
                job.grant.number,
                stages[grant].value,
                job.sent,
                0 if job.source is None else job.source.size,
            )
            for grant, job in self._jobs.items()
            if grant in stages
        )

    async def run(self) -> None:
        """Answers seeks and grants until it is cancelled; then hands back what it was granted."""
        loop = asyncio.get_running_loop()
        self._driver: Driver[Effect] = Driver(self._machine, self._perform, loop.time)
        session = self._session
        session.on_up = self._came_up.set
        session.on_channels = self._channels_changed.set
        self._came_up.set()
        self._channels_changed.set()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await session.on_grant(self._granted)
                await session.on_node_seek(self._sought)
                group.create_task(self._driver.run())
                group.create_task(self._follow_channels())
                group.create_task(self._greet())
                for _ in range(_WORKERS):
                    group.create_task(self._answer_seeks())
                try:
                    await loop.create_future()  # for ever
                finally:
                    self._leaving = True
        finally:
            self._leaving = True
            session.on_up = session.on_channels = None
            await self._withdraw()

    async def added(self, streams: Iterable[StreamId]) -> int:
        """Tell the hub of streams that are held now, in each channel they belong to; returns how many were told.

        What cannot be told now is not lost: the hub is asked what it waits for at every connection.
        """
        told = 0
        asked = list(streams)
        for channel in list(self._session.channels.values()):
            if channel.provides:
                told += await self._announce(channel, asked)
        return told

    # -- what happens -------------------------------------------------------------------------------------------

    def _sought(self, seek: Seek) -> None:
        self.counts.seeks += 1
        self._metrics.sought()
        if self._leaving or not sampled(seek, self._session.node):
            return
        try:
            self._seeks.put_nowait(seek)
        except asyncio.QueueFull:
            self.counts.dropped += 1  # the hub repeats what nobody offers

    def _granted(self, grant: Grant) -> None:
        channel = self._session.of_lock(grant.lock)
        if channel is None:
            return  # of a lock that is not ours any more: the hub passes it on
        if self._leaving:
            self._decline(channel, grant)
            return
        if grant.stop is True:
            self._feed(lambda now: self._machine.granted(grant, now))
            return
        self.counts.grants += 1
        self._metrics.granted()
        job = self._jobs.setdefault(grant.grant, _Job(grant, channel))
        _log.debug("granted", extra=job.told())
        self._feed(lambda now: self._machine.granted(grant, now))

    def _feed(self, event: Callable[[float], list[Effect]]) -> None:
        self._driver.feed(event)
        stages = self._machine.stages
        for grant in [grant for grant in self._jobs if grant not in stages]:
            self._jobs.pop(grant).release()

    async def _answer_seeks(self) -> None:
        while True:
            waiting = [await self._seeks.get()]
            while not self._seeks.empty() and len(waiting) < MAX_STREAMS:
                waiting.append(self._seeks.get_nowait())
            for lock in {seek.lock for seek in waiting}:
                await self._offer(lock, [seek for seek in waiting if seek.lock == lock])

    async def _offer(self, lock: bytes, seeks: Sequence[Seek]) -> None:
        """Offer what is held of what is sought under one lock; it is looked up together."""
        channel = self._session.of_lock(lock)
        if channel is None or not channel.provides:
            return
        sought: dict[StreamId, list[Seek]] = {}
        try:
            for seek in seeks:
                with contextlib.suppress(InvalidInput):  # a hub may say anything
                    sought.setdefault(StreamId(seek.stream), []).append(seek)
            if len(sought) == 1:
                one = await self._store.holds(next(iter(sought)), channel.scope, channel.lock)
                held = [] if one is None else [one]
            else:
                held = await self._store.held(list(sought), channel.scope, channel.lock)
        except EntrepotError as error:
            self.trouble = error
            return
        for holding in held:
            for seek in sought[holding.stream]:
                self._sought_and_held(seek, holding)

    def _sought_and_held(self, seek: Seek, holding: Holding) -> None:
        self._feed(lambda now: self._machine.sought(seek, holding.opening, holding.objects, now))

    # -- what to do ---------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendOffer(hub, offer):
                channel = self._session.of_lock(offer.lock)
                if channel is not None:
                    self.counts.offers += 1
                    self._metrics.offered()
                    self._session.offer(channel.name, hub, offer)
            case Prepare(grant):
                self._spawn(self._prepare(grant))
            case SendAccept(accept):
                self._spawn(self._accept(accept))
            case Upload(grant, put):
                job = self._jobs.get(grant.grant)
                if job is not None:
                    job.upload = self._spawn(self._upload(job, put))
            case StopUpload(grant_id):
                job = self._jobs.get(grant_id)
                if job is not None and job.upload is not None:
                    job.upload.cancel()
            case SendProgress(progress):
                job = self._jobs.get(progress.grant)
                if job is not None:
                    self._session.tell(job.channel.name, "progress", progress)
            case SendDone(done):
                channel = self._channel_of(done)
                if channel is not None:
                    self._spawn(self._report(channel, done))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self._group.create_task(work)

    def _channel_of(self, done: Done) -> JoinedChannel | None:
        job = self._jobs.get(done.grant)
        return self._session.of_lock(done.lock) if job is None else job.channel

    async def _prepare(self, grant: Grant) -> None:
        job = self._jobs.get(grant.grant)
        if job is None:
            return
        channel = job.channel
        try:
            stream = StreamId(grant.stream)  # a hub may say anything
            found = await self._store.served(stream, channel.scope, channel.lock, grant.number, grant.digest)
            if found is None:
                raise await self._lacking(stream, channel)
            job.source = source = found
        except EntrepotError as error:
            self._fail(error, job)
            reason = error
            self._feed(lambda now: self._machine.unprepared(grant.grant, reason, now))
        else:
            length = None if channel.lock.codec == "none" else source.size
            self._feed(
                lambda now: self._machine.prepared(grant.grant, source.header, source.digest, now, length=length)
            )
            if self._jobs.get(grant.grant) is not job:
                job.release()  # it was given up meanwhile

    async def _lacking(self, stream: StreamId, channel: JoinedChannel) -> EntrepotError:
        """Why nothing of the stream is held (any more); it is told to whoever waits for it."""
        with contextlib.suppress(EntrepotError):
            entry = await self._store.entry(stream)
            if entry.stale and channel.scope in entry.scopes:
                return Conflict(
                    f"{entry.name} was changed or removed at its holder since it was added",
                    kind="changed",
                    hint="Its new content has another stream id: ask for a new URI.",
                )
        return NotFound("the holder does not hold this object in this channel", kind="no-such-object")

    async def _accept(self, accept: Accept) -> None:
        job = self._jobs.get(accept.grant)
        if job is None:
            return
        try:
            reply = await self._session.request(job.channel.name, "accept", accept, AcceptReply)
        except EntrepotError as error:
            reason = error
            self._feed(lambda now: self._machine.accept_unanswered(accept.grant, reason, now))
            return
        if reply.error is not None and reply.error.kind == "stale-lock":
            self._session.refresh_soon()
        self._feed(lambda now: self._machine.accepted(accept.grant, reply, now))

    async def _upload(self, job: _Job, put: Signed) -> None:
        source, grant = job.source, job.grant.grant
        assert source is not None
        error: EntrepotError | None = None
        try:
            outcome = await self._transfers.put(
                SignedRequest(put.method, put.url, put.headers, agent(job.transfer)),
                source,
                progress=_Sending(self, grant),
                sent=self._store.confirm_from_thread,
            )
            if outcome.exists:
                error = Conflict("the bucket already has an object at this key", kind="exists", status=outcome.status)
            else:
                self.counts.uploads += 1
                self.counts.uploaded_bytes += source.size
                _log.debug("uploaded", extra=job.told(bytes=source.size))
        except EntrepotError as failure:
            error = failure
            self._fail(failure, job)
        finally:
            job.release()
        reason = error
        self._feed(lambda now: self._machine.uploaded(grant, reason, now))

    def sent(self, grant: bytes, count: int) -> None:
        """So many bytes of a granted object went out."""
        job = self._jobs.get(grant)
        if job is not None:
            job.sent = count
            self._feed(lambda now: self._machine.sent(grant, count, now))

    async def _report(self, channel: JoinedChannel, done: Done) -> None:
        try:
            ack = await self._session.request(channel.name, "done", done, Ack)
        except EntrepotError:
            self._feed(lambda now: self._machine.done_unanswered(done.grant, now))
        else:
            self._feed(lambda now: self._machine.done_answered(done.grant, ack, now))

    def _fail(self, error: EntrepotError, job: _Job) -> None:
        self.counts.failures += 1
        self._metrics.failed(error.kind)
        _log.info("upload failed: %s", error.message, extra=job.told(kind=error.kind))
        self.trouble = error

    # -- what the hub should know -------------------------------------------------------------------------------

    async def _greet(self) -> None:
        """After every connection: which streams does somebody wait for?"""
        while True:
            await self._came_up.wait()
            self._came_up.clear()
            try:
                await self._session.ready()
                for channel in list(self._session.channels.values()):
                    if channel.provides:
                        await self._serve_waiting(channel)
            except EntrepotError as error:
                self.trouble = error  # the next connection asks again; seeks find us meanwhile

    async def _serve_waiting(self, channel: JoinedChannel) -> None:
        cursor: int | None = 0
        while cursor is not None:
            question = Open(lock=channel.lock.id, session=self._session.id, cursor=cursor)
            reply = await self._persist(
                lambda question=question: self._session.request(channel.name, "open", question, OpenReply)  # type: ignore[misc]
            )
            if reply.error is not None:
                if reply.error.kind == "stale-lock":
                    self._session.refresh_soon()
                raise reply.error.error()
            await self._announce(channel, [StreamId(raw) for raw in reply.streams])
            if reply.cursor is not None and reply.cursor <= cursor:
                raise RetryLater("the hub's pages of waiting streams do not end")
            cursor = reply.cursor

    async def _announce(self, channel: JoinedChannel, streams: Iterable[StreamId]) -> int:
        held: list[tuple[bytes, bytes]] = []
        asked = list(streams)
        for at in range(0, len(asked), MAX_STREAMS):
            try:
                found = await self._store.held(asked[at : at + MAX_STREAMS], channel.scope, channel.lock)
            except EntrepotError as error:
                self.trouble = error
                continue
            held += [(holding.stream.raw, holding.opening.encode()) for holding in found]
        for at in range(0, len(held), MAX_STREAMS):
            message = Added(lock=channel.lock.id, session=self._session.id, streams=tuple(held[at : at + MAX_STREAMS]))
            ack = await self._persist(
                lambda message=message: self._session.request(channel.name, "added", message, Ack)  # type: ignore[misc]
            )
            if ack.error is not None:
                raise ack.error.error()
        return len(held)

    async def _persist[A](self, ask: Callable[[], Coroutine[None, None, A]]) -> A:
        """A few tries, while the trouble may pass."""
        for attempt in range(_TRIES):
            try:
                return await ask()
            except RetryLater:
                if attempt == _TRIES - 1:
                    raise
            await asyncio.sleep(0.25 * 2.0**attempt)
        raise AssertionError

    async def _follow_channels(self) -> None:
        """Hear the seeks of every channel in which this node may provide."""
        while True:
            await self._channels_changed.wait()
            self._channels_changed.clear()
            wanted = {channel.name for channel in self._session.channels.values() if channel.provides}
            for name in set(self._subscriptions) - wanted:
                await self._subscriptions.pop(name).unsubscribe()
            refused = False
            for name in wanted - set(self._subscriptions):
                try:
                    self._subscriptions[name] = await self._session.on_channel_seek(name, self._sought)
                except EntrepotError as error:
                    refused = True  # the connection may be older than the right
                    self.trouble = error
            if refused:
                await asyncio.sleep(1.0)
                self._channels_changed.set()

    async def _withdraw(self) -> None:
        """Hand back every grant, and those that were on their way, for a short time."""
        effects = self._machine.withdraw(asyncio.get_running_loop().time())
        for effect in effects:
            if isinstance(effect, SendDone) and (channel := self._channel_of(effect.done)) is not None:
                self._hand_back(channel, effect.done)
        for job in self._jobs.values():
            job.release()
        self._jobs.clear()
        if not self._declined or not self._session.connected:
            return
        try:
            async with asyncio.timeout(self._settings.daemon.withdrawal):
                while tasks := [task for task in self._declined.values() if not task.done()]:
                    await asyncio.wait(tasks)
                    await asyncio.sleep(_LAST_GRANTS)
        except TimeoutError:
            pass  # the leases lapse by themselves
        finally:
            for task in self._declined.values():
                task.cancel()

    def _decline(self, channel: JoinedChannel, grant: Grant) -> None:
        leaving = RetryLater("the provider is leaving", kind="cancelled")
        self._hand_back(channel, Done(lock=grant.lock, grant=grant.grant, error=reason_of(leaving)))

    def _hand_back(self, channel: JoinedChannel, done: Done) -> None:
        if done.grant not in self._declined and len(self._declined) < _DECLINED_MOST:
            self._declined[done.grant] = asyncio.create_task(self._ask_back(channel, done))

    async def _ask_back(self, channel: JoinedChannel, done: Done) -> Ack | None:
        with contextlib.suppress(EntrepotError):
            return await self._session.request(channel.name, "done", done, Ack)
        return None


class _Sending:
    """Told of sent bytes in a worker thread; passes them on to the event loop now and then."""

    def __init__(self, providing: Providing, grant: bytes) -> None:
        self._providing = providing
        self._grant = grant
        self._loop = asyncio.get_running_loop()
        self._told_at = self._loop.time()  # what is sent sooner than that is told by its end

    def __call__(self, count: int) -> None:
        now = self._loop.time()
        if now < self._told_at + _PROGRESS_EVERY:
            return
        self._told_at = now
        self._loop.call_soon_threadsafe(self._providing.sent, self._grant, count)
