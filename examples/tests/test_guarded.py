"""An application developer's tests of guarded.py."""

from fastapi.testclient import TestClient

from guarded import app
from sekisho.testing import SekishoUsers

client = TestClient(app)


def test_customers_are_for_who_is_signed_in(sekisho_user: SekishoUsers) -> None:
    user = sekisho_user(sub="alice")
    assert client.get("/customers", headers=user.headers).json() == {"customers_of": "alice"}
    assert client.get("/customers").status_code == 401
    assert client.get("/health").status_code == 200


def test_nobody_gets_in_after_the_logout(sekisho_user: SekishoUsers) -> None:
    user = sekisho_user()
    assert client.get("/customers", headers=user.headers).status_code == 200
    user.log_out()
    assert client.get("/customers", headers=user.headers).status_code == 401


def test_bad_tokens_are_refused(sekisho_user: SekishoUsers) -> None:
    for user in (sekisho_user.expired(), sekisho_user.forged(), sekisho_user.revoked()):
        assert client.get("/customers", headers=user.headers).status_code == 401


def test_the_service_stays_up_while_the_issuer_is_down(sekisho_user: SekishoUsers) -> None:
    user = sekisho_user()
    sekisho_user.lose_feed(issuer_down=True)
    assert client.get("/customers", headers=user.headers).status_code == 200  # the policy: when_lost="allow"
    user.log_out()
    assert client.get("/customers", headers=user.headers).status_code == 200  # and its price
    sekisho_user.find_feed()
    assert client.get("/customers", headers=user.headers).status_code == 401
