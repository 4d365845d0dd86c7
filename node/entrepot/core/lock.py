"""The schema lock: the canonical document that pins how a channel turns streams into objects."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Self

import msgspec
import rfc8785

from entrepot.core.codec import CODECS
from entrepot.core.errors import InvalidInput
from entrepot.core.merkle import LEAF

LOCK_ID_LENGTH: Final = 8
MIN_MINIBLOCK: Final = LEAF
#: A miniblock is held in memory while it is verified.
MAX_MINIBLOCK: Final = 64 << 20
#: No object holds more miniblocks: bounds a header at 37 MiB and a few nodes.
MAX_MINIBLOCKS_PER_OBJECT: Final = 1 << 20
FORMATS: Final = (1,)

_CHANNEL: Final = re.compile(r"[a-z0-9]{1,32}")
_MAX_DOCUMENT: Final = 1024


def is_channel(name: str) -> bool:
    """Whether ``name`` can name a channel: 1 to 32 of a-z and 0-9."""
    return _CHANNEL.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class SchemaLock:
    """A channel's pinned parameters. Sizes in bytes.

    ``miniblock`` is a power of two from 16 KiB to 64 MiB. ``object`` is the miniblock times a power of two up
    to 2^20, or 0: the whole stream in one object. Raises :class:`InvalidInput` (``invalid-lock``).
    """

    channel: str
    codec: str = "none"
    format: int = 1
    miniblock: int = 1 << 20
    object: int = 4 << 20
    id: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if type(self.channel) is not str or not is_channel(self.channel):
            raise _invalid("a channel's name is 1 to 32 of a-z and 0-9")
        if type(self.format) is not int or self.format not in FORMATS:
            raise _invalid(f"object format {self.format!r} is not known", hint="A newer entrepot may know it")
        if type(self.codec) is not str or self.codec not in CODECS:
            raise _invalid(
                f"codec {self.codec!r} is not known", hint=f"It is {' or '.join(CODECS)}; a newer entrepot may know it"
            )
        if (
            type(self.miniblock) is not int
            or not MIN_MINIBLOCK <= self.miniblock <= MAX_MINIBLOCK
            or self.miniblock.bit_count() != 1
        ):
            raise _invalid("a miniblock is a power of two from 16 KiB to 64 MiB")
        if type(self.object) is not int or self.object < 0:
            raise _invalid("an object's size is a whole number of bytes")
        if self.object:
            per_object, rest = divmod(self.object, self.miniblock)
            if rest or per_object.bit_count() != 1 or per_object > MAX_MINIBLOCKS_PER_OBJECT:
                raise _invalid("an object holds 1, 2, 4 ... up to 2^20 miniblocks, or the whole stream (0)")
        object.__setattr__(self, "id", sha256(self.canonical()).digest()[:LOCK_ID_LENGTH])

    def canonical(self) -> bytes:
        """The document: RFC 8785 JSON of the five parameters."""
        return rfc8785.dumps(
            {
                "channel": self.channel,
                "codec": self.codec,
                "format": self.format,
                "miniblock": self.miniblock,
                "object": self.object,
            }
        )

    @property
    def hex(self) -> str:
        """The schema lock id as 16 hexadecimal digits."""
        return self.id.hex()

    @property
    def level(self) -> int:
        """The tree level of a full miniblock: m = log2(miniblock / 16 KiB)."""
        return (self.miniblock // LEAF).bit_length() - 1

    @property
    def object_levels(self) -> int | None:
        """Levels from miniblock to object: o = log2(miniblocks per object); ``None`` for whole streams."""
        return (self.object // self.miniblock).bit_length() - 1 if self.object else None

    @classmethod
    def parse(cls, document: bytes | str) -> Self:
        """The lock of a canonical document; any other spelling of the same values is refused.

        Raises :class:`InvalidInput` (``invalid-lock``).
        """
        try:
            data = document.encode() if isinstance(document, str) else bytes(document)
            if len(data) > _MAX_DOCUMENT:
                raise _invalid("a schema lock document is at most 1024 bytes")
            fields = msgspec.json.decode(data, type=dict[str, str | int])
        except (msgspec.DecodeError, ValueError) as error:
            raise _invalid(f"a schema lock is a JSON object of texts and numbers: {error}") from None
        if set(fields) != {"channel", "codec", "format", "miniblock", "object"}:
            raise _invalid("a schema lock has the keys channel, codec, format, miniblock and object, no other")
        lock = cls(**fields)  # type: ignore[arg-type]  # the constructor checks each type
        if lock.canonical() != data:
            raise _invalid("a schema lock document is written in canonical JSON (RFC 8785)")
        return lock


def _invalid(message: str, *, hint: str | None = None) -> InvalidInput:
    return InvalidInput(message, kind="invalid-lock", hint=hint)
