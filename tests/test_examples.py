"""The examples of the README run as they stand."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ACCOUNT = {"email": "alice@example.com", "password": "a gate on the old road"}


@contextmanager
def running(module: str, *, port: int, folder: Path, env: dict[str, str]) -> Iterator[str]:
    """The example under uvicorn; gives its base URL."""
    command = [sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port), "--app-dir", str(EXAMPLES)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SEKISHO_")}
    with (folder / f"{module}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env={**clean, **env}, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while True:
            try:
                httpx2.get(f"{url}/openapi.json")
                break
            except httpx2.TransportError:
                assert process.poll() is None, (folder / f"{module}.log").read_text()
                assert time.monotonic() < deadline, "the example does not answer"
                time.sleep(0.05)  # polling, with the deadline above
        yield url
    finally:
        process.terminate()
        process.wait(10)


def test_mounted_serves_its_own_routes_and_sekishos(tmp_path: Path, free_port: int) -> None:
    env = {"SEKISHO_ISSUER": f"http://127.0.0.1:{free_port}/auth"}
    with running("mounted", port=free_port, folder=tmp_path, env=env) as url:
        assert httpx2.get(f"{url}/customers").status_code == 401
        user = httpx2.post(f"{url}/auth/signup", json=ACCOUNT).json()
        tokens = httpx2.post(f"{url}/auth/login", json=ACCOUNT).json()
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        assert httpx2.get(f"{url}/customers", headers=headers).json() == {"customers_of": user["id"]}
        assert httpx2.post(f"{url}/auth/logout", headers=headers).status_code == 204
        assert httpx2.get(f"{url}/customers", headers=headers).status_code == 401


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
def test_guarded_accepts_the_tokens_of_a_sekisho_elsewhere(serve, tmp_path: Path, free_port: int, algorithm) -> None:
    issuer = serve(env={"SEKISHO_SIGNING_ALGORITHM": algorithm})
    httpx2.post(f"{issuer.base_url}/signup", json=ACCOUNT)
    tokens = httpx2.post(f"{issuer.base_url}/login", json=ACCOUNT).json()
    jwks = tmp_path / "jwks.json"
    jwks.write_text(httpx2.get(f"{issuer.base_url}/.well-known/jwks.json").text)
    env = {"ISSUER": issuer.base_url, "JWKS_FILE": str(jwks)}
    with running("guarded", port=free_port, folder=tmp_path, env=env) as url:
        refused = httpx2.get(f"{url}/customers", headers={"Authorization": f"Bearer {tokens['access_token']}x"})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')
        answer = httpx2.get(f"{url}/customers", headers={"Authorization": f"Bearer {tokens['access_token']}"})
        assert answer.status_code == 200
