"""A FastAPI service that accepts the access tokens of a Sekisho elsewhere. It installs ``sekisho[fastapi]`` alone.

Run it: uvicorn guarded:app --port 8001, with ISSUER and CREDENTIAL (``sekisho verifiers add shop``) set.
"""

import os
from typing import Annotated

from fastapi import Depends, FastAPI

from sekisho import AccessClaims, Verifier
from sekisho.integrations.fastapi import RequireUser

ISSUER = os.environ["ISSUER"]
verifier = Verifier(
    issuer=ISSUER,
    audience=ISSUER,
    jwks_url=f"{ISSUER}/.well-known/jwks.json",
    revocations_url=f"{ISSUER}/revocations",
    credential=os.environ["CREDENTIAL"],
)
app = FastAPI()


@app.get("/customers")
async def customers(user: Annotated[AccessClaims, Depends(RequireUser(verifier))]) -> dict[str, str]:
    """Only for whoever is signed in."""
    return {"customers_of": user.sub}


@app.get("/health")
async def health() -> dict[str, str]:
    """For everyone."""
    return {"status": "alive"}
