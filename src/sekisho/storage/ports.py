"""What the services need of a database, in their words."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar
from uuid import UUID

from sekisho.storage.rows import (
    Cause,
    Ended,
    RevocationRow,
    Rotate,
    RotationWrite,
    Session,
    Stale,
    TheftRecord,
    User,
    VerifierRow,
)

T = TypeVar("T")


class Users(Protocol):
    """Accounts."""

    def add(self, user: User) -> bool:
        """False when the canonical address is taken."""
        ...

    def by_email(self, email_canonical: str) -> User | None: ...  # noqa: D102

    def by_id(self, user_id: UUID) -> User | None: ...  # noqa: D102

    def locked(self, user_id: UUID) -> User | None:
        """The row, held against other writers until the transaction ends."""
        ...

    def set_password_hash(self, user_id: UUID, password_hash: str, *, changed_at_us: int | None) -> None:
        """``changed_at_us`` None: the same password, hashed anew."""
        ...

    def disable(self, user_id: UUID, *, now_us: int) -> None: ...  # noqa: D102

    def page(self, *, after: str, limit: int) -> Sequence[User]:
        """The accounts whose canonical address comes after ``after``, in order."""
        ...


class Sessions(Protocol):
    """Sessions, and their ending, which always appends a revocation."""

    def add(self, session: Session) -> None: ...  # noqa: D102

    def find(self, session_id: UUID) -> Session | None: ...  # noqa: D102

    def locked(self, session_id: UUID) -> Session | None:
        """As ``find``, and nobody else changes the row until the transaction ends."""

    def by_cookie(self, cookie_hash: bytes) -> Session | None:
        """The session that this cookie carries, live or not."""
        ...

    def touch(
        self, session_id: UUID, *, now_us: int, every_us: int, idle_us: int, address: str, user_agent: str
    ) -> bool:
        """A cookie session is in use: its idle limit slides. False when that was written less than ``every_us`` ago."""
        ...

    def live_of(self, user_id: UUID, *, now_us: int) -> Sequence[Session]:
        """Live sessions, the one used last first."""
        ...

    def surplus_of(self, user_id: UUID, *, now_us: int, kept: int) -> Sequence[UUID]:
        """The live sessions beyond the ``kept`` that were used last."""
        ...

    def write_rotation(self, read: Session, write: RotationWrite) -> bool:
        """Writes what ``rotation.decide`` said, if the row still is as ``read``."""
        ...

    def end(
        self,
        *,
        cause: Cause,
        now_us: int,
        lapses_at_us: int,
        session_ids: Sequence[UUID] | None = None,
        user_id: UUID | None = None,
        unchanged_since: Session | None = None,
    ) -> Sequence[Ended]:
        """Ends the live ones among these and appends a revocation for each; gives those that it ended."""
        ...

    def expired(self, *, now_us: int, limit: int) -> Sequence[UUID]:
        """Sessions that ran into a limit without anyone noticing. Looks at every session."""
        ...

    def end_expired(self, session_ids: Sequence[UUID], *, now_us: int, lapses_at_us: int) -> Sequence[Ended]:
        """Ends those of these sessions that ran into a limit."""
        ...

    def record_theft(self, theft: TheftRecord) -> None: ...  # noqa: D102

    def thefts_of(self, session_id: UUID) -> Sequence[TheftRecord]: ...  # noqa: D102


class Revocations(Protocol):
    """The table that every node follows."""

    def append(self, session_id: UUID, *, lapses_at_us: int) -> None: ...  # noqa: D102

    def append_key(self, key_id: str, *, lapses_at_us: int) -> None: ...  # noqa: D102

    def live(self, *, now_us: int, after_id: int = 0, limit: int | None = None) -> Sequence[RevocationRow]:
        """Rows that have not lapsed, by id; at most ``limit`` of those above ``after_id``."""
        ...

    def highest(self) -> int:
        """The highest id in the table; 0 when it is empty."""
        ...

    def newer(self, *, than_id: int, missing: Sequence[int]) -> Sequence[RevocationRow]:
        """Rows with a higher id, and those among ``missing`` that have come in late."""
        ...


class Devices(Protocol):
    """Devices that signed in to an account before. They prove nothing; they are throttled apart."""

    def is_known(self, token_hash: bytes, user_id: UUID) -> bool: ...  # noqa: D102

    def remember(self, token_hash: bytes, user_id: UUID, *, now_us: int, kept: int) -> None:
        """The device signed in to this account now. Of the account's devices the ``kept`` seen last stay known."""
        ...

    def forget_all(self, user_id: UUID) -> None: ...  # noqa: D102


class Verifiers(Protocol):
    """Credentials of the services that verify tokens elsewhere. Only their SHA-256 is kept."""

    def add(self, name: str, *, credential_hash: bytes, now_us: int) -> bool:
        """False when there is one of this name."""
        ...

    def remove(self, name: str) -> bool:
        """False when there is none."""
        ...

    def all(self) -> Sequence[VerifierRow]: ...  # noqa: D102

    def name_of(self, credential_hash: bytes) -> str | None: ...  # noqa: D102


class Transaction(Protocol):
    """What can be done within one transaction."""

    @property
    def users(self) -> Users: ...  # noqa: D102

    @property
    def sessions(self) -> Sessions: ...  # noqa: D102

    @property
    def revocations(self) -> Revocations: ...  # noqa: D102

    @property
    def devices(self) -> Devices: ...  # noqa: D102

    @property
    def verifiers(self) -> Verifiers: ...  # noqa: D102

    def now_us(self) -> int:
        """The database's time, microseconds since 1970 (on SQLite the node's, when the transaction began)."""
        ...

    def claim_chore(self, name: str, *, every_us: int, now_us: int) -> bool:
        """Whether this node is the first to do ``name`` in this period."""
        ...

    def date_chore(self, name: str, *, ran_at_us: int) -> None:
        """From now on the chore counts as last done then."""
        ...

    def stale(self, kind: Stale, *, before_us: int, limit: int) -> Sequence[Any]:
        """The keys of rows whose age counts from before this time."""
        ...

    def delete_stale(self, kind: Stale, keys: Sequence[Any], *, before_us: int) -> int:
        """Deletes those of them that are still as old; gives their number."""
        ...


class Storage(Protocol):
    """A database. Every failure of it is raised as ``StorageUnavailable``.

    A transaction is a plain function: nothing can be awaited, and so no connection held, in the middle of it. It may
    be run again after a conflict, so it changes nothing outside.
    """

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs ``work`` in a transaction, which is durable when this returns; an exception rolls it back."""
        ...

    async def rotate(self, order: Rotate, check: Callable[[Session], None]) -> Session | None:
        """The ordinary refresh: one statement and its commit. None unless every condition of *rotate* holds.

        ``made_at_us`` of the returned row is the time of the statement. ``check`` sees the row before the commit, and
        what it raises rolls back.
        """
        ...

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs ``work`` on a connection that only reads; on SQLite it does not wait for the writer."""
        ...

    async def read_slowly(self, work: Callable[[Transaction], T]) -> T:
        """As ``read``, without the time limit of requests: for chores that look at whole tables."""
        ...


class SessionCache(Protocol):
    """Cookie sessions by the hash of their cookie, for a while. It never fails: what it cannot answer it has not."""

    async def get(self, cookie_hash: bytes) -> bytes | None: ...  # noqa: D102

    async def put(self, cookie_hash: bytes, entry: bytes, *, life_s: int) -> None: ...  # noqa: D102

    async def drop(self, cookie_hash: bytes) -> None: ...  # noqa: D102

    async def close(self) -> None: ...  # noqa: D102


class Grapevine(Protocol):
    """Word among the nodes that the revocation table has something new. A hint: it may come late, or not at all."""

    def tell(self) -> None:
        """Returns at once, and never fails."""
        ...

    async def listen(self, heard: Callable[[], None]) -> None:
        """Calls ``heard`` at each word from any node, for ever."""
        ...

    async def close(self) -> None: ...  # noqa: D102
