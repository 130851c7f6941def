"""The checkpoint: is this access token good, here and now? All in memory, synchronous, without a lock.

The steps are numbered through three files: 1 to 4, the signature, are in ``tokens/jws.py``; 5 to 8, the claims, in
``tokens/access.py``; 9 to 14, whether they are for us and for now, in ``Verifier.verify``. A token that came before
skips 1 to 8, which would end as they did, and nothing else.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn, get_args
from weakref import WeakSet

from sekisho.errors import (
    FeedLost,
    FeedStarting,
    KeysUnavailable,
    MustAsk,
    TokenClaimsInvalid,
    TokenError,
    TokenExpired,
    TokenKeyUnknown,
    TokenNotYetValid,
    TokenRevoked,
)
from sekisho.tokens import access
from sekisho.tokens.access import AccessClaims
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.revoked import RevokedSessions
from sekisho.verify.freshness import LOST_S, State, WhenLost
from sekisho.verify.held import Held
from sekisho.verify.refusals import Refusals
from sekisho.verify.seen import DEFAULT_LIMIT

if TYPE_CHECKING:
    from sekisho.verify.remote import Remote

_log: Final = logging.getLogger("sekisho.verify")
_MAX_LEEWAY_S: Final = 60
_RETRY_AFTER_S: Final = 1

verifiers: Final["WeakSet[Verifier]"] = WeakSet()
"""Those of this process."""

on_new: Final[list[Callable[["Verifier"], None]]] = []
"""Called with each verifier that is made. Empty but for tests: ``sekisho.testing``."""


class Verifier:
    """Checks access tokens of one issuer for one audience. Safe to call from any thread; never blocks."""

    def __init__(  # noqa: PLR0913 - all by keyword, and each a value of its own
        self,
        *,
        issuer: str,
        audience: str,
        keys: Keyring | None = None,
        jwks_url: str | None = None,
        revocations_url: str | Sequence[str] | None = None,
        credential: str | None = None,
        when_lost: WhenLost = "allow",
        revoked: RevokedSessions | None = None,
        allow_shared_secret: bool = False,
        allow_http: bool = False,
        leeway_s: int = 10,
        max_lifetime_s: int = 3600,
        remember: int = DEFAULT_LIMIT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """No I/O happens here; a background thread begins with the first call of any method.

        ``keys``, or ``jwks_url`` where the issuer publishes them. ``revocations_url`` is the issuer's feed of ended
        sessions (one address or several, of which one is followed at a time), ``credential`` what ``sekisho verifiers
        add`` printed. ``when_lost`` says what happens to good tokens when nothing was heard for 30 s: ``allow`` them
        until they expire, ``refuse`` them with ``FeedLost``, or ``ask`` the issuer about each (``MustAsk``). These URLs
        are https, or http on this machine; ``allow_http`` lifts that. ``revoked`` is for the issuer itself.

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
        if (keys is None) == (jwks_url is None):
            raise ValueError("either keys or jwks_url")
        if when_lost not in get_args(WhenLost):
            raise ValueError("when_lost is allow, refuse or ask")
        self._issuer = issuer
        self._audience = audience
        self._leeway_s = leeway_s
        self._max_lifetime_s = max_lifetime_s
        self._clock = clock
        self._when_lost = when_lost
        self._refusals = Refusals()
        self._held = Held(
            keys if keys is not None else Keyring([]),
            revoked=revoked if revoked is not None else RevokedSessions(),
            allow_shared_secret=allow_shared_secret,
            remember=remember,
            clock=clock,
        )
        self._remote = self._remote_part(jwks_url, revocations_url, credential, allow_http=allow_http)
        if self._remote is not None and keys is not None and keys.has_shared_secret:
            _log.warning("this verifier checks with a shared secret of its issuer: it could sign tokens itself")
        verifiers.add(self)
        for prepare in on_new:
            prepare(self)

    @property
    def issuer(self) -> str:
        """Whose tokens are accepted."""
        return self._issuer

    @property
    def audience(self) -> str:
        """For whom they have to be."""
        return self._audience

    @property
    def max_lifetime_s(self) -> int:
        """For how long they may live, in seconds."""
        return self._max_lifetime_s

    @property
    def parts(self) -> "tuple[Held, Remote | None]":
        """What is checked with, and who follows the issuer. ``sekisho.testing`` puts others there for a test."""
        return self._held, self._remote

    @parts.setter
    def parts(self, parts: "tuple[Held, Remote | None]") -> None:
        self._held, self._remote = parts

    @property
    def refused(self) -> Mapping[str, int]:
        """How many tokens were refused, by the error's ``code``."""
        return self._refusals.by_code

    def replace_keys(self, keys: Keyring) -> None:
        """From now on these keys count; calls under way finish with the ones they began with.

        What was remembered goes with the keys that it was verified by.
        """
        self._held.replace_keys(keys)

    def withdraw_key(self, kid: str) -> None:
        """Refuses everything that names this key, at once and for the life of the process.

        A key that leaked must not come back with the next key set, which may be an old one.
        """
        self._held.withdraw_key(kid)

    def verify(self, token: str, *, when_lost: WhenLost | None = None) -> AccessClaims:
        """The claims of a token that is good now. Raises a ``TokenError``; its ``code`` says why, to the operator.

        Where the issuer is followed, also ``KeysUnavailable``, ``FeedStarting`` and, by the policy (``when_lost``
        instead of the verifier's own), ``FeedLost`` and ``MustAsk``: those say nothing against the token.
        """
        now, leeway_s, held = self._clock(), self._leeway_s, self._held
        keys, seen, ended, packed = held.in_use
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
            if claims.sid in ended or (known is None and packed is not None and claims.sid in packed):
                raise TokenRevoked
        except TokenError as error:
            self._count(error, now)
            raise

        # 14. And we would know if it had: the issuer was heard of lately.
        if not held.sure_from <= now < held.sure_until:
            self._look_at_feed(when_lost or self._when_lost)
        if known is None:
            seen.remember(token, claims)
        return claims

    def verify_signed(self, token: str) -> AccessClaims:
        """The claims of a token that our issuer signed for us, though it may have expired or its session have ended.

        For logout alone: whoever holds an old token may still end its session. Raises a ``TokenError``.
        """
        try:
            claims = access.read(token, self._held.in_use[0])
            if claims.iss != self._issuer or not claims.is_for(self._audience):
                raise TokenClaimsInvalid("iss or aud is not the expected one")
        except TokenError as error:
            self._refusals.count(error, now=self._clock())
            raise
        return claims

    # --- what is learnt from the issuer ---------------------------------------------------------------------------

    @property
    def state(self) -> State | None:
        """How good the view of ended sessions is; None where no feed is followed."""
        self.start()
        return None if self._remote is None else self._remote.state

    @property
    def age_s(self) -> float | None:
        """Seconds since every ended session was known: infinite at first, None where no feed is followed."""
        self.start()
        return None if self._remote is None else self._remote.age_s

    @property
    def entries(self) -> int:
        """How many ended sessions are known whose access tokens may not have expired yet."""
        return len(self._held.revoked)

    @property
    def reconnects(self) -> int:
        """How often the feed was left and asked for again; every few minutes is as it should be."""
        return 0 if self._remote is None or self._remote.feed is None else self._remote.feed.reconnects

    def start(self) -> None:
        """Begins to follow the issuer, in a thread, unless that has happened in this process already."""
        if self._remote is not None:
            self._remote.start()

    def wait(self, timeout_s: float) -> bool:
        """Blocks until the issuer's keys and ended sessions are known, for so long at the most; whether they are."""
        return self._remote is None or self._remote.wait(timeout_s)

    def ask(self, token: str) -> AccessClaims:
        """Asks the issuer about a token. Blocks for as long as HTTP does: not for an event loop.

        Raises a ``TokenError``, or ``FeedLost`` when the issuer cannot be asked.
        """
        claims = self.verify(token, when_lost="allow")
        if self._remote is None or self._remote.feed is None:
            raise ValueError("without revocations_url there is nobody to ask")
        self._remote.ask(token)
        return claims

    def close(self) -> None:
        """Ends the thread. The next call of any method would begin anew."""
        if self._remote is not None:
            self._remote.close()
            self._held.trust(always=False)

    def _look_at_feed(self, when_lost: WhenLost) -> None:
        """Step 14 that takes a look: at first, after a fork, when a clock has stepped or the feed is late."""
        remote = self._remote
        if remote is None:
            return
        remote.start()
        state = remote.state
        if state is None:
            self._held.trust(always=True)
        elif state == "starting":
            raise FeedStarting(_RETRY_AFTER_S, "no view of the ended sessions yet")
        elif state == "lost":
            if when_lost != "allow":
                raise (MustAsk if when_lost == "ask" else FeedLost)(_RETRY_AFTER_S, "nothing heard for 30 s")
        else:
            self._held.trust_for(LOST_S - (remote.age_s or 0))

    def _count(self, error: TokenError, now: float) -> None:
        """Of a key that is not known, the issuer is asked; not at once, and not for each."""
        remote = self._remote
        if remote is not None and isinstance(error, TokenKeyUnknown):
            remote.start()
            remote.want_keys()
            if remote.keys is not None and remote.keys.fault:
                raise KeysUnavailable(_RETRY_AFTER_S, remote.keys.fault)
        self._refusals.count(error, now=now)

    def _remote_part(
        self,
        jwks_url: str | None,
        revocations_url: str | Sequence[str] | None,
        credential: str | None,
        *,
        allow_http: bool,
    ) -> "Remote | None":
        if jwks_url is None and revocations_url is None:
            return None
        from sekisho.verify.issuer import checked_url  # noqa: PLC0415 - httpx2 is for those who use it
        from sekisho.verify.remote import Remote  # noqa: PLC0415

        urls = [revocations_url] if isinstance(revocations_url, str) else list(revocations_url or ())
        if revocations_url is not None and not (urls and credential):
            raise ValueError("revocations_url needs at least one address, and the credential of this verifier")
        for url in filter(None, [jwks_url, *urls]):
            checked_url(url, allow_http=allow_http)
        self._held.trust(always=False)
        return Remote(self._held, jwks_url=jwks_url, revocations_urls=urls, credential=credential or "")

    def _after_fork(self) -> None:
        """In the child no thread of the parent's is running."""
        self._held.after_fork()
        if self._remote is not None:
            self._remote.forget_thread()
            self._held.trust(always=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")


def _after_fork() -> None:
    for verifier in list(verifiers):
        verifier._after_fork()  # noqa: SLF001 - of this file


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # True is an int to Python, and would be 1 second
