"""An application developer's tests of pages.py. No database is needed: the lifespan does not run."""

from fastapi.testclient import TestClient

from pages import app
from sekisho.testing import SekishoUser, SekishoUsers

client = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
BROWSER = {"Accept": "text/html"}


def cookie_of(user: SekishoUser) -> dict[str, str]:
    return {"Cookie": f"sekisho_access={user.token}"}


def test_the_home_page_is_for_who_is_signed_in(sekisho_user: SekishoUsers) -> None:
    page = client.get("/", headers=cookie_of(sekisho_user(sub="<alice>")))
    assert "You are user &lt;alice&gt;." in page.text
    assert page.headers["cache-control"] == "no-store"


def test_everyone_else_is_led_to_the_login(sekisho_user: SekishoUsers) -> None:
    for user in (sekisho_user.expired(), sekisho_user.forged(), sekisho_user.revoked()):
        page = client.get("/", headers={**BROWSER, **cookie_of(user)})
        assert (page.status_code, page.headers["location"]) == (303, "/login")
    assert client.get("/", headers=BROWSER).headers["location"] == "/login"
    assert "<form>" in client.get("/login").text


def test_a_script_is_told_what_is_wrong() -> None:
    answer = client.get("/", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.text) == (401, "Please sign in.")
