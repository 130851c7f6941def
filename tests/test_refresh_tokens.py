"""Refresh tokens: a position that we can compute again and nobody else can; and every token at the wrong door."""

import base64
import hashlib
import hmac
import json
import string
from uuid import UUID

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sekisho.errors import KeyRefused, RefreshRefused, RefreshTokenInvalid, TokenError
from sekisho.tokens import KeySet, access, jws
from sekisho.tokens.keys import Key
from sekisho.tokens.refresh import MAX_TOKEN_CHARS, PREFIX, Position, Presented, RefreshKeys
from sekisho.verify import Verifier
from sekisho.wire import b64url_decode, b64url_encode

NOW = 1_800_000_000
SESSION = UUID("0190f0e0-1111-7222-8333-444455556666")
SALT = bytes(range(100, 116))
ALPHABET = string.ascii_letters + string.digits + "-_"

quick = settings(deadline=None, max_examples=150)
thorough = settings(deadline=None, max_examples=500)

session_ids = st.uuids()
positions = st.builds(Position, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
salts = st.binary(min_size=16, max_size=16)


@pytest.fixture(scope="module")
def key_set():
    return KeySet.generate("HS256", now=NOW)


@pytest.fixture(scope="module")
def keys(key_set):
    return keys_of(key_set)


@pytest.fixture(scope="module")
def token(keys):
    return keys.make(SESSION, Position(3, 1), SALT)


def keys_of(key_set):
    return RefreshKeys(key_set.active("refresh"), key_set.used("refresh"))


def refuse(keys, token):
    with pytest.raises(RefreshTokenInvalid) as caught:
        keys.read(token)
    return caught.value


# --- made and read -------------------------------------------------------------------------------------------------


@quick
@given(session_id=session_ids, position=positions, salt=salts)
def test_what_was_made_is_what_is_read(key_set, keys, session_id, position, salt):
    presented = keys.read(keys.make(session_id, position, salt))
    assert (presented.session_id, presented.position) == (session_id, position)
    assert presented.kid == key_set.active("refresh").kid
    keys.check_secret(presented, salt)


@pytest.mark.parametrize("position", [(0, 0), (0, 2**32 - 1), (2**64 - 1, 0), (2**64 - 1, 2**32 - 1), (2**63, 2**31)])
def test_positions_up_to_64_and_32_bits_fit(keys, position):
    assert keys.read(keys.make(SESSION, Position(*position), SALT)).position == position


@quick
@given(one=st.tuples(session_ids, positions, salts), two=st.tuples(session_ids, positions, salts))
def test_a_token_can_be_made_again_and_no_two_places_have_the_same(key_set, keys, one, two):
    assume(one != two)
    assert keys.make(*one) == keys_of(KeySet.from_json(key_set.to_json())).make(*one)
    assert keys.make(*one) != keys.make(*two)


def test_positions_compare_by_generation_and_then_by_branch():
    assert Position(1, 5) < Position(2, 0) < Position(2, 1)


def test_a_token_has_the_documented_form(key_set, token):
    """Computed here once more from the documentation alone."""
    key = key_set.active("refresh")
    jwk = next(jwk for jwk in json.loads(key_set.to_json())["keys"] if jwk["purpose"] == "refresh")
    refresh_key = base64.urlsafe_b64decode(jwk["k"] + "=")

    def derived(label):
        return HKDF(hashes.SHA256(), length=32, salt=None, info=label).derive(refresh_key)

    def mac(secret, message):
        return hmac.new(secret, message, hashlib.sha256).digest()

    place = SESSION.bytes + (3).to_bytes(8, "big") + (1).to_bytes(4, "big")
    body = (
        bytes([1, len(key.kid)]) + key.kid.encode() + place + mac(derived(b"sekisho refresh secret v1"), place + SALT)
    )
    tag = mac(derived(b"sekisho refresh tag v1"), body)[:16]
    assert token == "sekisho_rt_" + base64.urlsafe_b64encode(body + tag).rstrip(b"=").decode()


def test_the_longest_token_is_within_the_limit():
    key = Key("k" * 64, KeySet.generate("HS256", now=NOW).active("refresh").material, "refresh")
    keys = RefreshKeys(key, [key])
    longest = keys.make(SESSION, Position(2**64 - 1, 2**32 - 1), SALT)
    assert len(longest) <= MAX_TOKEN_CHARS
    assert keys.read(longest).kid == key.kid


# --- every change is refused ---------------------------------------------------------------------------------------


@thorough
@given(
    position=st.integers(0, 300),
    character=st.sampled_from(ALPHABET) | st.sampled_from(list(".=+/ \n\0é\udc80")) | st.characters(),
    act=st.sampled_from(["replace", "insert", "delete", "append"]),
)
def test_a_token_with_any_character_changed_is_refused(keys, token, position, character, act):
    position %= len(token)
    changed = {
        "replace": token[:position] + character + token[position + 1 :],
        "insert": token[:position] + character + token[position:],
        "delete": token[:position] + token[position + 1 :],
        "append": token + character,
    }[act]
    assume(changed != token)
    refuse(keys, changed)


def test_every_place_of_a_token_counts(keys, token):
    for position, character in enumerate(token):
        for other in ALPHABET.replace(character, ""):
            refuse(keys, token[:position] + other + token[position + 1 :])
        refuse(keys, token[:position] + token[position + 1 :])
        refuse(keys, token[:position])
        refuse(keys, token[position + 1 :])


def test_every_bit_of_a_token_counts(keys, token):
    data = b64url_decode(token.removeprefix(PREFIX))
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        refuse(keys, PREFIX + b64url_encode(bytes(changed)))


def test_parts_of_two_tokens_of_one_session_do_not_make_a_third(keys):
    one, two = (b64url_decode(keys.make(SESSION, Position(g, 0), SALT).removeprefix(PREFIX)) for g in (1, 2))
    for cut in range(1, len(one)):
        mixed = one[:cut] + two[cut:]
        if mixed not in {one, two}:
            refuse(keys, PREFIX + b64url_encode(mixed))


@quick
@given(st.text(max_size=300) | st.binary(max_size=250).map(lambda data: PREFIX + b64url_encode(data)))
def test_any_text_is_refused_as_an_invalid_refresh_token(keys, text):
    error = refuse(keys, text)
    assert len(text) < 20 or text not in f"{error} {error.detail}"


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token + "=",
        lambda token: token + "\n",
        lambda token: " " + token,
        lambda token: token.upper(),
        lambda token: token.replace("sekisho_rt_", ""),
        lambda token: token.replace("sekisho_rt_", "sekisho_at_"),
        lambda token: "Bearer " + token,
        lambda token: token + token,
        lambda token: token.ljust(MAX_TOKEN_CHARS, "A"),
        lambda token: token + "A" * 100_000,
        lambda token: PREFIX,
        lambda token: "",
    ],
)
def test_another_spelling_or_length_is_refused(keys, token, change):
    refuse(keys, change(token))


# --- the secret ----------------------------------------------------------------------------------------------------


@quick
@given(session_id=session_ids, position=positions, salt=salts, other=salts)
def test_the_secret_holds_for_the_rows_own_salt_alone(keys, session_id, position, salt, other):
    assume(salt != other)
    presented = keys.read(keys.make(session_id, position, salt))
    with pytest.raises(RefreshTokenInvalid):
        keys.check_secret(presented, other)


@pytest.mark.parametrize("salt", [b"", SALT[:-1], SALT + b"\0", bytes(16)])
def test_a_salt_of_another_length_is_another_salt(keys, token, salt):
    with pytest.raises(RefreshTokenInvalid):
        keys.check_secret(keys.read(token), salt)


def test_a_secret_is_good_for_its_place_and_its_key_alone(keys, token):
    presented = keys.read(token)
    for changed in (
        presented._replace(position=Position(3, 2)),
        presented._replace(position=Position(4, 1)),
        presented._replace(session_id=UUID(int=1)),
        presented._replace(secret=bytes(32)),
        presented._replace(secret=presented.secret[:-1]),
        presented._replace(kid="unknown"),
    ):
        with pytest.raises(RefreshTokenInvalid):
            keys.check_secret(changed, SALT)
    keys.check_secret(presented, SALT)


def test_keys_alone_make_no_token_that_holds(keys):
    """Who has the keys but not the row must guess 16 random bytes."""
    forged = keys.make(SESSION, Position(3, 1), bytes(16))
    presented = keys.read(forged)  # the tag holds
    with pytest.raises(RefreshTokenInvalid):
        keys.check_secret(presented, SALT)


# --- keys turn over ------------------------------------------------------------------------------------------------


def test_a_token_lives_on_while_its_key_is_verify_only_and_ends_when_it_is_retired(key_set, token):
    old = key_set.active("refresh").kid
    waiting, new = key_set.with_next("refresh", "HS256", now=NOW)
    rotated, _ = waiting.promoted("refresh", now=NOW)
    retired = rotated.retired(old, now=NOW)

    for still_good in (key_set, waiting, rotated):
        keys = keys_of(still_good)
        presented = keys.read(token)
        assert (presented.kid, presented.position) == (old, Position(3, 1))
        keys.check_secret(presented, SALT)

    by_new = keys_of(rotated).make(SESSION, Position(4, 0), SALT)
    assert by_new != keys_of(key_set).make(SESSION, Position(4, 0), SALT)
    for knows_it in (waiting, rotated, retired):  # a node that has not promoted yet reads it too
        keys = keys_of(knows_it)
        assert keys.read(by_new).kid == new.kid
        keys.check_secret(keys.read(by_new), SALT)

    refuse(keys_of(retired), token)
    refuse(keys_of(key_set), by_new)


def test_a_key_that_is_retired_between_the_two_checks_is_a_plain_refusal(key_set, token):
    presented = keys_of(key_set).read(token)
    rotated, _ = key_set.with_next("refresh", "HS256", now=NOW)[0].promoted("refresh", now=NOW)
    with pytest.raises(RefreshTokenInvalid):
        keys_of(rotated.retired(presented.kid, now=NOW)).check_secret(presented, SALT)


def test_the_kid_of_a_token_cannot_be_exchanged(key_set):
    """Two keys of one set: what one made does not hold under the name of the other."""
    rotated, new = key_set.with_next("refresh", "HS256", now=NOW)[0].promoted("refresh", now=NOW)
    old = key_set.active("refresh").kid
    data = b64url_decode(keys_of(key_set).make(SESSION, Position(3, 1), SALT).removeprefix(PREFIX))
    refuse(keys_of(rotated), PREFIX + b64url_encode(data.replace(old.encode(), new.kid.encode())))


def test_a_key_for_another_purpose_makes_no_refresh_tokens(key_set):
    for purpose in ("sign", "csrf"):
        key = key_set.active(purpose)
        with pytest.raises(KeyRefused):
            RefreshKeys(key, [key])
    asymmetric = KeySet.generate("EdDSA", now=NOW).active("sign").material
    disguised = Key("k", asymmetric, "refresh")
    with pytest.raises(KeyRefused):
        RefreshKeys(disguised, [disguised])


def test_the_two_derived_keys_and_the_refresh_key_are_three_keys(key_set, keys, token):
    """A tag is not the beginning of a MAC by the refresh key itself, nor is the secret."""
    raw = key_set.active("refresh").material.secret
    body = b64url_decode(token.removeprefix(PREFIX))
    assert hmac.digest(raw, body[:-16], "sha256")[:16] != body[-16:]
    assert hmac.digest(raw, body[-76:-48] + SALT, "sha256") != keys.read(token).secret


# --- the wrong doors -----------------------------------------------------------------------------------------------


def access_token(key_set):
    return access.issue(
        key_set.active("sign"),
        issuer="https://auth.example.com",
        audience="shop",
        subject="user-1",
        session_id=str(SESSION),
        issued_at=NOW,
        expires_at=NOW + 900,
    )


def verifier_of(key_set):
    return Verifier(
        issuer="https://auth.example.com",
        audience="shop",
        keys=key_set.keyring,
        allow_shared_secret=True,
        clock=lambda: NOW,
    )


def test_each_token_opens_its_own_door_alone(key_set, keys, token):
    signed = access_token(key_set)
    verifier = verifier_of(key_set)
    assert verifier.verify(signed).sid == str(SESSION)
    for door in (verifier.verify, verifier.verify_signed):
        for stranger in (token, token.removeprefix(PREFIX), f"{token}.{token}.{token}"):
            with pytest.raises(TokenError):
                door(stranger)
    for stranger in (signed, PREFIX + signed, PREFIX + signed.replace(".", ""), signed.split(".")[2]):
        refuse(keys, stranger)


@pytest.mark.parametrize(
    "typ", ["rt+jwt", "JWT", "reset+jwt", "csrf+jwt", "logout+jwt", "secevent+jwt", "dpop+jwt", ""]
)
def test_a_signed_token_of_another_kind_opens_no_door(key_set, keys, typ):
    """Even by the right key, with the claims of an access token."""
    payload = jws.verify(access_token(key_set), key_set.keyring)
    stranger = jws.sign(payload, key_set.active("sign"), typ=typ)
    with pytest.raises(TokenError):
        verifier_of(key_set).verify(stranger)
    with pytest.raises(TokenError):
        verifier_of(key_set).verify_signed(stranger)
    refuse(keys, stranger)


def test_a_refresh_or_csrf_key_signs_no_access_token(key_set):
    payload = jws.verify(access_token(key_set), key_set.keyring)
    for purpose in ("refresh", "csrf"):
        key = key_set.active(purpose)
        for kid in (key.kid, key_set.active("sign").kid):
            with pytest.raises(TokenError):
                verifier_of(key_set).verify(jws.sign(payload, Key(kid, key.material), typ="at+jwt"))


def test_every_refusal_looks_the_same_to_the_caller():
    kinds = [RefreshRefused, *RefreshRefused.__subclasses__()]
    assert len(kinds) == 4
    assert {(kind.public_code, kind.text_en, kind.text_ja) for kind in kinds} == {
        ("refresh_refused", RefreshRefused.text_en, RefreshRefused.text_ja)
    }


def test_a_presented_token_does_not_print_its_secret(keys, token):
    presented = keys.read(token)
    assert isinstance(presented, Presented)
    for text in (repr(presented), str(presented), f"{presented}", repr([presented])):
        assert repr(presented.secret)[2:-1] not in text
        assert presented.secret.hex() not in text
        assert str(SESSION) in text
