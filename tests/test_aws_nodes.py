"""Servers whose keys are in AWS: a rotation reaches all of them, and nothing that AWS does fails a request."""

import json
import re
import sys
import time
from collections.abc import Iterator
from itertools import count
from threading import Event, Thread
from typing import Self

import pytest

from sekisho.sources import secrets_manager
from sekisho.sources.aws import AwsSource
from sekisho.tokens import KeySet
from sekisho.web import key_watch
from sekisho.wire import now_s
from servers import aws_proxy
from servers.aws_proxy import BAD_VALUES, REFUSALS, TROUBLES, Answer, AwsProxy, Fault, Forward
from servers.moto import CREDENTIALS, MotoServer
from servers.sekisho_server import RunningServer
from test_serve import PASSWORD, Command, Person, a_client, events, header_of, sekisho, sekisho_here, wait_until

REGION = "eu-west-1"
_numbers = count(1)


def a_secret() -> str:
    return f"sekisho/nodes-{next(_numbers)}-test"


def aws_env(aws: AwsProxy, secret: str, **others: str) -> dict[str, str]:
    return {
        **CREDENTIALS,
        "SEKISHO_KEYS": f"aws:{secret}",
        "SEKISHO_KEYS_POLL_S": "1",
        "SEKISHO_AWS_REGION": REGION,
        "SEKISHO_AWS_ENDPOINT_URL": aws.base_url,
        **others,
    }


@pytest.fixture
def secret(moto: MotoServer, monkeypatch) -> str:
    """A secret with a first key set in it."""
    return _made(moto, monkeypatch)


def _made(moto: MotoServer, patch: pytest.MonkeyPatch) -> str:
    for variable, value in CREDENTIALS.items():
        patch.setenv(variable, value)
    name = a_secret()
    document = KeySet.generate("HS256", now=now_s()).to_json()
    AwsSource(name, region=REGION, endpoint_url=moto.base_url).store(document, expected=None)
    return name


class Load:
    """People who sign in, refresh and ask, again and again; every answer that is no 200 is kept."""

    def __init__(self, *servers: RunningServer) -> None:
        self._clients = [a_client(server) for server in servers]
        self._stop = Event()
        self.rounds = 0
        self.failures: list[str] = []
        self.kids: set[str] = set()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> Self:
        self._people = [Person(client).signs_up().logs_in() for client in self._clients]
        # Others sign in again and again: the oldest of more than 50 sessions of one account ends.
        self._visitors = [Person(client).signs_up() for client in self._clients]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        for client in self._clients:
            client.close()

    def another_round(self) -> None:
        """Returns when everybody has done everything once more, from the beginning."""
        due = self.rounds + 2
        wait_until(lambda: self.rounds >= due or not self._thread.is_alive(), within_s=60)
        assert self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            for person, visitor in zip(self._people, self._visitors, strict=True):
                login = visitor.client.post("/login", json={"email": visitor.email, "password": PASSWORD})
                refresh = person.refresh()
                if refresh.status_code == 200:
                    person.tokens = refresh.json()
                    self.kids.add(header_of(person.access_token)["kid"])
                # What one node has issued, every node accepts.
                asked = [person.me(client) for client in self._clients]
                for response in (login, refresh, *asked):
                    if response.status_code != 200:
                        self.failures.append(f"{response.request.url} {response.status_code} {response.text}")
            self.rounds += 1
            time.sleep(0.02)


def failing(server: RunningServer) -> float:
    with a_client(server) as client:
        metrics = client.get("/metrics").text
    [value] = re.findall(r"^sekisho_keys_failing(.*)$", metrics, re.MULTILINE)  # one, whatever the workers
    return float(value)


def told(server: RunningServer) -> list[tuple[str, str]]:
    return [(e["event"], e["outcome"]) for e in events(server, "keys_refused", "keys_back", "keys_changed")]


def keys(server: RunningServer, *args: str) -> str:
    return server.run("keys", *args)


def states(server: RunningServer) -> dict[str, str]:
    """state → kid, of the signing keys."""
    return {row["state"]: row["kid"] for row in json.loads(keys(server, "list", "--json")) if row["purpose"] == "sign"}


# --- rotation ------------------------------------------------------------------------------------------------------


def test_a_rotation_reaches_all_nodes_without_a_restart_and_nobody_notices(serve, postgres_url, aws, secret) -> None:
    env = aws_env(aws, secret, SEKISHO_ISSUER="http://127.0.0.1:8400")
    nodes = [serve(database_url=postgres_url, env=env) for _ in "ab"]
    with Load(*nodes) as load:
        load.another_round()
        old = states(nodes[0])["active"]
        assert load.kids == {old}
        assert "Run this again in 10 min" in keys(nodes[0], "rotate")
        for node in nodes:
            wait_until(lambda it=node: told(it) == [("keys_changed", "ok")], within_s=10, what="the next key is known")
        waiting = states(nodes[0])["next"]
        said = keys(nodes[0], "rotate", "--now")
        began = time.monotonic()
        assert "within 1 s" in said
        for node in nodes:
            wait_until(lambda it=node: told(it) == [("keys_changed", "ok")] * 2, within_s=10, what="it signs")
        took_s = time.monotonic() - began
        load.kids.clear()
        load.another_round()
        assert load.kids == {waiting}
        retired = keys(nodes[0], "retire", old, "--now")
        assert old in retired
        load.another_round()
    assert load.failures == []
    assert took_s < 3  # an interval is 1 s here
    everything = said + retired + nodes[0].log_text() + nodes[1].log_text()
    document = AwsSource(secret, region=REGION, endpoint_url=aws.base_url).load() or b""
    assert not [jwk["k"] for jwk in json.loads(document)["keys"] if jwk["k"] in everything]
    assert "testing" not in everything


def test_the_commands_work_on_a_secret_as_on_a_file(tmp_path, moto, aws) -> None:
    env = aws_env(aws, a_secret(), SEKISHO_SIGNING_ALGORITHM="EdDSA")

    def done(*args: str) -> str:
        answer = sekisho_here("keys", *args, folder=tmp_path, env=env)
        assert (answer.status, answer.err) == (0, "")
        return answer.out

    def refused(*args: str) -> str:
        answer = sekisho_here("keys", *args, folder=tmp_path, env=env)
        assert (answer.status, answer.err.count("\n")) == (1, 1)
        return answer.err

    def signing() -> dict[str, str]:
        return {r["state"]: r["kid"] for r in json.loads(done("list", "--json")) if r["purpose"] == "sign"}

    assert "type sekisho keys new" in refused("list")
    assert "Made a first set of 3 keys" in done("new")
    old = signing()["active"]
    assert "signs after" in done("new")
    assert "has a next key already" in refused("new")
    waiting = signing()["next"]
    assert "has not been published for long enough" in refused("rotate")
    assert waiting in done("rotate", "--now")
    assert (signing()["active"], signing()["verify_only"]) == (waiting, old)
    assert "may be in use until" in refused("retire", old)
    assert old in done("retire", old, "--now")
    assert signing()["retired"] == old
    aws.faults["*"] = REFUSALS["no permission"]
    assert "GetSecretValue" in refused("rotate", "--now")
    aws.faults.clear()
    aws.faults["UpdateSecretVersionStage"] = REFUSALS["no permission"]
    before = signing()
    assert "UpdateSecretVersionStage" in refused("rotate", "--now")
    assert signing() == before


def test_the_role_of_the_settings_is_the_one_that_reads(tmp_path, aws, secret) -> None:
    role = "arn:aws:iam::123456789012:role/sekisho-keys"
    env = aws_env(aws, secret, SEKISHO_AWS_ROLE_ARN=role, AWS_ENDPOINT_URL_STS=aws.base_url)
    assert sekisho_here("keys", "list", folder=tmp_path, env=env).status == 0
    assert aws.calls == {"AssumeRole": 1, "GetSecretValue": 1}


# --- AWS in trouble ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module_aws(moto: MotoServer) -> Iterator[AwsProxy]:
    with AwsProxy(moto.base_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def node(moto, module_aws, tmp_path_factory) -> Iterator[RunningServer]:
    """A node under load, for the faults to come one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        secret = _made(moto, patch)
        server = RunningServer(tmp_path_factory.mktemp("aws-node"), env=aws_env(module_aws, secret))
        server.start()
        yield server
        server.close()


@pytest.fixture(scope="module")
def load(node: RunningServer) -> Iterator[Load]:
    with Load(node) as load:
        yield load


def gone(forward: Forward) -> Answer:
    forward()
    return Answer(400, b'{"__type": "ResourceNotFoundException"}')


FAULTS: dict[str, tuple[Fault | str, str]] = {
    **{name: (fault, "key_source_unavailable") for name, fault in TROUBLES.items()},
    **{name: (fault, "key_refused") for name, fault in {**REFUSALS, **BAD_VALUES, "gone": gone}.items()},
    "stall": ("stall", "key_source_unavailable"),
}


# One of each kind; the others are as a first start and tests/test_aws_keys.py meet them, and run in `make test-long`.
OFTEN = {"throttling", "500", "stall", "cut", "no permission", "gone", "empty", "malformed", "short keys"}
UNDER_LOAD = [
    pytest.param(*met, id=name, marks=() if name in OFTEN else pytest.mark.long) for name, met in FAULTS.items()
]


@pytest.mark.parametrize(("fault", "outcome"), UNDER_LOAD)
def test_whatever_aws_does_no_request_fails_and_the_alarm_rises_and_falls(
    node, load, module_aws, fault, outcome
) -> None:
    module_aws.faults.clear()
    wait_until(lambda: failing(node) == 0, within_s=20, what="all is well before")
    before, active = told(node), states_by(load)
    module_aws.faults["GetSecretValue"] = module_aws.stall if fault == "stall" else fault
    wait_until(lambda: failing(node) == 1, within_s=20, what="the alarm rises")
    if fault != "stall":
        module_aws.wait_for("GetSecretValue", 1)
    load.another_round()
    assert told(node)[len(before) :] == [("keys_refused", outcome)]  # once, however many looks
    with a_client(node) as client:
        assert client.get("/readyz").status_code == 200
    module_aws.faults.clear()
    wait_until(lambda: failing(node) == 0, within_s=20, what="the alarm falls")
    load.another_round()
    assert told(node)[len(before) :] == [("keys_refused", outcome), ("keys_back", "ok")]
    assert states_by(load) == active
    assert load.failures == []
    assert "canary" not in node.log_text()


def states_by(load: Load) -> set[str]:
    """The kids that signed since the last time."""
    load.kids.clear()
    load.another_round()
    return set(load.kids)


def test_under_load_there_is_one_call_in_an_interval(node, load, module_aws) -> None:
    module_aws.faults.clear()
    module_aws.wait_for("GetSecretValue", 1)
    began, rounds = time.monotonic(), load.rounds
    module_aws.wait_for("GetSecretValue", 4)
    took_s = time.monotonic() - began
    assert load.rounds > rounds
    assert took_s > 3.5  # intervals of 0.9 to 1 s
    assert module_aws.calls.keys() <= {"GetSecretValue", "PutSecretValue", "CreateSecret"}


def test_the_age_of_the_keys_is_a_metric(node) -> None:
    with a_client(node) as client:
        text = client.get("/metrics").text
    assert re.search(r"^sekisho_keys_stale_seconds \d", text, re.MULTILINE)


def test_several_workers_show_one_alarm(serve, postgres_url, aws, secret) -> None:
    server = serve(database_url=postgres_url, env=aws_env(aws, secret), args=["--workers", "2"])
    wait_until(lambda: len(events(server, "started")) == 2, within_s=60, what="both workers run")
    aws.faults["GetSecretValue"] = aws_proxy.throttled
    wait_until(lambda: failing(server) == 1, within_s=20)
    wait_until(lambda: len(events(server, "keys_refused")) == 2, within_s=20, what="each worker has told")
    aws.faults.clear()
    wait_until(lambda: failing(server) == 0, within_s=20)
    assert len(events(server, "keys_back")) == 2


def test_a_stop_does_not_wait_for_aws(serve, aws, secret) -> None:
    server = serve(env=aws_env(aws, secret))
    aws.faults["GetSecretValue"] = aws.stall
    wait_until(lambda: told(server), within_s=20, what="a look has failed")
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 5


# --- starting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [fault for fault, _ in FAULTS.values()], ids=FAULTS.keys())
def test_a_first_start_without_good_keys_is_refused_in_one_line(tmp_path, aws, secret, monkeypatch, fault) -> None:
    monkeypatch.setattr(key_watch, "_START_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(secrets_manager, "READ_S", 0.2)
    aws.faults["GetSecretValue"] = aws.stall if fault == "stall" else fault
    answer = sekisho_here("serve", folder=tmp_path, env=aws_env(aws, secret))
    assert_refused(answer)
    assert aws.calls["GetSecretValue"] <= 3


def assert_refused(answer: Command) -> None:
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.count("\n") == 1, answer.err
    assert re.match(r"sekisho: SEKISHO_KEYS: (?:there are no keys in )?aws:sekisho/nodes-", answer.err)
    assert "canary" not in answer.err


def test_a_real_start_is_refused_with_status_2(tmp_path, aws, secret) -> None:
    aws.faults["GetSecretValue"] = aws_proxy.throttled
    answer = sekisho("serve", folder=tmp_path, env=aws_env(aws, secret))
    assert_refused(answer)
    assert "ThrottlingException" in answer.err


def test_a_start_survives_a_call_that_is_throttled(serve, aws, secret) -> None:
    calls = count()
    aws.faults["GetSecretValue"] = lambda forward: forward() if next(calls) else aws_proxy.throttled(forward)
    serve(env=aws_env(aws, secret))


def test_no_secret_yet(tmp_path, aws) -> None:
    answer = sekisho_here("serve", folder=tmp_path, env=aws_env(aws, a_secret()))
    assert_refused(answer)
    assert REGION in answer.err
    assert "type sekisho keys new" in answer.err
    assert "CreateSecret" not in aws.calls  # nobody makes keys up


def test_without_boto3_the_start_is_refused_in_one_line(tmp_path, aws, monkeypatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("sekisho.sources.aws", "sekisho.sources.secrets"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "boto3", None)
    for command in (["serve"], ["keys", "list"]):
        answer = sekisho_here(*command, folder=tmp_path, env=aws_env(aws, a_secret()))
        assert (answer.status, answer.err.count("\n")) == (2, 1)
        assert "install sekisho[aws]" in answer.err
