"""The cookies as they travel (RFC 6265bis): their names, one way to read them, one way to write them."""

from collections.abc import Iterable, Mapping
from typing import Final

from sekisho.errors import SekishoError

_MAX_BYTES: Final = 4096  # of name and value; browsers drop a longer cookie in silence (RFC 6265bis §5.7)


class Cookies:
    """Names and attributes, by whether the issuer is https.

    ``__Host-`` makes browsers insist on Secure, Path=/ and no Domain, so that no neighbour can plant one (§4.1.3.2).
    Over http, which is for development on this machine, they have other names: nothing drops Secure in silence.
    """

    def __init__(self, issuer: str) -> None:
        self.secure = issuer.startswith("https://")
        prefix = "__Host-sekisho_" if self.secure else "sekisho_"
        self.session = prefix + "session"
        self.csrf = prefix + "csrf"
        self.access = prefix + "access"
        self.refresh = prefix + "refresh"
        self.device = prefix + "device"

    def set(self, name: str, value: str, *, max_age_s: int | None) -> str:
        """The Set-Cookie header's value. ``max_age_s`` None: until the browser is closed.

        Raises ``SekishoError`` for one that browsers would drop.
        """
        if len(name) + len(value) > _MAX_BYTES:
            raise SekishoError(f"the cookie {name} would be longer than {_MAX_BYTES} bytes: too many roles")
        age = "" if max_age_s is None else f"; Max-Age={max_age_s}"
        return f"{name}={value}{age}; Path=/{'; Secure' if self.secure else ''}; HttpOnly; SameSite=Lax"

    def clear(self, name: str) -> str:
        """The Set-Cookie header's value that takes a cookie away."""
        return self.set(name, "", max_age_s=0)


def read_cookie(headers: Iterable[str], name: str, refused: type[SekishoError]) -> str | None:
    """The value of a cookie, from the values of the Cookie headers; None where there is none of this name.

    Raises ``refused`` for two of one name and different values: somebody has planted one, and which counts is anyone's
    guess.
    """
    found: str | None = None
    for header in headers:
        for pair in header.split(";"):
            key, _, value = pair.strip(" \t").partition("=")
            if key == name and value != found:
                if found is not None:
                    raise refused("two cookies of one name")
                found = value
    return found


def with_cookies(headers: Iterable[str], values: Mapping[str, str]) -> str:
    """The value of one Cookie header that says what ``headers`` say, but for ``values``."""
    pairs = [pair.strip(" \t") for header in headers for pair in header.split(";")]
    others = [pair for pair in pairs if pair and pair.partition("=")[0] not in values]
    return "; ".join([*others, *(f"{name}={value}" for name, value in values.items())])
