"""Who is calling, and with which credential: the Authorization header, else the body, else a cookie.

One that is there and bad is refused; the next is never tried in its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from fastapi import HTTPException, Request
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase

from sekisho.errors import AuthenticationRequired, CsrfRefused, SessionRefused, TokenError, TryLater
from sekisho.services.caller import Caller
from sekisho.services.cookie_sessions import CookieSessions, Entry
from sekisho.storage.rows import MICROSECONDS
from sekisho.tokens.access import CLIENT_ID, AccessClaims
from sekisho.verify import Verifier
from sekisho.verify.bearer import bearer_token
from sekisho.verify.guard import is_preflight
from sekisho.verify.origin import is_unsafe
from sekisho.web.address import client_address
from sekisho.web.cookies import WebCookies
from sekisho.web.csrf import Csrf
from sekisho.web.problems import headers_of, status_of

_MAX_USER_AGENT_CHARS: Final = 256


class By(Enum):
    """How a credential came; what came by cookie goes back only by cookie."""

    HEADER = "header"
    TOKEN_COOKIE = "token_cookie"  # noqa: S105 - a way, not a token
    SESSION_COOKIE = "session_cookie"


@dataclass(frozen=True)
class Credential:
    """A session that was shown and holds. ``claims`` of a cookie session are those that its access token would have."""

    claims: AccessClaims
    by: By


@dataclass(frozen=True, kw_only=True)
class Requests:
    """How a request is read."""

    verifier: Verifier
    cookie_sessions: CookieSessions
    cookies: WebCookies
    csrf: Csrf
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]

    def caller(self, request: Request) -> Caller:
        """Address, user agent and device."""
        peer = request.client.host if request.client else ""
        forwarded_for, user_agent = request.headers.getlist("x-forwarded-for"), request.headers.get("user-agent", "")
        return self.caller_at(peer, forwarded_for, user_agent, device_token=self.cookies.device(request))

    def caller_at(
        self, peer: str, forwarded_for: Sequence[str], user_agent: str, *, device_token: str | None = None
    ) -> Caller:
        """From the other end of the connection, and the values of X-Forwarded-For and User-Agent."""
        user_agent = user_agent[:_MAX_USER_AGENT_CHARS]
        if not user_agent.isprintable():
            user_agent = "".join(char if char.isprintable() else "�" for char in user_agent)
        address = client_address(peer, forwarded_for, self.trusted_proxies)
        return Caller(address=address, user_agent=user_agent, device_token=device_token)

    async def credential(self, request: Request, *, form: bool = False) -> Credential:
        """The credential of a call that needs one. ``form``: the call may be a page's form with the CSRF token in it.

        Raises ``AuthenticationRequired``, a ``TokenError``, ``SessionRefused``, ``CsrfRefused`` or a ``TryLater``.
        """
        authorization = request.headers.getlist("authorization")
        if authorization:
            return Credential(self.verifier.verify(bearer_token(authorization)), By.HEADER)
        token = self.cookies.access_token(request)
        if token is not None:
            if is_unsafe(request.method):
                self.csrf.expect_own_page(request)
            return Credential(self.verifier.verify(token), By.TOKEN_COOKIE)
        cookie = self.cookies.session(request)
        if cookie is None:
            raise AuthenticationRequired
        if is_unsafe(request.method):
            if form:
                await self.csrf.expect_token_or_field(request)
            else:
                self.csrf.expect_token(request)
        entry = await self.cookie_sessions.find(cookie, partial(self.caller, request))
        return Credential(self._claims(entry), By.SESSION_COOKIE)

    def _claims(self, entry: Entry) -> AccessClaims:
        return AccessClaims(
            iss=self.verifier.issuer,
            sub=str(entry.user_id),
            aud=self.verifier.audience,
            exp=entry.ends_at_us // MICROSECONDS,
            iat=entry.created_at_us // MICROSECONDS,
            jti=str(entry.session_id),
            client_id=CLIENT_ID,
            sid=str(entry.session_id),
            roles=entry.roles,
        )


class CurrentCredential(SecurityBase):
    """A dependency of Sekisho's own routes, which write their own problems."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        # What FastAPI writes into the OpenAPI document, so that /docs offers a field for the token.
        self.model = HTTPBearerModel(bearerFormat="JWT", description="An access token, as login and refresh give it.")
        self.scheme_name = "AccessToken"

    async def __call__(self, request: Request) -> Credential:
        """The credential of the request."""
        return await self._requests.credential(request)


class CurrentUser(CurrentCredential):
    """A dependency for the routes of the application around: the claims, or 401, 403 or 503 in its own form."""

    async def __call__(self, request: Request) -> AccessClaims:  # type: ignore[override]  # another kind of answer
        """The claims of the request's access token or session cookie."""
        try:
            return (await self._requests.credential(request, form=True)).claims
        except (AuthenticationRequired, TokenError, SessionRefused, CsrfRefused, TryLater) as error:
            if is_preflight(request.method, request.headers):
                raise HTTPException(204) from None  # for the CORS middleware to add its headers to; no route runs
            raise HTTPException(status_of(error), detail=error.text_en, headers=headers_of(error)) from None
