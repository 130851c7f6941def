"""Pages of a Django in one file, kept signed in by a Sekisho elsewhere. One origin is before both.

There a proxy gives /auth/ to Sekisho, without that prefix, and everything else to this. Run it: gunicorn
pages_django:app --bind 127.0.0.1:8001, or uvicorn pages_django:async_app --port 8001, with ISSUER (as Sekisho has it:
https://shop.example/auth), SEKISHO (where it is reached from here, http://127.0.0.1:8400, if not there) and CREDENTIAL
(``sekisho verifiers add shop``) set. Sekisho signs with EdDSA and has this machine in SEKISHO_TRUSTED_PROXIES.
"""

import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.html import escape

from sekisho import Verifier
from sekisho.integrations.django import claims_of

ISSUER = os.environ["ISSUER"]
SEKISHO = os.environ.get("SEKISHO", ISSUER)
verifier = Verifier(
    issuer=ISSUER,
    audience=ISSUER,
    jwks_url=f"{SEKISHO}/.well-known/jwks.json",
    revocations_url=f"{SEKISHO}/revocations",
    credential=os.environ["CREDENTIAL"],
)
settings.configure(
    ALLOWED_HOSTS=["*"],  # the proxy's to decide
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "sekisho.integrations.django.RefreshInPlaceMiddleware",
        "sekisho.integrations.django.SekishoMiddleware",
    ],
    SEKISHO_VERIFIER=verifier,
    SEKISHO_COOKIE=True,
    SEKISHO_REFRESH_URL=f"{SEKISHO}/refresh",
    SEKISHO_EXEMPT=["/login"],
)

LOGIN = """<!doctype html><html lang="en"><title>Sign in</title>
<form><input name="email" type="email" autocomplete="username" placeholder="E-mail" required>
<input name="password" type="password" autocomplete="current-password" placeholder="Password" required>
<button>Sign in</button> <output></output></form>
<script>
const form = document.querySelector("form");
form.onsubmit = async (event) => {
  event.preventDefault();
  const body = JSON.stringify({...Object.fromEntries(new FormData(form)), cookies: true});
  const answer = await fetch("/auth/login", {method: "POST", headers: {"Content-Type": "application/json"}, body});
  if (answer.ok) location.assign("/"); else form.querySelector("output").value = (await answer.json()).title;
};
</script>"""


def home(request: HttpRequest) -> HttpResponse:
    """Only for whoever is signed in."""
    page = f'<!doctype html><html lang="en"><title>Home</title><p>You are user {escape(claims_of(request).sub)}.</p>'
    return HttpResponse(page, headers={"Cache-Control": "no-store"})


def login(_request: HttpRequest) -> HttpResponse:
    """For everyone."""
    return HttpResponse(LOGIN)


urlpatterns = [path("", home), path("login", login)]
app = get_wsgi_application()
async_app = get_asgi_application()
