"""Protection against calls that another site makes a browser send (CSRF), decided before anybody asks who calls.

A cookie that the browser sends by itself protects nothing: it comes along on the forged call, too. What a forger lacks
is the browser's word that the call comes from our page, and the token, which only our page can read.
"""

import secrets
from collections.abc import Sequence
from typing import Final

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sekisho.errors import CsrfRefused
from sekisho.tokens.csrf import BoundTo, CsrfKeys
from sekisho.tokens.keyring import KeySet
from sekisho.verify.origin import expect_own_page
from sekisho.web.cookies import WebCookies

HEADER: Final = "x-csrf-token"
FIELD: Final = "csrf_token"
_FORM: Final = "application/x-www-form-urlencoded"
_WITH_FILES: Final = "multipart/form-data"
_MAX_FORM_BYTES: Final = 1024 * 1024
_MAX_FIELDS: Final = 100
_MAX_FIELD_BYTES: Final = 128 * 1024


class Csrf:
    """Makes the tokens and checks calls. ``use`` swaps the keys, whole, at any time."""

    def __init__(self, cookies: WebCookies, origins: Sequence[str]) -> None:
        """``origins``: of the pages that may call where the browser says nothing better."""
        self._cookies = cookies
        self._origins = frozenset(origins)

    def use(self, key_set: KeySet) -> None:
        """From now on this key set counts."""
        self._keys = CsrfKeys(key_set.active("csrf"), key_set.used("csrf"))

    def expect_own_page(self, request: Request) -> None:
        """For every unsafe call that reads or sets a credential's cookie. Raises ``CsrfRefused``."""
        expect_own_page(request.headers.getlist, self._origins)

    def expect_token(self, request: Request) -> None:
        """For every unsafe call by which a session cookie counts or begins. Raises ``CsrfRefused``.

        With a session cookie its own token is asked, good or not, and never the one of before the login: whoever knew
        that one must not speak for the session.
        """
        self.expect_own_page(request)
        shown = request.headers.getlist(HEADER)
        self._expect(request, shown[0] if len(shown) == 1 else None)

    async def expect_token_or_field(self, request: Request) -> None:
        """The same where the call may be a page's form. A header counts if it is there, and then no form is read."""
        self.expect_own_page(request)
        if request.headers.getlist(HEADER):
            self.expect_token(request)
        else:
            self._expect(request, await _field_of(request))

    def token(self, request: Request, response: Response) -> str:
        """For a page to send back. A visitor without any cookie gets one for it to be bound to."""
        bound = self._bound(request)
        if bound is not None:
            return self._keys.make(*bound)
        visitor = secrets.token_urlsafe()
        self._cookies.set_visitor(response, visitor)
        return self._keys.make("visitor", visitor)

    def token_of_session(self, cookie: str) -> str:
        """The token of a session that begins with this very response."""
        return self._keys.make("session", cookie)

    def _expect(self, request: Request, token: str | None) -> None:
        bound = self._bound(request)
        if token is None or bound is None or not self._keys.holds(token, *bound):
            raise CsrfRefused("no CSRF token, or one of another session")

    def _bound(self, request: Request) -> tuple[BoundTo, str] | None:
        session = self._cookies.session(request)
        if session is not None:
            return "session", session
        visitor = self._cookies.visitor(request)
        return None if visitor is None else ("visitor", visitor)


async def _field_of(request: Request) -> str | None:
    """The token in a page's form, where the request is one. The application can read the form again."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    length = request.headers.get("content-length", "")
    # Nobody has signed in yet, and fields are held in memory: strangers must not decide how much. (Files are on disk.)
    is_short = length.isdecimal() and len(length) < 10 and int(length) <= _MAX_FORM_BYTES
    if media_type != _WITH_FILES and not (media_type == _FORM and is_short):
        return None
    try:
        form = await request.form(max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
    except (HTTPException, ClientDisconnect):
        return None
    stack = request.scope.get("fastapi_inner_astack")
    if stack is not None:  # where the application does not read the form, nobody else closes its files
        stack.push_async_callback(form.close)
    field = form.get(FIELD)
    return field if isinstance(field, str) else None
