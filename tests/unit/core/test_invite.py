"""Invites: the URL that lets a node join."""

from __future__ import annotations

import base64
import hmac
from contextlib import suppress
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import InvalidInput
from entrepot.core.invite import Invite, check_origin, is_loopback, join_mac, join_proof, proof_key, split_token

INVITE = Invite("https://hub.example.org", bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 64)))
TOKEN = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0-P"


def test_the_token_is_what_the_format_says():
    """id, secret, key and the beginning of a hash, in base64url without padding."""
    body = bytes(range(64))
    check = sha256(b"entrepot.invite\0" + body).digest()[:4]
    assert INVITE.token == base64.urlsafe_b64encode(body + check).decode().rstrip("=")
    assert INVITE.token.startswith(TOKEN)
    assert len(INVITE.token) == 91
    assert INVITE.join_url() == f"https://hub.example.org/j/{INVITE.token}"


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32))
def test_an_invite_reads_back(name, secret, key):
    """Every invite survives its URL."""
    invite = Invite("https://h:8443", name, secret, key)
    assert Invite.parse(f"  {invite.join_url()}\n") == invite


@given(st.integers(0, 90), st.characters(codec="ascii"))
def test_any_changed_character_is_noticed(place, character):
    """A typing error in the token is caught before anything is sent."""
    token = INVITE.token
    spoiled = token[:place] + character + token[place + 1 :]
    if spoiled == token:
        return
    with pytest.raises(InvalidInput) as caught:
        split_token(spoiled)
    assert caught.value.kind == "invalid-token"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://hub.example.org",
        "https://hub.example.org/j/",
        f"https://hub.example.org/j/{INVITE.token}/",
        f"https://hub.example.org/j/{INVITE.token}?a",
        f"https://hub.example.org/k/{INVITE.token}",
        f"https://hub.example.org/x/j/{INVITE.token}",
        f"https://me@hub.example.org/j/{INVITE.token}",
        f"http://hub.example.org/j/{INVITE.token}",
        f"ftp://hub.example.org/j/{INVITE.token}",
        f"/j/{INVITE.token}",
        f"https://[::1/j/{INVITE.token}",
        f"https://a:99999/j/{INVITE.token}",
        f"https://hub.example.org/j/{INVITE.token}" + " " * 10 + "x",
        "x" * 1000,
    ],
)
def test_what_is_no_invite_is_refused_without_repeating_it(text):
    """The error never holds the text: it may be a secret."""
    with pytest.raises(InvalidInput) as caught:
        Invite.parse(text)
    assert caught.value.kind == "invalid-token"
    assert INVITE.token not in f"{caught.value!r} {caught.value.hint} {caught.value.data}"


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    """No text makes anything but an invite or our error."""
    for attempt in (text, f"https://{text}/j/{INVITE.token}", f"https://h/j/{text}"):
        with suppress(InvalidInput):
            assert Invite.parse(attempt).join_url()


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://HUB.example.org/", "https://hub.example.org"),
        ("https://hub.example.org:443", "https://hub.example.org"),
        ("https://hub.example.org:8443", "https://hub.example.org:8443"),
        ("http://localhost:80", "http://localhost"),
        ("http://127.0.0.2:81", "http://127.0.0.2:81"),
        ("http://[0:0:0:0:0:0:0:1]:8080", "http://[::1]:8080"),
    ],
)
def test_an_origin_has_one_spelling(url, origin):
    """Case, default ports, slashes and long IPv6 addresses go."""
    assert check_origin(url) == origin
    assert check_origin(origin) == origin


def test_loopback_is_this_machine():
    """Only what cannot leave the machine counts."""
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")))
    assert not any(map(is_loopback, ("localhost.example.org", "10.0.0.1", "0.0.0.0", "::", "127.0.0.1.example.org")))


def test_the_proof_is_what_the_protocol_says():
    """HMAC under a key derived from the secret, over both public keys."""
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"entrepot.invite-proof\0").derive(b"s" * 16)
    proof = join_proof(b"s" * 16, "Unode", "Ohub")
    assert proof_key(b"s" * 16) == key
    assert proof == join_mac(key, "Unode", "Ohub") == hmac.digest(key, b"entrepot.join\0UnodeOhub", "sha256")


def test_no_secret_shows():
    """Printing an invite does not give it away."""
    assert repr(INVITE.secret) not in repr(INVITE)
    assert INVITE.token not in repr(INVITE)
    assert INVITE.hub_public.startswith("O")
