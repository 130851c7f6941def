"""Accounts and sessions put straight into the database: thousands, which signing up and in would take minutes for."""

import os
import time
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

from sqlalchemy import insert

from sekisho.storage.engine import Database
from sekisho.storage.schema import sessions, users
from sekisho.tokens.refresh import SALT_BYTES, Position, RefreshKeys

_DAY_US = 86_400 * 1_000_000


@dataclass(frozen=True, kw_only=True)
class Place:
    """A session and how far its refresh token has come."""

    session_id: UUID
    salt: bytes
    generation: int = 0

    def token(self, keys: RefreshKeys) -> str:
        return keys.make(self.session_id, Position(self.generation, 0), self.salt)

    def rotated(self) -> "Place":
        return replace(self, generation=self.generation + 1)


async def add_accounts(database: Database, emails: list[str], *, password_hash: str) -> list[UUID]:
    """They all have one password, hashed once."""
    now_us = time.time_ns() // 1000
    rows = [
        {
            "id": uuid4(),
            "email": email,
            "email_canonical": email,
            "password_hash": password_hash,
            "roles": [],
            "created_at_us": now_us,
            "password_changed_at_us": now_us,
        }
        for email in emails
    ]
    await database.migrate(lambda connection: connection.execute(insert(users), rows))
    return [row["id"] for row in rows]


async def add_sessions(database: Database, user_ids: list[UUID]) -> list[Place]:
    """One for each user, an hour old: the next refresh rotates it."""
    then_us = time.time_ns() // 1000 - 3600 * 1_000_000
    rows = [
        {
            "id": uuid4(),
            "user_id": user_id,
            "created_at_us": then_us,
            "idle_ends_at_us": then_us + 7 * _DAY_US,
            "ends_at_us": then_us + 30 * _DAY_US,
            "generation": 0,
            "branch": 0,
            "parent_branch": None,
            "made_at_us": then_us,
            "handed_out_at_us": then_us,
            "salt": os.urandom(SALT_BYTES),
            "last_address": "127.0.0.1",
            "last_user_agent": "bench",
            "ended_at_us": None,
            "cause": None,
        }
        for user_id in user_ids
    ]
    await database.migrate(lambda connection: connection.execute(insert(sessions), rows))
    return [Place(session_id=row["id"], salt=row["salt"]) for row in rows]
