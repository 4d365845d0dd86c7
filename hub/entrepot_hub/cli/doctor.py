"""``entrepot-hub channel doctor`` and ``entrepot-hub policy``: is the bucket fit, and what must its provider allow?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from entrepot_hub.cli.access import ask
from entrepot_hub.cli.display import note, print_checks, print_json, progress, say
from entrepot_hub.cli.options import ChannelName, Folder, Json

if TYPE_CHECKING:
    from entrepot_hub.services.diagnosis import Diagnosis, PolicyView

#: Exit code when something is broken, as for errors that somebody has to mend.
_FAILED = 1


def doctor(
    name: ChannelName,
    no_upload: Annotated[bool, typer.Option("--no-upload", help="Only look; upload nothing.")] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Try and look at everything a channel's bucket has to do: uploads, tampering, tombstones, ranges, lists, clocks,
    access. Takes about ten seconds; leaves nothing behind. Exit code 1 if something is broken."""
    from entrepot_hub.services.diagnosis import Diagnose

    with progress("trying the bucket", quiet=as_json):
        found: Diagnosis = ask(folder, "channel.doctor", Diagnose(name=name, probe=not no_upload))[0]
    if as_json:
        print_json(found)
    else:
        say(f"{found.channel} on {found.bucket}")
        print_checks(found.checks)
    if found.worst == "failure":
        raise typer.Exit(_FAILED)


def policy(
    bucket: Annotated[str, typer.Argument(help="A bucket's URL, or a channel.", metavar="URL|NAME")],
    without_list: Annotated[
        bool, typer.Option("--without-list", help="Leave out the permission to list, and say what is lost.")
    ] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Print the least that a bucket's provider has to allow the hub: an IAM policy, a role, or the commands for it."""
    import json

    from entrepot_hub.services.diagnosis import PolicyAsked

    asked = PolicyAsked(bucket=bucket, listing=not without_list)
    view: PolicyView = ask(folder, "bucket.policy", asked)[0]
    if as_json:
        print_json(view)
        return
    if view.document is not None:
        say(json.dumps(view.document, indent=2))
    for command in view.commands:
        say(command)
    for sentence in view.lost:
        note(f"lost without the listing: {sentence}")
