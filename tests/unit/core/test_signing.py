"""Signed requests, without a network."""

from __future__ import annotations

import base64
from contextlib import nullcontext
from datetime import UTC, datetime
from hashlib import sha256
from types import SimpleNamespace

import pytest
from http_message_signatures import HTTPMessageSigner
from http_message_signatures.algorithms import ED25519
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core import keyring, nkeys, signing
from entrepot.core.errors import Denied, InvalidInput
from entrepot.core.signing import check_clock, sign_request, verify_request

KEY = keyring.derive_node_key(bytes(32), "O")
URL = "https://hub.example.org/v1/session"


def signed(method="POST", url=URL, body=b"{}", nonce="n" * 22, now=1_000_000.0):
    headers = {"Content-Type": "application/json"} if body else {}
    sign_request(method, url, headers, body, key=KEY, nonce=nonce, now=now)
    return headers


def test_the_signature_is_over_what_rfc_9421_says():
    """The base is built here by hand from the RFC; a second implementation would agree."""
    headers = signed()
    digest = base64.b64encode(sha256(b"{}").digest()).decode()
    assert headers["Content-Digest"] == f"sha-256=:{digest}:"
    name, _, parameters = headers["Signature-Input"].partition("=")
    base = "\n".join(
        [
            '"@method": POST',
            f'"@target-uri": {URL}',
            '"content-type": application/json',
            f'"content-digest": sha-256=:{digest}:',
            f'"@signature-params": {parameters}',
        ]
    )
    signature = base64.b64decode(headers["Signature"].removeprefix(f"{name}=:").removesuffix(":"))
    assert nkeys.verify(KEY.public, base.encode(), signature)
    assert parameters.startswith('("@method" "@target-uri" "content-type" "content-digest");created=1000000;')
    assert f'keyid="{KEY.public}"' in parameters
    assert parameters.endswith('tag="entrepot"')


def test_no_nonce_of_a_bus_is_ever_a_request():
    """What a NATS server may have signed is of another alphabet than the beginning of every signature
    base."""
    assert keyring.NONCE.fullmatch('"@method": GET') is None


def test_a_request_without_a_body_has_no_digest():
    """Method and target are what there is to sign."""
    headers = signed("GET", body=b"")
    assert set(headers) == {"Signature-Input", "Signature"}
    assert verify_request("GET", [URL], headers, b"", now=1_000_000).node == KEY.public


def test_names_of_fields_may_have_any_case():
    """Proxies change the case of names."""
    headers = {name.upper(): value for name, value in signed().items()}
    assert verify_request("POST", [URL], headers, b"{}", now=1_000_000).nonce == "n" * 22


@pytest.mark.parametrize("change", ["alg", "tag", "created", "keyid", "expires", "unknown", "no nonce", "bad nonce"])
def test_parameters_are_exactly_ours(change):
    """Each parameter is signed and none may be added, dropped or changed."""
    headers = signed()
    given = headers["Signature-Input"]
    headers["Signature-Input"] = {
        "alg": given.replace('alg="ed25519"', 'alg="hmac-sha256"'),
        "tag": given.replace('tag="entrepot"', 'tag="other"'),
        "created": given.replace("created=1000000", "created=1000001"),
        "keyid": given.replace(KEY.public, nkeys.SigningKey.generate(bytes(32)).public),
        "expires": given + ";expires=1000100",
        "unknown": given + ";more=1",
        "no nonce": given.replace(';nonce="' + "n" * 22 + '"', ""),
        "bad nonce": given.replace("n" * 22, "n"),
    }[change]
    with pytest.raises(Denied) as caught:
        verify_request("POST", [URL], headers, b"{}", now=1_000_000)
    assert caught.value.kind == "bad-signature"


@pytest.mark.parametrize(
    ("covered", "good"),
    [
        (("@method", "@target-uri", "content-type"), True),
        (("@method", "@target-uri"), False),
        (("@method", "content-type"), False),
        (("@target-uri", "content-type"), False),
        (("@path", "@method", "content-type"), False),
    ],
)
def test_all_that_matters_must_be_covered(covered, good):
    """A good signature over less (here by the library itself) is refused: what it leaves out could be
    changed."""
    headers = {"Content-Type": "application/json"}
    request = SimpleNamespace(method="POST", url=URL, headers=headers)
    signer = HTTPMessageSigner(signature_algorithm=ED25519)
    created = datetime.fromtimestamp(1_000_000, UTC)
    prepared = signer.prepare(
        request,
        key_id=KEY.public,
        created=created,
        nonce="n" * 22,
        tag="entrepot",
        covered_component_ids=covered,
        body=b"{}",
    )
    signer.apply(request, prepared, KEY.sign(prepared.signature_base))
    with nullcontext() if good else pytest.raises(Denied, check=lambda error: error.kind == "bad-signature"):
        verify_request("POST", [URL], headers, b"{}", now=1_000_000)


def test_a_key_of_another_kind_signs_nothing():
    """An account's or operator's key is no node's, whatever it signs."""
    key = nkeys.SigningKey(nkeys.KeyKind.ACCOUNT, bytes(32))
    headers: dict[str, str] = {}
    sign_request("GET", URL, headers, b"", key=key, nonce="n" * 22, now=1.0)
    with pytest.raises(Denied):
        verify_request("GET", [URL], headers, b"", now=1.0)


@given(
    st.dictionaries(
        st.sampled_from(["Signature", "Signature-Input", "Content-Digest", "Content-Type"]),
        st.text(max_size=300) | st.sampled_from(list(signed().values())),
    ),
    st.binary(max_size=20) | st.just(b"{}"),
)
def test_no_header_makes_anything_but_a_refusal(headers, body):
    """Whatever the fields hold, the answer is a Denied, or the one good request."""
    good = body == b"{}" and headers == signed()
    with nullcontext() if good else pytest.raises(Denied, check=lambda error: error.kind == "bad-signature"):
        verify_request("POST", [URL], headers, body, now=1_000_000)


@pytest.mark.parametrize("nonce", ["", "short", "x" * 65, "has a blank in it", 'quote"quote"quote'])
def test_a_nonce_has_a_form(nonce):
    """Too short to be random, or with anything that needs quoting: refused before it is sent."""
    with pytest.raises(InvalidInput):
        signed(nonce=nonce)


def test_what_cannot_be_signed_is_our_error():
    """A URL with a blank, a body without its type."""
    with pytest.raises(InvalidInput):
        signed(url="https://hub.example.org/a b")
    with pytest.raises(InvalidInput):
        sign_request("POST", URL, {}, b"{}", key=KEY, nonce="n" * 22, now=1.0)


@pytest.mark.parametrize(
    ("off", "message", "word"),
    [
        (61, "your clock is 1 minute off", "ahead"),
        (-240, "your clock is 4 minutes off", "behind"),
        (86400 * 365, "your clock is 365 days off", "ahead"),
        (-5400, "your clock is 2 hours off", "behind"),
    ],
)
def test_a_clock_that_is_off_is_told_how_far(off, message, word):
    """The sentence names the distance, the hint the direction, the data the hub's time."""
    with pytest.raises(Denied) as caught:
        check_clock(1_000_000 + off, 1_000_000)
    assert caught.value.kind == "clock-skew"
    assert caught.value.message == message
    assert word in (caught.value.hint or "")
    assert caught.value.data == {"hub_time": 1_000_000, "seconds": off}


def test_within_the_window_a_clock_is_right():
    """A minute to either side."""
    for off in (0, signing.WINDOW, -signing.WINDOW):
        check_clock(1_000_000 + off, 1_000_000)
