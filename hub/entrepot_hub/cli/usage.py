"""``entrepot-hub channel usage``, ``limit`` and ``quota``, and ``entrepot-hub price …``: what passed, what it costs,
and how much of it may."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from entrepot.core.errors import InvalidInput
from entrepot.core.units import format_size, parse_size
from entrepot_hub.cli.access import ask
from entrepot_hub.cli.display import held_back, note, print_fields, print_json, print_table, say
from entrepot_hub.cli.options import ChannelName, Folder, Json, give_help

if TYPE_CHECKING:
    from entrepot.core.api import LimitView
    from entrepot_hub.services.usage import BudgetView, Counts, PriceView, UsageReport

#: Said with every figure that rests on it.
UPPER_BOUND = "down: what was signed for reading, an upper bound of what was read and billed."
#: Nodes that the summary names.
_LARGEST = 3

prices = typer.Typer(help="What providers ask for, and so what channels cost.", rich_markup_mode=None)
give_help(prices)

ListName = Annotated[
    str, typer.Argument(help="A provider's list, or channel:NAME for one channel's own.", metavar="LIST")
]


def usage(
    name: ChannelName,
    days: Annotated[int | None, typer.Option(help="The last so many days.", min=1, max=731, metavar="N")] = None,
    month: Annotated[str | None, typer.Option(help="A month, like 2026-11.", metavar="MONTH")] = None,
    by: Annotated[Literal["day", "node"], typer.Option(help="What the lines of the table are.")] = "day",
    plot: Annotated[
        Path | None, typer.Option(help="Draw it into this file, .png or .svg.", metavar="FILE", show_default=False)
    ] = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Tell what passed through a channel and what it costs."""
    from entrepot_hub.services.usage import UsageAsk

    if days is not None and month is not None:
        raise InvalidInput("the days are the last ones or a month's", hint="Give one of --days and --month.")
    if plot is not None:
        from entrepot_hub.cli.plot import check_file

        check_file(plot)
    report, _ = ask(folder, "channel.usage", UsageAsk(name=name, days=days or 30, month=month))
    if plot is not None:
        from entrepot_hub.cli.plot import draw

        draw(report, plot)
    if as_json:
        print_json(report)
        return
    _print_summary(report)
    if by == "node":
        rows = [(node.name, *_cells(node.counts)) for node in report.nodes]
    else:
        rows = [(day.day, *_cells(day.counts, format_size(day.stored))) for day in report.days if _any(day.counts)]
    head = ("node",) if by == "node" else ("day", "stored")
    say()
    print_table(
        (*head, "up", "down", "writes", "looks", "deletes", "evicted", f"cost {report.currency}"),
        rows,
        empty="nothing passed",
    )
    _print_plot(report)
    say()
    note(UPPER_BOUND)
    if plot is not None:
        note(f"drawn: {plot}")


def limit(
    name: ChannelName,
    node: Annotated[
        str | None, typer.Option(help="Of this node: its name, its key, or the beginning of either.", metavar="NODE")
    ] = None,
    each_node: Annotated[bool, typer.Option("--each-node", help="Of each node without limits of its own.")] = False,
    up_per_day: Annotated[str | None, typer.Option(help="Bytes uploaded in a UTC day.", metavar="SIZE")] = None,
    down_per_day: Annotated[
        str | None, typer.Option(help="Bytes signed for reading in a UTC day.", metavar="SIZE")
    ] = None,
    objects: Annotated[int | None, typer.Option(help="Objects in the bucket.", min=0, metavar="N")] = None,
    largest_stream: Annotated[str | None, typer.Option(help="Size of the largest stream.", metavar="SIZE")] = None,
    budget: Annotated[str | None, typer.Option(help="Money in a UTC month, like 20/month.", metavar="MONEY")] = None,
    clear: Annotated[
        list[str] | None,
        typer.Option(help="Lift a limit (up-per-day, …, or all); may be repeated.", metavar="LIMIT"),
    ] = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Limit what a channel or a node in it may use; without options, tell the limits."""
    from entrepot_hub.core.limits import EACH, WHOLE, parse_budget
    from entrepot_hub.services.administration import ChannelNamed
    from entrepot_hub.services.usage import LimitSet

    if node is not None and each_node:
        raise InvalidInput("the limit is one node's or each node's", hint="Give one of --node and --each-node.")
    row = EACH if each_node else WHOLE if node is None else node
    if row in {EACH, WHOLE} and node is not None:
        raise InvalidInput(f"{node!r} is no node", hint="Name it, or leave --node out.")
    changes = {
        "day_up": None if up_per_day is None else parse_size(up_per_day),
        "day_down": None if down_per_day is None else parse_size(down_per_day),
        "objects": objects,
        "stream": None if largest_stream is None else parse_size(largest_stream),
    }
    money = None if budget is None else format(parse_budget(budget), "f")
    if any(value is not None for value in (*changes.values(), money)) or clear:
        asked = LimitSet(name=name, node=row, **changes, budget=money, clear=tuple(clear or ()))
        found, _ = ask(folder, "channel.limit", asked)
    elif row != WHOLE:
        raise InvalidInput("nothing is to be limited", hint="Say how much, for example --up-per-day 10G.")
    else:
        found, _ = ask(folder, "channel.limits", ChannelNamed(name=name))
    if as_json:
        print_json(found)
        return
    print_limits(found)
    if money is not None and Decimal(money):
        _warn_of_no_prices(name, folder)


def _warn_of_no_prices(channel: str, folder: Path | None) -> None:
    """Say so where nothing costs anything by the channel's prices: a budget means nothing then."""
    from entrepot_hub.services.administration import Nothing

    for each in ask(folder, "price.list", Nothing())[0]:
        asked = (each.storage, each.requests_a, each.requests_b, each.deletes, each.egress)
        if channel in each.channels and not any(Decimal(price) for price in asked):
            note(f"note: by the prices {each.name!r} everything costs 0, so this budget is never reached.")
            note(f"  Say what it costs, for example: entrepot-hub price set channel:{channel} --egress 0.09")


def print_limits(limits: list[LimitView]) -> None:
    """A table of limits and what is used of them."""
    print_table(
        ("limits of", "up per day", "down per day", "objects", "largest stream", "budget"),
        [
            (
                each.name,
                _used(each.day_up, each.up),
                _used(each.day_down, each.down),
                "" if each.objects is None else f"{'' if each.held is None else f'{each.held} of '}{each.objects}",
                "" if each.stream is None else format_size(each.stream),
                "" if each.budget is None else f"{each.budget} a month",
            )
            for each in limits
        ],
        empty="no limits",
    )


def quota(
    name: ChannelName,
    size: Annotated[str, typer.Argument(help="The most bytes in the bucket; at least four objects.", metavar="SIZE")],
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Change a channel's quota. What is stored beyond it is evicted in the background."""
    from entrepot_hub.services.usage import QuotaSet

    found, running = ask(folder, "channel.quota", QuotaSet(name=name, quota=parse_size(size)))
    if as_json:
        print_json(found)
        return
    say(f"quota of {found.channel}: {format_size(found.quota)} (was {format_size(found.before)})")
    over = min(found.charged - found.quota, found.charged - found.held)
    if over > 0:
        when = "now, as readers finish" if running else "when a hub runs"
        note(f"note: {format_size(over)} are over it and are evicted {when}.")
    if found.held and found.charged > found.quota:
        note(f"note: {held_back(found.held, found.held_until)}, whatever the quota is.")


@prices.command("list")
def list_prices(folder: Folder = None, as_json: Json = False) -> None:
    """List all price lists, and which channels go by them."""
    from entrepot_hub.services.administration import Nothing

    found, _ = ask(folder, "price.list", Nothing())
    _print_prices(found, as_json=as_json)


@prices.command("set")
def set_prices(
    name: ListName,
    storage: Annotated[str | None, typer.Option(help="A GiB for a month.", metavar="MONEY")] = None,
    requests_a: Annotated[str | None, typer.Option(help="A thousand writes or lists.", metavar="MONEY")] = None,
    requests_b: Annotated[str | None, typer.Option(help="A thousand looks or reads.", metavar="MONEY")] = None,
    deletes: Annotated[str | None, typer.Option(help="A thousand deletes.", metavar="MONEY")] = None,
    egress: Annotated[str | None, typer.Option(help="A GiB read.", metavar="MONEY")] = None,
    currency: Annotated[str | None, typer.Option(help="Like EUR.", metavar="CODE")] = None,
    source: Annotated[str, typer.Option(help="Where the prices are from.")] = "set by the admin",
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Set prices of a list. A channel's own list begins as that of its provider."""
    from entrepot_hub.services.usage import PriceSet

    given = {
        "storage": storage,
        "requests_a": requests_a,
        "requests_b": requests_b,
        "deletes": deletes,
        "egress": egress,
    }
    changes = {word: text for word, text in given.items() if text is not None}
    found, _ = ask(folder, "price.set", PriceSet(name=name, prices=changes, currency=currency, source=source))
    _print_prices(found, as_json=as_json)


@prices.command("reset")
def reset_prices(name: ListName, folder: Folder = None, as_json: Json = False) -> None:
    """Go back to the built-in list; for a channel, to its provider's."""
    from entrepot_hub.services.usage import PriceNamed

    found, _ = ask(folder, "price.reset", PriceNamed(name=name))
    _print_prices(found, as_json=as_json)


def _print_prices(found: list[PriceView], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_table(
        ("list", "storage", "writes", "looks", "deletes", "egress", "currency", "as of", "channels"),
        [
            (
                f"{each.name}*" if each.changed else each.name,
                each.storage,
                each.requests_a,
                each.requests_b,
                each.deletes,
                each.egress,
                each.currency,
                each.as_of,
                ", ".join(each.channels),
            )
            for each in found
        ],
        empty="no price lists",
    )
    note("storage: a GiB for a month; writes, looks, deletes: a thousand; egress: a GiB. * was changed here.")


def _print_summary(report: UsageReport) -> None:
    total, currency = report.total, report.currency
    fields: list[tuple[str, object]] = [
        ("channel", report.channel),
        ("days", f"{report.first} to {report.last}, UTC"),
        ("stored now", f"{format_size(report.charged)} of {format_size(report.quota)}"),
        ("pinned", format_size(report.pinned)),
        ("up", f"{format_size(total.uploaded)} in {total.uploads} objects"),
        ("down", f"up to {format_size(total.downloaded)} in {total.downloads} objects"),
        ("evicted", format_size(total.evicted)),
        (
            "cost",
            f"up to {money(total.cost)} {currency}: storage {money(total.storage_cost)}, requests "
            f"{money(total.request_cost)}, egress {money(total.egress_cost)}",
        ),
        ("prices", f"{report.prices}, as of {report.as_of}"),
    ]
    if report.budget is not None:
        fields.append(("budget", _budget(report.budget, currency)))
    busy = [node for node in report.nodes if node.node and node.counts.uploaded + node.counts.downloaded]
    if busy:
        largest = (
            f"{node.name} ({format_size(node.counts.uploaded)} up, {format_size(node.counts.downloaded)} down)"
            for node in busy[:_LARGEST]
        )
        fields.append(("largest", ", ".join(largest)))
    print_fields(fields)
    if report.limits:
        say()
        print_limits(report.limits)


def _budget(budget: BudgetView, currency: str) -> str:
    text = f"{money(budget.spent)} of {budget.budget} {currency} in {budget.month}, {budget.percent} %"
    if budget.reached:
        return f"{text}: used up, nothing is signed until next month"
    if budget.projected is not None:
        text += f"; {money(budget.projected)} by its end, if it goes on like this"
    return text


def money(text: str) -> str:
    """An amount for people: two places, four for what is less than one."""
    amount = Decimal(text)
    if amount >= 1 or not amount:
        return f"{amount:.2f}"
    return f"{amount:.4f}" if amount >= Decimal("0.0001") else "<0.0001"


def _used(allowed: int | None, used: int | None) -> str:
    if allowed is None:
        return ""
    return f"{'' if used is None else f'{format_size(used)} of '}{format_size(allowed)}"


def _cells(counts: Counts, *before: str) -> tuple[object, ...]:
    return (
        *before,
        format_size(counts.uploaded),
        format_size(counts.downloaded),
        counts.requests_a,
        counts.requests_b,
        counts.deletes,
        format_size(counts.evicted),
        money(counts.cost),
    )


def _any(counts: Counts) -> bool:
    return any((counts.uploads, counts.downloads, counts.requests_a, counts.requests_b, counts.byte_seconds))


def _print_plot(report: UsageReport) -> None:
    from entrepot_hub.cli.plot import bars

    days = report.days
    for title, values in (
        ("stored", [day.stored for day in days]),
        ("up", [day.counts.uploaded for day in days]),
        ("down", [day.counts.downloaded for day in days]),
    ):
        if len(days) > 1 and any(values):
            say()
            for line in bars(title, values, first=report.first, last=report.last):
                say(line)
