"""The provider's state machine."""

from __future__ import annotations

import msgspec

from entrepot.core.errors import Conflict, RetryLater
from entrepot.core.exchange.provider import (
    Effect,
    Prepare,
    Provider,
    SendAccept,
    SendDone,
    SendOffer,
    SendProgress,
    Stage,
    StopUpload,
    Upload,
)
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.identifiers import Opening
from entrepot.core.messages import MAX_HEADER, AcceptReply, Ack, Grant, Seek, Signed, reason_of

OPENING = Opening(12 * 4_194_304, b"\x07" * 32)
STREAM = OPENING.stream_id()
LOCK = b"\x01" * 8
SESSION = "0" * 16
SETTINGS = ExchangeSettings(slots=2, queue=2)
PUT = Signed(method="PUT", url="https://b/k", expires=900_000)


def grant(number: int, lease: int = 10_000) -> Grant:
    """A grant for one object."""
    return Grant(
        lock=LOCK,
        stream=STREAM.raw,
        number=number,
        grant=bytes([number]) * 16,
        opening=OPENING.encode(),
        lease=lease,
    )


def one[T](kind: type[T], effects: list[Effect]) -> T:
    """The only effect of a kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


def uploading(provider: Provider, number: int, now: float = 0.0) -> bytes:
    """Bring a grant to its upload."""
    message = grant(number)
    one(Prepare, provider.granted(message, now))
    one(SendAccept, provider.prepared(message.grant, b"header", b"\x05" * 32, now))
    one(Upload, provider.accepted(message.grant, AcceptReply(put=PUT, lease=10_000), now))
    return message.grant


def test_a_put_url_lives_no_longer_than_the_slowest_upload() -> None:
    """A minute and what the bytes take at the rate below which the lease ends, and never longer than the setting."""
    settings = ExchangeSettings()
    assert settings.put_life(0) == 60.0
    assert settings.put_life(4 << 20) == 60.0 + 256.0
    assert settings.put_life(1 << 30) == settings.put_url == 900.0


def test_it_offers_what_it_holds() -> None:
    """An offer answers the hub instance that sought, with the opening, the ranges and the free slots."""
    provider = Provider(SESSION, SETTINGS)
    seek = Seek(lock=LOCK, stream=STREAM.raw, hub="a" * 16)
    effect = one(SendOffer, provider.sought(seek, OPENING, ((0, 11),), 0.0))
    assert effect.hub == "a" * 16
    assert (effect.offer.ranges, effect.offer.slots) == (((0, 11),), 4)
    assert provider.sought(seek, OPENING, (), 0.0) == []


def test_an_empty_stream_is_offered_for_its_opening() -> None:
    """A stream of length zero has no objects, but its holder can say how long it is."""
    empty = Opening(0, bytes(32))
    seek = Seek(lock=LOCK, stream=empty.stream_id().raw, hub="a" * 16)
    assert one(SendOffer, Provider(SESSION, SETTINGS).sought(seek, empty, (), 0.0)).offer.ranges == ()


def test_a_grant_goes_its_way() -> None:
    """Prepare, accept, upload, done: each step follows the one before, and the slot is free again in the end."""
    provider = Provider(SESSION, SETTINGS)
    name = uploading(provider, 1)
    assert provider.free == 1
    done = one(SendDone, provider.uploaded(name, None, 1.0)).done
    assert (done.grant, done.error) == (name, None)
    assert provider.free == 2
    assert provider.done_answered(name, Ack(), 1.1) == []
    assert provider.stages == {}


def test_a_repeated_grant_changes_nothing() -> None:
    """The hub sends a grant again until it is accepted; the second one is no second upload."""
    provider = Provider(SESSION, SETTINGS)
    one(Prepare, provider.granted(grant(1), 0.0))
    assert provider.granted(grant(1), 0.1) == []


def test_grants_wait_for_a_slot_and_one_too_many_is_declined() -> None:
    """Two uploads run, two grants wait, the fifth is handed back as busy at once."""
    provider = Provider(SESSION, SETTINGS)
    names = [uploading(provider, 1), uploading(provider, 2)]
    assert provider.granted(grant(3), 0.0) == []
    assert provider.granted(grant(4), 0.0) == []
    declined = one(SendDone, provider.granted(grant(5), 0.0)).done
    assert declined.error is not None
    assert declined.error.kind == "busy"
    effects = provider.uploaded(names[0], None, 1.0)
    assert one(Prepare, effects).grant.number == 3


def test_a_grant_that_waited_too_long_is_forgotten() -> None:
    """When the lease is over before a slot came free the hub has passed the object on already."""
    provider = Provider(SESSION, SETTINGS)
    uploading(provider, 1)
    uploading(provider, 2)
    provider.granted(grant(3, lease=1000), 0.0)
    assert provider.timer() == 1.0
    provider.tick(1.0)
    assert grant(3).grant not in provider.stages


def test_an_unanswered_accept_is_repeated_while_the_lease_may_hold() -> None:
    """The accept is sent again, less and less often, and given up with the lease."""
    provider = Provider(SESSION, SETTINGS)
    provider.granted(grant(1), 0.0)
    provider.prepared(grant(1).grant, b"h", b"\x05" * 32, 0.0)
    now, sent = 0.0, 0
    while provider.stages:
        provider.accept_unanswered(grant(1).grant, RetryLater("no answer"), now)
        timer = provider.timer()
        assert timer is not None
        now = timer
        sent += sum(isinstance(effect, SendAccept) for effect in provider.tick(now))
    assert now <= 10.0
    assert 4 < sent < 12


def test_a_refused_accept_frees_the_slot() -> None:
    """A stale grant is dropped without a word: the hub knows."""
    provider = Provider(SESSION, SETTINGS)
    provider.granted(grant(1), 0.0)
    provider.prepared(grant(1).grant, b"h", b"\x05" * 32, 0.0)
    stale = reason_of(Conflict("not any more", kind="stale-grant"))
    assert provider.accepted(grant(1).grant, AcceptReply(error=stale), 0.1) == []
    assert provider.stages == {}


def test_progress_is_told_in_time_to_keep_the_lease() -> None:
    """Growing bytes are reported several times per lease, standing still is not."""
    provider = Provider(SESSION, SETTINGS)
    name = uploading(provider, 1)
    assert provider.sent(name, 10, 0.1) == []
    assert one(SendProgress, provider.sent(name, 20, 1.3)).progress.sent == 20
    assert provider.sent(name, 20, 9.0) == []


def stop(number: int) -> Grant:
    """The grant is over: another holder has its object."""
    return msgspec.structs.replace(grant(number), stop=True)


def test_what_another_holder_took_over_is_given_up() -> None:
    """The upload stops, its slot goes to the next, nothing is said of it, and what was never granted stays unknown."""
    provider = Provider(SESSION, SETTINGS)
    names = [uploading(provider, 1), uploading(provider, 2)]
    for waiting in (3, 4):
        assert provider.granted(grant(waiting), 0.0) == []
    effects = provider.granted(stop(1), 1.0)
    assert one(StopUpload, effects).grant == names[0]
    assert one(Prepare, effects).grant.number == 3
    assert not [effect for effect in effects if isinstance(effect, SendDone)]
    assert provider.granted(stop(4), 1.0) == []
    assert provider.granted(stop(9), 1.0) == []
    assert set(provider.stages) == {names[1], grant(3).grant}
    assert provider.uploaded(names[0], None, 2.0) == []


def test_what_has_gone_out_is_told_though_another_took_it_over() -> None:
    """Its bytes may be the ones that count: the hub looks."""
    provider = Provider(SESSION, SETTINGS)
    name = uploading(provider, 1)
    one(SendDone, provider.uploaded(name, None, 1.0))
    assert provider.granted(stop(1), 1.0) == []
    assert provider.stages == {name: Stage.REPORTING}


def test_where_uploads_are_quick_the_next_are_accepted_before_a_slot_is_free() -> None:
    """No slot is idle while an object is read and its URL fetched; where an upload takes long nothing is accepted that
    would wait out its lease."""
    provider = Provider(SESSION, SETTINGS)
    names = [uploading(provider, 1), uploading(provider, 2)]
    for waiting in (3, 4):
        assert provider.granted(grant(waiting), 0.0) == []
    effects = provider.uploaded(names[0], None, 0.1)
    assert [effect.grant.number for effect in effects if isinstance(effect, Prepare)] == [3, 4]
    for number in (3, 4):
        provider.prepared(grant(number).grant, b"header", b"\x05" * 32, 0.1)
    assert one(Upload, provider.accepted(grant(3).grant, AcceptReply(put=PUT, lease=10_000), 0.2)).grant.number == 3
    assert provider.accepted(grant(4).grant, AcceptReply(put=PUT, lease=10_000), 0.2) == []
    assert provider.stages[grant(4).grant] is Stage.WAITING
    assert provider.free == 0
    assert one(Upload, provider.uploaded(names[1], None, 0.3)).grant.number == 4
    slow = Provider(SESSION, SETTINGS)
    names = [uploading(slow, 1), uploading(slow, 2)]
    for waiting in (3, 4):
        slow.granted(grant(waiting), 0.0)
    effects = slow.uploaded(names[0], None, 5.0)
    assert one(Prepare, effects).grant.number == 3


def test_what_waits_for_a_slot_too_long_is_handed_back() -> None:
    """Before its lease is over at the hub, so that another may have it; that is no failure, and repeated until heard.
    The hub's own word for it sent again begins nothing."""
    provider = Provider(SESSION, SETTINGS)
    names = [uploading(provider, 1), uploading(provider, 2)]
    provider.granted(grant(3), 0.0)
    provider.granted(grant(4), 0.0)
    provider.uploaded(names[0], None, 0.1)
    for number in (3, 4):
        provider.prepared(grant(number).grant, b"header", b"\x05" * 32, 0.1)
        provider.accepted(grant(number).grant, AcceptReply(put=PUT, lease=10_000), 0.2)
    assert provider.stages[grant(4).grant] is Stage.WAITING
    assert provider.granted(grant(4), 0.3) == []
    assert provider.timer() == 10.2 - SETTINGS.lease / 8
    assert provider.tick(8.9) == []
    done = one(SendDone, provider.tick(10.2 - SETTINGS.lease / 8)).done
    assert (done.grant, done.error and done.error.kind) == (grant(4).grant, "busy")
    assert provider.granted(grant(4), 9.0) == []
    provider.done_unanswered(done.grant, 9.0)
    assert one(SendDone, provider.tick(9.5)).done == done
    provider.done_answered(done.grant, Ack(), 9.6)
    assert grant(4).grant not in provider.stages


def test_what_cannot_be_prepared_is_handed_back() -> None:
    """A file that changed is no longer what was offered: the hub hears why and asks another holder."""
    provider = Provider(SESSION, SETTINGS)
    provider.granted(grant(1), 0.0)
    done = one(SendDone, provider.unprepared(grant(1).grant, Conflict("changed", kind="changed"), 0.1)).done
    assert done.error is not None
    assert done.error.kind == "changed"


def test_done_is_repeated_until_it_is_heard() -> None:
    """A lost ``done`` is said again, for half a minute; then the hub finds out by itself."""
    provider = Provider(SESSION, SETTINGS)
    name = uploading(provider, 1)
    provider.uploaded(name, None, 0.0)
    now, sent = 0.0, 0
    while provider.stages:
        provider.done_unanswered(name, now)
        timer = provider.timer()
        if timer is None:
            break
        now = timer
        sent += sum(isinstance(effect, SendDone) for effect in provider.tick(now))
    assert 10 < sent < 40
    assert now >= 28.0


def test_leaving_hands_every_lease_back() -> None:
    """A daemon that stops ends its uploads and says so, so that others go on at once."""
    provider = Provider(SESSION, SETTINGS)
    name = uploading(provider, 1)
    provider.granted(grant(2), 0.0)
    effects = provider.withdraw(1.0)
    assert one(StopUpload, effects).grant == name
    assert {e.done.grant for e in effects if isinstance(e, SendDone)} == {name, grant(2).grant}
    assert provider.stages == {}


def test_a_header_too_long_for_a_message_stays_at_home() -> None:
    """The accept of a huge object carries no header; the hub reads it from the bucket."""
    provider = Provider(SESSION, SETTINGS)
    provider.granted(grant(1), 0.0)
    effects = provider.prepared(grant(1).grant, bytes(MAX_HEADER + 1), b"\x05" * 32, 0.0)
    assert one(SendAccept, effects).accept.header == b""


def test_events_for_unknown_grants_change_nothing() -> None:
    """Late answers for grants that are over are ignored."""
    provider = Provider(SESSION, SETTINGS)
    assert provider.prepared(b"x" * 16, b"", b"\x05" * 32, 0.0) == []
    assert provider.accepted(b"x" * 16, AcceptReply(put=PUT), 0.0) == []
    assert provider.uploaded(b"x" * 16, None, 0.0) == []
    assert provider.done_answered(b"x" * 16, Ack(), 0.0) == []
    assert provider.timer() is None
    assert Stage.UPLOADING.value == "uploading"
