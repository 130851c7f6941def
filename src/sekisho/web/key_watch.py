"""The keys in use: loaded at start, looked at again and again, swapped whole when they change."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Gauge

from sekisho.errors import KeyRefused, KeySourceUnavailable, StartRefused
from sekisho.services.events import Event, Events
from sekisho.sources import KeySource
from sekisho.tokens.algorithms import AlgorithmName
from sekisho.tokens.keyring import KeySet
from sekisho.wire import now_s

EVERY_S: Final = 3.0
LOOK_S: Final = 10.0
_AGAIN_S: Final = 1.0
_START_PAUSES_S: Final = (1.0, 2.0)

T = TypeVar("T")


class KeyWatch:
    """Holds the key set in use. ``on_change`` gets every new one, before it counts as in use."""

    def __init__(
        self,
        source: KeySource,
        *,
        events: Events,
        registry: CollectorRegistry,
        on_change: Callable[[KeySet], None],
        every_s: float = EVERY_S,
    ) -> None:
        """``every_s``: the interval in which the source is looked at once."""
        self._source = source
        self._events = events
        self._on_change = on_change
        self._every_s = every_s
        self._document: bytes | None = None
        self._looking: asyncio.Future[bytes | None] | None = None
        self._failing: str | None = None  # the code of what the last look met
        self._good_at = time.monotonic()
        self._key_set: KeySet | None = None
        self._withdrawn: set[str] = set()
        self._word = asyncio.Event()
        self._alarm = Gauge(
            "sekisho_keys_failing",
            "1 while the last look at the keys' source found none that can be used; the last good ones stay in use.",
            registry=registry,
            multiprocess_mode="max",  # one worker that fails is enough
        )

    @property
    def key_set(self) -> KeySet:
        """The keys in use; there are none before ``start``."""
        assert self._key_set is not None, "not started"
        return self._key_set

    @property
    def stale_s(self) -> float:
        """Seconds since the source was last found well."""
        return time.monotonic() - self._good_at

    def start(self, *, algorithm: AlgorithmName, create: bool) -> None:
        """Loads the keys, blocking. ``create``: a source that is still empty gets a first set.

        Raises ``StartRefused`` with the command to type.
        """
        try:
            document = self._first_load()
            if document is None and create and self._source.writable:
                document = self._create(algorithm)
            if document is None:
                remedy = "type sekisho keys new" if self._source.writable else "set it to a key set"
                raise StartRefused(f"SEKISHO_KEYS: there are no keys in {self._source.name}: {remedy}")
            key_set = KeySet.from_json(document)
        except KeyRefused as error:
            raise StartRefused(f"SEKISHO_KEYS: {self._source.name}: {error.detail}") from None
        active = key_set.active("sign")
        if active.alg != algorithm:
            raise StartRefused(
                f"the active signing key {active.kid} is for {active.alg}, SEKISHO_SIGNING_ALGORITHM is {algorithm}: "
                f"set it to {active.alg}, or type sekisho keys rotate --now"
            )
        self._take(document, key_set)
        self._well()

    def withdraw(self, kid: str) -> None:
        """This key leaked. If it signs here, the source has another by now: it is looked at once, and then each second.

        (Not every source shows at once what was stored.)
        """
        self._withdrawn.add(kid)
        if self._signs_in_vain:
            self._word.set()

    async def run(self) -> None:
        """Looks once in each interval, until cancelled. While the source is down or wrong, the last good keys stay."""
        wait_s = self._every_s * random.uniform(0.1, 1.0)  # noqa: S311 - nodes started together must not march in step
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._word.wait(), wait_s)
                self._word.clear()
                await self.poll()
                wait_s = self._every_s * random.uniform(0.9, 1.0)  # noqa: S311 - nor fall into step
                if self._signs_in_vain:
                    wait_s = min(wait_s, _AGAIN_S)
        except asyncio.CancelledError:
            self._alarm.set(0)  # nobody is left to take it back, and with several workers its file stays
            raise

    async def poll(self) -> None:
        """One look."""
        try:
            document = await self._look()
            if document is None:
                raise KeyRefused("the key set is gone")  # noqa: TRY301 - handled as any other refusal
            if document != self._document:
                key_set = KeySet.from_json(document, known=self._key_set)
                self._take(document, key_set)
                active = ", ".join(key.kid for key in key_set.keys if key.state == "active")
                self._events.record(Event.KEYS_CHANGED, active=active)
        except KeyRefused as error:
            self._alarm.set(1)
            if self._failing != error.code:  # told once, not at every look
                self._events.record(Event.KEYS_REFUSED, error.code, source=self._source.name, detail=error.detail)
            self._failing = error.code
        except Exception:
            self._alarm.set(1)
            raise
        else:
            if self._failing is not None:
                self._events.record(Event.KEYS_BACK, source=self._source.name, after_s=round(self.stale_s))
            self._well()

    async def _look(self) -> bytes | None:
        """What the source holds. A look that hangs is waited for again at the next turn, not begun a second time."""
        if self._looking is None:
            self._looking = _in_a_thread(self._source.load)
        try:
            return await asyncio.wait_for(asyncio.shield(self._looking), LOOK_S)
        except TimeoutError:
            raise KeySourceUnavailable(f"no answer within {LOOK_S:.0f} s") from None
        finally:
            if self._looking.done():
                self._looking = None

    @property
    def _signs_in_vain(self) -> bool:
        return self._key_set is not None and self._key_set.active("sign").kid in self._withdrawn

    def _well(self) -> None:
        self._failing = None
        self._alarm.set(0)
        self._good_at = time.monotonic()

    def _first_load(self) -> bytes | None:
        """Asks again where asking again can help: a start that fails takes the node away, a look later does not."""
        for pause_s in _START_PAUSES_S:
            try:
                return self._source.load()
            except KeySourceUnavailable:
                time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - as above
        return self._source.load()

    def _create(self, algorithm: AlgorithmName) -> bytes | None:
        document = KeySet.generate(algorithm, now=now_s()).to_json()
        try:
            self._source.store(document, expected=None)
        except KeyRefused:
            return self._source.load()  # another worker was faster; its keys count
        # Worth a line: a node that should have shared another's keys signs everyone out with its own.
        self._events.record(Event.KEYS_CREATED, source=self._source.name)
        return document

    def _take(self, document: bytes, key_set: KeySet) -> None:
        self._on_change(key_set)
        self._document, self._key_set = document, key_set


def _in_a_thread(work: Callable[[], T]) -> "asyncio.Future[T]":
    """In a thread that nobody waits for: the end of the process must not, when a name server, say, hangs."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(act: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(lambda: None if future.done() else act())

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - whoever awaits gets it
            settle(partial(future.set_exception, error))
        else:
            settle(partial(future.set_result, result))

    threading.Thread(target=run, name="sekisho-keys", daemon=True).start()
    return future
