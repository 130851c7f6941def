"""The key set in AWS Secrets Manager: read, tested before it counts, never overwritten unseen; every refusal in one line."""

import json
import logging
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import boto3
import pytest

from sekisho import errors
from sekisho.sources import KeySource, secrets_manager, source_from
from sekisho.sources.aws import AwsSource
from sekisho.sources.secrets_manager import Version
from sekisho.tokens import KeySet
from sekisho.tokens.turnover import turned
from servers import aws_proxy
from servers.aws_proxy import BAD_VALUES, REFUSALS, TROUBLES, Answer, AwsProxy, Fault, Forward
from servers.moto import CREDENTIALS, MotoServer

REGION = "eu-west-1"
ROLE = "arn:aws:iam::123456789012:role/sekisho-keys"
NOW = 1_800_000_000
SET = KeySet.generate("HS256", now=NOW)
FIRST = SET.to_json()
SECOND, THIRD = (turned(SET, purpose, "HS256", now=NOW).key_set.to_json() for purpose in ("sign", "refresh"))

_numbers = count(1)


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch, moto: MotoServer) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(moto: MotoServer) -> Iterator[Any]:
    """boto3 past the proxy, for looking at what is stored and for what others do."""
    client = boto3.client("secretsmanager", region_name=REGION, endpoint_url=moto.base_url)
    yield client
    client.close()


@pytest.fixture
def name() -> str:
    return f"sekisho/keys-{next(_numbers)}-test"


@pytest.fixture
def source(aws: AwsProxy, name: str) -> KeySource:
    return source_from(f"aws:{name}", aws_region=REGION, aws_endpoint_url=aws.base_url)


@pytest.fixture
def stored(source: KeySource, aws: AwsProxy) -> KeySource:
    source.store(FIRST, expected=None)
    aws.calls.clear()
    return source


def refusal(act: Callable[[], object]) -> errors.KeyRefused:
    with pytest.raises(errors.KeyRefused) as caught:
        act()
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caught.value.detail
    assert "canary" not in told
    assert not any(key["k"] in told for key in json.loads(FIRST)["keys"])
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 250
    return caught.value


def stages(client: Any, name: str) -> dict[str, list[str]]:
    """value → its labels, of the versions that have any."""
    versions = client.describe_secret(SecretId=name)["VersionIdsToStages"]
    return {
        client.get_secret_value(SecretId=name, VersionId=version)["SecretString"]: sorted(labels)
        for version, labels in versions.items()
        if labels
    }


def nth(number: int, fault: Fault) -> Fault:
    """The fault for that call alone; the others pass."""
    calls = count(1)
    return lambda forward: fault(forward) if next(calls) == number else forward()


# --- reading and storing -------------------------------------------------------------------------------------------


def test_the_first_set_makes_the_secret(source, client, name) -> None:
    assert source.load() is None
    source.store(FIRST, expected=None)
    assert source.load() == FIRST
    assert stages(client, name) == {FIRST.decode(): ["AWSCURRENT"]}


@pytest.mark.parametrize("by_arn", [False, True])
def test_a_secret_that_others_made_without_a_value_takes_the_first_set(client, aws, name, by_arn) -> None:
    arn = client.create_secret(Name=name)["ARN"]
    source = AwsSource(arn if by_arn else name, region=REGION, endpoint_url=aws.base_url)
    assert source.load() is None
    source.store(FIRST, expected=None)
    assert source.load() == FIRST
    assert aws.calls["CreateSecret"] == 0


def test_a_new_set_is_put_beside_the_old_one_and_the_way_back_stays(stored, client, name, aws) -> None:
    stored.store(SECOND, expected=FIRST)
    assert stored.load() == SECOND
    assert stages(client, name) == {FIRST.decode(): ["AWSPREVIOUS"], SECOND.decode(): ["AWSCURRENT"]}
    stored.store(THIRD, expected=SECOND)
    assert stages(client, name) == {SECOND.decode(): ["AWSPREVIOUS"], THIRD.decode(): ["AWSCURRENT"]}


def test_store_replaces_only_what_was_expected(stored, aws) -> None:
    stored.store(SECOND, expected=FIRST)
    aws.calls.clear()
    for expected in (FIRST, None, THIRD):
        assert "changed meanwhile" in refusal(lambda it=expected: stored.store(THIRD, expected=it)).detail
    assert stored.load() == SECOND
    assert aws.calls.keys() == {"GetSecretValue"}


def test_a_set_stored_as_binary_is_read(client, source, name) -> None:
    client.create_secret(Name=name, SecretBinary=FIRST)
    assert source.load() == FIRST
    source.store(SECOND, expected=FIRST)
    assert source.load() == SECOND


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b'{"keys": []}',
        FIRST[:-9],
        FIRST.replace(b'"k": "', b'"k": "canary', 1),
        b"\xff",
        FIRST + b" " * 65_536,
    ],
    ids=["empty", "no list", "no keys", "cut", "altered", "no text", "too large"],
)
def test_what_is_no_key_set_is_never_put(stored, aws, document) -> None:
    refusal(lambda: stored.store(document, expected=FIRST))
    assert not aws.calls


def test_what_is_read_back_must_be_what_was_put(stored, client, aws, name) -> None:
    aws.faults["GetSecretValue"] = nth(2, aws_proxy.with_value(VersionId="x", SecretString=THIRD.decode()))
    assert "read back" in refusal(lambda: stored.store(SECOND, expected=FIRST)).detail
    assert aws.calls["UpdateSecretVersionStage"] == 1  # the label AWSPENDING goes
    assert stages(client, name) == {FIRST.decode(): ["AWSCURRENT"]}


def test_what_a_crash_left_pending_is_no_obstacle(stored, client, name) -> None:
    client.put_secret_value(SecretId=name, SecretString="half a d", VersionStages=["AWSPENDING"])
    assert stored.load() == FIRST
    stored.store(SECOND, expected=FIRST)
    assert stages(client, name) == {FIRST.decode(): ["AWSPREVIOUS"], SECOND.decode(): ["AWSCURRENT"]}


# --- two operators at once -----------------------------------------------------------------------------------------

STEPS = [("GetSecretValue", 1), ("PutSecretValue", 1), ("GetSecretValue", 2), ("UpdateSecretVersionStage", 1)]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("operation", "number"), STEPS)
def test_of_two_who_store_at_once_one_sees_it(stored, client, moto, aws, name, operation, number, after) -> None:
    """The second does all its steps at one moment of the first's: before or after any call of it."""
    other = AwsSource(name, region=REGION, endpoint_url=moto.base_url)
    won: list[str] = []
    refused: list[str] = []

    def meanwhile(forward: Forward) -> Answer:
        answer = forward() if after else None
        try:
            other.store(THIRD, expected=FIRST)
            won.append("other")
        except errors.KeyRefused as error:
            refused.append(error.detail)
        return answer or forward()

    aws.faults[operation] = nth(number, meanwhile)
    try:
        stored.store(SECOND, expected=FIRST)
        won.append("first")
    except errors.KeyRefused as error:
        refused.append(error.detail)
    assert (len(won), len(refused)) == (1, 1)
    assert "changed meanwhile" in refused[0]
    winner = {"first": SECOND, "other": THIRD}[won[0]]
    assert won == (["first"] if (operation, after) == ("UpdateSecretVersionStage", True) else ["other"])
    assert stored.load() == winner
    assert stages(client, name) == {FIRST.decode(): ["AWSPREVIOUS"], winner.decode(): ["AWSCURRENT"]}


@pytest.mark.parametrize("empty", [False, True], ids=["no secret", "no value"])
@pytest.mark.parametrize("operation", ["GetSecretValue", "PutSecretValue", "CreateSecret"])
def test_of_two_who_make_the_first_set_one_sees_it(source, client, moto, aws, name, operation, empty) -> None:
    if empty:
        client.create_secret(Name=name)
    other = AwsSource(name, region=REGION, endpoint_url=moto.base_url)

    def meanwhile(forward: Forward) -> Answer:
        other.store(THIRD, expected=None)
        return forward()

    aws.faults[operation] = nth(1, meanwhile)
    if empty and operation == "CreateSecret":
        source.store(FIRST, expected=None)  # needs no such call
        assert source.load() == FIRST
    else:
        assert "changed meanwhile" in refusal(lambda: source.store(FIRST, expected=None)).detail
        assert stages(client, name) == {THIRD.decode(): ["AWSCURRENT"]}


# --- answers that are lost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["GetSecretValue", "PutSecretValue", "UpdateSecretVersionStage"])
def test_an_answer_that_is_lost_once_costs_nothing(stored, client, aws, name, operation) -> None:
    aws.faults[operation] = nth(1, aws_proxy.lost)
    stored.store(SECOND, expected=FIRST)
    assert stages(client, name) == {FIRST.decode(): ["AWSPREVIOUS"], SECOND.decode(): ["AWSCURRENT"]}


def test_the_answer_to_the_first_set_may_be_lost(source, aws) -> None:
    aws.faults["CreateSecret"] = nth(1, aws_proxy.lost)
    source.store(FIRST, expected=None)
    assert source.load() == FIRST


@pytest.mark.parametrize("operation", ["CreateSecret", "UpdateSecretVersionStage"])
def test_where_every_answer_is_lost_it_counts_what_is_current(source, client, aws, name, operation) -> None:
    if operation != "CreateSecret":
        source.store(FIRST, expected=None)
    aws.faults[operation] = aws_proxy.lost
    expected = None if operation == "CreateSecret" else FIRST
    source.store(SECOND, expected=expected)
    assert source.load() == SECOND


@pytest.mark.parametrize("operation", ["PutSecretValue", "UpdateSecretVersionStage", "CreateSecret"])
def test_what_was_not_promoted_does_not_count_and_can_be_repeated(source, aws, operation) -> None:
    before = None if operation == "CreateSecret" else FIRST
    if before:
        source.store(before, expected=None)
    aws.faults[operation] = aws_proxy.throttled
    assert isinstance(refusal(lambda: source.store(SECOND, expected=before)), errors.KeySourceUnavailable)
    assert aws.calls[operation] >= 3  # it was tried again, a bounded number of times
    assert source.load() == before
    aws.faults.clear()
    source.store(SECOND, expected=before)
    assert source.load() == SECOND


# --- AWS in trouble ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
def test_no_answer_is_told_apart_from_a_refusal_and_costs_one_call(stored, aws, trouble) -> None:
    aws.faults["GetSecretValue"] = trouble
    assert type(refusal(stored.load)) is errors.KeySourceUnavailable
    assert aws.calls == {"GetSecretValue": 1}
    aws.faults.clear()
    assert stored.load() == FIRST


def test_an_answer_that_never_comes_is_not_waited_for(name, aws, monkeypatch) -> None:
    monkeypatch.setattr(secrets_manager, "READ_S", 0.2)
    aws.faults["*"] = aws.stall
    source = AwsSource(name, region=REGION, endpoint_url=aws.base_url)
    began = time.monotonic()
    assert "ReadTimeoutError" in refusal(source.load).detail
    assert time.monotonic() - began < 10


def test_each_look_has_a_connection_of_its_own(stored, aws) -> None:
    """One that idles for a minute can be closed at the other end while it is taken up again: a false alarm."""
    before = aws.connections
    for _ in range(3):
        stored.load()
    assert aws.connections == before + 3


def test_nobody_there(name, free_port) -> None:
    source = AwsSource(name, region=REGION, endpoint_url=f"http://127.0.0.1:{free_port}")
    assert type(refusal(source.load)) is errors.KeySourceUnavailable


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_is_one_and_says_which_call(stored, aws, fault) -> None:
    aws.faults["GetSecretValue"] = fault
    error = refusal(stored.load)
    assert type(error) is errors.KeyRefused
    assert "GetSecretValue" in error.detail or "credentials" in error.detail


def test_refusals_say_what_to_do(stored, aws) -> None:
    for name, words in {
        "no permission": "docs/keys.md",
        "no key of KMS": "KMS",
        "no permission for KMS": "KMS",
        "expired credentials": "credentials",
    }.items():
        aws.faults["*"] = REFUSALS[name]
        assert words in refusal(stored.load).detail


@pytest.mark.parametrize("fault", BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_a_bad_value_is_refused_and_not_called_an_outage(stored, aws, fault) -> None:
    aws.faults["GetSecretValue"] = fault

    def look() -> None:
        KeySet.from_json(stored.load() or pytest.fail("nothing"))

    if fault is BAD_VALUES["empty"]:
        assert stored.load() == b""
        assert type(refusal(lambda: KeySet.from_json(b""))) is errors.KeyRefused
    else:
        assert type(refusal(look)) is errors.KeyRefused


def test_a_secret_that_is_to_be_deleted(stored, client, name) -> None:
    client.delete_secret(SecretId=name)
    assert "restore-secret" in refusal(stored.load).detail
    refusal(lambda: stored.store(SECOND, expected=FIRST))


def test_a_secret_that_is_gone(stored, client, name) -> None:
    client.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)
    assert stored.load() is None
    refusal(lambda: stored.store(SECOND, expected=FIRST))  # and it does not come back by itself


# --- where and as whom ---------------------------------------------------------------------------------------------


def test_another_region_is_another_place_and_the_name_says_which(stored, aws, name) -> None:
    elsewhere = AwsSource(name, region="eu-central-1", endpoint_url=aws.base_url)
    assert elsewhere.load() is None
    assert elsewhere.name == f"aws:{name} (eu-central-1)"
    assert stored.name == f"aws:{name} ({REGION})"


def test_an_arn_names_its_region(stored, client, aws, name) -> None:
    arn = client.describe_secret(SecretId=name)["ARN"]
    source = AwsSource(arn, endpoint_url=aws.base_url)
    assert source.load() == FIRST
    assert source.name == f"aws:{arn}"
    other = AwsSource(arn, region="us-east-1", endpoint_url=aws.base_url)
    assert "SEKISHO_AWS_REGION" in refusal(other.load).detail


def test_by_arn_no_secret_is_made(aws, name) -> None:
    arn = f"arn:aws:secretsmanager:{REGION}:123456789012:secret:{name}-AbCdEf"
    source = AwsSource(arn, endpoint_url=aws.base_url)
    assert source.load() is None
    assert "make it" in refusal(lambda: source.store(FIRST, expected=None)).detail
    assert aws.calls["CreateSecret"] == 0


def test_the_region_may_be_left_to_boto3(stored, aws, name, monkeypatch) -> None:
    source = AwsSource(name, endpoint_url=aws.base_url)
    assert "set SEKISHO_AWS_REGION" in refusal(source.load).detail
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    assert source.load() == FIRST


def test_without_credentials(stored, aws, name, monkeypatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(variable)
    for role in (None, ROLE):
        source = AwsSource(name, region=REGION, endpoint_url=aws.base_url, role_arn=role)
        assert "NoCredentialsError" in refusal(source.load).detail


def test_a_role_is_assumed_once_and_again_before_it_ends(stored, moto, aws, name, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", aws.base_url)
    lives_s = "3600"

    def ends_then(forward: Forward) -> Answer:
        answer = forward()
        from datetime import UTC, datetime, timedelta

        end = datetime.now(UTC) + timedelta(seconds=int(lives_s))
        text = answer.body.decode()
        before, _, rest = text.partition("<Expiration>")
        return Answer(200, f"{before}<Expiration>{end:%Y-%m-%dT%H:%M:%SZ}<{rest.partition('<')[2]}".encode())

    aws.faults["AssumeRole"] = ends_then
    source = AwsSource(name, region=REGION, endpoint_url=aws.base_url, role_arn=ROLE)
    lives_s = "60"  # botocore fetches new ones some minutes before the end
    assert source.load() == FIRST
    assert aws.calls["AssumeRole"] == 1
    lives_s = "3600"
    assert source.load() == FIRST
    assert aws.calls["AssumeRole"] == 2
    assert source.load() == FIRST
    assert aws.calls["AssumeRole"] == 2


def test_a_role_that_cannot_be_had(stored, aws, name, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", aws.base_url)
    denied = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>canary</Message></Error></ErrorResponse>"
    source = AwsSource(name, region=REGION, endpoint_url=aws.base_url, role_arn=ROLE)
    aws.faults["AssumeRole"] = lambda _forward: Answer(403, denied)
    error = refusal(source.load)
    assert (type(error), "AssumeRole" in error.detail) == (errors.KeyRefused, True)
    aws.faults["AssumeRole"] = lambda _forward: Answer(500, b"<canary/>")
    assert type(refusal(source.load)) is errors.KeySourceUnavailable
    aws.faults.clear()
    assert source.load() == FIRST


# --- secrets stay secret, boto3 stays optional ---------------------------------------------------------------------


def test_not_even_the_loggers_of_boto3_see_the_keys(aws, name, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("botocore").setLevel(logging.DEBUG)
    source = AwsSource(name, region=REGION, endpoint_url=aws.base_url)
    source.store(FIRST, expected=None)
    assert source.load() == FIRST
    assert not [key for key in json.loads(FIRST)["keys"] if key["k"] in caplog.text]
    assert "canary" not in repr(source) + repr(Version("1", b"canary"))


def test_without_boto3_one_line_says_what_to_install(monkeypatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("sekisho.sources.aws", "sekisho.sources.secrets"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(errors.StartRefused, match=r"boto3: install sekisho\[aws\]"):
        source_from("aws:keys")


def test_boto3_is_imported_by_those_alone_who_keep_keys_in_aws() -> None:
    code = """
import sys
import sekisho.web, sekisho.cli.commands
from sekisho.sources import source_from
source_from("file:keys"), source_from("env:KEYS")
assert not {"boto3", "botocore"} & sys.modules.keys()
source_from("aws:keys")
assert "boto3" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_rotation_function_needs_neither_server_nor_command_line() -> None:
    code = """
import sys
from sekisho.sources.aws import rotate
wanted = {"fastapi", "pydantic", "sqlalchemy", "typer", "httpx2", "prometheus_client", "structlog"}
assert not wanted & sys.modules.keys(), wanted & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
