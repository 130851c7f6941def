"""Verifiers' credentials in SQL."""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from sekisho.storage.rows import VerifierRow
from sekisho.storage.schema import verifiers


class SqlVerifiers:
    """``ports.Verifiers`` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, name: str, *, credential_hash: bytes, now_us: int) -> bool:
        """False when the name is taken."""
        values = {"name": name, "credential_hash": credential_hash, "created_at_us": now_us}
        dialect = postgresql if self._connection.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(verifiers).values(values).on_conflict_do_nothing(index_elements=["name"])
        return self._connection.execute(statement).rowcount == 1

    def remove(self, name: str) -> bool:
        """False when there is none of this name."""
        return self._connection.execute(delete(verifiers).where(verifiers.c.name == name)).rowcount == 1

    def all(self) -> Sequence[VerifierRow]:
        """By name, without the hashes."""
        rows = self._connection.execute(select(verifiers.c.name, verifiers.c.created_at_us).order_by(verifiers.c.name))
        return [VerifierRow(**row._mapping) for row in rows]

    def name_of(self, credential_hash: bytes) -> str | None:
        """Whose credential it is."""
        found = select(verifiers.c.name).where(verifiers.c.credential_hash == credential_hash)
        return self._connection.execute(found).scalar_one_or_none()
