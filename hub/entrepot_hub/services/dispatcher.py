"""From the bus to the exchange: every message a node sends passes here, and no further if anything about it is wrong.

The subject says who speaks (the server enforces it), in which channel and with which verb. The reply subject must lie
in the sender's inbox: the hub may publish everywhere and must not be made a deputy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from entrepot.adapters.bus import Bus
from entrepot.adapters.bus import Message as BusMessage
from entrepot.core import subjects
from entrepot.core.errors import Denied, EntrepotError, Internal, InvalidInput, RetryLater
from entrepot.core.messages import (
    Accept,
    AcceptReply,
    Ack,
    Added,
    Bad,
    Cancel,
    Done,
    Got,
    Message,
    Missing,
    Offer,
    Open,
    OpenReply,
    Progress,
    Reason,
    Want,
    WantReply,
    decode,
    encode,
    reason_of,
)
from entrepot_hub.core.members import Member
from entrepot_hub.services.channels import Channels, OpenChannel
from entrepot_hub.services.exchange import Exchange
from entrepot_hub.services.presence import Presence

type Handler = Callable[[OpenChannel, Member, Any], Awaitable[Message | None]]

QUEUE = "hub"


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """``at_once``: messages in work at the same time; ``waiting``: those that may wait for it, per verb; further ones
    are dropped, as on any lossy bus, and said again by their senders."""

    at_once: int = 256
    waiting: int = 8192


@dataclass(frozen=True, slots=True)
class _Verb:
    kind: type[Message]
    handler: Handler
    failed: Callable[[Reason], Message]


class Dispatcher:
    """Subscribes to the verbs and answers them. ``spawn`` runs a message's work in the background."""

    def __init__(
        self,
        bus: Bus,
        exchange: Exchange,
        channels: Channels,
        presence: Presence,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        settings: DispatchSettings | None = None,
    ) -> None:
        self._bus = bus
        self._exchange = exchange
        self._channels = channels
        self._presence = presence
        self._spawn = spawn
        self._settings = settings or DispatchSettings()
        self._slots = asyncio.Semaphore(self._settings.at_once)
        self._log = structlog.get_logger("dispatcher")
        self.handled = 0
        self.refused = 0

    async def start(self) -> None:
        """Subscribe to every verb of every channel, and to the offers that this instance asks for."""
        for name in self._verbs():
            pattern = (
                subjects.hub_offer_pattern(self._exchange.instance)
                if name == subjects.OFFER
                else subjects.hub_pattern(name)
            )
            queue = "" if name == subjects.OFFER else QUEUE
            await self._bus.subscribe(pattern, self._receive, queue=queue, pending=self._settings.waiting)

    def _verbs(self) -> Mapping[str, _Verb]:
        exchange = self._exchange
        return {
            "want": _Verb(Want, exchange.want, lambda reason: WantReply(error=reason)),
            "got": _Verb(Got, exchange.got, _ack),
            "cancel": _Verb(Cancel, exchange.cancel, _ack),
            "missing": _Verb(Missing, exchange.missing, _ack),
            "bad": _Verb(Bad, exchange.bad, _ack),
            "offer": _Verb(Offer, exchange.offer, _ack),
            "accept": _Verb(Accept, exchange.accept, lambda reason: AcceptReply(error=reason)),
            "progress": _Verb(Progress, exchange.progress, _ack),
            "done": _Verb(Done, exchange.done, _ack),
            "added": _Verb(Added, exchange.added, _ack),
            "open": _Verb(Open, exchange.open, lambda reason: OpenReply(error=reason)),
        }

    async def _receive(self, message: BusMessage) -> None:
        await self._slots.acquire()
        self._spawn(self._handle(message))

    async def _handle(self, message: BusMessage) -> None:
        try:
            answer = await self._answer(message)
            if answer is not None and message.reply is not None:
                await self._bus.publish(message.reply, encode(answer))
        except RetryLater:
            self.refused += 1  # the bus is down: the sender hears nothing and says it again
        finally:
            self._slots.release()

    async def _answer(self, message: BusMessage) -> Message | None:
        """The answer, or None where none may be given."""
        self.handled += 1
        try:
            subject = subjects.parse_hub(message.subject)
        except InvalidInput:
            self.refused += 1
            return None
        if message.reply is not None and not subjects.reply_allowed(subject.node, message.reply):
            self.refused += 1
            self._log.warning("reply subject refused", node=subject.node, verb=subject.verb)
            return None
        verb = self._verbs()[subject.verb]
        try:
            member = await self._channels.member(subject.channel, subject.node)
            self._presence.heard(subject.node)
            channel = await self._channels.channel(subject.channel)
            return await verb.handler(channel, member, decode(verb.kind, message.payload))
        except EntrepotError as error:
            self.refused += 1
            if isinstance(error, (Internal, Denied)):
                self._log.warning("refused", verb=subject.verb, node=subject.node, kind=error.kind, why=error.message)
            return verb.failed(reason_of(error))
        except Exception:  # noqa: BLE001
            # One message must not end the hub: the sender is told, the operator finds the traceback.
            self._log.exception("failed", verb=subject.verb, node=subject.node, channel=subject.channel)
            return verb.failed(reason_of(Internal("the hub failed to handle this message")))


def _ack(reason: Reason) -> Message:
    return Ack(error=reason)
