"""What a node needs to be told: where it keeps its things and how its parts behave."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs

from entrepot.adapters.bus import BusSettings
from entrepot.adapters.hub_client import HubClientSettings
from entrepot.adapters.store import StoreSettings
from entrepot.adapters.transfer import TransferSettings, is_direct
from entrepot.core.errors import InvalidInput
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot.core.invite import is_loopback
from entrepot.core.rate import Bandwidth


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How a session with a hub behaves. Times in seconds."""

    #: How long one try of a want, and of any other request, waits for its answer.
    want_timeout: float = 2.0
    request_timeout: float = 2.0
    #: How long a command waits for the bus before it says that it cannot reach it.
    connect_patience: float = 10.0
    #: Messages without an answer that wait to be sent; further ones are lost.
    outbox: int = 1024
    #: How long the end of a session waits for them.
    farewell: float = 1.0
    #: The channels are asked for again at most this often when a message names an unknown lock.
    refresh_every: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSettings:
    """How the daemon behaves. Times in seconds."""

    #: First and longest pause between two tries to reach a hub.
    retry_first: float = 0.5
    retry_longest: float = 60.0
    #: A session without a bus for so long is set up anew: the hub may have moved.
    rebuild_after: float = 20.0
    #: How long the withdrawal of grants may take when the daemon ends.
    withdrawal: float = 2.0
    #: How long a command waits for an answer of the daemon, and for one that it started.
    answer_timeout: float = 5.0
    start_timeout: float = 20.0
    #: How often the daemon looks whether its socket is still its own.
    watch: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """All settings of a node. ``home`` holds its seed, ``hubs.json``, the store and the daemon's socket and log.

    ``ca_file``: certificates (PEM) to trust beside the system's, for hub, bus and bucket. ``proxy``: the URL of an
    HTTP proxy for hubs and for buckets with TLS; it may hold a password and is not shown. ``no_proxy``: hosts, domains
    and addresses that are reached without one, each with a port or without; ``*`` is all. ``bandwidth``: the most
    bytes/s of objects that this process sends and receives.
    """

    home: Path
    ca_file: str | None = None
    proxy: str | None = field(default=None, repr=False)
    no_proxy: tuple[str, ...] = ()
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    transfer: TransferSettings = field(default_factory=TransferSettings)
    hub: HubClientSettings = field(default_factory=HubClientSettings)
    bus: BusSettings = field(default_factory=BusSettings)

    @property
    def seed_file(self) -> Path:
        """The node's secret."""
        return self.home / "seed"

    @property
    def hubs_file(self) -> Path:
        """The hubs that were joined."""
        return self.home / "hubs.json"

    @property
    def store_folder(self) -> Path:
        """What the node holds."""
        return self.home / "store"

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return self.home / "daemon.sock"

    @property
    def log_file(self) -> Path:
        """What a detached daemon says."""
        return self.home / "daemon.log"

    def hub_settings(self, url: str) -> HubClientSettings:
        """The settings for the client of the hub at ``url`` with the node's certificates and proxy; a hub on this
        machine, or one that ``no_proxy`` names, is reached without."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        direct = is_loopback(host) or is_direct(self.no_proxy, host, port)
        proxy = None if direct else self.hub.proxy or self.proxy
        return replace(self.hub, ca_file=self.hub.ca_file or self.ca_file, proxy=proxy)

    @property
    def pace(self) -> ExchangeSettings:
        """The settings of the exchange, with so few objects at once that all of them get on within the bandwidth."""
        return self.exchange.throttled(self.bandwidth.up, self.bandwidth.down)

    def transfer_settings(self) -> TransferSettings:
        """The settings of bulk transfers with the node's certificates, proxy and bandwidth."""
        transfer = self.transfer
        return replace(
            transfer,
            ca_file=transfer.ca_file or self.ca_file,
            https_proxy=transfer.https_proxy or self.proxy,
            no_proxy=transfer.no_proxy or self.no_proxy,
            bandwidth=Bandwidth(
                transfer.bandwidth.up or self.bandwidth.up, transfer.bandwidth.down or self.bandwidth.down
            ),
        )

    def bus_settings(self) -> BusSettings:
        """The bus's settings with the node's certificates. Reads their file. Raises ``invalid-setting``."""
        if self.bus.tls is not None or self.ca_file is None:
            return self.bus
        context = ssl.create_default_context()
        try:
            context.load_verify_locations(self.ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise InvalidInput(
                f"the certificates in {self.ca_file} cannot be used: {error.strerror or error}", kind="invalid-setting"
            ) from None
        return replace(self.bus, tls=context)


def default_home() -> Path:
    """Where a node's home is on this machine if nobody says otherwise: the user's data folder."""
    return platformdirs.user_data_path("entrepot", appauthor=False)
