"""Gets one stream, or parts of it, into the store: drives the requester with the hub, the bucket and the disk."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass

from entrepot.adapters.store import Fetch as StoreFetch
from entrepot.adapters.store import SmallFetch, Store, is_small
from entrepot.adapters.transfer import SignedRequest, Transfers, agent
from entrepot.core.errors import Conflict, Denied, EntrepotError
from entrepot.core.exchange.requester import (
    Ask,
    Effect,
    Fail,
    Fetch,
    Finish,
    Learned,
    Requester,
    StopFetch,
    Tell,
)
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.messages import Got, ObjectState, Signed, State, Want, WantReply
from entrepot.core.ranges import Pair, of_numbers
from entrepot.services.downloads import Downloads
from entrepot.services.driver import Driver
from entrepot.services.hubs import JoinedChannel
from entrepot.services.progress import Meter, OnProgress
from entrepot.services.session import Session
from entrepot.services.settings import NodeSettings

_log = logging.getLogger("entrepot.transfer")
#: Offset and length of plain bytes in the stream.
type Span = tuple[int, int]

_TELL_EVERY = 0.1  # seconds between two reports of verified bytes to the machine
#: Reasons that are not about the objects: the hub does not answer.
_HUB_AWAY = frozenset({"hub-unreachable", "bus-unreachable"})


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a get brought. ``fetched_bytes`` of the stream came through the bucket now, ``from_bucket_bytes`` of them
    lay there already when they were asked for: plain bytes, whatever the codec made of them. ``complete``: the whole
    stream is held now. ``scope``: what the store calls its channel. ``transfer``: see :attr:`Getter.transfer`.
    ``small``: the stream itself, where it came into memory and nothing of it is in the store.
    """

    opening: Opening
    fetched_bytes: int
    from_bucket_bytes: int
    objects: int
    complete: bool
    transfer: str
    scope: str
    small: SmallFetch | None = None


class Getter:
    """One get of one stream in one channel; :meth:`run` it once.

    ``spans``: only the miniblocks that hold these bytes (none: only the opening is learned); None: the whole stream.
    ``fetch``: an open fetch of the stream to go on with, which stays open; without one the getter has its own.
    ``keep``: the want outlives this process until its deadline. ``whole``: nothing of the stream is in the store.
    ``memory``: then a small one comes into memory, for whoever called to place it.
    ``on_object`` is told each object that is here, ``on_url`` each signed URL.
    """

    def __init__(
        self,
        session: Session,
        channel: JoinedChannel,
        stream: StreamId,
        store: Store,
        transfers: Transfers,
        settings: NodeSettings,
        *,
        spans: Sequence[Span] | None = None,
        opening: Opening | None = None,
        fetch: StoreFetch | None = None,
        name: str = "",
        in_order: bool = False,
        keep: bool = False,
        whole: bool = False,
        memory: bool = False,
        deadline: float | None = None,
        progress: OnProgress | None = None,
        on_object: Callable[[int], None] | None = None,
        on_url: Callable[[int, Signed], None] | None = None,
    ) -> None:
        self._session = session
        self._channel = channel
        self._stream = stream
        self._store = store
        self._transfers = transfers
        self._settings = settings
        self._spans = spans
        self._fetch: StoreFetch | SmallFetch | None = fetch
        self._memory = memory and whole and spans is None
        self._borrowed = fetch is not None
        self._name = name
        self._keep = keep
        self._deadline = settings.exchange.want_deadline if deadline is None else deadline
        self._progress = progress
        self._on_object = on_object
        self._on_url = on_url
        self._machine = Requester(
            stream,
            channel.lock.id,
            session.id,
            settings.pace,
            opening=opening if fetch is None else fetch.opening,
            in_order=in_order,
            keep=keep,
            whole=whole and spans is None,
            deadline=self._deadline,
            transfer=secrets.token_bytes(8),
        )
        self._bucket = Downloads(transfers, self._machine.concurrency, lambda: _Moving(self, self._loop))
        self._downloads: dict[int, asyncio.Task[None]] = {}
        self._got: set[int] = set()  # objects that came and were told so
        self._awaited: set[int] = set()  # objects that were seen not to be in the bucket
        self._fetched_bytes = self._from_bucket_bytes = self._objects = 0
        self._before = 0 if fetch is None else fetch.verified_bytes  # here before anything came

    @property
    def transfer(self) -> str:
        """What this get is called in the logs of everybody who takes part: 16 hexadecimal digits."""
        return (self._machine.transfer or b"").hex()

    async def run(self) -> Fetched:
        """Returns when all that was asked for is verified and in the store.

        Raises the reason, stated by the hub or found here, when that cannot be: ``no-holder``, ``no-right``,
        ``over-quota``, ``deadline``, ``disk-full`` … What was verified stays and need not be fetched again.
        """
        _log.debug("asked", extra=self._told())
        self._loop = loop = asyncio.get_running_loop()
        self._end: asyncio.Future[EntrepotError | None] = loop.create_future()
        self._meter = Meter("get", self._progress, loop)
        self._driver: Driver[Effect] = Driver(self._machine, self._perform, loop.time)
        patience = self._settings.session.connect_patience
        await self._session.ready(max(patience, self._deadline) if self._keep else min(patience, self._deadline))
        subscription = await self._session.on_state(self._channel.name, self._stream, self._heard)
        error: EntrepotError | None
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                timer = group.create_task(self._driver.run())
                try:
                    with self._session.following(self._moved_on):
                        self._driver.feed(self._machine.start)
                        error = await self._end
                except asyncio.CancelledError:
                    self._driver.feed(lambda now: self._machine.cancel())
                    raise
                finally:
                    timer.cancel()
                    for task in list(self._downloads.values()):
                        task.cancel()
            if error is None and self._fetch is not None:
                await self._fetch.finish()
        finally:
            await subscription.unsubscribe()
            self._meter.close()
            if self._fetch is not None and not self._borrowed:
                await self._fetch.aclose()
        if error is not None:
            raise error
        opening = self._machine.opening
        assert opening is not None
        complete = self._fetch is not None and self._fetch.complete
        moved = self._fetched_bytes, self._from_bucket_bytes, self._objects
        small = self._fetch if isinstance(self._fetch, SmallFetch) else None
        return Fetched(opening, *moved, complete, self.transfer, self._channel.scope, small)

    # -- what happened ------------------------------------------------------------------------------------------

    def _moved_on(self) -> None:
        """The session is not what it was: whether there is a connection, and what this node may do."""
        self._check_right()
        self._count(at_once=True)

    def _check_right(self) -> None:
        """A node that lost its right hears no refusal on the bus, only silence; and URLs it has go on for a while."""
        known = self._session.channels.get(self._channel.name)
        if self._session.expelled is not None:
            self._abort(self._session.expelled)
        elif known is None or not known.reads:
            self._abort(
                Denied(
                    f"this node may not fetch from {self._channel.name} any more",
                    kind="revoked",
                    hint="Ask the channel's owner.",
                    channel=self._channel.name,
                )
            )

    def _heard(self, state: State) -> None:
        self._note(state.objects)
        self._driver.feed(lambda now: self._machine.heard(state, now))
        self._count()

    def _replied(self, reply: WantReply) -> None:
        self._note(reply.objects)
        self._driver.feed(lambda now: self._machine.replied(reply, now))
        self._count()

    def _note(self, objects: Sequence[ObjectState]) -> None:
        self._awaited.update(state.number for state in objects if state.state != "ready")
        # A want and a got may pass each other, and then the hub lends again what is here already.
        lent = tuple(state.number for state in objects if state.state == "ready" and state.number in self._got)
        if lent:
            got = Got(lock=self._channel.lock.id, stream=self._stream.raw, numbers=lent)
            self._session.tell(self._channel.name, "got", got)

    # -- what to do ---------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Ask(want):
                self._spawn(self._ask(want))
            case Tell(verb, message):
                self._session.tell(self._channel.name, verb, message)
            case Learned(opening):
                if self._memory and is_small(opening, self._channel.lock):
                    self._fetch = SmallFetch(self._stream, opening, self._channel.lock)
                    self._begun(self._fetch)
                else:
                    self._spawn(self._begin(opening))
            case Fetch(number, get, _):
                if self._on_url is not None:
                    self._on_url(number, get)
                self._downloads[number] = self._spawn(self._download(number, get))
            case StopFetch(number):
                task = self._downloads.pop(number, None)
                if task is not None:
                    task.cancel()
            case Finish():
                self._finish(None)
            case Fail(error):
                self._finish(error)

    def _finish(self, error: EntrepotError | None) -> None:
        if not self._end.done():
            self._end.set_result(error)

    def _abort(self, error: EntrepotError) -> None:
        """It cannot go on for a reason on this side."""
        self._finish(error)
        self._driver.feed(lambda now: self._machine.cancel())

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self._group.create_task(work)

    async def _ask(self, want: Want) -> None:
        try:
            reply = await self._session.request(
                self._channel.name, "want", want, WantReply, self._settings.session.want_timeout
            )
        except EntrepotError as error:
            reason = error
            self._driver.feed(lambda now: self._machine.unanswered(reason, now))
            self._count(at_once=True)
        else:
            self._replied(reply)

    async def _begin(self, opening: Opening) -> None:
        if self._spans is not None and not self._spans:
            self._driver.feed(lambda now: self._machine.begin((), now))
            return
        try:
            if self._fetch is None:
                channel = self._channel
                self._fetch = await self._store.begin(self._stream, opening, channel.lock, channel.scope, self._name)
                self._before = self._fetch.verified_bytes
        except EntrepotError as error:
            self._abort(error)
            return
        self._begun(self._fetch)

    def _begun(self, fetch: StoreFetch | SmallFetch) -> None:
        missing = self._missing(fetch)
        self._driver.feed(lambda now: self._machine.begin(missing, now))
        self._count()

    def _missing(self, fetch: StoreFetch | SmallFetch) -> tuple[Pair, ...]:
        if self._spans is None:
            return fetch.missing_objects()
        numbers = dict.fromkeys(
            number
            for offset, length in self._spans
            for number in fetch.geometry.objects_of_range(offset, length)
            if not self._here(fetch, number)
        )
        return of_numbers(numbers)

    def _here(self, fetch: StoreFetch | SmallFetch, number: int) -> bool:
        wanted = self._wanted(fetch, number)
        return all(index not in wanted for index in fetch.missing_miniblocks(number))

    def _wanted(self, fetch: StoreFetch | SmallFetch, number: int) -> range | frozenset[int]:
        """The miniblocks of the object that are asked for, numbered within it."""
        own = fetch.geometry.miniblocks_of(number)
        if self._spans is None:
            return range(len(own))
        return frozenset(_within(fetch, own, self._spans))

    async def _download(self, number: int, get: Signed) -> None:
        fetch = self._fetch
        assert fetch is not None
        request = SignedRequest(get.method, get.url, get.headers, agent(self.transfer))
        try:
            moved = await self._bucket.bring(
                request, fetch, number, None if self._spans is None else self._wanted(fetch, number)
            )
        except EntrepotError as error:
            self._downloads.pop(number, None)
            if isinstance(error, Conflict) and "host" not in error.data:
                self._abort(error)  # the store's word, not the bucket's: the stream was removed meanwhile
                return
            reason = error
            _log.info("fetch failed: %s", error.message, extra=self._told(object=number, kind=error.kind))
            self._driver.feed(lambda now: self._machine.fetch_failed(number, reason, now))
            return
        _log.debug("fetched", extra=self._told(object=number, bytes=moved))
        self._downloads.pop(number, None)
        self._objects += 1
        self._got.add(number)
        self._fetched_bytes += moved
        if number not in self._awaited:
            self._from_bucket_bytes += moved
        self._driver.feed(lambda now: self._machine.fetched(number, now))
        if self._on_object is not None:
            self._on_object(number)
        self._count()

    def _told(self, **more: object) -> dict[str, object]:
        """What a line of the log says of it."""
        channel, stream = self._channel.name, self._stream.hex
        return {"fields": {"transfer": self.transfer, "channel": channel, "stream": stream, **more}}

    # -- progress -----------------------------------------------------------------------------------------------

    def moved(self, count: int) -> None:
        """So many bytes more were verified: the deadline moves."""
        self._driver.feed(lambda now: self._machine.verified(count, now))
        self._count()

    def _count(self, *, at_once: bool = False) -> None:
        if self._progress is None:
            return
        fetch = self._fetch
        self._meter.count(
            0 if fetch is None else fetch.verified_bytes,
            0 if fetch is None else fetch.opening.length,
            self._waits_for(),
            here=self._before,
            at_once=at_once,
        )

    def _waits_for(self) -> str | None:
        """What is waited for, in words. While objects are on their way that is the hub at most, which gives no more of
        them: whoever shows it does so once nothing comes."""
        if not self._session.connected:
            return "the hub cannot be reached: waiting for it"
        reason = self._machine.reason
        if reason is None or (self._downloads and reason.kind not in _HUB_AWAY):
            return None
        return reason.message


class _Moving:
    """Told of verified bytes in a worker thread; passes them on to the event loop now and then."""

    def __init__(self, getter: Getter, loop: asyncio.AbstractEventLoop) -> None:
        self._getter = getter
        self._loop = loop
        self._told = 0
        self._told_at = loop.time()

    def __call__(self, moved: int) -> None:
        now = self._loop.time()
        if now < self._told_at + _TELL_EVERY:
            return
        count, self._told, self._told_at = moved - self._told, moved, now
        self._loop.call_soon_threadsafe(self._getter.moved, count)


def _within(fetch: StoreFetch | SmallFetch, own: range, spans: Sequence[Span]) -> Iterator[int]:
    for offset, length in spans:
        hit = fetch.geometry.miniblocks_of_range(offset, length)
        for index in range(max(own.start, hit.start), min(own.stop, hit.stop)):
            yield index - own.start
