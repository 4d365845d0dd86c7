"""How much the hub takes from one node, one address and everybody, and how it refuses the rest."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web
from tests.integration.web.test_join import ask

from entrepot.adapters.hub_client import HubClient, HubClientSettings
from entrepot.core.api import MAX_REQUEST
from entrepot.core.errors import InvalidInput, RetryLater
from entrepot_hub.services.settings import LimitSettings, parse_settings
from entrepot_hub.services.web import app, shedding

#: Nothing comes back within a test.
NEVER = 0.001


async def get(http, url, path="/v1/hub", **headers):
    async with http.get(url + path, headers=headers) as response:
        return response.status, response.headers.get("Retry-After"), await response.json()


async def ask_signed(http, signed, hub, key):
    return await signed(key, f"{hub.url}/v1/session").send(http)


def elsewhere():
    """A client at another address of this machine."""
    connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30))


async def answered(url):
    """The status, once a connection is let in."""
    async with asyncio.timeout(30):
        while True:
            try:
                async with aiohttp.ClientSession() as http:
                    return (await get(http, url))[0]
            except aiohttp.ClientError:
                await asyncio.sleep(0.01)


@pytest.fixture
def lasting(monkeypatch):
    """Connections that ask nothing are kept for longer than a test lasts."""
    monkeypatch.setattr(app, "_FIRST_REQUEST", 600.0)


def too_many(answer):
    return answer["error"]["kind"] == "too-many-requests"


class Slow:
    """Routes whose requests last until they are released."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.inside = 0

    async def handle(self, _request: web.Request) -> web.Response:
        self.inside += 1
        await self.release.wait()
        return web.json_response({})

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/slow", self.handle), web.get("/bucket/slow", self.handle)]

    async def entered(self, count: int) -> None:
        async with asyncio.timeout(30):
            while self.inside < count:
                await asyncio.sleep(0.01)


async def test_a_stranger_is_refused_and_nodes_at_its_address_are_not(make_hub, http, signed, report):
    """Unsigned requests count for their address; when they were too many, members there are served as before, and
    health is told to everybody."""
    hub = await make_hub(limits=LimitSettings(address_rate=0.01, address_burst=5))
    await hub.channel()
    key = await hub.member()
    assert (await ask_signed(http, signed, hub, key))[0] == 200
    answers = [await get(http, hub.url) for _ in range(8)]
    assert [status for status, _, _ in answers] == [200] * 5 + [429] * 3
    _, after, answer = answers[-1]
    assert too_many(answer)
    wait = answer["error"]["data"]["retry_after"]
    assert 0 < wait <= 100
    assert wait <= int(after) < wait + 1, "the header is the same time in whole seconds"
    assert [(await ask_signed(http, signed, hub, key))[0] for _ in range(10)] == [200] * 10
    assert [(await get(http, hub.url, "/healthz"))[0] for _ in range(10)] == [200] * 10
    assert (await get(http, hub.url, "/readyz"))[0] == 200
    report("attacks", attack="unsigned requests without end", defended_by="a rate per address: 429 with Retry-After")


async def test_a_node_is_refused_and_others_are_not(make_hub, http, signed, report):
    """Signed requests count for the node that signed them."""
    hub = await make_hub(limits=LimitSettings(node_rate=NEVER, node_burst=4))
    await hub.channel()
    greedy, other = await hub.member(name="greedy"), await hub.member(name="other")
    assert [(await ask_signed(http, signed, hub, greedy))[0] for _ in range(6)] == [200] * 4 + [429] * 2
    assert (await ask_signed(http, signed, hub, other))[0] == 200
    report("attacks", attack="signed requests without end", defended_by="a rate per node: 429 with Retry-After")


async def test_nobody_uses_up_what_another_node_may_ask(make_hub, http, signed, report):
    """Requests in another node's name without its key, and its own requests sent again, do not count for it."""
    hub = await make_hub(limits=LimitSettings(node_rate=NEVER, node_burst=3, address_rate=NEVER, address_burst=40))
    await hub.channel()
    victim = await hub.member()
    for _ in range(10):
        forged = signed(victim, f"{hub.url}/v1/session")
        forged.body = b"{ }"
        assert (await forged.send(http))[0] == 401
    once = signed(victim, f"{hub.url}/v1/session")
    assert (await once.send(http))[0] == 200
    for _ in range(10):
        status, answer = await once.send(http)
        assert (status, answer["error"]["kind"]) == (401, "replayed")
    assert [(await ask_signed(http, signed, hub, victim))[0] for _ in range(3)] == [200, 200, 429]
    report(
        "attacks",
        attack="another node's allowance used up by forged or replayed requests",
        defended_by="a request counts for a node once its signature and its nonce are verified",
    )


async def test_made_up_keys_count_for_their_address(make_hub, http, signed, report):
    """Anybody can sign with new keys; the hub looks up so many of one address, and members who were here before are
    served all the same."""
    hub = await make_hub(limits=LimitSettings(address_rate=NEVER, address_burst=6))
    await hub.channel()
    key = await hub.member()
    assert (await ask_signed(http, signed, hub, key))[0] == 200
    found = [(await ask_signed(http, signed, hub, hub.key()))[0] for _ in range(9)]
    assert found == [403] * 6 + [429] * 3
    assert (await ask_signed(http, signed, hub, key))[0] == 200
    await hub.registry.suspend(key.public, now=hub.clock(), actor="test")
    assert (await ask_signed(http, signed, hub, key))[0] == 429, "who is suspended is a stranger"
    report("attacks", attack="signatures of made-up keys", defended_by="they count for the address, before any look-up")


async def test_invites_are_not_guessed(make_hub, http, report):
    """So many joins of one address fail, and so many with one invite; then even the right proof has to wait. Joins that
    succeed count for nothing."""
    hub = await make_hub(limits=LimitSettings(joins_rate=0.01, joins_burst=10))
    await hub.channel()

    async def join(invite, secret=None):
        told = replace(invite, secret=secret or invite.secret)
        async with http.post(f"{hub.url}/v1/join", json=ask(hub.key(), told, hub.hub_public)) as response:
            return response.status, response.headers.get("Retry-After")

    for _ in range(15):
        assert (await join(await hub.invite()))[0] == 200
    invite = await hub.invite()
    outcomes = [(await join(invite, secrets.token_bytes(16)))[0] for _ in range(12)]
    assert outcomes == [403] * 10 + [429] * 2
    status, after = await join(invite)
    assert status == 429
    assert 1 <= int(after) <= 100
    assert {each.id: each.used for each in await hub.registry.invites("demo")}[invite.id.hex()] == 0
    report("attacks", attack="an invite guessed", defended_by="128 bits; ten failures, then one every 10 s")


async def test_everybody_together_is_bounded(make_hub, http, signed, report):
    """When strangers have half of all places, one more of them is told to come back; nodes are served, and whoever asks
    for health is answered."""
    slow = Slow()
    hub = await make_hub(more=slow.routes(), limits=LimitSettings(requests=6, requests_of_one=6, transfers=1))
    await hub.channel()
    key = await hub.member()
    async with asyncio.TaskGroup() as group:
        under_way = [group.create_task(get(http, hub.url, "/slow")) for _ in range(3)]
        await slow.entered(3)
        status, after, answer = await get(http, hub.url)
        assert (status, after, answer["error"]["kind"]) == (503, "1", "busy")
        assert (await ask_signed(http, signed, hub, key))[0] == 200
        assert (await get(http, hub.url, "/healthz"))[0] == 200
        under_way.append(group.create_task(get(http, hub.url, "/bucket/slow")))
        await slow.entered(4)
        assert (await get(http, hub.url, "/bucket/slow"))[0] == 503, "bulk has a bound of its own"
        slow.release.set()
    assert [task.result()[0] for task in under_way] == [200] * 4
    assert (await get(http, hub.url))[0] == 200
    report("attacks", attack="more requests at once than the hub can serve", defended_by="503 with Retry-After")


async def test_bulk_of_one_address_leaves_room_for_others(make_hub, http, report):
    """Transfers of one address that last for ever are so many and no more; other addresses have theirs."""
    slow = Slow()
    hub = await make_hub(more=slow.routes(), limits=LimitSettings(transfers_of_one=2, transfers=3))
    async with elsewhere() as other, asyncio.TaskGroup() as group:
        under_way = [group.create_task(get(http, hub.url, "/bucket/slow")) for _ in range(2)]
        await slow.entered(2)
        status, after, answer = await get(http, hub.url, "/bucket/slow")
        assert (status, after, too_many(answer)) == (429, "1", True)
        under_way.append(group.create_task(get(other, hub.url, "/bucket/slow")))
        await slow.entered(3)
        slow.release.set()
    assert [task.result()[0] for task in under_way] == [200] * 3
    report(
        "attacks",
        attack="slow readers of a folder bucket",
        defended_by="so many transfers of one address, and by one URL",
    )


async def test_one_address_has_so_many_at_once(make_hub, http, signed):
    """Slow requests of one party leave room for others: a verified request counts for its node, not for its address."""
    slow = Slow()
    hub = await make_hub(more=slow.routes(), limits=LimitSettings(requests_of_one=2))
    await hub.channel()
    key = await hub.member()
    async with asyncio.TaskGroup() as group:
        group.create_task(get(http, hub.url, "/slow"))
        await slow.entered(1)
        assert (await ask_signed(http, signed, hub, key))[0] == 200
        group.create_task(get(http, hub.url, "/slow"))
        await slow.entered(2)
        status, _, answer = await get(http, hub.url)
        assert (status, too_many(answer)) == (429, True)
        slow.release.set()


#: The beginning of a request that claims to be signed; the hub says when it waits for the body.
HALF = (
    b"POST /v1/session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nSignature-Input: x\r\n"
    b"Content-Length: 900\r\nExpect: 100-continue\r\n\r\n"
)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_bodies_that_never_come_hold_no_place(make_hub, http, signed, report):
    """Half requests, however many, leave everybody all places, at their own address too."""
    hub = await make_hub(limits=LimitSettings(requests_of_one=2, requests=4))
    await hub.channel()
    key = await hub.member()
    async with AsyncExitStack() as stack:
        for _ in range(12):
            reader, writer = await asyncio.open_connection("127.0.0.1", hub.settings.listen.port)
            stack.callback(writer.close)
            writer.write(HALF)
            async with asyncio.timeout(30):
                assert await reader.readexactly(len(CONTINUE)) == CONTINUE
            writer.write(b"{")
        assert (await get(http, hub.url))[0] == 200
        assert (await ask_signed(http, signed, hub, key))[0] == 200
        assert (await get(http, hub.url, "/healthz"))[0] == 200
    report("attacks", attack="bodies that never come", defended_by="no place before the body is there; 5 s for it")


async def test_a_body_is_not_waited_for_for_ever(make_hub, monkeypatch):
    """A body that does not come in time is given up, long before the request's own deadline."""
    monkeypatch.setattr(shedding, "BODY_TIME", 0.05)
    hub = await make_hub(limits=LimitSettings(request=600.0))
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.settings.listen.port)
    writer.write(HALF + b"{")
    async with asyncio.timeout(30):
        answer = await reader.readuntil(b"}}")
    writer.close()
    assert answer.startswith(CONTINUE + b"HTTP/1.1 503 ")
    assert b'"deadline"' in answer


async def test_who_claims_to_sign_is_counted_like_everybody(make_hub, http, signed, report):
    """A header that nobody asked for spares no stranger its address's rate: not where nothing is signed, not at paths
    that there are not, not with a body too long. Members at the address are served as before."""
    worked = 0

    async def work(_request: web.Request) -> web.Response:
        nonlocal worked
        worked += 1
        return web.json_response({})

    hub = await make_hub(more=[web.get("/work", work)], limits=LimitSettings(address_rate=NEVER, address_burst=9))
    await hub.channel()
    key = await hub.member()
    assert (await ask_signed(http, signed, hub, key))[0] == 200
    claim = {"Signature-Input": "x"}

    async def ask_as(method, path, **how):
        async with http.request(method, hub.url + path, headers=claim, **how) as response:
            return response.status

    attempts: tuple[tuple[str, str, dict[str, Any], int], ...] = (
        ("GET", "/work", {}, 200),
        ("GET", "/v1/hub", {}, 200),
        ("GET", "/v1/nothing", {}, 404),
        ("GET", "/v1/channels/demo/nothing/there/is", {}, 404),
        ("GET", "/j/nothing", {}, 400),
        ("POST", "/v1/join", {"json": {}}, 400),
        ("POST", "/v1/session", {"data": b"x" * (MAX_REQUEST + 1)}, 413),
        ("POST", "/v1/session", {"data": b"{}"}, 401),
        ("GET", "/bucket/none", {}, 404),
    )
    assert [await ask_as(method, path, **how) for method, path, how, _ in attempts] == [each[3] for each in attempts]
    assert [await ask_as(method, path, **how) for method, path, how, _ in attempts] == [429] * len(attempts)
    assert worked == 1, "what is refused is not done first"
    assert [(await ask_signed(http, signed, hub, key))[0] for _ in range(10)] == [200] * 10
    report("attacks", attack="a signature claimed and not made", defended_by="it counts for the address: 429")


async def test_unsigned_urls_of_buckets_count_for_their_address(make_hub, http):
    """Requests of folder buckets that the hub refuses are as many as an address may make; what is permitted is not
    counted."""
    permitted = True

    async def handle(_request: web.Request) -> web.Response:
        return web.json_response({}, status=200 if permitted else 403)

    hub = await make_hub(
        more=[web.get("/bucket/b/k", handle)], limits=LimitSettings(address_rate=NEVER, address_burst=3)
    )
    assert [(await get(http, hub.url, "/bucket/b/k"))[0] for _ in range(6)] == [200] * 6
    permitted = False
    assert [(await get(http, hub.url, "/bucket/b/k"))[0] for _ in range(6)] == [403] * 3 + [429] * 3
    permitted = True
    assert (await get(http, hub.url, "/bucket/b/k"))[0] == 200


async def test_requests_side_by_side_take_no_more_than_one_after_another(make_hub, http, signed):
    """What is looked at together is counted together: no more pass than the node may ask."""
    hub = await make_hub(limits=LimitSettings(node_rate=NEVER, node_burst=5))
    await hub.channel()
    key = await hub.member()
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask_signed(http, signed, hub, key)) for _ in range(30)]
    assert sorted(task.result()[0] for task in asked) == [200] * 5 + [429] * 25


async def test_idle_connections_are_bounded(make_hub, lasting, report):
    """Beyond so many open connections another one is closed at once, and there is room when one of them goes."""
    hub = await make_hub(limits=LimitSettings(connections=4))
    port = hub.settings.listen.port
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
    try:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()
            idle[0][1].close()
            assert await answered(hub.url) == 200
    finally:
        for _, writer in idle:
            writer.close()
    report("attacks", attack="many idle connections", defended_by="a bound on open connections, 75 s of idleness")


async def test_connections_of_one_address_are_bounded(make_hub, lasting, report):
    """Silent connections of one address keep nobody else out, and there is room there when one of them goes."""
    hub = await make_hub(limits=LimitSettings(connections_of_one=4, connections=6))
    port = hub.settings.listen.port
    async with AsyncExitStack() as stack:
        idle = []
        for _ in range(4):
            idle.append(await asyncio.open_connection("127.0.0.1", port))
            stack.callback(idle[-1][1].close)
        async with asyncio.timeout(30):
            for _ in range(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await reader.read() == b""
                writer.close()
            async with elsewhere() as other:
                assert (await get(other, hub.url))[0] == 200
            idle[0][1].close()
            assert await answered(hub.url) == 200
    report("attacks", attack="many connections of one address", defended_by="256 of one address, 10 s to ask in")


async def test_a_connection_that_asks_nothing_is_closed(make_hub, monkeypatch):
    """Half a head, or nothing, for too long: closed. One that asked is kept for the next request."""
    monkeypatch.setattr(app, "_FIRST_REQUEST", 1.0)
    hub = await make_hub()
    port = hub.settings.listen.port
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    (asking, to_asking), (silent, _), (half, to_half) = pairs
    try:
        async with asyncio.timeout(30):
            to_asking.write(b"GET /v1/hub HTTP/1.1\r\nHost: x\r\n\r\n")
            await asking.readuntil(b"}")
            to_half.write(b"GET /v1/hub HTTP/1.1\r\nHo")
            for reader in (silent, half):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            to_asking.write(b"GET /v1/hub HTTP/1.1\r\nHost: x\r\n\r\n")
            await asking.readuntil(b"}")
    finally:
        for _, writer in pairs:
            writer.close()


async def test_a_named_proxy_has_all_connections(make_hub, lasting):
    """The connections of a proxy are those of many: only all together bound them."""
    hub = await make_hub(limits=LimitSettings(connections_of_one=1, connections=3, proxies=("127.0.0.1",)))
    port = hub.settings.listen.port
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    try:
        assert await answered(hub.url) == 200
    finally:
        for _, writer in idle:
            writer.close()


async def test_a_proxys_word_is_taken_only_where_it_is_trusted(make_hub, http):
    """Behind a proxy that the settings name each client has its own rate; otherwise nobody gets one by a header."""
    proxies = ("127.0.0.1",)
    trusting = await make_hub(limits=LimitSettings(address_rate=NEVER, address_burst=1, proxies=proxies))
    wary = await make_hub(limits=LimitSettings(address_rate=NEVER, address_burst=1))

    async def two(hub):
        forwarded = [{"X-Forwarded-For": f"6.6.6.{number}"} for number in (1, 2, 2)]
        return [(await get(http, hub.url, **each))[0] for each in forwarded]

    assert await two(trusting) == [200, 200, 429]
    assert await two(wary) == [200, 429, 429]


async def test_refusals_do_not_fill_the_log(make_hub, http):
    """One line tells that an address asks too often, however often it does."""
    hub = await make_hub(limits=LimitSettings(address_rate=NEVER, address_burst=1))
    with structlog.testing.capture_logs() as logs:
        for _ in range(30):
            await get(http, hub.url)
    assert [line["event"] for line in logs] == ["requests refused"]


async def test_a_node_comes_back_when_it_is_told(make_hub):
    """The hub's Retry-After is waited for and the call made again, signed anew; a node that has no patience is told."""
    hub = await make_hub(limits=LimitSettings(node_rate=5.0, node_burst=1))
    await hub.channel()
    key = await hub.member()
    async with hub.client(key) as client:
        for _ in range(4):
            assert (await client.session()).node == key.public
    strict = await make_hub(limits=LimitSettings(node_rate=NEVER, node_burst=1))
    await strict.channel()
    key = await strict.member()
    async with HubClient(strict.url, key, strict.hub_public, HubClientSettings(timeout=10, patience=5.0)) as client:
        await client.session()
        with pytest.raises(RetryLater) as caught:
            await client.session()
    assert caught.value.kind == "too-many-requests"
    after = caught.value.data["retry_after"]
    assert isinstance(after, float)
    assert 5.0 < after <= 1000.0


@pytest.mark.parametrize("after", ["86400", "1e9", "-5", "nan", "Wed, 21 Oct 2037 07:28:00 GMT", ""])
async def test_a_senseless_pause_is_not_waited_for(make_hub, after):
    """Whatever stands in front of the hub cannot make a node wait for ever: it hears at once to come later."""
    calls = 0

    async def busy(_request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return web.Response(status=429, text="slow down", headers={"Retry-After": after})

    hub = await make_hub(more=[web.get("/v1/channels/demo/streams/x/y", busy)])
    async with hub.client(hub.key()) as client:
        with pytest.raises(RetryLater):
            await client._call("GET", "/v1/channels/demo/streams/x/y", None, object, signed=False)
    assert calls == 1


def test_limits_are_checked_when_they_are_read(tmp_path):
    """A limit that is none, and a proxy that is no address, are refused by their names."""
    start = b'urls = ["https://hub.example.org"]\n[limits]\n'
    assert parse_settings(tmp_path, start + b'node_rate = 5\nproxies = ["10.0.0.0/8"]').limits.node_rate == 5.0
    for wrong, word in (
        (b"node_rate = 0", "node_rate"),
        (b"requests = 0", "requests"),
        (b'proxies = ["proxy"]', "prox"),
        (b"holders_of_member = -1", "holders_of_member"),
    ):
        with pytest.raises(InvalidInput) as caught:
            parse_settings(tmp_path, start + wrong)
        assert caught.value.kind == "invalid-setting"
        assert word in caught.value.message
