"""``POST /introspect`` (RFC 7662): a verifier asks whether a token is good now, by the database's word."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from sekisho.errors import TokenError
from sekisho.services.sessions import Sessions
from sekisho.tokens.access import AccessClaims, account_and_session
from sekisho.verify import Verifier
from sekisho.web.feed import VerifierCredential
from sekisho.web.problems import InvalidBody, documented
from sekisho.web.route import form_of


class Introspection(BaseModel):
    """What is known of a token. Of one that is not good, that alone (RFC 7662 §2.2)."""

    active: bool
    iss: str | None = None
    sub: str | None = None
    aud: str | list[str] | None = None
    exp: int | None = None
    iat: int | None = None
    jti: str | None = None
    client_id: str | None = None
    sid: str | None = Field(default=None, description="The session's id.")
    token_type: str | None = None
    roles: list[str] | None = None


_FORM: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["token"],
                    "properties": {
                        "token": {"type": "string", "description": "An access token."},
                        "token_type_hint": {"type": "string", "description": "Not looked at."},
                    },
                }
            }
        },
    }
}


def add_routes(router: APIRouter, *, verifier: Verifier, sessions: Sessions, credential: VerifierCredential) -> None:
    """Adds the route."""

    @router.post(
        "/introspect",
        tags=["Operations"],
        response_model_exclude_none=True,
        responses=documented(400, 401, 413, 415, 422),
        openapi_extra=_FORM,
    )
    async def introspect(request: Request, _name: Annotated[str, Depends(credential)]) -> Introspection:
        """Whether an access token is good now, by its session's row. For verifiers that have lost the feed."""
        fields = await form_of(request)
        if "token" not in fields:
            raise InvalidBody([("token", "missing")])
        try:
            claims = verifier.verify(fields["token"])
            user_id, session_id = account_and_session(claims)
        except TokenError:
            return Introspection(active=False)
        return _told(claims) if await sessions.is_live(user_id, session_id) else Introspection(active=False)


def _told(claims: AccessClaims) -> Introspection:
    return Introspection(
        active=True,
        iss=claims.iss,
        sub=claims.sub,
        aud=claims.aud if isinstance(claims.aud, str) else list(claims.aud),
        exp=claims.exp,
        iat=claims.iat,
        jti=claims.jti,
        client_id=claims.client_id,
        sid=claims.sid,
        token_type="Bearer",  # noqa: S106 - RFC 6750's word
        roles=list(claims.roles) or None,
    )
