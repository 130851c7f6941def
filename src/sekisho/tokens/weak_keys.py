"""Keys that anyone could compute: they parse, and must never be loaded. Each check raises ``KeyRefused``."""

from typing import Final

from sekisho.errors import KeyRefused

HMAC_MIN_BYTES: Final = 32  # RFC 7518 §3.2: at least the size of the hash output
_HMAC_MIN_DISTINCT_BYTES: Final = 12  # 32 random bytes have fewer with probability < 10^-13; "aaaa…" has one

_RSA_MIN_BITS: Final = 2048  # RFC 7518 §3.3
_RSA_MAX_BITS: Final = 8192  # a check takes time that grows with the square of the size
RSA_EXPONENT: Final = 65537

_ED25519_PRIME: Final = 2**255 - 19
_ED25519_ORDER_EIGHT_Y: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# The y of the eight points of small order: under such a key (a zeroed one, say) a signature that anyone can write down
# holds for every message or for one in a few.
_ED25519_SMALL_ORDER_Y: Final = frozenset(
    {0, 1, _ED25519_PRIME - 1, _ED25519_ORDER_EIGHT_Y, _ED25519_PRIME - _ED25519_ORDER_EIGHT_Y}
)


def _powers_of_the_exponent(prime: int) -> frozenset[int]:
    return frozenset(pow(RSA_EXPONENT, power, prime) for power in range(prime - 1))


# ROCA (CVE-2017-15361): a chip's library made its primes from powers of 65537 modulo the product of these, which makes
# the modulus a power of 65537 modulo each. Such keys can be factored. A random modulus passes all with less than 2^-27.
_ROCA_POWERS: Final = {
    prime: _powers_of_the_exponent(prime)
    for prime in range(3, 168, 2)
    if all(prime % divisor for divisor in range(3, prime, 2))
}


def refuse_weak_secret(secret: bytes) -> None:
    """For HMAC: too short, or plainly not from a random source."""
    if len(secret) < HMAC_MIN_BYTES:
        raise KeyRefused("an HMAC secret needs at least 32 bytes")
    if len(set(secret)) < _HMAC_MIN_DISTINCT_BYTES:
        raise KeyRefused("an HMAC secret must come from a random source")


def refuse_weak_point(x: bytes) -> None:
    """For Ed25519: a public part of small order."""
    if int.from_bytes(x, "little") % 2**255 % _ED25519_PRIME in _ED25519_SMALL_ORDER_Y:
        raise KeyRefused("the public part is a point of small order")


def refuse_weak_modulus(modulus: int, exponent: int) -> None:
    """For RSA: too small or too large, another exponent than 65537, or made by the library of ROCA."""
    if modulus.bit_length() < _RSA_MIN_BITS:
        raise KeyRefused("an RSA key needs at least 2048 bits")
    if modulus.bit_length() > _RSA_MAX_BITS:
        raise KeyRefused("an RSA key has at most 8192 bits")
    if exponent != RSA_EXPONENT:
        raise KeyRefused("an RSA key needs the exponent 65537")
    if all(modulus % prime in powers for prime, powers in _ROCA_POWERS.items()):
        raise KeyRefused("the RSA key can be factored (ROCA, CVE-2017-15361)")
