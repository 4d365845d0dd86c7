"""Bills: by hand, and by what must hold of all of them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import EntrepotError, InvalidInput, NotFound
from entrepot_hub.core.prices import (
    BUILT_IN,
    GIB,
    MONTH_SECONDS,
    PRICES,
    PriceList,
    as_document,
    cost,
    from_document,
    list_name,
    parse_money,
    prices_for,
    rounded,
    starting_list,
    with_prices,
)
from entrepot_hub.core.usage import COUNTS, Tally

money = st.decimals(min_value=0, max_value=10, places=6)
lists = st.builds(PriceList, **dict.fromkeys(PRICES, money))
tallies = st.builds(Tally, **{name: st.integers(min_value=0, max_value=2**50) for name in COUNTS})


def test_a_month_on_amazon_by_hand() -> None:
    """100 GiB for a month, 25,600 uploads, 50,000 looks, 300 GiB read: 2.30 + 0.128 + 0.02 + 27.00."""
    tally = Tally(
        byte_seconds=100 * GIB * MONTH_SECONDS, requests_a=25_600, requests_b=50_000, downloaded=300 * GIB, deletes=9
    )
    bill = cost(tally, BUILT_IN["aws"])
    assert bill.storage == Fraction("2.3")
    assert bill.requests == Fraction("0.148")
    assert bill.egress == 27
    assert bill.total == Fraction("29.448")
    assert rounded(bill.total, 2) == Decimal("29.45")


def test_a_tebibyte_through_r2_by_hand() -> None:
    """262,144 objects of 4 MiB up and down once: requests alone, for reading from R2 costs nothing."""
    tally = Tally(requests_a=262_144, requests_b=2 * 262_144, downloaded=1 << 40)
    assert cost(tally, BUILT_IN["r2"]).total == Fraction("1.179648") + Fraction("0.18874368")


def test_deletes_are_billed_where_they_cost() -> None:
    """A thousand deletes cost what a thousand deletes cost."""
    assert cost(Tally(deletes=1500), PriceList(deletes=Decimal("0.01"))).total == Fraction("0.015")


def test_a_folder_costs_nothing() -> None:
    """Of one's own machine nothing is billed until a price is set."""
    tally = Tally(byte_seconds=1e20, requests_a=10**9, requests_b=10**9, deletes=10**9, downloaded=1 << 50)
    assert cost(tally, BUILT_IN["folder"]).total == 0


@given(prices=lists, less=tallies, more=tallies)
def test_more_never_costs_less(prices: PriceList, less: Tally, more: Tally) -> None:
    """Costs of parts add up exactly, and so whatever is added never lowers a bill."""
    assert cost(less + more, prices).total == cost(less, prices).total + cost(more, prices).total
    assert cost(less + more, prices).total >= cost(less, prices).total >= 0


@given(prices=lists, tally=tallies, name=st.sampled_from(PRICES), more=money)
def test_a_higher_price_never_costs_less(prices: PriceList, tally: Tally, name: str, more: Decimal) -> None:
    """Raising one price lowers no bill."""
    raised = with_prices(prices, {name: format(getattr(prices, name) + more, "f")}, currency=None, as_of="", source="")
    assert cost(tally, raised).total >= cost(tally, prices).total


@given(prices=lists)
def test_a_list_survives_its_document(prices: PriceList) -> None:
    """What is written to the database is read back to the last digit."""
    assert from_document(as_document(prices)) == prices


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("file:///srv/entrepot", "folder"),
        ("gs://bucket", "gcs"),
        ("gcs://bucket/prefix", "gcs"),
        ("azblob://account/container", "azure"),
        ("s3://bucket?region=eu-central-1", "aws"),
        ("s3://bucket?region=eu-central-1&endpoint=https://s3.eu-central-1.amazonaws.com", "aws"),
        ("s3://bucket?region=auto&endpoint=https://abc123.r2.cloudflarestorage.com", "r2"),
        ("s3://bucket?region=auto&endpoint=https://abc123.eu.r2.cloudflarestorage.com", "r2"),
        ("s3://bucket?region=eu-central-1&endpoint=https://s3.eu-central-1.wasabisys.com", "wasabi"),
        ("s3://bucket?region=auto&endpoint=https://storage.googleapis.com", "gcs"),
        ("s3://bucket?region=us-east-1&endpoint=http://10.0.0.5:9000", "generic"),
        ("s3://bucket?region=us-east-1&endpoint=http://10.0.0.5:9000&profile=r2", "r2"),
        ("s3://bucket?region=us-east-1&endpoint=http://10.0.0.5:9000&profile=generic", "generic"),
        ("s3://bucket?region=us-east-1&endpoint=https://evilamazonaws.com", "generic"),
        ("s3://bucket?region=us-east-1&endpoint=https://amazonaws.com.example.org", "generic"),
    ],
)
def test_the_list_follows_from_the_bucket(url: str, name: str) -> None:
    """A bucket's scheme, profile or endpoint says whose prices hold."""
    assert list_name(url) == name


def test_a_channels_own_list_goes_before_its_providers() -> None:
    """Own list, then the provider's as it was changed, then the built-in one."""
    own, changed = PriceList(storage=Decimal(1)), PriceList(storage=Decimal(2))
    url = "s3://bucket?region=eu-central-1"
    assert prices_for("lab", url, {"channel:lab": own, "aws": changed}) == ("channel:lab", own)
    assert prices_for("lab", url, {"channel:other": own, "aws": changed}) == ("aws", changed)
    assert prices_for("lab", url, {}) == ("aws", BUILT_IN["aws"])


@pytest.mark.parametrize("text", ["", "-1", "1e3", "1,5", "NaN", "inf", ".5", "5.", "0x1", "1" * 9, " 1", "１"])
def test_what_is_no_money_is_refused(text: str) -> None:
    """Only plain decimals are amounts."""
    with pytest.raises(InvalidInput):
        parse_money(text)


@pytest.mark.parametrize(
    ("prices", "currency"), [({"colour": "1"}, None), ({"storage": "-1"}, None), ({}, "euro"), ({}, "eu")]
)
def test_a_wrong_price_is_refused(prices: dict[str, str], currency: str | None) -> None:
    """A price that does not exist, is no amount, or is in no currency changes nothing."""
    with pytest.raises(EntrepotError) as caught:
        with_prices(BUILT_IN["aws"], prices, currency=currency, as_of="2026-11-21", source="test")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["amazon", "channel:", ""])
def test_a_list_that_is_not_there_is_named(name: str) -> None:
    """The error tells which lists there are."""
    with pytest.raises(NotFound) as caught:
        starting_list(name, {})
    assert "aws" in (caught.value.hint or "")


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_built_in_list_says_when_and_where_it_is_from(name: str) -> None:
    """Prices without a date and a source are hearsay."""
    assert BUILT_IN[name].as_of.startswith("2026")
    assert BUILT_IN[name].source
