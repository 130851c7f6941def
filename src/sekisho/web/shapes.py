"""The JSON of requests and answers."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from sekisho.services.mint import Grant
from sekisho.storage.rows import MICROSECONDS, Session, User
from sekisho.web.device_name import device_name


class _Strict(BaseModel):
    """A body in which an unknown member is an error: a misspelt option must not be passed over."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Credentials(_Strict):
    """An account's address and password."""

    email: str = Field(examples=["alice@example.com"])
    password: str = Field(
        repr=False, examples=["correct horse battery staple!"], json_schema_extra={"format": "password"}
    )


class LoginBody(Credentials):
    """An account's address and password, and where the tokens are to go."""

    cookies: bool = Field(default=False, description="Set the tokens as cookies, out of reach of the page's scripts.")


class TokenBody(_Strict):
    """A refresh token, or nothing where the header or a cookie has one."""

    refresh_token: str = Field(default="", repr=False, examples=["sekisho_rt_…"])


class PasswordBody(_Strict):
    """The password as it is and as it is to be."""

    current_password: str = Field(repr=False, json_schema_extra={"format": "password"})
    new_password: str = Field(repr=False, json_schema_extra={"format": "password"})


class Account(BaseModel):
    """A new account."""

    id: UUID
    email: str


class TokenPair(BaseModel):
    """What login and refresh answer (RFC 6749 §5.1). Lifetimes in seconds from now."""

    access_token: str = Field(repr=False)
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - RFC 6750's word, not a password
    expires_in: int = Field(examples=[900])
    refresh_token: str = Field(repr=False)
    refresh_expires_in: int = Field(examples=[604800])


class TokensInCookies(BaseModel):
    """What login and refresh answer where the tokens went into cookies. Lifetimes in seconds from now."""

    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - as above
    expires_in: int = Field(examples=[900])
    refresh_expires_in: int = Field(examples=[604800])


class Me(BaseModel):
    """The account behind the credential."""

    id: UUID
    email: str
    roles: list[str]
    session_id: UUID
    created_at: datetime


class PageSession(BaseModel):
    """What a page needs: who is signed in, and what to send back as X-CSRF-Token with what changes something."""

    csrf_token: str = Field(repr=False)
    user: Me | None


class SessionView(BaseModel):
    """One sign-in. ``current`` marks the one that asks."""

    id: UUID
    kind: Literal["tokens", "cookie"] = Field(description="How it is carried.")
    current: bool
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime = Field(description="When it ends if it is not used again.")
    address: str
    device: str = Field(description="Browser and system, as far as the user agent tells.", examples=["Firefox, Linux"])
    user_agent: str


class SessionList(BaseModel):
    """A user's live sessions, the one used last first."""

    sessions: list[SessionView]


def pair(grant: Grant) -> TokenPair:
    """The answer with the tokens in it."""
    return TokenPair(
        access_token=grant.access_token,
        expires_in=grant.expires_in_s,
        refresh_token=grant.refresh_token,
        refresh_expires_in=grant.refresh_expires_in_s,
    )


def lifetimes(grant: Grant) -> TokensInCookies:
    """The answer where the tokens themselves went into cookies."""
    return TokensInCookies(expires_in=grant.expires_in_s, refresh_expires_in=grant.refresh_expires_in_s)


def me(user: User, session_id: UUID) -> Me:
    """The account, as its owner sees it."""
    return Me(
        id=user.id,
        email=user.email,
        roles=list(user.roles),
        session_id=session_id,
        created_at=_time(user.created_at_us),
    )


def logged_out() -> Response:
    """After a logout."""
    # The browser's cache may hold pages that only the user may see (OWASP ASVS 14.3.1).
    return Response(status_code=204, headers={"Clear-Site-Data": '"cache"'})


def session_list(sessions: Sequence[Session], *, current_id: UUID) -> SessionList:
    """The list of devices."""
    return SessionList(sessions=[_view(session, current_id=current_id) for session in sessions])


def _view(session: Session, *, current_id: UUID) -> SessionView:
    return SessionView(
        id=session.id,
        kind=session.kind,
        current=session.id == current_id,
        created_at=_time(session.created_at_us),
        last_used_at=_time(session.handed_out_at_us),
        expires_at=_time(min(session.idle_ends_at_us, session.ends_at_us)),
        address=session.last_address,
        device=device_name(session.last_user_agent),
        user_agent=session.last_user_agent,
    )


def _time(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us // MICROSECONDS, tz=UTC)
