"""Sign-up: an address and a password become an account."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from sekisho.errors import EmailTaken, InputError
from sekisho.services.email_address import EmailAddress, parse_email
from sekisho.services.events import Event, Events
from sekisho.services.hashing import HashingPool
from sekisho.services.password_policy import PasswordRules
from sekisho.services.throttle import Throttle
from sekisho.storage.ports import Storage, Transaction
from sekisho.storage.rows import User

_ROLES_MAX: Final = 32  # every access token carries them, and none may be longer than 8 KiB
_ROLE_MAX_BYTES: Final = 64


@dataclass(frozen=True, kw_only=True)
class SignUp:
    """Creates accounts."""

    storage: Storage
    passwords: HashingPool
    rules: PasswordRules
    throttle: Throttle
    events: Events

    async def __call__(self, *, email: str, password: str, address: str) -> User:
        """A new account.

        Raises ``InputError``, ``Throttled``, ``EmailTaken``, ``Overloaded`` and ``StorageUnavailable``.
        """
        parsed = self._check(email, password)
        await self.throttle.attempt(self.throttle.signup_lanes(address=address))
        if await self.storage.read(lambda tx: tx.users.by_email(parsed.canonical)) is not None:
            raise EmailTaken  # before the hash: a taken address must not cost more than it tells
        return await self._create(parsed, password, roles=(), address=address)

    async def by_operator(self, *, email: str, password: str, roles: Sequence[str]) -> User:
        """As above, from the command line: not throttled, and with roles."""
        fitting = (role for role in roles if role.isprintable() and 0 < len(role.encode()) <= _ROLE_MAX_BYTES)
        if len(roles) > _ROLES_MAX or len(list(fitting)) < len(roles):
            raise InputError("role", f"at most {_ROLES_MAX} roles of 1 to {_ROLE_MAX_BYTES} bytes, printable")
        return await self._create(self._check(email, password), password, roles=tuple(roles), address="command line")

    def _check(self, email: str, password: str) -> EmailAddress:
        parsed = parse_email(email)
        self.rules.check(password, email=parsed.typed, canonical_email=parsed.canonical)
        return parsed

    async def _create(self, email: EmailAddress, password: str, *, roles: tuple[str, ...], address: str) -> User:
        password_hash = await self.passwords.hash(password)

        def work(tx: Transaction) -> tuple[User, bool]:
            user = User(
                id=uuid4(),
                email=email.typed,
                email_canonical=email.canonical,
                password_hash=password_hash,
                roles=roles,
                created_at_us=tx.now_us(),
                disabled_at_us=None,
            )
            return user, tx.users.add(user)

        user, added = await self.storage.write(work)
        if not added:  # someone was faster between our look and our insert
            raise EmailTaken
        self.events.record(Event.SIGNED_UP, user_id=user.id, address=address)
        return user
