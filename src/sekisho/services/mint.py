"""Makes the pair of tokens that a login or a refresh answers with, from the keys in use now."""

from dataclasses import dataclass, field

from sekisho.storage.rows import MICROSECONDS, Session
from sekisho.tokens import access
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.refresh import Position, Presented, RefreshKeys


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What the client gets. ``expires_in_s`` and ``refresh_expires_in_s`` are whole seconds from now."""

    access_token: str = field(repr=False)
    expires_in_s: int
    refresh_token: str = field(repr=False)
    refresh_expires_in_s: int


class Mint:
    """Signs access tokens and makes refresh tokens. ``use`` swaps the keys, whole, at any time.

    As a carrier of sessions it needs nothing in the row but the salt that every row has.
    """

    cookie_hash = None

    def __init__(self, *, issuer: str, audience: str, access_token_ttl_s: int) -> None:
        self._issuer = issuer
        self._audience = audience
        self._access_token_ttl_s = access_token_ttl_s

    def use(self, key_set: KeySet) -> None:
        """From now on this key set counts."""
        self._refresh_keys = RefreshKeys(key_set.active("refresh"), key_set.used("refresh"))
        self._signing_key = key_set.active("sign")

    def grant(self, session: Session, *, now_us: int) -> Grant:
        """The pair for a session at its current position.

        Called after the commit. ``now_us`` is the time that the database's statement returned, not this node's clock:
        a node that slept or whose clock is off cannot mint a token that outlives a logout. No access token outlives
        its session.
        """
        issued_at = now_us // MICROSECONDS
        session_ends_at = min(session.idle_ends_at_us, session.ends_at_us) // MICROSECONDS
        # At least a second, so that a token of a session in its last moment is still one that expires after issue.
        expires_at = max(issued_at + 1, min(issued_at + self._access_token_ttl_s, session_ends_at))
        access_token = access.issue(
            self._signing_key,
            issuer=self._issuer,
            audience=self._audience,
            subject=str(session.user_id),
            session_id=str(session.id),
            issued_at=issued_at,
            expires_at=expires_at,
            roles=session.roles,
        )
        position = Position(session.generation, session.branch)
        return Grant(
            access_token=access_token,
            expires_in_s=expires_at - issued_at,
            refresh_token=self._refresh_keys.make(session.id, position, session.salt),
            refresh_expires_in_s=session_ends_at - issued_at,
        )

    def read_refresh_token(self, token: str) -> Presented:
        """The position that a refresh token names, its tag checked. Raises ``RefreshTokenInvalid``."""
        return self._refresh_keys.read(token)

    def check_secret(self, presented: Presented, session: Session) -> None:
        """Raises ``RefreshTokenInvalid`` unless the token was made with this session's salt."""
        self._refresh_keys.check_secret(presented, session.salt)
