"""How the issuer is reached: which addresses, by which way, how much of an answer is read; and a refresh there."""

import os
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

import httpx2
import msgspec

from sekisho.errors import RefreshRefused, TryLater
from sekisho.verify.renewal import Bearer, Renewed
from sekisho.wire import since_boot

_MAX_BYTES: Final = 64 * 1024
_NEVER_SENT: Final = dict.fromkeys(map(ord, "\0\r\n\v\f"), " ")
# Plain http is for this machine, or a network that is trusted. A proxy of the environment is neither.
NO_PROXY_FOR_HTTP: Final = {"http://": None}


class RefreshAtIssuer:
    """Brings a refresh token to the issuer's ``/refresh``. Blocks; safe to call from any thread."""

    def __init__(self, url: str, *, window_s: int, allow_http: bool = False) -> None:
        """Whoever waits longer than W/4 has given up (rotation.py). Raises ``ValueError`` for the URL."""
        self._url = checked_url(url, allow_http=allow_http)
        self._within_s = window_s / 4
        self._client: tuple[int, httpx2.Client] | None = None

    def __call__(self, bearer: Bearer) -> Renewed:
        """Raises ``RefreshRefused`` and ``TryLater``."""
        until = since_boot() + self._within_s
        try:
            try:
                return self._ask(bearer, until=until)
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                # Mostly a connection that the issuer closed as it was used again. The rotation forgives a repetition.
                return self._ask(bearer, until=until)
        except (httpx2.HTTPError, OSError, ValueError) as error:  # its text may hold what was sent
            raise TryLater(1, f"{self._url}: {type(error).__name__}") from None

    def _ask(self, bearer: Bearer, *, until: float) -> Renewed:
        hops = ", ".join(filter(None, [*bearer.forwarded_for, bearer.peer]))  # as a proxy would say it
        headers = {b"User-Agent": _sendable(bearer.user_agent), b"X-Forwarded-For": _sendable(hops)}
        body = {"refresh_token": bearer.refresh_token}
        with self._of_process().stream("POST", self._url, json=body, headers=headers) as answer:
            document = read_bounded(answer, in_time=lambda: since_boot() <= until)
        return _renewed(answer, document)

    def _of_process(self) -> httpx2.Client:
        """One for all threads; a fork must not share its connections."""
        client = self._client
        if client is None or client[0] != os.getpid():
            client = self._client = os.getpid(), httpx2.Client(timeout=self._within_s / 2, mounts=NO_PROXY_FOR_HTTP)
        return client[1]


def _sendable(text: str) -> bytes:
    """A header's value, without what some servers let in and no client can send (RFC 9110 §5.5)."""
    return text.translate(_NEVER_SENT).strip().encode("latin-1", "replace")


def _renewed(answer: httpx2.Response, document: bytes) -> Renewed:
    if answer.status_code == 200:
        return msgspec.json.decode(document, type=Renewed)
    if answer.status_code == 401:
        raise RefreshRefused("the issuer has refused it")
    retry_after = answer.headers.get("retry-after", "")
    raise TryLater(int(retry_after) if retry_after.isdecimal() else 1, f"the issuer answered {answer.status_code}")


def read_bounded(answer: httpx2.Response, *, in_time: Callable[[], bool]) -> bytes:
    """The body, if it is at most 64 KiB and there ``in_time``. Raises ``ValueError``."""
    body = b""
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > _MAX_BYTES or not in_time():
            raise ValueError("the answer takes too long")
    return body


def checked_url(url: str, *, allow_http: bool) -> str:
    """The URL, if it is https, or http on this machine. Raises ``ValueError``.

    Over plain http anyone on the way could give us keys, or keep an ended session from us.
    """
    try:
        parts = httpx2.URL(url)  # as it will be read when it is asked
    except httpx2.InvalidURL:
        raise ValueError("an issuer's address is https://HOST/PATH") from None
    is_whole = parts.scheme in {"http", "https"} and parts.host and (parts.port or 0) < 65536
    if not is_whole or parts.userinfo or parts.fragment:
        raise ValueError("an issuer's address is https://HOST/PATH")
    if parts.scheme == "http" and not allow_http and not _is_loopback(parts.host):
        raise ValueError("an http address is allowed on this machine alone, or with allow_http=True")
    return url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
