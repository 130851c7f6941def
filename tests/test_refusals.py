"""Refused tokens are counted by their reasons; the operator gets a line now and then, which quotes nothing of them."""

import json
import logging
import re
from types import SimpleNamespace

import pytest

from sekisho.errors import TokenError, TokenExpired, TokenMalformed, TokenRevoked, TokenSignatureInvalid
from sekisho.tokens import Keyring, access, algorithms
from sekisho.tokens.keys import Key
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.verify import Verifier
from sekisho.verify.refusals import LINE_EVERY_S, Refusals
from sekisho.wire import b64url_encode

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://auth.example.com", "shop"


@pytest.fixture
def lines(caplog):
    """What was logged so far: how many, and which was the last and why."""
    caplog.set_level(logging.DEBUG, logger="sekisho.verify")
    return lambda: [
        (int(count), last)
        for record in caplog.records
        if record.name == "sekisho.verify"
        for count, last in [re.search(r"(\d+)\b.* (\w+, .*)", record.getMessage()).groups()]
    ]


@pytest.fixture(scope="module")
def key():
    return Key("key-1", algorithms.generate("HS256"))


@pytest.fixture
def clock():
    return SimpleNamespace(now=NOW)


@pytest.fixture
def verifier(key, clock):
    return Verifier(
        issuer=ISSUER,
        audience=AUDIENCE,
        keys=Keyring([key]),
        revoked=RevokedSessions([Revocation("ended", NOW + 10_000)]),
        allow_shared_secret=True,
        clock=lambda: clock.now,
    )


def issue(key, **changed):
    named = {
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "subject": "user-1",
        "session_id": "session-1",
        "issued_at": NOW,
        "expires_at": NOW + 900,
    }
    return access.issue(key, **{**named, **changed})


def refuse(verifier, token):
    with pytest.raises(TokenError) as caught:
        verifier.verify(token)
    return caught.value


# --- the line ------------------------------------------------------------------------------------------------------


def test_the_first_refusal_is_told_and_then_one_line_each_ten_seconds_with_the_count(verifier, clock, lines):
    assert LINE_EVERY_S == 10
    refuse(verifier, "garbage")
    assert lines() == [(1, "token_malformed, not three parts")]
    for second in range(10):
        clock.now = NOW + second
        for _ in range(50):
            refuse(verifier, "a.b")
    clock.now = NOW + 9.999
    refuse(verifier, "a.b")
    assert len(lines()) == 1
    clock.now = NOW + 10
    refuse(verifier, "é")
    assert lines()[1:] == [(502, "token_malformed, not ASCII")]
    refuse(verifier, "é")
    clock.now = NOW + 3600
    refuse(verifier, "x" * 8193)
    assert lines()[2:] == [(2, "token_malformed, longer than 8 KiB")]
    assert verifier.refused == {"token_malformed": 505}


@pytest.mark.parametrize("back_s", [10, 11, 3600, 10**9])
def test_a_clock_that_is_put_back_does_not_silence_it(verifier, clock, lines, back_s):
    refuse(verifier, "garbage")
    refuse(verifier, "garbage")
    clock.now = NOW - back_s
    refuse(verifier, "garbage")
    assert lines()[1:] == [(2, "token_malformed, not three parts")]
    for _ in range(20):
        refuse(verifier, "garbage")
    assert len(lines()) == 2
    clock.now += 10
    refuse(verifier, "garbage")
    assert len(lines()) == 3
    assert lines()[2] == (21, "token_malformed, not three parts")


def test_a_clock_at_zero_and_before_it_is_a_clock(verifier, clock, lines):
    clock.now = 0
    refuse(verifier, "garbage")
    clock.now = -5
    refuse(verifier, "garbage")
    assert len(lines()) == 1


def test_expired_tokens_are_counted_and_not_told(verifier, clock, key, lines):
    """Each token comes to that."""
    expired = issue(key, issued_at=NOW - 900, expires_at=NOW - 10)
    seen = issue(key)
    verifier.verify(seen)
    for _ in range(30):
        refuse(verifier, expired)
    clock.now = NOW + 5000
    refuse(verifier, seen)
    assert lines() == []
    assert verifier.refused == {"token_expired": 31}
    refuse(verifier, "garbage")
    assert lines() == [(1, "token_malformed, not three parts")]  # they are not in it


def test_the_line_is_a_warning_of_its_own_logger(verifier, caplog):
    refuse(verifier, "garbage")
    assert [(record.name, record.levelno) for record in caplog.records] == [("sekisho.verify", logging.WARNING)]
    assert caplog.records[0].exc_info is None


def test_the_line_quotes_no_token_no_claim_and_no_key(verifier, clock, key, caplog):
    canary = "hunter2"
    head = {"alg": "HS256", "kid": "key-1", "typ": "at+jwt"}
    claims = {"iss": ISSUER, "sub": canary, "aud": AUDIENCE, "exp": NOW + 900, "iat": NOW, "jti": canary}
    claims |= {"client_id": "sekisho", "sid": canary}

    def signed(header, payload):
        message = f"{b64url_encode(json.dumps(header).encode())}.{b64url_encode(payload)}"
        return f"{message}.{b64url_encode(key.material.sign(message.encode()))}"

    tokens = [
        canary,
        f"{canary}.{canary}.{canary}",
        signed(head | {"kid": canary}, json.dumps(claims).encode()),
        signed(head | {"typ": canary}, json.dumps(claims).encode()),
        signed(head | {canary: canary}, json.dumps(claims).encode()),
        signed(head | {"alg": canary}, json.dumps(claims).encode()),
        signed(head, json.dumps(claims | {"exp": canary}).encode()),
        signed(head, json.dumps(claims | {"iss": canary}).encode()),
        signed(head, json.dumps(claims | {"aud": canary}).encode()),
        signed(head, json.dumps(claims | {"x": canary + "\ud800"}).encode()),
        signed(head, json.dumps(claims).encode() + canary.encode()),
        signed(head, json.dumps(claims).encode()[:-1] + b',"sub":"hunter2"}'),
        signed(head, json.dumps(claims | {"exp": NOW + 10**6}).encode()),
        signed(head, json.dumps(claims | {"iat": NOW + 100}).encode()),
        signed(head, json.dumps(claims | {"sid": "ended"}).encode()),
        signed(head, json.dumps(claims).encode())[:-8] + "AAAAAAAA",
    ]
    for token in tokens:
        clock.now += 10  # a line for each, at about the same time
        refuse(verifier, token)
        clock.now -= 10
        refuse(verifier, "garbage")
    assert len(caplog.messages) == 2 * len(tokens)
    text = "\n".join(caplog.messages)
    secret = key.material.secret
    for quoted in (canary, b64url_encode(canary.encode())[:8], "session", "key-1", b64url_encode(secret), secret.hex()):
        assert quoted not in text
    assert not any(part in text for token in tokens for part in token.split(".") if len(part) > 8)


# --- the counts ----------------------------------------------------------------------------------------------------


def test_refusals_are_counted_by_code(verifier, clock, key):
    stranger = Key("key-1", algorithms.generate("HS256"))
    assert verifier.refused == {}
    good = issue(key)
    verifier.verify(good)
    verifier.verify(good)
    assert verifier.refused == {}
    by_code = {
        "token_malformed": ["", "garbage", "a.b.c"],
        "token_signature_invalid": [issue(stranger), issue(stranger)],
        "token_key_unknown": [issue(Key("key-2", key.material))],
        "token_claims_invalid": [
            issue(key, audience="bank"),
            issue(key, issuer="x"),
            issue(key, expires_at=NOW + 3601),
        ],
        "token_expired": [issue(key, issued_at=NOW - 900, expires_at=NOW - 10)],
        "token_not_yet_valid": [issue(key, issued_at=NOW + 11)],
        "token_revoked": [issue(key, session_id="ended")] * 4,
    }
    for code, tokens in by_code.items():
        for token in tokens:
            assert refuse(verifier, token).code == code
    assert verifier.refused == {code: len(tokens) for code, tokens in by_code.items()}
    verifier.withdraw_key("key-1")
    refuse(verifier, good)
    assert verifier.refused["token_revoked"] == 5  # the counts outlive a change of keys


def test_counting_alone(lines):
    refusals = Refusals()
    for error in (TokenExpired(), TokenExpired(), TokenRevoked("why"), TokenSignatureInvalid()):
        refusals.count(error, now=NOW)
    refusals.count(TokenMalformed("not ASCII"), now=NOW + 10.5)
    assert refusals.by_code == {
        "token_expired": 2,
        "token_revoked": 1,
        "token_signature_invalid": 1,
        "token_malformed": 1,
    }
    assert lines() == [
        (1, "token_revoked, why"),
        (2, "token_malformed, not ASCII"),
    ]


def test_what_logout_refuses_is_counted_and_told_too(verifier, clock, key, lines):
    """Forging there is as much of an attempt. An old token is not: it still ends its session."""
    verifier.verify_signed(issue(key, issued_at=NOW - 9000, expires_at=NOW - 8100))
    verifier.verify_signed(issue(key, session_id="ended"))
    assert verifier.refused == {}
    for token in ("garbage", issue(key, audience="bank"), issue(key, issuer="https://other.example.com")):
        with pytest.raises(TokenError):
            verifier.verify_signed(token)
    assert verifier.refused == {"token_malformed": 1, "token_claims_invalid": 2}
    assert lines() == [(1, "token_malformed, not three parts")]
