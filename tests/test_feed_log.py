"""The feed's log and its readers: what is shared, what is bounded, who is cut."""

import asyncio
import contextlib
import socket
import threading
import time
from types import SimpleNamespace
from uuid import uuid4

import httpx2
import psutil
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from feed_reader import FeedReader, following
from sekisho.services.events import Events
from sekisho.settings import Settings
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.verify import stream
from sekisho.web import Sekisho, feed, feed_log
from sekisho.web.feed_log import FeedLog, FellBehind
from sekisho.web.server import BoundedHttpProtocol
from sekisho.wire import since_boot
from test_serve import wait_until

pytestmark = pytest.mark.anyio

LAPSES = 4_000_000_000


def told(encoded):
    """The event's name, its id and its entries."""
    lines = dict(line.split(": ", 1) for line in encoded.decode().splitlines() if line)
    return lines["event"], lines.get("id"), stream.read_entries(lines["data"])


def ids(entries):
    return {sid for _, sids in entries.by_time() for sid in sids}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def revoked():
    return RevokedSessions()


@pytest.fixture
def log(revoked, clock):
    return FeedLog(revoked=revoked, monotonic=clock)


async def test_the_first_entry_goes_out_at_once_and_what_follows_is_gathered(log, clock, monkeypatch):
    monkeypatch.setattr(feed_log, "GATHER_S", 0.05)
    log.publish({"a": LAPSES})
    assert told(log.after(0)) == ("revoked", f"{log.boot}:1", stream.Entries({str(LAPSES): ["a"]}))
    log.publish({"b": LAPSES})
    log.publish({"c": LAPSES + 1}, ["k"])
    assert log.after(1) is None
    await asyncio.wait_for(log.changed(), 5)
    name, at, entries = told(log.after(1))
    assert (name, at, log.number) == ("revoked", f"{log.boot}:2", 2)
    assert entries.sessions == {str(LAPSES): ["b"], str(LAPSES + 1): ["c"]}
    assert entries.keys == ["k"]
    clock.now += 1
    log.publish({"d": LAPSES})
    assert log.number == 3


async def test_how_long_something_waits_is_said(log, clock, monkeypatch):
    """A heartbeat adds it to the node's age: until it is sent, readers do not know what the node knows."""
    monkeypatch.setattr(feed_log, "GATHER_S", 0.05)
    log.publish({"a": LAPSES})
    assert log.gathering_s == 0
    log.publish({"b": LAPSES})
    clock.now += 7
    log.publish({"c": LAPSES})
    assert log.gathering_s == 7
    await asyncio.wait_for(log.changed(), 5)
    assert log.gathering_s == 0


async def test_no_heartbeat_comes_while_there_is_more(log, monkeypatch):
    """Its reader would take its view for as good as this node's, and is several events behind."""
    monkeypatch.setattr(feed_log, "PIECE", 1)
    log.publish({str(number): LAPSES for number in range(3)})
    async with asyncio.timeout(5):
        while log.number < 3:
            await log.changed()
    registry = CollectorRegistry()
    readers = feed.Feed(log, watch=SimpleNamespace(age_s=0.1), events=Events(registry), registry=registry)
    sent = []

    async def send(message):
        sent.append(message.get("body", b"").partition(b"\n")[0])
        if b"event: heartbeat" in sent:
            log.end()

    async def receive():
        await asyncio.Event().wait()

    stream_of_one = feed._Stream(readers, reader="r", opened_at=since_boot(), last_event_id=f"{log.boot}:0")
    await asyncio.wait_for(stream_of_one({}, receive, send), 5)
    assert [line for line in sent if line] == [b"event: revoked"] * 3 + [b"event: heartbeat"]


async def test_many_at_once_are_several_events(log, monkeypatch):
    monkeypatch.setattr(feed_log, "PIECE", 10)
    log.publish({str(number): LAPSES for number in range(35)})
    async with asyncio.timeout(5):
        while log.number < 4:
            await log.changed()
    sizes = [len(ids(told(log.after(number))[2])) for number in range(4)]
    assert sizes == [10, 10, 10, 5]


async def test_the_ring_is_bounded_by_number_and_by_bytes(log, clock, monkeypatch):
    def publish(number, entries):
        for _ in range(number):
            clock.now += 1
            log.publish({str(uuid4()): LAPSES for _ in range(entries)})

    publish(1100, 1)
    assert log.has_all_after(1100 - 1024)
    assert not log.has_all_after(1100 - 1025)
    with pytest.raises(FellBehind):
        log.after(1100 - 1025)
    monkeypatch.setattr(feed_log, "_RING_BYTES", 100_000)
    publish(10, 1000)
    assert log._ring_bytes <= 100_000
    assert log._ring_bytes == sum(map(len, log._ring))
    assert not log.has_all_after(log.number + 1)


async def test_a_snapshot_is_made_once_for_all_who_ask_together(log, revoked, clock, monkeypatch):
    monkeypatch.setattr(feed_log, "PIECE", 10)
    revoked.add(Revocation(str(number), LAPSES) for number in range(95))
    made = []
    real = feed_log.event
    monkeypatch.setattr(feed_log, "event", lambda name, *args: (made.append(name), real(name, *args))[1])
    leaves = asyncio.create_task(log.snapshot())
    others = [asyncio.create_task(log.snapshot()) for _ in range(100)]
    await asyncio.sleep(0)
    leaves.cancel()
    snapshots = await asyncio.gather(*others)
    assert made.count("snapshot") == 10
    assert all(one is snapshots[0] for one in snapshots)
    pieces = [told(piece) for piece in snapshots[0].pieces]
    assert [at for _, at, _ in pieces] == [None] * 9 + [f"{log.boot}:0"]
    assert [entries.more for _, _, entries in pieces] == [True] * 9 + [False]
    assert set().union(*(ids(entries) for _, _, entries in pieces)) == {str(number) for number in range(95)}
    for number in range(256):
        clock.now += 1
        log.publish({f"x{number}": LAPSES})
    assert await log.snapshot() is snapshots[0]  # with the events since then it is as good as a new one
    clock.now += 1
    log.publish({"one more": LAPSES})
    assert (await log.snapshot()).number == 257


async def test_a_snapshot_that_the_ring_no_longer_carries_on_is_not_used(log, clock, monkeypatch):
    first = await log.snapshot()
    assert [told(piece)[2] for piece in first.pieces] == [stream.Entries()]
    monkeypatch.setattr(feed_log, "_RING_EVENTS", 3)
    for number in range(4):
        clock.now += 1
        log.publish({str(number): LAPSES})
    assert (await log.snapshot()).number == 4


async def test_what_comes_while_a_snapshot_is_made_is_in_it_or_after_it(log, revoked, clock, monkeypatch):
    monkeypatch.setattr(feed_log, "PIECE", 5)
    revoked.add(Revocation(str(number), LAPSES) for number in range(100))
    making = asyncio.create_task(log.snapshot())
    for number in range(100, 120):
        clock.now += 1
        revoked.add([Revocation(str(number), LAPSES)])
        log.publish({str(number): LAPSES})
        await asyncio.sleep(0)
    snapshot = await making
    seen = set().union(*(ids(told(piece)[2]) for piece in snapshot.pieces))
    for number in range(snapshot.number, log.number):
        seen |= ids(told(log.after(number))[2])
    assert seen == {str(number) for number in range(120)}


# --- readers, over a real connection -------------------------------------------------------------------------------


class Local:
    """A server in a thread of this process, so that a test can reach inside."""

    def __init__(self, sekisho: Sekisho, port: int) -> None:
        self.sekisho = sekisho
        self.port = port
        self.base_url = f"http://127.0.0.1:{port}"
        self.loop: asyncio.AbstractEventLoop
        self.credential = ""

    def publish(self, sessions) -> None:
        done = threading.Event()

        def here() -> None:
            self.sekisho._revoked.add(Revocation(*entry) for entry in sessions.items())
            self.sekisho._feed_log.publish(sessions)
            done.set()

        self.loop.call_soon_threadsafe(here)
        assert done.wait(10)

    def counted(self, outcome: str) -> float:
        labels = {"event": "feed_reader_cut", "outcome": outcome}
        return self.sekisho.registry.get_sample_value("sekisho_events_total", labels) or 0


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(feed, "WRITE_S", 1.0)
    monkeypatch.setattr(BoundedHttpProtocol, "write_s", 2.0)
    sekisho = Sekisho(Settings(database_url=f"sqlite:///{tmp_path / 'local.db'}"))
    listening = socket.create_server(("127.0.0.1", 0))
    local = Local(sekisho, listening.getsockname()[1])

    @contextlib.asynccontextmanager
    async def lifespan(_app):
        local.loop = asyncio.get_running_loop()
        async with sekisho.running():
            local.credential = await sekisho.verifiers.add("shop")
            yield

    app = FastAPI(lifespan=lifespan)
    app.router.routes.extend(sekisho.router.routes)
    config = uvicorn.Config(app, http=BoundedHttpProtocol, ws="none", log_config=None, timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    wait_until(lambda: local.credential, within_s=20)
    yield local
    server.should_exit = True
    thread.join(20)
    listening.close()


def silent_reader(local: Local, *, last_event_id: str = "") -> socket.socket:
    """Asks for the feed, and never reads."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", local.port))
    lines = ["GET /revocations HTTP/1.1", "Host: a", f"Authorization: Bearer {local.credential}"]
    lines += [f"Last-Event-ID: {last_event_id}"] if last_event_id else []
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def test_who_does_not_read_is_cut_and_takes_little_memory(local):
    for _ in range(20):  # 4 MB: more than the kernel takes for a connection
        local.publish({str(uuid4()): LAPSES + number % 50 for number in range(5000)})
    FeedReader(local.base_url, local.credential).close()  # what all of them share is made
    process = psutil.Process()
    before = process.memory_info().rss
    silent = [silent_reader(local) for _ in range(40)]
    try:
        wait_until(lambda: local.counted("does_not_read") == 40, within_s=30, what="all of them are cut")
        grown = process.memory_info().rss - before
        assert grown < 40 * 600_000  # 40 copies of the snapshot would be 160 MB
        labels = {}
        wait_until(lambda: local.sekisho.registry.get_sample_value("sekisho_feed_readers", labels) == 0, within_s=10)
        for connection in silent:
            connection.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(1 << 16):
                    pass  # what had come before; then the connection is closed
    finally:
        for connection in silent:
            connection.close()


def test_who_falls_behind_is_cut_and_comes_back_by_snapshot(local, monkeypatch):
    monkeypatch.setattr(feed, "WRITE_S", 30.0)
    monkeypatch.setattr(BoundedHttpProtocol, "write_s", 30.0)
    monkeypatch.setattr(feed_log, "_RING_EVENTS", 8)
    monkeypatch.setattr(feed_log, "GATHER_S", 0.0)
    with following(local.base_url, local.credential) as quick:
        slow = silent_reader(local)
        wait_until(lambda: local.sekisho.registry.get_sample_value("sekisho_feed_readers") == 2, within_s=10)
        last = ""
        for _ in range(60):
            last = str(uuid4())
            local.publish({last: LAPSES} | {str(uuid4()): LAPSES for _ in range(4000)})
            quick.hears_of(last)
        slow.settimeout(10)
        got = b""
        while part := slow.recv(1 << 16):
            got += part
        slow.close()
        assert not got.endswith(b"0\r\n\r\n")  # cut, not ended
        wait_until(lambda: local.counted("fell_behind") == 1, within_s=10)
        numbers = [event.number for event in quick.all if event.name == "revoked"]
        assert numbers == list(range(1, 61))
        seen = [line for line in got.decode().splitlines() if line.startswith("id: ")][-1].removeprefix("id: ")
    with following(local.base_url, local.credential, last_event_id=seen) as again:
        assert again.all[0].name == "snapshot"
        assert last in set().union(*(event.ids for event in again.all if event.name != "heartbeat"))


def test_streams_end_by_themselves_after_a_while(local, monkeypatch):
    monkeypatch.setattr(feed, "_LIFE_S", 1.0)
    with following(local.base_url, local.credential) as reader:
        began = time.monotonic()
        assert reader.end() == "complete"
        assert time.monotonic() - began < 5
        seen = reader.all[-1].id
    with following(local.base_url, local.credential, last_event_id=seen) as again:
        assert [event.name for event in again.all] == ["heartbeat"]


def test_a_stopping_server_takes_no_new_reader(local):
    with following(local.base_url, local.credential) as reader:
        local.loop.call_soon_threadsafe(local.sekisho._feed_log.end)
        assert reader.end() == "complete"
        headers = {"Authorization": f"Bearer {local.credential}"}
        answer = httpx2.get(f"{local.base_url}/revocations", headers=headers, trust_env=False)
        assert (answer.status_code, answer.json()["code"]) == (503, "try_later")
