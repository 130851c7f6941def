"""One purpose per key, one door per kind of credential: every kind is shown at every door, and opens its own alone.

A new kind is a line in ``KINDS``, a new door a line in ``DOORS``; every pair that is not in a door's ``opens_for`` has to
be refused.
"""

import hashlib
import hmac
import json
import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from sekisho import KeyRefused, Keyring
from sekisho.tokens import KeySet, access, jws
from sekisho.tokens.csrf import CsrfKeys
from sekisho.tokens.keys import PURPOSES, STATES, Key, generate_key
from sekisho.tokens.refresh import PREFIX, Position, RefreshKeys
from sekisho.wire import b64url_decode, b64url_encode, now_s
from servers.sekisho_server import RunningServer
from test_serve import PASSWORD, Person, a_client, an_address, claims_of, header_of, is_problem

OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}


class World:
    """A server, somebody who is signed in there, and everything that could be shown at its doors."""

    def __init__(self, server: RunningServer, address: str) -> None:
        self.server = server
        self.client = a_client(server, headers={"X-Forwarded-For": address})
        self.keys = KeySet.from_json((server.folder / "sekisho-keys.json").read_bytes())
        self.strangers_keys = KeySet.generate("HS256", now=now_s())
        self.credential = server.run("verifiers", "add", f"shop-{secrets.token_hex(4)}").strip()
        self.person = Person(self.client, an_address()).signs_up()
        # Where devices are shown, sign-ins follow each other, and would push out the first's sessions.
        self.other = Person(self.client, an_address()).signs_up()
        self.sign_in()

    def sign_in(self) -> None:
        self.person.logs_in()
        self.client.cookies.clear()
        visit = self.client.get("/session").json()
        self.visitors_csrf, self.visitor = visit["csrf_token"], self.client.cookies["sekisho_csrf"]
        answer = self.client.post(
            "/session",
            json={"email": self.person.email, "password": PASSWORD},
            headers=OWN_PAGE | {"X-CSRF-Token": self.visitors_csrf},
        )
        self.csrf, self.session = answer.json()["csrf_token"], self.client.cookies["sekisho_session"]
        self.client.cookies.clear()

    @property
    def device(self) -> str:
        """A fresh one: the service remembers a few of each account."""
        self.other.logs_in()
        token = self.client.cookies["sekisho_device"]
        self.client.cookies.clear()
        return token

    @property
    def claims(self) -> dict[str, Any]:
        return claims_of(self.person.access_token)

    def access_by(self, key: Key, *, kid: str = "", **changed: Any) -> str:
        """What its own token says, signed with another key."""
        claims = self.claims
        said: dict[str, Any] = {
            "issuer": claims["iss"],
            "audience": claims["aud"],
            "subject": claims["sub"],
            "session_id": claims["sid"],
            "issued_at": claims["iat"],
            "expires_at": claims["exp"],
        }
        return access.issue(Key(kid or key.kid, key.material), **{**said, **changed})

    def jwt(self, typ: str) -> str:
        """The same claims under another type, signed with the right key."""
        return jws.sign(json.dumps(self.claims).encode(), self.keys.active("sign"), typ=typ)

    def refresh_by(self, key: Key, *, kid: str = "") -> str:
        """The session's first refresh token, as someone would make it who had this key and not the salt."""
        held = Key(kid or key.kid, key.material, "refresh")
        return RefreshKeys(held, [held]).make(uuid.UUID(self.claims["sid"]), Position(0, 0), bytes(16))

    def csrf_by(self, key: Key) -> str:
        """A CSRF token for its session, made with another key."""
        return CsrfKeys(Key(key.kid, key.material, "csrf"), []).make("session", self.session)

    def mac_by(self, key: Key) -> str:
        """A refresh token whose tag is a plain MAC with the key itself."""
        text = self.person.refresh_token.removeprefix(PREFIX)
        body = b64url_decode(text)[:-16]
        return PREFIX + b64url_encode(body + hmac.digest(key.material.secret, body, hashlib.sha256)[:16])


def key(world: World, purpose: str) -> Key:
    return world.keys.active(purpose)  # type: ignore[arg-type]


def kid(world: World, purpose: str) -> str:
    return key(world, purpose).kid


# --- the kinds -----------------------------------------------------------------------------------------------------

ACCESS, OLD_ACCESS, REFRESH = "access token", "expired access token", "refresh token"
VERIFIER, DEVICE = "verifier's credential", "device token"
SESSION, VISITOR = "session cookie", "visitor's cookie"
CSRF, OLD_CSRF = "CSRF token", "CSRF token of before the login"

KINDS: dict[str, Callable[[World], str]] = {
    ACCESS: lambda w: w.person.access_token,
    OLD_ACCESS: lambda w: w.access_by(key(w, "sign"), issued_at=now_s() - 200, expires_at=now_s() - 100),
    REFRESH: lambda w: w.person.refresh_token,
    VERIFIER: lambda w: w.credential,
    DEVICE: lambda w: w.device,
    SESSION: lambda w: w.session,
    VISITOR: lambda w: w.visitor,
    CSRF: lambda w: w.csrf,
    OLD_CSRF: lambda w: w.visitors_csrf,
    "session cookie that nobody has": lambda w: secrets.token_urlsafe(32),
    "hash of the session cookie": lambda w: b64url_encode(hashlib.sha256(w.session.encode()).digest()),
    **{
        f"CSRF token by the {purpose} key": (lambda w, purpose=purpose: w.csrf_by(key(w, purpose)))
        for purpose in ("sign", "refresh")
    },
    "CSRF token of another issuer": lambda w: w.csrf_by(w.strangers_keys.active("csrf")),
    # JWTs of ours that are no access tokens
    "ID token": lambda w: w.jwt("JWT"),
    "logout token": lambda w: w.jwt("logout+jwt"),
    "token of no type": lambda w: w.jwt(""),
    # the right claims under the wrong key
    **{
        f"access token by the {purpose} key, under the kid of the {named} key": (
            lambda w, purpose=purpose, named=named: w.access_by(key(w, purpose), kid=kid(w, named))
        )
        for purpose, named in [("refresh", "refresh"), ("refresh", "sign"), ("csrf", "csrf"), ("csrf", "sign")]
    },
    "access token of another issuer": lambda w: w.access_by(
        w.strangers_keys.active("sign"), issuer="https://b.example"
    ),
    "access token by another issuer's key": lambda w: w.access_by(w.strangers_keys.active("sign")),
    "access token by another issuer's key, under our kid": lambda w: w.access_by(
        w.strangers_keys.active("sign"), kid=kid(w, "sign")
    ),
    "access token for another audience": lambda w: w.access_by(key(w, "sign"), audience="another-shop"),
    "access token under another issuer's name": lambda w: w.access_by(key(w, "sign"), issuer="https://b.example"),
    # refresh tokens by the wrong key
    **{
        f"refresh token by the {purpose} key, under the kid of the {named} key": (
            lambda w, purpose=purpose, named=named: w.refresh_by(key(w, purpose), kid=kid(w, named))
        )
        for purpose, named in [("sign", "sign"), ("sign", "refresh"), ("csrf", "csrf"), ("csrf", "refresh")]
    },
    "refresh token by the right key, without the salt": lambda w: w.refresh_by(key(w, "refresh")),
    "refresh token of another issuer": lambda w: w.refresh_by(w.strangers_keys.active("refresh")),
    "refresh token of another issuer, under our kid": lambda w: w.refresh_by(
        w.strangers_keys.active("refresh"), kid=kid(w, "refresh")
    ),
    **{f"MAC by the {purpose} key": (lambda w, purpose=purpose: w.mac_by(key(w, purpose))) for purpose in PURPOSES},
    # what is known of a session without holding anything
    "session id": lambda w: w.claims["sid"],
    "token id": lambda w: w.claims["jti"],
    "password": lambda w: PASSWORD,
    "kid": lambda w: kid(w, "sign"),
    # prefixes on what is something else
    "access token as a credential": lambda w: f"sekisho_vc_{w.person.access_token.rpartition('.')[2]}",
    "refresh token as a credential": lambda w: f"sekisho_vc_{w.person.refresh_token[-43:]}",
    "credential as a refresh token": lambda w: PREFIX + w.credential.removeprefix("sekisho_vc_"),
}


# --- the doors -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Door:
    """``knock`` shows the text; ``opens`` and ``refuses`` assert what came back."""

    opens_for: set[str]
    knock: Callable[[World, str], httpx2.Response]
    opens: Callable[[httpx2.Response, str], None]
    refuses: Callable[[httpx2.Response, str], None]
    ends_the_session: bool = False
    ends_the_cookies_session: bool = False


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def answers(status: int) -> Callable[[httpx2.Response, str], None]:
    def check(response: httpx2.Response, _text: str) -> None:
        assert response.status_code == status, response.text

    return check


def refuses(code: str, status: int = 401) -> Callable[[httpx2.Response, str], None]:
    def check(response: httpx2.Response, text: str) -> None:
        is_problem(response, status, code)
        assert text not in response.text

    return check


def is_active(expected: bool) -> Callable[[httpx2.Response, str], None]:
    def check(response: httpx2.Response, _text: str) -> None:
        assert response.status_code == 200
        if expected:
            assert response.json()["active"] is True
        else:
            assert response.json() == {"active": False}

    return check


def keeps_its_device(expected: bool) -> Callable[[httpx2.Response, str], None]:
    """Whoever signs in gets a cookie: the one that was shown if it is known, else another."""

    def check(response: httpx2.Response, text: str) -> None:
        assert response.status_code == 200
        assert (response.cookies["sekisho_device"] == text) is expected

    return check


def ask(world: World, *, token: str, credential: str) -> httpx2.Response:
    return world.client.post("/introspect", data={"token": token}, headers=bearer(credential))


def follow(world: World, text: str) -> httpx2.Response:
    with world.client.stream("GET", "/revocations", headers=bearer(text)) as response:
        if response.status_code != 200:  # a stream that is open has no end
            response.read()
    return response


def log_in(world: World, text: str) -> httpx2.Response:
    try:
        return world.client.post(
            "/login",
            json={"email": world.other.email, "password": PASSWORD},
            headers={"Cookie": f"sekisho_device={text}"},
        )
    finally:
        world.client.cookies.clear()


def by_cookie(world: World, method: str, path: str, *, token: str = "", **cookies: str) -> httpx2.Response:
    """From a page of the service's own, with these cookies and, if there is one, a CSRF token."""
    shown = "; ".join(f"sekisho_{name}={value}" for name, value in cookies.items())
    headers = OWN_PAGE | {"Cookie": shown} | ({"X-CSRF-Token": token} if token else {})
    body = (
        {"email": world.other.email, "password": "not the password"}
        if path == "/session" and method == "POST"
        else None
    )
    try:
        return world.client.request(method, path, json=body, headers=headers)
    finally:
        world.client.cookies.clear()


DOORS: dict[str, Door] = {
    **{
        f"bearer at {method} {path}": Door(
            opens_for={ACCESS},
            knock=lambda w, text, method=method, path=path: w.client.request(method, path, headers=bearer(text)),
            opens=answers(204 if path == "/logout/all" else 200),
            refuses=refuses("invalid_token"),
            ends_the_session=path == "/logout/all",
        )
        for method, path in [("GET", "/me"), ("GET", "/sessions"), ("POST", "/logout/all")]
    },
    "bearer at POST /password": Door(
        opens_for={ACCESS},
        knock=lambda w, text: w.client.post(
            "/password", headers=bearer(text), json={"current_password": "", "new_password": ""}
        ),
        opens=refuses("wrong_credentials"),  # past the door, where the password is asked for
        refuses=refuses("invalid_token"),
    ),
    "bearer at POST /logout": Door(
        opens_for={ACCESS, OLD_ACCESS},
        knock=lambda w, text: w.client.post("/logout", headers=bearer(text)),
        opens=answers(204),
        refuses=refuses("invalid_token"),
        ends_the_session=True,
    ),
    "body of POST /logout": Door(
        opens_for={REFRESH},
        knock=lambda w, text: w.client.post("/logout", json={"refresh_token": text}),
        opens=answers(204),
        refuses=refuses("refresh_refused"),
        ends_the_session=True,
    ),
    "body of POST /refresh": Door(
        opens_for={REFRESH},
        knock=lambda w, text: w.client.post("/refresh", json={"refresh_token": text}),
        opens=answers(200),
        refuses=refuses("refresh_refused"),
    ),
    "bearer at POST /introspect": Door(
        opens_for={VERIFIER},
        knock=lambda w, text: ask(w, token=w.person.access_token, credential=text),
        opens=is_active(True),
        refuses=refuses("verifier_refused"),
    ),
    "token at POST /introspect": Door(
        opens_for={ACCESS},
        knock=lambda w, text: ask(w, token=text, credential=w.credential),
        opens=is_active(True),
        refuses=is_active(False),
    ),
    "bearer at GET /revocations": Door(
        opens_for={VERIFIER},
        knock=follow,
        opens=answers(200),
        refuses=refuses("verifier_refused"),
    ),
    **{
        f"session cookie at {method} {path}": Door(
            opens_for={SESSION},
            knock=lambda w, text, method=method, path=path: by_cookie(w, method, path, session=text),
            opens=answers(200),
            refuses=refuses("session_refused"),
        )
        for method, path in [("GET", "/me"), ("GET", "/sessions")]
    },
    "session cookie at DELETE /session": Door(
        opens_for={SESSION},
        knock=lambda w, text: by_cookie(w, "DELETE", "/session", session=text, token=w.csrf),
        opens=answers(204),
        refuses=refuses("csrf_refused", 403),  # whose token is bound to another cookie, before anyone looks it up
        ends_the_cookies_session=True,
    ),
    "X-CSRF-Token at DELETE /sessions/…": Door(
        opens_for={CSRF},
        knock=lambda w, text: by_cookie(w, "DELETE", f"/sessions/{uuid.uuid4()}", session=w.session, token=text),
        opens=refuses("session_not_found", 404),  # past the door
        refuses=refuses("csrf_refused", 403),
    ),
    "X-CSRF-Token at POST /session, before the login": Door(
        opens_for={OLD_CSRF},
        knock=lambda w, text: by_cookie(w, "POST", "/session", csrf=w.visitor, token=text),
        opens=refuses("wrong_credentials"),  # past the door
        refuses=refuses("csrf_refused", 403),
    ),
    "visitor's cookie at POST /session": Door(
        opens_for={VISITOR},
        knock=lambda w, text: by_cookie(w, "POST", "/session", csrf=text, token=w.visitors_csrf),
        opens=refuses("wrong_credentials"),
        refuses=refuses("csrf_refused", 403),
    ),
    "access cookie at GET /me": Door(
        opens_for={ACCESS},
        knock=lambda w, text: by_cookie(w, "GET", "/me", access=text),
        opens=answers(200),
        refuses=refuses("invalid_token"),
    ),
    "access cookie at POST /logout": Door(
        opens_for={ACCESS, OLD_ACCESS},
        knock=lambda w, text: by_cookie(w, "POST", "/logout", access=text),
        opens=answers(204),
        refuses=refuses("invalid_token"),
        ends_the_session=True,
    ),
    **{
        f"refresh cookie at POST {path}": Door(
            opens_for={REFRESH},
            knock=lambda w, text, path=path: by_cookie(w, "POST", path, refresh=text),
            opens=answers(200 if path == "/refresh" else 204),
            refuses=refuses("refresh_refused"),
            ends_the_session=path == "/logout",
        )
        for path in ("/refresh", "/logout")
    },
    "device cookie at POST /login": Door(
        opens_for={DEVICE},
        knock=log_in,
        opens=keeps_its_device(True),
        refuses=keeps_its_device(False),
    ),
}


_worlds: dict[str, World] = {}


@pytest.fixture
def world(_sqlite_server: RunningServer, client_address: str) -> World:
    """One for all tests. What a door opens for is decided before and behind the database, whichever it is."""
    server = _sqlite_server
    if server.base_url not in _worlds:
        _worlds[server.base_url] = World(server, client_address)
    return _worlds[server.base_url]


@contextmanager
def of(pair: str) -> Iterator[None]:
    """Says which pair it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(pair)
        raise


@pytest.mark.parametrize("door", DOORS)
def test_a_door_opens_for_its_own_kinds_and_no_other(world: World, door: str) -> None:
    """All kinds in one test: it is the table that counts, and 300 tests would say no more."""
    at = DOORS[door]
    for kind, make in KINDS.items():
        if kind in at.opens_for:
            continue
        text = make(world)
        with of(f"{kind} at {door}"):
            at.refuses(at.knock(world, text), text)
            assert world.person.me().status_code == 200, "and nothing has ended"
    for kind in sorted(at.opens_for):
        text = KINDS[kind](world)
        with of(f"{kind} at {door}"):
            at.opens(at.knock(world, text), text)
            assert (world.person.me().status_code == 200) is not at.ends_the_session
        if at.ends_the_session or at.ends_the_cookies_session:
            world.sign_in()


def test_every_kind_is_another_text(world: World) -> None:
    """Were two the same, a pair would be tested that says nothing."""
    texts = {kind: make(world) for kind, make in KINDS.items()}
    assert len(set(texts.values())) == len(texts)
    assert all(texts.values())
    opened = set().union(*(door.opens_for for door in DOORS.values()))
    assert opened <= set(KINDS)
    assert header_of(texts["ID token"])["typ"] == "JWT"


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key_set() -> KeySet:
    return KeySet.generate("HS256", now=now_s())


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_key_of_one_purpose_is_refused_for_the_others(key_set: KeySet, purpose: Any) -> None:
    one, right = key_set.active(purpose), key_set.active("refresh")
    if purpose != "refresh":
        for used in ([one], [right, one]):
            with pytest.raises(KeyRefused, match="not a refresh key"):
                RefreshKeys(right, used)
    if purpose != "csrf":
        for active, used in ((one, []), (key_set.active("csrf"), [one])):
            with pytest.raises(KeyRefused, match="not a CSRF key"):
                CsrfKeys(active, used)
    if purpose != "sign":
        with pytest.raises(KeyRefused, match=f"is for {purpose}"):
            Keyring([key_set.active("sign"), one])
        named = {"issuer": "i", "audience": "a", "subject": "s", "session_id": "s", "issued_at": 1, "expires_at": 2}
        with pytest.raises(KeyRefused, match=f"is for {purpose}"):
            access.issue(one, **named)
        with pytest.raises(KeyRefused):
            Keyring.from_jwks({"keys": [one.private_jwk()]})


@pytest.mark.parametrize("alg", ["HS256", "EdDSA"])
def test_what_checks_and_what_is_published_are_signing_keys_alone(alg: Any) -> None:
    key_set, now = KeySet.generate(alg, now=now_s()), now_s()
    for purpose in PURPOSES:
        key_set, _ = key_set.with_next(purpose, alg if purpose == "sign" else "HS256", now=now)
    signing = {key.kid for key in key_set.used("sign")}
    assert {key.kid for key in key_set.keyring.keys} == signing
    assert {jwk["kid"] for jwk in key_set.public_jwks()["keys"]} == (signing if alg == "EdDSA" else set())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("one", "other"), [(one, other) for one in PURPOSES for other in PURPOSES if one != other])
def test_one_secret_never_serves_two_purposes(key_set: KeySet, one: Any, other: Any, state: Any) -> None:
    """Under another kid and in any state: a retired key is one that somebody may know."""
    again = Key("another-kid", key_set.active(one).material, other, state)
    kept = [key for key in key_set.keys if state != "active" or key.purpose != other]
    with pytest.raises(KeyRefused, match="same secret"):
        KeySet([*kept, again])
    document = json.loads(key_set.to_json())
    document["keys"] = [jwk for jwk in document["keys"] if jwk["kid"] in {key.kid for key in kept}]
    document["keys"].append({**key_set.active(one).private_jwk(), "kid": "k2", "purpose": other, "state": state})
    with pytest.raises(KeyRefused, match="same secret"):
        KeySet.from_json(json.dumps(document).encode())


def test_keys_are_random_and_not_made_of_each_other() -> None:
    made = [key for _ in range(50) for key in KeySet.generate("HS256", now=0).keys]
    made += [generate_key("HS256", purpose=purpose, state="next", now=0) for purpose in PURPOSES for _ in range(50)]
    assert len({key.material.secret for key in made}) == len(made)  # type: ignore[union-attr]
    assert len({key.kid for key in made}) == len(made)


def test_what_is_derived_of_a_refresh_key_is_two_keys(key_set: KeySet) -> None:
    """One label for each (RFC 5869 §3.2), and neither is the key itself."""
    right = key_set.active("refresh")
    derived = RefreshKeys(right, [right])._by_kid[right.kid]
    texts = {part.sign(b"the same") for part in (derived._k1, derived._k2, right.material)}
    assert len(texts) == 3
