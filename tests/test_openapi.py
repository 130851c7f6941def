"""The API's description is true: whatever is sent to the running server, it answers as /openapi.json says."""

import itertools
import secrets

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from servers.sekisho_server import RunningServer

PASSWORD = "a gate on the old road"
OPEN_CALLS = [
    "POST /signup",
    "POST /login",
    "POST /refresh",
    "POST /logout",
    "GET /session",
    "POST /session",
    "DELETE /session",
    "GET /.well-known/jwks.json",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
]
USERS_CALLS = ["POST /logout", "POST /logout/all", "POST /password", "GET /me", "GET /sessions"]
USERS_CALLS += ["DELETE /sessions/{session_id}"]
VERIFIERS_CALLS = ["POST /introspect"]
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
# That an e-mail address of the right shape is accepted is more than the description promises.
NOT_PROMISED = [positive_data_acceptance]

_addresses = itertools.count()


def new_address():
    """Each example comes from a network of its own, or the later ones would meet nothing but the throttle."""
    number = next(_addresses)
    return f"172.{16 + (number >> 8) % 16}.{number & 255}.1"


@pytest.fixture(scope="module")
def described(request):
    """The running server and its description of itself."""
    server: RunningServer = request.getfixturevalue("_sqlite_server")
    return server, schemathesis.openapi.from_url(f"{server.base_url}/openapi.json", config=SchemathesisConfig())


def access_token(server):
    """A live one, of an account of its own."""
    body = {"email": f"{secrets.token_hex(8)}@example.com", "password": PASSWORD}
    headers = {"X-Forwarded-For": new_address()}
    # Without certificates, whose loading would take longer than the calls.
    with httpx2.Client(base_url=server.base_url, headers=headers, trust_env=False, verify=False) as client:
        assert client.post("/signup", json=body).status_code == 201
        return client.post("/login", json=body).json()["access_token"]


def try_out(described, call, *, examples, credential):
    server, schema = described
    method, _, path = call.partition(" ")
    statuses = set()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=examples < 100,
    )
    @given(case=schema[path][method].as_strategy())
    def answers_as_described(case):
        headers = {"X-Forwarded-For": new_address()}
        if credential:
            headers["Authorization"] = f"Bearer {access_token(server)}" if credential == "fresh" else credential
        response = case.call_and_validate(headers=headers, excluded_checks=NOT_PROMISED)
        statuses.add(response.status_code)

    answers_as_described()
    assert statuses
    assert not any(status >= 500 for status in statuses)
    return statuses


@pytest.mark.parametrize("call", OPEN_CALLS)
def test_without_a_credential(described, call):
    statuses = try_out(described, call, examples=20 if call.startswith("POST") else 5, credential=None)
    assert statuses <= {200, 201, 400, 401, 403, 409, 415, 422, 429}


@pytest.mark.parametrize("call", USERS_CALLS)
def test_with_a_live_access_token(described, call):
    ends_it = call.startswith("POST /logout")
    credential = "fresh" if ends_it else f"Bearer {access_token(described[0])}"
    statuses = try_out(described, call, examples=8 if ends_it else 15, credential=credential)
    assert statuses <= {200, 204, 400, 401, 404, 415, 422, 429}
    assert statuses != {401}


@pytest.mark.parametrize("call", USERS_CALLS)
def test_with_a_bad_one(described, call):
    statuses = try_out(described, call, examples=5, credential="Bearer garbage")
    assert 401 in statuses
    assert statuses <= {400, 401, 415, 422}  # a body that cannot be read is not read on


def test_with_a_verifiers_credential(described):
    credential = described[0].run("verifiers", "add", secrets.token_hex(8)).strip()
    statuses = try_out(described, VERIFIERS_CALLS[0], examples=40, credential=f"Bearer {credential}")
    assert 200 in statuses
    assert statuses <= {200, 400, 415, 422}
    assert try_out(described, VERIFIERS_CALLS[0], examples=5, credential="Bearer garbage") == {401}


@pytest.mark.long
@pytest.mark.parametrize("call", [*OPEN_CALLS, *USERS_CALLS[1:]])
def test_at_length(described, call):
    credential = f"Bearer {access_token(described[0])}" if call in USERS_CALLS else None
    try_out(described, call, examples=1000, credential="fresh" if call == "POST /logout/all" else credential)


# --- the document itself -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document(described):
    return httpx2.get(f"{described[0].base_url}/openapi.json", trust_env=False).json()


def test_every_call_of_the_contract_is_described(document):
    calls = {
        f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item if method in METHODS
    }
    assert calls == {*OPEN_CALLS, *USERS_CALLS, *VERIFIERS_CALLS}  # and the feed, which is no call with an answer


def test_every_error_is_a_problem(document):
    for path, item in document["paths"].items():
        for call in item.values():
            for status, response in call["responses"].items():
                if int(status) >= 400:
                    problem = response["content"]["application/problem+json"]["schema"]
                    assert problem == {"$ref": "#/components/schemas/SekishoProblem"}, (path, status)
                    assert response["description"]
            assert call["description"], path


def guarded_by(document, scheme):
    return {
        path
        for path, item in document["paths"].items()
        for call in item.values()
        if any(scheme in way for way in call.get("security", []))
    }


def test_only_calls_for_users_ask_for_the_access_token(document):
    assert guarded_by(document, "AccessToken") == {call.partition(" ")[2] for call in USERS_CALLS}
    assert guarded_by(document, "VerifierCredential") == {call.partition(" ")[2] for call in VERIFIERS_CALLS}
    assert document["paths"]["/logout"]["post"]["security"] == [{"AccessToken": []}, {}]  # or a body, or neither
    assert document["components"]["securitySchemes"]["AccessToken"]["scheme"] == "bearer"


def test_passwords_are_shown_as_such(document):
    schemas = document["components"]["schemas"]
    assert schemas["Credentials"]["properties"]["password"]["format"] == "password"
    for name in ("current_password", "new_password"):
        assert schemas["PasswordBody"]["properties"][name]["format"] == "password"
