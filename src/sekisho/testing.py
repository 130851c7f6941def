"""A pytest plugin for applications that use Sekisho: tokens that the application accepts, without an issuer.

It comes with the package; the fixture ``sekisho_user`` is all of it. In a test that asks for it, every verifier of the
process accepts the test's tokens beside its own, follows nobody and opens no connection. Afterwards all is as before.
"""

import gc
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypedDict, Unpack, cast
from uuid import uuid4
from weakref import WeakSet

import pytest

from sekisho.errors import FeedLost, TokenRevoked
from sekisho.tokens import access
from sekisho.tokens.access import AccessClaims
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.keys import Key, generate_key, verification_key
from sekisho.tokens.revoked import RevokedSessions
from sekisho.verify.freshness import LOST_S, State
from sekisho.verify.held import Held
from sekisho.verify.seen import DEFAULT_LIMIT, Seen
from sekisho.verify.verifier import Verifier, on_new, verifiers

if TYPE_CHECKING:
    from sekisho.verify.remote import Remote

__all__ = ["Claims", "SekishoUser", "SekishoUsers", "sekisho_user"]

__tracebackhide__ = True  # pytest shows the line of the test that called, and not these

_LIFE_S: Final = 900
_LONG_AGO_S: Final = 120  # no leeway is longer than 60 s


class Claims(TypedDict, total=False):
    """What a token can be told to say; the rest is made up. Times are NumericDate seconds."""

    sub: str
    roles: tuple[str, ...]
    session_id: str
    issued_at: int
    expires_at: int


@dataclass(frozen=True, kw_only=True)
class SekishoUser:
    """Somebody with an access token."""

    token: str = field(repr=False)
    claims: AccessClaims
    _end: Callable[[AccessClaims], None] = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """For the test client."""
        return {"Authorization": f"Bearer {self.token}"}

    def log_out(self) -> None:
        """Ends the session: its tokens are refused from now on. While the feed is lost, only by who asks the issuer."""
        self._end(self.claims)


class SekishoUsers:
    """What the fixture ``sekisho_user`` gives; call it for a user whose token is good."""

    def __init__(self, key: Key, stranger: Key) -> None:
        """``stranger`` is a key that no verifier knows."""
        self._key = key
        self._stranger = replace(stranger, kid=key.kid)
        self._issuer = _Issuer()
        # Weakly: what an earlier test has left behind has to be able to go, or it would count among the verifiers.
        self._taken: WeakSet[Verifier] = WeakSet()

    def __call__(self, *, verifier: Verifier | None = None, **claims: Unpack[Claims]) -> SekishoUser:
        """A user whose token is accepted by ``verifier``, which is needed where those of the process differ."""
        return self._user(self._key, verifier, claims)

    def expired(self, *, verifier: Verifier | None = None, **claims: Unpack[Claims]) -> SekishoUser:
        """A user whose token expired two minutes ago."""
        now = self._party(verifier)[0].parts[0].now()
        return self._user(self._key, verifier, {"expires_at": now - _LONG_AGO_S, **claims})

    def forged(self, *, verifier: Verifier | None = None, **claims: Unpack[Claims]) -> SekishoUser:
        """Somebody whose token names the right key and was signed by another."""
        return self._user(self._stranger, verifier, claims)

    def revoked(self, *, verifier: Verifier | None = None, **claims: Unpack[Claims]) -> SekishoUser:
        """A user whose session has ended, and every verifier has heard of it."""
        user = self._user(self._key, verifier, claims)
        self._issuer.end(user.claims)
        self._issuer.tell()
        return user

    def lose_feed(self, *, issuer_down: bool = False) -> None:
        """Nothing has been heard from the issuer for 30 s: ``when_lost`` says what becomes of good tokens.

        Whoever asks the issuer is answered, unless it is down.
        """
        self._turn("lost")
        self._issuer.is_down = issuer_down

    def starting(self) -> None:
        """The verifiers do not know yet which sessions have ended."""
        self._turn("starting")

    def find_feed(self) -> None:
        """The issuer is heard again, and with it what it has to tell."""
        self._turn("fresh")
        self._issuer.is_down = False
        self._issuer.tell()

    @contextmanager
    def at_the_verifiers(self) -> Iterator[None]:
        """Meanwhile those that are there, and those that are made, accept these users' tokens."""
        on_new.append(self._take)
        try:
            for verifier in list(verifiers):
                self._take(verifier)
            yield
        finally:
            on_new.remove(self._take)
            for verifier in list(self._taken):
                _give_back(verifier)

    def _take(self, verifier: Verifier) -> None:
        verifier.close()  # its thread, if there is one; the first call after the test starts another
        verifier.parts = _parts_for_a_test(verifier, self._key, self._issuer)
        self._taken.add(verifier)

    def _user(self, key: Key, verifier: Verifier | None, claims: Claims) -> SekishoUser:
        party = self._party(verifier)
        life_s = min(_LIFE_S, *(one.max_lifetime_s for one in party))
        now = party[0].parts[0].now()
        expires_at = claims.get("expires_at", claims.get("issued_at", now) + life_s)
        token = access.issue(
            key,
            issuer=party[0].issuer,
            audience=party[0].audience,
            subject=claims.get("sub", str(uuid4())),
            session_id=claims.get("session_id", str(uuid4())),
            issued_at=claims.get("issued_at", expires_at - life_s),
            expires_at=expires_at,
            roles=claims.get("roles", ()),
        )
        return SekishoUser(token=token, claims=access.read(token, Keyring([key])), _end=self._log_out)

    def _party(self, verifier: Verifier | None) -> list[Verifier]:
        """Those whom the token is for: they accept tokens of one issuer for one audience."""
        if verifier is not None:
            return [verifier]
        if len(_parties()) > 1:
            gc.collect()  # applications of earlier tests, which nobody holds any more
        parties = _parties()
        if not parties:
            pytest.fail("there is no Verifier in this process yet: import your application first")
        if len(parties) > 1:
            listed = "; ".join(f"{issuer} for {audience}" for issuer, audience in sorted(parties))
            pytest.fail(f"the verifiers of this process differ ({listed}): pass one, as in sekisho_user(verifier=…)")
        return list(verifiers)

    def _log_out(self, claims: AccessClaims) -> None:
        self._issuer.end(claims)
        if self._issuer.state == "fresh":
            self._issuer.tell()

    def _turn(self, state: State) -> None:
        following = [remote for _, remote in (one.parts for one in self._taken) if remote is not None and remote.feed]
        if not following:
            pytest.fail("no verifier of this process follows a feed (revocations_url): there is nothing to lose")
        self._issuer.state = state
        for verifier in self._taken:
            verifier.parts[0].trust(always=False)  # every check takes a look


# --- in place of what a verifier has of its own --------------------------------------------------------------------


class _Issuer:
    """What the issuer knows, and what the verifiers have heard of it."""

    def __init__(self) -> None:
        self.state: State = "fresh"
        self.is_down = False
        self.ended: dict[str, int] = {}
        self.heard: dict[str, int] = {}

    def end(self, claims: AccessClaims) -> None:
        self.ended[claims.sid] = claims.exp

    def tell(self) -> None:
        self.heard.update(self.ended)


class _HeldInTest(Held):
    """The keys in use and the test's. What happens to the verifier meanwhile also happens to its own, which come back.

    Where the issuer is not followed, the sessions that have ended count on: the server in this process adds to them.
    """

    __slots__ = ("_issuer", "_key", "follows", "own")

    def __init__(self, own: Held, key: Key, issuer: _Issuer, *, follows: bool) -> None:
        self.own = own
        self.follows = follows
        self._key = verification_key(key.public_jwk())
        self._issuer = issuer
        super().__init__(
            own.in_use[0], revoked=RevokedSessions(), allow_shared_secret=True, remember=DEFAULT_LIMIT, clock=own.now
        )
        self.trust(always=not follows)

    def after_fork(self) -> None:
        self.own.after_fork()
        super().after_fork()

    def replace_keys(self, keys: Keyring) -> None:
        self.own.replace_keys(keys)
        self._use(self.own.in_use[0])

    def withdraw_key(self, kid: str) -> None:
        self.own.withdraw_key(kid)
        self._use(self.own.in_use[0])

    def _use(self, keys: Keyring) -> None:
        others = (key for key in keys.keys if key.kid != self._key.kid)
        ring = Keyring([*others, self._key], refused=keys.refused).without(self.own.withdrawn)
        if self.follows:
            self.in_use = ring, Seen(DEFAULT_LIMIT), self._issuer.heard, None
        else:
            ended = ChainMap(self._issuer.ended, self.own.revoked.lapses_at)
            self.in_use = ring, Seen(DEFAULT_LIMIT), ended, self.own.revoked.packed


class _NoRemote:
    """Has everything of a ``Remote`` that a verifier calls, and asks nobody."""

    keys: Final = None

    def __init__(self, own: "Remote", held: Held, issuer: _Issuer) -> None:
        self.own = own
        self.feed = own.feed
        self._held = held
        self._issuer = issuer

    @property
    def state(self) -> State | None:
        return None if self.feed is None else self._issuer.state

    @property
    def age_s(self) -> float | None:
        if self.feed is None:
            return None
        return {"fresh": 0.0, "lost": LOST_S + 1}.get(self._issuer.state, float("inf"))

    def wait(self, _timeout_s: float) -> bool:
        return self.state != "starting"

    def ask(self, token: str) -> None:
        if self._issuer.is_down:
            raise FeedLost(1, "the issuer cannot be asked: sekisho_user.lose_feed(issuer_down=True)")
        if access.read(token, self._held.in_use[0]).sid in self._issuer.ended:
            raise TokenRevoked("the session has ended")

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def want_keys(self) -> None:
        pass

    def forget_thread(self) -> None:
        pass


def _parts_for_a_test(verifier: Verifier, key: Key, issuer: _Issuer) -> "tuple[Held, Remote | None]":
    own, remote = verifier.parts
    held = _HeldInTest(own, key, issuer, follows=remote is not None)
    return held, None if remote is None else cast("Remote", _NoRemote(remote, held, issuer))


def _give_back(verifier: Verifier) -> None:
    held, remote = verifier.parts
    assert isinstance(held, _HeldInTest)
    verifier.parts = held.own, None if remote is None else cast("_NoRemote", remote).own


def _parties() -> set[tuple[str, str]]:
    return {(verifier.issuer, verifier.audience) for verifier in list(verifiers)}


# --- the fixtures --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _sekisho_keys() -> tuple[Key, Key]:
    """The key that signs, and a stranger's."""
    made = [generate_key("EdDSA", purpose="sign", state="active", now=0) for _ in range(2)]
    return made[0], made[1]


@pytest.fixture
def sekisho_user(_sekisho_keys: tuple[Key, Key]) -> Iterator[SekishoUsers]:
    """Makes users whose tokens the application accepts: ``sekisho_user(roles=("admin",)).headers``."""
    users = SekishoUsers(*_sekisho_keys)
    with users.at_the_verifiers():
        yield users
