"""Cookies: their names, and the exact attributes with which they are set (RFC 6265bis)."""

from typing import Final

from fastapi import Request, Response

from sekisho.services.purge import DEVICES_KEPT_S

_MAX_CHARS: Final = 64


class DeviceCookie:
    """Names a device that signed in before, so that an attack from elsewhere cannot lock its owner out.

    It opens nothing: whoever steals it is throttled in its lane instead of the common one.
    """

    def __init__(self, *, secure: bool) -> None:
        """``secure``: the issuer is https. A plain name without it, so that nothing drops Secure in silence."""
        self._secure = secure
        self._name = "__Host-sekisho_device" if secure else "sekisho_device"

    def read(self, request: Request) -> str | None:
        """The token that the device shows, if any. Not checked yet."""
        value = request.cookies.get(self._name)
        return value if value and len(value) <= _MAX_CHARS else None

    def set(self, response: Response, token: str) -> None:
        """Gives the device its token for its next login."""
        response.set_cookie(
            self._name,
            token,
            max_age=DEVICES_KEPT_S,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )
