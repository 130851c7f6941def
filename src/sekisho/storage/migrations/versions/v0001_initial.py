"""The first schema."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "chores",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ran_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("chores_pk")),
    )
    op.create_table(
        "revocations",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("lapses_at_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(session_id IS NULL) <> (key_id IS NULL)", name=op.f("revocations_one_id_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("revocations_pk")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("revocations_lapses_at_us_ix"), "revocations", ["lapses_at_us"], unique=False)
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("email_canonical", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("roles", sa.JSON(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("password_changed_at_us", sa.BigInteger(), nullable=False),
        sa.Column("disabled_at_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("users_pk")),
        sa.UniqueConstraint("email_canonical", name=op.f("users_email_canonical_key")),
    )
    op.create_table(
        "devices",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("last_seen_at_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("devices_user_id_fk"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("devices_pk")),
    )
    op.create_index(op.f("devices_last_seen_at_us_ix"), "devices", ["last_seen_at_us"], unique=False)
    op.create_index(op.f("devices_user_id_ix"), "devices", ["user_id"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.Column("idle_ends_at_us", sa.BigInteger(), nullable=False),
        sa.Column("ends_at_us", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("branch", sa.BigInteger(), nullable=False),
        sa.Column("parent_branch", sa.BigInteger(), nullable=True),
        sa.Column("made_at_us", sa.BigInteger(), nullable=False),
        sa.Column("handed_out_at_us", sa.BigInteger(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("cookie_hash", sa.LargeBinary(), nullable=True),
        sa.Column("last_address", sa.Text(), nullable=False),
        sa.Column("last_user_agent", sa.Text(), nullable=False),
        sa.Column("ended_at_us", sa.BigInteger(), nullable=True),
        sa.Column("cause", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("sessions_user_id_fk"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("sessions_pk")),
    )
    op.create_index(
        "sessions_cookie_hash_ix",
        "sessions",
        ["cookie_hash"],
        unique=True,
        postgresql_where=sa.text("cookie_hash IS NOT NULL"),
        sqlite_where=sa.text("cookie_hash IS NOT NULL"),
    )
    op.create_index("sessions_ended_at_ix", "sessions", ["ended_at_us"], unique=False)
    op.create_index(
        "sessions_live_by_user_ix",
        "sessions",
        ["user_id"],
        unique=False,
        postgresql_where=sa.text("ended_at_us IS NULL"),
        sqlite_where=sa.text("ended_at_us IS NULL"),
    )
    op.create_table(
        "thefts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("branch", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("user_agent", sa.Text(), nullable=False),
        sa.Column("current_generation", sa.BigInteger(), nullable=False),
        sa.Column("current_branch", sa.BigInteger(), nullable=False),
        sa.Column("current_since_us", sa.BigInteger(), nullable=False),
        sa.Column("current_address", sa.Text(), nullable=False),
        sa.Column("current_user_agent", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("thefts_user_id_fk"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("thefts_pk")),
    )
    op.create_index(op.f("thefts_session_id_ix"), "thefts", ["session_id"], unique=False)
    op.create_table(
        "verifiers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("credential_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("verifiers_pk")),
        sa.UniqueConstraint("credential_hash", name=op.f("verifiers_credential_hash_key")),
    )
