"""``sekisho verifiers``: credentials of those who verify tokens elsewhere."""

import hashlib
import json
import re

import pytest

from servers.sekisho_server import RunningServer
from test_serve import sekisho, sekisho_here


@pytest.fixture
def command(database_url, tmp_path):
    env = {"SEKISHO_DATABASE_URL": database_url}
    assert sekisho_here("db", "upgrade", folder=tmp_path, env=env).status == 0

    def run(*args, stdin=""):
        return sekisho_here("verifiers", *args, folder=tmp_path, env=env, stdin=stdin)

    return run


def test_add_prints_the_credential_alone(command):
    done = command("add", "shop")
    assert done.status == 0
    assert re.fullmatch(r"sekisho_vc_[A-Za-z0-9_-]{43}\n", done.out)
    assert "shop" in done.err
    assert done.out.strip() not in done.err


def test_list_and_remove(command):
    assert command("list").out == "No verifiers.\n"
    assert json.loads(command("list", "--json").out) == []
    for name in ("shop", "a", "A.b_c-9", "x" * 64):
        assert command("add", name).status == 0
    rows = json.loads(command("list", "--json").out)
    assert sorted(row["name"] for row in rows) == sorted(["shop", "a", "A.b_c-9", "x" * 64])
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", row["created_at"]) for row in rows)
    assert "shop" in command("list").out
    assert command("remove", "shop").out == "Removed shop.\n"
    assert len(json.loads(command("list", "--json").out)) == 3
    assert command("add", "shop").status == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["add", ""], "1 to 64 characters"),
        (["add", "x" * 65], "1 to 64 characters"),
        (["add", "my shop"], "1 to 64 characters"),
        (["add", "店"], "1 to 64 characters"),
        (["add", "shop\n"], "1 to 64 characters"),
        (["remove", "nobody"], "there is no verifier nobody"),
    ],
)
def test_a_wrong_name_is_one_clear_line(command, args, said):
    done = command(*args)
    assert (done.status, done.out) == (1, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_name_is_given_once(command):
    first = command("add", "shop").out
    done = command("add", "shop")
    assert (done.status, done.out) == (1, "")
    assert "there is a verifier shop already" in done.err
    assert len(json.loads(command("list", "--json").out)) == 1
    assert first


def test_the_credential_is_kept_nowhere(serve, tmp_path):
    server: RunningServer = serve()
    done = sekisho("verifiers", "add", "shop", folder=server.folder, env=server.env)
    credential = done.out.strip()
    with_it = {"Authorization": f"Bearer {credential}"}
    import httpx2

    answer = httpx2.post(f"{server.base_url}/introspect", data={"token": "x"}, headers=with_it, trust_env=False)
    assert answer.json() == {"active": False}
    wrong = {"Authorization": f"Bearer {credential[:-1]}{'A' if credential[-1] != 'A' else 'B'}"}
    answer = httpx2.post(f"{server.base_url}/introspect", data={"token": "x"}, headers=wrong, trust_env=False)
    assert answer.status_code == 401
    server.stop()
    secret = credential.removeprefix("sekisho_vc_")
    everything = b"".join(path.read_bytes() for path in server.folder.rglob("*") if path.is_file())
    assert secret.encode() not in everything
    assert wrong["Authorization"].removeprefix("Bearer sekisho_vc_").encode() not in everything
    assert hashlib.sha256(credential.encode()).digest() in (server.folder / "sekisho.db").read_bytes()


# --- sekisho keys retire tells them ---------------------------------------------------------------------------------


def _old_key(folder, env):
    assert sekisho_here("keys", "new", folder=folder, env=env).status == 0
    keys = json.loads(sekisho_here("keys", "list", "--json", folder=folder, env=env).out)
    (kid,) = [key["kid"] for key in keys if (key["purpose"], key["state"]) == ("sign", "active")]
    assert sekisho_here("keys", "rotate", "--now", folder=folder, env=env).status == 0
    return kid


def _state(folder, env, kid):
    keys = json.loads(sekisho_here("keys", "list", "--json", folder=folder, env=env).out)
    return next(key["state"] for key in keys if key["kid"] == kid)


def test_without_a_database_there_is_nobody_to_tell(tmp_path):
    kid = _old_key(tmp_path, {})
    done = sekisho_here("keys", "retire", kid, "--now", folder=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert not (tmp_path / "sekisho.db").exists()


def test_a_database_that_is_away_is_told_of_and_the_command_can_be_repeated(tmp_path, private_postgres):
    env = {"SEKISHO_DATABASE_URL": private_postgres.create_database()}
    assert sekisho_here("db", "upgrade", folder=tmp_path, env=env).status == 0
    kid = _old_key(tmp_path, env)
    private_postgres.stop()
    done = sekisho_here("keys", "retire", kid, "--now", folder=tmp_path, env=env)
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "is retired in the key set, but verifiers elsewhere were not told" in done.err
    assert "run this command again" in done.err
    assert _state(tmp_path, env, kid) == "retired"
    private_postgres.start()
    done = sekisho_here("keys", "retire", kid, folder=tmp_path, env=env)
    assert (done.status, done.err) == (0, "")
    database = env["SEKISHO_DATABASE_URL"].rpartition("/")[2]
    assert private_postgres.execute("SELECT key_id FROM revocations", database=database).split() == [kid]
