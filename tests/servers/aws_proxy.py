"""Stands between Sekisho and moto, reads each call, and answers it as an AWS that is in trouble would."""

import base64
import json
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.error import HTTPError

_PATIENCE_S: Final = 30.0


@dataclass(frozen=True)
class Answer:
    """What goes back to the caller."""

    status: int
    body: bytes
    announced_bytes: int | None = None  # more than there are: the answer is cut short


Forward = Callable[[], Answer]
Fault = Callable[[Forward], Answer | None]
"""Gets the call, to pass on or not, and gives the answer; None is none: the connection is cut."""


def _error(status: int, kind: str, text: str = "canary") -> Fault:
    body = json.dumps({"__type": kind, "message": text}).encode()
    return lambda _forward: Answer(status, body)


def with_value(**members: Any) -> Fault:
    """The secret's value is another one; without members there is none."""

    def changed(forward: Forward) -> Answer:
        answer = json.loads(forward().body)
        answer.pop("SecretString", None)
        answer.pop("SecretBinary", None)
        return Answer(200, json.dumps({**answer, **members}).encode())

    return changed


def _cut_short(forward: Forward) -> Answer:
    body = forward().body
    return Answer(200, body[: len(body) // 2], announced_bytes=len(body))


def _lost(forward: Forward) -> None:
    forward()  # it is done, and nobody hears of it


throttled = _error(400, "ThrottlingException")
broken = _error(500, "InternalServiceError")
lost: Fault = _lost
TROUBLES: Final[dict[str, Fault]] = {
    "throttling": throttled,
    "500": broken,
    "503 of something else": lambda _forward: Answer(503, b"<html>canary</html>"),
    "cut": lambda _forward: None,
    "cut short": _cut_short,
    "no AWS": lambda _forward: Answer(200, b"<html>canary</html>"),
    "an empty answer": lambda _forward: Answer(200, b""),
    "a list": lambda _forward: Answer(200, b"[]"),
    "null": lambda _forward: Answer(200, b"null"),
    "no base64": with_value(SecretBinary="canary"),
}
REFUSALS: Final[dict[str, Fault]] = {
    "no permission": _error(400, "AccessDeniedException"),
    "no key of KMS": _error(400, "DecryptionFailure"),
    "no permission for KMS": _error(400, "AccessDeniedException", "Access to KMS is not allowed"),
    "expired credentials": _error(400, "ExpiredTokenException"),
    "unknown credentials": _error(400, "UnrecognizedClientException"),
    "a word of nobody": _error(400, "canary canary\n"),
}
BAD_VALUES: Final[dict[str, Fault]] = {
    "missing": with_value(),
    "empty": with_value(SecretString=""),
    "10 bytes": with_value(SecretString="0123456789"),
    "malformed": with_value(SecretString='{"keys": [{"kty": "oct", "k": "canary'),
    "short keys": with_value(SecretString=json.dumps({"keys": [{"kty": "oct", "kid": "a", "k": "canary"}]})),
    "no keys": with_value(SecretString='{"keys": []}'),
    "binary garbage": with_value(SecretBinary=base64.b64encode(b"\xff\xfe\x00canary").decode()),
    "a surrogate": with_value(SecretString="\ud800"),
    "no text": with_value(SecretString=7),
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, _request: object, _address: object) -> None:
        """A caller who did not wait for the answer is no news."""


class AwsProxy:
    """Runs while it is entered. ``faults`` names what happens to a call by its operation, ``*`` to any other."""

    def __init__(self, moto_url: str) -> None:
        self.calls: Counter[str] = Counter()
        self.connections = 0
        self.faults: dict[str, Fault] = {}
        self._moto_url = moto_url
        self._changed = threading.Condition()
        self._stalled = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stall(self, _forward: Forward) -> None:
        """A fault: no answer, until the proxy ends."""
        self._stalled.wait()

    def wait_for(self, operation: str, times: int) -> None:
        """Returns when so many more of these calls have been answered."""
        with self._changed:
            due = self.calls[operation] + times
            if not self._changed.wait_for(lambda: self.calls[operation] >= due, _PATIENCE_S):
                raise TimeoutError(f"{self.calls[operation]} of {due} calls of {operation}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._stalled.set()
        self._server.shutdown()
        self._thread.join(_PATIENCE_S)
        self._server.server_close()

    def _answer(self, body: bytes, headers: dict[str, str]) -> Answer | None:
        operation = headers.get("X-Amz-Target", "").rpartition(".")[2] or "AssumeRole"

        def forward() -> Answer:
            request = urllib.request.Request(f"{self._moto_url}/", data=body, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
                    return Answer(answer.status, answer.read())
            except HTTPError as error:
                with error:
                    return Answer(error.code, error.read())

        fault = self.faults.get(operation) or self.faults.get("*")
        try:
            return forward() if fault is None else fault(forward)
        finally:
            with self._changed:
                self.calls[operation] += 1
                self._changed.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                proxy.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = proxy._answer(body, dict(self.headers))
                if answer is None:
                    self.close_connection = True
                else:
                    self.close_connection = answer.announced_bytes is not None
                    self.send_response(answer.status)
                    self.send_header("Content-Type", "application/x-amz-json-1.1")
                    self.send_header("Content-Length", str(answer.announced_bytes or len(answer.body)))
                    self.end_headers()
                    self.wfile.write(answer.body)

            def log_message(self, *_args: object) -> None:
                pass

        return Handler
