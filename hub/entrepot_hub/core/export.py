r"""The hub's export: who it is and who may do what, in one encrypted file. See ``docs/hub.md``.

The file, version 1::

    "entrepot hub export\n" ‖ version (1) ‖ kind (1) ‖ log2 n, r, p of scrypt (1 each)
    ‖ salt (32) ‖ check (16) ‖ length of the document (8) ‖ nonce (12)
    ‖ AES-256-GCM(key, document), which binds all that stands before it

Kind 1: the key comes from a password by scrypt. Kind 2: from a key of 32 bytes by HKDF, and the parameters of scrypt
are zero. ``check`` tells another password from a damaged file and says nothing about either. The document is
MessagePack. Whoever opens the file has every secret of the hub; nothing but the password or key is needed for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from entrepot.core.errors import Corrupt, Denied, EntrepotError, InvalidInput
from entrepot.core.identifiers import StreamId
from entrepot.core.lock import SchemaLock
from entrepot.core.nkeys import KeyKind, decode_public
from entrepot_hub.core.members import NodeStatus, Rights, check_channel_name
from entrepot_hub.core.pins import PinKind
from entrepot_hub.core.sealing import MasterKey

MAGIC: Final = b"entrepot hub export\n"
#: Random bytes that :func:`encrypt` needs: the salt and the nonce.
EXPORT_RANDOM: Final = 32 + 12
#: The longest export that is written or read, in bytes.
LONGEST: Final = 64 << 20
#: The shortest password that an export is made with, in characters.
SHORTEST_PASSWORD: Final = 8

_VERSION: Final = 1
_PASSWORD: Final = 1
_KEY: Final = 2
_TAG: Final = 16
_CHECK: Final = 16
_HEAD: Final = len(MAGIC) + 1 + 1 + 3 + 32 + _CHECK + 8 + 12
_MOST_MEMORY: Final = 512 << 20
_DOMAIN: Final = b"entrepot.export.key\0"
_MOST_WORK: Final = 16
_MOST_STEPS: Final = 1 << 22  # of scrypt, n·r·p: four times the work of our own exports

#: What opens an export: a password, or a key of 32 bytes.
type Secret = str | MasterKey

_Name = Annotated[str, msgspec.Meta(max_length=64)]
_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Blob = Annotated[bytes, msgspec.Meta(max_length=1 << 20)]
_Stream = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the document's parts. Times are unix seconds, sizes bytes; channels and nodes go by their names and
    keys."""


class BucketPart(_Part, frozen=True, kw_only=True):
    """A bucket; ``credentials`` are its keys in clear."""

    url: _Text
    prefix: _Text
    binds: dict[_Name, bool]
    credentials: _Blob | None = None

    def __repr__(self) -> str:
        return f"BucketPart({self.url}, credentials={'***' if self.credentials else None})"


class KeyPart(_Part, frozen=True, kw_only=True):
    """A key that a bucket (by its place in the document) has or had, without the key."""

    bucket: _Count
    label: _Text
    set_at: float
    set_by: _Text
    used_at: float | None = None
    retired_at: float | None = None
    safe_at: float | None = None


class ChannelPart(_Part, frozen=True, kw_only=True):
    """A channel on a bucket, by its place in the document; ``lock`` is the canonical text."""

    name: _Name
    quota: _Count
    lock: _Text
    bucket: _Count
    public_read: bool
    created_at: float


class NodePart(_Part, frozen=True, kw_only=True):
    """A node."""

    public: _Name
    name: _Name
    status: _Name
    created_at: float
    seen_at: float | None = None


class MemberPart(_Part, frozen=True, kw_only=True):
    """A membership; revoked ones too."""

    channel: _Name
    node: _Name
    rights: _Text
    granted_at: float
    revoked_at: float | None = None


class InvitePart(_Part, frozen=True, kw_only=True):
    """An invite; ``proof`` in clear."""

    id: _Name
    channel: _Name
    rights: _Text
    uses: _Count
    used: _Count
    proof: _Blob
    created_at: float
    expires: float
    revoked_at: float | None = None

    def __repr__(self) -> str:
        return f"InvitePart({self.id}, {self.channel}, proof=***)"


class RedemptionPart(_Part, frozen=True, kw_only=True):
    """A node that used an invite."""

    invite: _Name
    node: _Name
    at: float


class PinPart(_Part, frozen=True, kw_only=True):
    """A stream that is never evicted."""

    channel: _Name
    stream: _Stream
    kind: _Name
    actor: _Text
    at: float


class LimitPart(_Part, frozen=True, kw_only=True):
    """What a channel, or a node in it, may use."""

    channel: _Name
    node: _Name
    day_up: _Count | None = None
    day_down: _Count | None = None
    objects: _Count | None = None
    stream: _Count | None = None
    budget: float | None = None


class PricePart(_Part, frozen=True, kw_only=True):
    """Prices that were changed."""

    name: _Text
    prices: dict[str, object]
    changed_at: float


class UsagePart(_Part, frozen=True, kw_only=True):
    """What passed: of a node in a channel on a day."""

    channel: _Name
    node: _Name
    day: _Count
    uploads: _Count = 0
    uploaded: _Count = 0
    downloads: _Count = 0
    downloaded: _Count = 0
    requests_a: _Count = 0
    requests_b: _Count = 0
    deletes: _Count = 0
    evicted: _Count = 0
    byte_seconds: float = 0.0


class MarkPart(_Part, frozen=True, kw_only=True):
    """A part of a month's budget that was told to be used up."""

    channel: _Name
    month: _Name
    percent: _Count
    at: float


class AuditPart(_Part, frozen=True, kw_only=True):
    """A line of the audit log."""

    id: _Count
    at: float
    actor: _Text
    action: _Text
    subject: _Text
    detail: dict[str, object]


class SettingPart(_Part, frozen=True, kw_only=True):
    """A value of the hub's own."""

    key: _Name
    value: Annotated[bytes, msgspec.Meta(max_length=16 << 20)]


class Document(_Part, frozen=True, kw_only=True):
    """All that cannot be found in the buckets again. ``hub``: its public key; ``identity``: its keys on NATS, in clear;
    ``settings``: the text of ``hub.toml``."""

    made_at: float
    hub: _Name
    identity: _Blob
    settings: Annotated[str, msgspec.Meta(max_length=65536)]
    buckets: list[BucketPart] = []
    keys: list[KeyPart] = []
    channels: list[ChannelPart] = []
    nodes: list[NodePart] = []
    members: list[MemberPart] = []
    invites: list[InvitePart] = []
    redemptions: list[RedemptionPart] = []
    pins: list[PinPart] = []
    limits: list[LimitPart] = []
    prices: list[PricePart] = []
    usage: list[UsagePart] = []
    marks: list[MarkPart] = []
    audit: list[AuditPart] = []
    values: list[SettingPart] = []

    def __repr__(self) -> str:
        return f"Document({self.hub}, {len(self.channels)} channels, {len(self.nodes)} nodes)"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        # Struct has one of its own, which shows every field, and rich prefers it to repr.
        return [("hub", self.hub)]


@dataclass(frozen=True, slots=True)
class Work:
    """What a guess at the password costs: scrypt's n as a power of two, r and p. Memory: 128·r·n bytes."""

    log_n: int = 17
    r: int = 8
    p: int = 1


def encrypt(document: Document, secret: Secret, random: bytes, work: Work | None = None) -> bytes:
    """The export's bytes. ``random`` is :data:`EXPORT_RANDOM` fresh random bytes. Blocks for about half a second where
    ``secret`` is a password.

    Raises InvalidInput for a password that is too short (``invalid-key``) and for more than fits
    (``unsupported``).
    """
    if len(random) != EXPORT_RANDOM:
        raise InvalidInput(f"an export needs {EXPORT_RANDOM} random bytes")
    if isinstance(secret, str) and len(secret) < SHORTEST_PASSWORD:
        raise InvalidInput(f"the password of an export has {SHORTEST_PASSWORD} characters or more", kind="invalid-key")
    data = msgspec.msgpack.encode(document)
    if len(data) > LONGEST - _HEAD - _TAG:
        raise InvalidInput("the hub holds more than fits into an export", kind="unsupported")
    work = work or Work()
    kind, costs = (_PASSWORD, (work.log_n, work.r, work.p)) if isinstance(secret, str) else (_KEY, (0, 0, 0))
    salt, nonce = random[:32], random[32:]
    key, check = _derive(secret, salt, costs)
    head = MAGIC + bytes((_VERSION, kind, *costs)) + salt + check + len(data).to_bytes(8) + nonce
    return head + AESGCM(key).encrypt(nonce, data, head)


def wants_password(data: bytes) -> bool:
    """Whether an export opens with a password (else with a key). Raises as :func:`decrypt` for what is none."""
    return _head(data)[0] == _PASSWORD


def decrypt(data: bytes, secret: Secret) -> Document:
    """What :func:`encrypt` was given. Blocks as it does; takes at most 512 MiB of memory and
    four times as long, whatever the file says.

    Raises InvalidInput (``unsupported`` for another version or what is no export at all; ``invalid-key`` for a password
    where a key is needed, and the other way round), Denied where the secret is another, Corrupt where the file was cut
    or altered, or does not hold what it should.
    """
    kind, costs, salt, check, length, nonce = _head(data)
    if (kind == _PASSWORD) is not isinstance(secret, str):
        raise InvalidInput(
            f"this export opens with a {'password' if kind == _PASSWORD else 'key'}",
            kind="invalid-key",
            hint="Name its file: --password-file" if kind == _PASSWORD else "Name its file: --key-file",
        )
    if len(data) != _HEAD + length + _TAG:
        raise Corrupt("the export was cut or something was added to it", length=len(data), expected=_HEAD + length)
    key, found = _derive(secret, salt, costs)
    if not compare_digest(check, found):
        raise Denied(
            f"the export does not open with this {'password' if kind == _PASSWORD else 'key'}",
            hint="If it is the right one, the beginning of the file was damaged: take another copy of it.",
        )
    try:
        plain = AESGCM(key).decrypt(nonce, data[_HEAD:], data[:_HEAD])
    except InvalidTag:
        raise Corrupt("the export was altered", hint="Take another copy of it.") from None
    return read_document(plain)


def read_document(plain: bytes) -> Document:
    """The document in these bytes, if all that it says of itself fits together. Raises Corrupt."""
    try:
        document = msgspec.msgpack.decode(plain, type=Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        raise Corrupt("the export does not hold what an export holds", hint=_NEWER) from None
    try:
        _check(document)
    except Corrupt:
        raise
    except EntrepotError as error:
        raise Corrupt(f"the export contradicts itself: {error.message}") from None
    return document


_NEWER: Final = "Was it made by a newer entrepot-hub?"


def _check(document: Document) -> None:
    decode_public(document.hub, KeyKind.OPERATOR)
    channels: set[str] = set()
    for channel in document.channels:
        check_channel_name(channel.name)
        if SchemaLock.parse(channel.lock).channel != channel.name or channel.bucket >= len(document.buckets):
            raise Corrupt(f"channel {channel.name} of the export is not as it should be")
        channels.add(channel.name)
    nodes = {node.public for node in document.nodes}
    for node in document.nodes:
        decode_public(node.public, KeyKind.USER)
        if node.status not in set(NodeStatus):
            raise Corrupt("a node of the export has a status that is none")
    invites = {invite.id for invite in document.invites}
    for rights in (*(member.rights for member in document.members), *(invite.rights for invite in document.invites)):
        Rights.parse(rights)
    for pin in document.pins:
        StreamId(pin.stream)
        if pin.kind not in set(PinKind):
            raise Corrupt("a pin of the export is of no kind")
    unique = (
        (len(channels), len(document.channels)),
        (len(nodes), len(document.nodes)),
        (len(invites), len(document.invites)),
        (len({(bucket.url, bucket.prefix) for bucket in document.buckets}), len(document.buckets)),
        (len({(member.channel, member.node) for member in document.members}), len(document.members)),
        (len({(used.invite, used.node) for used in document.redemptions}), len(document.redemptions)),
        (len({(pin.channel, pin.stream) for pin in document.pins}), len(document.pins)),
        (len({(limit.channel, limit.node) for limit in document.limits}), len(document.limits)),
        (len({price.name for price in document.prices}), len(document.prices)),
        (len({(use.channel, use.node, use.day) for use in document.usage}), len(document.usage)),
        (len({(mark.channel, mark.month, mark.percent) for mark in document.marks}), len(document.marks)),
        (len({line.id for line in document.audit}), len(document.audit)),
        (len({value.key for value in document.values}), len(document.values)),
    )
    named: list[tuple[str, set[str]]] = [
        *((member.channel, channels) for member in document.members),
        *((invite.channel, channels) for invite in document.invites),
        *((pin.channel, channels) for pin in document.pins),
        *((limit.channel, channels) for limit in document.limits),
        *((use.channel, channels) for use in document.usage),
        *((mark.channel, channels) for mark in document.marks),
        *((member.node, nodes) for member in document.members),
        *((used.node, nodes) for used in document.redemptions),
        *((used.invite, invites) for used in document.redemptions),
    ]
    if any(distinct != count for distinct, count in unique):
        raise Corrupt("the export holds something twice")
    if any(name not in known for name, known in named) or any(
        key.bucket >= len(document.buckets) for key in document.keys
    ):
        raise Corrupt("the export names something that is not in it")
    if any(invite.used > invite.uses for invite in document.invites):
        raise Corrupt("an invite of the export was used too often")


type _Head = tuple[int, tuple[int, int, int], bytes, bytes, int, bytes]


def _head(data: bytes) -> _Head:
    """Kind, costs, salt, check, length and nonce."""
    if not data.startswith(MAGIC):
        raise InvalidInput("this is no export of a hub", kind="unsupported")
    if len(data) < _HEAD:
        raise Corrupt("the export was cut", length=len(data))
    if len(data) > LONGEST:
        raise InvalidInput("the file is too long for an export", kind="unsupported")
    at = len(MAGIC)
    version, kind, log_n, r, p = data[at : at + 5]
    if version != _VERSION:
        raise InvalidInput(f"the export is of version {version}", kind="unsupported", hint=_NEWER)
    salt, check = data[at + 5 : at + 37], data[at + 37 : at + 37 + _CHECK]
    rest = data[at + 37 + _CHECK : _HEAD]
    if kind == _PASSWORD:
        fits = 1 <= log_n <= 24 and 1 <= r <= _MOST_WORK and 1 <= p <= _MOST_WORK
        # scrypt itself wants n < 2^(16 r), which only an r of 1 can break.
        if not fits or (128 * r) << log_n > _MOST_MEMORY or (r * p) << log_n > _MOST_STEPS or log_n >= 16 * r:
            raise Corrupt("the export asks for more work than an export may")
    elif kind != _KEY or (log_n, r, p) != (0, 0, 0):
        raise Corrupt("the beginning of the export was altered")
    return kind, (log_n, r, p), salt, check, int.from_bytes(rest[:8]), rest[8:]


def _derive(secret: Secret, salt: bytes, costs: tuple[int, int, int]) -> tuple[bytes, bytes]:
    """The key and the check of a secret."""
    if isinstance(secret, str):
        log_n, r, p = costs
        first = Scrypt(salt=salt, length=32, n=1 << log_n, r=r, p=p).derive(secret.encode())
    else:
        first = secret.raw
    both = HKDF(algorithm=SHA256(), length=32 + _CHECK, salt=salt, info=_DOMAIN).derive(first)
    return both[:32], both[32:]
