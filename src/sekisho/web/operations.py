"""The routes for machines: keys for verifiers, health for the platform, metrics for Prometheus."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from pydantic import BaseModel

from sekisho.integrations.prometheus import refused_tokens
from sekisho.services.hashing import HashingPool
from sekisho.services.revocation_watch import RevocationWatch
from sekisho.storage.engine import Database
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.revoked import RevokedSessions
from sekisho.verify import Verifier
from sekisho.web.feed import Feed
from sekisho.web.problems import documented


class Health(BaseModel):
    """The state of this node."""

    status: str


class JwkSet(BaseModel):
    """A JSON Web Key Set (RFC 7517 §5)."""

    keys: list[dict[str, Any]]


def add_routes(
    router: APIRouter, *, key_set: Callable[[], KeySet], database: Database, registry: CollectorRegistry
) -> None:
    """Adds the operational routes."""

    @router.get("/.well-known/jwks.json", tags=["Operations"], responses=documented())
    async def jwks(response: Response) -> JwkSet:
        """The public signing keys. Empty with HS256: a shared secret is never published."""
        response.headers["Cache-Control"] = "public, max-age=60"
        response.headers["Vary"] = "Accept-Encoding"
        return JwkSet(keys=list(key_set().public_jwks()["keys"]))

    @router.get("/healthz", tags=["Operations"], responses=documented())
    async def healthz() -> Health:
        """Alive. Never asks the database: a restart would not mend it (and a restart of all nodes would hurt)."""
        return Health(status="alive")

    @router.get("/readyz", tags=["Operations"], responses=documented(503))
    async def readyz() -> Health:
        """Ready for traffic: the database answers."""
        await database.ping()
        return Health(status="ready")

    @router.get(
        "/metrics", tags=["Operations"], response_class=Response, responses={**documented(), 200: _PROMETHEUS_TEXT}
    )
    async def metrics() -> Response:
        """Prometheus metrics; with several workers, of all of them."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            merged = CollectorRegistry()
            MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
            return Response(generate_latest(merged), media_type=CONTENT_TYPE_LATEST)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


_PROMETHEUS_TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}


def add_gauges(
    registry: CollectorRegistry,
    *,
    revoked: RevokedSessions,
    watch: RevocationWatch,
    passwords: HashingPool,
    verifier: Verifier,
    feed: Feed,
    keys_stale_s: Callable[[], float],
) -> None:
    """Values that are read when somebody asks. Not with several workers: their files hold only what was counted."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        return
    for name, text, read in (
        ("sekisho_revocations_live", "Ended sessions whose access tokens are refused.", lambda: len(revoked)),
        ("sekisho_revocations_age_seconds", "Age of this node's view of the revocations.", lambda: watch.age_s),
        ("sekisho_hashing_waiting", "Passwords that wait for a hashing thread.", lambda: passwords.waiting),
        ("sekisho_feed_readers", "Verifiers that follow the revocations here.", lambda: feed.readers),
        ("sekisho_keys_stale_seconds", "Since the source of the keys was last found well.", keys_stale_s),
    ):
        Gauge(name, text, registry=registry).set_function(read)
    registry.register(_RefusedTokens(verifier))


class _RefusedTokens(Collector):
    """What the verifier counted; it knows nothing of Prometheus."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def collect(self) -> Iterator[Metric]:
        yield refused_tokens(self._verifier)
