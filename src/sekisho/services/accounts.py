"""Accounts: read one, list them, disable one."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sekisho.errors import TokenRevoked
from sekisho.services.email_address import canonical_or_raw
from sekisho.services.sessions import Sessions
from sekisho.storage.ports import Storage, Transaction
from sekisho.storage.rows import Cause, Ended, User


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """Reads and disables accounts."""

    storage: Storage
    sessions: Sessions

    async def current(self, user_id: UUID) -> User:
        """The account of a verified token. Raises ``TokenRevoked`` when it is gone or disabled."""
        user = await self.storage.read(lambda tx: tx.users.by_id(user_id))
        if user is None or user.disabled_at_us is not None:
            raise TokenRevoked("the account is gone or disabled")
        return user

    async def find(self, email: str) -> User | None:
        """The account with this address, in any spelling."""
        return await self.storage.read(lambda tx: tx.users.by_email(canonical_or_raw(email)))

    async def page(self, *, after: str, limit: int) -> Sequence[User]:
        """Accounts in the order of their canonical address."""
        return await self.storage.read(lambda tx: tx.users.page(after=after, limit=limit))

    async def disable(self, user_id: UUID) -> Sequence[Ended]:
        """No login any more, and every session ends, in one transaction."""

        def work(tx: Transaction) -> Sequence[Ended]:
            now_us = tx.now_us()
            tx.users.locked(user_id)
            tx.users.disable(user_id, now_us=now_us)
            tx.devices.forget_all(user_id)
            return tx.sessions.end(
                cause=Cause.USER_DISABLED,
                now_us=now_us,
                lapses_at_us=self.sessions.lapses_at_us(now_us),
                user_id=user_id,
            )

        ended = await self.storage.write(work)
        self.sessions.tell(ended)
        return ended
