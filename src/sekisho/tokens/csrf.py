"""CSRF tokens: what a page of ours knows about a cookie that no page of anybody else can read.

    token = base64url(salt ‖ HMAC-SHA256(K, label ‖ length of kind ‖ kind ‖ length of cookie ‖ cookie ‖ salt))

K is a key of the purpose ``csrf``, the cookie is the session's own or, before the login, a random one, and ``kind``
says which. So a token is worth nothing without the cookie, one session's is no other's, and checking needs no look-up.
The salt makes each a new one: a page that is compressed beside a stranger's words does not give one away (BREACH).
"""

import hmac
import os
import struct
from collections.abc import Iterable
from typing import Final, Literal, NoReturn, TypeAlias

from sekisho.errors import KeyRefused
from sekisho.tokens.algorithms import Hs256
from sekisho.tokens.keys import Key
from sekisho.wire import WireError, b64url_decode, b64url_encode

BoundTo: TypeAlias = Literal["session", "visitor"]

_LABEL: Final = b"sekisho csrf v1"
_SALT_BYTES: Final = 16
_MAC_BYTES: Final = 32
_TOKEN_CHARS: Final = (_SALT_BYTES + _MAC_BYTES) // 3 * 4
_LENGTH: Final = struct.Struct(">I")


class CsrfKeys:
    """The CSRF keys of a key set."""

    __slots__ = ("_active", "_used")

    def __init__(self, active: Key, used: Iterable[Key]) -> None:
        """``active`` makes tokens; every key of ``used`` (all but the retired) checks them. Raises ``KeyRefused``."""
        self._active = _secret(active)
        self._used = [_secret(key) for key in used]

    def make(self, kind: BoundTo, cookie: str) -> str:
        """A token for whoever has this cookie."""
        salt = os.urandom(_SALT_BYTES)
        return b64url_encode(salt + self._active.sign(_message(kind, cookie, salt)))

    def holds(self, token: str, kind: BoundTo, cookie: str) -> bool:
        """Whether the token was made for this cookie, of this kind."""
        if len(token) != _TOKEN_CHARS:
            return False
        try:
            data = b64url_decode(token)
        except WireError:
            return False
        message = _message(kind, cookie, data[:_SALT_BYTES])
        return any(hmac.compare_digest(key.sign(message), data[_SALT_BYTES:]) for key in self._used)

    def __repr__(self) -> str:
        return "<CsrfKeys>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")


def _secret(key: Key) -> Hs256:
    if key.purpose != "csrf" or not isinstance(key.material, Hs256):
        raise KeyRefused(f"key {key.kid} is not a CSRF key")
    return key.material


def _message(kind: BoundTo, cookie: str, salt: bytes) -> bytes:
    """With lengths, so that no two cookies and kinds run together to the same bytes."""
    parts = [kind.encode("ascii"), cookie.encode("utf-8", "surrogatepass")]
    return _LABEL + b"".join(_LENGTH.pack(len(part)) + part for part in parts) + salt
