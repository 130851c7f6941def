"""P1, P2, P4, P7: what is hashed, what is accepted, and that a refusal costs the same work whatever its cause."""

import re
import subprocess
import sys
import traceback
from contextlib import suppress
from typing import Any

import bcrypt
import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import example, given
from hypothesis import strategies as st

from sekisho import errors, passwords
from sekisho.passwords import (
    BCRYPT_12,
    CHEAPEST,
    OWASP,
    OWASP_HIGH_MEMORY,
    RFC_9106_LOW_MEMORY,
    Argon2idProfile,
    BcryptProfile,
    PasswordHasher,
)

BCRYPT_CHEAPEST = BcryptProfile(cost_log2=4)
BCRYPT_VECTOR = "$2b$04$cVWp4XaNU8a4v1uMRum2SO026BWLIoQMD/TXg5uZV.0P.uO8m3YEm"
BCRYPT_VECTOR_PASSWORD = "Kk4DQuMMfZL9o"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@pytest.fixture(params=[CHEAPEST, BCRYPT_CHEAPEST], ids=["argon2id", "bcrypt"])
def hasher(request: pytest.FixtureRequest) -> PasswordHasher:
    return PasswordHasher(request.param)


class Work:
    """Counts what is computed: each entry is the cost of one derivation."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []

    def take(self) -> list[tuple[Any, ...]]:
        done, self.done = self.done, []
        return done


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    counted = Work()
    real_argon2id, real_checkpw = Argon2id, bcrypt.checkpw

    class CountingArgon2id:
        def __init__(self, **parameters: Any) -> None:
            self.real = real_argon2id(**parameters)
            self.cost = ("argon2id", parameters["memory_cost"], parameters["iterations"], parameters["lanes"])

        def verify(self, secret: bytes, tag: bytes) -> None:
            counted.done.append(self.cost)
            self.real.verify(secret, tag)

        def derive_phc_encoded(self, secret: bytes) -> str:
            counted.done.append(self.cost)
            return self.real.derive_phc_encoded(secret)

    def counting_checkpw(secret: bytes, stored: bytes) -> bool:
        counted.done.append(("bcrypt", int(stored[4:6])))
        return real_checkpw(secret, stored)

    monkeypatch.setattr("sekisho.passwords.Argon2id", CountingArgon2id)
    monkeypatch.setattr(bcrypt, "checkpw", counting_checkpw)
    return counted


# --- right and wrong -----------------------------------------------------------------------------------------------


@given(TEXT, TEXT)
@example("", "\0")
@example("pass\0A", "pass\0B")
@example("Password", "password")
@example("password ", "password")
def test_a_password_is_accepted_and_any_other_is_refused(password: str, other: str) -> None:
    hasher = PasswordHasher(CHEAPEST)
    stored = hasher.hash(password)
    hasher.verify(password, stored)
    if passwords.normalise(other) != passwords.normalise(password):
        with pytest.raises(errors.WrongCredentials):
            hasher.verify(other, stored)


@pytest.mark.parametrize(("password", "other"), [("pass\0A", "pass\0B"), ("a b", "ab"), ("a ", "a"), ("A", "a")])
def test_nothing_is_cut_trimmed_or_folded(hasher: PasswordHasher, password: str, other: str) -> None:
    stored = hasher.hash(password)
    hasher.verify(password, stored)
    with pytest.raises(errors.WrongCredentials):
        hasher.verify(other, stored)


def test_argon2id_hashes_byte_73_too() -> None:
    hasher = PasswordHasher(CHEAPEST)
    stored = hasher.hash("x" * 72 + "A")
    hasher.verify("x" * 72 + "A", stored)
    for other in ("x" * 72 + "B", "x" * 72):
        with pytest.raises(errors.WrongCredentials):
            hasher.verify(other, stored)


@pytest.mark.parametrize(("at_signup", "at_login"), [("\u00e9", "e\u0301"), ("e\u0301", "\u00e9"), ("が", "か\u3099")])
def test_the_two_spellings_of_a_letter_sign_in_alike(hasher: PasswordHasher, at_signup: str, at_login: str) -> None:
    hasher.verify(at_login, hasher.hash(at_signup))


def test_256_code_points_in_their_longest_spelling_are_hashed() -> None:
    hasher = PasswordHasher(CHEAPEST)
    longest = "\u03b1\u0313\u0300\u0345" * 256  # one code point each after NFC
    assert len(passwords.normalise(longest)) == 256
    hasher.verify(longest, hasher.hash(longest))
    with pytest.raises(errors.PasswordTooLong):
        hasher.hash(longest + "a")


def test_hashes_have_the_standard_form_and_a_salt_of_their_own() -> None:
    argon2id, other = PasswordHasher(OWASP).hash("x"), PasswordHasher(OWASP).hash("x")
    assert argon2id.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    salt, tag = argon2id.split("$")[4:]
    assert (len(salt), len(tag)) == (22, 43)  # 16 and 32 bytes
    assert salt != other.split("$")[4]
    stored = PasswordHasher(BCRYPT_CHEAPEST).hash("x")
    assert stored.startswith("$2b$04$")
    assert len(stored) == 60


def test_hashes_made_elsewhere_are_read() -> None:
    hasher = PasswordHasher(CHEAPEST)
    # As the reference implementation makes it: echo -n password | argon2 somesalt -id -t 2 -m 16 -p 1
    reference = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
    hasher.verify("password", reference)
    with pytest.raises(errors.WrongCredentials):
        hasher.verify("Password", reference)
    hasher.verify(BCRYPT_VECTOR_PASSWORD, BCRYPT_VECTOR)
    with pytest.raises(errors.WrongCredentials):
        hasher.verify(BCRYPT_VECTOR_PASSWORD + "x", BCRYPT_VECTOR)


# --- 72 bytes ------------------------------------------------------------------------------------------------------


def test_bcrypt_refuses_to_hash_what_it_would_cut() -> None:
    hasher = PasswordHasher(BCRYPT_CHEAPEST)
    hasher.verify("x" * 72, hasher.hash("x" * 72))
    hasher.verify("é" * 36, hasher.hash("é" * 36))
    for password in ("x" * 73, "é" * 37):
        with pytest.raises(errors.PasswordTooLong):
            hasher.hash(password)
    assert hasher.max_password_bytes == 72
    assert PasswordHasher(CHEAPEST).max_password_bytes is None


def test_an_imported_bcrypt_hash_refuses_more_than_72_bytes_with_the_same_work(work: Work) -> None:
    hasher = PasswordHasher(CHEAPEST)
    for password in ("x" * 72, ""):
        stored = PasswordHasher(BCRYPT_CHEAPEST).hash(password)
        hasher.verify(password, stored)
        work.take()
        with pytest.raises(errors.WrongCredentials):
            hasher.verify("x" * 73, stored)
        assert work.take() == [("bcrypt", 4)]


# --- the decoy -----------------------------------------------------------------------------------------------------


def test_an_unknown_account_costs_what_a_known_one_costs(hasher: PasswordHasher, work: Work) -> None:
    stored = hasher.hash("right")
    work.take()
    hasher.verify("right", stored)
    cost = work.take()
    assert len(cost) == 1
    for password in ("right", "", "x" * 73, "\ud800", "x" * 2000):
        with suppress(errors.WrongCredentials):
            hasher.verify(password, stored)
        assert work.take() == cost, "known account"
        with pytest.raises(errors.WrongCredentials):
            hasher.verify_decoy(password)
        assert work.take() == cost, "unknown account"
        with pytest.raises(errors.WrongCredentials, match="unknown hash format"):
            hasher.verify(password, "!")
        assert work.take() == cost, "unreadable hash"


@pytest.mark.parametrize("profile", [CHEAPEST, BCRYPT_CHEAPEST], ids=["argon2id", "bcrypt"])
def test_the_decoy_refuses_even_its_own_password(profile: passwords.Profile) -> None:
    hasher = PasswordHasher(profile)
    object.__setattr__(hasher, "_decoy", passwords._parse(PasswordHasher(profile).hash("x")))
    with pytest.raises(errors.WrongCredentials):
        hasher.verify_decoy("x")
    with pytest.raises(errors.WrongCredentials, match="unknown hash format"):
        hasher.verify("x", "!")


def test_making_a_hasher_computes_nothing_and_each_has_a_decoy_of_its_own(work: Work) -> None:
    one, other = PasswordHasher(OWASP), PasswordHasher(OWASP)
    assert one._decoy != other._decoy
    assert PasswordHasher(BCRYPT_12)._decoy != PasswordHasher(BCRYPT_12)._decoy
    assert work.take() == []


# --- stored text that cannot be trusted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "plain text",
        "$argon2id$v=19$m=4294967295,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$v=19$m=4194304,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",  # 4 GiB
        "$argon2id$v=19$m=524288,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",  # 512 MiB
        "$argon2id$v=19$m=8,t=4294967295,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$v=19$m=262144,t=5,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$v=19$m=65536,t=2,p=17$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$v=19$m=15,t=2,p=2$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$v=19$m=8,t=0,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$v=19$m=08,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$v=19$m=8,t=1,p=1,keyid=AA$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$v=16$m=8,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$m=8,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHR$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",  # unused bits set
        "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRhb$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",  # impossible length
        "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO0",  # 8-byte tag
        "$argon2id$v=19$m=8,t=1,p=1$$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc\n",
        "$argon2id$v=19$m=٨,t=1,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        BCRYPT_VECTOR.replace("$2b$04", "$2b$31"),
        BCRYPT_VECTOR.replace("$2b$04", "$2b$16"),
        BCRYPT_VECTOR.replace("$2b$04", "$2b$03"),
        BCRYPT_VECTOR.replace("$2b$", "$2a$"),
        BCRYPT_VECTOR.replace("$2b$", "$2y$"),
        BCRYPT_VECTOR.replace("$2b$", "$2x$"),
        BCRYPT_VECTOR[:-1],
        BCRYPT_VECTOR + "y",
        BCRYPT_VECTOR[:28] + "P" + BCRYPT_VECTOR[29:],  # unused bits of the salt set
        "\ud800",
    ],
)
def test_an_unreadable_or_too_costly_hash_is_refused_for_the_price_of_the_decoy(stored: str, work: Work) -> None:
    hasher = PasswordHasher(CHEAPEST)
    with pytest.raises(errors.WrongCredentials) as caught:
        hasher.verify("x", stored)
    assert caught.value.detail == "unknown hash format"
    assert work.take() == [("argon2id", 8, 1, 1)]
    assert hasher.needs_rehash(stored)


VALID_ARGON2ID = PasswordHasher(CHEAPEST).hash("right")


@given(st.data())
def test_a_damaged_hash_never_raises_anything_else(data: st.DataObject) -> None:
    valid = data.draw(st.sampled_from([VALID_ARGON2ID, BCRYPT_VECTOR]))
    start = data.draw(st.integers(0, len(valid)))
    end = data.draw(st.integers(start, min(len(valid), start + 4)))
    damage = st.text(st.sampled_from("$,=0123456789abmtpvKQ./+\0é\n"), max_size=4)
    stored = valid[:start] + data.draw(damage) + valid[end:]
    if stored != valid:
        with pytest.raises(errors.WrongCredentials):
            PasswordHasher(CHEAPEST).verify("wrong", stored)


@given(st.text())
def test_any_text_in_the_place_of_a_hash_is_a_wrong_password(stored: str) -> None:
    with pytest.raises(errors.WrongCredentials):
        PasswordHasher(CHEAPEST).verify("x", stored)


@given(st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3), TEXT)
def test_a_lone_surrogate_is_a_wrong_password_and_cannot_be_chosen(surrogates: str, text: str) -> None:
    hasher = PasswordHasher(CHEAPEST)
    with pytest.raises(errors.WrongCredentials):
        hasher.verify(text + surrogates, VALID_ARGON2ID)
    with pytest.raises(errors.InputError) as caught:
        hasher.hash(surrogates + text)
    assert type(caught.value) is errors.InputError
    assert caught.value.detail == "lone surrogate"


def test_a_text_no_account_can_have_is_not_taken_for_the_empty_password() -> None:
    hasher = PasswordHasher(CHEAPEST)
    for password in ("\ud800", "x" * 2000):
        with pytest.raises(errors.WrongCredentials):
            hasher.verify(password, hasher.hash(""))


# --- rehash --------------------------------------------------------------------------------------------------------

TAG_32 = "CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"


def phc(memory_kib: int, iterations: int, lanes: int = 1, salt: str = "A" * 22, tag: str = TAG_32) -> str:
    return f"$argon2id$v=19$m={memory_kib},t={iterations},p={lanes}${salt}${tag}"


@pytest.mark.parametrize(
    ("profile", "stored", "expected"),
    [
        (OWASP, phc(19_456, 2), False),
        (OWASP, phc(19_455, 2), True),
        (OWASP, phc(19_456, 1), True),
        (OWASP, phc(12_288, 3), True),
        (OWASP, phc(9_728, 9), True),
        (OWASP, phc(19_456, 3), False),
        (OWASP, phc(47_104, 1), False),
        (OWASP, phc(65_536, 3, 4), False),
        (OWASP_HIGH_MEMORY, phc(19_456, 2), True),
        (RFC_9106_LOW_MEMORY, phc(65_536, 3, 4), False),
        (RFC_9106_LOW_MEMORY, phc(65_536, 2, 4), True),
        (OWASP, phc(19_456, 2, salt="A" * 11), True),
        (OWASP, phc(19_456, 2, tag="A" * 22), True),
        (OWASP, BCRYPT_VECTOR, True),
        (BCRYPT_12, BCRYPT_VECTOR.replace("$04$", "$12$"), False),
        (BCRYPT_12, BCRYPT_VECTOR.replace("$04$", "$11$"), True),
        (BCRYPT_12, BCRYPT_VECTOR.replace("$04$", "$13$"), False),
        (BCRYPT_12, phc(65_536, 3, 4), True),
    ],
)
def test_weaker_and_other_hashes_are_replaced_and_stronger_ones_left(
    profile: passwords.Profile, stored: str, expected: bool, work: Work
) -> None:
    assert PasswordHasher(profile).needs_rehash(stored) is expected
    assert work.take() == []


@pytest.mark.parametrize(
    "profile", [OWASP, OWASP_HIGH_MEMORY, RFC_9106_LOW_MEMORY, CHEAPEST, BCRYPT_CHEAPEST], ids=repr
)
def test_what_a_profile_makes_it_accepts_and_keeps(profile: passwords.Profile) -> None:
    hasher = PasswordHasher(profile)
    stored = hasher.hash("x")
    hasher.verify("x", stored)
    assert not hasher.needs_rehash(stored)


@pytest.mark.parametrize(
    "profile",
    [
        Argon2idProfile(memory_kib=4 * 1024 * 1024, iterations=1, lanes=1),
        Argon2idProfile(memory_kib=8, iterations=65, lanes=1),
        Argon2idProfile(memory_kib=8, iterations=1, lanes=2),
        BcryptProfile(cost_log2=16),
        BcryptProfile(cost_log2=3),
    ],
    ids=repr,
)
def test_a_profile_whose_hashes_would_be_refused_does_not_start(profile: passwords.Profile) -> None:
    with pytest.raises(errors.StartRefused):
        PasswordHasher(profile)


# --- what gets out -------------------------------------------------------------------------------------------------


def test_no_representation_or_error_holds_password_salt_or_hash(hasher: PasswordHasher) -> None:
    password = "tell-nobody\ud800"
    stored = hasher.hash("tell-nobody")
    parsed = passwords._parse(stored)
    shown = [repr(hasher), repr(parsed), repr(hasher._decoy), repr(vars(hasher))]
    attempts = (
        lambda: hasher.verify(password, stored),
        lambda: hasher.verify("tell-nobody-else", stored),
        lambda: hasher.verify("tell-nobody", stored[:-1]),
        lambda: hasher.verify_decoy(password),
        lambda: hasher.hash(password),
        lambda: hasher.hash("tell-nobody" * 100),
    )
    for attempt in attempts:
        with pytest.raises(errors.SekishoError) as caught:
            attempt()
        cause: BaseException | None = caught.value
        while cause is not None:  # also what `from None` only hides: error reporters look there
            shown += [repr(cause), repr(vars(cause)), *traceback.format_exception_only(cause)]
            assert not isinstance(cause, UnicodeError)  # it carries the text
            cause = cause.__context__
    for text in shown:
        assert "tell-nobody" not in text
        assert stored[-31:] not in text
        assert stored.split("$")[-2] not in text or hasher.max_password_bytes
        assert stored[7:29] not in text
        assert not re.search(r"\b(salt|tag|text)=", text)


def test_importing_it_loads_no_bcrypt_and_no_server_library() -> None:
    code = (
        "import sys; from sekisho.passwords import *; PasswordHasher(CHEAPEST).hash('x')\n"
        "print(*{name.partition('.')[0] for name in sys.modules} & "
        "{'bcrypt', 'sqlalchemy', 'fastapi', 'pydantic', 'asyncio', 'structlog', 'redis'})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
