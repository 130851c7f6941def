"""CSRF tokens, which only we can make for a cookie; and cookies as text: what is written is what is read."""

import copy
import hmac
import pickle
import string
import struct

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sekisho.errors import KeyRefused, RefreshTokenInvalid, SekishoError, SessionRefused, TokenMalformed
from sekisho.tokens import KeySet
from sekisho.tokens.csrf import CsrfKeys
from sekisho.tokens.keys import Key
from sekisho.verify.cookies import Cookies, read_cookie
from sekisho.wire import b64url_decode, b64url_encode

NOW = 1_800_000_000
COOKIE = "dGhlIGdhdGUgb24gdGhlIG9sZCByb2FkLCB0aGUgZ2E"
TOKEN_CHARS = 64  # 16 bytes of salt, 32 of MAC
KINDS = ("session", "visitor")

quick = settings(deadline=None, max_examples=100)
thorough = settings(deadline=None, max_examples=400)

# A Cookie header is bytes, read as Latin-1.
latin = st.text(st.characters(max_codepoint=255), max_size=80)


@pytest.fixture(scope="module")
def key_set():
    return KeySet.generate("HS256", now=NOW)


@pytest.fixture(scope="module")
def keys(key_set):
    return keys_of(key_set)


@pytest.fixture(scope="module")
def token(keys):
    return keys.make("session", COOKIE)


def keys_of(key_set):
    return CsrfKeys(key_set.active("csrf"), key_set.used("csrf"))


# --- what holds ----------------------------------------------------------------------------------------------------


@quick
@given(cookie=latin, kind=st.sampled_from(KINDS))
def test_a_token_holds_for_its_cookie(keys, cookie, kind):
    assert keys.holds(keys.make(kind, cookie), kind, cookie)


def test_each_token_is_a_new_one_and_all_hold(keys):
    """A page that is compressed beside a stranger's words gives no constant away (BREACH)."""
    tokens = {keys.make("session", COOKIE) for _ in range(100)}
    assert len(tokens) == 100
    assert all(keys.holds(token, "session", COOKIE) for token in tokens)
    assert {len(token) for token in tokens} == {TOKEN_CHARS}
    for length in range(8, 48):  # neither in its salt nor in its MAC
        assert len({b64url_decode(token)[length - 8 : length] for token in tokens}) == 100


def test_it_goes_into_a_header_and_a_form_as_it_is(token):
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


def test_it_is_what_the_module_says(key_set, token):
    """base64url(salt ‖ HMAC-SHA256(K, label ‖ length of kind ‖ kind ‖ length of cookie ‖ cookie ‖ salt))."""
    data = b64url_decode(token)
    salt, mac = data[:16], data[16:]
    parts = b"".join(struct.pack(">I", len(part)) + part for part in (b"session", COOKIE.encode()))
    secret = key_set.active("csrf").material.secret
    assert hmac.digest(secret, b"sekisho csrf v1" + parts + salt, "sha256") == mac


# --- what does not -------------------------------------------------------------------------------------------------


def test_any_flipped_bit_is_refused(keys, token):
    data = b64url_decode(token)
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        assert not keys.holds(b64url_encode(bytes(changed)), "session", COOKIE)


def test_any_other_character_is_refused(keys, token):
    for place in range(len(token)):
        for char in "A-_=+/. \0\xffé関":
            changed = token[:place] + char + token[place + 1 :]
            assert keys.holds(changed, "session", COOKIE) == (changed == token)


@thorough
@given(text=st.one_of(st.text(max_size=80), st.text(string.ascii_letters, min_size=TOKEN_CHARS, max_size=TOKEN_CHARS)))
def test_garbage_is_refused_without_an_error(keys, text):
    assert not keys.holds(text, "session", COOKIE)


def test_no_other_length_is_one(keys, token):
    for wrong in ("", token[:-1], token[:-4], token + "A", token + "AAAA", token * 2, f" {token}", f"{token}\n"):
        assert not keys.holds(wrong, "session", COOKIE)


def test_a_short_token_is_not_a_short_mac(keys):
    """compare_digest of an empty MAC with the empty beginning of one would be a key to everything."""
    for length in range(48):
        assert not keys.holds(b64url_encode(bytes(length)), "session", COOKIE)


@quick
@given(other=latin)
def test_it_holds_for_no_other_cookie(keys, token, other):
    assume(other != COOKIE)
    assert not keys.holds(token, "session", other)


def test_nor_for_nearly_the_same(keys, token):
    for near in (COOKIE[:-1], COOKIE + "A", COOKIE.lower(), f" {COOKIE}", COOKIE[::-1], ""):
        assert not keys.holds(token, "session", near)


def test_nor_for_the_same_cookie_of_another_kind(keys):
    for kind, other in (KINDS, KINDS[::-1]):
        assert not keys.holds(keys.make(kind, COOKIE), other, COOKIE)


@quick
@given(cookie=st.text(st.characters(max_codepoint=127), min_size=1), cut=st.integers(1, 6), kind=st.sampled_from(KINDS))
def test_nothing_moves_between_kind_and_cookie(keys, cookie, cut, kind):
    """Without the lengths "session" + "x" and "sessionx" + "" were one text."""
    token = keys.make(kind, cookie)
    assert not keys.holds(token, kind[:-cut], kind[-cut:] + cookie)
    assert not keys.holds(token, kind + cookie[:cut], cookie[cut:])


# --- keys turn over ------------------------------------------------------------------------------------------------


def test_a_token_outlives_the_rotation_of_its_key_and_ends_with_its_retirement(key_set, token):
    old = key_set.active("csrf").kid
    waiting, _ = key_set.with_next("csrf", "HS256", now=NOW)
    rotated, _ = waiting.promoted("csrf", now=NOW)
    retired = rotated.retired(old, now=NOW)
    for still_good in (key_set, waiting, rotated):
        assert keys_of(still_good).holds(token, "session", COOKIE)
    assert not keys_of(retired).holds(token, "session", COOKIE)

    by_new = keys_of(rotated).make("session", COOKIE)
    for knows_it in (waiting, rotated, retired):  # a node that has not promoted yet checks it too
        assert keys_of(knows_it).holds(by_new, "session", COOKIE)
    assert not keys_of(key_set).holds(by_new, "session", COOKIE)


def test_another_issuers_token_is_none(keys):
    other = keys_of(KeySet.generate("HS256", now=NOW))
    assert not keys.holds(other.make("session", COOKIE), "session", COOKIE)


def test_a_key_for_another_purpose_makes_and_checks_no_csrf_tokens(key_set):
    good = key_set.active("csrf")
    asymmetric = Key("k", KeySet.generate("EdDSA", now=NOW).active("sign").material, "csrf")
    for bad in (key_set.active("sign"), key_set.active("refresh"), asymmetric):
        for active, used in ((bad, [good]), (good, [bad]), (good, [good, bad])):
            with pytest.raises(KeyRefused) as refused:
                CsrfKeys(active, used)
            assert bad.kid in refused.value.detail


def test_the_keys_tell_nobody(key_set, keys):
    secret = key_set.active("csrf").material.secret
    for shown in (repr(keys), str(keys), f"{keys}"):
        assert shown == "<CsrfKeys>"
        assert secret.hex() not in shown
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            copied(keys)
    assert not hasattr(keys, "__dict__")


# --- cookies as text -----------------------------------------------------------------------------------------------

SECURE, PLAIN = Cookies("https://auth.example.com"), Cookies("http://127.0.0.1:8400")
NAMES = ("session", "csrf", "access", "refresh", "device")
# What ours hold: base64url, and a JWS with its dots.
values = st.text(string.ascii_letters + string.digits + "-_.", max_size=200)


def test_the_names_say_whether_the_issuer_is_https():
    for name in NAMES:
        assert getattr(SECURE, name) == f"__Host-sekisho_{name}"
        assert getattr(PLAIN, name) == f"sekisho_{name}"


@pytest.mark.parametrize("cookies", [SECURE, PLAIN], ids=["https", "http"])
def test_the_exact_text(cookies):
    secure = "; Secure" if cookies is SECURE else ""
    assert cookies.set(cookies.session, "x", max_age_s=60) == (
        f"{cookies.session}=x; Max-Age=60; Path=/{secure}; HttpOnly; SameSite=Lax"
    )
    assert cookies.set(cookies.csrf, "x", max_age_s=None) == f"{cookies.csrf}=x; Path=/{secure}; HttpOnly; SameSite=Lax"
    assert cookies.clear(cookies.refresh) == (f"{cookies.refresh}=; Max-Age=0; Path=/{secure}; HttpOnly; SameSite=Lax")


@pytest.mark.parametrize("cookies", [SECURE, PLAIN], ids=["https", "http"])
def test_one_that_browsers_would_drop_is_an_error_and_not_a_cookie_less(cookies):
    """Name and value together, 4096 bytes (RFC 6265bis §5.7)."""
    longest = "x" * (4096 - len(cookies.access))
    assert f"{cookies.access}={longest};" in cookies.set(cookies.access, longest, max_age_s=1)
    with pytest.raises(SekishoError, match="4096"):
        cookies.set(cookies.access, longest + "x", max_age_s=1)


@quick
@given(jar=st.dictionaries(st.sampled_from(NAMES), values, min_size=1), spaces=st.sampled_from(["; ", ";", " ;\t"]))
def test_what_is_set_is_what_is_read(jar, spaces):
    for cookies in (SECURE, PLAIN):
        pairs = [
            cookies.set(getattr(cookies, name), value, max_age_s=1).partition(";")[0] for name, value in jar.items()
        ]
        for headers in ([spaces.join(pairs)], pairs):  # HTTP/2 may send each in a line of its own (RFC 9113 §8.2.3)
            for name in NAMES:
                assert read_cookie(headers, getattr(cookies, name), SessionRefused) == jar.get(name)


@thorough
@given(
    headers=st.lists(st.one_of(latin, st.lists(st.sampled_from(["a=1", "a=2", "a", "=", "", " a = 1"])).map(";".join))),
    refused=st.sampled_from([SessionRefused, TokenMalformed, RefreshTokenInvalid]),
)
def test_no_header_makes_another_error(headers, refused):
    try:
        found = read_cookie(headers, "a", refused)
    except refused:
        return
    assert found is None or any(f"a={found}" in header or (not found and "a" in header) for header in headers)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([""], None),
        (["b=1"], None),
        (["a=1"], "1"),
        (["a=1; b=2"], "1"),
        (["b=2;a=1"], "1"),
        (["b=2", "a=1"], "1"),
        (["a=1; a=1", "a=1"], "1"),  # nobody is misled
        (["a="], ""),
        (["a"], ""),
        (["a=1=2"], "1=2"),
        (['a="1"'], '"1"'),  # quotes are part of it (RFC 6265bis §4.1.1)
        (["A=1"], None),
        (["aa=1; xa=1; a-=1"], None),
        (["a =1"], None),
        (["b=a=1"], None),
        (['b="; a=1; c="'], "1"),  # no reader of quotes: what is between them cannot hide a cookie
        (["b=1, a=2"], None),
        (["\ta=1\t;"], "1"),
        (["\xa0a=1"], None),
        (["a=\xff\0\n"], "\xff\0\n"),
    ],
)  # fmt: skip
def test_readings(headers, expected):
    assert read_cookie(headers, "a", SessionRefused) == expected


@pytest.mark.parametrize(
    "headers",
    [["a=1; a=2"], ["a=1", "a=2"], ["a=1; b=1; a="], ["a=; a=1"], ["a; a=1"], ["a=1; a=1; a=2"], ['a=1; a="1"']],
)
@pytest.mark.parametrize("refused", [SessionRefused, TokenMalformed, RefreshTokenInvalid])
def test_two_of_one_name_are_none(headers, refused):
    with pytest.raises(refused) as caught:
        read_cookie(headers, "a", refused)
    assert "1" not in caught.value.detail  # no value in what is logged
