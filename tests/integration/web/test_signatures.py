"""Who may call the hub: signatures, clocks, nonces, keys."""

from __future__ import annotations

import time

import pytest

from entrepot.core.errors import Denied


def kind(answer):
    return answer["error"]["kind"]


async def test_a_good_signature_is_taken(hub, http, signed):
    """A fresh request by a known key is answered."""
    key = await hub.member()
    status, answer = await signed(key, f"{hub.url}/v1/session").send(http)
    assert status == 200
    assert answer["node"] == key.public


async def test_every_public_address_counts_and_host_does_not(hub, http, signed):
    """The signature names one of the configured addresses, whatever the Host field says."""
    key = await hub.member()
    raw = signed(key, "http://localhost/v1/session")
    raw.url = f"{hub.url}/v1/session"
    assert (await raw.send(http))[0] == 200
    raw = signed(key, "http://evil.example/v1/session")
    raw.url = f"{hub.url}/v1/session"
    raw.headers["Host"] = "evil.example"
    status, answer = await raw.send(http)
    assert (status, kind(answer)) == (401, "bad-signature")


@pytest.mark.parametrize("spoil", ["body", "no body", "method", "path", "query", "nonce", "type", "digest", "node"])
async def test_a_request_that_was_changed_is_refused(hub, http, signed, spoil):
    """Nothing that the signature covers can be changed."""
    key = await hub.member()
    raw = signed(key, f"{hub.url}/v1/session", nonce="n" * 22)
    match spoil:
        case "body":
            raw.body = b"{ }"
        case "no body":
            raw.body = b""
        case "method":
            raw.method, raw.url = "PUT", f"{hub.url}/v1/channels/demo/members/x"
        case "path":
            raw.url = f"{hub.url}/v1/channels/demo/invites"
        case "query":
            raw.url += "?a=1"
        case "nonce":
            raw.headers["Signature-Input"] = raw.headers["Signature-Input"].replace("n" * 22, "m" * 22)
        case "type":
            raw.headers["Content-Type"] = "application/json; charset=utf-8"
        case "digest":
            del raw.headers["Content-Digest"]
        case "node":
            other = await hub.member(name="other")
            raw.headers["Signature-Input"] = raw.headers["Signature-Input"].replace(key.public, other.public)
    status, answer = await raw.send(http)
    assert (status, kind(answer)) == (401, "bad-signature")


async def test_a_body_that_the_signature_leaves_out_is_refused(hub, http, signed):
    """A signature made over no body does not let one in."""
    key = await hub.member()
    raw = signed(key, f"{hub.url}/v1/session", body=b"")
    raw.body = b"{}"
    raw.headers["Content-Type"] = "application/json"
    status, answer = await raw.send(http)
    assert (status, kind(answer)) == (401, "bad-signature")


async def test_an_unsigned_request_is_refused(hub, http):
    """No signature, no answer."""
    async with http.post(f"{hub.url}/v1/session", json={}) as response:
        assert response.status == 401
        assert kind(await response.json()) == "bad-signature"


@pytest.mark.parametrize(("age", "words"), [(240, "4 minutes"), (-240, "4 minutes"), (7200, "2 hours")])
async def test_a_clock_that_is_off_is_named(hub, http, signed, age, words):
    """A request too old or from the future is refused with how far the clock is off, and the hub's time."""
    key = await hub.member()
    status, answer = await signed(key, f"{hub.url}/v1/session", now=time.time() - age).send(http)
    assert (status, kind(answer)) == (401, "clock-skew")
    assert answer["error"]["message"] == f"your clock is {words} off"
    assert abs(answer["error"]["data"]["hub_time"] - time.time()) < 30


async def test_within_the_window_age_does_not_matter(hub, http, signed):
    """Half a minute to either side is taken."""
    key = await hub.member()
    for age in (30, -30):
        assert (await signed(key, f"{hub.url}/v1/session", now=time.time() - age).send(http))[0] == 200


async def test_a_repeated_request_is_refused(hub, http, signed):
    """The same signed POST is taken once; a GET may be repeated."""
    key = await hub.member()
    raw = signed(key, f"{hub.url}/v1/session")
    assert (await raw.send(http))[0] == 200
    status, answer = await raw.send(http)
    assert (status, kind(answer)) == (401, "replayed")
    raw = signed(key, f"{hub.url}/v1/channels/demo/streams/ff{'0' * 62}", method="GET", body=b"")
    assert [(await raw.send(http))[0] for _ in range(2)] == [404, 404]


async def test_a_replay_is_refused_for_as_long_as_its_age_would_let_it_in(hub, http, signed):
    """A request made by a clock that is ahead is still known when the hub's clock has caught up."""
    key = await hub.member()
    raw = signed(key, f"{hub.url}/v1/session", now=time.time() + 50)
    assert (await raw.send(http))[0] == 200
    hub.clock.ahead = 105.0
    # Another request, so that old nonces are cleared away.
    assert (await signed(key, f"{hub.url}/v1/session", now=hub.clock()).send(http))[0] == 200
    status, answer = await raw.send(http)
    assert (status, kind(answer)) == (401, "replayed")


async def test_the_same_nonce_of_two_nodes_is_no_replay(hub, http, signed):
    """Nonces are each node's own."""
    for name in ("one", "two"):
        key = await hub.member(name=name)
        assert (await signed(key, f"{hub.url}/v1/session", nonce="x" * 22).send(http))[0] == 200


async def test_an_unknown_key_is_refused(hub, http, signed):
    """A good signature by a stranger opens nothing."""
    status, answer = await signed(hub.key(), f"{hub.url}/v1/session").send(http)
    assert (status, kind(answer)) == (403, "denied")
    assert "Join" in answer["error"]["hint"]


async def test_a_suspended_node_is_refused_and_told(hub, http, signed):
    """A suspension holds at once, and its lifting too."""
    key = await hub.member()
    await hub.registry.suspend(key.public, now=hub.clock(), actor="test")
    status, answer = await signed(key, f"{hub.url}/v1/session").send(http)
    assert (status, kind(answer)) == (403, "suspended")
    await hub.registry.resume(key.public, now=hub.clock(), actor="test")
    assert (await signed(key, f"{hub.url}/v1/session").send(http))[0] == 200


async def test_a_request_to_one_hub_cannot_be_relayed_to_another(make_hub, http, signed):
    """Even one that knows the same key refuses a request that was signed for another address."""
    first, second = await make_hub(), await make_hub()
    key = first.key()
    for served in (first, second):
        await served.registry.add_node(key.public, "lab", now=time.time())
    raw = signed(key, f"{first.url}/v1/session")
    raw.url = f"{second.url}/v1/session"
    status, answer = await raw.send(http)
    assert (status, kind(answer)) == (401, "bad-signature")
    raw.url = f"{first.url}/v1/session"
    assert (await raw.send(http))[0] == 200


async def test_the_client_names_a_wrong_clock_itself(hub):
    """A client whose clock is off says how far, in the hub's words, and knows the difference."""
    key = await hub.member()
    async with hub.client(key, clock=lambda: time.time() - 240) as client:
        with pytest.raises(Denied, match="your clock is 4 minutes off") as caught:
            await client.session()
        assert caught.value.kind == "clock-skew"
        assert client.clock_is_off
        assert client.clock_offset == pytest.approx(240, abs=20)
    async with hub.client(key) as client:
        await client.session()
        assert not client.clock_is_off


async def test_two_signatures_are_one_too_many(hub, http, signed):
    """A request with a second signature under our tag is refused, good or not."""
    key = await hub.member()
    raw, other = signed(key, f"{hub.url}/v1/session"), signed(key, f"{hub.url}/v1/session")
    for name in ("Signature-Input", "Signature"):
        raw.headers[name] += ", b" + other.headers[name][len("entrepot") :]
    status, answer = await raw.send(http)
    assert (status, kind(answer)) == (401, "bad-signature")
