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

from sekisho.errors import KeyRefused, TokenSignatureInvalid
from sekisho.wire import WireError, b64url_decode, b64url_encode

AlgorithmName: TypeAlias = Literal["HS256", "EdDSA", "ES256", "RS256"]
ALGORITHMS: Final[tuple[AlgorithmName, ...]] = get_args(AlgorithmName)

_HMAC_MIN_BYTES: Final = 32  # RFC 7518 §3.2: at least the size of the hash output
_HMAC_MIN_DISTINCT_BYTES: Final = 12  # 32 random bytes have fewer with probability < 10^-13; "aaaa…" has one
_RSA_MIN_BITS: Final = 2048  # RFC 7518 §3.3
_RSA_MAX_BITS: Final = 8192  # a check takes time that grows with the square of the size
_RSA_NEW_BITS: Final = 3072
_RSA_EXPONENT: Final = 65537
_P256_BYTES: Final = 32
_ED25519_PRIME: Final = 2**255 - 19
_ED25519_ORDER_EIGHT_Y: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# The y of the eight points of small order: under such a key (a zeroed one, say) a signature that anyone can write down
# holds for every message or for one in a few.
_ED25519_SMALL_ORDER_Y: Final = frozenset(
    {0, 1, _ED25519_PRIME - 1, _ED25519_ORDER_EIGHT_Y, _ED25519_PRIME - _ED25519_ORDER_EIGHT_Y}
)


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

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raises ``TokenSignatureInvalid`` unless ``signature`` is this key's over ``message``."""
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

    __slots__ = ("_secret",)
    alg: ClassVar[AlgorithmName] = "HS256"
    header_algs: ClassVar[frozenset[str]] = frozenset({"HS256"})

    def __init__(self, secret: bytes) -> None:
        if len(secret) < _HMAC_MIN_BYTES:
            raise KeyRefused("an HMAC secret needs at least 32 bytes")
        if len(set(secret)) < _HMAC_MIN_DISTINCT_BYTES:
            raise KeyRefused("an HMAC secret must come from a random source")
        self._secret = secret

    @classmethod
    def generate(cls) -> "Hs256":
        return cls(secrets.token_bytes(_HMAC_MIN_BYTES))

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> "Hs256":
        """From a JWK with ``kty`` ``oct`` (RFC 7518 §6.4)."""
        return cls(_octets(jwk, "k"))

    @property
    def can_sign(self) -> bool:
        return True

    @property
    def secret(self) -> bytes:
        """The raw bytes, for deriving keys by HKDF."""
        return self._secret

    def sign(self, message: bytes) -> bytes:
        return hmac.digest(self._secret, message, "sha256")

    def verify(self, message: bytes, signature: bytes) -> None:
        if not hmac.compare_digest(hmac.digest(self._secret, message, "sha256"), signature):
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
        x = _octets(jwk, "x")
        if int.from_bytes(x, "little") % 2**255 % _ED25519_PRIME in _ED25519_SMALL_ORDER_Y:
            raise KeyRefused("the public part is a point of small order")
        public = ed25519.Ed25519PublicKey.from_public_bytes(x)
        if "d" not in jwk:
            return cls(public)
        private = ed25519.Ed25519PrivateKey.from_private_bytes(_octets(jwk, "d"))
        if private.public_key().public_bytes_raw() != x:
            raise KeyRefused("the private and the public part do not belong together")
        return cls(public, private)

    @property
    def can_sign(self) -> bool:
        return self._private is not None

    def sign(self, message: bytes) -> bytes:
        signature: bytes = _private(self._private).sign(message)
        return signature

    def verify(self, message: bytes, signature: bytes) -> None:
        try:
            self._public.verify(signature, message)
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
        numbers = ec.EllipticCurvePublicNumbers(_coordinate(jwk, "x"), _coordinate(jwk, "y"), ec.SECP256R1())
        if "d" not in jwk:
            return cls(numbers.public_key())
        private = ec.derive_private_key(_coordinate(jwk, "d"), ec.SECP256R1())
        if private.public_key().public_numbers() != numbers:
            raise KeyRefused("the private and the public part do not belong together")
        return cls(private.public_key(), private)

    @property
    def can_sign(self) -> bool:
        return self._private is not None

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(_private(self._private).sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_P256_BYTES, "big") + s.to_bytes(_P256_BYTES, "big")

    def verify(self, message: bytes, signature: bytes) -> None:
        if len(signature) != 2 * _P256_BYTES:
            raise TokenSignatureInvalid
        r, s = int.from_bytes(signature[:_P256_BYTES], "big"), int.from_bytes(signature[_P256_BYTES:], "big")
        try:
            self._public.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise TokenSignatureInvalid from None

    def public_members(self) -> dict[str, str]:
        numbers = self._public.public_numbers()
        return {"kty": "EC", "crv": "P-256", "x": _fixed(numbers.x), "y": _fixed(numbers.y)}

    def private_members(self) -> dict[str, str]:
        return {"d": _fixed(_private(self._private).private_numbers().private_value)}


class Rs256(_Secretive):
    """RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518 §3.3), at least 2048 bits and e = 65537."""

    __slots__ = ("_private", "_public")
    alg: ClassVar[AlgorithmName] = "RS256"
    header_algs: ClassVar[frozenset[str]] = frozenset({"RS256"})

    def __init__(self, public: rsa.RSAPublicKey, private: rsa.RSAPrivateKey | None = None) -> None:
        if public.key_size < _RSA_MIN_BITS:
            raise KeyRefused("an RSA key needs at least 2048 bits")
        if public.key_size > _RSA_MAX_BITS:
            raise KeyRefused("an RSA key has at most 8192 bits")
        if public.public_numbers().e != _RSA_EXPONENT:
            raise KeyRefused("an RSA key needs the exponent 65537")
        self._public = public
        self._private = private

    @classmethod
    def generate(cls) -> "Rs256":
        """A new key pair of 3072 bits (NIST SP 800-57: good beyond 2030)."""
        private = rsa.generate_private_key(public_exponent=_RSA_EXPONENT, key_size=_RSA_NEW_BITS)
        return cls(private.public_key(), private)

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> "Rs256":
        """From a JWK with ``kty`` ``RSA`` (RFC 7518 §6.3); a private one needs all of p, q, dp, dq and qi."""
        numbers = rsa.RSAPublicNumbers(e=_integer(jwk, "e"), n=_integer(jwk, "n"))
        if "d" not in jwk:
            return cls(numbers.public_key())
        p, q, d, dp, dq, qi = (_integer(jwk, name) for name in ("p", "q", "d", "dp", "dq", "qi"))
        private = rsa.RSAPrivateNumbers(p=p, q=q, d=d, dmp1=dp, dmq1=dq, iqmp=qi, public_numbers=numbers).private_key()
        return cls(private.public_key(), private)

    @property
    def can_sign(self) -> bool:
        return self._private is not None

    def sign(self, message: bytes) -> bytes:
        signature: bytes = _private(self._private).sign(message, padding.PKCS1v15(), hashes.SHA256())
        return signature

    def verify(self, message: bytes, signature: bytes) -> None:
        try:
            self._public.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            raise TokenSignatureInvalid from None

    def public_members(self) -> dict[str, str]:
        numbers = self._public.public_numbers()
        return {"kty": "RSA", "n": _minimal(numbers.n), "e": _minimal(numbers.e)}

    def private_members(self) -> dict[str, str]:
        numbers = _private(self._private).private_numbers()
        named = {"d": numbers.d, "p": numbers.p, "q": numbers.q, "dp": numbers.dmp1, "dq": numbers.dmq1}
        return {name: _minimal(value) for name, value in {**named, "qi": numbers.iqmp}.items()}


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


def _octets(jwk: Mapping[str, Any], name: str) -> bytes:
    value = jwk.get(name)
    if not isinstance(value, str):
        raise KeyRefused(f"member {name} is missing or not a text")
    return b64url_decode(value)


def _integer(jwk: Mapping[str, Any], name: str) -> int:
    return int.from_bytes(_octets(jwk, name), "big")


def _coordinate(jwk: Mapping[str, Any], name: str) -> int:
    data = _octets(jwk, name)
    if len(data) != _P256_BYTES:  # RFC 7518 §6.2.1.2: full size, leading zeros kept
        raise KeyRefused(f"member {name} is not 32 bytes long")
    return int.from_bytes(data, "big")


def _fixed(number: int) -> str:
    return b64url_encode(number.to_bytes(_P256_BYTES, "big"))


def _minimal(number: int) -> str:
    return b64url_encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))
