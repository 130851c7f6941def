"""A second reading of tokens, to hold Sekisho's against: written from the rules, not from its code, and not for speed.

The rules: RFC 8259 and 7493 (JSON, I-JSON), RFC 4648 §5, RFC 7515 §4, RFC 7519 §4.1, RFC 9068 §2 and §4, and what
Sekisho's documentation adds: its limits, and that a header has no members beyond alg, kid and typ. Nothing of Sekisho
is imported here, and none of Python's lenient readers (json, base64) is used.
"""

import re
from dataclasses import dataclass
from typing import NoReturn

MAX_TOKEN = 8192
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"true": True, "false": False, "null": None}


class Refused(Exception):
    """The rules do not allow this."""


def refuse(why: str) -> NoReturn:
    raise Refused(why)


# --- JSON ----------------------------------------------------------------------------------------------------------


def json_object(data: bytes, max_string: int = 1024) -> dict:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        refuse("not UTF-8")
    reader = _Reader(text, max_string)
    value = reader.value(depth=1)
    reader.skip_space()
    if reader.at != len(text):
        refuse("text after the value")
    if not isinstance(value, dict):
        refuse("not an object")
    return value


class _Reader:
    """Recursive descent over one text."""

    def __init__(self, text: str, max_string: int) -> None:
        self.text, self.at, self.max_string = text, 0, max_string

    def skip_space(self) -> None:
        self.at = _SPACE.match(self.text, self.at).end()

    def take(self, token: str) -> bool:
        if not self.text.startswith(token, self.at):
            return False
        self.at += len(token)
        return True

    def value(self, depth: int):
        self.skip_space()
        if depth > 8 and self.text[self.at : self.at + 1] in {"{", "["}:
            refuse("too deep")
        if self.take("{"):
            return self.members(depth)
        if self.take("["):
            return self.elements(depth)
        if self.take('"'):
            return self.string()
        for word, meaning in _WORDS.items():
            if self.take(word):
                return meaning
        return self.number()

    def members(self, depth: int) -> dict:
        members = {}
        self.skip_space()
        if self.take("}"):
            return members
        while True:
            self.skip_space()
            if not self.take('"'):
                refuse("a name is no string")
            name = self.string()
            self.skip_space()
            if not self.take(":"):
                refuse("no colon")
            if name in members:
                refuse("duplicate name")
            members[name] = self.value(depth + 1)
            self.skip_space()
            if self.take("}"):
                return members
            if not self.take(","):
                refuse("no comma")

    def elements(self, depth: int) -> list:
        elements = []
        self.skip_space()
        if self.take("]"):
            return elements
        while True:
            elements.append(self.value(depth + 1))
            self.skip_space()
            if self.take("]"):
                return elements
            if not self.take(","):
                refuse("no comma")

    def string(self) -> str:
        units = []
        while not self.take('"'):
            plain = _PLAIN.match(self.text, self.at)
            units.append(plain.group())
            self.at = plain.end()
            if self.take("\\"):
                units.append(self.escape())
            elif not self.text.startswith('"', self.at):
                refuse("a control character, or no end")
        try:
            whole = "".join(units).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            refuse("half a surrogate pair")
        if len(whole) > self.max_string:
            refuse("a long string")
        return whole

    def escape(self) -> str:
        if self.take("u"):
            digits = _HEX.match(self.text, self.at)
            if digits is None:
                refuse("no four hex digits")
            self.at = digits.end()
            return chr(int(digits.group(), 16))
        letter = self.text[self.at : self.at + 1]
        if letter not in _ESCAPES:
            refuse("no such escape")
        self.at += 1
        return _ESCAPES[letter]

    def number(self) -> int | float:
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            refuse("no value")
        self.at = match.end()
        if match.group(1) or match.group(2):
            number = float(match.group())
            if number in {float("inf"), float("-inf")}:
                refuse("too large a number")
            return number
        if len(match.group()) > 17 or abs(int(match.group())) >= 2**53:
            refuse("too large an integer")
        return int(match.group())


# --- base64url -----------------------------------------------------------------------------------------------------


def b64url_encode(data: bytes) -> str:
    bits = "".join(f"{octet:08b}" for octet in data)
    return "".join(ALPHABET[int(bits[at : at + 6].ljust(6, "0"), 2)] for at in range(0, len(bits), 6))


def b64url_decode(text: str) -> bytes:
    if any(letter not in ALPHABET for letter in text):
        refuse("a foreign letter")
    bits = "".join(f"{ALPHABET.index(letter):06b}" for letter in text)
    data = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits) - 7, 8))
    if b64url_encode(data) != text:
        refuse("a second spelling")
    return data


# --- tokens --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RingKey:
    """What choosing a key needs to know of it. ``kid`` is None for a key that only its algorithm finds."""

    kid: str | None
    algs: tuple[str, ...]
    signer: str


def header(data: bytes, ring: list[RingKey]) -> dict:
    # Room for the longest kid, each of its characters written as two escapes, and for the rest.
    if len(data) > max((12 * len(key.kid or "") for key in ring), default=0) + 256:
        refuse("too long for any of these keys")
    members = json_object(data)
    if set(members) - {"alg", "kid", "typ"}:
        refuse("another member")
    for name in ("kid", "typ"):
        if name in members and not isinstance(members[name], str):
            refuse(f"{name} is no text")
    if len(members.get("kid", "")) > 256:
        refuse("a long kid")
    return members


def signer(members: dict, ring: list[RingKey]) -> str:
    alg = members.get("alg")
    if not isinstance(alg, str):
        refuse("no alg")
    if "kid" in members:
        fitting = [key for key in ring if key.kid is not None and key.kid == members["kid"]]
    else:
        fitting = [key for key in ring if alg in key.algs]
    if len(fitting) != 1 or alg not in fitting[0].algs:
        refuse("not exactly one key")
    return fitting[0].signer


@dataclass(frozen=True)
class Expected:
    """What the verifier was told to expect."""

    issuer: str
    audience: str
    now: int
    leeway_s: int
    max_lifetime_s: int
    ended: frozenset[str]


def access_token_header(members: dict) -> None:
    typ = members.get("typ", "")
    if not typ.isascii() or typ.lower() not in {"at+jwt", "application/at+jwt"}:
        refuse("another type")
    if "kid" not in members or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", members["kid"]):
        refuse("no proper kid")


def claims(data: bytes, expected: Expected) -> dict:
    """The claims of a payload that is good here and now."""
    members = json_object(data)
    read = {name: _text(members, name) for name in ("iss", "sub", "jti", "client_id", "sid")}
    read |= {name: _date(members, name) for name in ("exp", "iat")}
    read["nbf"] = _date(members, "nbf") if "nbf" in members else None
    audience = members.get("aud")
    read["aud"] = _texts([audience] if isinstance(audience, str) else audience, "aud")
    read["roles"] = _texts(members["roles"], "roles") if "roles" in members else ()
    latest = expected.now + expected.leeway_s
    good = (
        read["iss"] == expected.issuer
        and expected.audience in read["aud"]
        and read["sub"] != read["client_id"]
        and expected.now < read["exp"] + expected.leeway_s
        and read["iat"] <= latest
        and (read["nbf"] is None or read["nbf"] <= latest)
        and read["iat"] < read["exp"] <= read["iat"] + expected.max_lifetime_s
        and read["sid"] not in expected.ended
    )
    if not good:
        refuse("not for us, not for now, or ended")
    return read


def _text(members: dict, name: str) -> str:
    value = members.get(name)
    if type(value) is not str or not value or "\0" in value:
        refuse(f"{name} is no text")
    return value


def _texts(values: object, name: str) -> tuple[str, ...]:
    if type(values) is not list or not all(type(value) is str and value and "\0" not in value for value in values):
        refuse(f"{name} is no list of texts")
    return tuple(values)


def _date(members: dict, name: str) -> int:
    value = members.get(name)
    if type(value) is not int or not 0 < value < 2**40:
        refuse(f"{name} is no time")
    return value
