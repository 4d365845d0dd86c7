"""What a node is told: its session, its channels, a stream; and what owners may do from anywhere."""

from __future__ import annotations

import time

import aiohttp
import pytest

from entrepot.core.errors import Denied, EntrepotError, NotFound
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock
from entrepot_hub.core.jwt import decode
from entrepot_hub.core.ledger import WantOrder

OPENING = Opening(5, bytes(32))


async def test_a_session_holds_all_that_a_node_needs(hub):
    """NATS login, servers, inbox, and each channel with its lock, rights and quota."""
    await hub.channel("other")
    key = await hub.member(rights="request,provide:feeds")
    async with hub.client(key) as client:
        session = await client.session()
    assert (session.hub, session.node, session.name) == (hub.hub_public, key.public, "lab")
    assert session.nats == ("nats://127.0.0.1:4222",)
    assert session.inbox == f"_INBOX.{key.public}"
    assert session.instance == "00112233aabbccdd"
    assert abs(session.time - time.time()) < 30
    assert session.jwt_expires == pytest.approx(session.time + 3600)
    [channel] = session.channels
    assert channel.name == "demo"
    assert channel.rights == "request:files,provide:feeds"
    lock = SchemaLock.parse(channel.lock)
    assert (lock.hex, channel.lock_id, lock.channel) == (channel.lock_id, lock.hex, "demo")
    assert channel.quota == 10 << 30
    assert session.jwt not in repr(session)


@pytest.mark.parametrize(
    ("rights", "tags"),
    [
        ("request", ["r:demo"]),
        ("provide", ["w:demo"]),
        ("request,provide", ["r:demo", "w:demo"]),
        ("read", ["r:demo"]),
        ("request:feeds", ["r:demo"]),
        ("owner", ["r:demo", "w:demo"]),
        ("keeper", []),
    ],
)
async def test_the_login_carries_the_rights_and_no_more(hub, rights, tags):
    """The JWT is signed by the scoped key, names the node, expires, and has one tag for each way of
    speaking."""
    key = await hub.member(rights=rights)
    async with hub.client(key) as client:
        session = await client.session()
    claims = decode(session.jwt, "user")
    assert claims.subject == key.public
    assert claims.issuer == hub.identity.node_signing.public
    assert sorted(claims.nats.get("tags", [])) == tags
    assert claims.expires == pytest.approx(session.jwt_expires, abs=2)


async def test_after_a_revocation_the_login_is_younger_than_it(hub):
    """A JWT issued in the second of the revocation would be dead, so the next one says a later second."""
    key = await hub.member()
    moment = int(hub.clock()) + 1
    hub.heard.revocations[key.public] = moment
    async with hub.client(key) as client:
        assert decode((await client.session()).jwt, "user").issued == moment + 1


async def test_a_member_without_channels_gets_an_empty_session(hub):
    """A known node without rights can still ask, and learns that it has none."""
    key = hub.key()
    await hub.registry.add_node(key.public, "lab", now=hub.clock())
    async with hub.client(key) as client:
        assert (await client.session()).channels == ()


async def test_a_session_notes_when_the_node_was_seen(hub):
    """The admin sees who came when."""
    key = await hub.member()
    async with hub.client(key) as client:
        await client.session()
    seen = (await hub.registry.node(key.public)).seen_at
    assert seen == pytest.approx(hub.clock(), abs=30)


async def test_the_hub_names_itself_to_anybody(hub):
    """Key, version and clock need no signature."""
    async with hub.client(hub.key()) as client:
        info = await client.hub()
    assert info.hub == hub.hub_public
    assert abs(info.time - time.time()) < 30


async def test_another_hub_at_the_same_address_is_refused(hub):
    """A client that joined one hub does not talk to another one that took its address."""
    from entrepot.adapters.hub_client import HubClient
    from entrepot.core.nkeys import KeyKind, SigningKey

    other = SigningKey(KeyKind.OPERATOR, bytes(32)).public
    async with HubClient(hub.url, hub.key(), other) as client:
        with pytest.raises(Denied, match="another hub answers") as caught:
            await client.hub()
    assert caught.value.data["found"] == hub.hub_public


async def test_a_stream_shows_holders_and_wants(hub):
    """Opening, who holds it and is online, what is in the bucket, how many wait."""
    stream = OPENING.stream_id()
    reader, holder = await hub.member(), await hub.member(name="store")
    now = hub.clock()
    await hub.database.call(hub.ledger.hold, "demo", [(stream.raw, OPENING)], holder.public, now)
    lock = (await hub.registry.channel("demo")).lock.id
    order = WantOrder("demo", lock, stream.raw, reader.public, ((0, 0),), 1, now + 60)
    await hub.database.call(hub.ledger.want, order, [0], now + 60, now)
    hub.heard.nodes_online.add(holder.public)
    async with hub.client(reader) as client:
        info = await client.stream_info("demo", stream)
    assert Opening.decode(bytes.fromhex(info.opening)) == OPENING
    [found] = info.holders
    assert (found.name, found.online) == ("store", True)
    assert found.last_seen == pytest.approx(now)
    assert (info.objects, info.bytes, info.wanted_by) == (0, 0, 1)


async def test_an_unknown_stream_and_an_unknown_channel_are_told_apart(hub):
    """Each has its own error; a channel that one is not in looks like none."""
    await hub.channel("secret")
    key = await hub.member()
    stream = StreamId(b"\xff" + bytes(31))
    async with hub.client(key) as client:
        for channel, kind in (("demo", "no-such-stream"), ("secret", "no-such-channel"), ("none", "no-such-channel")):
            with pytest.raises(NotFound) as caught:
                await client.stream_info(channel, stream)
            assert caught.value.kind == kind


async def test_a_member_that_may_neither_read_nor_provide_learns_nothing(hub):
    """The class alone (keeper) is no right to look."""
    key = await hub.member(rights="keeper")
    async with hub.client(key) as client:
        with pytest.raises(Denied) as caught:
            await client.stream_info("demo", StreamId(b"\xff" + bytes(31)))
    assert caught.value.kind == "no-right"


async def test_a_malformed_stream_is_refused(hub, http, signed):
    """Ids are strict: 64 lower-case digits."""
    key = await hub.member()
    url = f"{hub.url}/v1/channels/demo/streams/{'FF' * 32}"
    status, answer = await signed(key, url, method="GET", body=b"").send(http)
    assert (status, answer["error"]["kind"]) == (400, "invalid-id")


async def test_an_owner_invites_grants_and_revokes_from_anywhere(hub):
    """The operations of the admin's socket, for one's own channel; each is in the audit log under the owner's
    key."""
    owner, member = await hub.member(rights="owner", name="owner"), await hub.member(name="member")
    async with hub.client(owner) as client:
        made = await client.create_invite("demo", uses=2, life=60, rights="read")
        assert made.invite.rights == "read"
        assert (await client.grant("demo", "member", "read")).rights == "read"
        assert hub.heard.revoked == [(member.public, "demo")]
        revoked = await client.revoke("demo", member.public)
        assert not revoked.active
        detail = await client.channel("demo")
    assert {m.name: m.active for m in detail.members} == {"owner": True, "member": False}
    assert [i.id for i in detail.invites] == [made.invite.id]
    assert hub.heard.revoked == [(member.public, "demo")] * 2
    log = await hub.registry.audit_log()
    assert [entry.action for entry in log if entry.actor == owner.public] == [
        "invite.create",
        "member.grant",
        "member.revoke",
    ]


async def test_who_is_no_owner_changes_nothing(hub):
    """A plain member, a stranger to the channel, and an owner of another channel are refused."""
    await hub.channel("other")
    member = await hub.member()
    foreign = await hub.member(channel="other", rights="owner", name="foreign")
    for key, kind in ((member, "no-right"), (foreign, "no-such-channel")):
        async with hub.client(key) as client:
            for call in (
                client.channel("demo"),
                client.create_invite("demo"),
                client.grant("demo", member.public, "owner"),
                client.revoke("demo", member.public),
            ):
                with pytest.raises(EntrepotError) as caught:
                    await call
                assert caught.value.kind == kind
    assert await hub.registry.invites("demo") == []


async def test_an_owner_learns_of_no_nodes_outside_its_channel(hub):
    """Rights go to members, present or past; another node's name opens nothing."""
    await hub.channel("other")
    owner = await hub.member(rights="owner", name="owner")
    stranger = await hub.member(channel="other", name="stranger")
    async with hub.client(owner) as client:
        for text in ("stranger", stranger.public):
            with pytest.raises(NotFound) as caught:
                await client.grant("demo", text, "read")
            assert caught.value.kind == "no-such-node"


async def test_names_with_odd_characters_reach_the_hub(hub):
    """A node's name may hold slashes, percent signs and letters of any script."""
    owner = await hub.member(rights="owner", name="owner")
    for name in ("a/b", "100%", "Ωmega ✓", "a?b#c", ".."):
        await hub.member(name=name)
        async with hub.client(owner) as client:
            assert (await client.grant("demo", name, "read")).name == name


async def test_answers_carry_security_headers(hub, http: aiohttp.ClientSession):
    """Nothing is sniffed, framed, cached or referred to; the server does not tell what it is made of."""
    for path in ("/v1/hub", "/healthz", "/nothing"):
        async with http.get(hub.url + path) as response:
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Server"] == "entrepot"


@pytest.mark.parametrize(
    ("public", "forwarded", "proves"),
    [(True, None, True), (True, "192.0.2.1", False), (False, "192.0.2.1", True)],
)
async def test_localhost_is_proved_to_this_machine_alone(make_hub, http, public, forwarded, proves):
    """A hub with a public address signs for its loopback one only where a program here asks: at a stranger's machine
    that address is another program, which would pass the question on. For the public address it signs to everybody."""
    hub = await make_hub(public=("https://hub.example.org",) if public else ())
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}

    async def proof(address):
        query = {"challenge": "0" * 32, "address": address}
        async with http.get(f"{hub.url}/v1/hub", params=query, headers=headers) as response:
            assert response.status == 200
            return (await response.json())["proof"]

    for address in (hub.url, "http://localhost"):
        assert bool(await proof(address)) is proves
    assert bool(await proof("https://hub.example.org")) is public
