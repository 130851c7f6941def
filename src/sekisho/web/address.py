"""Which client a request comes from. A header that anyone can write is believed only from a trusted proxy."""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeAlias

UNKNOWN: Final = "unknown"

_Address: TypeAlias = IPv4Address | IPv6Address
_MAX_CHARS: Final = 80  # an IPv6 address with a zone; anything longer must not fill the cache
_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?", re.ASCII)


def client_address(
    peer: str | None,
    forwarded_for: Sequence[str],
    trusted: Sequence[IPv4Network | IPv6Network],
) -> str:
    """The client's address in its one spelling, or ``"unknown"`` when the peer has none (a Unix socket).

    ``peer`` is the other end of the connection, ``forwarded_for`` the values of the X-Forwarded-For header lines in
    their order, ``trusted`` the networks of the operator's own proxies. Each proxy appends the peer that it saw, so the
    list is read from its right end: past the trusted proxies, the first other address is the client. All to the left
    of that is the client's own invention.
    """
    client = _address(peer or "")
    if client is None:
        return UNKNOWN
    hops = ",".join(forwarded_for).split(",")
    while hops and _is_trusted(client, trusted):
        hop = _address(_without_port(hops.pop().strip(" \t")))
        if hop is None:  # nobody can say who stands behind a hop that cannot be read: the proxy that sent it answers
            break
        client = hop
    return str(client)


def _is_trusted(address: _Address, trusted: Sequence[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in trusted)


def _without_port(hop: str) -> str:
    found = _WITH_PORT.fullmatch(hop)
    return (found["v6"] or found["v4"] or "") if found else hop


def _address(text: str) -> _Address | None:
    return _parsed(text) if len(text) <= _MAX_CHARS else None


@lru_cache(maxsize=4096)  # the same few proxies and clients come again and again
def _parsed(text: str) -> _Address | None:
    """One spelling for each host, else a limit or a proxy's network would hold for one spelling and not the other."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))  # the zone (fe80::1%eth0) is the node's own word
    return address
