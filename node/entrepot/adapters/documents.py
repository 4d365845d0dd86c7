"""Small documents on the disk: read whole within a bound, replaced in one step. All of it blocks."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from entrepot.adapters.files import make_folder, move, open_writable, remove_file, sync_data, translated, write_at
from entrepot.core.errors import InvalidInput


def read_document(path: Path, limit: int) -> bytes | None:
    """The bytes of ``path``, None if it is not there. Raises InvalidInput past ``limit`` bytes, ``unreadable``."""
    with translated(path):
        try:
            with open(path, "rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
    if len(data) > limit:
        raise InvalidInput(f"{path} is longer than such a file can be ({limit} bytes)", path=str(path))
    return data


def write_document(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Makes ``path`` hold ``data``, readable by its owner only: all of it or, after a crash, what was there before.

    Without ``replace`` a file that is there, or comes to be there meanwhile, raises ``exists``.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = open_writable(temporary, create=True)
        try:
            with translated(temporary):
                temporary.chmod(0o600)
            write_at(descriptor, data, 0, temporary)
            sync_data(descriptor, temporary)
        finally:
            os.close(descriptor)
        move(temporary, path, replace=replace)
    finally:
        remove_file(temporary)
