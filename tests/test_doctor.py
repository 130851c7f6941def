"""``sekisho doctor``: each thing that can be wrong with a deployment is found, beside all the others."""

import json
import os
import re
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import pytest

from sekisho.cli.checks.finding import ABOUT, Name, looked
from sekisho.tokens import KeySet
from sekisho.wire import now_s
from servers.sekisho_server import ODD_NODE, RunningServer
from test_serve import Command, sekisho_here

DAY_S = 86_400
HTTPS = {"SEKISHO_ISSUER": "https://auth.example.com"}
Findings = list[dict[str, Any]]


def examine(folder: Path, env: Mapping[str, str] | None = None, *args: str) -> tuple[int, Findings]:
    answer = sekisho_here("doctor", "--json", *args, folder=folder, env=env)
    assert answer.err == ""
    return answer.status, json.loads(answer.out)


def found(findings: Findings, name: str) -> list[tuple[str, str, str]]:
    return [(one["level"], one["seen"], one["do"] or "") for one in findings if one["name"] == name]


def the_one(findings: Findings, name: str) -> tuple[str, str, str]:
    (finding,) = found(findings, name)
    return finding


def levels(findings: Findings) -> dict[str, set[str]]:
    """Without what depends on who runs the tests."""
    by_level: dict[str, set[str]] = {}
    for one in findings:
        if one["name"] != "user":
            by_level.setdefault(one["level"], set()).add(one["name"])
    return by_level


def keys_in(folder: Path, *, algorithm: str = "HS256", change: Any = None) -> Path:
    """A first key set in the folder, changed as JSON before it is written."""
    document = json.loads(KeySet.generate(algorithm, now=now_s()).to_json())
    if change is not None:
        change(document["keys"])
    path = folder / "sekisho-keys.json"
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path


@pytest.fixture
def postgres_deployment(tmp_path, postgres_url, redis_url) -> dict[str, str]:
    """The settings of one with which nothing is wrong."""
    path = keys_in(tmp_path)
    env = {
        **HTTPS,
        "SEKISHO_DATABASE_URL": postgres_url,
        "SEKISHO_REDIS_URL": redis_url,
        "SEKISHO_KEYS": f"file:{path}",
        "SEKISHO_TRUSTED_PROXIES": "10.0.0.0/8,8.8.8.8,fd00::/8",
        "SEKISHO_ALLOWED_ORIGINS": "https://app.example.com",
    }
    assert sekisho_here("db", "upgrade", folder=tmp_path, env=env).status == 0
    return env


def one_more(folder: Path, env: Mapping[str, str], **settings: str) -> tuple[int, Findings]:
    return examine(folder, {**env, **{f"SEKISHO_{name}": value for name, value in settings.items()}})


# --- as it should be -----------------------------------------------------------------------------------------------


def test_of_a_deployment_as_it_should_be_all_is_ok(tmp_path, postgres_deployment):
    status, findings = examine(tmp_path, postgres_deployment, "--strict")
    assert status == 0
    assert levels(findings) == {"ok": set(ABOUT) - {"user", "database_file"}}
    assert all(one["do"] is None for one in findings if one["level"] == "ok")
    assert {one["name"] for one in findings} <= set(get_args(Name))


def test_beside_a_running_server_on_sqlite_and_without_it_nothing_is_changed(serve):
    server = serve()
    for running in (True, False):
        if not running:
            server.stop()  # until then it writes, too
        before = everything_in(server.folder)
        status, findings = examine(server.folder, {"SEKISHO_ISSUER": server.base_url})
        assert status == 0
        quiet = {"database", "database_file", "schema", "shared_secret", "keys", "key_algorithm", "key_age"}
        assert quiet <= levels(findings)["ok"]
        assert levels(findings)["note"] == {"issuer", "nodes"}
    assert everything_in(server.folder) == before


def everything_in(folder: Path) -> dict[str, Any]:
    """Names, modes and contents."""
    return {file.name: (file.stat().st_mode, file.read_bytes()) for file in folder.iterdir()}


def test_in_an_empty_folder_it_says_what_serve_would_do_and_makes_nothing(tmp_path):
    status, findings = examine(tmp_path, None, "--strict")
    assert status == 0
    assert levels(findings)["note"] == {"issuer", "nodes", "keys", "database"}
    for name in ("keys", "database"):
        assert "sekisho serve will make" in the_one(findings, name)[2]
    assert not list(tmp_path.iterdir())


def test_the_lines_for_people_are_one_a_finding_and_end_with_a_count(tmp_path):
    env = {**HTTPS, "SEKISHO_TRUSTED_PROXIES": "8.0.0.0/5", "SEKISHO_KEYS": "env:NOBODY_SET_IT"}
    answer = sekisho_here("doctor", folder=tmp_path, env=env)
    status, findings = examine(tmp_path, env)
    assert (answer.status, status) == (1, 1)
    *lines, last = answer.out.splitlines()
    assert last == "1 error, 1 warning."
    assert len(lines) == len(findings)
    for line, one in zip(lines, findings, strict=True):
        level, name, said = line.split(None, 2)
        assert (level, name) == (one["level"], one["name"])
        assert said == (f"{one['seen']}. {one['do']}" if one["do"] else one["seen"])


def test_strict_counts_warnings_and_never_notes(tmp_path):
    warned = {**HTTPS, "SEKISHO_TRUSTED_PROXIES": "8.0.0.0/5"}
    assert examine(tmp_path, warned)[0] == 0
    assert examine(tmp_path, warned, "--strict")[0] == 1
    assert sekisho_here("doctor", folder=tmp_path).out.endswith("\nNothing worse than a note.\n")


def test_nothing_keeps_the_rest_from_being_looked_at(tmp_path, free_port):
    keys_in(tmp_path).chmod(0o644)
    database = f"postgresql://someone:canary-1@127.0.0.1:{free_port}/app"
    env = {
        "SEKISHO_DATABASE_URL": database,
        "SEKISHO_REDIS_URL": f"redis://:canary-2@127.0.0.1:{free_port}/0",
        "SEKISHO_ALLOWED_ORIGINS": "http://127.0.0.1:3000",
    }
    begun_at = time.monotonic()
    answer = sekisho_here("doctor", "--json", folder=tmp_path, env={**env, **HTTPS})
    assert time.monotonic() - begun_at < 15
    findings = json.loads(answer.out)
    assert answer.status == 1
    assert levels(findings)["error"] == {"keys", "database", "redis"}
    assert levels(findings)["warning"] == {"origins"}
    assert len(found(findings, "database")) == 1
    assert "canary" not in answer.out + answer.err
    assert f"postgresql://***@127.0.0.1:{free_port}/app" in the_one(findings, "database")[1]
    assert f"redis://***@127.0.0.1:{free_port}/0" in the_one(findings, "redis")[1]


def test_a_check_that_crashes_is_a_finding_without_the_errors_text():
    def check():
        yield from ()
        raise ValueError("canary")

    (finding,) = looked("keys", check)
    assert (finding.level.name, finding.name) == ("ERROR", "keys")
    assert "ValueError" in finding.seen
    assert "test_doctor.py" in finding.seen
    assert "canary" not in finding.seen + finding.do


def test_a_crash_on_the_way_to_the_database_or_redis_is_one_too(tmp_path, monkeypatch):
    from sekisho.cli import doctor

    def crash(*args, **named):
        raise ValueError("canary")

    monkeypatch.setattr(doctor, "database_checks", crash)
    monkeypatch.setattr(doctor, "redis_check", crash)
    status, findings = examine(tmp_path)
    assert status == 1
    assert levels(findings)["error"] == {"database", "redis"}
    assert "canary" not in str(findings)


# --- settings ------------------------------------------------------------------------------------------------------


def test_settings_that_cannot_be_read_are_one_finding_each(tmp_path):
    env = {"SEKISHO_ISUER": "https://a.example.com", "SEKISHO_MAX_SESSIONS": "many", "SEKISHO_DATABASE_URL": "canary"}
    status, findings = examine(tmp_path, env)
    assert status == 1
    assert [(one["level"], one["name"]) for one in findings] == [("error", "settings")] * 3
    for variable in env:
        assert any(variable in one["seen"] for one in findings)
    assert "canary" not in str(findings)
    assert not list(tmp_path.iterdir())


def test_a_url_that_only_its_driver_refuses_is_a_finding(tmp_path):
    status, findings = examine(
        tmp_path,
        {
            "SEKISHO_DATABASE_URL": "postgresql://u:canary@h/n?canary=1&password=canary",
            "SEKISHO_REDIS_URL": "redis://:canary@h/0?nonsense=canary",
        },
    )
    assert status == 1
    assert levels(findings)["error"] == {"database", "redis"}
    assert the_one(findings, "database")[2] == "Correct SEKISHO_DATABASE_URL."
    assert the_one(findings, "redis")[2] == "Correct SEKISHO_REDIS_URL."
    assert str(findings).replace("'canary' after its ?", "").count("canary") == 0


@pytest.mark.parametrize(
    ("settings", "name", "level", "seen", "do"),
    [
        ({"ISSUER": "http://localhost:8400"}, "issuer", "note", "cookies are plain", "SEKISHO_ISSUER"),
        ({"AUDIENCE": "http://127.0.0.1:8400"}, "audience", "warning", "the issuer is https", "Unset"),
        ({"AUDIENCE": "http://localhost"}, "audience", "warning", "the issuer is https", "Unset"),
        ({"AUDIENCE": "http://shop.internal"}, "audience", "ok", "http://shop.internal", ""),
        ({"AUDIENCE": "shop"}, "audience", "ok", "shop", ""),
        ({"TRUSTED_PROXIES": ""}, "proxies", "note", "throttled together", "SEKISHO_TRUSTED_PROXIES"),
        ({"TRUSTED_PROXIES": "10.0.0.0/7"}, "proxies", "warning", "wider than a /8", "your own proxies"),
        ({"TRUSTED_PROXIES": "fc00::/7"}, "proxies", "warning", "wider than a /8", "your own proxies"),
        ({"TRUSTED_PROXIES": "8.8.8.0/24"}, "proxies", "warning", "public range", "your own proxies"),
        ({"TRUSTED_PROXIES": "2600::/32"}, "proxies", "warning", "public range", "your own proxies"),
        ({"TRUSTED_PROXIES": "10.1.2.3,8.8.8.8,2600::1"}, "proxies", "ok", "8.8.8.8", ""),
        ({"ALLOWED_ORIGINS": "https://auth.example.com"}, "origins", "note", "the issuer's own", "Take it out"),
        ({"ALLOWED_ORIGINS": "http://localhost:3000"}, "origins", "warning", "user's machine", "Take it out"),
        ({"ALLOWED_ORIGINS": "https://a.example.com"}, "origins", "ok", "https://a.example.com", ""),
        ({"ALLOWED_ORIGINS": ""}, "origins", "ok", "none but the issuer's own", ""),
        ({"REFRESH_TOKEN_TTL_S": "3000000"}, "lifetimes", "note", "SEKISHO_SESSION_MAX_AGE_S", "shorter"),
        ({"REFRESH_TOKEN_TTL_S": "900"}, "lifetimes", "note", "SEKISHO_ACCESS_TOKEN_TTL_S", "minutes"),
        ({"REFRESH_TOKEN_TTL_S": "300", "REPLAY_WINDOW_S": "300", "ACCESS_TOKEN_TTL_S": "60"}, "lifetimes", "note",
         "SEKISHO_REPLAY_WINDOW_S", "30"),
        ({"DATABASE_URL": "postgresql://h/n"}, "nodes", "note", "SEKISHO_KEYS is not set", "one key set for all"),
        ({"DATABASE_URL": "postgresql://h/n", "KEYS": "env:X"}, "nodes", "note", "alone", "SEKISHO_REDIS_URL"),
    ],
)  # fmt: skip
def test_what_the_settings_say(settings, name, level, seen, do, monkeypatch):
    from sekisho.cli.checks import configuration
    from sekisho.settings import Settings

    for variable, value in {**HTTPS, **{f"SEKISHO_{key}": value for key, value in settings.items()}}.items():
        monkeypatch.setenv(variable, value)
    findings = list(getattr(configuration, name)(Settings()))
    assert findings
    (one,) = [one for one in findings if seen in one.seen]
    assert (one.level.name.lower(), one.name) == (level, name)
    assert do in one.do
    assert bool(one.do) == (level != "ok")
    if level == "warning":
        assert not [other for other in findings if other.level.name == "OK"]


def test_on_loopback_no_proxy_is_missed_and_development_origins_are_fine(tmp_path):
    env = {"SEKISHO_ALLOWED_ORIGINS": "http://localhost:3000"}
    _, findings = examine(tmp_path, env)
    assert {"proxies", "origins"} <= levels(findings)["ok"]


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_root_is_told(tmp_path):
    level, seen, do = the_one(examine(tmp_path)[1], "user")
    assert (level, "root" in seen, "as a user of its own" in do) == ("note", True, True)


# --- keys ----------------------------------------------------------------------------------------------------------


def aged(days: float, *, number: int = 0, state: str | None = None) -> Any:
    """Makes a key of the set that much older, and puts it in a state."""

    def change(keys: list[dict[str, Any]]) -> None:
        since = now_s() - int(days * DAY_S)
        keys[number].update(created_at=since, state_since=since, state=state or keys[number]["state"])

    return change


def with_one_more(days: float, state: str, purpose: str = "sign") -> Any:
    """Adds a key to the set."""

    def change(keys: list[dict[str, Any]]) -> None:
        fresh = json.loads(KeySet.generate("HS256", now=now_s()).to_json())["keys"]
        key = next(key for key in fresh if key["purpose"] == purpose)
        since = now_s() - int(days * DAY_S)
        keys.append({**key, "state": state, "created_at": since, "state_since": since})

    return change


@pytest.mark.parametrize(
    ("change", "name", "level", "seen", "do"),
    [
        (aged(89.9), "key_age", "ok", "signs since 20", ""),
        (aged(90.1), "key_age", "warning", "for 90 days", "sekisho keys rotate"),
        (aged(-1), "key_age", "warning", "still to come", "clock"),
        (aged(-0.001), "key_age", "ok", "signs since 20", ""),
        (lambda keys: keys[0].update(created_at=0, state_since=0), "key_age", "note", "does not say", "keys rotate"),
        (lambda keys: keys[0].update(state_since=0), "key_age", "ok", "signs since 20", ""),
        (with_one_more(89.9, "next"), "key_waiting", "ok", "next: sign key", ""),
        (with_one_more(90.1, "next"), "key_waiting", "note", "waits since", "sekisho keys rotate --purpose sign"),
        (with_one_more(91, "next", "refresh"), "key_waiting", "note", "refresh key", "rotate --purpose refresh"),
        (with_one_more(1, "verify_only"), "key_retirable", "note", "signs no more since", "sekisho keys retire"),
        (with_one_more(0.01, "verify_only"), "key_retirable", "ok", "no key is over", ""),
        (with_one_more(29, "verify_only", "refresh"), "key_retirable", "ok", "no key is over", ""),
        (with_one_more(31, "verify_only", "refresh"), "key_retirable", "note", "refresh key", "sekisho keys retire"),
        (with_one_more(400, "retired"), "key_retirable", "ok", "no key is over", ""),
    ],
)
def test_what_the_keys_say(tmp_path, change, name, level, seen, do):
    path = keys_in(tmp_path, change=change)
    status, findings = examine(tmp_path)
    assert status == 0
    one = the_one(findings, name)
    assert one[0] == level
    assert seen in one[1]
    assert do in one[2]
    others = {"keys", "key_algorithm", "key_age", "key_waiting", "key_retirable"} - {name}
    assert others <= levels(findings)["ok"]
    named = re.findall(r"(?<=retire )\S+", one[2])
    assert all(kid in path.read_text() for kid in named)


def test_what_it_says_to_type_about_keys_is_what_helps(tmp_path):
    keys_in(tmp_path, change=with_one_more(1, "verify_only"))
    do = the_one(examine(tmp_path)[1], "key_retirable")[2]
    assert sekisho_here(*do.removeprefix("Type: sekisho ").split(), folder=tmp_path).status == 0
    assert the_one(examine(tmp_path)[1], "key_retirable")[0] == "ok"


def test_an_active_key_of_another_algorithm_stops_the_next_start(tmp_path):
    keys_in(tmp_path)
    env = {"SEKISHO_SIGNING_ALGORITHM": "EdDSA"}
    status, findings = examine(tmp_path, env)
    level, _, do = the_one(findings, "key_algorithm")
    assert (status, level) == (1, "error")
    assert "HS256" in do
    assert sekisho_here("keys", "rotate", "--now", folder=tmp_path, env=env).status == 0
    assert the_one(examine(tmp_path, env)[1], "key_algorithm")[0] == "ok"


def broken(keys: list[dict[str, Any]]) -> None:
    keys[0]["k"] = "c" * 43


def two_active(keys: list[dict[str, Any]]) -> None:
    with_one_more(0, "active")(keys)


def none_active(keys: list[dict[str, Any]]) -> None:
    keys[2]["state"] = "verify_only"


@pytest.mark.parametrize(
    ("change", "seen"),
    [(broken, "key"), (two_active, "exactly one active key, not 2"), (none_active, "exactly one active key, not 0")],
)
def test_a_key_set_that_no_server_takes_is_an_error(tmp_path, change, seen):
    keys_in(tmp_path, change=change)
    status, findings = examine(tmp_path)
    level, said, do = the_one(findings, "keys")
    assert (status, level) == (1, "error")
    assert seen in said
    assert "sekisho keys list" in do
    assert not found(findings, "key_age")
    assert "c" * 20 not in str(findings)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_file_that_others_can_read_is_an_error_with_the_command(tmp_path, mode):
    path = keys_in(tmp_path)
    path.chmod(mode)
    status, findings = examine(tmp_path)
    level, seen, _ = the_one(findings, "keys")
    assert (status, level) == (1, "error")
    assert "chmod 600 sekisho-keys.json" in seen


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_is_not_led_to_take_the_servers_keys_away(tmp_path):
    os.chown(keys_in(tmp_path), 65534, -1)
    _, findings = examine(tmp_path)
    level, seen, do = the_one(findings, "keys")
    assert (level, "belongs to user 65534" in seen) == ("error", True)
    assert "as that user before you change anything" in do


def test_a_key_source_that_was_named_and_is_empty_is_an_error(tmp_path):
    status, findings = examine(tmp_path, {"SEKISHO_KEYS": f"file:{tmp_path / 'none.json'}"})
    assert status == 1
    assert the_one(findings, "keys")[::2] == ("error", "Type: sekisho keys new")
    status, findings = examine(tmp_path, {"SEKISHO_KEYS": "env:NOBODY_SET_IT"})
    assert status == 1
    assert the_one(findings, "keys")[::2] == ("error", "Set it to a key set.")


def test_keys_in_a_variable_are_read_too(tmp_path):
    document = KeySet.generate("HS256", now=now_s()).to_json().decode()
    _, findings = examine(tmp_path, {"SEKISHO_KEYS": "env:KEY_SET", "KEY_SET": document})
    assert {"keys", "key_algorithm", "key_age"} <= levels(findings)["ok"]


# --- the database --------------------------------------------------------------------------------------------------


def test_a_database_that_others_can_read_is_told_file_by_file(serve):
    server = serve()
    for end in ("", "-wal"):
        (server.folder / f"sekisho.db{end}").chmod(0o640)
    status, findings = examine(server.folder)
    assert status == 0
    told = found(findings, "database_file")
    assert [one[0] for one in told] == ["warning", "warning"]
    for _, seen, do in told:
        assert "mode 0640" in seen
        subprocess.run(do.removeprefix("Type: ").split(), cwd=server.folder, check=True, timeout=10)
    assert the_one(examine(server.folder)[1], "database_file")[0] == "ok"


def test_a_file_that_is_no_database_and_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "sekisho.db").write_bytes(b"canary, and not a database" * 100)
    status, findings = examine(tmp_path)
    assert status == 1
    assert the_one(findings, "database")[0] == "error"
    assert "canary" not in str(findings)
    status, findings = examine(tmp_path, {"SEKISHO_DATABASE_URL": f"sqlite:///{tmp_path}/none/sekisho.db"})
    assert status == 1
    assert "no folder" in the_one(findings, "database")[1]


def test_a_schema_that_is_behind(tmp_path, database_url):
    env = {"SEKISHO_DATABASE_URL": database_url}
    if database_url.startswith("sqlite"):
        sqlite3.connect(tmp_path / "sekisho.db").close()
        (tmp_path / "sekisho.db").touch()
    status, findings = examine(tmp_path, env)
    level, seen, do = the_one(findings, "schema")
    assert "nothing yet" in seen
    if database_url.startswith("sqlite"):
        assert (status, level, do) == (0, "note", "sekisho serve will bring it up to date.")
    else:
        assert (status, level, do) == (1, "error", "Type: sekisho db upgrade")
    assert sekisho_here("db", "upgrade", folder=tmp_path, env=env).status == 0
    assert the_one(examine(tmp_path, env)[1], "schema")[0] == "ok"


def test_a_schema_of_a_newer_version_is_fine(tmp_path, postgres_deployment, postgres):
    name = postgres_deployment["SEKISHO_DATABASE_URL"].rpartition("/")[2]
    postgres.execute("UPDATE alembic_version SET version_num = '9999'", database=name)
    level, seen, _ = the_one(examine(tmp_path, postgres_deployment)[1], "schema")
    assert (level, "newer version" in seen) == ("ok", True)


@pytest.mark.parametrize(
    ("offset_s", "level"), [(1.5, "ok"), (5, "warning"), (-5, "warning"), (14, "error"), (-14, "error")]
)
def test_a_clock_that_is_off(tmp_path, postgres_deployment, offset_s, level):
    env = {"PATH": os.defpath, "HOME": str(tmp_path), **postgres_deployment, "TEST_CLOCK_OFFSET_S": str(offset_s)}
    done = subprocess.run(
        [*ODD_NODE, "doctor", "--json"], env=env, cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    findings = json.loads(done.stdout)
    told, seen, do = the_one(findings, "clock")
    assert told == level
    assert done.returncode == (1 if level == "error" else 0)
    if level != "ok":
        assert ("ahead of" if offset_s > 0 else "behind") in seen
        assert abs(float(re.findall(r"[0-9.]+(?= s )", seen)[0]) - abs(offset_s)) < 0.5
        assert "NTP" in do


def test_a_locked_schema_is_not_waited_for_without_end(tmp_path, postgres_deployment, postgres):
    with postgres_lock(postgres, postgres_deployment["SEKISHO_DATABASE_URL"]):
        begun_at = time.monotonic()
        status, findings = examine(tmp_path, postgres_deployment)
        assert time.monotonic() - begun_at < 12
    assert status == 1
    assert ("error" in [one[0] for one in found(findings, "database")]) is True
    assert the_one(findings, "redis")[0] == "ok"


@contextmanager
def postgres_lock(postgres: Any, url: str) -> Iterator[None]:
    """Somebody holds the table in which the schema's revision stands."""
    psql = [postgres.programs.bin / "psql", "--no-psqlrc", "-qAt", "--dbname", url]
    holder = subprocess.Popen(psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        # Were it waited for, the test would end all the same.
        holder.stdin.write(
            "SET idle_in_transaction_session_timeout = '30s'; BEGIN; LOCK alembic_version; SELECT 'held';\n"
        )
        holder.stdin.flush()
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.communicate("ROLLBACK;\n", timeout=20)


def test_verifiers_elsewhere_and_hs256_do_not_go_together(tmp_path, postgres_deployment):
    env = postgres_deployment
    assert the_one(examine(tmp_path, env)[1], "shared_secret")[0] == "ok"
    credential = sekisho_here("verifiers", "add", "shop", folder=tmp_path, env=env).out.strip()
    status, findings = examine(tmp_path, env)
    level, _, do = the_one(findings, "shared_secret")
    assert (status, level) == (0, "warning")
    assert "SEKISHO_SIGNING_ALGORITHM=EdDSA" in do
    assert credential not in str(findings)
    eddsa = {**env, "SEKISHO_SIGNING_ALGORITHM": "EdDSA"}
    assert sekisho_here("keys", "rotate", "--now", folder=tmp_path, env=eddsa).status == 0
    assert the_one(examine(tmp_path, eddsa)[1], "shared_secret")[0] == "ok"


# --- redis ---------------------------------------------------------------------------------------------------------


def test_a_redis_that_refuses_the_password_or_says_nothing(tmp_path, private_redis):
    assert private_redis._ask("CONFIG SET requirepass right-one\r\n", lines=1) == "+OK\r\n"
    for password, level in (("canary", "error"), ("right-one", "ok")):
        url = f"redis://:{password}@127.0.0.1:{private_redis.port}/0"
        status, findings = examine(tmp_path, {"SEKISHO_REDIS_URL": url})
        assert the_one(findings, "redis")[0] == level
        assert ("(AuthenticationError)" in the_one(findings, "redis")[1]) == (level == "error")
        assert status == (level == "error")
        assert password not in str(findings)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are accepted by the kernel, and nobody answers
        begun_at = time.monotonic()
        status, findings = examine(tmp_path, {"SEKISHO_REDIS_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}"})
        assert time.monotonic() - begun_at < 8
    assert status == 1
    level, seen, _ = the_one(findings, "redis")
    assert (level, "no answer within a second" in seen) == ("error", True)


# --- nothing secret ------------------------------------------------------------------------------------------------


PASSWORDS = [
    "canary",
    "can@canary",
    "can/canary",
    "can#canary",
    "can?canary",
    "can:canary",
    "canary@",
    "@canary",
    "canary/x",
]


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("password", [*PASSWORDS, *(quote(password, safe="") for password in PASSWORDS[1:])])
def test_no_password_in_a_url_is_shown_however_it_is_written(tmp_path, free_port, password, as_json):
    """Some of these are refused as settings, some read otherwise than they were meant."""
    env = {
        "SEKISHO_DATABASE_URL": f"postgresql://user:{password}@127.0.0.1:{free_port}/app",
        "SEKISHO_REDIS_URL": f"redis://user:{password}@127.0.0.1:{free_port}/0",
    }
    for command in ("doctor", "settings"):
        answer: Command = sekisho_here(command, *(["--json"] if as_json else []), folder=tmp_path, env=env)
        assert answer.out + answer.err
        assert "canary" not in answer.out + answer.err, command


def test_it_runs_in_the_folder_of_a_server_that_was_killed(serve):
    server: RunningServer = serve()
    server.kill()
    status, findings = examine(server.folder)
    assert status == 0
    assert {"database", "schema"} <= levels(findings)["ok"]
