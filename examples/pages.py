"""Pages that are rendered on the server, with Sekisho inside and the tokens in cookies, out of reach of any script.

Run it: uvicorn pages:app --port 8000, with SEKISHO_ISSUER=http://127.0.0.1:8000/auth
"""

from html import escape
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from sekisho import AccessClaims
from sekisho.integrations.starlette import RefreshInPlace
from sekisho.web import Sekisho, Settings

auth = Sekisho(Settings())
app = FastAPI()
app.include_router(auth.router, prefix="/auth")
# An access cookie that has expired is renewed before a page is made; nobody sees that it was short-lived.
app.add_middleware(RefreshInPlace, verifier=auth.verifier, refresh=auth.renew, exempt=["/auth/", "/login"])

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
HOME = """<!doctype html><html lang="en"><title>Home</title>
<p>You are user {user}.</p><button>Sign out</button>
<script>
document.querySelector("button").onclick = async () => {{
  const answer = await fetch("/auth/logout", {{method: "POST"}});
  if (answer.ok) location.assign("/login");
}};
</script>"""


@app.get("/")
async def home(user: Annotated[AccessClaims, Depends(auth.current_user)]) -> HTMLResponse:
    """Only for whoever is signed in."""
    return HTMLResponse(HOME.format(user=escape(user.sub)), headers={"Cache-Control": "no-store"})


@app.get("/login")
async def login() -> HTMLResponse:
    """For everyone."""
    return HTMLResponse(LOGIN)


@app.exception_handler(HTTPException)
async def to_login(request: Request, error: HTTPException) -> Response:
    """A page that needs a user leads to the login; everything else says what is wrong."""
    if error.status_code == 401 and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/login", 303, headers={"Cache-Control": "no-store"})
    return HTMLResponse(escape(str(error.detail)), error.status_code, error.headers)
