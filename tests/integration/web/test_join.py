"""Joining by an invite."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import pytest

from entrepot.adapters.hub_client import HubClient
from entrepot.core.errors import Denied, EntrepotError, InvalidInput
from entrepot.core.invite import Invite, join_proof


def ask(key, invite, hub_public, **changes):
    return {
        "invite": invite.id.hex(),
        "node": key.public,
        "mac": join_proof(invite.secret, key.public, hub_public).hex(),
        "name": "lab",
    } | changes


async def test_a_node_joins_with_the_rights_of_the_invite(hub):
    """The node becomes a member under the name it gives itself."""
    key, invite = hub.key(), await hub.invite(rights="request,provide:feeds")
    async with hub.client(key) as client:
        joined = await client.join(invite, "Grace's workstation")
        assert (joined.channel, joined.rights) == ("demo", "request:files,provide:feeds")
        assert joined.name == "Grace's workstation"
        assert (await client.session()).name == "Grace's workstation"
    assert (await hub.registry.invites("demo"))[0].used == 1


async def test_the_same_key_may_repeat_it_and_rename_itself(hub):
    """A join whose answer was lost can be sent again and uses the invite up once."""
    key, invite = hub.key(), await hub.invite()
    async with hub.client(key) as client:
        await client.join(invite, "old")
        joined = await client.join(invite, "new")
    assert joined.name == "new"
    assert (await hub.registry.invites("demo"))[0].used == 1


async def test_another_key_cannot_use_it_again(hub):
    """An invite for one lets one in, and ten that come at once are one too."""
    invite = await hub.invite()

    async def attempt():
        async with hub.client(hub.key()) as client:
            await client.join(invite, "lab")

    outcomes = await asyncio.gather(*(attempt() for _ in range(10)), return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 1
    assert {getattr(outcome, "kind", None) for outcome in outcomes} == {None, "bad-invite"}


async def test_an_expired_invite_lets_nobody_in(hub):
    """Neither a new node nor one that used it before."""
    invite = await hub.invite(life=60, uses=5)
    hub.clock.ahead = 61
    async with hub.client(hub.key()) as client:
        with pytest.raises(Denied) as caught:
            await client.join(invite, "lab")
    assert caught.value.kind == "bad-invite"


@pytest.mark.parametrize("wrong", ["secret", "id", "another node's proof"])
async def test_who_guesses_stays_outside(hub, http, wrong):
    """A wrong secret, an id nobody made and a proof for another key look all the same from outside."""
    key, invite = hub.key(), await hub.invite()
    body = ask(key, invite, hub.hub_public)
    if wrong == "secret":
        body = ask(key, replace(invite, secret=secrets.token_bytes(16)), hub.hub_public)
    elif wrong == "id":
        body = ask(key, replace(invite, id=secrets.token_bytes(16)), hub.hub_public)
    else:
        body["node"] = hub.key().public
    async with http.post(f"{hub.url}/v1/join", json=body) as response:
        assert response.status == 403
        error = (await response.json())["error"]
    assert error["kind"] == "bad-invite"
    assert error["message"] == "this invite does not let you in"
    assert (await hub.registry.invites("demo"))[0].used == 0
    assert await hub.registry.nodes() == []


async def test_an_invite_of_another_hub_is_not_even_sent(make_hub):
    """The client sees from the key in the invite that it is for another hub."""
    first, second = await make_hub(), await make_hub()
    await second.channel()
    invite = await second.invite()
    async with first.client(first.key()) as client:
        with pytest.raises(Denied) as caught:
            await client.join(invite, "lab")
    assert caught.value.kind == "bad-invite"


async def test_an_invite_where_another_hub_answers(make_hub):
    """A hub that took an address over is told apart before the invite is shown to it."""
    first, second = await make_hub(), await make_hub()
    await first.channel()
    invite = await first.invite()
    async with HubClient(second.url, first.key(), first.hub_public) as client:
        with pytest.raises(Denied, match="another hub answers there") as caught:
            await client.join(invite, "lab")
    assert caught.value.data["found"] == second.hub_public
    assert (await first.registry.invites("demo"))[0].used == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "x" * 65},
        {"name": " lab"},
        {"name": "a\nb"},
        {"name": "U" + "A" * 55},
        {"node": "U" + "A" * 55},
        {"node": "nobody"},
        {"mac": "00"},
        {"invite": "zz" * 16},
        {"more": 1},
        {"name": 7},
    ],
)
async def test_a_malformed_request_is_refused(hub, http, changes):
    """Every field is checked, unknown ones are refused, and the answer says what is wrong."""
    body = ask(hub.key(), await hub.invite(), hub.hub_public) | changes
    async with http.post(f"{hub.url}/v1/join", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["kind"] in {"invalid-message", "invalid-input", "invalid-key"}


async def test_the_page_explains_and_consumes_nothing(hub, http):
    """Whoever opens the URL reads the command that takes the invite up; looking costs nothing."""
    invite = await hub.invite()
    for _ in range(3):
        async with http.get(invite.join_url()) as response:
            text = await response.text()
            assert response.status == 200
            assert response.content_type == "text/plain"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert response.headers["Cache-Control"] == "no-store"
        assert f"entrepot join {invite.join_url()}" in text
    assert (await hub.registry.invites("demo"))[0].used == 0


async def test_the_page_knows_a_damaged_invite(hub, http):
    """A cut or altered token, or another hub's, is told as that."""
    invite = await hub.invite()
    other = replace(invite, hub_key=bytes(32))
    for url, kind in (
        (invite.join_url()[:-1], "invalid-token"),
        (invite.join_url()[:-1] + "!", "invalid-token"),
        (f"{hub.url}/j/{other.token}", "bad-invite"),
    ):
        async with http.get(url) as response:
            assert (await response.json())["error"]["kind"] == kind


async def test_a_revoked_member_cannot_come_back_by_its_old_invite(hub):
    """Revocation outlives the invite it came by; a newer invite lets the node in again."""
    key, invite = hub.key(), await hub.invite(uses=5)
    async with hub.client(key) as client:
        await client.join(invite, "lab")
        await hub.registry.revoke("demo", key.public, now=hub.clock(), actor="test")
        with pytest.raises(Denied):
            await client.join(invite, "lab")
        assert (await client.session()).channels == ()
        hub.clock.ahead = 1
        await client.join(await hub.invite(), "lab")
        assert [channel.name for channel in (await client.session()).channels] == ["demo"]


def test_an_invite_is_bound_to_its_form():
    """An http invite to another machine needs to be asked for."""
    invite = Invite("http://10.0.0.1:80", bytes(16), bytes(16), bytes(32))
    with pytest.raises(InvalidInput):
        Invite.parse(invite.join_url())
    assert Invite.parse(invite.join_url(), plain=True).secret == bytes(16)


async def test_no_secret_is_in_what_a_client_raises(hub):
    """The invite's secret does not show in errors or in what prints it."""
    invite = await hub.invite()
    async with hub.client(hub.key()) as client:
        with pytest.raises(EntrepotError) as caught:
            await client.join(replace(invite, id=bytes(16)), "lab")
    shown = repr(caught.value) + repr(caught.value.data) + repr(invite) + repr(client)
    assert invite.secret.hex() not in shown
    assert repr(invite.secret) not in shown
    assert invite.token not in shown
