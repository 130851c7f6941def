"""One application for each way to refresh in place, all alike from outside.

Each view tells which cookies it has seen, as JSON. ``/`` is for whoever is signed in; ``/late?gate=PORT`` too, and
answers when the gate at that port opens; ``/leave`` signs out in its own response; ``/public`` says that it may be
kept by caches; ``/open`` is exempt.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import uvicorn
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sekisho import Verifier
from sekisho.integrations import starlette as for_starlette
from sekisho.verify.cookies import Cookies
from servers.ports import free_port

_PATIENCE_S = 20.0
OPEN = "/open"


def _seen(cookies: Cookies, found: Mapping[str, str], header: str | None, user: str | None) -> dict[str, Any]:
    ours = {"access": found.get(cookies.access), "refresh": found.get(cookies.refresh)}
    return {"user": user, **ours, "all": dict(found), "header": header}


def _clears(cookies: Cookies) -> list[str]:
    return [cookies.clear(cookies.access), cookies.clear(cookies.refresh)]


# --- Starlette -----------------------------------------------------------------------------------------------------


def starlette_app(verifier: Verifier, *, refresh: Any, window_s: int = 30, router: APIRouter | None = None) -> FastAPI:
    """``router``: Sekisho's own, where it is inside."""
    cookies = Cookies(verifier.issuer)

    async def page(request: Request) -> JSONResponse:
        claims = request.scope.get("state", {}).get("claims")
        answer = JSONResponse(
            _seen(cookies, request.cookies, request.headers.get("cookie"), claims.sub if claims else None)
        )
        match request.url.path:
            case "/late":
                reads, writes = await asyncio.open_connection("127.0.0.1", int(request.query_params["gate"]))
                await reads.read(1)
                writes.close()
            case "/public":
                answer.headers["Cache-Control"] = "public, max-age=600"
            case "/leave":
                for line in _clears(cookies):
                    answer.headers.append("set-cookie", line)
        return answer

    paths = ["/", "/late", "/public", "/leave", OPEN]
    app = FastAPI(routes=[Route(path, page, methods=["GET", "POST"]) for path in paths])
    app.add_middleware(for_starlette.RequireUser, verifier=verifier, cookie=True, exempt=["/auth/", "/healthz", OPEN])
    app.add_middleware(
        for_starlette.RefreshInPlace,
        verifier=verifier,
        refresh=refresh,
        window_s=window_s,
        exempt=["/auth/", "/healthz", OPEN],
    )
    if router is not None:
        app.include_router(router, prefix="/auth")
        app.add_api_route("/healthz", lambda: {"status": "alive"})
    return app


# --- Django --------------------------------------------------------------------------------------------------------


def django_app(verifier: Verifier, *, refresh: str, window_s: int = 30, is_async: bool) -> Any:
    """For one of many in this process: what the settings say while it is made is all that it reads of them."""
    from django.core.handlers.asgi import ASGIHandler
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, JsonResponse
    from django.test import override_settings
    from django.urls import path

    import guarded_world  # noqa: F401 - it sets Django up

    cookies = Cookies(verifier.issuer)

    def page(request: HttpRequest) -> JsonResponse:
        claims = getattr(request, "claims", None)
        answer = JsonResponse(
            _seen(cookies, request.COOKIES, request.headers.get("cookie"), claims.sub if claims else None)
        )
        if request.path == "/public":
            answer["Cache-Control"] = "public, max-age=600"
        if request.path == "/leave":
            for line in _clears(cookies):
                answer.cookies.load(line)
        return answer

    async def async_page(request: HttpRequest) -> JsonResponse:
        return page(request)

    def late(request: HttpRequest) -> JsonResponse:
        with socket.create_connection(("127.0.0.1", int(request.GET["gate"]))) as connection:
            connection.recv(1)
        return page(request)

    async def async_late(request: HttpRequest) -> JsonResponse:
        reads, writes = await asyncio.open_connection("127.0.0.1", int(request.GET["gate"]))
        await reads.read(1)
        writes.close()
        return page(request)

    views = [path("late", async_late if is_async else late)]
    views += [path(name, async_page if is_async else page) for name in ("", "public", "leave", OPEN[1:])]
    with override_settings(
        ROOT_URLCONF=tuple(views),
        MIDDLEWARE=[
            "paged_world.its_own_urls",
            "sekisho.integrations.django.RefreshInPlaceMiddleware",
            "sekisho.integrations.django.SekishoMiddleware",
        ],
        SEKISHO_VERIFIER=verifier,
        SEKISHO_COOKIE=True,
        SEKISHO_REFRESH_URL=refresh,
        SEKISHO_REPLAY_WINDOW_S=window_s,
        SEKISHO_EXEMPT=[OPEN],
    ):
        return ASGIHandler() if is_async else WSGIHandler()


def its_own_urls(get_response: Callable[..., Any]) -> Callable[..., Any]:
    """Django's middleware, for the views that were in the settings when the application was made.

    It looks at headers and cookies first, as many do.
    """
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
    from django.conf import settings

    urls = settings.ROOT_URLCONF

    def middleware(request: Any) -> Any:
        request.urlconf = urls
        assert request.headers is not None
        assert request.COOKIES is not None
        return get_response(request)

    if iscoroutinefunction(get_response):
        markcoroutinefunction(middleware)
    return middleware


its_own_urls.async_capable = True  # type: ignore[attr-defined]


# --- served --------------------------------------------------------------------------------------------------------


@contextmanager
def served_asgi(app: Any) -> Iterator[int]:
    """Over real HTTP, from a thread of this process; gives the port."""
    port = free_port()
    # X-Forwarded-For stays what it is: uvicorn would take its word for who is there.
    config = uvicorn.Config(app, port=port, log_config=None, lifespan="off", ws="none", proxy_headers=False)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield port  # who connects before it accepts waits in the backlog
    finally:
        server.should_exit = True
        thread.join(_PATIENCE_S)
        listener.close()


class _Threading(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 512


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


@contextmanager
def served_wsgi(app: Any) -> Iterator[int]:
    """The same with a thread for each request."""
    server = make_server("127.0.0.1", free_port(), app, server_class=_Threading, handler_class=_Silent)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(_PATIENCE_S)
        server.server_close()


class Gate:
    """Before which ``/late`` waits."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.port: int = listener.getsockname()[1]

    def wait_for_one(self) -> Callable[[], None]:
        """Returns when a request waits: what lets it go on."""
        connection, _ = self._listener.accept()

        def open_gate() -> None:
            connection.close()

        return open_gate


@contextmanager
def a_gate() -> Iterator[Gate]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(_PATIENCE_S)
        yield Gate(listener)
