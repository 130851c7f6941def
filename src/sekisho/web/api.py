"""The JSON routes of accounts, tokens and the list of sessions. Each reads its request, calls one flow, and answers.

The routes of the cookie session stand in session.py.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Path, Request, Response

from sekisho.errors import AuthenticationRequired, SessionNotFound, TryLater
from sekisho.services.accounts import Accounts
from sekisho.services.change_password import ChangePassword
from sekisho.services.cookie_sessions import CookieSessions, NewCookie
from sekisho.services.login import Login
from sekisho.services.logout import Logout
from sekisho.services.mint import Mint
from sekisho.services.refresh import Refresh
from sekisho.services.sessions import Sessions
from sekisho.services.signup import SignUp
from sekisho.tokens.access import account_and_session
from sekisho.verify.bearer import bearer_token
from sekisho.web import shapes
from sekisho.web.credentials import By, Credential, Requests
from sekisho.web.problems import InvalidBody, documented

_Current: TypeAlias = Callable[[Request], Any]


@dataclass(frozen=True, kw_only=True)
class Flows:
    """The flows behind the routes."""

    mint: Mint
    sign_up: SignUp
    login: Login
    refresh: Refresh
    logout: Logout
    change_password: ChangePassword
    sessions: Sessions
    cookie_sessions: CookieSessions
    accounts: Accounts


def add_routes(router: APIRouter, flows: Flows, requests: Requests, current: _Current) -> None:
    """Adds them to a router whose route class is Sekisho's. ``current`` is the dependency for a ``Credential``."""
    _add_account_routes(router, flows, requests, current)
    _add_token_routes(router, flows, requests)
    _add_logout_routes(router, flows, requests, current)
    _add_session_routes(router, flows, current)


def _add_account_routes(router: APIRouter, flows: Flows, requests: Requests, current: _Current) -> None:
    @router.post("/signup", tags=["Accounts"], status_code=201, responses=documented(400, 409, 413, 415, 422, 429, 503))
    async def sign_up(request: Request, body: shapes.Credentials) -> shapes.Account:
        """Create an account."""
        caller = requests.caller(request)
        user = await flows.sign_up(email=body.email, password=body.password, address=caller.address)
        return shapes.Account(id=user.id, email=user.email)

    @router.post("/password", tags=["Accounts"], responses=documented(400, 401, 403, 413, 415, 422, 429, 503))
    async def change_password(
        request: Request,
        response: Response,
        body: shapes.PasswordBody,
        credential: Annotated[Credential, Depends(current)],
    ) -> shapes.TokenPair | shapes.TokensInCookies | shapes.PageSession:
        """Change the password. Every session ends, and a new one begins for the device that asked."""
        user_id, session_id = account_and_session(credential.claims)
        asked: dict[str, Any] = {
            "user_id": user_id,
            "session_id": session_id,
            "current_password": body.current_password,
            "new_password": body.new_password,
            "caller": requests.caller(request),
        }
        if credential.by is By.SESSION_COOKIE:
            user, cookie = await flows.change_password(**asked, carrier=NewCookie())
            requests.cookies.set_session(response, cookie)
            csrf_token = requests.csrf.token_of_session(cookie.cookie)
            return shapes.PageSession(csrf_token=csrf_token, user=shapes.me(user, cookie.session_id))
        _, grant = await flows.change_password(**asked, carrier=flows.mint)
        if credential.by is By.HEADER:
            return shapes.pair(grant)
        requests.cookies.set_tokens(response, grant)
        return shapes.lifetimes(grant)

    @router.get("/me", tags=["Accounts"], responses=documented(401, 503))
    async def me(credential: Annotated[Credential, Depends(current)]) -> shapes.Me:
        """The account behind the credential. Reads its row."""
        user_id, session_id = account_and_session(credential.claims)
        return shapes.me(await flows.accounts.current(user_id), session_id)


def _add_token_routes(router: APIRouter, flows: Flows, requests: Requests) -> None:
    @router.post("/login", tags=["Tokens"], responses=documented(400, 401, 403, 413, 415, 422, 429, 503))
    async def login(
        request: Request, response: Response, body: shapes.LoginBody
    ) -> shapes.TokenPair | shapes.TokensInCookies:
        """Open a session that tokens carry, in the answer or in cookies."""
        if body.cookies:
            requests.csrf.expect_own_page(request)
        caller = requests.caller(request)
        signed_in = await flows.login(email=body.email, password=body.password, caller=caller, carrier=flows.mint)
        requests.cookies.set_device(response, signed_in.device_token)
        if not body.cookies:
            return shapes.pair(signed_in.grant)
        requests.cookies.set_tokens(response, signed_in.grant)
        return shapes.lifetimes(signed_in.grant)

    @router.post("/refresh", tags=["Tokens"], responses=documented(400, 401, 403, 413, 415, 422, 503))
    async def refresh(
        request: Request, response: Response, body: Annotated[shapes.TokenBody | None, Body()] = None
    ) -> shapes.TokenPair | shapes.TokensInCookies:
        """Exchange a refresh token, in the body or in its cookie, for a new pair, which goes where it came from."""
        shown = None if body is None or "refresh_token" not in body.model_fields_set else body.refresh_token
        token = _refresh_cookie(request, requests, body) if shown is None else shown
        if await _has_left(request):  # nobody would receive the new position
            raise TryLater(1, "the client left")
        grant = await flows.refresh(token=token, caller=requests.caller(request))
        if shown is not None:
            return shapes.pair(grant)
        requests.cookies.set_tokens(response, grant)
        return shapes.lifetimes(grant)


def _refresh_cookie(request: Request, requests: Requests, body: shapes.TokenBody | None) -> str:
    token = requests.cookies.refresh_token(request)
    if token is not None:
        requests.csrf.expect_own_page(request)
        return token
    if body is None:
        raise AuthenticationRequired
    raise InvalidBody([("refresh_token", "missing")])


def _add_logout_routes(router: APIRouter, flows: Flows, requests: Requests, current: _Current) -> None:
    @router.post(
        "/logout",
        tags=["Tokens"],
        status_code=204,
        responses=documented(400, 401, 403, 413, 415, 422, 503),
        openapi_extra={"security": [{"AccessToken": []}, {}]},  # else /docs would not send the header: it is optional
    )
    async def logout(request: Request, body: Annotated[shapes.TokenBody | None, Body()] = None) -> Response:
        """End the session of an access token (header), a refresh token (body) or a cookie, old ones too."""
        authorization = request.headers.getlist("authorization")
        if authorization:  # it counts first; a bad one is not passed over
            await flows.logout.by_access_token(requests.verifier.verify_signed(bearer_token(authorization)))
            return shapes.logged_out()
        if body is not None and "refresh_token" in body.model_fields_set:
            await flows.logout.by_refresh_token(body.refresh_token)
            return shapes.logged_out()
        return await _logged_out_by_cookie(request, flows, requests)

    @router.post("/logout/all", tags=["Tokens"], status_code=204, responses=documented(401, 403, 503))
    async def logout_everywhere(credential: Annotated[Credential, Depends(current)]) -> Response:
        """End every session of the user."""
        await flows.logout.everywhere(credential.claims)
        response = shapes.logged_out()
        if credential.by is By.TOKEN_COOKIE:
            requests.cookies.clear_tokens(response)
        elif credential.by is By.SESSION_COOKIE:
            requests.cookies.clear_session(response)
        return response


async def _logged_out_by_cookie(request: Request, flows: Flows, requests: Requests) -> Response:
    """The tokens' cookies first, the one that lives longer before the other; then the session's own."""
    cookies, response = requests.cookies, shapes.logged_out()
    refresh_token, access_token = cookies.refresh_token(request), cookies.access_token(request)
    if refresh_token is not None or access_token is not None:
        requests.csrf.expect_own_page(request)
        if refresh_token is not None:
            await flows.logout.by_refresh_token(refresh_token)
        elif access_token is not None:
            await flows.logout.by_access_token(requests.verifier.verify_signed(access_token))
        cookies.clear_tokens(response)
        return response
    session = cookies.session(request)
    if session is None:
        raise AuthenticationRequired
    requests.csrf.expect_token(request)
    await flows.cookie_sessions.log_out(session)
    cookies.clear_session(response)
    return response


def _add_session_routes(router: APIRouter, flows: Flows, current: _Current) -> None:
    @router.get("/sessions", tags=["Sessions"], responses=documented(401, 503))
    async def list_sessions(credential: Annotated[Credential, Depends(current)]) -> shapes.SessionList:
        """The user's live sessions, whichever way they are carried."""
        user_id, session_id = account_and_session(credential.claims)
        sessions = await flows.sessions.of_user(user_id)
        # In a thread, for the names of devices: to load what knows them takes a moment.
        return await asyncio.to_thread(shapes.session_list, sessions, current_id=session_id)

    @router.delete(
        "/sessions/{session_id}", tags=["Sessions"], status_code=204, responses=documented(401, 403, 404, 422, 503)
    )
    async def end_session(
        session_id: Annotated[str, Path(json_schema_extra={"format": "uuid"})],
        credential: Annotated[Credential, Depends(current)],
    ) -> Response:
        """End one of the user's sessions."""
        try:
            parsed = UUID(session_id)
        except ValueError:
            raise SessionNotFound from None
        user_id, _ = account_and_session(credential.claims)
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
