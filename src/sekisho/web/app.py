"""The composition root: settings become parts, and the parts a router, a verifier and an application."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from sekisho.errors import StartRefused, told_alone
from sekisho.passwords import BCRYPT_12, OWASP, PasswordHasher, Profile
from sekisho.services.accounts import Accounts
from sekisho.services.alarm import Alarm, OnTheft
from sekisho.services.change_password import ChangePassword
from sekisho.services.cookie_sessions import CookieSessions
from sekisho.services.events import Event, Events, where
from sekisho.services.hashing import HashingPool
from sekisho.services.login import Login
from sekisho.services.logout import Logout
from sekisho.services.mint import Mint
from sekisho.services.password_policy import PasswordRules
from sekisho.services.purge import Purge
from sekisho.services.refresh import Refresh
from sekisho.services.revocation_watch import RevocationWatch
from sekisho.services.sessions import SessionLimits, Sessions
from sekisho.services.signup import SignUp
from sekisho.services.stall import StallWatch
from sekisho.services.throttle import Throttle
from sekisho.services.verifiers import Verifiers
from sekisho.settings import MAX_ACCESS_TTL_S, Settings
from sekisho.sources import KeySource, source_from
from sekisho.storage import migrate
from sekisho.storage.engine import Database
from sekisho.storage.redis import RedisGrapevine
from sekisho.storage.session_cache import RedisSessionCache
from sekisho.tokens.keyring import Keyring, KeySet
from sekisho.tokens.revoked import RevokedSessions
from sekisho.verify import Verifier
from sekisho.verify.origin import origin_of
from sekisho.verify.renewal import Bearer, Renewed
from sekisho.web import api, introspect, operations, session
from sekisho.web.cookies import WebCookies
from sekisho.web.credentials import CurrentCredential, CurrentUser, Requests
from sekisho.web.csrf import Csrf
from sekisho.web.feed import Feed, VerifierCredential, ended_by_signals
from sekisho.web.feed_log import FeedLog
from sekisho.web.key_watch import EVERY_S, KeyWatch
from sekisho.web.route import Latency, route_class

LEEWAY_S: Final = 10
_LONGEST_LEEWAY_S: Final = 60  # that a verifier elsewhere may have
_ENTRY_MARGIN_S: Final = 60  # a revocation outlives the last access token by this much


class Sekisho:
    """The whole server: mount ``router`` in an application of your own, or run ``app()``.

    The constructor does no I/O. Keys are loaded, and the schema looked at, when the application starts.
    """

    def __init__(self, settings: Settings, *, on_theft: OnTheft | None = None) -> None:
        """``on_theft``: an async function, or a plain one (called in a thread), for a session that ended for theft.

        The node that found the theft calls it after the commit, once, and not again if the process dies first or never
        hears that the commit succeeded: the row in the table ``thefts`` is what lasts.
        """
        self.settings = settings
        self.registry = CollectorRegistry()
        self._started = False
        with told_alone():
            self.database = Database(
                settings.database_url.get_secret_value(),
                # With half as much for a server that stands still, W/8 at the most: services/stall.py counts on it.
                statement_timeout_ms=min(1000, settings.replay_window_s * 1000 // 12),
            )
            self._grapevine = self._redis_grapevine(settings.redis_url)
            self._session_cache = self._redis_session_cache(settings.redis_url)
            self._throttle = Throttle(redis_url=settings.redis_url.get_secret_value() if settings.redis_url else None)
        self._events = Events(self.registry)
        self._revoked = RevokedSessions()
        self._feed_log = FeedLog(revoked=self._revoked)
        self._watch = RevocationWatch(
            storage=self.database,
            revoked=self._revoked,
            events=self._events,
            on_sessions=self._feed_log.publish,
            on_key=self._withdraw_key,
            grapevine=self._grapevine,
        )
        self.verifier = Verifier(
            issuer=settings.issuer,
            audience=settings.audience,
            keys=Keyring([]),
            revoked=self._revoked,
            allow_shared_secret=True,  # issuer and verifier are one service here
            leeway_s=LEEWAY_S,
            max_lifetime_s=settings.access_token_ttl_s + LEEWAY_S,
            clock=self._watch.now_s,  # revocations lapse by the database's time, so tokens must expire by it
        )
        self._cookies = WebCookies(settings.issuer)
        self._csrf = Csrf(self._cookies, [origin_of(settings.issuer), *settings.allowed_origins])
        self._mint = Mint(
            issuer=settings.issuer, audience=settings.audience, access_token_ttl_s=settings.access_token_ttl_s
        )
        self._keys = KeyWatch(
            key_source(settings),
            events=self._events,
            registry=self.registry,
            on_change=self._use_keys,
            every_s=keys_every_s(settings),
        )
        profiles: dict[str, Profile] = {"argon2id": OWASP, "bcrypt": BCRYPT_12}
        self._passwords = HashingPool(PasswordHasher(profiles[settings.password_hash]))
        self._stall = StallWatch(window_s=settings.replay_window_s)
        self._alarm = Alarm(on_theft, events=self._events)
        self.flows = self._flows()
        self._requests = Requests(
            verifier=self.verifier,
            cookie_sessions=self.flows.cookie_sessions,
            cookies=self._cookies,
            csrf=self._csrf,
            trusted_proxies=settings.trusted_proxies,
        )
        self.current_user = CurrentUser(self._requests)
        self.verifiers = Verifiers(storage=self.database)
        self._purge = Purge(storage=self.database, sessions=self.flows.sessions, events=self._events)
        self.router = self._router()

    def app(self) -> FastAPI:
        """A FastAPI application that is the server alone."""
        from sekisho.web.standalone import standalone_app  # noqa: PLC0415 - only a server of its own needs it

        return standalone_app(self)

    def csrf_token(self, request: Request, response: Response) -> str:
        """For a page's forms (field ``csrf_token``) and scripts (header ``X-CSRF-Token``), bound to the session cookie.

        ``response`` is the page's: nobody else may be served it, and a visitor without a session gets a cookie with it.
        """
        response.headers["Cache-Control"] = "no-store"
        response.headers.add_vary_header("Cookie, Authorization")
        return self._csrf.token(request, response)

    async def renew(self, bearer: Bearer) -> Renewed:
        """For ``RefreshInPlace`` around an application that Sekisho is inside of.

        Raises ``RefreshRefused`` and ``TryLater``.
        """
        caller = self._requests.caller_at(bearer.peer, bearer.forwarded_for, bearer.user_agent)
        grant = await self.flows.refresh(token=bearer.refresh_token, caller=caller)
        return Renewed(
            access_token=grant.access_token,
            expires_in=grant.expires_in_s,
            refresh_token=grant.refresh_token,
            refresh_expires_in=grant.refresh_expires_in_s,
        )

    async def check(self) -> None:
        """Everything that can stop a start, tried out. Raises ``StartRefused`` or ``StorageUnavailable``."""
        create = "keys" not in self.settings.model_fields_set  # a path that someone typed is not made up for them
        with told_alone():
            await asyncio.to_thread(self._keys.start, algorithm=self.settings.signing_algorithm, create=create)
        await self.check_schema()

    async def check_schema(self) -> None:
        """On SQLite the schema is brought up to date; elsewhere that is the operator's decision."""
        if self.database.is_sqlite:
            await migrate.upgrade(self.database)
        elif await migrate.is_behind(self.database):
            raise StartRefused("the database's schema is older than this version: type sekisho db upgrade")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Started on entering, stopped on leaving. The router's lifespan does this by itself."""
        try:
            self._passwords.open()
            await self.check()
            await self._watch.load()
            self._started = True
            self._events.record(Event.STARTED, issuer=self.settings.issuer)
            self._feed_log.start()
            loops = [self._watch.run, self._stall.run, self._purge.run, self._keys.run]
            if self._grapevine is not None:
                loops.append(partial(self._grapevine.listen, self._watch.look_soon))
            async with _background(loops, self._events):
                with ended_by_signals(self._feed_log):
                    yield
            self._events.record(Event.STOPPED)
        finally:
            self._started = False
            self._feed_log.end()
            await self._alarm.finish()
            await self.close()

    async def close(self) -> None:
        """Gives back threads and connections."""
        self._passwords.close()
        await self._throttle.close()
        if self._grapevine is not None:
            await self._grapevine.close()
        if self._session_cache is not None:
            await self._session_cache.close()
        await self.database.close()

    async def withdraw_key(self, kid: str) -> None:
        """Every verifier refuses what a key has signed, at once and for good. Raises ``StorageUnavailable``."""
        await self._watch.withdraw_key(kid)

    def _withdraw_key(self, kid: str) -> None:
        self.verifier.withdraw_key(kid)
        self._keys.withdraw(kid)
        self._feed_log.publish({}, [kid])

    def _redis_grapevine(self, url: SecretStr | None) -> RedisGrapevine | None:
        if url is None:
            return None
        return RedisGrapevine(
            url.get_secret_value(),
            f"sekisho:revoked:{self._name}",
            on_lost=lambda why: self._events.record(Event.GRAPEVINE_LOST, detail=why),
            on_back=lambda: self._events.record(Event.GRAPEVINE_BACK),
        )

    def _redis_session_cache(self, url: SecretStr | None) -> RedisSessionCache | None:
        if url is None:
            return None
        return RedisSessionCache(
            url.get_secret_value(),
            f"sekisho:session:{self._name}:",
            on_lost=lambda why: self._events.record(Event.SESSION_CACHE_LOST, detail=why),
            on_back=lambda: self._events.record(Event.SESSION_CACHE_BACK),
        )

    @property
    def _name(self) -> str:
        """Of this issuer, where several share one Redis."""
        return hashlib.sha256(self.settings.issuer.encode()).hexdigest()[:16]

    def _use_keys(self, key_set: KeySet) -> None:
        self._mint.use(key_set)
        self._csrf.use(key_set)
        self.verifier.replace_keys(key_set.keyring)

    def _flows(self) -> api.Flows:
        settings = self.settings
        limits = SessionLimits(
            idle_s=settings.refresh_token_ttl_s,
            max_age_s=settings.session_max_age_s,
            max_sessions=settings.max_sessions,
            # Not this node's setting: another node, or an earlier configuration, may have issued longer-lived tokens.
            entry_life_s=MAX_ACCESS_TTL_S + _LONGEST_LEEWAY_S + _ENTRY_MARGIN_S,
        )
        rules = PasswordRules(
            min_length=settings.password_min_length,
            max_bytes=self._passwords.max_password_bytes,
            service_names=("sekisho", settings.audience, urlsplit(settings.issuer).hostname or ""),
        )
        sessions = Sessions(storage=self.database, limits=limits, watch=self._watch, events=self._events)
        shared: dict[str, Any] = {"storage": self.database, "events": self._events}
        guarded: dict[str, Any] = {**shared, "passwords": self._passwords, "throttle": self._throttle}
        signing: dict[str, Any] = {"mint": self._mint, "sessions": sessions}
        return api.Flows(
            mint=self._mint,
            sign_up=SignUp(**guarded, rules=rules),
            login=Login(**guarded, sessions=sessions),
            refresh=Refresh(
                **shared, **signing, window_s=settings.replay_window_s, stall=self._stall, alarm=self._alarm
            ),
            logout=Logout(storage=self.database, **signing),
            change_password=ChangePassword(**guarded, sessions=sessions, rules=rules),
            sessions=sessions,
            cookie_sessions=CookieSessions(storage=self.database, sessions=sessions, cache=self._session_cache),
            accounts=Accounts(storage=self.database, sessions=sessions),
        )

    def _router(self) -> APIRouter:
        @asynccontextmanager
        async def lifespan(_app: Any) -> AsyncIterator[None]:
            async with self.running():
                yield

        router = APIRouter(
            route_class=route_class(events=self._events, latency=Latency(self.registry), started=lambda: self._started),
            lifespan=lifespan,
        )
        api.add_routes(router, self.flows, self._requests, CurrentCredential(self._requests))
        session.add_routes(router, self.flows, self._requests)
        credential = VerifierCredential(self.verifiers)
        introspect.add_routes(router, verifier=self.verifier, sessions=self.flows.sessions, credential=credential)
        feed = Feed(self._feed_log, watch=self._watch, events=self._events, registry=self.registry)
        feed.add_route(router, credential)
        operations.add_routes(
            router, key_set=lambda: self._keys.key_set, database=self.database, registry=self.registry
        )
        operations.add_gauges(
            self.registry,
            revoked=self._revoked,
            watch=self._watch,
            passwords=self._passwords,
            verifier=self.verifier,
            feed=feed,
            keys_stale_s=lambda: self._keys.stale_s,
        )
        return router


def key_source(settings: Settings) -> KeySource:
    """Where these settings have the keys. Raises ``StartRefused`` where a library for it is missing."""
    return source_from(
        settings.keys,
        aws_region=settings.aws_region,
        aws_endpoint_url=settings.aws_endpoint_url,
        aws_role_arn=settings.aws_role_arn,
    )


def keys_every_s(settings: Settings) -> float:
    """How often a node looks at them: a file costs nothing, a call to AWS does."""
    return settings.keys_poll_s if settings.keys.startswith("aws:") else EVERY_S


async def _for_ever(loop: Callable[[], Awaitable[None]], events: Events) -> None:
    """Keeps a loop going. One that died in silence would leave this node with an old view of the revocations."""
    while True:
        try:
            await loop()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next round must come
            events.record(Event.CRASHED, type(error).__name__, where=where(error))
            await asyncio.sleep(1)


@asynccontextmanager
async def _background(loops: Sequence[Callable[[], Awaitable[None]]], events: Events) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(_for_ever(loop, events)) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
