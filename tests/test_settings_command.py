"""``sekisho settings``: what counts, where it came from, and no secret."""

import json
import re

import pytest

from sekisho.cli.output import masked_url
from sekisho.settings import Settings, settings_table
from test_serve import sekisho, sekisho_here

VARIABLES = [variable for variable, _, _ in settings_table()]


def shown(folder, env=None):
    answer = sekisho_here("settings", "--json", folder=folder, env=env)
    assert (answer.status, answer.err) == (0, "")
    rows = json.loads(answer.out)
    assert [row["variable"] for row in rows] == VARIABLES
    return {row["variable"].removeprefix("SEKISHO_"): (row["value"], row["from"]) for row in rows}


def test_the_defaults_are_those_of_the_reference(tmp_path):
    rows = shown(tmp_path)
    assert {origin for _, origin in rows.values()} == {"default"}
    said = {variable.removeprefix("SEKISHO_"): default for variable, default, _ in settings_table()}
    said["AUDIENCE"] = said["ISSUER"]
    texts = {name: "none" if value in (None, []) else str(value) for name, (value, _) in rows.items()}
    assert texts == said
    assert rows["REPLAY_WINDOW_S"] == (30, "default")
    assert rows["REDIS_URL"] == (None, "default")


def test_what_is_set_comes_from_the_environment_though_it_is_the_default(tmp_path):
    env = {
        "SEKISHO_ISSUER": "https://auth.example.com",
        "SEKISHO_MAX_SESSIONS": "50",
        "SEKISHO_TRUSTED_PROXIES": "10.0.0.0/8, 192.0.2.1",
        "SEKISHO_ALLOWED_ORIGINS": "",
        "SEKISHO_KEYS": "env:SEKISHO_KEY_SET",
        "SEKISHO_KEY_SET": "canary",
    }
    rows = shown(tmp_path, env)
    assert {name for name, (_, origin) in rows.items() if origin == "environment"} == {
        "ISSUER",
        "MAX_SESSIONS",
        "TRUSTED_PROXIES",
        "ALLOWED_ORIGINS",
        "KEYS",
    }
    assert rows["AUDIENCE"] == ("https://auth.example.com", "default")
    assert rows["TRUSTED_PROXIES"][0] == ["10.0.0.0/8", "192.0.2.1/32"]
    assert rows["KEYS"][0] == "env:SEKISHO_KEY_SET"
    text = sekisho_here("settings", folder=tmp_path, env=env).out
    assert "10.0.0.0/8,192.0.2.1/32" in text
    assert "canary" not in text + json.dumps(rows)
    assert all(variable in text for variable in VARIABLES)
    assert text.count("environment") == 5
    assert len(re.findall(r"SEKISHO_(?:ALLOWED_ORIGINS|REDIS_URL) +│ none ", text)) == 2


def test_urls_are_masked(tmp_path):
    env = {"SEKISHO_DATABASE_URL": "postgresql://u:canary@db/app", "SEKISHO_REDIS_URL": "redis://:canary@cache/0"}
    rows = shown(tmp_path, env)
    assert rows["DATABASE_URL"] == ("postgresql://***@db/app", "environment")
    assert rows["REDIS_URL"] == ("redis://***@cache/0", "environment")
    text = sekisho_here("settings", folder=tmp_path, env=env).out
    assert "postgresql://***@db/app" in text
    assert "canary" not in text


def test_wrong_settings_are_refused_as_everywhere(tmp_path):
    answer = sekisho("settings", folder=tmp_path, env={"SEKISHO_MAX_SESSIONS": "many"})
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith("sekisho: SEKISHO_MAX_SESSIONS ")
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("sqlite:///sekisho.db", "sqlite:///sekisho.db"),
        ("sqlite:////var/lib/a@b/sekisho.db", "sqlite:////var/lib/a@b/sekisho.db"),
        ("sqlite:///sekisho.db?key=canary", "sqlite:///sekisho.db"),
        ("postgresql://db/app", "postgresql://db/app"),
        ("postgresql://user@db/app", "postgresql://***@db/app"),
        ("postgresql://user:canary@db.example.com:5432/app", "postgresql://***@db.example.com:5432/app"),
        ("postgresql://user:canary@[2001:db8::1]:5432/app", "postgresql://***@[2001:db8::1]:5432/app"),
        ("postgresql://user:canary@/app", "postgresql://***@/app"),
        ("postgresql://db/app?sslmode=require", "postgresql://db/app?sslmode=require"),
        ("postgresql://db/app?ssl=verify-full", "postgresql://db/app?ssl=verify-full"),
        ("postgresql://db/app?sslmode=require&password=canary", "postgresql://db/app?***"),
        ("postgresql://db/app?password=canary", "postgresql://db/app?***"),
        ("postgresql://user:p@canary@db/app", "postgresql://***@db/app"),
        ("postgresql://user:can/ary@db/app", "postgresql://***"),
        ("postgresql://user:can#ary@db/app", "postgresql://***"),
        ("postgresql://user:can?ary@db/app", "postgresql://***"),
        ("postgresql://db/app#canary", "postgresql://***"),
        ("postgresql://db:canary/app", "postgresql://***"),
        ("redis://cache/0?password=x@canary", "redis://***"),
        ("redis://cache/0?password=x@canary/1", "redis://***"),
        ("postgresql://db/%63anary", "postgresql://***"),
        ("redis://:canary@cache:6379/1", "redis://***@cache:6379/1"),
        ("rediss://cache/0?password=canary", "rediss://cache/0?***"),
        ("unix://:canary@/run/redis.sock?db=1", "unix://***@/run/redis.sock?***"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_of_a_url_the_place_is_shown_and_never_what_may_be_a_password(url, masked):
    assert masked_url(url) == masked


def test_every_kind_of_value_is_shown_as_json(tmp_path):
    """A new setting of another type has to be thought of."""
    values = [value for value, _ in shown(tmp_path).values()]
    assert len(values) == len(Settings.model_fields)
    assert all(isinstance(value, str | int | list | None) for value in values)
