"""Running the application under uvicorn, with the limits that its parser lacks."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any, ClassVar, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sekisho.web.problems import MAX_HEADER_BYTES, MEDIA_TYPE, HeadersTooLarge

GRACE_S: Final = 3  # Ctrl-C ends the server within 5 s, whatever clients do
_APP: Final = "sekisho.web.standalone:create_app"


class BoundedHttpProtocol(HttpToolsProtocol):
    """httptools keeps reading headers, and trailers, for as long as someone sends them; this stops at 32 KiB.

    Trailers are dropped: uvicorn would append them to the headers, past every proxy that has checked or set those
    (RFC 9110 §6.5.1).

    A request has to come in within a time, too: a few hundred connections that say nothing, or one byte now and then,
    would leave the server no file descriptor for anyone else. Between requests uvicorn's own keep-alive limit counts.
    """

    write_s: ClassVar[float] = 12.0  # for what stands in the connection's buffer; the feed gives up a little sooner
    headers_s: ClassVar[float] = 10.0  # from the connection, or the first byte of a later request
    body_s: ClassVar[float] = 30.0  # from the end of the headers

    _in_headers = True
    _bytes_without_body = 0
    _deadline: asyncio.TimerHandle | None = None
    _taken_by: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """The first request is expected."""
        super().connection_made(transport)
        self._expect_within(self.headers_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is expected any more."""
        self._expect_within(None)
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes nothing. Closing would wait until it does, with all that stands in the buffer."""
        super().pause_writing()
        self._taken_by = self.loop.call_later(self.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._taken_by is not None:
            self._taken_by.cancel()
            self._taken_by = None

    def _expect_within(self, seconds: float | None) -> None:
        """Closes the connection then, unless this is called again before."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.close)

    def data_received(self, data: bytes) -> None:
        """Counts what came in since the request, or the last piece of its body."""
        if self._deadline is None:
            self._expect_within(self.headers_s)
        self._bytes_without_body += len(data)
        super().data_received(data)
        if self._bytes_without_body > MAX_HEADER_BYTES and not self.transport.is_closing():
            if self._in_headers:
                self.transport.write(_HEADERS_TOO_LARGE)
            self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Headers alone; what comes after the body is a trailer."""
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The limit is the application's from here: it sees the exact size."""
        self._in_headers, self._bytes_without_body = False, 0
        self._expect_within(self.body_s)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The application counts it."""
        self._bytes_without_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next request on this connection begins."""
        super().on_message_complete()
        self._in_headers, self._bytes_without_body = True, 0
        self._expect_within(None)


_OPTIONS: Final[dict[str, Any]] = {
    "factory": True,
    "http": BoundedHttpProtocol,
    "ws": "none",
    "lifespan": "on",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    # X-Forwarded-For is read by SEKISHO_TRUSTED_PROXIES alone; uvicorn would believe anyone on this machine.
    "proxy_headers": False,
    "timeout_graceful_shutdown": GRACE_S,
}


class _Server(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Exits, and tells nothing, where the application does not start or the port is taken."""
        await super().startup(sockets)
        self._on_listening()


def run(*, host: str, port: int, workers: int, on_listening: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM. Settings come from the environment, in each worker.

    ``on_listening`` is called once callers can connect. With several workers nobody knows that; it is not called then.
    """
    # After its orderly end uvicorn raises the signal again; an end that was asked for is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if workers > 1:
        # Must be set before the workers import prometheus_client; each then counts into files of its own there.
        with tempfile.TemporaryDirectory(prefix="sekisho-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            uvicorn.run(_APP, host=host, port=port, workers=workers, **_OPTIONS)
    else:
        config = uvicorn.Config(_APP, host=host, port=port, **_OPTIONS)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C, likewise
            _Server(config, on_listening).run()


def port_is_free(host: str, port: int) -> bool:
    """Whether someone could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _raw_response(error: HeadersTooLarge) -> bytes:
    body = json.dumps(
        {
            "type": f"urn:sekisho:problem:{error.public_code}",
            "title": error.text_en,
            "status": 431,
            "code": error.public_code,
        }
    )
    head = (
        "HTTP/1.1 431 Request Header Fields Too Large\r\n"
        f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return (head + body).encode("ascii")


_HEADERS_TOO_LARGE: Final = _raw_response(HeadersTooLarge())
