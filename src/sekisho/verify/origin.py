"""Whether a call comes from a page of this service, by what the browser itself says of it (OWASP ASVS 3.5.1).

A page cannot set or change these headers. They are asked wherever a cookie counts, for cookies come by themselves.
"""

from collections.abc import Callable, Container, Sequence
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from sekisho.errors import CsrfRefused

# The values of all header lines of this name.
HeaderOf: TypeAlias = Callable[[str], Sequence[str]]

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110 §9.2.1
_OURS: Final = (["same-origin"], ["none"])  # none: typed, a bookmark, a link in a mail


def is_unsafe(method: str) -> bool:
    """Whether a call may change something."""
    return method not in _SAFE


def origin_of(url: str) -> str:
    """The origin of a URL, as browsers write it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def expect_own_page(header: HeaderOf, origins: Container[str]) -> None:
    """Raises ``CsrfRefused`` unless Sec-Fetch-Site says so or, where that is missing, Origin is one of ``origins``.

    Host decides nothing: whoever sends the request writes it.
    """
    site = header("sec-fetch-site")
    if site:
        if list(site) not in _OURS:
            raise CsrfRefused("Sec-Fetch-Site is neither same-origin nor none")
        return
    origin = header("origin")
    if len(origin) != 1 or origin[0] not in origins:
        raise CsrfRefused("no Sec-Fetch-Site, and Origin is missing or not one of ours")
