"""The routes of the cookie session, for pages that are rendered on the server."""

from contextlib import suppress
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response

from sekisho.errors import AuthenticationRequired, SessionRefused, TokenRevoked
from sekisho.services.cookie_sessions import NewCookie, hash_of
from sekisho.web import shapes
from sekisho.web.api import Flows
from sekisho.web.credentials import Requests
from sekisho.web.problems import documented


def add_routes(router: APIRouter, flows: Flows, requests: Requests) -> None:
    """Adds them to a router whose route class is Sekisho's."""

    # A dependency, so that it is decided before the body is looked at. async, or FastAPI would send it to a thread.
    async def expect_token(
        request: Request,
        x_csrf_token: Annotated[str, Header(description="As GET /session gives it.")] = "",  # noqa: ARG001 - for /docs
    ) -> None:
        requests.csrf.expect_token(request)

    @router.get("/session", tags=["Cookie session"], responses=documented(401, 503))
    async def show(request: Request, response: Response) -> shapes.PageSession:
        """Who is signed in by the session cookie, and the CSRF token for what the page sends next."""
        csrf_token = requests.csrf.token(request, response)
        cookie = requests.cookies.session(request)
        user = None
        if cookie is not None:
            with suppress(SessionRefused, TokenRevoked):  # a page asks this to know whether to show a login
                entry = await flows.cookie_sessions.find(cookie, partial(requests.caller, request))
                user = shapes.me(await flows.accounts.current(entry.user_id), entry.session_id)
        return shapes.PageSession(csrf_token=csrf_token, user=user)

    @router.post(
        "/session",
        tags=["Cookie session"],
        dependencies=[Depends(expect_token)],
        responses=documented(400, 401, 403, 413, 415, 422, 429, 503),
    )
    async def log_in(request: Request, response: Response, body: shapes.Credentials) -> shapes.PageSession:
        """Open a session that a cookie carries. Needs X-CSRF-Token, as GET /session gives it."""
        signed_in = await flows.login(
            email=body.email,
            password=body.password,
            caller=requests.caller(request),
            carrier=NewCookie(),
            replaced=_hash_of(requests.cookies.session(request)),
        )
        requests.cookies.set_device(response, signed_in.device_token)
        requests.cookies.set_session(response, signed_in.grant)
        return shapes.PageSession(
            csrf_token=requests.csrf.token_of_session(signed_in.grant.cookie),
            user=shapes.me(signed_in.user, signed_in.grant.session_id),
        )

    @router.delete(
        "/session",
        tags=["Cookie session"],
        status_code=204,
        dependencies=[Depends(expect_token)],
        responses=documented(401, 403, 422, 503),
    )
    async def log_out(request: Request) -> Response:
        """End the session of the session cookie. Needs X-CSRF-Token."""
        cookie = requests.cookies.session(request)
        if cookie is None:
            raise AuthenticationRequired
        await flows.cookie_sessions.log_out(cookie)
        response = shapes.logged_out()
        requests.cookies.clear_session(response)
        return response


def _hash_of(cookie: str | None) -> bytes | None:
    """None also for what cannot be one of ours: it goes away with the login."""
    with suppress(SessionRefused):
        return None if cookie is None else hash_of(cookie)
    return None
