"""FastAPI: bare, guarded in two ways, and guarded as its tutorial does it with PyJWT, or with sessions in Redis."""

import json
from collections.abc import Callable
from typing import Annotated, Any

import given
import jwt
import redis.asyncio
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import OAuth2PasswordBearer

from sekisho import AccessClaims
from sekisho.integrations.fastapi import RequireUser
from sekisho.integrations.starlette import RequireUser as RequireUserMiddleware
from sekisho.integrations.starlette import claims_of

_bearer = OAuth2PasswordBearer(tokenUrl="token")
_REFUSED = HTTPException(401, "not authenticated", {"WWW-Authenticate": "Bearer"})


def bare() -> FastAPI:
    app = FastAPI()

    @app.get("/customers")
    async def customers() -> dict[str, str]:
        return {"user": given.NOBODY}

    return app


def dependency(*, packed: bool = False) -> FastAPI:
    app = FastAPI()
    require_user = RequireUser(given.verifier(packed=packed))

    @app.get("/customers")
    async def customers(user: Annotated[AccessClaims, Depends(require_user)]) -> dict[str, str]:
        return {"user": user.sub}

    return app


def dependency_of_a_million() -> FastAPI:
    return dependency(packed=True)


def middleware() -> FastAPI:
    app = FastAPI()
    app.add_middleware(RequireUserMiddleware, verifier=given.verifier())

    @app.get("/customers")
    async def customers(request: Request) -> dict[str, str]:
        return {"user": claims_of(request).sub}

    return app


def pyjwt() -> FastAPI:
    # Async, for FastAPI would send a plain function, as the tutorial's other dependencies are, through its thread pool.
    async def current_user(token: Annotated[str, Depends(_bearer)]) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                given.SECRET,
                algorithms=["HS256"],
                issuer=given.ISSUER,
                audience=given.AUDIENCE,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.InvalidTokenError:
            raise _REFUSED from None

    return app_of(current_user)


def redis_sessions() -> FastAPI:
    client = redis.asyncio.Redis.from_url(given.REDIS_URL, decode_responses=True)

    async def current_user(token: Annotated[str, Depends(_bearer)]) -> dict[str, Any]:
        session = await client.get(f"session:{token}")
        if session is None:
            raise _REFUSED
        found: dict[str, Any] = json.loads(session)
        return found

    return app_of(current_user)


def app_of(current_user: Callable[..., Any]) -> FastAPI:
    """An application whose route depends on whatever gives the claims."""
    app = FastAPI()

    @app.get("/customers")
    async def customers(user: Annotated[dict[str, Any], Depends(current_user)]) -> dict[str, str]:
        return {"user": user["sub"]}

    return app
