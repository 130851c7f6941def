"""The test servers themselves: they work, leave the machine as it was, and do not outlive the run."""

import http.server
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis as redis_client

from servers import leash, sekisho_server
from servers.postgres import Postgres, PostgresServer, find_programs
from servers.redis import RedisServer
from servers.sekisho_server import RunningServer

ROOT = Path(__file__).parents[1]

# --- PostgreSQL ----------------------------------------------------------------------------------------------------


async def query(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@pytest.mark.anyio
async def test_postgres_is_18_and_databases_are_apart(postgres: Postgres, postgres_url: str) -> None:
    other_url = postgres.create_database()
    try:
        assert other_url != postgres_url
        await query(postgres_url, "create table t as select 1 as x")
        assert await query(postgres_url, "select x from t") == 1
        assert await query(other_url, "select to_regclass('t')") is None
        assert str(await query(other_url, "show server_version")).startswith("18.")
        assert await query(other_url, "show max_connections") == "200"
        assert await query(other_url, "show fsync") == "off"
    finally:
        postgres.drop_database(other_url)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await query(other_url, "select 1")


def test_postgres_database_from_a_template(postgres: Postgres, postgres_url: str) -> None:
    template = postgres_url.rpartition("/")[2]
    postgres.execute("create table t as select 7 as x", database=template)
    copy_url = postgres.create_database(template=template)
    try:
        assert postgres.execute("select x from t", database=copy_url.rpartition("/")[2]) == "7"
    finally:
        postgres.drop_database(copy_url)


def test_postgres_refuses_bad_sql(postgres: Postgres) -> None:
    with pytest.raises(RuntimeError, match="syntax error"):
        postgres.execute("selekt")


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_private_postgres_goes_and_comes_back_with_its_data(private_postgres: PostgresServer, mode: str) -> None:
    url = private_postgres.create_database()
    assert await query(url, "show fsync") == "on"
    await query(url, "create table t as select 1 as x")
    private_postgres.stop(mode)
    with pytest.raises(OSError):
        await query(url, "select x from t")
    private_postgres.start()
    assert await query(url, "select x from t") == 1


def owners_and_modes(*roots: Path) -> dict[Path, tuple[int, int, int]]:
    paths = {path for root in roots for path in (root, *root.parents)}
    paths |= set(find_programs().parent.rglob("*"))
    return {path: (s.st_mode, s.st_uid, s.st_gid) for path in paths for s in [path.lstat()]}


def test_postgres_leaves_owners_modes_and_users_as_they_were() -> None:
    roots = [find_programs(), Path(tempfile.gettempdir()), Path.home(), Path.cwd(), Path("/etc/passwd")]
    before, users = owners_and_modes(*roots), Path("/etc/passwd").read_bytes()
    with PostgresServer() as server:  # with a copy of its own of the programs, as at the start of a run
        assert server.execute("select 1") == "1"
        folder = server._folder
    assert owners_and_modes(*roots) == before
    assert Path("/etc/passwd").read_bytes() == users
    assert not folder.exists()


# --- Redis ---------------------------------------------------------------------------------------------------------


def test_redis_database_is_empty_for_each_test(redis_url: str) -> None:
    with redis_client.Redis.from_url(redis_url) as connection:
        assert connection.dbsize() == 0
        connection.set("left", "behind")


test_redis_database_is_empty_for_the_next_test = test_redis_database_is_empty_for_each_test


def test_private_redis_goes_and_comes_back_empty(private_redis: RedisServer) -> None:
    with redis_client.Redis.from_url(private_redis.url) as connection:
        connection.set("a", "b")
        private_redis.stop()
        with pytest.raises(redis_client.ConnectionError):
            connection.get("a")
        private_redis.start()
        assert connection.get("a") is None


# --- the browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def website() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Set-Cookie", "visits=1")
            self.end_headers()
            self.wfile.write(b"<title>gate</title><p id=p></p><script>p.textContent = navigator.language</script>")

        def log_message(self, *_args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("turn", [1, 2])
def test_browser_opens_a_page_without_a_past(page, website: str, turn: int) -> None:
    page.goto(website)
    assert page.title() == "gate"
    assert page.text_content("#p")
    assert len(page.context.cookies()) == 1


# --- sekisho serve -------------------------------------------------------------------------------------------------

# Stands in for the server: what is tested here is how a process is started, watched, stopped and started again.
STAND_IN = """\
#!{python}
import http.server, os, signal, sys
if sys.argv[1] == "db":
    print("upgraded", os.environ["SEKISHO_DATABASE_URL"], sys.argv[2:]); sys.exit()
if "--fail" in sys.argv:
    sys.exit("SEKISHO_NONSENSE: unknown setting")
if "--deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 404); self.end_headers()
open("starts", "a").write("x")
print(sorted(n for n in os.environ if n.startswith(("SEKISHO_", "TEST_", "PYTEST_"))))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sekisho"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sekisho_server, "_PROGRAM", program)


@pytest.mark.usefixtures("stand_in")
def test_serve_stops_and_starts_again_in_the_same_place(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEKISHO_REPLAY_WINDOW_S", "1")
    node = serve(database_url="sqlite:///sekisho.db", env={"SEKISHO_ISSUER": "https://a.example"})
    first = node.process.pid
    assert node.stop() == 0
    node.start()
    assert node.process.pid != first
    node.kill()
    assert node.process.returncode == -signal.SIGKILL
    node.start()
    assert (node.folder / "starts").read_text() == "xxx"
    assert node.log_text().count("['SEKISHO_DATABASE_URL', 'SEKISHO_ISSUER']\n") == 3
    assert "upgraded" not in node.log_text()


@pytest.mark.usefixtures("stand_in")
def test_serve_upgrades_a_postgresql_database_first(serve) -> None:
    node = serve(database_url="postgresql://localhost/x")
    assert node.run("db", "upgrade") == "upgraded postgresql://localhost/x ['upgrade']\n"


@pytest.mark.usefixtures("stand_in")
def test_serve_reports_an_early_end_with_its_output(serve) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1.*SEKISHO_NONSENSE: unknown setting"):
        serve(args=["--fail"])


@pytest.mark.usefixtures("stand_in")
def test_serve_does_not_wait_for_ever_for_a_deaf_server(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sekisho_server, "_STOP_S", 0.3)
    node: RunningServer = serve(args=["--deaf"])
    with pytest.raises(RuntimeError, match="still ran"):
        node.stop()
    assert node.process.returncode == -signal.SIGKILL


# --- nothing outlives the run --------------------------------------------------------------------------------------

ORPHANS = """\
import sys, time
from servers.postgres import PostgresServer
from servers.redis import RedisServer
postgres, redis = PostgresServer(), RedisServer()
postgres.start()
redis.start()
print(postgres._process.pid, redis._process.pid, postgres._folder, redis._folder, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_servers_and_folders_go_when_the_run_is_killed(signum: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANS], cwd=ROOT / "tests", stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        postgres_pid, redis_pid, *folders = run.stdout.readline().split()
        assert all(Path(f).exists() for f in folders)
        run.send_signal(signum)
    give_up_at = time.monotonic() + 15
    while any(map(alive, map(int, [postgres_pid, redis_pid]))) or any(Path(f).exists() for f in folders):
        assert time.monotonic() < give_up_at, "still there"
        time.sleep(0.05)


def test_a_folder_that_every_user_reaches_is_not_below_a_closed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert leash.temporary_folder("closed-").parent == tmp_path
    folder = leash.temporary_folder("open-", reachable_by_all=True)
    assert folder.parent != tmp_path
    assert all(parent.stat().st_mode & 0o001 for parent in folder.parents)
    leash.remove_folder(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become another user")
def test_postgres_does_not_run_as_root(postgres: Postgres) -> None:
    assert postgres.programs.user == "nobody"


def test_the_pinned_requirements_name_no_index() -> None:
    for name in ["server.txt", "dev.txt", "bench.txt", "long.txt"]:
        lines = (ROOT / "requirements" / name).read_text().splitlines()
        assert lines
        assert not [line for line in lines if "://" in line or line.startswith("-")]


def test_make_alone_explains_every_target() -> None:
    done = subprocess.run(["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True, check=True)
    named = [line.split()[1] for line in done.stdout.splitlines()]
    assert named == ["help", "serve", "setup", "test", "test-long", "fuzz", "bench", "lint", "format"]
