"""Algorithms, keys, keyrings and key sets: what may become a key, what a key may do, and that it never shows itself."""

import base64
import copy
import hashlib
import hmac
import json
import pickle
import string
import traceback
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.errors import (
    KeyRefused,
    SekishoError,
    TokenError,
    TokenHeaderRefused,
    TokenKeyUnknown,
    TokenSignatureInvalid,
)
from sekisho.tokens import Keyring, KeySet, access, algorithms, jws
from sekisho.tokens.algorithms import ALGORITHMS, EdDsa, Es256, Hs256, Rs256
from sekisho.tokens.keys import Key, generate_key, stored_key, thumbprint, verification_key
from sekisho.tokens.refresh import Position, Presented, RefreshKeys
from sekisho.verify import Verifier
from sekisho.wire import b64url_decode, b64url_encode

NOW = 1_800_000_000
VECTORS = Path(__file__).parent / "vectors"
SECRET_MEMBERS = ("d", "p", "q", "dp", "dq", "qi", "k")
P256_PRIME = 2**256 - 2**224 + 2**192 + 2**96 - 1

quick = settings(deadline=None, max_examples=200)


def vectors(name):
    return [pytest.param(entry, id=entry["source"]) for entry in json.loads((VECTORS / name).read_text())]


@pytest.fixture(scope="module")
def materials():
    return {alg: algorithms.generate(alg) for alg in ALGORITHMS}


@pytest.fixture(scope="module")
def key_sets():
    return {alg: KeySet.generate(alg, now=NOW) for alg in ALGORITHMS}


def private_jwk(material):
    return {**material.public_members(), **material.private_members()}


def number(text):
    return int.from_bytes(b64url_decode(text), "big")


def minimal(value):
    return b64url_encode(value.to_bytes((value.bit_length() + 7) // 8, "big"))


# --- other people's vectors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", vectors("jws.json"))
def test_the_rfc_token_is_verified_with_the_rfc_key(vector):
    ring = Keyring.from_jwks({"keys": [vector["jwk"]]})
    assert jws.verify(vector["token"], ring) == vector["payload"].encode()
    assert jws.verify(vector["token"].encode(), ring) == vector["payload"].encode()
    assert ring.keys[0].alg == vector["alg"]


@pytest.mark.parametrize("vector", vectors("jws.json"))
def test_the_rfc_token_is_not_verified_when_a_bit_of_its_signature_is_turned(vector):
    head, _, signature = vector["token"].rpartition(".")
    turned = bytearray(b64url_decode(signature))
    turned[7] ^= 1
    with pytest.raises(TokenSignatureInvalid):
        jws.verify(f"{head}.{b64url_encode(bytes(turned))}", Keyring.from_jwks({"keys": [vector["jwk"]]}))


@pytest.mark.parametrize("vector", vectors("jws.json"))
def test_the_rfc_key_signs_what_the_rfc_signed(vector):
    material = algorithms.from_jwk(vector["jwk"])
    signing_input = f"{b64url_encode(vector['header'].encode())}.{b64url_encode(vector['payload'].encode())}"
    head, _, signature = vector["token"].rpartition(".")
    assert signing_input == head
    made = material.sign(signing_input.encode())
    material.verify(signing_input.encode(), b64url_encode(made))
    if vector["deterministic"]:
        assert b64url_encode(made) == signature


@pytest.mark.parametrize("vector", vectors("thumbprints.json"))
def test_the_rfc_thumbprint(vector):
    material = algorithms.from_jwk(vector["jwk"])
    assert thumbprint(material.public_members()) == vector["thumbprint"]
    without_kid = {name: member for name, member in vector["jwk"].items() if name != "kid"}
    assert verification_key(without_kid).kid == vector["thumbprint"]


# --- material ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_material_survives_the_way_through_a_jwk(materials, alg):
    material = materials[alg]
    again = algorithms.from_jwk(private_jwk(material))
    assert private_jwk(again) == private_jwk(material)
    again.verify(b"message", b64url_encode(material.sign(b"message")))
    material.verify(b"message", b64url_encode(again.sign(b"message")))


@pytest.mark.parametrize("alg", [alg for alg in ALGORITHMS if alg != "HS256"])
def test_the_public_part_checks_and_cannot_sign(materials, alg):
    public = algorithms.from_jwk(materials[alg].public_members())
    assert materials[alg].can_sign
    assert not public.can_sign
    public.verify(b"message", b64url_encode(materials[alg].sign(b"message")))
    with pytest.raises(KeyRefused):
        public.sign(b"message")
    with pytest.raises(KeyRefused):
        public.private_members()


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_signature_is_good_for_its_message_and_its_key_alone(materials, alg):
    signature = b64url_encode(materials[alg].sign(b"message"))
    with pytest.raises(TokenSignatureInvalid):
        materials[alg].verify(b"massage", signature)
    other = {"HS256": Hs256, "EdDSA": EdDsa, "ES256": Es256}.get(alg)
    if other is not None:  # a second RSA key would take a second to make
        with pytest.raises(TokenSignatureInvalid):
            other.generate().verify(b"message", signature)


@pytest.mark.parametrize("alg", ALGORITHMS)
@quick
@given(signature=st.binary(max_size=600).map(b64url_encode) | st.text(string.printable, max_size=600))
def test_any_signature_of_somebody_else_is_refused_as_an_invalid_signature(materials, alg, signature):
    with pytest.raises(TokenSignatureInvalid):
        materials[alg].verify(b"message", signature)


def test_new_keys_are_as_long_as_they_should_be(materials):
    assert len(materials["HS256"].secret) == 32
    assert number(materials["RS256"].public_members()["n"]).bit_length() == 3072
    assert len(materials["ES256"].sign(b"")) == 64
    assert Hs256.generate().secret != Hs256.generate().secret


def test_macs_are_compared_in_constant_time(materials, monkeypatch):
    compared = []
    really = hmac.compare_digest

    def compare_digest(a, b):
        compared.append((a, b))
        return really(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    materials["HS256"].verify(b"message", b64url_encode(materials["HS256"].sign(b"message")))
    keys = RefreshKeys(*refresh_keys())
    keys.check_secret(keys.read(keys.make(SESSION, Position(1, 0), SALT)), SALT)
    assert len(compared) == 3  # the access token's MAC, the refresh token's tag, its secret


# --- weak and foreign material never becomes a key ----------------------------------------------------------------

WEAK_SECRETS = {
    "empty": b"",
    "one byte": b"x",
    "31 bytes": bytes(range(31)),
    "the word secret": b"secret",
    "32 times a": b"a" * 32,
    "32 zeros": bytes(32),
    "64 times ab": b"ab" * 32,
    "digits only": b"1234567890" * 5,
}


@pytest.mark.parametrize("secret", WEAK_SECRETS.values(), ids=WEAK_SECRETS)
def test_a_weak_secret_does_not_load(secret):
    with pytest.raises(KeyRefused):
        Hs256(secret)
    with pytest.raises(KeyRefused):
        Keyring.from_jwks({"keys": [{"kty": "oct", "k": b64url_encode(secret), "kid": "weak"}]})
    stored = {"kty": "oct", "k": b64url_encode(secret), "kid": "weak", "purpose": "sign", "state": "active"}
    with pytest.raises(KeyRefused, match="weak"):  # by its kid
        stored_key(stored)


def test_a_secret_of_32_random_bytes_loads():
    assert Hs256(hashlib.sha256(b"seed").digest()).alg == "HS256"


@pytest.fixture(scope="module")
def rsa_1024():
    return rsa.generate_private_key(public_exponent=65537, key_size=1024).private_numbers()


@pytest.fixture(scope="module")
def rsa_e3():
    return rsa.generate_private_key(public_exponent=3, key_size=2048).private_numbers()


def rsa_jwk(numbers, **changed):
    named = {"d": numbers.d, "p": numbers.p, "q": numbers.q, "dp": numbers.dmp1, "dq": numbers.dmq1, "qi": numbers.iqmp}
    named |= {"n": numbers.public_numbers.n, "e": numbers.public_numbers.e}
    return {"kty": "RSA", **{name: minimal(value) for name, value in (named | changed).items()}}


def test_a_short_rsa_key_does_not_load(rsa_1024):
    jwk = rsa_jwk(rsa_1024)
    for form in (jwk, {name: jwk[name] for name in ("kty", "n", "e")}):
        with pytest.raises(KeyRefused, match="2048"):
            algorithms.from_jwk(form)


def test_an_rsa_key_of_2047_bits_does_not_load():
    with pytest.raises(KeyRefused, match="2048"):
        algorithms.from_jwk({"kty": "RSA", "n": minimal(2**2047 - 1), "e": "AQAB"})


@pytest.mark.parametrize("e", [0, 1, 2, 3, 17, 65536, 65539, 2**32 + 1])
def test_an_rsa_key_with_another_exponent_does_not_load(materials, e):
    with pytest.raises(KeyRefused):
        algorithms.from_jwk({**materials["RS256"].public_members(), "e": minimal(e)})


def test_a_whole_rsa_key_pair_with_exponent_3_does_not_load(rsa_e3):
    with pytest.raises(KeyRefused, match="65537"):
        algorithms.from_jwk(rsa_jwk(rsa_e3))


@pytest.mark.parametrize("name", ["d", "p", "q", "dp", "dq", "qi", "n"])
def test_rsa_numbers_that_do_not_belong_together_do_not_load(materials, name):
    jwk = private_jwk(materials["RS256"])
    with pytest.raises(KeyRefused):
        algorithms.from_jwk({**jwk, name: minimal(number(jwk[name]) ^ 4)})


@pytest.mark.parametrize("name", ["p", "q", "dp", "dq", "qi"])
def test_a_private_rsa_key_needs_all_its_numbers(materials, name):
    jwk = private_jwk(materials["RS256"])
    del jwk[name]
    with pytest.raises(KeyRefused):
        algorithms.from_jwk(jwk)


def test_a_point_off_the_curve_does_not_load(materials):
    jwk = materials["ES256"].public_members()
    points = {
        "moved": (jwk["x"], fixed(number(jwk["y"]) ^ 1)),
        "swapped": (jwk["y"], jwk["x"]),
        "origin": (fixed(0), fixed(0)),
        "at infinity, as it were": (fixed(P256_PRIME), fixed(P256_PRIME)),
        "not reduced": (fixed(2**256 - 1), jwk["y"]),
    }
    for x, y in points.values():
        with pytest.raises(KeyRefused):
            algorithms.from_jwk({**jwk, "x": x, "y": y})


def fixed(value):
    return b64url_encode(value.to_bytes(32, "big"))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_coordinate_of_another_length_does_not_load(materials, length):
    jwk = private_jwk(materials["ES256"])
    for name in ("x", "y", "d"):
        with pytest.raises(KeyRefused):
            algorithms.from_jwk({**jwk, name: b64url_encode(b64url_decode(jwk[name]).rjust(64, b"\0")[64 - length :])})


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_a_d_that_does_not_belong_to_the_public_part_does_not_load(materials, alg):
    other = algorithms.generate(alg)
    with pytest.raises(KeyRefused, match="belong"):
        algorithms.from_jwk({**materials[alg].public_members(), **other.private_members()})


@pytest.mark.parametrize("d", [0, 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551, 2**256 - 1])
def test_an_ec_private_number_outside_the_group_does_not_load(materials, d):
    with pytest.raises(KeyRefused):
        algorithms.from_jwk({**materials["ES256"].public_members(), "d": fixed(d)})


@pytest.mark.parametrize("length", [0, 31, 33, 57])
def test_an_ed25519_key_of_another_length_does_not_load(length):
    with pytest.raises(KeyRefused):
        algorithms.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": b64url_encode(bytes(range(1, length + 1)))})


def small_order_points():
    """The encodings of the eight points of order 1, 2, 4 and 8, by the curve's own arithmetic (RFC 8032 §5.1)."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    root_of_minus_one = pow(2, (p - 1) // 4, p)

    def add(one, two):
        (x1, y1), (x2, y2) = one, two
        cross = d * x1 * x2 * y1 * y2
        return (x1 * y2 + x2 * y1) * pow(1 + cross, -1, p) % p, (y1 * y2 + x1 * x2) * pow(1 - cross, -1, p) % p

    def on_curve(y):
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        x = x if x * x % p == square else x * root_of_minus_one % p
        return (x, y) if x * x % p == square else None

    point, order = None, 2**252 + 27742317777372353535851937790883648493
    y = 2
    while True:  # the multiple by the big prime order leaves the small part; until that has order 8
        point, y = on_curve(y), y + 1
        if point is None:
            continue
        small, doubled, times = (0, 1), point, order
        while times:
            small, doubled, times = add(small, doubled) if times & 1 else small, add(doubled, doubled), times >> 1
        eight = [(0, 1)]
        while (following := add(eight[-1], small)) != (0, 1):
            eight.append(following)
        if len(eight) == 8:
            return [(y | (x & 1) << 255).to_bytes(32, "little") for x, y in eight]


def test_an_ed25519_key_of_small_order_does_not_load():
    """Under such a key a signature that anyone can write down holds, for every message or for one in a few."""
    p = 2**255 - 19
    with_the_other_sign = [(y | sign << 255).to_bytes(32, "little") for y in (0, 1, p - 1) for sign in (0, 1)]
    not_reduced = [(y | sign << 255).to_bytes(32, "little") for y in (p, p + 1) for sign in (0, 1)]
    points = small_order_points()
    assert len(set(points)) == 8
    for point in [*points, *with_the_other_sign, *not_reduced]:
        with pytest.raises(KeyRefused, match="canonical" if point in not_reduced else "small order"):
            algorithms.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": b64url_encode(point)})


UNUSABLE_JWKS = {
    "no kty": {},
    "kty null": {"kty": None},
    "kty list": {"kty": ["oct"]},
    "kty unknown": {"kty": "AKP"},
    "kty in other case": {"kty": "OCT", "k": b64url_encode(bytes(range(32)))},
    "oct without k": {"kty": "oct"},
    "oct with k null": {"kty": "oct", "k": None},
    "oct with k as a number": {"kty": "oct", "k": 12345678901234567},
    "oct with k empty": {"kty": "oct", "k": ""},
    "oct with k padded": {"kty": "oct", "k": base64.urlsafe_b64encode(bytes(range(32))).decode()},
    "oct with k in the standard alphabet": {"kty": "oct", "k": "+/" * 32},
    "oct with a crv": {"kty": "oct", "crv": "P-256", "k": b64url_encode(bytes(range(32)))},
    "OKP without crv": {"kty": "OKP", "x": b64url_encode(bytes(range(32)))},
    "OKP of another curve": {"kty": "OKP", "crv": "X25519", "x": b64url_encode(bytes(range(32)))},
    "OKP, crv list": {"kty": "OKP", "crv": ["Ed25519"], "x": b64url_encode(bytes(range(32)))},
    "OKP without x": {"kty": "OKP", "crv": "Ed25519"},
    "OKP, d null": {"kty": "OKP", "crv": "Ed25519", "x": b64url_encode(bytes(range(32))), "d": None},
    "EC of another curve": {"kty": "EC", "crv": "P-384", "x": fixed(1), "y": fixed(1)},
    "EC without y": {"kty": "EC", "crv": "P-256", "x": fixed(1)},
    "RSA without n": {"kty": "RSA", "e": "AQAB"},
    "RSA with n = 0": {"kty": "RSA", "n": "AA", "e": "AQAB"},
    "RSA with n empty": {"kty": "RSA", "n": "", "e": "AQAB"},
    "RSA with crv": {"kty": "RSA", "crv": "P-256", "n": minimal(2**2047 + 1), "e": "AQAB"},
}


@pytest.mark.parametrize("jwk", UNUSABLE_JWKS.values(), ids=UNUSABLE_JWKS)
def test_a_jwk_that_is_not_a_key_of_ours_is_refused(jwk):
    with pytest.raises(KeyRefused):
        algorithms.from_jwk(jwk)


json_like = st.none() | st.booleans() | st.integers() | st.text(max_size=50) | st.lists(st.text(max_size=5), max_size=2)


@quick
@given(
    st.fixed_dictionaries(
        {"kty": st.sampled_from(["oct", "OKP", "EC", "RSA"])},
        optional={name: json_like | st.binary(max_size=64).map(b64url_encode) for name in (*SECRET_MEMBERS, *"nexy")}
        | {"crv": st.sampled_from(["Ed25519", "P-256"]), "alg": json_like | st.sampled_from(ALGORITHMS)}
        | dict.fromkeys(("kid", "use", "key_ops", "purpose", "state", "created_at", "state_since"), json_like),
    )
)
def test_any_jwk_loads_or_is_refused(jwk):
    for load in (verification_key, stored_key):
        try:
            assert isinstance(load(jwk), Key)
        except KeyRefused:
            continue


def test_a_public_key_in_any_encoding_cannot_become_a_secret_by_what_a_jwk_says_of_itself(materials):
    for alg in ("EdDSA", "ES256", "RS256"):
        public = materials[alg].public_members()
        for other in (*ALGORITHMS, "none", "HS384", "PS256", "", None, ["HS256"], [alg], {"alg": alg}, True):
            if other == alg:
                continue
            with pytest.raises(KeyRefused):
                algorithms.from_jwk({**public, "alg": other})
        with pytest.raises(KeyRefused):  # kty oct has the last word, and there is no k
            algorithms.from_jwk({**public, "kty": "oct"})
    for other in ("EdDSA", "ES256", "RS256", "HS512", "hs256", "none"):
        with pytest.raises(KeyRefused):
            algorithms.from_jwk({**private_jwk(materials["HS256"]), "alg": other})


def test_the_key_type_decides_the_algorithm_and_the_class(materials):
    kinds = {"HS256": Hs256, "EdDSA": EdDsa, "ES256": Es256, "RS256": Rs256}
    for alg, material in materials.items():
        assert type(material) is kinds[alg]
        assert type(algorithms.from_jwk({**private_jwk(material), "alg": alg})) is kinds[alg]
    assert algorithms.from_jwk({**materials["EdDSA"].public_members(), "alg": "Ed25519"}).alg == "EdDSA"


# --- a key from a JWK Set ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bound",
    [
        {"use": "enc"},
        {"use": ""},
        {"use": None},
        {"use": ["sig"]},
        {"key_ops": []},
        {"key_ops": ["encrypt"]},
        {"key_ops": ["sign"]},
        {"key_ops": "verify"},
        {"key_ops": None},
        {"alg": "HS256"},
        {"alg": "RS256"},
        {"alg": "none"},
        {"kid": 7},
        {"kid": ["a"]},
        {"kid": None},
        {"kid": "x" * 257},
    ],
    ids=str,
)
def test_use_key_ops_alg_and_kid_bind_a_published_key(materials, bound):
    with pytest.raises(KeyRefused):
        verification_key({**materials["ES256"].public_members(), **bound})


def test_use_and_key_ops_that_allow_checking_are_fine(materials):
    for allowed in ({}, {"use": "sig"}, {"key_ops": ["verify"]}, {"use": "sig", "key_ops": ["sign", "verify"]}):
        assert verification_key({**materials["ES256"].public_members(), **allowed, "kid": "k"}).kid == "k"


def test_two_keys_with_one_kid_are_refused(materials):
    entries = [{**materials[alg].public_members(), "kid": "same"} for alg in ("EdDSA", "ES256")]
    with pytest.raises(KeyRefused, match="same"):
        Keyring.from_jwks({"keys": entries})
    with pytest.raises(KeyRefused, match="same"):
        Keyring([Key("same", materials["EdDSA"]), Key("same", materials["ES256"])])
    with pytest.raises(KeyRefused):  # the same key twice, named by its thumbprint
        Keyring.from_jwks({"keys": [materials["EdDSA"].public_members()] * 2})


BAD_ENTRIES = {
    "null": None,
    "a number": 7,
    "a text": "key",
    "a list": [],
    "an empty object": {},
    "1024 bits": {"kty": "RSA", "n": minimal(2**1023 + 1), "e": "AQAB", "kid": "x"},
    "e = 1": {"kty": "RSA", "n": minimal(2**2047 + 1), "e": "AQ", "kid": "x"},
    "unknown type": {"kty": "AKP", "alg": "ML-DSA-44", "kid": "x"},
    "point off the curve": {"kty": "EC", "crv": "P-256", "x": fixed(1), "y": fixed(1), "kid": "x"},
    "for encryption": {"kty": "EC", "crv": "P-256", "x": fixed(1), "y": fixed(1), "kid": "x", "use": "enc"},
    "kid not a text": {"kty": "oct", "k": b64url_encode(bytes(range(32))), "kid": {}},
}


@pytest.mark.parametrize("bad", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_a_bad_entry_does_not_drop_the_set(key_sets, bad):
    good = key_sets["EdDSA"].public_jwks()["keys"][0]
    for ring in (
        Keyring.from_jwks({"keys": [bad, good]}),
        Keyring.from_jwks(json.dumps({"keys": [good, bad], "next_page": None})),
    ):
        assert [key.kid for key in ring.keys] == [good["kid"]]
        assert len(ring.refused) == 1
        assert ring.find(kid=good["kid"], alg="EdDSA").alg == "EdDSA"


@pytest.mark.parametrize(
    "jwks",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"keys":null}',
        '{"keys":{}}',
        '{"keys":"x"}',
        '{"keys":[{}]}',
        '{"keys":[null]}',
        '{"keys":[],"keys":[]}',
        '{"keys":[{"kty":"oct","kty":"RSA"}]}',
        '\ufeff{"keys":[]}',
        '{"keys":["\ud800"]}',
        {},
        {"keys": 7},
        [],
        [{"keys": []}],
        None,
        7,
        {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]},
    ],
    ids=repr,
)
def test_what_is_not_a_key_set_is_refused(jwks):
    with pytest.raises(KeyRefused):
        Keyring.from_jwks(jwks)


def test_an_empty_key_set_is_a_ring_without_keys():
    ring = Keyring.from_jwks('{"keys":[]}')
    assert ring.keys == ()
    assert not ring.has_shared_secret
    with pytest.raises(TokenKeyUnknown):
        ring.find(kid="x", alg="EdDSA")


def test_the_key_comes_first_and_the_header_must_agree(materials):
    ring = Keyring([Key(alg, material) for alg, material in materials.items()])
    for alg in ALGORITHMS:
        for said in (*ALGORITHMS, "Ed25519", "none", "", None, [alg], {}, alg.lower(), alg + " "):
            if said == alg or (alg, said) == ("EdDSA", "Ed25519"):
                assert ring.find(kid=alg, alg=said).kid == alg
            else:
                with pytest.raises(TokenHeaderRefused):
                    ring.find(kid=alg, alg=said)
    with pytest.raises(TokenKeyUnknown):
        ring.find(kid="other", alg="HS256")
    with pytest.raises(TokenKeyUnknown):
        ring.find(kid="", alg="HS256")


def test_without_a_kid_only_the_single_key_of_the_algorithm_is_found(materials):
    ring = Keyring([Key("one", materials["EdDSA"]), Key("two", materials["ES256"]), Key("three", Es256.generate())])
    assert ring.find(kid=None, alg="EdDSA").kid == "one"
    assert ring.find(kid=None, alg="Ed25519").kid == "one"
    for alg in ("ES256", "RS256", "HS256", "none", None, ["EdDSA"]):
        with pytest.raises(TokenError):
            ring.find(kid=None, alg=alg)


# --- kids ----------------------------------------------------------------------------------------------------------


def test_a_kid_is_the_thumbprint_unless_that_would_be_a_hash_of_the_secret():
    for alg in ("EdDSA", "ES256"):
        key = generate_key(alg, purpose="sign", state="active", now=NOW)
        assert key.kid == thumbprint(key.material.public_members())
    secret = generate_key("HS256", purpose="sign", state="active", now=NOW)
    again = Key("", secret.material)
    assert secret.kid not in {thumbprint(private_jwk(again.material)), thumbprint(secret.material.public_members())}
    assert not secret.material.secret.hex().startswith(secret.kid)


def test_no_kid_begins_with_a_dash(monkeypatch):
    kids = iter(["-abc", "-", "abc"])
    monkeypatch.setattr("sekisho.tokens.keys.thumbprint", lambda members: next(kids))
    assert generate_key("EdDSA", purpose="sign", state="active", now=NOW).kid == "abc"


# --- the life of a key set -----------------------------------------------------------------------------------------

ISSUER, AUDIENCE = "https://auth.example.com", "shop"


def token_by(key):
    return access.issue(
        key,
        issuer=ISSUER,
        audience=AUDIENCE,
        subject="user-1",
        session_id="session-1",
        issued_at=NOW,
        expires_at=NOW + 900,
    )


def clock():
    return NOW


def verifier_of(ring):
    return Verifier(issuer=ISSUER, audience=AUDIENCE, keys=ring, allow_shared_secret=True, clock=clock)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_key_set_survives_the_way_through_its_source(key_sets, alg):
    key_set = key_sets[alg]
    document = key_set.to_json()
    again = KeySet.from_json(document)
    assert again.to_json() == document
    fields = ("kid", "alg", "purpose", "state", "created_at", "state_since")
    assert [[getattr(key, name) for name in fields] for key in again.keys] == [
        [getattr(key, name) for name in fields] for key in key_set.keys
    ]
    verifier_of(again.keyring).verify(token_by(key_set.active("sign")))


def test_a_first_set_has_one_active_key_for_each_purpose(key_sets):
    for alg, key_set in key_sets.items():
        assert [(key.purpose, key.state) for key in key_set.keys] == [
            ("sign", "active"),
            ("refresh", "active"),
            ("csrf", "active"),
        ]
        assert [key.alg for key in key_set.keys] == [alg, "HS256", "HS256"]
        assert len({key.private_jwk().get("k") for key in key_set.keys[1:]}) == 2


def with_states(key_set, **states):
    """``states``: by purpose; a purpose of ``None`` is left out."""
    document = json.loads(key_set.to_json())
    document["keys"] = [
        {**jwk, "state": states.get(jwk["purpose"], jwk["state"])}
        for jwk in document["keys"]
        if states.get(jwk["purpose"], "") is not None
    ]
    return json.dumps(document).encode()


@pytest.mark.parametrize("purpose", ["sign", "refresh", "csrf"])
@pytest.mark.parametrize("state", ["next", "verify_only", "retired", None])
def test_a_set_without_an_active_key_for_a_purpose_is_refused(key_sets, purpose, state):
    with pytest.raises(KeyRefused, match=f"{purpose} needs exactly one active key"):
        KeySet.from_json(with_states(key_sets["EdDSA"], **{purpose: state}))


@pytest.mark.parametrize("purpose", ["sign", "refresh", "csrf"])
def test_a_set_with_two_active_keys_for_a_purpose_is_refused(key_sets, purpose):
    second = generate_key("HS256", purpose=purpose, state="active", now=NOW)
    with pytest.raises(KeyRefused, match=f"{purpose} needs exactly one active key"):
        KeySet([*key_sets["EdDSA"].keys, second])


def test_a_set_with_one_kid_twice_is_refused(key_sets):
    keys = key_sets["EdDSA"].keys
    with pytest.raises(KeyRefused, match="same kid"):
        KeySet([*keys, keys[0].in_state("retired", now=NOW)])


@pytest.mark.parametrize("purpose", ["sign", "refresh", "csrf"])
def test_a_key_goes_from_next_to_active_to_verify_only_to_retired(key_sets, purpose):
    first = key_sets["HS256"]
    old = first.active(purpose)

    second, new = first.with_next(purpose, "HS256", now=NOW + 1)
    assert (new.state, new.purpose, new.created_at, new.state_since) == ("next", purpose, NOW + 1, NOW + 1)
    assert second.active(purpose) is old
    assert {old.kid, new.kid} <= {key.kid for key in second.used(purpose)}
    assert new.kid not in {key.kid for key in first.keys}  # the first set is as it was

    third, promoted = second.promoted(purpose, now=NOW + 2)
    assert (promoted.kid, promoted.state, promoted.created_at, promoted.state_since) == (
        new.kid,
        "active",
        NOW + 1,
        NOW + 2,
    )
    assert third.active(purpose).kid == new.kid
    assert (third.find(old.kid).state, third.find(old.kid).state_since) == ("verify_only", NOW + 2)
    assert old.kid in {key.kid for key in third.used(purpose)}

    fourth = third.retired(old.kid, now=NOW + 3)
    assert (fourth.find(old.kid).state, fourth.find(old.kid).state_since) == ("retired", NOW + 3)
    assert old.kid not in {key.kid for key in fourth.used(purpose)}
    assert KeySet.from_json(fourth.to_json()).to_json() == fourth.to_json()

    untouched = {"sign", "refresh", "csrf"} - {purpose}
    assert all(fourth.active(other) is first.active(other) for other in untouched)


def test_a_step_that_makes_no_sense_is_refused(key_sets):
    key_set = key_sets["EdDSA"]
    with pytest.raises(KeyRefused, match="no next key"):
        key_set.promoted("sign", now=NOW)
    with pytest.raises(KeyRefused, match="rotate first"):
        key_set.retired(key_set.active("sign").kid, now=NOW)
    with pytest.raises(KeyRefused, match="no key"):
        key_set.retired("unknown", now=NOW)
    waiting, new = key_set.with_next("sign", "EdDSA", now=NOW)
    with pytest.raises(KeyRefused, match=new.kid):
        waiting.with_next("sign", "EdDSA", now=NOW)
    assert waiting.retired(new.kid, now=NOW).find(new.kid).state == "retired"  # a next key that was not wanted


def test_a_signing_key_may_be_followed_by_one_of_another_algorithm(key_sets):
    key_set, new = key_sets["HS256"].with_next("sign", "EdDSA", now=NOW)
    key_set, _ = key_set.promoted("sign", now=NOW)
    assert key_set.active("sign").alg == "EdDSA"
    ring = key_set.keyring
    assert verifier_of(ring).verify(token_by(key_sets["HS256"].active("sign"))).sub == "user-1"
    assert verifier_of(ring).verify(token_by(new)).sub == "user-1"


@pytest.mark.parametrize("purpose", ["refresh", "csrf"])
@pytest.mark.parametrize("alg", ["EdDSA", "ES256", "RS256"])
def test_only_signing_keys_are_asymmetric(key_sets, materials, purpose, alg):
    with pytest.raises(KeyRefused, match=purpose):
        key_sets["EdDSA"].with_next(purpose, alg, now=NOW)  # such a set could never be loaded again
    jwk = {**private_jwk(materials[alg]), "kid": "k", "purpose": purpose, "state": "active"}
    with pytest.raises(KeyRefused, match=purpose):
        stored_key(jwk)


def test_tokens_verify_while_their_key_is_next_active_or_verify_only_and_not_when_it_is_retired(key_sets):
    for alg in ("HS256", "EdDSA"):
        first = key_sets[alg]
        second, new = first.with_next("sign", alg, now=NOW)
        third, _ = second.promoted("sign", now=NOW)
        old = first.active("sign")
        fourth = third.retired(old.kid, now=NOW)
        by_old, by_new = token_by(old), token_by(new)
        for key_set in (first, second, third):
            assert verifier_of(key_set.keyring).verify(by_old).sub == "user-1"
        for key_set in (second, third, fourth):
            assert verifier_of(key_set.keyring).verify(by_new).sub == "user-1"
        with pytest.raises(TokenKeyUnknown):
            verifier_of(first.keyring).verify(by_new)
        with pytest.raises(TokenKeyUnknown):
            verifier_of(fourth.keyring).verify(by_old)


def test_the_published_set_has_public_members_only(key_sets):
    expected = {
        "EdDSA": {"kty", "crv", "x", "use", "alg", "kid"},
        "ES256": {"kty", "crv", "x", "y", "use", "alg", "kid"},
        "RS256": {"kty", "n", "e", "use", "alg", "kid"},
    }
    for alg, members in expected.items():
        key_set, new = key_sets[alg].with_next("sign", "EdDSA", now=NOW)
        published = key_set.public_jwks()
        assert [jwk["kid"] for jwk in published["keys"]] == [key_set.active("sign").kid, new.kid]
        assert published["keys"][0].keys() == members
        text = json.dumps(published)
        assert not any(f'"{name}"' in text for name in SECRET_MEMBERS)
        assert not any(form in text for key in key_set.keys for form in spellings(key))


def test_nothing_is_published_for_a_shared_secret(key_sets):
    assert key_sets["HS256"].public_jwks() == {"keys": []}
    for key in key_sets["HS256"].keys:
        with pytest.raises(KeyRefused, match="never published"):
            key.public_jwk()


def test_a_retired_key_is_not_published(key_sets):
    key_set, new = key_sets["EdDSA"].with_next("sign", "ES256", now=NOW)
    key_set, _ = key_set.promoted("sign", now=NOW)
    key_set = key_set.retired(key_sets["EdDSA"].active("sign").kid, now=NOW)
    assert [jwk["kid"] for jwk in key_set.public_jwks()["keys"]] == [new.kid]


def test_purposes_never_mix(key_sets):
    key_set = key_sets["HS256"]
    by_purpose = {purpose: key_set.active(purpose) for purpose in ("sign", "refresh", "csrf")}
    assert {key.kid for key in key_set.keyring.keys} == {by_purpose["sign"].kid}
    for purpose in ("refresh", "csrf"):  # a token made with such a key is a stranger's
        with pytest.raises(TokenKeyUnknown):
            verifier_of(key_set.keyring).verify(token_by(Key(by_purpose[purpose].kid, by_purpose[purpose].material)))
        disguised = Key(by_purpose["sign"].kid, by_purpose[purpose].material)
        with pytest.raises(TokenSignatureInvalid):
            verifier_of(key_set.keyring).verify(token_by(disguised))
    for purpose in ("sign", "csrf"):
        with pytest.raises(KeyRefused, match="not a refresh key"):
            RefreshKeys(by_purpose[purpose], [by_purpose[purpose]])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kid": None}, "no kid"),
        ({"kid": 7}, "no kid"),
        ({"kid": ""}, "no kid"),
        ({"kid": "a b"}, "no kid"),
        ({"kid": "../x"}, "no kid"),
        ({"kid": "x\n"}, "no kid"),
        ({"kid": "é"}, "no kid"),
        ({"kid": "x" * 65}, "no kid"),
        ({"purpose": None}, "key k: purpose"),
        ({"purpose": "Sign"}, "key k: purpose"),
        ({"purpose": ["sign"]}, "key k: purpose"),
        ({"state": "Active"}, "key k: state"),
        ({"state": None}, "key k: state"),
        ({"alg": "RS256"}, "key k: alg"),
        ({"k": "c2VjcmV0"}, "key k: .*32 bytes"),
        ({"created_at": -1}, "key k: created_at"),
        ({"created_at": True}, "key k: created_at"),
        ({"created_at": 1.5}, "key k: created_at"),
        ({"created_at": "1"}, "key k: created_at"),
        ({"state_since": 2**40}, "key k: state_since"),
    ],
)
def test_a_stored_key_is_read_strictly_and_the_refusal_names_its_kid(materials, change, complaint):
    good = {**private_jwk(materials["HS256"]), "kid": "k", "alg": "HS256", "purpose": "sign", "state": "active"}
    assert stored_key(good).kid == "k"
    with pytest.raises(KeyRefused, match=complaint) as caught:
        stored_key({**good, **change})
    assert good["k"] not in str(caught.value)


def test_a_stored_key_without_its_private_part_is_refused(materials):
    jwk = {**materials["EdDSA"].public_members(), "kid": "k", "purpose": "sign", "state": "active"}
    with pytest.raises(KeyRefused, match="key k: the private part is missing"):
        stored_key(jwk)


# --- keys never show themselves ------------------------------------------------------------------------------------

SALT = bytes(range(16))
SESSION = UUID(int=7)


def refresh_keys():
    key = generate_key("HS256", purpose="refresh", state="active", now=NOW)
    return key, [key]


def spellings(key):
    """The ways in which the secret members of a key, and its raw secret, would look in a text."""
    found = set()
    for name, member in key.private_jwk().items():
        if name in SECRET_MEMBERS:
            raw = b64url_decode(member)
            found |= {member, base64.b64encode(raw).decode().rstrip("="), raw.hex(), raw.hex().upper()}
            found |= {repr(raw)[2:-1], str(int.from_bytes(raw, "big")), f"{int.from_bytes(raw, 'big'):x}"}
            found |= {raw.decode("latin-1"), str(list(raw))[1:-1]}
    return found


def everything_that_holds_keys(key_set):
    sign, refresh = key_set.active("sign"), key_set.active("refresh")
    keys = RefreshKeys(refresh, key_set.used("refresh"))
    return {
        "Key": sign,
        "refresh Key": refresh,
        "material": sign.material,
        "refresh material": refresh.material,
        "Keyring": key_set.keyring,
        "KeySet": key_set,
        "RefreshKeys": keys,
        "Presented": keys.read(keys.make(SESSION, Position(3, 1), SALT)),
        "Verifier": verifier_of(key_set.keyring),
        "Signed": jws.verify_signed(token_by(sign), key_set.keyring),
    }


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_no_text_of_an_object_that_holds_keys_shows_them(key_sets, alg):
    secret_texts = set().union(*(spellings(key) for key in key_sets[alg].keys))
    for name, thing in everything_that_holds_keys(key_sets[alg]).items():
        texts = [repr(thing), str(thing), f"{thing}", f"{thing!r:>9}", repr([thing]), repr({"a": (thing,)})]
        if isinstance(thing, Presented):
            secret_texts |= {thing.secret.hex(), repr(thing.secret)[2:-1], b64url_encode(thing.secret)}
        for text in texts:
            assert not any(secret in text for secret in secret_texts), name


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_that_holds_keys_is_pickled(key_sets, alg, protocol):
    for thing in everything_that_holds_keys(key_sets[alg]).values():
        with pytest.raises(TypeError):
            pickle.dumps(thing, protocol)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_copy_shows_no_keys_either(key_sets, alg):
    secret_texts = set().union(*(spellings(key) for key in key_sets[alg].keys))
    for thing in everything_that_holds_keys(key_sets[alg]).values():
        for make_copy in (copy.copy, copy.deepcopy):
            try:
                text = repr(make_copy(thing))
            except TypeError:
                continue
            assert not any(secret in text for secret in secret_texts)


def tracebacks(error):
    """As Python prints it, and as tools do that show local variables; the tests' own are left out."""
    plain = "".join(traceback.format_exception(error))
    ours = error.__traceback__
    while ours is not None and ours.tb_frame.f_code.co_filename == __file__:
        ours = ours.tb_next
    with_locals = traceback.TracebackException(type(error), error, ours, capture_locals=True)
    return plain, "".join(with_locals.format())


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_no_traceback_of_a_refused_token_shows_keys_local_variables_included(key_sets, alg):
    key_set = key_sets[alg]
    secret_texts = set().union(*(spellings(key) for key in key_set.keys))
    refresh = RefreshKeys(key_set.active("refresh"), key_set.used("refresh"))
    secret_texts |= {repr(part)[2:-1] for part in derived_parts(refresh)}
    other = KeySet.generate("HS256", now=NOW)
    head, _, _ = token_by(key_set.active("sign")).rpartition(".")
    good = refresh.make(SESSION, Position(1, 0), SALT)
    calls = [
        lambda: verifier_of(key_set.keyring).verify(f"{head}.AAAA"),
        lambda: verifier_of(key_set.keyring).verify(token_by(other.active("sign"))),
        lambda: refresh.read(good[:-4] + "AAAA"),
        lambda: refresh.check_secret(refresh.read(good), bytes(16)),
        lambda: key_set.find("unknown"),
        lambda: key_set.keyring.find(kid="unknown", alg=alg),
        lambda: pickle.dumps(key_set),
    ]
    for call in calls:
        with pytest.raises((SekishoError, TypeError)) as caught:
            call()
        for text in tracebacks(caught.value):
            assert not any(secret in text for secret in secret_texts)


def derived_parts(refresh):
    derived = [refresh._by_kid[kid] for kid in refresh._by_kid]
    return [getattr(part, name).secret for part in derived for name in ("_k1", "_k2")]


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_no_traceback_of_refused_key_material_shows_it(key_sets, alg):
    for purpose in ("sign", "refresh"):
        key = key_sets[alg].active(purpose)
        jwk = key.private_jwk()
        secret_member = "k" if "k" in jwk else "d"
        broken = [
            {**jwk, "state": "gone"},
            {**jwk, "purpose": "gone"},
            {**jwk, "alg": "none"},
            {**jwk, "created_at": "x"},
            {**jwk, secret_member: jwk[secret_member] + "="},
            {**jwk, secret_member: jwk[secret_member][:20]},
        ]
        if "x" in jwk:
            broken.append({**jwk, "x": jwk["x"][:-4] + "AAAA"})
        if "n" in jwk:
            broken.append({**jwk, "p": jwk["q"]})
        for entry in broken:
            document = json.dumps({"keys": [entry]})
            with pytest.raises(KeyRefused) as caught:
                KeySet.from_json(document.encode())
            text, _ = tracebacks(caught.value)
            assert not any(secret in text for secret in spellings(key))
            assert jwk[secret_member][:20] not in text


def test_a_pem_or_der_of_our_keys_exists_nowhere_in_the_material(materials):
    """Nothing offers an encoding that a library would take for an HMAC secret."""
    public = ed25519.Ed25519PublicKey.from_public_bytes(b64url_decode(materials["EdDSA"].public_members()["x"]))
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(TokenSignatureInvalid):
        materials["EdDSA"].verify(b"message", b64url_encode(hmac.digest(pem, b"message", "sha256")))
    assert not hasattr(materials["EdDSA"], "secret")


def test_private_members_of_a_jwks_are_not_kept() -> None:
    key = generate_key("EdDSA", purpose="sign", state="active", now=0)
    ring = Keyring.from_jwks({"keys": [{**key.private_jwk(), "use": "sig"}]})
    assert not ring.find(kid=key.kid, alg="EdDSA").material.can_sign


def test_two_purposes_never_share_a_secret() -> None:
    document = json.loads(KeySet.generate("HS256", now=0).to_json())
    document["keys"][1]["k"] = document["keys"][0]["k"]
    with pytest.raises(KeyRefused, match="same secret"):
        KeySet.from_json(json.dumps(document).encode())
