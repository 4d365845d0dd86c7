"""From the bus to the exchange: every message a node sends passes here, and no further if anything about it is wrong.

The subject says who speaks (the server enforces it), in which channel and with which verb. The reply subject must lie
in the sender's inbox: the hub may publish everywhere and must not be made a deputy.

A message of several (:class:`entrepot.core.messages.Many`) is taken apart at once: each part counts, waits and is
worked on as if it had come alone, and the answers go back together.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from msgspec import structs

from entrepot.adapters.bus import Bus
from entrepot.adapters.bus import Message as BusMessage
from entrepot.core import subjects
from entrepot.core.errors import Denied, EntrepotError, Internal, InvalidInput, RetryLater
from entrepot.core.messages import (
    ENVELOPE,
    MAX_MESSAGE,
    PART_ENVELOPE,
    Accept,
    AcceptReply,
    Ack,
    Added,
    Bad,
    Cancel,
    Done,
    Got,
    Many,
    ManyReply,
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
from entrepot_hub.core.restraint import CLASSES, RATES, Excess, Restraint
from entrepot_hub.services.channels import Channels, OpenChannel
from entrepot_hub.services.exchange import Exchange
from entrepot_hub.services.presence import Presence

type Handler = Callable[[OpenChannel, Member, Any], Awaitable[Message | None]]

#: A node in one of its channels.
type Speaker = tuple[str, str]

QUEUE = "hub"
#: Bytes of the answer to a want: it has to have room among those to several messages too.
_WANT_REPLY = 60 * 1024
#: Milliseconds after which a reader asks for the objects that found no room in its answer.
_REST_AGAIN = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """``at_once``: messages in work at the same time, ``of_one`` of them one node's and ``of_channel`` one channel's,
    whose bucket may be dead; ``waiting_of_one``: those of one node that may wait, ``waiting``: those of one verb that
    may wait to be sorted by node. Further ones are dropped, as on any lossy bus, and said again by their senders.
    ``patience``: seconds after which the answers to several messages at once go out without those that are not there.
    ``rates``: how many messages of each class of verbs one node may say (:mod:`entrepot_hub.core.restraint`)."""

    at_once: int = 512
    of_one: int = 16
    of_channel: int = 64
    waiting_of_one: int = 1024
    waiting: int = 8192
    patience: float = 1.0
    rates: Mapping[str, Rate] = field(default_factory=lambda: RATES)


@dataclass(frozen=True, slots=True)
class _Item:
    """A message to work on. One that came with others has their ``batch`` and its place there instead of a reply
    subject; ``parsed`` is its subject then."""

    subject: str
    payload: bytes
    reply: str | None
    parsed: subjects.HubSubject | None = None
    batch: _Batch | None = None
    place: int = 0


class _Batch:
    """The answers to several messages that came at once, until all are there or time is up."""

    def __init__(self, reply: str, count: int) -> None:
        self.reply = reply
        self._answers: list[bytes | None] = [None] * count
        self._left = count
        self._room = MAX_MESSAGE - ENVELOPE - count
        self.timer: asyncio.TimerHandle | None = None

    @property
    def closed(self) -> bool:
        """Whether the answers are on their way."""
        return self._left < 0

    def put(self, place: int, answer: bytes | None) -> ManyReply | None:
        """One answer, or that there is none; all of them once they are complete."""
        if answer is not None and self._room >= len(answer) + PART_ENVELOPE:
            self._room -= len(answer) + PART_ENVELOPE
            self._answers[place] = answer
        self._left -= 1
        return self.close() if self._left == 0 else None

    def leave(self, count: int) -> ManyReply | None:
        """So many have no answer; all of them once they are complete."""
        self._left -= count
        return self.close() if count and self._left == 0 else None

    def close(self) -> ManyReply | None:
        """The answers that are there; None the second time."""
        if self._left < 0:
            return None
        self._left = -1
        if self.timer is not None:
            self.timer.cancel()
        return ManyReply(answers=tuple(self._answers))


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
        self._waiting: dict[Speaker, deque[_Item]] = {}
        self._turns: deque[Speaker] = deque()
        self._apart: dict[str, deque[Speaker]] = {}
        self._queued: Counter[str] = Counter()
        self._working: Counter[str] = Counter()
        self._at_work = 0
        self._clock = clock
        self._restraint = Restraint(self._settings.rates)
        self._tally = Tally()
        self._log = structlog.get_logger("dispatcher")
        self._known = self._verbs()
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
        instance = self._exchange.instance
        for pattern in (subjects.hub_offer_pattern(instance), subjects.hub_offers_pattern(instance)):
            await self._bus.subscribe(pattern, self._receive, queue="", pending=self._settings.waiting)
        for pattern in map(subjects.hub_pattern, subjects.HUB_VERBS):
            await self._bus.subscribe(pattern, self._receive, queue=QUEUE, pending=self._settings.waiting)

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
            self._exceeded(node, channel, verb)
            if excess.first:
                self._spawn(self._refuse(message, excess))
            return
        if verb in subjects.BATCHES:
            self._take_apart(message)
        else:
            self._enqueue(node, channel, _Item(message.subject, message.payload, message.reply))
        self._go_on()

    def _take_apart(self, message: BusMessage) -> None:
        """Several messages at once: each waits for its own turn. Once one of a class is too many, so are the others of
        that class: they are told so where a single one would be, and else cost nothing but their place."""
        try:
            subject = subjects.parse_hub(message.subject)
            if message.reply is not None and not subjects.reply_allowed(subject.node, message.reply):
                raise InvalidInput("this reply subject is not the sender's", kind="invalid-message")
            parts = decode(Many, message.payload).parts
            if any(part.verb not in subjects.BATCHES[subject.verb] for part in parts):
                raise InvalidInput(f"{subject.verb} holds what it may not hold", kind="invalid-message")
        except InvalidInput as error:
            # Refused by whoever answers, as any message that is none.
            node, (_, channel, _) = message.subject.rpartition(".")[2], message.subject.split(".", 3)[:3]
            self._enqueue(
                node, channel, _Item(message.subject, encode(ManyReply(error=reason_of(error))), message.reply)
            )
            return
        batch = None if message.reply is None else _Batch(message.reply, len(parts))
        now = self._clock()
        named: dict[str, subjects.HubSubject] = {}
        beyond: dict[str, tuple[str, Excess]] = {}  # classes of which there were too many, each with its first one
        refusals: dict[str, bytes] = {}
        refused = silent = 0
        for place, part in enumerate(parts):
            verb, kind = part.verb, CLASSES[part.verb]
            if kind not in beyond:
                excess = self._restraint.heard(subject.node, verb, len(part.payload), now, asks=batch is not None)
                if excess is None:
                    if verb not in named:
                        named[verb] = subjects.HubSubject(subject.channel, verb, subject.node, subject.instance)
                    item = _Item(message.subject, part.payload, None, named[verb], batch, place)
                    if not self._enqueue(subject.node, subject.channel, item):
                        self._give(item, None)
                    continue
                beyond[kind] = verb, excess
            refused += 1
            excess = beyond[kind][1]
            if batch is None or not excess.first:
                silent += 1
                continue
            if verb not in refusals:
                refusals[verb] = encode(self._known[verb].failed(reason_of(_too_often(verb, excess))))
            self._reply(batch, batch.put(place, refusals[verb]))
        if refused:
            self._restraint.left(subject.node, refused, now)
            self._exceeded(subject.node, subject.channel, next(iter(beyond.values()))[0], refused)
        if batch is None or silent == len(parts):
            return  # as if each of them had come alone: nothing is said
        self._reply(batch, batch.leave(silent))
        if not batch.closed:
            loop = asyncio.get_running_loop()
            batch.timer = loop.call_later(self._settings.patience, self._send_late, batch)

    def _exceeded(self, node: str, channel: str, verb: str, count: int = 1) -> None:
        self.dropped += count
        self._metrics.dropped("rate", count)
        self._say("too many messages", node=node, verb=verb, channel=channel)

    def _enqueue(self, node: str, channel: str, item: _Item) -> bool:
        """Have it wait for its turn; False: too many do."""
        if self._queued[node] >= self._settings.waiting_of_one:
            self.dropped += 1
            self._metrics.dropped("node")
            return False
        self._queued[node] += 1
        queue = self._waiting.get((node, channel))
        if queue is None:
            queue = self._waiting[node, channel] = deque()
            self._turns.append((node, channel))
        queue.append(item)
        return True

    def _give(self, item: _Item, answer: bytes | None) -> None:
        """Put one answer to those that it goes back with, and send them once they are complete."""
        if item.batch is not None:
            self._reply(item.batch, item.batch.put(item.place, answer))

    def _send_late(self, batch: _Batch) -> None:
        self._reply(batch, batch.close())

    def _reply(self, batch: _Batch, reply: ManyReply | None) -> None:
        if reply is not None:
            self._spawn(self._send(batch.reply, reply))

    async def _send(self, subject: str, reply: ManyReply) -> None:
        try:
            await self._bus.publish(subject, encode(reply))
        except RetryLater:
            self.refused += 1  # as for a single answer

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
                self._give(message, None)
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

    async def _handle(self, speaker: Speaker, item: _Item) -> None:
        data: bytes | None = None
        try:
            answer = await self._answer(item)
            if answer is not None and item.batch is not None:
                data = _encoded(answer)
            elif answer is not None and item.reply is not None:
                await self._bus.publish(item.reply, _encoded(answer))
        except RetryLater:
            self.refused += 1  # the bus is down: the sender hears nothing and says it again
        finally:
            self._give(item, data)
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
        reason = reason_of(_too_often(subject.verb, excess))
        known = self._known.get(subject.verb)
        answer = ManyReply(error=reason) if known is None else known.failed(reason)
        await self._bus.publish(message.reply, encode(answer))

    def excessive(self) -> list[tuple[str, int]]:
        """The nodes that said more than they may in the last ten minutes, and how many of their messages went unheard
        since the hub started; the most first."""
        return self._restraint.excessive(self._clock())

    def _say(self, event: str, *, node: str, **more: str) -> None:
        """One line a minute for each node and event, with a count: whoever repeats a mistake does not fill the log."""
        count = self._tally.note(f"{node} {event} {more.get('kind', '')}", self._clock())
        if count:
            self._log.warning(event, node=node, count=count, **more)

    async def _answer(self, message: _Item) -> Message | None:
        """The answer, or None where none may be given."""
        self.handled += 1
        try:
            subject = message.parsed or subjects.parse_hub(message.subject)
        except InvalidInput:
            self.refused += 1
            self._metrics.dropped("subject")
            return None
        if message.reply is not None and not subjects.reply_allowed(subject.node, message.reply):
            self.refused += 1
            self._metrics.dropped("reply")
            self._say("reply subject refused", node=subject.node, verb=subject.verb)
            return None
        if subject.verb in subjects.BATCHES:  # one that could not be taken apart; this is what its sender hears
            self.refused += 1
            return decode(ManyReply, message.payload)
        verb = self._known[subject.verb]
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


def _encoded(answer: Message) -> bytes:
    """The answer's bytes. That to a want tells of as many objects as fit, the first of the window: the reader asks for
    the others when it has those, or soon."""
    if not isinstance(answer, WantReply):
        return encode(answer)
    while True:
        count = len(answer.objects)
        try:
            data = encode(answer)
        except InvalidInput:
            if not count:
                raise
        else:
            if len(data) <= _WANT_REPLY or count <= 1:
                return data
        answer = structs.replace(
            answer, objects=answer.objects[: count - 1 - count // 8], again_in=min(answer.again_in, _REST_AGAIN)
        )


def _too_often(verb: str, excess: Excess) -> RetryLater:
    return RetryLater(f"this node says {verb} too often", kind="too-many-requests", retry_after=round(excess.wait, 3))


def _of(channel: str) -> str:
    """A channel among names of nodes: no key of a node begins so."""
    return f"channel {channel}"
