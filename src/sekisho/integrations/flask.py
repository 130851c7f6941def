"""Flask: a decorator for views, async or not."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from flask import Response, current_app, g, request

from sekisho.errors import AuthenticationRequired
from sekisho.tokens.access import AccessClaims
from sekisho.verify import Verifier, WhenLost
from sekisho.verify.guard import MEDIA_TYPE, REFUSED, Guard, Refused, is_preflight, refusal

_P = ParamSpec("_P")


def require_user(
    verifier: Verifier, when_lost: WhenLost | None = None, *, cookie: bool = False
) -> Callable[[Callable[_P, Any]], Callable[_P, Any]]:
    """Guards a view; put it below ``@app.route``. ``when_lost``: in place of the verifier's own policy.

    ``cookie``: without an Authorization header the cookie with the access token counts; what is unsafe must then come
    from a page of the issuer's own origin.
    """
    guard = Guard(verifier, when_lost, cookie=cookie)

    def guarded(view: Callable[_P, Any]) -> Callable[_P, Any]:
        @wraps(view)
        def checked(*args: _P.args, **named: _P.kwargs) -> Any:  # in the thread of this request, so it may block
            try:
                header = request.headers.getlist
                g.claims = guard.claims(header("authorization"), request.method, header)
            except REFUSED as error:
                return _answer(error)
            return current_app.ensure_sync(view)(*args, **named)

        return checked

    return guarded


def current_claims() -> AccessClaims:
    """The claims of the request that was let through.

    Raises ``AuthenticationRequired`` in a view without a guard: not to be caught, but to be mended.
    """
    claims = g.get("claims")
    if not isinstance(claims, AccessClaims):
        raise AuthenticationRequired("no guard has let this request through")
    return claims


def _answer(error: Refused) -> Response:
    """To a preflight an empty one, for what adds CORS headers to add them; the view does not run."""
    if is_preflight(request.method, {name.lower(): "" for name in request.headers.keys()}):  # noqa: SIM118 - of pairs
        return Response(status=204)
    refused = refusal(error)
    return Response(refused.body, refused.status, refused.headers, content_type=MEDIA_TYPE)
