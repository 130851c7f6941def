"""An application developer's tests of mounted.py. Most need no database: the lifespan does not run."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mounted import app, auth
from sekisho.testing import SekishoUsers

client = TestClient(app)
ACCOUNT = {"email": "alice@example.com", "password": "a gate on the old road"}


def test_customers_are_for_who_is_signed_in(sekisho_user: SekishoUsers) -> None:
    user = sekisho_user(sub="alice")
    assert client.get("/customers", headers=user.headers).json() == {"customers_of": "alice"}
    assert client.get("/customers").status_code == 401


def test_nobody_gets_in_after_the_logout(sekisho_user: SekishoUsers) -> None:
    user = sekisho_user(verifier=auth.verifier)  # to be named where a process has several
    assert client.get("/customers", headers=user.headers).status_code == 200
    user.log_out()
    assert client.get("/customers", headers=user.headers).status_code == 401


def test_bad_tokens_are_refused(sekisho_user: SekishoUsers) -> None:
    for user in (sekisho_user.expired(), sekisho_user.forged(), sekisho_user.revoked()):
        assert client.get("/customers", headers=user.headers).status_code == 401


def test_made_up_users_and_those_who_signed_in(
    sekisho_user: SekishoUsers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for the keys, which are made at the start
    made_up = sekisho_user()
    with TestClient(app, base_url="http://127.0.0.1") as running:
        running.post("/auth/signup", json=ACCOUNT)
        tokens = running.post("/auth/login", json=ACCOUNT).json()
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        assert running.get("/customers", headers=headers).status_code == 200
        assert running.get("/customers", headers=made_up.headers).status_code == 200
        for who in (headers, made_up.headers):
            assert running.post("/auth/logout", headers=who).status_code == 204
            assert running.get("/customers", headers=who).status_code == 401
