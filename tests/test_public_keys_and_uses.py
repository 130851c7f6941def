"""A key is used for what it is: no public key becomes a secret, no key of another purpose or state checks tokens."""

import base64
import json
import math
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sekisho.errors import KeyRefused, TokenClaimsInvalid, TokenExpired, TokenKeyUnknown, TokenMalformed
from sekisho.tokens import Keyring, KeySet, access, jws
from sekisho.tokens.algorithms import EdDsa, Es256, Hs256
from sekisho.tokens.keys import Key, generate_key
from sekisho.tokens.weak_keys import refuse_weak_modulus, refuse_weak_point
from sekisho.verify import Verifier
from sekisho.verify.bearer import bearer_token
from sekisho.wire import b64url_encode

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://auth.example.com", "shop"
PUBLIC = {
    "Ed25519": ed25519.Ed25519PrivateKey.generate().public_key(),
    "P-256": ec.generate_private_key(ec.SECP256R1()).public_key(),
    "RSA": rsa.generate_private_key(65537, 2048).public_key(),
}


def encodings(public):
    info = PublicFormat.SubjectPublicKeyInfo
    pem, der = public.public_bytes(Encoding.PEM, info), public.public_bytes(Encoding.DER, info)
    body = b"".join(pem.splitlines()[1:-1])
    yield from (pem, pem.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + pem, b"\n " + pem, der, body)
    yield b"\n".join(pem.splitlines()[1:-1])
    yield public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    if isinstance(public, rsa.RSAPublicKey):
        yield from (public.public_bytes(encoding, PublicFormat.PKCS1) for encoding in (Encoding.PEM, Encoding.DER))


def oct_jwk(secret, **members):
    return {"kty": "oct", "k": b64url_encode(secret), **members}


@pytest.mark.parametrize("kind", PUBLIC)
def test_a_public_key_in_any_encoding_that_shows_it_is_no_secret(kind):
    for encoded in encodings(PUBLIC[kind]):
        with pytest.raises(KeyRefused):
            Keyring.from_jwks({"keys": [oct_jwk(encoded)]})


def test_a_point_and_a_jwk_as_text_are_no_secret():
    point = PUBLIC["P-256"].public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    jwk = Es256(PUBLIC["P-256"]).public_members()
    for encoded in (point, json.dumps(jwk).encode(), json.dumps({"keys": [jwk]}).encode(), json.dumps([jwk]).encode()):
        with pytest.raises(KeyRefused):
            Hs256(encoded)


def test_a_raw_public_key_is_no_secret_beside_the_key_itself():
    ed, p256 = EdDsa(PUBLIC["Ed25519"]).public_members(), Es256(PUBLIC["P-256"]).public_members()
    raw = PUBLIC["Ed25519"].public_bytes_raw()
    compressed = PUBLIC["P-256"].public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    for members, secret in ((ed, raw), (p256, compressed)):
        with pytest.raises(KeyRefused, match="public key of the same set"):
            Keyring.from_jwks({"keys": [{**members, "kid": "a"}, oct_jwk(secret, kid="b")]})


def test_random_secrets_of_many_lengths_load():
    for length in (32, 33, 48, 64, 65, 128):
        secret = bytes((index * 97 + length) % 251 for index in range(length))
        assert Hs256(secret).secret == secret


def test_an_ed25519_key_off_the_curve_or_not_canonical_does_not_load():
    prime = 2**255 - 19
    with pytest.raises(KeyRefused, match="not a point of the curve"):
        refuse_weak_point((2).to_bytes(32, "little"))
    with pytest.raises(KeyRefused, match="not canonical"):
        refuse_weak_point((prime + 3).to_bytes(32, "little"))
    on_curve = 0
    for y in range(2, 300):
        try:
            refuse_weak_point(y.to_bytes(32, "little"))
        except KeyRefused:
            continue
        on_curve += 1
    assert 100 < on_curve < 200  # about half of all y have an x


def test_an_rsa_modulus_that_anyone_can_factor_does_not_load():
    good = PUBLIC["RSA"].public_numbers().n
    refuse_weak_modulus(good, 65537)
    for modulus, complaint in (
        (good * 2, "small factor"),
        (good * 751, "small factor"),
        (3**1300, "small factor"),
        ((2**1279 - 1) ** 2, "square"),
    ):
        with pytest.raises(KeyRefused, match=complaint):
            refuse_weak_modulus(modulus, 65537)


def test_of_sekishos_own_set_only_signing_keys_in_use_check_tokens():
    key_set = KeySet.generate("HS256", now=NOW)
    document = json.loads(key_set.to_json())
    ring = Keyring.from_jwks(document)
    assert [key.kid for key in ring.keys] == [key_set.active("sign").kid]
    assert len(ring.refused) == 2
    retired = dict(document["keys"][0], state="retired")
    with pytest.raises(KeyRefused, match="retired"):
        Keyring.from_jwks({"keys": [retired]})


@pytest.mark.parametrize("members", [{"use": "enc"}, {"key_ops": ["sign"]}, {"key_ops": "verify"}])
def test_use_and_key_ops_bind_a_stored_key_too(members):
    document = json.loads(KeySet.generate("HS256", now=NOW).to_json())
    document["keys"][0] |= members
    with pytest.raises(KeyRefused, match=document["keys"][0]["kid"]):
        KeySet.from_json(json.dumps(document).encode())


def test_a_long_certificate_costs_nothing_and_what_is_no_set_is_refused():
    jwk = {**EdDsa(PUBLIC["Ed25519"]).public_members(), "x5c": ["A" * 20_000]}
    assert len(Keyring.from_jwks(json.dumps({"keys": [jwk]})).keys) == 1
    for nonsense in ([], None, 1):
        with pytest.raises(KeyRefused):
            Keyring.from_jwks(nonsense)


def test_a_kid_does_not_reach_a_log_as_it_is():
    jwk = {**EdDsa(PUBLIC["Ed25519"]).public_members(), "kid": "a\nINFO all is well"}
    with pytest.raises(KeyRefused) as refused:
        Keyring.from_jwks({"keys": [jwk, jwk]})
    assert "\n" not in refused.value.detail


# --- headers that can name a key -----------------------------------------------------------------------------------


def token_under(header, ring, payload=b"x"):
    (key,) = ring.keys
    message = f"{b64url_encode(header)}.{b64url_encode(payload)}"
    return f"{message}.{b64url_encode(key.material.sign(message.encode()))}"


@pytest.mark.parametrize("kid", ["k" * 256, "鍵" * 256, "🗝" * 256, '"' * 256, "k"])
def test_a_header_may_write_its_kid_in_the_longest_way(kid):
    ring = Keyring([Key(kid, Hs256.generate())])
    escaped = "".join(f"\\u{unit:04x}" for unit in memoryview(kid.encode("utf-16-le")).cast("H"))
    header = f'{{ "alg" : "HS256" , "kid" : "{escaped}" , "typ" : "a+jwt" }}'.encode("ascii")
    assert jws.verify(token_under(header, ring), ring) == b"x"


def test_a_header_longer_than_that_names_no_key():
    ring = Keyring([Key("k", Hs256.generate())])
    header = b'{"alg":"HS256","kid":"k"' + b" " * 300 + b"}"
    assert len(b64url_encode(header)) > ring.max_header_chars
    with pytest.raises(TokenKeyUnknown):
        jws.verify(token_under(header, ring), ring)
    assert ring.max_header_chars == math.floor((12 + 256) * 4 / 3)


# --- issue and verify ----------------------------------------------------------------------------------------------


def verifier_of(key, **named):
    return Verifier(
        **{"issuer": ISSUER, "audience": AUDIENCE, "keys": Keyring([key]), "clock": lambda: NOW, **named},
        allow_shared_secret=True,
    )


def issued(key, **named):
    given = {"issuer": ISSUER, "audience": AUDIENCE, "subject": "u", "session_id": "s", "issued_at": NOW}
    return access.issue(key, **{**given, "expires_at": NOW + 900, **named})


@pytest.fixture(scope="module")
def key():
    return generate_key("HS256", purpose="sign", state="active", now=NOW)


def test_a_token_that_no_verifier_would_take_is_not_issued(key):
    with pytest.raises(ValueError, match="8 KiB"):
        issued(key, roles=tuple(f"role-{number}" for number in range(1000)))


def test_other_keys_tokens_are_remembered_after_one_key_was_withdrawn(key):
    verifier = verifier_of(key)
    verifier.withdraw_key("another")
    verifier.verify(issued(key))
    assert len(verifier._held.in_use[1]) == 1


def test_a_clock_that_is_no_number_lets_nobody_in(key):
    with pytest.raises(TokenExpired):
        verifier_of(key, clock=lambda: math.nan).verify(issued(key))


def test_logout_takes_tokens_of_our_issuer_for_us_alone_and_refusals_are_counted(key):
    verifier = verifier_of(key)
    assert verifier.verify_signed(issued(key, expires_at=NOW - 1, issued_at=NOW - 900)).sid == "s"
    for changed in ({"issuer": "https://other.example"}, {"audience": "other"}):
        with pytest.raises(TokenClaimsInvalid):
            verifier.verify_signed(issued(key, **changed))
    assert verifier.refused == {"token_claims_invalid": 2}


def test_a_long_token_is_verified_and_not_remembered(key):
    verifier = verifier_of(key)
    _, seen, *_ = verifier._held.in_use
    for roles, kept in ((40, 1), (400, 1), (1, 2)):
        token = issued(key, roles=tuple(f"r{number}" for number in range(roles)))
        assert verifier.verify(token) == verifier.verify(token)
        assert len(seen) == kept


def test_a_header_with_megabytes_is_refused_before_it_is_read():
    with pytest.raises(TokenMalformed):
        bearer_token(["Bearer " + "a" * 8193])
    assert len(bearer_token(["Bearer " + "a" * 8192])) == 8192


def test_nul_is_refused_and_its_escape_as_text_is_not(key):
    ring = Keyring([key])
    assert access.read(issued(key, subject="a\\u0000b"), ring).sub == "a\\u0000b"
    for changed in ({"subject": "a\0b"}, {"session_id": "\0"}, {"audience": "a\0"}, {"roles": ("x", "a\0")}):
        with pytest.raises(TokenClaimsInvalid, match="NUL"):
            access.read(issued(key, **changed), ring)


def test_base64_of_a_public_key_is_recognised_with_line_ends():
    der = PUBLIC["Ed25519"].public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(KeyRefused):
        Hs256(base64.encodebytes(der))


# --- what is written, to the letter --------------------------------------------------------------------------------


def test_a_key_is_an_active_signing_key_unless_told(key):
    material = Hs256.generate()
    assert Key("k", material) == Key("k", material, "sign", "active", 0, 0)
    assert repr(Key("k", material)) == "<Key k HS256 sign active>"
    assert repr(Keyring([Key("k", material)])) == "<Keyring <Key k HS256 sign active>>"
    assert repr(Keyring([Key("k", material), Key("l", Hs256.generate())])).count(", ") == 1


def test_a_stored_key_says_everything_and_what_it_leaves_out_has_a_default():
    key_set = KeySet.generate("EdDSA", now=NOW)
    stored = key_set.active("sign").private_jwk()
    assert stored["alg"] == "EdDSA"
    document = json.loads(key_set.to_json())
    for jwk in document["keys"]:
        del jwk["created_at"], jwk["state_since"]
    again = KeySet.from_json(json.dumps(document).encode())
    assert {(key.created_at, key.state_since) for key in again.keys} == {(0, 0)}
    assert repr(again).startswith("<KeySet <Key ")
    assert repr(again).count(", ") == 2
    assert key_set.to_json().endswith(b"\n")
    assert b'\n  "keys": [' in key_set.to_json()


def test_a_secret_has_a_random_kid_of_sixteen_letters(key):
    assert len(key.kid) == 16
    assert int(key.kid, 16) >= 0


def test_a_token_has_no_spaces_in_it(key):
    header, payload, _ = issued(key, roles=("店長",)).split(".")
    for part in (header, payload):
        assert b" " not in base64.urlsafe_b64decode(part + "==")
    assert "店長".encode() in base64.urlsafe_b64decode(payload + "==")


def test_account_and_session_are_the_ids_of_our_own_tokens(key):
    account, session = uuid4(), uuid4()
    claims = access.read(issued(key, subject=str(account), session_id=str(session)), Keyring([key]))
    assert access.account_and_session(claims) == (account, session)
    for changed in ({"subject": "someone"}, {"session_id": "some"}):
        given = {"subject": str(account), "session_id": str(session), **changed}
        with pytest.raises(TokenClaimsInvalid):
            access.account_and_session(access.read(issued(key, **given), Keyring([key])))


def test_claims_that_may_be_left_out_have_a_value(key):
    claims = access.read(issued(key), Keyring([key]))
    assert (claims.nbf, claims.roles) == (None, ())
