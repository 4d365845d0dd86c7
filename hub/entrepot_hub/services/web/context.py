"""What the routes for nodes need of the running hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.ledger import Ledger
from entrepot_hub.core.nats_identity import NatsIdentity
from entrepot_hub.services.channels import Channels
from entrepot_hub.services.settings import HubSettings
from entrepot_hub.services.timeline import Timelines


class Presence(Protocol):
    """What the hub heard of nodes on the bus. Both answer at once, from memory."""

    def online(self, node: str) -> bool:
        """Whether a session of this node (public key) is connected."""
        ...

    def revoked_at(self, node: str) -> int | None:
        """Unix second of the node's last revocation on the bus, if one is still remembered: a JWT that is not
        issued later is dead."""
        ...


@dataclass(frozen=True, kw_only=True)
class WebContext:
    """``urls``: where nodes find NATS now. ``instance``: this hub process (16 hex digits). ``clock``: unix
    seconds."""

    settings: HubSettings
    identity: NatsIdentity
    database: Database
    registry: Registry
    ledger: Ledger
    presence: Presence
    nats_urls: Callable[[], Sequence[str]]
    instance: str
    clock: Callable[[], float]
    timelines: Timelines
    channels: Channels
