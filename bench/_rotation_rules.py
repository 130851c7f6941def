"""The rules that rotation.py compares: what a server answers to a presented refresh token.

Sekisho's is `sekisho.rotation.decide` itself. The others are written from what their publishers say of them, and only
as far as the rule of the server goes: several of the publishers add a lock across tabs in their client, or bind the
token to a key. Windows are 30 s, Sekisho's, where the publisher leaves the length to the operator.
"""

import abc
from collections.abc import Hashable
from typing import ClassVar, Final, NamedTuple

from sekisho.rotation import MICROSECONDS, Action, RotationState, decide

WINDOW_S: Final = 30
Token = Hashable


class Answer(NamedTuple):
    """A token, or a wait in seconds, or neither: refused."""

    token: Token | None = None
    wait_s: float = 0


REFUSED: Final = Answer()


class Rule(abc.ABC):
    """One session under a rule. `ended` says that it took two holders for theft and ended the session."""

    name: ClassVar[str]
    sees_access: ClassVar[bool] = False  # it wants to know when an access token is used

    def __init__(self) -> None:
        self.first: Token = 0
        self.ended = False
        self._made = 0

    @abc.abstractmethod
    def present(self, token: Token, now: float) -> Answer:
        """What the server answers, `now` in seconds."""

    def accessed(self, token: Token) -> None:  # noqa: B027 - most rules do not ask
        """The access token that was handed out with this refresh token is used for the first time."""

    def _end(self) -> Answer:
        self.ended = True
        return REFUSED

    def _new(self) -> int:
        self._made += 1
        return self._made


class Sekisho(Rule):
    """The rule of this repository, called and not copied."""

    name = f"Sekisho, W = {WINDOW_S} s"

    def __init__(self) -> None:
        super().__init__()
        self.first = (0, 0)
        self._state = RotationState(0, 0, None, 0, 0)

    def present(self, token: Token, now: float) -> Answer:
        if self.ended:
            return REFUSED
        assert isinstance(token, tuple)
        now_us = int(now * MICROSECONDS)
        decision = decide(self._state, generation=token[0], branch=token[1], now_us=now_us, window_s=WINDOW_S)
        if decision.action is Action.THEFT:
            return self._end()
        if decision.action is Action.WAIT:
            return Answer(wait_s=decision.retry_after_s)
        self._state = decision.state
        return Answer((decision.state.generation, decision.state.branch))


class Strict(Rule):
    """Each token once; a second use ends the session.

    RFC 9700, section 4.14.2; Keycloak with "Revoke Refresh Token" and no reuse (github.com/keycloak/keycloak, pull
    requests 4510 and 8130); Okta without a grace period (developer.okta.com/docs/guides/refresh-tokens).
    """

    name = "strict, reuse ends the session"

    def __init__(self) -> None:
        super().__init__()
        self._current: Token = self.first

    def present(self, token: Token, now: float) -> Answer:  # noqa: ARG002 - time plays no part
        if self.ended:
            return REFUSED
        if token != self._current:
            return self._reused()
        self._current = self._new()
        return Answer(self._current)

    def _reused(self) -> Answer:
        return self._end()


class StrictRefusing(Strict):
    """Each token once; a second use is refused and nothing else.

    Simple JWT with ROTATE_REFRESH_TOKENS and BLACKLIST_AFTER_ROTATION
    (django-rest-framework-simplejwt.readthedocs.io/en/latest/settings.html); Duende IdentityServer with one-time
    tokens, which leaves the rest to the operator (github.com/orgs/DuendeSoftware/discussions/212).
    """

    name = "strict, reuse is refused"

    def _reused(self) -> Answer:
        return REFUSED


class WindowNewEach(Rule):
    """A used token works on for a while and yields a new token each time; after that a use ends the session.

    Ory Hydra's graceful rotation (github.com/ory/docs, docs/hydra/guides/graceful-token-refresh.mdx; what comes after
    the window: github.com/ory/fosite, pull request 567).
    """

    name = f"window of {WINDOW_S} s, a new token each"

    def __init__(self) -> None:
        super().__init__()
        self._first_use: dict[Token, float] = {}

    def present(self, token: Token, now: float) -> Answer:
        if self.ended:
            return REFUSED
        if now - self._first_use.setdefault(token, now) > WINDOW_S:
            return self._end()
        return Answer(self._new())


class PreviousDisplaces(Rule):
    """Current and previous work. The previous yields a new current and displaces its sibling, which is then refused.

    WSO2's graceful rotation (github.com/wso2/docs-is, pull request 6173) and Airlock IAM's grace period
    (docs.airlock.com/iam/7.7/data/data/1594920812889.html); here with no limit in time, as Airlock allows.
    """

    name = "current and previous, sibling displaced"

    def __init__(self) -> None:
        super().__init__()
        self._current: Token = self.first
        self._previous: Token | None = None

    def present(self, token: Token, now: float) -> Answer:  # noqa: ARG002 - time plays no part
        if token == self._current:
            self._previous = token
        elif token != self._previous:
            return REFUSED
        self._current = self._new()
        return Answer(self._current)


class ParentUntilChildUsed(Rule):
    """The parent yields children until one of them, or its access token, is used: that one is the parent then.

    Anything else ends the session. SuperTokens (github.com/supertokens/supertokens-core,
    src/main/java/io/supertokens/session/Session.java: it reports theft; the session is then revoked).
    """

    name = "parent until the child is used, reuse ends"
    sees_access = True

    def __init__(self) -> None:
        super().__init__()
        self._parent: Token = self.first
        self._children: set[Token] = set()

    def present(self, token: Token, now: float) -> Answer:  # noqa: ARG002 - time plays no part
        if self.ended:
            return REFUSED
        self.accessed(token)
        if token != self._parent:
            return self._end()
        child = self._new()
        self._children.add(child)
        return Answer(child)

    def accessed(self, token: Token) -> None:
        if token in self._children:
            self._parent, self._children = token, set()


class ParentUntilAccess(Rule):
    """The parent yields children until the access token of one is used. Its siblings live on; reuse is refused.

    Doorkeeper with the column previous_refresh_token (github.com/doorkeeper-gem/doorkeeper,
    lib/generators/doorkeeper/templates/migration.rb.erb and lib/doorkeeper/models/concerns/revocable.rb).
    """

    name = "parent until the child is used, reuse refused"
    sees_access = True

    def __init__(self) -> None:
        super().__init__()
        self._live: set[Token] = {self.first}
        self._parent_of: dict[Token, Token] = {}

    def present(self, token: Token, now: float) -> Answer:  # noqa: ARG002 - time plays no part
        if token not in self._live:
            return REFUSED
        child = self._new()
        self._live.add(child)
        self._parent_of[child] = token
        return Answer(child)

    def accessed(self, token: Token) -> None:
        self._live.discard(self._parent_of.pop(token, None))


class Counter(Rule):
    """A counter. The parent always yields the current; older ones do so shortly after a refresh, else they end it.

    Supabase Auth's second algorithm, with its interval of 10 s (github.com/supabase/auth,
    internal/tokens/service.go and pull request 2216).
    """

    interval_s: ClassVar[int] = 10
    name = f"counter, the parent always ({interval_s} s)"

    def __init__(self) -> None:
        super().__init__()
        self._counter = 0
        self._refreshed_at = 0.0

    def present(self, token: Token, now: float) -> Answer:
        if self.ended:
            return REFUSED
        assert isinstance(token, int)
        behind = self._counter - token
        if behind == 0:
            self._counter += 1
        elif behind > 1 and now - self._refreshed_at >= self.interval_s:
            return self._end()
        self._refreshed_at = now
        return Answer(self._counter)


RULES: Final[tuple[type[Rule], ...]] = (
    Sekisho,
    Strict,
    StrictRefusing,
    WindowNewEach,
    PreviousDisplaces,
    ParentUntilChildUsed,
    ParentUntilAccess,
    Counter,
)
