"""One suite over every integration: the same requests are let through, and the others get the same answers."""

import time
from contextlib import suppress

import pytest
from asgiref.sync import iscoroutinefunction
from django.test import override_settings
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from guarded_world import INTEGRATIONS, RAN, Integration, ScriptedVerifier, django_view, django_view_sync
from sekisho import AuthenticationRequired, FeedLost, FeedStarting, KeysUnavailable, MustAsk, Verifier
from sekisho.integrations.django import SekishoMiddleware
from sekisho.integrations.prometheus import VerifierCollector
from sekisho.integrations.starlette import RequireUser, claims_of
from sekisho.tokens import KeySet, access
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.verify.guard import Exempt, Guard, is_preflight, route_path

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://auth.example.com", "shop"
KEYS, OTHER_KEYS = KeySet.generate("EdDSA", now=NOW), KeySet.generate("EdDSA", now=NOW)
INVALID = 'Bearer error="invalid_token"'
PREFLIGHT = [("Origin", "https://page.example"), ("Access-Control-Request-Method", "GET")]


def token_of(key_set=KEYS, **changed):
    named = {"issuer": ISSUER, "audience": AUDIENCE, "subject": "user-1", "session_id": "session-1"}
    named |= {"issued_at": NOW, "expires_at": NOW + 900}
    return access.issue(key_set.active("sign"), **(named | changed))


GOOD = token_of()
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")
BEARER = [("Authorization", f"Bearer {GOOD}")]
BAD = {
    "garbage": "Bearer garbage",
    "dots": "Bearer ..",
    "signature changed": f"Bearer {HEADER}.{PAYLOAD}.{'A' * len(SIGNATURE)}",
    "signature missing": f"Bearer {HEADER}.{PAYLOAD}.",
    "alg none": f"Bearer eyJhbGciOiJub25lIn0.{PAYLOAD}.",
    "another key": f"Bearer {token_of(OTHER_KEYS)}",
    "another issuer": f"Bearer {token_of(issuer='https://evil.example')}",
    "another audience": f"Bearer {token_of(audience='other')}",
    "expired": f"Bearer {token_of(issued_at=NOW - 2000, expires_at=NOW - 1000)}",
    "session ended": f"Bearer {token_of(session_id='ended')}",
    "8 KiB and more": f"Bearer {GOOD}{'A' * 8192}",
    "no scheme": GOOD,
    "Basic": "Basic dXNlcjpwYXNz",
    "DPoP": f"DPoP {GOOD}",
    "two in one": f"Bearer {GOOD},Bearer {GOOD}",
    "scheme alone": "Bearer",
    "tab": f"Bearer\t{GOOD}",
    "empty": "",
    "not ASCII": f"Bearer {GOOD}".encode() + b"\xff",
}


@pytest.fixture
def verifier():
    return ScriptedVerifier(
        issuer=ISSUER,
        audience=AUDIENCE,
        keys=KEYS.keyring,
        revoked=RevokedSessions([Revocation("ended", NOW + 10_000)]),
        clock=lambda: NOW,
    )


@pytest.fixture(params=INTEGRATIONS)
def integration(request) -> Integration:
    return INTEGRATIONS[request.param]


@pytest.fixture
def build(integration, verifier):
    """The application, with a policy of its own if one is named."""
    built = []

    def app(when_lost=None):
        built.append(integration.build(verifier, when_lost))
        return built[-1]

    RAN.clear()
    yield app
    for app in built:
        getattr(app, "close_settings", lambda: None)()


@pytest.fixture
def send(integration, build):
    app = build()
    return lambda *args, **named: integration.send(app, *args, **named)


def seen(response):
    return response.status_code, response.content, sorted(response.headers.multi_items())


# --- let through ---------------------------------------------------------------------------------------------------


def test_a_good_token_gives_its_claims(send):
    for method in ("GET", "POST"):
        response = send(method, headers=BEARER)
        assert (response.status_code, response.json()) == (200, {"customers_of": "user-1"})
    assert "www-authenticate" not in response.headers


def test_what_a_handler_raises_is_its_own_affair(send):
    """Of the kind that a guard answers with 503; it must not, for the application has its own handlers."""
    with suppress(FeedLost):  # as it comes out of most; Django makes a 500 of it
        assert send(url="/customers?fail", headers=BEARER).status_code == 500
    assert RAN == ["user-1"]


# --- refused -------------------------------------------------------------------------------------------------------


def test_without_a_credential_the_challenge_names_no_error(send):
    response = send()
    assert (response.status_code, response.headers.get_list("www-authenticate")) == (401, ["Bearer"])
    assert RAN == []


def test_every_bad_token_gets_one_and_the_same_answer(send):
    expected = seen(send(headers=[("Authorization", "Bearer x")]))
    for name, value in BAD.items():
        response = send(headers=[("Authorization", value)])
        assert response.status_code == 401, name
        assert response.headers.get_list("www-authenticate") == [INVALID], name
        assert seen(response) == expected, name
    assert RAN == []


def test_of_two_authorization_headers_none_counts(send):
    for pair in ([*BEARER, *BEARER], [*BEARER, ("Authorization", "")], [("Authorization", "Basic x"), *BEARER]):
        response = send(headers=pair)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, INVALID)
    assert RAN == []


def test_a_token_anywhere_else_is_no_credential(send):
    for named in (
        {"url": f"/customers?access_token={GOOD}"},
        {"headers": [("Cookie", f"access_token={GOOD}; Authorization=Bearer {GOOD}")]},
        {"headers": [("X-Authorization", f"Bearer {GOOD}")]},
        {"headers": [("Proxy-Authorization", f"Bearer {GOOD}")]},
        {"method": "POST", "data": {"access_token": GOOD}},
    ):
        response = send(**named)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert RAN == []


# FastAPI and Django REST framework write errors in their own form.
@pytest.mark.parametrize("integration", [name for name, one in INTEGRATIONS.items() if one.challenges], indirect=True)
def test_a_refusal_is_a_problem_that_nobody_keeps(send):
    response = send(headers=[("Authorization", "Bearer x")])
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {
        "type": "urn:sekisho:problem:invalid_token",
        "title": "The access token is not valid.",
        "status": 401,
        "code": "invalid_token",
    }


# --- not the token's fault -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [FeedLost(3), FeedStarting(3), KeysUnavailable(3)], ids=lambda error: error.code)
def test_a_feed_that_is_not_there_is_503_and_never_401(send, verifier, error):
    verifier.raises = error
    response = send(headers=BEARER)
    assert (response.status_code, response.headers["retry-after"]) == (503, "3")
    assert "www-authenticate" not in response.headers
    assert RAN == []


def test_no_credential_is_401_even_then(send, verifier):
    verifier.raises = FeedLost()
    assert send().status_code == 401


def test_must_ask_asks_and_never_in_an_event_loop(send, verifier):
    verifier.raises = MustAsk()
    assert send(headers=BEARER).json() == {"customers_of": "user-1"}
    assert verifier.asked == [GOOD]
    refused = send(headers=[("Authorization", BAD["session ended"])])
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, INVALID)
    assert not verifier.blocked_a_loop


@pytest.mark.parametrize("error", [FeedStarting(), KeysUnavailable()], ids=lambda error: error.code)
def test_the_first_request_after_the_start_waits_and_succeeds(send, verifier, error):
    verifier.raises, verifier.ready_after_wait = error, True
    assert send(headers=BEARER).status_code == 200
    assert len(verifier.waited) == 1
    assert 0 < verifier.waited[0] <= 2
    assert not verifier.blocked_a_loop


def test_later_ones_do_not_wait(send, verifier, monkeypatch):
    verifier.raises = FeedStarting()
    assert send(headers=BEARER).status_code == 503
    later = time.monotonic() + 2.1
    monkeypatch.setattr("sekisho.verify.guard.time.monotonic", lambda: later)
    assert send(headers=BEARER).status_code == 503
    assert len(verifier.waited) == 1


def test_the_policy_reaches_the_verifier(integration, build, verifier):
    integration.send(build("refuse"), headers=BEARER)
    assert verifier.policy == "refuse"


def test_a_policy_that_does_not_exist_is_refused(verifier):
    with pytest.raises(ValueError, match="allow, refuse, ask"):
        Guard(verifier, "Refuse")


# --- preflight -----------------------------------------------------------------------------------------------------


def test_a_preflight_is_not_refused_and_runs_no_handler(send):
    response = send("OPTIONS", headers=PREFLIGHT)
    assert response.status_code in {200, 204, 405}  # the last is the router's
    assert "www-authenticate" not in response.headers
    assert RAN == []


@pytest.mark.parametrize("headers", [[], PREFLIGHT[:1], PREFLIGHT[1:]])
def test_any_other_options_needs_a_token(send, headers):
    assert send("OPTIONS", headers=headers).status_code == 401
    assert RAN == []


def test_preflight_headers_open_no_other_method(send):
    for method in ("GET", "POST", "options"):
        if method == "options":
            assert not is_preflight(method, dict.fromkeys(["origin", "access-control-request-method"], ""))
        else:
            assert send(method, headers=PREFLIGHT).status_code == 401


def test_the_cors_middleware_behind_the_guard_answers_the_preflight(verifier):
    app = Starlette()
    app.add_middleware(CORSMiddleware, allow_origins=["https://page.example"])
    app.add_middleware(RequireUser, verifier=verifier)
    response = INTEGRATIONS["raw ASGI"].send(app, "OPTIONS", headers=PREFLIGHT)
    assert response.headers["access-control-allow-origin"] == "https://page.example"


def test_djangos_middlewares_above_see_whether_to_await_it(verifier):
    with override_settings(SEKISHO_VERIFIER=verifier):
        assert iscoroutinefunction(SekishoMiddleware(django_view))
        assert not iscoroutinefunction(SekishoMiddleware(django_view_sync))


# --- exempt paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/health", "/static/", "/static/a/b.css", "/static/.well-known"])
def test_exempt(path):
    assert path in Exempt(["/", "/health", "/static/"])


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/health/",
        "/Health",
        "/healthz",
        "health",
        "/static",
        "/STATIC/a",
        "/staticx",
        "//static/a",
        "/customers",
        "/static/../customers",
        "/static/..",
        "/static/./a",
        "/static//customers",
        "/static/..\\customers",
        "/static/%2e%2e/customers",
        "/static/\0",
        "/x/static/a",
    ],
)
def test_not_exempt(path):
    assert path not in Exempt(["/", "/health", "/static/"])


@pytest.mark.parametrize("paths", ["/health", ["health"], [""]])
def test_what_cannot_be_meant_as_exempt_is_refused(paths):
    with pytest.raises(ValueError, match="list of paths"):
        Exempt(paths)


@pytest.mark.parametrize(
    ("path", "root", "expected"),
    [
        ("/api/x", "/api", "/x"),
        ("/apix", "/api", "/apix"),
        ("/api", "/api", ""),
        ("/x", "/api", "/x"),
        ("/x", "", "/x"),
    ],
)
def test_the_path_of_a_mounted_application(path, root, expected):
    assert route_path(path, root) == expected


@pytest.mark.parametrize("name", ["Starlette middleware", "Django middleware, async", "Django middleware, WSGI"])
def test_an_exempt_path_is_open_and_its_neighbours_are_not(verifier, name):
    integration = INTEGRATIONS[name]
    app = integration.build(verifier)
    try:
        assert integration.send(app, url="/health").status_code == 404  # past the guard, where there is no such page
        for url in ("/health/", "/health/..", "/health%2F", "/healthz", "/HEALTH", "/health/../customers"):
            assert integration.send(app, url=url).status_code == 401, url
    finally:
        getattr(app, "close_settings", lambda: None)()


# --- websockets ----------------------------------------------------------------------------------------------------


def websocket_app(verifier):
    async def greet(websocket):
        await websocket.accept()
        await websocket.send_text(claims_of(websocket).sub)
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/ws", greet)])
    app.add_middleware(RequireUser, verifier=verifier)
    return app


def test_a_websocket_is_guarded(verifier):
    client = TestClient(websocket_app(verifier))
    with client.websocket_connect("/ws", headers=dict(BEARER)) as websocket:
        assert websocket.receive_text() == "user-1"


def test_a_refused_handshake_is_answered_as_any_request(verifier):
    client = TestClient(websocket_app(verifier))  # has the extension websocket.http.response
    with pytest.raises(Exception) as refused, client.websocket_connect("/ws"):  # its transport's own class
        pass
    assert (refused.value.status_code, refused.value.headers["www-authenticate"]) == (401, "Bearer")


def test_without_the_extension_it_is_closed(verifier):
    app = websocket_app(verifier)

    async def without(scope, receive, send):
        await app({**scope, "extensions": {}}, receive, send)

    with pytest.raises(WebSocketDisconnect) as closed, TestClient(without).websocket_connect("/ws"):
        pass
    assert closed.value.code == 1008


# --- the rest ------------------------------------------------------------------------------------------------------


def test_claims_without_a_guard_are_an_error():
    app = Starlette(routes=[Route("/customers", claims_of)])
    with pytest.raises(AuthenticationRequired):
        INTEGRATIONS["raw ASGI"].send(app, headers=BEARER)


def test_metrics(verifier):
    registry = CollectorRegistry()
    registry.register(VerifierCollector(verifier))
    with pytest.raises(Exception, match="not valid"):
        Verifier.verify(verifier, token_of(session_id="ended"))
    text = generate_latest(registry).decode()
    assert 'sekisho_access_tokens_refused_total{code="token_revoked"} 1.0' in text
    assert "sekisho_verifier_reconnects_total 0.0" in text
    assert "sekisho_verifier_revocations 1.0" in text
    assert "\nsekisho_verifier_feed_age_seconds " not in text  # no feed, no age
