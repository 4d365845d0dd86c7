"""Which buckets the hub cannot use: what readers hear of it, and what is granted meanwhile."""

from __future__ import annotations

import pytest

from entrepot.core.errors import Denied, EntrepotError, NotFound, RetryLater
from entrepot_hub.core.ledger import ObjectRef, Proposal
from entrepot_hub.services.reach import AWAY, TRY, Reach

STREAM = bytes(32)
REFUSED = Denied("the bucket does not accept the hub's key", bucket="b", status=403)
KEYLESS = Denied("the hub finds no keys for the bucket: the folder of keys", bucket="b")
AWAY_NOW = RetryLater("the bucket cannot be reached: Connection refused", kind="bucket-unreachable", cause="no route")


class World:
    """A reach and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reach = Reach(lambda: self.now)

    def meet(self, error: EntrepotError, channel: str = "demo") -> None:
        """The hub meets this error in the channel's bucket."""
        with pytest.raises(EntrepotError) as caught, self.reach.reaching(channel):
            raise error
        assert caught.value is error

    def told(self, channel: str = "demo") -> str | None:
        """What readers hear."""
        reason = self.reach.reason(channel, STREAM, self.now)
        assert reason is None or reason.kind == "bucket-unreachable"
        return None if reason is None else reason.message


def proposals(channel: str, count: int) -> list[Proposal]:
    return [
        Proposal(
            ref=ObjectRef(channel, b"l" * 8, STREAM, number),
            grant=number.to_bytes(16),
            node="node",
            session="session",
            size=1,
            lease_until=0.0,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (REFUSED, "the hub cannot use the channel's bucket: the bucket does not accept the hub's key"),
        (KEYLESS, "the hub cannot use the channel's bucket"),
        (AWAY_NOW, "the hub cannot reach the channel's bucket: no route"),
        (NotFound("there is no such object", kind="no-such-object", bucket="b"), None),
        (Denied("this node may not provide"), None),
    ],
)
def test_what_readers_hear_of_a_bucket(error: EntrepotError, told: str | None) -> None:
    """One sentence about the bucket, without what only the hub's owner should read, for a while; errors that are not
    about the bucket say nothing of it."""
    world = World()
    world.meet(error)
    assert world.told() == told
    assert world.told("other") is None
    world.now += AWAY
    assert world.told() is None


def test_a_bucket_that_is_used_again_is_no_reason() -> None:
    """Success ends it, unless the bucket was not even asked."""
    world = World()
    world.meet(REFUSED)
    with world.reach.reaching("demo", asks=False):
        pass
    assert world.told() is not None
    with world.reach.reaching("demo"):
        pass
    assert world.told() is None
    assert len(world.reach.open_to(proposals("demo", 3))) == 3


def test_a_bucket_that_refuses_is_tried_now_and_then() -> None:
    """One object in a while goes to a bucket that refuses the hub, all to others, and to one that only is away."""
    world = World()
    world.meet(REFUSED)
    world.meet(AWAY_NOW, "other")
    asked = [*proposals("demo", 3), *proposals("other", 3)]
    assert [each.ref.channel for each in world.reach.open_to(asked)] == ["other"] * 3
    world.now += TRY
    assert world.reach.open_to(asked)[0].ref == asked[0].ref
    assert len(world.reach.open_to(asked)) == 3
    world.meet(REFUSED)
    world.now += TRY
    assert len(world.reach.open_to(asked)) == 4
