"""The keys in use: loaded at start, looked at again every few seconds, swapped whole when they change."""

import asyncio
import random
from collections.abc import Callable
from typing import Final

from sekisho.errors import KeyRefused, StartRefused
from sekisho.services.events import Event, Events
from sekisho.sources import KeySource
from sekisho.tokens.algorithms import AlgorithmName
from sekisho.tokens.keyring import KeySet
from sekisho.wire import now_s

POLL_S: Final = 3.0


class KeyWatch:
    """Holds the key set in use. ``on_change`` gets every new one, before it counts as in use."""

    def __init__(self, source: KeySource, *, events: Events, on_change: Callable[[KeySet], None]) -> None:
        self._source = source
        self._events = events
        self._on_change = on_change
        self._document: bytes | None = None
        self._failing = False
        self._key_set: KeySet | None = None

    @property
    def key_set(self) -> KeySet:
        """The keys in use; there are none before ``start``."""
        assert self._key_set is not None, "not started"
        return self._key_set

    def start(self, *, algorithm: AlgorithmName, create: bool) -> None:
        """Loads the keys, blocking. ``create``: a source that is still empty gets a first set.

        Raises ``StartRefused`` with the command to type.
        """
        try:
            document = self._source.load()
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

    async def run(self) -> None:
        """Looks every few seconds, until cancelled. While the source is down or wrong, the last good keys stay."""
        while True:
            await asyncio.sleep(POLL_S * random.uniform(0.8, 1.2))  # noqa: S311 - nodes must not march in step
            await self.poll()

    async def poll(self) -> None:
        """One look."""
        try:
            document = await asyncio.to_thread(self._source.load)
            if document is None:
                raise KeyRefused("the key set is gone")  # noqa: TRY301 - handled as any other refusal
            if document != self._document:
                key_set = KeySet.from_json(document)
                self._take(document, key_set)
                active = ", ".join(key.kid for key in key_set.keys if key.state == "active")
                self._events.record(Event.KEYS_CHANGED, active=active)
        except KeyRefused as error:
            if not self._failing:  # told once, not at every look
                self._events.record(Event.KEYS_REFUSED, error.code, source=self._source.name, detail=error.detail)
            self._failing = True
        else:
            self._failing = False

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
