"""FastAPI with Sekisho mounted, bare and guarded; and guarded with a look-up in Redis, as people write it.

The look-ups differ in the client's settings alone. Each is one flat dependency that reads the cookie from the request:
FastAPI's ``Cookie()`` or ``APIKeyCookie`` would cost more.
"""

import json
from typing import Annotated, Any

import given
import redis.asyncio
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi_apps import app_of

from sekisho import AccessClaims
from sekisho.storage.redis import redis_pool
from sekisho.web import Sekisho, Settings

COOKIE = "session"
_TIMEOUT_S = 0.1  # as in sekisho/storage/session_cache.py


def mounted_bare() -> FastAPI:
    app, _ = _with_sekisho()

    @app.get("/customers")
    async def customers() -> dict[str, str]:
        return {"user": given.NOBODY}

    return app


def mounted() -> FastAPI:
    app, auth = _with_sekisho()

    @app.get("/customers")
    async def customers(user: Annotated[AccessClaims, Depends(auth.current_user)]) -> dict[str, str]:
        return {"user": user.sub}

    return app


def look_up() -> FastAPI:
    """Everything as redis-py has it by default."""
    return _looking_up(redis.asyncio.Redis.from_url(given.REDIS_URL, decode_responses=True))


def look_up_as_sekisho() -> FastAPI:
    """With the settings that Sekisho gives its client."""
    pool = redis_pool(given.REDIS_URL, timeout_s=_TIMEOUT_S, answer_timeout_s=None)
    return _looking_up(redis.asyncio.Redis(connection_pool=pool))


def look_up_without_timeouts() -> FastAPI:
    """The cheapest that there is, and one that waits for ever for a Redis that stands still."""
    return _looking_up(redis.asyncio.Redis.from_url(given.REDIS_URL, decode_responses=True, socket_timeout=None))


def _with_sekisho() -> tuple[FastAPI, Sekisho]:
    auth = Sekisho(Settings())
    app = FastAPI()
    app.include_router(auth.router, prefix="/auth")
    return app, auth


def _looking_up(client: "redis.asyncio.Redis") -> FastAPI:
    async def current_user(request: Request) -> dict[str, Any]:
        cookie = request.cookies.get(COOKIE)
        session = None if cookie is None else await client.get("session:" + cookie)
        if session is None:
            raise HTTPException(401, "not authenticated")
        found: dict[str, Any] = json.loads(session)
        return found

    return app_of(current_user)
