"""A signed text has one reading, or it is refused: the same claims as every strict reader gives, however it is written.

Headers are learned by their text and claims decoded by a fast reader; none of that may let another reading through.
The reader below is the plain one, of its own, that both are held against.
"""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.errors import (
    TokenError,
    TokenHeaderRefused,
    TokenMalformed,
    TokenRevoked,
    TokenSignatureInvalid,
)
from sekisho.tokens import Keyring, access, algorithms, jws
from sekisho.tokens.access import AccessClaims
from sekisho.tokens.keys import Key
from sekisho.wire import b64url_encode

NOW = 1_800_000_000
CLAIMS = {
    "iss": "https://auth.example.com",
    "sub": "user-1",
    "aud": "shop",
    "exp": NOW + 900,
    "iat": NOW,
    "jti": "jti-1",
    "client_id": "sekisho",
    "sid": "session-1",
}
HEADER = {"alg": "HS256", "kid": "key-1", "typ": "at+jwt"}

quick = settings(deadline=None, max_examples=200)


@pytest.fixture(scope="module")
def material():
    return algorithms.generate("HS256")


@pytest.fixture
def ring(material):
    return Keyring([Key("key-1", material)])


def b64(part):
    return b64url_encode(part if isinstance(part, bytes) else part.encode())


def signed(material, payload, header=None):
    """The payload and the header as they are given here, rightly signed."""
    message = f"{b64(json.dumps(HEADER) if header is None else header)}.{b64(payload)}"
    return f"{message}.{b64url_encode(material.sign(message.encode()))}"


def read(material, payload, header=None):
    """What a ring that has seen nothing reads, or ``None`` where it refuses; the second time it is the same."""
    ring = Keyring([Key("key-1", material)])
    token = signed(material, payload, header)
    answers = []
    for _ in range(2):
        try:
            answers.append(access.read(token, ring))
        except TokenError:
            answers.append(None)
    assert answers[0] == answers[1]
    return answers[0]


# --- the plain reader ----------------------------------------------------------------------------------------------


class NotStrictError(Exception):
    pass


def need(truth):
    if not truth:
        raise NotStrictError


def distinct(pairs):
    need(len({name for name, _ in pairs}) == len(pairs))
    return dict(pairs)


def small(digits):
    need(len(digits) < 20)
    need(abs(int(digits)) < 2**53)
    return int(digits)


def finite(digits):
    need(abs(float(digits)) < float("inf"))
    return float(digits)


def strict(text):
    need(0 < len(text) <= 1024)
    need("\0" not in text)


def walk(value, depth=1):
    if isinstance(value, str):
        need(len(value) <= 1024)
        need(not any(0xD800 <= ord(character) <= 0xDFFF for character in value))
    if isinstance(value, dict | list):
        need(depth <= 8)
        for item in value:  # names, or items
            walk(item, depth + 1)
        for item in value.values() if isinstance(value, dict) else ():
            walk(item, depth + 1)


def plain_reading(data):
    """The claims, by the rules of SECURITY.md, J5, J7, J8 and J9; raises where there is none."""
    try:
        members = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=distinct,
            parse_int=small,
            parse_float=finite,
            parse_constant=lambda _: need(truth=False),
        )
    except (ValueError, RecursionError):
        raise NotStrictError from None
    need(isinstance(members, dict))
    walk(members)
    for name in ("iss", "sub", "jti", "client_id", "sid"):
        need(isinstance(members.get(name), str))
        strict(members[name])
    for name in ("exp", "iat", "nbf"):
        if name != "nbf" or name in members:
            need(type(members.get(name)) is int)
            need(0 < members[name] < 2**40)
    aud, roles = members.get("aud"), members.get("roles", [])
    need(isinstance(aud, str) or (isinstance(aud, list) and aud))
    need(isinstance(roles, list))
    for text in [aud, *roles] if isinstance(aud, str) else [*aud, *roles]:
        need(isinstance(text, str))
        strict(text)
    need(members["sub"] != members["client_id"])
    known = {name: members[name] for name in AccessClaims.__struct_fields__ if name in members}
    aud = aud if isinstance(aud, str) else tuple(aud)
    return AccessClaims(**{**known, "aud": aud, "roles": tuple(roles)})


def assert_read_as_plainly(material, data):
    """Returns whether it was accepted."""
    try:
        expected = plain_reading(data) if len(signed(material, data)) <= 8192 else None
    except NotStrictError:
        expected = None
    assert read(material, data) == expected, data
    return expected is not None


# --- one text, written in every way --------------------------------------------------------------------------------

SHORT = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


class Scribe:
    """Writes JSON as nobody else does, in any order, with any white space and escapes; or, as number 0, as we do."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.escapes = self.random.choice((0, 0.1, 1)) if seed else 0
        self.spaces = self.random.choice((0, 0.3)) if seed else 0
        self.in_order = not seed

    def space(self):
        return self.random.choice(" \t\r\n") if self.random.random() < self.spaces else ""

    def text(self, text):
        return '"' + "".join(map(self.character, text)) + '"'

    def character(self, character):
        must = character in '"\\' or character < " " or 0xD800 <= ord(character) <= 0xDFFF
        if not must and self.random.random() >= self.escapes:
            return character
        if character in SHORT and self.random.random() < 0.5:
            return "\\" + SHORT[character]
        units = character.encode("utf-16-be", "surrogatepass")
        pieces = [f"{int.from_bytes(units[at : at + 2]):04x}" for at in range(0, len(units), 2)]
        return "".join("\\u" + self.random.choice((piece, piece.upper())) for piece in pieces)

    def value(self, value):
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return self.pairs(list(value.items()))
        if isinstance(value, list | tuple):
            return f"[{self.space()}{','.join(self.space() + self.value(item) for item in value)}{self.space()}]"
        return value.text if isinstance(value, Raw) else json.dumps(value)

    def pairs(self, pairs):
        if not self.in_order:
            self.random.shuffle(pairs)
        written = [
            f"{self.space()}{self.text(name)}{self.space()}:{self.space()}{self.value(value)}{self.space()}"
            for name, value in pairs
        ]
        return f"{{{','.join(written)}{self.space()}}}"


class Raw:
    """Text that stands for itself, JSON or not."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return f"Raw({self.text!r})"


def test_number_0_writes_as_we_do(material):
    claims = CLAIMS | {"roles": ["\0\n鍵"]}
    key = Key("key-1", material)
    named = {
        "issuer": claims["iss"],
        "audience": claims["aud"],
        "subject": claims["sub"],
        "roles": tuple(claims["roles"]),
    }
    named |= {"session_id": claims["sid"], "issued_at": claims["iat"], "expires_at": claims["exp"]}
    payload = jws.verify(access.issue(key, **named), Keyring([key])).decode()
    jti = json.loads(payload)["jti"]
    written = {Scribe(0).pairs([*(claims | {"jti": jti}).items()]) for _ in range(20)}
    assert payload in {text.replace("\\u000a", "\\n") for text in written}


seeds = st.integers(0, 2**32 - 1)
letters = st.sampled_from([*'abz/ "\\\b\n\t\x1f\x7f\x85é鍵', "\u2028", "\ufeff", "\uffff", "\U0001f600", "\U0010ffff"])
texts = st.text(letters, min_size=1, max_size=8)
dates = st.integers(1, 2**40 - 1)
good_claims = st.fixed_dictionaries(
    dict.fromkeys(("iss", "sub", "jti", "sid"), texts)
    | {"client_id": st.just("sekisho"), "exp": dates, "iat": dates}
    | {"aud": texts | st.lists(texts, min_size=1, max_size=3)},
    optional={"nbf": dates, "roles": st.lists(texts, max_size=3)},
)
extra = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | st.floats(-1e9, 1e9) | texts | st.just("\0"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
extras = st.dictionaries(texts.map("x-{}".format), extra, max_size=2)


@quick
@given(good_claims, extras, seeds)
def test_good_claims_are_read_however_they_are_written(material, claims, more, seed):
    expected = AccessClaims(
        **{
            **claims,
            "aud": claims["aud"] if isinstance(claims["aud"], str) else tuple(claims["aud"]),
            "roles": tuple(claims.get("roles", ())),
        }
    )
    scribe = Scribe(seed)
    assert read(material, scribe.space() + scribe.pairs([*claims.items(), *more.items()]) + scribe.space()) == expected
    for named in ({}, {"ensure_ascii": False}, {"indent": 2}, {"separators": (",", ":")}, {"sort_keys": True}):
        assert read(material, json.dumps(claims | more, **named)) == expected
    assert read(material, Scribe(0).pairs([*claims.items()])) == expected


ODD = [
    *(None, True, False, 0, 1, -1, 2**40 - 1, 2**40, 2**53 - 1, 2**53, 2**63, 2**64, 1.0, 0.5, "", "\0", "a\0b"),
    *(str(NOW), [], ["shop"], ["shop", 1], [""], ["\0"], [["shop"]], {}, {"a": "b"}, "sekisho", "x" * 1024),
    *("x" * 1025, "é" * 1024, "\U0001f600" * 1024, "\U0001f600" * 1025, "\ud800", "\udc00x", ["\ud800"], [None]),
    *map(Raw, ("1e3", "1E0", "1.0", "-0", "0.0", "-0.0", "1e400", "NaN", "Infinity", "-Infinity", "01", "+1", ".5")),
    *map(Raw, ("0x10", "1_0", "tru", "nul", "'a'", '"\\x41"', '"\\u12"', '"\t"', '"\\ud83d\\ude00"', '"\\ud83d"')),
    *map(Raw, ("9" * 20, "9" * 5000, "", "[", "[" * 2000, "[1,]", "{}{}", '{"a":1,"a":1}', '[{"a":1,"\\u0061":2}]')),
    *map(Raw, ('{"a":{"a":1}}', "[" * 7 + "1" + "]" * 7, "[" * 8 + "]" * 8, '{"a":' * 7 + "1" + "}" * 7)),
]
odd_claims = st.dictionaries(
    st.sampled_from([*CLAIMS, "nbf", "roles", "x", "", "x" * 1024, "x" * 1025, "\0", "\ud800", "Sub"]),
    st.sampled_from(ODD),
    min_size=1,
    max_size=2,
)


@settings(deadline=None, max_examples=500)
@given(odd_claims, st.lists(st.sampled_from(list(CLAIMS)), max_size=1), seeds)
def test_odd_claims_are_read_as_the_plain_reader_reads_them_or_refused_as_it_does(material, changed, missing, seed):
    members = CLAIMS | changed
    for name in missing:
        del members[name]
    assert_read_as_plainly(material, Scribe(seed).pairs(list(members.items())).encode())


@pytest.mark.parametrize("name", [*CLAIMS, "nbf", "roles", "x"])
def test_every_odd_value_of_every_claim(material, name):
    accepted = 0
    for value in ODD:
        for seed in range(4):
            accepted += assert_read_as_plainly(
                material, Scribe(seed).pairs([*(CLAIMS | {name: value}).items()]).encode()
            )
    assert accepted  # or the odd values would be too odd


def test_a_text_with_bytes_changed_is_read_as_the_plain_reader_reads_it(material):
    chance = random.Random(20)
    pieces = [b'"', b"\\", b",", b"{", b"}", b"[", b"]", b":", b" ", b"\n", b"\0", b"1", b"-", b".0", b"e1", b"null"]
    pieces += [b"\xef\xbb\xbf", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"\\u0000", b"\\ud800", b'"sub":"x",', b"true"]
    accepted = 0
    for number in range(2000):
        data = bytearray(Scribe(number % 100).pairs(list(CLAIMS.items())).encode())
        at = chance.randrange(len(data) + 1)
        data[at : at + chance.choice((0, 0, 1, 2))] = chance.choice((*pieces, b"", bytes([chance.randrange(256)])))
        accepted += assert_read_as_plainly(material, bytes(data))
    assert 100 < accepted < 1900


# --- each rule by its name -----------------------------------------------------------------------------------------


def with_members(text):
    return json.dumps(CLAIMS)[:-1] + "," + text + "}"


def cases(**named):
    return pytest.mark.parametrize("text", named.values(), ids=named)


@cases(
    duplicate='"sub":"user-1"',
    duplicate_with_an_escape='"\\u0073ub":"user-1"',
    duplicate_in_an_extra_member='"x":{"a":1,"a":1}',
    duplicate_deep_inside='"x":[[{"y":[{"a":1,"\\u0061":1}]}]]',
    duplicate_extra_members='"x":1,"x":1',
    duplicate_empty_names='"x":{"":1,"":1}',
    duplicate_nbf='"nbf":1,"nbf":1',
    duplicate_roles='"roles":[],"roles":[]',
    nul_in_a_role='"roles":["a\\u0000"]',
    lone_surrogate='"roles":["\\ud800"]',
    lone_surrogate_in_an_extra_member='"x":"\\udfff"',
    lone_surrogate_in_a_name='"\\ud800":1',
    a_pair_the_wrong_way_round='"x":"\\ude00\\ud83d"',
    nbf_null='"nbf":null',
    nbf_true='"nbf":true',
    nbf_with_a_point='"nbf":1.0',
    nbf_with_an_exponent='"nbf":1e3',
    nbf_minus_zero='"nbf":-0',
    nbf_as_text='"nbf":"1"',
    nbf_2_to_the_40=f'"nbf":{2**40}',
    roles_null='"roles":null',
    roles_as_text='"roles":"admin"',
    roles_as_an_object='"roles":{}',
    a_role_of_1025=f'"roles":["{"x" * 1025}"]',
    an_extra_text_of_1025=f'"x":"{"x" * 1025}"',
    an_extra_name_of_1025=f'"{"x" * 1025}":1',
    nine_levels='"x":' + "[" * 8 + "]" * 8,
    an_integer_of_2_to_the_53=f'"x":{2**53}',
    an_integer_beyond_it=f'"x":{-(2**53) - 1}',
    infinite='"x":1e400',
    not_a_number='"x":NaN',
    a_comma_too_many='"x":1,',
)
def test_refused_although_signed(material, text):
    assert read(material, with_members(text)) is None


@cases(
    none='"x":1',
    nul_in_an_extra_member='"x":"\\u0000"',
    the_same_name_on_two_levels='"x":{"sub":1,"x":{"sub":1}}',
    roles_empty='"roles":[]',
    roles_empty_with_space='"roles":[ ]',
    roles_equal='"roles":["a","a"]',
    a_pair_of_surrogates='"x":"\\ud83d\\ude00"',
    a_role_of_1024=f'"roles":["{"x" * 1024}"]',
    a_role_of_1024_wide_characters='"roles":["' + "\U0001f600" * 1024 + '"]',
    an_extra_text_of_1024=f'"x":"{"é" * 1024}"',
    eight_levels='"x":' + "[" * 7 + "]" * 7,
    integers_below_2_to_the_53=f'"x":[{2**53 - 1},{1 - 2**53},-0,1.5e-3]',
    nbf_at_its_last=f'"nbf":{2**40 - 1}',
    nbf_at_its_first='"nbf":1',
    another_letter_case='"Sub":"user-2","EXP":null',
)
def test_accepted_and_read_in_one_way(material, text):
    claims = read(material, with_members(text))
    assert claims == plain_reading(with_members(text).encode())
    assert (claims.sub, claims.exp, claims.sid) == ("user-1", NOW + 900, "session-1")


@pytest.mark.parametrize("name", ["iss", "sub", "jti", "client_id", "sid", "aud"])
def test_nul_and_length_in_every_text(material, name):
    for text in ("\0", "a\0", "\0a", "\n\0", "x" * 1025, "", "\\" * 1025):
        for separators in ((",", ":"), (", ", ": ")):  # as we write it, byte for byte, and not
            assert read(material, json.dumps(CLAIMS | {name: text}, separators=separators)) is None
    for text in ("x" * 1024, "é" * 1024, "\U0001f600" * 1024, "\\" * 1024, "\x01", "\x7f"):
        for separators in ((",", ":"), (", ", ": ")):
            claims = read(material, json.dumps(CLAIMS | {name: text}, ensure_ascii=False, separators=separators))
            assert getattr(claims, name) == text


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_backslash_before_u0000_is_no_nul(material, separators):
    claims = CLAIMS | {"sub": "a\\u0000b", "roles": ["\\u0000"]}
    payload = json.dumps(claims, separators=separators)
    assert read(material, payload) == plain_reading(payload.encode())


@pytest.mark.parametrize(("value", "good"), [(1, True), (2**40 - 1, True), (2**40, False), (0, False), (2**53, False)])
@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
def test_the_first_and_the_last_date(material, name, value, good):
    claims = read(material, json.dumps(CLAIMS | {name: value}))
    assert (claims is not None) is good
    if good:
        assert getattr(claims, name) == value


@pytest.mark.parametrize(
    "text", ["1800000000.0", "18e8", "1.8E9", "-0", "true", '"1800000000"', "null", "[1800000000]"]
)
@pytest.mark.parametrize("name", ["exp", "iat"])
def test_a_date_is_written_in_digits_alone(material, name, text):
    payload = json.dumps(CLAIMS | {name: 7777}).replace("7777", text)
    assert read(material, payload) is None


@pytest.mark.parametrize(
    "aud", [[], "", [""], ["shop", ""], {}, {"shop": 1}, [["shop"]], None, 1, True, ["shop", None]]
)
def test_an_audience_that_is_none(material, aud):
    assert read(material, json.dumps(CLAIMS | {"aud": aud})) is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_another_encoding(material, encoding):
    assert read(material, json.dumps(CLAIMS).encode(encoding)) is None
    assert read(material, json.dumps(CLAIMS), json.dumps(HEADER).encode(encoding)) is None


def test_text_before_or_after_the_object(material):
    good = json.dumps(CLAIMS)
    for payload in (
        good + good,
        good + "\0",
        good + "\x0b",
        "\u00a0" + good,
        good + ",",
        f"[{good}]",
        good[:-1],
        "//" + good,
    ):
        assert read(material, payload) is None
    assert read(material, f" \r\n\t{good}\n ")


# --- headers -------------------------------------------------------------------------------------------------------


def canonical():
    return json.dumps(CLAIMS, separators=(",", ":"))


@pytest.mark.parametrize("seed", range(40))
def test_a_header_is_read_however_it_is_written_on_first_and_on_second_sight(material, ring, seed):
    scribe = Scribe(seed)
    header = scribe.space() + scribe.pairs(list(HEADER.items())) + scribe.space()
    for sub in ("user-1", "user-1", "user-2"):
        assert access.read(signed(material, json.dumps(CLAIMS | {"sub": sub}), header), ring).sub == sub
    assert list(ring.headers) == [b64(header)]


DUPLICATES = (
    '{"alg":"HS256","alg":"HS256","kid":"key-1","typ":"at+jwt"}',
    '{"alg":"none","alg":"HS256","kid":"key-1","typ":"at+jwt"}',
    '{"alg":"HS256","\\u0061lg":"HS256","kid":"key-1","typ":"at+jwt"}',
    '{"alg":"HS256","kid":"other","kid":"key-1","typ":"at+jwt"}',
    '{"alg":"HS256","kid":"key-1","typ":"JWT","typ":"at+jwt"}',
    '{"alg":"HS256","kid":"key-1","typ":"at+jwt","typ":"at+jwt"}',
    '{"alg":"HS256","kid":"key-1","typ":"at+jwt","\\u0074yp":"at+jwt"}',
)


@pytest.mark.parametrize("header", DUPLICATES)
def test_a_header_with_a_duplicate_name_is_refused_each_time_although_the_signature_holds(material, ring, header):
    token = signed(material, canonical(), header)
    for _ in range(3):
        with pytest.raises(TokenMalformed, match="duplicate"):
            access.read(token, ring)
    assert ring.headers == {}
    assert access.read(signed(material, canonical()), ring)  # one that is good changes nothing for it
    with pytest.raises(TokenMalformed, match="duplicate"):
        access.read(token, ring)


def test_a_header_that_is_too_long_for_the_strict_reader_is_not_learned(material):
    kid = "k" * 256  # so that a long header may be one of this ring's
    ring = Keyring([Key(kid, material)])
    header = {"alg": "HS256", "kid": kid}
    token = signed(material, b"{}", json.dumps(header | {"typ": "x" * 1025}))
    for _ in range(2):
        with pytest.raises(TokenMalformed, match="too long"):
            jws.verify(token, ring)
    assert ring.headers == {}
    assert jws.verify(signed(material, b"{}", json.dumps(header | {"typ": "x" * 1024})), ring) == b"{}"


def test_a_forged_signature_teaches_nothing(material, ring):
    other = algorithms.generate("HS256")
    for seed in range(100):
        header = Scribe(seed).pairs(list(HEADER.items()))
        for token in (
            signed(other, canonical(), header),
            signed(material, canonical(), header)[:-8] + "AAAAAAAA",
            signed(material, canonical(), header).rpartition(".")[0] + ".AAAA",
        ):
            with pytest.raises(TokenSignatureInvalid):
                access.read(token, ring)
    assert ring.headers == {}


def test_a_payload_that_is_not_base64url_in_its_one_spelling_teaches_nothing(material, ring):
    head = b64(json.dumps(HEADER))
    for payload in ("eyJ9!", "e31", "e30=", "e30+", "e30/", "e30 ", "e"):
        message = f"{head}.{payload}"
        token = f"{message}.{b64url_encode(material.sign(message.encode()))}"
        for _ in range(2):
            with pytest.raises(TokenMalformed):
                jws.verify(token, ring)
    assert ring.headers == {}


@pytest.mark.parametrize("spell", ["{}=", "{}A", "{}.", "{} ", " {}", "{}\n", "+{}"])
def test_another_spelling_of_a_learned_header_is_another_header(material, ring, spell):
    assert access.read(signed(material, canonical()), ring)
    message = f"{spell.format(b64(json.dumps(HEADER)))}.{b64(canonical())}"
    with pytest.raises(TokenMalformed):
        access.read(f"{message}.{b64url_encode(material.sign(message.encode()))}", ring)


def test_unused_bits_of_a_header_are_zero_although_the_signature_holds(material, ring):
    header = json.dumps(HEADER) + " " * (-(len(json.dumps(HEADER)) - 1) % 3)
    good = b64(header)
    assert len(good) % 4 == 2  # so four bits are unused
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".index(good[-1])
    assert access.read(signed(material, canonical(), header), ring)
    for unused in range(1, 16):
        other = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last + unused]
        message = f"{good[:-1]}{other}.{b64(canonical())}"
        with pytest.raises(TokenMalformed):
            access.read(f"{message}.{b64url_encode(material.sign(message.encode()))}", ring)
    assert list(ring.headers) == [good]


def test_a_learned_header_is_not_a_learned_signature(material, ring):
    good = signed(material, canonical())
    assert access.read(good, ring)
    assert access.read(good, ring)
    head, _, _ = good.partition(".")
    for payload in (canonical().replace("user-1", "user-2"), "{}", "x"):
        for signature in (good.rpartition(".")[2], "AAAA", "A" * 43):
            with pytest.raises(TokenSignatureInvalid):
                access.read(f"{head}.{b64(payload)}.{signature}", ring)


def test_at_most_64_headers_are_learned_and_more_are_read_as_before(material, ring):
    headers = [json.dumps(HEADER) + " " * number for number in range(100)]
    for _ in range(2):
        for header in headers:
            assert access.read(signed(material, canonical(), header), ring).sub == "user-1"
    assert list(ring.headers) == [b64(header) for header in headers[:64]]
    for header in DUPLICATES:
        with pytest.raises(TokenMalformed):
            access.read(signed(material, canonical(), header), ring)


@pytest.mark.parametrize(
    "changed",
    [{"typ": "JWT"}, {"typ": "rt+jwt"}, {"typ": ""}, {"typ": None}, {"kid": "key.1"}, {"kid": None}],
    ids=str,
)
def test_a_header_that_is_good_for_another_kind_of_token_is_refused_each_time(material, changed):
    """It is learned, since a JWS it is; it makes no access token, on the second sight as little as on the first."""
    ring = Keyring([Key(changed.get("kid") or "key-1", material)])
    header = json.dumps({name: value for name, value in (HEADER | changed).items() if value is not None})
    token = signed(material, canonical(), header)
    assert jws.verify(token, ring) == canonical().encode()
    assert list(ring.headers) == [b64(header)]
    for _ in range(3):
        with pytest.raises(TokenHeaderRefused):
            access.read(token, ring)


@pytest.mark.parametrize("typ", ["AT+JWT", "application/at+jwt", "Application/AT+jwt"])
def test_a_type_in_full_or_in_other_letters_is_accepted_on_second_sight_too(material, ring, typ):
    for _ in range(2):
        assert access.read(signed(material, canonical(), json.dumps(HEADER | {"typ": typ})), ring)


@pytest.mark.parametrize("typ", ["at+\u212awt", "at+jw\u0166", "application/at+\u017dwt", "İ", "at+jwt\u0307"])
def test_only_asciis_letters_have_two_cases(material, ring, typ):
    """Letters whose small form is ASCII's, or that Unicode changes in other ways, make no at+jwt."""
    token = signed(material, canonical(), json.dumps(HEADER | {"typ": typ}))
    for _ in range(2):
        with pytest.raises(TokenHeaderRefused):
            access.read(token, ring)
        assert jws.verify_signed(token, ring)[1].media_type == typ


def test_what_one_ring_learned_no_other_knows(material):
    """Or a header would outlive its key."""
    ring = Keyring([Key("key-1", material), Key("key-2", algorithms.generate("HS256"))])
    token = signed(material, canonical())
    assert access.read(token, ring)
    left = ring.without(frozenset({"key-1"}))
    assert left.headers == {}
    for _ in range(2):
        with pytest.raises(TokenRevoked):
            access.read(token, left)
    assert [key.kid for key in left.keys] == ["key-2"]
    impostor = Keyring([Key("key-1", algorithms.generate("HS256"))])
    with pytest.raises(TokenSignatureInvalid):
        access.read(token, impostor)
    assert access.read(token, ring)  # the first ring is as it was
