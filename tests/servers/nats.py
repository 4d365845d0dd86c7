"""A real nats-server with the hub's identity, and buses for the hub, the system account and any node."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from entrepot.adapters.bus import Bus, BusSettings
from entrepot.core import subjects
from entrepot.core.errors import Denied
from entrepot.core.keyring import Credentials
from entrepot.core.nkeys import SigningKey
from entrepot_hub.adapters.nats_server import NatsServer, NatsServerSettings
from entrepot_hub.core.nats_identity import RANDOM_LENGTH, NatsIdentity, NatsLimits

#: Reconnects at once, so tests need not wait.
QUICK = BusSettings(backoff_first=0.02, backoff_longest=0.2, connect_timeout=5.0, refresh_grace=1.0)

type Rights = Sequence[tuple[str, Collection[str]]]


class Member:
    """A node as a test sees it: its key, its rights, and the JWTs that its hub hands out."""

    def __init__(self, nats: Nats, rights: Rights, life: float = 3600.0) -> None:
        self.nats = nats
        self.key = SigningKey.generate(os.urandom(32))
        self.rights = rights
        self.life = life
        self.after: int | None = None  # the last revocation
        self.denied: Denied | None = None  # what a renewal answers
        self.renewals = 0
        self.jwt = ""
        self.issue()

    @property
    def public(self) -> str:
        return self.key.public

    def issue(self) -> None:
        """Have the hub make a new JWT."""
        identity = self.nats.identity
        self.jwt = identity.user_jwt(self.public, self.rights, time.time(), self.life, after=self.after)

    async def renew(self) -> None:
        """What a node asks its hub for over HTTP."""
        if self.denied is not None:
            raise Denied(self.denied.message, kind=self.denied.kind)
        self.renewals += 1
        self.issue()

    def credentials(self) -> Credentials:
        return Credentials(self.jwt, self.key)

    def bus(self, name: str = "0123456789abcdef daemon", **options: Any) -> Bus:
        """A bus as the node makes it."""
        arguments: dict[str, Any] = {"settings": QUICK, "renew": self.renew, **options}
        url = arguments.pop("url", self.nats.server.url)
        return Bus(
            [url],
            name=name,
            inbox_prefix=arguments.pop("inbox_prefix", subjects.inbox(self.public)),
            credentials=arguments.pop("credentials", self.credentials),
            **arguments,
        )


class Nats:
    """A running server, the identity behind it, and what connects to it."""

    def __init__(self, identity: NatsIdentity, server: NatsServer) -> None:
        self.identity = identity
        self.server = server

    def member(self, rights: Rights, life: float = 3600.0) -> Member:
        """A new node with these rights."""
        return Member(self, rights, life)

    def hub(self, **options: Any) -> Bus:
        """A bus as the hub makes it."""
        return self._own("hub", self.identity.hub_user, lambda: self.identity.hub_credentials(time.time()), options)

    def system(self, **options: Any) -> Bus:
        """A bus of the system account."""
        return self._own(
            "system", self.identity.system_user, lambda: self.identity.system_credentials(time.time()), options
        )

    def _own(self, name: str, key: SigningKey, credentials: Callable[[], Credentials], options: dict[str, Any]) -> Bus:
        return Bus(
            [self.server.url],
            name=name,
            inbox_prefix=subjects.inbox(key.public),
            credentials=credentials,
            **{"settings": QUICK, **options},
        )


@asynccontextmanager
async def running_nats(
    folder: Path, *, limits: NatsLimits | None = None, settings: NatsServerSettings | None = None
) -> AsyncIterator[Nats]:
    """A server on a free port of the loopback interface, gone at the end."""
    identity = NatsIdentity.create(os.urandom(RANDOM_LENGTH), limits)
    own = settings or NatsServerSettings(backoff_first=0.02)
    async with NatsServer(identity, folder, clock=time.time, settings=own) as server:
        yield Nats(identity, server)
