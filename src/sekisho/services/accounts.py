"""Accounts: read one, list them, disable one."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sekisho.errors import TokenRevoked
from sekisho.services.email_address import canonical_or_raw
from sekisho.services.sessions import Sessions
from sekisho.storage.ports import Cause, Ended, Storage, User


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """Reads and disables accounts."""

    storage: Storage
    sessions: Sessions

    async def current(self, user_id: UUID) -> User:
        """The account of a verified token. Raises ``TokenRevoked`` when it is gone or disabled."""
        async with self.storage.reading() as tx:
            user = await tx.users.by_id(user_id)
        if user is None or user.disabled_at_us is not None:
            raise TokenRevoked("the account is gone or disabled")
        return user

    async def find(self, email: str) -> User | None:
        """The account with this address, in any spelling."""
        async with self.storage.reading() as tx:
            return await tx.users.by_email(canonical_or_raw(email))

    async def page(self, *, after: str, limit: int) -> Sequence[User]:
        """Accounts in the order of their canonical address."""
        async with self.storage.reading() as tx:
            return await tx.users.page(after=after, limit=limit)

    async def disable(self, user_id: UUID) -> Sequence[Ended]:
        """No login any more, and every session ends, in one transaction."""
        async with self.storage.writing() as tx:
            now_us = await tx.now_us()
            await tx.users.locked(user_id)
            await tx.users.disable(user_id, now_us=now_us)
            ended = await tx.sessions.end(
                cause=Cause.USER_DISABLED,
                now_us=now_us,
                lapses_at_us=self.sessions.lapses_at_us(now_us),
                user_id=user_id,
            )
        self.sessions.tell(ended)
        return ended
