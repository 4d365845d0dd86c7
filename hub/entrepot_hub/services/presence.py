"""Who is connected to the bus, by its own events; and what follows for leases when a session goes or comes back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from itertools import islice
from typing import Any

from entrepot.core.errors import RetryLater
from entrepot_hub.adapters.accounts import ConnectionEvent
from entrepot_hub.services.arbiter import Arbiter

#: A node that was heard so many seconds ago counts as online where no event told otherwise (a hub that was restarted
#: beside a running NATS server sees no connects).
HEARD = 90.0
#: Connections that a node may have at once, whatever its sessions: the newest beyond them is ended.
CONNECTIONS = 128
#: Seconds in which what sessions come and go is told the ledger together, after the first; and so many at once.
_TOGETHER, _BATCH = 0.1, 1000
#: Seconds after which a ledger that was busy is told again.
_AGAIN = 1.0
#: Sessions whose coming and going waits to be told; leases of what exceeds them end by themselves.
_MOST = 100_000

type Session = tuple[str, str]
type Kick = Callable[[str], Coroutine[Any, Any, None]]


class Presence:
    """Connections by node and session. ``spawn`` runs work in the background; ``revocations`` is where revocations
    stand; ``kick`` ends a connection."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        grace: float,
        revocations: Callable[[], Mapping[str, int]],
        kick: Kick | None = None,
    ) -> None:
        self._clock = clock
        self._spawn = spawn
        self._grace = grace
        self._revocations = revocations
        self._kick = kick
        self._connections: dict[str, dict[str, set[str]]] = {}  # by node and session
        self._links: dict[str, dict[str, ConnectionEvent]] = {}  # all of a node, whatever they call themselves
        self._heard: dict[str, float] = {}
        self._arbiter: Arbiter | None = None
        self._news: dict[Session, None] = {}  # sessions that came or went, in order
        self._leaving: deque[tuple[float, Session]] = deque()  # those that went, by when they are gone for good
        self._telling = False
        self._woken = asyncio.Event()
        self._looking = asyncio.Lock()
        self._moved: set[str] | None = None  # connections of which something was heard during a look
        self._unseen: set[str] = set()  # connections that the last look did not find

    def serve(self, arbiter: Arbiter) -> None:
        """Tell this arbiter from now on."""
        self._arbiter = arbiter

    @property
    def sessions(self) -> int:
        """Sessions that are connected, as far as is known."""
        return sum(map(len, self._connections.values()))

    def online(self, node: str) -> bool:
        """Whether a session of this node is connected, as far as is known."""
        return node in self._connections or self._clock() < self._heard.get(node, float("-inf")) + HEARD

    def revoked_at(self, node: str) -> int | None:
        """Unix second of the node's last revocation on the bus, if it is still remembered."""
        return self._revocations().get(node)

    def heard(self, node: str) -> None:
        """A message of this node came in."""
        if len(self._heard) > 100_000:
            self._heard.clear()
        self._heard[node] = self._clock()

    def heard_since(self, moment: float) -> dict[str, float]:
        """When each node was last heard, for those heard after ``moment`` (unix seconds). One that is connected,
        however quiet, is heard now."""
        heard = {node: at for node, at in self._heard.items() if at > moment}
        return heard | dict.fromkeys(self._connections, self._clock())

    def happened(self, event: ConnectionEvent) -> None:
        """A connection began or ended."""
        if self._moved is not None:
            self._moved.add(event.connection)
        links = self._links.setdefault(event.node, {})
        if event.connected:
            links[event.connection] = event
            if len(links) > CONNECTIONS and self._kick is not None:
                self._spawn(self._kick(event.connection))
        else:
            links.pop(event.connection, None)
        if not links:
            del self._links[event.node]
        if event.session is not None:
            self._of_session(event, (event.node, event.session))

    async def look(self, connections: Callable[[], Awaitable[Iterable[ConnectionEvent]]]) -> None:
        """Set right what is known by what the servers say: events may be lost, and a server that ended tells nothing
        of its connections. One that two looks in a row do not find has ended. Raises what ``connections`` raises."""
        async with self._looking:
            moved = self._moved = set()
            try:
                found = {event.connection: event for event in await connections()}
            finally:
                self._moved = None
            known = {name: event for links in self._links.values() for name, event in links.items()}
            unseen = known.keys() - found.keys() - moved
            for name in sorted(unseen & self._unseen):
                event = known[name]
                self.happened(
                    ConnectionEvent(
                        node=event.node,
                        session=event.session,
                        kind=event.kind,
                        connected=False,
                        reason="not there any more",
                        connection=name,
                    )
                )
            self._unseen = unseen - self._unseen
            for name, event in found.items():
                if name not in known and name not in moved:
                    self.happened(event)

    def _of_session(self, event: ConnectionEvent, key: Session) -> None:
        node, session = key
        sessions = self._connections.setdefault(node, {})
        if event.connected:
            known = session in sessions
            sessions.setdefault(session, set()).add(event.connection)
            if not known:
                self._tell(key)
            return
        left = sessions.get(session, set())
        left.discard(event.connection)
        if not left:
            sessions.pop(session, None)
        if not sessions:
            del self._connections[node]
        if not left:
            self._heard.pop(node, None)
            if len(self._leaving) < _MOST:
                self._leaving.append((asyncio.get_running_loop().time() + self._grace, key))
            self._tell(key)

    # -- what follows -----------------------------------------------------------------------------------------------

    def _tell(self, key: Session) -> None:
        """Have the ledger told how the session is; all that come and go at the same time cost it one call."""
        if self._arbiter is None:
            return
        if len(self._news) < _MOST:
            self._news[key] = None
        self._woken.set()
        if not self._telling:
            self._telling = self._spawn(self._tell_all(self._arbiter)) is not False

    async def _tell_all(self, arbiter: Arbiter) -> None:
        try:
            while self._news or self._leaving:
                pause = _TOGETHER
                gone = self._gone()
                batch = list(islice(self._news, _BATCH))
                for key in batch:
                    del self._news[key]
                if gone:
                    arbiter.rounds.departed(gone.keys(), self._clock())
                told = list(dict.fromkeys((*batch, *gone)))  # again those that are gone: grants were on their way
                came = [key for key in told if self._here(key)]
                try:
                    if told:
                        await arbiter.sessions_moved(came, [key for key in told if not self._here(key)])
                except RetryLater:
                    self._news = dict.fromkeys(told) | self._news
                    pause = _AGAIN
                await asyncio.sleep(pause)
                await self._wait()
        finally:
            self._telling = False

    async def _wait(self) -> None:
        """Until there is something to tell."""
        if self._news or not self._leaving:
            return
        self._woken.clear()
        pause = self._leaving[0][0] - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(pause, 0.0)):
                await self._woken.wait()
        except TimeoutError:
            return

    def _gone(self) -> dict[Session, None]:
        """Sessions that went and did not come back in time."""
        now, gone = asyncio.get_running_loop().time(), dict[Session, None]()
        while self._leaving and self._leaving[0][0] <= now:
            key = self._leaving.popleft()[1]
            if not self._here(key):
                gone[key] = None
        return gone

    def _here(self, key: Session) -> bool:
        return key[1] in self._connections.get(key[0], {})
