"""One suite over every integration with ``cookie=True``: the access cookie counts, and then only for our own pages."""

from itertools import product

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from guarded_cookies import COOKIE_INTEGRATIONS, METHODS, CookieIntegration
from guarded_world import RAN, ScriptedVerifier
from sekisho import FeedLost, MustAsk
from sekisho.integrations.starlette import RequireUser, claims_of
from sekisho.tokens import KeySet, access
from sekisho.tokens.revoked import Revocation, RevokedSessions

NOW = 1_800_000_000
ISSUER, LOCAL_ISSUER, AUDIENCE = "https://auth.example.com", "http://127.0.0.1:8400", "shop"
KEYS, OTHER_KEYS = KeySet.generate("EdDSA", now=NOW), KeySet.generate("EdDSA", now=NOW)
NAME, LOCAL_NAME = "__Host-sekisho_access", "sekisho_access"
INVALID = 'Bearer error="invalid_token"'
SAFE, UNSAFE = ["GET", "HEAD", "OPTIONS"], ["POST", "PUT", "PATCH", "DELETE"]


def token_of(key_set=KEYS, **changed):
    named = {"issuer": ISSUER, "audience": AUDIENCE, "subject": "user-1", "session_id": "session-1"}
    named |= {"issued_at": NOW, "expires_at": NOW + 900}
    return access.issue(key_set.active("sign"), **(named | changed))


def cookie(value, name=NAME):
    return "Cookie", f"{name}={value}"


GOOD = token_of()
COOKIE = cookie(GOOD)
BEARER = ("Authorization", f"Bearer {GOOD}")
OWN_PAGE = ("Sec-Fetch-Site", "same-origin")
BAD = {
    "empty": "",
    "garbage": "garbage",
    "signature changed": GOOD[:-10] + "A" * 10,
    "another key": token_of(OTHER_KEYS),
    "another issuer": token_of(issuer="https://evil.example"),
    "another audience": token_of(audience="other"),
    "expired": token_of(issued_at=NOW - 2000, expires_at=NOW - 1000),
    "session ended": token_of(session_id="ended"),
    "with the scheme": f"Bearer {GOOD}",
    "in quotes": f'"{GOOD}"',
    "8 KiB and more": GOOD + "A" * 8192,
}
# What the browser says of a call, and whether it may change something.
PAGES = [
    ([("Sec-Fetch-Site", "same-origin")], True),
    ([("Sec-Fetch-Site", "none")], True),
    ([("Sec-Fetch-Site", "same-origin"), ("Origin", "https://evil.example")], True),
    ([("Origin", ISSUER)], True),
    ([("Sec-Fetch-Site", "same-site")], False),
    ([("Sec-Fetch-Site", "cross-site")], False),
    ([("Sec-Fetch-Site", "cross-site"), ("Origin", ISSUER)], False),
    ([("Sec-Fetch-Site", "")], False),
    ([("Sec-Fetch-Site", "Same-Origin")], False),
    ([("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "same-origin")], False),
    ([("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")], False),
    ([], False),
    ([("Origin", "null")], False),
    ([("Origin", "https://evil.example")], False),
    ([("Origin", "http://auth.example.com")], False),
    ([("Origin", "https://auth.example.com:8443")], False),
    ([("Origin", "https://auth.example.com.evil.example")], False),
    ([("Origin", "https://AUTH.example.com")], False),
    ([("Origin", ISSUER), ("Origin", ISSUER)], False),
    ([("Origin", "http://test")], False),  # the Host of these requests
    ([("Referer", f"{ISSUER}/page")], False),
    ([("X-Forwarded-Host", "evil.example"), ("Origin", "https://evil.example")], False),
]


@pytest.fixture
def verifier():
    return verifier_of(ISSUER)


def verifier_of(issuer):
    return ScriptedVerifier(
        issuer=issuer,
        audience=AUDIENCE,
        keys=KEYS.keyring,
        revoked=RevokedSessions([Revocation("ended", NOW + 10_000)]),
        clock=lambda: NOW,
    )


@pytest.fixture(params=COOKIE_INTEGRATIONS)
def integration(request) -> CookieIntegration:
    return COOKIE_INTEGRATIONS[request.param]


@pytest.fixture
def sender(integration):
    """Makes applications: ``sender(verifier, cookie=True)(method, headers=…)``."""
    built = []

    def make(verifier, **options):
        app = integration.build(verifier, **options)
        built.append(app)
        return lambda method="GET", **named: integration.send(app, method, **named)

    RAN.clear()
    yield make
    for app in reversed(built):
        getattr(app, "close_settings", lambda: None)()


@pytest.fixture
def send(sender, verifier):
    return sender(verifier, cookie=True)


def is_let_through(response):
    assert response.status_code == 200, response.text
    assert RAN == ["user-1"]
    RAN.clear()


def is_refused(response, status, challenge=None):
    assert response.status_code == status, response.text
    assert response.headers.get("www-authenticate") == challenge
    assert RAN == []


# --- the cookie counts ---------------------------------------------------------------------------------------------


def test_the_cookie_is_enough_for_what_changes_nothing(send):
    """Whoever sends it: the answer is kept from other sites' pages by the browser, and links from them must work."""
    pages = ([], [("Sec-Fetch-Site", "cross-site")], [("Origin", "https://evil.example")], [OWN_PAGE])
    for method, page in product(SAFE, pages):
        is_let_through(send(method, headers=[COOKIE, *page]))


def test_what_changes_something_must_come_from_our_own_page(send):
    for method, (page, may) in product(UNSAFE, PAGES):
        response = send(method, headers=[COOKIE, *page])
        if may:
            is_let_through(response)
        else:
            is_refused(response, 403)


def test_every_method_is_one_or_the_other():
    assert sorted(METHODS) == sorted(SAFE + UNSAFE)


def test_among_other_cookies(send):
    for value in (f"a=1; {NAME}={GOOD}; b=2", f"a=1;{NAME}={GOOD}", f"{NAME}x=1; {NAME}={GOOD}"):
        is_let_through(send(headers=[("Cookie", value)]))


def test_asking_the_issuer_works_by_cookie_too(send, verifier):
    verifier.raises = MustAsk()
    is_let_through(send(headers=[COOKIE]))
    assert verifier.asked == [GOOD]
    assert not verifier.blocked_a_loop


# --- and only where it may -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"cookie": False}], ids=["not said", "False"])
def test_no_cookie_counts_unless_it_is_asked_for(sender, verifier, options):
    send = sender(verifier, **options)
    for method in METHODS:
        is_refused(send(method, headers=[COOKIE, OWN_PAGE]), 401, "Bearer")
        is_let_through(send(method, headers=[BEARER]))


def test_without_any_credential_the_challenge_names_no_error(send):
    for method in METHODS:  # of an unsafe one too: there is nothing to forge
        is_refused(send(method), 401, "Bearer")
        is_refused(send(method, headers=[("Cookie", "other=1"), ("Sec-Fetch-Site", "cross-site")]), 401, "Bearer")


def test_a_bad_cookie_is_refused_as_any_bad_token(send):
    expected = send(headers=[("Authorization", "Bearer x")])
    for method, bad in product(("GET", "POST"), BAD.values()):
        response = send(method, headers=[cookie(bad), OWN_PAGE])
        is_refused(response, 401, INVALID)
        assert response.content == expected.content


def test_the_header_counts_first(send):
    for method in METHODS:  # no page can set it by itself, so it needs no more
        is_let_through(send(method, headers=[BEARER, cookie("garbage")]))
        is_let_through(send(method, headers=[BEARER, cookie("garbage"), ("Sec-Fetch-Site", "cross-site")]))


def test_a_bad_header_is_not_passed_over_for_the_cookie(send):
    values = ("", "Bearer", "Bearer x", "Basic dXNlcjpwYXNz", GOOD, f"Bearer {BAD['expired']}")
    for method, value in product(("GET", "POST"), values):
        is_refused(send(method, headers=[("Authorization", value), COOKIE, OWN_PAGE]), 401, INVALID)


def test_of_two_cookies_of_one_name_none_counts(send):
    """Somebody has planted one."""
    pairs = (
        [("Cookie", f"{NAME}={GOOD}; {NAME}=garbage")],
        [("Cookie", f"{NAME}=garbage; {NAME}={GOOD}")],
        [("Cookie", f"{NAME}={GOOD}; {NAME}=")],
        [("Cookie", f"{NAME}={GOOD}; {NAME}={token_of(subject='user-2')}")],
        [COOKIE, cookie("garbage")],
        [cookie("garbage"), COOKIE],
    )
    for method, cookies in product(("GET", "POST"), pairs):
        is_refused(send(method, headers=[*cookies, OWN_PAGE]), 401, INVALID)


def test_the_same_one_twice_misleads_nobody(send):
    is_let_through(send(headers=[("Cookie", f"{NAME}={GOOD}; {NAME}={GOOD}")]))


# --- before anybody asks who it is ---------------------------------------------------------------------------------


def test_a_bad_cookie_from_elsewhere_is_403_and_tells_nothing(send):
    for bad in BAD.values():
        is_refused(send("POST", headers=[cookie(bad), ("Sec-Fetch-Site", "cross-site")]), 403)


def test_the_verifier_is_not_asked(send, verifier):
    verifier.raises = FeedLost()
    is_refused(send("POST", headers=[COOKIE, ("Sec-Fetch-Site", "cross-site")]), 403)
    assert send("POST", headers=[COOKIE, OWN_PAGE]).status_code == 503


def test_the_refusal_says_what_it_is(send):
    body = send("POST", headers=[COOKIE]).json()
    text = "This request did not come from one of our pages. Please reload the page and try again."
    problem = {"type": "urn:sekisho:problem:csrf_refused", "title": text, "status": 403, "code": "csrf_refused"}
    assert body in (problem, {"detail": text})  # the latter is FastAPI's own form


# Django REST framework lets an exception set no headers.
WITH_HEADERS = [name for name in COOKIE_INTEGRATIONS if name != "Django REST framework"]


@pytest.mark.parametrize("integration", WITH_HEADERS, indirect=True)
def test_nobody_keeps_the_refusal(send, integration):
    response = send("POST", headers=[COOKIE])
    assert response.headers["cache-control"] == "no-store"
    assert {part.strip() for part in response.headers["vary"].split(",")} >= {"Cookie", "Authorization"}
    if integration.challenges:
        assert response.headers["content-type"] == "application/problem+json"


# --- the cookie's name ---------------------------------------------------------------------------------------------


def test_for_an_https_issuer_only_the_name_that_nobody_can_plant(send):
    """``__Host-``: a neighbour's subdomain, or plain http, cannot set one of this name (RFC 6265bis §4.1.3.2)."""
    for name in (LOCAL_NAME, "__Secure-sekisho_access", "__host-sekisho_access", "access_token", NAME + " "):
        is_refused(send(headers=[cookie(GOOD, name)]), 401, "Bearer")
    is_let_through(send(headers=[("Cookie", f"{LOCAL_NAME}=garbage; {NAME}={GOOD}")]))


def test_for_an_http_issuer_on_this_machine_the_plain_name(sender):
    send = sender(verifier_of(LOCAL_ISSUER), cookie=True)
    token = token_of(issuer=LOCAL_ISSUER)
    is_let_through(send(headers=[cookie(token, LOCAL_NAME)]))
    is_refused(send(headers=[cookie(token)]), 401, "Bearer")
    for origin, may in ((LOCAL_ISSUER, True), ("http://127.0.0.1:8401", False), ("http://localhost:8400", False)):
        response = send("POST", headers=[cookie(token, LOCAL_NAME), ("Origin", origin)])
        is_let_through(response) if may else is_refused(response, 403)


def test_an_issuer_with_a_path_has_the_origin_without(sender):
    issuer = f"{ISSUER}/accounts"
    send = sender(verifier_of(issuer), cookie=True)
    by_cookie = cookie(token_of(issuer=issuer))
    is_let_through(send("POST", headers=[by_cookie, ("Origin", ISSUER)]))
    is_refused(send("POST", headers=[by_cookie, ("Origin", issuer)]), 403)


# --- exempt paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "integration", ["Starlette middleware", "Django middleware, async", "Django middleware, WSGI"], indirect=True
)
def test_an_exempt_path_asks_for_nothing(send):
    for method in ("GET", "POST"):
        response = send(method, url="/health", headers=[cookie("garbage"), ("Sec-Fetch-Site", "cross-site")])
        assert response.status_code == 404  # past the guard


# --- websockets ----------------------------------------------------------------------------------------------------


def websocket_client(verifier, *, extensions=True, **options):
    async def greet(websocket):
        await websocket.accept()
        await websocket.send_text(claims_of(websocket).sub)
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/ws", greet)])
    app.add_middleware(RequireUser, verifier=verifier, **options)

    async def without_extensions(scope, receive, send):
        await app({**scope, "extensions": {}}, receive, send)

    return TestClient(app if extensions else without_extensions)


def greeting(client, headers):
    with client.websocket_connect("/ws", headers=headers) as websocket:
        return websocket.receive_text()


def refusal_of(client, headers):
    with pytest.raises(Exception) as refused, client.websocket_connect("/ws", headers=headers):  # the transport's own
        pass
    return refused.value


def test_a_websocket_from_our_own_page_is_let_in_by_the_cookie(verifier):
    client = websocket_client(verifier, cookie=True)
    for page in (("Origin", ISSUER), ("Sec-Fetch-Site", "same-origin")):
        assert greeting(client, dict([COOKIE, page])) == "user-1"


@pytest.mark.parametrize(
    "page",
    [{}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://testserver"}]
    + [{"Sec-Fetch-Site": site, "Origin": ISSUER} for site in ("same-site", "cross-site")],
)
def test_a_handshake_from_elsewhere_is_refused(verifier, page):
    """No other site's page is kept from opening one: CORS does not hold for websockets (RFC 6455 §10.2)."""
    headers = dict([COOKIE]) | page
    refused = refusal_of(websocket_client(verifier, cookie=True), headers)
    assert refused.status_code == 403
    assert refused.json()["code"] == "csrf_refused"
    closed = refusal_of(websocket_client(verifier, cookie=True, extensions=False), headers)
    assert isinstance(closed, WebSocketDisconnect)
    assert closed.code == 1008


def test_a_handshake_with_a_header_needs_no_origin(verifier):
    client = websocket_client(verifier, cookie=True)
    assert greeting(client, dict([BEARER]) | {"Origin": "https://evil.example"}) == "user-1"


@pytest.mark.parametrize("options", [{}, {"cookie": False}], ids=["not said", "False"])
def test_no_cookie_opens_a_websocket_unless_it_is_asked_for(verifier, options):
    refused = refusal_of(websocket_client(verifier, **options), dict([COOKIE, ("Origin", ISSUER)]))
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


def test_a_bad_cookie_opens_none(verifier):
    client = websocket_client(verifier, cookie=True)
    two = ("Cookie", f"{NAME}={GOOD}; {NAME}=garbage")
    for one in (cookie("garbage"), cookie(BAD["session ended"]), two):
        refused = refusal_of(client, dict([one, ("Origin", ISSUER)]))
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, INVALID)
