"""Known devices in SQL."""

from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from sekisho.storage.schema import devices

_KNOWN: Final = select(devices.c.user_id).where(
    devices.c.token_hash == bindparam("token_hash"), devices.c.user_id == bindparam("user_id")
)


def _remember(dialect: Any) -> Any:
    insert = dialect.insert(devices)
    seen = {"user_id": insert.excluded.user_id, "last_seen_at_us": insert.excluded.last_seen_at_us}
    return insert.on_conflict_do_update(index_elements=["token_hash"], set_=seen)


_REMEMBER: Final = {"postgresql": _remember(postgresql), "sqlite": _remember(sqlite)}


class SqlDevices:
    """``ports.Devices`` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def is_known(self, token_hash: bytes, user_id: UUID) -> bool:
        """Whether this device signed in to this account before."""
        values = {"token_hash": token_hash, "user_id": user_id}
        return self._connection.execute(_KNOWN, values).one_or_none() is not None

    def remember(self, token_hash: bytes, user_id: UUID, *, now_us: int) -> None:
        """The device signed in to this account now; the account that it signed in to last counts."""
        statement = _REMEMBER[self._connection.dialect.name]
        self._connection.execute(statement, {"token_hash": token_hash, "user_id": user_id, "last_seen_at_us": now_us})

    def purge_unseen(self, *, seen_before_us: int) -> int:
        """Forgets devices that have not signed in for long; gives their number."""
        return (self._connection.execute(delete(devices).where(devices.c.last_seen_at_us < seen_before_us))).rowcount
