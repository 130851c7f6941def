"""The revocation table in SQL."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, func, insert, or_, select

from sekisho.storage.rows import RevocationRow
from sekisho.storage.schema import revocations


class SqlRevocations:
    """``ports.Revocations`` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def append(self, session_id: UUID, *, lapses_at_us: int) -> None:
        """One more entry."""
        self.append_all([session_id], lapses_at_us=lapses_at_us)

    def append_key(self, key_id: str, *, lapses_at_us: int) -> None:
        """One more entry, of a signing key."""
        self._connection.execute(insert(revocations), {"key_id": key_id, "lapses_at_us": lapses_at_us})

    def append_all(self, session_ids: Sequence[UUID], *, lapses_at_us: int) -> None:
        """One more entry for each session."""
        rows = [{"session_id": session_id, "lapses_at_us": lapses_at_us} for session_id in session_ids]
        if rows:
            self._connection.execute(insert(revocations), rows)

    def live(self, *, now_us: int, after_id: int = 0, limit: int | None = None) -> Sequence[RevocationRow]:
        """Entries that have not lapsed, in order; at most ``limit`` of those above ``after_id``."""
        is_live = revocations.c.lapses_at_us >= now_us
        page = select(revocations).where(is_live, revocations.c.id > after_id).order_by(revocations.c.id).limit(limit)
        return [RevocationRow(**row._mapping) for row in self._connection.execute(page)]

    def highest(self) -> int:
        """The highest id in the table; 0 when it is empty."""
        return self._connection.execute(select(func.max(revocations.c.id))).scalar_one() or 0

    def newer(self, *, than_id: int, missing: Sequence[int]) -> Sequence[RevocationRow]:
        """Entries above ``than_id``, and late ones among ``missing``."""
        is_new = revocations.c.id > than_id
        if missing:
            is_new = or_(is_new, revocations.c.id.in_(missing))
        rows = self._connection.execute(select(revocations).where(is_new).order_by(revocations.c.id))
        return [RevocationRow(**row._mapping) for row in rows]
