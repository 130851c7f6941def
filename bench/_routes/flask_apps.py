"""Flask: bare, with our decorator, and with Flask-JWT-Extended's."""

import given
from flask import Flask
from flask_jwt_extended import JWTManager, get_jwt_identity, jwt_required

from sekisho.integrations.flask import current_claims, require_user


def bare() -> Flask:
    app = Flask(__name__)

    @app.get("/customers")
    def customers() -> dict[str, str]:
        return {"user": given.NOBODY}

    return app


def decorator() -> Flask:
    app = Flask(__name__)

    @app.get("/customers")
    @require_user(given.verifier())
    def customers() -> dict[str, str]:
        return {"user": current_claims().sub}

    return app


def jwt_extended() -> Flask:
    app = Flask(__name__)
    app.config.update(JWT_SECRET_KEY=given.SECRET, JWT_DECODE_ISSUER=given.ISSUER, JWT_DECODE_AUDIENCE=given.AUDIENCE)
    JWTManager(app)

    @app.get("/customers")
    @jwt_required()
    def customers() -> dict[str, str]:
        return {"user": get_jwt_identity()}

    return app
