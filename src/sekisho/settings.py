"""What an operator can set, read from ``SEKISHO_…`` environment variables; anything doubtful stops the start.

Every value has one spelling. A setting that is misspelt and passed over, or read as something else, is how a token
lives for ever or a cookie travels in the clear, so there is no default for what cannot be read.
"""

import difflib
import os
import re
from typing import Annotated, Any, Final, Literal, NoReturn
from urllib.parse import urlsplit

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sekisho import errors
from sekisho.spelling import AWS_REGION, AWS_ROLE_ARN, KEY_SOURCE, PATH, Networks, Origins, check_origin, whole

PREFIX: Final = "SEKISHO_"
MAX_ACCESS_TTL_S: Final = 3600  # what verifiers accept at most (Verifier's max_lifetime_s)
MAX_SESSION_AGE_S: Final = 400 * 86_400  # browsers keep no cookie longer than 400 days (RFC 6265bis §5.5)
MAX_KEYS_POLL_S: Final = 200  # with what a verifier takes to fetch, less than a key is published before it signs
MAX_REPLAY_WINDOW_S: Final = 300  # in this window a thief beside the owner is not noticed: minutes at the most

_SECRET: Final = {"database_url", "redis_url", "keys"}  # their values are never shown, not even wrong ones


class _Environment(PydanticBaseSettingsSource):
    """The variables named ``SEKISHO_`` and a field's name in capitals; no other spelling, no JSON, no files."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002  the library's
        return os.environ.get(PREFIX + field_name.upper()), field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """Keyword arguments count before the environment, the environment before the defaults.

    Raises ``StartRefused``, whose detail names everything that is wrong in one line and shows no secret.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: SecretStr = Field(
        default=SecretStr("sqlite:///sekisho.db"),
        description="Where accounts and sessions are: sqlite:///PATH for one machine, "
        "postgresql://USER:PASSWORD@HOST/NAME for several, with ?sslmode=require where it takes TLS alone.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis (redis://, rediss:// or unix://) makes several nodes count failed attempts together "
        "and hear of ended sessions at once, and spares cookie sessions the database. Nothing is lost when it is.",
    )
    issuer: str = Field(
        default="http://127.0.0.1:8400",
        description="The URL under which callers reach this service, the iss of its tokens. https, or http on this "
        "machine; no query, no slash at the end. The default follows the port of sekisho serve.",
    )
    audience: str = Field(
        default_factory=lambda settings: settings["issuer"],
        description="The aud of access tokens: the name of the services that accept them.",
    )
    signing_algorithm: Literal["HS256", "EdDSA", "ES256", "RS256"] = Field(
        default="HS256",
        description="What sekisho keys new and rotate make: HS256 where one service issues and verifies; EdDSA, ES256 "
        "or RS256 where others verify.",
    )
    keys: str = Field(
        default="file:sekisho-keys.json",
        description="Where the keys are: file:PATH (mode 0600), env:NAME (a variable with the key set as JSON) or "
        "aws:SECRET_ID (a secret of AWS Secrets Manager, by name or ARN; install sekisho[aws]).",
    )
    keys_poll_s: Annotated[int, whole(1, MAX_KEYS_POLL_S)] = Field(
        default=60,
        description="Seconds within which a node takes up keys that changed in AWS: one call per process in each such "
        f"interval. 1 to {MAX_KEYS_POLL_S}; files are looked at every 3 s.",
    )
    aws_region: str | None = Field(
        default=None, description="Region of the secret; none: as boto3 finds it, or as the secret's ARN says."
    )
    aws_endpoint_url: str | None = Field(
        default=None,
        description="Where Secrets Manager answers, for a VPC endpoint say: https, or http on this machine; none: "
        "boto3's.",
    )
    aws_role_arn: str | None = Field(
        default=None, description="Role to assume for reading and writing the secret; none: boto3's own credentials."
    )
    access_token_ttl_s: Annotated[int, whole(1, MAX_ACCESS_TTL_S)] = Field(
        default=900, description=f"Seconds an access token lives, 1 to {MAX_ACCESS_TTL_S}."
    )
    refresh_token_ttl_s: Annotated[int, whole(1, MAX_SESSION_AGE_S)] = Field(
        default=604_800,
        description="Seconds a session lives without a refresh, or without the use of its cookie (7 days).",
    )
    session_max_age_s: Annotated[int, whole(1, MAX_SESSION_AGE_S)] = Field(
        default=2_592_000,
        description="Seconds after which a session ends however active it is (30 days, NIST SP 800-63B-4 §2.1.3); "
        f"at most {MAX_SESSION_AGE_S}.",
    )
    replay_window_s: Annotated[int, whole(1, MAX_REPLAY_WINDOW_S)] = Field(
        default=30,
        description="Seconds in which a refresh token presented again gets the same answer, for tabs that race and "
        f"replies that are lost. 1 to {MAX_REPLAY_WINDOW_S}.",
    )
    max_sessions: Annotated[int, whole(1, 1000)] = Field(
        default=50, description="Sessions of one user at a time, 1 to 1000; one more ends the one longest idle."
    )
    password_min_length: Annotated[int, whole(8, 64)] = Field(
        default=15,
        description="Characters a password needs, 8 to 64 (NIST SP 800-63B-4 §3.1.1.2: 15 as the only factor).",
    )
    password_hash: Literal["argon2id", "bcrypt"] = Field(
        default="argon2id", description="How new passwords are hashed: argon2id (19 MiB, t=2, p=1) or bcrypt."
    )
    trusted_proxies: Networks = Field(
        default=(), description="Networks of your own proxies, whose X-Forwarded-For is believed; comma-separated."
    )
    allowed_origins: Origins = Field(
        default=(), description="Other origins whose pages may call this service (CORS, CSRF); exact, comma-separated."
    )

    def __init__(self, **values: Any) -> None:
        """Raises ``StartRefused``."""
        try:
            super().__init__(**values)
        except errors.StartRefused as error:
            refused = error.with_traceback(None)  # as errors.told_alone does
        else:
            return
        values.clear()  # this frame is told of
        raise refused

    def __reduce__(self) -> NoReturn:
        raise TypeError("settings are not pickled: they hold passwords")

    @classmethod
    def settings_customise_sources(  # the library's signature
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keyword arguments, then the environment; no files."""
        return init_settings, _Environment(settings_cls)

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, data: Any, handler: ModelWrapValidatorHandler["Settings"]) -> "Settings":
        faults = _unknown_variables(data.get("keys") if isinstance(data, dict) else None)
        try:
            settings = handler(data)
        except ValidationError as error:
            faults += _faults(error)
        if faults:  # raised outside of except: a ValidationError in its context would hold every value
            raise errors.StartRefused("; ".join(faults), faults=faults)
        return settings

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if url.startswith("postgres://"):
            raise ValueError("must begin with postgresql://, not postgres://")
        if not re.match(r"sqlite:///.|postgresql://.", url):
            raise ValueError("must begin with sqlite:/// or postgresql://, and go on after it")
        return _readable(value)

    @field_validator("redis_url")
    @classmethod
    def _known_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.match(r"(?:rediss?|unix)://.", value.get_secret_value()):
            raise ValueError("must begin with redis://, rediss:// or unix://, and go on after it")
        return None if value is None else _readable(value)

    @field_validator("issuer")
    @classmethod
    def _exact_issuer(cls, value: str) -> str:
        origin = re.match(r"[^/]*//[^/?#]*", value)
        if origin is None:
            raise ValueError("must be an absolute URL such as https://auth.example.com")
        check_origin(origin[0])
        if not PATH.fullmatch(value[origin.end() :]):
            raise ValueError("must have no query, no fragment and no slash at the end")
        return value

    @field_validator("audience")
    @classmethod
    def _one_audience(cls, value: str) -> str:
        if not re.fullmatch(r"[!-)+-~]{1,255}", value):  # no space, no asterisk
            raise ValueError("must be the name of the services that accept the tokens, never empty, * or with spaces")
        return value

    @field_validator("keys")
    @classmethod
    def _known_source(cls, value: str) -> str:
        if not KEY_SOURCE.fullmatch(value):
            raise ValueError("must be file:PATH, env:NAME or aws:SECRET_ID (a name or a whole ARN)")
        return value

    @field_validator("aws_region")
    @classmethod
    def _known_region(cls, value: str | None) -> str | None:
        if value is not None and not AWS_REGION.fullmatch(value):
            raise ValueError("must be a region such as eu-west-1")
        return value

    @field_validator("aws_endpoint_url")
    @classmethod
    def _safe_endpoint(cls, value: str | None) -> str | None:
        if value is not None:
            check_origin(value)  # over plain http the keys would travel in the clear
        return value

    @field_validator("aws_role_arn")
    @classmethod
    def _whole_role_arn(cls, value: str | None) -> str | None:
        if value is not None and not AWS_ROLE_ARN.fullmatch(value):
            raise ValueError("must be the ARN of a role: arn:aws:iam::ACCOUNT:role/NAME")
        return value


def settings_table() -> list[tuple[str, str, str]]:
    """The variable, its default and its meaning, for each setting: the table of docs/settings.md."""
    special = {"audience": "the issuer", "trusted_proxies": "none", "allowed_origins": "none"}
    special["database_url"] = Settings.model_fields["database_url"].default.get_secret_value()
    return [
        (
            PREFIX + name.upper(),
            special.get(name, "none" if field.default is None else str(field.default)),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def _unknown_variables(keys: object) -> list[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    if isinstance(keys, str):
        known.add(keys.removeprefix("env:"))  # env:SEKISHO_KEY_SET is known by that
    strangers = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name not in known)
    return [_is_no_setting(name, PREFIX) for name in strangers]


def _is_no_setting(name: str, prefix: str = "") -> str:
    close = difflib.get_close_matches(name.lower().removeprefix(PREFIX.lower()), Settings.model_fields, n=1)
    meant = (prefix + close[0].upper() if prefix else close[0]) if close else ""
    return f"{_printable(name)} is no setting" + (f", did you mean {meant}?" if meant else "")


def _faults(error: ValidationError) -> list[str]:
    """One short text for each error; of the values only those that cannot be secret."""
    faults = []
    for one in error.errors(include_url=False):
        if one["type"] == "default_factory_not_called":  # the issuer is wrong, so there is no default audience
            continue
        name = str(one["loc"][0])
        if name not in Settings.model_fields:
            faults.append(_is_no_setting(name))
            continue
        faults.append(f"{PREFIX}{name.upper()} {_reason(one)}{_shown(name, one['input'])}")
    return faults


def _reason(one: ErrorDetails) -> str:
    match one["type"]:
        case "value_error":
            return str(one["ctx"]["error"])
        case "literal_error":
            return f"must be {one['ctx']['expected']}"
        case _:
            return "must be a text"


def _shown(name: str, value: object) -> str:
    if name in _SECRET or "@" in str(value):  # what is before an @ may be a password
        return ""
    return f", not {_printable(value)}"


def _printable(value: object) -> str:
    return repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}..."


def _readable(value: SecretStr) -> SecretStr:
    try:
        url = value.get_secret_value()
        fine = urlsplit(url).port != 0 and url.isprintable()
    except ValueError:
        fine = False
    if not fine:  # outside of except: urlsplit quotes a piece of the password
        raise ValueError("cannot be read as a URL; write special characters in its password as %XX")
    return value
