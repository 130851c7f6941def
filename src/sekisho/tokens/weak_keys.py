"""Keys that anyone could compute: they parse, and must never be loaded. Each check raises ``KeyRefused``."""

import binascii
import math
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

from sekisho.errors import KeyRefused

HMAC_MIN_BYTES: Final = 32  # RFC 7518 §3.2: at least the size of the hash output
_HMAC_MIN_DISTINCT_BYTES: Final = 12  # 32 random bytes have fewer with probability < 10^-13; "aaaa…" has one

# The object identifiers of Ed25519, EC and RSA keys in DER; a certificate holds its own too (RFC 5280 §4.1.2.7).
_KEY_TYPES: Final = (
    b"\x06\x03\x2b\x65\x70",
    b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01",
    b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01",
)

_RSA_MIN_BITS: Final = 2048  # RFC 7518 §3.3
_RSA_MAX_BITS: Final = 8192  # a check takes time that grows with the square of the size
RSA_EXPONENT: Final = 65537

_ED25519_PRIME: Final = 2**255 - 19
_ED25519_D: Final = -121665 * pow(121666, -1, _ED25519_PRIME) % _ED25519_PRIME  # RFC 8032 §5.1
_ED25519_ORDER_EIGHT_Y: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# The y of the eight points of small order: under such a key (a zeroed one, say) a signature that anyone can write down
# holds for every message or for one in a few.
_ED25519_SMALL_ORDER_Y: Final = frozenset(
    {0, 1, _ED25519_PRIME - 1, _ED25519_ORDER_EIGHT_Y, _ED25519_PRIME - _ED25519_ORDER_EIGHT_Y}
)


_ODD_PRIMES: Final = [n for n in range(3, 752, 2) if all(n % divisor for divisor in range(3, math.isqrt(n) + 1, 2))]
_SMALL_FACTORS: Final = 2 * math.prod(_ODD_PRIMES)
# ROCA (CVE-2017-15361): a chip's library made its primes from powers of 65537 modulo the product of these, which makes
# the modulus a power of 65537 modulo each. Such keys can be factored. A random modulus passes all with less than 2^-27.
_ROCA_POWERS: Final = {
    prime: frozenset(pow(RSA_EXPONENT, power, prime) for power in range(prime - 1))
    for prime in _ODD_PRIMES
    if prime < 168
}


def refuse_weak_secret(secret: bytes) -> None:
    """For HMAC: too short, or plainly not from a random source."""
    if len(secret) < HMAC_MIN_BYTES:
        raise KeyRefused("an HMAC secret needs at least 32 bytes")
    if len(set(secret)) < _HMAC_MIN_DISTINCT_BYTES:
        raise KeyRefused("an HMAC secret must come from a random source")


def refuse_public_key(secret: bytes) -> None:
    """For HMAC: a public key in one of its encodings, which everyone has.

    A second fence: what becomes a secret is decided by the type of the key, never by what it looks like. A raw Ed25519
    key looks like any 32 bytes; ``Keyring`` finds it where the key itself is in the same set.
    """
    text = secret.lstrip(b"\xef\xbb\xbf \r\n\t")
    if text.startswith((b"-----BEGIN", b"ssh-", b"ecdsa-")) or (text[:1] in {b"{", b"["} and b'"kty"' in text):
        raise KeyRefused("an HMAC secret is a public key")
    if _is_public_key(secret) or _is_public_key(_from_base64(text)):
        raise KeyRefused("an HMAC secret is a public key")


def _from_base64(text: bytes) -> bytes:
    """The body of a PEM file as its bytes."""
    try:
        return binascii.a2b_base64(text)
    except binascii.Error:
        return b""


def _is_public_key(data: bytes) -> bool:
    if data[:1] == b"\x04":
        try:
            EllipticCurvePublicKey.from_encoded_point(SECP256R1(), data)
        except ValueError:
            return False
        return True
    is_pkcs1 = data[:2] == b"\x30\x82" and data[4:6] == b"\x02\x82"  # RFC 8017 §A.1.1: a sequence that begins with n
    return is_pkcs1 or (data[:1] == b"\x30" and any(name in data for name in _KEY_TYPES))


def refuse_weak_point(x: bytes) -> None:
    """For Ed25519: a public part that is no point of the curve, or one of small order (RFC 8032 §5.1.3)."""
    y = int.from_bytes(x, "little") % 2**255
    if y >= _ED25519_PRIME:
        raise KeyRefused("the public part is not canonical")
    if y in _ED25519_SMALL_ORDER_Y:
        raise KeyRefused("the public part is a point of small order")
    # x² = (y² - 1) / (d y² + 1) needs a square root; a quotient has one when the product has one (Euler).
    product = (y * y - 1) * (_ED25519_D * y * y + 1)
    if pow(product, (_ED25519_PRIME - 1) // 2, _ED25519_PRIME) != 1:
        raise KeyRefused("the public part is not a point of the curve")


def refuse_weak_modulus(modulus: int, exponent: int) -> None:
    """For RSA: of the wrong size, of another exponent than 65537, or a modulus that anyone can factor.

    The last as in NIST SP 800-89 §5.3.3, without the test for a prime, which would take a third of a second with the
    longest keys; and ROCA.
    """
    if modulus.bit_length() < _RSA_MIN_BITS:
        raise KeyRefused("an RSA key needs at least 2048 bits")
    if modulus.bit_length() > _RSA_MAX_BITS:
        raise KeyRefused("an RSA key has at most 8192 bits")
    if exponent != RSA_EXPONENT:
        raise KeyRefused("an RSA key needs the exponent 65537")
    if all(modulus % prime in powers for prime, powers in _ROCA_POWERS.items()):
        raise KeyRefused("the RSA key can be factored (ROCA, CVE-2017-15361)")
    if math.gcd(modulus, _SMALL_FACTORS) != 1:
        raise KeyRefused("the RSA modulus has a small factor")
    if math.isqrt(modulus) ** 2 == modulus:
        raise KeyRefused("the RSA modulus is a square")
