"""NATS keys as text, keys derived for hubs and feeds, and what a server may have signed."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import InvalidInput
from entrepot.core.keyring import Credentials, derive_feed_key, derive_node_key, sign_nonce
from entrepot.core.nkeys import (
    KeyKind,
    SigningKey,
    decode_public,
    decode_seed,
    encode_public,
    encode_seed,
    verify,
)

SEED = bytes(range(32))
NODE_KEY = "UAR5HUDV5U5NIBK3PN6WKX2JYKALK4UIU2AZ5P5DZDYRDBSZW6673MSU"
FEED_KEY = "UBYLSMHRSQ7KGKRPSLP5AAJ7FO5STVFFQS5X5PEFGOGWUC3Q7B7DFS3L"
KINDS = st.sampled_from(list(KeyKind))
SECRETS = st.binary(min_size=32, max_size=32)


def test_the_example_of_the_nats_documentation() -> None:
    """Seed and public key printed in the NATS documentation belong together here too."""
    key = SigningKey.from_seed("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY")
    assert key.public == "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
    assert key.kind is KeyKind.USER


@given(KINDS, SECRETS)
def test_texts_round_trip(kind: KeyKind, secret: bytes) -> None:
    """Seeds and public keys come back from their text, with their kind and its letter."""
    key = SigningKey.generate(secret, kind)
    assert decode_seed(key.seed) == (kind, secret)
    assert SigningKey.from_seed(key.seed) == key
    assert decode_public(key.public, kind) == (kind, key.public_key)
    letter = {KeyKind.USER: "U", KeyKind.ACCOUNT: "A", KeyKind.OPERATOR: "O"}[kind]
    assert key.public.startswith(letter)
    assert key.seed.startswith("S" + letter)
    assert pickle.loads(pickle.dumps(key)) == key


@given(KINDS, SECRETS, st.integers(0, 55), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567=aé "))
def test_a_changed_character_is_noticed(kind: KeyKind, key: bytes, at: int, letter: str) -> None:
    """A public key's text with one other character is refused."""
    text = encode_public(kind, key)
    changed = text[:at] + letter + text[at + 1 :]
    if changed == text:
        return
    with pytest.raises(InvalidInput) as caught:
        decode_public(changed)
    assert caught.value.kind == "invalid-key"


@given(st.text(max_size=70))
def test_no_text_but_a_key_is_decoded(text: str) -> None:
    """Any other text raises InvalidInput and nothing else."""
    for decode in (decode_public, decode_seed):
        with pytest.raises(InvalidInput):
            decode(text)


def test_another_kind_is_refused() -> None:
    """A user's key is no account's key, a public key no seed."""
    key = SigningKey.generate(SEED)
    with pytest.raises(InvalidInput):
        decode_public(key.public, KeyKind.ACCOUNT)
    with pytest.raises(InvalidInput):
        decode_seed(key.public)
    with pytest.raises(InvalidInput):
        SigningKey.generate(b"short")


def test_secrets_do_not_show() -> None:
    """Neither repr nor an error repeats a seed or a JWT."""
    key = SigningKey.generate(SEED)
    shown = repr(key) + repr(Credentials("a-jwt", key))
    assert key.seed not in shown
    assert "a-jwt" not in shown
    assert repr(SEED)[2:-1] not in shown
    broken = encode_seed(KeyKind.USER, SEED)[:-1] + "!"
    with pytest.raises(InvalidInput) as caught:
        decode_seed(broken)
    assert broken[:20] not in str(caught.value)


def test_signatures_hold_for_their_key_and_message_only() -> None:
    """Verify says yes to the signed bytes by the signing key, no otherwise."""
    key, other = SigningKey.generate(SEED), SigningKey.generate(bytes(32))
    signature = key.sign(b"entrepot.test\0data")
    assert verify(key.public, b"entrepot.test\0data", signature)
    assert not verify(other.public, b"entrepot.test\0data", signature)
    assert not verify(key.public, b"entrepot.test\0other", signature)
    assert not verify(key.public, b"entrepot.test\0data", b"short")


def test_derived_keys_differ_by_hub_and_feed() -> None:
    """One seed gives another key for each hub and each feed, and always the same one."""
    keys = [
        derive_node_key(SEED, "HUBA"),
        derive_node_key(SEED, "HUBB"),
        derive_feed_key(SEED, "HUBA"),
        derive_feed_key(SEED, "log"),
        derive_node_key(bytes(32), "HUBA"),
    ]
    assert len({key.public for key in keys}) == len(keys)
    assert derive_node_key(SEED, "HUBA") == keys[0]


def test_derived_keys_are_pinned() -> None:
    """The derivation never changes: nodes would lose their memberships and feeds their owners."""
    assert derive_node_key(SEED, "HUB").public == NODE_KEY
    assert derive_feed_key(SEED, "log").public == FEED_KEY


@pytest.mark.parametrize("hub", ["", "a b", "x" * 129, "hub\0", "hüb"])
def test_a_malformed_hub_key_is_refused(hub: str) -> None:
    """What is no hub's key derives nothing."""
    with pytest.raises(InvalidInput):
        derive_node_key(SEED, hub)


@pytest.mark.parametrize("name", ["", "x" * 1025])
def test_a_malformed_feed_name_is_refused(name: str) -> None:
    """A feed's name is neither empty nor endless."""
    with pytest.raises(InvalidInput):
        derive_feed_key(SEED, name)


def test_a_nonce_is_signed() -> None:
    """A NATS nonce gets the key's signature."""
    key = SigningKey.generate(SEED)
    assert verify(key.public, b"PXoWU7zWAMt75FY", sign_nonce(key, "PXoWU7zWAMt75FY"))


@pytest.mark.parametrize(
    "nonce",
    [
        "",
        "short",
        "x" * 65,
        "entrepot.node\0abcdef",
        '"@method": POST\n"@target-uri": x',
        "abcdefghijk\n",
        "abcdefghijké",
    ],
)
def test_what_is_no_nonce_is_not_signed(nonce: str) -> None:
    """A server that asks for the signature of anything else gets none."""
    with pytest.raises(InvalidInput):
        sign_nonce(SigningKey.generate(SEED), nonce)


@pytest.mark.parametrize("jwt", ["", "a.b.c", "a", "a.e30.c", "a.W10.c", "a.eyJpYXQiOiIxIn0.c", "a." + "W" * 70000])
def test_times_of_no_jwt(jwt: str) -> None:
    """Reading the times of what is no JWT raises InvalidInput."""
    with pytest.raises(InvalidInput):
        Credentials(jwt, SigningKey.generate(SEED)).times()
