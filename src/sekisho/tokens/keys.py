"""One key: its material, the one purpose it serves, and where it stands in its life."""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NoReturn, TypeAlias, get_args

from sekisho.errors import KeyRefused
from sekisho.tokens import algorithms
from sekisho.tokens.algorithms import AlgorithmName, Material
from sekisho.wire import MAX_NUMERIC_DATE, b64url_encode

Purpose: TypeAlias = Literal["sign", "refresh", "csrf"]
"""What a key is for. Keys of different purposes are separate random keys, never derived from one another."""

State: TypeAlias = Literal["next", "active", "verify_only", "retired"]
"""*next* is published but does not sign yet; *verify_only* no longer signs; *retired* is not used at all."""

PURPOSES: Final[tuple[Purpose, ...]] = get_args(Purpose)
STATES: Final[tuple[State, ...]] = get_args(State)
USED: Final[tuple[State, ...]] = ("next", "active", "verify_only")

KID_MAX_CHARS: Final = 256
STRICT_KID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@dataclass(frozen=True, repr=False)
class Key:
    """A key with one algorithm and one purpose. ``created_at`` and ``state_since`` are NumericDate seconds."""

    kid: str
    material: Material
    purpose: Purpose = "sign"
    state: State = "active"
    created_at: int = 0
    state_since: int = 0

    @property
    def alg(self) -> AlgorithmName:
        """The algorithm, which the material decides."""
        return self.material.alg

    @property
    def is_shared_secret(self) -> bool:
        """Whoever can check with such a key can also sign with it."""
        return self.alg == "HS256"

    def in_state(self, state: State, *, now: int) -> "Key":
        """The same key in another state since ``now``."""
        return replace(self, state=state, state_since=now)

    def public_jwk(self) -> dict[str, str]:
        """For publication: public members, ``use``, ``alg`` and ``kid`` (RFC 7517 §4)."""
        if self.is_shared_secret:
            raise KeyRefused(f"key {self.kid} is a shared secret and is never published")
        return {**self.material.public_members(), "use": "sig", "alg": self.alg, "kid": self.kid}

    def private_jwk(self) -> dict[str, Any]:
        """For the key source: everything, with Sekisho's own members."""
        return {
            **self.material.public_members(),
            **self.material.private_members(),
            "kid": self.kid,
            "alg": self.alg,
            "purpose": self.purpose,
            "state": self.state,
            "created_at": self.created_at,
            "state_since": self.state_since,
        }

    def __repr__(self) -> str:
        return f"<Key {self.kid} {self.alg} {self.purpose} {self.state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")


def generate_key(alg: AlgorithmName, *, purpose: Purpose, state: State, now: int) -> Key:
    """A new random key. The kid is the thumbprint, or random where a thumbprint would be a hash of the secret.

    Raises ``KeyRefused`` for a refresh or CSRF key that is not HS256.
    """
    if purpose != "sign" and alg != "HS256":
        raise KeyRefused(f"a {purpose} key is an HS256 key")
    while True:
        material = algorithms.generate(alg)
        kid = secrets.token_hex(8) if alg == "HS256" else thumbprint(material.public_members())
        if not kid.startswith("-"):  # it is typed on command lines, where a leading dash reads as an option
            return Key(kid, material, purpose, state, created_at=now, state_since=now)


def thumbprint(public_members: Mapping[str, str]) -> str:
    """base64url of the SHA-256 of the required members in canonical JSON (RFC 7638 §3)."""
    canonical = json.dumps(public_members, separators=(",", ":"), sort_keys=True)
    return b64url_encode(hashlib.sha256(canonical.encode("ascii")).digest())


def verification_key(jwk: Mapping[str, Any]) -> Key:
    """A key from someone's JWK Set, for checking signatures. ``use`` and ``key_ops`` bind it (RFC 7517 §4.2, §4.3).

    Without a ``kid`` an asymmetric key is named by its thumbprint and a secret by the empty string, which only a
    keyring's "the one key of this algorithm" rule can find. Raises ``KeyRefused``.
    """
    kid = jwk.get("kid", "")
    if not isinstance(kid, str) or len(kid) > KID_MAX_CHARS:
        raise KeyRefused("kid is not a text of at most 256 characters")
    if jwk.get("purpose") in ("refresh", "csrf") or jwk.get("state") == "retired":  # our own set, taken as it is
        raise KeyRefused("a key that is retired or not for signing")
    _refuse_other_uses(jwk)
    material = algorithms.from_jwk(jwk)
    if material.alg != "HS256" and material.can_sign:
        # Whoever checks has no use for private members; a set that holds them by mistake must not spread further.
        material = algorithms.from_jwk(material.public_members())
    if not kid and material.alg != "HS256":
        kid = thumbprint(material.public_members())
    return Key(kid, material)


def _refuse_other_uses(jwk: Mapping[str, Any]) -> None:
    if jwk.get("use", "sig") != "sig":
        raise KeyRefused("use is not sig")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise KeyRefused("key_ops does not allow verify")


def stored_key(jwk: Mapping[str, Any], known: Mapping[str, Key] | None = None) -> Key:
    """A key from Sekisho's own key set, with purpose, state and times. Raises ``KeyRefused``.

    ``known``: keys by their kids; the same material is taken over, for to read an RSA key takes some 90 ms.
    """
    kid = jwk.get("kid")
    if not isinstance(kid, str) or not STRICT_KID.fullmatch(kid):
        raise KeyRefused("a key has no kid of 1 to 64 letters, digits, - and _")
    try:
        purpose, state = jwk.get("purpose"), jwk.get("state")
        if purpose not in PURPOSES:
            raise KeyRefused("purpose is none of sign, refresh, csrf")  # noqa: TRY301 - the kid is added below
        if state not in STATES:
            raise KeyRefused("state is none of next, active, verify_only, retired")  # noqa: TRY301
        _refuse_other_uses(jwk)
        material = _same_material(jwk, (known or {}).get(kid)) or algorithms.from_jwk(jwk)
        if purpose != "sign" and material.alg != "HS256":
            raise KeyRefused(f"a {purpose} key is an oct key")  # noqa: TRY301
        if not material.can_sign:
            raise KeyRefused("the private part is missing")  # noqa: TRY301
        created_at, state_since = _date(jwk, "created_at"), _date(jwk, "state_since")
    except KeyRefused as error:
        raise KeyRefused(f"key {kid}: {error.detail}") from None
    return Key(kid, material, purpose, state, created_at, state_since)


def _same_material(jwk: Mapping[str, Any], known: Key | None) -> Material | None:
    if known is None or jwk.get("alg") != known.alg:
        return None
    members = {**known.material.public_members(), **known.material.private_members()}
    return known.material if all(jwk.get(name) == value for name, value in members.items()) else None


def _date(jwk: Mapping[str, Any], name: str) -> int:
    value = jwk.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_NUMERIC_DATE:
        raise KeyRefused(f"{name} is not a time in whole seconds")
    return value
