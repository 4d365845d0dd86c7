"""The NATS subjects of the exchange: the only place where they are put together or taken apart.

==========================================  =================================================================
``hub.<ch>.<verb>.<U>``                     node to hub; the server enforces that ``<U>`` is the sender
``hub.<ch>.offer.<hub instance>.<U>``       an offer, to the hub instance that asked; several: ``offers``
``c.<ch>.seek``, ``n.<U>.seek``             hub to the holders in a channel, or to one of them
``c.<ch>.state.<stream>``                   hub to the readers of one stream
``n.<U>.<S>.grant``                         hub to one session of one node
``_INBOX.<U>.…``                            where answers to a node may go, and nothing else
==========================================  =================================================================

``<ch>`` is a channel's name, ``<U>`` a node's NKey text, ``<S>`` a session id (16 lower-case hex digits), an
instance likewise. Builders refuse malformed parts with InvalidInput, parsers refuse malformed subjects so:
no wildcard, dot or blank ever gets from a value into a subject.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from entrepot.core.errors import InvalidInput
from entrepot.core.nkeys import KeyKind, decode_public

#: Verbs of a member who may request or read: template tag ``r:<channel>``.
READER_VERBS: Final = ("want", "cancel", "got", "missing", "bad", "asks")
#: Verbs of a member who may provide: template tag ``w:<channel>``; ``offer`` has one token more.
PROVIDER_VERBS: Final = ("accept", "progress", "done", "added", "open", "brings")
OFFER: Final = "offer"
OFFERS: Final = "offers"
#: What a message of several may hold, by its verb: only what its sender could say one by one.
BATCHES: Final[Mapping[str, tuple[str, ...]]] = {
    "asks": READER_VERBS[:-1],
    "brings": PROVIDER_VERBS[:-1],
    OFFERS: (OFFER,),
}
#: What the hub subscribes to, in its queue group, for one verb of all channels and nodes.
HUB_VERBS: Final = READER_VERBS + PROVIDER_VERBS

_CHANNEL: Final = re.compile(r"[a-z0-9]{1,32}")
_SESSION: Final = re.compile(r"[0-9a-f]{16}")
_STREAM: Final = re.compile(r"f[c-f][0-9a-f]{62}")
_MAX_REPLY: Final = 256
_REPLY_TOKENS: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def check_channel(channel: str) -> str:
    """The channel's name if it is one (``[a-z0-9]{1,32}``)."""
    return _check(_CHANNEL, channel, "channel name")


def check_session(session: str) -> str:
    """The session id, or hub instance id, if it is one (16 lower-case hex digits)."""
    return _check(_SESSION, session, "session id")


@lru_cache(4096)
def check_node(node: str) -> str:
    """The node's public key text if it is one (``U…`` with a correct checksum)."""
    decode_public(node, KeyKind.USER)
    return node


@dataclass(frozen=True, slots=True)
class HubSubject:
    """A parsed ``hub.…`` subject. ``instance`` is set for ``offer`` and ``offers`` only."""

    channel: str
    verb: str
    node: str
    instance: str | None = None


@dataclass(frozen=True, slots=True)
class NodeSubject:
    """A parsed ``n.…`` subject: verb ``seek`` (no session) or ``grant`` (with a session)."""

    node: str
    verb: str
    session: str | None = None


def hub_verb(channel: str, verb: str, node: str) -> str:
    """``hub.<ch>.<verb>.<U>`` for every verb but the offer."""
    if verb not in HUB_VERBS:
        raise InvalidInput(f"no verb of a node to the hub: {verb!r}", kind="invalid-message")
    return f"hub.{check_channel(channel)}.{verb}.{check_node(node)}"


def hub_offer(channel: str, instance: str, node: str) -> str:
    """``hub.<ch>.offer.<instance>.<U>``."""
    return f"hub.{check_channel(channel)}.{OFFER}.{check_session(instance)}.{check_node(node)}"


def hub_offers(channel: str, instance: str, node: str) -> str:
    """``hub.<ch>.offers.<instance>.<U>``: several offers at once."""
    return f"hub.{check_channel(channel)}.{OFFERS}.{check_session(instance)}.{check_node(node)}"


def hub_pattern(verb: str) -> str:
    """What a hub subscribes to for one verb but the offer: ``hub.*.<verb>.*``."""
    if verb not in HUB_VERBS:
        raise InvalidInput(f"no verb of a node to the hub: {verb!r}", kind="invalid-message")
    return f"hub.*.{verb}.*"


def hub_offer_pattern(instance: str) -> str:
    """What a hub instance subscribes to for the offers that it asked for: ``hub.*.offer.<instance>.*``."""
    return f"hub.*.{OFFER}.{check_session(instance)}.*"


def hub_offers_pattern(instance: str) -> str:
    """The same for several offers at once: ``hub.*.offers.<instance>.*``."""
    return f"hub.*.{OFFERS}.{check_session(instance)}.*"


def parse_hub(subject: str) -> HubSubject:
    """Channel, verb, sender and (offers) hub instance of a subject that a node published to."""
    match subject.split("."):
        case ["hub", channel, verb, node] if verb in HUB_VERBS:
            return HubSubject(check_channel(channel), verb, check_node(node))
        case ["hub", channel, verb, instance, node] if verb in {OFFER, OFFERS}:
            return HubSubject(check_channel(channel), verb, check_node(node), check_session(instance))
        case _:
            raise _unknown(subject)


def channel_seek(channel: str) -> str:
    """``c.<ch>.seek``: heard by every daemon that may provide in the channel."""
    return f"c.{check_channel(channel)}.seek"


def node_seek(node: str) -> str:
    """``n.<U>.seek``: a seek for one node's daemons."""
    return f"n.{check_node(node)}.seek"


def state(channel: str, stream: str) -> str:
    """``c.<ch>.state.<stream>`` for a stream id's 64 hex digits: heard by readers only."""
    return f"c.{check_channel(channel)}.state.{_check(_STREAM, stream, 'stream id')}"


def states(channel: str) -> str:
    """``c.<ch>.state.*``: the states of all streams of a channel, for whoever reads many of them."""
    return f"c.{check_channel(channel)}.state.*"


def parse_channel_seek(subject: str) -> str:
    """The channel of ``c.<ch>.seek``."""
    match subject.split("."):
        case ["c", channel, "seek"]:
            return check_channel(channel)
        case _:
            raise _unknown(subject)


def parse_state(subject: str) -> tuple[str, str]:
    """Channel and stream (hex) of ``c.<ch>.state.<stream>``."""
    match subject.split("."):
        case ["c", channel, "state", stream]:
            return check_channel(channel), _check(_STREAM, stream, "stream id")
        case _:
            raise _unknown(subject)


def grant(node: str, session: str) -> str:
    """``n.<U>.<S>.grant``."""
    return f"n.{check_node(node)}.{check_session(session)}.grant"


def parse_node(subject: str) -> NodeSubject:
    """Node, verb and session of ``n.<U>.seek`` or ``n.<U>.<S>.grant``."""
    match subject.split("."):
        case ["n", node, "seek"]:
            return NodeSubject(check_node(node), "seek")
        case ["n", node, session, "grant"]:
            return NodeSubject(check_node(node), "grant", check_session(session))
        case _:
            raise _unknown(subject)


def inbox(node: str) -> str:
    """The inbox prefix of a node, without a final dot: ``_INBOX.<U>``."""
    return f"_INBOX.{check_node(node)}"


def reply_allowed(sender: str, reply: str | None) -> bool:
    """Whether an answer to ``sender`` may be published to ``reply``.

    Only inside the sender's own inbox: otherwise a member of one channel makes the hub publish into another
    (the hub may publish everywhere, and a server does not check the reply subject of a message it passes on).
    """
    if reply is None or len(reply) > _MAX_REPLY:
        return False
    prefix = f"_INBOX.{sender}."
    return reply.startswith(prefix) and _REPLY_TOKENS.fullmatch(reply[len(prefix) :]) is not None


def connection_name(session: str, kind: str) -> str:
    """The name a session gives its connection: ``<session id> <kind>``, for example ``… daemon``."""
    if not re.fullmatch(r"[a-z][a-z-]{0,31}", kind):
        raise InvalidInput(f"no kind of session: {kind!r}", kind="invalid-input")
    return f"{check_session(session)} {kind}"


def parse_connection_name(name: str) -> tuple[str, str] | None:
    """Session id and kind from a connection's name; None when it is not a name that a session gives
    itself.
    """
    session, blank, kind = name.partition(" ")
    if not blank or not _SESSION.fullmatch(session) or not re.fullmatch(r"[a-z][a-z-]{0,31}", kind):
        return None
    return session, kind


def _check(pattern: re.Pattern[str], value: str, what: str) -> str:
    if not pattern.fullmatch(value):
        raise InvalidInput(f"not a {what}: {value[:100]!r}", kind="invalid-message")
    return value


def _unknown(subject: str) -> InvalidInput:
    return InvalidInput(f"no subject of the exchange: {subject[:200]!r}", kind="invalid-message")
