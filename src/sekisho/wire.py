"""Strict readers for what comes over the wire: base64url, JSON, NumericDate. And the clock, which is a parameter.

Python's own readers are lenient where a security check must not be: ``base64`` skips foreign characters and ignores
unused bits, ``json`` takes NaN, duplicate names and UTF-16. Two readers that disagree on one text are an attack
(RFC 8259 §4 and §9), so there is one reading here, or none.
"""

import json
import re
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeAlias

from pybase64 import b64decode, b64encode_as_string

Clock: TypeAlias = Callable[[], int]
"""Gives the time as whole seconds since 1970-01-01T00:00:00Z (NumericDate, RFC 7519 §2)."""

MAX_NUMERIC_DATE: Final = 2**40
MAX_SAFE_INTEGER: Final = 2**53 - 1  # beyond it JSON readers disagree (RFC 8259 §6)
MAX_DEPTH: Final = 8
MAX_STRING: Final = 1024

BASE64URL: Final = b"-_"  # the two characters that differ from the standard alphabet (RFC 4648 §5)
# By length modulo 4: the last characters that leave no unused bit set, and the padding that was left out. No bytes have
# a length of 1 modulo 4.
_ENDINGS: Final = (
    ("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", ""),
    ("", ""),
    ("AQgw", "=="),
    ("AEIMQUYcgkosw048", "="),
)
_BOOT_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)
_SURROGATE = re.compile("[\ud800-\udfff]")


class WireError(ValueError):
    """The text breaks a rule of its format. Callers translate it into an error of their own."""


def now_s() -> int:
    """The node's own clock, as NumericDate."""
    return int(time.time())


def now_us() -> int:
    """The node's own clock, in microseconds since 1970."""
    return time.time_ns() // 1000


def since_boot() -> float:
    """Seconds that go on while the system is suspended. On Linux ``time.monotonic`` stands still then."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


def b64url_encode(data: bytes) -> str:
    """base64url without padding (RFC 7515 §2)."""
    return b64encode_as_string(data, BASE64URL).rstrip("=")


def b64url_decode(text: str) -> bytes:
    """The bytes of a canonical base64url text: no padding, no foreign characters, unused bits zero (RFC 4648 §3.5).

    Raises ``WireError``.
    """
    last, padding = _ENDINGS[len(text) & 3]
    # The decoder would take the standard alphabet too, padding, and a second spelling of the last character.
    if "+" in text or "/" in text or text[-1:] not in last:
        raise WireError("not canonical base64url")
    try:
        return b64decode(text + padding, BASE64URL, True)  # noqa: FBT003 - by name it is slower by half
    except ValueError:
        raise WireError("not base64url") from None


def json_object(data: bytes, *, max_string: int = MAX_STRING) -> dict[str, Any]:
    """The one JSON object in ``data``, read strictly (RFC 8259, RFC 7493).

    UTF-8 without BOM, no duplicate names at any depth, no NaN or Infinity, integers below 2^53, strings of at most
    ``max_string`` characters and without lone surrogates, at most 8 levels deep. Raises ``WireError``, whose text
    never quotes the data.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            parse_constant=_refuse_constant,
        )
    except WireError:
        raise
    except (ValueError, RecursionError):
        raise WireError("not JSON in UTF-8") from None  # a traceback would show the data
    if not isinstance(value, dict):
        raise WireError("not a JSON object")
    _check(value, max_string, depth=1)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise WireError("duplicate name in a JSON object")
    return result


def _bounded_int(text: str) -> int:
    if len(text) > 17 or abs(value := int(text)) > MAX_SAFE_INTEGER:  # the length first: int() is quadratic
        raise WireError("integer out of range")
    return value


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise WireError("number out of range")
    return value


def _refuse_constant(_text: str) -> NoReturn:
    raise WireError("NaN and Infinity are not JSON")


def _check(value: object, max_string: int, depth: int) -> None:
    if depth > MAX_DEPTH and isinstance(value, dict | list):
        raise WireError("nested too deeply")
    if isinstance(value, str):
        if len(value) > max_string:
            raise WireError("string too long")
        if _SURROGATE.search(value):
            raise WireError("lone surrogate")
    elif isinstance(value, dict):
        for name, member in value.items():
            _check(name, max_string, depth)
            _check(member, max_string, depth + 1)
    elif isinstance(value, list):
        for member in value:
            _check(member, max_string, depth + 1)
