"""Keys together: a ``Keyring`` checks signatures, a ``KeySet`` is what the issuer keeps in its key source."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from sekisho.errors import KeyRefused, TokenHeaderRefused, TokenKeyUnknown, TokenRevoked
from sekisho.tokens.algorithms import AlgorithmName, Hs256
from sekisho.tokens.jwk import raw_public_keys
from sekisho.tokens.keys import PURPOSES, USED, Key, Purpose, State, generate_key, stored_key, verification_key
from sekisho.wire import WireError, json_object

_JWK_MAX_STRING: Final = 65_536  # a certificate (x5c), which is not read, must not cost the set
_HEADERS_MAX: Final = 64  # an issuer that writes its headers in endless ways must not fill the memory


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a JWS header says. ``strict_kid``: there is a kid, of 1 to 64 letters, digits, - and _ alone."""

    key: Key
    media_type: str
    strict_kid: bool


class Keyring:
    """The keys that one issuer signs with, ready to check signatures. Every key was parsed at load; none comes later.

    ``headers`` are the texts of headers that stood over a signature that held: an issuer writes a handful, and reading
    them again would tell nothing new. No header longer than ``max_header_chars`` can name one of these keys.
    """

    __slots__ = ("_by_kid", "_unnamed", "_withdrawn", "headers", "max_header_chars", "refused")

    def __init__(
        self, keys: Iterable[Key], *, refused: Iterable[str] = (), withdrawn: frozenset[str] = frozenset()
    ) -> None:
        """``withdrawn`` are the kids of keys that leaked: a token that names one is refused as revoked.

        Raises ``KeyRefused`` when two keys have the same kid, since which one would check is anyone's guess, and when
        a secret is one of the public keys, or when a key is for something else than signing.
        """
        self._by_kid: dict[str, Key] = {}
        self._unnamed: list[Key] = []
        for key in keys:
            if key.kid in self._by_kid:
                raise KeyRefused(f"two keys have the kid {key.kid!a}")
            if key.purpose != "sign":
                raise KeyRefused(f"key {key.kid!a} is for {key.purpose}, and checks no signatures")
            if key.kid:
                self._by_kid[key.kid] = key
            else:
                self._unnamed.append(key)
        public = {raw for key in self.keys for raw in raw_public_keys(key.material.public_members())}
        if any(isinstance(key.material, Hs256) and key.material.secret in public for key in self.keys):
            raise KeyRefused("an HMAC secret is a public key of the same set")
        self._withdrawn = withdrawn
        self.headers: dict[str, Header] = {}
        # A character of a kid takes 12 at most (two \\uXXXX), alg, typ and some space the rest; base64 makes 4 of 3.
        self.max_header_chars = (max((len(key.kid) for key in self.keys), default=0) * 12 + 256) * 4 // 3
        self.refused = tuple(refused)

    @classmethod
    def from_jwks(cls, jwks: Mapping[str, Any] | str) -> "Keyring":
        """From a JWK Set (RFC 7517 §5), as a mapping or as JSON.

        A single bad key does not drop the set: it is left out, and ``refused`` says why. Raises ``KeyRefused`` when
        the set is not one, or when no key of it can be used.
        """
        entries = _entries(jwks)
        keys, refused = [], []
        for number, jwk in enumerate(entries):
            try:
                keys.append(verification_key(_object(jwk)))
            except KeyRefused as error:
                refused.append(f"key number {number + 1}: {error.detail}")
        if entries and not keys:
            raise KeyRefused(f"no key of the set can be used: {'; '.join(refused)}")
        return cls(keys, refused=refused)

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys, in the order in which they were given."""
        return (*self._by_kid.values(), *self._unnamed)

    @property
    def has_shared_secret(self) -> bool:
        """Whether someone who holds this ring could also sign."""
        return any(key.is_shared_secret for key in self.keys)

    def find(self, *, kid: str | None, alg: object) -> Key:
        """The key that a header names. The key comes first and decides; the header's ``alg`` must agree with it.

        Without a kid the ring must hold exactly one key of that algorithm. Raises ``TokenKeyUnknown``,
        ``TokenRevoked`` and ``TokenHeaderRefused``.
        """
        if kid is None:
            fitting = [key for key in self.keys if isinstance(alg, str) and alg in key.material.header_algs]
            if len(fitting) != 1:
                raise TokenKeyUnknown("no kid, and not exactly one key of this algorithm")
            return fitting[0]
        key = self._by_kid.get(kid)
        if key is None:
            if kid in self._withdrawn:
                raise TokenRevoked("the key was withdrawn")
            raise TokenKeyUnknown("the kid names no key of this ring")
        if not isinstance(alg, str) or alg not in key.material.header_algs:
            raise TokenHeaderRefused("the header's alg is not the key's")
        return key

    def learn(self, text: str, header: Header) -> None:
        """From now on this header is known by its text. Only for one that the signature of its key covers."""
        if len(self.headers) < _HEADERS_MAX:
            self.headers[text] = header

    def without(self, withdrawn: frozenset[str]) -> "Keyring":
        """The ring that is left when these keys, named by their kids, are taken out for good."""
        keys = (key for key in self.keys if key.kid not in withdrawn)
        return Keyring(keys, refused=self.refused, withdrawn=self._withdrawn | withdrawn)

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(repr(key) for key in self.keys)}>"


class KeySet:
    """All keys of an issuer: each purpose has one active key, and may have next, verify-only and retired ones.

    Immutable: every change gives a new set. What a key source stores is ``to_json()``.
    """

    __slots__ = ("keyring", "keys")

    def __init__(self, keys: Iterable[Key]) -> None:
        """Raises ``KeyRefused`` when a kid comes twice or a purpose has not exactly one active key."""
        self.keys = tuple(keys)
        if len({key.kid for key in self.keys}) != len(self.keys):
            raise KeyRefused("two keys have the same kid")
        if len({key.material.private_members().get("k", key.kid) for key in self.keys}) != len(self.keys):
            raise KeyRefused("two keys have the same secret: each purpose needs a key of its own")
        for purpose in PURPOSES:
            active = [key.kid for key in self.keys if key.purpose == purpose and key.state == "active"]
            if len(active) != 1:
                raise KeyRefused(f"purpose {purpose} needs exactly one active key, not {len(active)}")
        self.keyring = Keyring(self.used("sign"))

    @classmethod
    def generate(cls, alg: AlgorithmName, *, now: int) -> "KeySet":
        """A first set: one active key for each purpose."""
        made = [generate_key(alg, purpose="sign", state="active", now=now)]
        made += [generate_key("HS256", purpose=purpose, state="active", now=now) for purpose in PURPOSES[1:]]
        return cls(made)

    @classmethod
    def from_json(cls, document: bytes, *, known: "KeySet | None" = None) -> "KeySet":
        """From what a key source stored. ``known``: the set before it, whose keys need not be read again.

        Raises ``KeyRefused``, naming the key by its kid and never its bytes.
        """
        by_kid = {} if known is None else {key.kid: key for key in known.keys}
        return cls([stored_key(_object(jwk), by_kid) for jwk in _entries(document)])

    def to_json(self) -> bytes:
        """The JWK Set for the key source, secrets included."""
        return json.dumps({"keys": [key.private_jwk() for key in self.keys]}, indent=2).encode("ascii") + b"\n"

    def public_jwks(self) -> dict[str, list[dict[str, str]]]:
        """The JWK Set for everyone: asymmetric signing keys in use, public members only."""
        return {"keys": [key.public_jwk() for key in self.used("sign") if not key.is_shared_secret]}

    def active(self, purpose: Purpose) -> Key:
        """The key that signs."""
        return next(key for key in self.keys if key.purpose == purpose and key.state == "active")

    def next(self, purpose: Purpose) -> Key | None:
        """The key that is published and waits to sign, if there is one."""
        return next((key for key in self.keys if key.purpose == purpose and key.state == "next"), None)

    def used(self, purpose: Purpose) -> tuple[Key, ...]:
        """The keys that check: all but the retired."""
        return tuple(key for key in self.keys if key.purpose == purpose and key.state in USED)

    def find(self, kid: str) -> Key:
        """The key with this kid. Raises ``KeyRefused``."""
        for key in self.keys:
            if key.kid == kid:
                return key
        raise KeyRefused(f"there is no key {kid}")

    def with_next(self, purpose: Purpose, alg: AlgorithmName, *, now: int) -> tuple["KeySet", Key]:
        """One more key, published but not signing yet, so that every verifier knows it before it signs."""
        waiting = self.next(purpose)
        if waiting is not None:
            raise KeyRefused(f"purpose {purpose} has a next key already: {waiting.kid}")
        key = generate_key(alg, purpose=purpose, state="next", now=now)
        return KeySet([*self.keys, key]), key

    def promoted(self, purpose: Purpose, *, now: int) -> tuple["KeySet", Key]:
        """*next* becomes *active*, and the active key *verify_only*."""
        waiting = self.next(purpose)
        if waiting is None:
            raise KeyRefused(f"purpose {purpose} has no next key")
        new_state: dict[str, State] = {self.active(purpose).kid: "verify_only", waiting.kid: "active"}
        return self._with_states(new_state, now=now), waiting.in_state("active", now=now)

    def retired(self, kid: str, *, now: int) -> "KeySet":
        """The key is no longer used. The active key cannot be retired: something must sign."""
        key = self.find(kid)
        if key.state == "active":
            raise KeyRefused(f"key {kid} is active: rotate first, then retire it (--now does both)")
        return self._with_states({kid: "retired"}, now=now)

    def _with_states(self, new_state: Mapping[str, State], *, now: int) -> "KeySet":
        return KeySet(key.in_state(new_state[key.kid], now=now) if key.kid in new_state else key for key in self.keys)

    def __repr__(self) -> str:
        return f"<KeySet {', '.join(repr(key) for key in self.keys)}>"


def _entries(jwks: Mapping[str, Any] | str | bytes) -> list[Any]:
    if isinstance(jwks, str | bytes):
        try:
            data = jwks.encode("utf-8") if isinstance(jwks, str) else jwks
            jwks = json_object(data, max_string=_JWK_MAX_STRING)
        except (WireError, UnicodeEncodeError):
            raise KeyRefused("the key set is not valid JSON") from None
    entries = jwks.get("keys") if isinstance(jwks, Mapping) else None
    if not isinstance(entries, list):
        raise KeyRefused("the key set has no list of keys")
    return entries


def _object(entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise KeyRefused("a key is not a JSON object")
    return entry
