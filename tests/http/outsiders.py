"""What a client and an operator of the running server know and do, from outside."""

import base64
import itertools
import json
import secrets
import socket
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2

from sekisho.tokens import access
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.refresh import Position, RefreshKeys
from servers.postgres import Postgres
from servers.sekisho_server import RunningServer

PASSWORD = "a gate on the old road"
OTHER_PASSWORD = "two gates on a new road"
JSON = {"Content-Type": "application/json"}
_numbers = itertools.count()


@dataclass(frozen=True)
class Tokens:
    """What login and refresh answer."""

    access: str
    refresh: str

    @classmethod
    def of(cls, response: httpx2.Response) -> "Tokens":
        assert response.status_code == 200, response.text
        return cls(response.json()["access_token"], response.json()["refresh_token"])

    @property
    def claims(self) -> dict[str, Any]:
        payload = self.access.split(".")[1]
        return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))

    @property
    def session_id(self) -> UUID:
        return UUID(self.claims["sid"])

    @property
    def user_id(self) -> UUID:
        return UUID(self.claims["sub"])


def new_email() -> str:
    return f"u{secrets.token_hex(4)}-{next(_numbers)}@example.com"


def sign_up(client: httpx2.Client, email: str | None = None, password: str = PASSWORD) -> str:
    email = email or new_email()
    response = client.post("/signup", json={"email": email, "password": password})
    assert response.status_code == 201, response.text
    return email


def try_login(client: httpx2.Client, email: str, password: str = PASSWORD) -> httpx2.Response:
    return client.post("/login", json={"email": email, "password": password})


def log_in(client: httpx2.Client, email: str | None = None, password: str = PASSWORD) -> Tokens:
    """A new session; of a new account unless there is one already."""
    return Tokens.of(try_login(client, email or sign_up(client), password))


def refresh(client: httpx2.Client, token: str) -> httpx2.Response:
    return client.post("/refresh", json={"refresh_token": token})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def me(client: httpx2.Client, token: str) -> httpx2.Response:
    return client.get("/me", headers=bearer(token))


def is_problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Asserts everything that holds for every error, and returns its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert {part.strip() for part in response.headers["vary"].split(",")} >= {"Cookie", "Authorization"}
    body: dict[str, Any] = response.json()
    assert body["code"] == code
    assert body["status"] == status
    assert body["type"] == f"urn:sekisho:problem:{code}"
    assert isinstance(body["title"], str)
    assert set(body) == {"type", "title", "status", "code"} | ({"fields"} if status == 422 else set())
    return body


def seen(response: httpx2.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All that an attacker can compare: status, body, headers in their order; the time of day left out."""
    headers = [(name, value) for name, value in response.headers.multi_items() if name != "date"]
    return response.status_code, response.content, headers


def keys_of(server: RunningServer) -> KeySet:
    return KeySet.from_json((server.folder / "sekisho-keys.json").read_bytes())


def signed(server: RunningServer, *, user_id: UUID, session_id: UUID, issued_at: int, expires_at: int) -> str:
    """An access token that the server itself could have made."""
    return access.issue(
        keys_of(server).active("sign"),
        issuer=server.base_url,
        audience=server.base_url,
        subject=str(user_id),
        session_id=str(session_id),
        issued_at=issued_at,
        expires_at=expires_at,
    )


class Rows:
    """The server's database, read and changed behind its back."""

    def __init__(self, server: RunningServer, postgres: Postgres | None) -> None:
        self.server = server
        self.url = server.env["SEKISHO_DATABASE_URL"]
        self._postgres = postgres

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    def run(self, sql: str) -> list[list[str]]:
        """The rows as text. Ids may be written as 32 hexadecimal digits."""
        if not self.is_sqlite:
            assert self._postgres is not None
            printed = self._postgres.execute(sql, database=self.url.rpartition("/")[2])
            return [line.split("|") for line in printed.splitlines()]
        connection = sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=10, isolation_level=None)
        try:
            rows = connection.execute(sql).fetchall()
        finally:
            connection.close()
        return [["" if value is None else str(value) for value in row] for row in rows]

    def one(self, sql: str) -> list[str]:
        (row,) = self.run(sql)
        return row

    def session(self, session_id: UUID, columns: str) -> list[str]:
        # One more column, because psql prints a row of one empty value as it prints no row.
        return self.one(f"SELECT {columns}, 'end' FROM sessions WHERE id = '{session_id.hex}'")[:-1]

    def change(self, session_id: UUID, values: str) -> None:
        self.run(f"UPDATE sessions SET {values} WHERE id = '{session_id.hex}'")

    def age(self, session_id: UUID, *, made_s: float = 0, handed_out_s: float = 0) -> None:
        """Makes the session's position that much older."""
        made, handed_out = int(made_s * 1e6), int(handed_out_s * 1e6)
        self.change(session_id, f"made_at_us = made_at_us - {made}, handed_out_at_us = handed_out_at_us - {handed_out}")

    def cause(self, session_id: UUID) -> str:
        return self.session(session_id, "cause")[0]

    def position(self, session_id: UUID) -> tuple[int, int]:
        generation, branch = self.session(session_id, "generation, branch")
        return int(generation), int(branch)

    def refresh_token(self, session_id: UUID, position: tuple[int, int]) -> str:
        """The genuine token for a position."""
        keys = keys_of(self.server)
        (salt,) = self.session(session_id, "hex(salt)" if self.is_sqlite else "encode(salt, 'hex')")
        tokens = RefreshKeys(keys.active("refresh"), keys.used("refresh"))
        return tokens.make(session_id, Position(*position), bytes.fromhex(salt))


def events_of(server: RunningServer, **facts: str) -> list[dict[str, Any]]:
    """The log's events that tell these facts, in order. Every line of the log has to be one JSON object."""
    return [event for event in log_lines(server) if all(event.get(name) == value for name, value in facts.items())]


def log_lines(server: RunningServer) -> list[dict[str, Any]]:
    """What the server wrote, but for its greeting, which is for people."""
    text = server.log_text().replace(greeting(server), "")
    assert text.endswith("\n"), "the last line is complete"
    return [json.loads(line) for line in text.split("\n") if line]


def greeting(server: RunningServer) -> str:
    """Where to look and what to type."""
    text = server.log_text()
    end = "Ctrl-C stops it.\n"
    return text[text.index("Sekisho is listening") : text.index(end) + len(end)]


def exchange(server: RunningServer, request: bytes, *, shut: bool = False) -> bytes:
    """Sends bytes as they are, and returns all that comes back until the server closes the connection.

    ``shut``: half of the connection is closed after the request.
    """
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def drip(server: RunningServer, head: bytes, part: bytes) -> tuple[bytes, int]:
    """Sends ``part`` after ``head`` again and again: what came back, and how many parts' bytes went out before."""
    answer, sent = b"", 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        try:
            connection.sendall(head)
            connection.settimeout(0.02)
            while not answer and sent < 1_000_000:
                connection.sendall(part)
                sent += len(part)
                try:
                    answer = connection.recv(65536)
                    break
                except TimeoutError:
                    continue
        except ConnectionError:
            pass  # closed while we were sending: the answer, if there was one, may be lost
    return answer, sent


def raw_request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
