"""Logout: the session's row and its revocation in one transaction; after the commit every verifier hears of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sekisho.services.mint import Mint
from sekisho.services.sessions import Sessions
from sekisho.storage.ports import Storage, Transaction
from sekisho.storage.rows import Cause, Ended
from sekisho.tokens.access import AccessClaims, account_and_session


@dataclass(frozen=True, kw_only=True)
class Logout:
    """Ends sessions on behalf of whoever holds one of their tokens, old ones too."""

    storage: Storage
    mint: Mint
    sessions: Sessions

    async def by_access_token(self, claims: AccessClaims) -> None:
        """``claims`` of a token whose signature holds; it may have expired or its session be over already."""
        _, session_id = account_and_session(claims)
        await self._end(session_id)

    async def by_refresh_token(self, token: str) -> None:
        """Any refresh token of the session, displaced ones too. Raises ``RefreshTokenInvalid``."""
        presented = self.mint.read_refresh_token(token)
        session = await self.storage.read(lambda tx: tx.sessions.find(presented.session_id))
        if session is not None:
            self.mint.check_secret(presented, session)
        await self._end(presented.session_id)

    async def everywhere(self, claims: AccessClaims) -> None:
        """Ends every session of the user, the one that asks included."""
        user_id, _ = account_and_session(claims)

        def work(tx: Transaction) -> Sequence[Ended]:
            now_us = tx.now_us()
            tx.users.locked(user_id)  # a login under way opens its session before or after this, not during
            return tx.sessions.end(
                cause=Cause.LOGOUT_ALL,
                now_us=now_us,
                lapses_at_us=self.sessions.lapses_at_us(now_us),
                user_id=user_id,
            )

        self.sessions.tell(await self.storage.write(work))

    async def _end(self, session_id: UUID) -> None:
        def work(tx: Transaction) -> Sequence[Ended]:
            now_us = tx.now_us()
            lapses_at_us = self.sessions.lapses_at_us(now_us)
            ended = tx.sessions.end(
                cause=Cause.LOGOUT, now_us=now_us, lapses_at_us=lapses_at_us, session_ids=[session_id]
            )
            if ended or tx.sessions.find(session_id) is not None or self.sessions.watch.knows(session_id):
                return ended
            # A database failover lost the session's row, but its access tokens are out there and verify.
            tx.revocations.append(session_id, lapses_at_us=lapses_at_us)
            return [Ended(session_id=session_id, user_id=None, cause=Cause.LOGOUT, lapses_at_us=lapses_at_us)]

        self.sessions.tell(await self.storage.write(work))
