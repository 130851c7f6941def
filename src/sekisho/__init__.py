"""Sekisho: authentication for Python services.

This is the front door for whoever receives access tokens; importing it loads no server, database or cloud library.
The server itself is ``sekisho.web``.
"""

from sekisho.errors import (
    AuthenticationRequired,
    FeedLost,
    FeedStarting,
    KeyRefused,
    KeysUnavailable,
    MustAsk,
    SekishoError,
    TokenClaimsInvalid,
    TokenError,
    TokenExpired,
    TokenHeaderRefused,
    TokenKeyUnknown,
    TokenMalformed,
    TokenNotYetValid,
    TokenRevoked,
    TokenSignatureInvalid,
)
from sekisho.tokens.access import AccessClaims
from sekisho.tokens.keyring import Keyring
from sekisho.verify import Verifier

__all__ = [
    "AccessClaims",
    "AuthenticationRequired",
    "FeedLost",
    "FeedStarting",
    "KeyRefused",
    "Keyring",
    "KeysUnavailable",
    "MustAsk",
    "SekishoError",
    "TokenClaimsInvalid",
    "TokenError",
    "TokenExpired",
    "TokenHeaderRefused",
    "TokenKeyUnknown",
    "TokenMalformed",
    "TokenNotYetValid",
    "TokenRevoked",
    "TokenSignatureInvalid",
    "Verifier",
]
