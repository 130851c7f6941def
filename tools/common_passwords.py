#!/usr/bin/env python3
"""Writes the list of common passwords, ``src/sekisho/data/common_passwords.txt``. Usage: ``tools/common_passwords.py``.

People who are asked for fifteen characters take what they took before and make it longer: they repeat it, append
digits, walk the keyboard or type a line that everybody knows. The list is made the same way, from the words in
``common_passwords_words.txt``. The same words always give the same list; a test compares the two.
"""

import unicodedata
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Final

WORDS: Final = Path(__file__).resolve().with_name("common_passwords_words.txt")
TARGET: Final = WORDS.parent.parent / "src" / "sekisho" / "data" / "common_passwords.txt"
LONG: Final = 15  # code points: the shortest password that the default settings accept
SHORT: Final = 6  # code points: no deployment goes lower
LONGEST: Final = 64  # code points: beyond it nobody types a line, and the file stays small
HEADER: Final = """\
# Common passwords, one a line: NFC, case-folded, sorted. Lines that start with '#' are comments.
# Made by tools/common_passwords.py; change the words there and run it again.
"""

KEYBOARDS: Final = {
    "United States": ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "with signs": ("1234567890-=", "qwertyuiop[]", "asdfghjkl;'", "zxcvbnm,./"),
    "with shift": ("!@#$%^&*()_+", "qwertyuiop{}"),
    "Germany": ("1234567890", "qwertzuiopü", "asdfghjklöä", "yxcvbnm"),
    "France": ("1234567890", "azertyuiop", "qsdfghjklm", "wxcvbn"),
    "Russia": ("1234567890", "йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю"),
    "Dvorak": ("1234567890", "pyfgcrl", "aoeuidhtns", "qjkxbmwvz"),
}
KEYBOARD_COLUMNS: Final = {
    "United States": ("1qaz", "2wsx", "3edc", "4rfv", "5tgb", "6yhn", "7ujm", "8ik,", "9ol.", "0p;/"),
    "without digits": ("qaz", "wsx", "edc", "rfv", "tgb", "yhn", "ujm"),
    "with shift": ("!qaz", "@wsx", "#edc", "$rfv", "%tgb"),
    "Germany": ("1qay", "2wsx", "3edc", "4rfv", "5tgb", "6zhn", "7ujm"),
    "France": ("1aqw", "2zsx", "3edc", "4rfv", "5tgb", "6yhn"),
}
TAILS: Final = (
    *("123", "1234", "12345", "123456", "1234567", "12345678", "123456789", "1234567890", "987654321", "0123456789"),
    *("123123", "123123123", "654321", "111111", "11111111", "000000", "00000000", "112233", "qwerty", "abc123"),
    *("!", "123!", "@123", "@1234", "2024", "2025", "20242024"),
)
PHRASE_TAILS: Final = ("1", "123", "!")
YEARS: Final = tuple(str(year) for year in range(2019, 2029))
BIRTH_YEARS: Final = tuple(str(year) for year in range(1950, 2021))
SEASONS: Final = (
    *("spring", "summer", "autumn", "winter", "january", "february", "march", "april", "june", "july", "august"),
    *("september", "october", "november", "december", "password", "welcome", "company", "changeme", "letmein"),
)
LEET: Final = tuple(
    str.maketrans(letters, signs)
    for letters, signs in (("o", "0"), ("a", "@"), ("e", "3"), ("ao", "@0"), ("ie", "13"), ("aeio", "4310"))
)


def sections() -> dict[str, tuple[str, ...]]:
    """The words by section, in the order of the file."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name = line.strip("[]")
            found[name] = []
        elif line and not line.startswith("#"):
            found[name] += [line] if name in {"phrases", "japanese"} else line.split()
    return {name: tuple(words) for name, words in found.items()}


def repeated(word: str) -> Iterator[str]:
    """The word as often as it takes to be long enough, and cut off where it becomes so."""
    times = -(-LONG // len(word))
    yield word * times
    yield (word * times)[:LONG]


def runs() -> Iterator[str]:
    """One character held down, the alphabet, counting, two and three digits repeated, years repeated."""
    for character in digits + ascii_lowercase + "*.!?-_ ":
        yield from (character * length for length in range(8, 21))
    for start, length in product(range(26), range(LONG, 27)):
        alphabet = (ascii_lowercase * 2)[start : start + length]
        if start == 0:
            yield from (alphabet, alphabet[::-1], ascii_lowercase[::-1][:length])
    for sequence, start, length in product((digits * 4, digits[::-1] * 4), range(10), (15, 16, 18, 20)):
        yield sequence[start : start + length]
    for unit in (*(f"{n:02}" for n in range(100)), *(f"{n:03}" for n in range(1000) if n % 111 == 0 or n == 123)):
        yield from ((unit * 10)[:length] for length in (LONG, 16))
    yield from (year * 4 for year in BIRTH_YEARS)
    yield from (first + second for first, second in product(("password", "iloveyou", "qwertyuiop"), BIRTH_YEARS))
    pairs = list(zip(ascii_lowercase, digits[1:] + "0" + digits[1:], strict=False))
    for length in range(7, 14):
        yield "".join(a + b for a, b in pairs[:length])
        yield "".join(b + a for a, b in pairs[:length])
        yield "".join(a * 2 for a in ascii_lowercase[:length])
        yield "".join(a * 2 for a in "1234567890123"[:length])
    yield from ("314159265358979", "3.14159265358979", "3141592653589793", "271828182845904", "2718281828459045")
    yield from ("112358132134558", "11235813213455", "123456789101112", "12345678910111213", "2468101214161820")


def keyboard_walks() -> Iterator[str]:
    """Along rows, up and down columns, zigzag between two rows; forwards, backwards and repeated."""
    for rows in KEYBOARDS.values():
        for row, length in product(rows, range(4, 13)):
            forwards, backwards = row[:length], row[:length][::-1]
            yield from (forwards, backwards, *repeated(forwards), *repeated(backwards), forwards + backwards)
        for first, second in permutations(rows, 2):
            yield from ((first + second)[:length] for length in (LONG, 16, 18, 20, 26))
            zigzag = "".join(a + b for a, b in zip(first, second, strict=False))
            yield from (zigzag[:length] for length in (8, 10, 12, LONG, 16, 18, 20))
    yield from ("qwertyuiopasdfghjklzxcvbnm", "azertyuiopqsdfghjklmwxcvbn", "mnbvcxzlkjhgfdsapoiuytrewq")
    for columns in KEYBOARD_COLUMNS.values():
        walk = "".join(columns)
        there_and_back = "".join(column[:: -1 if n % 2 else 1] for n, column in enumerate(columns))
        upwards = "".join(column[::-1] for column in columns)
        for way in (walk, walk[::-1], there_and_back, upwards):
            yield from (way[:length] for length in (8, 9, 10, 12, LONG, 16, 18, 20, 24))
            yield from (word for length in (6, 8, 9, 12) for word in repeated(way[:length]))
        yield from (word for column in columns for word in repeated(column))
        yield from (a * 2 + b * 2 for a, b in product(columns[:4], repeat=2))


def well_known(words: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Passwords as they have been for decades: what a deployment with a lower minimum length must refuse."""
    yield from (*words["digit_runs"], *words["short"], *words["top"])
    yield from (
        word + tail for word, tail in product(words["top"][:60], ("1", "12", "123", "1234", "123456", "!", "2024"))
    )
    yield from (name + tail for name, tail in product(words["names"], ("123", "1234")))
    yield from (word.translate(table) for word, table in product(words["top"][:40], LEET))


def from_words(words: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Well-known passwords made longer: repeated, with digits before or after, doubled, in leet, in pairs."""
    for word in (*words["digit_runs"], *words["top"], *words["names"]):
        yield from repeated(word)
    yield from (word * -(-LONG // len(word)) for word in words["short"])
    yield from (word + tail for word, tail in product(words["top"], TAILS))
    for word in words["top"][:80]:
        yield from (word + tail + word for tail in ("1", "123", "!", ".", " ", "-", "_"))
        yield from (part for tail in ("1", "12", "123", "1234", "!") for part in repeated(word + tail))
        yield from (run + word for run in ("123456789", "1234567890", "123456"))
    for word in (*words["top"][:40], "password123", "administrator", "letmein123"):
        for leet in {word.translate(table) for table in LEET} - {word}:
            yield from (*repeated(leet), leet + "123", leet + "1234567", leet + "123456789")
    yield from (first + second for first, second in product(words["top"][:30], repeat=2))
    for season, year in product(SEASONS, YEARS):
        for word in (season + year, season + year + "!", season + "@" + year):
            yield word + word


def from_names(words: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """What people say to and about one another, and of whom they are fond."""
    for opening, name in product(("iloveyou", "ilove", "mynameis", "happybirthday"), words["names"]):
        yield opening + name
    for name, tail in product(words["names"], ("iloveyou", "123456789", "1234567890", "forever")):
        yield name + tail
    for word in words["famous"]:
        yield from (word + tail for tail in ("", "1", "123", "1234", "!"))


def from_phrases(words: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Lines that everybody knows: closed up, with spaces, with other separators, with a digit or two."""
    for phrase in (*words["phrases"], *words["japanese"]):
        closed = phrase.replace(" ", "")
        yield from (phrase, closed)
        if len(closed) < LONG:
            yield from (*repeated(closed), closed + "12345", closed + "123456")
        if phrase.isascii() and len(closed) <= 24:
            yield from (closed + tail for tail in PHRASE_TAILS)
    for phrase in words["phrases"][:40]:
        yield from (phrase.replace(" ", separator) for separator in "-_.")


def fold(text: str) -> str:
    """As the policy compares: NFC, case-folded, NFC."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def entries() -> list[str]:
    """The whole list, sorted by code point."""
    words = sections()
    known = {fold(word) for word in (*keyboard_walks(), *well_known(words))}
    made = {fold(word.strip()) for word in (*runs(), *from_words(words), *from_names(words), *from_phrases(words))}
    found = known | {word for word in made if len(word) >= LONG}
    return sorted(word for word in found if SHORT <= len(word) <= LONGEST and not word.startswith("#"))


def text() -> str:
    """The file."""
    return HEADER + "".join(f"{word}\n" for word in entries())


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text(), encoding="utf-8")
