"""Whom a request comes from, by addresses: the peer's, or the one that a trusted proxy names."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from entrepot.core.errors import InvalidInput

type Address = IPv4Address | IPv6Address
type Network = IPv4Network | IPv6Network

_MAX_FORWARDED: Final = 2000
_CLIENT_BITS: Final = 64


def client(peer: str | None, forwarded: Sequence[str], proxies: Sequence[Network]) -> str:
    """Who a request comes from, as one name: the peer's address; where that is a trusted proxy, the last one in its
    ``X-Forwarded-For`` that is none. An IPv6 address stands for its /64, of which a client has as many as it likes."""
    if peer is None:
        return "?"
    address = _origin(peer, forwarded, proxies)
    if address is None:
        return peer[:100]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Network((address, _CLIENT_BITS), strict=False))
    return str(address)


def is_local(peer: str | None, forwarded: Sequence[str], proxies: Sequence[Network]) -> bool:
    """Whether a request comes from a program on this machine, and not through a proxy here: one that says for whom it
    asks is either trusted, and believed, or taken for one."""
    if peer is None or (forwarded and not proxies):
        return False
    address = _origin(peer, forwarded, proxies)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address is not None and (mapped or address).is_loopback


def _origin(peer: str, forwarded: Sequence[str], proxies: Sequence[Network]) -> Address | None:
    address = _parsed(peer)
    hops = ",".join(forwarded)
    for hop in reversed(hops.split(",")) if hops and len(hops) <= _MAX_FORWARDED else ():
        if address is None or not _among(address, proxies):
            break
        told = _parsed(hop)
        if told is None:
            break
        address = told
    return address


def is_among(peer: str, networks: Sequence[Network]) -> bool:
    """Whether this address is in one of the networks."""
    address = _parsed(peer)
    return address is not None and _among(address, networks)


def check_networks(networks: Sequence[str]) -> tuple[Network, ...]:
    """The networks (``10.0.0.0/8``) or addresses. Raises InvalidInput (``invalid-setting``)."""
    try:
        return tuple(ip_network(network, strict=False) for network in networks)
    except ValueError:
        raise InvalidInput(
            "proxies are named by their addresses or networks",
            kind="invalid-setting",
            hint="For example 127.0.0.1 or 10.0.0.0/8.",
        ) from None


def _parsed(text: str) -> Address | None:
    text = text.strip().split("%")[0]
    if text.startswith("[") or text.count(":") == 1:  # with a port
        text = text.rpartition(":")[0] if not text.endswith("]") else text
        text = text.strip("[]")
    try:
        return ip_address(text)
    except ValueError:
        return None


def _among(address: Address, networks: Sequence[Network]) -> bool:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return any((mapped or address) in network for network in networks)
