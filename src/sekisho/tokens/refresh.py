"""Refresh tokens: a position in a session's history, which the server can compute again and nobody else can.

    secret = HMAC-SHA256(K1, sid ‖ generation ‖ branch ‖ salt)        salt: 16 random bytes, only in the session's row
    tag    = first 16 bytes of HMAC-SHA256(K2, everything before it in the token)
    token  = "sekisho_rt_" + base64url(version ‖ length of kid ‖ kid ‖ sid ‖ generation ‖ branch ‖ secret ‖ tag)

K1 and K2 come from the refresh key by HKDF (RFC 5869). The tag is checked before any query, so garbage never reaches
the database and can end nobody's session; the secret is checked against the row's salt, so neither the keys alone nor
the database alone yield a token.
"""

import hmac
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple, NoReturn
from uuid import UUID

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sekisho.errors import KeyRefused, RefreshTokenInvalid
from sekisho.tokens.algorithms import Hs256
from sekisho.tokens.keys import Key
from sekisho.wire import WireError, b64url_decode, b64url_encode

PREFIX: Final = "sekisho_rt_"  # fixed, so that secret scanners recognise a leaked one
MAX_TOKEN_CHARS: Final = 256
SALT_BYTES: Final = 16
_VERSION: Final = 1
_POSITION: Final = struct.Struct(">16sQI")  # sid, generation (64 bit), branch (32 bit)
_SECRET_BYTES: Final = 32
_TAG_BYTES: Final = 16


class Position(NamedTuple):
    """A place in a session's history: generation, then branch. Positions compare in that order."""

    generation: int
    branch: int


class Presented(NamedTuple):
    """A refresh token whose tag holds: some refresh key of ours made it. Its secret is still to be checked."""

    session_id: UUID
    position: Position
    kid: str
    secret: bytes

    def __repr__(self) -> str:
        return f"<Presented {self.session_id} {self.position}>"  # the secret must not reach a log

    def __reduce__(self) -> NoReturn:
        raise TypeError("refresh tokens are not pickled")


class _Derived:
    """K1 and K2 of a refresh key; an object, so that a traceback with local variables does not show them."""

    __slots__ = ("_k1", "_k2")

    def __init__(self, key: Key) -> None:
        if key.purpose != "refresh" or not isinstance(key.material, Hs256):
            raise KeyRefused(f"key {key.kid} is not a refresh key")
        # Each with a label of its own (RFC 5869 §3.2).
        self._k1 = Hs256(_expand(key.material.secret, b"sekisho refresh secret v1"))
        self._k2 = Hs256(_expand(key.material.secret, b"sekisho refresh tag v1"))

    def secret(self, place_and_salt: bytes) -> bytes:
        return self._k1.sign(place_and_salt)

    def tag(self, body: bytes) -> bytes:
        return self._k2.sign(body)[:_TAG_BYTES]


class RefreshKeys:
    """The refresh keys of a key set, ready to make tokens and to read them."""

    __slots__ = ("_active", "_by_kid")

    def __init__(self, active: Key, used: Iterable[Key]) -> None:
        """``active`` makes tokens; every key of ``used`` (all but the retired) reads them."""
        self._by_kid = {key.kid: _Derived(key) for key in used}
        self._active = active.kid

    def make(self, session_id: UUID, position: Position, salt: bytes) -> str:
        """The token for this position, always the same for the same active key."""
        kid = self._active.encode("ascii")  # at most 64 characters: its length fits one byte
        derived = self._by_kid[self._active]
        place = _POSITION.pack(session_id.bytes, *position)
        body = bytes([_VERSION, len(kid)]) + kid + place + derived.secret(place + salt)
        return PREFIX + b64url_encode(body + derived.tag(body))

    def read(self, token: str) -> Presented:
        """Parses the token and checks its tag; no database is needed. Raises ``RefreshTokenInvalid``."""
        if len(token) > MAX_TOKEN_CHARS or not token.startswith(PREFIX):
            raise RefreshTokenInvalid("not a refresh token")
        try:
            data = b64url_decode(token[len(PREFIX) :])
        except WireError as error:
            raise RefreshTokenInvalid(str(error)) from None
        kid_end = 2 + (data[1] if len(data) > 1 else 0)
        if len(data) != kid_end + _POSITION.size + _SECRET_BYTES + _TAG_BYTES or data[0] != _VERSION:
            raise RefreshTokenInvalid("wrong length or version")
        kid = data[2:kid_end].decode("latin-1")
        derived = self._by_kid.get(kid)
        if derived is None:
            raise RefreshTokenInvalid("made with an unknown or retired key")
        body, tag = data[:-_TAG_BYTES], data[-_TAG_BYTES:]
        if not hmac.compare_digest(derived.tag(body), tag):
            raise RefreshTokenInvalid("the tag does not hold")
        sid, generation, branch = _POSITION.unpack_from(data, kid_end)
        return Presented(UUID(bytes=sid), Position(generation, branch), kid, body[-_SECRET_BYTES:])

    def check_secret(self, presented: Presented, salt: bytes) -> None:
        """Raises ``RefreshTokenInvalid`` unless the token was made with this row's salt."""
        derived = self._by_kid.get(presented.kid)
        if derived is None:  # it was read before the keys were loaded again, and its key was retired in between
            raise RefreshTokenInvalid("made with an unknown or retired key")
        place = _POSITION.pack(presented.session_id.bytes, *presented.position)
        if not hmac.compare_digest(derived.secret(place + salt), presented.secret):
            raise RefreshTokenInvalid("the secret does not hold")

    def __repr__(self) -> str:
        return f"<RefreshKeys {', '.join(self._by_kid)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")


def _expand(secret: bytes, label: bytes) -> bytes:
    return HKDF(hashes.SHA256(), length=32, salt=None, info=label).derive(secret)
