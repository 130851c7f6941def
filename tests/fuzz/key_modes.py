"""Inputs that become key sets, and what is below keys and tokens: base64url and JSON."""

import json
from contextlib import suppress

import desk
import reference
from answers import Disagreement, agree, answers
from inputs import Input, edited
from reference import Refused

from sekisho.errors import KeyRefused, TokenError
from sekisho.tokens import Keyring, KeySet, jws
from sekisho.tokens.keys import Key
from sekisho.wire import WireError, b64url_decode, b64url_encode, json_object

SECRET_MEMBERS = ("k", "d", "p", "q", "dp", "dq", "qi")
GOOD_KEY = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "good"}


def key_set(source: Input) -> None:
    compare_key_set("key_set", source.rest())


def edited_key(source: Input) -> None:
    """A good key beside one that was changed: a bad one does not drop the set."""
    alg = source.choice([*desk.JWKS])
    members = {**desk.JWKS[alg], "kid": "k1", "alg": alg, "use": "sig"}
    texts = {f'"{name}"'.encode(): f'"{value}"'.encode() for name, value in members.items()}
    compare_key_set("edited_key", b'{"keys":[%s]}' % edited(texts, source))


def compare_key_set(what: str, data: bytes) -> None:
    with suppress(KeyRefused):
        KeySet.from_json(data)
    try:
        entries = reference.json_object(data, 65_536).get("keys")
    except Refused:
        entries = None
    entries = entries if isinstance(entries, list) else None
    try:
        ring = Keyring.from_jwks(data.decode("utf-8", "surrogateescape"))
    except KeyRefused as error:
        answers[what, "refused"] += 1
        keeps_secret(error.detail, entries or [])
    else:
        answers[what, "accepted"] += 1
        if entries is None or len(ring.keys) + len(ring.refused) != len(entries):
            raise Disagreement(f"{what}: Sekisho reads a key set where the reference reads none, or another")
        keeps_secret(" ".join(ring.refused), entries)
        check_ring(ring)
    if entries is not None and not any(isinstance(entry, dict) and entry.get("kid") == "good" for entry in entries):
        stays_beside(what, entries)


def stays_beside(what: str, entries: list) -> None:
    try:
        ring = Keyring.from_jwks({"keys": [*entries, GOOD_KEY]})
    except KeyRefused as error:
        if "two keys" not in error.detail:
            raise Disagreement(f"{what}: a bad key dropped the set") from error
    else:
        if "good" not in [key.kid for key in ring.keys]:
            raise Disagreement(f"{what}: a bad key dropped a good one")


def keeps_secret(text: str, entries: list) -> None:
    for entry in entries:
        for name in SECRET_MEMBERS:
            value = entry.get(name) if isinstance(entry, dict) else None
            if isinstance(value, str) and len(value) >= 16 and value in text:
                raise Disagreement("the refusal quotes a secret")


def check_ring(ring: Keyring) -> None:
    """Every key that was let in is one: it checks, it cannot sign unless it is a secret, and it is strong enough."""
    for key in ring.keys:
        takes_no_zeros(key)
        if key.alg == "HS256":
            if len(key.material.secret) < 32:
                raise Disagreement("a short secret")
            continue
        if key.material.can_sign:
            raise Disagreement("a checking key that can sign")
        public = key.public_jwk()
        if set(public) & set(SECRET_MEMBERS):
            raise Disagreement("a published secret")
        if key.alg == "RS256" and not (public["e"] == "AQAB" and 2041 <= len(b64url_decode(public["n"])) * 8 <= 8192):
            raise Disagreement("a weak RSA key")
        (again,) = Keyring.from_jwks({"keys": [public]}).keys
        if again.public_jwk() != public:
            raise Disagreement("a published key reads as another")


# --- wire ----------------------------------------------------------------------------------------------------------


def takes_no_zeros(key: Key) -> None:
    header = json.dumps({"alg": key.alg, "kid": key.kid} if key.kid else {"alg": key.alg}).encode()
    try:
        jws.verify(f"{b64url_encode(header)}.{b64url_encode(b'{}')}.{b64url_encode(bytes(64))}", Keyring([key]))
    except TokenError:
        return
    raise Disagreement("a key takes zeros for a signature")


def wire_base64(source: Input) -> None:
    data = source.rest()
    if b64url_encode(data) != reference.b64url_encode(data):
        raise Disagreement("base64url of the bytes")
    text = data.decode("utf-8", "surrogateescape")
    agree("wire_base64", lambda: b64url_decode(text), lambda: reference.b64url_decode(text), WireError)


def wire_json(source: Input) -> None:
    data = source.rest()
    agree("wire_json", lambda: json_object(data), lambda: reference.json_object(data), WireError)
