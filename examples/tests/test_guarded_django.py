"""An application developer's tests of guarded_django.py."""

import pytest
from django.test import Client

import guarded_django  # noqa: F401 - Django's settings are in it
from sekisho.testing import SekishoUsers

client = Client(SERVER_NAME="127.0.0.1")
views = pytest.mark.parametrize("path", ["/customers", "/customers/sync", "/customers/rest"])


@views
def test_customers_are_for_who_is_signed_in(sekisho_user: SekishoUsers, path: str) -> None:
    user = sekisho_user(sub="alice")
    assert client.get(path, headers=user.headers).json() == {"customers_of": "alice"}
    assert client.get(path).status_code == 401
    assert client.get("/health").status_code == 200


@views
def test_nobody_gets_in_after_the_logout(sekisho_user: SekishoUsers, path: str) -> None:
    user = sekisho_user()
    assert client.get(path, headers=user.headers).status_code == 200
    user.log_out()
    assert client.get(path, headers=user.headers).status_code == 401


@views
def test_bad_tokens_are_refused(sekisho_user: SekishoUsers, path: str) -> None:
    for user in (sekisho_user.expired(), sekisho_user.forged(), sekisho_user.revoked()):
        assert client.get(path, headers=user.headers).status_code == 401


@views
def test_the_service_stays_up_while_the_issuer_is_down(sekisho_user: SekishoUsers, path: str) -> None:
    user = sekisho_user()
    sekisho_user.lose_feed(issuer_down=True)
    assert client.get(path, headers=user.headers).status_code == 200  # the policy: when_lost="allow"
    user.log_out()
    assert client.get(path, headers=user.headers).status_code == 200  # and its price
    sekisho_user.find_feed()
    assert client.get(path, headers=user.headers).status_code == 401
