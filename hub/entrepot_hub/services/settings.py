"""The hub's settings: one TOML file, ``hub.toml``, in the hub's folder. No secret is in it.

Paths in it are relative to the folder. Everything has a default but ``urls``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

import msgspec

from entrepot.core.errors import Denied, InvalidInput, NotFound
from entrepot.core.invite import check_origin, is_loopback
from entrepot_hub.core.addresses import check_networks

FILE_NAME: Final = "hub.toml"
SOCKET_NAME: Final = "hub.sock"
DATABASE_NAME: Final = "hub.db"
MASTER_NAME: Final = "master.key"
IDENTITY_NAME: Final = "identity.sealed"
CHANGE_NAME: Final = "master.change"

_MAX_FILE: Final = 65536
_LISTEN = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})")
_NATS_URL = re.compile(r"(?:nats|tls|ws|wss)://[A-Za-z0-9.\-\[\]:]+(?:/[\x21-\x7e]*)?")

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
PerSecond = Annotated[float, msgspec.Meta(gt=0, le=1_000_000)]
Many = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: an address of this machine (``[…]`` around IPv6) and a port, 0 for any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``host:port``. Raises :class:`InvalidInput` (``invalid-setting``)."""
        match = _LISTEN.fullmatch(text)
        if match is None or int(match["port"]) > 65535:
            raise InvalidInput(
                f"{text[:100]!r} is no address to listen at", kind="invalid-setting", hint="Write host:port."
            )
        return cls(match["host"].strip("[]"), int(match["port"]))

    def __str__(self) -> str:
        return f"{self.quoted}:{self.port}"

    @property
    def quoted(self) -> str:
        """The address as it stands in a URL: ``[…]`` around IPv6."""
        return f"[{self.host}]" if ":" in self.host else self.host


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A certificate chain and its key, PEM files. Without them the hub speaks plain HTTP, to a proxy in
    front."""

    certificate: str
    key: str


class NatsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The message bus. With ``server`` the hub uses those servers; without, it runs one of its own at
    ``listen`` (and for WebSocket at ``websocket``). ``urls``: where nodes find it, if that is not where the
    hub does."""

    listen: str = "127.0.0.1:0"
    websocket: str | None = None
    server: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times in seconds. ``request``: for one call of the API. ``jwt``: how long a node's NATS login holds.
    ``reconcile``: how often each channel's bucket is compared with the ledger.

    Calls a second, and at once after a pause: ``node_rate`` and ``node_burst`` of one node, ``address_rate`` and
    ``address_burst`` of one client address as far as no known node signed them; ``joins_rate`` and ``joins_burst``:
    joins that fail, of one address and with one invite. Calls at once: ``requests_of_one`` node
    or address, ``requests`` of everybody; ``transfers``: uploads and downloads of folder buckets, ``transfers_of_one``
    address. ``connections``: open at once, ``connections_of_one`` address. ``proxies``: addresses or networks of
    proxies in front whose ``X-Forwarded-For`` is believed.
    ``uploads``: objects that one node is granted at once. ``holders_of_member``, ``holders_of_channel``: streams that
    the hub remembers one member to hold, and all members of a channel together."""

    request: Seconds = 30.0
    node_rate: PerSecond = 20.0
    node_burst: Many = 200
    address_rate: PerSecond = 10.0
    address_burst: Many = 200
    joins_rate: PerSecond = 0.1
    joins_burst: Many = 10
    requests_of_one: Many = 64
    requests: Many = 512
    transfers_of_one: Many = 128
    transfers: Many = 512
    connections_of_one: Many = 256
    connections: Many = 4096
    proxies: tuple[str, ...] = ()
    uploads: Many = 64
    holders_of_member: Many = 200_000
    holders_of_channel: Many = 1_000_000
    reconcile: Annotated[float, msgspec.Meta(ge=60, le=31 * 86_400)] = 86_400.0
    jwt: Annotated[float, msgspec.Meta(ge=60, le=86_400)] = 3600.0


class DatabasePlace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``url``: PostgreSQL or another SQLite file; none: ``hub.db`` in the folder. ``url_command``: a program
    (and its arguments) that prints the URL, for one that holds a password."""

    url: str | None = None
    url_command: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"DatabasePlace(url={None if self.url is None else '***'}, url_command={self.url_command})"


class MasterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the master key comes from: a file, or a program (and its arguments) that prints it. The variable
    ENTREPOT_HUB_MASTER_KEY goes before both."""

    file: str = MASTER_NAME
    command: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    urls: tuple[str, ...]
    listen: str = "127.0.0.1:8480"
    plain: bool = False
    tls: TlsSettings | None = None
    nats: NatsSettings = NatsSettings()
    database: DatabasePlace = DatabasePlace()
    master: MasterSettings = MasterSettings()
    limits: LimitSettings = LimitSettings()
    metrics: str | None = None


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """What ``hub.toml`` says, checked. ``urls`` are the hub's public origins, the first one is printed and
    put into invites; signatures are checked against all of them. ``plain`` allows ``http://`` beyond
    loopback. ``metrics``: where ``/metrics`` is served besides the admin's socket, to anybody who gets there.
    ``master_key`` is the master key itself, where the entry point found it in the environment."""

    folder: Path
    urls: tuple[str, ...]
    listen: Listen = Listen("127.0.0.1", 8480)
    plain: bool = False
    tls: TlsSettings | None = None
    nats: NatsSettings = field(default_factory=NatsSettings)
    database: DatabasePlace = field(default_factory=DatabasePlace)
    master: MasterSettings = field(default_factory=MasterSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    metrics: Listen | None = None
    master_key: str | None = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        """The admin's socket."""
        return self.folder / SOCKET_NAME

    @property
    def jwt_life(self) -> float:
        """Seconds for which a node's NATS login holds."""
        return self.limits.jwt

    @property
    def secure(self) -> bool:
        """Whether all public addresses are https."""
        return all(url.startswith("https:") for url in self.urls)

    def told_nats(self, port: int | None = None) -> tuple[str, ...]:
        """Where nodes are told to find NATS: ``urls`` of ``[nats]``, else its ``server``, else where the hub's own one
        listens (at ``port``, where it does). One that listens at all addresses has the name of the hub."""
        nats = self.nats
        if nats.urls or nats.server:
            return nats.urls or nats.server
        listen = Listen.parse(nats.listen)
        host = _host(self.urls[0]) if _is_wildcard(listen.host) else listen.host
        return (f"nats://{Listen(host, port or listen.port)}",)

    def nats_warning(self, port: int | None = None) -> str | None:
        """What nodes on other machines will stumble over, and the line for ``hub.toml`` that mends it: the hub is
        public, and they are told to find NATS at an address that is their own machine. None if all is well."""
        host = _host(self.urls[0])
        if is_loopback(host):
            return None
        told = next((url for url in self.told_nats(port) if _is_here(_host(url))), None)
        if told is None:
            return None
        nats = self.nats
        if not nats.server and not nats.urls and not self.secure:
            line = f'listen = "0.0.0.0:{port or Listen.parse(nats.listen).port}"'
        elif not nats.server and self.secure:
            line = f'urls = ["wss://{Listen(host, 0).quoted}/nats"]'
        else:
            line = f'urls = ["tls://{Listen(host, 4222)}"]'
        return (
            f"nodes are told to find the message bus at {told}, which is their own machine: put  {line}  into [nats] "
            f"of {FILE_NAME}, or the address that does lead from them to the bus"
        )

    def nats_told(self, port: int | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """:meth:`told_nats` and all warnings about it."""
        warning = self.nats_warning(port)
        return self.told_nats(port), () if warning is None else (warning,)

    def with_nats(self, servers: Sequence[str]) -> HubSettings:
        """The same settings, with these NATS servers instead of one of the hub's own."""
        nats = msgspec.structs.replace(self.nats, server=check_nats_urls(servers))
        return replace(self, nats=nats)


def load_settings(folder: Path) -> HubSettings:
    """The settings of the hub in this folder. Reads a file.

    Raises NotFound (``not-running``) if there is no hub, Denied (``unreadable``), and InvalidInput
    (``invalid-setting``) that names the setting.
    """
    path = folder / FILE_NAME
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        raise NotFound(
            f"there is no hub in {folder}",
            kind="not-running",
            hint="Set one up with: entrepot-hub init --url https://…",
            folder=str(folder),
        ) from None
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error.strerror}", kind="unreadable", path=str(path)) from None
    if len(data) > _MAX_FILE:
        raise InvalidInput(f"{path} is too long for settings", kind="invalid-setting")
    return parse_settings(folder, data)


def parse_settings(folder: Path, data: bytes) -> HubSettings:
    """The settings that this TOML text means. Raises InvalidInput (``invalid-setting``)."""
    try:
        found = msgspec.toml.decode(data, type=_File, strict=True)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{FILE_NAME}: {str(error)[:300]}", kind="invalid-setting") from None
    if not 1 <= len(found.urls) <= 8:
        raise InvalidInput(f"{FILE_NAME}: urls names 1 to 8 addresses", kind="invalid-setting")
    try:
        urls = tuple(check_origin(url, plain=found.plain) for url in found.urls)
    except InvalidInput as error:
        raise InvalidInput(f"{FILE_NAME}: urls: {error}", kind="invalid-setting", hint=error.hint) from None
    check_nats_urls((*found.nats.server, *found.nats.urls))
    Listen.parse(found.nats.listen)
    if found.nats.websocket is not None:
        Listen.parse(found.nats.websocket)
    check_networks(found.limits.proxies)
    return HubSettings(
        folder=folder,
        urls=urls,
        listen=Listen.parse(found.listen),
        plain=found.plain,
        tls=found.tls,
        nats=found.nats,
        database=found.database,
        master=found.master,
        limits=found.limits,
        metrics=None if found.metrics is None else Listen.parse(found.metrics),
    )


def check_nats_urls(urls: Sequence[str]) -> tuple[str, ...]:
    """The URLs of NATS servers, if they are: no password in them, for nobody logs in with one here.

    Raises InvalidInput (``invalid-setting``)."""
    for url in urls:
        if len(url) > 300 or _NATS_URL.fullmatch(url) is None:
            raise InvalidInput(
                "that is no address of a NATS server",
                kind="invalid-setting",
                hint="For example nats://bus.example.org:4222, tls://… or wss://…",
            )
    return tuple(urls)


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _is_wildcard(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_here(host: str) -> bool:
    """Whether an address means whoever uses it."""
    return _is_wildcard(host) or is_loopback(host)


def first_settings(
    url: str,
    listen: Listen,
    nats_listen: Listen,
    *,
    plain: bool,
    nats: Sequence[str] = (),
    nats_urls: Sequence[str] = (),
) -> str:
    """The text of a new hub's ``hub.toml``. ``nats``: the NATS servers to use instead of one of its own; ``nats_urls``:
    where nodes find them. Raises InvalidInput (``invalid-setting``) for what is no address of one."""
    server, told = check_nats_urls(nats), check_nats_urls(nats_urls)
    lines = [
        "# Settings of this entrepot hub. No secret belongs here.",
        "",
        "# Where nodes reach the hub. Invites carry the first; signatures name one of them.",
        f'urls = ["{url}"]',
        "# Where it listens. A proxy with the certificate stands in front, unless [tls] names one.",
        f'listen = "{listen}"',
    ]
    if plain:
        lines += ["# http:// is taken beyond this machine: for closed networks only.", "plain = true"]
    lines += [
        "",
        "[nats]",
        '# The hub\'s own message bus. With  server = ["nats://…"]  it uses yours instead.',
        f"server = {_toml_list(server)}" if server else f'listen = "{nats_listen}"',
        '# Where nodes find it, if not there:  urls = ["tls://bus.example.org:4222"]',
        *([f"urls = {_toml_list(told)}"] if told else []),
        "",
    ]
    return "\n".join(lines)


def _toml_list(urls: Sequence[str]) -> str:
    return msgspec.json.encode(list(urls)).decode()  # of plain characters only: the same in TOML
