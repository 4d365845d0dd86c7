"""Decoders of the core that node and hub share: messages, objects, names, keys, signatures."""

from __future__ import annotations

import base64
import contextlib
import json
from functools import cache
from pathlib import Path
from typing import Any, cast

from tests.fuzz.targets import Target, check_tellable, chosen, each, text_of

from entrepot.cli import options, transfer
from entrepot.core import (
    identifiers,
    invite,
    keys,
    merkle,
    messages,
    nkeys,
    ranges,
    rate,
    signing,
    subjects,
    units,
    uri,
)
from entrepot.core.errors import InvalidInput, to_wire
from entrepot.core.format import decode_header, decode_opening, encode_header, verify_miniblock, verify_object
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId, StreamKind
from entrepot.core.keyring import Credentials, derive_feed_key, derive_node_key, sign_nonce
from entrepot.core.lock import SchemaLock

DATA = Path(__file__).parents[1] / "data"
NOW = 1_780_000_000.0
KEY = nkeys.SigningKey(nkeys.KeyKind.USER, bytes(range(32)))
HUB = nkeys.SigningKey(nkeys.KeyKind.OPERATOR, bytes(range(1, 33))).public
URL = "https://hub.example.org"
STREAM = "ff" + "ab" * 31


# --- messages -----------------------------------------------------------------------------------------------------

MESSAGES = [getattr(messages, name) for name in json.loads((DATA / "messages.json").read_text())]


def run_messages(data: bytes) -> object:
    """A message whose canonical bytes decode to the same canonical bytes."""
    kind, body = chosen(data, MESSAGES)
    message = messages.decode(kind, body)
    with contextlib.suppress(InvalidInput):  # with all its defaults written out it may be too long
        canonical = messages.encode(message)
        assert messages.encode(messages.decode(kind, canonical)) == canonical
    for part in (getattr(message, "reason", None), getattr(message, "error", None)):
        if part is not None:
            check_tellable(part.error())
    for pairs in ("ranges", "ready", "uploading"):
        _use_ranges(getattr(message, pairs, ()))
    return message


def message_samples() -> list[bytes]:
    """The golden vectors."""
    return each(
        MESSAGES, [bytes.fromhex(vector) for vector in json.loads((DATA / "messages.json").read_text()).values()]
    )


def _use_ranges(pairs: tuple[tuple[int, int], ...]) -> None:
    try:
        checked = ranges.check_pairs(pairs)
    except InvalidInput:
        return
    joined = ranges.as_set(checked)
    assert len(ranges.front(checked, messages.MAX_OBJECTS)) <= messages.MAX_OBJECTS
    assert ranges.size(joined) <= ranges.size(checked)
    for first, last in checked:
        assert ranges.holds(joined, first)
        assert ranges.holds(joined, last)
    assert ranges.common(joined, joined) == joined
    assert ranges.less(joined, joined) == ()
    ranges.rotated(joined, 7)
    ranges.without(checked, 7)
    ranges.clip(checked, 7)


def run_ranges(data: bytes) -> object:
    """Pairs of numbers, of any size and sign."""
    numbers = [int.from_bytes(data[at : at + 5], "big", signed=True) for at in range(0, min(len(data), 640), 5)]
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    ranges.check_pairs(pairs)
    _use_ranges(pairs)
    return pairs


# --- objects ------------------------------------------------------------------------------------------------------


class _Object:
    """An object that is what it should be, and what is known of its stream."""

    def __init__(self, length: int, number: int, locked: SchemaLock, kind: StreamKind = StreamKind.FILE) -> None:
        data = (bytes(i * 7 % 251 for i in range(251)) * (length // 251 + 1))[:length]
        hasher = merkle.StreamHasher(locked.level)
        hasher.update(data)
        hashed = hasher.finish()
        self.number, self.lock, self.nodes, self.opening = number, locked, hashed.nodes, hashed.opening
        self.stream = self.opening.stream_id(kind)
        self.header = encode_header(self.stream, self.opening, locked, number, self.nodes)
        offset, size = Geometry(length, locked).object_span(number)
        self.whole = self.header + data[offset : offset + size]

    @property
    def about(self) -> dict[str, Any]:
        """What a reader knows."""
        return {"stream": self.stream, "lock": self.lock, "number": self.number}


@cache
def objects() -> list[_Object]:
    """One of each shape: alone, of several, short at the end, of a tree, of a whole stream."""
    small = SchemaLock("demo", miniblock=16384, object=65536)
    whole = SchemaLock("demo", miniblock=16384, object=0)
    return [
        _Object(1, 0, SchemaLock("demo")),
        _Object(140_000, 0, small),
        _Object(140_000, 2, small),
        _Object(16385, 0, small, StreamKind.TREE),
        _Object(50_001, 0, whole),
        _Object(131_072, 1, small),
    ]


def run_header(data: bytes) -> object:
    """The one valid header, or none."""
    known, raw = chosen(data, objects())
    header = decode_header(raw, **known.about)
    assert raw == known.header
    assert (header.opening, header.nodes) == (known.opening, header.nodes)
    assert header.length + sum(header.stored_lengths) == header.object_length == len(known.whole)
    return header


def run_fixed_header(data: bytes) -> object:
    """The opening out of the first bytes of an object: what stands there, proved by the id."""
    known, raw = chosen(data, objects())
    found = decode_opening(raw, **known.about)
    assert found == known.opening
    return found


def run_object(data: bytes) -> object:
    """A whole object, header and miniblocks: exactly the bytes of the stream, or none."""
    known, raw = chosen(data, objects())
    header = verify_object(raw, **known.about)
    assert raw == known.whole
    return header


def run_miniblock(data: bytes) -> object:
    """The stored bytes of one miniblock."""
    known, raw = chosen(data, objects())
    header = decode_header(known.header, **known.about)
    index = raw[0] % 5 if raw else 0
    verify_miniblock(header, index, raw[1:])
    offset, size = header.miniblock_span(index)
    assert raw[1:] == known.whole[offset : offset + size]
    return header.plain_span(index)


def miniblock_samples() -> list[bytes]:
    """The first miniblock of each object, and the last one of the second."""
    found = []
    for known in objects():
        header = decode_header(known.header, **known.about)
        index = len(header.nodes) - 1
        offset, size = header.miniblock_span(index)
        found.append(bytes([index]) + known.whole[offset : offset + size])
    return each(objects(), found)


def run_nodes(data: bytes) -> object:
    """The miniblock nodes of a stream, as a peer or the store may give them: a root or a refusal."""
    length, level = int.from_bytes(data[:8], "big"), data[8] % 14 if len(data) > 8 else 0
    opening = merkle.from_nodes(length, data[9:], level)
    assert opening.length == length
    return opening


def node_samples() -> list[bytes]:
    """The nodes of some streams."""
    return [one.opening.length.to_bytes(8, "big") + bytes([one.lock.level]) + one.nodes for one in objects()]


# --- names --------------------------------------------------------------------------------------------------------


def run_identifiers(data: bytes) -> object:
    """Stream ids and openings have one spelling."""
    way, rest = chosen(data, ("text", "raw", "opening", "feed"))
    if way == "text":
        stream = StreamId.parse(text_of(rest))
        assert str(stream) == text_of(rest)
        return stream
    if way == "raw":
        return str(StreamId(rest))
    if way == "feed":
        return identifiers.feed_id(KEY.public_key, text_of(rest)), derive_feed_key(bytes(32), text_of(rest))
    opening = Opening.decode(rest)
    assert opening.encode() == rest
    assert opening.proves(opening.stream_id())
    return opening


def run_uri(data: bytes) -> object:
    """A URI prints as one spelling, which parses to it and keeps a name a name."""
    text = text_of(data)
    assert transfer.read_name(text, None, None) is not None
    found = uri.StreamUri.parse(text)
    assert uri.StreamUri.parse(str(found)) == found
    assert found.name is None or not {"/", "\\", "\0", "\n"} & set(found.name)
    assert str(found).isascii()
    return found


def run_hosts(data: bytes) -> object:
    """The small texts in a URI and around it."""
    parser, rest = chosen(data, (uri.check_hub, uri.check_name, options.check_channel, options.check_host))
    text = text_of(rest)
    assert parser(text) == text
    assert uri.courtesy_name(text) is None or parser is not uri.check_name or uri.courtesy_name(text) == text
    return text


def run_invite(data: bytes) -> object:
    """An invite prints as a URL that is the same invite, and no error shows its secret."""
    way, rest = chosen(data, ("invite", "token", "origin", "plain"))
    text = text_of(rest)
    if way == "token":
        ident, secret, key = invite.split_token(text)
        assert invite.Invite(URL, ident, secret, key).token == text
        return ident
    if way in {"origin", "plain"}:
        origin = invite.check_origin(text, plain=way == "plain")
        assert invite.check_origin(origin, plain=way == "plain") == origin
        return origin
    found = invite.Invite.parse(text)
    assert invite.Invite.parse(found.join_url()) == found
    return found


def invite_samples() -> list[bytes]:
    """An invite, its token, origins."""
    made = invite.Invite(URL, bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 64)))
    texts = [
        made.join_url(),
        made.token,
        "https://hub.example.org:8443",
        "http://[2001:db8::1]:8480",
        "http://127.0.0.1",
    ]
    return [*each(range(4), [text.encode() for text in texts[:4]]), b"\x02" + texts[4].encode()]


def run_lock(data: bytes) -> object:
    """A schema lock has one document."""
    found = SchemaLock.parse(data)
    assert found.canonical() == data
    return found


def run_units(data: bytes) -> object:
    """Sizes, durations and ranges as people write them; what is read can be printed."""
    parsers = (units.parse_size, units.parse_duration, units.parse_span, _range_options, rate.Bandwidth.parse)
    parser, rest = chosen(data, parsers)
    found = parser(text_of(rest))
    if isinstance(found, rate.Bandwidth):
        assert rate.Bandwidth.parse(str(found)) == found
        return found
    if isinstance(found, int):
        assert 0 <= found <= units.MAX_SIZE
        units.format_size(found)
    elif isinstance(found, float):
        assert 0 <= found <= units.MAX_SECONDS
        units.format_duration(found)
    else:
        offset, length = cast("tuple[int, int | None]", found)
        assert 0 <= offset <= units.MAX_SIZE
        assert length is None or length > 0
    return found


def _range_options(text: str) -> tuple[int, int | None]:
    return transfer.read_range(text, None, None)


def run_keys(data: bytes) -> object:
    """An object key says what it was made of."""
    way, rest = chosen(data, ("key", "lab", "prefix"))
    text = text_of(rest)
    if way == "prefix":
        assert keys.check_prefix(text) == text
        return keys.owner_mark_key(text)
    prefix = "" if way == "key" else "lab"
    found = keys.parse_object_key(prefix, text)
    assert keys.object_key(prefix, *found) == text
    return found


def run_subjects(data: bytes) -> object:
    """A subject is one that its parts make again; where an answer may go is inside the sender's inbox."""
    way, rest = chosen(data, ("hub", "seek", "state", "node", "reply", "name"))
    text = text_of(rest)
    match way:
        case "hub":
            found = subjects.parse_hub(text)
            again = (
                subjects.hub_verb(found.channel, found.verb, found.node)
                if found.instance is None
                else subjects.hub_offer(found.channel, found.instance, found.node)
            )
        case "seek":
            again = subjects.channel_seek(subjects.parse_channel_seek(text))
        case "state":
            again = subjects.state(*subjects.parse_state(text))
        case "node":
            told = subjects.parse_node(text)
            again = subjects.node_seek(told.node) if told.session is None else subjects.grant(told.node, told.session)
        case "reply":
            if subjects.reply_allowed(KEY.public, text):
                assert text.startswith(f"_INBOX.{KEY.public}.")
                assert not set(text) & set("*> \t\r\n")
            return text
        case _:
            named = subjects.parse_connection_name(text)
            again = text if named is None else subjects.connection_name(*named)
    assert again == text
    return text


def subject_samples() -> list[bytes]:
    """One of each."""
    node, session = KEY.public, "0123456789abcdef"
    texts = [
        subjects.hub_verb("demo", "want", node),
        subjects.channel_seek("demo"),
        subjects.state("demo", STREAM),
        subjects.grant(node, session),
        f"_INBOX.{node}.abc.1",
        f"{session} daemon",
        subjects.hub_offer("demo", session, node),
    ]
    return each(range(6), [text.encode() for text in texts])


# --- keys and signatures ------------------------------------------------------------------------------------------


def run_nkeys(data: bytes) -> object:
    """A key has one text; the text of a seed is in no error."""
    way, rest = chosen(data, ("public", "seed", "verify", "nonce", "node"))
    text = text_of(rest)
    match way:
        case "public":
            assert nkeys.encode_public(*nkeys.decode_public(text)) == text
        case "seed":
            try:
                key = nkeys.SigningKey.from_seed(text)
            except InvalidInput as error:
                if len(text) > 20 and text in str(to_wire(error)):
                    raise AssertionError("the error shows the seed") from error
                raise
            assert key.seed == text
            assert nkeys.decode_seed(text) == (key.kind, key.secret)
        case "verify":
            assert not nkeys.verify(KEY.public, rest[64:], rest[:64]) or rest[:64] == KEY.sign(rest[64:])
            return nkeys.verify(text[:56], b"", b"")
        case "nonce":
            return sign_nonce(KEY, text)
        case _:
            return derive_node_key(bytes(32), text)
    return text


def nkey_samples() -> list[bytes]:
    """A key of each kind, and a signature."""
    seed = KEY.seed.encode()
    return each(range(5), [KEY.public.encode(), seed, KEY.sign(b"hello") + b"hello", b"A" * 22, HUB.encode()])


def run_login(data: bytes) -> object:
    """The times in a NATS login that a hub gave."""
    return Credentials(text_of(data), KEY).times()


def login_samples() -> list[bytes]:
    """A token of that form."""
    body = base64.urlsafe_b64encode(b'{"iat":1780000000,"exp":1780003600,"sub":"U"}').rstrip(b"=")
    return [b"e30." + body + b".c2ln"]


def run_signature(data: bytes) -> object:
    """A signed request: whoever it is said to come from signed exactly this."""
    way, rest = chosen(data, ("GET", "POST"))
    lines = rest.split(b"\n", 4)
    names = ("Signature-Input", "Signature", "Content-Digest", "Content-Type")
    fields = {name: text_of(line) for name, line in zip(names, lines, strict=False) if line}
    body = lines[4] if len(lines) == 5 else b""
    found = signing.verify_request(way, [f"{URL}/v1/session"], fields, body, now=NOW)
    assert found.node == KEY.public
    assert (way, body) in {("GET", b""), ("POST", b"{}")}
    return found


def signature_samples() -> list[bytes]:
    """A GET and a POST, well signed."""
    found = []
    for method, body in (("GET", b""), ("POST", b"{}")):
        fields = {"Content-Type": "application/json"} if body else {}
        signing.sign_request(method, f"{URL}/v1/session", fields, body, key=KEY, nonce="n" * 22, now=NOW)
        names = ("Signature-Input", "Signature", "Content-Digest", "Content-Type")
        found.append(b"\n".join([*(fields.get(name, "").encode() for name in names), body]))
    return each(range(2), found)


def _core(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"entrepot.core.{module}:{name}" for name in names)


TARGETS: tuple[Target, ...] = (
    Target(
        name="messages",
        run=run_messages,
        samples=message_samples,
        covers=(*_core("messages", "decode"), *_core("ranges", "check_pairs"), *_core("errors", "from_wire")),
        main=True,
    ),
    Target(
        name="object header",
        run=run_header,
        samples=lambda: each(objects(), [one.header for one in objects()]),
        covers=_core("format", "decode_header", "decode_opening"),
        main=True,
    ),
    Target(
        name="object's fixed bytes",
        run=run_fixed_header,
        samples=lambda: each(objects(), [one.header[:96] for one in objects()]),
        covers=_core("format", "decode_opening"),
    ),
    Target(
        name="whole object",
        run=run_object,
        samples=lambda: each(objects(), [one.whole for one in objects()]),
        covers=_core("format", "verify_object", "verify_miniblock"),
        main=True,
    ),
    Target(name="miniblock", run=run_miniblock, samples=miniblock_samples, covers=_core("format", "verify_miniblock")),
    Target(name="miniblock nodes", run=run_nodes, samples=node_samples, covers=_core("merkle", "from_nodes")),
    Target(
        name="ranges",
        run=run_ranges,
        samples=lambda: [bytes(10), bytes.fromhex("00000000000000000900000000010000000002")],
        covers=_core("ranges", "check_pairs"),
    ),
    Target(
        name="stream ids and openings",
        run=run_identifiers,
        samples=lambda: each(range(4), [STREAM.encode(), bytes.fromhex(STREAM), bytes(40), "Ergebnisse é".encode()]),
        covers=_core("identifiers", "StreamId.parse", "Opening.decode"),
    ),
    Target(
        name="URI",
        run=run_uri,
        samples=lambda: [
            f"entrepot://demo@hub.example.org:8443/{STREAM}/a%20b.nwb".encode(),
            f"entrepot://demo@[2001:db8::1]/{STREAM}".encode(),
            f"entrepot://demo/{STREAM}/%C3%A9".encode(),
        ],
        covers=(*_core("uri", "StreamUri.parse"), "entrepot.cli.transfer:read_name"),
        main=True,
    ),
    Target(
        name="hosts and names",
        run=run_hosts,
        samples=lambda: each(range(4), [b"hub.example.org:8443", "é b.nwb".encode(), b"demo", b"[2001:db8::1]:1"]),
        covers=(),
    ),
    Target(name="invite", run=run_invite, samples=invite_samples, covers=_core("invite", "Invite.parse"), main=True),
    Target(
        name="schema lock",
        run=run_lock,
        samples=lambda: [SchemaLock("demo").canonical(), SchemaLock("a1", miniblock=16384, object=0).canonical()],
        covers=_core("lock", "SchemaLock.parse"),
        main=True,
    ),
    Target(
        name="sizes, durations, ranges of bytes",
        run=run_units,
        samples=lambda: each(range(5), [b"512M", b"1h30m", b"0-1023", b"7-", b"10GiB", b"0.5", b"2M:off"]),
        covers=(
            *_core("units", "parse_size", "parse_duration", "parse_span"),
            *_core("rate", "Bandwidth.parse"),
            "entrepot.cli.transfer:read_range",
        ),
    ),
    Target(
        name="object key",
        run=run_keys,
        samples=lambda: each(
            range(3),
            [f"{'ab' * 8}/{STREAM}/00000007".encode(), f"lab/{'ab' * 8}/{STREAM}/00000007".encode(), b"lab/2026"],
        ),
        covers=_core("keys", "parse_object_key"),
    ),
    Target(
        name="subjects",
        run=run_subjects,
        samples=subject_samples,
        covers=_core(
            "subjects", "parse_hub", "parse_channel_seek", "parse_state", "parse_node", "parse_connection_name"
        ),
        main=True,
    ),
    Target(
        name="NATS keys",
        run=run_nkeys,
        samples=nkey_samples,
        covers=_core("nkeys", "decode_public", "decode_seed", "SigningKey.from_seed", "verify"),
    ),
    Target(name="NATS login", run=run_login, samples=login_samples, covers=_core("keyring", "Credentials.times")),
    Target(
        name="signed request",
        run=run_signature,
        samples=signature_samples,
        covers=_core("signing", "verify_request"),
        main=True,
    ),
)
