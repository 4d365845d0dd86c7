"""Where a ``get`` puts its file. All of it looks at the file system and blocks."""

from __future__ import annotations

from pathlib import Path

from entrepot.adapters.files import translated
from entrepot.core.errors import Conflict, InvalidInput, NotFound


def output_path(output: Path | str | None, name: str) -> Path:
    """The file that ``output`` means for a stream called ``name``: ``./name`` for None, and as with ``cp`` the file of
    that name in it for a folder. Raises ``unreadable``, and ``invalid-input`` for a name that is not taken unasked.
    """
    if output is None:
        return _named(name)
    path = Path(output)
    with translated(path):
        return path / _named(name) if path.is_dir() else path


def output_folder(folder: Path) -> Path:
    """The folder, made if it is not there. Raises ``invalid-input`` for anything but a folder, ``unreadable``."""
    with translated(folder):
        if folder.exists() and not folder.is_dir():
            raise InvalidInput(f"{folder} is no folder", hint="Name one for the files (--output).", path=str(folder))
        folder.mkdir(parents=True, exist_ok=True)
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
            raise NotFound(f"there is no folder {path.absolute().parent}", kind="no-such-file", path=str(path))
    return False


def taken(path: Path) -> Conflict:
    """The error for an output where something else is."""
    return Conflict(
        f"{path} is already there",
        kind="exists",
        hint="Choose another name, or let it be replaced (--force).",
        path=str(path),
    )
