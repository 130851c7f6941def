"""FastAPI: ``user: Annotated[AccessClaims, Depends(RequireUser(verifier))]``."""

from fastapi import HTTPException, Request
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase

from sekisho.errors import AuthenticationRequired, SekishoError, TokenError
from sekisho.tokens.access import AccessClaims
from sekisho.verify import Verifier
from sekisho.verify.bearer import CHALLENGE, CHALLENGE_INVALID, bearer_token


class RequireUser(SecurityBase):
    """A dependency that gives the verified claims, or answers 401 with ``WWW-Authenticate`` (RFC 6750 §3)."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        # What FastAPI writes into the OpenAPI document, so that /docs offers a field for the token.
        self.model = HTTPBearerModel(bearerFormat="JWT", description="An access token, as login and refresh give it.")
        self.scheme_name = "AccessToken"

    # async although nothing is awaited: FastAPI would send a plain function through its thread pool.
    async def __call__(self, request: Request) -> AccessClaims:
        """The claims of the request's access token."""
        try:
            return self.claims(request)
        except AuthenticationRequired as error:
            raise _refused(error, CHALLENGE) from None
        except TokenError as error:
            raise _refused(error, CHALLENGE_INVALID) from None

    def claims(self, request: Request) -> AccessClaims:
        """The same without HTTP's words: raises ``AuthenticationRequired`` or a ``TokenError``."""
        return self._verifier.verify(bearer_token(request.headers.getlist("authorization")))


def _refused(error: SekishoError, challenge: str) -> HTTPException:
    return HTTPException(401, detail=error.text_en, headers={"WWW-Authenticate": challenge})
