"""An application developer's tests of pages_django.py."""

from django.test import Client

import pages_django  # noqa: F401 - Django's settings are in it
from sekisho.testing import SekishoUser, SekishoUsers

client = Client()


def cookie_of(user: SekishoUser) -> dict[str, str]:
    return {"Cookie": f"__Host-sekisho_access={user.token}"}


def test_the_home_page_is_for_who_is_signed_in(sekisho_user: SekishoUsers) -> None:
    page = client.get("/", headers=cookie_of(sekisho_user(sub="<alice>")))
    assert "You are user &lt;alice&gt;." in page.text
    assert page.headers["cache-control"] == "no-store"
    assert client.get("/").status_code == 401
    assert "<form>" in client.get("/login").text


def test_bad_tokens_are_refused(sekisho_user: SekishoUsers) -> None:
    for user in (sekisho_user.expired(), sekisho_user.forged(), sekisho_user.revoked()):
        assert client.get("/", headers=cookie_of(user)).status_code == 401
