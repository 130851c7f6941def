"""A reader of ``GET /revocations`` that keeps every event, and says how its stream ended."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import httpx2

from sekisho.verify.stream import Entries, read_entries


class FeedEvent(NamedTuple):
    name: str
    id: str | None
    data: str
    at: float

    @property
    def entries(self) -> Entries:
        return read_entries(self.data)

    @property
    def ids(self) -> set[str]:
        """Sessions and keys in it."""
        return {sid for _, sids in self.entries.by_time() for sid in sids} | set(self.entries.keys)

    @property
    def number(self) -> int:
        assert self.id is not None
        return int(self.id.partition(":")[2])

    @property
    def boot(self) -> str:
        assert self.id is not None
        return self.id.partition(":")[0]


class FeedReader:
    """Reads in a thread of its own. ``ended``: None while it goes on, else "complete" or the error's name."""

    def __init__(self, base_url: str, credential: str, *, last_event_id: str | None = None) -> None:
        self.all: list[FeedEvent] = []
        self.ended: str | None = None
        self.response: httpx2.Response | None = None
        self._new: queue.Queue[FeedEvent | None] = queue.Queue()
        headers = {"Authorization": f"Bearer {credential}"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        self._client = httpx2.Client(base_url=base_url, headers=headers, timeout=30, trust_env=False, verify=False)
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._opened.wait(20), "no answer"

    def next(self, name: str | None = None, *, within_s: float = 10) -> FeedEvent:
        """The next event (of this name: others are passed over)."""
        give_up_at = time.monotonic() + within_s
        while True:
            try:
                event = self._new.get(timeout=max(0.001, give_up_at - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {name or 'event'} within {within_s} s; ended: {self.ended}") from None
            assert event is not None, f"the stream ended ({self.ended}) before {name or 'another event'}"
            if name is None or event.name == name:
                return event

    def until(self, holds: Callable[[FeedEvent], bool], *, within_s: float = 10) -> FeedEvent:
        give_up_at = time.monotonic() + within_s
        while True:
            event = self.next(within_s=give_up_at - time.monotonic())
            if holds(event):
                return event

    def hears_of(self, *ids: object, within_s: float = 10) -> None:
        """All of these come, in whatever events."""
        missing = {str(one) for one in ids}
        give_up_at = time.monotonic() + within_s
        while missing:
            event = self.next(within_s=give_up_at - time.monotonic())
            if event.name != "heartbeat":
                missing -= event.ids

    def end(self, *, within_s: float = 10) -> str:
        """How the stream ended."""
        self._thread.join(within_s)
        assert self.ended is not None, "it goes on"
        return self.ended

    def close(self) -> None:
        """Leaves, and waits until the thread has.

        To close a socket under a thread that waits in it ends nothing: the thread goes on, with whatever connection
        gets the number of the file next, and the server never hears that the reader has left.
        """
        if self.response is not None:
            with suppress(OSError):  # it has ended already
                self.response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        ended = "complete"
        try:
            with self._client.stream("GET", "/revocations") as response:
                self.response = response
                self._opened.set()
                self._read(response)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is told
            ended = type(error).__name__
        self.ended = ended
        self._opened.set()
        self._new.put(None)

    def _read(self, response: httpx2.Response) -> None:
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                event = FeedEvent(fields["event"], fields.get("id"), fields["data"], time.monotonic())
                fields = {}
                self.all.append(event)
                self._new.put(event)


@contextmanager
def following(base_url: str, credential: str, *, last_event_id: str | None = None) -> Iterator[FeedReader]:
    """A reader that has seen its first heartbeat."""
    reader = FeedReader(base_url, credential, last_event_id=last_event_id)
    try:
        reader.next("heartbeat")
        yield reader
    finally:
        reader.close()
