"""``entrepot-hub export`` and ``rebuild``: a hub in one encrypted file, and the way back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.core.errors import Conflict, Denied, InvalidInput, NotFound, RetryLater
from entrepot.core.units import format_size
from entrepot_hub.cli.access import MASTER_VARIABLE, ask, home
from entrepot_hub.cli.display import (
    note,
    print_error,
    print_fields,
    print_json,
    print_json_with,
    print_table,
    progress,
    say,
    when,
)
from entrepot_hub.cli.options import Folder, Json

if TYPE_CHECKING:
    from entrepot_hub.adapters.sql_rebuild import Rebuilding
    from entrepot_hub.core.export import Secret
    from entrepot_hub.services.export import Summary
    from entrepot_hub.services.rebuild import Rebuilt

_MAX_SECRET = 4096
PasswordFile = Annotated[
    Path | None, typer.Option(help="File whose first line is the password.", show_default=False, metavar="FILE")
]
KeyFile = Annotated[
    Path | None, typer.Option(help="File with a key, 64 hexadecimal digits.", show_default=False, metavar="FILE")
]


def export(
    file: Annotated[Path, typer.Argument(help="Where the export goes.", metavar="FILE")],
    password_file: PasswordFile = None,
    key_file: KeyFile = None,
    to_master_key: Annotated[
        bool, typer.Option("--to-master-key", help="Encrypt it under the hub's master key, which you keep elsewhere.")
    ] = False,
    audit: Annotated[int, typer.Option(help="Lines of the audit log in it, the latest.", min=0, max=100_000)] = 10_000,
    check: Annotated[bool, typer.Option("--check", help="Make none: open this one and tell what is in it.")] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Write the hub into one small encrypted file: keys, channels, members, invites, pins. While it runs, or not."""
    if sum((password_file is not None, key_file is not None, to_master_key)) > 1:
        raise InvalidInput("an export has one password or key")
    if not as_json:
        _warn_of_open(password_file, key_file)
    if check:
        if to_master_key:
            raise InvalidInput("name the master key's file", hint="Use --key-file, or set " + MASTER_VARIABLE)
        data = _read_export(file)
        _print_summary(_opened_summary(data, password_file, key_file), file, len(data), as_json=as_json, made=False)
        return
    from entrepot_hub.services.export import MakeExport

    _check_target(file)
    password = key = None
    if key_file is not None:
        key = _first_line(key_file)
    elif not to_master_key:
        password = _asked_password(twice=True) if password_file is None else _first_line(password_file)
    found, _ = ask(folder, "hub.export", MakeExport(password=password, key=key, audit=audit))
    _write_export(file, found.data)
    _print_summary(found.summary, file, len(found.data), as_json=as_json, made=True)


def rebuild(
    source: Annotated[Path, typer.Option("--from", help="The export.", metavar="FILE")],
    password_file: PasswordFile = None,
    key_file: KeyFile = None,
    settings: Annotated[
        Path | None,
        typer.Option(help="Another hub.toml than the export's.", show_default=False, metavar="FILE"),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Grant nothing that objects of before could need room for, for 30 minutes."),
    ] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Make the hub of an export again, in an empty folder or an emptied database, and its ledger out of what lies in
    the buckets. Repeat it if it was interrupted."""
    from entrepot_hub.core.export import decrypt
    from entrepot_hub.services.rebuild import rebuild_hub

    if not as_json:
        _warn_of_open(password_file, key_file)
    data = _read_export(source)
    text = None if settings is None else _text(settings)
    document = decrypt(data, _secret(data, password_file, key_file))
    with progress("reading buckets", quiet=as_json) as shown:

        def told(name: str, state: Rebuilding) -> None:
            shown(f"{name}: {state.counts.get('listed', 0)} keys")

        found = asyncio.run(
            rebuild_hub(
                home(folder),
                document,
                data,
                settings_text=text,
                master_key=os.environ.get(MASTER_VARIABLE),
                strict=strict,
                told=told,
            )
        )
    left = [channel.name for channel in found.channels if channel.error is not None]
    problem = None
    if left:
        problem = RetryLater(
            f"not every channel is rebuilt: {', '.join(left)}",
            hint="Repeat the command, or start the hub, which goes on with them: entrepot-hub serve",
        )
    if as_json:
        print_json_with(found, problem)
    else:
        _print_rebuilt(found)
    if problem is not None:
        if not as_json:
            print_error(problem, as_json=False)
        raise typer.Exit(problem.exit_code)


def _print_rebuilt(found: Rebuilt) -> None:
    if not found.changed:
        say(f"hub {found.hub} in {found.folder} was rebuilt from this export before: nothing is changed")
        note("To compare a channel with its bucket: entrepot-hub channel reconcile")
        return
    say(f"hub {found.hub} {'was begun before and is' if found.resumed else 'is'} rebuilt in {found.folder}")
    print_table(
        ("channel", "keys", "bytes", "taken in", "removed", "tombstones", "left alone", "used"),
        [
            (
                channel.name,
                channel.listed,
                format_size(channel.bytes),
                channel.adopted,
                channel.removed,
                channel.tombstones,
                channel.foreign,
                f"{format_size(channel.charged)} of {format_size(channel.quota)}",
            )
            for channel in found.channels
        ],
        empty="it has no channels",
    )
    for channel in found.channels:
        if channel.error is not None:
            note(f"note: {channel.name}: {channel.error['message']}")
        elif channel.held and channel.held_until is not None:
            note(
                f"note: {format_size(channel.held)} of {channel.name} are held back until {when(channel.held_until)}, "
                "for uploads that were granted before"
            )
        if channel.charged > channel.quota:
            note(f"note: {channel.name} holds more than its quota: the running hub will evict what is too much")
    say("next: entrepot-hub serve")


def _print_summary(summary: Summary, file: Path, length: int, *, as_json: bool, made: bool) -> None:
    if as_json:
        print_json({"file": str(file), "bytes": length, "made": made, "summary": summary})
        return
    print_fields(
        [
            ("file", f"{file} ({format_size(length)})"),
            ("hub", summary.hub),
            ("made", when(summary.made_at)),
            ("channels", ", ".join(summary.channels) or "none"),
            ("nodes", summary.nodes),
            ("members", f"{summary.members}, of members and nodes {summary.revoked} without rights"),
            ("invites", summary.invites),
            ("pins", summary.pins),
            ("secrets", summary.secrets),
            ("audit log", f"{summary.audit} lines"),
        ]
    )
    if made:
        note("note: it knows of no change that comes after it: make it again when a member is revoked")


def _opened_summary(data: bytes, password_file: Path | None, key_file: Path | None) -> Summary:
    from entrepot_hub.core.export import decrypt
    from entrepot_hub.services.export import summed

    return summed(decrypt(data, _secret(data, password_file, key_file)))


def _secret(data: bytes, password_file: Path | None, key_file: Path | None) -> Secret:
    """What opens this export, from where the words or the environment say it is, or from who sits there."""
    from entrepot_hub.core.export import wants_password
    from entrepot_hub.core.sealing import MasterKey

    if password_file is not None and key_file is not None:
        raise InvalidInput("an export has one password or key")
    if password_file is not None:
        return _first_line(password_file)
    if key_file is not None:
        return MasterKey.parse(_first_line(key_file))
    if wants_password(data):
        return _asked_password(twice=False)
    given = os.environ.get(MASTER_VARIABLE)
    if given is None:
        raise InvalidInput(
            "this export opens with a key",
            kind="invalid-key",
            hint=f"Name its file: --key-file; or set {MASTER_VARIABLE}",
        )
    return MasterKey.parse(given)


def _asked_password(*, twice: bool) -> str:
    if not sys.stdin.isatty():
        raise InvalidInput("the export's password is missing", hint="Name a file with it: --password-file")
    return str(typer.prompt("password of the export", hide_input=True, confirmation_prompt=twice, err=True))


def _warn_of_open(*paths: Path | None) -> None:
    """Say which of these files with secrets others can read too."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path is not None and path.stat().st_mode & 0o077:
                note(f"note: {path} is open to other users of this machine: chmod 600 {path}")


def _first_line(path: Path) -> str:
    return _text(path)[:_MAX_SECRET].partition("\n")[0].rstrip("\r")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise _unread(path, error) from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is no text", kind="invalid-setting") from None


def _read_export(path: Path) -> bytes:
    from entrepot_hub.core.export import LONGEST

    try:
        with path.open("rb") as file:
            return file.read(LONGEST + 1)
    except OSError as error:
        raise _unread(path, error) from None


def _unread(path: Path, error: OSError) -> NotFound | Denied | InvalidInput:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"there is no file {path}", kind="no-such-file", path=str(path))
    if isinstance(error, IsADirectoryError):
        return InvalidInput(f"{path} is a folder", hint="Name a file in it.", path=str(path))
    return Denied(f"{path} cannot be read: {error.strerror}", kind="unreadable", path=str(path))


def _check_target(path: Path) -> None:
    """An export takes the place of an export, and of nothing else."""
    from entrepot_hub.core.export import MAGIC

    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) in (MAGIC, b""):
                return
    except FileNotFoundError:
        if path.parent.is_dir():
            return
        raise NotFound(
            f"there is no folder {path.parent}", kind="no-such-file", hint="Make it first.", path=str(path)
        ) from None
    except OSError as error:
        raise _unread(path, error) from None
    raise Conflict(
        f"{path} is there, and it is no export: it is not overwritten", kind="exists", hint="Name another file."
    )


def _write_export(path: Path, data: bytes) -> None:
    """For the owner alone, on the disk, at once or not at all."""
    made = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        made.replace(path)
    except OSError as error:
        raise Denied(f"{path} cannot be written: {error.strerror}", kind="unreadable", path=str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
