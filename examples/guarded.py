"""A service of its own that accepts the access tokens of a Sekisho elsewhere. It installs ``sekisho[fastapi]`` alone.

Run it: uvicorn guarded:app --port 8001, with ISSUER and JWKS_FILE set.
"""

import os
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI

from sekisho import AccessClaims, Keyring, Verifier
from sekisho.integrations.fastapi import RequireUser

verifier = Verifier(
    issuer=os.environ["ISSUER"],
    audience=os.environ["ISSUER"],
    # What GET /.well-known/jwks.json of the issuer answered; it signs with EdDSA, ES256 or RS256.
    keys=Keyring.from_jwks(Path(os.environ["JWKS_FILE"]).read_text()),
)
app = FastAPI()


@app.get("/customers")
def customers(user: Annotated[AccessClaims, Depends(RequireUser(verifier))]) -> dict[str, str]:
    """Only for whoever is signed in."""
    return {"customers_of": user.sub}
