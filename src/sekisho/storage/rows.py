"""What the rows of the database say, in the services' words. Times are whole microseconds since 1970 (``_us``)."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal
from uuid import UUID

MICROSECONDS = 1_000_000


class Cause(StrEnum):
    """Why a session ended. Every ended session has one."""

    LOGOUT = "logout"
    LOGOUT_ALL = "logout_all"
    ENDED_BY_USER = "ended_by_user"
    EXPIRED = "expired"
    EVICTED = "evicted"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - a cause, not a password
    USER_DISABLED = "user_disabled"
    THEFT = "theft"
    ADMIN = "admin"


class Stale(StrEnum):
    """Rows that nobody asks for any more once they are old enough. The age of each kind counts from an event."""

    SESSIONS = "sessions"  # … since they ended
    REVOCATIONS = "revocations"  # … since they lapsed
    DEVICES = "devices"  # … since they were last seen
    THEFTS = "thefts"  # … since they were found


@dataclass(frozen=True, kw_only=True)
class User:
    """An account."""

    id: UUID
    email: str
    email_canonical: str
    password_hash: str = field(repr=False)
    roles: tuple[str, ...]
    created_at_us: int
    disabled_at_us: int | None


@dataclass(frozen=True, kw_only=True)
class Session:
    """A session's row, with its user's roles. ``salt`` makes its refresh tokens.

    ``cookie_hash``: of the cookie that carries it, None where tokens do. ``handed_out_at_us`` of a cookie session is
    when it was last used, to the minute.
    """

    id: UUID
    user_id: UUID
    roles: tuple[str, ...]
    user_disabled: bool
    created_at_us: int
    idle_ends_at_us: int
    ends_at_us: int
    generation: int
    branch: int
    parent_branch: int | None
    made_at_us: int
    handed_out_at_us: int
    salt: bytes = field(repr=False)
    last_address: str
    last_user_agent: str
    ended_at_us: int | None
    cause: str | None
    cookie_hash: bytes | None = field(default=None, repr=False)

    @property
    def kind(self) -> Literal["tokens", "cookie"]:
        """How it is carried."""
        return "tokens" if self.cookie_hash is None else "cookie"

    def is_over(self, now_us: int) -> bool:
        """Whether it has ended or run into one of its limits."""
        return self.ended_at_us is not None or now_us >= min(self.idle_ends_at_us, self.ends_at_us)


@dataclass(frozen=True, kw_only=True)
class Rotate:
    """The ordinary refresh: the position that is presented, the limits by which it counts, and who presents it."""

    session_id: UUID
    presented_generation: int
    presented_branch: int
    window_us: int
    idle_us: int
    address: str
    user_agent: str


@dataclass(frozen=True, kw_only=True)
class RotationWrite:
    """What a refresh changes in a session's row."""

    generation: int
    branch: int
    parent_branch: int | None
    made_at_us: int
    handed_out_at_us: int
    idle_ends_at_us: int
    last_address: str
    last_user_agent: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A session that a transaction has ended: what the revocation feed must hear of after the commit."""

    session_id: UUID
    user_id: UUID | None
    cause: Cause
    lapses_at_us: int


@dataclass(frozen=True, kw_only=True)
class TheftRecord:
    """Both presentations of a theft, as the row in ``thefts``."""

    session_id: UUID
    user_id: UUID
    at_us: int
    generation: int
    branch: int
    address: str
    user_agent: str
    current_generation: int
    current_branch: int
    current_since_us: int
    current_address: str
    current_user_agent: str


@dataclass(frozen=True, kw_only=True)
class RevocationRow:
    """A row that the nodes follow by id: of an ended session, or of a signing key that was withdrawn."""

    id: int
    session_id: UUID | None
    key_id: str | None
    lapses_at_us: int


@dataclass(frozen=True, kw_only=True)
class VerifierRow:
    """A service that may follow the revocations and ask about tokens."""

    name: str
    created_at_us: int
