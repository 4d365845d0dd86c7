"""The order of keys under one lock, and of the places in the ledger that belong to them."""

from __future__ import annotations

from typing import Final

from entrepot_hub.core.ledger import Place

_STREAM: Final = 64
_DIGITS: Final = 72  # of a stream id and an object number
_HEX: Final = frozenset("0123456789abcdef")


def floor_place(tail: str) -> Place:
    """The last place whose key (``<stream id>/<number>``) is not after ``tail``, which may be any text that keys are
    made of; a place before all others where there is none.

    A listing goes by text and the ledger by bytes; this is the same point of both.
    """
    digits = ""
    for position, letter in enumerate(tail):
        if len(digits) == _DIGITS:
            return _to_place(int(digits, 16))
        if position == _STREAM:
            if letter == "/":
                continue
            return _full(digits) if letter > "/" else _before(digits)
        if letter in _HEX:
            digits += letter
        elif letter > "f":
            return _full(digits)
        elif letter > "9":
            return _full(digits + "9")
        else:
            return _before(digits)
    return _to_place(int(digits, 16)) if len(digits) == _DIGITS else _before(digits)


def _full(digits: str) -> Place:
    """The last place whose digits begin so."""
    return _to_place(int(digits.ljust(_DIGITS, "f"), 16))


def _before(digits: str) -> Place:
    """The last place before all whose digits begin so."""
    return _to_place(int(digits.ljust(_DIGITS, "0"), 16) - 1)


def _to_place(value: int) -> Place:
    if value < 0:
        return b"", 0
    raw = value.to_bytes(36)
    return raw[:32], int.from_bytes(raw[32:])
