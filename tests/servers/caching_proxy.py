"""A caching HTTP proxy as careless as those in front of CVE-2025-48947: it looks at Cache-Control and at nothing else."""

import http.client
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def may_be_kept(self) -> bool:
        control = ",".join(value for name, value in self.headers if name.lower() == "cache-control").lower()
        return self.status == 200 and "no-store" not in control and "private" not in control


class CachingProxy:
    """Keeps any 200 to a GET for its URL, with its Set-Cookie and whatever Vary says, unless no-store or private.

    ``X-Cache`` of an answer says whether it came from the cache. Serves on ``base_url`` while it is entered.
    """

    def __init__(self, target: int) -> None:
        """``target``: a port of this machine."""
        self._target = target
        self._kept: dict[str, _Answer] = {}
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                proxy._serve(self)

            do_GET = do_POST = do_DELETE = _any  # noqa: N815 - the library's names

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def keeps(self) -> set[str]:
        """The URLs whose answer is in the cache."""
        return set(self._kept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _: BaseException | None, _at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        found = self._kept.get(request.path) if request.command == "GET" else None
        answer = found or self._ask(request, body)
        if request.command == "GET" and answer.may_be_kept:
            self._kept[request.path] = answer
        request.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() not in _HOP_BY_HOP:
                request.send_header(name, value)
        request.send_header("X-Cache", "MISS" if found is None else "HIT")
        if answer.status != 204:
            request.send_header("Content-Length", str(len(answer.body)))
        request.end_headers()
        request.wfile.write(answer.body)

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> _Answer:
        server = http.client.HTTPConnection("127.0.0.1", self._target, timeout=20)
        try:
            server.request(request.command, request.path, body or None, dict(request.headers.items()))
            response = server.getresponse()
            return _Answer(response.status, response.getheaders(), response.read())
        finally:
            server.close()
