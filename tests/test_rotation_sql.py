"""The statement of the ordinary refresh says what ``rotation.decide`` says, and of several at once it lets one through."""

import asyncio
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, text
from sqlalchemy.util import await_only

from sekisho.errors import RefreshTokenInvalid
from sekisho.rotation import Action, Decision, RotationState, decide
from sekisho.storage import connect, schema
from sekisho.storage.engine import Database, SqlTransaction
from sekisho.storage.migrate import upgrade
from sekisho.storage.rotate import rotate_on_postgresql, rotate_on_sqlite
from sekisho.storage.rows import Cause, Rotate, RotationWrite, Session
from step_by_step import bare, reading, writing
from test_storage import HOUR, NOW, SECOND, a_session, a_user, database, found, owner, stored_session

__all__ = ["database", "owner"]  # fixtures

pytestmark = pytest.mark.anyio

WINDOW_S = 30
WINDOW = WINDOW_S * SECOND
IDLE = 7 * 24 * HOUR
REQUEST = {"window_us": WINDOW, "idle_us": IDLE, "address": "2001:db8::1", "user_agent": "another"}


def presenting(session_id: UUID, generation: int = 0, branch: int = 0) -> Rotate:
    return Rotate(session_id=session_id, presented_generation=generation, presented_branch=branch, **REQUEST)


def holds(_: Session) -> None:
    """The secret is as it should be."""


def times(*boundaries: int) -> st.SearchStrategy[int]:
    """Offsets from now: at each boundary, one microsecond and a tenth of a second to either side, and anywhere."""
    near = [boundary + by for boundary in boundaries for by in (-SECOND // 10, -1, 0, 1, SECOND // 10)]
    return st.sampled_from(near) | st.integers(-3 * WINDOW, HOUR)


def mostly(value: object, otherwise: st.SearchStrategy) -> st.SearchStrategy:
    """Mostly what lets a refresh through, so that each condition is often the only one that fails."""
    return st.sampled_from([*[st.just(value)] * 9, otherwise]).flatmap(lambda strategy: strategy)


small = st.integers(0, 3)
rows = st.fixed_dictionaries(
    {
        "generation": small,
        "branch": small,
        "parent_branch": st.none() | small,
        "made_at_us": times(-WINDOW, 0),
        "handed_out_at_us": mostly(-WINDOW - 1, times(-WINDOW, 0)),
        "idle_ends_at_us": mostly(HOUR, times(0)),
        "ends_at_us": mostly(HOUR, times(0)),
        "ended": mostly(False, st.just(True)),
        "user_disabled": mostly(False, st.just(True)),
    }
)
presented_by = mostly((0, 0), st.tuples(st.integers(-2, 2), st.integers(-2, 2)))

ROTATES = {
    "generation": 2,
    "branch": 3,
    "parent_branch": 1,
    "made_at_us": -HOUR,
    "handed_out_at_us": -WINDOW - 1,
    "idle_ends_at_us": HOUR,
    "ends_at_us": HOUR,
    "ended": False,
    "user_disabled": False,
}


@settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(row=rows, by=presented_by)
@example(row=ROTATES, by=(0, 0))
@example(row=ROTATES, by=(-1, -2))
@example(row=ROTATES, by=(0, -1))
@example(row=ROTATES, by=(1, 0))
@example(row=ROTATES | {"handed_out_at_us": -WINDOW}, by=(0, 0))
@example(row=ROTATES | {"handed_out_at_us": HOUR}, by=(0, 0))
@example(row=ROTATES | {"made_at_us": HOUR}, by=(0, 0))
@example(row=ROTATES | {"idle_ends_at_us": 0}, by=(0, 0))
@example(row=ROTATES | {"idle_ends_at_us": 1}, by=(0, 0))
@example(row=ROTATES | {"ends_at_us": 0}, by=(0, 0))
@example(row=ROTATES | {"ends_at_us": 1}, by=(0, 0))
@example(row=ROTATES | {"ended": True}, by=(0, 0))
@example(row=ROTATES | {"user_disabled": True}, by=(0, 0))
async def test_the_statement_rotates_exactly_when_the_rule_says_so(database: Database, row, by):
    """On SQLite at one fixed time. PostgreSQL reads its clock in the statement, so there the rule is asked at that
    time when the statement rotated; when it did not, the rule must not say that it should have all along."""
    generation, branch = max(0, row["generation"] + by[0]), max(0, row["branch"] + by[1])

    def steps(connection: Connection) -> tuple[Session, Session | None, Session | None, int, int]:
        connection.execute(delete(schema.users))  # and with them their sessions
        fixed = NOW if database.is_sqlite else None
        transaction = SqlTransaction(connection)
        sessions, driver = transaction.sessions, connection.connection.driver_connection

        def clock() -> int:
            return transaction.now_us() if fixed is None else fixed

        now = clock()
        user, bystander = a_user(), a_user()
        session, other = a_row(row, user, now), a_row(ROTATES, bystander, now)
        for each_user, each in ((user, session), (bystander, other)):
            transaction.users.add(each_user)
            sessions.add(each)
        if row["user_disabled"]:
            transaction.users.disable(user.id, now_us=now)

        before = clock()
        order = presenting(session.id, generation, branch)
        if fixed is None:
            rotated = await_only(rotate_on_postgresql(driver, order, holds))
        else:
            rotated = rotate_on_sqlite(driver, order, holds, at_us=fixed)
        after = clock()
        assert sessions.find(other.id) == other
        return session, rotated, sessions.find(session.id), before, after

    session, rotated, stored, before, after = await database.migrate(steps)

    def rule(at: int) -> Decision | None:
        over = session.is_over(at) or session.user_disabled
        return (
            None if over else decide(state(session), generation=generation, branch=branch, now_us=at, window_s=WINDOW_S)
        )

    if rotated is None:
        assert stored == session
        said = [rule(before), rule(after)]
        assert not all(decision is not None and decision.action is Action.ROTATE for decision in said)
        return
    assert before <= rotated.made_at_us <= after
    decision = rule(rotated.made_at_us)
    assert decision is not None
    assert decision.action is Action.ROTATE
    assert rotated == stored == written(session, decision.state, now=rotated.made_at_us)


def a_row(row, user, now: int) -> Session:
    """The generated row, its offsets turned into times."""
    relative = {name: now + value for name, value in row.items() if name.endswith("_us")}
    ended = {"ended_at_us": now, "cause": Cause.LOGOUT.value} if row["ended"] else {}
    position = {name: row[name] for name in ("generation", "branch", "parent_branch")}
    return a_session(user, now=now, user_disabled=row["user_disabled"], **position, **relative, **ended)


def state(session: Session) -> RotationState:
    return RotationState(**{name: getattr(session, name) for name in RotationState.__dataclass_fields__})


def written(session: Session, state: RotationState, *, now: int) -> Session:
    """The row with what the rule and the request change in it, and nothing else."""
    changes = {name: getattr(state, name) for name in RotationState.__dataclass_fields__}
    return replace(
        session,
        **changes,
        idle_ends_at_us=now + IDLE,
        last_address=REQUEST["address"],
        last_user_agent=REQUEST["user_agent"],
    )


# --- compare and set -----------------------------------------------------------------------------------------------


def a_write(session: Session) -> RotationWrite:
    return RotationWrite(
        generation=session.generation + 5,
        branch=7,
        parent_branch=None,
        made_at_us=NOW + 1,
        handed_out_at_us=NOW + 2,
        idle_ends_at_us=NOW + IDLE,
        last_address="2001:db8::1",
        last_user_agent="another",
    )


async def test_a_decision_is_written_when_the_row_is_as_read(database, owner):
    session, other = await stored_session(database, owner), await stored_session(database, owner)
    write = a_write(session)
    async with writing(database) as tx:
        assert await tx.sessions.write_rotation(session, write)
    assert await found(database, session) == replace(session, **vars(write))
    assert await found(database, other) == other


@pytest.mark.parametrize("changed", ["generation", "branch", "handed_out_at_us", "ended_at_us"])
async def test_a_decision_is_not_written_when_the_row_has_changed(database, owner, changed):
    read = a_session(owner, generation=3, branch=2)
    now_there = replace(read, **{changed: (getattr(read, changed) or NOW) + 1})
    async with writing(database) as tx:
        await tx.sessions.add(now_there)
        assert not await tx.sessions.write_rotation(read, a_write(read))
    assert await found(database, read) == now_there


async def test_of_20_decisions_on_one_reading_one_is_written(database, owner):
    session = await stored_session(database, owner)

    async def write() -> bool:
        async with writing(database) as tx:
            return await tx.sessions.write_rotation(session, a_write(session))

    outcomes = await asyncio.gather(*(write() for _ in range(20)))
    assert sorted(outcomes) == [False] * 19 + [True]


# --- races ---------------------------------------------------------------------------------------------------------


async def test_of_200_refreshes_at_once_one_rotates(database, owner):
    async with reading(database) as tx:
        now = await tx.now_us()
    session = await stored_session(database, owner, now=now, handed_out_at_us=now - WINDOW - 1)

    outcomes = await asyncio.gather(*(database.rotate(presenting(session.id), holds) for _ in range(200)))
    (rotated,) = [outcome for outcome in outcomes if outcome is not None]
    assert rotated == await found(database, session)
    assert (rotated.generation, rotated.branch, rotated.parent_branch) == (1, 0, 0)


async def test_an_unknown_session_does_not_rotate(database):
    assert await database.rotate(presenting(uuid4()), holds) is None


async def test_what_the_check_raises_rolls_back_and_the_connection_goes_on(database, owner):
    async with reading(database) as tx:
        now = await tx.now_us()
    session = await stored_session(database, owner, now=now, handed_out_at_us=now - WINDOW - 1)
    seen = []

    def refuses(rotated: Session) -> None:
        seen.append(rotated)
        raise RefreshTokenInvalid

    for _ in range(2 * connect.POOL_SIZE):
        with pytest.raises(RefreshTokenInvalid):
            await database.rotate(presenting(session.id), refuses)
    assert {rotated.generation for rotated in seen} == {1}, "it sees the row as it would be"
    assert await found(database, session) == session
    assert await database.rotate(presenting(session.id), holds) == await found(database, session)


async def test_connections_that_died_meanwhile_are_replaced(private_postgres):
    """Without a failed request: the driver has heard that they are closed."""
    database = Database(private_postgres.create_database())
    await upgrade(database)
    async with asyncio.TaskGroup() as together:
        for _ in range(connect.POOL_SIZE):
            together.create_task(database.rotate(presenting(uuid4()), holds))
    await asyncio.to_thread(private_postgres.stop, "fast")
    await asyncio.to_thread(private_postgres.start)
    for _ in range(2 * connect.POOL_SIZE):
        assert await database.rotate(presenting(uuid4()), holds) is None
    await database.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_request_that_is_cancelled_leaves_no_transaction_behind(database, owner):
    async with reading(database) as tx:
        now = await tx.now_us()
    session = await stored_session(database, owner, now=now, handed_out_at_us=now - WINDOW - 1)
    async with bare(database) as other:
        await other.execute(text("SELECT 1 FROM sessions FOR UPDATE"))
        waiting = [asyncio.create_task(database.rotate(presenting(session.id), holds)) for _ in range(5)]
        await asyncio.wait(waiting, timeout=0.1)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert all(task.cancelled() for task in waiting)
    assert await found(database, session) == session
    assert (await database.rotate(presenting(session.id), holds)) is not None
