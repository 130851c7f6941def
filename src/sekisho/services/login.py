"""Login: an address and a password open a session."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar
from uuid import uuid4

from sekisho.errors import Overloaded, PasswordTooLong, TryLater, WrongCredentials
from sekisho.services.caller import Caller, device_hash
from sekisho.services.email_address import canonical_or_raw
from sekisho.services.events import Event, Events
from sekisho.services.hashing import HashingPool
from sekisho.services.sessions import Carrier, Sessions, open_session
from sekisho.services.throttle import Lane, Throttle
from sekisho.storage.ports import Storage, Transaction
from sekisho.storage.rows import Cause, Ended, Session, User

_ATTEMPTS: Final = 3
# Each known device is throttled apart, so their number is what a collector of devices could multiply guesses by.
_DEVICES_KEPT: Final = 10


G = TypeVar("G")


@dataclass(frozen=True, kw_only=True)
class SignedIn(Generic[G]):
    """A grant, and what the device is to show at its next login so that it is throttled apart from strangers."""

    user: User
    grant: G
    device_token: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Login:
    """Opens sessions."""

    storage: Storage
    passwords: HashingPool
    throttle: Throttle
    sessions: Sessions
    events: Events

    async def __call__(
        self, *, email: str, password: str, caller: Caller, carrier: Carrier[G], replaced: bytes | None = None
    ) -> SignedIn[G]:
        """``replaced``: the hash of a session cookie that the browser has; its session ends when this one begins.

        Raises ``WrongCredentials``, ``Throttled``, ``TryLater``, ``Overloaded`` and ``StorageUnavailable``.
        """
        account = canonical_or_raw(email)
        lanes = self.throttle.login_lanes(account=account, address=caller.address, device=None)
        if caller.device_hash is None:
            await self.throttle.check(lanes)  # before the look-up: who is throttled costs no query
        user, known_device = await self._look_up(account, caller)
        if caller.device_hash is not None:
            if known_device is not None:
                device = known_device.hex()
                lanes = self.throttle.login_lanes(account=account, address=caller.address, device=device)
            await self.throttle.check(lanes)
        try:
            for _ in range(_ATTEMPTS):
                new_hash = await self._verify(password, user, lanes)
                assert user is not None, "an unknown account never verifies"
                device_token = caller.device_token if known_device and caller.device_token else secrets.token_urlsafe()
                opened = await self._open(user, new_hash, caller, device_token, carrier, replaced)
                if isinstance(opened, SignedIn):
                    return opened
                user = opened  # the hash was replaced meanwhile: look at the new one
        except WrongCredentials as error:
            self.events.record(
                Event.LOGIN_FAILED,
                error.code,
                user_id=user.id if user else None,
                address=caller.address,
                detail=error.detail,
            )
            raise
        raise TryLater(1, "the account kept changing during the login")

    async def _look_up(self, account: str, caller: Caller) -> tuple[User | None, bytes | None]:
        device = caller.device_hash

        def work(tx: Transaction) -> tuple[User | None, bytes | None]:
            user = tx.users.by_email(account)
            # Asked for an unknown account too: a statement less would tell that it is unknown.
            is_known = device is not None and tx.devices.is_known(device, user.id if user else uuid4())
            return user, device if is_known else None

        return await self.storage.read(work)

    async def _verify(self, password: str, user: User | None, lanes: Sequence[Lane]) -> str | None:
        """Checks the password, no database connection held. Gives a new hash if the stored one is due for one."""
        # Unknown and disabled accounts get the same work and the same answer (OWASP ASVS 6.3.8).
        stored = user.password_hash if user is not None and user.disabled_at_us is None else None
        try:
            await self.passwords.verify(password, stored)
        except WrongCredentials:
            await self.throttle.failed(lanes)
            raise
        await self.throttle.succeeded(lanes)
        assert stored is not None, "a decoy never verifies"
        return await self._better_hash(password, stored)

    async def _better_hash(self, password: str, stored: str) -> str | None:
        """A new hash where the stored one is weaker than today's, or of another kind."""
        if not self.passwords.needs_rehash(stored):
            return None
        try:
            return await self.passwords.hash(password)
        except (
            PasswordTooLong,
            Overloaded,
        ):  # too long for bcrypt, or no time now: the password was right all the same
            return None

    async def _open(
        self,
        user: User,
        new_hash: str | None,
        caller: Caller,
        device_token: str,
        carrier: Carrier[G],
        replaced: bytes | None,
    ) -> SignedIn[G] | User:
        """One transaction opens the session, unless the password or the account changed since it was read."""

        def work(tx: Transaction) -> User | tuple[Session, Sequence[Ended], int]:
            locked = tx.users.locked(user.id)
            if locked is None or locked.disabled_at_us is not None:
                raise WrongCredentials("the account was disabled during the login")
            if locked.password_hash != user.password_hash:
                return locked
            now_us = tx.now_us()
            if new_hash is not None:
                tx.users.set_password_hash(user.id, new_hash, changed_at_us=None)
            ended = [] if replaced is None else self._end_replaced(tx, replaced, now_us)
            session, evicted = open_session(
                tx,
                locked,
                limits=self.sessions.limits,
                caller=caller,
                cookie_hash=carrier.cookie_hash,
                now_us=now_us,
            )
            tx.devices.remember(device_hash(device_token), user.id, now_us=now_us, kept=_DEVICES_KEPT)
            return session, [*ended, *evicted], now_us

        opened = await self.storage.write(work)
        if isinstance(opened, User):
            return opened
        session, ended, now_us = opened
        self.sessions.tell(ended)
        if new_hash is not None:
            self.events.record(Event.PASSWORD_REHASHED, user_id=user.id)
        self.events.record(Event.LOGGED_IN, user_id=user.id, session_id=session.id, address=caller.address)
        return SignedIn(user=user, grant=carrier.grant(session, now_us=now_us), device_token=device_token)

    def _end_replaced(self, tx: Transaction, cookie_hash: bytes, now_us: int) -> Sequence[Ended]:
        """A session whose only key is about to be overwritten, or one that somebody else has planted (CWE-384)."""
        session = tx.sessions.by_cookie(cookie_hash)
        if session is None:
            return []
        lapses_at_us = self.sessions.lapses_at_us(now_us)
        return tx.sessions.end(cause=Cause.LOGOUT, now_us=now_us, lapses_at_us=lapses_at_us, session_ids=[session.id])
