"""``entrepot-hub channel …``: make channels, invite nodes, give and take rights."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.core.errors import InvalidInput
from entrepot.core.rights import shorten_rights
from entrepot.core.units import format_size, parse_duration, parse_size, spell_duration
from entrepot_hub.cli.access import ask
from entrepot_hub.cli.credentials import describe_key
from entrepot_hub.cli.display import note, print_fields, print_json, print_table, say, until, used, when
from entrepot_hub.cli.options import ChannelName, Folder, Json, NodeText, give_help

if TYPE_CHECKING:
    from entrepot_hub.core.origins import Origin, Side

#: What of a signed upload a provider should enforce, as the doctor calls it.
_BOUND = ("length", "digest", "create only")

app = typer.Typer(help="Channels and their members.", rich_markup_mode=None)
give_help(app)


@app.command("create")
def create(
    name: ChannelName,
    bucket: Annotated[
        str | None,
        typer.Option(
            help="Where its objects lie: file:///…, s3://bucket/prefix?region=…, gs://bucket or azblob://container"
            "?account=…",
            show_default=False,
            metavar="URL",
        ),
    ] = None,
    bucket_from: Annotated[
        Path | None,
        typer.Option(
            help="Take bucket and keys from a River, Audius or S3 configuration (.yaml, .toml, .json, .env).",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    bucket_from_env: Annotated[
        bool, typer.Option("--bucket-from-env", help="Take bucket and keys from such variables of the environment.")
    ] = False,
    origin_bucket: Annotated[
        str | None, typer.Option(help="Which of S3_BUCKET_IN and S3_BUCKET_OUT.", show_default=False, metavar="in|out")
    ] = None,
    create_bucket: Annotated[
        bool,
        typer.Option(
            "--create-bucket",
            help="Make the bucket now, if it is missing; the keys have to allow making buckets.",
        ),
    ] = False,
    quota: Annotated[str, typer.Option(help="The most bytes in the bucket.")] = "10G",
    miniblock: Annotated[str, typer.Option(help="Size of a miniblock.")] = "1M",
    object_size: Annotated[str, typer.Option("--object", help="Size of an object; 0: whole streams.")] = "4M",
    codec: Annotated[
        str | None,
        typer.Option(
            help="What miniblocks are stored as: none (the default), or zstd where that saves more than 5 %.",
            show_default=False,
        ),
    ] = None,
    public_read: Annotated[bool, typer.Option("--public-read", help="Anybody may read the bucket.")] = False,
    credentials_file: Annotated[
        Path | None, typer.Option(help="File with the bucket's keys.", show_default=False)
    ] = None,
    credentials_stdin: Annotated[
        bool, typer.Option("--credentials-stdin", help="Read the bucket's keys from the standard input.")
    ] = False,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Leave one of this name on this bucket as it is.")
    ] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Make a channel on a bucket."""
    from entrepot_hub.services.administration import ChannelCreate

    keys = read_credentials(credentials_file, from_stdin=credentials_stdin)
    origin = _origin(bucket, bucket_from, from_environment=bucket_from_env, side=origin_bucket, keys=keys)
    asked = ChannelCreate(
        name=name,
        bucket=origin.url,
        quota=parse_size(quota),
        miniblock=parse_size(miniblock),
        object=parse_size(object_size),
        codec=codec or "none",
        public_read=public_read,
        credentials=origin.credentials,
        create_bucket=create_bucket,
        if_missing=if_missing,
    )
    channel, _ = ask(folder, "channel.create", asked)
    for remark in origin.notes:
        note(f"note: {remark}")
    if not channel.made and codec not in {None, channel.codec}:
        note(f"note: its codec is {channel.codec}, not {codec}: that is fixed when a channel is made")
    if as_json:
        print_json(channel)
        return
    if not channel.made:
        say(f"channel {channel.name} is there already: {format_size(channel.quota)} on {channel.bucket}")
        return
    say(f"channel {channel.name} made: {format_size(channel.quota)} on {channel.bucket}")
    for check in channel.checks:
        if check.outcome in {"warning", "failure"}:
            note(f"{check.outcome}: {check.name}: {check.text}")
            if check.mend:
                note(f"  {check.mend}")
    if open_ends := [check.name for check in channel.checks if check.name in _BOUND]:
        note(f"note: not enforced: {', '.join(open_ends)}; see entrepot-hub channel doctor {channel.name}")
    say(f"next: entrepot-hub channel invite {channel.name}")


@app.command("list")
def list_channels(folder: Folder = None, as_json: Json = False) -> None:
    """List all channels."""
    from entrepot_hub.services.administration import Nothing

    channels, _ = ask(folder, "channel.list", Nothing())
    if as_json:
        print_json(channels)
        return
    print_table(
        ("channel", "used", "quota", "object", "bucket"),
        [
            (
                c.name,
                format_size(c.charged),
                format_size(c.quota),
                format_size(c.object) if c.object else "whole",
                c.bucket,
            )
            for c in channels
        ],
        empty="no channels yet: entrepot-hub channel create NAME --bucket URL",
    )


@app.command("show")
def show(name: ChannelName, folder: Folder = None, as_json: Json = False) -> None:
    """Show a channel, its members and its invites."""
    from entrepot_hub.services.administration import ChannelNamed

    detail, _ = ask(folder, "channel.show", ChannelNamed(name=name))
    if as_json:
        print_json(detail)
        return
    channel = detail.channel
    pins, _ = ask(folder, "channel.pins", ChannelNamed(name=name))
    print_fields(
        [
            ("channel", channel.name),
            ("bucket", channel.bucket),
            ("used", used(channel.charged, channel.quota, channel.held, channel.held_until)),
            ("pinned", format_size(pins.kept)),
            ("lock", channel.lock),
            ("miniblock", format_size(channel.miniblock)),
            ("object", format_size(channel.object) if channel.object else "whole streams"),
            ("codec", channel.codec),
            ("public read", "yes" if channel.public_read else "no"),
            ("made", when(channel.created_at)),
            *([] if detail.key is None else [("key", describe_key(detail.key))]),
        ]
    )
    print_table(
        ("member", "key", "rights", "state"),
        [
            (
                m.name,
                m.node[:12],
                shorten_rights(m.rights),
                "active" if m.active else "revoked" if m.revoked_at else "suspended",
            )
            for m in detail.members
        ],
        empty="no members yet",
    )
    print_table(
        ("invite", "rights", "used", "expires"),
        [
            (
                i.id[:12],
                shorten_rights(i.rights),
                f"{i.used} of {i.uses}",
                "withdrawn" if i.revoked_at else until(i.expires),
            )
            for i in detail.invites
        ],
        empty="no invites",
    )
    if detail.limits:
        from entrepot_hub.cli.usage import print_limits

        print_limits(detail.limits)


@app.command("invite")
def invite(
    name: ChannelName,
    uses: Annotated[int, typer.Option(help="How many nodes may join by it.", min=1)] = 1,
    life: Annotated[str, typer.Option("--for", help="How long it is good: 10m, 7d.")] = "7d",
    rights: Annotated[str, typer.Option(help="What they may do.")] = "request,provide",
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Make an invite. Its URL is printed this once; whoever has it can join."""
    from entrepot_hub.services.administration import InviteCreate

    asked = InviteCreate(name=name, uses=uses, life=parse_duration(life), rights=rights)
    made, _ = ask(folder, "channel.invite", asked)
    if as_json:
        print_json(made)
        return
    say(made.url)
    who = "one node" if uses == 1 else f"{uses} nodes"
    note(f"For {who}, for {spell_duration(parse_duration(life))}. They join by: entrepot join URL")


@app.command("grant")
def grant(
    name: ChannelName,
    node: NodeText,
    rights: Annotated[str, typer.Argument(help="All it may do from now on, for example request,provide.")],
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Give a node exactly these rights in a channel."""
    from entrepot_hub.services.administration import MemberGrant

    member, running = ask(folder, "channel.grant", MemberGrant(name=name, node=node, rights=rights))
    if as_json:
        print_json(member)
        return
    say(f"{member.name} in {member.channel}: {shorten_rights(member.rights)}")
    _say_when(running=running)


@app.command("revoke")
def revoke(name: ChannelName, node: NodeText, folder: Folder = None, as_json: Json = False) -> None:
    """Take all rights in a channel from a node."""
    from entrepot_hub.services.administration import MemberRevoke

    member, running = ask(folder, "channel.revoke", MemberRevoke(name=name, node=node))
    if as_json:
        print_json(member)
        return
    say(f"{member.name} has no rights in {member.channel} any more")
    _say_when(running=running)


def _say_when(*, running: bool) -> None:
    if not running:
        note("note: no hub is running here; this takes effect when it starts.")


def read_credentials(path: Path | None, *, from_stdin: bool) -> str | None:
    """A bucket's keys out of a file or the standard input, or none. Raises InvalidInput, NotFound, Denied."""
    if path is None and not from_stdin:
        return None
    if path is not None and from_stdin:
        raise InvalidInput("the bucket's keys come from a file or from the standard input, not from both")
    from entrepot_hub.adapters.buckets.keys import MAX_KEYS
    from entrepot_hub.services.origins import keys_of, read_keys

    return keys_of(sys.stdin.buffer.read(MAX_KEYS + 1)) if path is None else read_keys(path)


def _origin(
    bucket: str | None, path: Path | None, *, from_environment: bool, side: str | None, keys: str | None
) -> Origin:
    """The one bucket that a command names, with its keys. Keys that were given apart go before what stands there."""
    from entrepot_hub.core.origins import Origin
    from entrepot_hub.services.origins import origin_of_environment, origin_of_file, with_keys

    if side not in {None, "in", "out"}:
        raise InvalidInput("--origin-bucket is in or out")
    if (bucket is not None) + (path is not None) + from_environment != 1:
        raise InvalidInput("a bucket is named by one of --bucket, --bucket-from and --bucket-from-env")
    chosen: Side | None = "in" if side == "in" else "out" if side == "out" else None
    if bucket is not None:
        if chosen is not None:
            raise InvalidInput("--origin-bucket goes with --bucket-from and --bucket-from-env")
        return Origin(url=bucket, credentials=keys)
    origin = origin_of_environment(os.environ, chosen) if path is None else origin_of_file(path, chosen)
    if keys is not None:
        return replace(origin, credentials=keys, credentials_file=None)
    return with_keys(origin)
