"""Known devices in SQL."""

from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from sekisho.storage.schema import devices


class SqlDevices:
    """``ports.Devices`` on one connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def is_known(self, token_hash: bytes, user_id: UUID) -> bool:
        """Whether this device signed in to this account before."""
        mine = select(devices.c.user_id).where(devices.c.token_hash == token_hash, devices.c.user_id == user_id)
        return (await self._connection.execute(mine)).one_or_none() is not None

    async def remember(self, token_hash: bytes, user_id: UUID, *, now_us: int) -> None:
        """The device signed in to this account now; the account that it signed in to last counts."""
        dialect = postgresql if self._connection.dialect.name == "postgresql" else sqlite
        seen = {"user_id": user_id, "last_seen_at_us": now_us}
        statement = dialect.insert(devices).values(token_hash=token_hash, **seen)
        await self._connection.execute(statement.on_conflict_do_update(index_elements=["token_hash"], set_=seen))

    async def purge_unseen(self, *, seen_before_us: int) -> int:
        """Forgets devices that have not signed in for long; gives their number."""
        return (
            await self._connection.execute(delete(devices).where(devices.c.last_seen_at_us < seen_before_us))
        ).rowcount
