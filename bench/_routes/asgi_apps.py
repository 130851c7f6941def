"""ASGI without a framework: bare, and behind the middleware."""

from typing import Any

import given

from sekisho.integrations.starlette import RequireUser


def bare() -> Any:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await _answer(given.NOBODY, send)

    return app


def middleware() -> Any:
    async def app(scope: Any, _receive: Any, send: Any) -> None:
        await _answer(scope["state"]["claims"].sub, send)

    return RequireUser(app, verifier=given.verifier())


async def _answer(user: str, send: Any) -> None:
    body = f'{{"user":"{user}"}}'.encode()
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
