"""From the bus to the exchange: every message a node sends passes here, and no further if anything about it is wrong.

The subject says who speaks (the server enforces it), in which channel and with which verb. The reply subject must lie
in the sender's inbox: the hub may publish everywhere and must not be made a deputy.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
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
from entrepot_hub.adapters.metrics import Metrics, Stopwatch
from entrepot_hub.core.members import Member
from entrepot_hub.core.rates import Rate, Tally
from entrepot_hub.core.restraint import RATES, Excess, Restraint
from entrepot_hub.services.channels import Channels, OpenChannel
from entrepot_hub.services.exchange import Exchange
from entrepot_hub.services.presence import Presence

type Handler = Callable[[OpenChannel, Member, Any], Awaitable[Message | None]]

#: A node in one of its channels.
type Speaker = tuple[str, str]

QUEUE = "hub"


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """``at_once``: messages in work at the same time, ``of_one`` of them one node's and ``of_channel`` one channel's,
    whose bucket may be dead; ``waiting_of_one``: those of one node that may wait, ``waiting``: those of one verb that
    may wait to be sorted by node. Further ones are dropped, as on any lossy bus, and said again by their senders.
    ``rates``: how many messages of each class of verbs one node may say (:mod:`entrepot_hub.core.restraint`)."""

    at_once: int = 512
    of_one: int = 16
    of_channel: int = 64
    waiting_of_one: int = 1024
    waiting: int = 8192
    rates: Mapping[str, Rate] = field(default_factory=lambda: RATES)


@dataclass(frozen=True, slots=True)
class _Verb:
    kind: type[Message]
    handler: Handler
    failed: Callable[[Reason], Message]


class Dispatcher:
    """Subscribes to the verbs and answers them. ``spawn`` runs a message's work in the background (False: it will not).

    Nodes take turns in each of their channels, so whoever says much waits for itself and delays the others by no more
    than ``of_one`` messages; and a channel whose bucket does not answer keeps no more than ``of_channel`` of them.
    """

    def __init__(
        self,
        bus: Bus,
        exchange: Exchange,
        channels: Channels,
        presence: Presence,
        spawn: Callable[[Coroutine[Any, Any, None]], bool],
        settings: DispatchSettings | None = None,
        metrics: Metrics | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._metrics = metrics or Metrics()
        self._exchange = exchange
        self._channels = channels
        self._presence = presence
        self._spawn = spawn
        self._settings = settings or DispatchSettings()
        # Whoever has messages waiting stands once: for a turn, or apart until its node or its channel has less in work.
        self._waiting: dict[Speaker, deque[BusMessage]] = {}
        self._turns: deque[Speaker] = deque()
        self._apart: dict[str, deque[Speaker]] = {}
        self._queued: Counter[str] = Counter()
        self._working: Counter[str] = Counter()
        self._at_work = 0
        self._clock = clock
        self._restraint = Restraint(self._settings.rates)
        self._tally = Tally()
        self._log = structlog.get_logger("dispatcher")
        self.handled = 0
        self.refused = 0
        self.dropped = 0
        self._last = Stopwatch()  # since a message was out of work

    @property
    def waiting(self) -> int:
        """Messages that wait for their turn."""
        return sum(self._queued.values())

    @property
    def at_work(self) -> int:
        """Messages in work."""
        return self._at_work

    @property
    def stuck(self) -> float:
        """For how many seconds no message has ended while as many as may be are in work; 0 if there is room."""
        return self._last.seconds if self._at_work >= self._settings.at_once else 0.0

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

    def _receive(self, message: BusMessage) -> None:
        # The server lets a node publish under its own key only, and in its own channels.
        node, (_, channel, verb) = message.subject.rpartition(".")[2], message.subject.split(".", 3)[:3]
        asks = message.reply is not None
        excess = self._restraint.heard(node, verb, len(message.payload), self._clock(), asks=asks)
        if excess is not None:
            self.dropped += 1
            self._metrics.dropped("rate")
            self._say("too many messages", node=node, verb=verb, channel=channel)
            if excess.first:
                self._spawn(self._refuse(message, excess))
            return
        if self._queued[node] >= self._settings.waiting_of_one:
            self.dropped += 1
            self._metrics.dropped("node")
            return
        self._queued[node] += 1
        queue = self._waiting.get((node, channel))
        if queue is None:
            queue = self._waiting[node, channel] = deque()
            self._turns.append((node, channel))
        queue.append(message)
        self._go_on()

    def _go_on(self) -> None:
        """Begin as much as may be in work; each speaker in turn, one message at a time."""
        while self._turns and self._at_work < self._settings.at_once:
            speaker = self._turns.popleft()
            node, channel = speaker
            full = self._full(node, channel)
            if full is not None:
                self._apart.setdefault(full, deque()).append(speaker)
                continue
            queue = self._waiting[speaker]
            message = queue.popleft()
            self._less(self._queued, node)
            self._working[node] += 1
            self._working[_of(channel)] += 1
            self._at_work += 1
            if queue:
                self._turns.append(speaker)
            else:
                del self._waiting[speaker]
            if not self._spawn(self._handle(speaker, message)):
                self.dropped += 1
                self._metrics.dropped("work")
                self._ended(speaker)

    def _full(self, node: str, channel: str) -> str | None:
        """Who has as much in work as may be: the node, or the channel."""
        if self._working[node] >= self._settings.of_one:
            return node
        return _of(channel) if self._working[_of(channel)] >= self._settings.of_channel else None

    def _ended(self, speaker: Speaker) -> None:
        """A message is out of work: whoever waited for that stands for a turn again."""
        self._at_work -= 1
        self._last = Stopwatch()
        for one in (speaker[0], _of(speaker[1])):
            self._less(self._working, one)
            apart = self._apart.get(one)
            if apart is not None:
                self._turns.append(apart.popleft())
                if not apart:
                    del self._apart[one]

    @staticmethod
    def _less(counter: Counter[str], one: str) -> None:
        counter[one] -= 1
        if not counter[one]:
            del counter[one]

    async def _handle(self, speaker: Speaker, message: BusMessage) -> None:
        try:
            answer = await self._answer(message)
            if answer is not None and message.reply is not None:
                await self._bus.publish(message.reply, encode(answer))
        except RetryLater:
            self.refused += 1  # the bus is down: the sender hears nothing and says it again
        finally:
            self._ended(speaker)
            self._go_on()

    async def _refuse(self, message: BusMessage, excess: Excess) -> None:
        """Tell a node that it says too much, and from when on it is heard again."""
        try:
            subject = subjects.parse_hub(message.subject)
        except InvalidInput:
            return
        if message.reply is None or not subjects.reply_allowed(subject.node, message.reply):
            return
        error = RetryLater(
            f"this node says {subject.verb} too often",
            kind="too-many-requests",
            retry_after=round(excess.wait, 3),
        )
        await self._bus.publish(message.reply, encode(self._verbs()[subject.verb].failed(reason_of(error))))

    def excessive(self) -> list[tuple[str, int]]:
        """The nodes that said more than they may in the last ten minutes, and how many of their messages went unheard
        since the hub started; the most first."""
        return self._restraint.excessive(self._clock())

    def _say(self, event: str, *, node: str, **more: str) -> None:
        """One line a minute for each node and event, with a count: whoever repeats a mistake does not fill the log."""
        count = self._tally.note(f"{node} {event} {more.get('kind', '')}", self._clock())
        if count:
            self._log.warning(event, node=node, count=count, **more)

    async def _answer(self, message: BusMessage) -> Message | None:
        """The answer, or None where none may be given."""
        self.handled += 1
        try:
            subject = subjects.parse_hub(message.subject)
        except InvalidInput:
            self.refused += 1
            self._metrics.dropped("subject")
            return None
        if message.reply is not None and not subjects.reply_allowed(subject.node, message.reply):
            self.refused += 1
            self._metrics.dropped("reply")
            self._say("reply subject refused", node=subject.node, verb=subject.verb)
            return None
        verb = self._verbs()[subject.verb]
        watch, outcome = Stopwatch(), "ok"
        try:
            member = await self._channels.member(subject.channel, subject.node)
            self._presence.heard(subject.node)
            channel = await self._channels.channel(subject.channel)
            return await verb.handler(channel, member, decode(verb.kind, message.payload))
        except EntrepotError as error:
            self.refused += 1
            outcome = error.kind
            if isinstance(error, (Internal, Denied)):
                self._say("refused", node=subject.node, verb=subject.verb, kind=error.kind, why=error.message)
            return verb.failed(reason_of(error))
        except Exception as error:  # noqa: BLE001
            # One message must not end the hub: the sender is told, the operator finds the traceback.
            outcome = Internal.default_kind
            name = f"{subject.node} {subject.verb} {type(error).__name__}"
            if count := self._tally.note(name, self._clock()):
                where = {"verb": subject.verb, "node": subject.node, "channel": subject.channel}
                self._log.exception("failed", count=count, **where)
            return verb.failed(reason_of(Internal("the hub failed to handle this message")))
        finally:
            self._metrics.message(subject.verb, subject.channel, subject.node, outcome, watch.seconds)


def _ack(reason: Reason) -> Message:
    return Ack(error=reason)


def _of(channel: str) -> str:
    """A channel among names of nodes: no key of a node begins so."""
    return f"channel {channel}"
