"""Password hashes: argon2id by default (RFC 9106), bcrypt ``$2b$`` for who must have it or brings such hashes along.

Everything here is synchronous and slow on purpose; ``services/hashing.py`` keeps it off the event loop. No text that
leaves this module, neither a representation nor an exception's, holds a password, a salt or a hash.
"""

import os
import re
import secrets
import unicodedata
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeAlias

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from sekisho import errors

SALT_BYTES: Final = 16  # RFC 9106 §3.1, NIST SP 800-63B-4 §3.1.1.2 (at least 4)
TAG_BYTES: Final = 32
BCRYPT_MAX_PASSWORD_BYTES: Final = 72

# What an imported hash may ask for. The next thing that a hash with m=4 GiB or cost 31 does is to take the node down.
MAX_MEMORY_KIB: Final = 256 * 1024
MAX_WORK_KIB: Final = 1024 * 1024  # memory × iterations: about half a second
MAX_ITERATIONS: Final = 64
MAX_LANES: Final = 16
MAX_COST_LOG2: Final = 15  # about two seconds

# NFC sorts each run of combining marks in quadratic time, so the length is bounded before it. 256 code points after
# NFC, the most that the policy allows, were at most four times as many before (UAX #15, expansion of NFD).
MAX_RAW_CODE_POINTS: Final = 1024

_SURROGATE = re.compile("[\ud800-\udfff]")
_ARGON2ID = re.compile(
    r"\$argon2id\$v=19\$m=([1-9][0-9]{0,9}),t=([1-9][0-9]{0,9}),p=([1-9][0-9]{0,7})"
    r"\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})"
)  # salt of 8 to 64 bytes, tag of 16 to 64: a shorter tag could be met by guessing
_BCRYPT = re.compile(r"\$2b\$([0-3][0-9])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_BCRYPT_ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Argon2idProfile:
    """Cost of one argon2id hash (RFC 9106 §3.1): memory in KiB, passes over it, and lanes."""

    memory_kib: int
    iterations: int
    lanes: int

    @property
    def is_bounded(self) -> bool:
        """Whether the parameters are valid and a node can afford to compute them."""
        return (
            1 <= self.lanes <= MAX_LANES
            and 1 <= self.iterations <= MAX_ITERATIONS
            and 8 * self.lanes <= self.memory_kib <= MAX_MEMORY_KIB
            and self.memory_kib * self.iterations <= MAX_WORK_KIB
        )

    def is_weaker_than(self, other: "Argon2idProfile") -> bool:
        """Less memory, or less work in all (memory × iterations). Lanes change the waiting, not the attacker's bill."""
        work_kib, other_work_kib = self.memory_kib * self.iterations, other.memory_kib * other.iterations
        return self.memory_kib < other.memory_kib or work_kib < other_work_kib


@dataclass(frozen=True, slots=True, kw_only=True)
class BcryptProfile:
    """Cost of one bcrypt hash: the binary logarithm of its rounds."""

    cost_log2: int

    @property
    def is_bounded(self) -> bool:
        """Whether the cost is valid and a node can afford to compute it."""
        return 4 <= self.cost_log2 <= MAX_COST_LOG2


Profile: TypeAlias = Argon2idProfile | BcryptProfile

OWASP: Final = Argon2idProfile(memory_kib=19_456, iterations=2, lanes=1)
"""The default: 19 MiB, two passes. Source: OWASP Password Storage Cheat Sheet, "Argon2id"."""

OWASP_HIGH_MEMORY: Final = Argon2idProfile(memory_kib=47_104, iterations=1, lanes=1)
"""46 MiB, one pass: as strong by the same cheat sheet, at more memory and less time."""

RFC_9106_LOW_MEMORY: Final = Argon2idProfile(memory_kib=65_536, iterations=3, lanes=4)
"""64 MiB, three passes, four lanes: the second recommended option of RFC 9106 §4."""

BCRYPT_12: Final = BcryptProfile(cost_log2=12)
"""2^12 rounds. OWASP Password Storage Cheat Sheet asks for at least 2^10; passwords end at 72 bytes."""

CHEAPEST: Final = Argon2idProfile(memory_kib=8, iterations=1, lanes=1)
"""The least that RFC 9106 §3.1 allows. For tests only: it protects nothing."""


@dataclass(frozen=True, slots=True)
class _Argon2idHash:
    profile: Argon2idProfile
    salt: bytes = field(repr=False)
    tag: bytes = field(repr=False)

    def matches(self, secret: bytes) -> bool:
        try:
            _argon2id(self.profile, self.salt, len(self.tag)).verify(secret, self.tag)
        except InvalidKey:
            return False
        return True


@dataclass(frozen=True, slots=True)
class _BcryptHash:
    profile: BcryptProfile
    text: bytes = field(repr=False)

    def matches(self, secret: bytes) -> bool:
        import bcrypt  # noqa: PLC0415 - optional, and loaded for this algorithm alone

        # Cutting at 72 bytes would let in whoever knows the beginning; refusing at once would tell the length by time.
        too_long = len(secret) > BCRYPT_MAX_PASSWORD_BYTES
        holds = bcrypt.checkpw(b"" if too_long else secret, self.text)
        return holds and not too_long


_Hash: TypeAlias = _Argon2idHash | _BcryptHash


class PasswordHasher:
    """Makes and checks password hashes at the cost of one profile.

    Any hash that it can read is checked, whatever its own cost; ``needs_rehash`` says which to replace after a sign-in.
    Until then a check against an older hash takes that hash's time and not the profile's. Safe to share by threads.
    """

    def __init__(self, profile: Profile = OWASP) -> None:
        """Raises ``StartRefused`` for a profile out of bounds (256 MiB, 1 GiB × passes, bcrypt cost 15)."""
        if not profile.is_bounded:
            raise errors.StartRefused("password hash parameters are out of bounds")
        self.profile: Final = profile
        self._decoy: Final = _decoy(profile)

    def __repr__(self) -> str:
        return f"PasswordHasher({self.profile!r})"

    @property
    def max_password_bytes(self) -> int | None:
        """The longest password in UTF-8 bytes that the algorithm hashes in full; ``None`` where there is no end."""
        return BCRYPT_MAX_PASSWORD_BYTES if isinstance(self.profile, BcryptProfile) else None

    def hash(self, password: str) -> str:
        """A new hash under a random salt: a PHC string for argon2id, ``$2b$`` for bcrypt.

        Raises ``InputError`` for text that is not Unicode, ``PasswordTooLong`` beyond what can be hashed in full. When
        that happens while an existing hash is replaced (``needs_rehash``), keep the old one: the password is right.
        """
        secret = normalise(password).encode()
        if isinstance(self.profile, Argon2idProfile):
            return _argon2id(self.profile, os.urandom(SALT_BYTES), TAG_BYTES).derive_phc_encoded(secret)
        if len(secret) > BCRYPT_MAX_PASSWORD_BYTES:  # bcrypt ignores the rest: two passwords would open one account
            raise errors.PasswordTooLong("password", "more than 72 bytes")
        import bcrypt  # noqa: PLC0415 - optional, and loaded for this algorithm alone

        return bcrypt.hashpw(secret, bcrypt.gensalt(self.profile.cost_log2)).decode("ascii")

    def verify(self, password: str, stored: str) -> None:
        """Returns when ``password`` made ``stored``. Raises ``WrongCredentials`` and nothing else when it did not.

        What cannot be read or is too costly to compute is refused after the decoy's work, so that time tells nothing;
        the detail then says "unknown hash format".
        """
        secret = _secret(password)
        known = _parse(stored)
        holds = (known or self._decoy).matches(b"" if secret is None else secret)
        if known is None:
            raise errors.WrongCredentials("unknown hash format")
        if secret is None or not holds:
            raise errors.WrongCredentials("wrong password")

    def verify_decoy(self, password: str) -> NoReturn:
        """The work of a ``verify`` for an account that does not exist; always raises ``WrongCredentials``."""
        self._decoy.matches(_secret(password) or b"")
        raise errors.WrongCredentials("no account to check against")

    def needs_rehash(self, stored: str) -> bool:
        """Whether a hash that has just been verified should be replaced by one of this profile.

        True for another algorithm, weaker parameters, a shorter salt or tag. Stronger parameters are left alone.
        """
        known = _parse(stored)
        if isinstance(known, _Argon2idHash) and isinstance(self.profile, Argon2idProfile):
            short = len(known.salt) < SALT_BYTES or len(known.tag) < TAG_BYTES
            return short or known.profile.is_weaker_than(self.profile)
        if isinstance(known, _BcryptHash) and isinstance(self.profile, BcryptProfile):
            return known.profile.cost_log2 < self.profile.cost_log2
        return True


def normalise(password: str, *, field: str = "password") -> str:
    """The password in NFC, as it is hashed: one keyboard sends ``é`` as one code point, another as two.

    NFC and no more (NIST SP 800-63B-4 §3.1.1.2): no trimming, no case folding. Raises ``PasswordTooLong`` beyond 1024
    code points and ``InputError`` for a lone surrogate, both naming ``field``.
    """
    if len(password) > MAX_RAW_CODE_POINTS:
        raise errors.PasswordTooLong(field, "too long to normalise")
    if _SURROGATE.search(password):  # asked first: an error of encode() would carry the password with it
        raise errors.InputError(field, "lone surrogate")
    return unicodedata.normalize("NFC", password)


def _secret(password: str) -> bytes | None:
    """The bytes to hash, or ``None`` for a text that no account's password can be."""
    try:
        return normalise(password).encode()
    except errors.InputError:
        return None


def _argon2id(profile: Argon2idProfile, salt: bytes, tag_bytes: int) -> Argon2id:
    return Argon2id(
        salt=salt,
        length=tag_bytes,
        iterations=profile.iterations,
        lanes=profile.lanes,
        memory_cost=profile.memory_kib,
    )


def _decoy(profile: Profile) -> _Hash:
    """A hash of no known password. A random tag costs nothing to make, so the first stranger waits no longer either."""
    if isinstance(profile, Argon2idProfile):
        return _Argon2idHash(profile, os.urandom(SALT_BYTES), os.urandom(TAG_BYTES))
    import bcrypt  # noqa: PLC0415 - optional, and loaded for this algorithm alone

    tag = "".join(secrets.choice(_BCRYPT_ALPHABET) for _ in range(31))
    return _BcryptHash(profile, bcrypt.gensalt(profile.cost_log2) + tag.encode("ascii"))


def _parse(stored: str) -> _Hash | None:
    """The one reader of stored hashes; ``None`` for another format, a second spelling or costs out of bounds."""
    if match := _ARGON2ID.fullmatch(stored):
        memory_kib, iterations, lanes = (int(digits) for digits in match.group(1, 2, 3))
        argon2id = Argon2idProfile(memory_kib=memory_kib, iterations=iterations, lanes=lanes)
        salt, tag = _base64(match[4]), _base64(match[5])
        if argon2id.is_bounded and salt is not None and tag is not None:
            return _Argon2idHash(argon2id, salt, tag)
    elif match := _BCRYPT.fullmatch(stored):
        bcrypt = BcryptProfile(cost_log2=int(match[1]))
        if bcrypt.is_bounded:
            return _BcryptHash(bcrypt, stored.encode("ascii"))
    return None


def _base64(text: str) -> bytes | None:
    """Base64 as PHC strings have it: no padding, unused bits zero."""
    if len(text) % 4 == 1:
        return None
    data = b64decode(text + "=" * (-len(text) % 4))
    return data if b64encode(data).rstrip(b"=") == text.encode("ascii") else None
