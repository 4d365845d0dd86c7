"""NATS JWTs and the hub's NATS identity."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import Denied, EntrepotError, InvalidInput
from entrepot.core.keyring import Credentials
from entrepot.core.nkeys import KeyKind, SigningKey
from entrepot_hub.core.jwt import decode, encode
from entrepot_hub.core.nats_identity import MAX_REVOCATIONS, RANDOM_LENGTH, NatsIdentity

ACCOUNT = SigningKey.generate(bytes(range(32)), KeyKind.ACCOUNT)
USER = SigningKey.generate(bytes(range(1, 33)))
IDENTITY = NatsIdentity.create(bytes(i % 251 for i in range(RANDOM_LENGTH)))
NOW = 1_800_000_000.5


def token(**nats: object) -> str:
    return encode("user", USER.public, "node", nats, signer=ACCOUNT, issued=1000, expires=2000)


def test_claims_round_trip() -> None:
    """What was encoded is decoded, and an equal call gives an equal token."""
    claims = decode(token(tags=["r:demo"]), "user")
    assert (claims.subject, claims.issuer, claims.name) == (USER.public, ACCOUNT.public, "node")
    assert (claims.issued, claims.expires) == (1000, 2000)
    assert claims.nats["tags"] == ["r:demo"]
    assert token(tags=["r:demo"]) == token(tags=["r:demo"])


def test_only_the_right_kind_signs() -> None:
    """A user signs nothing, an account is not made by an account."""
    with pytest.raises(InvalidInput):
        encode("user", USER.public, "x", {}, signer=USER, issued=1)
    with pytest.raises(InvalidInput):
        encode("account", ACCOUNT.public, "x", {}, signer=ACCOUNT, issued=1)
    with pytest.raises(InvalidInput):
        encode("user", ACCOUNT.public, "x", {}, signer=ACCOUNT, issued=1)


def test_a_changed_claim_is_noticed() -> None:
    """Claims that were not signed are Denied."""
    head, body, signature = token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    claims["exp"] = 9_999_999_999
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    with pytest.raises(Denied) as caught:
        decode(f"{head}.{forged}.{signature}", "user")
    assert caught.value.kind == "bad-signature"


def test_another_type_is_refused() -> None:
    """A user's token is no account's token."""
    with pytest.raises(InvalidInput):
        decode(token(), "account")


@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,80}\.[A-Za-z0-9_-]{0,90}"))
def test_no_other_text_is_decoded(text: str) -> None:
    """Arbitrary text raises one of our errors and nothing else."""
    with pytest.raises(EntrepotError):
        decode(text, "user")


@given(st.data())
def test_a_damaged_token_is_refused(data: st.DataObject) -> None:
    """A token with any one character replaced or missing is refused."""
    good = token()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + data.draw(st.sampled_from(["", "A", "B", ".", "é"])) + good[at + 1 :]
    if bad != good:
        with pytest.raises(EntrepotError):
            decode(bad, "user")


def test_the_identity_round_trips_without_showing_secrets() -> None:
    """The secret document restores the identity; repr shows no seed."""
    assert NatsIdentity.load(IDENTITY.dump()) == IDENTITY
    assert IDENTITY.operator.seed not in repr(IDENTITY)
    assert IDENTITY.hub_public == IDENTITY.operator.public


@pytest.mark.parametrize("document", [b"", b"{}", b"\xff", b"[1]", b'{"version": 1}'])
def test_a_damaged_identity_is_refused(document: bytes) -> None:
    """What is no identity is refused with InvalidInput."""
    with pytest.raises(InvalidInput):
        NatsIdentity.load(document)


def test_a_key_of_another_kind_in_the_document_is_refused() -> None:
    """Keys in the document cannot be swapped for keys of another kind."""
    document = json.loads(IDENTITY.dump())
    document["account"] = document["hub_user"]
    with pytest.raises(InvalidInput):
        NatsIdentity.load(json.dumps(document).encode())


def test_rights_become_tags_and_nothing_else() -> None:
    """Request and read give the reader's tag, provide the provider's, owner none; permissions stay
    outside.
    """
    channels = [
        ("a", ["request:files"]),
        ("b", ["read"]),
        ("c", ["provide:feeds"]),
        ("d", ["owner"]),
        ("e", ["request", "provide"]),
    ]
    claims = decode(IDENTITY.user_jwt(USER.public, channels, NOW, 60), "user")
    assert claims.nats["tags"] == ["r:a", "r:b", "r:e", "w:c", "w:e"]
    assert set(claims.nats) == {"issuer_account", "tags", "type", "version"}
    assert (claims.issued, claims.expires) == (1_800_000_000, 1_800_000_060)
    assert claims.issuer == IDENTITY.node_signing.public


@pytest.mark.parametrize("channel", ["*", ">", "a.b", "", "A", "a b", "x" * 33])
def test_a_channel_name_never_becomes_a_wildcard(channel: str) -> None:
    """A tag with anything but a channel's name is refused."""
    with pytest.raises(InvalidInput):
        IDENTITY.user_jwt(USER.public, [(channel, ["read"])], NOW, 60)


def test_a_node_let_in_again_gets_a_later_jwt() -> None:
    """The JWT is issued after the revocation, however fast the node returned."""
    jwt = IDENTITY.user_jwt(USER.public, [], NOW, 60, after=int(NOW))
    assert Credentials(jwt, USER).times() == (1_800_000_001, 1_800_000_061)


def test_many_revocations_fit_into_one_message() -> None:
    """Beyond the limit the oldest become one revocation of everybody up to their time."""
    many = {SigningKey.generate(i.to_bytes(32, "big")).public: 1000 + i for i in range(1, MAX_REVOCATIONS + 11)}
    jwt = IDENTITY.account_jwt(NOW, many)
    revoked = decode(jwt, "account").nats["revocations"]
    assert len(jwt) <= 65536
    assert len(revoked) == MAX_REVOCATIONS + 1
    assert revoked["*"] == 1010
    assert all(revoked.get(node, revoked["*"]) >= at for node, at in many.items())


def test_the_application_account_has_no_jetstream_and_bounds() -> None:
    """Neither memory nor disk for JetStream; payload and connections are bounded; no imports, exports or
    leaves.
    """
    limits = decode(IDENTITY.account_jwt(NOW), "account").nats["limits"]
    assert (limits["mem_storage"], limits["disk_storage"], limits["leaf"]) == (0, 0, 0)
    assert (limits["imports"], limits["exports"], limits["payload"]) == (0, 0, 65536)
    assert limits["conn"] > 0


@pytest.mark.parametrize("folder", ['a"b', "a\nb", "a\\b"])
def test_a_path_cannot_break_out_of_the_configuration(folder: str) -> None:
    """Quotes, backslashes and control characters in a path are refused."""
    with pytest.raises(InvalidInput):
        IDENTITY.server_config(NOW, folder=folder)
