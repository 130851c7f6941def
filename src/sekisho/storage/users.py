"""Accounts in SQL."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, Select, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from sekisho.storage.rows import User
from sekisho.storage.schema import users

# Built once: making a statement costs more than SQLite takes to run it.
_BY_EMAIL: Final = select(users).where(users.c.email_canonical == bindparam("email_canonical"))
_BY_ID: Final = select(users).where(users.c.id == bindparam("user_id"))
_LOCKED: Final = _BY_ID.with_for_update(key_share=True)


class SqlUsers:
    """``ports.Users`` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, user: User) -> bool:
        """False when the canonical address is taken: the unique index decides, so sign-ups may race."""
        values = {
            "id": user.id,
            "email": user.email,
            "email_canonical": user.email_canonical,
            "password_hash": user.password_hash,
            "roles": list(user.roles),
            "created_at_us": user.created_at_us,
            "password_changed_at_us": user.created_at_us,
        }
        dialect = postgresql if self._connection.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(users).values(values).on_conflict_do_nothing(index_elements=["email_canonical"])
        return self._connection.execute(statement).rowcount == 1

    def by_email(self, email_canonical: str) -> User | None:
        """The account with this canonical address."""
        return self._one(_BY_EMAIL, email_canonical=email_canonical)

    def by_id(self, user_id: UUID) -> User | None:
        """The account with this id."""
        return self._one(_BY_ID, user_id=user_id)

    def locked(self, user_id: UUID) -> User | None:
        """The row, locked on PostgreSQL; on SQLite the transaction is the only writer anyway."""
        return self._one(_LOCKED, user_id=user_id)

    def set_password_hash(self, user_id: UUID, password_hash: str, *, changed_at_us: int | None) -> None:
        """A new hash; ``changed_at_us`` None: of the same password."""
        values: dict[str, object] = {"password_hash": password_hash}
        if changed_at_us is not None:
            values["password_changed_at_us"] = changed_at_us
        self._connection.execute(update(users).where(users.c.id == user_id).values(values))

    def disable(self, user_id: UUID, *, now_us: int) -> None:
        """No login any more. Ending the sessions is the caller's part, in the same transaction."""
        still_enabled = users.c.disabled_at_us.is_(None)
        self._connection.execute(
            update(users).where(users.c.id == user_id, still_enabled).values(disabled_at_us=now_us)
        )

    def page(self, *, after: str, limit: int) -> Sequence[User]:
        """Accounts in the order of their canonical address."""
        ordered = select(users).order_by(users.c.email_canonical)
        rows = self._connection.execute(ordered.where(users.c.email_canonical > after).limit(limit))
        return [_user(row) for row in rows]

    def _one(self, statement: Select[Any], **values: object) -> User | None:
        row = self._connection.execute(statement, values).one_or_none()
        return None if row is None else _user(row)


def _user(row: Row[Any]) -> User:
    return User(
        id=row.id,
        email=row.email,
        email_canonical=row.email_canonical,
        password_hash=row.password_hash,
        roles=tuple(row.roles),
        created_at_us=row.created_at_us,
        disabled_at_us=row.disabled_at_us,
    )
