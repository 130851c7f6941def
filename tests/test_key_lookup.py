"""Which key of a ring checks a token: the one that its header names, exactly, or the only one of its algorithm."""

import json
from pathlib import Path

import pytest

from sekisho.errors import KeyRefused, TokenError, TokenHeaderRefused, TokenKeyUnknown, TokenRevoked
from sekisho.tokens import Keyring, algorithms, jws
from sekisho.tokens.algorithms import ALGORITHMS, Es256
from sekisho.tokens.keys import Key
from sekisho.wire import b64url_encode

NAMED_BY_RFCS = [
    pytest.param(entry, id=entry["source"])
    for entry in json.loads((Path(__file__).parent / "vectors" / "jws.json").read_text())
    if "kid" in entry["jwk"]
]


@pytest.fixture(scope="module")
def materials():
    return {alg: algorithms.generate(alg) for alg in ALGORITHMS}


def private_jwk(material):
    return {**material.public_members(), **material.private_members()}


@pytest.mark.parametrize("vector", NAMED_BY_RFCS)
def test_the_rfc_token_names_its_key_by_any_text_and_only_that_key_is_asked(vector):
    """RFC 7520 has an e-mail address for one. An access token may not: see row 22."""
    kid, jwk = vector["jwk"]["kid"], vector["jwk"]
    other = {**jwk, "kid": kid.upper()}
    assert jws.verify(vector["token"], Keyring.from_jwks({"keys": [other, jwk]})) == vector["payload"].encode()
    for others in ([other], [{**jwk, "kid": kid + " "}], [{**jwk, "kid": ""}], [{**jwk, "kid": kid[:-1]}]):
        with pytest.raises(TokenKeyUnknown):
            jws.verify(vector["token"], Keyring.from_jwks({"keys": others}))


def token_with(material, **header):
    head = b64url_encode(json.dumps({"alg": material.alg, **header}, ensure_ascii=False).encode())
    message = f"{head}.{b64url_encode(b'payload')}"
    return f"{message}.{b64url_encode(material.sign(message.encode()))}"


@pytest.mark.parametrize("letter", ["x", "é", "鍵", "\U0001f511", '"', "\\", "\x7f", "\n"])
def test_a_kid_of_a_jwks_is_any_text_of_up_to_256_characters(materials, letter):
    material = materials["EdDSA"]
    public = material.public_members()
    for length in (1, 64, 65, 255, 256):
        ring = Keyring.from_jwks({"keys": [{**public, "kid": letter * length}]})
        assert jws.verify(token_with(material, kid=letter * length), ring) == b"payload"
        for other in (letter * (length + 1), letter * (length - 1), "y" * length, ""):
            with pytest.raises(TokenError):
                jws.verify(token_with(material, kid=other), ring)
    with pytest.raises(KeyRefused, match="256"):
        Keyring.from_jwks({"keys": [{**public, "kid": letter * 257}]})
    with pytest.raises(TokenHeaderRefused):  # before it is looked up
        jws.verify(token_with(material, kid=letter * 257), Keyring([Key(letter * 257, material)]))


def test_kids_are_the_same_when_their_characters_are(materials):
    """Neither letter case nor Unicode's other spellings of a character."""
    material = materials["EdDSA"]
    ring = Keyring.from_jwks({"keys": [{**material.public_members(), "kid": "clé"}]})
    assert jws.verify(token_with(material, kid="clé"), ring) == b"payload"
    for other in ("cle\u0301", "CLÉ", "clé ", " clé", "clé\0", "cle"):
        with pytest.raises(TokenKeyUnknown):
            jws.verify(token_with(material, kid=other), ring)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_token_without_a_kid_is_of_the_one_key_of_its_algorithm_or_of_nobody(materials, alg):
    named = [{**private_jwk(materials[other]), "kid": other} for other in ALGORITHMS]
    unnamed = [private_jwk(materials[other]) for other in ALGORITHMS]
    token = token_with(materials[alg])
    for entries in (named, unnamed):
        assert jws.verify(token, Keyring.from_jwks({"keys": entries})) == b"payload"
        with pytest.raises(TokenKeyUnknown):
            jws.verify(
                token,
                Keyring.from_jwks({"keys": [jwk for jwk in entries if entries.index(jwk) != ALGORITHMS.index(alg)]}),
            )
    if alg != "RS256":  # which takes long to make
        second = {**private_jwk(algorithms.generate(alg)), "kid": "second"}
        with pytest.raises(TokenKeyUnknown):
            jws.verify(token, Keyring.from_jwks({"keys": [*named, second]}))
        assert (
            jws.verify(token_with(materials[alg], kid=alg), Keyring.from_jwks({"keys": [*named, second]})) == b"payload"
        )


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_key_that_says_no_alg_has_that_of_its_type_and_curve_alone(materials, alg):
    jwk = {**private_jwk(materials[alg]), "kid": "k"}
    for entry in (jwk, {**jwk, "alg": alg}):
        ring = Keyring.from_jwks({"keys": [entry]})
        assert ring.keys[0].alg == alg
        assert jws.verify(token_with(materials[alg], kid="k"), ring) == b"payload"
        for said in (*ALGORITHMS, "PS256", "RS512", "ES384", "HS512", "none"):
            if said != alg:
                with pytest.raises(TokenHeaderRefused):
                    jws.verify(token_with(materials[alg], kid="k", alg=said), ring)


@pytest.mark.parametrize("bound", [{"use": "enc"}, {"key_ops": ["sign"]}, {"key_ops": []}, {"alg": "none"}], ids=str)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_key_that_is_not_for_checking_checks_nothing(materials, alg, bound):
    other = {**Es256.generate().public_members(), "kid": "other"}
    ring = Keyring.from_jwks({"keys": [{**private_jwk(materials[alg]), "kid": "k", **bound}, other]})
    for token in (token_with(materials[alg], kid="k"), token_with(materials[alg])):
        with pytest.raises(TokenError):
            jws.verify(token, ring)


def test_a_ring_without_withdrawn_keys_knows_them_as_withdrawn_for_good(materials):
    bad = {"kty": "oct", "k": "", "kid": "bad"}
    ring = Keyring.from_jwks({"keys": [bad, *({**private_jwk(materials[alg]), "kid": alg} for alg in ALGORITHMS)]})
    left = ring.without(frozenset({"EdDSA"})).without(frozenset({"ES256", "unknown"})).without(frozenset())
    assert [key.kid for key in left.keys] == ["HS256", "RS256"]
    for kid in ("EdDSA", "ES256", "unknown"):
        for alg in (*ALGORITHMS, "none", None):
            with pytest.raises(TokenRevoked):
                left.find(kid=kid, alg=alg)
    with pytest.raises(TokenKeyUnknown):
        left.find(kid=None, alg="EdDSA")
    assert left.find(kid="HS256", alg="HS256").kid == "HS256"
    assert left.refused == ring.refused != ()
    assert len(ring.keys) == 4  # as it was
    assert ring.find(kid="EdDSA", alg="EdDSA").kid == "EdDSA"
