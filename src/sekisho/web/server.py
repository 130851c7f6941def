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
    """httptools keeps reading headers for as long as someone sends them; this stops at 32 KiB."""

    _in_headers = True
    _header_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Counts what came in while the headers are not complete."""
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.transport.write(_HEADERS_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """The limit is the application's from here: it sees the exact size."""
        self._in_headers = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next request on this connection begins."""
        super().on_message_complete()
        self._in_headers, self._header_bytes = True, 0


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
