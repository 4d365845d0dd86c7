"""What it is to decode something: a target takes any bytes and gives a value, or raises one of our errors.

The table itself is :data:`tests.fuzz.table.TARGETS`; the ordinary run drives it by hypothesis
(``tests/property/test_decoders.py``), ``scripts/fuzz`` by atheris.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from entrepot.core.api import Fault
from entrepot.core.errors import KINDS, EntrepotError, to_wire
from entrepot.core.messages import Ack, encode, reason_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One decoder, or a few of a kind.

    ``run`` decodes bytes and asserts what must hold of the value. ``covers``: the functions (module:qualified name)
    that the samples reach. ``samples``: valid inputs, where mutations begin. ``main``: worth the longest look.
    """

    name: str
    run: Callable[[bytes], object]
    samples: Callable[[], Sequence[bytes]]
    covers: tuple[str, ...]
    main: bool = False


def attempt(target: Target, data: bytes) -> bool:
    """Decode; whether there was a value. Anything raised but one of our errors, told as ours are, is a finding."""
    try:
        target.run(data)
    except EntrepotError as error:
        check_tellable(error)
        return False
    return True


class Finding(Exception):
    """A decoder did what none may do with these bytes. In plain ASCII, whatever the bytes hold."""

    def __init__(self, target: Target, data: bytes, error: BaseException) -> None:
        trace = traceback.format_exception(error)
        where = "".join(trace[-4:]).encode("ascii", "backslashreplace").decode()[-3000:]
        super().__init__(f"{where}\n{regression(target, data)}")


def regression(target: Target, data: bytes) -> str:
    """The line of ``tests/fuzz/test_regressions.py`` that keeps a finding from coming back."""
    return f"    ({target.name!r}, {data!r}),"


def look(target: Target, data: bytes) -> bool:
    """As :func:`attempt`, with everything that is a finding as a :class:`Finding`."""
    try:
        return attempt(target, data)
    except Exception as error:
        raise Finding(target, data, error) from None


def check_tellable(error: EntrepotError) -> None:
    """That an error can travel in an answer, in a message and to a terminal, whatever it quotes."""
    assert error.kind in KINDS
    wire = to_wire(error)
    msgspec.json.decode(msgspec.json.encode(wire), type=Fault)
    encode(Ack(error=reason_of(error)))
    assert len(error.message) < 3000


def text_of(data: bytes) -> str:
    """Bytes as text that an argument or a header may hold: what is no UTF-8 becomes a lone surrogate."""
    return data.decode("utf-8", "surrogateescape")


def finished[T](work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    work.close()
    raise AssertionError("it waits")


def chosen[T](data: bytes, choices: Sequence[T]) -> tuple[T, bytes]:
    """One of several, by the first byte, and the rest."""
    return choices[(data[0] if data else 0) % len(choices)], data[1:]


def each(choices: Sequence[object], samples: Sequence[bytes]) -> list[bytes]:
    """Samples for :func:`chosen`: the first for the first choice, and so on; more samples begin anew."""
    return [bytes([at % len(choices)]) + sample for at, sample in enumerate(samples)]
