"""Following ``GET /revocations`` of the issuer: what has ended, and how old that knowledge is."""

import asyncio
import logging
import random
from array import array
from collections.abc import Callable, Sequence
from typing import Final

import httpx2

from sekisho.tokens.revoked import Revocation, fits, key_of
from sekisho.verify import stream
from sekisho.verify.freshness import FRESH_S, Freshness
from sekisho.verify.held import Held
from sekisho.verify.stream import Position
from sekisho.wire import since_boot

_log: Final = logging.getLogger("sekisho.verify")
# A heartbeat comes each second: who is silent for longer is cut off, though no FIN ever says so.
_SILENCE_S: Final = 2.5
_TIMEOUT: Final = httpx2.Timeout(2.0, read=_SILENCE_S)
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 5.0
# Of a stream that has lasted for so long, the end is no failure.
_GOOD_AFTER_S: Final = 5.0
_MAX_EVENT_BYTES: Final = 4 * 1024 * 1024


class FeedBroken(Exception):
    """This stream cannot be followed any further; another is opened."""


class Feed:
    """One stream at a time, from one of the issuer's addresses."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        credential: str,
        held: Held,
        freshness: Freshness,
        on_heartbeat: Callable[[], None],
    ) -> None:
        self._urls = urls
        self._credential = credential
        self._held = held
        self._freshness = freshness
        self._on_heartbeat = on_heartbeat
        self._position: Position | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._failing = False
        self.reconnects = 0

    async def run(self, client: httpx2.AsyncClient) -> None:
        """For ever: when a stream ends, the next address. Nodes that went down get their verifiers back one by one."""
        number = random.randrange(len(self._urls))  # noqa: S311 - spreads verifiers over the nodes
        while True:
            url = self._urls[number % len(self._urls)]
            try:
                await self._follow(client, url)
            except (FeedBroken, httpx2.HTTPError, OSError, ValueError) as error:
                self._tell(url, error)
            await asyncio.sleep(random.uniform(0, self._pause_s))  # noqa: S311 - so that they do not march in step
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
            self.reconnects += 1
            number += 1

    async def _follow(self, client: httpx2.AsyncClient, url: str) -> None:
        headers = {
            "Authorization": f"Bearer {self._credential}",
            "Accept": stream.MEDIA_TYPE,
            "Accept-Encoding": "identity",
        }
        if self._position is not None:
            headers["Last-Event-ID"] = str(self._position)
        opened_at = since_boot()
        async with client.stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
            if response.status_code == 401:
                raise FeedBroken("the issuer does not know this credential: make one with sekisho verifiers add")
            if response.status_code != 200:
                raise FeedBroken(f"the issuer answered {response.status_code}")
            await self._read(response, opened_at)

    async def _read(self, response: httpx2.Response, opened_at: float) -> None:
        gathered, has_beaten, clock = array("q"), False, asyncio.get_running_loop().time
        # Bytes alone are no sign of life: a proxy on the way can send comments for ever.
        async with asyncio.timeout(_SILENCE_S) as silence:
            async for event in httpx2.EventSource(response, _MAX_EVENT_BYTES):
                match event.event:
                    case "snapshot":
                        self._take_snapshot(event.data, event.id, gathered)
                    case "revoked":
                        self._take_revoked(event.data, event.id)
                    case "heartbeat":
                        self._take_heartbeat(event.data, event.id, opened_at)
                        has_beaten = True
                    case _:  # of a later version; whatever changes what is known has a number that would be missed
                        continue
                silence.reschedule(clock() + _SILENCE_S)
        if not has_beaten:
            raise FeedBroken("the stream ended before its first heartbeat")

    def _take_snapshot(self, data: str, event_id: str, gathered: "array[int]") -> None:
        self._position = None  # until its end is here, nothing can be resumed
        piece = stream.read_entries(data)
        for lapses_at, session_ids in piece.by_time():
            if piece.more and fits(lapses_at, self._held.now()):
                gathered.extend([key_of(session_id, lapses_at) for session_id in session_ids])
            else:
                self._held.add_revoked([Revocation(session_id, lapses_at) for session_id in session_ids])
        for kid in piece.keys:
            self._held.withdraw_key(kid)
        if piece.more:
            return
        if gathered:
            self._held.pack(gathered)
            del gathered[:]
        self._position = _known(event_id)

    def _take_revoked(self, data: str, event_id: str) -> None:
        expected = self._position and self._position._replace(number=self._position.number + 1)
        self._position = None  # if this fails, a snapshot is asked for
        position, entries = _known(event_id), stream.read_entries(data)
        if position != expected:
            raise FeedBroken("an event is missing")
        for lapses_at, session_ids in entries.by_time():
            self._held.add_revoked([Revocation(session_id, lapses_at) for session_id in session_ids])
        for kid in entries.keys:
            self._held.withdraw_key(kid)
        self._position = position

    def _take_heartbeat(self, data: str, event_id: str, opened_at: float) -> None:
        if self._position is None or _known(event_id) != self._position:
            self._position = None
            raise FeedBroken("a heartbeat before the view is complete")
        heartbeat = stream.read_heartbeat(data)
        if self._held.misses_entries():
            self._position = None
            raise FeedBroken("this service's clock was put back: what had lapsed may count again")
        self._freshness.heard(heartbeat, opened_at=opened_at, now=since_boot())
        self._on_heartbeat()
        # By its own word alone a node may be right, and the stream on its way still be late.
        if self._freshness.age_s(now=since_boot()) > FRESH_S:
            raise FeedBroken("this node's view is more than 3 s old, or its stream is late")
        if self._failing:
            _log.info("the issuer's feed is followed again")
            self._failing = False
        if since_boot() - opened_at > _GOOD_AFTER_S:
            self._pause_s = _FIRST_PAUSE_S

    def _tell(self, url: str, error: Exception) -> None:
        """Once for each time that it goes wrong, however many addresses and attempts it takes."""
        if not self._failing:
            self._failing = True
            _log.warning("the feed at %s cannot be followed: %s %s", url, type(error).__name__, error)


def _known(event_id: str) -> Position:
    found = stream.position(event_id)
    # It goes back in a header: one that cannot stand there would be asked for in vain for ever.
    if found is None or not (found.boot.isascii() and found.boot.isprintable()) or " " in found.boot:
        raise FeedBroken("an event has no id of the form BOOT:N")
    return found
