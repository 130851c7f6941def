"""Refresh in place: a page's request whose access cookie has expired gets a new pair before the page is rendered.

The rotation forgives what this needs: parallel requests that bring the same refresh token, to whatever nodes, are given
the same pair, and a response that is lost with its cookies costs nothing. What it does not forgive is a late Set-Cookie
that overwrites a newer one, so cookies are written only shortly after their refresh.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import msgspec

from sekisho.errors import CsrfRefused, RefreshRefused, SekishoError, TokenError, TokenRevoked, TryLater
from sekisho.verify.cookies import Cookies, read_cookie, with_cookies
from sekisho.verify.origin import HeaderOf, expect_own_page, is_unsafe, origin_of
from sekisho.verify.verifier import Verifier
from sekisho.wire import since_boot

_TRY_AGAIN_S: Final = 1.0  # after a refresh that could not be done now


class Renewed(msgspec.Struct, frozen=True, kw_only=True):
    """What a refresh gives (RFC 6749 §5.1). Lifetimes in seconds."""

    access_token: str
    expires_in: int
    refresh_token: str
    refresh_expires_in: int

    def __repr__(self) -> str:
        return "<Renewed>"


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """A pair, and until when its cookies may be written (by ``since_boot``)."""

    pair: Renewed
    write_until: float


@dataclass(frozen=True, kw_only=True)
class Bearer:
    """A request's refresh token, and what the issuer is to be told of who brings it."""

    refresh_token: str = field(repr=False)
    user_agent: str
    peer: str
    forwarded_for: Sequence[str]


ByThread: TypeAlias = Callable[[Bearer], Renewed]
ByLoop: TypeAlias = Callable[[Bearer], Awaitable[Renewed]]


class Renewals:
    """Finds the requests that need a new pair, and refreshes once for all that bring the same token to this process."""

    def __init__(self, verifier: Verifier, *, window_s: int, monotonic: Callable[[], float] = since_boot) -> None:
        """``window_s``: the issuer's replay window, W of its rotation rule."""
        self.cookies = Cookies(verifier.issuer)
        self._verifier = verifier
        self._origins = (origin_of(verifier.issuer),)
        self._kept_s = window_s / 4
        self._monotonic = monotonic
        self._lock = threading.Lock()
        # By the whole token, so that nobody is given what was another's (CVE-2025-67490).
        self._known: dict[str, tuple[float, Future[Renewed]]] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    def needed(self, method: str, header: HeaderOf, *, peer: str) -> Bearer | None:
        """The refresh token of a request that comes with cookies, and whose access token is gone or does not hold.

        None where nothing is to be done here, which may be the guard's to refuse.
        """
        if header("authorization"):
            return None
        try:
            refresh_token = read_cookie(header("cookie"), self.cookies.refresh, RefreshRefused)
            access_token = read_cookie(header("cookie"), self.cookies.access, RefreshRefused)
            if refresh_token is None or (access_token is not None and self._holds(access_token)):
                return None
            if is_unsafe(method):
                expect_own_page(header, self._origins)
        except (RefreshRefused, CsrfRefused, TryLater):
            return None
        return Bearer(
            refresh_token=refresh_token,
            user_agent=", ".join(header("user-agent")),
            peer=peer,
            forwarded_for=header("x-forwarded-for"),
        )

    def get(self, bearer: Bearer, refresh: ByThread) -> Renewal:
        """Blocks. Raises ``RefreshRefused`` and ``TryLater``."""
        began, result, is_first = self._join(bearer.refresh_token)
        if is_first:
            try:
                result.set_result(refresh(bearer))
            except BaseException as error:
                result.set_exception(_told(error))  # whatever it is, nobody may wait for ever
                if not isinstance(error, Exception):
                    raise
        return Renewal(pair=result.result(), write_until=began + self._kept_s)

    async def aget(self, bearer: Bearer, refresh: ByLoop) -> Renewal:
        """The same on an event loop. A request that is cancelled leaves the refresh to those that wait for it too."""
        began, result, is_first = self._join(bearer.refresh_token)
        if is_first:
            task = asyncio.create_task(self._run(bearer, refresh, result))
            self._under_way.add(task)  # the loop alone would let it be collected in the middle
            task.add_done_callback(self._under_way.discard)
        awaited = asyncio.wrap_future(result)
        awaited.add_done_callback(asyncio.Future.exception)  # a failure that nobody waits for any more is no news
        pair = await asyncio.shield(awaited)
        return Renewal(pair=pair, write_until=began + self._kept_s)

    def cookie_header(self, header: HeaderOf, pair: Renewed) -> str:
        """The request's cookies as they would be if it had brought the new pair."""
        new = {self.cookies.access: pair.access_token, self.cookies.refresh: pair.refresh_token}
        return with_cookies(header("cookie"), new)

    def may_write(self, renewal: Renewal, set_already: Iterable[str]) -> bool:
        """Whether its cookies are to go with a response that starts now, and sets these (headers' values, or names)."""
        ours = (self.cookies.access, self.cookies.refresh)
        # The application's own login or logout in this very response is newer.
        is_free = not any(value.partition("=")[0].strip() in ours for value in set_already)
        return is_free and self._monotonic() <= renewal.write_until and not self._has_ended(renewal.pair)

    def set_cookies(self, pair: Renewed) -> list[str]:
        """The values of the Set-Cookie headers."""
        return [
            self.cookies.set(self.cookies.access, pair.access_token, max_age_s=pair.expires_in),
            self.cookies.set(self.cookies.refresh, pair.refresh_token, max_age_s=pair.refresh_expires_in),
        ]

    def _has_ended(self, pair: Renewed) -> bool:
        """By a logout that came meanwhile: the browser may have another sign-in's cookies by now."""
        try:
            self._verifier.verify(pair.access_token)
        except TokenRevoked:
            return True
        except (TokenError, TryLater):
            pass
        return False

    def _holds(self, access_token: str) -> bool:
        try:
            self._verifier.verify(access_token)
        except TokenError:
            return False
        return True

    def _join(self, refresh_token: str) -> tuple[float, Future[Renewed], bool]:
        now = self._monotonic()
        with self._lock:
            for token, (began, _) in list(self._known.items()):  # in the order in which they began
                if now - began <= self._kept_s:
                    break
                del self._known[token]
            known = self._known.get(refresh_token)
            if known is not None and not _is_used_up(now, *known):
                return (*known, False)
            self._known.pop(refresh_token, None)  # to the end of the order
            result: Future[Renewed] = Future()
            self._known[refresh_token] = now, result
            return now, result, True

    async def _run(self, bearer: Bearer, refresh: ByLoop, result: Future[Renewed]) -> None:
        try:
            result.set_result(await refresh(bearer))
        except BaseException as error:
            result.set_exception(_told(error))
            if not isinstance(error, Exception):
                raise


def _is_used_up(now: float, began: float, result: Future[Renewed]) -> bool:
    """Whether the same token is to be brought to the issuer again."""
    if not result.done():
        return False
    if isinstance(result.exception(), TryLater):
        return now - began > _TRY_AGAIN_S
    return result.exception() is None and now - began > result.result().expires_in


def _told(error: BaseException) -> SekishoError:
    """A fault of the refresh says nothing against the token."""
    if isinstance(error, RefreshRefused | TryLater):
        return error
    return TryLater(1, f"the refresh failed: {type(error).__name__}")
