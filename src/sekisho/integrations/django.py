"""Django: a middleware for every view, sync or async, a decorator for single ones, and one that refreshes in place.

Settings: ``SEKISHO_VERIFIER`` (a ``Verifier``, or the dotted path of one), ``SEKISHO_WHEN_LOST`` (in place of the
verifier's own policy), ``SEKISHO_EXEMPT`` (paths that are open to all, exact ones or prefixes that end in ``/``) and
``SEKISHO_COOKIE`` (True: without an Authorization header the cookie with the access token counts; what is unsafe must
then come from a page of the issuer's own origin). For ``RefreshInPlaceMiddleware``: ``SEKISHO_REFRESH_URL`` (the
issuer's ``/refresh``) and ``SEKISHO_REPLAY_WINDOW_S`` (as the issuer has it; 30).
"""

import asyncio
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeAlias, TypeVar, cast, overload

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.utils.cache import patch_vary_headers
from django.utils.module_loading import import_string

from sekisho.errors import AuthenticationRequired, RefreshRefused, TryLater
from sekisho.tokens.access import AccessClaims
from sekisho.verify import Verifier, WhenLost
from sekisho.verify.guard import MEDIA_TYPE, REFUSED, Exempt, Guard, Refused, is_preflight, refusal
from sekisho.verify.origin import HeaderOf
from sekisho.verify.renewal import Bearer, Renewal, Renewals, Renewed

View: TypeAlias = Callable[..., Any]
_View = TypeVar("_View", bound=View)


class SekishoMiddleware:
    """Every view gets its claims (``claims_of``), or is not run. Put it below the CORS middleware, if there is one."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: View) -> None:
        """Raises ``ImproperlyConfigured`` or ``ValueError`` for settings that cannot be meant."""
        self._get_response = get_response
        self._guard = guard_of_settings()
        self._exempt = Exempt(getattr(settings, "SEKISHO_EXEMPT", ()))
        self._is_async = iscoroutinefunction(get_response)
        self.process_view: View = _aprocess_view if self._is_async else _process_view
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """One request. In an async chain Django awaits what this returns."""
        if self._is_async:
            return self._acall(request)
        if not self._is_open(request):
            try:
                request.claims = self._guard.claims(*parts_of(request))
            except REFUSED as error:
                return _refused(error)
        return self._get_response(request)

    async def _acall(self, request: HttpRequest) -> Any:
        if not self._is_open(request):
            try:
                request.claims = await self._guard.aclaims(*parts_of(request))
            except REFUSED as error:
                return _refused(error)
        return await self._get_response(request)

    def _is_open(self, request: HttpRequest) -> bool:
        request.sekisho_exempt = request.path_info in self._exempt
        return request.sekisho_exempt or is_preflight_of(request)


class RefreshInPlaceMiddleware:
    """For tokens in cookies: when the access cookie has expired, it refreshes before the page is made.

    Put it above ``SekishoMiddleware``. Views see the new cookies, and the browser gets them with the response. Requests
    that come at once refresh once in this process. A token that the issuer refuses goes on as it is, for the guard to
    answer; where the issuer cannot say, the request is answered 503. Paths of ``SEKISHO_EXEMPT`` are left alone.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: View) -> None:
        """Raises ``ImproperlyConfigured`` or ``ValueError`` for settings that cannot be meant."""
        from sekisho.verify.issuer import RefreshAtIssuer  # noqa: PLC0415 - httpx2 is for those who use it

        url = getattr(settings, "SEKISHO_REFRESH_URL", None)
        if not isinstance(url, str):
            raise ImproperlyConfigured("SEKISHO_REFRESH_URL is the address of the issuer's /refresh")
        window_s = getattr(settings, "SEKISHO_REPLAY_WINDOW_S", 30)
        self._get_response = get_response
        self._renewals = Renewals(verifier_of_settings(), window_s=window_s)
        self._refresh = RefreshAtIssuer(url, window_s=window_s)
        self._exempt = Exempt(getattr(settings, "SEKISHO_EXEMPT", ()))
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """One request. In an async chain Django awaits what this returns."""
        if self._is_async:
            return self._acall(request)
        bearer = self._needed(request)
        if bearer is None:
            return self._get_response(request)
        try:
            renewal = self._renewals.get(bearer, self._refresh)
        except RefreshRefused:
            return self._get_response(request)
        except TryLater as error:
            return _refused(error)
        self._take(request, renewal)
        return self._written(renewal, self._get_response(request))

    async def _acall(self, request: HttpRequest) -> Any:
        bearer = self._needed(request)
        if bearer is None:
            return await self._get_response(request)
        try:
            renewal = await self._renewals.aget(bearer, self._arefresh)
        except RefreshRefused:
            return await self._get_response(request)
        except TryLater as error:
            return _refused(error)
        self._take(request, renewal)
        return self._written(renewal, await self._get_response(request))

    async def _arefresh(self, bearer: Bearer) -> Renewed:
        return await asyncio.to_thread(self._refresh, bearer)

    def _needed(self, request: HttpRequest) -> Bearer | None:
        if request.path_info in self._exempt:
            return None
        _, method, header = parts_of(request)
        return self._renewals.needed(method, header, peer=request.META.get("REMOTE_ADDR", ""))

    def _take(self, request: HttpRequest, renewal: Renewal) -> None:
        *_, header = parts_of(request)
        request.META["HTTP_COOKIE"] = self._renewals.cookie_header(header, renewal.pair)
        for read_before in ("COOKIES", "headers"):
            vars(request).pop(read_before, None)

    def _written(self, renewal: Renewal, response: HttpResponse) -> HttpResponse:
        patch_vary_headers(response, ["Cookie"])
        if self._renewals.may_write(renewal, response.cookies):
            for cookie in self._renewals.set_cookies(renewal.pair):
                response.cookies.load(cookie)
            response["Cache-Control"] = "no-store"  # whatever the view says: another user must not be served these
        return response


def _process_view(request: HttpRequest, *_: Any) -> HttpResponse | None:
    """A preflight comes as far as to the view, through every other middleware; the view does not run."""
    return HttpResponse(status=204) if is_preflight_of(request) and not request.sekisho_exempt else None


async def _aprocess_view(request: HttpRequest, *_: Any) -> HttpResponse | None:
    # Django would send a plain function through a worker thread, on every request.
    return _process_view(request)


@overload
def require_user(view: _View) -> _View: ...
@overload
def require_user(
    *, verifier: Verifier | None = None, when_lost: WhenLost | None = None
) -> Callable[[_View], _View]: ...
def require_user(
    view: View | None = None, *, verifier: Verifier | None = None, when_lost: WhenLost | None = None
) -> View:
    """Guards one view, async or not: ``@require_user``, or ``@require_user(verifier=…, when_lost=…)``.

    What is not given comes from the settings. For a class: ``require_user(SomeView.as_view())``.
    """
    if view is None:
        return lambda view: _guarded(view, verifier, when_lost)
    return _guarded(view, verifier, when_lost)


def _guarded(view: _View, verifier: Verifier | None, when_lost: WhenLost | None) -> _View:
    def guard() -> Guard:  # not before the first request: settings may come later than views
        return guard_of_settings() if verifier is None and when_lost is None else _guard_of(verifier, when_lost)

    @wraps(view)
    async def asynchronous(request: HttpRequest, *args: Any, **named: Any) -> Any:
        try:
            request.claims = await guard().aclaims(*parts_of(request))
        except REFUSED as error:
            return _answer(error, request)
        return await view(request, *args, **named)

    @wraps(view)
    def synchronous(request: HttpRequest, *args: Any, **named: Any) -> Any:
        try:
            request.claims = guard().claims(*parts_of(request))
        except REFUSED as error:
            return _answer(error, request)
        return view(request, *args, **named)

    return cast("_View", asynchronous if iscoroutinefunction(view) else synchronous)


def claims_of(request: HttpRequest) -> AccessClaims:
    """The claims of a request that was let through.

    Raises ``AuthenticationRequired`` where no guard stood, as on exempt paths: not to be caught, but to be mended.
    """
    claims = getattr(request, "claims", None)
    if not isinstance(claims, AccessClaims):
        raise AuthenticationRequired("no guard has let this request through")
    return claims


def guard_of_settings() -> Guard:
    """The guard that the settings describe. Raises ``ImproperlyConfigured`` or ``ValueError``."""
    return _guard_of(None, None)


def parts_of(request: HttpRequest) -> tuple[list[str], str, HeaderOf]:
    """What a guard asks for: the Authorization headers, the method, and a way to any other header.

    Servers make one of several headers of a name, with commas, which no token has.
    """

    def header(name: str) -> list[str]:
        value = request.META.get("HTTP_" + name.upper().replace("-", "_"))
        return [] if value is None else [value]

    return header("authorization"), request.method or "", header


def is_preflight_of(request: HttpRequest) -> bool:
    """Whether it is a CORS preflight."""
    return request.method == "OPTIONS" and is_preflight("OPTIONS", {name.lower(): "" for name in request.headers})


def _guard_of(verifier: Verifier | None, when_lost: WhenLost | None) -> Guard:
    named = verifier if verifier is not None else getattr(settings, "SEKISHO_VERIFIER", None)
    policy = when_lost or getattr(settings, "SEKISHO_WHEN_LOST", None)
    return _guard(named, policy, getattr(settings, "SEKISHO_COOKIE", False))


def verifier_of_settings() -> Verifier:
    """Raises ``ImproperlyConfigured``."""
    return _verifier(getattr(settings, "SEKISHO_VERIFIER", None))


def _verifier(named: Verifier | str | None) -> Verifier:
    found = import_string(named) if isinstance(named, str) else named
    if not isinstance(found, Verifier):
        raise ImproperlyConfigured("SEKISHO_VERIFIER is a sekisho.Verifier or the dotted path of one")
    return found


@cache  # one for all that share a verifier and a policy, and read from the settings once
def _guard(verifier: Verifier | str | None, when_lost: WhenLost | None, cookie: bool) -> Guard:  # noqa: FBT001 - a cache takes positions
    return Guard(_verifier(verifier), when_lost, cookie=cookie)


def _answer(error: Refused, request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=204) if is_preflight_of(request) else _refused(error)


def _refused(error: Refused) -> HttpResponse:
    refused = refusal(error)
    return HttpResponse(refused.body, status=refused.status, headers=refused.headers, content_type=MEDIA_TYPE)
