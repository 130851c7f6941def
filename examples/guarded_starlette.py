"""A Starlette service that accepts the access tokens of a Sekisho elsewhere. It installs ``sekisho[starlette]`` alone.

Run it: uvicorn guarded_starlette:app --port 8001, with ISSUER and CREDENTIAL (``sekisho verifiers add shop``) set.
"""

import os

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sekisho import Verifier
from sekisho.integrations.starlette import RequireUser, claims_of

ISSUER = os.environ["ISSUER"]
verifier = Verifier(
    issuer=ISSUER,
    audience=ISSUER,
    jwks_url=f"{ISSUER}/.well-known/jwks.json",
    revocations_url=f"{ISSUER}/revocations",
    credential=os.environ["CREDENTIAL"],
)


async def customers(request: Request) -> JSONResponse:
    """Only for whoever is signed in."""
    return JSONResponse({"customers_of": claims_of(request).sub})


async def health(_request: Request) -> JSONResponse:
    """For everyone."""
    return JSONResponse({"status": "alive"})


app = Starlette(
    routes=[Route("/customers", customers), Route("/health", health)],
    middleware=[Middleware(RequireUser, verifier=verifier, exempt=["/health"])],
)
