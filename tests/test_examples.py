"""The examples of the README run as they stand."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ACCOUNT = {"email": "alice@example.com", "password": "a gate on the old road"}

UVICORN = [sys.executable, "-m", "uvicorn", "--port", "{port}", "--app-dir", str(EXAMPLES)]
# Two workers, loaded before the fork: the verifier that the parent made has to find its feet in each child.
GUNICORN = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--chdir", str(EXAMPLES), "-w", "2"]
GUARDED = {
    "FastAPI": ("guarded:app", UVICORN, ["/customers"]),
    "Starlette": ("guarded_starlette:app", UVICORN, ["/customers"]),
    "Flask": ("guarded_flask:app", GUNICORN, ["/customers"]),
    "Flask, preloaded": ("guarded_flask:app", [*GUNICORN, "--preload"], ["/customers"]),
    "Django, async": ("guarded_django:async_app", UVICORN, ["/customers", "/customers/sync", "/customers/rest"]),
    "Django": ("guarded_django:app", GUNICORN, ["/customers", "/customers/sync", "/customers/rest"]),
}


@contextmanager
def running(app: str, *, port: int, folder: Path, env: dict[str, str], command: Sequence[str] = ()) -> Iterator[str]:
    """The example under its server; gives its base URL."""
    command = [part.format(port=port) for part in [*(command or UVICORN), app]]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SEKISHO_")}
    with (folder / "example.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env={**clean, **env}, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while True:
            try:
                httpx2.get(f"{url}/health")
                break
            except httpx2.TransportError:
                assert process.poll() is None, (folder / "example.log").read_text()
                assert time.monotonic() < deadline, "the example does not answer"
                time.sleep(0.05)  # polling, with the deadline above
        yield url
    finally:
        process.terminate()
        process.wait(10)


def test_mounted_serves_its_own_routes_and_sekishos(tmp_path: Path, free_port: int) -> None:
    env = {"SEKISHO_ISSUER": f"http://127.0.0.1:{free_port}/auth"}
    with running("mounted:app", port=free_port, folder=tmp_path, env=env) as url:
        assert httpx2.get(f"{url}/customers").status_code == 401
        user = httpx2.post(f"{url}/auth/signup", json=ACCOUNT).json()
        tokens = httpx2.post(f"{url}/auth/login", json=ACCOUNT).json()
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        assert httpx2.get(f"{url}/customers", headers=headers).json() == {"customers_of": user["id"]}
        assert httpx2.post(f"{url}/auth/logout", headers=headers).status_code == 204
        assert httpx2.get(f"{url}/customers", headers=headers).status_code == 401


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
def test_guarded_accepts_every_algorithm_of_a_sekisho_elsewhere(
    serve, tmp_path: Path, free_port: int, algorithm
) -> None:
    issuer = serve(env={"SEKISHO_SIGNING_ALGORITHM": algorithm})
    with running("guarded:app", port=free_port, folder=tmp_path, env=of_verifier(issuer)) as url:
        assert httpx2.get(f"{url}/customers", headers=signed_in(issuer)).status_code == 200


@pytest.mark.parametrize("name", GUARDED)
def test_a_guarded_service_takes_tokens_until_their_session_ends(serve, tmp_path: Path, free_port: int, name) -> None:
    app, command, paths = GUARDED[name]
    issuer = serve(env={"SEKISHO_SIGNING_ALGORITHM": "EdDSA"})
    headers = signed_in(issuer)
    subject = httpx2.get(f"{issuer.base_url}/me", headers=headers).json()["id"]
    with running(app, port=free_port, folder=tmp_path, env=of_verifier(issuer), command=command) as url:
        for path in paths:
            without = httpx2.get(f"{url}{path}")
            assert (without.status_code, without.headers["www-authenticate"]) == (401, "Bearer")
            # Twenty, each on a connection of its own: of several workers all have to have begun to follow.
            for _ in range(20):
                answer = httpx2.get(f"{url}{path}", headers=headers)
                assert (answer.status_code, answer.json()) == (200, {"customers_of": subject})
            bad = httpx2.get(f"{url}{path}", headers={"Authorization": headers["Authorization"] + "x"})
            assert (bad.status_code, bad.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')

        assert httpx2.post(f"{issuer.base_url}/logout", headers=headers).status_code == 204
        deadline = time.monotonic() + 2
        while httpx2.get(f"{url}{paths[0]}", headers=headers).status_code != 401:
            assert time.monotonic() < deadline, "the token of an ended session is still accepted"
            time.sleep(0.05)  # polling, with the deadline above
        time.sleep(max(0.0, deadline - time.monotonic()))  # by then every worker knows
        for path in paths * 10:
            assert httpx2.get(f"{url}{path}", headers=headers).status_code == 401


def test_the_examples_hold_under_mypy_strict() -> None:
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-error-summary"]
    done = subprocess.run(
        [*command, *map(str, sorted(EXAMPLES.glob("*.py")))],
        cwd=EXAMPLES.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def signed_in(issuer) -> dict[str, str]:
    httpx2.post(f"{issuer.base_url}/signup", json=ACCOUNT)
    tokens = httpx2.post(f"{issuer.base_url}/login", json=ACCOUNT).json()
    return {"Authorization": f"Bearer {tokens['access_token']}"}


def of_verifier(issuer) -> dict[str, str]:
    return {"ISSUER": issuer.base_url, "CREDENTIAL": issuer.run("verifiers", "add", "x").strip()}
