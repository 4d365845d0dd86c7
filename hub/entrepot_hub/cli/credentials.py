"""``entrepot-hub channel credentials …`` and ``rotate-master-key``: keys that are replaced and never shown."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.core.errors import InvalidInput
from entrepot_hub.cli.access import MASTER_VARIABLE, ask, settings_of
from entrepot_hub.cli.display import note, print_fields, print_json, print_table, say, when
from entrepot_hub.cli.options import ChannelName, Folder, Json, give_help

if TYPE_CHECKING:
    from entrepot.core.api import KeyView
    from entrepot_hub.services.custody import CustodyView

app = typer.Typer(help="The keys of a channel's bucket.", rich_markup_mode=None)
give_help(app)


@app.command("set")
def set_credentials(
    name: ChannelName,
    credentials_file: Annotated[
        Path | None, typer.Option(help="File with the bucket's new keys.", show_default=False)
    ] = None,
    credentials_stdin: Annotated[
        bool, typer.Option("--credentials-stdin", help="Read the bucket's new keys from the standard input.")
    ] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Replace the keys of a channel's bucket while it is in use. The new ones are tried first."""
    from entrepot_hub.cli.channels import read_credentials
    from entrepot_hub.services.custody import SetCredentials

    document = read_credentials(credentials_file, from_stdin=credentials_stdin)
    if document is None:
        raise InvalidInput(
            "the new keys are missing", hint="Name a file with --credentials-file, or pipe them: --credentials-stdin"
        )
    found, _ = ask(folder, "channel.credentials.set", SetCredentials(name=name, credentials=document))
    if as_json:
        print_json(found)
        return
    present = next(key for key in found.keys if key.retired_at is None) if found.keys else None
    if not found.changed:
        say(f"the bucket of {found.channel} has these keys already")
    elif present is not None:
        say(f"the bucket of {', '.join(found.channels)} is opened with {present.label} now")
    _say_retired(found)


@app.command("show")
def show_credentials(name: ChannelName, folder: Folder = None, as_json: Json = False) -> None:
    """Show which keys a channel's bucket has and had, and until when old ones are needed. No key is shown."""
    from entrepot_hub.services.custody import ShowCredentials

    found, _ = ask(folder, "channel.credentials.show", ShowCredentials(name=name))
    if as_json:
        print_json(found)
        return
    print_fields([("bucket", found.bucket), ("channels", ", ".join(found.channels))])
    print_table(
        ("key", "set", "by", "used", "state"),
        [
            (key.label, when(key.set_at), key.set_by[:12] or "unknown", when(key.used_at), _state(key, found.now))
            for key in found.keys
        ],
        empty="it has no keys that were noted",
    )
    _say_retired(found)


def rotate_master_key(
    new_key_file: Annotated[
        Path | None, typer.Option(help="File with the new key, 64 hexadecimal digits.", show_default=False)
    ] = None,
    new_key_command: Annotated[
        str | None, typer.Option(help="Program, with its arguments, that prints the new key.", show_default=False)
    ] = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Change the master key: everything is sealed under the new one, then the old one is destroyed. Repeat it if it was
    interrupted."""
    from entrepot_hub.services.rotation import RotateMaster

    settings = settings_of(folder)
    asked = RotateMaster(new_key=_new_key(new_key_file, new_key_command))
    found, _ = ask(folder, "master.rotate", asked)
    if as_json:
        print_json(found)
        return
    say(f"master key {found.old} changed to {found.new}: {found.secrets} secrets are sealed under the new one")
    if found.source == "file":
        say(f"The old one is gone from {settings.folder / settings.master.file}. Back up the hub's files again.")
        return
    place = f"the variable {MASTER_VARIABLE}" if found.source == "environment" else "what [master] command prints"
    if found.done:
        say(f"The old one opens nothing any more. {place[:1].upper()}{place[1:]} is the new one already.")
    else:
        say(f"Now change {place} to the new key and restart the hub. Until then the hub accepts both.")


def _new_key(path: Path | None, command: str | None) -> str | None:
    from entrepot_hub.services.identity import output_of, secret_in

    if path is not None and command is not None:
        raise InvalidInput("the new key comes from a file or from a program, not from both")
    if command is not None:
        try:
            words = shlex.split(command)
        except ValueError:
            words = []
        if not words:
            raise InvalidInput("this is no program", kind="invalid-setting", hint='For example "/usr/bin/secret new"')
        return output_of(words, "the new master key").strip()
    return None if path is None else secret_in(path).strip()


def describe_key(key: KeyView) -> str:
    """A bucket's present key in a line: which, since when, by whom."""
    return f"{key.label}, set {when(key.set_at)}" + (f" by {key.set_by[:12]}" if key.set_by else "")


def _state(key: KeyView, now: float) -> str:
    if key.retired_at is None:
        return "in use"
    if key.safe_at is None or key.safe_at <= now:
        return "may be deleted at the provider"
    return f"needed until {when(key.safe_at)}"


def _say_retired(found: CustodyView) -> None:
    """What the owner must not do yet: delete a key that signed URLs which are still being used."""
    present = {key.label for key in found.keys if key.retired_at is None}
    for key in found.keys:
        if key.retired_at is None or key.label in present or key.safe_at is None or key.safe_at <= found.now:
            continue
        note(f"note: keep {key.label} at the provider until {when(key.safe_at)}: it signed URLs that are in use.")
    if found.others:
        note(f"note: {', '.join(found.others)} on other buckets still use a key that is retired here: change it there")
