"""A database with accounts and sessions, each shown by a cookie or by an access token."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import bindparam, func, select, update

from _routes import Checks, bearer, cookie, forged
from _rows import add_accounts, add_sessions
from sekisho.services.cookie_sessions import hash_of
from sekisho.storage import migrate
from sekisho.storage.engine import Database
from sekisho.storage.schema import sessions
from sekisho.tokens import access
from sekisho.tokens.keyring import KeySet
from sekisho.verify.cookies import Cookies

ISSUER = "https://auth.example.com"
SESSION, HEADER, TOKEN = "session", "header", "token"
"""The kinds of credentials: a session cookie, an access token in a header, one in a cookie."""

_COOKIES = Cookies(ISSUER)
_TOKEN_LIVES_S = 3600  # the longest that there is
_GONE = ("ended", "idle")


class CookieWorld:
    """New rows in an empty database; PostgreSQL's or SQLite's."""

    def __init__(self, url: str, key_set: KeySet, *, size: int) -> None:
        self.url = url
        self._key_set = key_set
        self._used_at_us = 0
        self._cookies = [secrets.token_urlsafe(32) for _ in range(size)]
        self._gone = {why: secrets.token_urlsafe(32) for why in _GONE}
        asyncio.run(self._prepare())

    def credentials(self, kind: str) -> list[dict[str, str]]:
        """Of each session, in their order."""
        match kind:
            case "header":
                return [bearer(token) for token in self._tokens]
            case "token":
                return [cookie(_COOKIES.access, token) for token in self._tokens]
            case _:
                return [cookie(_COOKIES.session, value) for value in self._cookies]

    def checks(self, kind: str) -> Checks:
        token, mine, foreign = self._tokens[0], self._cookies[0], secrets.token_urlsafe(32)
        bad_cookies = (foreign, mine[:-1], token, *self._gone.values(), f"{mine}; {_COOKIES.session}={foreign}")
        bad = {
            HEADER: [bearer(forged(token)), bearer(mine)],
            TOKEN: [cookie(_COOKIES.access, forged(token)), cookie(_COOKIES.access, mine)],
            SESSION: [cookie(_COOKIES.session, value) for value in bad_cookies],
        }
        return Checks(good=self.credentials(kind)[0], user=self._users[0], bad=bad[kind])

    def use(self, *, ago_s: float) -> None:
        """As if all sessions had been used then, and not since."""
        self._used_at_us = time.time_ns() // 1000 - round(ago_s * 1_000_000)
        asyncio.run(self._set_used())

    def uses_noted(self) -> int:
        """How many sessions have been used since, as far as their rows say."""
        return asyncio.run(self._count_used())

    async def _prepare(self) -> None:
        async with self._database() as database:
            await migrate.upgrade(database)
            emails = [f"user{number}@example.com" for number in range(len(self._cookies) + len(self._gone))]
            users = await add_accounts(database, emails, password_hash="nobody logs in")
            places = await add_sessions(database, users)
            hashes = [hash_of(value) for value in (*self._cookies, *self._gone.values())]
            rows = [{"which": place.session_id, "hash": one} for place, one in zip(places, hashes, strict=True)]
            carried = update(sessions).where(sessions.c.id == bindparam("which")).values(cookie_hash=bindparam("hash"))
            await database.migrate(lambda connection: connection.execute(carried, rows))
            await self._end(database)
        now = int(time.time())
        live = users[: len(self._cookies)]
        self._users = [str(user) for user in live]
        self._tokens = [
            access.issue(
                self._key_set.active("sign"),
                issuer=ISSUER,
                audience=ISSUER,
                subject=str(user),
                session_id=str(place.session_id),
                issued_at=now,
                expires_at=now + _TOKEN_LIVES_S,
            )
            for user, place in zip(live, places, strict=False)
        ]

    async def _end(self, database: Database) -> None:
        ways = {
            "ended": {"ended_at_us": sessions.c.made_at_us, "cause": "logout"},
            "idle": {"idle_ends_at_us": sessions.c.made_at_us},
        }
        for why, cookie_of_it in self._gone.items():
            ends = update(sessions).where(sessions.c.cookie_hash == hash_of(cookie_of_it)).values(ways[why])
            await database.migrate(lambda connection, ends=ends: connection.execute(ends))

    async def _set_used(self) -> None:
        async with self._database() as database:
            used = update(sessions).values(handed_out_at_us=self._used_at_us)
            await database.migrate(lambda connection: connection.execute(used))

    async def _count_used(self) -> int:
        async with self._database() as database:
            others = select(func.count()).where(sessions.c.handed_out_at_us != self._used_at_us)
            return await database.migrate(lambda connection: connection.execute(others).scalar_one())

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[Database]:
        database = Database(self.url)
        try:
            yield database
        finally:
            await database.close()
