"""The URI people pass on: ``entrepot://<channel>[@<hub host[:port]>]/<stream id>[/<file name>]``.

An own strict parser, because a generic one takes the channel for a user name. Lower-case but for the file
name; no query, no fragment. The name is a courtesy to people: one safe segment, never a path, and it never
changes what is fetched.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Final, Self
from urllib.parse import quote, unquote_to_bytes

from entrepot.core.errors import InvalidInput
from entrepot.core.identifiers import StreamId
from entrepot.core.lock import is_channel

SCHEME: Final = "entrepot://"
MAX_NAME: Final = 255
#: Longer than any valid URI: channel, host, port, id and a name of 255 bytes, all percent-encoded.
MAX_URI: Final = 2048

_HUB: Final = re.compile(r"(\[[0-9a-f:]+\]|[a-z0-9.-]+)(?::([1-9][0-9]{0,4}))?")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# RFC 3986 pchar: unreserved, percent-encoded, sub-delims, colon and at.
_WRITTEN_NAME: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+")
# Characters that make a name read otherwise than it is written.
_DIRECTION_CONTROLS: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def check_hub(hub: str) -> str:
    """``hub`` itself, if it is ``host`` or ``host:port`` as a URI carries it.

    A host is a lower-case DNS name, an IPv4 address, or an IPv6 address in brackets and in its shortest form;
    a port is 1 to 65535 without leading zeros. Raises :class:`InvalidInput` (``invalid-uri``).
    """
    found = _HUB.fullmatch(hub)
    if found is None or not _is_host(found[1]) or (found[2] is not None and int(found[2]) > 65535):
        raise _invalid(
            f"{hub[:100]!r} is not a hub's host and port",
            hint="Write it in lower case, for example hub.example.org, 192.0.2.1:8080 or [2001:db8::1]:8080",
        )
    return hub


def check_name(name: str) -> str:
    """``name`` itself, if a URI may carry it as a file's name.

    That is 1 to 255 bytes of UTF-8 in normalization form C, without slash, backslash or control characters,
    and not ``.`` or ``..``. Raises :class:`InvalidInput` (``invalid-uri``).
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise _invalid("a file name in a URI must be valid text") from None
    if not 1 <= size <= MAX_NAME:
        raise _invalid(f"a file name in a URI has 1 to {MAX_NAME} bytes")
    if name in {".", ".."} or "/" in name or "\\" in name:
        raise _invalid("a file name in a URI is a name, not a path")
    if any(unicodedata.category(c) in {"Cc", "Zl", "Zp"} or c in _DIRECTION_CONTROLS for c in name):
        raise _invalid("a file name in a URI has no control characters")
    if not unicodedata.is_normalized("NFC", name):
        raise _invalid("a file name in a URI is in Unicode normalization form C")
    return name


def courtesy_name(file_name: str) -> str | None:
    """The name a URI can carry for a file called ``file_name``, in form C; ``None`` if it can carry none."""
    try:
        return check_name(unicodedata.normalize("NFC", file_name))
    except InvalidInput:
        return None


@dataclass(frozen=True, slots=True)
class StreamUri:
    """A parsed URI; ``str()`` prints the one canonical spelling. Raises :class:`InvalidInput`
    (``invalid-uri``).
    """

    channel: str
    hub: str | None
    stream: StreamId
    name: str | None = None

    def __post_init__(self) -> None:
        if not is_channel(self.channel):
            raise _invalid("a channel's name is 1 to 32 of a-z and 0-9")
        if self.hub is not None:
            check_hub(self.hub)
        if self.name is not None:
            check_name(self.name)

    @property
    def target(self) -> Self:
        """The URI without the name: what decides what is fetched, and what to compare."""
        return replace(self, name=None)

    def __str__(self) -> str:
        hub = "" if self.hub is None else f"@{self.hub}"
        name = "" if self.name is None else f"/{quote(self.name, safe='')}"
        return f"{SCHEME}{self.channel}{hub}/{self.stream.hex}{name}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The URI in ``text``. The name may be percent-encoded in any valid way; all else has one spelling.

        Raises :class:`InvalidInput` (``invalid-uri``).
        """
        if len(text) > MAX_URI:
            raise _invalid(f"a URI has at most {MAX_URI} characters")
        if not text.startswith(SCHEME):
            raise _invalid(
                f"not an entrepot URI: {text[:80]!r}",
                hint="It looks like entrepot://channel@hub.example.org/ff0123.../name",
            )
        authority, slash, path = text[len(SCHEME) :].partition("/")
        channel, at, hub = authority.partition("@")
        if not is_channel(channel):
            raise _invalid("a channel's name is 1 to 32 of a-z and 0-9")
        written_id, named, written_name = path.partition("/")
        if not slash:
            raise _invalid("the URI names no stream")
        try:
            stream = StreamId.parse(written_id)
        except InvalidInput as error:
            raise _invalid(str(error), hint=error.hint) from None
        return cls(channel, hub if at else None, stream, _read_name(written_name) if named else None)


def _read_name(written: str) -> str:
    if _WRITTEN_NAME.fullmatch(written) is None:
        raise _invalid(
            "the file name in the URI is not percent-encoded, or something follows it",
            hint="A URI has no query and no fragment; it ends after one file name",
        )
    try:
        return check_name(unquote_to_bytes(written).decode())
    except UnicodeDecodeError:
        raise _invalid("the file name in the URI is not UTF-8") from None


def _is_host(host: str) -> bool:
    if host.startswith("["):
        try:
            address = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
        # A mapped IPv4 address has two spellings; it is written as the IPv4 address it is.
        return address.ipv4_mapped is None and str(address) == host[1:-1]
    labels = host.split(".")
    if labels[-1].isdigit():
        try:
            return str(ipaddress.IPv4Address(host)) == host
        except ValueError:
            return False
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)


def _invalid(message: str, *, hint: str | None = None) -> InvalidInput:
    return InvalidInput(message, kind="invalid-uri", hint=hint)
