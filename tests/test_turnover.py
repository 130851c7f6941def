"""How keys turn over: when a key signs, when it is forgotten, and that no set is replaced by an older one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.errors import KeyRefused
from sekisho.settings import MAX_ACCESS_TTL_S, MAX_SESSION_AGE_S
from sekisho.tokens import KeySet
from sekisho.tokens.algorithms import ALGORITHMS, Hs256
from sekisho.tokens.keys import PURPOSES
from sekisho.tokens.turnover import FORGOTTEN_AFTER_S, PUBLISHED_FIRST_S, proven, refuse_unless_follows, turned

NOW = 1_800_000_000
FIRST = KeySet.generate("HS256", now=NOW)


def states(key_set: KeySet, purpose: str = "sign") -> list[str]:
    return [key.state for key in key_set.keys if key.purpose == purpose]


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_first_turn_publishes_and_the_next_promotes(purpose) -> None:
    first = turned(FIRST, purpose, "HS256", now=NOW)
    assert first.active is None
    assert first.key_set.next(purpose) == first.waiting
    assert first.key_set.active(purpose) == FIRST.active(purpose)
    second = turned(first.key_set, purpose, "HS256", now=NOW + PUBLISHED_FIRST_S)
    assert second.active is not None
    assert second.active.kid == first.waiting.kid == second.key_set.active(purpose).kid
    assert states(second.key_set, purpose) == ["verify_only", "active", "next"]
    assert all(states(second.key_set, other) == ["active"] for other in PURPOSES if other != purpose)


def test_a_key_waits_ten_minutes_to_the_second() -> None:
    key_set = turned(FIRST, "sign", "HS256", now=NOW).key_set
    for early_s, words in ((1, "in 1 s"), (PUBLISHED_FIRST_S, "in 600 s")):
        with pytest.raises(KeyRefused, match=words):
            turned(key_set, "sign", "HS256", now=NOW + PUBLISHED_FIRST_S - early_s)
    assert turned(key_set, "sign", "HS256", now=NOW, at_once=True).active is not None


def test_at_once_needs_no_earlier_turn() -> None:
    turn = turned(FIRST, "sign", "EdDSA", now=NOW, at_once=True)
    assert states(turn.key_set) == ["verify_only", "active", "next"]
    assert turn.key_set.active("sign").alg == turn.waiting.alg == "EdDSA"


def test_a_key_that_waits_for_another_algorithm_never_signs() -> None:
    key_set = turned(FIRST, "sign", "HS256", now=NOW).key_set
    turn = turned(key_set, "sign", "EdDSA", now=NOW + PUBLISHED_FIRST_S)
    assert turn.active is None
    assert states(turn.key_set) == ["active", "retired", "next"]
    assert turn.waiting.alg == "EdDSA"


def test_keys_are_forgotten_after_nothing_made_with_them_can_live() -> None:
    assert FORGOTTEN_AFTER_S["sign"] > MAX_ACCESS_TTL_S + 3600
    assert min(FORGOTTEN_AFTER_S[purpose] for purpose in ("refresh", "csrf")) > MAX_SESSION_AGE_S + 3600
    for purpose in PURPOSES:
        key_set, time = FIRST, NOW
        for _ in range(2):
            key_set, time = turned(key_set, purpose, "HS256", now=time).key_set, time + PUBLISHED_FIRST_S
        assert states(key_set, purpose) == ["verify_only", "active", "next"]
        since = next(key.state_since for key in key_set.keys if key.state == "verify_only")
        before = turned(key_set, purpose, "HS256", now=since + FORGOTTEN_AFTER_S[purpose] - 1).key_set
        assert states(before, purpose) == ["verify_only", "verify_only", "active", "next"]
        after = turned(key_set, purpose, "HS256", now=since + FORGOTTEN_AFTER_S[purpose]).key_set
        assert states(after, purpose) == ["verify_only", "active", "next"]


def test_a_key_of_unknown_age_is_kept() -> None:
    document = json.loads(turned(FIRST, "sign", "HS256", now=NOW, at_once=True).key_set.to_json())
    for jwk in document["keys"]:
        jwk.pop("state_since")
    key_set = KeySet.from_json(json.dumps(document).encode())
    turn = turned(key_set, "sign", "HS256", now=NOW + PUBLISHED_FIRST_S)
    assert states(turn.key_set) == ["verify_only", "verify_only", "active", "next"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_year_of_weekly_turns_fits_into_a_secret(algorithm) -> None:
    key_set, time = KeySet.generate(algorithm, now=NOW), NOW
    largest = 0
    for _ in range(53 if algorithm != "RS256" else 3):
        time += 7 * 86_400
        key_set = turned(key_set, "sign", algorithm, now=time).key_set
        largest = max(largest, len(key_set.to_json()))
    assert states(key_set) == ["verify_only", "active", "next"]
    assert largest < 65_536 / 4


# --- proof ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_set_is_proven(algorithm) -> None:
    key_set = KeySet.generate(algorithm, now=NOW)
    assert proven(key_set.to_json()).to_json() == key_set.to_json()


def test_each_key_has_to_accept_what_it_has_signed(monkeypatch) -> None:
    document = FIRST.to_json()
    tried: list[str] = []

    def sign(self: Hs256, message: bytes) -> bytes:
        tried.append("")
        return b"\0" * 32 if len(tried) == 3 else real(self, message)

    real = Hs256.sign
    monkeypatch.setattr(Hs256, "sign", sign)
    with pytest.raises(KeyRefused, match=f"key {FIRST.keys[2].kid} does not accept"):
        proven(document)


# --- order ---------------------------------------------------------------------------------------------------------


def in_use(key_set: KeySet) -> dict[str, str]:
    return {key.kid: key.state for purpose in PURPOSES for key in key_set.used(purpose)}


def _retired(key_set: KeySet, time: int) -> KeySet:
    done = [key for key in key_set.keys if key.state in {"verify_only", "next"}]
    return key_set.retired(done[0].kid, now=time) if done else key_set


@given(st.lists(st.sampled_from(["sign", "refresh", "retire", "new algorithm"]), min_size=1, max_size=8))
def test_a_set_follows_the_one_it_was_made_from_and_none_that_came_after(steps: list[str]) -> None:
    history, time = [FIRST], NOW
    for step in steps:
        time += PUBLISHED_FIRST_S
        last = history[-1]
        if step == "retire":
            made = _retired(last, time)
        else:
            algorithm = "EdDSA" if step == "new algorithm" else "HS256"
            made = turned(last, "refresh" if step == "refresh" else "sign", algorithm, now=time).key_set
        if made.to_json() != last.to_json():
            history.append(made)
    for number, earlier in enumerate(history):
        for later in history[number : number + 2]:
            refuse_unless_follows(later, earlier)
        for later in history[number:]:
            if in_use(later) != in_use(earlier):  # a key that came and was retired again makes no difference
                with pytest.raises(KeyRefused, match="by now"):
                    refuse_unless_follows(earlier, later)


def test_two_turns_of_one_set_do_not_follow_each_other() -> None:
    one, other = (turned(FIRST, "sign", "HS256", now=NOW).key_set for _ in range(2))
    for later, earlier in ((one, other), (other, one)):
        with pytest.raises(KeyRefused):
            refuse_unless_follows(later, earlier)
