"""The bus: one supervised NATS connection that survives whatever happens to a connection.

A :class:`Bus` connects, keeps its subscriptions over reconnects and over clients that were closed for good,
renews its credentials at 50 to 70 % of their life, and tells refusals. Messages are lossy: what was published
while the connection broke may be lost, so whoever uses the bus repeats what matters.

A server is chosen in turn from a shuffled list; between attempts the bus waits a random part of a doubling
span. It gives up only when the server refuses its credentials *and* the hub denies new ones
(:data:`BusState.REVOKED`).
"""

from __future__ import annotations

import asyncio
import inspect
import re
import secrets
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from entrepot.adapters.bus_link import Link
from entrepot.adapters.bus_renewal import Renewal
from entrepot.adapters.bus_state import BusSettings, BusState, BusStats
from entrepot.adapters.bus_subscription import Handler, Message, OnError, Subscription
from entrepot.core.errors import Denied, EntrepotError, InvalidInput, RetryLater
from entrepot.core.keyring import Credentials

__all__ = ["Bus", "BusSettings", "BusState", "BusStats", "Credentials", "Handler", "Message", "Subscription"]

_TOKEN: Final = r"[!-)+-\-/-=?-~]+"  # printable, without * . > and blanks
_PUBLISHED: Final = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*")
_SUBSCRIBED: Final = re.compile(rf"(?:{_TOKEN}|\*)(?:\.(?:{_TOKEN}|\*))*(?:\.>)?|>")
_QUEUE: Final = re.compile(r"[A-Za-z0-9_-]{0,64}")
_MAX_SUBJECT: Final = 512
_CLOCK_KINDS: Final = frozenset({"clock-skew", "replayed", "expired"})  # denials that pass, nobody was expelled


@dataclass(slots=True, eq=False)
class _Request:
    subject: str  # lower case, as violations tell it
    answer: asyncio.Future[bytes]


class Bus:
    """One supervised connection to the bus, for a node or a hub. Use as ``async with``; it does not wait to
    be up.

    ``credentials`` is called at each connection: cheap and synchronous. ``renew``, when given, fetches new
    ones before (it may raise EntrepotError; Denied ends the bus once the server refuses the old ones).
    ``on_up`` is called after each unplanned connection, with all subscriptions in place; ``on_down`` with the
    reason of a loss; ``on_violation(verb, subject)`` when the server refuses a message or subscription
    (subject in lower case). An EntrepotError of a handler or callback goes to ``on_error(error, where)``; any
    other, or any without ``on_error``, ends the bus: it leaves the ``async with`` block in an ExceptionGroup.
    """

    def __init__(
        self,
        servers: Sequence[str],
        *,
        name: str,
        inbox_prefix: str,
        credentials: Callable[[], Credentials],
        renew: Callable[[], Awaitable[None]] | None = None,
        settings: BusSettings | None = None,
        on_up: Callable[[], Awaitable[None] | None] | None = None,
        on_down: Callable[[EntrepotError], Awaitable[None] | None] | None = None,
        on_violation: Callable[[str, str], None] | None = None,
        on_error: OnError | None = None,
    ) -> None:
        if not servers:
            raise InvalidInput("a bus needs at least one server", kind="invalid-setting")
        _check(inbox_prefix, _PUBLISHED)
        self._settings = settings or BusSettings()
        self._random = secrets.SystemRandom()
        self._servers = self._random.sample(list(servers), len(servers))
        self._name = name
        self._credentials = credentials
        self._on_up = on_up
        self._on_down = on_down
        self._on_violation = on_violation
        self._on_error = on_error
        self._inbox = f"{inbox_prefix}.{secrets.token_hex(8)}"
        self.stats = BusStats()
        self._renewal = Renewal(credentials, renew, self._settings, self.stats, self._want_refresh)
        self._state = BusState.CONNECTING
        self._reason: EntrepotError = RetryLater("the bus is not connected yet", kind="bus-unreachable")
        self._settled = asyncio.Event()  # up, revoked or closed
        self._wake = asyncio.Event()  # for the supervisor
        self._refresh_wanted = False
        self._link: Link | None = None
        self._tls: ssl.SSLContext | None = None
        self._subscriptions: dict[Subscription, None] = {}
        self._requests: dict[str, _Request] = {}
        self._probes: list[tuple[str, str, list[bool]]] = []
        self._serial = 0
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._up_task: asyncio.Task[None] | None = None
        self._renewal_task: asyncio.Task[None] | None = None

    # --- life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("a bus can be started once")
        if any(server.startswith(("tls://", "wss://")) for server in self._servers):
            self._tls = self._settings.tls or await asyncio.to_thread(ssl.create_default_context)
        self._group = await asyncio.TaskGroup().__aenter__()
        self._add(Subscription(self, f"{self._inbox}.*", self._ignore, "", 1, receive=self._answered))
        self._spawn(self._supervise())
        self._renewal_task = self._spawn(self._renewal.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._group is not None
        self._stop()
        await self._group.__aexit__(None, None, None)  # what the block raised goes on as it is, not in a group

    async def aclose(self) -> None:
        """End the connection and all handlers; idempotent."""
        self._stop()
        others = self._tasks - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=self._settings.close_timeout)

    def _stop(self) -> None:
        if self._state is not BusState.CLOSED:
            self._settle(BusState.CLOSED, RetryLater("the bus was closed", kind="cancelled"))
        for task in self._tasks:
            task.cancel()

    @property
    def state(self) -> BusState:
        """Where the bus stands."""
        return self._state

    @property
    def connected(self) -> bool:
        """Whether messages can be sent now."""
        return self._state is BusState.UP and self._link is not None and not self._link.closed

    @property
    def reason(self) -> EntrepotError | None:
        """Why the bus is not up; None when it is."""
        return None if self._state is BusState.UP else self._reason

    async def wait_connected(self, timeout: float) -> None:  # noqa: ASYNC109  # part of the interface
        """Return once the bus is up. Raises Denied when it is revoked, RetryLater with the reason after
        ``timeout`` s.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self.connected:
                    if self._state in {BusState.REVOKED, BusState.CLOSED}:
                        raise _again(self._reason)
                    if self._state is BusState.UP:
                        await asyncio.sleep(0.01)  # the link has ended, the supervisor is about to notice
                    await self._settled.wait()
        except TimeoutError:
            raise RetryLater(
                self._reason.message, kind="bus-unreachable", hint=self._reason.hint, waited=timeout
            ) from None

    async def refresh(self) -> None:
        """Renew the credentials and reconnect with them; subscriptions stay. Raises what the renewal
        raises.
        """
        await self._renewal.renew()
        before = self.stats.connects
        self._want_refresh()
        limit = self._settings.refresh_grace + 2 * self._settings.connect_timeout
        try:
            async with asyncio.timeout(limit):
                while self.stats.connects == before:
                    if self._state in {BusState.REVOKED, BusState.CLOSED}:
                        raise _again(self._reason)
                    if self._state is BusState.UP:
                        self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            raise RetryLater(self._reason.message, kind="bus-unreachable", waited=limit) from None

    # --- messages ------------------------------------------------------------------------------------------

    async def publish(self, subject: str, payload: bytes, *, reply: str | None = None, confirm: bool = False) -> None:
        """Send a message. It may be lost after this returns.

        With ``confirm`` return only when the server has taken it: a refusal is raised as Denied ``no-right``
        (a refusal of an unconfirmed message is counted and told to ``on_violation``). Raises InvalidInput for
        a payload past ``max_payload`` bytes or a malformed subject, RetryLater ``bus-unreachable`` when not
        connected.
        """
        self._check_message(subject, payload)
        link = await self._ready()
        if not confirm:
            await link.publish(subject, payload, reply)
            return
        probe = ("publish", subject.lower(), [False])
        self._probes.append(probe)
        try:
            await link.publish(subject, payload, reply)
            await self._flush(link)
        finally:
            self._probes.remove(probe)
        if probe[2][0]:
            raise _no_right("publish to", subject)

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:  # noqa: ASYNC109  # as above
        """Send a message and return the first answer's payload.

        Raises RetryLater ``deadline`` after ``timeout`` seconds, ``hub-unreachable`` when nobody listens
        there, ``bus-unreachable`` when the connection is or gets lost; Denied ``no-right`` when the server
        refuses.
        """
        self._check_message(subject, payload)
        if len(self._requests) >= self._settings.max_requests:
            raise RetryLater("too many requests wait for an answer", kind="busy")
        self._serial += 1
        token = f"{self._serial:x}"
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                link = await self._ready()
                self._requests[token] = _Request(subject.lower(), answer)
                await link.publish(subject, payload, f"{self._inbox}.{token}")
                return await answer
        except TimeoutError:
            raise RetryLater(f"no answer on {subject} within {timeout:g} s", kind="deadline", waited=timeout) from None
        finally:
            self._requests.pop(token, None)
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # taken note of, or asyncio complains
            self._wake.set()  # a planned reconnect waits for the last of them

    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = "", pending: int | None = None
    ) -> Subscription:
        """Have ``handler`` called with each message, one at a time, in a task of this subscription.

        At most ``pending`` messages wait for it, further ones are dropped and counted. A standing order:
        while the bus is down it is only noted. Raises RetryLater ``busy`` past ``max_subscriptions``, Denied
        ``no-right`` when the server refuses it now.
        """
        _check(subject, _SUBSCRIBED)
        _check(queue, _QUEUE)
        self._alive()
        if len(self._subscriptions) > self._settings.max_subscriptions:  # the inbox is one of them
            raise RetryLater("too many subscriptions", kind="busy", subscriptions=len(self._subscriptions) - 1)
        subscription = Subscription(self, subject, handler, queue, pending or self._settings.pending)
        self._add(subscription)
        link = self._link
        if link is None or not self.connected:
            return subscription
        probe = ("subscription", subject.lower(), [False])
        self._probes.append(probe)
        try:
            await subscription.attach(link)
            await link.flush(self._settings.flush_timeout)
        except EntrepotError:
            return subscription  # the connection has ended, the next takes it over
        finally:
            self._probes.remove(probe)
        if probe[2][0]:
            await subscription.unsubscribe()
            raise _no_right("subscribe to", subject)
        return subscription

    async def flush(self) -> None:
        """Return when the server has seen what was published before. Raises RetryLater."""
        await self._flush(await self._ready())

    # --- for subscriptions (same package) ------------------------------------------------------------------

    @property
    def pending_bytes(self) -> int:
        """The most bytes that wait for one subscription's handler."""
        return self._settings.pending_bytes

    def forget(self, subscription: Subscription) -> None:
        """Take a subscription that has ended off the list."""
        self._subscriptions.pop(subscription, None)

    def failed(self, error: EntrepotError, where: str) -> None:
        """A handler or callback raised: tell ``on_error``, or raise."""
        self.stats.handler_errors += 1
        if self._on_error is None:
            raise error
        self._on_error(error, where)

    # --- inside --------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        assert self._group is not None
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _add(self, subscription: Subscription) -> None:
        self._subscriptions[subscription] = None
        subscription.task = self._spawn(subscription.run())

    def _alive(self) -> None:
        if self._group is None:
            raise RuntimeError("the bus was not started: use it with `async with`")
        if self._state in {BusState.REVOKED, BusState.CLOSED}:
            raise _again(self._reason)

    async def _ready(self) -> Link:
        self._alive()
        if self._state is BusState.REFRESHING:
            await self.wait_connected(self._settings.refresh_grace + self._settings.connect_timeout)
        if self._link is None or not self.connected:
            raise self._lost(self._reason)
        return self._link

    async def _flush(self, link: Link) -> None:
        try:
            await link.flush(self._settings.flush_timeout)
        except Denied as denied:  # the connection has ended; whether for good is the supervisor's to find out
            raise self._lost(denied) from denied

    def _lost(self, reason: EntrepotError) -> RetryLater:
        return RetryLater(reason.message, kind="bus-unreachable", hint=reason.hint)

    def _check_message(self, subject: str, payload: bytes) -> None:
        _check(subject, _PUBLISHED)
        if len(payload) > self._settings.max_payload:
            raise InvalidInput(
                f"a message has at most {self._settings.max_payload} bytes, not {len(payload)}",
                kind="invalid-message",
                length=len(payload),
            )

    async def _ignore(self, message: Message) -> None:
        """The inbox has no handler: answers go to the requests that wait for them."""

    def _answered(self, subject: str, payload: bytes, _reply: str | None, unanswered: bool) -> None:
        request = self._requests.get(subject.rpartition(".")[2])
        if request is None or request.answer.done():
            return
        if unanswered:
            request.answer.set_exception(
                RetryLater(
                    "the hub is not listening",
                    kind="hub-unreachable",
                    hint="The bus works, but no hub is connected to it: is the hub running?",
                )
            )
        else:
            request.answer.set_result(payload)

    def _violated(self, verb: str, subject: str) -> None:
        self.stats.violations += 1
        claimed = False
        for kind, wanted, refused in self._probes:
            if (kind, wanted) == (verb, subject):
                refused[0] = claimed = True
        if verb == "publish":
            for request in self._requests.values():
                if request.subject == subject and not request.answer.done():
                    request.answer.set_exception(_no_right("publish to", subject))
                    claimed = True
        if not claimed and self._on_violation is not None:
            self._on_violation(verb, subject)

    def _settle(self, state: BusState, reason: EntrepotError | None = None) -> None:
        """Move to another state, and let those know who wait for it."""
        self._state = state
        if reason is not None:
            self._reason = reason
        if state in {BusState.UP, BusState.REVOKED, BusState.CLOSED}:
            self._settled.set()
        else:
            self._settled.clear()
        if state in {BusState.DOWN, BusState.REVOKED, BusState.CLOSED}:
            self._fail_requests()

    def _fail_requests(self) -> None:
        final = self._state in {BusState.REVOKED, BusState.CLOSED}
        for request in self._requests.values():
            if not request.answer.done():
                request.answer.set_exception(_again(self._reason) if final else self._lost(self._reason))

    async def _supervise(self) -> None:
        failures = 0
        refused = False  # the server does not take these credentials
        loop = asyncio.get_running_loop()
        while True:
            try:
                if refused:
                    try:
                        await self._renewal.renew()
                    except Denied as denied:
                        if denied.kind not in _CLOCK_KINDS:
                            self._revoked(denied)
                            return
                        raise
                refused = True  # until the server took them; without any, too, new ones are due
                credentials = self._credentials()
                refused = False
                await self._connect(credentials, failures)
            except EntrepotError as error:
                refused = refused or isinstance(error, Denied)
                reason = error
            else:
                refused = False
                started = loop.time()
                ended = await self._serve()
                if loop.time() - started >= self._settings.stable_after:
                    failures = 0
                if ended is None:
                    self.stats.refreshes += 1
                    continue
                refused = isinstance(ended, Denied)
                reason = ended
            self._went_down(reason)
            failures += 1
            await self._back_off(failures)

    def _want_refresh(self) -> None:
        self._refresh_wanted = True
        self._wake.set()

    async def _connect(self, credentials: Credentials, attempt: int) -> None:
        """A new link with all subscriptions, and the state UP."""
        settings = self._settings
        link = Link(
            self._servers[attempt % len(self._servers)],
            credentials,
            name=self._name,
            connect_timeout=settings.connect_timeout,
            ping_interval=settings.ping_interval,
            tls=self._tls,
            on_violation=self._violated,
            on_closed=self._wake.set,
        )
        await link.open()
        try:
            self._renewal.plan(credentials)
            attached = -1
            while attached != len(self._subscriptions):  # some may be added meanwhile
                attached = len(self._subscriptions)
                for subscription in list(self._subscriptions):
                    await subscription.attach(link)
                await link.flush(settings.flush_timeout)
        except BaseException:
            await link.close()
            raise
        planned = self._state is BusState.REFRESHING
        self._link = link
        self.stats.connects += 1
        self._settle(BusState.UP)
        if self._on_up is not None and not planned:
            self._up_task = self._spawn(self._call(self._on_up, "on_up"))

    async def _serve(self) -> EntrepotError | None:
        """Wait until the link ends (the reason) or a planned reconnect is due (None); the link is closed
        then.
        """
        link = self._link
        assert link is not None
        try:
            while True:
                self._wake.clear()
                if link.closed:
                    return link.reason
                if self._refresh_wanted:
                    self._refresh_wanted = False
                    self._settle(BusState.REFRESHING, RetryLater("the bus reconnects", kind="bus-unreachable"))
                    await self._finish_requests(link)
                    return None
                await self._wait_for_wake(self._settings.flush_timeout)
        finally:
            self._link = None
            self.stats.dropped += link.dropped
            await link.close()

    async def _finish_requests(self, link: Link) -> None:
        end = asyncio.get_running_loop().time() + self._settings.refresh_grace
        while self._requests and not link.closed and asyncio.get_running_loop().time() < end:
            self._wake.clear()
            await self._wait_for_wake(max(0.0, end - asyncio.get_running_loop().time()))
        self._fail_requests()

    async def _wait_for_wake(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _back_off(self, failures: int) -> None:
        """Wait a random part of a doubling span; a wanted refresh ends it."""
        span = min(self._settings.backoff_longest, self._settings.backoff_first * 2.0 ** min(failures - 1, 16))
        loop = asyncio.get_running_loop()
        end = loop.time() + self._random.uniform(span / 8, span)
        while not self._refresh_wanted and loop.time() < end:
            self._wake.clear()
            await self._wait_for_wake(end - loop.time())
        self._refresh_wanted = False

    def _went_down(self, reason: EntrepotError) -> None:
        was_up = self._state in {BusState.UP, BusState.REFRESHING}
        self._settle(BusState.DOWN, reason)
        if self._up_task is not None:
            self._up_task.cancel()
            self._up_task = None
        if was_up:
            self.stats.losses += 1
            self._tell_down(reason)

    def _revoked(self, denied: Denied) -> None:
        kind = denied.kind if denied.kind in {"revoked", "suspended"} else "revoked"
        reason = Denied(denied.message, kind=kind, hint=denied.hint, answer=denied.kind)
        if self._renewal_task is not None:
            self._renewal_task.cancel()
        self._settle(BusState.REVOKED, reason)
        self._tell_down(reason)

    def _tell_down(self, reason: EntrepotError) -> None:
        on_down = self._on_down
        if on_down is not None:
            self._spawn(self._call(lambda: on_down(reason), "on_down"))

    async def _call(self, callback: Callable[[], Awaitable[None] | None], where: str) -> None:
        try:
            result = callback()
            if inspect.isawaitable(result):
                await result
        except EntrepotError as error:
            self.failed(error, where)


def _check(text: str, pattern: re.Pattern[str]) -> None:
    if len(text) > _MAX_SUBJECT or not pattern.fullmatch(text):
        raise InvalidInput(f"not a subject or queue of the bus: {text[:100]!r}", kind="invalid-message")


def _again(error: EntrepotError) -> EntrepotError:
    """The same error as a new object: one object raised in many tasks would collect their tracebacks."""
    return type(error)(error.message, kind=error.kind, hint=error.hint, **error.data)


def _no_right(what: str, subject: str) -> Denied:
    return Denied(
        f"this node may not {what} {subject}",
        kind="no-right",
        hint="Ask the channel's owner for the right",
        subject=subject,
    )
