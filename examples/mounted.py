"""A FastAPI application with Sekisho inside.

Run it: uvicorn mounted:app --port 8000, with SEKISHO_ISSUER=http://127.0.0.1:8000/auth
"""

from typing import Annotated

from fastapi import Depends, FastAPI

from sekisho import AccessClaims
from sekisho.web import Sekisho, Settings

auth = Sekisho(Settings())
app = FastAPI()
app.include_router(auth.router, prefix="/auth")


@app.get("/customers")
def customers(user: Annotated[AccessClaims, Depends(auth.current_user)]) -> dict[str, str]:
    """Only for whoever is signed in; no database is asked who that is."""
    return {"customers_of": user.sub}
