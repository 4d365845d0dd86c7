"""A channel's bucket out of another program's configuration: a file of it, or its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from entrepot.core.errors import Denied, InvalidInput, NotFound
from entrepot_hub.adapters.buckets.keys import MAX_KEYS
from entrepot_hub.adapters.configuration import MAX_CONFIGURATION, read_configuration
from entrepot_hub.core.origins import Origin, Side, find_origin


def origin_of_file(path: Path, side: Side | None = None) -> Origin:
    """The bucket that a YAML, TOML, JSON or ``.env`` file tells of. Blocking.

    Raises ``InvalidInput(invalid-setting)`` where that is not exactly one, ``NotFound(no-such-file)`` and
    ``Denied(unreadable)``; none shows a value of the file.
    """
    return find_origin(read_configuration(_read(path, MAX_CONFIGURATION), path.name), side)


def origin_of_environment(variables: Mapping[str, str], side: Side | None = None) -> Origin:
    """The bucket that an environment tells of. Raises as :func:`find_origin`."""
    return find_origin(variables, side, where="in the environment")


def with_keys(origin: Origin) -> Origin:
    """The origin with its keys read from the file that it names. Blocking. Raises as :func:`read_keys`."""
    if origin.credentials_file is None:
        return origin
    return replace(origin, credentials=read_keys(Path(origin.credentials_file)), credentials_file=None)


def read_keys(path: Path) -> str:
    """A file of a bucket's keys. Blocking. Raises ``NotFound(no-such-file)``, ``Denied(unreadable)``, and
    ``InvalidInput(invalid-setting)`` for what can be none; what they are is for the bucket to say."""
    return keys_of(_read(path, MAX_KEYS))


def keys_of(data: bytes) -> str:
    """A document of keys as text. Raises ``InvalidInput(invalid-setting)``, not showing it."""
    text = data.decode(errors="replace")
    if not text.strip() or "\ufffd" in text or len(data) > MAX_KEYS:
        raise InvalidInput(
            "these are no keys of a bucket",
            kind="invalid-setting",
            hint='Write {"access_key": "…", "secret_key": "…"}, or give the file that came from the provider.',
        )
    return text


def _read(path: Path, limit: int) -> bytes:
    """A file, and a byte more than ``limit`` if it is longer."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", kind="no-such-file", path=str(path)) from None
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error.strerror}", kind="unreadable", path=str(path)) from None
