"""Limits: what is refused, with which reason, and that nothing is where there are none."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import Denied, InvalidInput, RetryLater
from entrepot.core.messages import reason_of
from entrepot_hub.core.limits import (
    EACH,
    WHOLE,
    Limits,
    Standing,
    changed,
    marks_reached,
    may_provide,
    may_read,
    may_upload,
    parse_budget,
    spent_percent,
)
from entrepot_hub.core.usage import DAY, HUB, Tally


def standing(limits: dict[str, Limits], *counted: tuple[str, int, int], spent: str = "0") -> Standing:
    found = Standing(day=20_000, limits=limits, spent=Fraction(spent), resets=123.0)
    for node, up, down in counted:
        found.count(node, Tally(uploaded=up, downloaded=down))
    return found


def test_without_limits_nothing_is_refused() -> None:
    """Whatever was used: no row, no refusal."""
    free = standing({}, ("A", 1 << 60, 1 << 60))
    assert not free.limited
    assert may_read(free, "A") is may_upload(free, 1 << 60) is may_provide(free, "A", 1 << 60) is None


def test_a_reason_says_which_limit_how_much_and_until_when() -> None:
    """A reader that is over its day hears the limit's name, both figures and the next midnight (UTC)."""
    error = may_read(standing({"A": Limits(day_down=1000)}, ("A", 0, 1000)), "A")
    assert isinstance(error, RetryLater)
    assert error.kind == "over-limit"
    assert dict(error.data) == {
        "limit": "down-per-day",
        "node": "A",
        "used": 1000,
        "allowed": 1000,
        "resets_at": 20_001.0 * DAY,
    }
    assert error.hint
    assert reason_of(error).error().data == error.data


def test_a_limit_is_reached_not_passed() -> None:
    """One byte below it is signed, at it no more; a limit of nothing refuses from the start."""
    assert may_read(standing({"A": Limits(day_down=1000)}, ("A", 0, 999)), "A") is None
    assert may_read(standing({"A": Limits(day_down=0)}), "A") is not None


def test_each_node_has_its_own_share() -> None:
    """A limit of each node counts every node alone, and one's own row goes before it."""
    limits = {EACH: Limits(day_down=1000), "B": Limits(day_down=5000)}
    found = standing(limits, ("A", 0, 1000), ("B", 0, 1000), ("C", 0, 10))
    assert may_read(found, "A") is not None
    assert may_read(found, "B") is None
    assert may_read(found, "C") is None
    assert may_read(found, None) is None


def test_the_whole_channel_counts_all_nodes() -> None:
    """What all nodes used together reaches the channel's limit, also for who used nothing."""
    found = standing({WHOLE: Limits(day_down=1000, day_up=500)}, ("A", 300, 600), ("B", 200, 400))
    for node in ("A", "C", None):
        assert (refusal := may_read(found, node)) is not None
        assert refusal.data["used"] == 1000
    assert (refusal := may_upload(found, 1)) is not None
    assert refusal.data["limit"] == "up-per-day"


def test_what_the_hub_does_counts_once() -> None:
    """The hub's own row has the name of the whole channel's: nothing of it is counted twice."""
    found = standing({WHOLE: Limits(day_up=1000)}, (HUB, 600, 0))
    assert found.up == {WHOLE: 600}
    found.more(HUB, 1)
    assert found.objects == {WHOLE: 1}


def test_a_nodes_limit_leaves_the_object_to_others() -> None:
    """Who used up its own upload may provide no more, while another may and the channel has nothing against it."""
    found = standing({"A": Limits(day_up=1000)}, ("A", 1000, 0))
    assert may_upload(found, 1) is None
    assert may_provide(found, "A", 1) is not None
    assert may_provide(found, "B", 1) is None


def test_a_stream_too_large_is_denied_for_good() -> None:
    """Waiting does not make a stream smaller: the channel's largest stream is no matter of later."""
    found = standing({WHOLE: Limits(stream=1000)})
    assert may_upload(found, 1000) is None
    refusal = may_upload(found, 1001)
    assert isinstance(refusal, Denied)
    assert (refusal.kind, refusal.data["used"], refusal.data["allowed"]) == ("too-large", 1001, 1000)
    assert isinstance(may_provide(standing({EACH: Limits(stream=1000)}), "A", 1001), RetryLater)


def test_objects_are_counted_as_they_come_and_go() -> None:
    """A cache full by number takes one again when one has left."""
    found = standing({WHOLE: Limits(objects=2)})
    found.more("A", 1)
    assert may_upload(found, 1) is None
    found.more("B", 1)
    assert (refusal := may_upload(found, 1)) is not None
    assert refusal.data["limit"] == "objects"
    found.more("A", -1)
    assert may_upload(found, 1) is None


def test_a_budget_stops_reading_and_uploading() -> None:
    """When the month's money is used up nothing is signed, and the reason says until when."""
    limits = {WHOLE: Limits(budget=Decimal(20))}
    assert may_read(standing(limits, spent="19.999"), "A") is None
    over = standing(limits, spent="20")
    for refusal in (may_read(over, "A"), may_read(over, None), may_upload(over, 1)):
        assert refusal is not None
        assert refusal.kind == "over-budget"
        assert refusal.data["resets_at"] == 123.0
        assert "20.00 of 20 USD" in refusal.message


@given(spent=st.fractions(min_value=0, max_value=40))
def test_marks_are_reached_in_order(spent: Fraction) -> None:
    """50, 80 and 100 %: each exactly when so much of the budget is used up."""
    found = Standing(day=0, limits={WHOLE: Limits(budget=Decimal(20))}, spent=spent)
    reached = marks_reached(spent_percent(found))
    assert reached == tuple(mark for mark in (50, 80, 100) if spent * 100 >= 20 * mark)
    assert (100 in reached) is (may_upload(found, 1) is not None)


def test_a_budget_of_nothing_is_used_up() -> None:
    """No money, no division by it."""
    found = standing({WHOLE: Limits(budget=Decimal(0))})
    assert spent_percent(found) == 100
    assert may_upload(found, 1) is not None


def test_limits_change_one_by_one() -> None:
    """What is not named stays; None lifts; an unknown name or less than nothing is refused."""
    limits = changed(Limits(day_up=1, objects=2), {"day_up": None, "stream": 5})
    assert limits == Limits(objects=2, stream=5)
    assert not changed(limits, {"objects": None, "stream": None})
    for wrong in ({"colour": 1}, {"day_up": -1}):
        with pytest.raises(InvalidInput):
            changed(limits, wrong)


@pytest.mark.parametrize(("text", "money"), [("20/month", "20"), ("0.5/month", "0.5")])
def test_a_budget_is_money_per_month(text: str, money: str) -> None:
    """A plain amount and the word month."""
    assert parse_budget(text) == Decimal(money)


@pytest.mark.parametrize("text", ["20", "20/day", "/month", "-1/month", "1.2.3/month", "20 /month", "20/month "])
def test_what_is_no_budget_is_refused(text: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(InvalidInput) as caught:
        parse_budget(text)
    assert caught.value.hint
