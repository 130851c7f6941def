"""Keys of every kind turn over while people work, on three nodes and at verifiers elsewhere, and nobody notices.

Time is scaled. Nodes look at the key file as ever, every three seconds, each at its own time. Verifiers fetch the
issuer's keys every half second instead of every five minutes, so the ten minutes for which a key is published before it
signs become the seconds until the last node and after it the last verifier has heard of it. That the ten minutes are
enough for both, as the constants are, is a test of its own.

While the issuer signs with HS256 it publishes nothing that could check its tokens: verifiers elsewhere then answer 503
(keys_unavailable), never 401. With the first public key that is published such tokens are for the nodes alone.

What a key that leaked has signed is refused by the feed, so there verifiers go by their true constants: without the
feed they would accept it for minutes.

That a flood of unknown kids costs one fetch in each interval is held in test_verifier_remote.py.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest

from sekisho.settings import MAX_KEYS_POLL_S
from sekisho.tokens.algorithms import AlgorithmName
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.keys import Purpose, State
from sekisho.tokens.refresh import PREFIX
from sekisho.tokens.turnover import PUBLISHED_FIRST_S
from sekisho.verify import keyset
from sekisho.web.key_watch import EVERY_S, LOOK_S
from sekisho.wire import b64url_decode
from servers.sekisho_server import RunningServer
from test_serve import Person, a_client, events, header_of, sekisho_here, wait_until
from turnover_load import PACE, Checkpoint, Load, TokenSession, a_page, signed_in

SELDOM_LOOKING = Path(__file__).parent / "servers" / "seldom_looking.py"
ISSUER = "https://auth.example.com"
AUDIENCE = "shop"
AT_ONCE_S = 1.0  # P2 of the design
SLOW = 2  # so much longer may things take on a machine that others use, too

# How verifiers elsewhere fetch keys, scaled; and how they do.
SCALED = {"_EVERY_S": 0.5, "UNKNOWN_EVERY_S": 0.1, "_LONGEST_PAUSE_S": 0.5}
TRUE = {name: getattr(keyset, name) for name in SCALED}
ASK_EVERY_S = 0.05
HEARD_S = 1.2 * SCALED["_EVERY_S"] + keyset._WITHIN_S  # a verifier has heard of what a node publishes
REFUSED = {"401", "401 token_revoked", "401 token_key_unknown"}
T = TypeVar("T")
PURPOSES_BESIDE: tuple[Purpose, ...] = ("refresh", "csrf")


@dataclass
class World:
    """Three nodes, three verifiers elsewhere, and who rotates the keys."""

    env: dict[str, str]
    folder: Path
    nodes: list[RunningServer] = field(default_factory=list)
    clients: list[httpx2.Client] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    seldom: RunningServer | None = None  # a node that is not started until keys leak; it looks at them once an hour

    def types(self, *args: str, algorithm: AlgorithmName | None = None) -> str:
        """A command, with that algorithm in its environment alone."""
        chosen = {} if algorithm is None else {"SEKISHO_SIGNING_ALGORITHM": algorithm}
        answer = sekisho_here(*args, folder=self.folder, env={**self.env, **chosen})
        assert answer.status == 0, answer.err
        return answer.out

    def key(self, state: State, purpose: Purpose = "sign") -> dict[str, Any]:
        """The key in a state that one key alone can have. Of the file: to load RSA keys takes a while."""
        [key] = [key for key in self._keys() if (key["purpose"], key["state"]) == (purpose, state)]
        return key

    def kid(self, purpose: Purpose = "sign") -> str:
        """Of the key that signs."""
        return self.key("active", purpose)["kid"]

    def publish(self, algorithm: AlgorithmName | None = None, *, purpose: Purpose = "sign") -> None:
        signing = self.kid(purpose)
        assert "Published" in self.types("keys", "rotate", "--purpose", purpose, algorithm=algorithm)
        assert self.kid(purpose) == signing

    def promote(self, algorithm: AlgorithmName | None = None, *, purpose: Purpose = "sign") -> None:
        """The key that is published already. ``--now``: the time is scaled, and has passed."""
        waiting = self.key("next", purpose)["kid"]
        self.types("keys", "rotate", "--purpose", purpose, "--now", algorithm=algorithm)
        assert self.kid(purpose) == waiting

    def published(self) -> set[str]:
        """The kids that everybody should see."""
        signing = [key for key in self._keys() if key["purpose"] == "sign" and key["alg"] != "HS256"]
        return {key["kid"] for key in signing if key["state"] != "retired"}

    def all_have_heard(self) -> tuple[float, float]:
        """Every node has taken the key set up, and after that every verifier what is published of it; how long it took.

        Of one look a node takes everything, so what it publishes tells that it has the other keys, too.
        """
        began, kids = time.monotonic(), self.published()
        _until_each(
            self.clients,
            lambda client: {jwk["kid"] for jwk in client.get("/.well-known/jwks.json").json()["keys"]} == kids,
            within_s=SLOW * EVERY_S,
            what="every node has taken the keys up",
        )
        taken_up = time.monotonic()
        _until_each(
            self.checkpoints,
            lambda checkpoint: set(checkpoint.report()["kids"]) == kids,
            within_s=SLOW * HEARD_S,
            what="every verifier has heard of the keys",
        )
        return taken_up - began, time.monotonic() - taken_up

    def _keys(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "keys.json").read_text())["keys"]

    def outcomes(self, token: str) -> list[str]:
        """What every node and every verifier says of an access token."""
        headers = {"Authorization": f"Bearer {token}"}
        return [str(client.get("/me", headers=headers).status_code) for client in self.clients] + [
            checkpoint.ask(token) for checkpoint in self.checkpoints
        ]

    def lets_in(self, sessions: list[TokenSession]) -> None:
        """By their newest tokens, everywhere."""
        for session in sessions:
            assert set(self.outcomes(session.access_token)) == {"200"}


def _until_each(places: list[T], holds: Callable[[T], bool], *, within_s: float, what: str) -> None:
    """Of each place until it holds there, and not so often that the asking is a load of its own."""
    left = list(places)

    def all_do() -> bool:
        left[:] = [place for place in left if not holds(place)]
        time.sleep(ASK_EVERY_S if left else 0)
        return not left

    wait_until(all_do, within_s=within_s, what=what)


@pytest.fixture
def world(postgres, tmp_path_factory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("operator")
    url = postgres.create_database()
    env = {
        "SEKISHO_ISSUER": ISSUER,
        "SEKISHO_AUDIENCE": AUDIENCE,
        "SEKISHO_KEYS": f"file:{folder / 'keys.json'}",
        "SEKISHO_DATABASE_URL": url,
    }
    world = World(env, folder)
    with ExitStack() as running:
        running.callback(postgres.drop_database, url)
        world.types("keys", "new")
        world.types("db", "upgrade")
        credential = world.types("verifiers", "add", "shop").strip()
        world.nodes += [RunningServer(tmp_path_factory.mktemp("node"), env=env, upgrade=False) for _ in range(3)]
        world.seldom = RunningServer(
            tmp_path_factory.mktemp("node"), env=env, upgrade=False, program=(sys.executable, SELDOM_LOOKING)
        )
        for node in (*world.nodes, world.seldom):
            running.callback(node.close)
        with ThreadPoolExecutor(len(world.nodes)) as pool:
            list(pool.map(RunningServer.start, world.nodes))
        world.clients += [running.enter_context(a_client(node)) for node in world.nodes]
        urls = [node.base_url for node in world.nodes]
        plain = {"PATH": os.defpath, "LANG": "C.UTF-8"}
        for number, base_url in enumerate(urls):
            named = {
                "issuer": ISSUER,
                "audience": AUDIENCE,
                "jwks_url": f"{base_url}/.well-known/jwks.json",
                "revocations_url": [f"{other}/revocations" for other in urls[number + 1 :] + urls[:number]],
                "credential": credential,
            }
            world.checkpoints.append(Checkpoint(tmp_path_factory.mktemp("verifier"), plain, named=named, **SCALED))
            running.callback(world.checkpoints[-1].close)
        wait_until(
            lambda: all(checkpoint.report()["state"] == "fresh" for checkpoint in world.checkpoints),
            within_s=30,
            what="every verifier follows the feed",
        )
        yield world


Tell = Callable[..., None]


@pytest.fixture
def tell(record_property) -> Tell:
    """Measured values: `pytest -rP` shows them."""

    def told(**measured: object) -> None:
        for name, value in measured.items():
            record_property(name, value)
            print(f"{name}: {value}")  # noqa: T201

    return told


def a_load(world: World, *, sessions: int) -> tuple[Load, Person]:
    """So many sessions of each kind, opened at all nodes in turn; and somebody who has an account with all of them."""
    person = Person(world.clients[0]).signs_up()
    by_tokens, by_cookie = [], []
    for number in range(sessions):
        client = world.clients[number % len(world.clients)]
        by_tokens.append(TokenSession.of(Person(client, person.email).logs_in()))
        by_cookie.append(signed_in(client, person.email, a_page(client, ISSUER)))
    load = Load([node.base_url for node in world.nodes], [c.port for c in world.checkpoints], by_tokens, by_cookie)
    return load, person.logs_in()


def retires_a_refresh_key(world: World, load: Load, person: Person, old: str) -> None:
    """Nothing needs it any more: every session has refreshed since another makes the tokens."""
    load.all_refresh()
    person.tokens = person.refresh().json()
    kids = {_kid_of(token) for token in (person.refresh_token, *(session.refresh_token for session in load.by_tokens))}
    assert kids == {world.kid("refresh")} != {old}
    world.types("keys", "retire", old, "--now")


def _kid_of(refresh_token: str) -> str:
    data = b64url_decode(refresh_token.removeprefix(PREFIX))
    return data[2 : 2 + data[1]].decode()


def everyone_still_works(world: World, load: Load, person: Person) -> None:
    """After the load: every session is there, can refresh, and can be ended by who has it."""
    for number, session in enumerate(load.by_tokens):
        client = world.clients[number % len(world.clients)]
        assert client.post("/refresh", json={"refresh_token": session.refresh_token}).status_code == 200
    assert person.refresh().status_code == 200
    listed = world.clients[0].get("/sessions", headers={"Authorization": f"Bearer {load.by_tokens[0].access_token}"})
    assert len(listed.json()["sessions"]) == len(load.by_tokens) + len(load.by_cookie) + 1
    for session in load.by_cookie:  # with the CSRF token of a page that was loaded before all of this
        headers = {**session.headers, "X-CSRF-Token": session.first_page}
        assert world.clients[-1].delete("/session", headers=headers).status_code == 204


def nothing_was_told(world: World, *names: str) -> None:
    for node in world.nodes:
        assert events(node, *names) == []


REFUSALS = ("refresh_refused", "csrf_refused", "theft_found", "crashed", "storage_failed", "keys_refused", "put_off")


def test_every_key_turns_over_and_one_that_leaked_goes_at_once(world, tell):
    load, person = a_load(world, sessions=4)
    open_page = a_page(world.clients[0], ISSUER)  # somebody who looks at the login all the while
    first_refresh_token, first_refresh_key = load.by_tokens[0].refresh_token, world.kid("refresh")
    heard = []

    def settles() -> None:
        heard.append(world.all_have_heard())
        load.all_refresh()
        world.lets_in(load.by_tokens)

    with load:
        load.goes_on(200)
        load.no_more_without_keys()
        for purpose in PURPOSES_BESIDE:
            world.publish(purpose=purpose)
        world.publish("EdDSA")
        heard.append(world.all_have_heard())

        world.promote(purpose="refresh")
        world.promote("EdDSA")
        world.publish("ES256")  # the EdDSA key that was published for the time after never signs
        settles()
        retires_a_refresh_key(world, load, person, first_refresh_key)
        world.promote(purpose="csrf")
        world.promote("ES256")
        world.publish("RS256")
        settles()
        world.promote("RS256")
        settles()
        world.promote("RS256")  # and from key to key of one algorithm
        settles()
        load.goes_on(200)

        assert [set(checkpoint.report()["kids"]) for checkpoint in world.checkpoints] == [world.published()] * 3
        assert len(load.by_tokens[0].tokens) == 5  # one of each key that has signed, all of them accepted to the end
        tell(**_told(load, heard))
        took_s = a_leak(world, load, person)
        tell(refused_everywhere_after_s=round(took_s, 3), turned_away=_turned_away(load))
    assert not load.wrong
    assert load.algorithms == {
        "me HS256",
        *(f"{kind} {algorithm}" for kind in ("me", "verify") for algorithm in ("EdDSA", "ES256", "RS256")),
    }
    nothing_was_told(world, *REFUSALS)
    load.by_cookie.append(signed_in(world.clients[1], person.email, open_page))
    # What the retired refresh key has made is worth nothing, and ends nothing.
    late = world.clients[0].post("/refresh", json={"refresh_token": first_refresh_token})
    assert late.status_code == 401
    everyone_still_works(world, load, person)


def a_leak(world: World, load: Load, person: Person) -> float:
    """The signing key goes at once; after how many seconds what it has signed was refused everywhere.

    By the feed alone: verifiers would fetch the keys again in minutes, and a fourth node look at them in an hour.
    """
    for checkpoint in world.checkpoints:
        checkpoint.report(**TRUE)
    leaked, algorithm, waiting = world.kid(), world.key("active")["alg"], world.key("next")["kid"]
    world.seldom.env["SEKISHO_SIGNING_ALGORITHM"] = algorithm
    world.seldom.start()  # and meanwhile verifiers have fetched for the last time by the scaled constants
    person.tokens = person.refresh().json()
    stolen = person.access_token
    assert header_of(stolen)["kid"] == leaked
    with a_client(world.seldom) as fourth:
        world.clients.append(fourth)
        assert set(world.outcomes(stolen)) == {"200"}
        load.may_refuse(leaked)
        world.types("keys", "retire", leaked, "--now", algorithm=algorithm)
        began = time.monotonic()
        wait_until(
            lambda: set(world.outcomes(stolen)) <= REFUSED,
            within_s=SLOW * AT_ONCE_S,
            what="the token is refused everywhere",
        )
        took_s = time.monotonic() - began
        load.must_refuse(leaked)
        for client in world.clients:
            renewed = renewed_at(client, person, waiting)
            assert set(world.outcomes(renewed)) == {"200"}
        load.all_refresh()
        assert {session.newest for session in load.by_tokens} == {waiting}
        world.lets_in(load.by_tokens)
        load.goes_on(sum(PACE.values()))
        reports = [checkpoint.report() for checkpoint in world.checkpoints]
        assert all(waiting in report["kids"] and leaked not in report["kids"] for report in reports)
        assert set(world.outcomes(stolen)) <= REFUSED
        world.clients.remove(fourth)
    return took_s


def renewed_at(client: httpx2.Client, person: Person, kid: str) -> str:
    """The access token that a refresh gives, as soon as this node signs with this key."""

    def signed() -> str:
        refreshed = person.refresh(client)
        assert refreshed.status_code == 200, refreshed.text
        token = refreshed.json()["access_token"]
        return token if header_of(token)["kid"] == kid else ""

    return wait_until(signed, within_s=SLOW * AT_ONCE_S, what=f"{client.base_url} signs with the next key")


def _turned_away(load: Load) -> int:
    return sum(number for (kind, answer), number in load.answers.items() if "withdrawn" in kind and answer[:3] == "401")


def _told(load: Load, heard: list[tuple[float, float]]) -> dict[str, object]:
    seconds = time.monotonic() - load._began
    return {
        "requests": load.number,
        "a_second": round(load.number / seconds),
        "answers": {" ".join(answer): number for answer, number in sorted(load.answers.items())},
        "nodes_took_up_within_s": round(max(nodes for nodes, _ in heard), 2),
        "verifiers_heard_within_s": round(max(verifiers for _, verifiers in heard), 2),
    }


@pytest.mark.long  # three times through all of it, with more people
def test_for_minutes_every_key_turns_over_again_and_again(world, tell):
    load, person = a_load(world, sessions=20)
    heard = []
    rounds = ("EdDSA", "ES256", "RS256", "RS256") * 3
    with load:
        load.no_more_without_keys()
        for purpose in PURPOSES_BESIDE:
            world.publish(purpose=purpose)
        world.publish(rounds[0])
        heard.append(world.all_have_heard())
        for algorithm, after in zip(rounds, (*rounds[1:], rounds[-1]), strict=True):
            refresh = world.kid("refresh")
            for purpose in PURPOSES_BESIDE:
                world.promote(purpose=purpose)
            world.promote(algorithm)
            if after != algorithm:
                world.publish(after)
            heard.append(world.all_have_heard())
            retires_a_refresh_key(world, load, person, refresh)
            world.lets_in(load.by_tokens)
            load.goes_on(5 * sum(PACE.values()))
        tell(**_told(load, heard))
        tell(refused_everywhere_after_s=round(a_leak(world, load, person), 3), turned_away=_turned_away(load))
    assert not load.wrong
    nothing_was_told(world, *REFUSALS)
    everyone_still_works(world, load, person)


# --- what the scaled time rests on ------------------------------------------------------------------------------------


def test_a_key_is_published_for_longer_than_anybody_goes_by_an_older_set():
    assert TRUE == {"_EVERY_S": 300, "UNKNOWN_EVERY_S": 30, "_LONGEST_PAUSE_S": 5}
    node_s = max(MAX_KEYS_POLL_S, EVERY_S) + LOOK_S  # until the last node publishes it
    verifier_s = keyset._EVERY_S * 1.2 + keyset._WITHIN_S  # until the last verifier has fetched that
    assert node_s + verifier_s < PUBLISHED_FIRST_S


def test_a_key_that_leaked_is_followed_by_the_one_that_everybody_knows(tmp_path):
    """Whatever the environment says of keys yet to be made: verifiers elsewhere could not check an HS256 key's tokens."""
    env = {"SEKISHO_KEYS": "file:keys.json"}
    for args in (["new"], ["rotate"]):
        made = sekisho_here("keys", *args, folder=tmp_path, env={**env, "SEKISHO_SIGNING_ALGORITHM": "EdDSA"})
        assert made.status == 0
    path = tmp_path / "keys.json"
    before = KeySet.from_json(path.read_bytes())
    retired = sekisho_here("keys", "retire", before.active("sign").kid, "--now", folder=tmp_path, env=env)
    assert retired.status == 0, retired.err
    assert KeySet.from_json(path.read_bytes()).active("sign").kid == before.next("sign").kid
