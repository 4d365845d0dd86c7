"""``entrepot-hub channel …``: make channels, invite nodes, give and take rights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from entrepot.core.errors import Denied, InvalidInput, NotFound
from entrepot.core.rights import shorten_rights
from entrepot.core.units import format_size, parse_duration, parse_size, spell_duration
from entrepot_hub.cli.access import ask
from entrepot_hub.cli.display import note, print_fields, print_json, print_table, say, until, when
from entrepot_hub.cli.options import ChannelName, Folder, Json, NodeText, give_help

_MAX_CREDENTIALS = 32768

app = typer.Typer(help="Channels and their members.", rich_markup_mode=None)
give_help(app)


@app.command("create")
def create(
    name: ChannelName,
    bucket: Annotated[str, typer.Option(help="Where its objects lie: file:///… or s3://bucket/prefix?region=…")],
    quota: Annotated[str, typer.Option(help="The most bytes in the bucket.")] = "10G",
    miniblock: Annotated[str, typer.Option(help="Size of a miniblock.")] = "1M",
    object_size: Annotated[str, typer.Option("--object", help="Size of an object; 0: whole streams.")] = "4M",
    public_read: Annotated[bool, typer.Option("--public-read", help="Anybody may read the bucket.")] = False,
    credentials_file: Annotated[
        Path | None, typer.Option(help="File with the bucket's keys (JSON or TOML).", show_default=False)
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

    asked = ChannelCreate(
        name=name,
        bucket=bucket,
        quota=parse_size(quota),
        miniblock=parse_size(miniblock),
        object=parse_size(object_size),
        public_read=public_read,
        credentials=_credentials(credentials_file, from_stdin=credentials_stdin),
        if_missing=if_missing,
    )
    channel, _ = ask(folder, "channel.create", asked)
    if as_json:
        print_json(channel)
        return
    if not channel.made:
        say(f"channel {channel.name} is there already: {format_size(channel.quota)} on {channel.bucket}")
        return
    say(f"channel {channel.name} made: {format_size(channel.quota)} on {channel.bucket}")
    unbound = sorted(name for name in ("length", "digest", "create_only") if not channel.binds.get(name, True))
    if unbound:
        note(f"note: the provider does not enforce {', '.join(unbound)}: misuse is detected, not prevented.")
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
    print_fields(
        [
            ("channel", channel.name),
            ("bucket", channel.bucket),
            ("used", f"{format_size(channel.charged)} of {format_size(channel.quota)}"),
            ("lock", channel.lock),
            ("miniblock", format_size(channel.miniblock)),
            ("object", format_size(channel.object) if channel.object else "whole streams"),
            ("public read", "yes" if channel.public_read else "no"),
            ("made", when(channel.created_at)),
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


def _credentials(path: Path | None, *, from_stdin: bool) -> str | None:
    if path is not None and from_stdin:
        raise InvalidInput("the bucket's keys come from a file or from the standard input, not from both")
    try:
        if from_stdin:
            data = sys.stdin.buffer.read(_MAX_CREDENTIALS + 1)
        elif path is not None:
            with path.open("rb") as file:
                data = file.read(_MAX_CREDENTIALS + 1)
        else:
            return None
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", kind="no-such-file", path=str(path)) from None
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error.strerror}", kind="unreadable", path=str(path)) from None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if not text.strip() or len(data) > _MAX_CREDENTIALS:
        raise InvalidInput("these are no keys of a bucket", hint='Write {"access_key": "…", "secret_key": "…"}.')
    return text
