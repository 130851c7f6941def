"""What a page of the service does in somebody's browser: it keeps cookies by itself, so that a test sees each one."""

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import httpx2
from outsiders import PASSWORD, sign_up

from servers.sekisho_server import RunningServer

OWN_PAGE: Final = {"Sec-Fetch-Site": "same-origin"}
SESSION, VISITOR, ACCESS, REFRESH, DEVICE = (
    f"sekisho_{name}" for name in ("session", "csrf", "access", "refresh", "device")
)


class Page:
    """A page of ours. ``cookies`` are the browser's, ``csrf`` is the token of the last answer that gave one."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client
        self.cookies: dict[str, str] = {}
        self.csrf: str | None = None

    def send(self, method: str, path: str, *, headers: dict[str, str] | None = None, **named: Any) -> httpx2.Response:
        """As the browser sends it: with every cookie, and where it comes from. A header given as ``""`` stays away."""
        sent = {**OWN_PAGE, "Cookie": self.cookie_header, "X-CSRF-Token": self.csrf or "", **(headers or {})}
        raw = {name: value.encode("latin-1") for name, value in sent.items() if value}
        self.client.cookies.clear()
        response = self.client.request(method, path, headers=raw, **named)
        self._take(response)
        return response

    def get(self, path: str, **named: Any) -> httpx2.Response:
        return self.send("GET", path, **named)

    def post(self, path: str, **named: Any) -> httpx2.Response:
        return self.send("POST", path, **named)

    def delete(self, path: str, **named: Any) -> httpx2.Response:
        return self.send("DELETE", path, **named)

    @property
    def cookie_header(self) -> str:
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    # --- the flows ---

    def opens(self) -> dict[str, Any]:
        """GET /session, as every page begins."""
        response = self.get("/session")
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def tries(self, email: str, password: str = PASSWORD) -> httpx2.Response:
        """POST /session; the token is asked for first if there is none."""
        if self.csrf is None:
            self.opens()
        return self.post("/session", json={"email": email, "password": password})

    def logs_in(self, email: str, password: str = PASSWORD) -> UUID:
        """The new session's id."""
        response = self.tries(email, password)
        assert response.status_code == 200, response.text
        return UUID(response.json()["user"]["session_id"])

    def logs_in_with_tokens(self, email: str, password: str = PASSWORD) -> httpx2.Response:
        """POST /login with the tokens in cookies."""
        response = self.post("/login", json={"email": email, "password": password, "cookies": True})
        assert response.status_code == 200, response.text
        return response

    def logs_out(self) -> httpx2.Response:
        """DELETE /session."""
        return self.delete("/session")

    @property
    def user(self) -> dict[str, Any] | None:
        """Who is signed in, as GET /session says."""
        user: dict[str, Any] | None = self.opens()["user"]
        return user

    def _take(self, response: httpx2.Response) -> None:
        for line in response.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            if "max-age=0" in line.lower():
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        if response.headers.get("content-type") == "application/json" and "csrf_token" in response.json():
            self.csrf = response.json()["csrf_token"]


def set_cookies(response: httpx2.Response) -> dict[str, str]:
    """The Set-Cookie lines of a response by name. None comes twice."""
    lines = response.headers.get_list("set-cookie")
    found = {line.partition("=")[0]: line for line in lines}
    assert len(found) == len(lines), lines
    return found


Opens = Callable[..., Page]


def pages_of(connect: Callable[..., httpx2.Client], server: RunningServer) -> Opens:
    """Opens pages, each in a browser of its own and from a network of its own."""

    def make(**named: Any) -> Page:
        return Page(connect(server, **named))

    return make


def someone(page: Page) -> str:
    """A new account's address."""
    return sign_up(page.client)
