"""Tells the application around us of a theft: after the commit, and beside the answer, which waits for no e-mail."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from sekisho.services.events import Event, Events, where
from sekisho.storage.rows import TheftRecord

OnTheft: TypeAlias = Callable[[TheftRecord], Awaitable[None] | None]

_FINISH_S: Final = 2.0


class Alarm:
    """Calls the application's hook. What it raises is logged and changes nothing."""

    def __init__(self, on_theft: OnTheft | None, *, events: Events) -> None:
        self._on_theft = on_theft
        self._events = events
        self._calls: set[asyncio.Task[None]] = set()

    def ring(self, theft: TheftRecord) -> None:
        """Calls the hook in a task of its own."""
        if self._on_theft is not None:
            call = asyncio.create_task(self._call(self._on_theft, theft))
            self._calls.add(call)  # the loop alone would let it be collected in the middle
            call.add_done_callback(self._calls.discard)

    async def finish(self) -> None:
        """Before the end: gives calls that are under way a moment, and ends the others."""
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=_FINISH_S)
            for call in late:
                call.cancel()
                self._events.record(Event.CRASHED, "TimeoutError", in_hook="on_theft")

    async def _call(self, on_theft: OnTheft, theft: TheftRecord) -> None:
        try:
            # In a thread: a plain function that sends an e-mail would stop the node. An async one only begins there.
            result = await asyncio.to_thread(on_theft, theft)
            if inspect.isawaitable(result):
                await result
        except Exception as error:  # noqa: BLE001 - it is the application's code
            self._events.record(Event.CRASHED, type(error).__name__, where=where(error), in_hook="on_theft")
