"""The catalogue of bad tokens, row by row: each has been accepted by somebody's verifier.

Every one is refused with a TokenError that looks the same to the caller as all others, and the refusal opens no file
and no socket. All tokens are tried at two verifiers: one that holds public keys alone, and one that also holds a
shared secret, as an issuer's own does. What is rightly accepted stands beside the row it belongs to.
"""

import base64
import hmac
import json
import os
import socket
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sekisho.errors import (
    KeyRefused,
    TokenClaimsInvalid,
    TokenError,
    TokenExpired,
    TokenKeyUnknown,
    TokenRevoked,
    TokenSignatureInvalid,
)
from sekisho.tokens import Keyring, access, algorithms
from sekisho.tokens.algorithms import ALGORITHMS, Hs256
from sekisho.tokens.keys import Key
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.verify import Verifier
from sekisho.wire import b64url_decode, b64url_encode

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://auth.example.com", "shop"
TTL_S, LEEWAY_S, MAX_LIFETIME_S = 900, 10, 3600
KID = {alg: f"key-{alg}" for alg in ALGORITHMS}
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493


class Desk:
    """One issuer with a key of every algorithm, the two verifiers, and a forger's tools."""

    def __init__(self):
        self.material = {alg: algorithms.generate(alg) for alg in ALGORITHMS}
        keys = [Key(KID[alg], material) for alg, material in self.material.items()]
        public = {"keys": [key.public_jwk() for key in keys if not key.is_shared_secret]}
        self.revoked = RevokedSessions([Revocation("ended", NOW + 10_000)])
        self.issuers_own = self.verifier(Keyring(keys))
        self.remote = self.verifier(Keyring.from_jwks(public), allow_shared_secret=False)

    def verifier(self, ring, *, now=NOW, **named):
        named = {"issuer": ISSUER, "audience": AUDIENCE, "allow_shared_secret": True, **named}
        return Verifier(keys=ring, revoked=self.revoked, leeway_s=LEEWAY_S, clock=lambda: now, **named)

    def token(self, payload=None, *, header=None, alg="EdDSA", sign=None):
        """Rightly signed by the key of ``alg``, unless ``sign`` gives another signature.

        ``header`` and ``payload`` are members to change (``...`` leaves one out), or the whole part as text or bytes.
        """
        message = f"{part(HEADER | {'alg': alg, 'kid': KID[alg]}, header)}.{part(CLAIMS, payload)}"
        signature = (sign or self.material[alg].sign)(message.encode())
        return f"{message}.{b64url_encode(signature)}"


HEADER = {"alg": "", "kid": "", "typ": "at+jwt"}
CLAIMS = {
    "iss": ISSUER,
    "sub": "user-1",
    "aud": AUDIENCE,
    "exp": NOW + TTL_S,
    "iat": NOW,
    "jti": "jti-1",
    "client_id": "sekisho",
    "sid": "session-1",
}


def part(members, changed):
    if isinstance(changed, str):
        changed = changed.encode()
    if not isinstance(changed, bytes):
        merged = {name: value for name, value in (members | (changed or {})).items() if value is not ...}
        changed = json.dumps(merged).encode()
    return b64url_encode(changed)


def claims_text(**raw):
    """The payload as text, with some values written as they are given here, JSON or not."""
    members = {name: json.dumps(value) for name, value in CLAIMS.items()} | raw
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in members.items()) + "}"


@pytest.fixture(scope="module")
def desk():
    return Desk()


OPENED = []
LOOKING = False


def look(event, args):
    """The interpreter tells every opening of a file, socket or process, from Python and from C (PEP 578)."""
    if LOOKING and event.startswith(("open", "os.", "socket.", "subprocess.", "urllib.", "ctypes.dlopen")):
        OPENED.append((event, args))


@pytest.fixture(scope="module", autouse=True)
def hook():
    sys.addaudithook(look)  # for good: Python knows no way to take one off


@pytest.fixture(autouse=True)
def neither_file_nor_socket(desk, monkeypatch):
    """Verifying a token touches neither."""

    def guard(verifier):
        verify = verifier.verify

        def guarded(token):
            global LOOKING  # noqa: PLW0603 - the hook has no other way to know
            LOOKING = True
            try:
                return verify(token)
            finally:
                LOOKING = False
                assert not OPENED

        monkeypatch.setattr(verifier, "verify", guarded)

    guard(desk.issuers_own)
    guard(desk.remote)


@pytest.mark.parametrize(
    "opening",
    [
        lambda: Path(__file__).open().close(),
        lambda: os.close(os.open(__file__, os.O_RDONLY)),
        lambda: socket.socket().close(),
    ],
)
def test_the_guard_sees_files_and_sockets(desk, monkeypatch, opening):
    monkeypatch.setattr(access, "read", lambda token, ring: opening())
    with pytest.raises(AssertionError):
        desk.remote.verify("a.b.c")
    OPENED.clear()


def assert_refused(desk, token):
    for verifier in (desk.issuers_own, desk.remote):
        with pytest.raises(TokenError) as caught:
            verifier.verify(token)
        seen_by_the_caller = (caught.value.public_code, caught.value.text_en, caught.value.text_ja)
        assert seen_by_the_caller == (TokenError.code, TokenError.text_en, TokenError.text_ja)


def assert_accepted(desk, token):
    for verifier in (desk.issuers_own, desk.remote):
        assert verifier.verify(token).sub == "user-1"


def cases(**named):
    return pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in named.items()])


def values(*these):
    return pytest.mark.parametrize("value", these, ids=lambda value: ascii(value)[:40])


def test_the_desk_itself_is_in_order(desk):
    for alg in ALGORITHMS:
        assert desk.issuers_own.verify(desk.token(alg=alg)).sub == "user-1"
        if alg != "HS256":
            assert_accepted(desk, desk.token(alg=alg))
    assert_accepted(desk, desk.token(claims_text()))


# --- row 1: alg none, and what is nearly an algorithm --------------------------------------------------------------

NO_ALGORITHMS = ("none", "None", "NONE", "NoNe", "nOnE", "", None, ..., [], ["HS256"], ["EdDSA"], {}, True, 0)
NEARLY_ALGORITHMS = ("HS256 ", " HS256", "hs256", "HS256\0", "Hs256", "ed25519", "eddsa", "EDDSA", "HS512", "PS256")


@values(*NO_ALGORITHMS, *NEARLY_ALGORITHMS)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_01_alg_none_missing_or_nearly_right(desk, alg, value):
    assert_refused(desk, desk.token(header={"alg": value}, alg=alg))
    without_kid = desk.token(header={"alg": value, "kid": ...}, alg=alg)
    assert_refused(desk, without_kid)
    for token in (desk.token(header={"alg": value}, alg=alg), without_kid):
        message = token.rpartition(".")[0]
        assert_refused(desk, message + ".")  # no signature, trailing dot
        assert_refused(desk, message)  # no signature at all
        assert_refused(desk, message + ".AA")


# --- row 2: a public key taken for an HMAC secret ------------------------------------------------------------------


def public_key_texts(material):
    """Everything that a library might have taken for the secret."""
    spki = material._public
    pem = spki.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = spki.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    jwk = json.dumps(material.public_members())
    yield from (pem, pem.rstrip(b"\n"), pem.replace(b"\n", b"\r\n"), pem.replace(b"\n", b" "), b"\xef\xbb\xbf" + pem)
    yield from (
        b" " + pem,
        pem + b"\0",
        pem.replace(b"-----BEGIN", b"----- BEGIN"),
        pem.lower(),
        der,
        der.hex().encode(),
    )
    body = b"".join(pem.splitlines()[1:-1])
    yield from (body, b"\n".join(pem.splitlines()[1:-1]), base64.urlsafe_b64encode(der), body + b"\n")
    yield from (jwk.encode(), f"[{jwk}]".encode(), f'{{"keys":[{jwk}]}}'.encode())
    for name in ("x", "y", "n"):
        if name in material.public_members():
            yield from (b64url_decode(material.public_members()[name]), material.public_members()[name].encode())
    if material.alg == "ES256":
        yield from (spki.public_bytes(Encoding.X962, form) for form in POINTS)
    if material.alg == "RS256":
        yield from (spki.public_bytes(encoding, PublicFormat.PKCS1) for encoding in (Encoding.PEM, Encoding.DER))
    if material.alg == "EdDSA":
        yield from (spki.public_bytes(Encoding.Raw, PublicFormat.Raw), spki.public_bytes_raw().hex().encode())
        yield spki.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


POINTS = (PublicFormat.UncompressedPoint, PublicFormat.CompressedPoint)


@pytest.mark.parametrize("alg", ["EdDSA", "ES256", "RS256"])
def test_row_02_a_public_key_as_hmac_secret(desk, alg):
    for secret in public_key_texts(desk.material[alg]):

        def sign(message, secret=secret):
            return hmac.digest(secret, message, "sha256")

        for said in ("HS256", alg):
            for kid in (KID[alg], KID["HS256"], ..., "HS256", ""):
                assert_refused(desk, desk.token(header={"alg": said, "kid": kid}, alg=alg, sign=sign))


# --- row 3: another algorithm than the key's -----------------------------------------------------------------------


@pytest.mark.parametrize("said", [*ALGORITHMS, "Ed25519"])
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_03_another_algorithm_than_the_keys(desk, alg, said):
    fits = said == alg or (alg, said) == ("EdDSA", "Ed25519")
    token = desk.token(header={"alg": said}, alg=alg)
    if fits:
        assert desk.issuers_own.verify(token).sub == "user-1"
        return
    assert_refused(desk, token)
    # The key of the other kid, and the algorithm that goes with it, but the first key's signature.
    if said in KID:
        assert_refused(desk, desk.token(header={"alg": said, "kid": KID[said]}, alg=alg))


def test_row_03_a_mixed_set_needs_leave_and_a_key_that_is_not_for_checking_is_not_there(desk):
    mixed = [Key(KID[alg], desk.material[alg]) for alg in ("HS256", "EdDSA")]
    with pytest.raises(KeyRefused):
        desk.verifier(Keyring(mixed), allow_shared_secret=False)
    jwk = {**desk.material["EdDSA"].public_members(), "kid": KID["EdDSA"]}
    other = {**desk.material["ES256"].public_members(), "kid": KID["ES256"]}
    for bound in ({"use": "enc"}, {"key_ops": ["sign"]}, {"key_ops": []}, {"alg": "RS256"}):
        verifier = desk.verifier(Keyring.from_jwks({"keys": [jwk | bound, other]}), allow_shared_secret=False)
        with pytest.raises(TokenKeyUnknown):
            verifier.verify(desk.token())


# --- row 4: ECDSA numbers at the edge ------------------------------------------------------------------------------

EDGES = (0, 1, 2, P256_ORDER - 1, P256_ORDER, P256_ORDER + 1, 2**256 - 1)


def raw(r, s):
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def numbers_of(signature):
    return int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")


@pytest.mark.parametrize("s", [*EDGES, None])
@pytest.mark.parametrize("r", [*EDGES, None])
def test_row_04_ecdsa_r_and_s_at_the_edge(desk, r, s):
    """``None`` is the right number of a good signature."""
    if r is s is None:
        assert_accepted(desk, desk.token(alg="ES256"))
        return

    def sign(message):
        good_r, good_s = numbers_of(desk.material["ES256"].sign(message))
        return raw(good_r if r is None else r, good_s if s is None else s)

    assert_refused(desk, desk.token(alg="ES256", sign=sign))


@cases(
    der=lambda signature: encode_dss_signature(*numbers_of(signature)),
    empty=lambda signature: b"",
    one_byte_short=lambda signature: signature[:-1],
    first_byte_missing=lambda signature: signature[1:],
    zero_after=lambda signature: signature + b"\0",
    two_zeros_after=lambda signature: signature + b"\0\0",
    zero_before=lambda signature: b"\0" + signature,
    zero_before_s=lambda signature: signature[:32] + b"\0" + signature[32:],  # the same numbers
    zeros_before_each=lambda signature: b"\0" + signature[:32] + b"\0" + signature[32:],
    halves_swapped=lambda signature: signature[32:] + signature[:32],
    twice=lambda signature: signature * 2,
    all_zero=lambda signature: bytes(64),
    all_ones=lambda signature: b"\xff" * 64,
    as_text=lambda signature: b64url_encode(signature).encode(),
)
@pytest.mark.parametrize("alg", ["ES256", "EdDSA"])
def test_row_04_a_signature_in_another_form(desk, alg, case):
    assert_refused(desk, desk.token(alg=alg, sign=lambda message: case(desk.material[alg].sign(message))))


# --- row 5: a second signature made from the first -----------------------------------------------------------------


def test_row_05_an_ecdsa_signature_with_the_other_s_is_accepted_and_ends_with_its_session(desk):
    """It is valid by the mathematics. So nothing may ever be keyed by the text of a token."""

    def other_s(message):
        r, s = numbers_of(desk.material["ES256"].sign(message))
        return raw(r, P256_ORDER - s)

    assert_accepted(desk, desk.token(alg="ES256", sign=other_s))
    assert_refused(desk, desk.token({"sid": "ended"}, alg="ES256", sign=other_s))


@pytest.mark.parametrize("times", range(1, 15))
def test_row_05_an_ed25519_signature_with_a_larger_s_is_refused(desk, times):
    def larger_s(message):
        signature = desk.material["EdDSA"].sign(message)
        s = int.from_bytes(signature[32:], "little") + times * ED25519_ORDER
        return signature[:32] + s.to_bytes(32, "little")

    assert_refused(desk, desk.token(sign=larger_s))


# --- rows 6 and 7: other spellings of the same bytes ---------------------------------------------------------------

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@values(
    "=",
    "==",
    "===",
    "!!!!",
    "!",
    " ",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "\x0b",
    "A",
    "AA",
    "AAAA",
    "%3D",
    ".",
    "é",
    "，",
    "\udc80",
)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_06_something_after_a_part(desk, alg, value):
    header, payload, signature = desk.token(alg=alg).split(".")
    assert_refused(desk, f"{header}.{payload}.{signature}{value}")
    assert_refused(desk, f"{header}.{payload}{value}.{signature}")
    assert_refused(desk, f"{header}{value}.{payload}.{signature}")


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_06_unused_bits_and_the_other_alphabet(desk, alg):
    header, payload, signature = desk.token(alg=alg).split(".")
    for other in range(64):  # 64 and 32 bytes leave 4 and 2 bits unused, 384 bytes none
        if ALPHABET[other] != signature[-1]:
            assert_refused(desk, f"{header}.{payload}.{signature[:-1]}{ALPHABET[other]}")
    for number in range(40):  # of 40 tokens some have a - or a _ in the signature
        header, payload, signature = desk.token({"jti": f"jti-{number}"}, alg=alg).split(".")
        standard = signature.replace("-", "+").replace("_", "/")
        if standard != signature:
            assert_refused(desk, f"{header}.{payload}.{standard}")


@values(" ", "\n", "\r", "\r\n", "\t", "\x0c", "\x85", "\xa0", "\u200b", "\ufeff", ",", ";", "Bearer ")
def test_row_07_space_around_and_inside(desk, value):
    token = desk.token()
    for place in (0, 5, token.index("."), token.index(".") + 1, len(token) // 2, len(token)):
        assert_refused(desk, token[:place] + value + token[place:])
    assert_refused(desk, f"{token}{value}{token}")
    assert_refused(desk, f"{token},{token}")


def test_row_07_full_width_characters_and_other_dots(desk):
    token = desk.token()
    wide = {chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)}
    assert_refused(desk, "".join(wide[character] for character in token))
    for place, character in enumerate(token):
        if character.isdigit() or character == ".":
            assert_refused(desk, token[:place] + wide[character] + token[place + 1 :])
    for dot in "。．｡․":
        assert_refused(desk, token.replace(".", dot))
    assert_refused(desk, token.encode("utf-16-le"))
    assert_refused(desk, token.encode() + b"\xff")


# --- row 8: duplicate names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["EdDSA", "HS256"])
def test_row_08_a_duplicate_name_in_the_header(desk, alg):
    kid = KID[alg]
    for header in (
        f'{{"alg":"none","alg":"{alg}","kid":"{kid}","typ":"at+jwt"}}',
        f'{{"alg":"{alg}","alg":"{alg}","kid":"{kid}","typ":"at+jwt"}}',
        f'{{"alg":"{alg}","kid":"{kid}","typ":"at+jwt","alg":"none"}}',
        f'{{"alg":"{alg}","\\u0061lg":"{alg}","kid":"{kid}","typ":"at+jwt"}}',
        f'{{"alg":"{alg}","kid":"x","kid":"{kid}","typ":"at+jwt"}}',
        f'{{"alg":"{alg}","kid":"{kid}","typ":"JWT","typ":"at+jwt"}}',
    ):
        assert_refused(desk, desk.token(header=header, alg=alg))


@pytest.mark.parametrize("name", list(CLAIMS))
def test_row_08_a_duplicate_name_in_the_payload(desk, name):
    value = json.dumps(CLAIMS[name])
    escaped = f"\\u{ord(name[0]):04x}{name[1:]}"
    good = claims_text()
    for payload in (
        f'{{"{name}":{value},{good[1:]}',
        f'{good[:-1]},"{name}":{value}}}',
        f'{{"{name}":"other",{good[1:]}',
        f'{good[:-1]},"{escaped}":{value}}}',
        f'{good[:-1]},"x":{{"{name}":1,"{name}":1}}}}',
        f'{good[:-1]},"x":[{{"y":{{"{name}":1,"{escaped}":1}}}}]}}',
    ):
        assert_refused(desk, desk.token(payload))


# --- rows 9, 10 and 11: times that are no times --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@values("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e309", "nan", "inf", "9" * 400 + ".0")
def test_row_09_numbers_that_are_not_json_or_not_finite(desk, name, value):
    assert_refused(desk, desk.token(claims_text(**{name: value})))
    assert_refused(desk, desk.token(claims_text(x=value)))  # even where nobody would look


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@values("1" + "0" * 400, "9" * 5000, "-" + "9" * 5000, "9000000000000000", "9007199254740993", str(2**40), str(2**63))
def test_row_10_enormous_integers(desk, name, value):
    assert_refused(desk, desk.token(claims_text(**{name: value})))


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@values(
    str(NOW + 5),
    f"{NOW + 5}.0",
    "9999999999",
    "tomorrow",
    "",
    float(NOW),
    NOW + 0.5,
    True,
    False,
    [],
    [NOW],
    {},
    {"value": NOW},
    None,
    -1,
    0,
    -(2**53),
)
def test_row_11_a_time_of_the_wrong_type(desk, name, value):
    """The wrong type is not the same as absent: it is refused, not passed over."""
    assert_refused(desk, desk.token({name: value}))


@values("1.8e9", "18e8", "1800000005.0", "1800000005.5", "-0", "-0.0")
@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
def test_row_11_a_time_with_a_fraction_or_an_exponent(desk, name, value):
    assert_refused(desk, desk.token(claims_text(**{name: value})))


@pytest.mark.parametrize("name", list(CLAIMS))
def test_row_11_a_claim_that_is_missing_or_null(desk, name):
    assert_refused(desk, desk.token({name: ...}))
    assert_refused(desk, desk.token({name: None}))


# --- rows 12 and 13: not yet, and no longer ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead_s", "accepted"), [(LEEWAY_S - 1, True), (LEEWAY_S, True), (LEEWAY_S + 1, False), (3600, False)]
)
@pytest.mark.parametrize("name", ["iat", "nbf"])
def test_row_12_not_yet_valid(desk, name, ahead_s, accepted):
    token = desk.token({name: NOW + ahead_s, "exp": NOW + ahead_s + 60})
    (assert_accepted if accepted else assert_refused)(desk, token)


@pytest.mark.parametrize(
    ("past_s", "accepted"),
    [(-1, True), (0, True), (LEEWAY_S - 1, True), (LEEWAY_S, False), (LEEWAY_S + 1, False), (10**9, False)],
)
def test_row_13_expired(desk, past_s, accepted):
    token = desk.token({"iat": NOW - past_s - 60, "exp": NOW - past_s})
    (assert_accepted if accepted else assert_refused)(desk, token)


@pytest.mark.parametrize("lifetime_s", [MAX_LIFETIME_S + 1, 10**9, 0, -1, -100])
def test_row_13_a_life_that_the_issuer_never_gives(desk, lifetime_s):
    assert_refused(desk, desk.token({"exp": NOW + lifetime_s}))
    assert_refused(desk, desk.token({"iat": NOW - lifetime_s, "exp": NOW}))


# --- rows 14, 15 and 16: for whom, from whom, about whom -----------------------------------------------------------


@values(
    [],
    "",
    {},
    {"shop": True},
    ["shop", 1],
    ["shop", None],
    ["shop", ""],
    ["shop", ["shop"]],
    [["shop"]],
    "sho",
    "shopping",
    "Shop",
    "shop ",
    "other shop",
    "other,shop",
    ["other"],
    ["sho", "p"],
    True,
    0,
    None,
    ...,
)
def test_row_14_not_for_this_audience(desk, value):
    assert_refused(desk, desk.token({"aud": value}))


@values("shop", ["shop"], ["other", "shop"])
def test_row_14_a_list_that_contains_me_is_accepted(desk, value):
    assert_accepted(desk, desk.token({"aud": value}))


@values(
    [ISSUER],
    [],
    {},
    "",
    None,
    True,
    ISSUER[:-1],
    ISSUER + "/",
    ISSUER + "/realm",
    ISSUER.upper(),
    ISSUER.replace("https", "http"),
    ISSUER + ":443",
    ISSUER + " ",
    ISSUER + "\0",
    ISSUER.replace("e", "е"),  # a Cyrillic letter
    "https://evil.example",
)
def test_row_15_from_another_issuer(desk, value):
    assert_refused(desk, desk.token({"iss": value}))


def test_row_15_another_tenants_good_key(desk):
    """Keys are looked up under their issuer: a good signature by someone else's key is nobody's."""
    other = algorithms.generate("EdDSA")
    for kid in ("other-key", KID["EdDSA"], ...):
        for issuer in (ISSUER, "https://tenant.example.com"):
            assert_refused(desk, desk.token({"iss": issuer}, header={"kid": kid}, sign=other.sign))
    theirs = desk.verifier(Keyring([Key("other-key", other)]), issuer="https://tenant.example.com")
    assert theirs.verify(
        desk.token({"iss": "https://tenant.example.com"}, header={"kid": "other-key"}, sign=other.sign)
    )
    with pytest.raises(TokenKeyUnknown):
        theirs.verify(desk.token())


@values(
    1,
    0,
    True,
    None,
    ...,
    [],
    ["user-1"],
    {},
    1.5,
    "",
    "\0",
    "user-1\0",
    "user\0admin",
    "\ud800",
    "x\udfff",
    "x" * 1025,
    "x" * 2**20,
)
@pytest.mark.parametrize("name", ["sub", "sid", "jti", "client_id", "iss"])
def test_row_16_a_subject_or_another_name_that_is_none(desk, name, value):
    assert_refused(desk, desk.token({name: value}))


@values("sekisho", "another-client")
def test_row_16_the_subject_is_the_client(desk, value):
    """That is a client's own token; everybody here is a user."""
    assert_refused(desk, desk.token({"sub": value, "client_id": value}))


@values("admin", ["admin", 1], [""], [None], {}, None, 7, [["admin"]])
def test_row_16_roles_that_are_none(desk, value):
    assert_refused(desk, desk.token({"roles": value}))


# --- rows 17 to 21: header members that ask for something ----------------------------------------------------------


@values(
    ["x"], [], "exp", ["exp", "exp"], ["alg"], ["kid", "typ"], ["absent"], ["b64"], None, {}, True, [1], [""], ["crit"]
)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_17_crit(desk, alg, value):
    assert_refused(desk, desk.token(header={"crit": value}, alg=alg))
    assert_refused(desk, desk.token(header={"crit": value, "b64": True, "x": 1, "exp": NOW}, alg=alg))


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_18_an_unencoded_payload(desk, alg):
    for extra in ({"b64": False}, {"b64": False, "crit": ["b64"]}, {"b64": True}, {"b64": True, "crit": ["b64"]}):
        assert_refused(desk, desk.token(header=extra, alg=alg))
        head = part(HEADER | {"alg": alg, "kid": KID[alg]}, extra)
        for payload in (json.dumps(CLAIMS), "x" * 2**20):
            signature = b64url_encode(desk.material[alg].sign(f"{head}.{payload}".encode()))
            assert_refused(desk, f"{head}.{payload}.{signature}")


@values("DEF", "GZIP", "", None, [])
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_19_a_compressed_payload(desk, alg, value):
    packed = zlib.compress(json.dumps(CLAIMS).encode())[2:-4]
    bomb = zlib.compress(b" " * 2**22 + json.dumps(CLAIMS).encode())[2:-4]
    for payload in (packed, bomb, json.dumps(CLAIMS)):
        assert_refused(desk, desk.token(payload, header={"zip": value}, alg=alg))
        assert_refused(desk, desk.token(payload if payload is not bomb else packed, header={"zip": value}, alg=alg))
    assert_refused(desk, desk.token(packed, alg=alg))


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_row_20_a_key_that_comes_with_the_token(desk, alg):
    attacker = algorithms.generate(alg)
    jwk = {**attacker.public_members(), "kid": KID[alg], "alg": alg}
    for kid in (KID[alg], "attacker", ...):
        assert_refused(desk, desk.token(header={"jwk": jwk, "kid": kid}, alg=alg, sign=attacker.sign))
        assert_refused(desk, desk.token(header={"jwk": jwk, "kid": kid}, alg=alg))  # even with our own signature
    secret = {"kty": "oct", "k": b64url_encode(bytes(range(32))), "alg": "HS256"}
    assert_refused(desk, desk.token(header={"jwk": secret, "alg": "HS256"}, alg=alg, sign=Hs256(bytes(range(32))).sign))


@pytest.mark.parametrize("name", ["jku", "x5u", "x5c", "x5t", "x5t#S256", "epk", "apu", "enc", "cty", "url", "nonce"])
@values(
    "http://169.254.169.254/latest/meta-data/",
    "https://auth.example.com/.well-known/jwks.json",
    "file:///etc/passwd",
    "//evil.example/keys",
    ["MIIB"],
    "",
    None,
)
def test_row_21_a_place_to_fetch_keys_from(desk, name, value):
    assert_refused(desk, desk.token(header={name: value}))


# --- row 22: kid ---------------------------------------------------------------------------------------------------


@values(
    "../../dev/null",
    "../../../../../../etc/passwd",
    "/dev/null",
    "x' UNION SELECT 'secret';--",
    "|sleep 10",
    "$(sleep 10)",
    "key-EdDSA\0",
    "key-EdDSA\n",
    " key-EdDSA",
    "KEY-EDDSA",
    "key-EdDSA/../key-EdDSA",
    "http://169.254.169.254/",
    "",
    "unknown",
    "x" * 65,
    "x" * 257,
    "x" * 10240,
    "\ud800",
    "鍵",
    [],
    ["key-EdDSA"],
    0,
    1,
    True,
    None,
    {},
    {"key-EdDSA": 1},
    ...,
)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_22_a_kid_that_names_no_key(desk, alg, value):
    assert_refused(desk, desk.token(header={"kid": value}, alg=alg))


@values("a b", "é", "../x", "x" * 65, "a.b")
def test_row_22_a_kid_of_strange_letters_is_refused_even_where_such_a_key_was_published(desk, value):
    key = {**desk.material["EdDSA"].public_members(), "kid": value}
    verifier = desk.verifier(Keyring.from_jwks({"keys": [key]}))
    with pytest.raises(TokenError):
        verifier.verify(desk.token(header={"kid": value}))


def test_row_22_without_a_kid_the_single_key_is_not_enough_for_an_access_token(desk):
    verifier = desk.verifier(Keyring.from_jwks({"keys": [desk.material["EdDSA"].public_members()]}))
    with pytest.raises(TokenError):
        verifier.verify(desk.token(header={"kid": ...}))


# --- row 23: weak secrets ------------------------------------------------------------------------------------------


@values(
    b"", b"\0", b"x", b"secret", b"password", bytes(16), bytes(31), bytes(32), b"a" * 32, bytes(range(31)), b"ab" * 40
)
def test_row_23_a_weak_secret_signs_nothing_and_never_becomes_a_key(desk, value):
    for alg in ALGORITHMS:
        for kid in (KID[alg], "", ...):
            header = {"alg": "HS256", "kid": kid}
            assert_refused(
                desk, desk.token(header=header, alg=alg, sign=lambda message: hmac.digest(value, message, "sha256"))
            )
    with pytest.raises(KeyRefused):
        Keyring.from_jwks({"keys": [{"kty": "oct", "k": b64url_encode(value), "kid": "weak"}]})


# --- row 24: too much of it ----------------------------------------------------------------------------------------


def padded_to(desk, length):
    """A good token of exactly this many characters, by white space that JSON allows."""
    header = json.dumps(HEADER | {"alg": "EdDSA", "kid": KID["EdDSA"]})
    missing = (length - len(desk.token(claims_text()))) * 3 // 4
    for in_header in range(3):  # no base64url text has a length of 4 n + 1
        for in_payload in range(missing - 8, missing + 8):
            token = desk.token(claims_text() + " " * in_payload, header=header + " " * in_header)
            if len(token) == length:
                return token
    raise AssertionError(length)


def test_row_24_eight_kib_are_read_and_one_character_more_is_not(desk):
    assert_accepted(desk, padded_to(desk, 8192))
    assert_refused(desk, padded_to(desk, 8193))
    assert_accepted(desk, padded_to(desk, 8192).encode())
    assert_refused(desk, padded_to(desk, 8193).encode())


@cases(
    payload_of_1_mib=lambda desk: desk.token({"x": "x" * 2**20}),
    header_of_1_mib=lambda desk: desk.token(header={"kid": "x" * 2**20}),
    text_of_50_mib=lambda desk: "A" * (50 * 2**20),
    bytes_of_50_mib=lambda desk: b"A" * (50 * 2**20),
    a_hundred_thousand_dots=lambda desk: "." * 100_000,
    eight_thousand_dots=lambda desk: "." * 8000,
    dots_after_a_token=lambda desk: desk.token() + "." * 5000,
    nested_100_000_deep=lambda desk: desk.token("[" * 100_000),
    nested_payload=lambda desk: desk.token(claims_text(x="[" * 2500 + "]" * 2500)),
    nested_objects=lambda desk: desk.token(claims_text(x='{"a":' * 500 + "1" + "}" * 500)),
    nested_header=lambda desk: desk.token(header='{"alg":' * 600 + "1" + "}" * 600),
    nested_9_deep=lambda desk: desk.token(claims_text(x="[" * 8 + "]" * 8)),
    string_of_1025=lambda desk: desk.token({"x": "x" * 1025}),
    name_of_1025=lambda desk: desk.token({"x" * 1025: 1}),
)
def test_row_24_too_long_or_too_deep(desk, case):
    assert_refused(desk, case(desk))


# --- rows 25 and 26: the payload -----------------------------------------------------------------------------------


@values(
    b"[]",
    b"[1]",
    json.dumps([CLAIMS]).encode(),
    json.dumps(json.dumps(CLAIMS)).encode(),
    b'"x"',
    b"1",
    b"1.5",
    b"null",
    b"true",
    b"",
    b" ",
    b"{}",
    b"{",
    (claims_text() + claims_text()).encode(),
    (claims_text() + "{}").encode(),
    (claims_text() + " x").encode(),
    (claims_text() + "\0").encode(),
    (claims_text()[:-1] + ",}").encode(),
    (claims_text() + "//").encode(),
    claims_text().replace('"', "'").encode(),
)
def test_row_25_a_payload_that_is_not_one_object(desk, value):
    assert_refused(desk, desk.token(value))


@values(
    b"\xef\xbb\xbf" + claims_text().encode(),
    claims_text().encode("utf-16"),
    claims_text().encode("utf-16-le"),
    claims_text().encode("utf-16-be"),
    claims_text().encode("utf-32"),
    claims_text(x='"é"').encode("latin-1"),
    claims_text(x='"?"').encode().replace(b"?", b"\xff"),
    claims_text(x='"?"').encode().replace(b"?", b"\xc0\xaf"),
    claims_text(x='"?"').encode().replace(b"?", b"\xe0\x80\xaf"),
    claims_text(x='"?"').encode().replace(b"?", b"\xed\xa0\x80"),
    claims_text(x='"?"').encode().replace(b"?", b"\xed\xa0\xbd\xed\xb8\x80"),
    claims_text(x='"?"').encode().replace(b"?", b"\xf4\x90\x80\x80"),
    claims_text(x='"\\ud800"').encode(),
    claims_text(x='"\\udc00\\ud800"').encode(),
)
def test_row_26_a_payload_in_another_encoding(desk, value):
    assert_refused(desk, desk.token(value))


@values("utf-16", "utf-16-le", "utf-32", "utf-8-sig")
def test_row_26_a_header_in_another_encoding(desk, value):
    header = json.dumps(HEADER | {"alg": "EdDSA", "kid": KID["EdDSA"]})
    assert_refused(desk, desk.token(header=header.encode(value)))


# --- row 27: typ ---------------------------------------------------------------------------------------------------


@values(
    "rt+jwt",
    "JWT",
    "jwt",
    "logout+jwt",
    "secevent+jwt",
    "dpop+jwt",
    "id+jwt",
    "at",
    "at+jw",
    "at+jwt ",
    " at+jwt",
    "at+jwt;charset=utf-8",
    "at+jwt\0",
    "application/jwt",
    "application//at+jwt",
    "application/application/at+jwt",
    "text/at+jwt",
    "aT+Jwt\u200b",
    "ａｔ+jwt",
    "at\uff0bjwt",
    "",
    [],
    ["at+jwt"],
    {},
    None,
    0,
    True,
    ...,
)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_27_another_type(desk, alg, value):
    assert_refused(desk, desk.token(header={"typ": value}, alg=alg))


@values("at+jwt", "AT+JWT", "At+Jwt", "application/at+jwt", "APPLICATION/AT+JWT", "Application/at+JWT")
def test_row_27_the_media_type_in_full_and_in_any_letter_case_is_accepted(desk, value):
    assert_accepted(desk, desk.token(header={"typ": value}))


# --- rows 28, 29 and 30: other shapes ------------------------------------------------------------------------------


@values(
    {"alg": "dir", "enc": "A128CBC-HS256"},
    {"alg": "RSA-OAEP", "enc": "A256GCM"},
    {"alg": "RSA-OAEP-256", "enc": "A256GCM", "kid": "key-RS256"},
    {"alg": "ECDH-ES", "enc": "A256GCM", "epk": {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}},
    {"alg": "PBES2-HS256+A128KW", "enc": "A128GCM", "p2c": 2**31, "p2s": "AAAA"},
    {"alg": "A128KW", "enc": "A128GCM", "zip": "DEF"},
)
def test_row_28_an_encrypted_token(desk, value):
    head = b64url_encode(json.dumps(value).encode())
    inner = b64url_encode(desk.token().encode())
    for token in (
        f"{head}.AAAA.AAAA.{inner}.AAAA",
        f"{head}..AAAA.{inner}.AAAA",
        f"{head}.AAAA.AAAA",
        f"{head}.{inner}.AAAA",
        desk.token(header=value | {"typ": "at+jwt"}),
        desk.token(desk.token().encode(), header={"cty": "JWT"}),  # a token inside a token
        desk.token(desk.token().encode()),
    ):
        assert_refused(desk, token)


def test_row_29_json_serialization_and_polyglots(desk):
    token = desk.token()
    header, payload, signature = token.split(".")
    flattened = {"protected": header, "payload": payload, "signature": signature}
    general = {"payload": payload, "signatures": [{"protected": header, "signature": signature}]}
    polyglot = {token: 1, "protected": header, "payload": payload, "signature": signature}
    # What a parser that splits at dots sees of this: a good token between two strings.
    split = f'{{"{header}.{payload}.{signature}":"","payload":"x"}}'
    for document in (json.dumps(flattened), json.dumps(general), json.dumps(polyglot), split, json.dumps([token])):
        assert_refused(desk, document)
        assert_refused(desk, document.encode())
        assert_refused(desk, b64url_encode(document.encode()))
        assert_refused(desk, f"{b64url_encode(document.encode())}.{payload}.{signature}")
    assert_refused(desk, json.dumps(token))


@values(
    "", ".", "..", "...", "....", ".....", "a", "a.b", "a.b.c.d", "a.b.c.d.e", "a.b.c.d.e.f", "a..c", ".b.c", "a.b."
)
def test_row_30_another_number_of_parts(desk, value):
    header, payload, signature = desk.token().split(".")
    assert_refused(desk, value)
    assert_refused(desk, value.encode())
    assert_refused(desk, value.replace("a", header).replace("b", payload).replace("c", signature))


# --- row 31: taken back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_31_a_session_that_ended(desk, alg):
    assert_refused(desk, desk.token({"sid": "ended"}, alg=alg))


def test_row_31_a_key_that_is_gone_from_the_set(desk):
    keys = [Key(KID[alg], desk.material[alg]) for alg in ("EdDSA", "ES256")]
    verifier = desk.verifier(Keyring(keys), allow_shared_secret=False)
    assert verifier.verify(desk.token())
    verifier.replace_keys(Keyring(keys[1:]))
    with pytest.raises(TokenKeyUnknown):
        verifier.verify(desk.token())


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_31_a_key_that_was_withdrawn(desk, alg):
    """At once, tokens seen before included; for good; and that key alone (more in test_seen_tokens.py)."""
    keys = [Key(KID[other], desk.material[other]) for other in ALGORITHMS]
    verifier = desk.verifier(Keyring(keys))
    seen, by_others = desk.token(alg=alg), [desk.token(alg=other) for other in ALGORITHMS if other != alg]
    for token in (seen, seen, *by_others):
        assert verifier.verify(token).sub == "user-1"

    verifier.withdraw_key(KID[alg])
    for change in (None, None, lambda: verifier.replace_keys(Keyring(keys)), lambda: verifier.withdraw_key("another")):
        if change:
            change()
        for token in (seen, desk.token({"jti": "new"}, alg=alg), desk.token({"exp": 0}, alg=alg)):
            with pytest.raises(TokenRevoked):
                verifier.verify(token)
            with pytest.raises(TokenRevoked):  # whoever holds the key ends nobody's session by it either
                verifier.verify_signed(token)
        for token in by_others:
            assert verifier.verify(token).sub == "user-1"

    with pytest.raises(TokenKeyUnknown):  # without a kid there is no way around
        verifier.verify(desk.token(header={"kid": ...}, alg=alg))
    with pytest.raises(TokenError):
        verifier.verify(desk.token(header={"kid": KID["EdDSA" if alg == "ES256" else "ES256"]}, alg=alg))
    assert desk.issuers_own.verify(seen)  # one verifier's word is not another's


def test_row_31_a_key_may_be_withdrawn_before_it_is_known(desk):
    key, other = (Key(KID[alg], desk.material[alg]) for alg in ("EdDSA", "ES256"))
    verifier = desk.verifier(Keyring([other]))
    verifier.withdraw_key(key.kid)
    verifier.replace_keys(Keyring([key, other]))
    with pytest.raises(TokenRevoked):
        verifier.verify(desk.token())
    assert verifier.verify(desk.token(alg="ES256"))


def test_row_31_all_keys_may_be_withdrawn(desk):
    verifier = desk.verifier(Keyring([Key(KID[alg], desk.material[alg]) for alg in ALGORITHMS]))
    for alg in ALGORITHMS:
        verifier.withdraw_key(KID[alg])
    for alg in ALGORITHMS:
        with pytest.raises(TokenRevoked):
            verifier.verify(desk.token(alg=alg))
    new = algorithms.generate("EdDSA")
    verifier.replace_keys(Keyring([Key("new", new)]))
    assert verifier.verify(desk.token(header={"kid": "new"}, sign=new.sign))


# --- row 32: a token that was good is remembered, and what may have changed is asked anew ---------------------------


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_row_32_a_good_answer_is_not_given_a_second_time_when_it_is_no_longer_true(desk, alg):
    """More in test_seen_tokens.py, with all orders of these."""
    now = SimpleNamespace(s=NOW)
    revoked = RevokedSessions()
    keys = [Key(KID[alg], desk.material[alg]), Key("other", algorithms.generate("ES256"))]
    named = {"issuer": ISSUER, "revoked": revoked, "allow_shared_secret": True, "clock": lambda: now.s}
    verifier = Verifier(audience=AUDIENCE, keys=Keyring(keys), **named)
    token = desk.token(alg=alg)
    for _ in range(3):
        assert verifier.verify(token)
    with pytest.raises(TokenClaimsInvalid):  # another route of the same process, with another audience
        Verifier(audience="other", keys=Keyring(keys), **named).verify(token)
    for other in ("A", "B"):
        if token[-9] != other:
            with pytest.raises(TokenSignatureInvalid):
                verifier.verify(token[:-9] + other + token[-8:])
    now.s = NOW + TTL_S + LEEWAY_S
    with pytest.raises(TokenExpired):
        verifier.verify(token)
    now.s -= 1
    assert verifier.verify(token)
    revoked.add([Revocation("session-1", NOW + 10_000)])
    with pytest.raises(TokenRevoked):
        verifier.verify(token)
    verifier.replace_keys(Keyring(keys[1:]))
    with pytest.raises(TokenKeyUnknown):
        verifier.verify(token)


# --- row 33: the key set itself (more in test_keys.py and test_weak_keys.py) ---------------------------------------


def weak_and_wrong_keys(desk):
    """Entries of a key set, none of which may be used."""
    public = {alg: desk.material[alg].public_members() for alg in ("EdDSA", "ES256", "RS256")}
    x, y = public["ES256"]["x"], public["ES256"]["y"]
    roca = json.loads((Path(__file__).parent / "vectors" / "roca.json").read_text())["jwk"]
    return {
        "1024 bits": {"kty": "RSA", "n": b64url_encode(b"\xff" * 128), "e": "AQAB"},
        "2047 bits": {"kty": "RSA", "n": b64url_encode(b"\x7f" + b"\xff" * 255), "e": "AQAB"},
        "16384 bits": {"kty": "RSA", "n": b64url_encode(b"\xff" * 2048), "e": "AQAB"},
        "e = 1": public["RS256"] | {"e": "AQ"},
        "e = 3": public["RS256"] | {"e": "Aw"},
        "e is even": public["RS256"] | {"e": "AQAA"},
        "ROCA": roca,
        "RSA, d of another": public["RS256"] | desk.material["RS256"].private_members() | {"d": "AQAB"},
        "RSA, d without its primes": public["RS256"] | {"d": desk.material["RS256"].private_members()["d"]},
        "P-384 said of a P-256 point": public["ES256"] | {"crv": "P-384"},
        "P-521": {"kty": "EC", "crv": "P-521", "x": b64url_encode(b"\1" * 66), "y": b64url_encode(b"\1" * 66)},
        "secp256k1": public["ES256"] | {"crv": "secp256k1"},
        "point off the curve": public["ES256"] | {"y": x},
        "point at the origin": public["ES256"] | {"x": b64url_encode(bytes(32)), "y": b64url_encode(bytes(32))},
        "point of 33 bytes": public["ES256"] | {"y": b64url_encode(b"\0" + b64url_decode(y))},
        "EC, d of another": public["ES256"] | algorithms.generate("ES256").private_members(),
        "Ed25519, d of another": public["EdDSA"] | algorithms.generate("EdDSA").private_members(),
        "Ed25519 of small order": public["EdDSA"] | {"x": b64url_encode(bytes(32))},
        "Ed25519 of 31 bytes": public["EdDSA"] | {"x": b64url_encode(b64url_decode(public["EdDSA"]["x"])[1:])},
        "Ed448": {"kty": "OKP", "crv": "Ed448", "x": b64url_encode(bytes(range(57)))},
        "X25519": public["EdDSA"] | {"crv": "X25519"},
        "secret of no bytes": {"kty": "oct", "k": ""},
        "secret of 31 bytes": {"kty": "oct", "k": b64url_encode(bytes(range(31)))},
        "secret of one letter": {"kty": "oct", "k": b64url_encode(b"a" * 32)},
        "padding": public["EdDSA"] | {"x": public["EdDSA"]["x"] + "="},
        "for encryption": public["EdDSA"] | {"use": "enc"},
        "another alg": public["EdDSA"] | {"alg": "ES256"},
        "not a key": {},
    }


def test_row_33_bad_keys_of_a_set_are_left_out_and_the_others_go_on(desk):
    good = {**desk.material["EdDSA"].public_members(), "kid": KID["EdDSA"]}
    bad = [{"kid": name} | jwk for name, jwk in weak_and_wrong_keys(desk).items()]
    bad += [None, "a text", 7, [], [good]]
    for entry in bad:
        with pytest.raises(KeyRefused):
            Keyring.from_jwks({"keys": [entry]})
        for entries in ([entry, good], [good, entry]):
            ring = Keyring.from_jwks({"keys": entries})
            assert ([key.kid for key in ring.keys], len(ring.refused)) == ([KID["EdDSA"]], 1)
    ring = Keyring.from_jwks({"keys": [*bad[:10], good, *bad[10:]]})
    assert [key.kid for key in ring.keys] == [KID["EdDSA"]]
    assert len(ring.refused) == len(bad)
    assert desk.verifier(ring, allow_shared_secret=False).verify(desk.token())
    for text in ring.refused:  # it tells which and why, and shows no member
        assert text.startswith("key number ")
        members = (entry.get(name) for entry in bad if isinstance(entry, dict) for name in ("x", "y", "n", "d", "k"))
        assert not any(member in text for member in members if member)


@pytest.mark.parametrize("first", [True, False])
def test_row_33_two_keys_with_one_kid(desk, first):
    """Which of them would check is anyone's guess; so neither does, nor does another of such a set."""
    good = {**desk.material["EdDSA"].public_members(), "kid": KID["EdDSA"]}
    attacker = {**algorithms.generate("EdDSA").public_members(), "kid": KID["EdDSA"]}
    other = {**desk.material["ES256"].public_members(), "kid": KID["ES256"]}
    for entries in ([good, attacker], [good, good], [good, {**other, "kid": KID["EdDSA"]}], [good, other, attacker]):
        with pytest.raises(KeyRefused, match=KID["EdDSA"]):
            Keyring.from_jwks({"keys": entries if first else entries[::-1]})


@pytest.mark.parametrize("alg", ["EdDSA", "ES256", "RS256"])
def test_row_33_private_members_of_a_set_are_dropped(desk, alg):
    """Somebody published them by mistake: the key checks, and signs nothing here."""
    material = desk.material[alg]
    jwk = {**material.public_members(), **material.private_members(), "kid": KID[alg], "key_ops": ["sign", "verify"]}
    ring = Keyring.from_jwks(json.dumps({"keys": [jwk]}))
    verifier = desk.verifier(ring, allow_shared_secret=False)
    assert verifier.verify(desk.token(alg=alg)).sub == "user-1"
    (key,) = ring.keys
    assert not key.material.can_sign
    with pytest.raises(KeyRefused):
        key.material.sign(b"message")
    with pytest.raises(KeyRefused):
        key.private_jwk()
    assert key.public_jwk() == {**material.public_members(), "use": "sig", "alg": alg, "kid": KID[alg]}


# --- all of it -----------------------------------------------------------------------------------------------------


def test_every_kind_of_refusal_looks_the_same_to_the_caller():
    kinds = [TokenError, *TokenError.__subclasses__()]
    assert len(kinds) == 9
    assert {kind.public_code for kind in kinds} == {"invalid_token"}
    assert len({(kind.text_en, kind.text_ja) for kind in kinds}) == 1
    assert len({kind.code for kind in kinds}) == len(kinds)


def test_logout_reads_an_old_token_by_the_same_rules(desk):
    ring = Keyring([Key(KID["EdDSA"], desk.material["EdDSA"])])
    assert access.read(desk.token({"exp": NOW - 10_000, "iat": NOW - 10_900}), ring).sid == "session-1"
    for token in (desk.token(header={"crit": ["exp"]}), desk.token({"exp": "x"}), desk.token(header={"typ": "JWT"})):
        with pytest.raises(TokenError):
            access.read(token, ring)


def test_the_forgers_tools_make_what_they_should(desk):
    """A DER signature is refused because it is DER, not because it is wrong."""
    signature = desk.material["ES256"].sign(b"message")
    assert decode_dss_signature(encode_dss_signature(*numbers_of(signature))) == numbers_of(signature)
    assert min(map(len, public_key_texts(desk.material["EdDSA"]))) == 32
