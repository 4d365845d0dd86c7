"""Where a ``get`` puts its file. All of it looks at the file system and blocks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from entrepot.adapters.files import translated
from entrepot.adapters.outputs import make_output_folder, remove_leftovers, require_writable
from entrepot.core.errors import Conflict, InvalidInput, NotFound

#: What a name ends with that can only be a folder's.
_SLASHES: Final = (os.sep, os.altsep or os.sep)


def prepared(output: Path | str | None, name: str) -> tuple[Path, bool]:
    """The file that ``output`` means for a stream called ``name``, and whether something is there. What killed
    processes left in its folder goes.

    Raises what :func:`output_path` and :func:`is_taken` raise, and ``denied`` where nothing can be made in the folder.
    """
    path = output_path(output, name)
    taken = is_taken(path)
    folder = path.absolute().parent
    if not taken:
        require_writable(folder)
    remove_leftovers(folder)
    return path, taken


def output_path(output: Path | str | None, name: str) -> Path:
    """The file that ``output`` means for a stream called ``name``: ``./name`` for None, and as with ``cp`` the file of
    that name in it for a folder; one that ends with a slash is made if it is not there. Raises ``unreadable``,
    ``denied``, and ``invalid-input`` for a name that is not taken unasked.
    """
    if output is None:
        return _named(name)
    path = Path(output)
    if isinstance(output, str) and output.endswith(_SLASHES):
        named = _named(name)
        return output_folder(path) / named
    with translated(path):
        return path / _named(name) if path.is_dir() else path


def output_folder(folder: Path) -> Path:
    """The folder, made if it is not there. Raises ``invalid-input`` for anything but a folder, ``unreadable``, and
    ``denied`` where it cannot be made."""
    with translated(folder):
        if folder.exists() and not folder.is_dir():
            raise InvalidInput(f"{folder} is no folder", hint="Name one for the files (--output).", path=str(folder))
    make_output_folder(folder)
    return folder


def _named(name: str) -> Path:
    """The name that came with a URI: by whoever made the URI, so never one that programs read unasked (``.bashrc``) or
    take for an option."""
    if name.startswith((".", "-")):
        raise InvalidInput(
            f"the file is called {name}, and the URI's word is not enough to make such a file",
            hint="Name it yourself, with -o.",
            name=name,
        )
    return Path(name)


def is_taken(path: Path) -> bool:
    """Whether a file is there. Raises ``invalid-input`` for a folder, which is never replaced, ``no-such-file`` where
    the folder for it is missing, ``unreadable``."""
    with translated(path):
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder", hint="Name another output (--output).", path=str(path))
        if path.is_symlink() or path.exists():
            return True
        if not path.absolute().parent.is_dir():
            raise NotFound(
                f"there is no folder {path.absolute().parent}",
                kind="no-such-file",
                hint="Make it first. A folder that is named with a slash at its end is made: -o folder/",
                path=str(path),
            )
    return False


def taken(path: Path) -> Conflict:
    """The error for an output where something else is."""
    return Conflict(
        f"{path} is already there",
        kind="exists",
        hint="Choose another name, or let it be replaced (--force).",
        path=str(path),
    )
