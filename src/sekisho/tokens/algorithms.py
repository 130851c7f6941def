"""The four signature algorithms (RFC 7518 §3, RFC 8037), each as key material that can do that one thing.

The type of the material decides the algorithm; nothing here takes an algorithm's name from a token. There is no
``none``, and no way to turn a public key of any encoding into an HMAC secret: bytes become a secret only through a
JWK of ``kty`` ``oct`` (RFC 8725 §3.1). Material has no readable repr and cannot be pickled.
"""

import hmac
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, NoReturn, Protocol, TypeAlias, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hmac import HMAC
from pybase64 import b64encode_as_string

from sekisho.errors import KeyRefused, TokenSignatureInvalid
from sekisho.tokens.jwk import P256_BYTES, coordinate, coordinate_text, integer, integer_text, octets
from sekisho.tokens.weak_keys import (
    HMAC_MIN_BYTES,
    RSA_EXPONENT,
    refuse_public_key,
    refuse_weak_modulus,
    refuse_weak_point,
    refuse_weak_secret,
)
from sekisho.wire import BASE64URL, WireError, b64url_decode, b64url_encode

AlgorithmName: TypeAlias = Literal["HS256", "EdDSA", "ES256", "RS256"]
ALGORITHMS: Final[tuple[AlgorithmName, ...]] = get_args(AlgorithmName)

_RSA_NEW_BITS: Final = 3072
_MAC_CHARS: Final = 43  # 32 bytes in base64url
_SHA256: Final = hashes.SHA256()
_ECDSA: Final = ec.ECDSA(_SHA256)
_PKCS1: Final = padding.PKCS1v15()


class Material(Protocol):
    """Key bytes, parsed once, that sign or check by one algorithm."""

    alg: ClassVar[AlgorithmName]
    header_algs: ClassVar[frozenset[str]]

    @property
    def can_sign(self) -> bool:
        """Whether the private part is here."""
        ...

    def sign(self, message: bytes) -> bytes:
        """The signature in JWS form. Raises ``KeyRefused`` when only the public part is here."""
        ...

    def verify(self, message: bytes, signature: str) -> None:
        """Raises ``TokenSignatureInvalid`` unless ``signature``, in base64url, is this key's over ``message``."""
        ...

    def public_members(self) -> dict[str, str]:
        """The JWK members that everyone may see; the required ones of RFC 7638 §3.2 and no others."""
        ...

    def private_members(self) -> dict[str, str]:
        """The JWK members that must stay secret."""
        ...


class _Secretive:
    """Neither repr nor pickle shows key bytes: both end up in logs and caches."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")


class Hs256(_Secretive):
    """HMAC with SHA-256 (RFC 7518 §3.2)."""

    __slots__ = ("_keyed", "_secret")
    alg: ClassVar[AlgorithmName] = "HS256"
    header_algs: ClassVar[frozenset[str]] = frozenset({"HS256"})

    def __init__(self, secret: bytes) -> None:
        refuse_weak_secret(secret)
        refuse_public_key(secret)
        self._secret = secret
        self._keyed = HMAC(secret, _SHA256)

    @classmethod
    def generate(cls) -> "Hs256":
        return cls(secrets.token_bytes(HMAC_MIN_BYTES))

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> "Hs256":
        """From a JWK with ``kty`` ``oct`` (RFC 7518 §6.4)."""
        return cls(octets(jwk, "k"))

    @property
    def can_sign(self) -> bool:
        return True

    @property
    def secret(self) -> bytes:
        """The raw bytes, for deriving keys by HKDF."""
        return self._secret

    def sign(self, message: bytes) -> bytes:
        # A copy of a state that has taken in the key already: half the time of a MAC from the beginning.
        mac = self._keyed.copy()
        mac.update(message)
        return mac.finalize()

    def verify(self, message: bytes, signature: str) -> None:
        if len(signature) != _MAC_CHARS:
            raise TokenSignatureInvalid
        mac = self._keyed.copy()
        mac.update(message)
        # Text with text, in constant time: nothing of the sender's is decoded, and one spelling counts. Our padding
        # stays on; to take it off, as b64url_encode does, costs more than to put it to theirs.
        if not hmac.compare_digest(b64encode_as_string(mac.finalize(), BASE64URL), signature + "="):
            raise TokenSignatureInvalid

    def public_members(self) -> dict[str, str]:
        return {"kty": "oct"}

    def private_members(self) -> dict[str, str]:
        return {"k": b64url_encode(self._secret)}


class EdDsa(_Secretive):
    """Ed25519 (RFC 8037 §3.1). The header may say ``EdDSA`` or, as RFC 9864 wants it, ``Ed25519``."""

    __slots__ = ("_private", "_public")
    alg: ClassVar[AlgorithmName] = "EdDSA"
    header_algs: ClassVar[frozenset[str]] = frozenset({"EdDSA", "Ed25519"})

    def __init__(self, public: ed25519.Ed25519PublicKey, private: ed25519.Ed25519PrivateKey | None = None) -> None:
        self._public = public
        self._private = private

    @classmethod
    def generate(cls) -> "EdDsa":
        private = ed25519.Ed25519PrivateKey.generate()
        return cls(private.public_key(), private)

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> "EdDsa":
        """From a JWK with ``kty`` ``OKP`` and ``crv`` ``Ed25519`` (RFC 8037 §2)."""
        x = octets(jwk, "x")
        refuse_weak_point(x)
        public = ed25519.Ed25519PublicKey.from_public_bytes(x)
        if "d" not in jwk:
            return cls(public)
        private = ed25519.Ed25519PrivateKey.from_private_bytes(octets(jwk, "d"))
        if private.public_key().public_bytes_raw() != x:
            raise KeyRefused("the private and the public part do not belong together")
        return cls(public, private)

    @property
    def can_sign(self) -> bool:
        return self._private is not None

    def sign(self, message: bytes) -> bytes:
        signature: bytes = _private(self._private).sign(message)
        return signature

    def verify(self, message: bytes, signature: str) -> None:
        try:
            self._public.verify(_signature_bytes(signature), message)
        except InvalidSignature:
            raise TokenSignatureInvalid from None

    def public_members(self) -> dict[str, str]:
        return {"kty": "OKP", "crv": "Ed25519", "x": b64url_encode(self._public.public_bytes_raw())}

    def private_members(self) -> dict[str, str]:
        return {"d": b64url_encode(_private(self._private).private_bytes_raw())}


class Es256(_Secretive):
    """ECDSA on P-256 with SHA-256 (RFC 7518 §3.4); the signature is r ‖ s, exactly 64 bytes."""

    __slots__ = ("_private", "_public")
    alg: ClassVar[AlgorithmName] = "ES256"
    header_algs: ClassVar[frozenset[str]] = frozenset({"ES256"})

    def __init__(self, public: ec.EllipticCurvePublicKey, private: ec.EllipticCurvePrivateKey | None = None) -> None:
        self._public = public
        self._private = private

    @classmethod
    def generate(cls) -> "Es256":
        private = ec.generate_private_key(ec.SECP256R1())
        return cls(private.public_key(), private)

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> "Es256":
        """From a JWK with ``kty`` ``EC`` and ``crv`` ``P-256`` (RFC 7518 §6.2). A point off the curve is refused."""
        numbers = ec.EllipticCurvePublicNumbers(coordinate(jwk, "x"), coordinate(jwk, "y"), ec.SECP256R1())
        if "d" not in jwk:
            return cls(numbers.public_key())
        private = ec.derive_private_key(coordinate(jwk, "d"), ec.SECP256R1())
        if private.public_key().public_numbers() != numbers:
            raise KeyRefused("the private and the public part do not belong together")
        return cls(private.public_key(), private)

    @property
    def can_sign(self) -> bool:
        return self._private is not None

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(_private(self._private).sign(message, _ECDSA))
        return r.to_bytes(P256_BYTES, "big") + s.to_bytes(P256_BYTES, "big")

    def verify(self, message: bytes, signature: str) -> None:
        raw = _signature_bytes(signature)
        if len(raw) != 2 * P256_BYTES:
            raise TokenSignatureInvalid
        r, s = int.from_bytes(raw[:P256_BYTES], "big"), int.from_bytes(raw[P256_BYTES:], "big")
        try:
            self._public.verify(encode_dss_signature(r, s), message, _ECDSA)
        except InvalidSignature:
            raise TokenSignatureInvalid from None

    def public_members(self) -> dict[str, str]:
        numbers = self._public.public_numbers()
        return {"kty": "EC", "crv": "P-256", "x": coordinate_text(numbers.x), "y": coordinate_text(numbers.y)}

    def private_members(self) -> dict[str, str]:
        return {"d": coordinate_text(_private(self._private).private_numbers().private_value)}


class Rs256(_Secretive):
    """RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518 §3.3), at least 2048 bits and e = 65537."""

    __slots__ = ("_private", "_public")
    alg: ClassVar[AlgorithmName] = "RS256"
    header_algs: ClassVar[frozenset[str]] = frozenset({"RS256"})

    def __init__(self, public: rsa.RSAPublicKey, private: rsa.RSAPrivateKey | None = None) -> None:
        numbers = public.public_numbers()
        refuse_weak_modulus(numbers.n, numbers.e)
        self._public = public
        self._private = private

    @classmethod
    def generate(cls) -> "Rs256":
        """A new key pair of 3072 bits (NIST SP 800-57: good beyond 2030)."""
        private = rsa.generate_private_key(public_exponent=RSA_EXPONENT, key_size=_RSA_NEW_BITS)
        return cls(private.public_key(), private)

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> "Rs256":
        """From a JWK with ``kty`` ``RSA`` (RFC 7518 §6.3); a private one needs all of p, q, dp, dq and qi."""
        numbers = rsa.RSAPublicNumbers(e=integer(jwk, "e"), n=integer(jwk, "n"))
        if "d" not in jwk:
            return cls(numbers.public_key())
        p, q, d, dp, dq, qi = (integer(jwk, name) for name in ("p", "q", "d", "dp", "dq", "qi"))
        private = rsa.RSAPrivateNumbers(p=p, q=q, d=d, dmp1=dp, dmq1=dq, iqmp=qi, public_numbers=numbers).private_key()
        return cls(private.public_key(), private)

    @property
    def can_sign(self) -> bool:
        return self._private is not None

    def sign(self, message: bytes) -> bytes:
        signature: bytes = _private(self._private).sign(message, _PKCS1, _SHA256)
        return signature

    def verify(self, message: bytes, signature: str) -> None:
        try:
            self._public.verify(_signature_bytes(signature), message, _PKCS1, _SHA256)
        except InvalidSignature:
            raise TokenSignatureInvalid from None

    def public_members(self) -> dict[str, str]:
        numbers = self._public.public_numbers()
        return {"kty": "RSA", "n": integer_text(numbers.n), "e": integer_text(numbers.e)}

    def private_members(self) -> dict[str, str]:
        numbers = _private(self._private).private_numbers()
        named = {"d": numbers.d, "p": numbers.p, "q": numbers.q, "dp": numbers.dmp1, "dq": numbers.dmq1}
        return {name: integer_text(value) for name, value in {**named, "qi": numbers.iqmp}.items()}


_BY_ALG: Final[dict[AlgorithmName, type[Hs256 | EdDsa | Es256 | Rs256]]] = {
    kind.alg: kind for kind in (Hs256, EdDsa, Es256, Rs256)
}
_ALG_OF_KEY_TYPE: Final[dict[tuple[str, str | None], AlgorithmName]] = {
    ("oct", None): "HS256",
    ("OKP", "Ed25519"): "EdDSA",
    ("EC", "P-256"): "ES256",
    ("RSA", None): "RS256",
}


def generate(alg: AlgorithmName) -> Material:
    """New material from the system's random source."""
    return _BY_ALG[alg].generate()


def from_jwk(jwk: Mapping[str, Any]) -> Material:
    """The material of a JWK (RFC 7517). ``kty`` and ``crv`` decide the algorithm; ``alg``, if there, must agree.

    Raises ``KeyRefused``; its text never quotes key bytes.
    """
    kty, crv = jwk.get("kty"), jwk.get("crv")
    alg = _ALG_OF_KEY_TYPE.get((kty, crv)) if isinstance(kty, str) and isinstance(crv, str | None) else None
    if alg is None:
        raise KeyRefused("kty and crv are none of oct, OKP with Ed25519, EC with P-256, RSA")
    kind = _BY_ALG[alg]
    if "alg" in jwk and not (isinstance(jwk["alg"], str) and jwk["alg"] in kind.header_algs):
        raise KeyRefused(f"alg does not fit a key for {alg}")
    try:
        return kind.from_jwk(jwk)
    except (WireError, ValueError, TypeError, OverflowError):
        # The cause is dropped: a library's message may quote the number it did not like.
        raise KeyRefused(f"the key bytes are not a valid key for {alg}") from None


def _private(key: Any) -> Any:
    if key is None:
        raise KeyRefused("only the public part of this key is here")
    return key


def _signature_bytes(text: str) -> bytes:
    try:
        return b64url_decode(text)
    except WireError:
        raise TokenSignatureInvalid from None
