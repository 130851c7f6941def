"""The checkpoint: is this access token good, here and now? All in memory, synchronous, without a lock.

The steps are numbered through three files: 1 to 4, the signature, are in ``tokens/jws.py``; 5 to 8, the claims, in
``tokens/access.py``; 9 to 13, whether they are for us and for now, in ``Verifier.verify``. A token that came before
skips 1 to 8, which would end as they did, and nothing else.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from sekisho.errors import (
    KeyRefused,
    TokenClaimsInvalid,
    TokenError,
    TokenExpired,
    TokenNotYetValid,
    TokenRevoked,
)
from sekisho.tokens import access
from sekisho.tokens.access import AccessClaims
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.revoked import RevokedSessions
from sekisho.verify.refusals import Refusals
from sekisho.verify.seen import DEFAULT_LIMIT, Seen

_MAX_LEEWAY_S: Final = 60


class Verifier:
    """Checks access tokens of one issuer for one audience. Safe to call from any thread; never blocks."""

    def __init__(  # noqa: PLR0913 - all by keyword, and each a value of its own
        self,
        *,
        issuer: str,
        audience: str,
        keys: Keyring,
        revoked: RevokedSessions | None = None,
        allow_shared_secret: bool = False,
        leeway_s: int = 10,
        max_lifetime_s: int = 3600,
        remember: int = DEFAULT_LIMIT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """No I/O happens here.

        ``leeway_s`` (0 to 60) is how far clocks may differ; tokens that claim to live longer than ``max_lifetime_s``
        are refused. ``allow_shared_secret`` permits HS256 keys: every service that can check with one can also sign
        with it, so that is for the issuer itself. ``remember`` is how many verified tokens of at most 2 KiB are kept,
        so that the same text needs no second signature check, at about 1.2 KB each; 0 keeps none. ``clock`` gives
        NumericDate seconds.
        Raises ``KeyRefused`` or ``ValueError``.
        """
        # A float's NaN compares with nothing and an infinity with everything: both would switch expiry off.
        if not _is_whole(leeway_s) or not 0 <= leeway_s <= _MAX_LEEWAY_S:
            raise ValueError("leeway_s is a whole number of seconds from 0 to 60")
        if not _is_whole(max_lifetime_s) or max_lifetime_s <= 0:
            raise ValueError("max_lifetime_s is a whole number of seconds above 0")
        if not _is_whole(remember) or remember < 0:
            raise ValueError("remember is a whole number of tokens, 0 or more")
        if not issuer or not audience:
            raise ValueError("issuer and audience are not empty")
        self._issuer = issuer
        self._audience = audience
        self._allow_shared_secret = allow_shared_secret
        self._leeway_s = leeway_s
        self._max_lifetime_s = max_lifetime_s
        self._remember = remember
        self._clock = clock
        self._ended = revoked.lapses_at if revoked is not None else {}
        self._withdrawn: frozenset[str] = frozenset()
        self._changing_keys = threading.Lock()  # not on the way of a check
        self._refusals = Refusals()
        self.replace_keys(keys)

    @property
    def refused(self) -> Mapping[str, int]:
        """How many tokens were refused, by the error's ``code``."""
        return self._refusals.by_code

    def replace_keys(self, keys: Keyring) -> None:
        """From now on these keys count; calls under way finish with the ones they began with.

        What was remembered goes with the keys that it was verified by.
        """
        if keys.has_shared_secret and not self._allow_shared_secret:
            raise KeyRefused(
                "HS256 keys let every verifier sign tokens: let the issuer sign with EdDSA, ES256 or RS256, "
                "or pass allow_shared_secret=True where issuer and verifier are one service"
            )
        with self._changing_keys:
            self._keys_and_seen = keys.without(self._withdrawn), Seen(self._remember)

    def withdraw_key(self, kid: str) -> None:
        """Refuses everything that names this key, at once and for the life of the process.

        A key that leaked must not come back with the next key set, which may be an old one.
        """
        with self._changing_keys:
            self._withdrawn |= {kid}
            self._keys_and_seen = self._keys_and_seen[0].without(self._withdrawn), Seen(self._remember)

    def verify(self, token: str) -> AccessClaims:
        """The claims of a token that is good now. Raises a ``TokenError``; its ``code`` says why, to the operator."""
        now, leeway_s = self._clock(), self._leeway_s
        keys, seen = self._keys_and_seen
        try:
            known = seen.get(token)

            # 1 to 8. Shape, key, signature, type, claims of the right types.
            claims = known or access.read(token, keys)

            # 9. From exactly our issuer (RFC 9068 §4, RFC 8725 §3.8).
            if claims.iss != self._issuer:
                raise TokenClaimsInvalid("iss is not the expected issuer")

            # 10. For us (RFC 7519 §4.1.3, RFC 8725 §3.9).
            if claims.aud != self._audience and not claims.is_for(self._audience):
                raise TokenClaimsInvalid("aud does not contain the expected audience")

            # 11. For now (RFC 7519 §4.1.4 to §4.1.6).
            if not now < claims.exp + leeway_s:  # so that a clock that gives NaN refuses
                raise TokenExpired
            if claims.iat > now + leeway_s or (claims.nbf is not None and claims.nbf > now + leeway_s):
                raise TokenNotYetValid

            # 12. A longer life than the issuer ever gives is a sign of a stolen key, and would outlive the entries
            #     of step 13.
            if not 0 < claims.exp - claims.iat <= self._max_lifetime_s:
                raise TokenClaimsInvalid("the lifetime is longer than allowed")

            # 13. Of a session that has not ended. By its id: a token's text can be spelled in two ways.
            if claims.sid in self._ended:
                raise TokenRevoked
        except TokenError as error:
            self._refusals.count(error, now=now)
            raise
        if known is None:
            seen.remember(token, claims)
        return claims

    def verify_signed(self, token: str) -> AccessClaims:
        """The claims of a token that our issuer signed for us, though it may have expired or its session have ended.

        For logout alone: whoever holds an old token may still end its session. Raises a ``TokenError``.
        """
        try:
            claims = access.read(token, self._keys_and_seen[0])
            if claims.iss != self._issuer or not claims.is_for(self._audience):
                raise TokenClaimsInvalid("iss or aud is not the expected one")
        except TokenError as error:
            self._refusals.count(error, now=self._clock())
            raise
        return claims

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # True is an int to Python, and would be 1 second
