"""The ordinary refresh: one UPDATE that has the whole condition of *rotate* (rotation.py) and of a live session.

SQLAlchemy makes its text and the drivers run it: what the rest of SQLAlchemy does around one statement takes longer
than the driver's part, and this one is on the path of every refresh.
"""

import sqlite3
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import BigInteger, ColumnElement, Update, bindparam, exists, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from sekisho.storage.rows import Rotate, Session
from sekisho.storage.schema import sessions, users
from sekisho.storage.sessions import PG_NOW_US, roles_of_user, session_from
from sekisho.wire import now_us

_columns: Final = (*sessions.c, roles_of_user)
_NAMES: Final = tuple(column.name for column in _columns)


def _statement(*, now: ColumnElement[int]) -> Update:
    """A handed-out time that lies in the future fails the comparison, as it must: it counts as now."""
    user_enabled = exists().where(users.c.id == sessions.c.user_id, users.c.disabled_at_us.is_(None))
    return (
        update(sessions)
        .where(
            sessions.c.id == bindparam("session_id"),
            sessions.c.generation == bindparam("presented_generation"),
            sessions.c.branch == bindparam("presented_branch"),
            sessions.c.ended_at_us.is_(None),
            sessions.c.handed_out_at_us < now - bindparam("window_us", type_=BigInteger),
            sessions.c.idle_ends_at_us > now,
            sessions.c.ends_at_us > now,
            user_enabled,
        )
        .values(
            generation=sessions.c.generation + literal_column("1"),
            branch=literal_column("0"),
            parent_branch=sessions.c.branch,
            made_at_us=now,
            handed_out_at_us=now,
            idle_ends_at_us=now + bindparam("idle_us", type_=BigInteger),
            last_address=bindparam("address"),
            last_user_agent=bindparam("user_agent"),
        )
        .returning(*_columns)
    )


# On PostgreSQL one reading of the clock serves the whole statement; on SQLite the time is the transaction's.
_asyncpg = postgresql.asyncpg.dialect()  # type: ignore[no-untyped-call]  # as SQLAlchemy has it
_pg_clock = select(PG_NOW_US.label("now_us")).cte("clock").prefix_with("MATERIALIZED", dialect="postgresql")
_PG: Final = _statement(now=_pg_clock.c.now_us).compile(dialect=_asyncpg)
POSTGRESQL_TEXT: Final = str(_PG)
POSTGRESQL_ORDER: Final = tuple(_PG.positiontup or ())  # what $1, $2, … stand for
_pg_values: Final = itemgetter(*POSTGRESQL_ORDER)
SQLITE_TEXT: Final = str(
    _statement(now=bindparam("now_us", type_=BigInteger)).compile(dialect=sqlite.dialect(paramstyle="named"))
)


async def rotate_on_postgresql(driver: Any, order: Rotate, check: Callable[[Session], None]) -> Session | None:
    """Inside a transaction of asyncpg's connection ``driver``; what ``check`` raises must roll it back."""
    record = await driver.fetchrow(POSTGRESQL_TEXT, *_pg_values(vars(order)))
    return None if record is None else _checked(dict(record), check)


def rotate_on_sqlite(
    driver: sqlite3.Connection, order: Rotate, check: Callable[[Session], None], *, at_us: int | None = None
) -> Session | None:
    """The same. ``at_us`` None: now, by the node's clock."""
    values = vars(order) | {"session_id": order.session_id.hex, "now_us": now_us() if at_us is None else at_us}
    row = driver.execute(SQLITE_TEXT, values).fetchone()
    if row is None:
        return None
    found = dict(zip(_NAMES, row, strict=True))
    as_stored = {
        "id": UUID(found["id"]),
        "user_id": UUID(found["user_id"]),
        "roles": msgspec.json.decode(found["roles"]),
    }
    return _checked(found | as_stored, check)


def _checked(row: dict[str, Any], check: Callable[[Session], None]) -> Session:
    session = session_from(row | {"disabled_at_us": None})
    check(session)
    return session
