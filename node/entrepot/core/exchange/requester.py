"""The requester: from a stream id to all its objects verified, one want at a time.

A :class:`Requester` is told what happened and when, and answers with what to do next. It keeps a sliding window of
wanted objects in front of what it is fetching, takes what is ready or on its way first when the order does not matter,
and ends in :class:`Finish` or in :class:`Fail` with a stated reason: its deadline is moved by verified bytes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET

from entrepot.core.errors import Conflict, Corrupt, Denied, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot.core.exchange.concurrency import Concurrency
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.messages import (
    MAX_OBJECTS,
    Bad,
    Cancel,
    Got,
    Missing,
    ObjectState,
    Signed,
    State,
    Want,
    WantReply,
)
from entrepot.core.ranges import LAST_NUMBER, MAX_PAIRS, Pair, as_set, common, front, less, rotated, without

#: A reader meets so many corrupt copies (etags) of one object before it gives up; while it is the same one, the hub is
#: given time to judge, and the deadline ends it.
MAX_BAD = 5
#: After so many unanswered wants the silence itself is the reason that is told.
SILENCE = 3


@dataclass(frozen=True, slots=True)
class Learned:
    """The stream's opening is known and proved: find out what is missing, then call :meth:`Requester.begin`."""

    opening: Opening


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this want and report the answer by :meth:`Requester.replied` or :meth:`Requester.unanswered`."""

    want: Want


@dataclass(frozen=True, slots=True)
class Tell:
    """Send this message; no answer is awaited."""

    verb: str
    message: Got | Cancel | Missing | Bad


@dataclass(frozen=True, slots=True)
class Fetch:
    """Download, verify and keep this object; report by ``verified``, ``fetched`` or ``fetch_failed``."""

    number: int
    get: Signed
    etag: str | None


@dataclass(frozen=True, slots=True)
class StopFetch:
    """Give up a download that is under way."""

    number: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Everything wanted is here."""


@dataclass(frozen=True, slots=True)
class Fail:
    """It ends with this reason."""

    error: EntrepotError


type Effect = Learned | Ask | Tell | Fetch | StopFetch | Finish | Fail


class Requester:
    """One get of one stream. ``in_order``: the reader needs objects in the order of its wish; otherwise what is ready
    goes first. ``keep``: the want outlives this process until its deadline. ``whole``: nothing of the stream is here,
    so its first objects are wanted before anything is known of it, and a small stream takes one want. ``transfer``:
    8 random bytes that name this get in everybody's logs. ``now`` is any monotonic clock, in seconds."""

    def __init__(
        self,
        stream: StreamId,
        lock: bytes,
        session: str,
        settings: ExchangeSettings,
        *,
        opening: Opening | None = None,
        in_order: bool = False,
        keep: bool = False,
        whole: bool = False,
        deadline: float | None = None,
        transfer: bytes | None = None,
    ) -> None:
        self.stream = stream
        self.transfer = transfer
        self.opening = opening
        self.ended = False
        self.sources: dict[int, int] = {}  # object number → times its state was seen uploading
        #: How many objects are fetched at once; who fetches them tells it what each request brought.
        self.concurrency = Concurrency(settings.fetches, max(settings.fetches, settings.fetches_most))
        self._lock = lock
        self._session = session
        self._settings = settings
        self._in_order = in_order
        self._keep = keep
        self._whole = whole and opening is None
        #: What was heard of objects before it was known which of them are missing here.
        self._early: dict[int, ObjectState] = {}
        self._patience = settings.want_deadline if deadline is None else deadline
        self._deadline = float("inf")
        self._todo: tuple[Pair, ...] | None = None
        self._known: dict[int, ObjectState] = {}
        self._known_until: dict[int, float] = {}
        self._fetching: dict[int, str | None] = {}
        self._fetching_since: dict[int, float] = {}
        self._asked: frozenset[int] = frozenset()
        self._asked_first: tuple[int, ...] = ()
        self._asking = False
        self._ask_at: float | None = None
        self._unanswered = 0
        self._troubles: dict[int, int] = {}
        #: Which copy (etag) of an object failed to come more than once, and when it is fetched again.
        self._rests: dict[int, tuple[str | None, float]] = {}
        self._bads: dict[int, set[str | None]] = {}
        self._reason: EntrepotError | None = None
        self._trouble: EntrepotError | None = None  # why downloads fail, until one comes

    # -- what happened ------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        """Begin: with a known opening the caller hears :class:`Learned` at once, without one the hub is asked."""
        self._deadline = now + self._patience
        if self.opening is not None:
            return [Learned(self.opening)]
        return self._ask(now)

    def begin(self, missing: Sequence[Pair], now: float) -> list[Effect]:
        """The objects (in the order of wish) that are missing here."""
        self._todo = tuple(missing)
        early, self._early = self._early, {}
        self._know(tuple(early.values()), now)
        return self._step(now)

    def replied(self, reply: WantReply, now: float) -> list[Effect]:
        """The hub answered the want that is under way."""
        if self.ended:
            return []
        self._asking = False
        self._unanswered = 0
        if reply.error is not None:
            return self._refused(reply.error.error(), now)
        if reply.reason is not None:
            self._reason = reply.reason.error()
        elif any(state.state in {"ready", "uploading"} for state in reply.objects):
            self._reason = None
        again = min(max(reply.again_in / 1000, 0.05), self._settings.again_most)
        rests = (at for _, at in self._rests.values() if at > now)
        self._ask_at = min((now + again, *rests))
        effects = self._learn(reply.opening, now)
        if self.ended or self._todo is None:
            self._hear_early(reply.objects)
            return effects
        self._know(reply.objects, now)
        if not self._in_order:
            self._reorder(reply.ready, reply.uploading)
        return effects + self._step(now)

    def unanswered(self, error: EntrepotError, now: float) -> list[Effect]:
        """The want that is under way got no answer."""
        if self.ended:
            return []
        self._asking = False
        self._unanswered += 1
        if error.kind == "deadline":
            error = RetryLater(
                "the hub does not answer",
                kind="hub-unreachable",
                hint="It is down, or cut off from its message bus: try again later, it goes on where it was.",
            )
        return self._refused(error, now)

    def heard(self, state: State, now: float) -> list[Effect]:
        """A state message of this stream arrived."""
        if self.ended or state.lock != self._lock or state.stream != self.stream.raw:
            return []
        effects = self._learn(state.opening, now)
        if self.ended or self._todo is None:
            self._hear_early(state.objects)
            return effects
        self._know(state.objects, now)
        return effects + self._step(now)

    def verified(self, count: int, now: float) -> list[Effect]:
        """So many bytes more were verified and kept: the only thing that moves the deadline."""
        if count > 0:
            self._deadline = max(self._deadline, now + self._patience)
        return []

    def fetched(self, number: int, now: float) -> list[Effect]:
        """All miniblocks of the object are verified and kept."""
        if self.ended or self._todo is None:
            return []
        self._fetching.pop(number, None)
        self._fetching_since.pop(number, None)
        self._known.pop(number, None)
        self._troubles.pop(number, None)
        self._rests.pop(number, None)
        self._trouble = None
        self._todo = without(self._todo, number)
        self._deadline = max(self._deadline, now + self._patience)
        told: list[Effect] = [Tell("got", Got(lock=self._lock, stream=self.stream.raw, numbers=(number,)))]
        return told + self._step(now)

    def fetch_failed(self, number: int, error: EntrepotError, now: float) -> list[Effect]:
        """The download of an object ended without it. Corrupt copies are reported, a missing or expired one is asked
        for again, trouble on the way is retried; a full disk or our own mistake ends the get."""
        if self.ended:
            return []
        etag = self._fetching.pop(number, None)
        self._fetching_since.pop(number, None)
        self._known.pop(number, None)
        troubles = self._troubles[number] = self._troubles.get(number, 0) + 1
        pause = 0.0 if troubles == 1 else min(0.1 * 2.0 ** min(troubles, 6), 5.0)
        effects: list[Effect] = []
        match error:
            case Corrupt():
                copies = self._bads.setdefault(number, set())
                copies.add(etag)
                self._reason = error
                block = error.data.get("miniblock")
                effects.append(
                    Tell(
                        "bad",
                        Bad(
                            lock=self._lock,
                            stream=self.stream.raw,
                            number=number,
                            etag=etag,
                            miniblock=block if isinstance(block, int) else None,
                        ),
                    )
                )
                if len(copies) >= MAX_BAD:
                    return effects + self._fail(error)
            case NotFound() | Conflict():
                effects.append(
                    Tell("missing", Missing(lock=self._lock, stream=self.stream.raw, number=number, etag=etag))
                )
            case Denied():
                self._reason = self._trouble = error
            case RetryLater() if error.kind != "disk-full":
                self._reason = self._trouble = error
            case _:
                return self._fail(error)
        self._ask_soon(now + pause)
        if pause:
            self._rests[number] = (etag, now + pause)
        else:
            self._asked -= {number}
        return effects + self._step(now, ask=pause == 0.0)

    def tick(self, now: float) -> list[Effect]:
        """Time passed: call at :meth:`timer` or later."""
        if self.ended:
            return []
        if now >= self._deadline:
            return self._fail(self._late(now))
        if self._ask_at is not None and now >= self._ask_at and not self._asking:
            return self._ask(now)
        return []

    def cancel(self) -> list[Effect]:
        """The user stopped it: tell the hub, unless the want shall outlive us."""
        if self.ended:
            return []
        return self._fail(RetryLater("stopped by the user", kind="cancelled"))

    def timer(self) -> float | None:
        """When :meth:`tick` wants to be called next."""
        if self.ended:
            return None
        if self._ask_at is None or self._asking:
            return self._deadline
        return min(self._deadline, self._ask_at)

    # -- what to do ---------------------------------------------------------------------------------------------

    @property
    def reason(self) -> EntrepotError | None:
        """What the hub last said it waits for, for people who watch."""
        return self._reason

    @property
    def known(self) -> dict[int, ObjectState]:
        """The latest state heard of each object in the window."""
        return self._known

    def _learn(self, data: bytes | None, now: float) -> list[Effect]:
        if self.opening is not None or data is None:
            return []
        try:
            opening = Opening.decode(data)
            proved = opening.proves(self.stream)
        except InvalidInput:
            proved = False
        if not proved:
            return self._fail(Corrupt("the hub's opening does not prove the stream id", kind="corrupt"))
        self.opening = opening
        if not self._whole:
            self._asked = frozenset()
        self._deadline = max(self._deadline, now + self._patience)
        return [Learned(opening)]

    def _hear_early(self, objects: Sequence[ObjectState]) -> None:
        if self._whole and len(self._early) < MAX_OBJECTS:
            self._early.update((state.number, state) for state in objects)

    def _know(self, objects: Sequence[ObjectState], now: float) -> None:
        for state in objects:
            if self._wanted(state.number):
                self._known[state.number] = state
                if state.get is not None:
                    self._known_until[state.number] = now + state.get.expires / 1000

    def _wanted(self, number: int) -> bool:
        return number not in self._fetching and any(a <= number <= b for a, b in self._todo or ())

    def _reorder(self, ready: Sequence[Pair], uploading: Sequence[Pair]) -> None:
        todo = as_set(self._todo or ())
        first = common(todo, as_set(ready))
        second = less(common(todo, as_set(uploading)), first)
        rest = less(less(todo, first), second)
        pivot = max((last for _, last in (*second, *as_set(uploading), *as_set(ready))), default=-1) + 1
        self._todo = first + second + rotated(rest, pivot)

    def _step(self, now: float, *, ask: bool = True) -> list[Effect]:
        if self._todo is None or self.ended:
            return []
        if not self._todo:
            self.ended = True
            return [Tell("cancel", Cancel(lock=self._lock, stream=self.stream.raw)), Finish()]
        effects: list[Effect] = []
        window = self._window()
        for number in window:
            if len(self._fetching) >= self.concurrency.limit:
                break
            state = self._known.get(number)
            if state is None or state.state != "ready" or state.get is None or number in self._fetching:
                continue
            etag, rest_until = self._rests.get(number, (None, now))
            if now < rest_until and etag == state.etag:
                continue  # or what fails at once would be asked for and fetched without a pause
            if now >= self._known_until.get(number, now):
                del self._known[number]
                self._asked -= {number}
                continue
            self._fetching[number] = state.etag
            self._fetching_since[number] = now
            effects.append(Fetch(number, state.get, state.etag))
        window = self._window()
        # With nothing to do but wait, the hub is to know which object is waited for, not which it was.
        idle = not self._fetching and window[:1] != self._asked_first
        if ask and not self._asking and (idle or not self._asked.issuperset(window)):
            effects += self._ask(now)
        return effects

    def _window(self) -> tuple[int, ...]:
        """The objects to want now: those being fetched and ``window`` more."""
        return front(self._todo or (), min(self._settings.window + len(self._fetching), MAX_OBJECTS))

    def _ask(self, now: float) -> list[Effect]:
        unknown = self._whole and self._todo is None
        numbers = tuple(range(self._settings.window)) if unknown else self._window()
        self._asking = True
        self._asked, self._asked_first = frozenset(numbers), numbers[:1]
        self._ask_at = now + self._settings.again
        left = max(self._deadline - now, 0.0)
        want = Want(
            lock=self._lock,
            stream=self.stream.raw,
            session=self._session,
            ranges=((0, LAST_NUMBER),) if unknown else (self._todo or ())[:MAX_PAIRS],
            window=max(len(numbers), 1),
            deadline=int((left if self._keep else min(left, self._patience)) * 1000),
            keep=self._keep,
            transfer=UNSET if self.transfer is None else self.transfer,
        )
        return [Ask(want)]

    def _ask_soon(self, at: float) -> None:
        self._ask_at = at if self._ask_at is None else min(self._ask_at, at)

    def _refused(self, error: EntrepotError, now: float) -> list[Effect]:
        if not isinstance(error, RetryLater):
            return self._fail(error)
        if self._reason is None or self._unanswered >= SILENCE:
            self._reason = error  # a single lost answer does not hide what the hub said before
        self._asked = frozenset()
        pause = min(0.25 * 2.0 ** min(self._unanswered, 6), 5.0)
        after = error.data.get("retry_after")  # the hub's word, as far as a want may wait at all
        if isinstance(after, int | float) and after > pause:
            pause = min(after, self._settings.again_most)
        self._ask_at = now + pause
        return []

    def _late(self, now: float) -> EntrepotError:
        if self._reason is not None:
            return self._reason
        if self._trouble is not None:  # the hub, which reaches the bucket, sees nothing in the way
            return self._trouble
        if any(now - since >= self._patience / 2 for since in self._fetching_since.values()):
            return RetryLater(
                f"nothing came from the bucket for {self._patience:g} s",
                kind="bucket-unreachable",
                hint="What is wanted lies there: look at the way from this machine to the bucket, then try again.",
                seconds=self._patience,
            )
        return RetryLater(
            f"nothing arrived for {self._patience:g} s",
            kind="deadline",
            hint="The holder may be slow, or gone meanwhile: try again, or give it more time with --timeout.",
            seconds=self._patience,
        )

    def _fail(self, error: EntrepotError) -> list[Effect]:
        self.ended = True
        effects: list[Effect] = [StopFetch(number) for number in self._fetching]
        if not self._keep and not isinstance(error, (InvalidInput, Denied)):
            effects.append(Tell("cancel", Cancel(lock=self._lock, stream=self.stream.raw)))
        return [*effects, Fail(error)]
