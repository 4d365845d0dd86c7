"""The requester's state machine."""

from __future__ import annotations

import pytest

from entrepot.core.errors import Conflict, Corrupt, Denied, EntrepotError, NotFound, RetryLater
from entrepot.core.exchange.requester import Ask, Effect, Fail, Fetch, Finish, Learned, Requester, StopFetch, Tell
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening
from entrepot.core.messages import Bad, Cancel, Got, Missing, ObjectState, Signed, State, WantReply, reason_of
from entrepot.core.ranges import LAST_NUMBER

OPENING = Opening(12 * 4_194_304, b"\x07" * 32)
STREAM = OPENING.stream_id()
LOCK = b"\x01" * 8
SESSION = "0" * 16
SETTINGS = ExchangeSettings(window=4, fetches=2)


def ready(number: int, etag: str = "e", expires: int = 600_000) -> ObjectState:
    """An object that can be fetched."""
    get = Signed(method="GET", url=f"https://b/{number}", expires=expires)
    return ObjectState(number=number, state="ready", length=1, etag=etag, get=get)


def seeking(number: int) -> ObjectState:
    """An object that nobody has yet."""
    return ObjectState(number=number, state="seeking")


def make(*, in_order: bool = False, keep: bool = False, deadline: float | None = None) -> Requester:
    """A requester that knows its opening and misses all twelve objects."""
    requester = Requester(
        STREAM, LOCK, SESSION, SETTINGS, opening=OPENING, in_order=in_order, keep=keep, deadline=deadline
    )
    assert requester.start(0.0) == [Learned(OPENING)]
    return requester


def one[T](kind: type[T], effects: list[Effect]) -> T:
    """The only effect of a kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


def fetched_numbers(effects: list[Effect]) -> list[int]:
    """What is to be fetched."""
    return [effect.number for effect in effects if isinstance(effect, Fetch)]


def test_it_asks_for_a_window_of_what_is_missing() -> None:
    """The first want names everything missing and wants the first few objects now."""
    want = one(Ask, make().begin(((0, 11),), 0.0)).want
    assert want.ranges == ((0, 11),)
    assert want.window == SETTINGS.window
    assert want.deadline == 60_000


def test_what_is_not_here_at_all_is_wanted_at_once() -> None:
    """Of a stream of which nothing is here the first objects are wanted before its length is known; what is heard of
    them meanwhile counts, and no second want is needed."""
    requester = Requester(STREAM, LOCK, SESSION, SETTINGS, whole=True)
    want = one(Ask, requester.start(0.0)).want
    assert (want.ranges, want.window) == (((0, LAST_NUMBER),), SETTINGS.window)
    reply = WantReply(opening=OPENING.encode(), objects=(seeking(0), ready(1)))
    assert requester.replied(reply, 0.1) == [Learned(OPENING)]
    assert requester.heard(State(lock=LOCK, stream=STREAM.raw, objects=(ready(0),)), 0.2) == []
    effects = requester.begin(((0, 11),), 0.3)
    assert fetched_numbers(effects) == [0, 1]
    assert [effect.want.ranges for effect in effects if isinstance(effect, Ask)] == [((0, 11),)]  # for the next in line

    small = Opening(100, b"\x07" * 32)
    requester = Requester(small.stream_id(), LOCK, SESSION, SETTINGS, whole=True)
    requester.start(0.0)
    requester.replied(WantReply(opening=small.encode(), objects=(seeking(0),)), 0.1)
    assert requester.begin(((0, 0),), 0.2) == []
    state = State(lock=LOCK, stream=requester.stream.raw, objects=(ready(0),))
    assert fetched_numbers(requester.heard(state, 0.3)) == [0]


def test_an_unknown_length_is_asked_for_first_and_proved() -> None:
    """Without an opening the hub is asked; what it says must prove the stream id."""
    requester = Requester(STREAM, LOCK, SESSION, SETTINGS)
    assert one(Ask, requester.start(0.0)).want.ranges == ()
    assert requester.replied(WantReply(opening=OPENING.encode()), 0.1) == [Learned(OPENING)]

    lied_to = Requester(STREAM, LOCK, SESSION, SETTINGS)
    lied_to.start(0.0)
    error = one(Fail, lied_to.replied(WantReply(opening=Opening(1, b"\x07" * 32).encode()), 0.1)).error
    assert isinstance(error, Corrupt)


@pytest.mark.parametrize("data", [bytes(8) + b"\x07" * 32, b"\xff" * 40])
def test_an_opening_that_is_none_is_a_lie_too(data: bytes) -> None:
    """Forty bytes that no stream can have as its opening end the get as corrupt, not with a traceback."""
    requester = Requester(STREAM, LOCK, SESSION, SETTINGS)
    requester.start(0.0)
    assert isinstance(one(Fail, requester.replied(WantReply(opening=data), 0.1)).error, Corrupt)


def test_an_opening_that_comes_by_a_state_message_counts_too() -> None:
    """Whoever offers the stream first makes its length known to those who wait."""
    requester = Requester(STREAM, LOCK, SESSION, SETTINGS)
    requester.start(0.0)
    state = State(lock=LOCK, stream=STREAM.raw, objects=(), opening=OPENING.encode())
    assert requester.heard(state, 0.5) == [Learned(OPENING)]


def test_nothing_missing_is_finished() -> None:
    """An empty stream, or one that is here already, ends at once."""
    one(Finish, make().begin((), 0.0))


def test_it_fetches_what_is_ready_a_few_at_a_time_and_slides_on() -> None:
    """Ready objects of the window are fetched two at a time; each verified one moves the window and is told."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    effects = requester.replied(WantReply(objects=tuple(ready(n) for n in range(4))), 0.1)
    assert fetched_numbers(effects) == [0, 1]
    one(Ask, effects)  # the window grew by what is being fetched
    effects = requester.fetched(0, 0.2)
    assert one(Tell, effects).message == Got(lock=LOCK, stream=STREAM.raw, numbers=(0,))
    assert fetched_numbers(effects) == [2]


def test_a_state_message_is_as_good_as_a_reply() -> None:
    """An object that becomes ready is fetched when its state is heard, without asking."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    requester.replied(WantReply(objects=tuple(seeking(n) for n in range(4))), 0.1)
    state = State(lock=LOCK, stream=STREAM.raw, objects=(ready(2),))
    assert fetched_numbers(requester.heard(state, 0.2)) == [2]
    assert requester.heard(state, 0.2) == []  # heard twice: fetched once


def test_other_streams_and_locks_are_not_listened_to() -> None:
    """A state message for another lock or stream changes nothing."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    requester.replied(WantReply(), 0.1)
    assert requester.heard(State(lock=b"\x02" * 8, stream=STREAM.raw, objects=(ready(0),)), 0.2) == []
    assert requester.heard(State(lock=LOCK, stream=b"\xff" * 32, objects=(ready(0),)), 0.2) == []


def test_a_whole_file_takes_what_is_there_first_and_wraps_around() -> None:
    """Ready objects come first, then those on their way, then the rest from there on, and the beginning last."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    effects = requester.replied(WantReply(ready=((5, 5),), uploading=((6, 7),)), 0.1)
    assert one(Ask, effects).want.ranges == ((5, 5), (6, 7), (8, 11), (0, 4))


def test_a_reader_in_order_stays_in_order() -> None:
    """Whoever reads from the front gets the front, whatever else is ready."""
    requester = make(in_order=True)
    requester.begin(((0, 11),), 0.0)
    requester.replied(WantReply(ready=((5, 5),), objects=tuple(seeking(n) for n in range(4))), 0.1)
    assert one(Ask, requester.tick(1.2)).want.ranges == ((0, 11),)


def test_a_lost_answer_costs_a_second() -> None:
    """Without an answer the want is said again soon, and later and later while nobody answers."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    requester.unanswered(RetryLater("no answer", kind="hub-unreachable"), 2.0)
    timer = requester.timer()
    assert timer is not None
    assert 2.0 < timer < 4.0
    one(Ask, requester.tick(timer))


def test_a_quiet_hub_is_asked_again_when_it_said_so() -> None:
    """``again_in`` decides when the want is renewed."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    requester.replied(WantReply(again_in=7000), 1.0)
    assert requester.timer() == 8.0
    assert requester.tick(7.9) == []
    one(Ask, requester.tick(8.0))


def test_only_verified_bytes_move_the_deadline() -> None:
    """Answers, states and promises do not keep a get alive; verified bytes do."""
    requester = make(deadline=10.0)
    requester.begin(((0, 11),), 0.0)
    reason = reason_of(NotFound("nobody has it", kind="no-holder"))
    for second in range(1, 10):
        requester.replied(WantReply(reason=reason, again_in=60_000), float(second))
    requester.verified(1, 5.0)
    assert requester.tick(14.9) == [] or requester.timer() is not None
    error = one(Fail, requester.tick(15.0)).error
    assert error.kind == "no-holder"


def test_a_bucket_that_sends_nothing_is_the_reason() -> None:
    """What is wanted lies ready and nothing of it comes: the way to the bucket is the reason, not the holder. A
    download that began just before the deadline is none."""
    requester = make(deadline=4.0)
    requester.begin(((0, 11),), 0.0)
    requester.replied(WantReply(objects=(ready(0),), again_in=60_000), 0.1)
    error = one(Fail, requester.tick(4.0)).error
    assert error.kind == "bucket-unreachable"
    assert error.hint
    late = make(deadline=4.0)
    late.begin(((0, 11),), 0.0)
    late.replied(WantReply(objects=(ready(0),), again_in=60_000), 3.0)
    error = one(Fail, late.tick(4.0)).error
    assert error.kind == "deadline"
    assert error.hint is not None
    assert "--timeout" in error.hint


def test_a_bucket_that_refuses_a_reader_is_the_reason() -> None:
    """The hub goes on saying where the object lies, the bucket refuses each request for it: that is told in the end."""
    requester = make(deadline=4.0)
    requester.begin(((0, 11),), 0.0)
    requester.replied(WantReply(objects=(ready(0),), again_in=60_000), 0.1)
    requester.fetch_failed(0, Denied("the bucket refused the request"), 0.2)
    requester.replied(WantReply(objects=(ready(0),), again_in=60_000), 0.3)
    assert one(Fail, requester.tick(4.0)).error.kind == "denied"


def test_a_hub_that_does_not_answer_is_the_reason() -> None:
    """Wants without an answer end in words about the hub, not about subjects of the bus."""
    requester = make(deadline=4.0)
    requester.begin(((0, 11),), 0.0)
    requester.unanswered(RetryLater("no answer on hub.demo.want", kind="deadline"), 2.0)
    error = one(Fail, requester.tick(4.0)).error
    assert error.kind == "hub-unreachable"
    assert "hub.demo" not in error.message


def test_at_the_deadline_the_last_stated_reason_is_given() -> None:
    """Without a reason from the hub the deadline itself is the reason."""
    requester = make(deadline=3.0)
    requester.begin(((0, 11),), 0.0)
    requester.replied(WantReply(again_in=60_000), 0.1)
    effects = requester.tick(3.0)
    assert one(Fail, effects).error.kind == "deadline"
    assert one(Tell, effects).message == Cancel(lock=LOCK, stream=STREAM.raw)


def test_a_kept_want_is_not_cancelled() -> None:
    """With ``keep`` neither the deadline nor the user's Ctrl-C takes the want back."""
    requester = make(keep=True, deadline=600.0)
    want = one(Ask, requester.begin(((0, 11),), 0.0)).want
    assert (want.keep, want.deadline) == (True, 600_000)
    assert not [e for e in requester.cancel() if isinstance(e, Tell)]


@pytest.mark.parametrize(
    "error", [Denied("no", kind="no-right"), Conflict("old lock", kind="stale-lock"), NotFound("no such channel")]
)
def test_a_refusal_ends_it(error: EntrepotError) -> None:
    """What asking again cannot mend ends the get at once, with the hub's reason."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    assert one(Fail, requester.replied(WantReply(error=reason_of(error)), 0.1)).error.kind == error.kind


def test_a_bad_object_is_reported_and_asked_for_again() -> None:
    """A miniblock that does not verify is named to the hub, with the etag it came under."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    requester.replied(WantReply(objects=(ready(0, "x"),)), 0.1)
    corrupt = Corrupt("does not verify", kind="corrupt-object", miniblock=3)
    effects = requester.fetch_failed(0, corrupt, 0.2)
    assert one(Tell, effects).message == Bad(lock=LOCK, stream=STREAM.raw, number=0, etag="x", miniblock=3)
    assert not requester.ended


def test_a_reader_gives_up_on_an_object_that_stays_bad() -> None:
    """Five different copies of one object that are all corrupt end the get as corrupt."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    corrupt = Corrupt("does not verify", kind="corrupt-object")
    effects: list[Effect] = requester.replied(WantReply(objects=(ready(0, "copy0"),)), 0.1)
    for attempt in range(1, 6):
        assert not requester.ended
        effects = requester.fetch_failed(0, corrupt, 1.0 + attempt)
        requester.heard(State(lock=LOCK, stream=STREAM.raw, objects=(ready(0, f"copy{attempt}"),)), 1.5 + attempt)
    assert isinstance(one(Fail, effects).error, Corrupt)


def test_the_same_bad_copy_again_leaves_the_hub_time_to_judge() -> None:
    """Meeting one corrupt copy many times is no new evidence: the deadline ends it, with that reason."""
    requester = make(deadline=30.0)
    requester.begin(((0, 11),), 0.0)
    corrupt = Corrupt("does not verify", kind="corrupt-object")
    requester.replied(WantReply(objects=(ready(0),)), 0.1)
    for attempt in range(20):
        requester.fetch_failed(0, corrupt, 1.0 + attempt)
        requester.heard(State(lock=LOCK, stream=STREAM.raw, objects=(ready(0),)), 1.5 + attempt)
    assert not requester.ended
    assert isinstance(one(Fail, requester.tick(30.0)).error, Corrupt)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NotFound("gone", kind="no-such-object"), Missing),
        (Conflict("another etag", kind="changed"), Missing),
        (Denied("expired", kind="expired"), None),
        (RetryLater("503", kind="bucket-unreachable"), None),
    ],
)
def test_trouble_with_a_download_is_asked_about_not_given_up(error: EntrepotError, told: type[Missing] | None) -> None:
    """A missing object is reported, an expired URL renewed, an unreachable bucket tried again: a fresh want follows."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    effects = requester.replied(WantReply(objects=(ready(0),)), 0.1)
    if any(isinstance(effect, Ask) for effect in effects):
        requester.replied(WantReply(), 0.15)
    effects = requester.fetch_failed(0, error, 0.2)
    assert [type(e.message) for e in effects if isinstance(e, Tell)] == ([] if told is None else [told])
    one(Ask, effects)


def test_trouble_that_repeats_slows_down() -> None:
    """The second failure of an object waits before it is asked about again."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    error = RetryLater("503", kind="bucket-unreachable")
    for attempt in range(3):
        effects = requester.replied(WantReply(objects=(ready(0),), again_in=60_000), 1.0 + attempt)
        if any(isinstance(e, Ask) for e in effects):
            requester.replied(WantReply(again_in=60_000), 1.0 + attempt)
        effects = requester.fetch_failed(0, error, 1.1 + attempt)
    assert not [e for e in effects if isinstance(e, Ask)]
    timer = requester.timer()
    assert timer is not None
    assert 3.1 < timer < 9.0


def test_a_full_disk_ends_it() -> None:
    """There is no use in asking again while the disk is full."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    requester.replied(WantReply(objects=(ready(0), ready(1))), 0.1)
    effects = requester.fetch_failed(0, RetryLater("full", kind="disk-full"), 0.2)
    assert one(Fail, effects).error.kind == "disk-full"
    assert one(StopFetch, effects).number == 1


def test_an_expired_url_is_not_used() -> None:
    """A state whose URL ran out meanwhile is asked for again instead of being fetched."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    requester.replied(WantReply(objects=tuple(ready(n, expires=1000) for n in range(4))), 0.0)
    requester.replied(WantReply(), 0.1)
    effects = requester.fetched(0, 2.0)
    assert fetched_numbers(effects) == []
    one(Ask, effects)


def test_everything_fetched_finishes_once() -> None:
    """After the last object the want is taken back and the get is finished; later events change nothing."""
    requester = make()
    requester.begin(((3, 4),), 0.0)
    requester.replied(WantReply(objects=(ready(3), ready(4))), 0.1)
    requester.fetched(3, 0.2)
    effects = requester.fetched(4, 0.3)
    one(Finish, effects)
    assert requester.ended
    assert requester.tick(1e6) == [] == requester.heard(State(lock=LOCK, stream=STREAM.raw, objects=()), 1.0)
    assert requester.timer() is None


def test_what_fails_at_once_is_not_fetched_without_a_pause() -> None:
    """The same copy of an object that failed twice rests, though the hub calls it ready; another copy does not."""
    requester = make()
    requester.begin(((0, 0),), 0.0)
    error = RetryLater("503", kind="bucket-unreachable")
    reply = WantReply(objects=(ready(0),), again_in=60_000)
    assert fetched_numbers(requester.replied(reply, 1.0)) == [0]
    one(Ask, requester.fetch_failed(0, error, 1.0))
    assert fetched_numbers(requester.replied(reply, 1.1)) == [0]
    assert requester.fetch_failed(0, error, 1.1) == []
    assert requester.heard(State(lock=LOCK, stream=STREAM.raw, objects=(ready(0),)), 1.2) == []
    rests_until = requester.timer()
    assert rests_until is not None
    assert 1.3 < rests_until < 3.0
    one(Ask, requester.tick(rests_until))
    assert fetched_numbers(requester.replied(reply, rests_until + 0.01)) == [0]
    requester.fetch_failed(0, error, rests_until + 0.02)
    other = WantReply(objects=(ready(0, "other"),), again_in=60_000)
    requester.tick(requester.timer() or 0.0)
    assert fetched_numbers(requester.replied(other, rests_until + 0.03)) == [0]


def test_an_object_may_fail_for_ever() -> None:
    """However often a download fails, the pauses stay bounded."""
    requester = make(deadline=1e9)
    requester.begin(((0, 0),), 0.0)
    now = 0.0
    for _ in range(1100):
        reply = WantReply(objects=(ready(0),), again_in=60_000)
        requester.replied(reply, now)
        if any(isinstance(e, Ask) for e in requester.fetch_failed(0, RetryLater("503"), now)):
            continue  # asked again at once: the first time
        timer = requester.timer()
        assert timer is not None
        assert timer <= now + 5.0
        now = timer
        requester.tick(now)


@pytest.mark.parametrize(
    ("after", "expected"), [(7.5, 7.5), (1e9, SETTINGS.again_most), (-1.0, 0.25), (float("nan"), 0.25)]
)
def test_it_asks_again_when_the_hub_says_that_there_is_room(after: float, expected: float) -> None:
    """A pause that the hub names is kept, within what a want may wait at all; a senseless one is not."""
    requester = make()
    requester.begin(((0, 11),), 0.0)
    error = RetryLater("too often", kind="too-many-requests", retry_after=after)
    assert not [e for e in requester.replied(WantReply(error=reason_of(error)), 1.0) if isinstance(e, Fail)]
    timer = requester.timer()
    assert timer is not None
    assert timer == min(1.0 + expected, SETTINGS.want_deadline)  # the get itself ends then


def test_downloads_that_fail_are_the_reason_at_the_deadline() -> None:
    """The hub says again and again that an object is ready, and this node cannot reach the bucket: that is told."""
    requester = make(deadline=10.0)
    requester.begin(((0, 0),), 0.0)
    reply = WantReply(objects=(ready(0),), again_in=1000)
    assert fetched_numbers(requester.replied(reply, 0.1)) == [0]
    requester.fetch_failed(0, RetryLater("no connection", kind="bucket-unreachable"), 0.5)
    requester.replied(reply, 0.6)
    requester.fetch_failed(0, RetryLater("no connection", kind="bucket-unreachable"), 9.0)
    requester.replied(reply, 9.1)
    assert one(Fail, requester.tick(10.0)).error.kind == "bucket-unreachable"
