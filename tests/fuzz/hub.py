"""Decoders of the hub: what nodes and owners ask, what the admin writes down, what servers answer, what lies sealed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, cast

import msgspec
from tests.fuzz.core import HUB, KEY, NOW, URL
from tests.fuzz.node import folder
from tests.fuzz.targets import Target, chosen, each, finished, text_of

from entrepot.adapters.bus import Message
from entrepot.core import api
from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters import database
from entrepot_hub.adapters.accounts import Accounts
from entrepot_hub.adapters.buckets import interface, s3_calls, s3_errors
from entrepot_hub.adapters.nats_server import NatsServer
from entrepot_hub.core import addresses, export, jwt, limits, members, prices
from entrepot_hub.core.master_keys import Change
from entrepot_hub.core.nats_identity import RANDOM_LENGTH, NatsIdentity
from entrepot_hub.core.sealing import RESEAL_RANDOM, SEAL_RANDOM, MasterKey, opens, reseal, seal, unseal
from entrepot_hub.services import settings
from entrepot_hub.services.operations import OPERATIONS
from entrepot_hub.services.web.signatures import decode_body, read_body

MASTER = MasterKey(bytes(range(32)))
PLACE = b"entrepot.bucket\0file:///b"


# --- requests -----------------------------------------------------------------------------------------------------

BODIES: Sequence[type[msgspec.Struct]] = (
    api.JoinRequest,
    api.SessionRequest,
    api.InviteRequest,
    api.GrantRequest,
    *(OPERATIONS[name].request for name in sorted(OPERATIONS)),
)


class _Request:
    """A request, as far as its body is read."""

    content_type = "application/json"

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        return self._data


def run_body(data: bytes) -> object:
    """The body of a request of the API or of the admin's socket; what is taken can be written and taken again."""
    kind, rest = chosen(data, BODIES)
    request = cast("Any", _Request(rest))
    body = finished(read_body(request))
    found = decode_body(request, body, kind)
    repr(found)
    assert decode_body(request, msgspec.json.encode(found), kind) == found or "NaN" in repr(found)
    return found


def body_samples() -> list[bytes]:
    """One of each kind: what has to be given, with the least that fits it."""
    samples = [
        json.dumps({"invite": "0" * 32, "node": KEY.public, "mac": "0" * 64, "name": "lab"}).encode(),
        b"{}",
        b'{"uses":3,"life":60.5,"rights":"request"}',
        b'{"rights":"request,provide"}',
    ]
    for name in sorted(OPERATIONS):
        fields = {
            field.encode_name: _least(field.type)
            for field in msgspec.structs.fields(OPERATIONS[name].request)
            if field.required
        }
        samples.append(json.dumps(fields).encode())
    return each(BODIES, samples)


def _least(kind: Any) -> object:
    """A value of a field's type."""
    schema = msgspec.json.schema(kind)
    while "anyOf" in schema:
        schema = schema["anyOf"][0]
    match schema.get("type"):
        case "string":
            return "x"
        case "integer" | "number":
            return 1
        case "boolean":
            return True
        case "array":
            return []
        case _:
            return {}


# --- tokens and sealed things -------------------------------------------------------------------------------------


@cache
def identity() -> NatsIdentity:
    """The keys of a hub."""
    return NatsIdentity.create(bytes(i % 256 for i in range(RANDOM_LENGTH)))


def run_jwt(data: bytes) -> object:
    """A JWT whose issuer signed exactly it."""
    kind, rest = chosen(data, ("user", "account", "operator"))
    text = text_of(rest)
    claims = jwt.decode(text, cast("jwt.ClaimType", kind))
    assert text in {sample[1:].decode() for sample in jwt_samples()}
    return claims


@cache
def jwt_samples() -> list[bytes]:
    """A node's login, an account's token."""
    hub = identity()
    login = hub.user_jwt(KEY.public, [("demo", ("request",))], NOW, 3600.0)
    account = hub.account_jwt(NOW, {})
    return [b"\x00" + login.encode(), b"\x01" + account.encode()]


def run_sealed(data: bytes) -> object:
    """A sealed blob opens to what was sealed, or not at all; a change of the master key likewise."""
    way, rest = chosen(data, ("blob", "change", "key"))
    if way == "key":
        key = MasterKey.parse(text_of(rest))
        assert key.raw.hex() == text_of(rest).strip().lower() or len(key.raw) == 32
        return key.fingerprint
    if way == "change":
        return Change.read(rest, MASTER)
    if opens(rest, key=MASTER, associated=PLACE):
        other = MasterKey(bytes(32))
        again = reseal(rest, old=MASTER, new=other, associated=PLACE, random=bytes(RESEAL_RANDOM))
        assert opens(again, key=other, associated=PLACE)
    secret = unseal(rest, key=MASTER, associated=PLACE)
    assert secret == b"secret"
    return secret


@cache
def sealed_samples() -> list[bytes]:
    """A sealed secret, a change that is under way, a key."""
    blob = seal(b"secret", key=MASTER, associated=PLACE, random=bytes(range(SEAL_RANDOM)))
    change = Change(MASTER, MasterKey(bytes(32))).write(bytes(i for i in range(2 * SEAL_RANDOM)))
    return each(range(3), [blob, change, MASTER.raw.hex().encode()])


def run_identity(data: bytes) -> object:
    """The document of the hub's keys on NATS; no error shows a seed of it."""
    return NatsIdentity.load(data).hub_public


def run_export(data: bytes) -> object:
    """An export of the hub: what is in it fits together; one that was altered does not open."""
    way, rest = chosen(data, ("document", "file"))
    if way == "document":
        found = export.read_document(rest)
        repr(found)
        return found
    if export.wants_password(rest):
        return None  # half a second of work, of a bounded amount of memory, before a byte of it is read
    found = export.decrypt(rest, MASTER)
    assert rest == export_samples()[1][1:]
    return found


@cache
def export_samples() -> list[bytes]:
    """A document with one of most parts, and the same in a file."""
    document = export.Document(
        made_at=NOW,
        hub=HUB,
        identity=b"{}",
        settings='urls = ["https://hub.example.org"]',
        buckets=[export.BucketPart(url="file:///b", prefix="", binds={"length": True})],
        channels=[
            export.ChannelPart(
                name="demo",
                quota=1,
                lock=SchemaLock("demo").canonical().decode(),
                bucket=0,
                public_read=False,
                created_at=NOW,
            )
        ],
        nodes=[export.NodePart(public=KEY.public, name="lab", status="active", created_at=NOW)],
        members=[export.MemberPart(channel="demo", node=KEY.public, rights="request", granted_at=NOW)],
        pins=[export.PinPart(channel="demo", stream=b"\xff" * 32, kind="pin", actor="admin", at=NOW)],
        limits=[export.LimitPart(channel="demo", node="*", day_up=1)],
    )
    whole = export.encrypt(document, MASTER, bytes(export.EXPORT_RANDOM))
    return [b"\x00" + msgspec.msgpack.encode(document), b"\x01" + whole]


def run_forwarded(data: bytes) -> object:
    """Whom a request comes from, by what stands in its X-Forwarded-For."""
    peer, _, forwarded = text_of(data).partition("\n")
    name = addresses.client(peer, forwarded.split("\n"), addresses.check_networks(["127.0.0.1", "10.0.0.0/8"]))
    assert len(name) <= 100
    return addresses.check_networks([forwarded])


# --- settings and what else an admin writes -----------------------------------------------------------------------


def run_settings(data: bytes) -> object:
    """``hub.toml``, and what is told to nodes because of it."""
    found = settings.parse_settings(Path("/hub"), data)
    found.nats_told()
    found.nats_told(4222)
    for url in found.urls:
        assert url.startswith(("https://", "http://"))
    return found


def settings_samples() -> list[bytes]:
    """The file that a new hub gets, and one with everything."""
    first = settings.first_settings(URL, settings.Listen("127.0.0.1", 8480), settings.Listen("0.0.0.0", 0), plain=False)
    more = (
        b'urls = ["https://hub.example.org"]\nlisten = "[::]:8480"\nplain = true\n[tls]\ncertificate = "a"\nkey = "b"\n'
        b'[nats]\nserver = ["nats://127.0.0.1:4222"]\nurls = ["wss://[::1]/nats"]\nwebsocket = "0.0.0.0:1"\n[limits]\n'
        b'request = 5.0\n[master]\ncommand = ["x"]\n[database]\nurl = "sqlite:///x"\n'
    )
    return [first.encode(), more]


def run_words(data: bytes) -> object:
    """The small texts of settings, requests and options."""
    parser, rest = chosen(data, list(WORDS))
    found = parser(text_of(rest))
    repr(found)
    return found


def _rights(text: str) -> object:
    found = members.Rights.parse(text)
    assert members.Rights.parse(str(found)) == found
    return found


def _budget(text: str) -> object:
    found = limits.parse_budget(text)
    assert 0 <= found <= Decimal(10**12)
    return found


def _key(text: str) -> object:
    assert interface.check_key(text) == text
    assert interface.is_key(text)
    assert not {"", ".", ".."} & set(text.split("/"))
    return text


def _in_an_answer(parser: Callable[[str], object]) -> Callable[[str], object]:
    """What reads a header of a bucket's answer does so where boto3's errors become ours."""

    def parse(text: str) -> object:
        with s3_errors.translation("bucket"):
            return parser(text)

    return parse


WORDS: dict[Callable[[str], object], str] = {
    _rights: "request:files,provide,keeper",
    _budget: "20.5/month",
    prices.parse_money: "0.023",
    settings.Listen.parse: "[::1]:8480",
    lambda text: settings.check_nats_urls([text]): "tls://bus.example.org:4222",
    members.check_channel_name: "demo",
    members.check_node_name: "lab 3",
    _key: "lab/abc/00000001",
    interface.check_etag: "d41d8cd98f00b204e9800998ecf8427e",
    interface.check_prefix: "lab/",
    database._parse: "postgresql://user@host/name",
    _in_an_answer(s3_calls._content_range): "bytes 0-9/100",
    _in_an_answer(s3_calls._sha256): "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    _in_an_answer(s3_calls._md5): "d41d8cd98f00b204e9800998ecf8427e",
}


# --- what servers answer ---


def run_bus_event(data: bytes) -> object:
    """What the NATS server says of a connection, and of an account that it was given."""
    way, rest = chosen(data, ("CONNECT", "DISCONNECT", "answer", "other"))
    accounts = Accounts(cast("Any", _Answering(rest)), identity(), clock=lambda: NOW)
    if way == "answer":
        return finished(accounts.push())
    return accounts._event(
        Message(
            subject=f"$SYS.ACCOUNT.{identity().account.public}.{way}", payload=rest, reply=None, _bus=cast("Any", None)
        )
    )


class _Answering:
    """A bus on which one request is answered."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def request(self, *_: object) -> bytes:
        return self._answer


def bus_event_samples() -> list[bytes]:
    """A connect, a disconnect, a taken account."""
    event = {
        "server": {"id": "N1"},
        "client": {"id": 7, "user": KEY.public, "name": "0123456789abcdef daemon"},
        "reason": "Client Closed",
    }
    gone = {**event, "client": {**cast("dict[str, Any]", event["client"]), "name": "other"}}
    return each(range(3), [json.dumps(part).encode() for part in (event, gone, {"data": {"code": 200}})])


def run_ports(data: bytes) -> object:
    """The file in which the hub's own NATS server says where it listens; half of it is none."""
    place = folder() / "nats"
    place.mkdir(exist_ok=True)
    (place / "nats-server_1.ports").write_bytes(data)
    server = NatsServer.__new__(NatsServer)
    server._folder = place
    return server._read_ports()


def run_price_list(data: bytes) -> object:
    """A price list as the database holds it."""
    document = msgspec.json.decode(data, type=dict[str, str])
    return prices.as_document(prices.from_document(document))


def _hub(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"entrepot_hub.{module}:{name}" for name in names)


TARGETS: tuple[Target, ...] = (
    Target(
        name="body of a request",
        run=run_body,
        samples=body_samples,
        covers=_hub("services.web.signatures", "decode_body", "read_body"),
        main=True,
    ),
    Target(name="NATS JWT", run=run_jwt, samples=jwt_samples, covers=_hub("core.jwt", "decode"), main=True),
    Target(
        name="sealed secret",
        run=run_sealed,
        samples=sealed_samples,
        covers=(*_hub("core.sealing", "MasterKey.parse", "unseal"), *_hub("core.master_keys", "Change.read")),
    ),
    Target(
        name="export of a hub",
        run=run_export,
        samples=export_samples,
        covers=_hub("core.export", "read_document", "decrypt"),
    ),
    Target(
        name="forwarded address",
        run=run_forwarded,
        samples=lambda: [b"127.0.0.1\n192.0.2.7, 10.1.2.3", b"10.0.0.1\n[2001:db8::1]:443", b"127.0.0.1\n10.0.0.0/8"],
        covers=_hub("core.addresses", "check_networks"),
    ),
    Target(
        name="NATS identity",
        run=run_identity,
        samples=lambda: [identity().dump()],
        covers=_hub("core.nats_identity", "NatsIdentity.load"),
    ),
    Target(
        name="hub.toml",
        run=run_settings,
        samples=settings_samples,
        covers=_hub("services.settings", "parse_settings", "Listen.parse"),
        main=True,
    ),
    Target(
        name="words of settings and headers",
        run=run_words,
        samples=lambda: each(list(WORDS), [text.encode() for text in WORDS.values()]),
        covers=(
            *_hub("core.members", "Rights.parse"),
            *_hub("core.limits", "parse_budget"),
            *_hub("core.prices", "parse_money"),
            *_hub("services.settings", "Listen.parse"),
            *_hub("adapters.database", "_parse"),
        ),
    ),
    Target(name="NATS server's event", run=run_bus_event, samples=bus_event_samples, covers=()),
    Target(
        name="NATS server's ports",
        run=run_ports,
        samples=lambda: [b'{"nats":["nats://127.0.0.1:4222"],"websocket":["ws://127.0.0.1:1"]}'],
        covers=(),
    ),
)
