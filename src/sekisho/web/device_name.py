"""What a device is called in a user's list of sessions."""

from functools import lru_cache


@lru_cache(maxsize=4096)
def device_name(user_agent: str) -> str:
    """Browser and system as far as the User-Agent header tells, as in ``"Firefox, Linux"``; else empty.

    A client may write there what it likes: it is for the owner's eye and decides nothing. Slow the first time, which
    loads the patterns (some 50 ms).
    """
    from ua_parser import parse_os, parse_user_agent  # noqa: PLC0415 - 20 MB that only a list of sessions needs

    browser, system = parse_user_agent(user_agent), parse_os(user_agent)
    return ", ".join(part.family for part in (browser, system) if part is not None)
