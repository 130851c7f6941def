"""What the settings say, without looking any further."""

import os
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from sekisho.cli.checks.finding import Finding, Level
from sekisho.settings import Settings
from sekisho.spelling import Network

_HERE: Final = re.compile(r"https?://(?:localhost|127\.|\[::1\])")
_WIDEST_PREFIX: Final = 8  # 10.0.0.0/8 is the largest network that anyone can call their own


def user() -> Iterator[Finding]:
    """Root reads what the server may not, and finds fault with files that are the server's."""
    if os.geteuid() == 0:
        yield Finding(
            level=Level.NOTE,
            name="user",
            seen="this runs as root, and files are judged as root's",
            do="Run the server as a user of its own, and sekisho doctor as the same user.",
        )
    else:
        yield Finding(level=Level.OK, name="user", seen=f"this runs as user {os.geteuid()}")


def issuer(settings: Settings) -> Iterator[Finding]:
    """Whatever is neither https nor on this machine, the settings have refused already."""
    if settings.issuer.startswith("https://"):
        yield Finding(level=Level.OK, name="issuer", seen=settings.issuer)
        return
    yield Finding(
        level=Level.NOTE,
        name="issuer",
        seen=f"{settings.issuer} is http, on this machine alone, and cookies are plain (no Secure, no __Host-)",
        do="Anywhere else set SEKISHO_ISSUER to the https URL under which callers reach this service.",
    )


def audience(settings: Settings) -> Iterator[Finding]:
    """The default follows the issuer; one that was typed does not."""
    if settings.issuer.startswith("https://") and _HERE.match(settings.audience):
        yield Finding(
            level=Level.WARNING,
            name="audience",
            seen=f"SEKISHO_AUDIENCE is {settings.audience}, and the issuer is https",
            do="Unset it (the audience is the issuer then), or name the services that accept the tokens.",
        )
        return
    whose = "the issuer" if settings.audience == settings.issuer else settings.audience
    yield Finding(level=Level.OK, name="audience", seen=f"tokens are for {whose}")


def proxies(settings: Settings) -> Iterator[Finding]:
    """Whoever is believed here can say that it is anyone: to throttling, and in the record of sessions."""
    doubtful = [network for network in settings.trusted_proxies if _too_many(network)]
    for network in doubtful:
        yield Finding(
            level=Level.WARNING,
            name="proxies",
            seen=f"SEKISHO_TRUSTED_PROXIES trusts {network}, {_too_many(network)}",
            do="Name the addresses of your own proxies: each client in there can say which address it has.",
        )
    if not settings.trusted_proxies and settings.issuer.startswith("https://"):
        yield Finding(
            level=Level.NOTE,
            name="proxies",
            seen="the issuer is https and no proxy is trusted, so all clients behind one share its address, "
            "and are throttled together",
            do="If a proxy ends TLS, set SEKISHO_TRUSTED_PROXIES to its address.",
        )
    elif not doubtful:
        named = ", ".join(map(str, settings.trusted_proxies)) or "none"
        yield Finding(level=Level.OK, name="proxies", seen=f"trusted: {named}")


def _too_many(network: Network) -> str:
    if network.prefixlen < _WIDEST_PREFIX:
        return f"which is wider than a /{_WIDEST_PREFIX}"
    if network.is_global and network.num_addresses > 1:
        return "which is a public range"
    return ""


def origins(settings: Settings) -> Iterator[Finding]:
    """Pages of these origins act for the user who looks at them."""
    parts = urlsplit(settings.issuer)
    own = f"{parts.scheme}://{parts.netloc}"
    fine = []
    for origin in settings.allowed_origins:
        if origin == own:
            yield Finding(
                level=Level.NOTE,
                name="origins",
                seen=f"SEKISHO_ALLOWED_ORIGINS has {origin}, which is the issuer's own and allowed anyway",
                do="Take it out.",
            )
        elif origin.startswith("http://") and parts.scheme == "https":
            yield Finding(
                level=Level.WARNING,
                name="origins",
                seen=f"SEKISHO_ALLOWED_ORIGINS has {origin}: whatever runs on a user's machine may act for that user",
                do="Take it out of every deployment that is not for development.",
            )
        else:
            fine.append(origin)
    if fine or not settings.allowed_origins:
        whose = ", ".join(fine) or "none but the issuer's own"
        yield Finding(level=Level.OK, name="origins", seen=f"pages that may call: {whose}")


def lifetimes(settings: Settings) -> Iterator[Finding]:
    """Each is within its bounds; here they are held against each other."""
    access_s, idle_s, age_s = settings.access_token_ttl_s, settings.refresh_token_ttl_s, settings.session_max_age_s
    odd: list[tuple[str, str]] = []
    if idle_s > age_s:
        seen = f"SEKISHO_REFRESH_TOKEN_TTL_S ({idle_s}) is longer than SEKISHO_SESSION_MAX_AGE_S ({age_s})"
        odd.append((f"{seen}, so no session ends for being idle", "Make the first the shorter one."))
    if access_s >= min(idle_s, age_s):
        seen = f"SEKISHO_ACCESS_TOKEN_TTL_S ({access_s}) is not shorter than a session ({min(idle_s, age_s)})"
        odd.append((f"{seen}, which ends before anyone refreshes", "Let access tokens live for some minutes."))
    if settings.replay_window_s >= idle_s:
        seen = f"SEKISHO_REPLAY_WINDOW_S ({settings.replay_window_s}) is not shorter than SEKISHO_REFRESH_TOKEN_TTL_S"
        odd.append((f"{seen} ({idle_s}), so a refresh token may never be replaced", "Let it be 30, if in doubt."))
    for seen, do in odd:
        yield Finding(level=Level.NOTE, name="lifetimes", seen=seen, do=do)
    if not odd:
        seen = f"access tokens {access_s} s, sessions {idle_s} s without a refresh and {age_s} s at most"
        yield Finding(level=Level.OK, name="lifetimes", seen=seen)


def nodes(settings: Settings) -> Iterator[Finding]:
    """How many there are, the settings do not tell."""
    if settings.database_url.get_secret_value().startswith("sqlite:"):
        yield Finding(
            level=Level.NOTE,
            name="nodes",
            seen="on SQLite there is one machine and one worker",
            do="For more of them set SEKISHO_DATABASE_URL to PostgreSQL.",
        )
        return
    lacking = False
    if "keys" not in settings.model_fields_set:
        lacking = True
        yield Finding(
            level=Level.NOTE,
            name="nodes",
            seen="SEKISHO_KEYS is not set, so each node that starts in a folder without keys makes its own, "
            "and signs everyone out",
            do="With several nodes name one key set for all.",
        )
    if settings.redis_url is None:
        lacking = True
        yield Finding(
            level=Level.NOTE,
            name="nodes",
            seen="without Redis each node counts failed attempts alone",
            do="With several nodes set SEKISHO_REDIS_URL.",
        )
    if not lacking:
        yield Finding(level=Level.OK, name="nodes", seen="PostgreSQL, Redis and a named key set: as many as you like")
