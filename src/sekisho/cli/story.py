"""A session's story in the operator's words, and the same as fields for programs."""

import json
from collections.abc import Iterator
from typing import Any, Final

from sekisho.cli.output import time_text_us
from sekisho.services.sessions import Story
from sekisho.storage.rows import MICROSECONDS, Cause, Session, TheftRecord

_ENDS: Final[dict[str, str]] = {
    Cause.LOGOUT: "Signed out.",
    Cause.LOGOUT_ALL: "Signed out, with every session of the user.",
    Cause.ENDED_BY_USER: "Ended by the user, from the list of sessions.",
    Cause.EVICTED: "Ended to make room: the user signed in once more than is allowed, and this one was idle longest.",
    Cause.PASSWORD_CHANGED: "Ended because the password was changed.",
    Cause.USER_DISABLED: "Ended because the account was disabled.",
    Cause.ADMIN: "Ended by an operator.",
}
_KEPT: Final = {"tokens": "refreshed", "cookie": "used"}


def told(story: Story) -> Iterator[str]:
    """Line by line."""
    session = story.session
    yield f"Session {session.id} of {story.email or session.user_id}"
    yield f"{time_text_us(session.created_at_us)}  Signed in{', with a cookie' if session.kind == 'cookie' else ''}."
    if session.kind == "cookie":
        yield f"{time_text_us(session.handed_out_at_us)}  Last used, to the minute{_from(session)}."
    elif (session.generation, session.branch) > (0, 0):
        yield f"{time_text_us(session.made_at_us)}  Refreshed{_from(session)}: {_position(session)}."
    else:
        yield f"{' ' * 20}  Not refreshed yet; signed in{_from(session)}."
    if session.branch:
        yield f"{' ' * 20}  {_lost_replies(session.branch)}"
    for theft in story.thefts:
        yield f"{time_text_us(theft.at_us)}  {_theft(theft)}"
    yield _end(story)


def fields_of(story: Story) -> dict[str, Any]:
    """Names and values; times in UTC, null for what has not happened."""
    session = story.session
    return {
        "session": str(session.id),
        "kind": session.kind,
        "user": str(session.user_id),
        "email": story.email,
        "began_at": time_text_us(session.created_at_us),
        "last_used_at": time_text_us(session.handed_out_at_us),
        "generation": session.generation,
        "branch": session.branch,
        "last_address": session.last_address,
        "last_user_agent": session.last_user_agent,
        "ends_if_idle_at": time_text_us(session.idle_ends_at_us),
        "ends_anyway_at": time_text_us(session.ends_at_us),
        "ended_at": time_text_us(session.ended_at_us),
        "cause": session.cause,
        "thefts": [_theft_fields(theft) for theft in story.thefts],
    }


def _theft_fields(theft: TheftRecord) -> dict[str, Any]:
    fields = {name: value for name, value in vars(theft).items() if name not in {"session_id", "user_id"}}
    times = {name.removesuffix("_us"): time_text_us(value) for name, value in fields.items() if name.endswith("_us")}
    return times | {name: value for name, value in fields.items() if not name.endswith("_us")}


def _from(session: Session) -> str:
    return f" from {_place(session.last_address, session.last_user_agent)}"


def _place(address: str, user_agent: str) -> str:
    """The user agent in quotation marks of its own: it is the client's word, and could be a sentence like ours."""
    return f"{address}, {json.dumps(user_agent)}" if user_agent else f"{address}, which names no user agent"


def _position(session: Session) -> str:
    times = "once" if session.generation == 1 else f"{session.generation} times"
    return f"the token was replaced {times} since the sign-in"


def _lost_replies(branch: int) -> str:
    times = "once" if branch == 1 else f"{branch} times"
    return f"Of those, the last new token was made anew {times}: its receiver came back with the one before it."


def _theft(theft: TheftRecord) -> str:
    behind = theft.current_generation - theft.generation
    old = f"that was {behind} replacements old" if behind > 1 else "that had been displaced"
    return (
        f"Theft: two hold tokens of this session. A token {old} came from "
        f"{_place(theft.address, theft.user_agent)}; the current token had been given at "
        f"{time_text_us(theft.current_since_us)} to {_place(theft.current_address, theft.current_user_agent)}. "
        "Which of them is the user, the tokens do not tell."
    )


def _end(story: Story) -> str:
    session = story.session
    if session.ended_at_us is None:
        idle, absolute = time_text_us(session.idle_ends_at_us), time_text_us(session.ends_at_us)
        if session.is_over(story.now_us):
            return f"{' ' * 20}  Over: {_limit(session, story.now_us)}."
        return f"{' ' * 20}  Live. Ends at {idle} unless it is {_KEPT[session.kind]}, and at {absolute} in any case."
    when = time_text_us(session.ended_at_us)
    if session.cause == Cause.THEFT:
        return f"{when}  Ended for theft, its access tokens included."
    if session.cause == Cause.EXPIRED:
        return f"{when}  Ended: {_limit(session, session.ended_at_us)}."
    return f"{when}  {_ENDS.get(session.cause or '', f'Ended: {session.cause}.')}"


def _limit(session: Session, now_us: int) -> str:
    if now_us >= session.ends_at_us and session.ends_at_us <= session.idle_ends_at_us:
        days = (session.ends_at_us - session.created_at_us) // MICROSECONDS / 86_400
        return f"it had reached its greatest age, {days:.3g} days"
    return f"it was not used after {time_text_us(session.handed_out_at_us)}"
