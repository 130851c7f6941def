"""The rotation of a key set by Secrets Manager itself: four steps of a function that it calls (an AWS Lambda).

One rotation makes one turn of the keys, as ``sekisho keys rotate`` does: the next key signs, and another is published.
Secrets Manager may repeat any step, with the same token.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from sekisho.errors import KeyRefused, KeySourceUnavailable
from sekisho.sources.secrets_manager import CURRENT, PENDING, SecretsManager, Version
from sekisho.tokens.algorithms import ALGORITHMS, AlgorithmName
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.keys import PURPOSES, Purpose
from sekisho.tokens.turnover import proven, refuse_unless_follows, turned
from sekisho.wire import now_s

PURPOSE_VARIABLE: Final = "SEKISHO_ROTATION_PURPOSE"
ALGORITHM_VARIABLE: Final = "SEKISHO_SIGNING_ALGORITHM"

_logger: Final = logging.getLogger("sekisho.rotation")


def rotate(event: Mapping[str, Any], _context: object) -> None:
    """The handler to deploy: ``sekisho.sources.aws.rotate``. Region and credentials are the function's own.

    Raises ``KeyRefused``, after which Secrets Manager repeats the rotation later; the current key set stays.
    """
    try:
        secret = SecretsManager(event["SecretId"])
        token, step = str(event["ClientRequestToken"]), str(event["Step"])
    except KeyError as error:
        raise KeyRefused(f"the event of a rotation has {error.args[0]}; this one has not") from None
    if step not in _STEPS:
        raise KeyRefused("Step is none of createSecret, setSecret, testSecret, finishSecret")
    about = secret.describe()
    if not about.get("RotationEnabled"):
        raise KeyRefused(f"rotation is not enabled for the secret {secret.secret_id}")
    stages = about.get("VersionIdsToStages", {}).get(token)
    if stages is None:
        raise KeyRefused("ClientRequestToken names no version of the secret")
    if CURRENT in stages:
        _logger.info("%s: version %s is current already", step, token)
        return
    if PENDING not in stages:
        raise KeyRefused("the version that ClientRequestToken names is not AWSPENDING: another was put meanwhile")
    _STEPS[step](secret, token, event)
    _logger.info("%s: version %s is done", step, token)


def _create(secret: SecretsManager, token: str, event: Mapping[str, Any]) -> None:
    """Makes the next key set, once for a token."""
    if secret.read(token) is not None:
        return
    purpose = _purpose()
    current = KeySet.from_json(_current(secret).document)
    turn = turned(current, purpose, _algorithm(current, purpose), now=now_s())
    try:
        secret.put(token, turn.key_set.to_json(), rotation_token=event.get("RotationToken"))
    except KeyRefused:
        if secret.read(token) is None:  # else another call with this token was faster, and its set counts
            raise
    _logger.info("active: %s, waiting: %s", turn.active and turn.active.kid, turn.waiting.kid)


def _set(_secret: SecretsManager, _token: str, _event: Mapping[str, Any]) -> None:
    """There is no other place that has to learn the keys."""


def _test(secret: SecretsManager, token: str, _event: Mapping[str, Any]) -> None:
    """Every key of the set signs and verifies, and nothing of the current set is undone."""
    refuse_unless_follows(proven(_pending(secret, token)), KeySet.from_json(_current(secret).document))


def _finish(secret: SecretsManager, token: str, _event: Mapping[str, Any]) -> None:
    """The set becomes the current one, unless an operator has changed that since it was made."""
    current = _current(secret)
    try:
        refuse_unless_follows(proven(_pending(secret, token)), KeySet.from_json(current.document))
    except KeySourceUnavailable:
        raise
    except KeyRefused:
        with contextlib.suppress(KeyRefused):
            secret.drop_pending(token)  # it will never do; the next rotation begins with what is current by then
        raise
    secret.make_current(token, instead_of=current.id)
    with contextlib.suppress(KeyRefused):
        secret.drop_pending(token)


_STEPS: Final[Mapping[str, Callable[[SecretsManager, str, Mapping[str, Any]], None]]] = {
    "createSecret": _create,
    "setSecret": _set,
    "testSecret": _test,
    "finishSecret": _finish,
}


def _current(secret: SecretsManager) -> Version:
    current = secret.read()
    if current is None:
        raise KeyRefused(f"there are no keys in the secret {secret.secret_id} yet: type sekisho keys new")
    return current


def _pending(secret: SecretsManager, token: str) -> bytes:
    pending = secret.read(token)
    if pending is None:
        raise KeyRefused("the version that ClientRequestToken names has no value: createSecret comes first")
    return pending.document


def _purpose() -> Purpose:
    purpose = os.environ.get(PURPOSE_VARIABLE, "sign")
    if purpose not in PURPOSES:
        raise KeyRefused(f"{PURPOSE_VARIABLE} must be one of {', '.join(PURPOSES)}")
    return purpose


def _algorithm(current: KeySet, purpose: Purpose) -> AlgorithmName:
    """The active key's, unless another was set for signing."""
    algorithm = os.environ.get(ALGORITHM_VARIABLE) if purpose == "sign" else None
    if algorithm is None:
        return current.active(purpose).alg
    if algorithm not in ALGORITHMS:
        raise KeyRefused(f"{ALGORITHM_VARIABLE} must be one of {', '.join(ALGORITHMS)}")
    return algorithm
