"""FastAPI: ``user: Annotated[AccessClaims, Depends(RequireUser(verifier))]``."""

from fastapi import HTTPException, Request
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase

from sekisho.tokens.access import AccessClaims
from sekisho.verify import Verifier, WhenLost
from sekisho.verify.guard import REFUSED, Guard, is_preflight, refusal


class RequireUser(SecurityBase):
    """A dependency that gives the verified claims, or answers 401 with ``WWW-Authenticate`` (RFC 6750 §3) or 503."""

    def __init__(self, verifier: Verifier, *, when_lost: WhenLost | None = None, cookie: bool = False) -> None:
        """``when_lost``: in place of the verifier's own policy.

        ``cookie``: without an Authorization header the cookie with the access token counts; what is unsafe must then
        come from a page of the issuer's own origin.
        """
        self._guard = Guard(verifier, when_lost, cookie=cookie)
        # What FastAPI writes into the OpenAPI document, so that /docs offers a field for the token.
        self.model = HTTPBearerModel(bearerFormat="JWT", description="An access token, as login and refresh give it.")
        self.scheme_name = "AccessToken"

    # async, for FastAPI would send a plain function through its thread pool.
    async def __call__(self, request: Request) -> AccessClaims:
        """The claims of the request's access token."""
        try:
            header = request.headers.getlist
            return await self._guard.aclaims(header("authorization"), request.method, header)
        except REFUSED as error:
            if is_preflight(request.method, request.headers):
                raise HTTPException(204) from None  # for the CORS middleware to add its headers to; no route runs
            refused = refusal(error)
            raise HTTPException(refused.status, detail=refused.title, headers=dict(refused.headers)) from None
