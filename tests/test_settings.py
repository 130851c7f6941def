"""Settings: one spelling for each value, one line for everything that is wrong, and no secret in it."""

import os
import traceback
from ipaddress import ip_network

import pytest
from pydantic import SecretStr, ValidationError

from sekisho import errors
from sekisho.settings import Settings, settings_table


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("SEKISHO_")]:
        monkeypatch.delenv(name)


def refusal(**values: object) -> str:
    with pytest.raises(errors.StartRefused) as caught:
        Settings(**values)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # a ValidationError would hold every value
    assert "canary" not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert len(caught.value.detail.splitlines()) == 1
    assert caught.value.detail.isprintable()
    return caught.value.detail


def test_the_defaults() -> None:
    settings = Settings()
    assert {**settings.model_dump(), "database_url": settings.database_url.get_secret_value()} == {
        "database_url": "sqlite:///sekisho.db",
        "redis_url": None,
        "issuer": "http://127.0.0.1:8400",
        "audience": "http://127.0.0.1:8400",
        "signing_algorithm": "HS256",
        "keys": "file:sekisho-keys.json",
        "keys_poll_s": 60,
        "aws_region": None,
        "aws_endpoint_url": None,
        "aws_role_arn": None,
        "access_token_ttl_s": 900,
        "refresh_token_ttl_s": 604800,
        "session_max_age_s": 2592000,
        "replay_window_s": 30,
        "max_sessions": 50,
        "password_min_length": 15,
        "password_hash": "argon2id",
        "trusted_proxies": (),
        "allowed_origins": (),
    }


def test_everything_can_be_set_by_the_environment(monkeypatch) -> None:
    for name, value in {
        "DATABASE_URL": "postgresql://u:p@db/auth",
        "REDIS_URL": "rediss://:p@redis:6380/1",
        "ISSUER": "https://auth.example.com/sso",
        "AUDIENCE": "shop",
        "SIGNING_ALGORITHM": "EdDSA",
        "KEYS": "env:AUTH_KEYS",
        "KEYS_POLL_S": "30",
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": "https://vpce-1.secretsmanager.eu-west-1.vpce.amazonaws.com",
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/sekisho",
        "ACCESS_TOKEN_TTL_S": "600",
        "REFRESH_TOKEN_TTL_S": "601",
        "SESSION_MAX_AGE_S": "602",
        "REPLAY_WINDOW_S": "10",
        "MAX_SESSIONS": "3",
        "PASSWORD_MIN_LENGTH": "8",
        "PASSWORD_HASH": "bcrypt",
        "TRUSTED_PROXIES": "10.0.0.0/8, 192.0.2.1,2001:db8::/32",
        "ALLOWED_ORIGINS": "https://app.example.com,http://localhost:3000",
    }.items():
        monkeypatch.setenv("SEKISHO_" + name, value)
    settings = Settings()
    assert settings.database_url.get_secret_value() == "postgresql://u:p@db/auth"
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "rediss://:p@redis:6380/1"
    assert settings.model_dump(exclude={"database_url", "redis_url"}) == {
        "issuer": "https://auth.example.com/sso",
        "audience": "shop",
        "signing_algorithm": "EdDSA",
        "keys": "env:AUTH_KEYS",
        "keys_poll_s": 30,
        "aws_region": "eu-west-1",
        "aws_endpoint_url": "https://vpce-1.secretsmanager.eu-west-1.vpce.amazonaws.com",
        "aws_role_arn": "arn:aws:iam::123456789012:role/sekisho",
        "access_token_ttl_s": 600,
        "refresh_token_ttl_s": 601,
        "session_max_age_s": 602,
        "replay_window_s": 10,
        "max_sessions": 3,
        "password_min_length": 8,
        "password_hash": "bcrypt",
        "trusted_proxies": (ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32"), ip_network("2001:db8::/32")),
        "allowed_origins": ("https://app.example.com", "http://localhost:3000"),
    }


def test_keyword_arguments_count_before_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("SEKISHO_ISSUER", "https://a.example.com")
    monkeypatch.setenv("SEKISHO_MAX_SESSIONS", "7")
    settings = Settings(issuer="https://b.example.com", trusted_proxies=["10.0.0.0/8"])
    assert (settings.issuer, settings.audience, settings.max_sessions) == ("https://b.example.com",) * 2 + (7,)
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"),)


def test_they_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().max_sessions = 3


def test_no_file_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("SEKISHO_MAX_SESSIONS=3\nSEKISHO_NONSENSE=1\n")
    assert Settings().max_sessions == 50


# --- unknown names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("SEKISHO_ISUER", "SEKISHO_ISSUER"),
        ("SEKISHO_ACCESS_TOKEN_TTL", "SEKISHO_ACCESS_TOKEN_TTL_S"),
        ("SEKISHO_PASSWORD_LENGTH_MIN", "SEKISHO_PASSWORD_MIN_LENGTH"),
        ("sekisho_issuer", "SEKISHO_ISSUER"),
        ("Sekisho_Issuer", "SEKISHO_ISSUER"),
    ],
)
def test_an_unknown_variable_is_named_with_the_one_that_was_meant(monkeypatch, name, suggestion) -> None:
    monkeypatch.setenv(name, "canary")
    detail = refusal()
    assert name in detail
    assert f"did you mean {suggestion}?" in detail


def test_an_unknown_variable_that_resembles_nothing_is_named_alone(monkeypatch) -> None:
    monkeypatch.setenv("SEKISHO_XQZW", "canary")
    assert "SEKISHO_XQZW" in refusal()
    assert "did you mean" not in refusal()


def test_the_variable_that_holds_the_keys_may_have_any_name(monkeypatch) -> None:
    monkeypatch.setenv("SEKISHO_KEY_SET", "{}")
    monkeypatch.setenv("SEKISHO_KEYS", "env:SEKISHO_KEY_SET")
    assert Settings().keys == "env:SEKISHO_KEY_SET"
    assert "SEKISHO_KEY_SET" in refusal(keys="file:x")


def test_an_unknown_keyword_is_named() -> None:
    assert "did you mean issuer?" in refusal(isuer="canary")


# --- values --------------------------------------------------------------------------------------------------------

NUMBERS = [
    "15m",
    "900s",
    "0",
    "-1",
    "+900",
    " 900",
    "900 ",
    "900.0",
    "9e2",
    "9_00",
    "0x10",
    "",
    "９００",
    "nan",
    "inf",
    "1\n",
    "9" * 5000,
]


@pytest.mark.parametrize("value", [*NUMBERS, 0, -1, True, 900.0, None, b"900"])
@pytest.mark.parametrize(
    "name",
    [
        "access_token_ttl_s",
        "refresh_token_ttl_s",
        "session_max_age_s",
        "replay_window_s",
        "max_sessions",
        "password_min_length",
        "keys_poll_s",
    ],
)
def test_numbers_are_digits(monkeypatch, name, value) -> None:
    variable = "SEKISHO_" + name.upper()
    assert f"{variable} must be a whole number" in refusal(**{name: value})
    if isinstance(value, str):
        monkeypatch.setenv(variable, value)
        assert f"{variable} must be a whole number" in refusal()


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("access_token_ttl_s", 1, 3600),
        ("refresh_token_ttl_s", 1, 34560000),
        ("session_max_age_s", 1, 34560000),
        ("replay_window_s", 1, 300),
        ("keys_poll_s", 1, 200),
        ("max_sessions", 1, 1000),
        ("password_min_length", 8, 64),
    ],
)
def test_bounds(name, lowest, highest) -> None:
    for value in (lowest, highest):
        assert getattr(Settings(**{name: value}), name) == value
    for value in (lowest - 1, highest + 1):
        assert "SEKISHO_" + name.upper() in refusal(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("access_token_ttl_s", 5), ("access_token_ttl_s", 1), ("refresh_token_ttl_s", 60), ("session_max_age_s", 60)],
)
def test_a_short_life_can_be_set_alone(name, value) -> None:
    assert getattr(Settings(**{name: value}), name) == value


@pytest.mark.parametrize(
    "issuer",
    [
        "https://auth.example.com",
        "https://auth.example.com:8443",
        "https://example.com/auth",
        "https://example.com/a/b-c_d~e",
        "https://192.0.2.1",
        "https://[2001:db8::1]:8443",
        "https://auth",
        "http://127.0.0.1:8400",
        "http://127.8.9.10",
        "http://localhost:8400/auth",
        "http://[::1]:8400",
    ],
)
def test_issuers(issuer) -> None:
    assert Settings(issuer=issuer).audience == issuer


@pytest.mark.parametrize(
    "issuer",
    [
        "",
        "auth.example.com",
        "//auth.example.com",
        "https://",
        "https:///auth",
        "https:auth.example.com",
        "ftp://auth.example.com",
        "https://auth.example.com/",
        "https://auth.example.com/a/",
        "https://auth.example.com//a",
        "https://auth.example.com?x=1",
        "https://auth.example.com/a?x=1",
        "https://auth.example.com#x",
        "https://auth.example.com/a#",
        "https://user:canary@auth.example.com",
        "https://auth.example.com\n",
        "https://auth.example.com/a\n",
        " https://auth.example.com",
        "https://auth.exa\tmple.com",
        "https://Auth.example.com",
        "HTTPS://auth.example.com",
        "https://auth.example.com:443",
        "https://auth.example.com:0",
        "https://auth.example.com:08443",
        "https://auth.example.com:65536",
        "https://auth.example.com:",
        "https://auth..example.com",
        "https://auth.example.com.",
        "https://関所.example.com",
        "https://192.0.2.256",
        "https://192.0.2",
        "https://[2001:db8:0::1]",
        "https://[::1",
        "http://auth.example.com",
        "http://192.0.2.1",
        "http://0.0.0.0",
        "http://127.1",
        "http://0x7f.1",
        "http://2130706433",
        "http://128.0.0.1",
        "http://[::]",
        "http://[::ffff:7f00:1]",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
        "http://localhost@example.com",
        "http://127.0.0.1:80",
        42,
        None,
    ],
)
def test_doubtful_issuers_are_refused(issuer) -> None:
    assert "SEKISHO_ISSUER must" in refusal(issuer=issuer) or "SEKISHO_ISSUER holds" in refusal(issuer=issuer)


def test_a_wrong_issuer_is_not_blamed_on_the_audience() -> None:
    assert "AUDIENCE" not in refusal(issuer="http://auth.example.com")


@pytest.mark.parametrize("audience", ["", "*", "shop*", "a b", "shop\n", "a" * 256, None])
def test_an_audience_names_somebody(audience) -> None:
    assert "SEKISHO_AUDIENCE must" in refusal(audience=audience)
    assert Settings(audience="shop").audience == "shop"


@pytest.mark.parametrize(
    "origins", [["https://app.example.com", "https://b.example.com:8443"], ["http://127.0.0.1:3000"], []]
)
def test_origins(monkeypatch, origins) -> None:
    monkeypatch.setenv("SEKISHO_ALLOWED_ORIGINS", ", ".join(origins))
    assert Settings().allowed_origins == tuple(origins)
    assert Settings(allowed_origins=origins).allowed_origins == tuple(origins)


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://*",
        "https://*.example.com",
        "null",
        "https://app.example.com/",
        "https://app.example.com/a",
        "https://App.example.com",
        "https://app.example.com:443",
        "http://app.example.com",
        "app.example.com",
        "https://a.example.com,",
        ",https://a.example.com",
        "https://a.example.com https://b.example.com",
        "https://a.example.com\n",
    ],
)
def test_doubtful_origins_are_refused(monkeypatch, origin) -> None:
    monkeypatch.setenv("SEKISHO_ALLOWED_ORIGINS", origin)
    assert "SEKISHO_ALLOWED_ORIGINS" in refusal()
    assert "SEKISHO_ALLOWED_ORIGINS" in refusal(allowed_origins=[origin])


@pytest.mark.parametrize("value", [[7], 7, [None]])
def test_origins_are_texts(value) -> None:
    assert "SEKISHO_ALLOWED_ORIGINS must" in refusal(allowed_origins=value)


@pytest.mark.parametrize(
    "networks",
    [
        "10.0.0.1/8",
        "10.0.0.0/33",
        "proxy",
        "10.0.0.0/8,",
        ",",
        "0.0.0.0/0",
        "::/0",
        "*",
        "10.0.0.0/8;192.0.2.1",
        "::ffff:10.0.0.0/104",
    ],
)
def test_doubtful_proxies_are_refused(monkeypatch, networks) -> None:
    monkeypatch.setenv("SEKISHO_TRUSTED_PROXIES", networks)
    assert "SEKISHO_TRUSTED_PROXIES must" in refusal()


def test_proxies_are_networks() -> None:
    assert "SEKISHO_TRUSTED_PROXIES must" in refusal(trusted_proxies=7)
    assert Settings(trusted_proxies="").trusted_proxies == ()


@pytest.mark.parametrize(
    "url",
    ["sqlite:///a.db", "sqlite:////var/lib/a.db", "postgresql:///auth", "postgresql://u:p%2F@h:5432/n?ssl=require"],
)
def test_databases(url) -> None:
    assert Settings(database_url=url).database_url.get_secret_value() == url
    assert Settings(database_url=SecretStr(url)).database_url.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "canary",
        "sqlite:///",
        "sqlite://canary",
        "postgres://u:canary@h/n",
        "postgresql+asyncpg://u:canary@h/n",
        "mysql://u:canary@h/n",
        "postgresql://",
        "postgresql://u:canary/x@h/n",
        "postgresql://u:canary@h:port/n",
        "postgresql://u:canary@h/n\n",
        "postgresql://u:canary@[h/n",
        7,
    ],
)
def test_other_databases_are_refused_unseen(monkeypatch, url) -> None:
    assert "SEKISHO_DATABASE_URL" in refusal(database_url=url)
    if isinstance(url, str):
        monkeypatch.setenv("SEKISHO_DATABASE_URL", url)
        assert "SEKISHO_DATABASE_URL" in refusal()


def test_the_other_name_of_postgresql_is_corrected() -> None:
    assert "must begin with postgresql://, not postgres://" in refusal(database_url="postgres://u:canary@h/n")


@pytest.mark.parametrize(
    "url", ["", "canary", "http://canary", "redis://", "redis://:canary/x@h", "redis://:canary@h:x", 7]
)
def test_other_redis_urls_are_refused_unseen(url) -> None:
    assert "SEKISHO_REDIS_URL" in refusal(redis_url=url)


@pytest.mark.parametrize(
    "keys",
    ["", "canary", "file:", "env:", "env:1canary", "env:A B", '{"keys":["canary"]}', "file:a\ncanary", "canary:x", 7],
)
def test_other_key_sources_are_refused_unseen(keys) -> None:
    assert "SEKISHO_KEYS must be" in refusal(keys=keys)


@pytest.mark.parametrize(
    "secret",
    [
        "sekisho",
        "prod/auth/keys_1+=.@-x",
        "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/auth/keys-AbCdEf",
        "arn:aws-us-gov:secretsmanager:us-gov-west-1:123456789012:secret:keys-AbCdEf",
        "arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:keys-AbCdEf",
    ],
)
def test_a_secret_is_named_or_given_by_its_arn(secret) -> None:
    assert Settings(keys=f"aws:{secret}").keys == f"aws:{secret}"


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "a canary",
        "canary:1",
        "canary\n",
        "a" * 513,
        '{"keys":["canary"]}',
        "arn:aws:secretsmanager:eu-west-1:123456789012:secret:",
        "arn:aws:secretsmanager::123456789012:secret:canary",
        "arn:aws:secretsmanager:eu-west-1:1234:secret:canary",
        "arn:aws:s3:eu-west-1:123456789012:secret:canary",
    ],
)
def test_other_secrets_are_refused_unseen(secret) -> None:
    assert "SEKISHO_KEYS must be" in refusal(keys=f"aws:{secret}")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "aws_region",
            ["eu-west-1", "us-gov-west-1", "cn-north-1", "us-isob-east-1", "ap-southeast-12"],
            ["", "eu", "eu-west", "EU-WEST-1", "eu-west-1 ", "eu-west-1a", "eu_west_1", "eu-west-1\n", "-west-1", 7],
        ),
        (
            "aws_endpoint_url",
            ["https://vpce-0a.secretsmanager.eu-west-1.vpce.amazonaws.com", "http://127.0.0.1:5000"],
            [
                "",
                "http://aws.example.com",
                "https://aws.example.com/",
                "https://",
                "aws.example.com",
                "ftp://a.example",
                7,
            ],
        ),
        (
            "aws_role_arn",
            ["arn:aws:iam::123456789012:role/sekisho", "arn:aws-cn:iam::123456789012:role/service/a.b-c@d,e=f+g_h"],
            [
                "",
                "sekisho",
                "arn:aws:iam::123456789012:user/sekisho",
                "arn:aws:iam::1234:role/sekisho",
                "arn:aws:iam::123456789012:role/",
                "arn:aws:iam:eu-west-1:123456789012:role/sekisho",
                "arn:aws:iam::123456789012:role/a b",
                "arn:aws:iam::123456789012:role/a\n",
                7,
            ],
        ),
    ],
)
def test_where_aws_is_asked_and_as_whom(monkeypatch, name, good, bad) -> None:
    for value in good:
        assert getattr(Settings(**{name: value}), name) == value
    for value in bad:
        variable = "SEKISHO_" + name.upper()
        assert f"{variable} must" in refusal(**{name: value})
        if isinstance(value, str):
            with monkeypatch.context() as patch:
                patch.setenv(variable, value)
                assert f"{variable} must" in refusal()


@pytest.mark.parametrize(
    ("name", "value"), [("signing_algorithm", "none"), ("signing_algorithm", "hs256"), ("password_hash", "md5")]
)
def test_choices(name, value) -> None:
    assert f"SEKISHO_{name.upper()} must be '" in refusal(**{name: value})


def test_one_line_names_all(monkeypatch) -> None:
    monkeypatch.setenv("SEKISHO_ISUER", "x")
    monkeypatch.setenv("SEKISHO_DATABASE_URL", "canary")
    monkeypatch.setenv("SEKISHO_ACCESS_TOKEN_TTL_S", "15m\n\x1b[31m")
    detail = refusal(keys="canary")
    for name in ("SEKISHO_ISUER", "SEKISHO_DATABASE_URL", "SEKISHO_ACCESS_TOKEN_TTL_S", "SEKISHO_KEYS"):
        assert name in detail
    assert r"not '15m\n\x1b[31m'" in detail


def test_passwords_do_not_print() -> None:
    settings = Settings(database_url="postgresql://u:canary@h/n", redis_url="redis://:canary@h")
    assert (
        "canary" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()} {vars(settings)}"
    )


def test_the_table_is_whole() -> None:
    rows = settings_table()
    assert [name for name, _, _ in rows] == ["SEKISHO_" + name.upper() for name in Settings.model_fields]
    assert all(default and description.endswith(".") for _, default, description in rows)
    assert rows[0][:2] == ("SEKISHO_DATABASE_URL", "sqlite:///sekisho.db")
