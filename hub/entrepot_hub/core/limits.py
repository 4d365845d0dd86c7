"""What a channel, and a node in it, may use at most, and what is said when that is reached.

A limit is checked before anything is signed, against what was used up by then: what is under way at that moment may go
past it, and no more is signed after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Final

from entrepot.core.errors import Denied, EntrepotError, InvalidInput, RetryLater
from entrepot.core.units import format_size
from entrepot_hub.core.prices import NO_PRICES, PriceList, cost, parse_money, rounded
from entrepot_hub.core.usage import DAY, Tally

#: The rows of limits that are no node's: the whole channel's, and that of each node without one of its own.
WHOLE: Final = ""
EACH: Final = "*"
#: Parts of a budget, in percent, that are told when they are reached, once a month each.
MARKS: Final = (50, 80, 100)

_BUDGET = re.compile(r"(?P<money>[0-9.]+)/month")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None is no limit. ``day_up`` and ``day_down``: bytes per UTC day. ``objects``: in the bucket (a node's: those it
    uploaded). ``stream``: bytes of the largest stream (a node's: that it may upload). ``budget``: money per UTC month,
    of the whole channel alone."""

    day_up: int | None = None
    day_down: int | None = None
    objects: int | None = None
    stream: int | None = None
    budget: Decimal | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in LIMITS)


#: The names of all limits.
LIMITS: Final = ("day_up", "day_down", "objects", "stream", "budget")
#: What people call them, in commands and sentences.
WORDS: Final = {
    "day_up": "up-per-day",
    "day_down": "down-per-day",
    "objects": "objects",
    "stream": "largest-stream",
    "budget": "budget",
}
NO_LIMITS: Final = Limits()


@dataclass(slots=True, kw_only=True)
class Standing:
    """How a channel stands at its limits. ``limits`` by row; ``up``, ``down`` and ``objects`` of today and now, by node
    (:data:`WHOLE`: of all together); ``spent`` this month by ``prices``; ``day``: which today this is; ``resets``: when
    the month ends."""

    day: int
    limits: Mapping[str, Limits] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    spent: Fraction = field(default_factory=Fraction)
    prices: PriceList = NO_PRICES
    resets: float = 0.0

    @property
    def limited(self) -> bool:
        """Whether there is anything to check."""
        return bool(self.limits)

    def of(self, node: str) -> Limits:
        """The limits of a node: its own row, or that of each node."""
        return self.limits.get(node) or self.limits.get(EACH) or NO_LIMITS

    @property
    def whole(self) -> Limits:
        """The limits of the whole channel."""
        return self.limits.get(WHOLE) or NO_LIMITS

    def count(self, node: str, tally: Tally) -> None:
        """This of a node (or :data:`~entrepot_hub.core.usage.HUB`) comes to what was used today, and is paid for."""
        for row in {WHOLE, node}:
            self.up[row] = self.up.get(row, 0) + tally.uploaded
            self.down[row] = self.down.get(row, 0) + tally.downloaded
        if self.prices is not NO_PRICES:
            self.spent += cost(tally, self.prices).total

    def more(self, node: str, count: int) -> None:
        """So many objects more of a node are in the bucket, or less."""
        for row in {WHOLE, node}:
            self.objects[row] = self.objects.get(row, 0) + count


def may_read(standing: Standing, node: str | None) -> EntrepotError | None:
    """Why no read is signed now, for a node or (None) for anybody; None if it is."""
    if not standing.limited:
        return None
    refusal = _over_budget(standing) or _over(standing, WHOLE, "day_down", standing.whole, standing.down)
    if refusal is None and node is not None:
        return _over(standing, node, "day_down", standing.of(node), standing.down)
    return refusal


def may_upload(standing: Standing, length: int) -> EntrepotError | None:
    """Why nobody may upload an object of a stream of ``length`` bytes now; None if somebody may."""
    if not standing.limited:
        return None
    most = standing.whole.stream
    if most is not None and length > most:
        return Denied(
            f"this stream has {format_size(length)}; the largest that may pass through the channel has "
            f"{format_size(most)}",
            kind="too-large",
            hint="Ask the channel's owner to raise the largest stream.",
            limit=WORDS["stream"],
            used=length,
            allowed=most,
        )
    return (
        _over_budget(standing)
        or _over(standing, WHOLE, "day_up", standing.whole, standing.up)
        or _over(standing, WHOLE, "objects", standing.whole, standing.objects)
    )


def may_provide(standing: Standing, node: str, length: int) -> EntrepotError | None:
    """Why this node may not upload an object of a stream of ``length`` bytes, though another might; None if it may."""
    if not standing.limited:
        return None
    own = standing.of(node)
    if own.stream is not None and length > own.stream:
        return RetryLater(
            f"whoever is online and has this stream may not upload one of {format_size(length)}",
            kind="over-limit",
            hint="Ask the channel's owner to raise the largest stream of that node.",
            limit=WORDS["stream"],
            node=node,
            used=length,
            allowed=own.stream,
        )
    return _over(standing, node, "day_up", own, standing.up) or _over(standing, node, "objects", own, standing.objects)


def spent_percent(standing: Standing) -> int | None:
    """How much of the month's budget is used up, in whole percent rounded down; None without one."""
    budget = standing.whole.budget
    if budget is None:
        return None
    return 100 if not budget else int(standing.spent * 100 / Fraction(budget))


def marks_reached(percent: int | None) -> tuple[int, ...]:
    """Which of :data:`MARKS` are reached."""
    return () if percent is None else tuple(mark for mark in MARKS if percent >= mark)


def changed(limits: Limits, changes: Mapping[str, int | Decimal | None]) -> Limits:
    """The limits with others in their place. InvalidInput for a name that is none, and for less than nothing."""
    for name, value in changes.items():
        if name not in LIMITS:
            raise InvalidInput(f"there is no limit {name[:40]!r}", hint=f"Limits are {', '.join(WORDS.values())}.")
        if value is not None and value < 0:
            raise InvalidInput(f"{WORDS[name]} cannot be less than nothing")
    return replace(limits, **changes)  # type: ignore[arg-type]  # the names were checked


def parse_budget(text: str) -> Decimal:
    """Money per month: ``20/month``. InvalidInput for anything else."""
    match = _BUDGET.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text[:40]!r} is no budget", hint="Write money per month, like 20/month.")
    return parse_money(match["money"])


def _over_budget(standing: Standing) -> RetryLater | None:
    budget = standing.whole.budget
    if budget is None or standing.spent < Fraction(budget):
        return None
    return RetryLater(
        "the channel's budget of this month is used up: "
        f"{rounded(standing.spent, 2)} of {budget} {standing.prices.currency}",
        kind="over-budget",
        hint="It goes on next month; the owner can raise the budget.",
        limit=WORDS["budget"],
        used=float(rounded(standing.spent)),
        allowed=float(budget),
        resets_at=standing.resets,
    )


def _over(standing: Standing, row: str, name: str, limits: Limits, used: Mapping[str, int]) -> RetryLater | None:
    allowed = getattr(limits, name)
    count = used.get(row, 0)
    if allowed is None or count < allowed:
        return None
    whose = "the channel" if row == WHOLE else "the node"
    if name == "objects":
        return RetryLater(
            f"{whose} has {count} objects in the bucket, and {allowed} are allowed",
            kind="over-limit",
            hint="It goes on when objects have left; the owner can raise the limit.",
            limit=WORDS[name],
            node=row,
            used=count,
            allowed=allowed,
        )
    way = "uploaded" if name == "day_up" else "fetched"
    return RetryLater(
        f"{whose} has {way} {format_size(count)} today, and {format_size(allowed)} are allowed",
        kind="over-limit",
        hint="It goes on tomorrow (UTC); the owner can raise the limit.",
        limit=WORDS[name],
        node=row,
        used=count,
        allowed=allowed,
        resets_at=float((standing.day + 1) * DAY),
    )
