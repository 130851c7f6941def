"""The tables. Times are whole microseconds since 1970 (``_us``), the database's own on PostgreSQL.

Nothing in here is usable by whoever steals it: passwords as argon2id or bcrypt, refresh tokens not at all (only the
salt that makes them), session cookies, device tokens and verifiers' credentials as SHA-256.
"""

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
)

metadata: Final = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
        "ix": "%(table_name)s_%(column_0_name)s_ix",
    }
)

users: Final = Table(
    "users",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("email", Text, nullable=False),  # as typed, for showing
    Column("email_canonical", Text, nullable=False, unique=True),  # for comparing
    Column("password_hash", Text, nullable=False),
    Column("roles", JSON, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("password_changed_at_us", BigInteger, nullable=False),
    Column("disabled_at_us", BigInteger),
)

sessions: Final = Table(
    "sessions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey(users.c.id, ondelete="CASCADE"), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("idle_ends_at_us", BigInteger, nullable=False),  # slides with each refresh, or each minute of use
    Column("ends_at_us", BigInteger, nullable=False),  # set at login, never moves
    # The refresh position and its times: see rotation.py.
    Column("generation", BigInteger, nullable=False),
    Column("branch", BigInteger, nullable=False),
    Column("parent_branch", BigInteger),
    Column("made_at_us", BigInteger, nullable=False),
    Column("handed_out_at_us", BigInteger, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("cookie_hash", LargeBinary),  # SHA-256 of the cookie that carries it; NULL where tokens do
    Column("last_address", Text, nullable=False),
    Column("last_user_agent", Text, nullable=False),
    Column("ended_at_us", BigInteger),
    Column("cause", Text),
)
_live = sessions.c.ended_at_us.is_(None)
# No index on a column that a refresh changes: PostgreSQL then updates the row in place (a HOT update).
Index(
    "sessions_cookie_hash_ix",
    sessions.c.cookie_hash,
    unique=True,
    postgresql_where=sessions.c.cookie_hash.is_not(None),
    sqlite_where=sessions.c.cookie_hash.is_not(None),
)
Index("sessions_live_by_user_ix", sessions.c.user_id, postgresql_where=_live, sqlite_where=_live)
Index("sessions_ended_at_ix", sessions.c.ended_at_us)

revocations: Final = Table(
    "revocations",
    metadata,
    # Nodes follow this table by id, so an id must never come twice, not even after the newest row was purged.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("session_id", Uuid),  # an ended session …
    Column("key_id", Text),  # … or a signing key that was withdrawn
    Column("lapses_at_us", BigInteger, nullable=False, index=True),
    CheckConstraint("(session_id IS NULL) <> (key_id IS NULL)", name="revocations_one_id_ck"),
    sqlite_autoincrement=True,
)

thefts: Final = Table(
    "thefts",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("session_id", Uuid, nullable=False, index=True),
    Column("user_id", Uuid, ForeignKey(users.c.id, ondelete="CASCADE"), nullable=False),
    # The presentation that gave it away …
    Column("at_us", BigInteger, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("branch", BigInteger, nullable=False),
    Column("address", Text, nullable=False),
    Column("user_agent", Text, nullable=False),
    # … and the one that the session had followed until then.
    Column("current_generation", BigInteger, nullable=False),
    Column("current_branch", BigInteger, nullable=False),
    Column("current_since_us", BigInteger, nullable=False),
    Column("current_address", Text, nullable=False),
    Column("current_user_agent", Text, nullable=False),
)

devices: Final = Table(
    "devices",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),  # SHA-256 of the random value in the device's cookie
    Column("user_id", Uuid, ForeignKey(users.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("last_seen_at_us", BigInteger, nullable=False, index=True),
)

verifiers: Final = Table(
    "verifiers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("credential_hash", LargeBinary, nullable=False, unique=True),  # SHA-256 of a random value
    Column("created_at_us", BigInteger, nullable=False),
)

chores: Final = Table(
    "chores",
    metadata,
    Column("name", Text, primary_key=True),
    Column("ran_at_us", BigInteger, nullable=False),
)
