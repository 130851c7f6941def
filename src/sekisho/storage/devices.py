"""Known devices in SQL."""

from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Integer, bindparam, delete, select
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


_FORGET_ALL: Final = delete(devices).where(devices.c.user_id == bindparam("user_id"))
_surplus = (
    select(devices.c.token_hash)
    .where(devices.c.user_id == bindparam("user_id"))
    .order_by(devices.c.last_seen_at_us.desc(), devices.c.token_hash)
    .offset(bindparam("kept", type_=Integer))
)
_FORGET_SURPLUS: Final = delete(devices).where(devices.c.token_hash.in_(_surplus))


class SqlDevices:
    """``ports.Devices`` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def is_known(self, token_hash: bytes, user_id: UUID) -> bool:
        """Whether this device signed in to this account before."""
        values = {"token_hash": token_hash, "user_id": user_id}
        return self._connection.execute(_KNOWN, values).one_or_none() is not None

    def remember(self, token_hash: bytes, user_id: UUID, *, now_us: int, kept: int) -> None:
        """The device signed in to this account now; the account that it signed in to last counts."""
        statement = _REMEMBER[self._connection.dialect.name]
        self._connection.execute(statement, {"token_hash": token_hash, "user_id": user_id, "last_seen_at_us": now_us})

        self._connection.execute(_FORGET_SURPLUS, {"user_id": user_id, "kept": kept})

    def forget_all(self, user_id: UUID) -> None:
        """From now on every device of the account is a stranger."""
        self._connection.execute(_FORGET_ALL, {"user_id": user_id})
