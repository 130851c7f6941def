"""Django in one file, with and without its REST framework, that accepts the access tokens of a Sekisho elsewhere.

Run it: gunicorn guarded_django:app --bind 127.0.0.1:8001, or uvicorn guarded_django:async_app --port 8001, with ISSUER
and CREDENTIAL (``sekisho verifiers add shop``) set. It installs ``sekisho[django]`` and djangorestframework.
"""

import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from sekisho import Verifier
from sekisho.integrations.django import claims_of

ISSUER = os.environ["ISSUER"]
verifier = Verifier(
    issuer=ISSUER,
    audience=ISSUER,
    jwks_url=f"{ISSUER}/.well-known/jwks.json",
    revocations_url=f"{ISSUER}/revocations",
    credential=os.environ["CREDENTIAL"],
)
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["sekisho.integrations.django.SekishoMiddleware"],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": ["sekisho.integrations.rest_framework.SekishoAuthentication"],
        "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "UNAUTHENTICATED_USER": None,  # this service has no users of its own
    },
    SEKISHO_VERIFIER=verifier,
    SEKISHO_EXEMPT=["/health"],
)

from rest_framework.request import Request  # noqa: E402 - it reads the settings
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402


async def customers(request: HttpRequest) -> JsonResponse:
    """Only for whoever is signed in, as everything is that is not exempt."""
    return JsonResponse({"customers_of": claims_of(request).sub})


def customers_sync(request: HttpRequest) -> JsonResponse:
    """The same in a plain function."""
    return JsonResponse({"customers_of": claims_of(request).sub})


class Customers(APIView):
    """The same in the REST framework, which has its own word for it."""

    def get(self, request: Request) -> Response:
        """``request.user`` is what the token says."""
        return Response({"customers_of": request.user.pk})


def health(_request: HttpRequest) -> JsonResponse:
    """For everyone."""
    return JsonResponse({"status": "alive"})


urlpatterns = [
    path("customers", customers),
    path("customers/sync", customers_sync),
    path("customers/rest", Customers.as_view()),
    path("health", health),
]
app = get_wsgi_application()
async_app = get_asgi_application()
