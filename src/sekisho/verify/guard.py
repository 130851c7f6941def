"""What every framework needs: from the headers of a request to its claims, or to a refusal.

Nothing here knows a framework. Each file of ``integrations`` is what it takes to fit this to one.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias, get_args

import msgspec

from sekisho.errors import (
    AuthenticationRequired,
    CsrfRefused,
    FeedStarting,
    KeysUnavailable,
    MustAsk,
    TokenError,
    TokenMalformed,
    TryLater,
)
from sekisho.tokens.access import AccessClaims
from sekisho.verify.bearer import CHALLENGE, CHALLENGE_INVALID, bearer_token
from sekisho.verify.cookies import Cookies, read_cookie
from sekisho.verify.freshness import WhenLost
from sekisho.verify.origin import HeaderOf, expect_own_page, is_unsafe, origin_of
from sekisho.verify.verifier import Verifier

MEDIA_TYPE: Final = "application/problem+json"
START_WAIT_S: Final = 2.0

# What ``Guard`` raises and ``refusal`` answers. Anything else is the application's own and goes its way.
Refused: TypeAlias = AuthenticationRequired | TokenError | CsrfRefused | TryLater
REFUSED: Final = (AuthenticationRequired, TokenError, CsrfRefused, TryLater)


class Guard:
    """Checks requests by one verifier. Safe to call from any thread or event loop."""

    def __init__(self, verifier: Verifier, when_lost: WhenLost | None = None, *, cookie: bool = False) -> None:
        """``when_lost``: in place of the verifier's own policy. Raises ``ValueError`` for one that does not exist.

        ``cookie``: without an Authorization header the cookie with the access token counts, and then what is unsafe
        must come from a page of the issuer's own origin.
        """
        # A misspelt policy must not come out as the most lenient one.
        if when_lost is not None and when_lost not in get_args(WhenLost):
            raise ValueError(f"when_lost is one of {', '.join(get_args(WhenLost))}")
        self._verifier = verifier
        self._verify: Callable[[str], AccessClaims] = (
            verifier.verify if when_lost is None else partial(verifier.verify, when_lost=when_lost)
        )
        self._cookie = Cookies(verifier.issuer).access if cookie else None
        self._origins = (origin_of(verifier.issuer),)
        self._wait_until: float | None = None

    def at_once(self, authorization: Sequence[str], method: str, header: HeaderOf) -> AccessClaims:
        """The claims, from what is known here and now. Never blocks. Raises one of ``REFUSED``.

        ``authorization``: the values of all Authorization headers; ``header`` gives those of any other, and is asked
        only where cookies count. ``method`` is ``WEBSOCKET`` for a handshake, which any page can begin.
        """
        return self._verify(self._token(authorization, method, header))

    def claims(self, authorization: Sequence[str], method: str, header: HeaderOf) -> AccessClaims:
        """The claims. Blocks to ask the issuer where that is the policy, and for a moment at the start.

        Raises one of ``REFUSED``.
        """
        token = self._token(authorization, method, header)
        try:
            return self._verify(token)
        except (MustAsk, FeedStarting, KeysUnavailable) as error:
            return self._later(token, error)

    async def aclaims(self, authorization: Sequence[str], method: str, header: HeaderOf) -> AccessClaims:
        """As ``claims``; what blocks is done in another thread, so that the event loop serves others meanwhile."""
        token = self._token(authorization, method, header)
        try:
            return self._verify(token)
        except (MustAsk, FeedStarting, KeysUnavailable) as error:
            if not isinstance(error, MustAsk) and self._wait_left_s() <= 0:
                raise
            late = error
        return await asyncio.to_thread(self._later, token, late)

    def _token(self, authorization: Sequence[str], method: str, header: HeaderOf) -> str:
        # A header that is there and bad is not passed over for the cookie.
        if authorization or self._cookie is None:
            return bearer_token(authorization)
        token = read_cookie(header("cookie"), self._cookie, TokenMalformed)
        if token is None:
            raise AuthenticationRequired
        if is_unsafe(method):
            expect_own_page(header, self._origins)
        return token

    def _later(self, token: str, error: MustAsk | FeedStarting | KeysUnavailable) -> AccessClaims:
        if not isinstance(error, MustAsk):
            left_s = self._wait_left_s()
            if left_s <= 0 or not self._verifier.wait(left_s):
                raise error
            try:
                return self._verify(token)
            except MustAsk:
                pass
        return self._verifier.ask(token)

    def _wait_left_s(self) -> float:
        """The first requests after the start wait, and succeed. Later ones do not: they would pile up for nothing."""
        now = time.monotonic()
        if self._wait_until is None:
            self._wait_until = now + START_WAIT_S
        return self._wait_until - now


# --- what a refused request is answered ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An HTTP answer: ``headers`` without the Content-Type, which is ``MEDIA_TYPE`` for this ``body`` (RFC 9457)."""

    status: int
    code: str
    title: str
    headers: Mapping[str, str]

    @property
    def problem(self) -> dict[str, str | int]:
        """The members of the body."""
        type_ = f"urn:sekisho:problem:{self.code}"
        return {"type": type_, "title": self.title, "status": self.status, "code": self.code}

    @property
    def body(self) -> bytes:
        """The body, as JSON."""
        return msgspec.json.encode(self.problem)


def refusal(error: Refused) -> Refusal:
    """401 with a challenge (RFC 6750 §3), the same for every bad token; or 503 where the token is not to blame.

    A 401 for a lost feed would make clients drop sessions that are alive. 403 for a call from another site's page.
    """
    headers = {"Cache-Control": "no-store", "Vary": "Cookie, Authorization"}
    if isinstance(error, TryLater):
        status = 503
        headers["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, CsrfRefused):
        status = 403
    else:
        status = 401
        headers["WWW-Authenticate"] = CHALLENGE_INVALID if isinstance(error, TokenError) else CHALLENGE
    return Refusal(status=status, code=error.public_code, title=error.text_en, headers=headers)


# --- requests that need no credential ------------------------------------------------------------------------------


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Whether this is a CORS preflight, which browsers send without credentials (Fetch §3.2.2).

    No view may run for one: anybody can send it, and a view that answers every method would be open to all.
    """
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


class Exempt:
    """The paths that are open to all: exact ones, and prefixes, which end in ``/``. ``/`` is the root page alone."""

    def __init__(self, paths: Sequence[str]) -> None:
        """Raises ``ValueError`` for a path that does not begin with ``/``, and for a string in place of a list."""
        if not all(path.startswith("/") for path in paths):  # a string fails too, for its letters do not
            raise ValueError("exempt is a list of paths that begin with /")
        self._exact = frozenset(paths)
        self._prefixes = tuple(path for path in self._exact if path.endswith("/") and path != "/")

    def __contains__(self, path: str) -> bool:
        """``path`` is decoded and without the mount point, as the application's router sees it."""
        return path in self._exact or (path.startswith(self._prefixes) and _is_plain(path))


def _is_plain(path: str) -> bool:
    """False for what another reader of the path could take for one outside the prefix: ``/static/../customers``.

    A percent sign that is left after decoding was encoded twice.
    """
    inner = path.split("/")[1:-1]
    return not ("" in inner or "\\" in path or "%" in path or "\0" in path or {".", ".."} & set(path.split("/")))


def route_path(path: str, root_path: str) -> str:
    """The ASGI ``path`` without ``root_path``, by the same rule as Starlette's router."""
    if root_path and path.startswith(root_path) and path[len(root_path) :][:1] in {"", "/"}:
        return path[len(root_path) :]
    return path
