"""Nodes: the getting and providing services of production over models of session, store and bucket transfers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, cast

from tests.simulation.bucket import Permit, Place
from tests.simulation.content import CHANNEL, LOCK, Content
from tests.simulation.hub import SETTINGS
from tests.simulation.network import Network
from tests.simulation.plan import SlowUploads
from tests.simulation.process import EPOCH, Process
from tests.simulation.watch import Watch, key_of

from entrepot.adapters.store.records import Holding
from entrepot.adapters.transfer import PutOutcome, SignedRequest
from entrepot.core import messages, subjects
from entrepot.core.errors import Conflict, Corrupt, Denied, EntrepotError, NotFound, RetryLater
from entrepot.core.format import verify_object
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock
from entrepot.core.messages import Bad, Got, Grant, Offer, Progress, Seek, State
from entrepot.core.ranges import Pair, holds, of_numbers
from entrepot.services.hubs import JoinedChannel, JoinedHub
from entrepot.services.settings import NodeSettings, SessionSettings
from entrepot_hub.core.ledger import ObjectRef

NODE_SETTINGS: Final = NodeSettings(
    home=Path("/simulated"), exchange=SETTINGS, session=SessionSettings(want_timeout=1.0, request_timeout=1.0)
)
#: A PUT that began in time is cut off by the bucket's side so long after its URL's end: put_grace covers it.
LATEST: Final = SETTINGS.put_grace - 2.5


@dataclass(slots=True)
class Held:
    """What a node keeps on its disk: the verified objects of each stream."""

    objects: dict[bytes, set[int]] = field(default_factory=dict)

    def of(self, stream: bytes) -> set[int]:
        """The numbers that are here."""
        return self.objects.setdefault(stream, set())


class Subscription:
    """What a session's subscriptions are ended by."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    async def unsubscribe(self) -> None:
        """Hear no more."""
        self._end()


class ModelSession:
    """As much of :class:`entrepot.services.session.Session` as getting and providing use."""

    def __init__(
        self, process: Process, session: str, key: str, network: Network, rights: str, lies: frozenset[str]
    ) -> None:
        hub = JoinedHub("http://sim", "sim", "sim", process.name, key)
        self.channels: Mapping[str, JoinedChannel] = {CHANNEL: JoinedChannel(hub, CHANNEL, LOCK, rights)}
        self.id = session
        self.node = key
        self.expelled: EntrepotError | None = None
        self.on_up: Callable[[], None] | None = None
        self.on_channels: Callable[[], None] | None = None
        self._process = process
        self._network = network
        self._lies = lies
        self._serial = 0
        self._followers: list[Callable[[], None]] = []
        self._waiting: dict[str, asyncio.Future[bytes]] = {}

    @property
    def connected(self) -> bool:
        """Whether the bus can be reached."""
        return self._process.alive and not self._network.is_cut(self._process.name) and self.expelled is None

    async def ready(self, patience: float | None = None) -> None:
        """Wait for the bus."""
        until = asyncio.get_running_loop().time() + (10.0 if patience is None else patience)
        while not self.connected:
            if self.expelled is not None:
                raise self.expelled
            if asyncio.get_running_loop().time() >= until:
                raise RetryLater("the bus is out of reach", kind="bus-unreachable")
            await asyncio.sleep(0.1)

    @contextlib.contextmanager
    def following(self, handler: Callable[[], None]) -> Iterator[None]:
        """Tell of changed rights."""
        self._followers.append(handler)
        try:
            yield
        finally:
            self._followers.remove(handler)

    def expel(self) -> None:
        """The hub does not let this node in any more."""
        self.expelled = Denied("this node's membership was revoked", kind="revoked")
        for handler in tuple(self._followers):
            handler()

    def of_lock(self, lock: bytes) -> JoinedChannel | None:
        """The channel of this lock."""
        return self.channels[CHANNEL] if lock == LOCK.id else None

    def refresh_soon(self, *, at_once: bool = False) -> None:
        """Nothing ever changes."""

    async def request(
        self,
        channel: str,
        verb: str,
        message: messages.Message,
        answer: type[messages.Message],
        timeout: float | None = None,
    ) -> messages.Message:
        """Ask a hub."""
        await self._process.passed()
        loop = asyncio.get_running_loop()
        self._serial += 1
        inbox = f"_INBOX.{self.node}.{self.id}.{self._serial}"
        future: asyncio.Future[bytes] = loop.create_future()

        def take(_subject: str, payload: bytes, _reply: str | None) -> None:
            if not future.done():
                future.set_result(payload)

        end = self._network.subscribe(inbox, self._process, take)
        self._send(subjects.hub_verb(channel, verb, self.node), messages.encode(message), inbox)
        try:
            async with asyncio.timeout(timeout or NODE_SETTINGS.session.request_timeout):
                return messages.decode(answer, await future)
        except TimeoutError:
            raise RetryLater("the hub did not answer", kind="hub-unreachable") from None
        finally:
            end()

    def tell(self, channel: str, verb: str, message: messages.Message) -> None:
        """Send without an answer."""
        if isinstance(message, Got):
            if "mute" in self._lies:
                return
            if "slander" in self._lies:
                bad = Bad(lock=LOCK.id, stream=message.stream, number=message.numbers[0], miniblock=message.numbers[0])
                self._send(subjects.hub_verb(channel, "bad", self.node), messages.encode(bad), None)
        subject, payload = subjects.hub_verb(channel, verb, self.node), messages.encode(message)
        self._send(subject, payload, None)
        if isinstance(message, Progress) and "stall" in self._lies:
            for repeat in range(1, 6):
                asyncio.get_running_loop().call_later(0.5 * repeat, self._send, subject, payload, None)

    def offer(self, channel: str, instance: str, offer: Offer) -> None:
        """Send an offer."""
        self._send(subjects.hub_offer(channel, instance, self.node), messages.encode(offer), None)

    async def on_state(self, channel: str, stream: StreamId, handler: Callable[[State], None]) -> Subscription:
        """Hear states."""
        return self._hear(subjects.state(channel, stream.hex), State, handler)

    async def on_channel_seek(self, channel: str, handler: Callable[[Seek], None]) -> Subscription:
        """Hear seeks."""
        return self._hear(subjects.channel_seek(channel), Seek, handler)

    async def on_node_seek(self, handler: Callable[[Seek], None]) -> Subscription:
        """Hear seeks to this node."""
        return self._hear(subjects.node_seek(self.node), Seek, handler)

    async def on_grant(self, handler: Callable[[Grant], None]) -> Subscription:
        """Hear grants."""
        return self._hear(subjects.grant(self.node, self.id), Grant, handler)

    def _hear(self, subject: str, kind: type[Any], handler: Callable[[Any], None]) -> Subscription:
        end = self._network.subscribe(
            subject, self._process, lambda _s, payload, _r: handler(messages.decode(kind, payload))
        )
        return Subscription(end)

    def _send(self, subject: str, payload: bytes, reply: str | None) -> None:
        if self.expelled is None:
            self._network.to_hub(self._process, subject, payload, reply)


@dataclass(frozen=True, slots=True)
class Source:
    """An object to be uploaded."""

    header: bytes
    digest: bytes
    data: bytes
    key: str

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    def release(self) -> None:
        """It is not to be sent any more."""


class ModelFetch:
    """A stream that is being fetched, kept in what the node holds."""

    def __init__(self, known: Content, held: Held) -> None:
        self.opening = known.opening
        self.geometry = known.geometry
        self.lock = known.geometry.lock
        self.known = known
        self.held = held.of(known.stream.raw)

    @property
    def complete(self) -> bool:
        """Whether everything is here."""
        return len(self.held) == self.geometry.object_count

    @property
    def verified_bytes(self) -> int:
        """Bytes that are here."""
        return sum(self.geometry.object_span(number)[1] for number in self.held)

    def missing_objects(self) -> tuple[Pair, ...]:
        """What is not here."""
        return of_numbers(n for n in range(self.geometry.object_count) if n not in self.held)

    def missing_miniblocks(self, number: int) -> tuple[int, ...]:
        """What is not here of an object."""
        return () if number in self.held else tuple(range(len(self.geometry.miniblocks_of(number))))

    async def finish(self) -> None:
        """It is whole."""
        assert self.complete

    async def aclose(self) -> None:
        """Nothing is open."""


class ModelStore:
    """As much of the store as getting and providing use."""

    def __init__(
        self, process: Process, contents: Mapping[bytes, Content], held: Held, lies: frozenset[str], random: Random
    ) -> None:
        self._process = process
        self._contents = contents
        self._held = held
        self._lies = lies
        self._random = random

    async def begin(self, stream: StreamId, opening: Opening, lock: SchemaLock, scope: str, name: str) -> ModelFetch:
        """Fetch a stream."""
        found: ModelFetch = await self._look(lambda: ModelFetch(self._contents[stream.raw], self._held))
        return found

    async def holds(self, stream: StreamId, scope: str, lock: SchemaLock) -> Holding | None:
        """What is here of a stream."""

        def look() -> Holding | None:
            known, numbers = self._contents.get(stream.raw), self._held.objects.get(stream.raw)
            if known is None or not numbers:
                return None
            complete = len(numbers) == known.geometry.object_count
            return Holding(stream, known.opening, complete, of_numbers(sorted(numbers)))

        found: Holding | None = await self._look(look)
        return found

    async def object_source(self, stream: StreamId, lock: SchemaLock, number: int, digest: str) -> Source:
        """An object to be sent; a liar's has other bytes behind the right header."""

        def look() -> Source:
            known = self._contents[stream.raw]
            data, header = known.objects[number], known.headers[number]
            if "poison" in self._lies:
                data = header + bytes(255 - byte for byte in data[len(header) :])
            key = key_of(ObjectRef(CHANNEL, LOCK.id, stream.raw, number))
            return Source(header, hashlib.sha256(data).digest(), data, key)

        source: Source = await self._look(look)
        return source

    async def held(self, streams: Sequence[StreamId], scope: str, lock: SchemaLock) -> list[Holding]:
        """What is here of several streams."""
        found = [await self.holds(stream, scope, lock) for stream in streams]
        return [one for one in found if one is not None]

    async def served(self, stream: StreamId, scope: str, lock: SchemaLock, number: int, digest: str) -> Source | None:
        """An object to be sent, if it is here."""
        found = await self.holds(stream, scope, lock)
        if found is None or not holds(found.objects, number):
            return None
        return await self.object_source(stream, lock, number, digest)

    async def entry(self, stream: StreamId) -> Any:
        """What the catalogue says of a stream."""
        raise NotFound("this stream is not here", kind="no-such-stream")

    async def confirm_from_thread(self, source: Source) -> None:
        """The file is still what it was. Here it takes its time in the event loop."""
        await self._look(lambda: None)

    async def _look(self, effect: Callable[[], Any]) -> Any:
        return await self._process.outside(self._random.uniform(0.0005, 0.003), effect)


class ModelTransfers:
    """Uploads and downloads on signed URLs."""

    def __init__(
        self,
        process: Process,
        place: Place,
        watch: Watch,
        slow: Sequence[SlowUploads],
        slowest: float,
        lies: frozenset[str],
        random: Random,
    ) -> None:
        self._process = process
        self._place = place
        self._watch = watch
        self._slow = slow
        self._slowest = slowest
        self._lies = lies
        self._random = random

    async def put(
        self,
        request: SignedRequest,
        source: Source,
        *,
        progress: Callable[[int], None],
        sent: Callable[[Source], Awaitable[None]],
    ) -> PutOutcome:
        """Upload; as the real one it repeats a PUT whose answer was lost once, and then meets its own object."""
        loop, place = asyncio.get_running_loop(), self._place
        await self._process.passed()
        permit = place.permits.get(request.url)
        if permit is None or place.now > permit.until:
            raise Denied("the URL is over", kind="expired")
        place.trouble()
        if "empty" in self._lies:
            await sent(source)
            return PutOutcome(200, None, True, False, 1)
        data = source.data
        if "short" in self._lies:
            data = data[: len(data) // 2]
        seconds = self._random.uniform(0.05, self._slowest)
        for slow in self._slow:
            if slow.who == self._process.name and slow.start <= loop.time() < slow.stop:
                seconds *= slow.factor
        if "stall" in self._lies:
            seconds = 2 * SETTINGS.put_url
        steps = max(int(seconds / 0.4), 1)
        for step in range(steps):
            await asyncio.sleep(seconds / steps)
            await self._process.passed()
            progress(len(data) * (step + 1) // steps)
            if place.now > permit.until + LATEST:
                raise RetryLater("the bucket closed the connection", kind="bucket-unreachable")
        if "stall" in self._lies:
            raise RetryLater("never sent", kind="bucket-unreachable")
        for attempt in (1, 2):
            try:
                await self._land(permit, data)
            except Conflict:
                return PutOutcome(412, None, False, True, attempt)
            if not place.forgets():
                await sent(source)
                return PutOutcome(200, None, True, False, attempt)
            await asyncio.sleep(0.2)
        raise RetryLater("the bucket's answer was lost", kind="bucket-unreachable")

    async def _land(self, permit: Permit, data: bytes) -> None:
        """The bytes are on their way: what becomes of them does not depend on the sender any more."""
        loop, place, who = asyncio.get_running_loop(), self._place, self._process.name
        answer: asyncio.Future[None] = loop.create_future()
        permit.under_way += 1
        late = place.lateness()
        if place.now + late > permit.until + LATEST:
            late = 0.001

        def land() -> None:
            try:
                if data != self._watch.truth[permit.key]:
                    self._watch.bad.add(permit.key)
                place.land(permit, data, who)
            except EntrepotError as error:
                if not answer.done():
                    answer.set_exception(error)
                return
            if not answer.done():
                answer.set_result(None)

        loop.call_later(late, land)
        await answer
        await self._process.passed()

    async def get_object(
        self,
        request: SignedRequest,
        fetch: ModelFetch,
        number: int,
        progress: Any = None,
        *,
        miniblocks: Any = None,
        **_more: Any,
    ) -> int:
        """Download, verify and keep an object."""
        place = self._place
        if "idle" in self._lies:
            await asyncio.sleep(1e6)
        key, etag, until = place.gets[request.url]
        await self._process.passed()
        if EPOCH + asyncio.get_running_loop().time() > until:
            raise Denied("the URL is over", kind="expired", host="sim")
        place.trouble()
        blob = place.blobs.get(key)
        await asyncio.sleep(self._random.uniform(0.01, 0.2))
        if place.forgets():
            raise RetryLater("the connection broke", kind="bucket-unreachable", host="sim")
        if blob is None or not blob.data:
            raise NotFound("nothing is there", kind="no-such-object", host="sim")
        if etag is not None and blob.etag != etag and place.binds.get_if:
            raise Conflict("it is another one", kind="changed", host="sim")
        known = fetch.known
        data = blob.data
        if data != known.objects[number]:
            try:
                verify_object(data, stream=known.stream, lock=LOCK, number=number, opening=known.opening)
            except Corrupt as error:
                header = data[: Geometry(known.opening.length, LOCK).header_length(number)]
                block = number if header == known.headers[number] else None
                raise Corrupt(error.message, kind="corrupt-object", miniblock=block, host="sim") from None
            self._watch.fail("bad-bytes", f"a reader took other bytes for object {number}")

        def keep() -> int:
            fetch.held.add(number)
            return len(data)

        moved: int = await self._process.outside(0.001, keep)
        return moved


def model(thing: Any) -> Any:
    """A model in the place of what production has there."""
    return cast(Any, thing)
