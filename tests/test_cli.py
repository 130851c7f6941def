"""The commands beside ``serve``: what they do to a running server, what they print, and how they refuse."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self
from uuid import uuid4

import httpx2
import psutil
import pytest
import typer
from typer.testing import CliRunner

from sekisho.cli.commands import app
from sekisho.tokens import KeySet, access
from sekisho.wire import b64url_encode, now_s
from servers.sekisho_server import RunningServer
from test_serve import (
    PASSWORD,
    PROGRAM,
    Command,
    Person,
    a_client,
    an_address,
    claims_of,
    header_of,
    is_problem,
    secrets_in,
    sekisho,
    sekisho_here,
    wait_until,
)

# P2 of the design: whoever is connected refuses within this time.
AT_ONCE_S = 1.0


def command(server: RunningServer, *args: str, stdin: str = "") -> Command:
    """A command in the server's own folder and environment. The issuer follows its port, which only it knows."""
    return sekisho_here(*args, folder=server.folder, env={"SEKISHO_ISSUER": server.base_url, **server.env}, stdin=stdin)


def done(server: RunningServer, *args: str, stdin: str = "") -> str:
    answer = command(server, *args, stdin=stdin)
    assert answer.status == 0, answer
    return answer.out


def refused(server: RunningServer, *args: str, stdin: str = "") -> str:
    """The one line with which a command refuses to work."""
    answer = command(server, *args, stdin=stdin)
    assert (answer.status, answer.out) == (1, ""), answer
    assert answer.err.startswith("sekisho: ")
    assert answer.err.count("\n") == 1, answer.err
    return answer.err.strip()


def as_json(server: RunningServer, *args: str, stdin: str = "") -> Any:
    return json.loads(done(server, *args, "--json", stdin=stdin))


def is_refused_at_once(person: Person) -> None:
    """Within a second of now, and from then on."""
    wait_until(lambda: person.me().status_code == 401, within_s=AT_ONCE_S, what="the access token is refused")
    for _ in range(5):
        is_problem(person.me(), 401, "invalid_token")
    is_problem(person.refresh(), 401, "refresh_refused")


# --- help and wrong usage ------------------------------------------------------------------------------------------


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in sorted(getattr(group, "commands", {}).items()):
        yield from _commands(child, (*path, name))


def _command(path: tuple[str, ...]) -> Any:
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    return command


COMMANDS = list(_commands(typer.main.get_command(app)))


def test_the_commands_are_those_of_the_contract():
    leaves = {" ".join(path) for path in COMMANDS if not any(other[:-1] == path for other in COMMANDS if other)}
    assert leaves >= {
        "serve",
        *(f"keys {name}" for name in ("new", "list", "rotate", "retire")),
        "db upgrade",
        *(f"users {name}" for name in ("create", "list", "disable")),
        *(f"sessions {name}" for name in ("list", "show", "end")),
        *(f"verifiers {name}" for name in ("add", "list", "remove")),
        "token inspect",
        "doctor",
        "settings",
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_a_help(path):
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    _, _, text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split()).partition("Usage: ")
    said = _command(path).help
    assert len(said) > 10
    assert " ".join(said.split())[:40] in text
    assert "--help" in text


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["serve", "--port", "eighty"],
        ["serve", "--port", "65536"],
        ["serve", "--workers", "0"],
        ["serve", "here"],
        ["keys", "rotate", "--purpose", "sing"],
        ["keys", "retire"],
        ["keys", "list", "--yaml"],
        ["users", "create"],
        ["users", "create", "a@example.com", "--password", "on the command line"],
        ["sessions", "show", "not-a-uuid"],
        ["sessions", "end"],
        ["token", "inspect", "a.b.c"],
        ["doctor", "now"],
        ["settings", "SEKISHO_ISSUER"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told_with_exit_code_2(args):
    result = CliRunner().invoke(app, args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: " in result.stderr
    assert "Traceback" not in result.stderr


def test_the_program_itself_refuses_wrong_usage_and_settings_with_2(tmp_path):
    assert sekisho("sessions", "show", "not-a-uuid", folder=tmp_path).status == 2
    answer = sekisho("users", "list", folder=tmp_path, env={"SEKISHO_MAX_SESSIONS": "many"})
    assert answer.status == 2
    assert answer.err.startswith("sekisho: SEKISHO_MAX_SESSIONS ")
    assert answer.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_a_database_a_command_fails_in_one_line(tmp_path, free_port):
    env = {"SEKISHO_DATABASE_URL": f"postgresql://someone:pa55-never-shown@127.0.0.1:{free_port}/app"}
    answer = sekisho_here("users", "list", folder=tmp_path, env=env)
    assert (answer.status, answer.out) == (1, "")
    assert answer.err.count("\n") == 1
    assert "pa55-never-shown" not in answer.err


@pytest.mark.parametrize(
    "args",
    [("users", "list"), ("users", "create", "a@example.com"), ("sessions", "list", "a@example.com")],
    ids=" ".join,
)
def test_in_a_folder_without_a_database_a_command_makes_none(tmp_path, args):
    answer = sekisho_here(*args, folder=tmp_path, stdin=f"{PASSWORD}\n")
    assert (answer.status, answer.out) == (2, "")
    assert answer.err == (
        "sekisho: there is no database at sekisho.db: type sekisho serve or sekisho db upgrade first\n"
    )
    assert not list(tmp_path.iterdir())
    assert sekisho_here("db", "upgrade", folder=tmp_path).status == 0
    assert sekisho_here("users", "list", folder=tmp_path).out == "No accounts yet.\n"


def test_without_the_servers_libraries_it_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['typer'] = None; from sekisho.cli import main; main()"
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.count("\n") == 1
    assert "sekisho[server]" in answer.stderr


# --- db ------------------------------------------------------------------------------------------------------------


def test_db_upgrade_may_run_twice(tmp_path, database_url):
    env = {"SEKISHO_DATABASE_URL": database_url}
    if database_url.startswith("postgresql"):
        before = sekisho_here("users", "list", folder=tmp_path, env=env)
        assert before.status == 2
        assert "sekisho db upgrade" in before.err
    first, second = (sekisho_here("db", "upgrade", folder=tmp_path, env=env) for _ in range(2))
    assert (first.status, second.status) == (0, 0)
    assert "is now at" in first.out
    assert "already" in second.out
    assert sekisho_here("users", "list", folder=tmp_path, env=env).out == "No accounts yet.\n"


# --- users ---------------------------------------------------------------------------------------------------------


def test_users_create_takes_roles_to_tokens_and_me(server, client):
    email = an_address()
    out = done(server, "users", "create", email, "--role", "admin", "--role", "監査", stdin=f"{PASSWORD}\n")
    assert out.startswith(f"Created {email} (")
    assert PASSWORD not in out
    person = Person(client, email).logs_in()
    assert claims_of(person.access_token)["roles"] == ["admin", "監査"]
    me = person.me().json()
    assert (me["email"], me["roles"]) == (email, ["admin", "監査"])
    assert me["id"] in out

    [listed] = [row for row in as_json(server, "users", "list") if row["email"] == email]
    assert (listed["id"], listed["roles"], listed["disabled_at"]) == (me["id"], "admin 監査", None)
    assert listed.keys() == {"id", "email", "roles", "created_at", "disabled_at"}
    shown = done(server, "users", "list")
    assert me["id"] in shown
    assert email in shown
    assert "argon2" not in shown


@pytest.mark.parametrize("roles", [[""], ["a" * 65], ["a\x07b"], ["監" * 22], [f"r{number}" for number in range(33)]])
def test_roles_that_no_token_could_carry_are_refused(server, roles):
    words = [word for role in roles for word in ("--role", role)]
    assert "roles of 1 to 64 bytes" in refused(server, "users", "create", an_address(), *words, stdin=f"{PASSWORD}\n")


def test_users_create_refuses_as_sign_up_does(server, client):
    email = an_address()
    assert "too short" in refused(server, "users", "create", email, stdin="short\n")
    assert "too common" in refused(server, "users", "create", email, stdin="passwordpassword\n")
    assert "your e-mail address" in refused(server, "users", "create", email, stdin=f"{email}\n")
    assert "e-mail address" in refused(server, "users", "create", "nobody", stdin=f"{PASSWORD}\n")
    refused(server, "users", "create", email, stdin="")
    response = client.post("/login", json={"email": email, "password": PASSWORD})
    is_problem(response, 401, "wrong_credentials")
    Person(client, email).signs_up()
    assert "exists already" in refused(server, "users", "create", email.upper(), stdin=f"{PASSWORD}\n")


@pytest.mark.parametrize("how", [sekisho, sekisho_here])  # Python reads C.UTF-8 with surrogates, other locales not
def test_users_create_refuses_a_password_that_is_no_text(tmp_path, how):
    done_here = sekisho_here("db", "upgrade", folder=tmp_path)
    assert done_here.status == 0
    answer = how("users", "create", "a@example.com", folder=tmp_path, stdin=f"{PASSWORD}\udcff\n")
    assert (answer.status, answer.out) == (1, "")
    assert answer.err == "sekisho: the password on standard input is not text in UTF-8\n"


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)  # the password is the same on both
def test_the_password_stands_in_no_list_of_processes(server):
    """It is read from standard input while the command waits for it: what is seen then is all there is to see."""
    process = psutil.Popen(
        [PROGRAM, "users", "create", an_address()],
        env=server.env,
        cwd=server.folder,
        stdin=-1,
        stdout=-1,
        stderr=-1,
        text=True,
    )
    with process:
        wait_until(lambda: process.num_fds() > 2, within_s=10)
        seen = " ".join([*process.cmdline(), *process.environ().values()])
        out, err = process.communicate(f"{PASSWORD}\n", timeout=60)
    assert process.returncode == 0, err
    assert PASSWORD not in seen + out + err


def test_users_disable_ends_sessions_at_once_and_for_good(server, client):
    person = Person(client).signs_up().logs_in()
    second = Person(client, person.email).logs_in()
    assert person.me().status_code == 200  # known to be good a moment before
    assert done(server, "users", "disable", person.email) == f"Disabled {person.email}; 2 sessions ended.\n"
    is_refused_at_once(person)
    is_refused_at_once(second)
    response = client.post("/login", json={"email": person.email, "password": PASSWORD})
    is_problem(response, 401, "wrong_credentials")
    [listed] = [row for row in as_json(server, "users", "list") if row["email"] == person.email]
    assert listed["disabled_at"]
    assert as_json(server, "sessions", "show", person.session_id)["cause"] == "user_disabled"
    nobody = an_address()
    assert nobody in refused(server, "users", "disable", nobody)


# --- sessions ------------------------------------------------------------------------------------------------------


def test_sessions_are_listed_shown_and_ended(server, client, client_address):
    person = Person(client).signs_up().logs_in()
    other = Person(client, person.email).logs_in()
    rows = as_json(server, "sessions", "list", person.email)
    assert {row["id"] for row in rows} == {person.session_id, other.session_id}
    assert {row["address"] for row in rows} == {client_address}
    assert rows[0].keys() == {"id", "kind", "created_at", "last_used_at", "address", "user_agent"}
    assert person.session_id in done(server, "sessions", "list", person.email.upper())

    story = as_json(server, "sessions", "show", person.session_id)
    assert (story["ended_at"], story["cause"], story["thefts"]) == (None, None, [])
    assert story["user"] == claims_of(person.access_token)["sub"]
    assert story["email"] == person.email

    assert person.session_id in done(server, "sessions", "end", person.session_id)
    is_refused_at_once(person)
    assert other.me().status_code == 200
    assert other.refresh().status_code == 200
    text = done(server, "sessions", "show", person.session_id)
    assert re.search(r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ  Ended by an operator\.$", text, re.MULTILINE)
    assert [row["id"] for row in as_json(server, "sessions", "list", person.email)] == [other.session_id]


def test_sessions_that_are_not_there_are_told(server, client):
    person = Person(client).signs_up()
    assert done(server, "sessions", "list", person.email) == "No live sessions.\n"
    assert as_json(server, "sessions", "list", person.email) == []
    assert "no account" in refused(server, "sessions", "list", an_address())
    assert "no such session" in refused(server, "sessions", "show", str(uuid4()))
    assert "no such session" in refused(server, "sessions", "end", str(uuid4()))


# --- token ---------------------------------------------------------------------------------------------------------


def _token_of(server: RunningServer, key_set: KeySet | None = None, *, age_s: int = 0) -> str:
    key_set = key_set or KeySet.from_json((server.folder / "sekisho-keys.json").read_bytes())
    return access.issue(
        key_set.active("sign"),
        issuer=server.base_url,
        audience=server.base_url,
        subject=str(uuid4()),
        session_id=str(uuid4()),
        issued_at=now_s() - age_s,
        expires_at=now_s() - age_s + 900,
        roles=(),
    )


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)  # the command asks no database
def test_token_inspect_tells_what_a_token_says_and_whether_it_holds(server, client):
    person = Person(client).signs_up().logs_in()
    good = as_json(server, "token", "inspect", stdin=person.access_token)
    assert good["kind"] == "access token"
    assert good["verdict"].startswith("good")
    assert (good["sid"], good["iss"]) == (person.session_id, server.base_url)
    assert str(claims_of(person.access_token)["exp"]) in good["exp"]
    assert json.loads(good["header"]) == header_of(person.access_token)
    assert re.search(r"^verdict +good", done(server, "token", "inspect", stdin=person.access_token), re.MULTILINE)

    refresh = as_json(server, "token", "inspect", stdin=f"  {person.refresh_token}\n")
    assert (refresh["kind"], refresh["session"]) == ("refresh token", person.session_id)
    assert (refresh["generation"], refresh["branch"]) == (0, 0)

    expired = as_json(server, "token", "inspect", stdin=_token_of(server, age_s=1000))
    assert expired["verdict"].startswith("refused: token_expired")

    kid = header_of(person.access_token)["kid"]
    foreign_key = json.loads(KeySet.generate("HS256", now=now_s()).to_json())
    foreign_key["keys"][0]["kid"] = kid
    forged = _token_of(server, KeySet.from_json(json.dumps(foreign_key).encode()))
    assert as_json(server, "token", "inspect", stdin=forged)["verdict"].startswith("refused: token_signature_invalid")


def inspected(folder: Path, *args: str, **claims: Any) -> str:
    sekisho_here("keys", "new", folder=folder)
    parts = [json.dumps(part, ensure_ascii=False).encode() for part in ({"alg": "HS256"}, claims)]
    token = ".".join([*map(b64url_encode, parts), "AAAA"])
    answer = sekisho_here("token", "inspect", *args, folder=folder, stdin=token)
    assert (answer.status, answer.err) == (0, ""), answer
    return answer.out


@pytest.mark.parametrize("exp", [2**53 - 1, -(2**53) + 1, 253402300800])
def test_token_inspect_shows_a_time_beyond_the_calendar_as_a_number(tmp_path, exp):
    assert re.search(rf"^exp +{exp}$", inspected(tmp_path, exp=exp), re.MULTILINE)


@pytest.mark.parametrize("args", [(), ("--json",)])
def test_token_inspect_sends_nothing_to_the_terminal_but_text(tmp_path, args):
    evil = "\x1b[2J\x9b31m\x7f\r\nverdict good\u202e\u2028"
    out = inspected(tmp_path, *args, **{"sub": evil, evil: "x", "roles": [evil, {"a": evil}], "name": "監査"})
    assert [c for c in out if not c.isprintable() and c != "\n"] == []
    assert not re.search(r"^verdict good", out, re.MULTILINE)
    assert args or "監査" in out


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_token_inspect_names_the_issuer_it_expects(server):
    token = access.issue(
        KeySet.from_json((server.folder / "sekisho-keys.json").read_bytes()).active("sign"),
        issuer="https://elsewhere.example",
        audience=server.base_url,
        subject=str(uuid4()),
        session_id=str(uuid4()),
        issued_at=now_s(),
        expires_at=now_s() + 900,
        roles=(),
    )
    verdict = as_json(server, "token", "inspect", stdin=token)["verdict"]
    assert f"SEKISHO_ISSUER is {server.base_url})" in verdict


def test_token_inspect_refuses_what_is_no_text(tmp_path):
    answer = sekisho_here("token", "inspect", folder=tmp_path, stdin="\udcff\n")
    assert (answer.status, answer.err) == (1, "sekisho: the token on standard input is not text in UTF-8\n")


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
@pytest.mark.parametrize("token", ["", "garbage", "a.b.c", "....", "sekisho_rt_AAAA", "\N{SNOWMAN}.\x1b[31m.x"])
def test_token_inspect_refuses_garbage_and_does_not_repeat_it(server, token):
    line = refused(server, "token", "inspect", stdin=f"{token}\n")
    assert not token or token not in line


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
def test_token_inspect_refuses_an_altered_refresh_token(server, client):
    token = Person(client).signs_up().logs_in().refresh_token
    altered = token[:-1] + ("A" if token[-1] != "A" else "B")
    refused(server, "token", "inspect", stdin=altered)


# --- keys ----------------------------------------------------------------------------------------------------------


class _Load:
    """A client that refreshes and uses an old and a new token, again and again, and keeps every answer that is no 200."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._stop = Event()
        self.kids: dict[str, float] = {}  # of new tokens, when each was first seen
        self.failures: list[str] = []
        self.calls = 0
        self._thread = Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        with a_client(self._server) as client:
            first = Person(client).signs_up().logs_in()
            newest = Person(client, first.email).logs_in()
            while not self._stop.is_set():
                refreshed = newest.refresh()
                if refreshed.status_code == 200:
                    newest.tokens = refreshed.json()
                    self.kids.setdefault(header_of(newest.access_token)["kid"], time.monotonic())
                responses = [refreshed, first.me(), newest.me()]
                self.failures += [f"{r.request.url} {r.status_code}" for r in responses if r.status_code != 200]
                self.calls += len(responses)
                time.sleep(0.05)


def _keys(server: RunningServer, purpose: str = "sign") -> dict[str, str]:
    """kid → state."""
    return {row["kid"]: row["state"] for row in as_json(server, "keys", "list") if row["purpose"] == purpose}


def _published(client: httpx2.Client) -> set[str]:
    return {jwk["kid"] for jwk in client.get("/.well-known/jwks.json").json()["keys"]}


def test_keys_turn_over_while_a_server_runs_and_nobody_notices(serve, database_url):
    server = serve(database_url=database_url, env={"SEKISHO_SIGNING_ALGORITHM": "EdDSA"})
    key_file = server.folder / "sekisho-keys.json"
    said = ""
    with a_client(server) as client, _Load(server) as load:
        wait_until(lambda: load.calls > 10, within_s=20)
        [old] = _keys(server)
        said += done(server, "keys", "rotate")  # publishes
        [new] = _keys(server).keys() - {old}
        assert _keys(server) == {old: "active", new: "next"}
        assert new in said
        too_early = refused(server, "keys", "rotate")
        assert "has not been published for long enough" in too_early
        twice = refused(server, "keys", "new")
        assert "has a next key already" in twice
        wait_until(lambda: _published(client) == {old, new}, within_s=10, what="the next key is published")
        assert load.kids.keys() == {old}

        said += done(server, "keys", "rotate", "--now")
        began = time.monotonic()
        states = _keys(server)
        assert (states.pop(old), states.pop(new), list(states.values())) == ("verify_only", "active", ["next"])
        took_s = wait_until(lambda: load.kids.get(new), within_s=10, what="new tokens have the new kid") - began
        assert took_s < 6  # looked at every 3 s

        before = load.calls
        wait_until(lambda: load.calls > before + 10, within_s=20)
        in_use = refused(server, "keys", "retire", old)
        assert "may be in use until" in in_use
        active = refused(server, "keys", "retire", new)
        assert "is active" in active
    assert load.failures == []

    old_token = _token_of(server, KeySet.from_json(_with_active(key_file, old)))
    assert as_json(server, "token", "inspect", stdin=old_token)["verdict"].startswith("good")
    said += done(server, "keys", "retire", old, "--now")
    assert _keys(server)[old] == "retired"
    assert as_json(server, "token", "inspect", stdin=old_token)["verdict"].startswith("refused: token_key_unknown")
    with a_client(server) as client:
        wait_until(lambda: old not in _published(client), within_s=10, what="the old key is withdrawn")
        assert Person(client).signs_up().logs_in().me().status_code == 200
        withdrawn = client.get("/me", headers={"Authorization": f"Bearer {old_token}"})
        is_problem(withdrawn, 401, "invalid_token")
    shown = done(server, "keys", "list") + json.dumps(as_json(server, "keys", "list"))
    everything = shown + said + too_early + twice + in_use + active + server.log_text()
    assert not [secret for secret in secrets_in(key_file) if secret in everything]


def _with_active(key_file: Path, kid: str) -> bytes:
    """The set as if this signing key were the active one still."""
    document = json.loads(key_file.read_text())
    for jwk in document["keys"]:
        if jwk["purpose"] == "sign" and jwk["state"] in {"active", "verify_only"}:
            jwk["state"] = "active" if jwk["kid"] == kid else "verify_only"
    return json.dumps(document).encode()


def test_keys_new_makes_a_first_set_and_then_one_more_key_for_each_purpose(tmp_path):
    env = {"SEKISHO_KEYS": "file:the.keys", "SEKISHO_SIGNING_ALGORITHM": "ES256"}

    def keys(*args: str) -> Command:
        return sekisho_here("keys", *args, folder=tmp_path, env=env)

    nothing = keys("list")
    assert nothing.status == 1
    assert "type sekisho keys new" in nothing.err
    assert "file:the.keys" in keys("new").out
    path = tmp_path / "the.keys"
    assert path.stat().st_mode & 0o777 == 0o600
    first = path.read_bytes()
    rows = json.loads(keys("list", "--json").out)
    assert [(row["purpose"], row["algorithm"], row["state"]) for row in rows] == [
        ("sign", "ES256", "active"),
        ("refresh", "HS256", "active"),
        ("csrf", "HS256", "active"),
    ]
    assert keys("new", "--purpose", "refresh").status == 0
    rows = json.loads(keys("list", "--json").out)
    assert [(row["purpose"], row["algorithm"]) for row in rows if row["state"] == "next"] == [("refresh", "HS256")]
    assert [jwk for jwk in json.loads(path.read_text())["keys"] if jwk["state"] == "active"] == json.loads(first)[
        "keys"
    ]
    assert "there is no key nonesuch" in keys("retire", "nonesuch").err
    path.chmod(0o640)
    wide = keys("list")
    assert (wide.status, wide.err.count("\n")) == (1, 1)
    assert "chmod 600" in wide.err


def test_a_refresh_key_turns_over_and_sessions_live_on(serve):
    server = serve()
    with a_client(server) as client:
        person = Person(client).signs_up().logs_in()
        other = Person(client, person.email).logs_in()

        def kid_of(token: str) -> str:
            return as_json(server, "token", "inspect", stdin=token)["kid"]

        before = kid_of(person.refresh_token)
        done(server, "keys", "rotate", "--purpose", "refresh", "--now")
        wait_until(
            lambda: kid_of(other.refresh().json()["refresh_token"]) != before,
            within_s=20,
            what="refresh tokens are made with the new key",
        )
        refreshed = person.refresh()
        assert refreshed.status_code == 200
        assert kid_of(person.refresh_token) == before
        assert kid_of(refreshed.json()["refresh_token"]) != before
        assert "may be in use until" in refused(server, "keys", "retire", before)


def test_keys_in_a_variable_cannot_be_changed(tmp_path):
    document = KeySet.generate("HS256", now=now_s()).to_json().decode()
    env = {"SEKISHO_KEYS": "env:THE_KEYS", "THE_KEYS": document}
    assert len(json.loads(sekisho_here("keys", "list", "--json", folder=tmp_path, env=env).out)) == 3
    answer = sekisho_here("keys", "rotate", folder=tmp_path, env=env)
    assert (answer.status, answer.err.count("\n")) == (1, 1)
    assert "cannot be written" in answer.err
    assert not list(tmp_path.iterdir())
