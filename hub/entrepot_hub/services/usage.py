"""Usage, limits, quota and prices as the admin sees and sets them: one code for the socket and the command line.

With a running hub its counts are written first, so an answer holds everything up to this moment of this hub; another
hub on the same database is at most a few seconds behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from entrepot.core.api import ChannelDetail, LimitView
from entrepot.core.errors import InvalidInput, RetryLater
from entrepot.core.units import format_size
from entrepot_hub.core.limits import EACH, LIMITS, WHOLE, WORDS, Limits, changed
from entrepot_hub.core.prices import (
    BUILT_IN,
    CHANNEL_LIST,
    PRICES,
    PriceList,
    as_document,
    cost,
    parse_money,
    prices_for,
    rounded,
    starting_list,
    with_prices,
)
from entrepot_hub.core.usage import (
    COUNTS,
    DAY,
    HUB,
    NOTHING,
    Tally,
    day_of,
    iso_day,
    month_days,
    month_of,
    total,
)
from entrepot_hub.services.administration import ChannelNamed, Name, Nothing, Size, Text
from entrepot_hub.services.desk import Desk, Operation, Request, View

if TYPE_CHECKING:  # a command that asks a running hub has no use for a database
    from entrepot_hub.adapters.sql_usage import SqlUsage

#: Days of a report at most: two years.
MOST_DAYS: Final = 731
#: The share of a month that must have passed before its end is projected.
_EARLIEST: Final = Fraction(1, 720)

Money = Annotated[str, msgspec.Meta(max_length=32)]
Month = Annotated[str, msgspec.Meta(max_length=16)]


class UsageAsk(Request, frozen=True, kw_only=True):
    """What a channel's traffic came to: in the last ``days`` (today is one), or in a ``month`` ("2026-11")."""

    name: Name
    days: Annotated[int, msgspec.Meta(ge=1, le=MOST_DAYS)] = 30
    month: Month | None = None


class LimitSet(Request, frozen=True, kw_only=True):
    """Limits of a channel (``node`` ""), of each node without a row of its own ("*"), or of a node. None leaves one as
    it is; ``clear`` names those that go ("all": every one). ``budget``: money per month, of the channel alone."""

    name: Name
    node: Name = WHOLE
    day_up: Size | None = None
    day_down: Size | None = None
    objects: Size | None = None
    stream: Size | None = None
    budget: Money | None = None
    clear: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)] = ()


class QuotaSet(Request, frozen=True, kw_only=True):
    """Another quota, in bytes."""

    name: Name
    quota: Size


class PriceSet(Request, frozen=True, kw_only=True):
    """Other prices in a list: a provider's, or ``channel:NAME``. ``prices``: by name, as decimals."""

    name: Annotated[str, msgspec.Meta(max_length=80)]
    prices: dict[str, Money] = msgspec.field(default_factory=dict)
    currency: Annotated[str, msgspec.Meta(max_length=8)] | None = None
    source: Text = "set by the admin"


class PriceNamed(Request, frozen=True, kw_only=True):
    """A price list."""

    name: Annotated[str, msgspec.Meta(max_length=80)]


class Counts(View, frozen=True, kw_only=True):
    """What was counted, see :class:`~entrepot_hub.core.usage.Tally`, and what it costs, with the cost's parts."""

    uploads: int
    uploaded: int
    downloads: int
    downloaded: int
    requests_a: int
    requests_b: int
    deletes: int
    evicted: int
    byte_seconds: float
    cost: str
    storage_cost: str
    request_cost: str
    egress_cost: str


class DayUsage(View, frozen=True, kw_only=True):
    """A UTC day ("2026-11-21"). ``stored``: bytes that lay there on average, of today until now."""

    day: str
    stored: int
    counts: Counts


class NodeUsage(View, frozen=True, kw_only=True):
    """A node's part, the hub's own with an empty ``node``; bytes stored are the hub's."""

    node: str
    name: str
    counts: Counts


class BudgetView(View, frozen=True, kw_only=True):
    """The budget of this month: what is used up, and what it comes to by the month's end if it goes on like this (None
    in the month's first hour)."""

    month: str
    budget: str
    spent: str
    percent: int
    projected: str | None
    reached: bool


class UsageReport(View, frozen=True, kw_only=True):
    """From ``first`` to ``last`` day, both included. ``downloaded`` is what was signed for reading: an upper bound of
    what was read and billed."""

    channel: str
    first: str
    last: str
    quota: int
    charged: int
    pinned: int
    prices: str
    currency: str
    as_of: str
    days: list[DayUsage]
    nodes: list[NodeUsage]
    total: Counts
    budget: BudgetView | None
    limits: list[LimitView]


class QuotaView(View, frozen=True, kw_only=True):
    """A quota that was set, and the one before. ``charged`` beyond it leaves in the background, but not the ``held``
    bytes of it: they are held back after a rebuilding, until ``held_until``."""

    channel: str
    quota: int
    before: int
    charged: int
    held: int = 0
    held_until: float | None = None


class PriceView(View, frozen=True, kw_only=True):
    """A price list, prices as decimals: see :class:`~entrepot_hub.core.prices.PriceList`. ``channels`` go by it."""

    name: str
    storage: str
    requests_a: str
    requests_b: str
    deletes: str
    egress: str
    currency: str
    as_of: str
    source: str
    changed: bool
    channels: list[str]


# -- usage -----------------------------------------------------------------------------------------------------


async def report(desk: Desk, asked: UsageAsk, _actor: str) -> UsageReport:
    """What a channel's traffic came to. NotFound (``no-such-channel``)."""
    usage = await _current(desk, asked.name)
    now = desk.clock()
    today = day_of(now)
    first, after = (today - asked.days + 1, today + 1) if asked.month is None else month_days(asked.month)
    after = max(min(after, today + 1), first + 1)
    channel = await desk.registry.channel(asked.name)
    rows = await desk.database.call(usage.report, asked.name, first, after)
    lists = await desk.database.call(usage.prices)
    name, prices = prices_for(channel.name, channel.bucket.url, lists)
    names = {node.public: node.name for node in await desk.registry.nodes()}
    by_day: dict[int, Tally] = dict.fromkeys(range(first, after), NOTHING)
    by_node: dict[str, Tally] = {}
    for node, day, tally in rows:
        by_day[day] += tally
        by_node[node] = by_node.get(node, NOTHING) + tally
    ranked = sorted(by_node.items(), key=lambda item: (-(item[1].uploaded + item[1].downloaded), item[0]))
    return UsageReport(
        channel=channel.name,
        first=iso_day(first),
        last=iso_day(after - 1),
        quota=channel.quota,
        charged=channel.charged,
        pinned=sum(pinned.kept for pinned in await desk.database.call(desk.ledger.pins, asked.name)),
        prices=name,
        currency=prices.currency,
        as_of=prices.as_of,
        days=[
            DayUsage(
                day=iso_day(day),
                stored=round(tally.byte_seconds / max(min(now - day * DAY, DAY), 1.0)),
                counts=_counts(tally, prices),
            )
            for day, tally in by_day.items()
        ],
        nodes=[
            NodeUsage(
                node=node, name="the hub" if node == HUB else names.get(node, node), counts=_counts(tally, prices)
            )
            for node, tally in ranked
        ],
        total=_counts(total(by_day.values()), prices),
        budget=await _budget(desk, usage, asked.name, prices, now),
        limits=await limits(desk, ChannelNamed(name=asked.name), _actor),
    )


async def _budget(desk: Desk, usage: SqlUsage, channel: str, prices: PriceList, now: float) -> BudgetView | None:
    budget = (await desk.database.call(usage.limits, channel)).get(WHOLE, Limits()).budget
    if budget is None:
        return None
    month = month_of(day_of(now))
    first, after = month_days(month)
    rows = await desk.database.call(usage.report, channel, first, after)
    spent = cost(total(tally for _, _, tally in rows), prices).total
    passed = (Fraction(now) - first * DAY) / ((after - first) * DAY)
    return BudgetView(
        month=month,
        budget=format(budget, "f"),
        spent=str(rounded(spent)),
        percent=100 if not budget else int(spent * 100 / Fraction(budget)),
        projected=str(rounded(spent / passed)) if passed >= _EARLIEST else None,
        reached=spent >= Fraction(budget),
    )


async def _current(desk: Desk, channel: str) -> SqlUsage:
    """Usage with everything in it that this process knows."""
    from entrepot_hub.adapters.sql_usage import SqlUsage

    usage = SqlUsage(desk.database)
    if desk.arbiter is not None:
        await desk.arbiter.metering.flush()
    await desk.database.call(usage.sample, channel, desk.clock())
    return usage


def _counts(tally: Tally, prices: PriceList) -> Counts:
    bill = cost(tally, prices)
    return Counts(
        **{name: getattr(tally, name) for name in COUNTS},
        cost=str(rounded(bill.total, 6)),
        storage_cost=str(rounded(bill.storage, 6)),
        request_cost=str(rounded(bill.requests, 6)),
        egress_cost=str(rounded(bill.egress, 6)),
    )


# -- limits ----------------------------------------------------------------------------------------------------


async def limits(desk: Desk, asked: ChannelNamed, _actor: str) -> list[LimitView]:
    """The limits of a channel and what is used of them, the whole channel's first. NotFound (``no-such-channel``)."""
    usage = await _current(desk, asked.name)
    day = day_of(desk.clock())
    account = await desk.database.call(usage.account, asked.name, day, month_days(month_of(day)))
    names = {node.public: node.name for node in await desk.registry.nodes()} if account.limits else {}
    names |= {WHOLE: "the channel", EACH: "each node"}
    found = []
    for row, limit in sorted(account.limits.items()):
        tally = total(account.today.values()) if row == WHOLE else account.today.get(row, NOTHING)
        found.append(
            LimitView(
                node=row,
                name=names.get(row, row),
                day_up=limit.day_up,
                day_down=limit.day_down,
                objects=limit.objects,
                stream=limit.stream,
                budget=None if limit.budget is None else format(limit.budget, "f"),
                up=None if row == EACH else tally.uploaded,
                down=None if row == EACH else tally.downloaded,
                held=None if row == EACH else account.objects.get(row, 0 if account.objects else None),
            )
        )
    return found


async def set_limits(desk: Desk, asked: LimitSet, actor: str) -> list[LimitView]:
    """Change limits; all of the channel's then. NotFound, and InvalidInput for what cannot be."""
    from entrepot_hub.adapters.sql_usage import SqlUsage

    usage = SqlUsage(desk.database)
    node = asked.node if asked.node in {WHOLE, EACH} else (await desk.registry.node(asked.node)).public
    changes: dict[str, Any] = {
        name: value for name in LIMITS if name != "budget" and (value := getattr(asked, name)) is not None
    }
    if asked.budget is not None:
        changes["budget"] = parse_money(asked.budget)
    words = {word: name for name, word in WORDS.items()}
    for word in WORDS.values() if "all" in asked.clear else asked.clear:
        if word not in words:
            raise InvalidInput(f"there is no limit {word[:40]!r}", hint=f"Limits are {', '.join(words)}, or all.")
        changes.setdefault(words[word], None)
    if node != WHOLE and changes.get("budget") is not None:
        raise InvalidInput("a budget is the whole channel's", hint="Leave out the node.")
    before = (await desk.database.call(usage.limits, asked.name)).get(node, Limits())
    after = changed(before, changes)
    now = desk.clock()
    await desk.database.call(usage.set_limits, asked.name, node, after, now=now, actor=actor)
    if after.budget != before.budget:
        await desk.database.call(usage.unmark, asked.name, month_of(day_of(now)))
    if desk.arbiter is not None:
        desk.arbiter.metering.forget(asked.name)
    return await limits(desk, ChannelNamed(name=asked.name), actor)


async def set_quota(desk: Desk, asked: QuotaSet, actor: str) -> QuotaView:
    """Another quota. What is stored beyond it leaves in the background of a running hub. NotFound, InvalidInput,
    RetryLater (``over-quota``) where pins would leave too little of it."""
    before = await desk.registry.channel(asked.name)
    from entrepot_hub.services.pins import reserve

    pinned = sum(each.kept for each in await desk.database.call(desk.ledger.pins, asked.name))
    least = pinned + reserve(before.lock)
    if pinned and asked.quota < least:
        raise RetryLater(
            f"{format_size(pinned)} of {asked.name} are pinned: with a quota of {format_size(asked.quota)} too little "
            "room would be left for anything else",
            kind="over-quota",
            hint=f"Unpin a stream (entrepot-hub channel pins {asked.name}), or take at least {format_size(least)}.",
            pinned=pinned,
            least=least,
        )
    after = await desk.registry.set_quota(asked.name, asked.quota, now=desk.clock(), actor=actor)
    desk.channels.forget(channel=asked.name)
    if desk.arbiter is not None:
        await desk.arbiter.within_quota()
    return QuotaView(
        channel=after.name,
        quota=after.quota,
        before=before.quota,
        charged=after.charged,
        held=after.held,
        held_until=after.held_until,
    )


async def show(desk: Desk, asked: ChannelNamed, actor: str) -> ChannelDetail:
    """A channel with members, invites and limits. NotFound (``no-such-channel``)."""
    detail = await desk.administration.show_channel(asked, actor)
    return msgspec.structs.replace(detail, limits=await limits(desk, asked, actor))


# -- prices ----------------------------------------------------------------------------------------------------


async def list_prices(desk: Desk, _asked: Nothing, _actor: str) -> list[PriceView]:
    """All price lists: the built-in ones, as they were changed, and those of channels."""
    from entrepot_hub.adapters.sql_usage import SqlUsage

    lists = await desk.database.call(SqlUsage(desk.database).prices)
    users: dict[str, list[str]] = {}
    for channel in await desk.registry.channels():
        users.setdefault(prices_for(channel.name, channel.bucket.url, lists)[0], []).append(channel.name)
    return [
        PriceView(name=name, **as_document(prices), changed=name in lists, channels=users.get(name, []))
        for name, prices in {**BUILT_IN, **lists}.items()
    ]


async def set_prices(desk: Desk, asked: PriceSet, actor: str) -> list[PriceView]:
    """Change a price list; all lists then. A channel's list begins as that of its provider. NotFound, InvalidInput."""
    from entrepot_hub.adapters.sql_usage import SqlUsage

    if not asked.prices and asked.currency is None:
        raise InvalidInput("nothing is to be set", hint=f"Prices are {', '.join(PRICES)}.")
    usage = SqlUsage(desk.database)
    lists = await desk.database.call(usage.prices)
    before = starting_list(asked.name, lists)
    if asked.name.startswith(CHANNEL_LIST):
        channel = await desk.registry.channel(asked.name.removeprefix(CHANNEL_LIST))
        before = prices_for(channel.name, channel.bucket.url, lists)[1]
    now = desk.clock()
    after = with_prices(before, asked.prices, currency=asked.currency, as_of=iso_day(day_of(now)), source=asked.source)
    await desk.database.call(usage.set_prices, asked.name, after, now=now, actor=actor)
    if desk.arbiter is not None:
        desk.arbiter.metering.forget()
    return await list_prices(desk, Nothing(), actor)


async def reset_prices(desk: Desk, asked: PriceNamed, actor: str) -> list[PriceView]:
    """Back to the built-in list, or for a channel to its provider's; all lists then. NotFound for no list at all."""
    from entrepot_hub.adapters.sql_usage import SqlUsage

    usage = SqlUsage(desk.database)
    starting_list(asked.name, await desk.database.call(usage.prices))
    await desk.database.call(usage.reset_prices, asked.name, now=desk.clock(), actor=actor)
    if desk.arbiter is not None:
        desk.arbiter.metering.forget()
    return await list_prices(desk, Nothing(), actor)


#: What can be asked for.
OPERATIONS: Final[Mapping[str, Operation[Any, Any]]] = {
    "channel.show": Operation(ChannelNamed, ChannelDetail, show),
    "channel.usage": Operation(UsageAsk, UsageReport, report),
    "channel.limits": Operation(ChannelNamed, list[LimitView], limits),
    "channel.limit": Operation(LimitSet, list[LimitView], set_limits),
    "channel.quota": Operation(QuotaSet, QuotaView, set_quota),
    "price.list": Operation(Nothing, list[PriceView], list_prices),
    "price.set": Operation(PriceSet, list[PriceView], set_prices),
    "price.reset": Operation(PriceNamed, list[PriceView], reset_prices),
}
