"""Token buckets, crowds and tallies; whom a request comes from; what a node may say on the bus; what is forgotten."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import InvalidInput
from entrepot_hub.core.addresses import check_networks, client, is_among, is_local
from entrepot_hub.core.holdings import kept
from entrepot_hub.core.rates import Crowd, Rate, Tally, TokenBuckets
from entrepot_hub.core.restraint import CLASSES, HOLD_BYTES, MOST, RATES, RECENT, WINDOW, Restraint
from entrepot_hub.services.dispatcher import Dispatcher

amounts = st.integers(1, 50)


def test_a_burst_and_then_the_rate() -> None:
    """After a pause the whole burst may be taken, then one each time a token is there; the wait told is true."""
    buckets = TokenBuckets(Rate(2.0, 3.0))
    assert [buckets.take("a", 10.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.wait("a", 10.25) == 0.25
    assert buckets.take("a", 10.49) > 0.0
    assert buckets.take("a", 10.5) == 0.0
    assert buckets.take("b", 10.5) == 0.0, "each name has its own"
    assert [buckets.take("a", 100.0) for _ in range(4)].count(0.0) == 3, "no pause saves up more than the burst"


@given(
    each_second=st.floats(0.1, 1000.0),
    burst=st.integers(1, 100),
    steps=st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 20)), max_size=60),
)
def test_nobody_takes_more_than_the_rate_allows(each_second: float, burst: int, steps: list[tuple[float, int]]) -> None:
    """Over any time at most burst + rate * time are taken, and after the told wait there is one."""
    buckets = TokenBuckets(Rate(each_second, float(burst)))
    now, taken = 0.0, 0
    for pause, tries in steps:
        now += pause
        for _ in range(tries):
            wait = buckets.take("a", now)
            taken += not wait
            assert not wait or buckets.wait("a", now + wait * 1.000001 + 1e-9) < 1e-6
        assert taken <= burst + each_second * now + 1e-6


def test_what_was_taken_for_nothing_is_put_back() -> None:
    """Giving back never makes more than the burst."""
    buckets = TokenBuckets(Rate(1.0, 2.0))
    buckets.take("a", 0.0)
    buckets.give("a", 0.0)
    buckets.give("a", 0.0)
    assert [buckets.take("a", 0.0) for _ in range(3)].count(0.0) == 2


def test_made_up_names_do_not_fill_the_memory() -> None:
    """Beyond the bound the name that was heard least recently is forgotten."""
    buckets = TokenBuckets(Rate(1.0, 1.0), most=10)
    for number in range(1000):
        buckets.take(str(number), 0.0)
    assert len(buckets) == 10
    assert buckets.take("999", 0.0) > 0.0
    assert buckets.take("1", 0.0) == 0.0


def test_a_clock_that_runs_backwards_gives_nothing() -> None:
    """An earlier time than before neither fills nor empties a bucket."""
    buckets = TokenBuckets(Rate(1.0, 1.0))
    assert buckets.take("a", 100.0) == 0.0
    assert buckets.take("a", 50.0) == 1.0


@pytest.mark.parametrize(("each_second", "burst"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.5), (float("inf"), 1.0)])
def test_a_rate_that_is_none_is_refused(each_second: float, burst: float) -> None:
    """Nothing a second and no burst at all are mistakes in the settings."""
    with pytest.raises(InvalidInput):
        Rate(each_second, burst)


def test_a_crowd_has_room_for_each_and_for_all() -> None:
    """One name has so many inside, all names have so many together, and whoever leaves makes room."""
    crowd = Crowd(of_one=2, most=3)
    assert [crowd.enter("a") for _ in range(3)] == [True, True, False]
    assert crowd.enter("b")
    assert crowd.full
    assert not crowd.enter("c")
    crowd.leave("a")
    assert crowd.enter("c")
    assert crowd.size == 3


def test_a_tally_tells_the_first_and_then_once_a_while() -> None:
    """The first is told at once, those that follow are told together, and no count is lost."""
    tally = Tally(pause=60.0)
    told = [tally.note("a", float(second)) for second in range(0, 200, 2)]
    assert told[0] == 1
    assert [count for count in told if count] == [1, 30, 30, 30]
    assert tally.note("b", 1.0) == 1


def test_a_tally_of_many_names_stays_short() -> None:
    """Names beyond the bound are told as one."""
    tally = Tally(pause=60.0, most=10)
    assert sum(1 for number in range(1000) if tally.note(str(number), 0.0)) == 11
    assert tally.note("x", 61.0) >= 1


# -- whom a request comes from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "expected"),
    [
        ("10.1.2.3", [], [], "10.1.2.3"),
        ("10.1.2.3", ["6.6.6.6"], [], "10.1.2.3"),  # nobody's word is taken
        ("127.0.0.1", ["6.6.6.6"], ["127.0.0.1"], "6.6.6.6"),
        ("127.0.0.1", ["1.1.1.1, 6.6.6.6"], ["127.0.0.1"], "6.6.6.6"),  # what the client said before is not taken
        ("127.0.0.1", ["1.1.1.1", "6.6.6.6, 10.0.0.9"], ["127.0.0.1", "10.0.0.0/8"], "6.6.6.6"),
        ("127.0.0.1", ["6.6.6.6:4711"], ["127.0.0.1"], "6.6.6.6"),
        ("127.0.0.1", ["[2001:db8::5]:443"], ["127.0.0.1"], "2001:db8::/64"),
        ("127.0.0.1", ["nonsense"], ["127.0.0.1"], "127.0.0.1"),
        ("127.0.0.1", ["1.1.1.1, unknown"], ["127.0.0.1"], "127.0.0.1"),
        ("127.0.0.1", ["1.1.1.1," * 1000], ["127.0.0.1"], "127.0.0.1"),
        ("2001:db8::1", [], [], "2001:db8::/64"),
        ("2001:db8::ffff:1", [], [], "2001:db8::/64"),
        ("::ffff:10.1.2.3", [], [], "10.1.2.3"),
        ("::ffff:10.1.2.3", ["6.6.6.6"], ["10.0.0.0/8"], "6.6.6.6"),
        ("fe80::1%eth0", [], [], "fe80::/64"),
        (None, [], [], "?"),
        ("/run/socket", [], [], "/run/socket"),
    ],
)
def test_whom_a_request_comes_from(peer: str | None, forwarded: list[str], proxies: list[str], expected: str) -> None:
    """Only a trusted proxy's word is taken, and of what it says only what it saw itself."""
    assert client(peer, forwarded, check_networks(proxies)) == expected


def test_proxies_are_networks() -> None:
    """A name instead of an address is refused when the settings are read."""
    assert check_networks(["10.0.0.1/8"]) == (ip_network("10.0.0.0/8"),)
    with pytest.raises(InvalidInput) as caught:
        check_networks(["proxy.example.org"])
    assert caught.value.kind == "invalid-setting"


# -- what a node may say ---------------------------------------------------------------------------------------------


def test_every_verb_counts_as_something() -> None:
    """A verb that the hub hears and that no rate holds would be a way around all of them."""
    dispatcher = object.__new__(Dispatcher)
    dispatcher._exchange = type("Exchange", (), {"__getattr__": lambda _self, _name: None})()
    assert set(dispatcher._verbs()) == set(CLASSES)
    assert set(CLASSES.values()) == set(RATES)


def test_too_much_is_answered_once_a_second() -> None:
    """Beyond its rate a node's first message of a second is answered, the others are not, and all are counted."""
    restraint = Restraint({**RATES, "report": Rate(1.0, 2.0)})
    heard = [restraint.heard("a", "bad", 100, 0.1) for _ in range(10)]
    assert heard[:2] == [None, None]
    assert [each is not None and each.first for each in heard[2:]] == [True] + [False] * 7
    assert heard[2] is not None
    assert heard[2].wait == 1.0
    assert restraint.excessive(1.0) == [("a", 8)]
    assert restraint.heard("a", "want", 100, 0.1) is None, "other verbs have a rate of their own"
    assert restraint.heard("b", "bad", 100, 0.1) is None, "and so have other nodes"
    assert restraint.heard("a", "bad", 100, 0.1 + 2 * WINDOW) is None
    assert restraint.excessive(1.0 + RECENT) == []


def test_streams_are_what_counts_of_an_added() -> None:
    """One message with many streams uses up as much as many with one."""
    restraint = Restraint({**RATES, "hold": Rate(1.0, 512.0)})
    large = 255 * HOLD_BYTES
    assert [restraint.heard("a", "added", large, 0.0) is None for _ in range(3)] == [True, True, False]
    assert [restraint.heard("b", "added", 90, 0.0) is None for _ in range(257)] == [True] * 256 + [False]


def test_who_says_too_much_is_counted_within_bounds() -> None:
    """However many nodes say too much, so many are remembered."""
    restraint = Restraint({**RATES, "report": Rate(1.0, 1.0)})
    for number in range(2 * MOST):
        for _ in range(2):
            restraint.heard(str(number), "bad", 1, 0.0)
    assert len(restraint.excessive(0.0)) == MOST


# -- what is forgotten -----------------------------------------------------------------------------------------------


def test_whoever_holds_most_gives_way() -> None:
    """One member that holds very much leaves the others theirs."""
    assert kept({"flood": 1000, "a": 10, "b": 20}, 500, 100) == {"flood": 70, "a": 10, "b": 20}
    assert kept({"flood": 1000, "a": 10}, 500, 10_000) == {"flood": 500, "a": 10}
    assert kept({}, 1, 1) == {}


@given(st.dictionaries(st.sampled_from("abcdefgh"), amounts), amounts, st.integers(1, 200))
def test_what_is_kept_fits_and_nothing_goes_without_need(
    counts: dict[str, int], of_member: int, of_channel: int
) -> None:
    """Both bounds hold, nobody keeps more than it has, and room that an equal share would fill is not left."""
    keep = kept(counts, of_member, of_channel)
    assert keep.keys() == counts.keys()
    assert all(keep[node] <= min(counts[node], of_member) for node in counts)
    assert sum(keep.values()) <= of_channel
    short = [node for node in counts if keep[node] < min(counts[node], of_member)]
    if short:
        assert max(keep.values()) == min(keep[node] for node in short)
        assert of_channel - sum(keep.values()) < len(short)


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "local"),
    [
        ("127.0.0.1", (), (), True),
        ("::1", (), (), True),
        ("::ffff:127.0.0.1", (), (), True),
        ("192.0.2.1", (), (), False),
        (None, (), (), False),
        ("127.0.0.1", ("192.0.2.1",), (), False),
        ("127.0.0.1", ("127.0.0.1",), (), False),
        ("127.0.0.1", ("192.0.2.1",), ("127.0.0.1",), False),
        ("127.0.0.1", ("127.0.0.1",), ("127.0.0.1",), True),
        ("192.0.2.1", ("127.0.0.1",), ("127.0.0.1",), False),
    ],
)
def test_who_asks_from_this_machine(
    peer: str | None, forwarded: tuple[str, ...], proxies: tuple[str, ...], local: bool
) -> None:
    """A program here, not somebody behind a proxy here; what a stranger says of itself counts for nothing."""
    assert is_local(peer, forwarded, check_networks(proxies)) is local


def test_an_address_is_found_among_networks() -> None:
    """By its network, also where it is written as IPv6; what is no address is in none."""
    networks = check_networks(("10.0.0.0/8",))
    assert is_among("10.1.2.3", networks)
    assert is_among("::ffff:10.1.2.3", networks)
    assert not is_among("11.1.2.3", networks)
    assert not is_among("", networks)
