"""Django REST framework: ``authentication_classes = [SekishoAuthentication]``, with the settings of ``django.py``."""

from dataclasses import dataclass
from typing import ClassVar

from django.http import HttpRequest
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import APIException, AuthenticationFailed, PermissionDenied

from sekisho.errors import AuthenticationRequired, CsrfRefused, TryLater
from sekisho.integrations.django import guard_of_settings, is_preflight_of, parts_of
from sekisho.tokens.access import AccessClaims
from sekisho.verify.bearer import CHALLENGE
from sekisho.verify.guard import REFUSED, Refused, refusal


@dataclass(frozen=True)
class TokenUser:
    """``request.user`` behind an access token: what the token says. No database is asked."""

    claims: AccessClaims

    is_authenticated: ClassVar[bool] = True
    is_anonymous: ClassVar[bool] = False
    is_active: ClassVar[bool] = True
    is_staff: ClassVar[bool] = False  # of Django's admin; a role gives no right there

    @property
    def pk(self) -> str:
        """``sub``, the user's id at the issuer."""
        return self.claims.sub

    @property
    def id(self) -> str:
        """The same."""
        return self.claims.sub

    @property
    def roles(self) -> tuple[str, ...]:
        """The token's roles."""
        return self.claims.roles


class SekishoAuthentication(BaseAuthentication):
    """``request.user`` becomes a ``TokenUser``, ``request.auth`` its ``AccessClaims``.

    Without a credential there is no user, and the view's permissions decide (``IsAuthenticated`` answers 401).
    """

    def authenticate(self, request: HttpRequest) -> tuple[TokenUser, AccessClaims] | None:
        """The user and the claims; None without a credential."""
        try:
            claims = guard_of_settings().claims(*parts_of(request))
        except REFUSED as error:
            if is_preflight_of(request):
                raise _Preflight from None
            if isinstance(error, AuthenticationRequired):
                return None
            request.sekisho_challenge = refusal(error).headers.get("WWW-Authenticate", CHALLENGE)
            raise _refused(error) from None
        return TokenUser(claims), claims

    def authenticate_header(self, request: HttpRequest) -> str:
        """The challenge of a 401 (RFC 6750 §3)."""
        return getattr(request, "sekisho_challenge", CHALLENGE)


class _Preflight(APIException):
    """Answers a CORS preflight in place of the view, which would ask for a user."""

    status_code = 200  # not 204: the framework would send a body with it

    def __init__(self) -> None:
        super().__init__({})


class _TryLater(APIException):
    """503. The framework makes Retry-After of ``wait``."""

    status_code = 503
    wait: int


def _refused(error: Refused) -> APIException:
    refused = refusal(error)
    raised: APIException = PermissionDenied() if isinstance(error, CsrfRefused) else AuthenticationFailed()
    if isinstance(error, TryLater):
        raised = _TryLater()
        raised.wait = error.retry_after_s
    raised.detail = refused.problem  # set here, for the framework would make strings of the numbers
    return raised
