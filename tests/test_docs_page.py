"""/docs in a browser: everything comes from the server itself, and a call can be tried with an access token."""

import re
import secrets
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Page, expect

from servers.sekisho_server import RunningServer

PASSWORD = "a gate on the old road"


@pytest.fixture
def node(_sqlite_server) -> RunningServer:
    return _sqlite_server


@pytest.fixture
def access_token(node, client_address):
    body = {"email": f"{secrets.token_hex(8)}@example.com", "password": PASSWORD}
    headers = {"X-Forwarded-For": client_address}
    with httpx2.Client(base_url=node.base_url, headers=headers, trust_env=False) as client:
        assert client.post("/signup", json=body).status_code == 201
        return client.post("/login", json=body).json()["access_token"]


def test_a_call_is_tried_from_the_page(page: Page, node, access_token, tmp_path):
    asked, failed, errors = [], [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    # Anywhere but the server: nothing is let out, and it is counted all the same.
    page.route(
        lambda url: urlsplit(url).netloc != f"127.0.0.1:{node.port}" and not url.startswith("data:"),
        lambda route: route.abort(),
    )
    page.goto(f"{node.base_url}/docs")

    for path in ("/signup", "/login", "/refresh", "/logout", "/password", "/me", "/sessions"):
        expect(page.locator(f".opblock-summary-path[data-path='{path}']")).to_be_visible()
    expect(page.get_by_role("heading", name=re.compile("Sekisho"))).to_be_visible()

    page.get_by_role("button", name="Authorize").first.click()
    dialog = page.locator(".dialog-ux").locator("form", has_text="AccessToken")
    dialog.locator("input").fill(access_token)
    dialog.get_by_role("button", name="Apply credentials").click()
    page.locator(".dialog-ux").get_by_role("button", name="Close").first.click()

    me = page.locator(".opblock", has=page.locator(".opblock-summary-path[data-path='/me']"))
    me.locator(".opblock-summary-control").click()
    me.get_by_role("button", name="Try it out").click()
    with page.expect_response(f"{node.base_url}/me") as answered:
        me.get_by_role("button", name="Execute").click()
    assert answered.value.status == 200
    expect(me.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    expect(me.locator(".live-responses-table")).to_contain_text("session_id")
    page.screenshot(path=tmp_path / "docs.png", full_page=True)
    assert (tmp_path / "docs.png").stat().st_size > 10_000

    hosts = {urlsplit(url).netloc for url in asked if not url.startswith("data:")}
    assert hosts == {f"127.0.0.1:{node.port}"}
    assert failed == []
    assert errors == []
