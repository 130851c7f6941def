"""What holds for every route of Sekisho, also inside another application, whose own handlers stay untouched.

Limits on headers and bodies, strict JSON, every error as a problem, nothing cached, one latency per request.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sekisho.errors import CsrfRefused, Overloaded, SekishoError, StorageUnavailable, Throttled, TryLater
from sekisho.services.events import Event, Events, where
from sekisho.web.problems import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    PRIVATE_HEADERS,
    BodyTooLarge,
    HeadersTooLarge,
    InvalidBody,
    MalformedForm,
    MalformedJson,
    WrongMediaType,
    problem_response,
)
from sekisho.wire import WireError, json_object

_Handler = Callable[[Request], Awaitable[Response]]
_MOST_FIELDS: Final = 20
_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Latency:
    """``sekisho_request_seconds`` by route, method and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "sekisho_request_seconds",
            "Time from the request's headers to the response, in seconds.",
            ("method", "route", "status"),
            buckets=_BUCKETS_S,
            registry=registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request."""
        self._seconds.labels(method, route, str(status)).observe(seconds)


class _ReadRequest(Request):
    """A request whose body was read, bounded and parsed already."""

    def __init__(self, request: Request, body: bytes, document: dict[str, Any] | None) -> None:
        super().__init__(request.scope, request.receive)
        self._whole_body = body
        self._document = document

    async def body(self) -> bytes:
        return self._whole_body

    async def json(self) -> Any:
        return self._document


def route_class(*, events: Events, latency: Latency, started: Callable[[], bool]) -> type[APIRoute]:
    """The route class for a router that reports to these.

    Before ``started`` there are no keys, and a 401 would make clients drop sessions that are good.
    """

    class SekishoRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()
            reads_body = self.body_field is not None

            async def guarded(request: Request) -> Response:
                began = time.perf_counter()
                try:
                    if not started():
                        raise TryLater(1, "not started: the router's lifespan has not run")  # noqa: TRY301
                    response = await _answer(request, handle, reads_body=reads_body)
                except SekishoError as error:
                    _report(events, error, self.path)
                    response = _problem(request, error)
                except HTTPException:  # from a dependency of the application around us: its handlers' business
                    raise
                except Exception as error:  # noqa: BLE001 - the last resort: no traceback reaches the client
                    events.record(Event.CRASHED, type(error).__name__, route=self.path, where=where(error))
                    response = _problem(request, SekishoError())
                latency.observe(request.method, self.path, response.status_code, time.perf_counter() - began)
                return response

            return guarded

    return SekishoRoute


async def _answer(request: Request, handle: _Handler, *, reads_body: bool) -> Response:
    if sum(len(name) + len(value) for name, value in request.headers.raw) > MAX_HEADER_BYTES:
        raise HeadersTooLarge
    try:
        if reads_body:
            request = await _with_body(request)
        response = await handle(request)
    except RequestValidationError as error:
        # Of the library's account only place and kind are kept: it also holds the input, and so passwords.
        raise InvalidBody([(_field(fault["loc"]), str(fault["type"])) for fault in error.errors()]) from None
    for name, value in PRIVATE_HEADERS.items():
        response.headers.setdefault(name, value)
    return response


async def _with_body(request: Request) -> Request:
    body = await _read(request)
    if not body:
        return _ReadRequest(request, b"", None)
    # A form that another site's page sends by itself cannot have this type (RFC 10017 §6.1.3.3).
    _expect_media_type(request, "application/json")
    try:
        return _ReadRequest(request, body, json_object(body, max_string=MAX_BODY_BYTES))
    except WireError as error:
        raise MalformedJson(str(error)) from None


async def form_of(request: Request) -> Mapping[str, str]:
    """The fields of a form, within the limits that hold for JSON.

    One without a value counts as left out (RFC 6749 §3.1).
    Raises ``BodyTooLarge``, ``WrongMediaType`` or ``MalformedForm``.
    """
    body = await _read(request)
    if body:
        _expect_media_type(request, "application/x-www-form-urlencoded")
    try:
        pairs = parse_qsl(body.decode("ascii"), errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:  # which would quote what was sent
        raise MalformedForm from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise MalformedForm("a field twice")
    return fields


async def _read(request: Request) -> bytes:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:  # what has come in counts, whatever Content-Length says
                raise BodyTooLarge
    except ClientDisconnect:
        raise MalformedJson("the client left") from None
    return bytes(body)


def _expect_media_type(request: Request, expected: str) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != expected:
        raise WrongMediaType


def _field(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location[1:]) or "body"


def _problem(request: Request, error: SekishoError) -> Response:
    return problem_response(error, accept_language=request.headers.get("accept-language", ""))


def _report(events: Events, error: SekishoError, route: str) -> None:
    """The refusals that no service tells of itself."""
    if isinstance(error, Throttled):
        events.record(Event.THROTTLED, error.code, route=route, lanes=error.detail)
    elif isinstance(error, CsrfRefused):
        events.record(Event.CSRF_REFUSED, error.code, route=route, detail=error.detail)
    elif isinstance(error, Overloaded):
        events.record(Event.OVERLOADED, error.code, route=route)
    elif isinstance(error, StorageUnavailable):
        events.record(Event.STORAGE_FAILED, "request", route=route, detail=error.detail)
    elif type(error) is TryLater:
        events.record(Event.PUT_OFF, error.code, route=route, detail=error.detail)
