"""Inputs that become access tokens and refresh tokens, most of them rightly signed."""

from contextlib import suppress

import desk
import reference
from answers import Disagreement, agree, answers, never
from desk import Ring
from inputs import Input, edited
from reference import Refused

from sekisho.errors import RefreshTokenInvalid, TokenError
from sekisho.tokens import jws
from sekisho.tokens.refresh import PREFIX
from sekisho.verify import Verifier
from sekisho.wire import b64url_encode

CLAIM_NAMES = ("iss", "sub", "aud", "exp", "iat", "jti", "client_id", "sid", "nbf", "roles")


def compare_token(what: str, header: bytes, payload: bytes, signer: str, ring: Ring) -> None:
    """The token is rightly signed by ``signer``; the rest is up to the rules."""
    token = desk.signed(header, payload, signer)

    def read_header() -> dict:
        if not header or not payload or len(token) > reference.MAX_TOKEN:
            raise Refused
        members = reference.header(header, ring.reference)
        if reference.signer(members, ring.reference) != signer:
            raise Refused
        return members

    def read_payload() -> bytes:
        read_header()
        return payload

    def read_claims() -> list:
        reference.access_token_header(read_header())
        claims = reference.claims(payload, desk.EXPECTED)
        return [claims[name] for name in CLAIM_NAMES]

    for text in (token, token.encode()):
        agree(f"{what}: jws.verify", lambda text=text: jws.verify(text, ring.keyring), read_payload, TokenError)
        agree(f"{what}: Verifier", lambda text=text: verified(text, ring.verifier), read_claims, TokenError)


def verified(text: str | bytes, verifier: Verifier) -> list:
    """The claims; the same ones a second time, and none when the token is no longer good: a verifier may remember."""
    claims = verifier.verify(text)
    if verifier.verify(text) != claims:
        raise Disagreement("another answer the second time")
    desk.time.now = claims.exp + desk.EXPECTED.leeway_s
    try:
        with suppress(TokenError):
            verifier.verify(text)
            raise Disagreement("an expired token is remembered as good")
    finally:
        desk.time.now = desk.NOW
    audience = claims.aud if isinstance(claims.aud, tuple) else (claims.aud,)
    return [audience if name == "aud" else getattr(claims, name) for name in CLAIM_NAMES]


def raw_token(source: Input) -> None:
    data = source.rest()
    for text in (data, data.decode("utf-8", "surrogateescape")):
        for ring in desk.RINGS:
            for verify in (lambda text, ring=ring: jws.verify(text, ring.keyring), ring.verifier.verify):
                try:
                    verify(text)
                except TokenError:
                    answers["raw_token", "refused"] += 1
                    continue
                answers["raw_token", "accepted"] += 1
                message, _, signature = data.decode("ascii").rpartition(".")
                reference.b64url_decode(signature)
                if message not in desk.SIGNED_MESSAGES:
                    raise Disagreement("nobody signed this")


def edited_token(source: Input) -> None:
    """A good token with one place changed is good no more."""
    good = source.choice([*desk.GOOD.values()])
    at, removed, repeat, inserted = source.number() % (len(good) + 1), source.byte(), source.byte(), source.rest()
    text = good[:at] + inserted.decode("utf-8", "surrogateescape") * (1 + repeat) + good[at + removed :]
    keyring, verifier = desk.RINGS[0].keyring, desk.RINGS[0].verifier
    theirs = (lambda: True) if text == good else never
    for form in (text, text.encode("utf-8", "surrogateescape")):
        agree("edited_token: jws.verify", lambda form=form: bool(jws.verify(form, keyring)), theirs, TokenError)
        agree("edited_token: Verifier", lambda form=form: bool(verifier.verify(form)), theirs, TokenError)


def signed_parts(source: Input) -> None:
    signer, ring = source.choice(desk.SIGNERS), source.choice(desk.RINGS)
    compare_token("signed_parts", source.piece(), source.rest(), signer, ring)


def edited_header(source: Input) -> None:
    signer, ring = source.choice(desk.SIGNERS), source.choice(desk.RINGS)
    header = edited(desk.header_texts(signer), source)
    compare_token("edited_header", header, desk.json_text(desk.CLAIMS), signer, ring)


def edited_claims(source: Input) -> None:
    signer = source.choice(desk.SIGNERS)
    header = desk.json_text(desk.header_texts(signer))
    compare_token("edited_claims", header, edited(desk.CLAIMS, source), signer, desk.RINGS[0])


def refresh_token(source: Input) -> None:
    kind = source.byte() % 2
    good = desk.GOOD_REFRESH
    if kind == 0:
        at, inserted = source.byte() % (len(good) + 1), source.piece().decode("utf-8", "surrogateescape")
        text = good[:at] + inserted + good[at + source.byte() :]
    else:
        body = source.rest()
        text = body.decode() if body == good.encode() else PREFIX + b64url_encode(body)
    agree(
        "refresh_token",
        lambda: bool(desk.REFRESH_KEYS.read(text)),
        (lambda: True) if text == good else never,
        RefreshTokenInvalid,
    )
