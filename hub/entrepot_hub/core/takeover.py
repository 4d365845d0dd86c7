"""Near the end: a holder that has nothing left to do takes over what one that is much slower still has to upload.

Several holders upload one stream at once. When everything that is wanted now is granted, whoever was given least for
its uplink is idle, and the slowest keeps everybody waiting. An object is taken over at most once, only from a node
that was seen to be slow, and never when more than half of it is out: among equals nothing ever is.

What a node tells of its speed may be a lie. So it takes over no more objects than it has brought of this very stream,
and an object that does not come as fast as it was taken over for passes back, or on, at once, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot_hub.core.round import Live, Round
from entrepot_hub.core.seats import Session
from entrepot_hub.core.uplinks import Uplinks

#: The one that takes over is so many times as fast, and is expected to need so many times less time.
FASTER = 2.0
#: And it saves so many seconds at least.
SAVES = 1.0
#: While it may come to that, it is looked at again after so many seconds.
LOOK = 1.0
#: What was taken over is looked at after so many seconds: has half as much gone out as was expected?
TRIAL = 2.5
#: What has gone out is told about so many seconds late.
LATE = 1.0


def may(found: Round) -> bool:
    """Whether it may come to a takeover: several nodes offer the stream and one of them uploads."""
    if not found.live or found.geometry is None:
        return False
    return len({node for node, _ in found.offers} | {live.session[0] for live in found.live.values()}) > 1


def takeovers(
    found: Round, uplinks: Uplinks, load: Counter[str], settings: ExchangeSettings, now: float
) -> Iterator[tuple[int, Live, Session]]:
    """Objects with their live grants, and the sessions that take them over now. The caller reserves each before it asks
    for the next. Nothing while anything else can be granted."""
    if not may(found):
        return
    yield from _disappointing(found, uplinks, load, settings, now)
    if found.proposed or found.window_end is not None or now < found.pause_until:
        return
    needed = found.needed(now)
    if needed and needed != found.lacking(needed, now):
        return
    slow = {live.session[0] for live in found.live.values() if uplinks.watched(live.session[0], now)}
    for node in sorted(slow, key=lambda node: (uplinks.guess(node, now), node)):
        rate = uplinks.guess(node, now)
        uploading, queued = uplinks.left(node), max(load[node] - uplinks.uploads(node), 0)
        own = [(n, live) for n, live in found.live.items() if live.session[0] == node and n not in found.taken]
        for number, live in sorted(own, key=lambda each: _order(each[1], uplinks)):
            if not found.near(number, now) or (live.accepted and 2 * uplinks.left_of(live.grant) < live.grant.length):
                continue
            size = live.grant.length
            session = _quickest(found, node, number, size, uplinks, load, settings, now)
            if session is None or uplinks.guess(session[0], now) < FASTER * rate:
                break
            expected = (uploading if live.accepted else uploading + queued * size) / rate
            if expected <= FASTER * (load[session[0]] + 1) * size / uplinks.guess(session[0], now) + SAVES:
                break
            yield number, live, session
            if live.accepted:
                uploading -= uplinks.left_of(live.grant)
            else:
                queued -= 1


def _disappointing(
    found: Round, uplinks: Uplinks, load: Counter[str], settings: ExchangeSettings, now: float
) -> Iterator[tuple[int, Live, Session]]:
    """What was taken over and does not come: back to the session that had it, or on to another one."""
    for number, taken in list(found.taken.items()):
        live = found.live.get(number)
        if taken.back or live is None or live.session[0] != taken.node or number in found.proposed:
            continue
        passed, size = now - taken.at, live.grant.length
        taken.load = max(taken.load, load[taken.node])
        out = uplinks.total(taken.node) - taken.told
        slow = FASTER * out < taken.rate * (passed - LATE)
        late = passed - TRIAL > FASTER * taken.load * size / taken.rate  # what went out may have been something else
        if passed < TRIAL or not (slow or late):
            continue
        able = [
            session
            for session, offer in found.able(now, number).items()
            if session[0] != taken.node and offer.seat.free > 0 and load[session[0]] < settings.uploads
        ]
        if able:
            yield number, live, min(able, key=lambda s: (s != taken.session, -uplinks.guess(s[0], now), s))


def _order(live: Live, uplinks: Uplinks) -> tuple[bool, float, float]:
    """What has not been begun first, the last of it before the others; then what is furthest from its end."""
    if live.accepted:
        return True, -uplinks.left_of(live.grant), live.grant.granted_at
    return False, -live.grant.granted_at, -live.grant.ref.number


def _quickest(
    found: Round,
    slow: str,
    number: int,
    size: int,
    uplinks: Uplinks,
    load: Counter[str],
    settings: ExchangeSettings,
    now: float,
) -> Session | None:
    """The session that would have the object there first, of those with a free slot whose node was measured."""
    able = [
        session
        for session, offer in found.able(now, number).items()
        if session[0] != slow
        and offer.seat.free > 0
        and load[session[0]] < settings.uploads
        and uplinks.rate(session[0], now) is not None
        and found.brought[session[0]] > 0
    ]
    return min(able, key=lambda s: ((load[s[0]] + 1) * size / uplinks.guess(s[0], now), s), default=None)
