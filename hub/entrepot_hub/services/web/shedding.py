"""Who may ask how often and how much at once: what is too much is refused at once, and told when there is room again.

A request counts for the node that signed it once its signature is verified, and for the address that it came from as
long as it is not: so nobody uses up what another node may ask. ``/healthz`` and ``/readyz`` are never refused; they
cost next to nothing and their connections are counted.
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
from entrepot_hub.core.addresses import check_networks, client
from entrepot_hub.core.rates import Crowd, Rate, Tally, TokenBuckets

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Paths that are never refused.
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
#: Seconds after which one that found no room may ask again: others end within milliseconds, as a rule.
_PAUSE: Final = 1.0
#: Nodes that asked lately and were known: they are looked up without a token of their address.
_KNOWN: Final = 20_000
_FORWARDED: Final = "X-Forwarded-For"


@dataclass(frozen=True, slots=True, kw_only=True)
class SheddingSettings:
    """What is let in. ``node``: signed requests of one node. ``address``: requests of one client address that no node
    known here has signed; an IPv6 client has the /64 that it is in. ``joins``: failed joins, of one address and with
    one invite. ``of_one``: requests of one node or of one address at once; ``at_once``: of everybody, ``bulk``: uploads
    and downloads of folder buckets at once. ``proxies``: networks whose word (``X-Forwarded-For``) is taken for whom a
    request comes from; nobody's, unless they are named."""

    node: Rate = field(default_factory=lambda: Rate(20.0, 200.0))
    address: Rate = field(default_factory=lambda: Rate(10.0, 200.0))
    joins: Rate = field(default_factory=lambda: Rate(0.1, 10.0))
    of_one: int = 64
    at_once: int = 512
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
        self._movers = Crowd(self.settings.bulk, self.settings.bulk)
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
            if request.path in OPEN_PATHS:
                return await handler(request)
            if self._bulk and request.path.startswith(self._bulk):
                return await self._moved(request, handler)
            visit = _Visit(self._address(request))
            request[VISIT] = visit
            if not _claims(request):
                self._count(visit)
            self._enter(visit.name)
            try:
                return await handler(request)
            finally:
                self._crowd.leave(visit.name)

        return middleware

    async def _moved(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._movers.enter(""):
            raise self._overloaded()
        try:
            return await handler(request)
        finally:
            self._movers.leave("")

    # -- what is found out of a request while it is handled ------------------------------------------------------

    def stranger(self, request: web.Request, node: str | None = None) -> None:
        """Nobody whom the hub knows signed this request, as far as is known now: it counts for its address, once.

        ``node``: who its signature proves that it is, if that was checked. One that asked lately counts for itself.
        Raises RetryLater (``too-many-requests``)."""
        visit = request.get(VISIT)
        if visit is not None and (node is None or node not in self._known):
            self._count(visit)

    def caller(self, request: web.Request, node: str) -> None:
        """An active node (its public key) signed this request: it counts for the node, and no more for the address.

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
        self._crowd.leave(visit.name)
        if not self._crowd.enter(node):
            self._crowd.enter(visit.address)  # which had room a moment ago
            raise self._crowded(node)
        visit.name = node
        wait = self._nodes.wait(node, now)
        if wait:
            raise self._too_many("node", node, wait)

    def counts(self, request: web.Request, node: str) -> None:
        """The node's request is no repetition of another's: it takes one of its tokens. After :meth:`caller`."""
        if VISIT in request:
            self._nodes.take(node, self._clock())

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

    def _enter(self, name: str) -> None:
        if self._crowd.full:
            raise self._overloaded()
        if not self._crowd.enter(name):
            raise self._crowded(name)

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
    address."""

    address: str
    name: str = field(default="")
    counted: bool = False

    def __post_init__(self) -> None:
        self.name = self.address


#: Where a request keeps what was found out about it.
VISIT: Final = web.RequestKey("visit", _Visit)


def _claims(request: web.Request) -> bool:
    """Whether it claims to be a node's; whether that is true is seen when its signature is checked."""
    return "Signature-Input" in request.headers


class Doorway:
    """Makes the protocols of a listening socket: those of ``serve``, and beyond ``most`` open connections one that
    closes at once. ``open_now`` counts them."""

    def __init__(self, serve: Callable[[], asyncio.Protocol], open_now: Callable[[], int], most: int) -> None:
        self._serve = serve
        self._open_now = open_now
        self._most = most
        self.turned_away = 0

    def __call__(self) -> asyncio.Protocol:
        """The protocol of one more connection."""
        if self._open_now() >= self._most:
            self.turned_away += 1
            return _Closed()
        return self._serve()


class _Closed(asyncio.Protocol):
    """A connection that there is no room for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()
