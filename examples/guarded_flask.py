"""A Flask service that accepts the access tokens of a Sekisho elsewhere. It installs ``sekisho[flask]`` alone.

Run it: gunicorn guarded_flask:app --bind :8001, with ISSUER and CREDENTIAL (``sekisho verifiers add shop``) set.
"""

import os

from flask import Flask

from sekisho import Verifier
from sekisho.integrations.flask import current_claims, require_user

ISSUER = os.environ["ISSUER"]
verifier = Verifier(
    issuer=ISSUER,
    audience=ISSUER,
    jwks_url=f"{ISSUER}/.well-known/jwks.json",
    revocations_url=f"{ISSUER}/revocations",
    credential=os.environ["CREDENTIAL"],
)
app = Flask(__name__)


@app.get("/customers")
@require_user(verifier)
def customers() -> dict[str, str]:
    """Only for whoever is signed in."""
    return {"customers_of": current_claims().sub}


@app.get("/health")
def health() -> dict[str, str]:
    """For everyone."""
    return {"status": "alive"}
