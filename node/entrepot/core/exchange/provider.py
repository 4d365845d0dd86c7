"""The provider: a daemon session that offers what it holds and uploads what it is granted.

A :class:`Provider` is told what happened and when, and answers with what to do next. A grant passes through
preparing (header and digest from the store), accepting (the hub signs), waiting for a slot, uploading and reporting;
the hub's answer to ``done`` ends it. What waits for a slot until its lease is nearly over is handed back. Every message
may be lost: accept and done are repeated until answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from entrepot.core.errors import EntrepotError, RetryLater
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening
from entrepot.core.messages import (
    MAX_HEADER,
    Accept,
    AcceptReply,
    Ack,
    Done,
    Grant,
    Offer,
    Progress,
    Seek,
    Signed,
    reason_of,
)
from entrepot.core.ranges import MAX_PAIRS, Pair

#: Seconds for which an unanswered ``done`` is repeated; the hub looks by itself after that.
DONE_PATIENCE = 30.0
#: Where an upload takes this part of a lease or less, what comes next is accepted before a slot is free.
QUICK = 16


@dataclass(frozen=True, slots=True)
class SendOffer:
    """Send this offer to the hub instance that asked."""

    hub: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class Prepare:
    """Read the object's header and digest from the store; report by ``prepared`` or ``unprepared``."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class SendAccept:
    """Ask the hub for the URL; report by ``accepted`` or ``accept_unanswered``."""

    accept: Accept


@dataclass(frozen=True, slots=True)
class Upload:
    """PUT the object; report by ``sent`` and ``uploaded``."""

    grant: Grant
    put: Signed


@dataclass(frozen=True, slots=True)
class StopUpload:
    """Give up an upload that is under way."""

    grant: bytes


@dataclass(frozen=True, slots=True)
class SendProgress:
    """Send this progress report."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class SendDone:
    """Send this and report by ``done_answered`` or ``done_unanswered``."""

    done: Done


type Effect = SendOffer | Prepare | SendAccept | Upload | StopUpload | SendProgress | SendDone


class Stage(Enum):
    """Where a grant stands."""

    QUEUED = "queued"
    PREPARING = "preparing"
    ACCEPTING = "accepting"
    WAITING = "waiting"
    UPLOADING = "uploading"
    REPORTING = "reporting"


#: What was accepted and still waits for a slot is handed back this part of a lease before its own is over.
_BEFORE_END = 8
#: Stages that end with the lease: nothing renews it yet.
_LEASED = (Stage.QUEUED, Stage.ACCEPTING, Stage.WAITING)
#: Stages that take a slot, or will soon.
_ACTIVE = (Stage.PREPARING, Stage.ACCEPTING, Stage.WAITING, Stage.UPLOADING)


@dataclass(slots=True)
class _Task:
    grant: Grant
    stage: Stage
    lease_until: float
    accept: Accept | None = None
    put: Signed | None = None
    began_at: float = 0.0
    again_at: float | None = None
    sent: int = 0
    told: int = 0
    told_at: float = 0.0
    done: Done | None = None
    done_until: float = 0.0
    tries: int = field(default=0)


class Provider:
    """The providing half of one session. ``now`` is any monotonic clock, in seconds."""

    def __init__(self, session: str, settings: ExchangeSettings) -> None:
        self.session = session
        self._settings = settings
        self._tasks: dict[bytes, _Task] = {}
        self._took = float("inf")  # seconds that the last upload took

    @property
    def free(self) -> int:
        """Upload slots that are free."""
        return max(self._settings.slots - self._busy(), 0)

    @property
    def stages(self) -> dict[bytes, Stage]:
        """Every grant under way and where it stands."""
        return {grant: task.stage for grant, task in self._tasks.items()}

    def sought(self, seek: Seek, opening: Opening, ranges: Sequence[Pair], now: float) -> list[Effect]:
        """Somebody seeks a stream of which this node holds ``ranges`` in that channel."""
        if not ranges and opening.length:
            return []
        offer = Offer(
            lock=seek.lock,
            stream=seek.stream,
            session=self.session,
            opening=opening.encode(),
            ranges=tuple(ranges)[:MAX_PAIRS],
            slots=max(self._settings.slots + self._settings.queue - len(self._tasks), 0),
        )
        return [SendOffer(seek.hub, offer)]

    def granted(self, grant: Grant, now: float) -> list[Effect]:
        """A grant arrived. A repeated one changes nothing, one too many is declined at once, one that another holder
        has now is given up: unless its bytes are all out, which the hub is told then as ever."""
        task = self._tasks.get(grant.grant)
        if grant.stop is True:
            return self._stopped(grant.grant, now)
        if task is not None:
            return []
        if len(self._tasks) >= self._settings.slots + self._settings.queue:
            busy = RetryLater("all upload slots are taken", kind="busy")
            return [SendDone(Done(lock=grant.lock, grant=grant.grant, error=reason_of(busy)))]
        task = _Task(grant, Stage.QUEUED, now + grant.lease / 1000)
        self._tasks[grant.grant] = task
        return self._start(now)

    def prepared(
        self, grant: bytes, header: bytes, digest: bytes, now: float, *, length: int | None = None
    ) -> list[Effect]:
        """The store gave the object's header and the digest of the whole object that the grant asked for; ``length``:
        bytes of the object, where the header alone says it."""
        task = self._at(grant, Stage.PREPARING)
        if task is None:
            return []
        task.stage = Stage.ACCEPTING
        task.accept = Accept(
            lock=task.grant.lock,
            grant=grant,
            session=self.session,
            header=header if len(header) <= MAX_HEADER else b"",
            digest=digest,
            length=msgspec.UNSET if length is None or len(header) <= MAX_HEADER else length,
        )
        return [SendAccept(task.accept)]

    def unprepared(self, grant: bytes, error: EntrepotError, now: float) -> list[Effect]:
        """The store cannot give the object (changed, gone, unreadable)."""
        return self._report(grant, error, now)

    def accepted(self, grant: bytes, reply: AcceptReply, now: float) -> list[Effect]:
        """The hub answered the accept."""
        task = self._at(grant, Stage.ACCEPTING)
        if task is None:
            return []
        if reply.put is None:
            error = None if reply.error is None else reply.error.error()
            if isinstance(error, RetryLater):
                return self.accept_unanswered(grant, error, now)
            del self._tasks[grant]
            return self._start(now)
        task.stage = Stage.WAITING
        task.put = reply.put
        task.again_at = None
        task.lease_until = now + reply.lease / 1000
        return self._start(now)

    def accept_unanswered(self, grant: bytes, error: EntrepotError, now: float) -> list[Effect]:
        """The accept got no answer: it is repeated while the lease may hold."""
        task = self._at(grant, Stage.ACCEPTING)
        if task is None:
            return []
        task.tries += 1
        task.again_at = now + min(0.1 * 2.0**task.tries, 2.0)
        return []

    def sent(self, grant: bytes, count: int, now: float) -> list[Effect]:
        """``count`` bytes of the object in all went out."""
        task = self._at(grant, Stage.UPLOADING)
        if task is None:
            return []
        task.sent = max(task.sent, count)
        if task.sent <= task.told or now < task.told_at + self._settings.lease / 8:
            return []
        task.told, task.told_at = task.sent, now
        return [SendProgress(Progress(lock=task.grant.lock, grant=grant, sent=task.sent))]

    def uploaded(self, grant: bytes, error: EntrepotError | None, now: float) -> list[Effect]:
        """The PUT ended, well or not. Whichever: the hub is told to look."""
        task = self._at(grant, Stage.UPLOADING)
        if task is not None:
            self._took = now - task.began_at if error is None else float("inf")
        return self._report(grant, error, now)

    def done_answered(self, grant: bytes, ack: Ack, now: float) -> list[Effect]:
        """The hub heard the ``done``. Trouble on its side makes us repeat it."""
        task = self._at(grant, Stage.REPORTING)
        if task is None:
            return []
        error = None if ack.error is None else ack.error.error()
        if isinstance(error, RetryLater):
            return self.done_unanswered(grant, now)
        del self._tasks[grant]
        return self._start(now)

    def done_unanswered(self, grant: bytes, now: float) -> list[Effect]:
        """The ``done`` got no answer: it is repeated for a while."""
        task = self._at(grant, Stage.REPORTING)
        if task is None:
            return []
        if now >= task.done_until:
            del self._tasks[grant]
            return self._start(now)
        task.tries += 1
        task.again_at = now + min(0.1 * 2.0**task.tries, 2.0)
        return []

    def tick(self, now: float) -> list[Effect]:
        """Time passed: call at :meth:`timer` or later."""
        effects: list[Effect] = []
        for grant, task in list(self._tasks.items()):
            if task.stage in _LEASED and now >= self._ends(task):
                if task.stage is Stage.WAITING:  # the hub counts on it: others may have a slot
                    error = RetryLater("no upload slot came free in time", kind="busy")
                    effects += self._report(grant, error, now)
                else:
                    del self._tasks[grant]
            elif task.again_at is not None and now >= task.again_at:
                task.again_at = None
                if task.stage is Stage.ACCEPTING and task.accept is not None:
                    effects.append(SendAccept(task.accept))
                elif task.stage is Stage.REPORTING and task.done is not None:
                    effects.append(SendDone(task.done))
        return effects + self._start(now)

    def timer(self) -> float | None:
        """When :meth:`tick` wants to be called next."""
        times = [task.again_at for task in self._tasks.values() if task.again_at is not None]
        times += [self._ends(t) for t in self._tasks.values() if t.stage in _LEASED]
        return min(times, default=None)

    def withdraw(self, now: float) -> list[Effect]:
        """The session ends: uploads stop and every lease is handed back at once."""
        error = RetryLater("the provider is leaving", kind="cancelled")
        effects: list[Effect] = []
        for grant, task in list(self._tasks.items()):
            if task.stage is Stage.UPLOADING:
                effects.append(StopUpload(grant))
            if task.stage is not Stage.REPORTING:
                effects.append(SendDone(Done(lock=task.grant.lock, grant=grant, error=reason_of(error))))
        self._tasks.clear()
        return effects

    def _stopped(self, grant: bytes, now: float) -> list[Effect]:
        task = self._tasks.get(grant)
        if task is None or task.stage is Stage.REPORTING:
            return []
        del self._tasks[grant]
        stop: list[Effect] = [StopUpload(grant)] if task.stage is Stage.UPLOADING else []
        return stop + self._start(now)

    def _ends(self, task: _Task) -> float:
        """When a task of a stage that nothing renews is given up."""
        return task.lease_until - (self._settings.lease / _BEFORE_END if task.stage is Stage.WAITING else 0.0)

    def _busy(self) -> int:
        return sum(task.stage in _ACTIVE for task in self._tasks.values())

    def _start(self, now: float) -> list[Effect]:
        """Have what is accepted uploaded while there are slots, and the next objects prepared and accepted: where an
        upload is quick, while the slots are still taken, so that none is idle for that long."""
        effects: list[Effect] = []
        slots, uploading, active = self._settings.slots, self._uploading(), self._busy()
        most = 2 * slots if self._took <= self._settings.lease / QUICK else slots
        for task in self._tasks.values():
            if task.stage is Stage.WAITING and task.put is not None and uploading < slots and now < task.lease_until:
                uploading += 1
                task.stage = Stage.UPLOADING
                task.told_at = task.began_at = now
                effects.append(Upload(task.grant, task.put))
            elif task.stage is Stage.QUEUED and active < most and now < task.lease_until:
                active += 1
                task.stage = Stage.PREPARING
                effects.append(Prepare(task.grant))
        return effects

    def _uploading(self) -> int:
        return sum(task.stage is Stage.UPLOADING for task in self._tasks.values())

    def _at(self, grant: bytes, stage: Stage) -> _Task | None:
        task = self._tasks.get(grant)
        return task if task is not None and task.stage is stage else None

    def _report(self, grant: bytes, error: EntrepotError | None, now: float) -> list[Effect]:
        task = self._tasks.get(grant)
        if task is None or task.stage is Stage.REPORTING:
            return []
        task.stage = Stage.REPORTING
        task.tries = 0
        task.again_at = None
        task.done_until = now + DONE_PATIENCE
        task.done = Done(lock=task.grant.lock, grant=grant, error=None if error is None else reason_of(error))
        return [SendDone(task.done), *self._start(now)]
