"""Seeds that once found something, and what."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.simulation.plan import (
    Fault,
    LostAnswers,
    Plan,
    Reader,
    SlowCalls,
    Stall,
    Storm,
)


def _plan(name: str, faults: tuple[Fault, ...], objects: int, readers: tuple[Reader, ...], quota: int) -> Plan:
    return Plan(
        seed=7,
        scenario=name,
        hubs=1,
        streams=(objects,),
        holders=((frozenset(range(objects)),),),
        readers=readers,
        quota=quota,
        bucket="strict",
        faults=faults,
    )


#: Plans, by what went wrong; a plan stays what it is when the drawing of seeds changes.
PLANS: Final = {
    # Arbiter: the task group in which objects leave raised a group of RetryLater, which counted as a mistake of the
    # hub's and made it unready for good.
    "a bucket that answers 503 while objects leave is no mistake of the hub": _plan(
        "eviction in a storm",
        (Storm(1.0, 9.0, 0.6),),
        9,
        (Reader((0,), 0.0, False, 0.0), Reader((0,), 0.5, True, 0.0)),
        4,
    ),
    # Requester: downloads that failed at once were wanted and fetched again without a pause, a hundred times a second;
    # and after 1,024 failures of one object its pause overflowed.
    "downloads that fail at once are tried again with pauses": _plan(
        "downloads in a storm",
        (Storm(2.878, 13.316, 1.0),),
        2,
        (Reader((0, 0), 3.0483, False, 1.7154), Reader((0,), 0.7402, True, 1.761)),
        5,
    ),
    # Bucket keeper, two hubs: a hub that was slow to clear a tombstone for a repeated accept met what had been
    # put meanwhile through the other hub, and deleted it though it was ready.
    "a tombstone is cleared once, whichever hub does it": Plan(
        seed=7,
        scenario="eviction",
        hubs=2,
        streams=(8,),
        holders=((frozenset({0, 1, 2, 3, 4, 5, 6, 7}),), (frozenset({7}),), (frozenset({0, 1, 2, 3, 4, 5, 6, 7}),)),
        readers=(
            Reader(streams=(0,), start=1.5239541653694104, in_order=False, pause=0.30500988581995614, keep=False),
            Reader(streams=(0, 0), start=2.7191118117050763, in_order=False, pause=1.4680733991531218, keep=False),
            Reader(streams=(0,), start=3.46571956774881, in_order=True, pause=1.2657006006630416, keep=False),
            Reader(streams=(0,), start=0.23632616062352518, in_order=False, pause=1.4318720143810912, keep=False),
        ),
        quota=4,
        bucket="strict",
        pinned=(),
        faults=(
            SlowCalls(start=8.175337730885374, stop=13.319294578400623, rate=0.3, seconds=1.5),
            SlowCalls(start=7.829233615974026, stop=9.599582804202274, rate=0.1, seconds=0.5),
            SlowCalls(start=7.2270046106086445, stop=9.859597271307374, rate=0.1, seconds=1.5),
            Storm(start=3.9876784770914813, stop=10.459429220765129, rate=1.0),
            Storm(start=8.21758430334883, stop=8.94366715848285, rate=1.0),
            Storm(start=2.4473895247981283, stop=7.312795383705096, rate=0.2),
            LostAnswers(start=5.067131120729545, stop=6.012874164195601, rate=0.6),
            Stall(who="holder2", start=0.7698321078851448, seconds=1.2267659250504663),
            Stall(who="hub1", start=7.735702186946412, seconds=0.6116795239823677),
        ),
        slowest=0.2,
        delays=0.02,
    ),
    # Bucket keeper, two hubs: a hub whose eviction met another content put a tombstone over that, though the other hub
    # had ended the eviction and the content was a new grant's.
    "an eviction that another hub has ended is over": Plan(
        seed=204,
        scenario="eviction",
        hubs=2,
        streams=(7,),
        holders=(
            (frozenset({0, 1, 2, 3, 4, 5, 6}),),
            (frozenset({0, 1, 2, 3, 4, 5, 6}),),
            (frozenset({0, 1, 2, 3, 4, 5, 6}),),
        ),
        readers=(
            Reader(streams=(0, 0), start=0.4108075819964476, in_order=True, pause=1.0132668347884484, keep=False),
            Reader(streams=(0,), start=3.0609661571028015, in_order=False, pause=0.7904881998198221, keep=False),
            Reader(streams=(0,), start=2.2890937209283564, in_order=True, pause=1.3723885684903323, keep=False),
            Reader(streams=(0,), start=0.3530264137128074, in_order=True, pause=1.0930106845218976, keep=False),
        ),
        quota=4,
        bucket="strict",
        pinned=(),
        faults=(
            SlowCalls(start=6.631194623140958, stop=14.0, rate=0.5, seconds=1.5),
            SlowCalls(start=8.004078761164276, stop=12.184350884729877, rate=0.5, seconds=1.5),
            Storm(start=1.1377479387308365, stop=5.2331284582293165, rate=0.2),
            Storm(start=1.9769982828492387, stop=8.75345299229431, rate=1.0),
            Storm(start=3.8042747540547763, stop=9.684565548796154, rate=1.0),
            LostAnswers(start=3.718777796431054, stop=8.228855104214704, rate=0.3),
            LostAnswers(start=2.194345291908419, stop=5.526611671637344, rate=0.1),
            LostAnswers(start=2.569154876766323, stop=3.3619395975510544, rate=0.3),
            Stall(who="reader1", start=7.036275932342492, seconds=1.277695382520994),
            Stall(who="reader0", start=0.25200242754804614, seconds=1.4937069820156157),
        ),
        slowest=0.2,
        delays=0.001,
    ),
    # A hub is slow to clear a tombstone for a grant that it let be accepted; the lease lapses, and another hub sees the
    # tombstone: it must not release what was reserved, or the former URL could put an object that nobody charged.
    "a tombstone that is being cleared away holds no key": Plan(
        seed=20,
        scenario="eviction",
        hubs=2,
        streams=(6,),
        holders=((frozenset({0, 1, 2, 3, 4, 5}),),),
        readers=(
            Reader(streams=(0,), start=2.4255130846478834, in_order=False, pause=1.5398065895749329, keep=False),
            Reader(streams=(0,), start=1.7113020324796087, in_order=False, pause=1.9576132312232433, keep=False),
            Reader(streams=(0,), start=3.8464488009169036, in_order=False, pause=1.932754004326083, keep=False),
            Reader(streams=(0,), start=3.7185567606780237, in_order=False, pause=0.41001267872326763, keep=False),
        ),
        quota=4,
        bucket="strict",
        pinned=(),
        faults=(
            SlowCalls(start=2.625595710405197, stop=7.512756289132225, rate=0.3, seconds=1.5),
            LostAnswers(start=3.5785028371149865, stop=11.24963916779205, rate=0.6),
            Stall(who="hub0", start=3.877128611852347, seconds=1.1763793602486534),
        ),
        slowest=1.0,
        delays=0.003,
    ),
    # Rounds, two hubs: what a holder had said to the other hub was never heard of here. Grants that were long over took
    # up the holder's time for ever, so that each hub took it for busy and granted it nothing; one was sent again twice
    # a second without end.
    "a grant of which another hub heard the end is over here too": Plan(
        seed=168,
        scenario="eviction",
        hubs=2,
        streams=(8,),
        holders=((frozenset({0, 1, 2, 3, 4, 5, 6, 7}),),),
        readers=(
            Reader(streams=(0,), start=3.9175431761987403, in_order=False, pause=0.7991066512656866, keep=False),
            Reader(streams=(0,), start=0.06701041827973464, in_order=True, pause=0.043143574406817375, keep=False),
            Reader(streams=(0,), start=1.7930125233649998, in_order=True, pause=0.42414494369384803, keep=False),
            Reader(streams=(0, 0), start=0.8465410876047441, in_order=True, pause=1.294725345296308, keep=False),
        ),
        quota=4,
        bucket="careless",
        pinned=(),
        faults=(
            Storm(start=6.494190946509077, stop=10.528505354895168, rate=1.0),
            LostAnswers(start=2.607445234259248, stop=10.520886518312023, rate=0.1),
            LostAnswers(start=3.723069385695421, stop=5.568165436966594, rate=0.1),
            Stall(who="reader2", start=0.115396067211192, seconds=0.7751264699525237),
            Stall(who="reader0", start=3.2629958587656613, seconds=0.6766705823999394),
        ),
        slowest=1.0,
        delays=0.003,
    ),
    # Bucket keeper, two hubs: one looked for an object, slowly; the other had it leave and put a tombstone there; then
    # what the first had seen made it ready again.
    "a look that is older than a tombstone does not count": Plan(
        seed=5126,
        scenario="eviction",
        hubs=2,
        streams=(8,),
        holders=(
            (frozenset({0, 1, 2, 3, 4, 5, 6, 7}),),
            (frozenset({0, 1, 2, 3, 4, 5, 6, 7}),),
            (frozenset({1, 4, 5}),),
        ),
        readers=(
            Reader(streams=(0,), start=1.420031678520568, in_order=True, pause=1.3612810730202671, keep=False),
            Reader(streams=(0,), start=3.9506737192795813, in_order=True, pause=1.7739946770156694, keep=False),
            Reader(streams=(0,), start=0.7486644150071258, in_order=True, pause=1.8848883068276068, keep=False),
            Reader(streams=(0,), start=0.606437348335148, in_order=True, pause=0.9920224027776503, keep=True),
        ),
        quota=4,
        bucket="blind",
        pinned=(),
        faults=(
            SlowCalls(start=2.2209290581378234, stop=9.186578637430209, rate=0.3, seconds=0.5),
            LostAnswers(start=1.242758895730128, stop=5.260217161908184, rate=0.3),
            Stall(who="hub1", start=0.8300048750610465, seconds=0.31774397256594233),
            Stall(who="holder2", start=0.13081942821622367, seconds=0.21504364155973388),
        ),
        slowest=0.4,
        delays=0.02,
    ),
}

_SLOW: Final = PLANS["an eviction that another hub has ended is over"]
# Exchange: an accept that waited for the key's turn, while its object came and left again, cleared the tombstone
# against its own PUT.
PLANS["a tombstone is cleared for a live grant only"] = replace(_SLOW, seed=2)
# Exchange: the life of a URL was counted from before a tombstone was cleared, and signed from after it.
PLANS["a URL ends when the ledger says"] = replace(_SLOW, seed=26)
