"""Django's WSGI application; with users in the database where they are asked for."""

import os
from typing import Any

import given
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application


def plain(view: str) -> Any:
    return _application(f"django_urls:{view}")


def rest(view: str) -> Any:
    application = _application(f"rest_urls:{view}")
    if view == "database":
        # Models can be imported only now.
        from django.contrib.auth.models import User

        call_command("migrate", verbosity=0)
        User.objects.bulk_create(User(username=subject, password="!") for subject in given.SUBJECTS)
    return application


def _application(urls_and_view: str) -> Any:
    os.environ |= {"DJANGO_SETTINGS_MODULE": "django_settings", "BENCH_DJANGO": urls_and_view}
    return get_wsgi_application()
