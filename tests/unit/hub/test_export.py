"""The export's file: what opens it, what is refused, and that nothing in it can be read without its secret."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import Corrupt, Denied, EntrepotError, InvalidInput
from entrepot.core.lock import SchemaLock
from entrepot.core.nkeys import KeyKind, SigningKey
from entrepot_hub.core import export as module
from entrepot_hub.core.export import (
    EXPORT_RANDOM,
    MAGIC,
    BucketPart,
    ChannelPart,
    Document,
    InvitePart,
    MemberPart,
    NodePart,
    PinPart,
    RedemptionPart,
    Secret,
    Work,
    decrypt,
    encrypt,
    read_document,
    wants_password,
)
from entrepot_hub.core.sealing import MasterKey
from entrepot_hub.services.export import MakeExport

PASSWORD = "correct horse battery"
KEY = MasterKey(bytes(range(32)))
QUICK = Work(log_n=10)
NODE = SigningKey(KeyKind.USER, bytes(32)).public
STREAM = b"\xff" + bytes(31)
HIDDEN = (b"bucket-secret", b"identity-secret", b"proof-secret", b"invite0", b"demo")


def document(**other: Any) -> Document:
    """A small hub."""
    fields: dict[str, Any] = {
        "made_at": 1000.0,
        "hub": SigningKey(KeyKind.OPERATOR, bytes(32)).public,
        "identity": b"identity-secret",
        "settings": 'urls = ["http://127.0.0.1:1"]',
        "buckets": [BucketPart(url="file:///b", prefix="", binds={"length": True}, credentials=b"bucket-secret")],
        "channels": [
            ChannelPart(
                name="demo",
                quota=1 << 30,
                lock=SchemaLock("demo").canonical().decode(),
                bucket=0,
                public_read=False,
                created_at=1.0,
            )
        ],
        "nodes": [NodePart(public=NODE, name="n", status="active", created_at=1.0)],
        "members": [MemberPart(channel="demo", node=NODE, rights="request:files", granted_at=1.0, revoked_at=2.0)],
        "invites": [
            InvitePart(
                id="invite0",
                channel="demo",
                rights="read",
                uses=3,
                used=1,
                proof=b"proof-secret",
                created_at=1.0,
                expires=9.0,
            )
        ],
        "redemptions": [RedemptionPart(invite="invite0", node=NODE, at=1.0)],
        "pins": [PinPart(channel="demo", stream=STREAM, kind="archive", actor="admin", at=1.0)],
    }
    return Document(**(fields | other))


def made(secret: Secret = PASSWORD, **other: Any) -> bytes:
    """An export of it."""
    return encrypt(document(**other), secret, os.urandom(EXPORT_RANDOM), QUICK)


@pytest.mark.parametrize("secret", [PASSWORD, KEY])
def test_an_export_opens_with_its_secret(secret: Secret) -> None:
    """What was put in comes out, by a password as by a key, and the file tells which of them it wants."""
    data = made(secret)
    assert decrypt(data, secret) == document()
    assert wants_password(data) is isinstance(secret, str)


@pytest.mark.parametrize("secret", [PASSWORD, KEY])
def test_an_export_shows_nothing(secret: Secret) -> None:
    """No secret, name or password stands in the file's bytes, nor in what Python prints of its parts."""
    data = made(secret)
    assert not [word for word in (*HIDDEN, PASSWORD.encode(), KEY.raw) if word in data]
    shown = f"{document()!r} {document().buckets[0]!r} {document().invites[0]!r}"
    assert "secret" not in shown
    asked = MakeExport(password=PASSWORD), MakeExport(key=KEY.raw.hex())
    assert not [word for word in (PASSWORD, KEY.raw.hex()) if word in repr(asked)]


def test_two_exports_have_nothing_in_common() -> None:
    """The same hub under the same password is other bytes each time, behind the fixed head."""
    one, two = made(), made()
    fixed = len(MAGIC) + 5
    assert one[:fixed] == two[:fixed]
    assert one[fixed : fixed + 32] != two[fixed : fixed + 32]
    assert one[-100:] != two[-100:]


@pytest.mark.parametrize(
    ("secret", "other", "kind"),
    [
        (PASSWORD, "another password", Denied),
        (KEY, MasterKey(bytes(32)), Denied),
        (PASSWORD, KEY, InvalidInput),
        (KEY, PASSWORD, InvalidInput),
    ],
)
def test_another_secret_is_refused(secret: Secret, other: Secret, kind: type[EntrepotError]) -> None:
    """A wrong password or key is told from a damaged file, a password from a key; none of them stands in the error."""
    with pytest.raises(kind) as caught:
        decrypt(made(secret), other)
    assert not isinstance(other, str) or other not in str(caught.value) + str(caught.value.hint)


def test_a_short_password_is_refused() -> None:
    """An export is not made under a password that is guessed in a day."""
    with pytest.raises(InvalidInput, match="8 characters") as caught:
        made("1234567")
    assert caught.value.kind == "invalid-key"


@pytest.mark.parametrize("length", [0, 1, len(MAGIC), 40, 90, -17, -1])
def test_a_cut_export_is_refused(length: int) -> None:
    """A file that ends early is called cut, or no export at all where not even its name is left."""
    data = made()[:length]
    with pytest.raises((Corrupt, InvalidInput)):
        decrypt(data, PASSWORD)
    with pytest.raises(Corrupt):
        decrypt(made() + b"\0", PASSWORD)


def test_every_flipped_byte_is_noticed() -> None:
    """Whatever byte of the file is another: an error, none of our own mistakes, and no document."""
    data = made(KEY)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x41
        with pytest.raises((Corrupt, Denied, InvalidInput)):
            decrypt(bytes(changed), KEY)


@pytest.mark.parametrize(
    "costs",
    [(30, 8, 1), (20, 16, 1), (0, 8, 1), (17, 0, 1), (17, 8, 0), (16, 1, 1), (17, 8, 99), (21, 2, 16), (17, 8, 5)],
)
def test_costs_are_bounded(costs: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file cannot ask for more memory or work than an export may, and is refused before any of it is done."""

    def never(**_: object) -> None:
        raise AssertionError("it was begun")

    monkeypatch.setattr(module, "Scrypt", never)
    data, at = bytearray(made(KEY)), len(MAGIC) + 1
    data[at : at + 4] = bytes((1, *costs))
    with pytest.raises(Corrupt, match="more work"):
        decrypt(bytes(data), PASSWORD)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_error(data: bytes) -> None:
    """What is no export is refused as such, with the magic bytes before it too."""
    for secret in (PASSWORD, KEY):
        for start in (b"", MAGIC, MAGIC + b"\x01\x02\0\0\0"):
            with pytest.raises((Corrupt, Denied, InvalidInput)):
                decrypt(start + data, secret)
    with pytest.raises(Corrupt):
        read_document(data)


#: A part of the document, its field, and a value that does not fit.
WRONG = [
    ("channels", "bucket", 1),
    ("channels", "name", "other"),
    ("channels", "name", "no name"),
    ("channels", "lock", "{}"),
    ("channels", "quota", -1),
    ("members", "channel", "other"),
    ("members", "node", "U"),
    ("members", "rights", "everything"),
    ("nodes", "status", "dead"),
    ("nodes", "public", "U"),
    ("nodes", "more", 1),
    ("invites", "used", 4),
    ("redemptions", "invite", "none"),
    ("pins", "stream", bytes(32)),
    ("pins", "kind", "other"),
]


def plain() -> dict[str, Any]:
    """The document as MessagePack has it."""
    found: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(document()))
    assert read_document(msgspec.msgpack.encode(found)) == document()
    return found


@pytest.mark.parametrize(("part", "field", "value"), WRONG)
def test_a_document_that_contradicts_itself_is_refused(part: str, field: str, value: object) -> None:
    """Names that are not there and words that are none: nothing of it is taken."""
    fields = plain()
    fields[part][0][field] = value
    with pytest.raises(Corrupt):
        read_document(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("part", ["buckets", "channels", "nodes", "members", "invites", "redemptions", "pins"])
def test_a_document_that_says_something_twice_is_refused(part: str) -> None:
    """The same row again would be an error of the database, in the middle of a rebuilding."""
    fields = plain()
    fields[part] = [*fields[part], fields[part][0]]
    with pytest.raises(Corrupt):
        read_document(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("change", [{"hub": NODE}, {"more": 1}, {"identity": None}])
def test_another_document_is_refused(change: dict[str, object]) -> None:
    """A field too many, of another form, or the key of a node where the hub's should be."""
    with pytest.raises(Corrupt):
        read_document(msgspec.msgpack.encode(plain() | change))
