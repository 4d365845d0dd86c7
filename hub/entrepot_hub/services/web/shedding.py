"""Who may ask how often and how much at once: what is too much is refused at once, and told when there is room again.

A request counts for the node that signed it once its signature is verified, and for the address that it came from as
long as it is not: so nobody uses up what another node may ask. It takes no place among those at once before all of it
is there, and those that need no signature take half of the places at most. ``/healthz`` and ``/readyz`` are never
refused; they cost next to nothing and their connections are counted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
from aiohttp import web

from entrepot.core.errors import Denied, EntrepotError, RetryLater
from entrepot_hub.core.addresses import Network, check_networks, client, is_among
from entrepot_hub.core.rates import Crowd, Rate, Tally, TokenBuckets
from entrepot_hub.services.web.signatures import read_body

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Paths that are never refused.
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
#: Beginnings of the paths whose requests are signed: elsewhere a signature is not looked at, and spares nobody.
SIGNED_PATHS: Final = ("/v1/session", "/v1/channels/")
#: Seconds within which the body of a request is there.
BODY_TIME: Final = 5.0
#: Seconds after which one that found no room may ask again: others end within milliseconds, as a rule.
_PAUSE: Final = 1.0
#: Nodes that asked lately and were known: they are looked up without a token of their address.
_KNOWN: Final = 20_000
_FORWARDED: Final = "X-Forwarded-For"


@dataclass(frozen=True, slots=True, kw_only=True)
class SheddingSettings:
    """What is let in. ``node``: signed requests of one node. ``address``: requests of one client address that no node
    known here has signed; an IPv6 client has the /64 that it is in. ``joins``: failed joins, of one address and with
    one invite. ``of_one``: requests of one node or of one address at once; ``at_once``: of everybody, of which half may
    do without a signature. ``bulk_of_one``, ``bulk``: uploads and downloads of folder buckets at once, of one address
    and of everybody. ``proxies``: networks whose word (``X-Forwarded-For``) is taken for whom a
    request comes from; nobody's, unless they are named."""

    node: Rate = field(default_factory=lambda: Rate(20.0, 200.0))
    address: Rate = field(default_factory=lambda: Rate(10.0, 200.0))
    joins: Rate = field(default_factory=lambda: Rate(0.1, 10.0))
    of_one: int = 64
    at_once: int = 512
    bulk_of_one: int = 128
    bulk: int = 512
    proxies: tuple[str, ...] = ()


class Shedding:
    """The limits of one hub's web application. ``clock`` is monotonic; ``bulk``: paths that begin so move bulk bytes
    and are counted apart."""

    def __init__(
        self,
        settings: SheddingSettings | None = None,
        *,
        clock: Callable[[], float],
        bulk: tuple[str, ...] = (),
    ) -> None:
        self.settings = settings or SheddingSettings()
        self._clock = clock
        self._bulk = bulk
        self._nodes = TokenBuckets(self.settings.node)
        self._addresses = TokenBuckets(self.settings.address)
        self._joins = TokenBuckets(self.settings.joins)
        self._known: dict[str, None] = {}
        self._crowd = Crowd(self.settings.of_one, self.settings.at_once)
        self._unsigned = 0
        self._most_unsigned = max(self.settings.at_once // 2, 1)
        self._movers = Crowd(self.settings.bulk_of_one, self.settings.bulk)
        self._proxies = check_networks(self.settings.proxies)
        self._tally = Tally()
        self._log = structlog.get_logger("entrepot_hub.web")
        #: Requests refused since the start: ``node``, ``address`` and ``join`` for their rate, ``crowd`` for one
        #: party's number at once, ``full`` for everybody's.
        self.refused: Counter[str] = Counter()

    # -- the middleware ------------------------------------------------------------------------------------------

    @property
    def middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        """The middleware: it stands inside the one that turns errors into answers."""

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            _told_whole(request)
            if request.path in OPEN_PATHS:
                return await handler(request)
            visit = _Visit(self._address(request), claims=_claims(request))
            if self._bulk and request.path.startswith(self._bulk):
                return await self._moved(request, handler, visit)
            request[VISIT] = visit
            if not visit.claims:
                self._count(visit)
            try:
                answer = await self._handled(request, handler, visit)
            except (EntrepotError, web.HTTPException):
                self._ended(visit)
                raise
            self._ended(visit)
            return answer

        return middleware

    async def _handled(self, request: web.Request, handler: Handler, visit: _Visit) -> web.StreamResponse:
        await _wait_for_body(request)
        self._enter(visit)
        try:
            return await handler(request)
        finally:
            self._leave(visit)

    def _ended(self, visit: _Visit) -> None:
        """Whoever claimed to be a node, and was not found to be one, has had a request of its address."""
        if not visit.named:
            self._count(visit)

    async def _moved(self, request: web.Request, handler: Handler, visit: _Visit) -> web.StreamResponse:
        if self._movers.full:
            raise self._overloaded()
        if not self._movers.enter(visit.address):
            raise self._crowded(visit.address)
        try:
            answer = await handler(request)
        except (EntrepotError, web.HTTPException):
            self._count(visit)
            raise
        finally:
            self._movers.leave(visit.address)
        if answer.status == web.HTTPForbidden.status_code:  # its URL is none that the hub signed, or is no more
            self._count(visit)
        return answer

    # -- what is found out of a request while it is handled ------------------------------------------------------

    def stranger(self, request: web.Request, node: str | None = None) -> None:
        """Nobody whom the hub knows signed this request, as far as is known now: it counts for its address, once.

        ``node``: who its signature proves that it is, if that was checked. One that asked lately counts for itself.
        Raises RetryLater (``too-many-requests``)."""
        visit = request.get(VISIT)
        if visit is not None and (node is None or node not in self._known):
            self._count(visit)

    def caller(self, request: web.Request, node: str) -> None:
        """An active node (its public key) signed this request: it counts for the node, takes one of its tokens, and
        counts no more for the address. :meth:`repeated` gives the token back.

        Raises RetryLater (``too-many-requests``)."""
        visit = request.get(VISIT)
        if visit is None:
            return
        now = self._clock()
        self._known.pop(node, None)
        self._known[node] = None
        if len(self._known) > _KNOWN:
            del self._known[next(iter(self._known))]
        if visit.counted:
            self._addresses.give(visit.address, now)
            visit.counted = False
        visit.named = True
        self._crowd.leave(visit.name)
        if not self._crowd.enter(node):
            self._crowd.enter(visit.address)  # which had room a moment ago
            raise self._crowded(node)
        visit.name = node
        wait = self._nodes.take(node, now)
        if wait:
            raise self._too_many("node", node, wait)

    def repeated(self, request: web.Request, node: str) -> None:
        """The node's request was made before, by it or by somebody who overheard it: it is nobody's. After
        :meth:`caller`."""
        visit = request.get(VISIT)
        if visit is not None:
            self._nodes.give(node, self._clock())
            visit.named = False

    @contextmanager
    def joining(self, request: web.Request, invite: str) -> Iterator[None]:
        """While somebody tries to join with this invite (its id): it counts for the address and for the invite if it
        ends in Denied.

        Raises RetryLater (``too-many-requests``)."""
        visit = request.get(VISIT)
        names = () if visit is None else (visit.address, f"invite {invite}")
        now = self._clock()
        wait = max((self._joins.wait(name, now) for name in names), default=0.0)
        if visit is not None and wait:
            raise self._too_many("join", visit.address, wait)
        for name in names:
            self._joins.take(name, now)  # before the outcome is known: those side by side do not all pass
        try:
            yield
        except Denied:
            raise
        except EntrepotError:
            self._return(names)
            raise
        self._return(names)

    # -- how -----------------------------------------------------------------------------------------------------

    def _return(self, names: Sequence[str]) -> None:
        for name in names:
            self._joins.give(name, self._clock())

    def _count(self, visit: _Visit) -> None:
        if visit.counted:
            return
        wait = self._addresses.take(visit.address, self._clock())
        if wait:
            raise self._too_many("address", visit.address, wait)
        visit.counted = True

    def _enter(self, visit: _Visit) -> None:
        # To check a signature takes no time: those that claim one have all places, and hold none that they do not earn.
        if self._crowd.full or (not visit.claims and self._unsigned >= self._most_unsigned):
            raise self._overloaded()
        if not self._crowd.enter(visit.name):
            raise self._crowded(visit.name)
        self._unsigned += not visit.claims

    def _leave(self, visit: _Visit) -> None:
        self._crowd.leave(visit.name)
        self._unsigned -= not visit.claims

    def _too_many(self, of: str, name: str, wait: float) -> RetryLater:
        self._note(of, name)
        return RetryLater(
            "this is asked too often",
            kind="too-many-requests",
            hint="Ask again after the time that the answer names (retry_after, in seconds).",
            retry_after=round(wait, 3),
        )

    def _crowded(self, name: str) -> RetryLater:
        self._note("crowd", name)
        return RetryLater("too many requests of yours are under way", kind="too-many-requests", retry_after=_PAUSE)

    def _overloaded(self) -> RetryLater:
        self._note("full", "")
        return RetryLater("the hub has too much to do just now", kind="busy", retry_after=_PAUSE)

    def _note(self, of: str, name: str) -> None:
        self.refused[of] += 1
        count = self._tally.note(f"{of} {name}", self._clock())
        if count:
            self._log.warning("requests refused", limit=of, of=name or None, count=count)

    def _address(self, request: web.Request) -> str:
        return client(request.remote, request.headers.getall(_FORWARDED, ()), self._proxies)


@dataclass(slots=True)
class _Visit:
    """A request under way. ``name``: whom it counts for among those at once. ``counted``: it took a token of its
    address. ``claims``: it says that a node signed it; ``named``: a node known here did."""

    address: str
    name: str = field(default="")
    counted: bool = False
    claims: bool = False
    named: bool = False

    def __post_init__(self) -> None:
        self.name = self.address


#: Where a request keeps what was found out about it.
VISIT: Final = web.RequestKey("visit", _Visit)


def _claims(request: web.Request) -> bool:
    """Whether it claims to be a node's where that matters; whether it is true is seen when its signature is checked."""
    return (
        "Signature-Input" in request.headers
        and request.path.startswith(SIGNED_PATHS)
        and request.match_info.http_exception is None
    )


async def _wait_for_body(request: web.Request) -> None:
    """Until all of it is there. Raises RetryLater (``deadline``) if it is not in time, and as :func:`read_body`."""
    try:
        async with asyncio.timeout(BODY_TIME):
            await read_body(request)
    except TimeoutError:
        raise RetryLater("the request's body did not arrive in time", kind="deadline", seconds=BODY_TIME) from None


class Doorway:
    """Makes the protocols of a listening socket: those of ``serve``, for at most ``most`` open connections, ``of_one``
    of them of one address. Beyond that, and when no request came whole (but for its body) within ``patience`` seconds,
    a connection is closed. ``proxies`` are the addresses of many and have as many connections as there are."""

    def __init__(
        self,
        serve: Callable[[], asyncio.Protocol],
        *,
        most: int,
        of_one: int,
        proxies: Sequence[Network] = (),
        patience: float,
    ) -> None:
        self.serve = serve
        self.patience = patience
        self._proxies = tuple(proxies)
        self._inside = Crowd(of_one, most)
        self.turned_away = 0

    def __call__(self) -> asyncio.Protocol:
        """The protocol of one more connection."""
        return _Guest(self)

    def enter(self, peer: tuple[str, int]) -> str | None:
        """A connection from this address and port: the name by which it leaves again; None if there is no room."""
        host, port = peer[:2]
        name = f"{host} {port}" if is_among(host, self._proxies) else client(host, (), ())
        if self._inside.enter(name):
            return name
        self.turned_away += 1
        return None

    def leave(self, name: str) -> None:
        """The connection is gone."""
        self._inside.leave(name)


class _Guest(asyncio.Protocol):
    """One connection: it is counted, and all else is left to the protocol that serves."""

    def __init__(self, doorway: Doorway) -> None:
        self._doorway = doorway
        self._serving: asyncio.Protocol | None = None
        self._name = ""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve it if there is room, else close it."""
        assert isinstance(transport, asyncio.Transport)
        peer = transport.get_extra_info("peername")
        name = self._doorway.enter(peer) if peer else None
        if name is None:
            transport.close()
            return
        self._name = name
        self._serving = self._doorway.serve()
        self._timer = asyncio.get_running_loop().call_later(self._doorway.patience, transport.abort)
        self._serving.connection_made(transport)

    def whole(self) -> None:
        """A request came whole."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self.whole()
        if self._serving is not None:
            self._doorway.leave(self._name)
            self._serving.connection_lost(exc)
            self._serving = None

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self._serving is not None:
            self._serving.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return None if self._serving is None else self._serving.eof_received()

    def pause_writing(self) -> None:
        """Pass it on."""
        if self._serving is not None:
            self._serving.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        if self._serving is not None:
            self._serving.resume_writing()


def _told_whole(request: web.Request) -> None:
    """Tell the request's connection that it brought one."""
    transport = request.transport
    guest = None if transport is None else transport.get_protocol()
    if isinstance(guest, _Guest):
        guest.whole()
