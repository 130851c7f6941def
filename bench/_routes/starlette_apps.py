"""Starlette: bare, with the decorator, behind the middleware."""

from typing import Any

import given
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sekisho.integrations.starlette import RequireUser, claims_of, require_user


async def _anybody(_request: Request) -> JSONResponse:
    return JSONResponse({"user": given.NOBODY})


async def _customers(request: Request) -> JSONResponse:
    return JSONResponse({"user": claims_of(request).sub})


def bare() -> Starlette:
    return _app(_anybody)


def decorator() -> Starlette:
    return _app(require_user(given.verifier())(_customers))


def middleware() -> Starlette:
    return _app(_customers, Middleware(RequireUser, verifier=given.verifier()))


def _app(endpoint: Any, *middlewares: Middleware) -> Starlette:
    return Starlette(routes=[Route("/customers", endpoint)], middleware=middlewares)
