"""Rights as people write and read them: ``request`` for ``request:files``, ``provide`` for ``provide:files``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: What a word is short for. Everything else is written out.
SHORT_RIGHTS: Final[Mapping[str, str]] = {"request": "request:files", "provide": "provide:files"}

_LONG: Final = {long: short for short, long in SHORT_RIGHTS.items()}


def shorten_rights(rights: str) -> str:
    """Rights from the wire (words with commas between them) in their short form: ``request,provide``."""
    return ",".join(_LONG.get(word, word) for word in rights.split(","))
