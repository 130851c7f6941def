"""``RequireUser`` in a small FastAPI app: which requests it lets through, and what it answers to the others."""

import json
from typing import Annotated

import anyio
import httpx2
import pytest
from fastapi import Depends, FastAPI

from sekisho.integrations.fastapi import RequireUser
from sekisho.tokens import KeySet, access, jws
from sekisho.tokens.access import AccessClaims
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.verify import Verifier
from sekisho.wire import b64url_encode

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://auth.example.com", "shop"
KEYS, OTHER_KEYS = KeySet.generate("EdDSA", now=NOW), KeySet.generate("EdDSA", now=NOW)
INVALID = 'Bearer error="invalid_token"'


def token_of(key_set=KEYS, **changed):
    named = {"issuer": ISSUER, "audience": AUDIENCE, "subject": "user-1", "session_id": "session-1"}
    named |= {"issued_at": NOW, "expires_at": NOW + 900}
    return access.issue(key_set.active("sign"), **(named | changed))


@pytest.fixture(scope="module")
def app():
    verifier = Verifier(
        issuer=ISSUER,
        audience=AUDIENCE,
        keys=KEYS.keyring,
        revoked=RevokedSessions([Revocation("ended", NOW + 10_000)]),
        clock=lambda: NOW,
    )
    app = FastAPI()
    User = Annotated[AccessClaims, Depends(RequireUser(verifier))]  # noqa: N806 - a type

    @app.get("/customers")
    async def customers(user: User) -> dict[str, str]:
        return {"user": user.sub, "session": user.sid}

    @app.post("/orders")
    def orders(user: User) -> dict[str, str]:
        return {"user": user.sub}

    @app.get("/open")
    def open_to_all() -> dict[str, str]:
        return {}

    return app


def ask(app, method, path, **named):
    async def send():
        # Whatever is raised inside the app is raised here, so nothing can hide behind a 500.
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
            return await client.request(method, path, **named)

    return anyio.run(send)


def get(app, *authorization):
    return ask(app, "GET", "/customers", headers=[("Authorization", value) for value in authorization])


def seen(response):
    return response.status_code, response.content, sorted(response.headers.keys())


# --- let through ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_good_token_gives_its_claims(app, scheme):
    response = get(app, f"{scheme} {token_of()}")
    assert (response.status_code, response.json()) == (200, {"user": "user-1", "session": "session-1"})
    assert "www-authenticate" not in response.headers


def test_a_plain_function_is_guarded_too(app):
    response = ask(app, "POST", "/orders", headers={"Authorization": f"Bearer {token_of()}"})
    assert (response.status_code, response.json()) == (200, {"user": "user-1"})


def test_a_route_without_it_is_open(app):
    assert ask(app, "GET", "/open").status_code == 200


# --- no credentials ------------------------------------------------------------------------------------------------


def test_without_credentials_the_challenge_names_no_error(app):
    """RFC 6750 §3.1: nothing was wrong, so nothing is said to be."""
    response = get(app)
    assert response.status_code == 401
    assert response.headers.get_list("www-authenticate") == ["Bearer"]


@pytest.mark.parametrize(
    "named",
    [
        {"params": {"access_token": token_of()}},
        {"params": {"token": token_of()}},
        {"params": {"authorization": f"Bearer {token_of()}"}},
        {"headers": {"Cookie": f"access_token={token_of()}"}},
        {"headers": {"Cookie": f"__Host-access={token_of()}; Authorization=Bearer {token_of()}"}},
        {"headers": {"X-Authorization": f"Bearer {token_of()}"}},
        {"headers": {"Proxy-Authorization": f"Bearer {token_of()}"}},
        {"headers": {"X-Access-Token": token_of()}},
        {"headers": {"X-Forwarded-Access-Token": token_of()}},
    ],
)
def test_a_token_anywhere_but_in_the_authorization_header_is_no_credential(app, named):
    response = ask(app, "GET", "/customers", **named)
    assert seen(response) == seen(get(app))
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_token_in_a_body_is_no_credential(app):
    for named in (
        {"data": {"access_token": token_of()}},
        {"json": {"access_token": token_of()}},
        {"content": f"access_token={token_of()}"},
    ):
        response = ask(app, "POST", "/orders", **named)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_token_in_the_query_does_not_stand_in_for_a_bad_header(app):
    headers = {"Authorization": "Bearer garbage"}
    response = ask(app, "GET", "/customers", params={"access_token": token_of()}, headers=headers)
    assert response.headers["www-authenticate"] == INVALID


# --- bad credentials -----------------------------------------------------------------------------------------------

GOOD = token_of()
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")


def signed(payload, **header):
    key = KEYS.active("sign")
    head = b64url_encode(json.dumps({"alg": "EdDSA", "kid": key.kid, "typ": "at+jwt"} | header).encode())
    message = f"{head}.{b64url_encode(payload)}"
    return f"{message}.{b64url_encode(key.material.sign(message.encode()))}"


CLAIMS = jws.verify(GOOD, KEYS.keyring)
BAD_TOKENS = {
    "garbage": "garbage",
    "dots": "..",
    "three letters": "a.b.c",
    "signature changed": f"{HEADER}.{PAYLOAD}.{'A' * len(SIGNATURE)}",
    "signature missing": f"{HEADER}.{PAYLOAD}.",
    "padded": GOOD + "=",
    "two tokens": f"{GOOD},{GOOD}",
    "two tokens apart": f"{GOOD}, Bearer {GOOD}",
    "alg none": f"eyJhbGciOiJub25lIn0.{PAYLOAD}.",
    "another issuer's key": token_of(OTHER_KEYS),
    "another issuer": token_of(issuer="https://evil.example"),
    "another audience": token_of(audience="other"),
    "expired": token_of(issued_at=NOW - 2000, expires_at=NOW - 1000),
    "not yet": token_of(issued_at=NOW + 100),
    "for ever": token_of(expires_at=NOW + 10**9),
    "session ended": token_of(session_id="ended"),
    "refresh type": signed(CLAIMS, typ="rt+jwt"),
    "crit": signed(CLAIMS, crit=["exp"]),
    "kid unknown": signed(CLAIMS, kid="unknown"),
    "kid a list": signed(CLAIMS, kid=["x"]),
    "payload a list": signed(b"[]"),
    "payload not UTF-8": signed(b"\xff"),
    "NaN": signed(b'{"exp":NaN}'),
    "enormous number": signed(b'{"exp":' + b"9" * 5000 + b"}"),
    "nested": signed(b"[" * 5000),
    "8 KiB and more": GOOD + "A" * 8192,
    "lone surrogate": signed(CLAIMS[:-1] + b',"x":"\\ud800"}'),
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_every_bad_token_gets_one_and_the_same_answer(app, token):
    response = get(app, f"Bearer {token}")
    assert response.status_code == 401
    assert response.headers.get_list("www-authenticate") == [INVALID]
    assert seen(response) == seen(get(app, "Bearer x"))


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer ",
        "Bearer  ",
        f"Bearer  {GOOD}",
        f"Bearer\t{GOOD}",
        f" Bearer {GOOD} x",
        f"Bearer {GOOD} {GOOD}",
        f"Bearer={GOOD}",
        f'Bearer "{GOOD}"',
        f"Bearer: {GOOD}",
        f"Bearer token={GOOD}",
        f"Basic {GOOD}",
        "Basic dXNlcjpwYXNz",
        f"DPoP {GOOD}",
        f"Token {GOOD}",
        f"JWT {GOOD}",
        GOOD,
        "",
        " ",
        ",",
        f"Basic dXNlcjpwYXNz, Bearer {GOOD}",
        f"Ｂearer {GOOD}".encode(),
        f"Bearer {GOOD}".encode() + b"\xff",
        b"Bearer \xff\xfe",
        b"\xff",
    ],
    ids=lambda value: ascii(value)[:25],
)
def test_a_header_that_is_not_one_bearer_token_gets_that_answer_too(app, value):
    response = get(app, value)
    assert response.headers["www-authenticate"] == INVALID
    assert seen(response) == seen(get(app, "Bearer x"))


@pytest.mark.parametrize(
    "pair", [(f"Bearer {GOOD}", f"Bearer {GOOD}"), (f"Bearer {GOOD}", "Basic dTpw"), ("", f"Bearer {GOOD}")]
)
def test_of_two_authorization_headers_none_counts(app, pair):
    """Two parsers on the way could each take another one."""
    for values in (pair, pair[::-1]):
        response = get(app, *values)
        assert response.headers["www-authenticate"] == INVALID
        assert seen(response) == seen(get(app, "Bearer x"))


def test_the_answer_does_not_say_why(app):
    for token in BAD_TOKENS.values():
        text = get(app, f"Bearer {token}").text.lower()
        assert not any(word in text for word in ("expire", "signature", "kid", "session", "issuer", "audience", "alg"))


# --- what the documentation page shows -----------------------------------------------------------------------------


def test_openapi_shows_the_bearer_scheme_on_guarded_routes_alone(app):
    document = ask(app, "GET", "/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert len(schemes) == 1
    ((name, scheme),) = schemes.items()
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
    assert document["paths"]["/customers"]["get"]["security"] == [{name: []}]
    assert document["paths"]["/orders"]["post"]["security"] == [{name: []}]
    assert "security" not in document["paths"]["/open"]["get"]
    assert "parameters" not in document["paths"]["/customers"]["get"]  # the request itself is no parameter
