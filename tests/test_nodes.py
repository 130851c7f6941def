"""Several nodes and several workers on one database behave as one server."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from servers.sekisho_server import RunningServer
from test_serve import PASSWORD, Person, a_client, an_address, events, is_problem, sekisho_here, wait_until

# P2 of the design: whoever is connected refuses within this time.
AT_ONCE_S = 1.0
WORKERS = 2


def shared_settings(folder: Path) -> dict[str, str]:
    """What nodes behind one name have in common: issuer and keys."""
    env = {"SEKISHO_ISSUER": "https://auth.example.com", "SEKISHO_KEYS": f"file:{folder / 'keys.json'}"}
    assert sekisho_here("keys", "new", folder=folder, env=env).status == 0
    return env


@pytest.fixture(scope="module")
def nodes(postgres, tmp_path_factory) -> Iterator[list[RunningServer]]:
    """Three nodes that share a database and a key file. One set for the module: nobody here stops them."""
    folder = tmp_path_factory.mktemp("shared")
    url = postgres.create_database()
    env = shared_settings(folder)
    with ExitStack() as running:
        running.callback(postgres.drop_database, url)
        made = []
        for _ in range(3):
            made.append(RunningServer(tmp_path_factory.mktemp("node"), database_url=url, env=env))
            running.callback(made[-1].close)
            made[-1].start()
        yield made


@pytest.fixture
def clients(nodes) -> Iterator[list[httpx2.Client]]:
    with ExitStack() as stack:
        yield [stack.enter_context(a_client(node)) for node in nodes]


def refused_in_time(person: Person, clients: list[httpx2.Client], *, since: float) -> None:
    """Each of these refuses within the second, and stays with it."""
    for client in clients:
        wait_until(
            lambda client=client: person.me(client).status_code == 401,
            within_s=since + AT_ONCE_S - time.monotonic(),
            what=f"{client.base_url} refuses",
        )
    for client in clients * 5:
        is_problem(person.me(client), 401, "invalid_token")
    for client in clients:
        is_problem(person.refresh(client), 401, "refresh_refused")


def test_log_in_on_one_use_on_another_log_out_on_the_third(clients):
    one, two, three = clients
    for _ in range(5):
        person = Person(one).signs_up().logs_in()
        witness = Person(one, person.email).logs_in()
        assert person.me(two).json()["email"] == person.email
        refreshed = person.refresh(two)
        assert refreshed.status_code == 200
        person.tokens = refreshed.json()
        assert [person.me(client).status_code for client in clients] == [200, 200, 200]
        assert person.log_out(three).status_code == 204
        since = time.monotonic()
        is_problem(person.me(three), 401, "invalid_token")  # the node itself, at once
        refused_in_time(person, [one, two], since=since)
        assert [witness.me(client).status_code for client in clients] == [200, 200, 200]


def test_logging_out_everywhere_counts_on_every_node(clients):
    one, two, three = clients
    person = Person(one).signs_up().logs_in()
    other = Person(two, person.email).logs_in()
    answer = three.post("/logout/all", headers={"Authorization": f"Bearer {person.access_token}"})
    assert answer.status_code == 204
    since = time.monotonic()
    refused_in_time(person, [one, two], since=since)
    refused_in_time(other, [one, two], since=since + AT_ONCE_S)


def test_a_changed_password_counts_on_every_node(clients):
    one, two, three = clients
    person = Person(one).signs_up().logs_in()
    other = Person(two, person.email).logs_in()
    answer = three.post(
        "/password",
        json={"current_password": PASSWORD, "new_password": f"{PASSWORD}, again"},
        headers={"Authorization": f"Bearer {person.access_token}"},
    )
    assert answer.status_code == 200
    refused_in_time(other, [one, two], since=time.monotonic())
    is_problem(one.post("/login", json={"email": person.email, "password": PASSWORD}), 401, "wrong_credentials")
    person.tokens = answer.json()
    assert [person.me(client).status_code for client in clients] == [200, 200, 200]


def test_a_node_that_comes_later_refuses_what_was_logged_out_before(serve, nodes, clients):
    person = Person(clients[0]).signs_up().logs_in()
    assert person.log_out().status_code == 204
    env = {name: nodes[0].env[name] for name in ("SEKISHO_ISSUER", "SEKISHO_KEYS")}
    late = serve(database_url=nodes[0].env["SEKISHO_DATABASE_URL"], env=env)
    with a_client(late) as client:
        is_problem(person.me(client), 401, "invalid_token")  # from its first answer on


# --- workers -------------------------------------------------------------------------------------------------------


def answers_of_workers(server: RunningServer, person: Person, number: int = 12) -> list[int]:
    """Statuses over as many new connections, which the workers take as it comes."""
    statuses = []
    for _ in range(number):
        with a_client(server) as client:
            statuses.append(person.me(client).status_code)
    return statuses


def test_with_several_workers_every_one_refuses_and_is_counted(serve, postgres_url):
    server = serve(database_url=postgres_url, args=["--workers", str(WORKERS)])
    wait_until(lambda: len(events(server, "started")) == WORKERS, within_s=30, what="every worker runs")
    with a_client(server) as client:
        person = Person(client).signs_up().logs_in()
    before = answers_of_workers(server, person, 40)
    assert set(before) == {200}

    with a_client(server) as client:
        assert person.log_out(client).status_code == 204
        since = time.monotonic()
    meanwhile: list[int] = []

    def all_refuse() -> bool:
        answers = answers_of_workers(server, person)
        meanwhile.extend(answers)
        return set(answers) == {401}

    wait_until(all_refuse, within_s=since + AT_ONCE_S - time.monotonic(), what="every worker refuses")
    assert set(answers_of_workers(server, person, 40)) == {401}

    accepted = (before + meanwhile).count(200)
    # What is counted is the sum of all workers, whichever of them is asked.
    for _ in range(6):
        with a_client(server) as client:
            response = client.get("/metrics")
        assert response.status_code == 200
        lines = response.text.splitlines()
        assert f'sekisho_request_seconds_count{{method="GET",route="/me",status="200"}} {accepted}.0' in lines
        assert 'sekisho_events_total{event="logged_in",outcome="ok"} 1.0' in lines
    assert server.stop() == 0
    assert len(events(server, "stopped")) == WORKERS


# --- throttling ----------------------------------------------------------------------------------------------------

ACCOUNT_LIMIT = 5  # failures in the first window


def guesses(client: httpx2.Client, email: str, number: int) -> list[int]:
    wrong = {"email": email, "password": "not the password"}
    return [client.post("/login", json=wrong).status_code for _ in range(number)]


@pytest.mark.parametrize("what", ["counted together", "alone"])
def test_guesses_are_counted_across_nodes_and_more_strictly_without_redis(
    serve, tmp_path, postgres_url, private_redis, what
):
    env = {**shared_settings(tmp_path), "SEKISHO_REDIS_URL": private_redis.url}
    with ExitStack() as stack:
        one, two = (stack.enter_context(a_client(serve(database_url=postgres_url, env=env))) for _ in range(2))
        if what == "counted together":
            person = Person(one).signs_up()
            statuses = [status for client in (one, two) * 3 for status in guesses(client, person.email, 1)]
            assert statuses[:ACCOUNT_LIMIT] == [401] * ACCOUNT_LIMIT
            assert statuses[ACCOUNT_LIMIT:] == [429]
            for client in (one, two):
                right = client.post("/login", json={"email": person.email, "password": PASSWORD})
                is_problem(right, 429, "throttled")
                assert 1 <= int(right.headers["retry-after"]) <= 31
            Person(two).signs_up().logs_in()  # nobody else is held up
        else:
            person = Person(one).signs_up().logs_in()
            private_redis.stop()
            for client in (one, two):
                Person(client).signs_up().logs_in()
                # Each node counts alone now, half as many.
                half = ACCOUNT_LIMIT // 2
                assert guesses(client, an_address(), half + 1) == [401] * half + [429]
                assert person.me(client).status_code == 200
                assert person.refresh(client).status_code == 200
            private_redis.start()
            email = an_address()

            def together_again() -> bool:
                address = an_address()
                return [*guesses(one, address, 3), *guesses(two, address, 3)] == [401] * ACCOUNT_LIMIT + [429]

            wait_until(together_again, within_s=10, what="the nodes count together again")
            assert guesses(two, email, 1) == [401]
