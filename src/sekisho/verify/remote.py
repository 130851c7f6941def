"""What a verifier learns from the issuer while it runs: one background thread, in which an event loop runs.

A thread, because it serves async and sync applications alike, and none of them has to start it; an event loop inside,
because it waits for several things at once. Neither survives a fork: the next call in the child starts its own.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import httpx2
import msgspec

from sekisho.errors import FeedLost, TokenRevoked
from sekisho.tokens.keyring import Keyring
from sekisho.verify.feed import Feed
from sekisho.verify.freshness import Freshness, State
from sekisho.verify.held import Held
from sekisho.verify.issuer import NO_PROXY_FOR_HTTP, read_bounded
from sekisho.verify.keyset import KeySetClient
from sekisho.wire import since_boot

_log: Final = logging.getLogger("sekisho.verify")
_TIDY_EVERY_S: Final = 10.0
_ASK_TIMEOUT_S: Final = 2.0  # for a piece of the answer
_ASK_S: Final = 3.0  # for all of it, at all addresses
_AGAIN_S: Final = 1.0
_CLOSE_WITHIN_S: Final = 5.0


class Remote:
    """Follows the issuer on behalf of one verifier. The constructor does no I/O."""

    def __init__(
        self,
        held: Held,
        *,
        jwks_url: str | None,
        revocations_urls: Sequence[str],
        credential: str,
    ) -> None:
        """Raises ``ValueError``."""
        # A line's end would break the header, and the library's error shows the header, so the log would have it.
        if not (credential.isascii() and credential.isprintable()) or " " in credential:
            raise ValueError("credential is what sekisho verifiers add printed, without spaces or line ends")
        if "" in {jwks_url, *revocations_urls}:  # a variable that is not set, say
            raise ValueError("an issuer's address is empty")
        self._held = held
        self._credential = credential
        self._ask_urls = [f"{url.rpartition('/')[0]}/introspect" for url in revocations_urls]
        self._freshness = Freshness(now=since_boot())
        self.keys = None if jwks_url is None else KeySetClient(jwks_url, use=self._use_keys)
        self.feed = (
            Feed(
                revocations_urls,
                credential=credential,
                held=held,
                freshness=self._freshness,
                on_heartbeat=self._heartbeat,
            )
            if revocations_urls
            else None
        )
        self.forget_thread()

    def forget_thread(self) -> None:
        """In the child of a fork: the thread, and whatever it held, stayed behind in the parent."""
        self._starting = threading.Lock()
        self._ready = threading.Event()
        self._runs = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: asyncio.Task[None] | None = None
        self._asking: httpx2.Client | None = None
        self._ask_again_at, self._ask_fault = float("-inf"), ""

    def start(self) -> None:
        """Begins to follow, unless that has happened in this process already."""
        if self._thread is not None and self._thread.is_alive():
            return
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._freshness.restart(now=since_boot())
                self._thread = threading.Thread(target=self._main, name="sekisho-verifier", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Ends the thread. What is known stays, and ages."""
        thread = self._thread
        if thread is not None:
            self._runs.wait(_CLOSE_WITHIN_S)  # it may have been started a moment ago
            if self._work is not None:
                self._call_in_loop(self._work.cancel)
            thread.join(_CLOSE_WITHIN_S)
        if self._asking is not None:
            self._asking.close()
        self.forget_thread()

    def wait(self, timeout_s: float) -> bool:
        """Blocks until keys and ended sessions are known, for so long at the most."""
        self.start()
        return self._ready.wait(timeout_s)

    @property
    def state(self) -> State | None:
        """Of the view of ended sessions; None where no feed is followed."""
        return None if self.feed is None else self._freshness.state(now=since_boot())

    @property
    def age_s(self) -> float | None:
        """Of that view, in seconds."""
        return None if self.feed is None else self._freshness.age_s(now=since_boot())

    def want_keys(self) -> None:
        """A kid was seen that is not known."""
        if self.keys is not None and not self.keys.is_wanted:  # a flood of them must not wake the thread for each
            self._call_in_loop(self.keys.want)

    def ask(self, token: str) -> None:
        """Asks the issuer about a token that is good otherwise. Blocks; raises ``TokenRevoked`` and ``FeedLost``."""
        with self._starting:
            if self._asking is None:
                try:
                    self._asking = httpx2.Client(timeout=_ASK_TIMEOUT_S, mounts=NO_PROXY_FOR_HTTP)
                except (ImportError, ValueError, OSError) as error:  # a proxy or certificates in the environment
                    raise FeedLost(1, f"the issuer cannot be asked: {type(error).__name__}") from None
            client = self._asking
        began, fault = since_boot(), self._ask_fault
        for url in self._ask_urls if began >= self._ask_again_at else ():
            try:
                active = self._is_active(client, url, token, until=began + _ASK_S)
            except (httpx2.HTTPError, OSError, ValueError, RecursionError) as error:
                fault = f"{url}: {type(error).__name__} {error}"
                continue
            if active:
                return
            raise TokenRevoked("the issuer says that it is not active")
        if began >= self._ask_again_at:  # else each request would wait, and hold a thread, for nothing
            self._ask_again_at, self._ask_fault = since_boot() + _AGAIN_S, fault
        raise FeedLost(1, f"the issuer cannot be asked: {fault}")

    def _is_active(self, client: httpx2.Client, url: str, token: str, *, until: float) -> bool:
        headers = {"Authorization": f"Bearer {self._credential}"}
        with client.stream("POST", url, data={"token": token}, headers=headers) as answer:
            if answer.status_code != 200:
                raise ValueError(f"the answer was {answer.status_code}")
            body = read_bounded(answer, in_time=lambda: since_boot() <= until)
        return msgspec.json.decode(body, type=_Introspection).active

    def _call_in_loop(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(call)

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except Exception:  # noqa: BLE001 - whatever it was, the next call starts it anew
            _log.exception("the verifier's thread has ended")
        finally:
            self._runs.set()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.create_task(_for_ever(self._follow))
        self._runs.set()
        await asyncio.wait([self._work])

    async def _follow(self) -> None:
        # Raises for a proxy or certificates of the environment that cannot be used.
        async with httpx2.AsyncClient(mounts=NO_PROXY_FOR_HTTP) as client:
            followed = [part.run for part in (self.keys, self.feed) if part is not None]
            await asyncio.gather(
                _for_ever(self._tidy_for_ever), *(_for_ever(partial(follow, client)) for follow in followed)
            )

    async def _tidy_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_EVERY_S)
            self._held.tidy()

    def _use_keys(self, keys: Keyring) -> None:
        self._held.replace_keys(keys)
        if self.keys is not None:
            self.keys.fault = ""
        self._look_whether_ready()

    def _heartbeat(self) -> None:
        self._held.trust_for(self._freshness.lost_in_s(now=since_boot()))
        self._look_whether_ready()

    def _look_whether_ready(self) -> None:
        has_keys = self.keys is None or not self.keys.fault
        if has_keys and self.state not in {"starting", "lost"}:
            self._ready.set()


class _Introspection(msgspec.Struct):
    active: bool


async def _for_ever(work: Callable[[], Awaitable[None]]) -> None:
    """A fault of ours must not leave the verifier deaf; the same fault is told once."""
    told = ""
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001
            if repr(error) != told:
                _log.exception("following the issuer has failed; it goes on")
            told = repr(error)
        await asyncio.sleep(_AGAIN_S)
