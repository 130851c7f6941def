"""Change of password: needs the current one, ends every session, opens a new one for the device that asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from sekisho.errors import TokenRevoked, TryLater, WrongCredentials
from sekisho.services.caller import Caller
from sekisho.services.events import Event, Events
from sekisho.services.hashing import HashingPool
from sekisho.services.password_policy import PasswordRules
from sekisho.services.sessions import Carrier, Sessions, open_session
from sekisho.services.throttle import Throttle
from sekisho.storage.ports import Storage, Transaction
from sekisho.storage.rows import Cause, Ended, Session, User

G = TypeVar("G")


@dataclass(frozen=True, kw_only=True)
class ChangePassword:
    """Replaces a password."""

    storage: Storage
    passwords: HashingPool
    rules: PasswordRules
    throttle: Throttle
    sessions: Sessions
    events: Events

    async def __call__(
        self,
        *,
        user_id: UUID,
        session_id: UUID,
        current_password: str,
        new_password: str,
        caller: Caller,
        carrier: Carrier[G],
    ) -> tuple[User, G]:
        """The account, and a grant for a new session; every session of before has ended.

        A stolen access token alone changes nothing: the current password is asked and its guesses are throttled.
        Raises ``InputError``, ``WrongCredentials``, ``Throttled``, ``Overloaded``, ``TokenRevoked`` (the session
        ended meanwhile) ``TryLater`` and ``StorageUnavailable``.
        """
        user = await self.storage.read(lambda tx: tx.users.by_id(user_id))
        if user is None or user.disabled_at_us is not None:
            raise TokenRevoked("the account is gone or disabled")
        lanes = self.throttle.password_lanes(user_id=str(user_id), address=caller.address)
        try:
            await self.throttle.check(lanes)
            try:
                await self.passwords.verify(current_password, user.password_hash)
            except WrongCredentials:
                await self.throttle.failed(lanes)
                raise
            await self.throttle.succeeded(lanes)
        except WrongCredentials as error:
            self.events.record(
                Event.PASSWORD_CHANGE_FAILED, error.code, user_id=user_id, address=caller.address, detail=error.detail
            )
            raise
        self.rules.check(new_password, email=user.email, canonical_email=user.email_canonical, field="new_password")
        new_hash = await self.passwords.hash(new_password)
        return user, await self._replace(user, session_id, new_hash, caller, carrier)

    async def _replace(self, user: User, session_id: UUID, new_hash: str, caller: Caller, carrier: Carrier[G]) -> G:
        def work(tx: Transaction) -> tuple[Session, Sequence[Ended], int]:
            locked = tx.users.locked(user.id)
            if locked is None or locked.disabled_at_us is not None:
                raise TokenRevoked("the account was disabled meanwhile")
            if locked.password_hash != user.password_hash:
                raise TryLater(1, "the password was changed or rehashed meanwhile")
            now_us = tx.now_us()
            ended = tx.sessions.end(
                cause=Cause.PASSWORD_CHANGED,
                now_us=now_us,
                lapses_at_us=self.sessions.lapses_at_us(now_us),
                user_id=user.id,
            )
            if session_id not in {entry.session_id for entry in ended}:
                # Whoever asked was logged out while we hashed: the logout stands, and nothing is changed.
                raise TokenRevoked("the session ended meanwhile")
            tx.users.set_password_hash(user.id, new_hash, changed_at_us=now_us)
            # Whoever knew the old password may have gathered devices to guess from.
            tx.devices.forget_all(user.id)
            session, _ = open_session(
                tx,
                locked,
                limits=self.sessions.limits,
                caller=caller,
                cookie_hash=carrier.cookie_hash,
                now_us=now_us,
            )
            return session, ended, now_us

        session, ended, now_us = await self.storage.write(work)
        self.sessions.tell(ended)
        self.events.record(Event.PASSWORD_CHANGED, user_id=user.id, session_id=session.id, address=caller.address)
        return carrier.grant(session, now_us=now_us)
