"""The worked examples of the documentation, for whoever writes a client: recomputed here by plain cryptography, from
what the pages say and not by the code that they describe, and then held against that code."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from entrepot.core.invite import Invite, join_proof
from entrepot.core.nkeys import KeyKind, SigningKey
from entrepot.core.signing import sign_request, verify_request

DOCS = Path(__file__).resolve().parents[3] / "docs"
HUB = "https://hub.example.org"
INVITE_ID, SECRET = bytes(range(16)), bytes(range(16, 32))
HUB_SEED, NODE_SEED = b"\x01" * 32, b"\x02" * 32
NOW = 1_700_000_000
MEMBER = f"{HUB}/v1/channels/demo/members/laptop"
JSON = "application/json"
BODY = b'{"rights":"request,provide"}'


def raw(seed: bytes) -> bytes:
    """The public key of a seed."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def key_text(prefix: int, public: bytes) -> str:
    """A public key as NKey text."""
    body = bytes([prefix]) + public
    return base64.b32encode(body + binascii.crc_hqx(body, 0).to_bytes(2, "little")).decode()


def invite_token() -> str:
    """What stands behind ``/j/``."""
    body = INVITE_ID + SECRET + raw(HUB_SEED)
    check = hashlib.sha256(b"entrepot.invite\0" + body).digest()[:4]
    return base64.urlsafe_b64encode(body + check).decode().rstrip("=")


def proof_key() -> bytes:
    """HKDF-SHA-256 for one block, as RFC 5869 has it."""
    extracted = hmac.digest(bytes(32), SECRET, "sha256")
    return hmac.digest(extracted, b"entrepot.invite-proof\0" + b"\x01", "sha256")


def invite_example() -> str:
    """The example of protocol.md."""
    hub, node = key_text(14 << 3, raw(HUB_SEED)), key_text(20 << 3, raw(NODE_SEED))
    mac = hmac.digest(proof_key(), b"entrepot.join\0" + node.encode() + hub.encode(), "sha256")
    lines = {
        "hub's seed": HUB_SEED.hex(),
        "hub's public key": raw(HUB_SEED).hex(),
        "hub's key as text": hub,
        "node's seed": NODE_SEED.hex(),
        "node's public key": raw(NODE_SEED).hex(),
        "node's key as text": node,
        "invite id": INVITE_ID.hex(),
        "secret": SECRET.hex(),
        "token": invite_token(),
        "proof key": proof_key().hex(),
        "mac": mac.hex(),
    }
    return "".join(f"{name + ':':<20}{value}\n" for name, value in lines.items())


def signed(method: str, nonce: str, body: bytes) -> tuple[str, str, str]:
    """Signature base, header lines, and the signature in base64, of a request as RFC 9421 has it."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    covered = {"@method": method, "@target-uri": MEMBER}
    if body:
        covered |= {"content-type": JSON, "content-digest": f"sha-256=:{digest}:"}
    key = key_text(20 << 3, raw(NODE_SEED))
    names = " ".join(f'"{name}"' for name in covered)
    parameters = f'({names});created={NOW};keyid="{key}";alg="ed25519";nonce="{nonce}";tag="entrepot"'
    base = "".join(f'"{name}": {value}\n' for name, value in covered.items()) + f'"@signature-params": {parameters}'
    signature = Ed25519PrivateKey.from_private_bytes(NODE_SEED).sign(base.encode())
    encoded = base64.b64encode(signature).decode()
    headers = [f"Content-Type: {JSON}", f"Content-Digest: {covered['content-digest']}"] if body else []
    headers += [f"Signature-Input: entrepot={parameters}", f"Signature: entrepot=:{encoded}:"]
    return base, "\n".join(headers), encoded


def request_example() -> str:
    """The example of api.md."""
    text = ""
    for method, nonce, body in (("PUT", "bm9uY2Ugb2Ygb25lIDE2", BODY), ("DELETE", "bm9uY2Ugb2YgdHdvIDE2", b"")):
        base, headers, _ = signed(method, nonce, body)
        path = MEMBER.removeprefix(HUB)
        text += f"# the signature base\n{base}\n\n# the request\n{method} {path} HTTP/1.1\nHost: hub.example.org\n"
        text += f"{headers}\n" + (f"Content-Length: {len(body)}\n\n{body.decode()}\n" if body else "") + "\n"
    return text.rstrip("\n") + "\n"


@pytest.mark.parametrize(("page", "example"), [("protocol.md", invite_example()), ("api.md", request_example())])
def test_the_pages_show_the_examples(page: str, example: str) -> None:
    """What stands in the page is what comes out when its rules are followed."""
    assert f"```text\n{example}```\n" in (DOCS / page).read_text("utf-8")


def test_invites_are_what_the_page_says() -> None:
    """The example's token is read as the page splits it, and its proof is the one that a hub expects."""
    invite = Invite.parse(f"{HUB}/j/{invite_token()}")
    assert (invite.id, invite.secret, invite.hub_key) == (INVITE_ID, SECRET, raw(HUB_SEED))
    node = SigningKey(KeyKind.USER, NODE_SEED).public
    assert f"{join_proof(SECRET, node, invite.hub_public).hex()}\n" in invite_example()
    assert f"{node}\n" in invite_example()
    assert f"{invite.hub_public}\n" in invite_example()


@pytest.mark.parametrize(("method", "body"), [("PUT", BODY), ("DELETE", b"")])
def test_signed_requests_are_what_the_page_says(method: str, body: bytes) -> None:
    """The hub takes the example's requests for the node's, and nodes of ours sign the same bytes."""
    nonce = "x" * 20
    _, told, encoded = signed(method, nonce, body)
    headers = dict(re.findall(r"^([A-Za-z-]+): (.*)$", told, re.MULTILINE))
    key = SigningKey(KeyKind.USER, NODE_SEED)
    who = verify_request(method, [MEMBER], headers, body, now=NOW + 5)
    assert (who.node, who.created, who.nonce) == (key.public, NOW, nonce)
    ours = {"Content-Type": JSON} if body else {}
    sign_request(method, MEMBER, ours, body, key=key, nonce=nonce, now=NOW)
    assert verify_request(method, [MEMBER], ours, body, now=NOW) == who
    assert encoded in ours["Signature"]
