"""Everything Sekisho raises, in one tree.

Each class has a stable ``code`` for the operator and ``public_code`` for the caller (the same unless telling them
apart would help an attacker), a public text in English and Japanese, and, per instance, a ``detail`` that only
logs see. No detail ever holds a token, a password or a key. The codes are listed in ``docs/errors.md``; which HTTP
status each becomes is decided in ``web/problems.py`` alone.
"""

from collections.abc import Sequence
from typing import ClassVar


class SekishoError(Exception):
    """Root of the tree."""

    code: ClassVar[str] = "internal_error"
    public_code: ClassVar[str] = "internal_error"
    text_en: ClassVar[str] = "Something went wrong on our side."
    text_ja: ClassVar[str] = "サーバー側で問題が発生しました。"

    def __init_subclass__(cls) -> None:
        """A class that names a code but no public code shows the code itself."""
        super().__init_subclass__()
        if "code" in cls.__dict__ and "public_code" not in cls.__dict__ and not issubclass(cls, _OneAnswer):
            cls.public_code = cls.code

    # No __init__ of its own: one in Python is a good part of what an early refusal costs, and they come in floods.
    @property
    def detail(self) -> str:
        """The one argument, if there is one: for the operator's log, never for the caller."""
        return self.args[0] if self.args else ""

    def __str__(self) -> str:
        return self.detail or self.text_en


class told_alone:  # noqa: N801 - read in a with statement
    """Inside of it, what is refused leaves without the frames through which it came.

    Tools that report crashes show the local variables of each frame, and down there those are keys, and URLs with
    passwords. What was wrong stands in the error's detail.
    """

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _at: object) -> None:
        """Raises the error anew, from here."""
        if isinstance(error, SekishoError):
            error.__context__ = None  # its frames, too
            raise error.with_traceback(None)


class _OneAnswer(SekishoError):
    """Families whose members all look the same from outside."""


# --- access tokens -------------------------------------------------------------------------------------------------


class TokenError(_OneAnswer):
    """An access token was refused. Every member of the family gives the caller one identical answer."""

    code = "invalid_token"
    public_code = "invalid_token"
    text_en = "The access token is not valid."
    text_ja = "アクセストークンが無効です。"


class TokenMalformed(TokenError):
    """Not a compact JWS in canonical form, or its JSON breaks a rule (RFC 7515 §3, §4)."""

    code = "token_malformed"


class TokenHeaderRefused(TokenError):
    """A header member, type or algorithm that is not the expected one (RFC 8725 §3.1, §3.11)."""

    code = "token_header_refused"


class TokenKeyUnknown(TokenError):
    """The header names no key of this keyring."""

    code = "token_key_unknown"


class TokenSignatureInvalid(TokenError):
    """The signature does not hold."""

    code = "token_signature_invalid"


class TokenClaimsInvalid(TokenError):
    """A claim is missing, of the wrong type, or not the expected one (RFC 9068 §2.2, §4)."""

    code = "token_claims_invalid"


class TokenExpired(TokenError):
    """``exp`` has passed, leeway included."""

    code = "token_expired"


class TokenNotYetValid(TokenError):
    """``nbf`` or ``iat`` lies in the future, leeway included."""

    code = "token_not_yet_valid"


class TokenRevoked(TokenError):
    """Its session has ended, or its key was withdrawn."""

    code = "token_revoked"


# --- keys ----------------------------------------------------------------------------------------------------------


class KeyRefused(SekishoError):
    """Key material that must not be used: weak, malformed, ambiguous, or stored where others can read it."""

    code = "key_refused"


class KeySourceUnavailable(KeyRefused):
    """The key source did not answer, or is overloaded; that can pass by itself. What it stores was not seen."""

    code = "key_source_unavailable"


# --- input ---------------------------------------------------------------------------------------------------------


class InputError(SekishoError):
    """The request is well formed, but a value in it cannot be accepted. ``field`` names it; the value is not kept."""

    code = "invalid_input"
    text_en = "A value in the request cannot be accepted."
    text_ja = "リクエストに受け付けられない値があります。"

    def __init__(self, field: str, detail: str = "") -> None:
        """``field`` is the name of the member in the request body."""
        super().__init__(detail)
        self.field = field


class EmailInvalid(InputError):
    """Not an e-mail address (RFC 5321, RFC 6531)."""

    code = "email_invalid"
    text_en = "This is not a valid e-mail address."
    text_ja = "メールアドレスの形式が正しくありません。"


class PasswordTooShort(InputError):
    """Fewer code points (after NFC) than the setting asks for."""

    code = "password_too_short"
    text_en = "The password is too short."
    text_ja = "パスワードが短すぎます。"


class PasswordTooLong(InputError):
    """More than 256 code points (after NFC), or more than 72 UTF-8 bytes where bcrypt makes the hashes."""

    code = "password_too_long"
    text_en = "The password is too long."
    text_ja = "パスワードが長すぎます。"


class PasswordCommon(InputError):
    """The password stands on the list of common passwords."""

    code = "password_common"
    text_en = "This password is too common. Please choose another one."
    text_ja = "このパスワードはよく使われているため利用できません。別のものを選んでください。"


class PasswordContainsContext(InputError):
    """The password is the account's own address, a part of it, or the service's name."""

    code = "password_is_context"
    text_en = "The password must not be your e-mail address or the name of the service."
    text_ja = "メールアドレスやサービス名をパスワードにすることはできません。"


# --- accounts and sessions -----------------------------------------------------------------------------------------


class EmailTaken(SekishoError):
    """An account with this address (in canonical form) exists already."""

    code = "email_taken"
    text_en = "An account with this e-mail address exists already."
    text_ja = "このメールアドレスのアカウントはすでに存在します。"


class WrongCredentials(SekishoError):
    """Unknown address, wrong password or disabled account: one answer for all, with the same work behind it."""

    code = "wrong_credentials"
    text_en = "The e-mail address or the password is wrong."
    text_ja = "メールアドレスまたはパスワードが正しくありません。"


class AuthenticationRequired(SekishoError):
    """The call needs a credential and none was given."""

    code = "authentication_required"
    text_en = "Please sign in."
    text_ja = "ログインしてください。"


class VerifierRefused(SekishoError):
    """The credential is not one of those that ``sekisho verifiers add`` has made and that still count."""

    code = "verifier_refused"
    text_en = "The verifier's credential is not valid."
    text_ja = "検証サービスの資格情報が無効です。"


class SessionRefused(SekishoError):
    """The session cookie is none of ours, or its session has ended."""

    code = "session_refused"
    text_en = "The session has ended. Please sign in again."
    text_ja = "セッションは終了しています。もう一度ログインしてください。"


class CsrfRefused(SekishoError):
    """A call that counts on cookies did not come from this service's own pages (OWASP ASVS 3.5.1)."""

    code = "csrf_refused"
    text_en = "This request did not come from one of our pages. Please reload the page and try again."
    text_ja = "このリクエストは当サービスのページから送信されたものではありません。ページを再読み込みしてください。"


class RefreshRefused(_OneAnswer):
    """A refresh token was refused. Whatever the cause, the caller gets one identical answer."""

    code = "refresh_refused"
    public_code = "refresh_refused"
    text_en = "The session has ended. Please sign in again."
    text_ja = "セッションは終了しています。もう一度ログインしてください。"


class RefreshTokenInvalid(RefreshRefused):
    """Malformed, or its MAC or secret does not hold. Never ends a session: anyone can send garbage."""

    code = "refresh_token_invalid"


class RefreshSessionOver(RefreshRefused):
    """The token is genuine, but its session has ended, expired or is no longer known."""

    code = "refresh_session_over"


class RefreshTheft(RefreshRefused):
    """Two holders presented tokens of one session; the session was ended (RFC 9700 §4.14.2)."""

    code = "refresh_theft"


class SessionNotFound(SekishoError):
    """No live session with this id belongs to the caller."""

    code = "session_not_found"
    text_en = "There is no such session."
    text_ja = "そのセッションは見つかりません。"


# --- try again later -----------------------------------------------------------------------------------------------


class TryLater(SekishoError):
    """Nothing is wrong with the request; ask again after ``retry_after_s`` seconds."""

    code = "try_later"
    text_en = "Please try again in a moment."
    text_ja = "しばらくしてからもう一度お試しください。"

    def __init__(self, retry_after_s: int = 1, detail: str = "") -> None:
        """``retry_after_s``: whole seconds, at least 1."""
        super().__init__(detail)
        self.retry_after_s = max(1, retry_after_s)


class Throttled(TryLater):
    """Too many failed attempts from here, for this account, or overall."""

    code = "throttled"
    text_en = "Too many attempts. Please wait before you try again."
    text_ja = "試行回数が多すぎます。しばらく待ってからもう一度お試しください。"


class Overloaded(TryLater):
    """The password hashing queue is full."""

    code = "overloaded"
    text_en = "The server is busy. Please try again in a moment."
    text_ja = "サーバーが混み合っています。しばらくしてからもう一度お試しください。"


class RefreshWait(TryLater):
    """Another answer to the same session is on its way; the client repeats the same call."""

    code = "refresh_wait"


class StorageUnavailable(TryLater):
    """The database did not answer in time or refused; the operation was not acknowledged."""

    code = "storage_unavailable"
    text_en = "The service is temporarily unavailable. Please try again in a moment."
    text_ja = "現在サービスを利用できません。しばらくしてからもう一度お試しください。"


class FeedStarting(TryLater):
    """A verifier has only just begun to follow the issuer and does not know yet which sessions have ended."""

    code = "feed_starting"


class FeedLost(TryLater):
    """A verifier has not heard from the issuer for 30 s, and its policy is not to accept tokens then."""

    code = "feed_lost"


class MustAsk(FeedLost):
    """As ``FeedLost``, and the policy is to ask the issuer about each token: ``Verifier.ask``."""

    code = "must_ask"
    public_code = "feed_lost"


class KeysUnavailable(TryLater):
    """A verifier could not fetch the issuer's keys yet: nothing can be checked, so nothing is refused as bad."""

    code = "keys_unavailable"


# --- starting ------------------------------------------------------------------------------------------------------


class StartRefused(SekishoError):
    """Sekisho does not start like this; ``detail`` is the one line that says what to change."""

    code = "start_refused"

    def __init__(self, detail: str, *, faults: Sequence[str] = ()) -> None:
        """``faults``: what the line is made of, where it tells of several things."""
        super().__init__(detail)
        self.faults = tuple(faults) or (detail,)
