"""The checkpoint: is this access token good, here and now? All in memory, synchronous, without a lock."""

from typing import Final

from sekisho.errors import KeyRefused, TokenRevoked
from sekisho.tokens import access
from sekisho.tokens.access import AccessClaims
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.revoked import RevokedSessions
from sekisho.wire import Clock, now_s

_MAX_LEEWAY_S: Final = 60


class Verifier:
    """Checks access tokens of one issuer for one audience. Safe to call from any thread; never blocks."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        keys: Keyring,
        revoked: RevokedSessions | None = None,
        allow_shared_secret: bool = False,
        leeway_s: int = 10,
        max_lifetime_s: int = 3600,
        clock: Clock = now_s,
    ) -> None:
        """No I/O happens here.

        ``leeway_s`` (0 to 60) is how far clocks may differ; tokens that claim to live longer than ``max_lifetime_s``
        are refused. ``allow_shared_secret`` permits HS256 keys: every service that can check with one can also sign
        with it, so that is for the issuer itself. Raises ``KeyRefused`` or ``ValueError``.
        """
        # A float's NaN compares with nothing and an infinity with everything: both would switch expiry off.
        if not _is_whole(leeway_s) or not 0 <= leeway_s <= _MAX_LEEWAY_S:
            raise ValueError("leeway_s is a whole number of seconds from 0 to 60")
        if not _is_whole(max_lifetime_s) or max_lifetime_s <= 0:
            raise ValueError("max_lifetime_s is a whole number of seconds above 0")
        if not issuer or not audience:
            raise ValueError("issuer and audience are not empty")
        self._issuer = issuer
        self._audience = audience
        self._allow_shared_secret = allow_shared_secret
        self._leeway_s = leeway_s
        self._max_lifetime_s = max_lifetime_s
        self._clock = clock
        self._revoked = revoked if revoked is not None else RevokedSessions()
        self.replace_keys(keys)

    def replace_keys(self, keys: Keyring) -> None:
        """From now on these keys count; calls under way finish with the ones they began with."""
        if keys.has_shared_secret and not self._allow_shared_secret:
            raise KeyRefused(
                "HS256 keys let every verifier sign tokens: let the issuer sign with EdDSA, ES256 or RS256, "
                "or pass allow_shared_secret=True where issuer and verifier are one service"
            )
        self._keys = keys

    def verify(self, token: str) -> AccessClaims:
        """The claims of a token that is good now. Raises a ``TokenError``; its ``code`` says why, to the operator."""
        # 1. Shape, header, key by kid, signature, type, claims of the right types (RFC 9068 §4, RFC 8725 §3).
        claims = access.read(token, self._keys)
        # 2. Issuer, audience and times (RFC 7519 §4.1).
        access.check(
            claims,
            expected_issuer=self._issuer,
            expected_audience=self._audience,
            now=self._clock(),
            leeway_s=self._leeway_s,
            max_lifetime_s=self._max_lifetime_s,
        )
        # 3. The session has not ended (a look-up in memory).
        if claims.sid in self._revoked:
            raise TokenRevoked
        return claims

    def verify_signed(self, token: str) -> AccessClaims:
        """The claims of a token that this issuer signed, though it may have expired or its session have ended.

        For logout alone: whoever holds an old token may still end its session. Raises a ``TokenError``.
        """
        return access.read(token, self._keys)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # True is an int to Python, and would be 1 second
