"""Nothing that could be used leaks: not into the database, the log, the metrics, the API's description, an answer that
is for somebody else, or what a command prints.
"""

import base64
import json
import re
from dataclasses import dataclass
from uuid import UUID

import pytest
from outsiders import (
    OTHER_PASSWORD,
    PASSWORD,
    Rows,
    Tokens,
    bearer,
    greeting,
    is_problem,
    log_in,
    log_lines,
    me,
    refresh,
    sign_up,
    try_login,
)

from test_serve import sekisho_here

WRONG = "wr0ng-guess-of-a-passw0rd"
NEWEST = "three gates and no road"
VERIFIER = "verifier_refused"
AT_THE_DATABASE = "database-canary-passw0rd"
AT_REDIS = "redis-canary-passw0rd"


@dataclass
class Answers:
    """Everything that the server has answered, except for the tokens in the answers that are there to give them."""

    text: bytes = b""
    number: int = 0

    def take(self, response):
        response.read()
        self.number += 1
        body, headers = response.text, dict(response.headers)
        if response.status_code == 200 and response.request.url.path in {"/login", "/refresh", "/password"}:
            members = response.json()
            assert members.pop("access_token")
            assert members.pop("refresh_token")
            headers.pop("set-cookie", None)
            body = json.dumps(members)
        self.text += f"{response.status_code} {headers} {body}\n".encode()


@pytest.fixture
def redis_with_password(private_redis):
    assert private_redis._ask(f"CONFIG SET requirepass {AT_REDIS}\r\n", lines=1) == "+OK\r\n"
    return f"redis://:{AT_REDIS}@127.0.0.1:{private_redis.port}/0"


@pytest.fixture
def run(serve, connect, postgres, database_url, redis_with_password):
    """A server after every flow, and everything that was secret in them."""
    database_url = database_url.replace("postgres@", f"postgres:{AT_THE_DATABASE}@")  # it lets in whoever comes
    env = {"SEKISHO_TRUSTED_PROXIES": "127.0.0.1/32", "SEKISHO_REDIS_URL": redis_with_password}
    server = serve(database_url=database_url, env=env)
    rows = Rows(server, postgres)
    client, answers = connect(server), Answers()
    client.event_hooks = {"response": [answers.take]}
    secrets = {PASSWORD, OTHER_PASSWORD, WRONG, NEWEST, AT_THE_DATABASE, AT_REDIS}
    email = sign_up(client)

    def keep(tokens):
        secrets.update({tokens.access, tokens.refresh, client.cookies["sekisho_device"]})
        return tokens

    def age(tokens):
        rows.age(tokens.session_id, made_s=100, handed_out_s=100)

    first = keep(log_in(client, email))
    age(first)
    second = keep(Tokens.of(refresh(client, first.refresh)))
    keep(Tokens.of(refresh(client, second.refresh)))
    keep(Tokens.of(refresh(client, first.refresh)))
    age(first)
    keep(Tokens.of(refresh(client, first.refresh)))
    is_problem(refresh(client, second.refresh), 401, "refresh_refused")  # theft
    is_problem(refresh(client, second.refresh[:-2] + "AA"), 401, "refresh_refused")
    is_problem(try_login(client, email, WRONG), 401, "wrong_credentials")
    is_problem(try_login(client, WRONG, WRONG), 401, "wrong_credentials")  # typed into the wrong field
    is_problem(client.post("/signup", json={"email": WRONG, "password": WRONG}), 422, "email_invalid")
    is_problem(client.post("/login", json={"email": email, "passwort": WRONG}), 422, "invalid_body")
    is_problem(client.post("/login", content=b'{"password": "' + WRONG.encode()), 415, "unsupported_media_type")
    third = keep(log_in(client, email))
    body = {"current_password": WRONG, "new_password": OTHER_PASSWORD}
    is_problem(client.post("/password", json=body, headers=bearer(third.access)), 401, "wrong_credentials")
    body["current_password"] = PASSWORD
    fourth = keep(Tokens.of(client.post("/password", json=body, headers=bearer(third.access))))
    assert me(client, fourth.access).status_code == 200
    is_problem(client.get("/me", params={"access_token": fourth.access}), 401, "authentication_required")
    is_problem(client.get(f"/{fourth.refresh}"), 404, "not_found")
    is_problem(client.delete(f"/sessions/{fourth.refresh}", headers=bearer(fourth.access)), 404, "session_not_found")
    live = keep(log_in(client, email, OTHER_PASSWORD))
    assert client.delete(f"/sessions/{live.session_id}", headers=bearer(fourth.access)).status_code == 204
    fifth = keep(log_in(client, email, OTHER_PASSWORD))
    assert client.post("/logout", json={"refresh_token": fifth.refresh}).status_code == 204
    assert client.post("/logout/all", headers=bearer(fourth.access)).status_code == 204
    keep(log_in(client, email, OTHER_PASSWORD))  # stays live
    for _ in range(6):
        last = try_login(client, "throttled@example.com", WRONG)
    is_problem(last, 429, "throttled")
    secrets.add(shown_at_many_doors(server, client, fourth.access))
    return server, rows, client, secrets, answers


def shown_at_many_doors(server, client, token):
    """A new verifier's credential."""
    credential = server.run("verifiers", "add", "shop").strip()
    asked = client.post("/introspect", data={"token": token}, headers=bearer(credential))
    assert asked.json() == {"active": False}
    is_problem(client.post("/introspect", data={"token": credential}, headers=bearer(token)), 401, VERIFIER)
    is_problem(client.get("/me", headers=bearer(credential)), 401, "invalid_token")
    is_problem(refresh(client, credential), 401, "refresh_refused")
    return credential


def everything_at_rest(rows, tmp_path):
    """The bytes of the database: its files on SQLite, every row as text on PostgreSQL."""
    if rows.is_sqlite:
        files = sorted(tmp_path.glob("sekisho.db*"))
        assert {file.name for file in files} >= {"sekisho.db", "sekisho.db-wal"}
        return b"".join(file.read_bytes() for file in files)
    tables = rows.run("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert len(tables) >= 6
    dump = b""
    for (table,) in tables:
        for row in rows.run(f"SELECT row_to_json(t)::text FROM {table} t"):
            text = "|".join(row)
            dump += text.encode()
            for hexadecimal in re.findall(r"\\\\x([0-9a-f]+)", text):
                dump += bytes.fromhex(hexadecimal)
    return dump


def spellings(secret):
    """A secret as it is, and as a log or a database might write it."""
    raw = secret if isinstance(secret, bytes) else secret.encode()
    encoded = [base64.b64encode(raw), base64.urlsafe_b64encode(raw)]
    return {raw, raw.hex().encode(), raw.hex().upper().encode()} | {text.rstrip(b"=") for text in encoded}


def pieces(secret):
    """Of a token also the part that makes it one, as text and as bytes."""
    yield secret
    if secret.startswith("sekisho_rt_"):
        body = secret.removeprefix("sekisho_rt_")
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        yield from (raw[-48:-16], raw[-48:], body[-60:])
    elif secret.count(".") == 2:
        yield secret.rpartition(".")[2]


def commands(server, session_id, *, email, token):
    """What every command prints that is not there to print a secret, in words and as JSON."""
    env = {**server.env, "SEKISHO_ISSUER": server.base_url}
    asked = [
        ("doctor",),
        ("settings",),
        ("keys", "list"),
        ("users", "list"),
        ("sessions", "list", email),
        ("sessions", "show", str(session_id)),
        ("verifiers", "list"),
        ("token", "inspect"),
    ]
    printed = ""
    for command in asked:
        for args in (command, (*command, "--json")):
            answer = sekisho_here(*args, folder=server.folder, env=env, stdin=token if command[0] == "token" else "")
            assert answer.status == 0, answer
            printed += answer.out + answer.err
    for command in [
        ("keys", "new"),
        ("keys", "rotate", "--now"),
        ("db", "upgrade"),
        ("sessions", "end", str(session_id)),
    ]:
        answer = sekisho_here(*command, folder=server.folder, env=env)
        printed += answer.out + answer.err
    return printed


def forms_at_rest(rows):
    """What the database keeps of secrets: hashes of passwords, salts, what it has of devices and credentials."""
    kept = [text for (text,) in rows.run("SELECT password_hash FROM users")]
    kept += [text.rpartition("$")[2] for text in kept]
    as_hex = "hex({})" if rows.is_sqlite else "encode({}, 'hex')"
    for column, table in [("salt", "sessions"), ("token_hash", "devices"), ("credential_hash", "verifiers")]:
        kept += [text.lower() for (text,) in rows.run(f"SELECT {as_hex.format(column)} FROM {table}")]
    assert len(kept) >= 10
    forms = {form for text in kept for form in (text.encode(), text.upper().encode())}
    return forms | {form for text in kept if re.fullmatch("[0-9a-f]+", text) for form in spellings(bytes.fromhex(text))}


@pytest.fixture
def places(run, tmp_path):
    """Wherever something could have got to."""
    server, rows, client, secrets, answers = run
    ((email,),) = rows.run("SELECT email FROM users")
    (session_id,) = [UUID(one) for (one,) in rows.run("SELECT id FROM sessions WHERE ended_at_us IS NULL")]
    token = max(secrets, key=lambda secret: secret.count("."))
    places = {
        "database": everything_at_rest(rows, tmp_path),
        "log": server.log_text().encode(),
        "metrics": client.get("/metrics").content,
        "openapi": client.get("/openapi.json").content,
        "docs": client.get("/docs").content,
        "keys": client.get("/.well-known/jwks.json").content,
        "answers": answers.text,
        "commands": commands(server, session_id, email=email, token=token).encode(),
    }
    assert all(len(place) > 100 for name, place in places.items() if name != "keys")
    assert answers.number > 30
    # The greeting has an example to paste, and by chance it is the one of these tests.
    places["log"] = places["log"].replace(greeting(server).encode(), b"")
    return places


def test_nothing_usable_is_kept_or_shown(run, places):
    server, rows, _, secrets, _ = run
    keys = json.loads((server.folder / "sekisho-keys.json").read_text())["keys"]
    key_bytes = [base64.urlsafe_b64decode(key["k"] + "==") for key in keys]
    assert len(key_bytes) >= 3
    assert all(len(key) >= 32 for key in key_bytes)
    assert len(secrets) >= 4 + 8 + 8 + 1 + 3
    assert b"argon2id" in places["database"]  # it is the right one, and it can be read

    looked_for = [form for secret in secrets for piece in pieces(secret) for form in spellings(piece)]
    looked_for += [form for key in key_bytes for form in spellings(key)]
    assert len(looked_for) > 200
    for name, place in places.items():
        for form in looked_for:
            assert form not in place, (name, form)
    for form in forms_at_rest(rows):
        for name, place in places.items():
            assert form not in place or name == "database", (name, form)

    failed = [line for line in log_lines(server) if line["event"] in {"login_failed", "throttled"}]
    assert len(failed) > 5
    assert "throttled@example.com" not in json.dumps(failed)  # people type passwords into that field
