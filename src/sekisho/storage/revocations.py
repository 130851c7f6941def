"""The revocation table in SQL."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import delete, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from sekisho.storage.ports import RevocationRow
from sekisho.storage.schema import revocations


class SqlRevocations:
    """``ports.Revocations`` on one connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def append(self, session_id: UUID, *, lapses_at_us: int) -> None:
        """One more entry."""
        await self.append_all([session_id], lapses_at_us=lapses_at_us)

    async def append_all(self, session_ids: Sequence[UUID], *, lapses_at_us: int) -> None:
        """One more entry for each session."""
        rows = [{"session_id": session_id, "lapses_at_us": lapses_at_us} for session_id in session_ids]
        if rows:
            await self._connection.execute(insert(revocations), rows)

    async def live(self, *, now_us: int) -> Sequence[RevocationRow]:
        """All entries that have not lapsed."""
        rows = await self._connection.execute(select(revocations).where(revocations.c.lapses_at_us >= now_us))
        return [RevocationRow(**row._mapping) for row in rows]

    async def newer(self, *, than_id: int, missing: Sequence[int]) -> Sequence[RevocationRow]:
        """Entries above ``than_id``, and late ones among ``missing``."""
        is_new = revocations.c.id > than_id
        if missing:
            is_new = or_(is_new, revocations.c.id.in_(missing))
        rows = await self._connection.execute(select(revocations).where(is_new).order_by(revocations.c.id))
        return [RevocationRow(**row._mapping) for row in rows]

    async def purge_lapsed(self, *, now_us: int) -> int:
        """Deletes what has lapsed; gives the number of rows."""
        return (await self._connection.execute(delete(revocations).where(revocations.c.lapses_at_us < now_us))).rowcount
