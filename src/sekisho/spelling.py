"""How the values of settings are spelt: each in one way; at any other its reader raises ``ValueError``."""

import ipaddress
import re
from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias

from pydantic import BeforeValidator

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_ORIGIN = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{{0,4}}))?"
)
PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")

_AWS_REGION = r"[a-z]{2,5}(?:-[a-z]+)+-[0-9]{1,2}"
_AWS_NAME = r"[A-Za-z0-9/_+=.@-]{1,512}"
AWS_REGION: Final = re.compile(_AWS_REGION)
AWS_ROLE_ARN: Final = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]{1,576}", re.ASCII)
KEY_SOURCE: Final = re.compile(
    r"file:[^\0\r\n]+|env:[A-Za-z_][A-Za-z0-9_]*|"
    rf"aws:(?:{_AWS_NAME}|arn:aws[a-z-]*:secretsmanager:{_AWS_REGION}:[0-9]{{12}}:secret:{_AWS_NAME})",
    re.ASCII,
)


def whole(lowest: int, highest: int) -> BeforeValidator:
    """Digits alone: ``900``, and not ``15m``, ``9e2``, ``900.0`` or ``True``, each of which some reader accepts."""

    def read(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value, re.ASCII):
            value = int(value)
        if type(value) is not int or not lowest <= value <= highest:
            raise ValueError(f"must be a whole number from {lowest} to {highest}, in digits")
        return value

    return BeforeValidator(read)


def check_origin(text: str) -> None:
    """Raises ``ValueError`` unless ``text`` is an origin as browsers write it, https or on this machine.

    It is compared with their Origin header byte by byte (RFC 6454 §6.2). Over plain http anyone on the way could
    change the page and act for its user.
    """
    found = _ORIGIN.fullmatch(text)
    if not found:
        raise ValueError("must be https://HOST or https://HOST:PORT, in lower case")
    host = found["host"]
    address = None
    if host.startswith("[") or re.fullmatch(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)", host):
        try:
            address = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            raise ValueError("holds no valid IP address") from None
        if str(address) != host.strip("[]"):
            raise ValueError(f"must spell its address {address}")
    port = int(found["port"] or 0)
    if port > 65_535 or port == {"https": 443, "http": 80}[found["scheme"]]:
        raise ValueError("must have a port from 1 to 65535, and none if it is the scheme's own")
    here = host in {"localhost", "[::1]"} or (isinstance(address, ipaddress.IPv4Address) and address.is_loopback)
    if found["scheme"] == "http" and not here:
        raise ValueError("must be https; http only for 127.0.0.0/8, [::1] and localhost")


def _split(value: object) -> object:
    """A list from the environment: comma-separated; an empty text is the empty list."""
    if isinstance(value, str):
        return [part.strip(" ") for part in value.split(",")] if value.strip(" ") else []
    return value


def _read_networks(value: object) -> tuple[Network, ...]:
    """Networks by their own address, as ``10.0.0.0/8``; never all addresses at once."""
    if not isinstance(value, Iterable):
        raise ValueError("must be networks such as 10.0.0.0/8,192.0.2.1")  # noqa: TRY004  pydantic catches ValueError
    networks = []
    for part in value:
        try:
            network = ipaddress.ip_network(part)
        except ValueError:
            raise ValueError("must be networks such as 10.0.0.0/8,192.0.2.1 (no host bits)") from None
        if network.prefixlen == 0:
            raise ValueError("must not hold every address: each client could then say which one it has")
        if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
            raise ValueError("must spell IPv4 networks as such, without ::ffff:")  # what it is compared with is IPv4
        networks.append(network)
    return tuple(networks)


def _read_origins(value: object) -> tuple[str, ...]:
    """Exact origins, never ``*``."""
    if not isinstance(value, Iterable):
        raise ValueError("must be origins such as https://app.example.com")  # noqa: TRY004  as above
    origins = tuple(value)
    for origin in origins:
        if not isinstance(origin, str) or "*" in origin:
            raise ValueError("must be exact origins such as https://app.example.com, never *")
        check_origin(origin)
    return origins


Networks: TypeAlias = Annotated[tuple[Network, ...], BeforeValidator(_read_networks), BeforeValidator(_split)]
Origins: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_read_origins), BeforeValidator(_split)]
