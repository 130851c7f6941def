"""A service that checks tokens, on the framework that BENCH_KIND names; and its informer, who tells the benchmark.

The informer is a thread that asks the service's own verifier about the tokens it is told to watch, every millisecond:
when each is first refused, whether one that was refused is ever accepted again, and how good the view says it is.
"""

import json
import os
import random
import socket
import threading
import time
from typing import Any

from sekisho import AccessClaims, TokenError, TokenRevoked, Verifier
from sekisho.errors import TryLater

KIND = os.environ["BENCH_KIND"]
SAMPLE_EVERY_S = 0.05
AGAIN_EVERY_S = 0.25
AGAIN = 50

verifier = Verifier(
    issuer=os.environ["BENCH_ISSUER"],
    audience=os.environ["BENCH_ISSUER"],
    jwks_url=os.environ["BENCH_JWKS"],
    revocations_url=os.environ["BENCH_FEEDS"].split(","),
    credential=os.environ["BENCH_CREDENTIAL"],
)


def inform() -> None:  # noqa: C901 - one thread's life
    control = socket.create_connection(("127.0.0.1", int(os.environ["BENCH_CONTROL"])))
    control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    watched: dict[str, str] = {}
    refused: dict[str, str] = {}
    lock = threading.Lock()

    def tell(**facts: Any) -> None:
        control.sendall(json.dumps(facts).encode() + b"\n")

    def listen() -> None:
        for line in control.makefile("rb"):
            with lock:
                watched.update(json.loads(line))
        os._exit(0)  # the benchmark has gone

    tell(kind=KIND, pid=os.getpid())
    threading.Thread(target=listen, daemon=True).start()
    sampled_at = again_at = 0.0
    while True:
        with lock:
            now_watched = list(watched.items())
        for name, token in now_watched:
            if (answer := refuses(token)) is not False:
                tell(refused=name, at=time.monotonic(), answer=answer)
                with lock:
                    refused[name] = watched.pop(name)
        now = time.monotonic()
        if now - sampled_at > SAMPLE_EVERY_S:
            sampled_at = now
            tell(state=verifier.state, age_s=verifier.age_s, at=now)
        if now - again_at > AGAIN_EVERY_S:
            again_at = now
            # Some of them: refused tokens are not remembered, and each costs a signature.
            for name, token in random.sample(list(refused.items()), min(AGAIN, len(refused))):
                if not refuses(token):
                    tell(accepted_again=name, at=time.monotonic())
        time.sleep(0.001)


def refuses(token: str) -> str | bool:
    try:
        verifier.verify(token)
    except TokenRevoked:
        return "revoked"
    except TokenError as error:
        return error.code
    except TryLater:  # it has only just started, or asks not to be believed: no word about the token
        return False
    return False


threading.Thread(target=inform, daemon=True).start()


def answer(user: AccessClaims) -> dict[str, str]:
    return {"customers_of": user.sub}


if KIND == "fastapi":
    from typing import Annotated

    from fastapi import Depends, FastAPI

    from sekisho.integrations.fastapi import RequireUser as FastApiUser

    app: Any = FastAPI()

    @app.get("/customers")
    async def customers(user: Annotated[AccessClaims, Depends(FastApiUser(verifier))]) -> dict[str, str]:
        return answer(user)

elif KIND in {"starlette", "starlette decorator"}:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from sekisho.integrations.starlette import RequireUser, claims_of, require_user

    async def endpoint(request: Any) -> JSONResponse:
        return JSONResponse(answer(claims_of(request)))

    if KIND == "starlette":
        app = Starlette(routes=[Route("/customers", endpoint)], middleware=[Middleware(RequireUser, verifier=verifier)])
    else:
        app = Starlette(routes=[Route("/customers", require_user(verifier)(endpoint))])

elif KIND == "flask":
    from flask import Flask

    from sekisho.integrations.flask import current_claims
    from sekisho.integrations.flask import require_user as flask_user

    app = Flask(__name__)

    @app.get("/customers")
    @flask_user(verifier)
    def flask_customers() -> dict[str, str]:
        return answer(current_claims())

else:
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, JsonResponse
    from django.urls import path

    settings.configure(
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["127.0.0.1"],
        MIDDLEWARE=["sekisho.integrations.django.SekishoMiddleware"],
        SEKISHO_VERIFIER=verifier,
    )
    from sekisho.integrations.django import claims_of as django_claims

    def view(request: HttpRequest) -> JsonResponse:
        return JsonResponse(answer(django_claims(request)))

    urlpatterns = [path("customers", view)]
    app = get_wsgi_application()
