"""The JSON routes. Each reads its request, calls one flow, and writes its answer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from sekisho.errors import AuthenticationRequired, SessionNotFound, TryLater
from sekisho.integrations.fastapi import RequireUser
from sekisho.services.accounts import Accounts
from sekisho.services.caller import Caller
from sekisho.services.change_password import ChangePassword
from sekisho.services.login import Login
from sekisho.services.logout import Logout
from sekisho.services.mint import Grant
from sekisho.services.refresh import Refresh
from sekisho.services.sessions import Sessions
from sekisho.services.signup import SignUp
from sekisho.storage.rows import MICROSECONDS, Session
from sekisho.tokens.access import AccessClaims, account_and_session
from sekisho.verify import Verifier
from sekisho.verify.bearer import bearer_token
from sekisho.web.address import client_address
from sekisho.web.cookies import DeviceCookie
from sekisho.web.problems import documented

_MAX_USER_AGENT_CHARS: Final = 256


class _Strict(BaseModel):
    """A body in which an unknown member is an error: a misspelt option must not be passed over."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Credentials(_Strict):
    """An account's address and password."""

    email: str = Field(examples=["alice@example.com"])
    password: str = Field(examples=["correct horse battery staple!"], json_schema_extra={"format": "password"})


class RefreshBody(_Strict):
    """A refresh token."""

    refresh_token: str = Field(examples=["sekisho_rt_…"])


class LogoutBody(_Strict):
    """A refresh token, or nothing where the header has an access token."""

    refresh_token: str = Field(default="", examples=["sekisho_rt_…"])


class PasswordBody(_Strict):
    """The password as it is and as it is to be."""

    current_password: str = Field(json_schema_extra={"format": "password"})
    new_password: str = Field(json_schema_extra={"format": "password"})


class Account(BaseModel):
    """A new account."""

    id: UUID
    email: str


class TokenPair(BaseModel):
    """What login and refresh answer (RFC 6749 §5.1). Lifetimes in seconds from now."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - RFC 6750's word, not a password
    expires_in: int = Field(examples=[900])
    refresh_token: str
    refresh_expires_in: int = Field(examples=[604800])


class Me(BaseModel):
    """The account behind the credential."""

    id: UUID
    email: str
    roles: list[str]
    session_id: UUID
    created_at: datetime


class SessionView(BaseModel):
    """One sign-in. ``current`` marks the one that asks."""

    id: UUID
    current: bool
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime = Field(description="When it ends if it is not used again.")
    address: str
    user_agent: str


class SessionList(BaseModel):
    """A user's live sessions, the one used last first."""

    sessions: list[SessionView]


@dataclass(frozen=True, kw_only=True)
class Flows:
    """The flows behind the routes."""

    sign_up: SignUp
    login: Login
    refresh: Refresh
    logout: Logout
    change_password: ChangePassword
    sessions: Sessions
    accounts: Accounts


@dataclass(frozen=True, kw_only=True)
class Requests:
    """How a request is read: who is calling, and with which credential."""

    verifier: Verifier
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    device_cookie: DeviceCookie

    def caller(self, request: Request) -> Caller:
        """Address, user agent and device."""
        peer = request.client.host if request.client else None
        forwarded_for = request.headers.getlist("x-forwarded-for")
        user_agent = request.headers.get("user-agent", "")[:_MAX_USER_AGENT_CHARS]
        if not user_agent.isprintable():
            user_agent = "".join(char if char.isprintable() else "�" for char in user_agent)
        return Caller(
            address=client_address(peer, forwarded_for, self.trusted_proxies),
            user_agent=user_agent,
            device_token=self.device_cookie.read(request),
        )

    def signed_claims(self, request: Request) -> AccessClaims | None:
        """The claims of the Authorization header's token, expired or not; None without the header."""
        authorization = request.headers.getlist("authorization")
        return self.verifier.verify_signed(bearer_token(authorization)) if authorization else None


class _CurrentUser(RequireUser):
    """As outside, but the errors stay Sekisho's: these routes write their own problems."""

    async def __call__(self, request: Request) -> AccessClaims:
        return self.claims(request)


def add_routes(router: APIRouter, flows: Flows, requests: Requests) -> None:
    """Adds every JSON route to a router whose route class is Sekisho's."""
    current_user = _CurrentUser(requests.verifier)
    _add_account_routes(router, flows, requests, current_user)
    _add_token_routes(router, flows, requests, current_user)
    _add_session_routes(router, flows, current_user)


def _add_account_routes(router: APIRouter, flows: Flows, requests: Requests, current_user: Callable[..., Any]) -> None:
    @router.post("/signup", tags=["Accounts"], status_code=201, responses=documented(400, 409, 413, 415, 422, 429, 503))
    async def sign_up(request: Request, body: Credentials) -> Account:
        """Create an account."""
        caller = requests.caller(request)
        user = await flows.sign_up(email=body.email, password=body.password, address=caller.address)
        return Account(id=user.id, email=user.email)

    @router.post("/password", tags=["Accounts"], responses=documented(400, 401, 413, 415, 422, 429, 503))
    async def change_password(
        request: Request, body: PasswordBody, user: Annotated[AccessClaims, Depends(current_user)]
    ) -> TokenPair:
        """Change the password. Every session ends, and a new one begins for the device that asked."""
        user_id, session_id = account_and_session(user)
        grant = await flows.change_password(
            user_id=user_id,
            session_id=session_id,
            current_password=body.current_password,
            new_password=body.new_password,
            caller=requests.caller(request),
        )
        return _pair(grant)

    @router.get("/me", tags=["Accounts"], responses=documented(401, 503))
    async def me(user: Annotated[AccessClaims, Depends(current_user)]) -> Me:
        """The account behind the access token. Reads its row."""
        user_id, session_id = account_and_session(user)
        account = await flows.accounts.current(user_id)
        return Me(
            id=account.id,
            email=account.email,
            roles=list(account.roles),
            session_id=session_id,
            created_at=_time(account.created_at_us),
        )


def _add_token_routes(router: APIRouter, flows: Flows, requests: Requests, current_user: Callable[..., Any]) -> None:
    @router.post("/login", tags=["Tokens"], responses=documented(400, 401, 413, 415, 422, 429, 503))
    async def login(request: Request, response: Response, body: Credentials) -> TokenPair:
        """Open a session."""
        signed_in = await flows.login(email=body.email, password=body.password, caller=requests.caller(request))
        requests.device_cookie.set(response, signed_in.device_token)
        return _pair(signed_in.grant)

    @router.post("/refresh", tags=["Tokens"], responses=documented(400, 401, 413, 415, 422, 503))
    async def refresh(request: Request, body: RefreshBody) -> TokenPair:
        """Exchange a refresh token for a new pair."""
        if await _has_left(request):  # nobody would receive the new position
            raise TryLater(1, "the client left")
        return _pair(await flows.refresh(token=body.refresh_token, caller=requests.caller(request)))

    @router.post(
        "/logout",
        tags=["Tokens"],
        status_code=204,
        responses=documented(400, 401, 413, 415, 422, 503),
        openapi_extra={"security": [{"AccessToken": []}, {}]},  # else /docs would not send the header: it is optional
    )
    async def logout(request: Request, body: Annotated[LogoutBody | None, Body()] = None) -> Response:
        """End the session of an access token (in the header) or a refresh token (in the body), old ones too."""
        claims = requests.signed_claims(request)  # the header counts first; a bad one is not passed over
        if claims is not None:
            await flows.logout.by_access_token(claims)
        elif body is not None and body.refresh_token:
            await flows.logout.by_refresh_token(body.refresh_token)
        else:
            raise AuthenticationRequired
        return _logged_out()

    @router.post("/logout/all", tags=["Tokens"], status_code=204, responses=documented(401, 503))
    async def logout_everywhere(user: Annotated[AccessClaims, Depends(current_user)]) -> Response:
        """End every session of the user."""
        await flows.logout.everywhere(user)
        return _logged_out()


def _add_session_routes(router: APIRouter, flows: Flows, current_user: Callable[..., Any]) -> None:
    @router.get("/sessions", tags=["Sessions"], responses=documented(401, 503))
    async def list_sessions(user: Annotated[AccessClaims, Depends(current_user)]) -> SessionList:
        """The user's live sessions."""
        user_id, session_id = account_and_session(user)
        sessions = await flows.sessions.of_user(user_id)
        return SessionList(sessions=[_view(session, current_id=session_id) for session in sessions])

    @router.delete(
        "/sessions/{session_id}", tags=["Sessions"], status_code=204, responses=documented(401, 404, 422, 503)
    )
    async def end_session(
        session_id: Annotated[str, Path(json_schema_extra={"format": "uuid"})],
        user: Annotated[AccessClaims, Depends(current_user)],
    ) -> Response:
        """End one of the user's sessions."""
        try:
            parsed = UUID(session_id)
        except ValueError:
            raise SessionNotFound from None
        user_id, _ = account_and_session(user)
        await flows.sessions.end_one(user_id, parsed)
        return Response(status_code=204)


async def _has_left(request: Request) -> bool:
    """As ``request.is_disconnected()``, without its cancel scope, which takes longer than the look itself."""
    message = asyncio.ensure_future(request.receive())
    try:
        await asyncio.sleep(0)  # lets it look once
        return message.done() and bool(message.result()["type"] == "http.disconnect")
    finally:
        message.cancel()


def _pair(grant: Grant) -> TokenPair:
    return TokenPair(
        access_token=grant.access_token,
        expires_in=grant.expires_in_s,
        refresh_token=grant.refresh_token,
        refresh_expires_in=grant.refresh_expires_in_s,
    )


def _logged_out() -> Response:
    # The browser's cache may hold pages that only the user may see (OWASP ASVS 14.3.1).
    return Response(status_code=204, headers={"Clear-Site-Data": '"cache"'})


def _view(session: Session, *, current_id: UUID) -> SessionView:
    return SessionView(
        id=session.id,
        current=session.id == current_id,
        created_at=_time(session.created_at_us),
        last_used_at=_time(session.handed_out_at_us),
        expires_at=_time(min(session.idle_ends_at_us, session.ends_at_us)),
        address=session.last_address,
        user_agent=session.last_user_agent,
    )


def _time(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us // MICROSECONDS, tz=UTC)
