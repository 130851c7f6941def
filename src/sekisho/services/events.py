"""What happened, told once: each event is a line in the log and a count in the metrics.

Facts are ids, addresses, decisions and durations; never a token, a password, a key, or the e-mail address of a failed
login (people type passwords into that field). Lines are JSON in ASCII, so nothing a client sends can break one.
"""

import logging
import traceback
from enum import StrEnum
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter

LOGGER: Final = "sekisho.events"

_logger: Final = structlog.wrap_logger(
    logging.getLogger(LOGGER),
    processors=[
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.JSONRenderer(sort_keys=False),
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)


class Event(StrEnum):
    """Everything that is worth a line."""

    SIGNED_UP = "signed_up"
    LOGGED_IN = "logged_in"
    LOGIN_FAILED = "login_failed"
    REFRESHED = "refreshed"
    REFRESH_REFUSED = "refresh_refused"
    THEFT_FOUND = "theft_found"
    SESSION_ENDED = "session_ended"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - an event, not a password
    PASSWORD_CHANGE_FAILED = "password_change_failed"  # noqa: S105
    PASSWORD_REHASHED = "password_rehashed"  # noqa: S105
    CSRF_REFUSED = "csrf_refused"
    THROTTLED = "throttled"
    OVERLOADED = "overloaded"
    PUT_OFF = "put_off"
    STORAGE_FAILED = "storage_failed"
    STORAGE_BACK = "storage_back"
    REVOCATIONS_PUT_BACK = "revocations_put_back"
    FEED_READER_CUT = "feed_reader_cut"
    GRAPEVINE_LOST = "grapevine_lost"
    GRAPEVINE_BACK = "grapevine_back"
    SESSION_CACHE_LOST = "session_cache_lost"
    SESSION_CACHE_BACK = "session_cache_back"
    KEYS_CREATED = "keys_created"
    KEYS_CHANGED = "keys_changed"
    KEYS_REFUSED = "keys_refused"
    KEYS_BACK = "keys_back"
    PURGED = "purged"
    STARTED = "started"
    STOPPED = "stopped"
    CRASHED = "crashed"


_WARNINGS: Final = frozenset(
    {
        Event.THEFT_FOUND,
        Event.STORAGE_FAILED,
        Event.REVOCATIONS_PUT_BACK,
        Event.GRAPEVINE_LOST,
        Event.SESSION_CACHE_LOST,
        Event.KEYS_REFUSED,
        Event.OVERLOADED,
        Event.CRASHED,
    }
)


class Events:
    """Writes the log line and counts it in ``sekisho_events_total`` by event and outcome."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._total = Counter(
            "sekisho_events", "What happened, by event and outcome.", ("event", "outcome"), registry=registry
        )

    def record(self, event: Event, outcome: str = "ok", **facts: Any) -> None:
        """One event. ``outcome`` is one of few words (a decision, a cause, an error's code); ids go into ``facts``."""
        self._total.labels(event.value, outcome).inc()
        write = _logger.warning if event in _WARNINGS else _logger.info
        write(event.value, outcome=outcome, **{name: _plain(value) for name, value in facts.items()})


def where(error: Exception) -> str:
    """The place of a crash: files, lines and functions; no values and no message, which may quote a secret."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return " > ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | None) else str(value)
