"""``entrepot-hub top``: a running hub at a glance, again and again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
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
    from rich.text import Text

    from entrepot_hub.services.overview import ChannelTop, SumsView, TopView
    from entrepot_hub.services.settings import HubSettings

_BAR = 16  # characters of a quota's bar
_EIGHTHS = " ▏▎▍▌▋▊▉"
_FRAME = 14  # lines of the screen that are not rows of a table
_UPLOADS = 200  # live uploads that are asked for: their speeds are summed
_NARROWEST = 10  # characters that a name keeps on a narrow screen
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
    most: int = 10  # uploads that are shown

    @property
    def sending(self) -> float:
        """Bytes a second of the uploads under way: what ``uploaded`` counts only once an object has arrived."""
        return sum(one.rate or 0.0 for one in self.now.uploads)

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

    found: TopView = await hub.call("top", TopAsk(nodes=nodes, uploads=_UPLOADS))
    return found


async def _twice(settings: HubSettings, interval: float, nodes: int) -> Look:
    async with access(settings) as way:
        before = await _ask(way.hub, 200)
        await asyncio.sleep(min(interval, 1.0))
        return Look(await _ask(way.hub, nodes), before, nodes)


async def _watch(settings: HubSettings, interval: float, nodes: int) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(markup=False, highlight=False, emoji=False)
    look: Look | None = None
    stop = asyncio.Event()
    with Live(console=console, screen=True, auto_refresh=False, transient=True) as live, _quitting(stop):
        while not stop.is_set():
            try:
                async with access(settings) as way:
                    found = await _ask(way.hub, nodes)
            except EntrepotError as error:  # it may be started again any moment
                live.update(Text(f"{one_line(error.message)} - looking again", style="bold red"), refresh=True)
            else:
                look = Look(found, None if look is None else look.now, nodes)
                live.update(_screen(look, console.size.width, console.size.height), refresh=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), interval)


@contextlib.contextmanager
def _quitting(stop: asyncio.Event) -> Iterator[None]:
    """While the block runs, ``q`` sets ``stop``; the terminal is left as it was."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    loop, source = asyncio.get_running_loop(), sys.stdin.fileno()

    def typed() -> None:
        keys = os.read(source, 64)
        if b"q" in keys.lower():
            stop.set()
        if not keys:
            loop.remove_reader(source)

    before = termios.tcgetattr(source)
    tty.setcbreak(source)
    loop.add_reader(source, typed)
    try:
        yield
    finally:
        loop.remove_reader(source)
        termios.tcsetattr(source, termios.TCSADRAIN, before)


def _document(look: Look) -> dict[str, Any]:
    """The look as JSON: what the hub answered, and beside every ``sums`` the ``rates`` of a second."""
    import msgspec

    def rates(one: Any, rate: Any) -> dict[str, float]:
        return {name: round(rate(one, name), 3) for name in _RATES}

    fields: dict[str, Any] = msgspec.to_builtins(look.now)
    fields["uploads"] = fields["uploads"][: look.most]
    fields["interval"] = round(look.seconds, 3)
    fields["sending"] = round(look.sending, 3)
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

    console = Console(markup=False, highlight=False, emoji=False)
    if sys.stdout.isatty():
        console.print(_screen(look, console.size.width, None))
        return
    console.width = 1000
    with console.capture() as printed:
        console.print(_screen(look, None, None))
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in printed.get().splitlines())


# -- the screen ---------------------------------------------------------------------------------------------------


def _screen(look: Look, width: int | None, height: int | None) -> Group:
    """Everything; ``width`` and ``height``: the columns and lines there are, None for as many as it takes. The lines
    are shared among the tables; what does not fit beside the rest is left out, never cut."""
    from rich.console import Group
    from rich.text import Text

    room = 10_000 if height is None else max(height - _FRAME, 3)
    uploads = look.now.uploads[: min(max(room // 3, 1), look.most)]
    nodes = look.now.nodes[: max((room - len(uploads)) // 2, 1)]
    channels = max(room - len(uploads) - len(nodes), 1)
    parts: list[Any] = [*_head(look, width), Text(), _channels(look, channels, width)]
    if uploads:
        parts += [Text(), _uploads(look, len(uploads), width)]
    if nodes:
        parts += [Text(), _nodes(look, len(nodes), width)]
    if height is not None:
        parts.append(Text("q or Ctrl-C ends it", style="dim"))
    return Group(*parts)


def _head(look: Look, width: int | None) -> list[Text]:
    from rich.text import Text

    now = look.now
    bad = {name: state for name, state in now.checks.items() if state != "ok"}
    first = Text("entrepot-hub ", style="bold", no_wrap=True, overflow="ellipsis")
    first.append(f"{now.version}  up {spell_duration(max(now.at - now.started, 0.0))}  ", style="dim")
    first.append(time.strftime("%H:%M:%S", time.localtime(now.at)), style="dim")
    first.append("  ")
    if not bad:
        first.append("ready", style="green")
    for name, state in sorted(bad.items()):
        first.append(f"{name}: {state}  ", style="yellow" if state == "degraded" else "bold red")
    if now.mistakes:
        first.append(f"  {now.mistakes} mistakes: see the log", style="bold red")
    second = _fitting(
        width,
        f"sending {_speed(look.sending)}",
        f"in {_speed(look.total('uploaded'))}",
        f"out {_speed(look.total('downloaded'))}",
        f"failed {_each(look.total('failed'))}",
        f"refused {_each(look.total('refused'))}",
        f"messages {_each(look.total('messages'))}",
        f"grants {_each(look.total('grants'))}",
        f"evicted {_speed(look.total('evicted'))}",
    )
    third = _fitting(
        width,
        f"{now.sessions} sessions",
        f"{now.rounds} streams in work",
        f"event loop {_milliseconds(now.lag)} late",
        f"{now.at_work} messages in work, {now.waiting} waiting, {now.dropped} dropped",
        f"{now.database_waiting} at the database",
        f"{now.tasks} tasks",
    )
    return [first, Text(second, style="bold"), Text(third, style="dim")]


def _fitting(width: int | None, *parts: str) -> str:
    """As many of the parts as fit into a line."""
    line = parts[0]
    for part in parts[1:]:
        if width is None or len(line) + 2 + len(part) <= width:
            line += f"  {part}"
    return line


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a table: ``side`` it stands at (``<`` or ``>``), its ``head``; where there is no room for all, those
    of rank 0 are shown, and of the others, in the order of ranks, what fits beside them."""

    side: str
    head: str
    rank: int = 0


def _table(columns: Sequence[_Column], rows: Sequence[Sequence[Text | str]], width: int | None) -> Any:
    """A table that fits: columns are left out, and then the names in the first are shortened. Numbers never are."""
    from rich.cells import cell_len
    from rich.text import Text

    cells = [dict(zip(columns, row, strict=False)) for row in rows]
    shown = list(columns)
    table, wide = _laid_out(shown, cells)
    if width is not None and wide > width:
        shown = [column for column in columns if not column.rank]
        table, wide = _laid_out(shown, cells)
        for more in sorted((column for column in columns if column.rank), key=lambda column: column.rank):
            tried = [column for column in columns if column in shown or column is more]
            laid = _laid_out(tried, cells)
            if laid[1] <= width:
                shown, (table, wide) = tried, laid
    if width is not None and wide > width:
        longest = max((cell_len(str(row[shown[0]])) for row in cells), default=0)
        most = max(longest - (wide - width), _NARROWEST)
        for row in cells:
            name = row[shown[0]]
            if isinstance(name, Text):
                name.truncate(most, overflow="ellipsis")
        table, _ = _laid_out(shown, cells)
    return table


def _laid_out(columns: Sequence[_Column], rows: Sequence[dict[_Column, Text | str]]) -> tuple[Any, int]:
    """The table, and how wide it is."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold cyan")
    for column in columns:
        table.add_column(column.head, justify="left" if column.side == "<" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row.get(column, "") for column in columns))
    endless = Console(width=10_000)
    return table, Measurement.get(endless, endless.options, table).maximum


def _channels(look: Look, most: int, width: int | None) -> Any:
    from rich.text import Text

    columns = [
        _Column("<", "channel"), _Column("<", "quota"), _Column(">", "used"), _Column(">", "of", 6),
        _Column(">", "reserved", 7), _Column(">", "held back", 1), _Column(">", "wants", 4), _Column(">", "uploads", 3),
        _Column(">", "in/s"), _Column(">", "out/s"), _Column(">", "failed/s", 5), _Column(">", "bucket"),
    ]  # fmt: skip
    held = any(each.held for each in look.now.channels)  # only for a while after a rebuilding
    if not held:
        columns = [column for column in columns if column.head != "held back"]
    busiest = sorted(
        look.now.channels,
        key=lambda each: (
            -look.channel(each, "uploaded") - look.channel(each, "downloaded"),
            -each.wants - each.uploading,
            -(each.stored + each.reserved),
            each.name,
        ),
    )
    rows: list[list[Text | str]] = []
    for each in busiest[:most]:
        latency = look.latency(each)
        failed = look.channel(each, "failed")
        rows.append(
            [
                Text(each.name),
                _bar(each.stored, each.reserved, each.quota),
                format_size(each.stored),
                format_size(each.quota),
                format_size(each.reserved) if each.reserved else "-",
                *([format_size(each.held) if each.held else "-"] if held else []),
                str(each.wants or "-"),
                str(each.uploading or "-"),
                _speed(look.channel(each, "uploaded")),
                _speed(look.channel(each, "downloaded")),
                Text(_each(failed), style="red" if failed else ""),
                Text(each.bucket.removeprefix("bucket-"), style="bold red")
                if each.bucket not in {"ok", "?"}
                else "-"
                if latency is None
                else _milliseconds(latency),
            ]
        )
    if len(busiest) > most:
        rows.append([Text(f"{len(busiest) - most} more", style="dim")])
    return _table(columns, rows, width)


def _uploads(look: Look, most: int, width: int | None) -> Any:
    from rich.text import Text

    columns = (
        _Column("<", "slowest uploads"), _Column(">", "object", 2), _Column("<", "node", 1), _Column(">", "sent"),
        _Column(">", "of"), _Column(">", "rate"), _Column(">", "since", 3), _Column(">", "lease", 4),
        _Column("<", "transfer", 5),
    )  # fmt: skip
    rows: list[list[Text | str]] = [
        [
            Text(f"{one.channel}/{one.stream[:12]}"),
            str(one.object),
            Text(one_line(one.name)[:24]),
            format_size(one.sent),
            format_size(one.size),
            "asked" if one.rate is None else _speed(one.rate),
            f"{one.seconds:.1f} s",
            Text(f"{one.lease:.1f} s", style="red" if one.lease < 2.0 else ""),
            one.transfer or "-",
        ]
        for one in look.now.uploads[:most]
    ]
    return _table(columns, rows, width)


def _nodes(look: Look, most: int, width: int | None) -> Any:
    from rich.text import Text

    columns = (
        _Column("<", "busiest nodes"), _Column("<", "key", 5), _Column(">", "in/s"), _Column(">", "out/s"),
        _Column(">", "brought", 2), _Column(">", "signed", 3), _Column(">", "messages/s", 4), _Column(">", "refused"),
        _Column(">", "failed", 1),
    )  # fmt: skip
    rows: list[list[Text | str]] = [
        [
            Text(one_line(one.name)[:24], style="" if one.online else "dim"),
            Text(one.node[:12], style="dim"),
            _speed(look.node(one.node, one.sums, "uploaded")),
            _speed(look.node(one.node, one.sums, "downloaded")),
            format_size(one.sums.uploaded),
            format_size(one.sums.downloaded),
            _each(look.node(one.node, one.sums, "messages")),
            Text(str(one.sums.refused or "-"), style="red" if one.sums.refused > one.sums.messages / 10 else ""),
            str(one.sums.failed or "-"),
        ]
        for one in look.now.nodes[:most]
    ]
    return _table(columns, rows, width)


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
