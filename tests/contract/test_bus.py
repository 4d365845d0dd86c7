"""What a bus promises to its users, against a real server that is killed, restarted and lied about."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.servers.nats import QUICK, Nats, running_nats

from entrepot.adapters.bus import Bus, BusSettings, BusState, Message
from entrepot.adapters.bus_subscription import TURN
from entrepot.core import subjects
from entrepot.core.errors import Conflict, Denied, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot.core.keyring import Credentials
from entrepot_hub.adapters.nats_server import NatsServerSettings

STREAM = "ff" + "a" * 62
RIGHTS = [("demo", ["request", "provide"])]


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """A running server with the hub's identity."""
    settings = NatsServerSettings(backoff_first=0.02, websocket_port=-1)
    async with running_nats(tmp_path / "nats", settings=settings) as running:
        yield running


async def until(condition, timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.005)


async def kill_server(nats: Nats) -> None:
    pid = nats.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: nats.server.pid not in {None, pid})


async def echo(message: Message) -> None:
    await message.respond(b"echo " + message.payload)


# --- messages ----------------------------------------------------------------------------------------------


async def test_requests_are_answered(nats: Nats) -> None:
    """Many requests at once each get their own answer."""
    member = nats.member(RIGHTS)
    want = subjects.hub_verb("demo", "want", member.public)
    async with nats.hub() as hub, member.bus() as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await hub.subscribe(subjects.hub_pattern("want"), echo)
        answers = await asyncio.gather(*(bus.request(want, b"%d" % i, 10) for i in range(200)))
    assert answers == [b"echo %d" % i for i in range(200)]


async def test_a_request_that_nobody_hears_is_told_at_once(nats: Nats) -> None:
    """Without a listening hub a request ends as hub-unreachable, long before its deadline."""
    member = nats.member(RIGHTS)
    async with member.bus() as bus:
        await bus.wait_connected(5)
        with pytest.raises(RetryLater) as caught:
            await bus.request(subjects.hub_verb("demo", "want", member.public), b"", 100)
    assert caught.value.kind == "hub-unreachable"


async def test_a_request_without_an_answer_ends_at_its_deadline(nats: Nats) -> None:
    """A hub that hears and does not answer makes the request end with deadline."""
    member = nats.member(RIGHTS)
    async with nats.hub() as hub, member.bus() as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await hub.subscribe(subjects.hub_pattern("want"), lambda _: None)
        with pytest.raises(RetryLater) as caught:
            await bus.request(subjects.hub_verb("demo", "want", member.public), b"", 0.1)
    assert caught.value.kind == "deadline"


async def test_a_refused_request_is_told_at_once(nats: Nats) -> None:
    """A request on a subject that is not the node's ends as no-right, long before its deadline."""
    member = nats.member(RIGHTS)
    async with member.bus() as bus:
        await bus.wait_connected(5)
        with pytest.raises(Denied) as caught:
            await bus.request(subjects.hub_verb("other", "want", member.public), b"", 100)
    assert caught.value.kind == "no-right"


@pytest.mark.parametrize("size", [65536, 65537])
async def test_a_payload_past_the_limit_is_refused_before_it_is_sent(nats: Nats, size: int) -> None:
    """64 KiB pass, one byte more is InvalidInput, and the connection lives on."""
    member = nats.member(RIGHTS)
    subject = subjects.hub_verb("demo", "want", member.public)
    async with member.bus() as bus:
        await bus.wait_connected(5)
        if size > 65536:
            for send in (bus.publish(subject, bytes(size)), bus.request(subject, bytes(size), 1)):
                with pytest.raises(InvalidInput):
                    await send
        await bus.publish(subject, bytes(min(size, 65536)), confirm=True)
        assert bus.stats.losses == 0


@pytest.mark.parametrize("subject", ["", "a b", "a..b", "a.", ".a", "a\r\nPUB x 0", "é", "x" * 600, "a.*", "a.>"])
async def test_a_malformed_subject_is_refused(nats: Nats, subject: str) -> None:
    """Nothing but a plain subject is published to, so no command is smuggled in."""
    async with nats.hub() as hub:
        await hub.wait_connected(5)
        for send in (hub.publish(subject, b""), hub.request(subject, b"", 1)):
            with pytest.raises(InvalidInput):
                await send


@pytest.mark.parametrize("subject", ["", "a b", "a.>.b", "a*", "a.>x", ">.a", "a..b"])
async def test_a_malformed_pattern_is_refused(nats: Nats, subject: str) -> None:
    """Nothing but a pattern is subscribed to, and none is left behind to spoil the next connection."""
    async with nats.hub() as hub:
        await hub.wait_connected(5)
        with pytest.raises(InvalidInput):
            await hub.subscribe(subject, lambda _: None)
        await hub.refresh()
        assert hub.connected


async def test_a_queue_group_shares_the_messages(nats: Nats) -> None:
    """Of two hubs in a queue group each message reaches one."""
    member = nats.member(RIGHTS)
    heard: list[bytes] = []
    async with nats.hub() as one, nats.hub() as two, member.bus() as bus:
        for each in (one, two, bus):
            await each.wait_connected(5)
        for hub in (one, two):
            await hub.subscribe(subjects.hub_pattern("want"), lambda m: heard.append(m.payload), queue="hubs")
        for i in range(50):
            await bus.publish(subjects.hub_verb("demo", "want", member.public), b"%d" % i)
        await until(lambda: len(heard) >= 50)
        for hub in (one, two):
            await hub.flush()
    assert sorted(heard) == sorted(b"%d" % i for i in range(50))


async def test_an_ended_subscription_hears_nothing(nats: Nats) -> None:
    """After unsubscribe, twice if you like, also after a reconnect, the handler is not called."""
    heard: list[bytes] = []
    async with nats.hub() as hub:
        await hub.wait_connected(5)
        subscription = await hub.subscribe("hub.x", lambda m: heard.append(m.payload))
        await subscription.unsubscribe()
        await subscription.unsubscribe()
        await hub.refresh()
        member = nats.member(RIGHTS)
        async with member.bus() as bus:
            await bus.wait_connected(5)
            with pytest.raises(RetryLater):
                await bus.request(subjects.hub_verb("demo", "want", member.public), b"", 5)
    assert heard == []


# --- handlers ----------------------------------------------------------------------------------------------


async def test_a_slow_handler_fills_its_queue_and_no_other(nats: Nats) -> None:
    """Messages past the bound are dropped and counted; other subscriptions go on."""
    member = nats.member(RIGHTS)
    gate = asyncio.Event()
    slow: list[bytes] = []
    quick: list[bytes] = []

    async def wait(message: Message) -> None:
        await gate.wait()
        slow.append(message.payload)

    async with nats.hub() as hub, member.bus() as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        subscription = await hub.subscribe(subjects.hub_pattern("want"), wait, pending=10)
        await hub.subscribe(subjects.hub_pattern("done"), lambda m: quick.append(m.payload))
        for i in range(100):
            await bus.publish(subjects.hub_verb("demo", "want", member.public), b"%d" % i)
        await bus.publish(subjects.hub_verb("demo", "done", member.public), b"last")
        await until(lambda: quick == [b"last"] and subscription.waiting + subscription.dropped >= 99)
        dropped = subscription.dropped
        assert subscription.waiting <= 10
        gate.set()
        await until(lambda: len(slow) + dropped == 100)
        assert hub.stats.dropped == dropped >= 89


async def test_a_handler_that_never_waits_leaves_others_their_turn(nats: Nats) -> None:
    """However many messages lie there, everything else on the event loop goes on between them."""
    turns: list[int] = []
    turn = 0

    async def others() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async with nats.hub() as bus:
        subscription = await bus.subscribe("a.b", lambda _: turns.append(turn))
        task = asyncio.create_task(others())
        for _ in range(10 * TURN):
            subscription._deliver("a.b", b"", None, False)
        async with asyncio.timeout(20):
            while len(turns) < 10 * TURN:
                await asyncio.sleep(0.005)
        task.cancel()
    assert all(later > now for now, later in zip(turns, turns[TURN:], strict=False))


async def test_a_queue_is_bounded_in_bytes_too(nats: Nats) -> None:
    """Large messages fill the queue by their size."""
    member = nats.member(RIGHTS)
    gate = asyncio.Event()
    settings = BusSettings(backoff_first=0.02, pending_bytes=200_000)
    async with nats.hub(settings=settings) as hub, member.bus() as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)

        async def wait(_: Message) -> None:
            await gate.wait()

        subscription = await hub.subscribe(subjects.hub_pattern("want"), wait)
        for _ in range(10):
            await bus.publish(subjects.hub_verb("demo", "want", member.public), bytes(60_000))
        await until(lambda: subscription.waiting + subscription.dropped == 9)
        assert subscription.waiting == 3
        gate.set()


async def test_a_handlers_error_goes_to_on_error_and_the_subscription_lives(nats: Nats) -> None:
    """EntrepotErrors, also a cancellation of what a handler waits for, are told; the next message is
    handled.
    """
    member = nats.member(RIGHTS)
    errors: list[tuple[str, str]] = []
    heard: list[bytes] = []

    async def handle(message: Message) -> None:
        if message.payload == b"error":
            raise NotFound("no such thing", kind="no-such-stream")
        if message.payload == b"cancelled":
            raise asyncio.CancelledError
        heard.append(message.payload)

    async with (
        nats.hub(on_error=lambda error, where: errors.append((error.kind, where))) as hub,
        member.bus() as bus,
    ):
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await hub.subscribe(subjects.hub_pattern("want"), handle)
        for payload in (b"error", b"cancelled", b"fine"):
            await bus.publish(subjects.hub_verb("demo", "want", member.public), payload)
        await until(lambda: heard == [b"fine"])
        assert hub.stats.handler_errors == 2
    assert errors == [("no-such-stream", "hub.*.want.*"), ("cancelled", "hub.*.want.*")]


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), Conflict("unhandled")])
async def test_a_handlers_bug_ends_the_bus(nats: Nats, error: Exception) -> None:
    """Any other error, or an EntrepotError that nobody takes, leaves the bus's block in a group."""
    member = nats.member(RIGHTS)

    async def handle(_: Message) -> None:
        raise error

    async with member.bus() as bus:
        await bus.wait_connected(5)
        hub = nats.hub()

        async def work() -> None:
            async with hub:
                await hub.wait_connected(5)
                await hub.subscribe(subjects.hub_pattern("want"), handle)
                await bus.publish(subjects.hub_verb("demo", "want", member.public), b"")
                await asyncio.sleep(20)

        with pytest.raises(BaseExceptionGroup) as caught:
            await work()
        assert caught.value.subgroup(type(error)) is not None
        assert hub.state is BusState.CLOSED


async def test_what_the_block_raises_is_not_wrapped(nats: Nats) -> None:
    """An error raised inside the block of a bus comes out as it is."""

    async def work() -> None:
        async with nats.hub() as hub:
            await hub.wait_connected(5)
            raise Conflict("mine")

    with pytest.raises(Conflict):
        await work()


# --- faults ------------------------------------------------------------------------------------------------


async def test_a_killed_server_costs_no_subscription(nats: Nats) -> None:
    """Server killed and started again: the bus reports down and up, and hears as before."""
    member = nats.member(RIGHTS)
    heard: list[bytes] = []
    told: list[str] = []
    async with (
        nats.hub() as hub,
        member.bus(on_up=lambda: told.append("up"), on_down=lambda error: told.append(error.kind)) as bus,
    ):
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await bus.subscribe(subjects.state("demo", STREAM), lambda m: heard.append(m.payload))
        for round_number in range(2):
            await kill_server(nats)
            await until(lambda: all(b.connected for b in (hub, bus)))
            await until(lambda: all(b.stats.losses == round_number + 1 for b in (hub, bus)))  # noqa: B023
            await hub.wait_connected(10)
            await bus.wait_connected(10)
            await hub.publish(subjects.state("demo", STREAM), b"%d" % round_number)
            await until(lambda: heard[-1:] == [b"%d" % round_number])  # noqa: B023
        assert bus.stats.losses == 2
    assert told == ["up", "bus-unreachable", "up", "bus-unreachable", "up"]


async def test_without_a_server_calls_fail_with_a_reason(nats: Nats) -> None:
    """While the server is away a request under way and every new call end as bus-unreachable."""
    member = nats.member(RIGHTS)
    want = subjects.hub_verb("demo", "want", member.public)
    async with nats.hub() as hub, member.bus() as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        asked = asyncio.Event()
        await hub.subscribe(subjects.hub_pattern("want"), lambda _: asked.set())
        under_way = asyncio.create_task(bus.request(want, b"", 60))
        await asked.wait()
        await nats.server.aclose()
        with pytest.raises(RetryLater) as caught:
            await under_way
        assert caught.value.kind == "bus-unreachable"
        await until(lambda: not bus.connected)
        for call in (bus.publish(want, b""), bus.request(want, b"", 5), bus.wait_connected(0.05), bus.flush()):
            with pytest.raises(RetryLater) as caught:
                await call
            assert caught.value.kind == "bus-unreachable"
            address = nats.server.url.removeprefix("nats://")
            assert caught.value.message == f"the hub's message bus at {address} cannot be reached"
        waiting = await bus.subscribe(subjects.state("demo", STREAM), lambda _: None)
        await waiting.unsubscribe()
        assert bus.state is BusState.DOWN
        assert bus.reason is not None


async def test_a_subscription_made_while_down_works_when_up(nats: Nats) -> None:
    """A standing order given before there is a connection is carried out with the first."""
    member = nats.member(RIGHTS)
    heard: list[bytes] = []
    async with nats.hub() as hub, member.bus() as bus:
        await bus.subscribe(subjects.state("demo", STREAM), lambda m: heard.append(m.payload))
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await hub.publish(subjects.state("demo", STREAM), b"x")
        await until(lambda: heard == [b"x"])


async def test_a_client_closed_for_good_is_built_anew(nats: Nats) -> None:
    """nats-py gives up for good on most errors of the server; the bus makes a new client with all
    subscriptions.
    """
    member = nats.member(RIGHTS)
    heard: list[bytes] = []
    async with nats.hub() as hub, member.bus() as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await bus.subscribe(subjects.state("demo", STREAM), lambda m: heard.append(m.payload))
        link = bus._link
        assert link is not None
        await link._client._send_command(b"NONSENSE\r\n")  # the server answers -ERR and hangs up
        await link._client._flush_pending()
        await until(lambda: bus.stats.losses == 1 and bus.connected)
        await hub.publish(subjects.state("demo", STREAM), b"again")
        await until(lambda: heard == [b"again"])


async def test_a_servers_own_payload_limit_is_told(nats: Nats) -> None:
    """A payload that only the server finds too large is InvalidInput too, and the connection lives on."""
    member = nats.member(RIGHTS)
    subject = subjects.hub_verb("demo", "want", member.public)
    async with member.bus(settings=BusSettings(backoff_first=0.02, max_payload=1 << 20)) as bus:
        await bus.wait_connected(5)
        with pytest.raises(InvalidInput):
            await bus.publish(subject, bytes(65537))
        await bus.publish(subject, b"", confirm=True)
        assert bus.stats.losses == 0


async def test_subscriptions_are_bounded_before_the_server_ends_the_connection(nats: Nats) -> None:
    """One subscription too many is RetryLater busy; when one is given up there is room again."""
    async with nats.hub(settings=BusSettings(max_subscriptions=3)) as hub:
        await hub.wait_connected(5)
        kept = [await hub.subscribe(f"hub.{i}", lambda _: None) for i in range(3)]
        with pytest.raises(RetryLater) as caught:
            await hub.subscribe("hub.3", lambda _: None)
        assert caught.value.kind == "busy"
        await kept[0].unsubscribe()
        await hub.subscribe("hub.3", lambda _: None)
        assert hub.stats.losses == 0


async def test_an_expired_jwt_is_renewed_without_losing_a_subscription(nats: Nats) -> None:
    """A JWT of a few seconds is renewed in time, with no loss and all subscriptions."""
    member = nats.member(RIGHTS, life=4.0)
    heard: list[bytes] = []
    async with nats.hub() as hub, member.bus() as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await bus.subscribe(subjects.state("demo", STREAM), lambda m: heard.append(m.payload))
        await until(lambda: bus.stats.refreshes >= 1)
        await bus.wait_connected(5)
        await hub.publish(subjects.state("demo", STREAM), b"x")
        await until(lambda: heard == [b"x"])
        assert bus.stats.losses == 0
        assert member.renewals >= 1


async def test_a_jwt_that_could_not_be_renewed_in_time_is_renewed_later(nats: Nats) -> None:
    """Renewal fails until the server throws the client out; when the hub is back, so is the bus."""
    member = nats.member(RIGHTS, life=3.0)
    away = True

    async def renew() -> None:
        if away:
            raise RetryLater("the hub is away", kind="hub-unreachable")
        member.life = 3600
        await member.renew()

    async with member.bus(renew=renew) as bus:
        await bus.wait_connected(5)
        await until(lambda: bus.stats.losses == 1 and bus.stats.renew_failures > 1)
        assert bus.state is BusState.DOWN
        away = False
        await bus.wait_connected(20)
        await bus.publish(subjects.hub_verb("demo", "want", member.public), b"", confirm=True)


async def test_a_passing_denial_does_not_end_the_bus(nats: Nats) -> None:
    """A hub that denies because of the clock is asked again; one that denies for good ends the bus."""
    member = nats.member(RIGHTS, life=1.0)
    member.denied = Denied("your clock is wrong", kind="clock-skew")
    async with member.bus() as bus:
        await until(lambda: bus.stats.renew_failures > 2 and bus.state is BusState.DOWN)
        member.denied = Denied("suspended", kind="suspended")
        await until(lambda: bus.state is BusState.REVOKED)
        with pytest.raises(Denied) as caught:
            await bus.wait_connected(1)
        assert caught.value.kind == "suspended"


async def test_a_planned_reconnect_waits_for_requests_under_way(nats: Nats) -> None:
    """A request asked before a refresh gets its answer, one asked during it too."""
    member = nats.member(RIGHTS)
    want = subjects.hub_verb("demo", "want", member.public)
    gate, asked = asyncio.Event(), asyncio.Event()

    async def handle(message: Message) -> None:
        asked.set()
        await gate.wait()
        await message.respond(b"late")

    settings = BusSettings(backoff_first=0.02, refresh_grace=20)
    async with nats.hub() as hub, member.bus(settings=settings) as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await hub.subscribe(subjects.hub_pattern("want"), handle)
        before = asyncio.create_task(bus.request(want, b"", 20))
        await asked.wait()
        refresh = asyncio.create_task(bus.refresh())
        await until(lambda: bus.state is BusState.REFRESHING)
        during = asyncio.create_task(bus.request(want, b"", 20))
        gate.set()
        assert await before == b"late"
        await refresh
        assert await during == b"late"
        assert (bus.stats.refreshes, bus.stats.losses) == (1, 0)


async def test_new_rights_are_used_after_a_refresh(nats: Nats) -> None:
    """A right granted later works after refresh, without a new bus."""
    member = nats.member([])
    want = subjects.hub_verb("demo", "want", member.public)
    async with member.bus() as bus:
        await bus.wait_connected(5)
        with pytest.raises(Denied):
            await bus.publish(want, b"", confirm=True)
        member.rights = RIGHTS
        await bus.refresh()
        await bus.publish(want, b"", confirm=True)


async def test_closing_is_final_and_can_be_repeated(nats: Nats) -> None:
    """After aclose, twice if you like, calls under way and later ones end with an error, not a hang."""
    member = nats.member(RIGHTS)
    want = subjects.hub_verb("demo", "want", member.public)
    async with nats.hub() as hub, member.bus() as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        asked = asyncio.Event()
        await hub.subscribe(subjects.hub_pattern("want"), lambda _: asked.set())
        under_way = asyncio.create_task(bus.request(want, b"", 60))
        await asked.wait()
        await bus.aclose()
        await bus.aclose()
        for call in (under_way, bus.publish(want, b""), bus.wait_connected(5), bus.subscribe("n.x", echo)):
            with pytest.raises(RetryLater) as caught:
                await call
            assert caught.value.kind == "cancelled"


async def test_a_server_that_asks_for_another_signature_gets_none(nats: Nats) -> None:
    """A false server whose nonce is an HTTP request gets no signature, no crash and no end of trying."""
    member = nats.member(RIGHTS)
    lines: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"nonce":"\\"@method\\": POST /v1/session","auth_required":true,"max_payload":65536}\r\n')
        lines.append(await reader.readline())
        writer.close()

    false_server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = false_server.sockets[0].getsockname()[1]
    async with false_server, member.bus(url=f"nats://127.0.0.1:{port}") as bus:
        await until(lambda: len(lines) > 1)
        with pytest.raises(RetryLater) as caught:
            await bus.wait_connected(0.2)
        assert "nonce" in str(caught.value) or "bus" in str(caught.value)
    assert all(b'"sig": ""' in line for line in lines)


@pytest.mark.parametrize(
    "greeting",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO {\r\n", b"INFO []\r\n", b"\x00" * 70_000, b"INFO 1\r\n"],
)
async def test_what_is_no_nats_server_is_a_reason_to_retry(nats: Nats, greeting: bytes) -> None:
    """Whatever answers at the address, no error of the library escapes: the bus stays down and goes on
    trying.
    """
    member = nats.member(RIGHTS)
    visits = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.write(greeting)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, member.bus(url=f"nats://127.0.0.1:{port}") as bus:
        await until(lambda: visits > 2)
        with pytest.raises(RetryLater) as caught:
            await bus.wait_connected(0.01)
        assert caught.value.kind == "bus-unreachable"


async def test_tls_is_never_left_out(nats: Nats) -> None:
    """A tls:// address whose server speaks plain text is not connected to in clear."""
    member = nats.member(RIGHTS)
    async with member.bus(url=nats.server.url.replace("nats://", "tls://")) as bus:
        with pytest.raises(RetryLater):
            await bus.wait_connected(0.5)
        assert bus.stats.connects == 0


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type 'float':DeprecationWarning")
async def test_websocket_works_alike(nats: Nats) -> None:
    """Over WebSocket a node asks and hears as over TCP."""
    member = nats.member(RIGHTS)
    heard: list[bytes] = []
    async with nats.hub() as hub, member.bus(url=nats.server.websocket_url) as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await hub.subscribe(subjects.hub_pattern("want"), echo)
        await bus.subscribe(subjects.state("demo", STREAM), lambda m: heard.append(m.payload))
        assert await bus.request(subjects.hub_verb("demo", "want", member.public), b"x", 5) == b"echo x"
        await hub.publish(subjects.state("demo", STREAM), b"y")
        await until(lambda: heard == [b"y"])


async def test_another_server_is_tried(nats: Nats) -> None:
    """With a dead server in the list the bus finds the living one."""
    member = nats.member(RIGHTS)
    bus = Bus(
        ["nats://127.0.0.1:1", nats.server.url],
        name="two",
        inbox_prefix=subjects.inbox(member.public),
        credentials=member.credentials,
        settings=QUICK,
    )
    async with bus:
        await bus.wait_connected(10)


async def test_missing_credentials_are_fetched_first(nats: Nats) -> None:
    """A node without a JWT, with a hub that gives one, connects without more ado."""
    member = nats.member(RIGHTS)
    member.jwt = ""

    def credentials() -> Credentials:
        if not member.jwt:
            raise NotFound("no JWT yet", kind="not-joined")
        return member.credentials()

    async with member.bus(credentials=credentials) as bus:
        await bus.wait_connected(10)
        assert member.renewals == 1


async def test_no_server_at_all_is_invalid() -> None:
    """A bus without a server is refused when it is made."""

    def credentials() -> Credentials:
        raise AssertionError

    with pytest.raises(InvalidInput):
        Bus([], name="x", inbox_prefix="_INBOX.x", credentials=credentials)


async def test_every_refusal_is_one_of_ours(nats: Nats) -> None:
    """A connection killed at any moment under load raises EntrepotErrors and nothing else."""
    member = nats.member(RIGHTS)
    want = subjects.hub_verb("demo", "want", member.public)
    outcomes: list[str] = []
    # The hub's answers meet the broken connection too: that is told, and costs nothing.
    async with nats.hub(on_error=lambda error, _: outcomes.append(error.kind)) as hub, member.bus() as bus:
        await hub.wait_connected(5)
        await bus.wait_connected(5)
        await hub.subscribe(subjects.hub_pattern("want"), echo, pending=4096)
        stop = time.monotonic() + 1.5

        async def ask() -> None:
            while time.monotonic() < stop:
                try:
                    await bus.request(want, b"x", 2)
                    outcomes.append("answer")
                except RetryLater as error:
                    outcomes.append(error.kind)
                    await asyncio.sleep(0.01)
                except EntrepotError as error:
                    outcomes.append(f"unexpected {error.kind}")

        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(ask())
            for _ in range(3):
                await asyncio.sleep(0.2)
                await kill_server(nats)
        await bus.wait_connected(10)
        await hub.wait_connected(10)
    assert "answer" in outcomes
    assert not [outcome for outcome in outcomes if outcome.startswith("unexpected")]
