"""Access tokens: issued, read, checked, and refused after any change; and that other libraries read them alike."""

import hashlib
import hmac
import json
import string

import joserfc.jwk
import joserfc.jwt
import jwt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sekisho.errors import (
    KeyRefused,
    TokenClaimsInvalid,
    TokenError,
    TokenExpired,
    TokenHeaderRefused,
    TokenKeyUnknown,
    TokenMalformed,
    TokenNotYetValid,
    TokenRevoked,
    TokenSignatureInvalid,
)
from sekisho.tokens import Keyring, KeySet, access, jws
from sekisho.tokens.access import AccessClaims
from sekisho.tokens.algorithms import ALGORITHMS
from sekisho.tokens.keyring import Header
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.verify import Verifier
from sekisho.wire import b64url_decode, b64url_encode, now_s

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://auth.example.com", "shop"
SUBJECT, SESSION = "6c1e8a0e-user", "1f0d2c3b-session"
TTL_S, LEEWAY_S = 900, 10

quick = settings(deadline=None, max_examples=150)
thorough = settings(deadline=None, max_examples=400)


@pytest.fixture(scope="module")
def key_sets():
    return {alg: KeySet.generate(alg, now=NOW) for alg in ALGORITHMS}


@pytest.fixture(scope="module")
def tokens(key_sets):
    return {alg: issue(key_set) for alg, key_set in key_sets.items()}


def issue(key_set, **changed):
    named = {
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "subject": SUBJECT,
        "session_id": SESSION,
        "issued_at": NOW,
        "expires_at": NOW + TTL_S,
    }
    return access.issue(key_set.active("sign"), **{**named, **changed})


def signed(key_set, payload, header=None):
    """A token with this payload (an object, or raw bytes), rightly signed."""
    key = key_set.active("sign")
    header = {"alg": key.alg, "kid": key.kid, "typ": "at+jwt"} if header is None else header
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    message = f"{b64url_encode(json.dumps(header).encode())}.{b64url_encode(data)}"
    return f"{message}.{b64url_encode(key.material.sign(message.encode()))}"


def claims_with(**changed):
    """``changed``: a value of ``...`` leaves the claim out."""
    claims = {
        "iss": ISSUER,
        "sub": SUBJECT,
        "aud": AUDIENCE,
        "exp": NOW + TTL_S,
        "iat": NOW,
        "jti": "jti-1",
        "client_id": "sekisho",
        "sid": SESSION,
    }
    return {name: value for name, value in {**claims, **changed}.items() if value is not ...}


def verifier_of(keys, *, now=NOW, **named):
    ring = keys.keyring if isinstance(keys, KeySet) else keys
    named = {"issuer": ISSUER, "audience": AUDIENCE, "allow_shared_secret": True, "leeway_s": LEEWAY_S, **named}
    return Verifier(keys=ring, clock=lambda: now, **named)


# --- what is issued ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_what_was_issued_is_what_is_verified(key_sets, alg):
    token = issue(key_sets[alg], roles=("admin", "店長"))
    claims = verifier_of(key_sets[alg]).verify(token)
    assert claims == AccessClaims(
        iss=ISSUER,
        sub=SUBJECT,
        aud=AUDIENCE,
        exp=NOW + TTL_S,
        iat=NOW,
        jti=claims.jti,
        client_id="sekisho",
        sid=SESSION,
        nbf=None,
        roles=("admin", "店長"),
    )
    assert len(bytes.fromhex(claims.jti)) == 12
    assert verifier_of(key_sets[alg]).verify(token.encode()) == claims


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_token_says_the_rfc_9068_members_and_no_others(key_sets, alg):
    header, payload, _ = issue(key_sets[alg]).split(".")
    assert json.loads(b64url_decode(header)) == {"alg": alg, "kid": key_sets[alg].active("sign").kid, "typ": "at+jwt"}
    claims = json.loads(b64url_decode(payload))
    assert claims.keys() == {"iss", "sub", "aud", "exp", "iat", "jti", "client_id", "sid"}


def test_every_token_has_its_own_jti(key_sets):
    verifier = verifier_of(key_sets["HS256"])
    assert len({verifier.verify(issue(key_sets["HS256"])).jti for _ in range(100)}) == 100


@quick
@given(subject=st.text(min_size=1, max_size=100), roles=st.lists(st.text(min_size=1, max_size=20), max_size=4))
def test_any_subject_and_roles_come_back_as_they_went(key_sets, subject, roles):
    assume(subject != "sekisho" and not any("\0" in text for text in (subject, *roles)))
    assume(all(text.isprintable() or text.encode("utf-8", "ignore").decode() == text for text in (subject, *roles)))
    claims = verifier_of(key_sets["HS256"]).verify(issue(key_sets["HS256"], subject=subject, roles=tuple(roles)))
    assert (claims.sub, claims.roles) == (subject, tuple(roles))


def test_claims_cannot_be_changed(key_sets, tokens):
    claims = verifier_of(key_sets["HS256"]).verify(tokens["HS256"])
    with pytest.raises(AttributeError):
        claims.sub = "someone else"


# --- other people's verifiers --------------------------------------------------------------------------------------

PUBLIC_ALGORITHMS = [alg for alg in ALGORITHMS if alg != "HS256"]


@pytest.mark.parametrize("alg", PUBLIC_ALGORITHMS)
def test_pyjwt_accepts_our_token_with_our_published_keys(key_sets, alg):
    # PyJWT asks the node's own clock, so this one token is of today.
    token = issue(key_sets[alg], issued_at=now_s(), expires_at=now_s() + TTL_S)
    keys = jwt.PyJWKSet.from_dict(key_sets[alg].public_jwks())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    required = ["iss", "aud", "exp", "iat", "sub", "jti"]
    claims = jwt.decode(token, key, algorithms=[alg], audience=AUDIENCE, issuer=ISSUER, options={"require": required})
    assert claims["sid"] == SESSION
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token[:-8] + "AAAAAAAA", key, algorithms=[alg], audience=AUDIENCE)


# RFC 9864 renames EdDSA to Ed25519; PyJWT knows the old name alone.
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated:joserfc.errors.SecurityWarning")
@pytest.mark.parametrize("alg", PUBLIC_ALGORITHMS)
def test_joserfc_accepts_our_token_with_our_published_keys(key_sets, tokens, alg):
    keys = joserfc.jwk.KeySet.import_key_set(key_sets[alg].public_jwks())
    token = joserfc.jwt.decode(tokens[alg], keys, algorithms=[alg])
    assert token.header["typ"] == "at+jwt"
    essential = {name: {"essential": True} for name in ("exp", "iat", "sub", "jti", "client_id", "sid")}
    joserfc.jwt.JWTClaimsRegistry(
        now=NOW, iss={"essential": True, "value": ISSUER}, aud={"essential": True, "value": AUDIENCE}, **essential
    ).validate(token.claims)


def test_an_hs256_signature_can_be_computed_again_by_hand(key_sets, tokens):
    document = json.loads(key_sets["HS256"].to_json())
    secret = next(b64url_decode(jwk["k"]) for jwk in document["keys"] if jwk["purpose"] == "sign")
    message, _, signature = tokens["HS256"].rpartition(".")
    assert b64url_decode(signature) == hmac.new(secret, message.encode(), hashlib.sha256).digest()


@pytest.mark.parametrize("alg", PUBLIC_ALGORITHMS)
def test_our_own_verifier_accepts_it_with_the_published_keys_alone(key_sets, tokens, alg):
    ring = Keyring.from_jwks(json.dumps(key_sets[alg].public_jwks()))
    assert not ring.has_shared_secret
    assert verifier_of(ring, allow_shared_secret=False).verify(tokens[alg]).sid == SESSION


def test_the_rfc_9864_name_of_ed25519_is_accepted_too(key_sets):
    kid = key_sets["EdDSA"].active("sign").kid
    for name in ("EdDSA", "Ed25519"):
        token = signed(key_sets["EdDSA"], claims_with(), {"alg": name, "kid": kid, "typ": "at+jwt"})
        assert verifier_of(key_sets["EdDSA"]).verify(token).sub == SUBJECT


# --- every change is refused ---------------------------------------------------------------------------------------

ALPHABET = string.ascii_letters + string.digits + "-_"
foreign = st.sampled_from(list(".=+/ \n\r\t\0~!,%é．Ａ０\udc80")) | st.characters()


def refuse(verifier, token):
    with pytest.raises(TokenError) as caught:
        verifier.verify(token)
    return caught.value


@pytest.mark.parametrize("alg", ALGORITHMS)
@thorough
@given(data=st.data())
def test_a_token_with_any_character_replaced_inserted_or_deleted_is_refused(key_sets, tokens, alg, data):
    token = tokens[alg]
    position = data.draw(st.integers(0, len(token) - 1), label="position")
    character = data.draw(st.sampled_from(ALPHABET) | foreign, label="character")
    act = data.draw(st.sampled_from(["replace", "insert", "delete", "append"]), label="act")
    changed = {
        "replace": token[:position] + character + token[position + 1 :],
        "insert": token[:position] + character + token[position:],
        "delete": token[:position] + token[position + 1 :],
        "append": token + character,
    }[act]
    assume(changed != token)
    refuse(verifier_of(key_sets[alg]), changed)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_token_with_its_next_character_anywhere_is_refused(key_sets, tokens, alg):
    """Every position once, with the neighbouring character: the lowest bit of six, which the last place ignores."""
    token, verifier = tokens[alg], verifier_of(key_sets[alg])
    for position, character in enumerate(token):
        other = "A" if character == "." else ALPHABET[ALPHABET.index(character) ^ 1]
        refuse(verifier, token[:position] + other + token[position + 1 :])
        refuse(verifier, token[:position] + token[position + 1 :])


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_no_last_character_but_the_right_one_is_accepted(key_sets, tokens, alg):
    for token in (tokens[alg], tokens[alg][: tokens[alg].rindex(".")]):
        rest = tokens[alg][len(token) :]
        for character in ALPHABET.replace(token[-1], ""):
            refuse(verifier_of(key_sets[alg]), token[:-1] + character + rest)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_parts_of_two_good_tokens_do_not_make_a_third(key_sets, alg):
    one, two = issue(key_sets[alg]).split("."), issue(key_sets[alg], subject="another").split(".")
    for parts in ((one[0], one[1], two[2]), (one[0], two[1], one[2])):
        assert isinstance(refuse(verifier_of(key_sets[alg]), ".".join(parts)), TokenSignatureInvalid)


@quick
@given(st.text(max_size=100) | st.binary(max_size=100))
def test_any_text_is_refused_with_a_token_error(key_sets, token):
    refuse(verifier_of(key_sets["HS256"]), token)


part = st.binary(max_size=60).map(b64url_encode) | st.sampled_from(["", "e30", "bnVsbA", "W10", "!", "="])


@quick
@given(header=part | st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit"]), st.text() | st.none()), rest=part)
def test_any_header_is_refused_with_a_token_error(key_sets, header, rest):
    first = header if isinstance(header, str) else b64url_encode(json.dumps(header).encode())
    refuse(verifier_of(key_sets["HS256"]), f"{first}.{rest}.{rest}")


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@quick
@given(st.dictionaries(st.sampled_from([*claims_with(), "nbf", "roles"]), json_like, min_size=1, max_size=3))
def test_any_claims_are_read_or_refused_with_a_token_error(key_sets, changed):
    """Whoever has the key may sign what they like; nothing but a TokenError comes of it."""
    payload = claims_with(**changed)
    try:
        claims = verifier_of(key_sets["HS256"]).verify(signed(key_sets["HS256"], payload))
    except TokenError:
        return
    assert (claims.iss, claims.sub, claims.sid) == (ISSUER, payload["sub"], payload["sid"])


# --- each reason has its own code for the operator -----------------------------------------------------------------


def test_the_operator_sees_the_reason(key_sets, tokens):
    verifier = verifier_of(key_sets["EdDSA"], revoked=RevokedSessions([Revocation("gone", NOW + 2000)]))
    key = key_sets["EdDSA"].active("sign")
    header = {"alg": key.alg, "kid": key.kid, "typ": "at+jwt"}
    reasons = {
        "garbage": TokenMalformed,
        tokens["HS256"]: TokenKeyUnknown,
        tokens["EdDSA"][:-8] + "AAAAAAAA": TokenSignatureInvalid,
        signed(key_sets["EdDSA"], claims_with(), {**header, "typ": "JWT"}): TokenHeaderRefused,
        signed(key_sets["EdDSA"], claims_with(), {**header, "crit": ["exp"]}): TokenHeaderRefused,
        signed(key_sets["EdDSA"], b"[]"): TokenClaimsInvalid,
        signed(key_sets["EdDSA"], b"{]"): TokenMalformed,
        issue(key_sets["EdDSA"], issuer="https://other.example"): TokenClaimsInvalid,
        issue(key_sets["EdDSA"], issued_at=NOW - 2000, expires_at=NOW - 1000): TokenExpired,
        issue(key_sets["EdDSA"], issued_at=NOW + 100): TokenNotYetValid,
        issue(key_sets["EdDSA"], session_id="gone"): TokenRevoked,
    }
    for token, reason in reasons.items():
        assert type(refuse(verifier, token)) is reason
    assert len({reason.code for reason in reasons.values()}) == len(set(reasons.values()))


def test_a_refusal_never_quotes_the_token(key_sets):
    token = signed(key_sets["HS256"], claims_with(sub="hunter2", iss="hunter2", exp="hunter2"))
    for text in (token, token + "=", "hunter2", token[:-4]):
        error = refuse(verifier_of(key_sets["HS256"]), text)
        assert "hunter2" not in f"{error} {error.detail} {error!r}"
        assert text not in f"{error} {error.detail} {error!r}"


def test_the_signature_is_checked_before_the_claims_are_looked_at(key_sets):
    """Or the answer to a forged payload would say something about the rules."""
    head, _, _ = signed(key_sets["HS256"], b"not even JSON").rpartition(".")
    assert isinstance(refuse(verifier_of(key_sets["HS256"]), head + "." + "A" * 43), TokenSignatureInvalid)


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_another_number_of_parts_is_refused_before_any_key_is_asked(key_sets, tokens, alg):
    ring = key_sets[alg].keyring
    header, payload, signature = tokens[alg].split(".")
    for parts in ((header, payload), (header, payload, payload, signature), (header, "", payload, signature)):
        message = ".".join(parts[:-1])
        by_our_key = b64url_encode(key_sets[alg].active("sign").material.sign(message.encode()))
        for token in (".".join(parts), f"{message}.{by_our_key}", f"{message}.", f".{message}.{by_our_key}"):
            if token.count(".") != 2 or not all(token.split(".")):
                with pytest.raises(TokenMalformed, match="three parts"):
                    jws.verify(token, ring)


# --- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("past_s", "good"), [(-1, True), (0, False), (1, False)])
@pytest.mark.parametrize("leeway_s", [0, 1, 10, 60])
def test_a_token_is_good_until_one_second_before_exp_plus_leeway(key_sets, tokens, leeway_s, past_s, good):
    verifier = verifier_of(key_sets["HS256"], now=NOW + TTL_S + leeway_s + past_s, leeway_s=leeway_s)
    if good:
        assert verifier.verify(tokens["HS256"]).exp == NOW + TTL_S
    else:
        with pytest.raises(TokenExpired):
            verifier.verify(tokens["HS256"])


@pytest.mark.parametrize(("ahead_s", "good"), [(-1, True), (0, True), (1, False)])
@pytest.mark.parametrize("leeway_s", [0, 1, 10, 60])
@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_iat_and_nbf_may_be_ahead_by_the_leeway(key_sets, claim, leeway_s, ahead_s, good):
    token = signed(key_sets["HS256"], claims_with(**{claim: NOW + leeway_s + ahead_s}))
    verifier = verifier_of(key_sets["HS256"], leeway_s=leeway_s)
    if good:
        assert verifier.verify(token).sub == SUBJECT
    else:
        with pytest.raises(TokenNotYetValid):
            verifier.verify(token)


@pytest.mark.parametrize(
    ("lifetime_s", "good"), [(-1, False), (0, False), (1, True), (3599, True), (3600, True), (3601, False)]
)
def test_a_token_that_claims_to_live_longer_than_the_issuer_ever_gives_is_refused(key_sets, lifetime_s, good):
    token = issue(key_sets["HS256"], expires_at=NOW + lifetime_s)
    verifier = verifier_of(key_sets["HS256"])
    if good:
        assert verifier.verify(token).exp == NOW + lifetime_s
    else:
        with pytest.raises(TokenClaimsInvalid):
            verifier.verify(token)


def test_the_lifetime_bound_is_a_setting(key_sets, tokens):
    assert verifier_of(key_sets["HS256"], max_lifetime_s=TTL_S).verify(tokens["HS256"])
    with pytest.raises(TokenClaimsInvalid):
        verifier_of(key_sets["HS256"], max_lifetime_s=TTL_S - 1).verify(tokens["HS256"])


def test_the_clock_is_read_once_for_each_token(key_sets, tokens):
    """A clock that steps back in the middle cannot give two answers to one token."""
    times = iter([NOW, NOW + 10_000, NOW])
    verifier = Verifier(
        issuer=ISSUER,
        audience=AUDIENCE,
        keys=key_sets["EdDSA"].keyring,
        clock=lambda: next(times),
    )
    assert verifier.verify(tokens["EdDSA"])
    with pytest.raises(TokenExpired):
        verifier.verify(tokens["EdDSA"])
    assert verifier.verify(tokens["EdDSA"])
    assert list(times) == []


def test_without_a_clock_it_is_now(key_sets):
    verifier = Verifier(issuer=ISSUER, audience=AUDIENCE, keys=key_sets["EdDSA"].keyring)
    assert verifier.verify(issue(key_sets["EdDSA"], issued_at=now_s(), expires_at=now_s() + 60))
    with pytest.raises(TokenExpired):
        verifier.verify(issue(key_sets["EdDSA"], issued_at=now_s() - 120, expires_at=now_s() - 60))


# --- for whom ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["other", AUDIENCE], [AUDIENCE, AUDIENCE]])
def test_an_audience_that_contains_me_is_for_me(key_sets, audience):
    claims = verifier_of(key_sets["HS256"]).verify(signed(key_sets["HS256"], claims_with(aud=audience)))
    assert claims.is_for(AUDIENCE)
    assert claims.aud == (audience if isinstance(audience, str) else tuple(audience))


@pytest.mark.parametrize("issuer", ["", "https://auth.example.co", ISSUER + "/", ISSUER.upper(), "http" + ISSUER[5:]])
def test_only_the_exact_issuer_counts(key_sets, issuer):
    with pytest.raises(TokenClaimsInvalid):
        verifier_of(key_sets["HS256"]).verify(issue(key_sets["HS256"], issuer=issuer))


# --- the verifier is made ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leeway_s", [float("inf"), float("nan"), -float("inf"), 1e9, 10**9, 61, -1, 10.0, True, False, "10", None]
)
def test_a_leeway_that_is_not_a_whole_number_from_0_to_60_is_refused(key_sets, leeway_s):
    with pytest.raises(ValueError, match="leeway_s"):
        verifier_of(key_sets["EdDSA"], leeway_s=leeway_s)


@pytest.mark.parametrize("lifetime_s", [float("inf"), float("nan"), 0, -1, 3600.0, True, "3600", None])
def test_a_lifetime_bound_that_is_not_a_whole_number_above_0_is_refused(key_sets, lifetime_s):
    with pytest.raises(ValueError, match="max_lifetime_s"):
        verifier_of(key_sets["EdDSA"], max_lifetime_s=lifetime_s)


def test_an_empty_issuer_or_audience_is_refused(key_sets):
    for named in ({"issuer": ""}, {"audience": ""}):
        with pytest.raises(ValueError, match="empty"):
            verifier_of(key_sets["EdDSA"], **named)


def test_a_shared_secret_needs_to_be_allowed(key_sets):
    mixed = Keyring([key_sets["EdDSA"].active("sign"), key_sets["HS256"].active("sign")])
    for ring in (key_sets["HS256"].keyring, mixed):
        with pytest.raises(KeyRefused, match="allow_shared_secret"):
            verifier_of(ring, allow_shared_secret=False)
        verifier = verifier_of(key_sets["EdDSA"], allow_shared_secret=False)
        with pytest.raises(KeyRefused, match="allow_shared_secret"):
            verifier.replace_keys(ring)
        assert verifier.verify(issue(key_sets["EdDSA"]))  # and goes on with the keys it had
    assert Verifier(issuer=ISSUER, audience=AUDIENCE, keys=mixed, allow_shared_secret=True)
    with pytest.raises(KeyRefused):  # refused unless asked for
        Verifier(issuer=ISSUER, audience=AUDIENCE, keys=key_sets["HS256"].keyring)


def test_replaced_keys_count_from_the_next_call(key_sets, tokens):
    verifier = verifier_of(key_sets["EdDSA"])
    assert verifier.verify(tokens["EdDSA"])
    verifier.replace_keys(key_sets["ES256"].keyring)
    assert verifier.verify(tokens["ES256"])
    with pytest.raises(TokenKeyUnknown):
        verifier.verify(tokens["EdDSA"])


# --- taken back ----------------------------------------------------------------------------------------------------


def test_a_session_that_ended_is_refused_from_the_next_call(key_sets, tokens):
    revoked = RevokedSessions()
    verifier = verifier_of(key_sets["EdDSA"], revoked=revoked)
    assert verifier.verify(tokens["EdDSA"])
    revoked.add([Revocation(SESSION, NOW + TTL_S + LEEWAY_S + 60)])
    with pytest.raises(TokenRevoked):
        verifier.verify(tokens["EdDSA"])
    assert verifier.verify(issue(key_sets["EdDSA"], session_id="another"))


def test_what_lapsed_is_forgotten_when_its_tokens_have_expired_by_themselves(key_sets, tokens):
    lapses_at = NOW + TTL_S + LEEWAY_S
    revoked = RevokedSessions([Revocation(SESSION, lapses_at), Revocation("other", lapses_at + 100)])
    revoked.forget_lapsed(lapses_at)
    assert (SESSION in revoked, len(revoked)) == (True, 2)
    revoked.forget_lapsed(lapses_at + 1)
    assert (SESSION in revoked, "other" in revoked, len(revoked)) == (False, True, 1)
    with pytest.raises(TokenExpired):
        verifier_of(key_sets["EdDSA"], revoked=revoked, now=lapses_at + 1).verify(tokens["EdDSA"])


def test_a_signed_token_still_ends_its_session_when_it_expired_or_was_taken_back(key_sets, tokens):
    revoked = RevokedSessions([Revocation(SESSION, NOW + 10_000)])
    for now in (NOW, NOW + 1_000_000, NOW - 1_000_000):
        verifier = verifier_of(key_sets["EdDSA"], revoked=revoked, now=now)
        with pytest.raises(TokenError):
            verifier.verify(tokens["EdDSA"])
        assert verifier.verify_signed(tokens["EdDSA"]).sid == SESSION


def test_a_token_of_another_audience_or_issuer_ends_no_session_here(key_sets, tokens):
    """A service that got a token for itself must not end sessions elsewhere with it."""
    for named in ({"audience": "bank"}, {"audience": "sho"}, {"issuer": ISSUER + "/"}):
        with pytest.raises(TokenClaimsInvalid):
            verifier_of(key_sets["EdDSA"], **named).verify_signed(tokens["EdDSA"])
    both = signed(key_sets["EdDSA"], claims_with(aud=["bank", AUDIENCE]))
    for audience in ("bank", AUDIENCE):
        assert verifier_of(key_sets["EdDSA"], audience=audience).verify_signed(both).sid == SESSION


def test_a_token_that_nobody_signed_ends_no_session(key_sets, tokens):
    verifier = verifier_of(key_sets["EdDSA"])
    key = key_sets["EdDSA"].active("sign")
    header = {"alg": key.alg, "kid": key.kid, "typ": "at+jwt"}
    for token in (
        "garbage",
        tokens["EdDSA"][:-8] + "AAAAAAAA",
        tokens["ES256"],
        signed(key_sets["EdDSA"], claims_with(), {**header, "typ": "logout+jwt"}),
        signed(key_sets["EdDSA"], claims_with(sid=...)),
    ):
        with pytest.raises(TokenError):
            verifier.verify_signed(token)


# --- a JWS of any kind ---------------------------------------------------------------------------------------------


@quick
@given(payload=st.binary(min_size=1, max_size=200))
def test_any_payload_that_was_signed_is_given_back(key_sets, payload):
    key = key_sets["HS256"].active("sign")
    token = jws.sign(payload, key, typ="x+jwt")
    assert jws.verify(token, key_sets["HS256"].keyring) == payload
    header = Header(key=key, media_type="x+jwt", strict_kid=True)
    assert jws.verify_signed(token, key_sets["HS256"].keyring) == (payload, header)


def test_an_empty_payload_is_refused(key_sets):
    """RFC 7515 has it, for detached content; we do not."""
    with pytest.raises(TokenMalformed):
        jws.verify(jws.sign(b"", key_sets["HS256"].active("sign"), typ="x+jwt"), key_sets["HS256"].keyring)
