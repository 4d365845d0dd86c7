"""A session: one running process of this node at one hub, with its bus, its channels and their locks."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

from entrepot.adapters.bus import Bus, BusState, Message, Subscription
from entrepot.adapters.hub_client import HubClient
from entrepot.core import messages, subjects
from entrepot.core.api import SessionInfo
from entrepot.core.errors import Denied, EntrepotError, NotFound, RetryLater
from entrepot.core.identifiers import StreamId
from entrepot.core.keyring import Credentials
from entrepot.core.messages import Grant, Offer, Seek, State
from entrepot.core.nkeys import SigningKey
from entrepot.services.hubs import Hubs, JoinedChannel, JoinedHub, channels_of, with_channels
from entrepot.services.listening import Ear, Listening
from entrepot.services.outbox import Outbox
from entrepot.services.settings import NodeSettings

#: What a message of the exchange that cannot be read is counted under.
type OnState = Callable[[State], None]

_SEEKS_PENDING: Final = 256


class Session:
    """One process of this node at ``hub``. Use as ``async with``; entering asks the hub who we are there.

    ``kind`` is told to the hub with the connection's name: ``daemon`` or ``command``. While the bus is down every
    request raises RetryLater with the reason. ``on_up`` is called after each unplanned connection, ``on_channels``
    when the channels, their locks or rights became others.
    """

    def __init__(
        self,
        hub: JoinedHub,
        key: SigningKey,
        settings: NodeSettings,
        *,
        kind: str,
        hubs: Hubs | None = None,
        on_up: Callable[[], None] | None = None,
        on_channels: Callable[[], None] | None = None,
    ) -> None:
        self.hub = hub
        self.id = secrets.token_hex(8)
        self.node = key.public
        self.on_up = on_up
        self.on_channels = on_channels
        #: Messages that were not of the exchange, or of another channel than their subject's.
        self.refused = 0
        self._key = key
        self._settings = settings
        self._kind = kind
        self._hubs = hubs
        self._channels: dict[str, JoinedChannel] = {channel.name: channel for channel in hub.channels}
        self._by_lock: dict[bytes, JoinedChannel] = {channel.lock.id: channel for channel in hub.channels}
        self._info: SessionInfo | None = None
        self._client = HubClient(hub.url, key, hub.public, settings.hub_settings(hub.url))
        self._bus: Bus | None = None
        self._stack = contextlib.AsyncExitStack()
        self._outbox = Outbox(self.node, lambda: self.bus, self._spawn, settings.session.outbox)
        self._listening = Listening(lambda: self.bus)
        self._group: asyncio.TaskGroup | None = None
        self._ended: asyncio.Future[EntrepotError] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = 0.0
        self._unknown: set[bytes] = set()
        self._followers: list[Callable[[], None]] = []

    # -- life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Raises RetryLater (``hub-unreachable``) or Denied as the hub answers."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._client)
            await self._renew()
            assert self._info is not None
            bus_settings = await asyncio.to_thread(self._settings.bus_settings)
            bus = Bus(
                self._info.nats,
                name=subjects.connection_name(self.id, self._kind),
                inbox_prefix=self._info.inbox,
                credentials=self._credentials,
                renew=self._renew,
                settings=bus_settings,
                on_up=self._went_up,
                on_down=self._went_down,
                on_error=self._failed,
            )
            self._bus = await stack.enter_async_context(bus)
            self._group = await stack.enter_async_context(asyncio.TaskGroup())
            stack.push_async_callback(self._leave)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, contextlib.AsyncExitStack()
        await stack.aclose()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        assert self._group is not None
        return self._group.create_task(work)

    async def _leave(self) -> None:
        """Send what waits, for a short time, and stop."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        try:
            with contextlib.suppress(TimeoutError, EntrepotError):
                async with asyncio.timeout(self._settings.session.farewell):
                    if self.bus.connected:
                        await self._outbox.drain()
                        await self.bus.flush()
        finally:
            self._outbox.close()

    @property
    def bus(self) -> Bus:
        """The connection. Only while the session is open."""
        if self._bus is None:
            raise RetryLater("the session is not open", kind="bus-unreachable")
        return self._bus

    @property
    def lost(self) -> int:
        """Messages without an answer that found no room, and those the bus could not take."""
        return self._outbox.lost

    @property
    def opened(self) -> bool:
        """Whether there is a :attr:`bus`."""
        return self._bus is not None

    @property
    def connected(self) -> bool:
        """Whether the hub can be spoken to now."""
        return self._bus is not None and self._bus.connected

    @property
    def reason(self) -> EntrepotError | None:
        """Why the bus is not up; None when it is."""
        return None if self._bus is None else self._bus.reason

    async def ready(self, patience: float | None = None) -> None:
        """Return once the bus is up. Raises Denied when the node was expelled, RetryLater after ``patience`` s."""
        seconds = self._settings.session.connect_patience if patience is None else patience
        await self.bus.wait_connected(seconds)

    @property
    def expelled(self) -> EntrepotError | None:
        """Why the hub does not let this node in any more; None while it does."""
        return self._ended.result() if self._ended is not None and self._ended.done() else None

    async def ended(self) -> EntrepotError:
        """Return, with the reason, when the hub does not let this node in any more."""
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    # -- channels -----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What others see this node as."""
        return self.hub.name if self._info is None else self._info.name

    @property
    def client(self) -> HubClient:
        """The hub's HTTP API."""
        return self._client

    @property
    def channels(self) -> Mapping[str, JoinedChannel]:
        """The channels that this node is in, as the hub told last."""
        return self._channels

    def channel(self, name: str) -> JoinedChannel:
        """One channel. Raises ``no-such-channel``."""
        found = self._channels.get(name)
        if found is None:
            raise NotFound(
                f"this node is in no channel {name} at {self.hub.host}",
                kind="no-such-channel",
                hint="Ask the channel's owner for an invite.",
                channel=name,
            )
        return found

    @contextlib.contextmanager
    def following(self, handler: Callable[[], None]) -> Iterator[None]:
        """While the block runs, have ``handler`` called when the channels, their locks or rights became others, when
        the connection was lost or is there again, and when the hub does not let this node in any more."""
        self._followers.append(handler)
        try:
            yield
        finally:
            self._followers.remove(handler)

    def of_lock(self, lock: bytes) -> JoinedChannel | None:
        """The channel whose current schema lock has this id. An unknown one has the channels asked for again."""
        found = self._by_lock.get(lock)
        if found is None and lock not in self._unknown:
            if len(self._unknown) > 1000:
                self._unknown.clear()
            self._unknown.add(lock)
            self.refresh_soon()
        return found

    async def refresh(self) -> None:
        """Ask for channels, locks and rights again and reconnect with what they allow. Raises EntrepotError."""
        before = self._channels
        told, self.on_channels = self.on_channels, None  # only once the connection has the new rights
        try:
            await self._renew()
            if {n: c.rights for n, c in before.items()} != {n: c.rights for n, c in self._channels.items()}:
                await self.bus.refresh()
        finally:
            self.on_channels = told
        if before != self._channels and told is not None:
            told()

    def refresh_soon(self, *, at_once: bool = False) -> None:
        """As :meth:`refresh`, in the background and, unless ``at_once``, not too often; what fails is tried at the
        next occasion."""
        loop = asyncio.get_running_loop()
        if self._refreshing is not None and not self._refreshing.done():
            return
        wait = 0.0 if at_once else max(0.0, self._refreshed_at + self._settings.session.refresh_every - loop.time())
        self._refreshing = loop.create_task(self._refresh_after(wait))

    async def _refresh_after(self, wait: float) -> None:
        await asyncio.sleep(wait)
        with contextlib.suppress(EntrepotError):
            await self.refresh()

    async def _renew(self) -> None:
        info = await self._client.session()
        self._refreshed_at = asyncio.get_running_loop().time()
        hub = JoinedHub(self.hub.url, self.hub.public, self.hub.host, info.name, self.node)
        channels = channels_of(hub, info.channels)
        changed = self._channels != {channel.name: channel for channel in channels}
        self._info = info
        if not changed and hub == self.hub:
            return
        self.hub = with_channels(hub, channels)
        self._channels = {channel.name: channel for channel in channels}
        self._by_lock = {channel.lock.id: channel for channel in channels}
        self._unknown.clear()
        if self._hubs is not None:
            await self._hubs.put(self.hub)
        if self.on_channels is not None:
            self.on_channels()
        self._tell_followers()

    def _tell_followers(self) -> None:
        for handler in tuple(self._followers):
            handler()

    def _credentials(self) -> Credentials:
        assert self._info is not None
        return Credentials(self._info.jwt, self._key)

    # -- messages -----------------------------------------------------------------------------------------------

    async def request[A: messages.Message](
        self,
        channel: str,
        verb: str,
        message: messages.Message,
        answer: type[A],
        timeout: float | None = None,  # noqa: ASYNC109  # a try's own, as the bus has it
    ) -> A:
        """Send and return the hub's answer, which may itself hold an error. Raises RetryLater without one."""
        seconds = self._settings.session.request_timeout if timeout is None else timeout
        if self._group is None:
            raise RetryLater("the session is not open", kind="bus-unreachable")
        return messages.decode(answer, await self._outbox.request(channel, verb, messages.encode(message), seconds))

    def tell(self, channel: str, verb: str, message: messages.Message) -> None:
        """Send without waiting; it may be lost."""
        if self._group is not None:
            self._outbox.tell(channel, verb, messages.encode(message))

    def offer(self, channel: str, instance: str, offer: Offer) -> None:
        """Send an offer to the hub instance that sought; it may be lost."""
        if self._group is not None:
            self._outbox.tell(channel, subjects.OFFER, messages.encode(offer), instance)

    async def on_state(self, channel: str, stream: StreamId, handler: OnState) -> Ear:
        """Have ``handler`` called with each state of the stream. Raises Denied ``no-right``."""

        def take(message: Message) -> None:
            state = self._read(State, message)
            if state is not None:
                handler(state)

        return await self._listening.listen(channel, stream, take)

    async def on_channel_seek(self, channel: str, handler: Callable[[Seek], None]) -> Subscription:
        """Have ``handler`` called with each seek to the channel."""
        return await self._on_seek(subjects.channel_seek(channel), handler)

    async def on_node_seek(self, handler: Callable[[Seek], None]) -> Subscription:
        """Have ``handler`` called with each seek to this node."""
        return await self._on_seek(subjects.node_seek(self.node), handler)

    async def _on_seek(self, subject: str, handler: Callable[[Seek], None]) -> Subscription:
        def take(message: Message) -> None:
            seek = self._read(Seek, message)
            if seek is not None:
                handler(seek)

        return await self.bus.subscribe(subject, take, pending=_SEEKS_PENDING)

    async def on_grant(self, handler: Callable[[Grant], None]) -> Subscription:
        """Have ``handler`` called with each grant to this session."""

        def take(message: Message) -> None:
            grant = self._read(Grant, message)
            if grant is not None:
                handler(grant)

        return await self.bus.subscribe(subjects.grant(self.node, self.id), take)

    def _read[M: messages.Message](self, kind: type[M], message: Message) -> M | None:
        """The message, or None: what cannot be read is counted and passed over, the hub may be newer."""
        try:
            return messages.decode(kind, message.payload)
        except EntrepotError:
            self.refused += 1
            return None

    # -- the bus tells ------------------------------------------------------------------------------------------

    def _went_up(self) -> None:
        self._outbox.reconnected()
        if self.on_up is not None:
            self.on_up()
        self._tell_followers()

    def _went_down(self, reason: EntrepotError) -> None:
        if self.bus.state is BusState.REVOKED and self._ended is not None and not self._ended.done():
            self._ended.set_result(reason if isinstance(reason, Denied) else Denied(reason.message, kind="revoked"))
        self._tell_followers()

    def _failed(self, error: EntrepotError, where: str) -> None:
        self.refused += 1
