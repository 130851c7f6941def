"""``sekisho serve`` as someone meets it: what it makes and prints, how it ends, and why it does not start."""

import asyncio
import hashlib
import hmac
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import joserfc.jwk
import joserfc.jwt
import jwt
import pytest
import uvicorn

from sekisho.cli import main
from sekisho.tokens import KeySet
from sekisho.web import server as server_module
from sekisho.wire import b64url_decode, now_s
from servers.postgres import Postgres
from servers.sekisho_server import RunningServer

PROGRAM = Path(sys.executable).with_name("sekisho")
PASSWORD = "a gate on the old road"
ALGORITHMS = ("HS256", "EdDSA", "ES256", "RS256")
PUBLIC_ALGORITHMS = ALGORITHMS[1:]

_numbers = count(1)


# --- what the tests of processes share -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """What a command has answered."""

    status: int
    out: str
    err: str


def sekisho(*args: str, folder: Path, env: Mapping[str, str] | None = None, stdin: str = "") -> Command:
    """Runs the program ``sekisho`` with these arguments and waits for its end."""
    done = subprocess.run(
        [PROGRAM, *args],
        env=_clean(folder, env),
        cwd=folder,
        input=stdin.encode(errors="surrogateescape"),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return Command(done.returncode, done.stdout.decode(), done.stderr.decode())


def sekisho_here(*args: str, folder: Path, env: Mapping[str, str] | None = None, stdin: str = "") -> Command:
    """The same in this process, which saves the second that a start takes. What escapes ``main`` fails the test."""
    environ, here = dict(os.environ), Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    status: Any = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["sekisho", *args])
        patch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode(errors="surrogateescape")), encoding="utf-8")
        )
        patch.setattr(server_module, "run", lambda **_: pytest.fail("it starts"))
        os.environ.clear()
        os.environ.update(_clean(folder, env))
        os.chdir(folder)
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(environ)
    return Command(status, out.getvalue(), err.getvalue())


def _clean(folder: Path, env: Mapping[str, str] | None) -> dict[str, str]:
    return {"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8", **(env or {})}


def wait_until(holds: Callable[[], Any], *, within_s: float, what: str = "") -> Any:
    """Asks again and again until the answer is true; gives the answer."""
    give_up_at = time.monotonic() + within_s
    while not (answer := holds()):
        if time.monotonic() > give_up_at:
            pytest.fail(f"not within {within_s} s: {what or holds}")
        time.sleep(0.01)
    return answer


def an_address() -> str:
    """An e-mail address that no other test of this process uses."""
    return f"user{next(_numbers)}-{os.urandom(4).hex()}@example.com"


def a_client(server: RunningServer, **named: Any) -> httpx2.Client:
    return httpx2.Client(base_url=server.base_url, timeout=20, trust_env=False, **named)


class Person:
    """Somebody with an account at a server, and what they do."""

    def __init__(self, client: httpx2.Client, email: str = "") -> None:
        self.client = client
        self.email = email or an_address()
        self.tokens: dict[str, Any] = {}

    def signs_up(self) -> "Person":
        response = self.client.post("/signup", json={"email": self.email, "password": PASSWORD})
        assert response.status_code == 201, response.text
        return self

    def logs_in(self) -> "Person":
        response = self.client.post("/login", json={"email": self.email, "password": PASSWORD})
        assert response.status_code == 200, response.text
        self.tokens = response.json()
        return self

    @property
    def access_token(self) -> str:
        return self.tokens["access_token"]

    @property
    def refresh_token(self) -> str:
        return self.tokens["refresh_token"]

    @property
    def session_id(self) -> str:
        return claims_of(self.access_token)["sid"]

    def me(self, client: httpx2.Client | None = None) -> httpx2.Response:
        return (client or self.client).get("/me", headers={"Authorization": f"Bearer {self.access_token}"})

    def refresh(self, client: httpx2.Client | None = None) -> httpx2.Response:
        return (client or self.client).post("/refresh", json={"refresh_token": self.refresh_token})

    def log_out(self, client: httpx2.Client | None = None) -> httpx2.Response:
        return (client or self.client).post("/logout", headers={"Authorization": f"Bearer {self.access_token}"})


def claims_of(token: str) -> dict[str, Any]:
    return json.loads(b64url_decode(token.split(".")[1]))


def header_of(token: str) -> dict[str, Any]:
    return json.loads(b64url_decode(token.partition(".")[0]))


def secrets_in(key_file: Path) -> list[str]:
    """Every private part in a key file, as it is written there."""
    private = {"k", "d", "p", "q", "dp", "dq", "qi"}
    return [jwk[name] for jwk in json.loads(key_file.read_text())["keys"] for name in private & jwk.keys()]


def events(server: RunningServer, *names: str) -> list[dict[str, Any]]:
    """What the server has logged so far, of these kinds."""
    lines = [json.loads(line) for line in server.log_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] in names]


def is_problem(response: httpx2.Response, status: int, code: str) -> None:
    """An error in the one form that errors have."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.json()["code"], response.json()["status"]) == (code, status)


# --- the first five minutes ----------------------------------------------------------------------------------------


@pytest.fixture
def bare(serve) -> RunningServer:
    """A node that was started in an empty folder with nothing configured."""
    return serve()


def test_in_an_empty_folder_it_makes_keys_and_database_for_its_owner_alone(bare):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in bare.folder.iterdir() if path.is_file()}
    modes.pop("server.log")
    assert {"sekisho-keys.json", "sekisho.db"} <= modes.keys()
    assert set(modes.values()) == {0o600}, modes


def test_the_curl_lines_it_prints_work_as_printed(bare):
    bash, curl = shutil.which("bash"), shutil.which("curl")
    assert None not in (bash, curl), "this test needs bash and curl; on Debian: apt install bash curl"
    text = bare.log_text()
    assert f"{bare.base_url}/docs" in text
    lines = [line.strip() for line in text.splitlines() if "curl" in line]
    assert len(lines) == 5
    assert all(" -s" in line for line in lines)  # no progress bar into a pipe
    done = subprocess.run(
        [bash, "-euo", "pipefail", "-c", "\n".join(lines)],
        env={"PATH": os.defpath + os.pathsep + str(Path(curl).parent), "HOME": str(bare.folder), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    signed_up, logged_in, me, refreshed, *logged_out = done.stdout.splitlines()
    assert json.loads(signed_up)["email"] == json.loads(me)["email"] == "alice@example.com"
    assert json.loads(me)["session_id"] == claims_of(json.loads(logged_in)["access_token"])["sid"]
    assert json.loads(refreshed).keys() == json.loads(logged_in).keys()
    assert logged_out[0] == "HTTP/1.1 204 No Content"
    with a_client(bare) as client:
        is_problem(
            client.get("/me", headers={"Authorization": f"Bearer {json.loads(logged_in)['access_token']}"}),
            401,
            "invalid_token",
        )
        docs = client.get("/docs")
        assert docs.status_code == 200
        assert "swagger" in docs.text.lower()


def test_a_second_start_finds_everything_as_it_was(bare):
    keys = (bare.folder / "sekisho-keys.json").read_bytes()
    with a_client(bare) as client:
        person = Person(client).signs_up().logs_in()
        gone = Person(client, person.email).logs_in()
        assert gone.log_out().status_code == 204
    assert bare.stop() == 0
    bare.start()
    assert (bare.folder / "sekisho-keys.json").read_bytes() == keys
    with a_client(bare) as client:
        assert person.me(client).json()["email"] == person.email
        assert person.refresh(client).status_code == 200
        Person(client, person.email).logs_in()
        # The end of a session is as lasting as the session.
        is_problem(gone.me(client), 401, "invalid_token")
        is_problem(gone.refresh(client), 401, "refresh_refused")


# --- the end -------------------------------------------------------------------------------------------------------


@contextmanager
def unfinished_business(port: int) -> Iterator[None]:
    """A request whose body does not come, one whose headers do not come, and a connection kept alive for later."""
    head = b"HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as half_body,
        socket.create_connection(("127.0.0.1", port), timeout=10) as half_head,
        socket.create_connection(("127.0.0.1", port), timeout=10) as idle,
    ):
        half_body.sendall(b"POST /login " + head + b'Content-Length: 100\r\n\r\n{"email":')
        half_head.sendall(b"GET /me " + head)
        idle.sendall(b"GET /healthz " + head + b"\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += idle.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" not in answer.lower()
        yield


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_five_seconds_whatever_clients_do(bare, signum):
    with unfinished_business(bare.port):
        began = time.monotonic()
        status = bare.stop(signum)
        assert time.monotonic() - began < 5
    assert status == 0
    assert events(bare, "stopped")


def test_ctrl_c_ends_several_workers_too(serve, postgres_url):
    server = serve(database_url=postgres_url, args=["--workers", "2"])
    wait_until(lambda: len(events(server, "started")) == 2, within_s=30, what="every worker runs")
    with unfinished_business(server.port):
        began = time.monotonic()
        os.killpg(server.process.pid, signal.SIGINT)  # a terminal tells all of them
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 5
    assert len(events(server, "stopped")) == 2
    assert f"Sekisho is starting on {server.base_url} " in server.log_text()


def test_it_says_that_it_listens_when_it_does(tmp_path, free_port):
    command = [PROGRAM, "serve", "--port", str(free_port)]
    with subprocess.Popen(command, env=_clean(tmp_path, None), cwd=tmp_path, stdout=-1, stderr=-3) as process:
        try:
            first = process.stdout.readline().decode()  # what a script waits for
            socket.create_connection(("127.0.0.1", free_port), timeout=10).close()
        finally:
            process.terminate()
            process.communicate(timeout=20)
    assert first.startswith(f"Sekisho is listening on http://127.0.0.1:{free_port} ")
    assert process.returncode == 0


# --- clients that do not go on -------------------------------------------------------------------------------------


class Impatient(server_module.BoundedHttpProtocol):
    headers_s = 0.4
    body_s = 0.4


@pytest.fixture
def impatient() -> Iterator[int]:
    """The port of a server with short limits, whose application reads the body, then takes longer than they are."""

    async def app(scope, receive, send) -> None:
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(0.8 if scope["path"] == "/slow" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"OK"})

    ready = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=Impatient, ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [ready]})
    thread.start()
    yield ready.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    ready.close()


def dripping(port: int, first: bytes, drip: bytes) -> float:
    """Seconds until the server closes a connection that sends this, and then that again and again."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=0.05) as connection:
        while time.monotonic() < began + 5:
            try:
                connection.sendall(first)
                if not connection.recv(4096):
                    break
                first = b""  # an answer
            except TimeoutError:
                first = drip
            except OSError:
                break
    return time.monotonic() - began


_HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"\r\n", b"\r\n", id="empty lines"),
        pytest.param(_HEAD, b"X: y\r\n", id="headers"),
        pytest.param(_HEAD + b"Content-Length: 1000\r\n\r\n", b"", id="no body"),
        pytest.param(_HEAD + b"Content-Length: 1000\r\n\r\n", b"a", id="body"),
        pytest.param(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", id="chunks"),
        pytest.param(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n", id="trailers"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n", id="after a request"),
    ],
)
def test_whoever_does_not_go_on_is_cut_off(impatient, first, drip):
    assert 0.3 < dripping(impatient, first, drip) < 3  # uvicorn's own limit is 5 s, and each byte starts it anew


def test_a_slow_answer_and_a_pause_between_requests_are_none_of_that(impatient):
    with socket.create_connection(("127.0.0.1", impatient), timeout=10) as connection:
        for path in (b"/slow", b"/", b"/slow"):
            connection.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na")
            answer = b""
            while not answer.endswith(b"OK"):
                piece = connection.recv(4096)
                assert piece, answer
                answer += piece
            time.sleep(0.6)


def test_the_limits_leave_time_for_a_bad_line():
    assert (server_module.BoundedHttpProtocol.headers_s, server_module.BoundedHttpProtocol.body_s) == (10, 30)


# --- refusals to start ---------------------------------------------------------------------------------------------


def a_key_set(alg: str = "HS256") -> dict[str, Any]:
    return json.loads(KeySet.generate(alg, now=now_s()).to_json())


def key_file(folder: Path, document: dict[str, Any] | str, mode: int = 0o600) -> Path:
    path = folder / "sekisho-keys.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(mode)
    return path


def refused(folder: Path, port: int, *args: str, **env: str) -> str:
    """The one line with which a start is refused."""
    answer = sekisho_here("serve", "--port", str(port), *args, folder=folder, env=env)
    assert (answer.status, answer.out) == (2, ""), answer
    assert answer.err.startswith("sekisho: ")
    assert answer.err.count("\n") == 1, answer.err
    return answer.err


def test_the_program_itself_refuses_a_start_in_one_line_with_2(tmp_path):
    answer = sekisho("serve", folder=tmp_path, env={"SEKISHO_KEYZ": "file:x"})
    assert (answer.status, answer.out) == (2, "")
    assert answer.err == "sekisho: 'SEKISHO_KEYZ' is no setting, did you mean SEKISHO_KEYS?\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SEKISHO_DATABASE_URL", "postgresql://h/db?channel_binding=require"),
        ("SEKISHO_REDIS_URL", "redis://127.0.0.1:1/0?foo=bar"),
        ("SEKISHO_ACCES_TOKEN_TTL_S", "900"),
        ("SEKISHO_ACCESS_TOKEN_TTL_S", "15m"),
        ("SEKISHO_PASSWORD_HASH", "md5"),
        ("SEKISHO_ISSUER", "http://auth.example.com"),
    ],
)
def test_a_wrong_setting_stops_the_start(tmp_path, free_port, name, value):
    assert name in refused(tmp_path, free_port, **{name: value})
    assert list(tmp_path.iterdir()) == []


def test_several_workers_need_another_database(tmp_path, free_port):
    line = refused(tmp_path, free_port, "--workers", "2")
    assert "--workers" in line
    assert "SEKISHO_DATABASE_URL" in line


def test_a_port_in_use_stops_the_start(tmp_path, free_port):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", free_port))
        other.listen()
        line = refused(tmp_path, free_port)
    assert f"127.0.0.1:{free_port}" in line
    assert "--port" in line
    assert list(tmp_path.iterdir()) == []


def test_a_key_file_that_others_can_read_stops_the_start(tmp_path, free_port):
    path = key_file(tmp_path, a_key_set(), mode=0o644)
    line = refused(tmp_path, free_port)
    assert "SEKISHO_KEYS" in line
    assert "0644" in line
    assert "chmod 600 sekisho-keys.json" in line
    assert stat.S_IMODE(path.stat().st_mode) == 0o644  # mending it is the owner's decision


def _short(document: dict[str, Any]) -> None:
    document["keys"][0]["k"] = "c2hvcnQ"


def _none_active(document: dict[str, Any]) -> None:
    document["keys"][0]["state"] = "verify_only"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(None, "JSON", id="bad JSON"),
        pytest.param(_short, "32 bytes", id="short secret"),
        pytest.param(_none_active, "active", id="no active key"),
    ],
)
def test_a_bad_key_file_stops_the_start_and_stays(tmp_path, free_port, spoil, reason):
    document = a_key_set()
    if spoil is not None:
        spoil(document)
    path = key_file(tmp_path, json.dumps(document) if spoil else json.dumps(document)[:-9])
    before = path.read_bytes()
    line = refused(tmp_path, free_port)
    assert "SEKISHO_KEYS" in line
    assert "sekisho-keys.json" in line
    assert reason in line
    assert not [jwk["k"] for jwk in document["keys"] if jwk["k"] in line]
    assert path.read_bytes() == before


def test_a_key_of_another_algorithm_stops_the_start(tmp_path, free_port):
    key_file(tmp_path, a_key_set("EdDSA"))
    line = refused(tmp_path, free_port, SEKISHO_SIGNING_ALGORITHM="ES256")
    assert "SEKISHO_SIGNING_ALGORITHM" in line
    assert "EdDSA" in line
    assert "sekisho keys rotate --now" in line


def test_the_command_for_another_algorithm_works(tmp_path, serve):
    server = serve()
    with a_client(server) as client:
        person = Person(client).signs_up().logs_in()
    assert server.stop() == 0
    server.env["SEKISHO_SIGNING_ALGORITHM"] = "ES256"
    server.run("keys", "rotate", "--now")
    server.start()
    with a_client(server) as client:
        assert person.me(client).status_code == 200  # signed with HS256, before
        person = Person(client, person.email).logs_in()
        assert header_of(person.access_token)["alg"] == "ES256"


def test_a_path_that_someone_typed_is_not_made_up(tmp_path, free_port):
    line = refused(tmp_path, free_port, SEKISHO_KEYS="file:missing.json")
    assert "SEKISHO_KEYS" in line
    assert "missing.json" in line
    assert "sekisho keys new" in line
    assert not list(tmp_path.glob("*.json"))


def test_keys_in_a_variable_that_is_not_set_stop_the_start(tmp_path, free_port):
    line = refused(tmp_path, free_port, SEKISHO_KEYS="env:THE_KEYS")
    assert "SEKISHO_KEYS" in line
    assert "env:THE_KEYS" in line
    assert "keys new" not in line  # which cannot write there
    assert not list(tmp_path.glob("*.json"))


def test_an_old_schema_on_postgresql_stops_the_start_and_the_command_it_names_mends_it(
    tmp_path, free_port, postgres_url, serve
):
    line = refused(tmp_path, free_port, SEKISHO_DATABASE_URL=postgres_url)
    assert "sekisho db upgrade" in line
    server = serve(database_url=postgres_url)  # which types it
    with a_client(server) as client:
        assert client.get("/readyz").status_code == 200


def test_a_database_that_cannot_be_reached_stops_the_start(tmp_path, free_port, postgres):
    password = "pa55-never-shown"
    url = f"postgresql://someone:{password}@127.0.0.1:{free_port}/app"
    line = refused(tmp_path, free_port, SEKISHO_DATABASE_URL=url)
    assert "SEKISHO_DATABASE_URL" in line
    assert password not in line
    line = refused(tmp_path, free_port, SEKISHO_DATABASE_URL=f"sqlite:///{tmp_path}/nowhere/sekisho.db")
    assert "SEKISHO_DATABASE_URL" in line
    line = refused(tmp_path, free_port, SEKISHO_DATABASE_URL=Postgres(postgres.programs, postgres.port).url("nowhere"))
    assert "SEKISHO_DATABASE_URL" in line
    assert '"nowhere" does not exist' in line


# --- keys ----------------------------------------------------------------------------------------------------------


def test_keys_come_from_a_variable(serve, tmp_path):
    document = a_key_set("EdDSA")
    env = {"SEKISHO_KEYS": "env:THE_KEYS", "THE_KEYS": json.dumps(document), "SEKISHO_SIGNING_ALGORITHM": "EdDSA"}
    server = serve(env=env)
    assert not list(server.folder.glob("*.json*"))
    with a_client(server) as client:
        person = Person(client).signs_up().logs_in()
        assert header_of(person.access_token)["kid"] == document["keys"][0]["kid"]
        assert person.me().status_code == 200
    assert document["keys"][0]["d"] not in server.log_text()


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated:joserfc.errors.SecurityWarning")
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_each_algorithm_serves_tokens_that_other_libraries_verify(serve, alg):
    server = serve(env={"SEKISHO_SIGNING_ALGORITHM": alg, "SEKISHO_AUDIENCE": "shop"})
    stored = json.loads((server.folder / "sekisho-keys.json").read_text())["keys"]
    signing = next(jwk for jwk in stored if jwk["purpose"] == "sign")
    with a_client(server) as client:
        person = Person(client).signs_up().logs_in()
        assert person.me().status_code == 200
        jwks = client.get("/.well-known/jwks.json").json()
    token = person.access_token
    if alg == "HS256":
        assert jwks == {"keys": []}  # a shared secret is published to nobody
        known = signing
        message, _, signature = token.rpartition(".")
        by_hand = hmac.new(b64url_decode(signing["k"]), message.encode(), hashlib.sha256).digest()
        assert b64url_decode(signature) == by_hand
    else:
        [known] = jwks["keys"]
        assert (known["kid"], known["alg"], known["use"]) == (signing["kid"], alg, "sig")
        assert not known.keys() & {"d", "p", "q", "dp", "dq", "qi", "k", "state", "purpose"}
    assert header_of(token) == {"alg": alg, "kid": known["kid"], "typ": "at+jwt"}

    by_pyjwt = jwt.decode(
        token,
        jwt.PyJWK(known, algorithm=alg),
        algorithms=[alg],
        audience="shop",
        issuer=server.base_url,
        options={"require": ["exp", "iat", "sub", "jti", "sid"]},
    )
    public = {name: value for name, value in known.items() if name in {"kty", "crv", "x", "y", "n", "e", "k", "kid"}}
    by_joserfc = joserfc.jwt.decode(token, joserfc.jwk.import_key(public), algorithms=[alg])
    assert by_pyjwt == by_joserfc.claims == claims_of(token)
    altered = token[:-9] + ("A" if token[-9] != "A" else "B") + token[-8:]
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(altered, jwt.PyJWK(known, algorithm=alg), algorithms=[alg], audience="shop")


_JOSE = """
import { createRemoteJWKSet, jwtVerify } from "jose";
const [, , base, token] = process.argv;
const keys = createRemoteJWKSet(new URL(base + "/.well-known/jwks.json"));
const { payload, protectedHeader } = await jwtVerify(token, keys, { issuer: base, audience: base, typ: "at+jwt" });
console.log(JSON.stringify({ payload, protectedHeader }));
"""


@pytest.mark.long  # npm fetches a package; the ordinary run needs no network and no Node.js
@pytest.mark.parametrize("alg", PUBLIC_ALGORITHMS)
def test_jose_for_javascript_verifies_against_the_running_server(serve, tmp_path, alg):
    node, npm = shutil.which("node"), shutil.which("npm")
    assert None not in (node, npm), "this test needs Node.js 20 or newer and npm; on Debian: apt install nodejs npm"
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}')
    (tmp_path / "verify.js").write_text(_JOSE)
    env = {**os.environ, "npm_config_cache": str(tmp_path / "cache"), "npm_config_update_notifier": "false"}
    install = [npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "jose@6"]
    subprocess.run(install, cwd=tmp_path, env=env, check=True, timeout=300)
    server = serve(env={"SEKISHO_SIGNING_ALGORITHM": alg})
    with a_client(server) as client:
        token = Person(client).signs_up().logs_in().access_token
    run = [node, "verify.js", server.base_url]
    done = subprocess.run([*run, token], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"payload": claims_of(token), "protectedHeader": header_of(token)}
    forged = token[:-9] + ("A" if token[-9] != "A" else "B") + token[-8:]
    done = subprocess.run([*run, forged], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "ERR_JWS_SIGNATURE_VERIFICATION_FAILED" in done.stderr
