"""The ground: tokens and keys. Pure: no I/O, no await, no framework; time is a parameter."""

from sekisho.tokens import access, jws, refresh
from sekisho.tokens.keyring import Keyring, KeySet

__all__ = ["KeySet", "Keyring", "access", "jws", "refresh"]
