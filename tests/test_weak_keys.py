"""Keys that parse and that anyone could compute: none is loaded. Ordinary ones are, all of them."""

import hashlib
import json
import math
from itertools import count
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from sekisho.errors import KeyRefused
from sekisho.tokens import Keyring, algorithms, weak_keys
from sekisho.tokens.algorithms import Hs256, Rs256
from sekisho.tokens.keys import stored_key
from sekisho.wire import b64url_decode, b64url_encode

ROCA = json.loads((Path(__file__).parent / "vectors" / "roca.json").read_text())
ROCA_MODULUS = int.from_bytes(b64url_decode(ROCA["jwk"]["n"]), "big")
ODD_PRIMES = [number for number in range(3, 702, 2) if all(number % divisor for divisor in range(3, number, 2))]


def text_of(number):
    return b64url_encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))


# --- ROCA ----------------------------------------------------------------------------------------------------------


def is_prime(number):
    if any(number % prime == 0 for prime in (2, *ODD_PRIMES)):
        return False
    return all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7))  # Fermat's: nobody chose it against us


def chips_prime(seed):
    """1024 bits, as the chip's library made them: k * M + (65537 ^ a mod M), M the product of the first 126 primes.

    Nemec and others, The Return of Coppersmith's Attack, CCS 2017, §2.
    """
    product = 2 * math.prod(ODD_PRIMES)
    smallest, largest = (3 << 1022) // product + 1, (1 << 1024) // product - 1
    for attempt in count():
        stream = hashlib.shake_256(f"{seed} {attempt}".encode()).digest(72)
        a, k = int.from_bytes(stream[:8], "big"), int.from_bytes(stream[8:], "big")
        prime = (smallest + k % (largest - smallest)) * product + pow(65537, a, product)
        if is_prime(prime):
            return prime
    raise AssertionError


@pytest.fixture(scope="module")
def roca_primes():
    return chips_prime("p"), chips_prime("q")


def test_the_roca_vector_was_made_as_it_says(roca_primes):
    p, q = roca_primes
    assert p * q == ROCA_MODULUS
    assert ROCA_MODULUS.bit_length() == 2048
    assert ROCA["jwk"]["e"] == "AQAB"
    assert math.gcd((p - 1) * (q - 1), 65537) == 1  # so it is a whole key, and signs


def test_a_modulus_of_roca_does_not_load_with_or_without_its_private_part(roca_primes):
    p, q = roca_primes
    with pytest.raises(KeyRefused, match="ROCA"):
        algorithms.from_jwk(ROCA["jwk"])
    d = pow(65537, -1, (p - 1) * (q - 1))
    private = {"p": p, "q": q, "d": d, "dp": d % (p - 1), "dq": d % (q - 1), "qi": pow(q, -1, p)}
    stored = ROCA["jwk"] | {name: text_of(number) for name, number in private.items()}
    with pytest.raises(KeyRefused, match="ROCA"):
        algorithms.from_jwk(stored)
    with pytest.raises(KeyRefused, match=r"key k: .*ROCA") as caught:  # by its kid, and without its numbers
        stored_key({**stored, "kid": "k", "alg": "RS256", "purpose": "sign", "state": "active"})
    assert not any(text in str(caught.value) for text in (stored["n"][:20], stored["d"][:20], str(p)[:20]))
    with pytest.raises(KeyRefused, match="ROCA"):
        Rs256(rsa.RSAPublicNumbers(e=65537, n=ROCA_MODULUS).public_key())
    with pytest.raises(KeyRefused, match=r"number 1: .*ROCA"):
        Keyring.from_jwks({"keys": [ROCA["jwk"]]})


def first_without_small_factors(residue, step):
    """The first number of 2100 bits or more that leaves this residue modulo ``step`` and that no small prime divides."""
    small = math.prod([2, *ODD_PRIMES, 709, 719, 727, 733, 739, 743, 751])
    numbers = (residue + step * factor for factor in count(1 << 2100 - step.bit_length()))
    return next(number for number in numbers if math.gcd(number, small) == 1)


@pytest.mark.parametrize("seed", range(10))
def test_any_modulus_that_is_a_power_of_65537_as_rocas_are_is_refused(seed):
    """The check looks at residues alone, so these need not be products of two primes."""
    product = math.prod(ODD_PRIMES)
    modulus = first_without_small_factors(pow(65537, 1 + 7919 * seed, product), product)
    with pytest.raises(KeyRefused, match="ROCA"):
        weak_keys.refuse_weak_modulus(modulus, 65537)


SIEVE = [prime for prime in ODD_PRIMES if prime <= 167]


def order_of_65537(prime):
    return next(power for power in range(1, prime) if pow(65537, power, prime) == 1)


@pytest.mark.parametrize("prime", [prime for prime in SIEVE if order_of_65537(prime) < prime - 1])
def test_a_modulus_that_is_no_power_of_65537_modulo_one_prime_is_none_of_rocas(prime):
    """So each prime of the sieve is looked at; modulo the others every number is a power, and nothing can be told."""
    powers = {pow(65537, power, prime) for power in range(prime - 1)}
    foreign = next(residue for residue in range(1, prime) if residue not in powers)
    product = math.prod(SIEVE)
    others = product // prime
    # By the Chinese remainder theorem: 1, which is 65537 ^ 0, modulo the others, and ``foreign`` modulo this one.
    residue = 1 + others * ((foreign - 1) * pow(others, -1, prime) % prime)
    modulus = first_without_small_factors(residue, product)
    weak_keys.refuse_weak_modulus(modulus, 65537)


def test_fewer_than_one_of_2_to_the_27_good_moduli_is_taken_for_one_of_rocas():
    """A random modulus is equally likely to leave any remainder but 0."""
    assert list(weak_keys._ROCA_POWERS) == SIEVE
    passed = math.prod(len(powers) / (prime - 1) for prime, powers in weak_keys._ROCA_POWERS.items())
    assert passed < 2**-27
    for prime, powers in weak_keys._ROCA_POWERS.items():
        assert powers == {pow(65537, power, prime) for power in range(order_of_65537(prime))}


# --- ordinary RSA keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_an_ordinary_rsa_key_loads(number):
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert Rs256(made.public_key(), made).can_sign


@pytest.fixture(scope="module")
def modulus():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key().public_numbers().n


def test_random_moduli_of_every_allowed_size_pass():
    for bits in (2048, 2049, 3072, 4096, 8192):
        start = int.from_bytes(hashlib.shake_256(str(bits).encode()).digest(1024), "big") >> (8192 - bits)
        candidates = count(start | 1 << (bits - 1) | 1, 2)
        small = math.prod(ODD_PRIMES) * 709 * 719 * 727 * 733 * 739 * 743 * 751
        weak_keys.refuse_weak_modulus(next(number for number in candidates if math.gcd(number, small) == 1), 65537)


@pytest.mark.parametrize(("bits", "complaint"), [(1024, "2048"), (2047, "2048"), (8193, "8192"), (16384, "8192")])
def test_a_modulus_of_another_size_is_refused(bits, complaint):
    with pytest.raises(KeyRefused, match=complaint):
        weak_keys.refuse_weak_modulus((1 << bits) - 1, 65537)


@pytest.mark.parametrize("exponent", [-1, 0, 1, 2, 3, 17, 257, 65535, 65536, 65538, 65539, 2**32 + 1, 2**64 + 65537])
def test_65537_is_the_only_exponent(modulus, exponent):
    with pytest.raises(KeyRefused, match="exponent 65537"):
        weak_keys.refuse_weak_modulus(modulus, exponent)
    weak_keys.refuse_weak_modulus(modulus, 65537)


@pytest.mark.parametrize("factor", [2, 3, 5, 7, 167, 173, 701, 709, 743, 751])
def test_a_modulus_with_a_small_factor_is_refused(modulus, factor):
    with pytest.raises(KeyRefused, match="small factor"):
        weak_keys.refuse_weak_modulus(modulus * factor, 65537)


def test_a_square_is_no_modulus():
    for root in (2**1279 - 1, (2**607 - 1) * (2**521 - 1)):
        with pytest.raises(KeyRefused, match="square"):
            weak_keys.refuse_weak_modulus(root * root, 65537)


# --- secrets -------------------------------------------------------------------------------------------------------


def test_a_secret_of_32_bytes_of_which_12_differ_is_the_least():
    assert Hs256(bytes(range(32)))
    assert Hs256(bytes(range(12)) + bytes(20))
    with pytest.raises(KeyRefused, match="random source"):
        Hs256(bytes(range(11)) + bytes(21))
    with pytest.raises(KeyRefused, match="32 bytes"):
        Hs256(bytes(range(31)))
    with pytest.raises(KeyRefused, match="random source"):
        Hs256(b"0123456789" * 100)  # long, and still not random


def test_a_new_secret_always_loads():
    for _ in range(200):
        secret = Hs256.generate().secret
        assert Hs256(secret).secret == secret


# --- Ed25519 -------------------------------------------------------------------------------------------------------


def test_half_of_all_texts_are_no_point_of_the_curve_and_none_of_them_loads():
    refusals = []
    for number in range(200):
        try:
            weak_keys.refuse_weak_point(hashlib.sha256(str(number).encode()).digest())
        except KeyRefused as error:
            refusals.append(str(error))
    assert 70 < len(refusals) < 130
    assert set(refusals) == {"the public part is not a point of the curve"}
    for _ in range(50):
        weak_keys.refuse_weak_point(ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw())


@pytest.mark.parametrize("y", [2**255 - 19, 2**255 - 18, 2**255 - 10, 2**255 - 1])
@pytest.mark.parametrize("sign", [0, 1])
def test_a_y_that_is_not_reduced_is_refused(y, sign):
    with pytest.raises(KeyRefused, match="canonical"):
        weak_keys.refuse_weak_point((y | sign << 255).to_bytes(32, "little"))
