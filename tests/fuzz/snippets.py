"""Pieces of JSON that readers disagree about: the target puts them in, the dictionary offers them, the seeds hold them."""

import itertools
from collections.abc import Iterator

import desk
from desk import CLAIMS, GOOD, GOOD_REFRESH, JWKS, SIGNERS, VECTOR_TOKENS, header_texts, json_text

# Around every limit: the leeway of 10 s, the lifetime of at most 3600 s, and the lengths of a kid, a string and a key.
DELTAS = (-3610, -11, -10, -9, -1, 0, 1, 9, 10, 11, 3590, 3600, 3601)
LENGTHS = (0, 1, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 4096, 4097, 6000)
VALUES = (
    b"null", b"true", b"false", b"0", b"-0", b"1", b"-1", b"1.0", b"1800000900.0", b"18e8", b"1e400", b"-1e400", b"NaN",
    b"Infinity", b"-Infinity", b"9007199254740992", b"9007199254740993", b"-9007199254740993", b"1099511627775",
    b"1099511627776", b"18446744073709551616", b"1" + b"0" * 400, b"01", b"+1", b".5", b"5.", b"0x10", b"1_0",
    b'""', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\ude00\\ud83d"', b'"\\u0000"', b'"\0"', b'"\x7f"', b'"\xc3\xa9"',
    b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\xe2\x80\xa8"', b'"\\/"', b'"\\x41"', b"'a'", b'"shop"', b'"1800000900"',
    b"[]", b"{}", b'["shop"]', b'["shop",1]', b'["shop",""]', b'[["shop"]]', b'{"shop":1}', b'{"a":1,"a":1}',
    b'{"a":1,"\\u0061":1}', b"[" * 7 + b"]" * 7, b"[" * 8 + b"]" * 8, b"[" * 9 + b"]" * 9, b"1,", b"[1,]", b'{"a":1,}',
    b"1//", b"/**/1", b" 1 ", b"\t1\r\n", b"\xc2\xa01", b"\xef\xbb\xbf1",
    b'"ended"', b'"sekisho"',
    b'"EdDSA"', b'"Ed25519"', b'"HS256"', b'"ES256"', b'"RS256"', b'"none"', b'"key-EdDSA"', b'"key-HS256"', b'"a b"',
    b'"AT+JWT"', b'"application/at+jwt"', b'"at+jwt "', b'"a\xe2\x84\xaa"', b'"JWT"', b'"OKP"', b'"oct"', b'"EC"',
    b'"RSA"', b'"P-256"', b'"Ed448"', b'"AQAB"', b'"AQ"', b'"AAAA"', b'"AAB"', b'"sig"', b'"enc"', b'["verify"]',
    b'["x","shop"]', b'"shop "', b'"a shop"', b'"shop,x"', b'"SHOP"', b'"https://auth.example.com/"',
    *(str(desk.NOW + delta).encode() for delta in DELTAS),
)  # fmt: skip
NAMES = (b'"crit"', b'"b64"', b'"jwk"', b'"x5u"', b'"zip"', b'"cty"', b'"use"', b'"key_ops"', b'"\\u0065xp"', b'"a"')
LETTERS = (b".", b"=", b"+", b"/", b"-", b"_", b"\xff", b"\\u", b"\\\\", b"\n", b"{", b"}", b"[", b"]", b",", b":")


# The numbers of ``inputs.edit``, and of the claims. An edited member goes back to its place.
REPLACED, REPEATED, LONG, LEFT_OUT = 1, 2, 7, 8
EXP, IAT, NBF = ([*CLAIMS].index(name) for name in (b'"exp"', b'"iat"', b'"nbf"'))


def dictionary() -> str:
    """In libFuzzer's format."""
    tokens = dict.fromkeys((*VALUES, *NAMES, *LETTERS, *CLAIMS, *header_texts("HS256")))
    return "".join('"' + "".join(f"\\x{octet:02x}" for octet in token) + '"\n' for token in tokens if len(token) < 60)


def seeds(modes: list[str]) -> Iterator[bytes]:
    """Some inputs of each mode; the layouts are those of the functions in ``token_modes`` and ``key_modes``."""
    for mode, rest in itertools.chain(_examples(), _one_value_replaced(), _limits()):
        yield bytes([modes.index(mode)]) + rest


def _examples() -> Iterator[tuple[str, bytes]]:
    for token in (*VECTOR_TOKENS, *GOOD.values()):
        yield "raw_token", token.encode()
    for alg in range(4):
        for at in (0, 1, 60, 300):
            place = bytes([alg]) + at.to_bytes(2, "big")
            yield "edited_token", place + b"\0\0"
            yield "edited_token", place + b"\1\0A"
        yield "signed_parts", bytes([alg, 0]) + json_text(header_texts(SIGNERS[alg])) + b"\xff" + json_text(CLAIMS)
        yield "edited_header", bytes([alg, 0])
        yield "edited_claims", bytes([alg])
        yield "key_set", b'{"keys":[%s]}' % _jwk_text([*JWKS][alg])
        yield "edited_key", bytes([alg])
    yield "signed_parts", bytes([0, 1]) + b'{"alg":"HS256"}\xffany bytes \xff\0'
    for op in range(9):
        yield "edited_claims", bytes([1, op, 3, op]) + b"x"
        yield "edited_key", bytes([op % 4, op, 1, op]) + b"x"
    yield "refresh_token", bytes([0, 0])
    yield "refresh_token", b"\1" + GOOD_REFRESH.encode()


def _one_value_replaced() -> Iterator[tuple[str, bytes]]:
    for value, text in enumerate(VALUES):
        yield "wire_json", b'{"x":%s}' % text
        yield "wire_base64", text
        for claim in range(len(CLAIMS)):
            yield "edited_claims", bytes([0, REPLACED, claim, value])
        for member in range(3):
            yield "edited_header", bytes([0, value % 2, REPLACED, member, value])
        for member in range(8):
            yield "edited_key", bytes([value % 4, REPLACED, member, value])


def _limits() -> Iterator[tuple[str, bytes]]:
    for length, member in itertools.product(range(len(LENGTHS)), range(len(CLAIMS))):
        yield "edited_claims", bytes([0, LONG, member, length])
        yield "edited_header", bytes([member % 4, 1, LONG, member, length])
        yield "edited_key", bytes([member % 4, LONG, member, length])
    for kid in (b"x" * 64, b"x" * 256, b"a b", b""):
        for alg in SIGNERS[:4]:
            header = json_text(header_texts(alg) | {b'"kid"': b'"%s"' % kid})
            yield "signed_parts", bytes([SIGNERS.index(alg), 1]) + header + b"\xff" + json_text(CLAIMS)
    for issued, expires in itertools.product(range(len(VALUES) - len(DELTAS), len(VALUES)), repeat=2):
        yield "edited_claims", bytes([0, REPLACED, EXP, expires, REPLACED, IAT, issued, LEFT_OUT, NBF])
    for bracket in (b"[", b'{"":'):
        yield "edited_claims", bytes([0, REPEATED, EXP]) + bracket + b"\xff\7\xd0"
        yield "wire_json", b'{"":' + bracket * 900


def _jwk_text(alg: str) -> bytes:
    return json_text({f'"{name}"'.encode(): f'"{value}"'.encode() for name, value in JWKS[alg].items()})
