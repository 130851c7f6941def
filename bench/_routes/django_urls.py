"""Django: bare, behind our middleware, with our decorator."""

import given
from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.urls import path

from sekisho.integrations.django import claims_of, require_user


def _anybody(_request: HttpRequest) -> JsonResponse:
    return JsonResponse({"user": given.NOBODY})


def _customers(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"user": claims_of(request).sub})


_VIEWS = {"bare": _anybody, "middleware": _customers, "decorator": require_user(_customers)}
urlpatterns = [path("customers", _VIEWS[settings.BENCH_VIEW])]
