"""Nothing secret leaves the process by the way: texts of objects, pickles, tracebacks with local variables, packages.

What is kept and what is answered over HTTP is in http/test_http_secrets.py; objects of tokens and keys in test_keys.py.
"""

import base64
import copy
import io
import json
import logging
import pickle
import re
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import traceback
import zipfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from rich.console import Console
from rich.traceback import Traceback

from sekisho import Verifier
from sekisho.errors import SekishoError, StartRefused, told_alone
from sekisho.services.caller import Caller
from sekisho.services.cookie_sessions import CookieGrant
from sekisho.services.mint import Grant
from sekisho.services.throttle import Throttle
from sekisho.sources import EnvSource, FileSource
from sekisho.storage.engine import Database
from sekisho.storage.redis import RedisGrapevine
from sekisho.storage.rows import User
from sekisho.tokens import KeySet
from sekisho.verify.renewal import Bearer, Renewed
from sekisho.web import Sekisho, Settings, shapes
from sekisho.wire import now_s

ROOT = Path(__file__).parent.parent
PASSWORD = "canary on the old road"
CANARY = "canary-never-shown"
DATABASE_URL = f"postgresql://someone:{CANARY}@127.0.0.1:1/app"
REDIS_URL = f"redis://:{CANARY}@127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which defaults point to nothing."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spellings(secret: str) -> set[str]:
    """A stored key member, as it is and as bytes would be written."""
    raw = base64.urlsafe_b64decode(secret + "=" * (-len(secret) % 4))
    return {secret, base64.b64encode(raw).decode().rstrip("="), raw.hex(), repr(raw)[2:-1], str(list(raw))[1:-1]}


def with_locals(error: BaseException) -> str:
    """As crash reporters print it: the standard library's way and rich's; the frames of this file are left out."""
    ours = error.__traceback__
    while ours is not None and ours.tb_frame.f_code.co_filename == __file__:
        ours = ours.tb_next
    plain = traceback.TracebackException(type(error), error, ours, capture_locals=True)
    text = "".join(plain.format())
    if ours is not None:
        out = io.StringIO()
        shown = Traceback.from_exception(
            type(error), error, ours, show_locals=True, locals_max_length=None, locals_max_string=None
        )
        Console(file=out, width=10_000).print(shown)
        text += out.getvalue()
    return text


def test_the_tests_own_eye_sees_local_variables(here, monkeypatch):
    """Otherwise the next ones prove nothing."""
    (here / "elsewhere.py").write_text("def deep(secret):\n    raise ValueError\n")
    monkeypatch.syspath_prepend(here)
    import elsewhere

    with pytest.raises(ValueError) as caught:
        elsewhere.deep(CANARY)
    assert with_locals(caught.value).count(CANARY) == 2


# --- objects -------------------------------------------------------------------------------------------------------


def objects() -> dict[str, Any]:
    """Everything outside of tokens that holds something secret."""
    settings = Settings(database_url=DATABASE_URL, redis_url=REDIS_URL)
    return {
        "Settings": settings,
        "Sekisho": Sekisho(settings),
        "Database": Database(DATABASE_URL),
        "RedisGrapevine": RedisGrapevine(REDIS_URL, "channel", on_lost=print, on_back=print),
        "Throttle": Throttle(redis_url=REDIS_URL),
        "Verifier": Verifier(
            issuer="https://a.example",
            audience="a",
            jwks_url="https://a.example/jwks",
            revocations_url="https://a.example/revocations",
            credential=f"sekisho_vc_{CANARY}",
        ),
        "FileSource": FileSource("sekisho-keys.json"),
        "EnvSource": EnvSource("KEY_SET"),
        "Grant": Grant(access_token=CANARY, expires_in_s=1, refresh_token=CANARY, refresh_expires_in_s=1),
        "Caller": Caller(address="192.0.2.1", user_agent="x", device_token=CANARY),
        "User": User(
            id=uuid4(),
            email="a@example.com",
            email_canonical="a@example.com",
            password_hash=CANARY,
            roles=(),
            created_at_us=1,
            disabled_at_us=None,
        ),
    }


def test_no_text_of_an_object_shows_what_it_holds(monkeypatch):
    monkeypatch.setenv("KEY_SET", CANARY)
    for name, thing in objects().items():
        for text in (repr(thing), str(thing), f"{thing}", repr([thing]), repr({"a": (thing,)})):
            assert CANARY not in text, name


def test_what_lives_as_long_as_the_process_is_not_pickled():
    """(A row or a grant is a plain value, and whoever pickles one means to.)"""
    for name, thing in objects().items():
        if name in {"Grant", "Caller", "User"}:
            continue
        try:
            pickled = pickle.dumps(thing)
        except (TypeError, AttributeError, pickle.PicklingError):
            continue
        assert CANARY.encode() not in pickled, name


def test_settings_are_copied_and_dumped_masked_and_never_pickled():
    settings = objects()["Settings"]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(settings, protocol)
    for one in (settings, copy.copy(settings), copy.deepcopy(settings), settings.model_copy()):
        assert one.database_url.get_secret_value() == DATABASE_URL
        for text in (repr(one), str(one), str(one.model_dump()), one.model_dump_json(), str(vars(one)), str(list(one))):
            assert CANARY not in text


# --- refused starts, as a crash reporter sees them -----------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"database_url": f"mysql://u:{CANARY}@h/n"},
        {"database_url": DATABASE_URL, "redis_url": f"redis://:{CANARY}@h:x"},
        {"keys": CANARY},
        {"database_url": DATABASE_URL, "redis_url": REDIS_URL, "max_sessions": "many"},
        {"database_url": DATABASE_URL, "unknown": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("by_environment", [True, False])
def test_wrong_settings_show_no_values(monkeypatch, values, by_environment):
    if by_environment:
        for name, value in values.items():
            monkeypatch.setenv(f"SEKISHO_{name.upper()}", str(value))
        values = {}
    with pytest.raises(StartRefused) as caught:
        Settings(**values)
    assert CANARY not in with_locals(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "values",
    [
        {"database_url": f"postgresql://u:{CANARY}@h/n?nonsense=1"},
        {"database_url": f"postgresql://u:{CANARY}@h/n?sslmode=nonsense"},
        {"redis_url": f"redis://:{CANARY}@h/0?nonsense=1"},
        {"redis_url": f"redis://:{CANARY}@h/0?socket_timeout=x"},
    ],
    ids=str,
)
def test_urls_that_their_drivers_refuse_are_not_shown(values):
    settings = Settings(**values)
    with pytest.raises(StartRefused) as caught:
        Sekisho(settings)
    assert CANARY not in with_locals(caught.value)
    assert caught.value.__context__ is None


def broken_sets(keys: list[dict[str, Any]]) -> dict[str, bytes]:
    first = keys[0]
    changed = {
        "two active": [*keys, {**first, "kid": "k2", "k": base64.urlsafe_b64encode(bytes(range(32))).decode()[:-1]}],
        "none active": [{**first, "state": "verify_only"}, *keys[1:]],
        "no purpose": [{**first, "purpose": "none"}, *keys[1:]],
        "no state": [{**first, "state": "none"}, *keys[1:]],
        "short": [{**first, "k": first["k"][:20]}, *keys[1:]],
        "padded": [{**first, "k": first["k"] + "="}, *keys[1:]],
        "one secret twice": [first, {**keys[1], "k": first["k"]}, keys[2]],
        "one kid twice": [first, {**keys[1], "kid": first["kid"]}, keys[2]],
    }
    sets = {name: json.dumps({"keys": entries}).encode() for name, entries in changed.items()}
    whole = json.dumps({"keys": keys}).encode()
    return {**sets, "cut off": whole[:-10], "a list": json.dumps(keys).encode(), "another algorithm": whole}


@pytest.mark.parametrize("kind", broken_sets(json.loads(KeySet.generate("HS256", now=0).to_json())["keys"]))
@pytest.mark.parametrize("by_environment", [True, False])
@pytest.mark.anyio
async def test_a_key_set_that_stops_the_start_is_not_shown(here, monkeypatch, kind, by_environment):
    keys = json.loads(KeySet.generate("HS256", now=now_s()).to_json())["keys"]
    document = broken_sets(keys)[kind]
    settings: dict[str, Any] = {"signing_algorithm": "EdDSA"} if kind == "another algorithm" else {}
    if by_environment:
        monkeypatch.setenv("KEY_SET", document.decode())
        settings["keys"] = "env:KEY_SET"
    else:
        (here / "sekisho-keys.json").write_bytes(document)
        (here / "sekisho-keys.json").chmod(0o600)
    with pytest.raises(StartRefused) as caught:
        async with Sekisho(Settings(**settings)).running():
            pytest.fail("it starts")
    text = with_locals(caught.value)
    assert "running" in text, "it is the right traceback"
    for key in keys:
        assert not any(spelling in text for spelling in spellings(key["k"])), kind
        assert key["k"][:20] not in text


@pytest.mark.anyio
async def test_a_database_that_is_down_shows_no_password():
    with pytest.raises(SekishoError) as caught:
        async with Sekisho(Settings(database_url=DATABASE_URL, redis_url=REDIS_URL)).running():
            pytest.fail("it starts")
    text = with_locals(caught.value)
    assert "running" in text
    assert CANARY not in text


def test_only_what_sekisho_says_itself_is_told_alone():
    """A crash keeps its frames: without them nobody would find it."""

    def deep(error: Exception) -> None:
        raise error

    for error, frames in ((StartRefused("no"), False), (ZeroDivisionError(), True)):
        with pytest.raises(type(error)) as caught, told_alone():
            deep(error)
        assert ("deep" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]) is frames
    with told_alone():
        pass


# --- in the middle of a request ------------------------------------------------------------------------------------


class Reporter(logging.Handler):
    """What a crash reporter inside the application gets to see: what reaches its middleware, and logged errors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = ""
        self.crashes = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.seen += f"{record.getMessage()} {record.__dict__}\n"
        if record.exc_info and record.exc_info[1] is not None:
            self.take(record.exc_info[1])

    def take(self, error: BaseException) -> None:
        self.crashes += 1
        self.seen += with_locals(error)

    def around(self, app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except Exception as error:
                self.take(error)
                raise

        return middleware


@pytest.fixture
def reporter(monkeypatch: pytest.MonkeyPatch) -> Any:
    reporter = Reporter()
    root = logging.getLogger()
    root.addHandler(reporter)
    monkeypatch.setattr(root, "level", logging.DEBUG)
    yield reporter
    root.removeHandler(reporter)


BREAKS = {
    "the database loses a table": lambda sekisho, patch: None,
    "hashing crashes": lambda sekisho, patch: patch.setattr(
        type(sekisho._passwords), "verify", lambda self, password, stored: crash(password)
    ),
    "reading a token crashes": lambda sekisho, patch: patch.setattr(
        type(sekisho._mint), "read_refresh_token", lambda self, token: crash(token)
    ),
    "signing crashes": lambda sekisho, patch: patch.setattr(
        type(sekisho._mint), "grant", lambda self, session, now_us: crash(self._signing_key.material.secret)
    ),
}


def crash(secret: object) -> None:
    raise RuntimeError(f"with {secret!r} in its text")


@pytest.mark.parametrize("broken", BREAKS)
def test_a_crash_in_the_middle_of_login_or_refresh_reaches_nobody_with_what_it_held(
    here, monkeypatch, reporter, broken
):
    sekisho = Sekisho(Settings(database_url=f"sqlite:///{here / 'host.db'}"))
    host = FastAPI()
    host.include_router(sekisho.router, prefix="/auth")
    credentials = {"email": "host@example.com", "password": PASSWORD}
    with TestClient(reporter.around(host), base_url="http://127.0.0.1") as client:
        assert client.post("/auth/signup", json=credentials).status_code == 201
        tokens = client.post("/auth/login", json=credentials).json()
        BREAKS[broken](sekisho, monkeypatch)
        if broken == "the database loses a table":
            with sqlite3.connect(here / "host.db") as database:
                database.execute("ALTER TABLE sessions RENAME TO gone")
            database.close()
        new = {"current_password": PASSWORD, "new_password": f"another {PASSWORD}"}
        bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
        answers = [
            client.post("/auth/login", json=credentials),
            client.post("/auth/login", json={**credentials, "password": f"wrong {PASSWORD}"}),
            client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}),
            client.post("/auth/password", json=new, headers=bearer),
            client.post("/auth/logout", json={"refresh_token": tokens["refresh_token"]}),
        ]
    assert any(answer.status_code >= 500 for answer in answers)
    assert reporter.crashes == 0, "nothing comes out of the router"
    keys = [key["k"] for key in json.loads((here / "sekisho-keys.json").read_text())["keys"]]
    secrets = {PASSWORD, tokens["access_token"].rpartition(".")[2], tokens["refresh_token"][-43:], *keys}
    secrets |= {spelling for key in keys for spelling in spellings(key)}
    shown = reporter.seen + "".join(answer.text for answer in answers if answer.status_code != 200)
    assert reporter.seen
    assert not [secret for secret in secrets if secret in shown]


# --- packages ------------------------------------------------------------------------------------------------------

# What someone who tries it out in the working folder, or in a folder below, leaves lying there.
LEFT_OVERS = [
    "sekisho-keys.json",
    "sekisho-keys.json.lock",
    "keys.json",
    "sekisho.db",
    "sekisho.db-wal",
    "sekisho.db-shm",
    ".env",
    "keys.pem",
    "auth.db",
    "server.log",
    "notes.txt",
]
FOLDERS = ["", "src", "src/sekisho", "src/sekisho/data", "tests", "tests/servers", "docs", "tools"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The wheel and the source distribution of the working folder, with canaries in everything that is left over."""
    copied = tmp_path_factory.mktemp("working") / "folder"
    # Without what is no part of it, and is large; what else lies around in the folder comes along.
    shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", ".run"))
    for folder in FOLDERS:
        for name in LEFT_OVERS:
            path = copied / folder / name
            assert not path.exists()
            path.write_text(f"{CANARY} {path.relative_to(copied)}")
    built = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(built)]
    done = subprocess.run(command, cwd=copied, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive if member.isfile()}
        in_sdist = {name: file.read() for name, file in files.items() if file is not None}
    return {"wheel": in_wheel, "sdist": in_sdist}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_packages_hold_nothing_that_was_left_over(packages, kind):
    files = packages[kind]
    assert len(files) > 80
    assert not [name for name in files if Path(name).name in LEFT_OVERS]
    assert not [name for name, content in files.items() if f"{CANARY} ".encode() in content]


def test_packages_hold_the_whole_program(packages):
    """What is let in is named in pyproject.toml, so that a new kind of file has to be named there, too."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "src", "tests", "tools"], cwd=ROOT, capture_output=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    tracked = {name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).exists()}
    assert tracked <= set(packages["sdist"])
    program = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    assert program == {name for name in packages["wheel"] if not name.startswith("sekisho-")}


def test_the_wheel_holds_no_key_of_anyone(packages):
    """Keys in tests are made, or are those of RFCs; in what is installed there are none."""
    for name, content in packages["wheel"].items():
        assert not re.search(rb'"(?:k|d)"\s*:\s*"[A-Za-z0-9_-]{40,}"|BEGIN [A-Z ]*PRIVATE KEY', content), name
        assert not re.search(rb"sekisho_(?:rt|vc)_[A-Za-z0-9_-]{20,}", content), name


def test_bodies_and_answers_show_no_secret():
    secret = "canary-" + secrets.token_hex(8)
    bodies = [
        shapes.LoginBody(email="a@example.com", password=secret),
        shapes.PasswordBody(current_password=secret, new_password=secret),
        shapes.TokenBody(refresh_token=secret),
        shapes.TokenPair(access_token=secret, expires_in=1, refresh_token=secret, refresh_expires_in=1),
        shapes.PageSession(csrf_token=secret, user=None),
        CookieGrant(cookie=secret, max_age_s=1, session_id=uuid4()),
        Renewed(access_token=secret, expires_in=1, refresh_token=secret, refresh_expires_in=1),
        Bearer(refresh_token=secret, user_agent="", peer="", forwarded_for=[]),
    ]
    for body in bodies:
        assert secret not in repr(body)
        assert secret not in str(body)
