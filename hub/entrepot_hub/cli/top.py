"""``entrepot-hub top``: a running hub at a glance, again and again."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from entrepot.core.errors import EntrepotError, NotFound
from entrepot.core.units import format_size, spell_duration
from entrepot_hub.cli.access import access, runs, settings_of
from entrepot_hub.cli.display import one_line, print_json
from entrepot_hub.cli.options import Folder, Json

if TYPE_CHECKING:
    from rich.console import Group

    from entrepot_hub.services.overview import ChannelTop, SumsView, TopView
    from entrepot_hub.services.settings import HubSettings

_BAR = 16  # characters of a quota's bar
_EIGHTHS = " ▏▎▍▌▋▊▉"
_FRAME = 14  # lines of the screen that are not rows of a table
#: Rates that are told, by the sums that they are differences of.
_RATES = (
    "messages",
    "refused",
    "uploads",
    "uploaded",
    "downloads",
    "downloaded",
    "evicted",
    "grants",
    "failed",
    "requests",
    "request_failures",
)


def top(
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2, max=60.0)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, tell once, and end.")] = False,
    nodes: Annotated[int, typer.Option(help="At most so many nodes and uploads.", min=0, max=200)] = 10,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Watch a running hub: channels, uploads and nodes, with what passes in a second."""
    settings = settings_of(folder)
    if not runs(settings):
        raise NotFound("no hub is running here", kind="not-running", hint="Start it: entrepot-hub serve")
    if once or as_json or not sys.stdout.isatty():
        look = asyncio.run(_twice(settings, interval, nodes))
        if as_json:
            print_json(_document(look))
        else:
            _print(look)
        return
    asyncio.run(_watch(settings, interval, nodes))


@dataclass(frozen=True, slots=True)
class Look:
    """The hub now and at the look before."""

    now: TopView
    before: TopView | None = None

    @property
    def seconds(self) -> float:
        """How long ago that was."""
        return max(self.now.at - self.before.at, 0.001) if self.before is not None else 0.0

    def rate(self, sums: SumsView, before: SumsView | None, name: str) -> float:
        """A sum's growth in a second. A hub that was started anew has no past; a channel or node that was not named
        before began at nothing."""
        past = self.before
        if past is None or past.instance != self.now.instance:
            return 0.0
        grown = float(getattr(sums, name)) - float(0 if before is None else getattr(before, name))
        return max(grown, 0.0) / self.seconds

    def total(self, name: str) -> float:
        """The same of the whole hub."""
        return self.rate(self.now.sums, None if self.before is None else self.before.sums, name)

    def channel(self, channel: ChannelTop, name: str) -> float:
        """The same of a channel."""
        known = {each.name: each.sums for each in self.before.channels} if self.before is not None else {}
        return self.rate(channel.sums, known.get(channel.name), name)

    def node(self, key: str, sums: SumsView, name: str) -> float:
        """The same of a node; of one that was not named before, nothing is known."""
        known = {each.node: each.sums for each in self.before.nodes} if self.before is not None else {}
        return self.rate(sums, known[key], name) if key in known else 0.0

    def latency(self, channel: ChannelTop) -> float | None:
        """Seconds of a request to the channel's bucket: lately, or since the hub started if there was none."""
        sums = channel.sums
        known = {each.name: each.sums for each in self.before.channels} if self.before is not None else {}
        past = known.get(channel.name)
        if past is not None and sums.requests > past.requests:
            return (sums.request_seconds - past.request_seconds) / (sums.requests - past.requests)
        return sums.request_seconds / sums.requests if sums.requests else None


async def _ask(hub: Any, nodes: int) -> TopView:
    from entrepot_hub.services.overview import TopAsk

    found: TopView = await hub.call("top", TopAsk(nodes=nodes, uploads=nodes))
    return found


async def _twice(settings: HubSettings, interval: float, nodes: int) -> Look:
    async with access(settings) as way:
        before = await _ask(way.hub, 200)
        await asyncio.sleep(min(interval, 1.0))
        return Look(await _ask(way.hub, nodes), before)


async def _watch(settings: HubSettings, interval: float, nodes: int) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(markup=False, highlight=False, emoji=False)
    look: Look | None = None
    with Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        while True:
            try:
                async with access(settings) as way:
                    found = await _ask(way.hub, nodes)
            except EntrepotError as error:  # it may be started again any moment
                live.update(Text(f"{one_line(error.message)} - looking again", style="bold red"), refresh=True)
            else:
                look = Look(found, None if look is None else look.now)
                live.update(_screen(look, console.size.height), refresh=True)
            await asyncio.sleep(interval)


def _document(look: Look) -> dict[str, Any]:
    """The look as JSON: what the hub answered, and beside every ``sums`` the ``rates`` of a second."""
    import msgspec

    def rates(one: Any, rate: Any) -> dict[str, float]:
        return {name: round(rate(one, name), 3) for name in _RATES}

    fields: dict[str, Any] = msgspec.to_builtins(look.now)
    fields["interval"] = round(look.seconds, 3)
    fields["rates"] = {name: round(look.total(name), 3) for name in _RATES}
    for shown, channel in zip(fields["channels"], look.now.channels, strict=True):
        shown["rates"] = rates(channel, look.channel)
        latency = look.latency(channel)
        shown["bucket_latency"] = None if latency is None else round(latency, 6)
    for shown, node in zip(fields["nodes"], look.now.nodes, strict=True):
        shown["rates"] = rates(node, lambda one, name: look.node(one.node, one.sums, name))
    return fields


def _print(look: Look) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())
    if not sys.stdout.isatty():
        console.width = 160
    console.print(_screen(look, None))


# -- the screen ---------------------------------------------------------------------------------------------------


def _screen(look: Look, height: int | None) -> Group:
    """Everything; ``height``: the lines there are, shared among the tables."""
    from rich.console import Group
    from rich.text import Text

    room = 10_000 if height is None else max(height - _FRAME, 3)
    uploads = look.now.uploads[: max(room // 3, 1)]
    nodes = look.now.nodes[: max((room - len(uploads)) // 2, 1)]
    channels = max(room - len(uploads) - len(nodes), 1)
    parts: list[Any] = [*_head(look), Text(), _channels(look, channels)]
    if uploads:
        parts += [Text(), _uploads(look, len(uploads))]
    if nodes:
        parts += [Text(), _nodes(look, len(nodes))]
    return Group(*parts)


def _head(look: Look) -> list[Any]:
    from rich.text import Text

    now = look.now
    bad = {name: state for name, state in now.checks.items() if state != "ok"}
    first = Text("entrepot-hub ", style="bold")
    first.append(f"{now.version}  up {spell_duration(max(now.at - now.started, 0.0))}  ", style="dim")
    first.append(time.strftime("%H:%M:%S", time.localtime(now.at)), style="dim")
    first.append("  ")
    if not bad:
        first.append("ready", style="green")
    for name, state in sorted(bad.items()):
        first.append(f"{name}: {state}  ", style="yellow" if state == "degraded" else "bold red")
    if now.mistakes:
        first.append(f"  {now.mistakes} mistakes: see the log", style="bold red")
    second = Text()
    second.append(f"in {_speed(look.total('uploaded'))}  out {_speed(look.total('downloaded'))}  ", style="bold")
    second.append(
        f"messages {_each(look.total('messages'))}  refused {_each(look.total('refused'))}  "
        f"grants {_each(look.total('grants'))}  failed {_each(look.total('failed'))}  "
        f"evicted {_speed(look.total('evicted'))}"
    )
    third = Text(
        "  ".join(
            (
                f"{now.sessions} sessions",
                f"{now.rounds} streams in work",
                f"{now.at_work} messages in work, {now.waiting} waiting, {now.dropped} dropped",
                f"{now.database_waiting} at the database",
                f"{now.tasks} tasks",
                f"event loop {_milliseconds(now.lag)} late",
            )
        ),
        style="dim",
    )
    return [first, second, third]


def _table(title: str, *heads: tuple[str, str]) -> Any:
    """A table with these heads; ``<`` stands to the left, ``>`` to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=False, header_style="bold cyan")
    for place, (side, head) in enumerate(heads):
        name = f"{title}" if place == 0 else head
        table.add_column(name, justify="left" if side == "<" else "right", no_wrap=True, overflow="ellipsis")
    return table


def _channels(look: Look, most: int) -> Any:
    from rich.text import Text

    table = _table(
        "channel",
        ("<", ""), ("<", "quota"), (">", "used"), (">", "of"), (">", "reserved"), (">", "wants"), (">", "uploads"),
        (">", "in/s"), (">", "out/s"), (">", "failed/s"), (">", "bucket"), ("<", ""),
    )  # fmt: skip
    busiest = sorted(
        look.now.channels,
        key=lambda each: (
            -look.channel(each, "uploaded") - look.channel(each, "downloaded"),
            -each.wants - each.uploading,
            -(each.stored + each.reserved),
            each.name,
        ),
    )
    for each in busiest[:most]:
        latency = look.latency(each)
        failed = look.channel(each, "failed")
        table.add_row(
            Text(each.name),
            _bar(each.stored, each.reserved, each.quota),
            format_size(each.stored),
            format_size(each.quota),
            format_size(each.reserved) if each.reserved else "-",
            str(each.wants or "-"),
            str(each.uploading or "-"),
            _speed(look.channel(each, "uploaded")),
            _speed(look.channel(each, "downloaded")),
            Text(_each(failed), style="red" if failed else ""),
            "-" if latency is None else _milliseconds(latency),
            Text("" if each.bucket in {"ok", "?"} else each.bucket, style="bold red"),
        )
    if len(busiest) > most:
        table.add_row(Text(f"… and {len(busiest) - most} more", style="dim"))
    return table


def _uploads(look: Look, most: int) -> Any:
    from rich.text import Text

    table = _table(
        "slowest uploads",
        ("<", ""), (">", "object"), ("<", "node"), (">", "sent"), (">", "of"), (">", "rate"), (">", "since"),
        (">", "lease"), ("<", "transfer"),
    )  # fmt: skip
    for one in look.now.uploads[:most]:
        table.add_row(
            Text(f"{one.channel}/{one.stream[:12]}"),
            str(one.object),
            Text(one_line(one.name)[:24]),
            format_size(one.sent),
            format_size(one.size),
            "asked" if one.rate is None else _speed(one.rate),
            f"{one.seconds:.1f} s",
            Text(f"{one.lease:.1f} s", style="red" if one.lease < 2.0 else ""),
            one.transfer or "-",
        )
    return table


def _nodes(look: Look, most: int) -> Any:
    from rich.text import Text

    table = _table(
        "busiest nodes",
        ("<", ""), ("<", "key"), (">", "in/s"), (">", "out/s"), (">", "brought"), (">", "fetched"),
        (">", "messages/s"), (">", "refused"), (">", "failed"),
    )  # fmt: skip
    for one in look.now.nodes[:most]:
        name = Text(one_line(one.name)[:24], style="" if one.online else "dim")
        refused = one.sums.refused
        table.add_row(
            name,
            Text(one.node[:12], style="dim"),
            _speed(look.node(one.node, one.sums, "uploaded")),
            _speed(look.node(one.node, one.sums, "downloaded")),
            format_size(one.sums.uploaded),
            format_size(one.sums.downloaded),
            _each(look.node(one.node, one.sums, "messages")),
            Text(str(refused or "-"), style="red" if refused > one.sums.messages / 10 else ""),
            str(one.sums.failed or "-"),
        )
    return table


def _bar(stored: int, reserved: int, quota: int) -> Any:
    """A quota as a bar: what is stored, what is reserved, what is free."""
    from rich.text import Text

    used = min(stored / quota, 1.0) if quota else 0.0
    held = min((stored + reserved) / quota, 1.0) if quota else 0.0
    eighths = round(used * _BAR * 8)
    full, part = divmod(eighths, 8)
    text = Text("█" * full + (_EIGHTHS[part] if part else ""), style="green" if used < 0.9 else "yellow")
    text.append("▒" * max(round(held * _BAR) - len(text), 0), style="cyan")
    text.append("·" * (_BAR - len(text)), style="dim")
    text.append(f" {round(held * 100):>3} %", style="default")
    return text


def _speed(rate: float) -> str:
    return f"{format_size(round(rate))}/s" if rate >= 1 else "-"


def _each(rate: float) -> str:
    return "-" if rate == 0 else f"{rate:.1f}" if rate < 100 else f"{rate:,.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
