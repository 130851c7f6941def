"""A Django project of one view: hardly a middleware, which is the fastest its users have."""

import os
from pathlib import Path

import given

SECRET_KEY = given.SECRET
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ROOT_URLCONF, BENCH_VIEW = os.environ["BENCH_DJANGO"].split(":")
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]  # Content-Length; else gunicorn sends each body in chunks
if BENCH_VIEW == "middleware":
    MIDDLEWARE.append("sekisho.integrations.django.SekishoMiddleware")
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "rest_framework"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(Path(os.environ["HOME"]) / f"{BENCH_VIEW}.db"),
        "CONN_MAX_AGE": None,  # a thread keeps its connection
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SEKISHO_VERIFIER = given.verifier()
REST_FRAMEWORK = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
}
SIMPLE_JWT = {
    "ALGORITHM": "HS256",
    "SIGNING_KEY": given.SECRET,
    "ISSUER": given.ISSUER,
    "AUDIENCE": given.AUDIENCE,
    "USER_ID_CLAIM": "sub",
    "USER_ID_FIELD": "username",
}
