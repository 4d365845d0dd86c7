"""Who the hub is on NATS: its keys, the accounts and permissions made from them, the server's configuration.

One operator, a system account (revocations and events) and one application account. Nodes get short-lived
user JWTs signed by a *scoped* key: the server takes their permissions from the key's template, filled with
the node's key and its tags, so it enforces by itself that a node names itself as the sender and stays in its
channels. A member who may request or read has the tag ``r:<channel>``, one who may provide has
``w:<channel>``.

Nodes have no JetStream API (consumers would inject across channels; JetStream is off besides), no permission
to publish responses and an inbox of their own. All of this is a pure function of one secret document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import msgspec

from entrepot.core.errors import InvalidInput
from entrepot.core.keyring import Credentials
from entrepot.core.nkeys import KEY_LENGTH, KeyKind, SigningKey
from entrepot.core.subjects import OFFER, OFFERS, PROVIDER_VERBS, READER_VERBS, check_channel, check_node
from entrepot_hub.core.jwt import encode

VERSION: Final = 1
READ_RIGHTS: Final = frozenset({"request", "read"})
PROVIDE_RIGHTS: Final = frozenset({"provide"})
#: Bytes of randomness that :meth:`NatsIdentity.create` wants.
RANDOM_LENGTH: Final = 9 * KEY_LENGTH
#: Names in an account JWT's list of revocations; older ones are merged into one for everybody (see
#: account_jwt).
MAX_REVOCATIONS: Final = 500
_EVERYBODY: Final = "*"
_CLIENTS: Final = ["STANDARD", "WEBSOCKET"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsLimits:
    """Limits that the accounts and the servers enforce."""

    payload: int = 65536  # bytes in one message
    subscriptions: int = 4096  # of one node
    all_subscriptions: int = 2_000_000  # of all nodes
    connections: int = 20_000  # of all nodes
    control_line: int = 65536  # bytes: 800 channels fit into a JWT
    pending: int = 16 << 20  # bytes that wait for one slow client
    write_deadline: int = 5  # seconds
    ping_interval: int = 30  # seconds
    log_in: int = 5  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The server's certificate chain and key, as paths that the server sees."""

    certificate: str
    key: str


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    operator: str
    operator_signing: str
    system_account: str
    system_signing: str
    account: str
    hub_signing: str
    node_signing: str
    hub_user: str
    system_user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsIdentity:
    """The keys of a hub on NATS. Secrets never show in ``repr``. All methods are pure; times are unix
    seconds.
    """

    operator: SigningKey
    operator_signing: SigningKey
    system_account: SigningKey
    system_signing: SigningKey
    account: SigningKey
    hub_signing: SigningKey  # plain: signs the hub's own users
    node_signing: SigningKey  # scoped: signs nodes
    hub_user: SigningKey
    system_user: SigningKey
    limits: NatsLimits = NatsLimits()

    # --- the secret document -------------------------------------------------------------------------------

    @classmethod
    def create(cls, random: bytes, limits: NatsLimits | None = None) -> NatsIdentity:
        """A new identity from :data:`RANDOM_LENGTH` bytes of a cryptographic source."""
        if len(random) != RANDOM_LENGTH:
            raise InvalidInput(f"an identity is made from {RANDOM_LENGTH} random bytes", kind="invalid-input")
        parts = [random[i : i + KEY_LENGTH] for i in range(0, RANDOM_LENGTH, KEY_LENGTH)]
        kinds = _KINDS.items()
        keys = {name: SigningKey(kind, part) for (name, kind), part in zip(kinds, parts, strict=True)}
        return cls(**keys, limits=limits or NatsLimits())

    def dump(self) -> bytes:
        """The secret document (JSON, UTF-8): keep it where only the hub reads it."""
        seeds = {name: getattr(self, name).seed for name in _KINDS}
        return json.dumps({"version": VERSION, **seeds}, indent=1).encode("utf-8")

    @classmethod
    def load(cls, document: bytes, limits: NatsLimits | None = None) -> NatsIdentity:
        """The identity of a document that :meth:`dump` made. Raises InvalidInput, never showing a secret."""
        try:
            parsed = msgspec.json.decode(document, type=_Document)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise InvalidInput("this is not the hub's NATS identity", kind="invalid-setting") from None
        if parsed.version != VERSION:
            raise InvalidInput(f"this NATS identity is of version {parsed.version}, not {VERSION}", kind="unsupported")
        keys: dict[str, SigningKey] = {}
        for name, kind in _KINDS.items():
            key = SigningKey.from_seed(getattr(parsed, name))
            if key.kind is not kind:
                raise InvalidInput(f"{name} in this NATS identity is of another kind", kind="invalid-key")
            keys[name] = key
        return cls(**keys, limits=limits or NatsLimits())

    @property
    def hub_public(self) -> str:
        """The hub's public name: the text of the operator's public key. Nodes derive their keys from it."""
        return self.operator.public

    # --- users ---------------------------------------------------------------------------------------------

    def user_jwt(
        self,
        node_public: str,
        channels: Iterable[tuple[str, Collection[str]]],
        now: float,
        life: float,
        *,
        after: int | None = None,
    ) -> str:
        """A node's JWT for ``life`` seconds: its channels and what it may do there, as tags; nothing else.

        A right counts by its first word: ``request``, ``request:files`` and ``read`` let it listen to
        readers' subjects, ``provide…`` to providers'. ``after`` is the time of the node's last revocation, if
        any: a JWT not issued later would be dead.
        """
        tags: list[str] = []
        for channel, rights in channels:
            check_channel(channel)
            words = {re.split(r"[^a-z]", right, maxsplit=1)[0] for right in rights}
            if words & READ_RIGHTS:
                tags.append(f"r:{channel}")
            if words & PROVIDE_RIGHTS:
                tags.append(f"w:{channel}")
        issued = int(now) if after is None else max(int(now), after + 1)
        claims = {"issuer_account": self.account.public, "tags": sorted(set(tags))}
        return encode(
            "user",
            check_node(node_public),
            "node",
            claims,
            signer=self.node_signing,
            issued=issued,
            expires=issued + max(1, int(life)),
        )

    def hub_credentials(self, now: float, life: float = 86_400) -> Credentials:
        """What the hub's own connection shows: it hears nodes and speaks to nodes, channels and inboxes."""
        permissions = {
            "pub": {"allow": ["c.>", "n.>", "_INBOX.>"]},
            "sub": {"allow": ["hub.>", f"_INBOX.{self.hub_user.public}.>"]},
        }
        return _user(self.hub_user, "hub", (self.account, self.hub_signing), permissions, (now, life))

    def system_credentials(self, now: float, life: float = 86_400) -> Credentials:
        """What the connection shows that pushes accounts, hears and asks who is connected, and ends connections."""
        account = self.account.public
        permissions = {
            "pub": {
                "allow": [
                    "$SYS.REQ.CLAIMS.UPDATE",
                    f"$SYS.REQ.ACCOUNT.{account}.CONNZ",
                    "$SYS.REQ.SERVER.*.CONNZ",
                    "$SYS.REQ.SERVER.*.KICK",
                ]
            },
            "sub": {"allow": [f"$SYS.ACCOUNT.{account}.*", f"_INBOX.{self.system_user.public}.>"]},
        }
        signers = (self.system_account, self.system_signing)
        return _user(self.system_user, "system", signers, permissions, (now, life))

    # --- accounts and operator -----------------------------------------------------------------------------

    def node_template(self) -> dict[str, Any]:
        """What a node may do: the template that the server fills with the node's key and tags."""
        me = "{{subject()}}"
        read, provide = "{{tag(r)}}", "{{tag(w)}}"
        return {
            "pub": {
                "allow": [
                    *(f"hub.{read}.{verb}.{me}" for verb in READER_VERBS),
                    *(f"hub.{provide}.{verb}.{me}" for verb in PROVIDER_VERBS),
                    f"hub.{provide}.{OFFER}.*.{me}",
                    f"hub.{provide}.{OFFERS}.*.{me}",
                ]
            },
            "sub": {"allow": [f"c.{read}.state.>", f"c.{provide}.seek", f"n.{me}.>", f"_INBOX.{me}.>"]},
            "subs": self.limits.subscriptions,
            "data": -1,
            "payload": self.limits.payload,
            "allowed_connection_types": _CLIENTS,
        }

    def account_jwt(self, now: float, revocations: Mapping[str, int] | None = None) -> str:
        """The application account: no JetStream, its limits, its signing keys, who is revoked since when.

        A revocation at second ``t`` kills the JWTs issued up to ``t``, and so is needed only as long as those
        live: callers drop older ones. More than :data:`MAX_REVOCATIONS` would not fit into a message; then
        the oldest become one revocation of everybody's JWTs up to their time, and honest nodes renew theirs.
        """
        listed = sorted((revocations or {}).items(), key=lambda item: item[1])
        revoked = dict(listed[-MAX_REVOCATIONS:])
        if len(listed) > MAX_REVOCATIONS:
            revoked[_EVERYBODY] = listed[-MAX_REVOCATIONS - 1][1]
        nats = {
            "limits": {
                "subs": self.limits.all_subscriptions,
                "data": -1,
                "payload": self.limits.payload,
                "imports": 0,
                "exports": 0,
                "wildcards": False,
                "conn": self.limits.connections,
                "leaf": 0,
                "mem_storage": 0,
                "disk_storage": 0,
                "disallow_bearer": True,
            },
            "signing_keys": [
                self.hub_signing.public,
                {
                    "kind": "user_scope",
                    "key": self.node_signing.public,
                    "role": "node",
                    "template": self.node_template(),
                },
            ],
            "revocations": revoked,
        }
        return encode("account", self.account.public, "entrepot", nats, signer=self.operator_signing, issued=int(now))

    def system_account_jwt(self, now: float) -> str:
        """The system account."""
        nats = {
            "limits": {
                "subs": -1,
                "data": -1,
                "payload": -1,
                "imports": -1,
                "exports": -1,
                "wildcards": True,
                "conn": -1,
                "leaf": 0,
            },
            "signing_keys": [self.system_signing.public],
        }
        return encode(
            "account", self.system_account.public, "system", nats, signer=self.operator_signing, issued=int(now)
        )

    def operator_jwt(self, now: float) -> str:
        """The operator, whose JWT every server of the hub is configured with."""
        nats = {
            "signing_keys": [self.operator_signing.public],
            "system_account": self.system_account.public,
        }
        return encode("operator", self.operator.public, "entrepot", nats, signer=self.operator, issued=int(now))

    # --- configuration of the server -----------------------------------------------------------------------

    def server_config(
        self,
        now: float,
        *,
        folder: str,
        listen: str = "127.0.0.1:-1",
        ports_folder: str | None = None,
        websocket: str | None = None,
        tls: TlsFiles | None = None,
        revocations: Mapping[str, int] | None = None,
    ) -> str:
        """The configuration text for a nats-server of 2.10 or later. It holds no secret.

        ``folder`` keeps the account JWTs, ``listen`` is ``host:port`` (port -1: any free one, told by a file
        in ``ports_folder``), ``websocket`` is another ``host:port`` for clients that may only use HTTP; it
        has no TLS of its own and belongs behind the hub's. Monitoring stays off.
        """
        limits = self.limits
        lines = [
            f"listen: {_quoted(listen)}",
            f"operator: {_quoted(self.operator_jwt(now))}",
            f"system_account: {_quoted(self.system_account.public)}",
            f'resolver {{ type: full, dir: {_quoted(folder)}, allow_delete: false, interval: "2m" }}',
            "resolver_preload {",
            f"  {self.system_account.public}: {_quoted(self.system_account_jwt(now))}",
            f"  {self.account.public}: {_quoted(self.account_jwt(now, revocations))}",
            "}",
            f"max_control_line: {limits.control_line}",
            f"max_payload: {limits.payload}",
            f"max_connections: {limits.connections + 16}",
            f"max_subscriptions: {max(limits.subscriptions, 65536)}",
            f"max_pending: {limits.pending}",
            f'write_deadline: "{limits.write_deadline}s"',
            f'ping_interval: "{limits.ping_interval}s"',
            "ping_max: 2",
            f"authorization {{ timeout: {limits.log_in} }}",
        ]
        if ports_folder is not None:
            lines.append(f"ports_file_dir: {_quoted(ports_folder)}")
        if websocket is not None:
            lines.append(f"websocket {{ listen: {_quoted(websocket)}, no_tls: true }}")
        if tls is not None:
            lines.append(
                f"tls {{ cert_file: {_quoted(tls.certificate)}, key_file: {_quoted(tls.key)}, "
                f'handshake_first: true, min_version: "1.3", timeout: {limits.log_in} }}'
            )
        return "\n".join(lines) + "\n"

    def image_config(self, now: float, *, tls: TlsFiles | None = None, websocket: bool = True) -> str:
        """The configuration for the stock ``nats`` image: mount it as ``/etc/nats/nats-server.conf``.

        Listens on 4222 of all of the container's interfaces (and on 8080 for WebSocket), keeps account JWTs
        in the volume ``/data``.
        """
        return self.server_config(
            now,
            folder="/data/jwt",
            listen="0.0.0.0:4222",
            websocket="0.0.0.0:8080" if websocket else None,
            tls=tls,
        )


_KINDS: Final[Mapping[str, KeyKind]] = {
    "operator": KeyKind.OPERATOR,
    "operator_signing": KeyKind.OPERATOR,
    "system_account": KeyKind.ACCOUNT,
    "system_signing": KeyKind.ACCOUNT,
    "account": KeyKind.ACCOUNT,
    "hub_signing": KeyKind.ACCOUNT,
    "node_signing": KeyKind.ACCOUNT,
    "hub_user": KeyKind.USER,
    "system_user": KeyKind.USER,
}
assert set(_KINDS) | {"limits"} == {field.name for field in fields(NatsIdentity)}


def _quoted(text: str) -> str:
    """A string of the server's configuration language; what could end it is refused."""
    if not text.isprintable() or '"' in text or "\\" in text:
        shown = repr(text[:100])
        raise InvalidInput(f"not usable in the server's configuration: {shown}", kind="invalid-setting")
    return f'"{text}"'


def _user(
    user: SigningKey,
    name: str,
    signers: tuple[SigningKey, SigningKey],
    permissions: Mapping[str, Any],
    span: tuple[float, float],
) -> Credentials:
    """One of the hub's own users: ``signers`` are its account and a signing key of it, ``span`` is now and
    life.
    """
    account, signer = signers
    issued, life = int(span[0]), max(1, int(span[1]))
    claims = {
        "issuer_account": account.public,
        "subs": -1,
        "data": -1,
        "payload": -1,
        "allowed_connection_types": _CLIENTS,
        **permissions,
    }
    jwt = encode("user", user.public, name, claims, signer=signer, issued=issued, expires=issued + life)
    return Credentials(jwt, user)
