"""The rotation function, called as Secrets Manager calls it: four steps, any of which may come twice or be the last."""

import io
import itertools
import json
import logging
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from uuid import uuid4

import boto3
import pytest

from sekisho import errors
from sekisho.sources import aws_rotation
from sekisho.sources.aws import AwsSource, rotate
from sekisho.tokens import KeySet
from sekisho.tokens.keys import PURPOSES, Purpose
from sekisho.wire import now_s
from servers import aws_proxy
from servers.aws_proxy import Answer, AwsProxy, Forward
from servers.moto import CREDENTIALS, MotoServer

REGION = "eu-west-1"
STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")

_numbers = count(1)


@pytest.fixture(autouse=True)
def function_environment(monkeypatch, aws: AwsProxy) -> None:
    """What a Lambda function finds."""
    for name, value in {**CREDENTIALS, "AWS_DEFAULT_REGION": REGION, "AWS_ENDPOINT_URL": aws.base_url}.items():
        monkeypatch.setenv(name, value)
    for name in ("SEKISHO_ROTATION_PURPOSE", "SEKISHO_SIGNING_ALGORITHM", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def function_arn(moto: MotoServer) -> str:
    """A function that does nothing when moto calls it: the tests do that, step by step."""
    config = urllib.request.Request(
        f"{moto.base_url}/moto-api/config",
        data=json.dumps({"lambda": {"use_docker": False}}).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(config, timeout=30).close()
    where: dict[str, Any] = {"region_name": REGION, "endpoint_url": moto.base_url}
    where |= {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    iam, functions = boto3.client("iam", **where), boto3.client("lambda", **where)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("function.py", "")
    role = iam.create_role(RoleName="rotation", AssumeRolePolicyDocument='{"Version": "2012-10-17", "Statement": []}')
    arn: str = functions.create_function(
        FunctionName="rotate",
        Runtime="python3.13",
        Role=role["Role"]["Arn"],
        Handler="sekisho.sources.aws.rotate",
        Code={"ZipFile": archive.getvalue()},
    )["FunctionArn"]
    return arn


class Secret:
    """A secret with a key set in it, and Secrets Manager's part in its rotation."""

    def __init__(self, client: Any, function_arn: str) -> None:
        self.client = client
        self.name = f"sekisho/rotated-{next(_numbers)}-test"
        self.source = AwsSource(self.name)
        self.source.store(KeySet.generate("HS256", now=now_s()).to_json(), expected=None)
        self._function_arn = function_arn

    @property
    def document(self) -> bytes:
        return self.source.load() or b""

    @property
    def key_set(self) -> KeySet:
        return KeySet.from_json(self.document)

    def begin(self) -> str:
        """RotateSecret: the token of a version that is pending and has no value yet."""
        answer = self.client.rotate_secret(
            SecretId=self.name, RotationLambdaARN=self._function_arn, RotationRules={"AutomaticallyAfterDays": 7}
        )
        token: str = answer["VersionId"]
        return token

    def step(self, step: str, token: str) -> None:
        rotate({"SecretId": self.name, "ClientRequestToken": token, "Step": step}, None)

    def rotated(self) -> str:
        token = self.begin()
        for step in STEPS:
            self.step(step, token)
        return token

    def edit(self, document: bytes) -> None:
        """Somebody makes another value current by hand. (A plain PutSecretValue would confuse moto at this point.)"""
        [current] = [version for version, labels in self.labels().items() if "AWSCURRENT" in labels]
        version = self.client.put_secret_value(
            SecretId=self.name, SecretString=document.decode(), VersionStages=["edited"]
        )["VersionId"]
        self.client.update_secret_version_stage(
            SecretId=self.name, VersionStage="AWSCURRENT", MoveToVersionId=version, RemoveFromVersionId=current
        )

    def states(self, purpose: str = "sign") -> list[str]:
        return [key.state for key in self.key_set.keys if key.purpose == purpose]

    def labels(self) -> dict[str, list[str]]:
        return {v: s for v, s in self.client.describe_secret(SecretId=self.name)["VersionIdsToStages"].items() if s}

    def value(self, token: str) -> str:
        text: str = self.client.get_secret_value(SecretId=self.name, VersionId=token)["SecretString"]
        return text


@pytest.fixture
def secret(moto: MotoServer, function_arn: str) -> Iterator[Secret]:
    client = boto3.client("secretsmanager", endpoint_url=moto.base_url)
    yield Secret(client, function_arn)
    client.close()


@pytest.fixture
def later(monkeypatch) -> Callable[[int], None]:
    """Lets so many seconds pass for the function."""
    passed = [0]
    monkeypatch.setattr(aws_rotation, "now_s", lambda: now_s() + passed[0])

    def wait(seconds: int) -> None:
        passed[0] += seconds

    return wait


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(errors.KeyRefused) as caught:
        act()
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.detail


@pytest.mark.parametrize("purpose", PURPOSES)
def test_each_rotation_makes_one_turn(secret, later, monkeypatch, purpose: Purpose) -> None:
    if purpose != "sign":
        monkeypatch.setenv("SEKISHO_ROTATION_PURPOSE", purpose)
    first = secret.key_set.active(purpose).kid
    before = secret.labels()
    token = secret.rotated()
    assert secret.states(purpose) == ["active", "next"]
    assert secret.labels() == {next(iter(before)): ["AWSPREVIOUS"], token: ["AWSCURRENT"]}
    waiting = secret.key_set.next(purpose)
    later(600)
    secret.rotated()
    assert secret.states(purpose) == ["verify_only", "active", "next"]
    assert (secret.key_set.find(first).state, secret.key_set.active(purpose).kid) == ("verify_only", waiting.kid)
    assert all(secret.states(other) == ["active"] for other in PURPOSES if other != purpose)


def test_a_rotation_too_early_fails_and_succeeds_when_it_is_repeated(secret, later) -> None:
    secret.rotated()
    before = secret.document
    token = secret.begin()
    later(590)
    assert "has not been published for long enough" in refusal(lambda: secret.step("createSecret", token))
    assert secret.document == before
    later(10)
    for step in STEPS:
        secret.step(step, token)
    assert secret.states() == ["verify_only", "active", "next"]


def test_every_step_may_come_twice(secret) -> None:
    token = secret.begin()
    values = set()
    for step in (*STEPS[:1] * 3, *STEPS[1:2] * 2, *STEPS[:3], *STEPS[2:3] * 2):
        secret.step(step, token)
        values.add(secret.value(token))
    assert len(values) == 1  # made once for the token
    assert secret.states() == ["active"]
    for step in (*STEPS[3:] * 2, *STEPS):
        secret.step(step, token)
    assert [secret.document.decode()] == list(values)


def test_of_two_functions_that_create_at_once_both_go_on_with_one_set(secret, aws) -> None:
    token = secret.begin()
    again = iter([True])

    def meanwhile(forward: Forward) -> Answer:
        if next(again, False):
            secret.step("createSecret", token)
            return Answer(400, b'{"__type": "ResourceExistsException"}')  # as AWS does; moto would take the later one
        return forward()

    aws.faults["PutSecretValue"] = meanwhile
    secret.step("createSecret", token)
    value = secret.value(token)
    for step in STEPS[1:]:
        secret.step(step, token)
    assert secret.document.decode() == value


def test_what_an_operator_did_meanwhile_is_not_undone(secret) -> None:
    """A key is retired, past the command line, while a rotation is between its steps: it must not come back."""
    secret.rotated()
    token = secret.begin()
    leaked = secret.key_set.next("sign").kid
    aws_rotation_time = now_s() + 600
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aws_rotation, "now_s", lambda: aws_rotation_time)
        secret.step("createSecret", token)
    retired = secret.key_set.retired(leaked, now=now_s()).to_json()
    secret.edit(retired)
    assert "by now" in refusal(lambda: secret.step("testSecret", token))
    assert "by now" in refusal(lambda: secret.step("finishSecret", token))
    assert secret.document == retired
    assert not any("AWSPENDING" in labels for labels in secret.labels().values())  # so that the next can begin
    secret.rotated()
    assert secret.key_set.find(leaked).state == "retired"


def test_the_command_line_takes_over_and_the_rotation_ends(secret) -> None:
    token = secret.begin()
    secret.step("createSecret", token)
    before = secret.document
    after = KeySet.from_json(before).with_next("refresh", "HS256", now=now_s())[0].to_json()
    secret.source.store(after, expected=before)
    assert "not AWSPENDING" in refusal(lambda: secret.step("finishSecret", token))
    assert secret.document == after


@pytest.mark.parametrize(
    ("operation", "number"), [("GetSecretValue", 1), ("GetSecretValue", 2), ("UpdateSecretVersionStage", 1)]
)
def test_a_promotion_at_any_moment_of_the_last_step_is_seen(secret, aws, operation, number) -> None:
    """After the look at what is current, after that at what is pending, and before the label moves."""
    token = secret.begin()
    for step in STEPS[:3]:
        secret.step(step, token)
    theirs = secret.key_set.with_next("csrf", "HS256", now=now_s())[0].to_json()
    calls = count(1)

    def meanwhile(forward: Forward) -> Answer:
        answer = forward() if operation == "GetSecretValue" else None
        if next(calls) == number:
            secret.edit(theirs)
        return answer or forward()

    aws.faults[operation] = meanwhile
    assert "changed meanwhile" in refusal(lambda: secret.step("finishSecret", token))
    aws.faults.clear()
    assert secret.document == theirs


@pytest.mark.parametrize("step", ["testSecret", "finishSecret"])
@pytest.mark.parametrize("value", ["", "{", '{"keys": []}', "0123456789"])
def test_a_bad_set_is_never_promoted(secret, step, value) -> None:
    before = secret.document
    token = secret.begin()
    if value:
        secret.client.put_secret_value(
            SecretId=secret.name, ClientRequestToken=token, SecretString=value, VersionStages=["AWSPENDING"]
        )
    refusal(lambda: secret.step(step, token))
    assert secret.document == before


def test_a_set_whose_keys_do_not_work_is_never_promoted(secret, monkeypatch) -> None:
    token = secret.begin()
    secret.step("createSecret", token)
    proofs = []

    def proven(document: bytes) -> KeySet:
        proofs.append(document)
        raise errors.KeyRefused("does not accept what it has signed")

    monkeypatch.setattr(aws_rotation, "proven", proven)
    for step in STEPS[2:]:
        assert "does not accept" in refusal(lambda it=step: secret.step(it, token))
    assert len(proofs) == 2


@pytest.mark.long
def test_aws_in_trouble_ends_no_rotation(secret, aws) -> None:
    token = secret.begin()
    secret.step("createSecret", token)
    for step, passing in itertools.product(STEPS[2:], (0, 1)):  # the look at the current set passes, or not even that
        calls = count()
        aws.faults["GetSecretValue"] = lambda forward, calls=calls, passing=passing: (
            forward() if next(calls) < passing else aws_proxy.throttled(forward)
        )
        refusal(lambda it=step: secret.step(it, token))
        aws.faults.clear()
        assert "AWSPENDING" in secret.labels()[token]
    secret.step("finishSecret", token)
    assert secret.states() == ["active", "next"]


def test_lost_answers(secret, aws) -> None:
    token = secret.begin()
    for step, operation in zip(STEPS, ("PutSecretValue", "", "", "UpdateSecretVersionStage"), strict=True):
        calls = count()
        aws.faults[operation] = lambda forward, calls=calls: forward() if next(calls) else aws_proxy.lost(forward)
        secret.step(step, token)
    assert secret.states() == ["active", "next"]


def test_another_algorithm_and_a_wrong_one(secret, monkeypatch) -> None:
    monkeypatch.setenv("SEKISHO_SIGNING_ALGORITHM", "ES256")
    secret.rotated()
    assert secret.key_set.next("sign").alg == "ES256"
    for name, value in (("SEKISHO_SIGNING_ALGORITHM", "none"), ("SEKISHO_ROTATION_PURPOSE", "sing")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert name in refusal(lambda: secret.step("createSecret", secret.begin()))
    monkeypatch.setenv("SEKISHO_ROTATION_PURPOSE", "refresh")
    secret.rotated()
    assert secret.key_set.next("refresh").alg == "HS256"  # the variable is about signing


def test_the_algorithm_stays_that_of_the_active_key(secret) -> None:
    other = KeySet.generate("EdDSA", now=now_s()).to_json()
    secret.source.store(other, expected=secret.document)
    secret.rotated()
    assert secret.key_set.next("sign").alg == "EdDSA"


# --- calls that are none of Secrets Manager's ----------------------------------------------------------------------


def test_events_are_checked(secret, moto) -> None:
    token = secret.begin()
    good = {"SecretId": secret.name, "ClientRequestToken": token, "Step": "createSecret"}
    for member in good:
        event = {name: value for name, value in good.items() if name != member}
        assert member in refusal(lambda it=event: rotate(it, None))
    assert "Step" in refusal(lambda: rotate({**good, "Step": "deleteSecret"}, None))
    assert "names no version" in refusal(lambda: rotate({**good, "ClientRequestToken": str(uuid4())}, None))
    assert "refused" in refusal(lambda: rotate({**good, "SecretId": "sekisho/nonesuch"}, None))
    assert secret.states() == ["active"]


def test_a_secret_without_rotation_is_left_alone(secret) -> None:
    [token] = secret.labels()
    for step in STEPS:
        assert "rotation is not enabled" in refusal(lambda it=step: secret.step(it, token))


def test_a_version_that_is_not_pending_is_left_alone(secret) -> None:
    old = next(iter(secret.labels()))
    secret.rotated()
    assert secret.labels()[old] == ["AWSPREVIOUS"]
    for step in STEPS:
        assert "not AWSPENDING" in refusal(lambda it=step: secret.step(it, old))


def test_a_secret_without_keys(secret, aws) -> None:
    token = secret.begin()
    aws.faults["GetSecretValue"] = lambda _forward: Answer(400, b'{"__type": "ResourceNotFoundException"}')
    assert "sekisho keys new" in refusal(lambda: secret.step("createSecret", token))


def test_it_tells_what_it_did_and_no_secret(secret, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    secret.rotated()
    assert secret.key_set.next("sign").kid in caplog.text
    secrets = [jwk["k"] for jwk in json.loads(secret.document)["keys"]]
    assert not [text for text in secrets if text in caplog.text]
