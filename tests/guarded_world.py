"""One application for each integration, all alike from outside: /customers is guarded, /health is open.

Each is ``build(verifier) -> app``; ``send`` is one request to it, in this process.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import django
import flask
import httpx2
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import JsonResponse
from django.test import override_settings
from django.urls import path
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sekisho import AccessClaims, FeedLost, SekishoError, Verifier
from sekisho.integrations import django as for_django
from sekisho.integrations import fastapi as for_fastapi
from sekisho.integrations import flask as for_flask
from sekisho.integrations import starlette as for_starlette

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=(),
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": ["sekisho.integrations.rest_framework.SekishoAuthentication"],
        "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "UNAUTHENTICATED_USER": None,
    },
)
django.setup()

from rest_framework.response import Response  # noqa: E402 - it reads the settings
from rest_framework.views import APIView  # noqa: E402

OWN_ERROR = FeedLost(detail="a handler's own, of a kind that a guard answers when it comes from the verifier")


class ScriptedVerifier(Verifier):
    """A real one, until a test gives it something to raise."""

    raises: SekishoError | None = None
    ready_after_wait = False
    policy: str | None = None

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.waited: list[float] = []
        self.asked: list[str] = []
        self.blocked_a_loop = False

    def verify(self, token: str, *, when_lost: Any = None) -> AccessClaims:
        self.policy = when_lost
        if self.raises is not None:
            raise self.raises
        return super().verify(token)

    def wait(self, timeout_s: float) -> bool:
        self._note()
        self.waited.append(timeout_s)
        if self.ready_after_wait:
            self.raises = None
        return self.ready_after_wait

    def ask(self, token: str) -> AccessClaims:
        self._note()
        self.asked.append(token)
        return super().verify(token)

    def _note(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        self.blocked_a_loop = True


RAN: list[str] = []
"""The handlers that ran, so that a test can tell that one did not."""


def _answer(claims: AccessClaims, query: str | bytes = "") -> dict[str, str]:
    RAN.append(claims.sub)
    if query in {"fail", b"fail"}:
        raise OWN_ERROR
    return {"customers_of": claims.sub}


# --- FastAPI, Starlette, ASGI --------------------------------------------------------------------------------------


def fastapi_app(verifier, when_lost=None):
    app = FastAPI()
    User = Annotated[AccessClaims, Depends(for_fastapi.RequireUser(verifier, when_lost=when_lost))]  # noqa: N806

    @app.api_route("/customers", methods=["GET", "POST", "OPTIONS"])
    async def customers(request: Request, user: User) -> dict[str, str]:
        return _answer(user, request.url.query)

    return app


async def _starlette_endpoint(request):
    return JSONResponse(_answer(for_starlette.claims_of(request), request.url.query))


def _starlette_endpoint_sync(request):
    return JSONResponse(_answer(for_starlette.claims_of(request), request.url.query))


def starlette_middleware(verifier, when_lost=None):
    routes = [Route("/customers", _starlette_endpoint, methods=["GET", "POST"])]
    app = Starlette(routes=routes)
    app.add_middleware(for_starlette.RequireUser, verifier=verifier, when_lost=when_lost, exempt=["/health"])
    return app


def _starlette_decorated(endpoint):
    def build(verifier, when_lost=None):
        guarded = for_starlette.require_user(verifier, when_lost)(endpoint)
        return Starlette(routes=[Route("/customers", guarded, methods=["GET", "POST", "OPTIONS"])])

    return build


def raw_asgi(verifier, when_lost=None):
    async def app(scope, receive, send):
        if scope["method"] == "OPTIONS":
            response = JSONResponse({}, 405)
        else:
            response = JSONResponse(_answer(scope["state"]["claims"], scope["query_string"]))
        await response(scope, receive, send)

    return for_starlette.RequireUser(app, verifier=verifier, when_lost=when_lost)


# --- Django --------------------------------------------------------------------------------------------------------


async def django_view(request):
    return JsonResponse(_answer(for_django.claims_of(request), request.META["QUERY_STRING"]))


def django_view_sync(request):
    return JsonResponse(_answer(for_django.claims_of(request), request.META["QUERY_STRING"]))


class RestView(APIView):
    def get(self, request):
        assert request.auth is request.user.claims
        assert request.user.is_authenticated
        return Response(_answer(request.auth, request.META["QUERY_STRING"]))

    post = get
    options = get


def _django(handler: type, view: Callable[..., Any], *, how: str):
    def build(verifier, when_lost=None):
        guarded = view
        if how == "decorator":
            guarded = for_django.require_user(verifier=verifier, when_lost=when_lost)(view)
        elif how == "bare decorator":
            guarded = for_django.require_user(view)
        stack = ExitStack()
        stack.enter_context(
            override_settings(
                ROOT_URLCONF=(path("customers", guarded),),
                MIDDLEWARE=["sekisho.integrations.django.SekishoMiddleware"] if how == "middleware" else [],
                SEKISHO_VERIFIER=verifier,
                SEKISHO_WHEN_LOST=when_lost,
                SEKISHO_EXEMPT=["/health"],
            )
        )
        app = handler()
        app.close_settings = stack.close
        return app

    return build


# --- Flask ---------------------------------------------------------------------------------------------------------


def _flask(*, is_async: bool):
    def build(verifier, when_lost=None):
        app = flask.Flask(__name__)
        app.config["PROPAGATE_EXCEPTIONS"] = True

        def customers():
            return _answer(for_flask.current_claims(), flask.request.query_string)

        async def customers_async():
            return customers()

        view = for_flask.require_user(verifier, when_lost)(customers_async if is_async else customers)
        app.add_url_rule(
            "/customers", "customers", view, methods=["GET", "POST", "OPTIONS"], provide_automatic_options=False
        )
        return app

    return build


# --- all -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Integration:
    build: Callable[..., Any]
    protocol: str
    challenges: bool = True  # writes every refusal itself, as problem+json

    def send(self, app: Any, method: str = "GET", url: str = "/customers", **named: Any) -> httpx2.Response:
        if self.protocol == "wsgi":
            headers = list(named.pop("headers", ()))
            app = with_authorization(app, [value for name, value in headers if name == "Authorization"])
            named["headers"] = [header for header in headers if header[0] != "Authorization"]
            with httpx2.Client(transport=httpx2.WSGITransport(app=app), base_url="http://test") as client:
                return client.request(method, url, **named)
        return asyncio.run(self._asend(app, method, url, **named))

    async def _asend(self, app: Any, method: str, url: str, **named: Any) -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
            return await client.request(method, url, **named)


def with_authorization(app: Any, values: Sequence[str | bytes]) -> Any:
    """As WSGI servers pass headers on (PEP 3333): as Latin-1, several as one. httpx2 would keep the last of them."""
    raw = [value if isinstance(value, bytes) else value.encode("latin-1") for value in values]

    def passed_on(environ: dict[str, Any], start_response: Any) -> Any:
        if raw:
            environ["HTTP_AUTHORIZATION"] = b",".join(raw).decode("latin-1")
        return app(environ, start_response)

    return passed_on


INTEGRATIONS = {
    "FastAPI": Integration(fastapi_app, "asgi", challenges=False),
    "Starlette middleware": Integration(starlette_middleware, "asgi"),
    "Starlette decorator": Integration(_starlette_decorated(_starlette_endpoint), "asgi"),
    "Starlette decorator, sync": Integration(_starlette_decorated(_starlette_endpoint_sync), "asgi"),
    "raw ASGI": Integration(raw_asgi, "asgi"),
    "Django middleware, async": Integration(_django(ASGIHandler, django_view, how="middleware"), "asgi"),
    "Django middleware, sync view": Integration(_django(ASGIHandler, django_view_sync, how="middleware"), "asgi"),
    "Django middleware, WSGI": Integration(_django(WSGIHandler, django_view_sync, how="middleware"), "wsgi"),
    "Django middleware, async view, WSGI": Integration(_django(WSGIHandler, django_view, how="middleware"), "wsgi"),
    "Django decorator, async": Integration(_django(ASGIHandler, django_view, how="decorator"), "asgi"),
    "Django decorator, sync": Integration(_django(WSGIHandler, django_view_sync, how="decorator"), "wsgi"),
    "Django bare decorator": Integration(_django(WSGIHandler, django_view_sync, how="bare decorator"), "wsgi"),
    "Django REST framework": Integration(
        _django(WSGIHandler, RestView.as_view(), how="rest"), "wsgi", challenges=False
    ),
    "Flask": Integration(_flask(is_async=False), "wsgi"),
    "Flask, async": Integration(_flask(is_async=True), "wsgi"),
}
