"""How keys turn over: one rule for the command line and for whatever rotates by itself. Nobody is signed out by it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sekisho.errors import KeyRefused, TokenSignatureInvalid
from sekisho.tokens.algorithms import AlgorithmName
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.keys import STATES, Key, Purpose
from sekisho.wire import b64url_encode

# How long a key is published before it signs: longer than verifiers cache a key set, and than nodes take to look at
# their key source, so that none meets a token whose key it has never heard of.
PUBLISHED_FIRST_S: Final = 600

# When a key that no longer signs leaves the set: longer after than anything made with it can live under any settings
# (an hour, and 400 days). A key source is bounded (AWS takes 64 KiB), and a set that rotates weekly would fill it.
FORGOTTEN_AFTER_S: Final[Mapping[Purpose, int]] = {"sign": 86_400, "refresh": 401 * 86_400, "csrf": 401 * 86_400}

_PROOF: Final = b"sekisho key test"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The set after one turn. ``active`` signs from now on; None if this turn only published ``waiting``."""

    key_set: KeySet
    active: Key | None
    waiting: Key


def turned(key_set: KeySet, purpose: Purpose, algorithm: AlgorithmName, *, now: int, at_once: bool = False) -> Turn:
    """The next key becomes active, and another is published for the time after; the first turn only publishes.

    ``at_once``: without waiting until every verifier knows the new key. Raises ``KeyRefused`` when the next key has not
    been published for ten minutes.
    """
    key_set = _without_outlived(key_set, now=now)
    waiting = key_set.next(purpose)
    if waiting is not None and waiting.alg != algorithm:
        key_set, waiting = key_set.retired(waiting.kid, now=now), None  # made before the algorithm was changed
    if waiting is None:
        key_set, waiting = key_set.with_next(purpose, algorithm, now=now)
        if not at_once:
            return Turn(key_set=key_set, active=None, waiting=waiting)
    missing_s = waiting.created_at + PUBLISHED_FIRST_S - now
    if missing_s > 0 and not at_once:
        raise KeyRefused(
            f"{waiting.purpose} key {waiting.kid} ({waiting.alg}) has not been published for long enough: "
            f"repeat this in {missing_s} s, or type sekisho keys rotate --now"
        )
    key_set, active = key_set.promoted(purpose, now=now)
    key_set, waiting = key_set.with_next(purpose, algorithm, now=now)
    return Turn(key_set=key_set, active=active, waiting=waiting)


def proven(document: bytes) -> KeySet:
    """The key set that a source stores, each key of it tried out. Raises ``KeyRefused``."""
    key_set = KeySet.from_json(document)
    for key in key_set.keys:
        try:
            key.material.verify(_PROOF, b64url_encode(key.material.sign(_PROOF)))
        except TokenSignatureInvalid:  # a public part that belongs to another private one
            raise KeyRefused(f"key {key.kid} does not accept what it has signed") from None
    return key_set


def refuse_unless_follows(later: KeySet, earlier: KeySet) -> None:
    """Raises ``KeyRefused`` unless ``later`` can be what one turn made of ``earlier``: no key has gone backwards.

    A set made from an older one would bring a retired key back, or lose one that signs. (One that was retired
    and forgotten since is not recognised; that takes a day, and a rotation is over within hours.)
    """
    states = {key.kid: STATES.index(key.state) for key in later.keys}
    for key in earlier.keys:
        if states.get(key.kid, len(STATES) if _is_done(key) else -1) < STATES.index(key.state):
            raise KeyRefused(f"key {key.kid} is {key.state} by now: the set was made from an older one")


def _is_done(key: Key) -> bool:
    return key.state in {"verify_only", "retired"}


def _without_outlived(key_set: KeySet, *, now: int) -> KeySet:
    return KeySet(
        key
        for key in key_set.keys
        if not (_is_done(key) and 0 < key.state_since <= now - FORGOTTEN_AFTER_S[key.purpose])
    )
