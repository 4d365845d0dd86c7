"""Seeds that once found something, and what."""

from __future__ import annotations

from typing import Final

from tests.simulation.plan import (
    Fault,
    Plan,
    Reader,
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
}
