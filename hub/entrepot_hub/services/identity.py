"""Who the hub is: its folder, its master key, its keys on NATS, its database. Made once, by ``entrepot-hub
init``.

The folder is for the hub's user alone (0700). It appears whole or not at all: everything is made beside it
and then moved into place.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from entrepot.core.errors import Conflict, Denied, InvalidInput, NotFound, RetryLater
from entrepot_hub.adapters.database import Database
from entrepot_hub.core.master_keys import CHANGE_RANDOM, Change, MasterKeys
from entrepot_hub.core.nats_identity import RANDOM_LENGTH, NatsIdentity
from entrepot_hub.core.sealing import KEY_LENGTH, RESEAL_RANDOM, SEAL_RANDOM, MasterKey, seal
from entrepot_hub.services.settings import (
    CHANGE_NAME,
    DATABASE_NAME,
    FILE_NAME,
    IDENTITY_NAME,
    MASTER_NAME,
    HubSettings,
    Listen,
    first_settings,
    parse_settings,
)

_PLACE: Final = b"entrepot.hub-identity\0"
_MAX_SECRET_FILE: Final = 65536
_COMMAND_TIME: Final = 30.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHub:
    """What was made: the folder, the hub's public key, and the files without which it cannot be made
    again."""

    folder: Path
    hub_public: str
    backup: tuple[Path, ...]


def create_hub(
    folder: Path,
    url: str,
    listen: Listen,
    nats_listen: Listen,
    *,
    plain: bool = False,
    nats: Sequence[str] = (),
    nats_urls: Sequence[str] = (),
) -> NewHub:
    """Set up a new hub in ``folder``, which must be absent or empty. ``nats`` and ``nats_urls`` as in
    :func:`first_settings`. Blocking.

    Raises Conflict (``exists``) where something is, InvalidInput for a bad address and for a mount point, Denied
    (``unreadable``) where the folder cannot be written.
    """
    text = first_settings(url, listen, nats_listen, plain=plain, nats=nats, nats_urls=nats_urls)
    settings = parse_settings(folder, text.encode())
    master = MasterKey(secrets.token_bytes(KEY_LENGTH))
    identity = NatsIdentity.create(secrets.token_bytes(RANDOM_LENGTH))
    sealed = seal(identity.dump(), key=master, associated=_PLACE, random=secrets.token_bytes(SEAL_RANDOM))
    text = text.replace(f'"{url}"', f'"{settings.urls[0]}"')
    with _new_folder(folder) as making:
        _write(making / MASTER_NAME, master.raw.hex().encode() + b"\n")
        _write(making / IDENTITY_NAME, sealed)
        database = Database(f"sqlite:///{making / DATABASE_NAME}")
        try:
            database.migrate_now()
        finally:
            database.close()
        _write(making / FILE_NAME, text.encode())
    return NewHub(folder=folder, hub_public=identity.hub_public, backup=hub_files(folder))


def restore_hub(
    folder: Path, text: str, identity: NatsIdentity, given: str | None, fill: Callable[[Database, MasterKey], object]
) -> None:
    """Set up the hub of this identity and these settings in ``folder``, which must be absent or empty; ``fill`` puts
    into its database what belongs there, sealed under the master key. That is the one ``given`` (from the environment)
    or told by the settings' command, or, where it lies in the folder, a new one. Blocking.

    Raises as :func:`create_hub`, :func:`load_master`, and what ``fill`` raises; nothing is in the folder then.
    """
    settings = parse_settings(folder, text.encode())
    with _new_folder(folder) as making:
        made = replace(settings, folder=making)
        if given is None and not settings.master.command and not Path(settings.master.file).is_absolute():
            master = MasterKey(secrets.token_bytes(KEY_LENGTH))
            place = making / settings.master.file
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(place, master.raw.hex().encode() + b"\n")
        else:
            master = load_master(made, given)
        sealed = seal(identity.dump(), key=master, associated=_PLACE, random=secrets.token_bytes(SEAL_RANDOM))
        _write(making / IDENTITY_NAME, sealed)
        database = Database(database_url(made))
        try:
            fill(database, master)
        finally:
            database.close()
        _write(making / FILE_NAME, text.encode())


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder``, which must be absent or empty, that takes its place in the end, whole. What a killed
    attempt left beside it goes."""
    if "?" in str(folder):
        raise InvalidInput("a hub's folder has no question mark in its path", kind="invalid-setting")
    making = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    try:
        if folder.is_mount() and not (folder / FILE_NAME).exists():
            raise _mount_point(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Conflict(
                f"{folder} is not empty: a hub is never overwritten",
                kind="exists",
                hint="Name another folder, or move what is there away.",
                folder=str(folder),
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.????????"):
            shutil.rmtree(left, ignore_errors=True)  # it may hold a master key
        making.mkdir(mode=0o700)
        yield making
        try:
            os.rename(making, folder)  # atomic, and refuses a folder that is not empty
        except OSError as error:
            if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                raise Conflict(f"{folder} was made meanwhile", kind="exists", folder=str(folder)) from None
            if error.errno == errno.EBUSY:
                raise _mount_point(folder) from None
            raise
        _sync(folder.parent)
    except OSError as error:
        raise Denied(f"{folder} cannot be made: {error.strerror}", kind="unreadable", folder=str(folder)) from None
    finally:
        with suppress(OSError):
            shutil.rmtree(making)


def settings_text(settings: HubSettings) -> str:
    """What ``hub.toml`` says, word for word. Blocking. Raises NotFound, Denied (``unreadable``)."""
    return _read(settings.folder / FILE_NAME).decode("utf-8", "replace")


def hub_files(folder: Path) -> tuple[Path, ...]:
    """The files that make a hub what it is, as :func:`create_hub` makes them."""
    return tuple(folder / name for name in (MASTER_NAME, IDENTITY_NAME, DATABASE_NAME, FILE_NAME))


def _mount_point(folder: Path) -> InvalidInput:
    return InvalidInput(
        f"{folder} is a mount point, and a hub's folder is moved into place as a whole",
        kind="invalid-setting",
        hint=f"Name a folder in it: {folder / 'hub'}",
        folder=str(folder),
    )


def load_master(settings: HubSettings, given: str | None = None) -> MasterKey:
    """The master key: the one given (from the environment), else the command's, else the file's. Blocking.

    Raises NotFound, Denied (``unreadable``), InvalidInput (``invalid-key``); the key is in none of them.
    """
    given = settings.master_key if given is None else given
    if given is not None:
        return MasterKey.parse(given)
    if settings.master.command:
        return MasterKey.parse(output_of(settings.master.command, "the master key"))
    return MasterKey.parse(_read(settings.folder / settings.master.file).decode("ascii", "replace"))


def load_keys(settings: HubSettings, given: str | None = None) -> MasterKeys:
    """The master key as :func:`load_master` finds it and, while it is being changed, the other one. Blocking. Raises as
    :func:`load_master`, and Denied where a change was begun that it has no part in."""
    master = load_master(settings, given)
    keys, change = MasterKeys(master), load_change(settings, master)
    if change is not None:
        keys.also(change.old)
        keys.also(change.new)
    return keys


def load_change(settings: HubSettings, master: MasterKey) -> Change | None:
    """The change of the master key that is under way, if one is. Blocking. Raises as :func:`load_keys`."""
    try:
        return Change.read(_read(settings.folder / CHANGE_NAME), master)
    except NotFound:
        return None


def keep_change(settings: HubSettings, change: Change) -> None:
    """Write down that the master key is to be changed. Blocking. Conflict (``in-use``) if another change is under
    way."""
    path = settings.folder / CHANGE_NAME
    with _beside(path, change.write(secrets.token_bytes(CHANGE_RANDOM))) as made:
        try:
            os.link(made, path)
            _sync(path.parent)
        except FileExistsError:
            raise Conflict("another change of the master key has begun just now", kind="in-use") from None


def drop_change(settings: HubSettings) -> None:
    """The change is done: forget it, and what a killed one left beside the files. Blocking, idempotent."""
    for path in (
        settings.folder / settings.master.file,
        settings.folder / IDENTITY_NAME,
        settings.folder / CHANGE_NAME,
    ):
        for left in path.parent.glob(f".{path.name}.????????"):
            left.unlink(missing_ok=True)
    (settings.folder / CHANGE_NAME).unlink(missing_ok=True)
    _sync(settings.folder)


def keep_master(settings: HubSettings, master: MasterKey) -> None:
    """Write the master key into its file instead of the one that is there. Blocking. Denied (``unreadable``)."""
    _replace(settings.folder / settings.master.file, master.raw.hex().encode() + b"\n")


def check_master_place(settings: HubSettings) -> None:
    """Find out whether :func:`keep_master` could write. Blocking. Denied (``unreadable``)."""
    with _beside(settings.folder / settings.master.file, b""):
        pass


def reseal_identity(settings: HubSettings, keys: MasterKeys, to: MasterKey) -> None:
    """Seal the hub's keys on NATS under this master key. Blocking, idempotent. Raises as :func:`load_identity`."""
    path = settings.folder / IDENTITY_NAME
    before = _read(path)
    now = keys.reseal(before, to=to, associated=_PLACE, random=secrets.token_bytes(RESEAL_RANDOM))
    if now != before:
        _replace(path, now)


def load_identity(settings: HubSettings, master: MasterKey | MasterKeys) -> NatsIdentity:
    """The hub's keys on NATS, unsealed. Blocking. Raises as :func:`load_master`, and Corrupt."""
    sealed = _read(settings.folder / IDENTITY_NAME)
    return NatsIdentity.load(MasterKeys.of(master).unseal(sealed, associated=_PLACE))


def database_url(settings: HubSettings) -> str:
    """Where the hub's database is; may hold a password. Blocking, if a command tells it."""
    if settings.database.url_command:
        return output_of(settings.database.url_command, "the database's URL").strip()
    if settings.database.url is not None:
        return settings.database.url
    return f"sqlite:///{settings.folder.absolute() / DATABASE_NAME}"


def ready_database(settings: HubSettings, database: Database) -> None:
    """Bring the hub's database up to this version; one that was lost is not begun anew. Blocking.

    Where it is another than :func:`create_hub` made, its tables are made here, as long as the first one knows no
    channel and no node; that goes then, so that the other one is made only once. Raises NotFound (``no-such-file``)
    for a database that is gone, or was emptied, and what :meth:`Database.migrate_now` raises.
    """
    first, file = settings.folder.absolute() / DATABASE_NAME, database.file
    there = file is None or file.exists()
    same = file is not None and (file == first or (there and first.exists() and file.samefile(first)))
    unused = not same and _unused(first)
    if not (unused or database.has_tables()):
        which = "the database that hub.toml names" if file is None else str(file)
        raise NotFound(
            f"the hub's database was lost: {which} {'has no tables' if there else 'is gone'}",
            kind="no-such-file",
            hint="Restore it from a backup, or make it again from an export: entrepot-hub rebuild --from FILE",
            folder=str(settings.folder),
        )
    database.migrate_now()
    if unused:
        for left in (first, *(first.with_name(first.name + end) for end in ("-wal", "-shm"))):
            left.unlink(missing_ok=True)


def _unused(path: Path) -> bool:
    """Whether a hub's SQLite file is there, and no hub ever knew a channel or a node by it. Blocking."""
    from entrepot_hub.adapters.export_rows import knows_nobody

    database = Database(f"sqlite:///{path}")
    try:
        if not database.has_tables():
            return False
        with database.transaction() as connection:
            return knows_nobody(connection)
    finally:
        database.close()


def output_of(command: Sequence[str], what: str) -> str:
    """What a program prints, for secrets that lie elsewhere; ``what`` stands in errors. Blocking, for half a minute at
    most. Raises RetryLater, InvalidInput (``invalid-setting``), neither of them with what it printed."""
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_TIME, check=False
        )
    except subprocess.TimeoutExpired:
        raise RetryLater(f"the command for {what} did not end in time", kind="deadline") from None
    except OSError as error:
        raise InvalidInput(f"the command for {what} cannot be run: {error.strerror}", kind="invalid-setting") from None
    if done.returncode != 0:
        raise RetryLater(f"the command for {what} failed with status {done.returncode}")
    return done.stdout[:_MAX_SECRET_FILE].decode("utf-8", "replace")


def secret_in(path: Path) -> str:
    """The text in a file. Blocking. Raises NotFound (``no-such-file``), Denied (``unreadable``)."""
    return _read(path, hint="Name the file with the key.").decode("ascii", "replace")


def _read(path: Path, hint: str = "Restore it from the backup.") -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_SECRET_FILE)
    except FileNotFoundError:
        raise NotFound(f"{path} is missing", kind="no-such-file", hint=hint, path=str(path)) from None
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error.strerror}", kind="unreadable", path=str(path)) from None


def _write(path: Path, data: bytes) -> None:
    """A new file for the owner alone, on the disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


@contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """A new file next to ``path``, for the owner alone, on the disk; it goes in the end. Denied (``unreadable``)."""
    made = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        _write(made, data)
        yield made
    except OSError as error:
        raise Denied(f"{path} cannot be written: {error.strerror}", kind="unreadable", path=str(path)) from None
    finally:
        with suppress(OSError):
            made.unlink(missing_ok=True)


def _replace(path: Path, data: bytes) -> None:
    """Other content for a file, at once or not at all, for the same owner."""
    with _beside(path, data) as made:
        found = path.stat()
        if os.geteuid() == 0:
            os.chown(made, found.st_uid, found.st_gid)
        os.replace(made, path)
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
