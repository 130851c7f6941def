"""Sessions in SQL. When to use these statements is decided elsewhere; the ordinary refresh stands in rotate.py."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Select,
    bindparam,
    insert,
    literal_column,
    select,
    update,
)

from sekisho.storage.revocations import SqlRevocations
from sekisho.storage.rows import Cause, Ended, RotationWrite, Session, TheftRecord
from sekisho.storage.schema import sessions, thefts, users

# Asked anew by each statement, not once per transaction as now() is. One that waits for a row lock keeps the
# time from before: what the holder of the lock wrote lies in its future, and its conditions fail, as they must.
PG_NOW_US: Final[ColumnElement[int]] = literal_column(
    "(extract(epoch from clock_timestamp()) * 1000000)::bigint", BigInteger
)

roles_of_user: Final = select(users.c.roles).where(users.c.id == sessions.c.user_id).scalar_subquery().label("roles")
_disabled_at_of_user = select(users.c.disabled_at_us).where(users.c.id == sessions.c.user_id).scalar_subquery()
_columns = (*sessions.c, roles_of_user, _disabled_at_of_user.label("disabled_at_us"))
_live = sessions.c.ended_at_us.is_(None)

# Built once: making a statement costs more than SQLite takes to run it.
_ADD: Final = insert(sessions)
_BY_ID: Final = select(*_columns).where(sessions.c.id == bindparam("session_id"))
_LOCKED: Final = _BY_ID.with_for_update(of=sessions)
_BY_COOKIE: Final = select(*_columns).where(sessions.c.cookie_hash == bindparam("cookie_hash"))
_TOUCH: Final = (
    update(sessions)
    .where(
        sessions.c.id == bindparam("session_id"),
        _live,
        # Far in the future it is from a clock that stepped back. A little in the future it is another node's, which has
        # just written and read its time later than we did.
        ~sessions.c.handed_out_at_us.between(bindparam("since_us"), bindparam("until_us")),
        sessions.c.idle_ends_at_us > bindparam("now_us"),
        sessions.c.ends_at_us > bindparam("now_us"),
    )
    .values(
        handed_out_at_us=bindparam("now_us"),
        idle_ends_at_us=bindparam("new_idle_ends_at_us"),
        last_address=bindparam("address"),
        last_user_agent=bindparam("user_agent"),
    )
)
_is_live_one_of_user = (
    sessions.c.user_id == bindparam("user_id"),
    _live,
    sessions.c.idle_ends_at_us > bindparam("now_us"),
    sessions.c.ends_at_us > bindparam("now_us"),
)
_last_used_first = (sessions.c.handed_out_at_us.desc(), sessions.c.id)
_LIVE: Final = select(*_columns).where(*_is_live_one_of_user).order_by(*_last_used_first)
_SURPLUS: Final = (
    select(sessions.c.id)
    .where(*_is_live_one_of_user)
    .order_by(*_last_used_first)
    .offset(bindparam("kept", type_=Integer))
)


class SqlSessions:
    """``ports.Sessions`` on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, session: Session) -> None:
        """A new row."""
        values = {column.name: getattr(session, column.name) for column in sessions.c}
        self._connection.execute(_ADD, values)

    def find(self, session_id: UUID) -> Session | None:
        """The row with its user's roles, live or not."""
        return self._one(_BY_ID, session_id=session_id)

    def locked(self, session_id: UUID) -> Session | None:
        """The same, locked on PostgreSQL; on SQLite the transaction is the only writer anyway."""
        return self._one(_LOCKED, session_id=session_id)

    def by_cookie(self, cookie_hash: bytes) -> Session | None:
        """The row that this cookie leads to, live or not."""
        return self._one(_BY_COOKIE, cookie_hash=cookie_hash)

    def touch(
        self, session_id: UUID, *, now_us: int, every_us: int, idle_us: int, address: str, user_agent: str
    ) -> bool:
        """However many requests come at once, one of them writes."""
        values = {
            "session_id": session_id,
            "now_us": now_us,
            "since_us": now_us - every_us + 1,
            "until_us": now_us + every_us - 1,
            "new_idle_ends_at_us": now_us + idle_us,
            "address": address,
            "user_agent": user_agent,
        }
        return self._connection.execute(_TOUCH, values).rowcount == 1

    def live_of(self, user_id: UUID, *, now_us: int) -> Sequence[Session]:
        """Live sessions of a user, the one used last first."""
        rows = self._connection.execute(_LIVE, {"user_id": user_id, "now_us": now_us})
        return [session_from(dict(row._mapping)) for row in rows]

    def surplus_of(self, user_id: UUID, *, now_us: int, kept: int) -> Sequence[UUID]:
        """The ids of live sessions beyond the ``kept`` that were used last."""
        values = {"user_id": user_id, "now_us": now_us, "kept": kept}
        return self._connection.execute(_SURPLUS, values).scalars().all()

    def write_rotation(self, read: Session, write: RotationWrite) -> bool:
        """Compare and set; generation and branch alone are not enough, *same again* changes neither."""
        statement = update(sessions).where(_unchanged(read)).values(vars(write))
        return self._connection.execute(statement).rowcount == 1

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
        """The one place where sessions end: the rows and their revocations, in the caller's transaction."""
        conditions: list[ColumnElement[bool]] = [_live]
        if session_ids is not None:
            conditions.append(sessions.c.id.in_(session_ids))
        if user_id is not None:
            conditions.append(sessions.c.user_id == user_id)
        if unchanged_since is not None:
            conditions.append(_unchanged(unchanged_since))
        if len(conditions) == 1:
            raise ValueError("which sessions?")
        if unchanged_since is None and (session_ids is None or len(session_ids) > 1):
            conditions = [_live, sessions.c.id.in_(self._held(conditions))]
        return self._end(conditions, cause=cause, now_us=now_us, lapses_at_us=lapses_at_us)

    def expired(self, *, now_us: int, limit: int) -> Sequence[UUID]:
        """At most ``limit`` live sessions that ran into a limit, the longest over first."""
        found = select(sessions.c.id).where(*_expired(now_us)).order_by(sessions.c.idle_ends_at_us).limit(limit)
        return self._connection.execute(found).scalars().all()

    def end_expired(self, session_ids: Sequence[UUID], *, now_us: int, lapses_at_us: int) -> Sequence[Ended]:
        """Ends those of them that ran into a limit: asked again, for a refresh may have come between."""
        held = self._held([*_expired(now_us), sessions.c.id.in_(session_ids)])
        return self._end(
            [_live, sessions.c.id.in_(held)], cause=Cause.EXPIRED, now_us=now_us, lapses_at_us=lapses_at_us
        )

    def record_theft(self, theft: TheftRecord) -> None:
        """Keeps both presentations."""
        self._connection.execute(insert(thefts).values(vars(theft)))

    def thefts_of(self, session_id: UUID) -> Sequence[TheftRecord]:
        """The recorded thefts of a session."""
        columns = [column for column in thefts.c if column.name != "id"]
        rows = self._connection.execute(select(*columns).where(thefts.c.session_id == session_id))
        return [TheftRecord(**row._mapping) for row in rows]

    def _one(self, statement: Select[Any], **values: Any) -> Session | None:
        row = self._connection.execute(statement, values).one_or_none()
        return None if row is None else session_from(dict(row._mapping))

    def _held(self, conditions: Sequence[ColumnElement[bool]]) -> Sequence[UUID]:
        """Locks the rows in the order of their ids: two that end several sessions must not wait for each other."""
        locking = select(sessions.c.id).where(*conditions).order_by(sessions.c.id).with_for_update()
        return self._connection.execute(locking).scalars().all()

    def _end(
        self, conditions: Sequence[ColumnElement[bool]], *, cause: Cause, now_us: int, lapses_at_us: int
    ) -> Sequence[Ended]:
        statement = update(sessions).where(*conditions).values(ended_at_us=now_us, cause=cause.value)
        rows = self._connection.execute(statement.returning(sessions.c.id, sessions.c.user_id)).all()
        SqlRevocations(self._connection).append_all([row.id for row in rows], lapses_at_us=lapses_at_us)
        return [Ended(session_id=row.id, user_id=row.user_id, cause=cause, lapses_at_us=lapses_at_us) for row in rows]


def _expired(now_us: int) -> tuple[ColumnElement[bool], ...]:
    return _live, (sessions.c.idle_ends_at_us <= now_us) | (sessions.c.ends_at_us <= now_us)


def _unchanged(read: Session) -> ColumnElement[bool]:
    return (
        (sessions.c.id == read.id)
        & (sessions.c.generation == read.generation)
        & (sessions.c.branch == read.branch)
        & (sessions.c.handed_out_at_us == read.handed_out_at_us)
        & _live
    )


def session_from(row: dict[str, Any]) -> Session:
    """From the row's columns and its user's ``roles`` and ``disabled_at_us``."""
    roles, disabled_at_us = row.pop("roles"), row.pop("disabled_at_us")
    return Session(roles=tuple(roles), user_disabled=disabled_at_us is not None, **row)
