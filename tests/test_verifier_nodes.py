"""Verifiers that follow real nodes: who logs out there is refused here, in every worker, whatever the network does."""

import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from sekisho.errors import FeedLost, MustAsk, TokenError, TokenKeyUnknown, TokenRevoked, TryLater
from sekisho.verify import Verifier, feed, remote
from servers.leash import end_process, start_process
from servers.proxy import Proxy, Rule
from servers.sekisho_server import RunningServer
from test_serve import Person, a_client, header_of, sekisho_here, wait_until

ISSUER = "https://auth.example.com"
AT_ONCE_S = 1.0  # P2 of the design: whoever is connected refuses within this time
START_S = 30.0


@dataclass(frozen=True)
class Issuer:
    """Two nodes of one issuer, and the credential of who follows it."""

    nodes: list[RunningServer]
    credential: str


@pytest.fixture(scope="module")
def pair(postgres, tmp_path_factory) -> Iterator[Issuer]:
    folder = tmp_path_factory.mktemp("shared")
    url = postgres.create_database()
    env = {
        "SEKISHO_ISSUER": ISSUER,
        "SEKISHO_AUDIENCE": "shop",
        "SEKISHO_SIGNING_ALGORITHM": "EdDSA",
        "SEKISHO_KEYS": f"file:{folder / 'keys.json'}",
    }
    assert sekisho_here("keys", "new", folder=folder, env=env).status == 0
    with ExitStack() as running:
        running.callback(postgres.drop_database, url)
        made = [RunningServer(tmp_path_factory.mktemp("node"), database_url=url, env=env) for _ in range(2)]
        for node in made:
            running.callback(node.close)
            node.start()
        yield Issuer(made, made[0].run("verifiers", "add", "shop").strip())


@pytest.fixture
def issuer(pair) -> Issuer:
    """Both nodes run, whatever the test before has done to them."""
    for node in pair.nodes:
        if node.process.poll() is not None:
            node.start()
    return pair


@pytest.fixture
def client(issuer) -> Iterator[httpx2.Client]:
    """Of the second node."""
    with a_client(issuer.nodes[1]) as client:
        yield client


@pytest.fixture
def follower(issuer, monkeypatch):
    """Makes verifiers that follow these addresses, the first of them first; their threads end with the test."""
    monkeypatch.setattr(feed.random, "randrange", lambda _: 0)
    made = []

    def make(*base_urls, **named):
        usual = {
            "issuer": ISSUER,
            "audience": "shop",
            "jwks_url": f"{issuer.nodes[1].base_url}/.well-known/jwks.json",
            "revocations_url": [f"{base_url}/revocations" for base_url in base_urls],
            "credential": issuer.credential,
        }
        made.append(Verifier(**{**usual, **named}))
        assert made[-1].wait(START_S)
        return made[-1]

    yield make
    for verifier in made:
        verifier.close()


def outcome(verifier, person):
    try:
        return verifier.verify(person.access_token).sid
    except (TokenError, TryLater) as error:
        return type(error)


def log_out(person, client):
    assert person.log_out(client).status_code == 204


def refuses(verifier, person, *, within_s=AT_ONCE_S):
    wait_until(lambda: outcome(verifier, person) is TokenRevoked, within_s=within_s, what="it refuses")


# --- one after the other -------------------------------------------------------------------------------------------


def test_who_logs_out_is_refused_within_the_second_elsewhere_too(issuer, client, follower):
    gone = Person(client).signs_up().logs_in()
    log_out(gone, client)
    verifier = follower(issuer.nodes[0].base_url)
    refuses(verifier, gone)  # it had ended before; the node asks the table five times a second
    for _ in range(5):
        person = Person(client, gone.email).logs_in()
        witness = Person(client, gone.email).logs_in()
        assert outcome(verifier, person) == person.session_id
        log_out(person, client)
        refuses(verifier, person)
        assert outcome(verifier, witness) == witness.session_id
    assert (verifier.state, verifier.reconnects) == ("fresh", 0)
    assert verifier.age_s < 2
    assert verifier.entries >= 6


def test_a_key_that_is_retired_is_refused_at_once_and_for_good(serve, follower):
    node = serve(env={"SEKISHO_ISSUER": ISSUER, "SEKISHO_AUDIENCE": "shop", "SEKISHO_SIGNING_ALGORITHM": "EdDSA"})
    credential = node.run("verifiers", "add", "shop").strip()
    named = {"jwks_url": f"{node.base_url}/.well-known/jwks.json", "credential": credential}
    verifier = follower(node.base_url, **named)
    with a_client(node) as client:
        person = Person(client).signs_up().logs_in()
    assert outcome(verifier, person) == person.session_id
    node.run("keys", "retire", header_of(person.access_token)["kid"], "--now")
    refuses(verifier, person, within_s=2 * AT_ONCE_S)
    late = follower(node.base_url, **named)  # the node may publish the key a while longer
    assert outcome(late, person) in {TokenRevoked, TokenKeyUnknown}


def test_a_credential_that_nobody_knows_follows_nothing(issuer, client, caplog):
    verifier = Verifier(
        issuer=ISSUER,
        audience="shop",
        jwks_url=f"{issuer.nodes[0].base_url}/.well-known/jwks.json",
        revocations_url=f"{issuer.nodes[0].base_url}/revocations",
        credential="sekisho_vc_" + "x" * 43,
    )
    try:
        assert not verifier.wait(1)
        assert verifier.state == "starting"
        assert "sekisho verifiers add" in caplog.text
        assert "x" * 43 not in caplog.text
    finally:
        verifier.close()


# --- the network and the nodes -------------------------------------------------------------------------------------


def test_a_partition_makes_the_view_stale_and_afterwards_nothing_is_missing(issuer, client, follower):
    with Proxy(issuer.nodes[0].port) as proxy:
        verifier = follower(proxy.base_url)
        person = Person(client).signs_up().logs_in()
        witness = Person(client, person.email).logs_in()
        assert outcome(verifier, person) == person.session_id
        with proxy.stalled():
            log_out(person, client)
            wait_until(lambda: verifier.state == "stale", within_s=5, what="it is stale")
            assert 3 < verifier.age_s < 5
            # It cannot know; and nobody is thrown out for want of knowing.
            assert outcome(verifier, person) == person.session_id
            assert outcome(verifier, witness) == witness.session_id
        refuses(verifier, person, within_s=5)
        wait_until(lambda: verifier.state == "fresh", within_s=5, what="it is fresh")
        assert outcome(verifier, witness) == witness.session_id


def test_a_partition_of_one_way_is_walked_round(issuer, client, follower):
    with Proxy(issuer.nodes[0].port) as proxy:
        verifier = follower(proxy.base_url, issuer.nodes[1].base_url)
        person = Person(client).signs_up().logs_in()
        with proxy.stalled():
            log_out(person, client)
            refuses(verifier, person, within_s=2.5 + 2)  # the silence, and the way to the other node
            assert verifier.state == "fresh"


def test_a_reset_connection_resumes_without_a_snapshot(issuer, client, follower):
    seen = []

    def noted(piece):
        seen.append(bytes(piece))
        return True

    with Proxy(issuer.nodes[0].port, rule=lambda: Rule(answer=noted)) as proxy:
        verifier = follower(proxy.base_url)
        person = Person(client).signs_up().logs_in()
        wait_until(lambda: b"event: heartbeat" in b"".join(seen), within_s=5)
        seen.clear()
        proxy.cut_all()
        log_out(person, client)
        refuses(verifier, person, within_s=3)
        wait_until(lambda: b"event: heartbeat" in b"".join(seen), within_s=5)
        assert b"event: snapshot" not in b"".join(seen)
        assert verifier.reconnects == 1


def test_a_node_that_is_killed_is_left_for_the_other(issuer, client, follower):
    one, two = issuer.nodes
    verifier = follower(one.base_url, two.base_url)
    person = Person(client).signs_up().logs_in()
    assert outcome(verifier, person) == person.session_id
    one.kill()
    log_out(person, client)
    refuses(verifier, person, within_s=AT_ONCE_S + 1)
    wait_until(lambda: verifier.state == "fresh" and verifier.age_s < 2, within_s=5)
    assert verifier.reconnects >= 1


def test_a_node_that_stands_still_is_left_for_the_other_and_never_taken_for_fresh(issuer, client, follower):
    one, two = issuer.nodes
    both, single = follower(one.base_url, two.base_url), follower(one.base_url)
    person = Person(client).signs_up().logs_in()
    began = time.monotonic()
    os.killpg(one.process.pid, signal.SIGSTOP)
    try:
        log_out(person, client)
        refuses(both, person, within_s=2.5 + 2)
        assert both.state == "fresh"
        wait_until(lambda: single.state != "fresh", within_s=5)
        assert time.monotonic() - began > 3 - 1  # the last heartbeat was at most a second old
        assert single.state == "stale"
        assert outcome(single, person) == person.session_id
    finally:
        os.killpg(one.process.pid, signal.SIGCONT)
    refuses(single, person, within_s=8)
    wait_until(lambda: single.state == "fresh", within_s=8)


@pytest.mark.parametrize("ended", [False, True])
def test_who_has_lost_the_feed_can_ask(issuer, client, follower, monkeypatch, ended):
    verifier = follower(issuer.nodes[0].base_url, when_lost="ask")
    person = Person(client).signs_up().logs_in()
    verifier.close()
    if ended:
        log_out(person, client)
    monkeypatch.setattr(remote, "since_boot", lambda: feed.since_boot() + 31)
    monkeypatch.setattr(verifier._remote, "start", lambda: None)  # or it would follow again
    assert outcome(verifier, person) is MustAsk
    if ended:
        with pytest.raises(TokenRevoked):
            verifier.ask(person.access_token)
    else:
        assert verifier.ask(person.access_token).sid == person.session_id
    with pytest.raises(FeedLost):
        verifier.verify(person.access_token, when_lost="refuse")


# --- servers with several workers ----------------------------------------------------------------------------------

APP = """
    import json, os, sys, time
    from sekisho.errors import TokenError, TryLater
    from sekisho.verify import Verifier

    named = json.loads(os.environ["VERIFIER"])
    verifier = Verifier(**named)
    if "PRELOAD" in os.environ:
        assert verifier.wait(20)  # the parent follows, and then forks

    def status(authorization):
        time.sleep(0.02)  # so that the others are asked meanwhile
        try:
            verifier.verify(authorization.removeprefix("Bearer "))
        except TokenError:
            return 401
        except TryLater:
            return 503
        return 200

    def body():
        return str(os.getpid()).encode()

    def wsgi(environ, start_response):
        start_response(f"{status(environ.get('HTTP_AUTHORIZATION', ''))} .", [("Content-Type", "text/plain")])
        return [body()]

    async def asgi(scope, receive, send):
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        authorization = dict(scope["headers"]).get(b"authorization", b"").decode()
        await send({"type": "http.response.start", "status": status(authorization), "headers": []})
        await send({"type": "http.response.body", "body": body()})

    def view(request):
        from django.http import HttpResponse
        return HttpResponse(body(), status=status(request.headers.get("Authorization", "")))

    if __name__ == "__main__":
        from django.conf import settings
        from django.core.management import execute_from_command_line
        from django.urls import path
        settings.configure(DEBUG=True, SECRET_KEY="x", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__)
        urlpatterns = [path("", view)]
        execute_from_command_line(sys.argv)
"""

HERE = Path(sys.executable).parent


@dataclass(frozen=True)
class Kind:
    """A way to serve the application at a port."""

    command: list[str | Path]
    workers: int
    preload: bool = False


KINDS = {
    "gunicorn": Kind([HERE / "gunicorn", "--workers", "2", "--bind", "127.0.0.1:{port}", "served:wsgi"], 2),
    "gunicorn that loads before it forks": Kind(
        [HERE / "gunicorn", "--preload", "--workers", "2", "--bind", "127.0.0.1:{port}", "served:wsgi"],
        2,
        preload=True,
    ),
    "uvicorn": Kind([sys.executable, "-m", "uvicorn", "--workers", "2", "--port", "{port}", "served:asgi"], 2),
    "django": Kind([sys.executable, "served.py", "runserver", "--noreload", "{port}"], 1),
    "django that reloads": Kind([sys.executable, "served.py", "runserver", "{port}"], 1),
}


@contextmanager
def served(kind: Kind, folder: Path, port: int, named: dict) -> Iterator[None]:
    (folder / "served.py").write_text(textwrap.dedent(APP))
    env = {"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8", "VERIFIER": json.dumps(named)}
    env |= {"PYTHONPATH": str(folder), **({"PRELOAD": "1"} if kind.preload else {})}
    command = [str(part).format(port=port) for part in kind.command]
    with (folder / "log").open("wb") as log:
        process = start_process(command, log=log, env=env, cwd=folder)
    try:
        yield
    except BaseException as error:
        error.add_note((folder / "log").read_text())
        raise
    finally:
        end_process(process, signal.SIGKILL)


def answers(port: int, person: Person) -> list[tuple[int, int]]:
    """Of many connections at once: status, and the process that gave it."""

    def one(_: int) -> tuple[int, int]:
        headers = {"Authorization": f"Bearer {person.access_token}"}
        try:
            answer = httpx2.get(f"http://127.0.0.1:{port}/", headers=headers, timeout=10, trust_env=False)
            return answer.status_code, int(answer.text)
        except httpx2.TransportError:
            return 0, 0

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(8)))


@pytest.mark.parametrize("name", KINDS)
def test_every_worker_refuses(issuer, client, tmp_path, free_port, name):
    kind = KINDS[name]
    node = issuer.nodes[0]
    named = {
        "issuer": ISSUER,
        "audience": "shop",
        "jwks_url": f"{node.base_url}/.well-known/jwks.json",
        "revocations_url": f"{node.base_url}/revocations",
        "credential": issuer.credential,
    }
    person = Person(client).signs_up().logs_in()
    witness = Person(client, person.email).logs_in()
    with served(kind, tmp_path, free_port, named):
        accepting: set[int] = set()

        def all_accept() -> bool:
            given = answers(free_port, person)
            assert 401 not in {status for status, _ in given}
            accepting.update(pid for status, pid in given if status == 200)
            return len(accepting) == kind.workers and {status for status, _ in given} == {200}

        wait_until(all_accept, within_s=START_S, what="every worker accepts")
        log_out(person, client)
        refusing: set[int] = set()

        def all_refuse() -> bool:
            given = answers(free_port, person)
            assert {status for status, _ in given} <= {200, 401}
            refusing.update(pid for status, pid in given if status == 401)
            return refusing == accepting and {status for status, _ in given} == {401}

        wait_until(all_refuse, within_s=2 * AT_ONCE_S, what="every worker refuses")
        assert {status for status, _ in answers(free_port, witness)} == {200}
