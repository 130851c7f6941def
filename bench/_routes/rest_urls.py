"""Django REST framework: bare, with our authentication class, and with simplejwt's two."""

import given
from django.conf import settings
from django.urls import path
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.authentication import JWTAuthentication, JWTStatelessUserAuthentication

from sekisho.integrations.rest_framework import SekishoAuthentication


class _Bare(APIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)

    def get(self, _request: Request) -> Response:
        return Response({"user": given.NOBODY})


class _Guarded(APIView):
    permission_classes = (IsAuthenticated,)

    def get(self, request: Request) -> Response:
        return Response({"user": request.user.pk})


class _Ours(_Guarded):
    authentication_classes = (SekishoAuthentication,)


class _Stateless(_Guarded):
    authentication_classes = (JWTStatelessUserAuthentication,)


class _FromDatabase(_Guarded):
    authentication_classes = (JWTAuthentication,)

    def get(self, request: Request) -> Response:
        return Response({"user": request.user.username})


_VIEWS = {"bare": _Bare, "ours": _Ours, "stateless": _Stateless, "database": _FromDatabase}
urlpatterns = [path("customers", _VIEWS[settings.BENCH_VIEW].as_view())]
