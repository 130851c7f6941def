"""A reverse proxy: one origin before several servers. It runs in threads of its own."""

import http.client
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from .ports import free_port

_OF_THE_CONNECTION: Final = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class Front:
    """Listens while it is entered. ``servers``: from the beginning of a path, which is cut off, to a port."""

    def __init__(self, servers: Mapping[str, int], *, port: int | None = None) -> None:
        self.port = port or free_port()
        self._servers = sorted(servers.items(), key=lambda item: len(item[0]), reverse=True)
        front = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                front._pass_on(self)

            do_GET = do_POST = _any  # noqa: N815 - the library's names

            def log_message(self, *_: Any) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _: BaseException | None, _at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _pass_on(self, request: BaseHTTPRequestHandler) -> None:
        prefix, port = next(item for item in self._servers if request.path.startswith(item[0]))
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        # As proxies do: whom they see, behind what they were told.
        hops = [*request.headers.get_all("X-Forwarded-For", []), str(request.client_address[0])]
        headers = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
        server = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            sent = {**headers, "X-Forwarded-For": ", ".join(hops)}
            server.request(request.command, request.path[len(prefix) :], body or None, sent)
            answer = server.getresponse()
            content = answer.read()
        finally:
            server.close()
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _OF_THE_CONNECTION:
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
