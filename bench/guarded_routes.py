"""What does a guarded route cost beside the bare one, in each framework, and beside what others guard it with?

GET /customers over connections that are kept open. A server is one process on a core of its own and has all the work
that it can do; the clients have another core. Every request carries a token, one of 200 in turn, to bare routes too:
the difference is the guard's alone. Sekisho's are signed with EdDSA, the peers' with HS256, the cheapest that there is.
Every server is started several times and measured in rounds between its neighbours; each answer must be a 200.
gc.freeze() is called in all of them, which helps all of them.

`BENCH_SHORT=1 make bench T=bench/guarded_routes.py` takes half a minute instead of five, and shows only that it works.
"""

import json
import os
import random
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jwt
import redis

from _load import LoadProcess, request
from _peers import AUDIENCE, ISSUER, claims_of, new_token
from _report import median, progress, start, table
from sekisho.tokens.keys import Key, generate_key

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from _routes import NOBODY, PATH, Checks, Cores, Server, bearer, forged
from _routes.measured import Measured, Target, show_targets
from servers.leash import remove_folder, temporary_folder
from servers.redis import RedisServer

SHORT = bool(os.environ.get("BENCH_SHORT"))
STARTS, ROUNDS, ROUND_S, WARM_UP_S = (1, 2, 0.3, 0.3) if SHORT else (3, 4, 0.8, 0.4)
CLIENTS = 16
TOKENS = 200
TOKEN_LIVES_S = 3600  # as long as the whole run, and as a verifier allows
SESSIONS = "sessions"


@dataclass(eq=False)
class Route(Measured):
    """A server. ``kind``: of the credential that it takes; "" for a bare one."""

    app: str
    kind: str


@dataclass(eq=False)
class Framework:
    """The bare route, and the same one guarded. They are measured side by side."""

    name: str
    bare: Route
    ours: Sequence[Route]
    peers: Sequence[Route] = ()

    @property
    def routes(self) -> list[Route]:
        return [self.bare, *self.ours, *self.peers]

    def share(self, route: Route) -> float:
        return route.times(self.bare)

    def added_us(self, route: Route) -> float:
        return route.added_us(self.bare)


class Credentials:
    """What the servers are told, and by what clients make themselves known to them."""

    def __init__(self) -> None:
        now = int(time.time())
        self._key = generate_key("EdDSA", purpose="sign", state="active", now=now)
        self._secret = secrets.token_urlsafe(48)
        ours = [self._new(self._key, now) for _ in range(TOKENS)]
        claims = [claims_of(token) for token in ours]
        self._subjects = [claim["sub"] for claim in claims]
        self._sessions = {secrets.token_urlsafe(32): claim for claim in claims}
        self._good = {
            "": ours,
            "sekisho": ours,
            "pyjwt": [self._peer(claim) for claim in claims],
            SESSIONS: list(self._sessions),
        }
        ended, expired = self._new(self._key, now), self._new(self._key, now - 2 * TOKEN_LIVES_S)
        elsewhere = {"iss": "https://elsewhere.example.com"}, {"aud": "elsewhere"}, {"exp": now - 1000}
        self._ended_session = claims_of(ended)["sid"]
        self._bad = {
            "": [],
            "sekisho": [ended, expired, forged(ours[0]), self._new(self._key, now, audience="elsewhere")],
            "pyjwt": [forged(self._good["pyjwt"][0]), *(self._peer(claims[0] | other) for other in elsewhere)],
            SESSIONS: [secrets.token_urlsafe(32)],
        }

    def clients(self, kind: str) -> list[list[str]]:
        """Each has its own tokens, as users have."""
        texts = [request("GET", PATH, token=token) for token in self._good[kind]]
        return [texts[client::CLIENTS] for client in range(CLIENTS)]

    def checks(self, kind: str) -> Checks:
        bad = [bearer(credential) for credential in self._bad[kind]]
        return Checks(good=bearer(self._good[kind][0]), user=self._subjects[0], bad=bad)

    def tell_servers(self, folder: Path, store: RedisServer) -> Path:
        """The file that they read. The sessions are put into Redis."""
        client = redis.Redis.from_url(store.url)
        for session, claims in self._sessions.items():
            client.set(f"session:{session}", json.dumps(claims))
        client.close()
        told = {
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "jwks": {"keys": [self._key.public_jwk()]},
            "secret": self._secret,
            "subjects": self._subjects,
            "nobody": NOBODY,
            "redis_url": store.url,
            "ended_session": self._ended_session,
        }
        path = folder / "given.json"
        path.write_text(json.dumps(told))
        return path

    def _new(self, key: Key, now: int, *, audience: str = AUDIENCE) -> str:
        return new_token(key, now, audience=audience, lifetime_s=TOKEN_LIVES_S)

    def _peer(self, claims: dict[str, object]) -> str:
        """The same claims, and the two words for "access" that simplejwt and Flask-JWT-Extended ask for."""
        return jwt.encode(claims | {"token_type": "access", "type": "access"}, self._secret, algorithm="HS256")


def frameworks() -> list[Framework]:
    def ours(name: str, app: str) -> Route:
        return Route(name, app, "sekisho")

    fastapi = Framework(
        "FastAPI",
        Route("FastAPI", "fastapi_apps:bare", ""),
        [
            ours("FastAPI, dependency", "fastapi_apps:dependency"),
            ours("the same, 1,000,000 ended sessions", "fastapi_apps:dependency_of_a_million"),
            ours("FastAPI, middleware", "fastapi_apps:middleware"),
        ],
        [
            Route("FastAPI, PyJWT in a dependency", "fastapi_apps:pyjwt", "pyjwt"),
            Route("FastAPI, session look-up in Redis", "fastapi_apps:redis_sessions", SESSIONS),
        ],
    )
    starlette = Framework(
        "Starlette",
        Route("Starlette", "starlette_apps:bare", ""),
        [
            ours("Starlette, decorator", "starlette_apps:decorator"),
            ours("Starlette, middleware", "starlette_apps:middleware"),
        ],
    )
    asgi = Framework(
        "raw ASGI",
        Route("raw ASGI", "asgi_apps:bare", ""),
        [ours("raw ASGI, middleware", "asgi_apps:middleware")],
    )
    django = Framework(
        "Django",
        Route("Django", "django_apps:plain('bare')", ""),
        [
            ours("Django, middleware", "django_apps:plain('middleware')"),
            ours("Django, decorator", "django_apps:plain('decorator')"),
        ],
    )
    rest = Framework(
        "DRF",
        Route("DRF", "django_apps:rest('bare')", ""),
        [ours("DRF, authentication class", "django_apps:rest('ours')")],
        [
            Route("DRF, simplejwt without a user", "django_apps:rest('stateless')", "pyjwt"),
            Route("DRF, simplejwt, user from SQLite", "django_apps:rest('database')", "pyjwt"),
        ],
    )
    flask = Framework(
        "Flask",
        Route("Flask", "flask_apps:bare()", ""),
        [ours("Flask, decorator", "flask_apps:decorator()")],
        [Route("Flask, Flask-JWT-Extended", "flask_apps:jwt_extended()", "pyjwt")],
    )
    return [fastapi, starlette, asgi, django, rest, flask]


class Bench:
    """Everybody who takes part."""

    def __init__(self, running: ExitStack, cores: Cores) -> None:
        self._cores = cores
        self._folder = temporary_folder("sekisho-bench-")
        running.callback(remove_folder, self._folder)
        with cores.on(cores.load):
            self._load = running.enter_context(LoadProcess())
        with cores.on(cores.redis):
            store = running.enter_context(RedisServer())
        self._credentials = Credentials()
        self._given = self._credentials.tell_servers(self._folder, store)
        self.frameworks = frameworks()

    def measure(self) -> None:
        for number in range(STARTS):
            for framework in random.sample(self.frameworks, len(self.frameworks)):
                progress(f"start {number + 1} of {STARTS}: {framework.name}")
                self._measure(framework, number)

    def _measure(self, framework: Framework, number: int) -> None:
        """New processes, and so another layout of memory and another seed of hashes."""
        with ExitStack() as running:
            servers: dict[Route, Server] = {}
            for route in framework.routes:
                folder = self._folder / f"{len(servers)}-{framework.name}-{number}"
                folder.mkdir()
                with self._cores.on(self._cores.server):
                    servers[route] = running.enter_context(Server(route.app, folder=folder, given=self._given))
            clients = {route: self._credentials.clients(route.kind) for route in servers}
            for route, server in servers.items():
                server.wait()
                server.check(self._credentials.checks(route.kind), guarded=bool(route.kind))
                self._load.run(server.port, clients[route], seconds=WARM_UP_S).expect(200)
            for _ in range(ROUNDS):
                for route in random.sample(framework.routes, len(servers)):  # nobody always has the same neighbour
                    route.measure(servers[route], self._load, clients[route], seconds=ROUND_S)


def show(frameworks: Sequence[Framework], *, peers: bool) -> None:
    rows = []
    for framework in frameworks:
        bare = framework.bare
        for route in framework.peers if peers else framework.ours:
            figures = [
                f"{median(bare.rates):.0f}",
                f"{median(route.rates):.0f}",
                f"{framework.share(route):.2f}",
                f"{framework.added_us(route):+.1f}",
                f"{bare.cpu_us / route.cpu_us:.2f}",
                f"{route.cpu_us - bare.cpu_us:+.1f}",
                f"{median(route.p99s_ms):.1f}",
            ]
            rows.append([route.name, *figures])
    head = [
        "peers" if peers else "Sekisho",
        "bare /s",
        "guarded /s",
        "share",
        "added µs",
        "share by CPU",
        "added CPU µs",
    ]
    table([*head, "p99 ms"], rows)


def targets(found: Sequence[Framework]) -> list[Target]:
    by_name = {framework.name: framework for framework in found}
    shares = {
        ("FastAPI", "FastAPI, dependency"): 0.82,
        ("FastAPI", "FastAPI, middleware"): 0.88,
        ("Starlette", "Starlette, decorator"): 0.85,
        ("Starlette", "Starlette, middleware"): 0.85,
        ("raw ASGI", "raw ASGI, middleware"): 0.92,
    }
    wanted = []
    for (name, route_name), least in shares.items():
        share = by_name[name].share(_route(by_name[name], route_name))
        wanted.append(Target(f"{route_name}: share of bare", f"≥ {least:.2f}", f"{share:.3f}", share >= least))
    cheapest = {"Django": "DRF", "DRF": "DRF", "Flask": "Flask"}
    for name, peers_name in cheapest.items():
        peers = by_name[peers_name]
        peer = min(peers.peers, key=peers.added_us)
        for route in by_name[name].ours:
            times = by_name[name].added_us(route) / peers.added_us(peer)
            text = f"{route.name}: added µs, × {peer.name.partition(', ')[2]}"
            wanted.append(Target(text, "≤ 0.33", f"{times:.2f}", times <= 1 / 3))
    return wanted


def _route(framework: Framework, name: str) -> Route:
    return next(route for route in framework.routes if route.name == name)


def explain(found: Sequence[Framework], cores: Cores) -> None:
    busiest = max(median(route.load_shares) for framework in found for route in framework.routes)
    print(cores.text())
    print(f"{CLIENTS} clients, {STARTS} starts of {ROUNDS} rounds of {ROUND_S} s. Load: {busiest:.0%} of its core.")
    print("Share and added µs: of each round's rates, beside the bare route's in the same round. By CPU: the CPU time")
    print("of the server per request, which others on the machine change less. Waiting for Redis is not in it.")


def versions() -> str:
    names = ("fastapi", "starlette", "uvicorn", "Django", "djangorestframework", "Flask", "gunicorn")
    peers = ("PyJWT", "redis", "djangorestframework-simplejwt", "Flask-JWT-Extended")
    return "\n".join(", ".join(f"{name} {version(name)}" for name in some) for some in (names, peers))


def main() -> None:
    start("Guarded routes")
    print(versions(), flush=True)
    cores = Cores()
    with ExitStack() as running:
        bench = Bench(running, cores)
        bench.measure()
    show(bench.frameworks, peers=False)
    show(bench.frameworks, peers=True)
    show_targets(targets(bench.frameworks))
    explain(bench.frameworks, cores)


if __name__ == "__main__":
    main()
