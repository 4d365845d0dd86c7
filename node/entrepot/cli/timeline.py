"""``why``: what happened to a stream, and what it waits for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.cli.holdings import info_document, info_lines
from entrepot.cli.options import Channel, Hub, Json, Quiet, check_channel, check_host
from entrepot.cli.output import Output, counted, table
from entrepot.cli.running import interruptible, run
from entrepot.core.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from entrepot.core.api import StreamEvent, Timeline
    from entrepot.services.inquiry import Story

#: What the kinds of an error's word mean for who waits.
_REASONS = {
    "no-holder": "nobody who is online has it",
    "over-quota": "the bucket is full",
    "holder-too-slow": "whoever has it is too slow, or went away",
    "busy": "whoever has it is busy with other uploads",
    "no-right": "a right is missing",
    "bucket-unreachable": "the bucket cannot be reached",
    "denied": "the bucket refuses the hub",
    "changed": "the holder's file has changed",
    "corrupt": "what was uploaded is not what was promised",
    "revoked": "the holder lost its right",
    "cancelled": "the holder withdrew",
    "deadline": "nothing came in time",
}


def why(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A URI, or a stream id of a channel that was joined.")],
    channel: Channel = None,
    hub: Hub = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell what happened to a stream: who asked for it, who offered and uploaded it, what it waited for, what left the
    bucket for what, and what that cost.

    The hub keeps this for two weeks. Nothing is fetched or uploaded.
    """
    from entrepot.cli.environment import read_environment
    from entrepot.services.node import Node

    out = Output(as_json=json, quiet=quiet)
    check_channel(channel)
    check_host(hub)
    settings = read_environment().settings()

    async def ask() -> Story:
        async with Node(settings) as node:
            return await node.why(uri, channel=channel, hub=hub)

    with interruptible(out, "Nothing was changed."):
        story = run(ask())
    out.result(
        {"uri": story.info.uri, "info": info_document(story.info), "timeline": story.timeline}, *story_lines(story)
    )


def story_lines(story: Story) -> list[str]:
    """The story for people: how it stands, what happened, what it waits for."""
    found, timeline = story.info, story.timeline
    lines = [line for line in info_lines(found, timeline.time) if not line.startswith(("to fetch", "name", "sha256"))]
    lines.append("")
    lines += event_lines(timeline)
    lines.append("")
    lines.append(_verdict(timeline))
    lines.append(f"Cost: about {timeline.cost} {timeline.currency} by the channel's price list.")
    return lines


def event_lines(timeline: Timeline) -> list[str]:
    """One line for each run of events."""
    if not timeline.events:
        return ["Nothing happened to it that the hub remembers."]
    days = {_when(event.at).date() for event in timeline.events}
    form = "%H:%M:%S" if len(days) == 1 else "%Y-%m-%d %H:%M:%S"
    rows = [[_when(event.at).strftime(form), event.kind, _told(event)] for event in timeline.events]
    heading = [_when(timeline.events[0].at).strftime("%Y-%m-%d")] if len(days) == 1 else []
    return heading + table(rows)


def _when(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC).astimezone()


def _told(event: StreamEvent) -> str:
    who = event.node or "somebody"
    detail = event.detail
    match event.kind:
        case "asked":
            words = f"by {who}"
        case "waited":
            words = f"{who}: {_reason(detail.get('reason', ''))}"
        case "sought":
            among = {"holders": "known holders", "channel": "the channel"}.get(detail.get("among", ""), "nodes")
            return f"among {among}, {counted(event.count, 'time')}" if event.count > 1 else f"among {among}"
        case "offered":
            words = f"by {who}"
        case "granted":
            words = f"to {who}: {_objects(event)}"
        case "no-room":
            words = f"for {_objects(event)}: the bucket was full"
        case "uploaded":
            rate = f" at {format_rate(event.bytes / event.seconds)} each" if event.seconds > 0 else ""
            words = f"by {who}: {_objects(event)}{rate}" if event.node else f"{_objects(event)}, found in the bucket"
        case "failed":
            words = f"at {who}: {_objects(event)}: {_reason(detail.get('reason', ''))}"
        case "told":
            words = f"{who} where to read {_objects(event)}"
        case "read":
            words = f"by {who}: {_objects(event)}"
        case "evicted":
            cause = "the quota was lowered" if detail.get("because") == "lower-quota" else "for room"
            other = detail.get("for")
            cause = f"{cause} for {other[:12]}…" if other else cause
            lacked = {"yes": "; somebody still wanted it", "no": "; nobody wanted it then"}.get(
                detail.get("wanted", ""), ""
            )
            words = f"{_objects(event)}, {cause}{lacked}"
        case "condemned":
            words = f"{_objects(event)}, uploaded by {who}: it does not verify"
        case "reported":
            words = f"by {who}: {_objects(event)} is {detail.get('as', 'bad')}"
            if verdict := detail.get("verdict"):
                words += f" (the hub: {verdict})"
        case "stopped":
            words = f"{who} wants no more of it"
        case _:
            words = f"{who}: {', '.join(f'{key} {value}' for key, value in detail.items())}"
    span = event.until - event.at
    if span >= 1:
        words += f", over {format_duration(span)}"
    if event.transfer is not None and event.kind in {"asked", "granted"}:
        words += f"  [{event.transfer}]"
    return words


def _objects(event: StreamEvent) -> str:
    if event.first is None or event.last is None:
        return counted(event.count, "object")
    which = f"object {event.first}" if event.first == event.last else f"objects {event.first}–{event.last}"
    several = f", {event.count:,} in all" if event.count != event.last - event.first + 1 else ""
    size = f" ({format_size(event.bytes)}{several})" if event.bytes else several and f" ({several[2:]})"
    return f"{which}{size}"


def _reason(kind: str) -> str:
    return _REASONS.get(kind, kind.replace("-", " ") or "no reason was given")


def _verdict(timeline: Timeline) -> str:
    """How it stands now, in a sentence."""
    info = timeline.info
    if not info.wanted_by:
        return "Nobody waits for it now."
    who = f"{counted(info.wanted_by, 'node')} {'waits' if info.wanted_by == 1 else 'wait'} for it"
    if timeline.reason is None:
        return f"{who}; nothing is in the way."
    hint = f" {timeline.reason.hint}" if timeline.reason.hint else ""
    return f"{who}: {timeline.reason.message}.{hint}"
