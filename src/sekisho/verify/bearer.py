"""The bearer token of a request (RFC 6750 §2.1), read the same way in every framework."""

from collections.abc import Sequence
from typing import Final

from sekisho.errors import AuthenticationRequired, TokenMalformed
from sekisho.tokens.jws import MAX_TOKEN_CHARS

CHALLENGE: Final = "Bearer"
CHALLENGE_INVALID: Final = 'Bearer error="invalid_token"'
_MAX_CHARS: Final = len("Bearer ") + MAX_TOKEN_CHARS


def bearer_token(authorization: Sequence[str]) -> str:
    """The token from the values of all Authorization headers of a request.

    Only this header counts: a token in a query string ends up in logs and in Referer headers (RFC 9700 §4.3.2).
    Raises ``AuthenticationRequired`` without a header and ``TokenMalformed`` for one that is not a single Bearer.
    """
    if not authorization:
        raise AuthenticationRequired
    if len(authorization) > 1:
        raise TokenMalformed("two Authorization headers")
    if len(authorization[0]) > _MAX_CHARS:  # before anything reads all of it
        raise TokenMalformed("longer than 8 KiB")
    scheme, _, token = authorization[0].partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TokenMalformed("the Authorization header is not a Bearer token")
    return token
