"""Fetching the issuer's public keys (RFC 7517 §5), so that nobody who sends tokens can make us fetch much."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

import httpx2

from sekisho.errors import KeyRefused
from sekisho.tokens.keyring import Keyring
from sekisho.wire import WireError, json_object

_log: Final = logging.getLogger("sekisho.verify")
# The issuer publishes a key for ten minutes before it signs.
_EVERY_S: Final = 300.0
# A kid that we do not know may be a new key; or anybody's invention, however many there are.
UNKNOWN_EVERY_S: Final = 30.0
_WITHIN_S: Final = 2.0
_MAX_BYTES: Final = 64 * 1024
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 5.0

_HS256_ISSUER: Final = (
    "the issuer publishes no keys: it signs with HS256, whose secret would let everyone sign. Let it sign with EdDSA "
    "(SEKISHO_SIGNING_ALGORITHM=EdDSA, then sekisho keys rotate --now)"
)


class KeySetClient:
    """Fetches at first, every five minutes, and for an unknown kid. What was fetched last stays until then."""

    def __init__(self, url: str, *, use: Callable[[Keyring], None]) -> None:
        """``use`` takes each new ring; it may raise ``KeyRefused``."""
        self._url = url
        self._use = use
        self._document: bytes | None = None
        self._wanted: asyncio.Event | None = None
        self._failing = False
        self.fault = "they have not been fetched yet"
        """Why there are no keys; empty once there are."""

    @property
    def is_wanted(self) -> bool:
        """Whether that is known already."""
        return self._wanted is not None and self._wanted.is_set()

    def want(self) -> None:
        """An unknown kid was seen. Called in the loop that ``run`` runs in."""
        if self._wanted is not None:
            self._wanted.set()

    async def run(self, client: httpx2.AsyncClient) -> None:
        """For ever."""
        self._wanted = asyncio.Event()
        self._document = None  # after a fork, or in another thread, whoever waits for the keys has to hear of them
        pause_s = _FIRST_PAUSE_S
        while True:
            self._wanted.clear()
            fetched = await self._fetch(client)
            if self.fault:  # no keys at all yet: nothing can be checked, so this is urgent
                await asyncio.sleep(random.uniform(0.5, 1) * pause_s)  # noqa: S311 - not in step with others
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                continue
            wait_s = _EVERY_S * random.uniform(0.8, 1.2) if fetched else UNKNOWN_EVERY_S  # noqa: S311
            await asyncio.sleep(UNKNOWN_EVERY_S)
            try:
                await asyncio.wait_for(self._wanted.wait(), wait_s - UNKNOWN_EVERY_S)
            except TimeoutError:
                continue

    async def _fetch(self, client: httpx2.AsyncClient) -> bool:
        try:
            document = await self._document_at(client)
            if document != self._document:
                self._use(_ring(document))
                self._document = document
        except (KeyRefused, WireError, httpx2.HTTPError, OSError, TimeoutError) as error:
            fault = f"{self._url}: {error or type(error).__name__}"
            if not self._failing or (self.fault and self.fault != fault):
                _log.error("the issuer's keys cannot be fetched: %s", fault)
            self._failing = True
            if self.fault:
                self.fault = fault
            return False
        if self._failing:
            _log.info("the issuer's keys were fetched again")
        self._failing, self.fault = False, ""
        return True

    async def _document_at(self, client: httpx2.AsyncClient) -> bytes:
        async with asyncio.timeout(_WITHIN_S), client.stream("GET", self._url) as response:
            if response.status_code != 200:  # a redirect too: it could lead anywhere (CVE-2026-102267)
                raise KeyRefused(f"the answer was {response.status_code}")
            document = b""
            async for piece in response.aiter_bytes():
                document += piece
                if len(document) > _MAX_BYTES:
                    raise KeyRefused("the key set is larger than 64 KiB")
        return document


def _ring(document: bytes) -> Keyring:
    """Of the public keys alone; one that cannot be used does not drop the others. Raises ``KeyRefused``."""
    jwks = json_object(document, max_string=_MAX_BYTES)
    entries = jwks.get("keys")
    if entries == []:
        raise KeyRefused(_HS256_ISSUER)
    if isinstance(entries, list):
        jwks["keys"] = [entry for entry in entries if not (isinstance(entry, dict) and entry.get("kty") == "oct")]
        if not jwks["keys"]:
            raise KeyRefused("the key set holds shared secrets alone, which nobody may publish")
    ring = Keyring.from_jwks(jwks)
    for reason in ring.refused:
        _log.warning("of the issuer's keys one is not used: %s", reason)
    return ring
