"""Running the application under uvicorn, with the limits that its parser lacks."""

import json
import os
import signal
import socket
import sys
import tempfile
from typing import Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sekisho.web.problems import MAX_HEADER_BYTES, MEDIA_TYPE, HeadersTooLarge

GRACE_S: Final = 3  # Ctrl-C ends the server within 5 s, whatever clients do
_APP: Final = "sekisho.web.standalone:create_app"


class BoundedHttpProtocol(HttpToolsProtocol):
    """httptools keeps reading headers, and trailers, for as long as someone sends them; this stops at 32 KiB.

    Trailers are dropped: uvicorn would append them to the headers, past every proxy that has checked or set those
    (RFC 9110 §6.5.1).
    """

    _in_headers = True
    _bytes_without_body = 0

    def data_received(self, data: bytes) -> None:
        """Counts what came in since the request, or the last piece of its body."""
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
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The application counts it."""
        self._bytes_without_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next request on this connection begins."""
        super().on_message_complete()
        self._in_headers, self._bytes_without_body = True, 0


def run(*, host: str, port: int, workers: int) -> None:
    """Serves until SIGINT or SIGTERM. Settings come from the environment, in each worker."""
    if workers > 1:
        # Must be set before the workers import prometheus_client; each then counts into files of its own there.
        with tempfile.TemporaryDirectory(prefix="sekisho-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            _run(host=host, port=port, workers=workers)
    else:
        _run(host=host, port=port, workers=1)


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


def _run(*, host: str, port: int, workers: int) -> None:
    # After its orderly end uvicorn raises the signal again; an end that was asked for is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        _APP,
        factory=True,
        host=host,
        port=port,
        workers=workers,
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # X-Forwarded-For is read by SEKISHO_TRUSTED_PROXIES alone; uvicorn would believe anyone on this machine.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
    )


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
