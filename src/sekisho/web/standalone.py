"""The application that ``sekisho serve`` runs: the router, the API's page, and problems for every other path."""

import gc
import logging
import sys
from importlib.metadata import version

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from sekisho.errors import SekishoError
from sekisho.services.events import LOGGER
from sekisho.settings import Settings
from sekisho.web.app import Sekisho
from sekisho.web.problems import MethodNotAllowed, NotFound, problem_response

_DESCRIPTION = """\
Accounts, sessions and tokens. Log in, press **Authorize** and paste the access token, then try the calls.

Errors are `application/problem+json` with a stable `code`; titles come in English and Japanese (`Accept-Language`).
"""


def create_app() -> FastAPI:
    """What each worker process of ``sekisho serve`` calls. Settings come from the environment."""
    configure_logging()
    app = Sekisho(Settings()).app()
    gc.freeze()  # what is there now stays: looking through it again and again would make some requests wait
    return app


def standalone_app(sekisho: Sekisho) -> FastAPI:
    """The router at the root. The page's scripts come from here and not from a CDN."""
    app = FastAPIOffline(
        title="Sekisho",
        description=_DESCRIPTION,
        version=_version(),
        redoc_url=None,
        redirect_slashes=False,  # a redirect's Location would take its host from the Host header
        lifespan=lambda _app: sekisho.running(),
    )
    # As they are: an included router looks for the route of each request twice.
    app.router.routes.extend(sekisho.router.routes)
    app.add_exception_handler(HTTPException, _http_problem)
    if sekisho.settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(sekisho.settings.allowed_origins),
            allow_credentials=True,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-CSRF-Token"],
            expose_headers=["Retry-After", "WWW-Authenticate"],
        )
    return app


def configure_logging() -> None:
    """Every line on standard error is one JSON object."""
    events = logging.StreamHandler(sys.stderr)  # these lines are JSON already
    logger = logging.getLogger(LOGGER)
    logger.handlers, logger.propagate = [events], False
    logger.setLevel(logging.INFO)
    everything_else = logging.StreamHandler(sys.stderr)
    everything_else.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[everything_else], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


async def _http_problem(request: Request, error: Exception) -> Response:
    """For paths and methods that no route takes."""
    assert isinstance(error, HTTPException)
    problem: SekishoError
    match error.status_code:
        case 404:
            problem = NotFound()
        case 405:
            problem = MethodNotAllowed((error.headers or {}).get("Allow", ""))
        case _:
            problem = SekishoError(str(error.status_code))
    return problem_response(problem, accept_language=request.headers.get("accept-language", ""))


def _version() -> str:
    return version("sekisho")
