"""From errors to HTTP, in one table: ``application/problem+json`` (RFC 9457) with a stable ``code``."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from sekisho import errors
from sekisho.verify.bearer import CHALLENGE, CHALLENGE_INVALID

MEDIA_TYPE: Final = "application/problem+json"
MAX_BODY_BYTES: Final = 64 * 1024
MAX_HEADER_BYTES: Final = 32 * 1024

# Nothing that carries or depends on a credential is cached or served to anyone else (OWASP ASVS 14.3.2).
PRIVATE_HEADERS: Final = {"Cache-Control": "no-store", "Vary": "Cookie, Authorization, Accept-Language"}


class RequestError(errors.SekishoError):
    """The request itself is wrong, before any service has seen it."""


class MalformedJson(RequestError):
    """The body is not one JSON object in UTF-8 (RFC 8259)."""

    code = "malformed_json"
    text_en = "The body is not valid JSON."
    text_ja = "リクエスト本文が正しいJSONではありません。"


class MalformedForm(RequestError):
    """The body is not a form in UTF-8, or says something twice (RFC 6749 §3.1)."""

    code = "malformed_form"
    text_en = "The body is not a valid form."
    text_ja = "リクエスト本文が正しいフォームではありません。"


class InvalidBody(RequestError):
    """The body is of the wrong shape. ``faults`` are (field, code) pairs, without the values."""

    code = "invalid_body"
    text_en = "A field of the body is missing, unknown or of the wrong type."
    text_ja = "リクエスト本文の項目が不足しているか、型が正しくありません。"

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {code}" for field, code in faults))
        self.faults = tuple(faults)


class BodyTooLarge(RequestError):
    """More than 64 KiB, counted as they stream in."""

    code = "body_too_large"
    text_en = "The body is larger than 64 KiB."
    text_ja = "リクエスト本文が64 KiBを超えています。"


class HeadersTooLarge(RequestError):
    """More than 32 KiB of headers (RFC 6585 §5)."""

    code = "headers_too_large"
    text_en = "The headers are larger than 32 KiB."
    text_ja = "リクエストヘッダーが32 KiBを超えています。"


class WrongMediaType(RequestError):
    """A body that does not say that it is JSON, or a form where the call takes one."""

    code = "unsupported_media_type"
    text_en = "The body must be sent in the media type that this call takes."
    text_ja = "リクエスト本文は、この呼び出しが受け付けるメディアタイプで送信してください。"


class NotFound(RequestError):
    """No such path."""

    code = "not_found"
    text_en = "There is nothing here."
    text_ja = "ページが見つかりません。"


class MethodNotAllowed(RequestError):
    """The path exists, but not for this method. ``allow`` is the value of the Allow header."""

    code = "method_not_allowed"
    text_en = "This method is not allowed here."
    text_ja = "このメソッドは利用できません。"

    def __init__(self, allow: str) -> None:
        super().__init__()
        self.allow = allow


# The most particular class counts, so the order does not matter.
_STATUS: Final[Mapping[type[errors.SekishoError], int]] = {
    MalformedForm: 400,
    MalformedJson: 400,
    errors.TokenError: 401,
    errors.AuthenticationRequired: 401,
    errors.WrongCredentials: 401,
    errors.RefreshRefused: 401,
    errors.SessionRefused: 401,
    errors.VerifierRefused: 401,
    errors.CsrfRefused: 403,
    errors.SessionNotFound: 404,
    NotFound: 404,
    MethodNotAllowed: 405,
    errors.EmailTaken: 409,
    BodyTooLarge: 413,
    WrongMediaType: 415,
    InvalidBody: 422,
    errors.InputError: 422,
    errors.Throttled: 429,
    HeadersTooLarge: 431,
    errors.SekishoError: 500,
    errors.TryLater: 503,
}


class SekishoFieldFault(BaseModel):
    """One field that cannot be accepted. Its value is never repeated: it may be a password."""

    field: str = Field(description="The member of the body.", examples=["email"])
    code: str = Field(description="What is wrong with it.", examples=["missing"])


class SekishoProblem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:sekisho:problem:wrong_credentials"])
    title: str = Field(description="For people, in the language of Accept-Language (English or Japanese).")
    status: int = Field(examples=[401])
    code: str = Field(description="For programs; stable.", examples=["wrong_credentials"])
    fields: list[SekishoFieldFault] | None = Field(default=None, description="For 422: what is wrong where.")


_INVALID_TOKEN: Final = (errors.TokenError, errors.VerifierRefused)


def status_of(error: errors.SekishoError) -> int:
    """The HTTP status of an error."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def headers_of(error: errors.SekishoError) -> dict[str, str]:
    """What an error says in headers, whatever its body looks like."""
    headers = dict(PRIVATE_HEADERS)
    if status_of(error) == 401:
        headers["WWW-Authenticate"] = CHALLENGE_INVALID if isinstance(error, _INVALID_TOKEN) else CHALLENGE
    if isinstance(error, errors.TryLater):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allow
    return headers


def problem_response(error: errors.SekishoError, *, accept_language: str) -> JSONResponse:
    """The answer to an error. Its ``detail`` stays here: that is for the log."""
    japanese = _prefers_japanese(accept_language)
    status = status_of(error)
    body: dict[str, Any] = {
        "type": f"urn:sekisho:problem:{error.public_code}",
        "title": error.text_ja if japanese else error.text_en,
        "status": status,
        "code": error.public_code,
    }
    if isinstance(error, InvalidBody):
        body["fields"] = [{"field": field, "code": code} for field, code in error.faults]
    elif isinstance(error, errors.InputError):
        body["fields"] = [{"field": error.field, "code": error.code}]
    headers = {**headers_of(error), "Content-Language": "ja" if japanese else "en"}
    return JSONResponse(body, status, headers, media_type=MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route in the OpenAPI document: these errors, and those that any route may answer."""
    schema = {"schema": {"$ref": "#/components/schemas/SekishoProblem"}}
    return {
        status: {"model": SekishoProblem, "description": _DESCRIPTIONS[status], "content": {MEDIA_TYPE: schema}}
        for status in sorted({*statuses, 431, 500, 503})
    }


_DESCRIPTIONS: Final[Mapping[int, str]] = {
    400: "Malformed body",
    401: "No credential, or one that is refused",
    403: "Not from a page of ours: Sec-Fetch-Site, Origin or X-CSRF-Token say otherwise",
    404: "Foreign or unknown session",
    409: "The e-mail address is taken",
    413: "Body larger than 64 KiB",
    415: "Body sent in another media type",
    422: "A field is missing, of the wrong type, or cannot be accepted",
    429: "Too many failed attempts; Retry-After says when to come back",
    431: "Headers larger than 32 KiB",
    500: "A fault of the server",
    503: "Try again after the time that Retry-After says",
}


def _prefers_japanese(accept_language: str) -> bool:
    """Whether Japanese comes before English in an Accept-Language header (RFC 9110 §12.5.4)."""
    weights = {"ja": 0.0, "en": 0.0}
    for part in accept_language.split(",")[:20]:
        language, _, parameters = part.strip().lower().partition(";")
        primary = language.split("-")[0].strip()
        name, _, value = parameters.strip().partition("=")
        try:
            weight = float(value) if name == "q" else 1.0
        except ValueError:
            weight = 0.0
        if primary in weights:
            weights[primary] = max(weights[primary], weight)
    return weights["ja"] > weights["en"]
