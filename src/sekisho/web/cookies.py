"""The cookies of a request and of its response."""

from typing import Final

from fastapi import Request, Response

from sekisho.errors import RefreshTokenInvalid, SekishoError, SessionRefused, TokenMalformed
from sekisho.services.cookie_sessions import CookieGrant
from sekisho.services.mint import Grant
from sekisho.services.purge import DEVICES_KEPT_S
from sekisho.verify.cookies import Cookies, read_cookie

_MAX_DEVICE_CHARS: Final = 64


class WebCookies:
    """Reads and writes them. Two of one name count as a bad one."""

    def __init__(self, issuer: str) -> None:
        self._cookies = Cookies(issuer)

    def session(self, request: Request) -> str | None:
        """The opaque id of a cookie session. Not checked yet, as all of these. Raises ``SessionRefused``."""
        return self._read(request, self._cookies.session, SessionRefused)

    def access_token(self, request: Request) -> str | None:
        """Raises ``TokenMalformed``."""
        return self._read(request, self._cookies.access, TokenMalformed)

    def refresh_token(self, request: Request) -> str | None:
        """Raises ``RefreshTokenInvalid``."""
        return self._read(request, self._cookies.refresh, RefreshTokenInvalid)

    def visitor(self, request: Request) -> str | None:
        """What a CSRF token is bound to before the login. Raises ``SessionRefused``."""
        return self._read(request, self._cookies.csrf, SessionRefused)

    def device(self, request: Request) -> str | None:
        """Names a device that signed in before, so that an attack from elsewhere cannot lock its owner out.

        It opens nothing: whoever steals it is throttled in its lane instead of the common one.
        """
        try:
            value = self._read(request, self._cookies.device, SessionRefused)
        except SessionRefused:
            return None
        return value if value and len(value) <= _MAX_DEVICE_CHARS else None

    def set_session(self, response: Response, grant: CookieGrant) -> None:
        """The browser keeps it as long as the session can last."""
        self._set(response, self._cookies.session, grant.cookie, grant.max_age_s)

    def set_tokens(self, response: Response, grant: Grant) -> None:
        """Each is kept as long as it is of use."""
        self._set(response, self._cookies.access, grant.access_token, grant.expires_in_s)
        self._set(response, self._cookies.refresh, grant.refresh_token, grant.refresh_expires_in_s)

    def set_visitor(self, response: Response, value: str) -> None:
        """Until the browser is closed."""
        self._set(response, self._cookies.csrf, value, None)

    def set_device(self, response: Response, token: str) -> None:
        """Gives the device its token for its next login."""
        self._set(response, self._cookies.device, token, DEVICES_KEPT_S)

    def clear_session(self, response: Response) -> None:
        """After a logout, and never otherwise: it may be the only thing that can repeat one."""
        response.headers.append("set-cookie", self._cookies.clear(self._cookies.session))

    def clear_tokens(self, response: Response) -> None:
        """Likewise."""
        for name in (self._cookies.access, self._cookies.refresh):
            response.headers.append("set-cookie", self._cookies.clear(name))

    def _set(self, response: Response, name: str, value: str, max_age_s: int | None) -> None:
        response.headers.append("set-cookie", self._cookies.set(name, value, max_age_s=max_age_s))

    def _read(self, request: Request, name: str, refused: type[SekishoError]) -> str | None:
        return read_cookie(request.headers.getlist("cookie"), name, refused)
