"""``GET /revocations``: the feed as server-sent events, written to whoever keeps reading."""

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase
from prometheus_client import CollectorRegistry, Counter
from starlette.types import Receive, Scope, Send

from sekisho.errors import TokenError, TryLater, VerifierRefused
from sekisho.services.events import Event, Events
from sekisho.services.revocation_watch import RevocationWatch
from sekisho.services.verifiers import Verifiers
from sekisho.verify.bearer import bearer_token
from sekisho.verify.stream import HEARTBEAT_EVERY_S, MEDIA_TYPE, Heartbeat, event, position
from sekisho.web.feed_log import FeedLog, FellBehind
from sekisho.wire import since_boot

WRITE_S: Final = 10.0  # for one event; a reader that does not take it is cut
_LIFE_S: Final = 300.0  # of a stream: clocks drift apart, and a credential that was removed must stop counting


class VerifierCredential(SecurityBase):
    """A dependency that gives the name of the verifier that asks. Raises what becomes a 401."""

    def __init__(self, verifiers: Verifiers) -> None:
        self._verifiers = verifiers
        self.model = HTTPBearerModel(description="A verifier's credential, as `sekisho verifiers add` prints it.")
        self.scheme_name = "VerifierCredential"

    async def __call__(self, request: Request) -> str:
        """Reads the database: a credential that was removed counts no more."""
        try:
            credential = bearer_token(request.headers.getlist("authorization"))
        except TokenError as error:
            raise VerifierRefused(error.detail) from None
        return await self._verifiers.check(credential)


class Feed:
    """The log, its readers, and what is counted of them."""

    def __init__(self, log: FeedLog, *, watch: RevocationWatch, events: Events, registry: CollectorRegistry) -> None:
        self.log = log
        self.watch = watch
        self.events = events
        self.readers = 0
        self.sent = Counter("sekisho_feed_events_sent", "Events written to the feed's readers.", registry=registry)

    def add_route(self, router: APIRouter, verifier: VerifierCredential) -> None:
        """Not in the OpenAPI document, which cannot describe a stream of events."""

        @router.get("/revocations", include_in_schema=False)
        async def revocations(request: Request, name: Annotated[str, Depends(verifier)]) -> Response:
            opened_at = since_boot()
            if self.log.is_over:
                raise TryLater(1, "stopping")
            return _Stream(
                self, reader=name, opened_at=opened_at, last_event_id=request.headers.get("last-event-id", "")
            )


class _Cut(Exception):
    """The stream ends in the middle, and so does the connection."""


class _Stream(Response):
    """One reader's stream."""

    def __init__(self, feed: Feed, *, reader: str, opened_at: float, last_event_id: str) -> None:
        super().__init__(headers={"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._feed = feed
        self._log = feed.log
        self._reader = reader
        self._opened_at = opened_at
        self._last_event_id = last_event_id

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Writes until the reader leaves or falls behind, the server stops, or the stream is old."""
        gone = asyncio.create_task(_disconnected(receive))
        self._feed.readers += 1
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._write(send, gone)
            await send({"type": "http.response.body", "body": b""})
        except (_Cut, FellBehind) as cut:
            # Without the response's end the server closes the connection.
            why = "fell_behind" if isinstance(cut, FellBehind) else "does_not_read"
            self._feed.events.record(Event.FEED_READER_CUT, why, verifier=self._reader)
        except OSError:  # how some servers say that the client has left
            pass
        finally:
            self._feed.readers -= 1
            gone.cancel()

    async def _write(self, send: Send, gone: "asyncio.Task[None]") -> None:
        ends_at = time.monotonic() + _LIFE_S * random.uniform(0.8, 1.2)  # noqa: S311 - readers must not march in step
        number = await self._begin(send)
        beat_at: float | None = None  # the first comes as soon as the reader has seen all there is
        while not (self._log.is_over or gone.done()):
            encoded, now = self._log.after(number), time.monotonic()
            if encoded is not None:
                number += 1
                await self._put(send, encoded)
            # Never to a reader for whom there is more: it would take its view for as good as this node's.
            elif beat_at is None or now >= beat_at:
                await self._put(send, event("heartbeat", self._heartbeat(), self._log.position(number)))
                beat_at = now + HEARTBEAT_EVERY_S
            else:
                if now >= ends_at:
                    return
                await asyncio.wait({self._log.changed(), gone}, timeout=beat_at - now, return_when="FIRST_COMPLETED")

    async def _begin(self, send: Send) -> int:
        """The number of the event that the reader has seen when this returns."""
        seen = position(self._last_event_id)
        if seen is not None and seen.boot == self._log.boot and self._log.has_all_after(seen.number):
            return seen.number
        snapshot = await self._log.snapshot()
        for piece in snapshot.pieces:
            await self._put(send, piece)
            if self._log.is_over:
                break
            if not self._log.has_all_after(snapshot.number):  # it would have to begin again; and old ones take memory
                raise FellBehind
        return snapshot.number

    def _heartbeat(self) -> Heartbeat:
        age_s = self._feed.watch.age_s + self._log.gathering_s
        return Heartbeat(
            age_ms=None if age_s == float("inf") else max(0, int(age_s * 1000)),
            open_ms=int((since_boot() - self._opened_at) * 1000),
        )

    async def _put(self, send: Send, encoded: bytes) -> None:
        try:
            async with asyncio.timeout(WRITE_S):
                await send({"type": "http.response.body", "body": encoded, "more_body": True})
        except TimeoutError:
            raise _Cut from None
        self._feed.sent.inc()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@contextmanager
def ended_by_signals(log: FeedLog) -> Iterator[None]:
    """A server that is told to stop waits for open responses before the lifespan ends, so these must end earlier.

    Whoever handles the signals is called as before. Only the main thread can ask for them; elsewhere (a test's
    client, say) the streams end with the lifespan.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def handle(signum: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(log.end)
        before[signum](signum, frame)

    for signum in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(signum)
        if callable(handler):  # without one the process ends at once, streams and all
            before[signum] = handler
            signal.signal(signum, handle)
    try:
        yield
    finally:
        for ours, theirs in before.items():
            if signal.getsignal(ours) is handle:
                signal.signal(ours, theirs)
