"""The applications of guarded_world once more, with guards that take the access cookie, and for every method.

Each is ``build(verifier, **cookie) -> app``, where ``cookie`` is the integration's own option, given or not.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import flask
import httpx2
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings
from fastapi import Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from guarded_world import (
    Integration,
    RestView,
    _answer,
    _django,
    _starlette_endpoint,
    _starlette_endpoint_sync,
    django_view,
    django_view_sync,
)
from sekisho import AccessClaims
from sekisho.integrations import fastapi as for_fastapi
from sekisho.integrations import flask as for_flask
from sekisho.integrations import starlette as for_starlette

METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]


def fastapi_app(verifier, **cookie):
    app = FastAPI()
    User = Annotated[AccessClaims, Depends(for_fastapi.RequireUser(verifier, **cookie))]  # noqa: N806

    @app.api_route("/customers", methods=METHODS)
    async def customers(request: Request, user: User) -> dict[str, str]:
        return _answer(user, request.url.query)

    return app


def starlette_middleware(verifier, **cookie):
    app = Starlette(routes=[Route("/customers", _starlette_endpoint, methods=METHODS)])
    app.add_middleware(for_starlette.RequireUser, verifier=verifier, exempt=["/health"], **cookie)
    return app


def _starlette_decorated(endpoint):
    def build(verifier, **cookie):
        guarded = for_starlette.require_user(verifier, **cookie)(endpoint)
        return Starlette(routes=[Route("/customers", guarded, methods=METHODS)])

    return build


def raw_asgi(verifier, **cookie):
    async def app(scope, receive, send):
        await JSONResponse(_answer(scope["state"]["claims"]))(scope, receive, send)

    return for_starlette.RequireUser(app, verifier=verifier, **cookie)


class EveryMethod(RestView):
    head = put = patch = delete = RestView.get


def _django_with(handler: type, view: Callable[..., Any], *, how: str):
    build_plain = _django(handler, view, how=how)

    def build(verifier, **cookie):
        stack = ExitStack()
        stack.enter_context(override_settings(**{f"SEKISHO_{name.upper()}": value for name, value in cookie.items()}))
        app = build_plain(verifier)
        stack.callback(app.close_settings)
        app.close_settings = stack.close
        return app

    return build


def _flask(*, is_async: bool):
    def build(verifier, **cookie):
        app = flask.Flask(__name__)

        def customers():
            return _answer(for_flask.current_claims(), flask.request.query_string)

        async def customers_async():
            return customers()

        view = for_flask.require_user(verifier, **cookie)(customers_async if is_async else customers)
        app.add_url_rule("/customers", "customers", view, methods=METHODS, provide_automatic_options=False)
        return app

    return build


@dataclass(frozen=True)
class CookieIntegration(Integration):
    """Under WSGI several headers of one name become one, with commas (PEP 3333), whatever their name."""

    def send(self, app: Any, method: str = "GET", url: str = "/customers", **named: Any) -> httpx2.Response:
        if self.protocol == "wsgi":
            app = _with_all_headers(app, list(named.pop("headers", ())))
        return super().send(app, method, url, **named)


def _with_all_headers(app: Any, headers: Sequence[tuple[str, str]]) -> Any:
    joined: dict[str, str] = {}
    for name, value in headers:
        key = "HTTP_" + name.upper().replace("-", "_")
        joined[key] = f"{joined[key]},{value}" if key in joined else value

    def passed_on(environ: dict[str, Any], start_response: Any) -> Any:
        return app({**environ, **joined}, start_response)

    return passed_on


COOKIE_INTEGRATIONS = {
    "FastAPI": CookieIntegration(fastapi_app, "asgi", challenges=False),
    "Starlette middleware": CookieIntegration(starlette_middleware, "asgi"),
    "Starlette decorator": CookieIntegration(_starlette_decorated(_starlette_endpoint), "asgi"),
    "Starlette decorator, sync": CookieIntegration(_starlette_decorated(_starlette_endpoint_sync), "asgi"),
    "raw ASGI": CookieIntegration(raw_asgi, "asgi"),
    "Django middleware, async": CookieIntegration(_django_with(ASGIHandler, django_view, how="middleware"), "asgi"),
    "Django middleware, WSGI": CookieIntegration(_django_with(WSGIHandler, django_view_sync, how="middleware"), "wsgi"),
    "Django decorator, async": CookieIntegration(_django_with(ASGIHandler, django_view, how="decorator"), "asgi"),
    "Django decorator, sync": CookieIntegration(_django_with(WSGIHandler, django_view_sync, how="decorator"), "wsgi"),
    "Django bare decorator": CookieIntegration(
        _django_with(WSGIHandler, django_view_sync, how="bare decorator"), "wsgi"
    ),
    "Django REST framework": CookieIntegration(
        _django_with(WSGIHandler, EveryMethod.as_view(), how="rest"), "wsgi", challenges=False
    ),
    "Flask": CookieIntegration(_flask(is_async=False), "wsgi"),
    "Flask, async": CookieIntegration(_flask(is_async=True), "wsgi"),
}
