"""Sekisho inside somebody else's FastAPI application, and how little a service that only verifies has to load."""

import json
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient

from sekisho.errors import TokenRevoked
from sekisho.tokens.access import AccessClaims
from sekisho.web import Sekisho, Settings

EMAIL = "host@example.com"
PASSWORD = "a gate on the old road"
BODY = {"email": EMAIL, "password": PASSWORD}


@pytest.fixture
def auth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Sekisho(Settings(database_url=f"sqlite:///{tmp_path / 'host.db'}"))


@pytest.fixture
def host(auth):
    """An application with opinions of its own about errors."""
    app = FastAPI()
    app.include_router(auth.router, prefix="/auth")

    @app.exception_handler(HTTPException)
    async def http(_request, error):
        return PlainTextResponse(f"host: {error.detail}", error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def validation(_request, _error):
        return PlainTextResponse("host: invalid", 400)

    @app.exception_handler(Exception)
    async def anything(_request, _error):
        return PlainTextResponse("host: crashed", 500)

    @app.get("/orders")
    async def orders(user: Annotated[AccessClaims, Depends(auth.current_user)]) -> dict[str, str]:
        return {"user": user.sub}

    @app.post("/orders")
    async def order(number: int) -> int:
        return number

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("host's own")

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "teapot")

    return app


@pytest.fixture
def client(host):
    with TestClient(host, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def tokens(client):
    assert client.post("/auth/signup", json=BODY).status_code == 201
    response = client.post("/auth/login", json=BODY)
    assert response.status_code == 200
    return response.json()


def bearer(tokens):
    return {"Authorization": f"Bearer {tokens['access_token']}"}


def is_problem(response, status, code):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert response.json()["code"] == code


# --- the flows -----------------------------------------------------------------------------------------------------


def test_the_constructor_touches_nothing(auth, tmp_path):
    assert list(tmp_path.iterdir()) == []
    assert auth.router.routes


def test_it_starts_and_stops_with_the_host(host, tmp_path):
    with TestClient(host, base_url="http://127.0.0.1") as client:
        assert {path.name for path in tmp_path.iterdir()} >= {"host.db", "sekisho-keys.json"}
        assert client.get("/auth/readyz").json() == {"status": "ready"}
    assert not (tmp_path / "host.db-wal").exists(), "the database was closed"


def test_a_hosts_own_lifespan_runs_too(auth):
    ran = []

    @asynccontextmanager
    async def lifespan(_app):
        ran.append("start")
        yield
        ran.append("stop")

    app = FastAPI(lifespan=lifespan)
    app.include_router(auth.router, prefix="/auth")
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert ran == ["start"]
        assert client.post("/auth/signup", json=BODY).status_code == 201
    assert ran == ["start", "stop"]


def test_a_router_within_a_router(auth):
    outer = APIRouter(prefix="/api")
    outer.include_router(auth.router, prefix="/auth")
    app = FastAPI()
    app.include_router(outer)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.post("/api/auth/signup", json=BODY).status_code == 201
        is_problem(client.post("/api/auth/signup", json=BODY), 409, "email_taken")


def test_the_flows_work_below_a_prefix(client, auth, tokens):
    account = client.get("/auth/me", headers=bearer(tokens)).json()
    assert account["email"] == EMAIL
    assert client.get("/orders", headers=bearer(tokens)).json() == {"user": account["id"]}
    assert auth.verifier.verify(tokens["access_token"]).sub == account["id"]
    assert client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}).status_code == 200
    assert client.post("/auth/logout", headers=bearer(tokens)).status_code == 204
    with pytest.raises(TokenRevoked):
        auth.verifier.verify(tokens["access_token"])
    is_problem(client.get("/auth/me", headers=bearer(tokens)), 401, "invalid_token")
    assert client.get("/orders", headers=bearer(tokens)).status_code == 401


def test_the_hosts_routes_guarded_by_current_user(client, tokens):
    for headers, challenge in (({}, "Bearer"), ({"Authorization": "Bearer x"}, 'Bearer error="invalid_token"')):
        response = client.get("/orders", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == challenge
        assert response.text.startswith("host: ")
    assert client.get("/orders", headers=bearer(tokens)).status_code == 200


# --- errors: each side its own -------------------------------------------------------------------------------------


def test_the_hosts_errors_stay_the_hosts(client):
    assert (client.get("/teapot").status_code, client.get("/teapot").text) == (418, "host: teapot")
    assert client.post("/orders", params={"number": "x"}).text == "host: invalid"
    assert client.get("/broken").text == "host: crashed"
    assert client.get("/nothing").headers["content-type"] != "application/problem+json"
    assert "cache-control" not in client.get("/teapot").headers


def test_sekishos_errors_are_problems(client):
    is_problem(client.get("/auth/me"), 401, "authentication_required")
    is_problem(client.get("/auth/me", headers={"Authorization": "Bearer x"}), 401, "invalid_token")
    is_problem(client.post("/auth/login", json={"email": 1}), 422, "invalid_body")
    is_problem(
        client.post("/auth/login", content=b"{", headers={"Content-Type": "application/json"}), 400, "malformed_json"
    )
    is_problem(
        client.post("/auth/login", content=b"{}", headers={"Content-Type": "text/plain"}), 415, "unsupported_media_type"
    )
    is_problem(client.post("/auth/login", json=BODY), 401, "wrong_credentials")
    is_problem(client.post("/auth/signup", json={**BODY, "password": "x"}), 422, "password_too_short")


def test_a_crash_is_a_problem_that_says_nothing(client, auth, monkeypatch, caplog):
    """Not the host's handler, and not the exception's text."""

    async def crash(*_args, **_named):
        raise RuntimeError(f"secret {PASSWORD}")

    monkeypatch.setattr(type(auth.flows.login), "__call__", crash)
    response = client.post("/auth/login", json=BODY)
    is_problem(response, 500, "internal_error")
    assert PASSWORD not in response.text
    assert "RuntimeError" not in response.text
    assert PASSWORD not in caplog.text
    text = client.get("/auth/metrics").text
    assert 'sekisho_events_total{event="crashed",outcome="RuntimeError"} 1.0' in text


def test_limits_come_along(client):
    is_problem(
        client.post("/auth/login", content=b" " * 65_537, headers={"Content-Type": "application/json"}),
        413,
        "body_too_large",
    )
    is_problem(client.get("/auth/healthz", headers={"X": "a" * 32_768}), 431, "headers_too_large")


def test_the_exact_limits(client):
    json_type = {"Content-Type": "application/json"}
    text = json.dumps(BODY).encode()
    for size, status in ((65_536, 401), (65_537, 413)):
        response = client.post("/auth/login", content=text + b" " * (size - len(text)), headers=json_type)
        assert response.status_code == status
    request = client.build_request("GET", "/auth/healthz", headers={"X": ""})
    used = sum(len(name) + len(value) for name, value in request.headers.raw)
    for size, status in ((32_768, 200), (32_769, 431)):
        assert client.get("/auth/healthz", headers={"X": "a" * (size - used)}).status_code == status


def test_nothing_is_cached(client, tokens):
    for response in (
        client.post("/auth/login", json=BODY),
        client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}),
        client.get("/auth/me", headers=bearer(tokens)),
        client.get("/auth/sessions", headers=bearer(tokens)),
        client.get("/auth/me"),
        client.post("/auth/logout", headers=bearer(tokens)),
    ):
        assert response.headers["cache-control"] == "no-store"
        assert {"Cookie", "Authorization"} <= {part.strip() for part in response.headers["vary"].split(",")}


def test_two_of_them_side_by_side(tmp_path, monkeypatch):
    """Each counts for itself and takes no token of the other."""
    monkeypatch.chdir(tmp_path)
    issuers = {name: f"http://127.0.0.1:8400/{name}" for name in ("one", "two")}
    app = FastAPI()
    sekishos = {}
    for name, issuer in issuers.items():
        sekishos[name] = Sekisho(Settings(database_url=f"sqlite:///{tmp_path / name}.db", issuer=issuer))
        app.include_router(sekishos[name].router, prefix=f"/{name}")
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.post("/one/signup", json=BODY).status_code == 201
        token = client.post("/one/login", json=BODY).json()
        assert client.get("/one/me", headers=bearer(token)).status_code == 200
        is_problem(client.get("/two/me", headers=bearer(token)), 401, "invalid_token")
        is_problem(client.post("/two/login", json=BODY), 401, "wrong_credentials")
        assert 'event="logged_in"' not in client.get("/two/metrics").text


def test_the_hosts_api_description_holds_both(client):
    document = client.get("/openapi.json").json()
    assert {"/auth/login", "/auth/me", "/orders"} <= set(document["paths"])
    assert document["paths"]["/orders"]["get"]["security"]
    responses = document["paths"]["/auth/login"]["post"]["responses"]
    assert responses["401"]["content"]["application/problem+json"]["schema"] == {
        "$ref": "#/components/schemas/SekishoProblem"
    }
    assert "SekishoProblem" in document["components"]["schemas"]


# --- what importing loads ------------------------------------------------------------------------------------------

HEAVY = [
    "sqlalchemy",
    "aiosqlite",
    "asyncpg",
    "alembic",
    "fastapi",
    "starlette",
    "uvicorn",
    "pydantic",
    "pydantic_settings",
    "boto3",
    "botocore",
    "httpx2",
    "limits",
    "redis",
    "structlog",
    "prometheus_client",
    "typer",
    "rich",
    "argon2",
    "bcrypt",
    "email_validator",
    "asyncio",
]


def loaded_by(statement):
    program = f"import sys\n{statement}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["sekisho", "sekisho.verify", "sekisho.tokens", "sekisho.errors"])
def test_whoever_only_verifies_loads_nothing_else(module):
    """What Python loads by itself is not counted."""
    loaded = loaded_by(f"import {module}") - loaded_by("pass")
    assert module in loaded
    assert not loaded & set(HEAVY)
    assert not {name for name in loaded if name.startswith(("sekisho.services", "sekisho.storage", "sekisho.web"))}


def test_the_integration_loads_the_framework_and_not_the_server():
    loaded = loaded_by("import sekisho.integrations.fastapi")
    assert "fastapi" in loaded
    assert not loaded & {"sqlalchemy", "limits", "redis", "structlog", "typer", "uvicorn", "alembic"}


def test_a_dependency_of_the_host_refuses_in_the_hosts_words(auth):
    def gate() -> None:
        raise HTTPException(429, "host's gate")

    app = FastAPI(dependencies=[Depends(gate)])
    app.include_router(auth.router, prefix="/auth")
    with TestClient(app) as client:
        response = client.post("/auth/login", json=BODY)
    assert (response.status_code, response.json()) == (429, {"detail": "host's gate"})


def test_before_the_start_every_route_says_try_later(host):
    client = TestClient(host)  # no lifespan
    for response in (client.get("/auth/me"), client.post("/auth/login", json=BODY), client.get("/auth/healthz")):
        assert (response.status_code, response.json()["code"]) == (503, "try_later")
        assert response.headers["retry-after"] == "1"
