"""P1, P2, P3: which passwords may be chosen, and the list of those that may not."""

import importlib.util
import unicodedata
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sekisho import errors
from sekisho.services import password_policy

ROOT = Path(__file__).resolve().parent.parent
check: Any = partial(
    password_policy.check_new_password,
    email="alice@example.com",
    min_length=15,
    max_bytes=None,
    service_names=["Sekisho"],
)
GOOD = "7 grey otters hum"


@pytest.mark.parametrize("length", [15, 64, 72, 73, 255, 256])
def test_accepted_lengths(length: int) -> None:
    check(("otter hum " * 30)[: length - 1] + "x")


@pytest.mark.parametrize("length", [0, 1, 14])
def test_too_short(length: int) -> None:
    with pytest.raises(errors.PasswordTooShort) as caught:
        check("otter hum grey"[:length])
    assert caught.value.field == "password"


@pytest.mark.parametrize("length", [257, 1024, 1025, 100_000])
def test_too_long(length: int) -> None:
    with pytest.raises(errors.PasswordTooLong):
        check("a b" * (length // 3) + "x" * (length % 3))


def test_the_minimum_is_the_settings() -> None:
    check("grey otr", min_length=8)
    with pytest.raises(errors.PasswordTooShort):
        check("grey otr", min_length=9)


def test_length_is_counted_in_code_points_after_nfc() -> None:
    check("🦦🐙🦊🐢🦉🐝🦋🐌🐞🦀🐡🐬🦭🐳🦥")  # fifteen, 60 bytes
    decomposed = unicodedata.normalize("NFD", "éèêëàâîïôûùçñü")
    assert len(decomposed) == 28
    with pytest.raises(errors.PasswordTooShort):
        check(decomposed)
    check("\u1f82" * 256)
    check(unicodedata.normalize("NFD", "\u1f82" * 256))  # 1024 code points as sent
    with pytest.raises(errors.PasswordTooLong):
        check("\u1f82" * 257)


def test_bcrypt_counts_bytes() -> None:
    check("otter hum " * 7 + "xy", max_bytes=72)
    check("é" * 34 + "otr!", max_bytes=72)
    check(unicodedata.normalize("NFD", "é" * 34) + "otr!", max_bytes=72)  # 106 bytes as sent
    for password in ("otter hum " * 7 + "xyz", "é" * 34 + "otter"):
        with pytest.raises(errors.PasswordTooLong):
            check(password, max_bytes=72)


@pytest.mark.parametrize(
    "password", ["       otterhum", "otter\0hum\0grey\0", "ottergreyhumming", "OTTERGREYHUMMING", "\t" * 14 + "x"]
)
def test_no_composition_rules_and_nothing_is_trimmed(password: str) -> None:
    check(password)


def test_a_lone_surrogate_is_not_text() -> None:
    with pytest.raises(errors.InputError) as caught:
        check(GOOD + "\udfff", field="new_password")
    assert type(caught.value) is errors.InputError
    assert (caught.value.field, caught.value.detail) == ("new_password", "lone surrogate")


@pytest.mark.parametrize(
    "password",
    [
        "passwordpassword",
        "PasswordPassword",
        "correct horse battery staple",
        "correcthorsebatterystaple",
        "arigatougozaimasu",
        "1qaz2wsx3edc4rfv",
        "123456789012345",
        "iloveyou1234567",
        "ｐassword1234567".replace("ｐ", "p"),
        "あいうえおかきくけこさしすせそ",
        unicodedata.normalize("NFD", "パスワードパスワードパスワード"),
    ],
)
def test_common_passwords_are_refused_whatever_their_case(password: str) -> None:
    with pytest.raises(errors.PasswordCommon) as caught:
        check(password, field="new_password")
    assert caught.value.field == "new_password"


@pytest.mark.parametrize(
    "password", ["password", "12345678", "qwertyui", "iloveyou", "Password1", "letmein123", "p@ssw0rd"]
)
def test_a_lower_minimum_still_refuses_the_well_known_short_ones(password: str) -> None:
    with pytest.raises(errors.PasswordCommon):
        check(password, min_length=8)


def test_the_whole_password_is_compared() -> None:
    check("my passwordpassword x")
    check("passwordpassword\0")
    check("# Common passwords, one a line: NFC, case-folded, sorted. Lines that start with '#' are comments.")


@pytest.mark.parametrize(
    ("email", "password"),
    [
        ("alice.w@example.com", "alice.w@example.com"),
        ("alice.w@example.com", "Alice.W@EXAMPLE.com"),
        ("Alice.W@Example.com", "alice.w@example.com"),
        ("alice.wonderland@example.com", "Alice.Wonderland"),
        ("josé.garcía.lópez@example.com", unicodedata.normalize("NFD", "JOSÉ.GARCÍA.LÓPEZ")),
        ("a@bücher.example", "a@xn--bcher-kva.example"),
        ("alice@example.com", "The Otter Service"),
        ("alice@example.com", "THE OTTER SERVICE"),
    ],
)
def test_the_own_address_and_the_service_are_refused(email: str, password: str) -> None:
    canonical = "a@xn--bcher-kva.example" if "bücher" in email else None
    with pytest.raises(errors.PasswordContainsContext) as caught:
        check(password, email=email, canonical_email=canonical, service_names=["Sekisho", "The Otter Service"])
    assert caught.value.field == "password"
    check(password + " and a tail", email=email, service_names=["Sekisho", "The Otter Service"])


def test_the_list_is_read_once() -> None:
    assert password_policy.common_passwords() is password_policy.common_passwords()


# --- the list ------------------------------------------------------------------------------------------------------


def entries() -> list[str]:
    text = (ROOT / "src/sekisho/data/common_passwords.txt").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line and not line.startswith("#")]


def test_the_list_is_long_enough_where_the_length_rule_does_not_refuse_already() -> None:
    lengths = [len(entry) for entry in entries()]
    assert sum(15 <= length <= 256 for length in lengths) >= 3000
    assert sum(8 <= length < 15 for length in lengths) >= 500
    assert len(lengths) == len(password_policy.common_passwords())  # no duplicates, and no other line breaks


def test_each_entry_can_be_met() -> None:
    for entry in entries():
        assert entry == password_policy._fold(entry) == entry.strip()
    assert entries() == sorted(entries())


def test_the_list_is_what_its_generator_makes() -> None:
    script = ROOT / "tools" / "common_passwords.py"
    assert load(script).text() == (ROOT / "src/sekisho/data/common_passwords.txt").read_text(encoding="utf-8")


def load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
