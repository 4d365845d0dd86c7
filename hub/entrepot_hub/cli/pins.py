"""``entrepot-hub channel pin``, ``unpin`` and ``pins``: what is never evicted."""

from __future__ import annotations

from typing import Annotated

import typer

from entrepot.core.units import format_size
from entrepot_hub.cli.access import ask
from entrepot_hub.cli.display import print_json, print_table, say, when
from entrepot_hub.cli.options import ChannelName, Folder, Json

StreamText = Annotated[str, typer.Argument(help="The stream: its URI, or its id.", metavar="URI|STREAM-ID")]


def pin(
    name: ChannelName,
    stream: StreamText,
    archive: Annotated[bool, typer.Option("--archive", help="The bucket is its home, not a cache of it.")] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Keep a stream in the bucket: what of it is uploaded is never evicted. Uploads nothing by itself."""
    from entrepot_hub.services.pins import PinSet

    found, _ = ask(folder, "channel.pin", PinSet(name=name, stream=stream, archive=archive))
    if as_json:
        print_json(found)
        return
    say(f"{found.stream} stays in {name} ({found.kind}): {format_size(found.stored)} of it are in the bucket")


def unpin(name: ChannelName, stream: StreamText, folder: Folder = None, as_json: Json = False) -> None:
    """Let a stream be evicted again."""
    from entrepot_hub.services.pins import PinRemove

    found, _ = ask(folder, "channel.unpin", PinRemove(name=name, stream=stream))
    if as_json:
        print_json(found)
        return
    say(f"{found.stream} may leave {name}" if found.was else f"{found.stream} was not pinned in {name}")


def pins(name: ChannelName, folder: Folder = None, as_json: Json = False) -> None:
    """List what is pinned, and how much of the quota that may take."""
    from entrepot_hub.services.administration import ChannelNamed

    found, _ = ask(folder, "channel.pins", ChannelNamed(name=name))
    if as_json:
        print_json(found)
        return
    print_table(
        ("stream", "kind", "in the bucket", "length", "since"),
        [
            (
                p.stream,
                p.kind,
                format_size(p.stored),
                "not known" if p.length is None else format_size(p.length),
                when(p.at),
            )
            for p in found.pins
        ],
        empty="nothing is pinned",
    )
    if found.pins:
        say(f"{format_size(found.kept)} of {format_size(found.quota)} pinned")
