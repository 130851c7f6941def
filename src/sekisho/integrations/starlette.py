"""Starlette and other ASGI applications: a middleware for all of one, a decorator for single endpoints.

And a middleware for pages that are rendered on the server, which keeps them signed in.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial, wraps
from inspect import iscoroutinefunction
from typing import Any, Final, TypeAlias

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sekisho.errors import AuthenticationRequired, RefreshRefused, TryLater
from sekisho.tokens.access import AccessClaims
from sekisho.verify import Verifier, WhenLost
from sekisho.verify.guard import MEDIA_TYPE, REFUSED, Exempt, Guard, Refused, is_preflight, refusal, route_path
from sekisho.verify.renewal import Bearer, ByLoop, Renewal, Renewals, Renewed

Endpoint: TypeAlias = Callable[[Request], Any]
_POLICY_VIOLATION: Final = 1008  # RFC 6455 §7.4.1


class RequireUser:
    """ASGI middleware: behind it, every HTTP request and websocket has its claims in ``scope["state"]["claims"]``.

    A CORS preflight passes without: whatever is behind must do nothing for OPTIONS but answer it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        verifier: Verifier,
        when_lost: WhenLost | None = None,
        cookie: bool = False,
        exempt: Sequence[str] = (),
    ) -> None:
        """``exempt``: paths that are open to all, exact ones or prefixes that end in ``/``.

        ``when_lost``: in place of the verifier's own policy. ``cookie``: without an Authorization header the cookie
        with the access token counts; what is unsafe must then come from a page of the issuer's own origin.
        """
        self._app = app
        self._guard = Guard(verifier, when_lost, cookie=cookie)
        self._exempt = Exempt(exempt)
        self._has_exempt = bool(exempt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, by the ASGI specification."""
        if scope["type"] != "lifespan" and not self._is_open(scope):
            # By hand: to make an object of the headers takes longer than to check a token that came before.
            values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
            header, method = partial(_values, scope), scope.get("method", "WEBSOCKET")
            try:
                try:
                    claims = self._guard.at_once(values, method, header)
                except TryLater:
                    claims = await self._guard.aclaims(values, method, header)
            except REFUSED as error:
                await _refuse(error, scope, receive, send)
                return
            scope.setdefault("state", {})["claims"] = claims
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        is_options = scope["type"] == "http" and scope["method"] == "OPTIONS"
        if is_options and is_preflight("OPTIONS", Headers(scope=scope)):
            return True
        return self._has_exempt and route_path(scope["path"], scope.get("root_path", "")) in self._exempt


class RefreshInPlace:
    """ASGI middleware for tokens in cookies: when the access cookie has expired, it refreshes before the page is made.

    It belongs outside of whatever asks for the user. What is behind sees the new cookies, and the browser gets them
    with the response. Requests that come at once refresh once. A token that the issuer refuses goes on as it is, for
    the guard to answer; where the issuer cannot say, the request is answered 503.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        verifier: Verifier,
        refresh: str | ByLoop,
        window_s: int = 30,
        exempt: Sequence[str] = (),
    ) -> None:
        """``refresh``: the URL of the issuer's ``/refresh`` or, where Sekisho is inside, ``Sekisho.renew``.

        ``window_s``: the issuer's SEKISHO_REPLAY_WINDOW_S. ``exempt``: paths that need no user, as static files.
        Raises ``ValueError`` for a URL that is neither https nor on this machine.
        """
        self._app = app
        self._renewals = Renewals(verifier, window_s=window_s)
        self._refresh = _by_thread(refresh, window_s) if isinstance(refresh, str) else refresh
        self._exempt = Exempt(exempt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, by the ASGI specification."""
        bearer = self._needed(scope) if scope["type"] == "http" else None
        if bearer is None:
            await self._app(scope, receive, send)
            return
        try:
            renewal = await self._renewals.aget(bearer, self._refresh)
        except RefreshRefused:
            await self._app(scope, receive, send)
            return
        except TryLater as error:
            await _refuse(error, scope, receive, send)
            return

        async def with_cookies(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                self._write(renewal, MutableHeaders(scope=message))
            await send(message)

        cookies = self._renewals.cookie_header(partial(_values, scope), renewal.pair)
        headers = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
        scope = dict(scope, headers=[*headers, (b"cookie", cookies.encode("latin-1"))])
        await self._app(scope, receive, with_cookies)

    def _needed(self, scope: Scope) -> Bearer | None:
        if route_path(scope["path"], scope.get("root_path", "")) in self._exempt:
            return None
        peer = scope.get("client") or ("", 0)
        return self._renewals.needed(scope["method"], partial(_values, scope), peer=peer[0])

    def _write(self, renewal: Renewal, headers: MutableHeaders) -> None:
        headers.add_vary_header("Cookie")
        if not self._renewals.may_write(renewal, headers.getlist("set-cookie")):
            return
        for cookie in self._renewals.set_cookies(renewal.pair):
            headers.append("set-cookie", cookie)
        headers["cache-control"] = "no-store"  # whatever the page says: another user must not be served these


def _by_thread(url: str, window_s: int) -> ByLoop:
    from sekisho.verify.issuer import RefreshAtIssuer  # noqa: PLC0415 - httpx2 is for those who use it

    refresh = RefreshAtIssuer(url, window_s=window_s)

    async def by_thread(bearer: Bearer) -> Renewed:
        return await asyncio.to_thread(refresh, bearer)

    return by_thread


def require_user(
    verifier: Verifier, when_lost: WhenLost | None = None, *, cookie: bool = False
) -> Callable[[Endpoint], Endpoint]:
    """Guards one endpoint function, async or not. ``when_lost`` and ``cookie`` as for ``RequireUser``."""
    guard = Guard(verifier, when_lost, cookie=cookie)

    def guarded(endpoint: Endpoint) -> Endpoint:
        @wraps(endpoint)
        async def asynchronous(request: Request) -> Any:
            try:
                header = request.headers.getlist
                claims = await guard.aclaims(header("authorization"), request.method, header)
            except REFUSED as error:
                return _answer(error, request)
            request.state.claims = claims
            return await endpoint(request)

        @wraps(endpoint)
        def synchronous(request: Request) -> Any:  # Starlette runs it in a worker thread
            try:
                header = request.headers.getlist
                claims = guard.claims(header("authorization"), request.method, header)
            except REFUSED as error:
                return _answer(error, request)
            request.state.claims = claims
            return endpoint(request)

        return asynchronous if iscoroutinefunction(endpoint) else synchronous

    return guarded


def claims_of(request: HTTPConnection) -> AccessClaims:
    """The claims of a request or websocket that was let through.

    Raises ``AuthenticationRequired`` where no guard stood, as on exempt paths: not to be caught, but to be mended.
    """
    claims = request.scope.get("state", {}).get("claims")
    if not isinstance(claims, AccessClaims):
        raise AuthenticationRequired("no guard has let this request through")
    return claims


def _values(scope: Scope, name: str) -> list[str]:
    wanted = name.encode("ascii")
    return [value.decode("latin-1") for key, value in scope["headers"] if key == wanted]


def _answer(error: Refused, request: Request) -> Response:
    """To a preflight an empty one, for the CORS middleware to add its headers to; the endpoint does not run."""
    return Response(status_code=204) if is_preflight(request.method, request.headers) else _refusal(error)


def _refusal(error: Refused) -> Response:
    refused = refusal(error)
    return Response(refused.body, refused.status, refused.headers, media_type=MEDIA_TYPE)


async def _refuse(error: Refused, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})  # the server answers 403
    else:
        await _refusal(error)(scope, receive, send)
