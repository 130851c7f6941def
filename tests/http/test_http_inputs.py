"""What comes in wrong: each is refused with its own status, nothing is a 500, and no value is ever repeated."""

import json
import secrets
import socket
import time

import pytest
from outsiders import (
    JSON,
    OTHER_PASSWORD,
    PASSWORD,
    bearer,
    drip,
    exchange,
    is_problem,
    log_in,
    me,
    new_email,
    raw_request,
    sign_up,
    try_login,
)

CANARY = "canary-Kx7pQ2vT9wLm"
POSTS = ["/signup", "/login", "/refresh", "/logout", "/password"]
MEMBERS = {
    "/signup": ["email", "password"],
    "/login": ["email", "password"],
    "/refresh": ["refresh_token"],
    "/logout": ["refresh_token"],
    "/password": ["current_password", "new_password"],
}


@pytest.fixture
def post(client):
    """Posts a body as it is; to /password with an access token, without which nobody gets as far as the body."""
    tokens = log_in(client)

    def post(path, body, headers=JSON):
        credential = bearer(tokens.access) if path == "/password" else {}
        return client.post(path, content=body, headers={**headers, **credential})

    return post


def good(path):
    return {name: f"{CANARY}@example.com" if name == "email" else CANARY for name in MEMBERS[path]}


def shows_nothing(response):
    assert CANARY.lower() not in response.text.lower()
    assert CANARY.lower() not in str(response.headers).lower()


# --- not JSON ------------------------------------------------------------------------------------------------------

NO_JSON = {
    "half": b'{"email": "a@example.com", "password": "%s"',
    "two": b'{"password": "%s"}{}',
    "list": b'["%s"]',
    "string": b'"%s"',
    "null": b"null",
    "number": b"1",
    "single quotes": b"{'password': '%s'}",
    "comma": b'{"password": "%s",}',
    "comment": b'{"password": "%s"/**/}',
    "duplicate name": b'{"email": "a@example.com", "password": "%s", "password": "%s"}',
    "duplicate name, escaped": b'{"email": "a@example.com", "password": "%s", "\\u0070assword": "%s"}',
    "duplicate name within": b'{"password": {"a": "%s", "a": 1}}',
    "NaN": b'{"email": NaN, "password": "%s"}',
    "Infinity": b'{"email": -Infinity, "password": "%s"}',
    "too large a number": b'{"email": 1e400, "password": "%s"}',
    "too large an integer": b'{"email": ' + b"9" * 5000 + b', "password": "%s"}',
    "lone surrogate": b'{"email": "\\ud800@example.com", "password": "%s"}',
    "lone surrogate in a name": b'{"\\udfff": 1, "password": "%s"}',
    "BOM": b'\xef\xbb\xbf{"password": "%s"}',
    "UTF-16": '{"password": "%s"}'.encode("utf-16"),
    "Latin-1": b'{"password": "%s\xe9"}',
    "overlong": b'{"password": "%s\xc0\xaf"}',
    "surrogate in UTF-8": b'{"password": "%s\xed\xa0\x80"}',
    "raw newline": b'{"password": "%s\n"}',
    "raw NUL": b'{"password": "%s\0"}',
    "nested": b'{"password": ' + b"[" * 30_000,
    "nested and closed": b'{"password": ' + b'{"a":' * 20 + b'"%s"' + b"}" * 21,
    "whitespace": b"  ",
}


@pytest.mark.parametrize("path", POSTS)
def test_what_is_not_one_json_object(post, path):
    for name, template in NO_JSON.items():
        response = post(path, template.replace(b"%s", CANARY.encode()))
        assert response.status_code == 400, name
        is_problem(response, 400, "malformed_json")
        shows_nothing(response)


# --- the wrong shape -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", POSTS)
def test_members_of_the_wrong_type(post, path):
    for name in MEMBERS[path]:
        for value in (None, 1, 1.5, True, [CANARY], {CANARY: CANARY}, {"value": CANARY}):
            response = post(path, json.dumps({**good(path), name: value}))
            assert is_problem(response, 422, "invalid_body")["fields"] == [{"field": name, "code": "string_type"}]
            shows_nothing(response)


@pytest.mark.parametrize("path", [path for path in POSTS if path != "/logout"])  # there the header may have it all
def test_missing_members(post, path):
    for name in MEMBERS[path]:
        body = good(path)
        del body[name]
        response = post(path, json.dumps(body))
        assert is_problem(response, 422, "invalid_body")["fields"] == [{"field": name, "code": "missing"}]
        shows_nothing(response)


@pytest.mark.parametrize("path", POSTS)
def test_unknown_members(post, path):
    for name in ("passwort", "", "__proto__", "Email", "a.b"):
        response = post(path, json.dumps({**good(path), name: CANARY}))
        faults = is_problem(response, 422, "invalid_body")["fields"]
        assert [fault["code"] for fault in faults] == ["extra_forbidden"]
        shows_nothing(response)


@pytest.mark.parametrize("path", [path for path in POSTS if path not in {"/logout", "/refresh"}])
def test_no_body_at_all(post, path):
    problem = is_problem(post(path, b"", {}), 422, "invalid_body")
    assert problem["fields"] == [{"field": "body", "code": "missing"}]


@pytest.mark.parametrize("path", ["/logout", "/refresh"])
def test_no_token_at_all(post, path):
    """It could have come in a header or a cookie."""
    is_problem(post(path, b"", {}), 401, "authentication_required")


# --- media types ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", POSTS)
def test_only_json_is_read(post, path):
    body = json.dumps(good(path))
    for media_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "text/json",
        "application/json, text/plain",
        "application/merge-patch+json",
        "",
    ):
        response = post(path, body, {"Content-Type": media_type})
        is_problem(response, 415, "unsupported_media_type")
    is_problem(post(path, body, {}), 415, "unsupported_media_type")


def test_json_in_other_spellings(client):
    email = sign_up(client)
    body = json.dumps({"email": email, "password": PASSWORD})
    for media_type in ("application/json; charset=utf-8", "Application/JSON", "application/json;charset=utf-8"):
        assert client.post("/login", content=body, headers={"Content-Type": media_type}).status_code == 200


# --- sizes ---------------------------------------------------------------------------------------------------------

LIMIT = 64 * 1024


def padded(size):
    body = json.dumps({"email": "nobody@example.com", "password": PASSWORD}).encode()
    return body + b" " * (size - len(body))


def test_a_body_may_have_64_kib(client):
    is_problem(client.post("/login", content=padded(LIMIT), headers=JSON), 401, "wrong_credentials")
    is_problem(client.post("/login", content=padded(LIMIT + 1), headers=JSON), 413, "body_too_large")


def test_streamed_bodies_are_counted(client):
    def stream(size):
        body = padded(size)
        return (body[start : start + 1000] for start in range(0, size, 1000))

    for size, status in ((LIMIT, 401), (LIMIT + 1, 413), (10 * LIMIT, 413)):
        response = client.post("/login", content=stream(size), headers=JSON)
        assert response.status_code == status, size


def test_a_body_without_an_end_is_cut(server):
    """The answer does not wait for an end that never comes."""
    head = raw_request("POST", "/login", {**JSON, "Transfer-Encoding": "chunked"})
    answer, sent = drip(server, head, b"1000\r\n" + b" " * 4096 + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent <= 4 * LIMIT


@pytest.mark.parametrize("path", ["/signup", "/login", "/refresh"])
def test_a_long_string_is_no_fault_of_the_server(post, path):
    for name in MEMBERS[path]:
        for value in ("x" * 60_000, "関" * 20_000, "@" * 60_000, ("a." * 30_000) + "@example.com"):
            response = post(path, json.dumps({**good(path), name: value}, ensure_ascii=False).encode())
            assert response.status_code in {401, 422}, (name, value[:5])


ABOUT_32_KIB = 200_000  # with what was on its way while the server was busy


def head_of(size):
    """A request for /me whose header names and values have ``size`` bytes together, in several lines."""
    fields = {"Host": "127.0.0.1", "Connection": "close"}
    used = sum(len(name) + len(value) for name, value in fields.items())
    count = 8
    each = (size - used) // count
    for number in range(count):
        extra = (size - used) - each * count if number == 0 else 0
        fields[f"X-{number}"] = "a" * (each + extra - 3)
    return "\r\n".join(["GET /me HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]).encode()


def test_headers_may_have_32_kib(server):
    limit = 32 * 1024
    # The exact limit is the application's; on the wire, where colons count too, it is a little less.
    assert exchange(server, head_of(limit - 500)).startswith(b"HTTP/1.1 401 ")
    for size in (limit + 1, limit + 100, limit + 2000):
        answer = exchange(server, head_of(size))
        assert answer.startswith(b"HTTP/1.1 431 "), (size, answer[:100])
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"application/problem+json" in head
        assert b"no-store" in head
        assert json.loads(body)["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "head",
    [b"GET /me HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: ", b"GET /me HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"GET /"],
    ids=["one line", "many lines", "path"],
)
def test_headers_without_an_end_are_cut(server, head):
    """httptools alone would read them for as long as they come."""
    answer, sent = drip(server, head, b"X: y\r\n" * 700 if head.endswith(b"\r\n") else b"a" * 4200)
    assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), answer[:100]
    assert sent <= ABOUT_32_KIB


def test_the_next_request_on_a_connection_has_its_own_limit(server):
    request = head_of(20_000).replace(b"Connection: close", b"Connection: Keep-")
    answer = exchange(server, request * 3 + head_of(20_000))
    assert answer.count(b"HTTP/1.1 401 ") == 4


def test_trailers_are_no_headers(server, client):
    """A field after the body counts for nothing (RFC 9110 §6.5.1): a proxy that checks headers has not seen it."""
    tokens = log_in(client)
    body = json.dumps({"current_password": "not the password at all", "new_password": OTHER_PASSWORD}).encode()
    request = (
        raw_request("POST", "/password", {**JSON, "Transfer-Encoding": "chunked"})
        + f"{len(body):x}\r\n".encode()
        + body
        + f"\r\n0\r\nAuthorization: Bearer {tokens.access}\r\n\r\n".encode()
    )
    answer = exchange(server, request)
    assert answer.startswith(b"HTTP/1.1 401 "), answer
    assert b"authentication_required" in answer


@pytest.mark.parametrize("part", [b"X: y\r\n" * 700, b"a" * 4200], ids=["many lines", "one line"])
def test_trailers_without_an_end_are_cut(server, part):
    head = raw_request("POST", "/login", {**JSON, "Transfer-Encoding": "chunked"}) + b"2\r\n{}\r\n0\r\nX: "
    answer, sent = drip(server, head, part)
    assert answer == b""  # the request never ended
    assert sent <= ABOUT_32_KIB


def test_many_requests_at_once_that_never_end_do_not_hold_up_others(server, client):
    dripping = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(50)]
    try:
        for connection in dripping:
            connection.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nContent-Type: appl")
        began = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - began < 5
    finally:
        for connection in dripping:
            connection.close()


# --- paths and methods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nothing", "/ME", "/me/", "/login/", "//me", "/sessions/", "/me%00", "/%ff", "/.."])
def test_unknown_paths(server, path):
    answer = exchange(server, raw_request("GET", path, {}))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 "), answer
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/signup", "POST"),
        ("/login", "POST"),
        ("/refresh", "POST"),
        ("/logout", "POST"),
        ("/logout/all", "POST"),
        ("/password", "POST"),
        ("/me", "GET"),
        ("/sessions", "GET"),
        ("/sessions/x", "DELETE"),
        ("/healthz", "GET"),
        ("/readyz", "GET"),
        ("/metrics", "GET"),
        ("/.well-known/jwks.json", "GET"),
    ],
)
def test_methods_that_a_path_does_not_take(client, path, allowed):
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"):
        if method == allowed:
            continue
        response = client.request(method, path)
        is_problem(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allowed
    head = client.head(path)
    assert head.status_code == 405
    assert head.headers["allow"] == allowed
    assert head.content == b""


def test_a_redirect_never_goes_where_the_host_header_says(client):
    for path in ("/me/", "/login/"):
        response = client.post(path, json={}, headers={"Host": "evil.example"})
        assert response.status_code == 404
        assert "location" not in response.headers


# --- characters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "email",
    [
        "\0",
        "a\0@example.com",
        "alice@example.com\0",
        "alice@exa\0mple.com",
        "alice@example.com\n",
        "alice\r\nX: y@example.com",
        "\N{RIGHT-TO-LEFT OVERRIDE}alice@example.com",
        "alice@" + "a" * 64 + ".com",
        "alice@" + "a." * 130 + "com",
        "@",
        "",
        "alice",
        "alice@",
        "@example.com",
        "alice@@example.com",
        "alice@[127.0.0.1]",
        "Alice <alice@example.com>",
        "alice@example..com",
        "alice@xn--",
        "alice@xn--a-ecp.ru",
        "alice@\N{COMBINING ACUTE ACCENT}.com",
        "alice@exam\N{ZERO WIDTH SPACE}ple.com",
        "'; DROP TABLE users; --@example.com ",
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_addresses_that_are_none(client, email):
    problem = is_problem(client.post("/signup", json={"email": email, "password": PASSWORD}), 422, "email_invalid")
    assert problem["fields"] == [{"field": "email", "code": "email_invalid"}]
    is_problem(try_login(client, email), 401, "wrong_credentials")


def test_a_nul_in_a_password_counts(client):
    email = sign_up(client, password="a gate\0 on the old road")
    is_problem(try_login(client, email, "a gate\0 on another road"), 401, "wrong_credentials")
    is_problem(try_login(client, email, "a gate"), 401, "wrong_credentials")
    assert try_login(client, email, "a gate\0 on the old road").status_code == 200


@pytest.mark.parametrize("value", ["\0", "\x1b[31m", "\N{RIGHT-TO-LEFT OVERRIDE}", "関所", "\U0001f6a7", "\ud800"])
def test_odd_characters_in_headers(server, value):
    raw = value.encode("utf-8", "surrogatepass").replace(b"\0", b"%00")
    for name in (b"User-Agent", b"X-Forwarded-For", b"Cookie", b"Authorization", b"Accept-Language", b"Content-Type"):
        request = b"POST /login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
        request += b"" if name == b"Content-Type" else b"Content-Type: application/json\r\n"
        answer = exchange(server, request + name + b": sekisho_device=" + raw + b"\r\n\r\n{}")
        assert answer[:12] in {b"HTTP/1.1 422", b"HTTP/1.1 415", b"HTTP/1.1 400"}, answer


def test_random_bytes_get_no_500(server):
    for size in (1, 10, 1000):
        answer = exchange(server, secrets.token_bytes(size) + b"\r\n\r\n", shut=True)
        assert not answer or answer.startswith(b"HTTP/1.1 400 "), answer


# --- languages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "language"),
    [
        ("ja", "ja"),
        ("ja-JP", "ja"),
        ("JA", "ja"),
        ("ja,en;q=0.8", "ja"),
        ("en;q=0.5, ja;q=0.9", "ja"),
        ("en,ja;q=0.9", "en"),
        ("en", "en"),
        ("fr", "en"),
        ("", "en"),
        ("*", "en"),
        ("ja;q=0", "en"),
        ("ja;q=nan", "en"),
        ("ja;q=x,,;", "en"),
    ],
)
def test_titles_come_in_the_readers_language(client, accept, language):
    for path, code in (("/me", "authentication_required"), ("/nothing", "not_found")):
        response = client.get(path, headers={"Accept-Language": accept})
        assert response.headers["content-language"] == language
        assert "Accept-Language" in response.headers["vary"]
        is_japanese = any("\u3040" <= char <= "\u9fff" for char in response.json()["title"])
        assert is_japanese == (language == "ja")
        assert response.json()["code"] == code
    for body, code in (({"email": "a", "password": PASSWORD}, "email_invalid"), ({}, "invalid_body")):
        response = client.post("/signup", json=body, headers={"Accept-Language": accept})
        assert is_problem(response, 422, code)
        assert response.headers["content-language"] == language


def test_the_server_is_well_after_all_that(client):
    assert me(client, log_in(client, sign_up(client, new_email())).access).status_code == 200
    text = client.get("/metrics").text
    assert 'event="crashed"' not in text
    assert 'status="500"' not in text
