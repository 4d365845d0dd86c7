"""Who may connect and who is connected: the hub's hand on the NATS accounts, over a system-account bus.

Revocation: an account JWT that lists the node is pushed to the servers, which confirm it, end the node's
connections and refuse its JWTs issued up to that second. The list of revocations is the caller's (the hub's
database is the truth, and several hubs share it): every push carries the whole list, so a push repeated or
out of order heals.

Events: the servers publish each connect and disconnect of the account. ``client.user`` in them is the node's
key and ``client.name`` the name that the session gave its connection (tried with nats-server 2.15). A planned
reconnect shows as a disconnect and a connect of the same session; both are delivered, in the order of the
server. What events did not tell, a look at the servers' connections does.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from entrepot.adapters.bus import Bus, Message, Subscription
from entrepot.core.errors import InvalidInput, RetryLater
from entrepot.core.nkeys import KeyKind, decode_public
from entrepot.core.subjects import check_node, parse_connection_name
from entrepot.core.subjects import inbox as inbox_of
from entrepot_hub.core.nats_identity import NatsIdentity

UPDATE: Final = "$SYS.REQ.CLAIMS.UPDATE"
_EVENTS: Final = {"CONNECT": True, "DISCONNECT": False}
_PENDING: Final = 65536  # events: all nodes of a server may come back at once
_CONFIRMED: Final = 200
_PAGE: Final = 200  # connections that a server tells of at once: of each some 2 KB
_MOST_PAGES: Final = 1000
_TURN: Final = 1.0  # seconds in which servers answer who is connected


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEvent:
    """A connection of a node began or ended.

    ``session`` and ``kind`` are what the connection's name says, None when it is no name of a session.
    ``connection`` tells the connections of one session apart: a disconnect counts only for the connection it
    names.
    """

    node: str
    session: str | None
    kind: str | None
    connected: bool
    reason: str
    connection: str


class _Server(msgspec.Struct, frozen=True):
    id: str


class _Client(msgspec.Struct, frozen=True):
    id: int
    user: str = ""
    name: str = ""


class _Event(msgspec.Struct, frozen=True):
    server: _Server
    client: _Client
    reason: str = ""


class _Connection(msgspec.Struct, frozen=True):
    cid: int
    name: str = ""
    authorized_user: str = ""


class _Connections(msgspec.Struct, frozen=True):
    total: int = 0
    connections: tuple[_Connection, ...] = ()


class _Page(msgspec.Struct, frozen=True):
    server: _Server
    data: _Connections | None = None


class _Outcome(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""
    description: str = ""


class _Answer(msgspec.Struct, frozen=True):
    data: _Outcome | None = None
    error: _Outcome | None = None


class Accounts:
    """Pushes the application account and tells who connects. The bus is started and closed by the caller.

    ``clock`` gives unix seconds, ``life`` is that of the longest-lived node JWT in seconds: a revocation
    older than that has nothing left to kill and is not pushed any more.
    """

    def __init__(
        self,
        bus: Bus,
        identity: NatsIdentity,
        *,
        clock: Callable[[], float],
        life: float = 3600.0,
        timeout: float = 5.0,
    ) -> None:
        self._bus = bus
        self._identity = identity
        self._clock = clock
        self._life = life
        self._timeout = timeout
        self._revoked: dict[str, int] = {}

    @property
    def revocations(self) -> Mapping[str, int]:
        """The revocations that this process knows of: node to unix second."""
        return dict(self._revoked)

    def load(self, revocations: Mapping[str, float]) -> None:
        """Take over revocations from the database (node to unix seconds); the later one counts. Pushes
        nothing.
        """
        for node, at in revocations.items():
            check_node(node)
            self._revoked[node] = max(int(at), self._revoked.get(node, 0))
        oldest = self._clock() - self._life - 60
        self._revoked = {node: at for node, at in self._revoked.items() if at > oldest}

    async def push(self) -> None:
        """Have the servers take the account as it is now; safe to repeat, and due whenever the bus came up.

        Raises RetryLater when no server confirms.
        """
        self.load({})
        await self.push_account(self._identity.account_jwt(self._clock(), self._revoked))

    async def push_account(self, jwt: str) -> None:
        """Have the servers take this account JWT. Raises RetryLater when none confirms."""
        payload = await self._bus.request(UPDATE, jwt.encode("ascii"), self._timeout)
        try:
            answer = msgspec.json.decode(payload, type=_Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInput("the NATS server's answer is unreadable", kind="invalid-message") from error
        if answer.data is None or answer.data.code != _CONFIRMED:
            why = "" if answer.error is None else answer.error.description[:500]
            raise RetryLater(f"the NATS server does not take the account: {why}", kind="retry-later")

    async def revoke(self, node: str, at: float | None = None) -> int:
        """Revoke all JWTs of a node issued up to ``at`` (now), end its connections; idempotent.

        Returns the second of the revocation: a new JWT for a node let in again must be issued later
        (``NatsIdentity.user_jwt(…, after=…)``). Raises RetryLater when no server confirmed: the revocation is
        kept and goes with the next push.
        """
        moment = int(self._clock() if at is None else at)
        self.load({node: moment})
        await self.push()
        return moment

    async def listen(self, callback: Callable[[ConnectionEvent], Awaitable[None] | None]) -> Subscription:
        """Have ``callback`` called with each connect and disconnect of a node, one after the other."""

        def handle(message: Message) -> Awaitable[None] | None:
            event = self._event(message)
            return None if event is None else callback(event)

        account = self._identity.account.public
        # One subscription for both: two would lose the order between them.
        return await self._bus.subscribe(f"$SYS.ACCOUNT.{account}.*", handle, pending=_PENDING)

    async def connections(self) -> list[ConnectionEvent]:
        """The connections of nodes that there are, each as the event of its beginning. One that ends meanwhile may
        hide another, and a server that does not answer within a second tells of none.

        Raises RetryLater when no server answers.
        """
        found: list[ConnectionEvent] = []
        for first in await self._first_pages():
            page, offset = first, 0
            for _ in range(_MOST_PAGES):
                told = page.data or _Connections()
                found += [
                    self._connection(_Event(page.server, _Client(each.cid, each.authorized_user, each.name)), True)
                    for each in told.connections
                    if each.authorized_user != self._identity.hub_user.public
                ]
                offset += len(told.connections)
                if not told.connections or offset >= told.total:
                    break
                subject = f"$SYS.REQ.SERVER.{page.server.id}.CONNZ"
                page = _page(await self._bus.request(subject, self._question(offset), self._timeout))
        return found

    async def kick(self, connection: str) -> None:
        """Have the server end a connection, unless it ended; the node may come back at once. Raises RetryLater when the
        server does not answer.
        """
        server, _, number = connection.rpartition("/")
        payload = msgspec.json.encode({"cid": int(number)})
        # A request, though the answer says nothing: without a place for one the server does nothing.
        await self._bus.request(f"$SYS.REQ.SERVER.{server}.KICK", payload, self._timeout)

    async def _first_pages(self) -> list[_Page]:
        """Of all servers that answer in time."""
        payloads: list[bytes] = []
        inbox = f"{inbox_of(self._identity.system_user.public)}.{secrets.token_hex(8)}"
        answers = await self._bus.subscribe(inbox, lambda message: payloads.append(message.payload))
        try:
            subject = f"$SYS.REQ.ACCOUNT.{self._identity.account.public}.CONNZ"
            await self._bus.publish(subject, self._question(0), reply=inbox)
            await asyncio.sleep(_TURN)
        finally:
            await answers.unsubscribe()
        if not payloads:
            raise RetryLater("no NATS server tells who is connected", kind="bus-unreachable")
        return [_page(payload) for payload in payloads]

    def _question(self, offset: int) -> bytes:
        account = self._identity.account.public
        return msgspec.json.encode({"acc": account, "auth": True, "limit": _PAGE, "offset": offset})

    def _event(self, message: Message) -> ConnectionEvent | None:
        connected = _EVENTS.get(message.subject.rpartition(".")[2])
        if connected is None:
            return None
        try:
            event = msgspec.json.decode(message.payload, type=_Event)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInput("the NATS server's event is unreadable", kind="invalid-message") from error
        if event.client.user == self._identity.hub_user.public:
            return None
        return self._connection(event, connected)

    @staticmethod
    def _connection(event: _Event, connected: bool) -> ConnectionEvent:
        decode_public(event.client.user, KeyKind.USER)
        session, kind = parse_connection_name(event.client.name) or (None, None)
        return ConnectionEvent(
            node=event.client.user,
            session=session,
            kind=kind,
            connected=connected,
            reason=event.reason[:200],
            connection=f"{event.server.id}/{event.client.id}",
        )


def _page(payload: bytes) -> _Page:
    try:
        return msgspec.json.decode(payload, type=_Page)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("the NATS server's connections are unreadable", kind="invalid-message") from error
