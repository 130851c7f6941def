"""What was verified a moment ago: the same token comes with each request of its quarter of an hour."""

from typing import Final

from sekisho.tokens.access import AccessClaims

DEFAULT_LIMIT: Final = 8192
_MAX_CHARS: Final = 2048  # 8192 of the longest tokens that are accepted would be hundreds of megabytes


class Seen(dict[str, AccessClaims]):
    """The claims of verified tokens, by the whole text of the token: a longer or another text is another token.

    Only the signature and the form need no second check; what can change is the verifier's to ask each time. Refused
    tokens never enter, so nobody without a key can fill it.
    """

    __slots__ = ("_limit", "_max_chars")

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._max_chars = _MAX_CHARS if limit else -1

    def remember(self, token: str, claims: AccessClaims) -> None:
        """Any thread may call it at any time; at worst a token is forgotten early."""
        if len(token) > self._max_chars:
            return
        self[token] = claims
        if len(self) > self._limit:
            tokens = list(self.keys())  # in the order in which they came
            for older in tokens[: len(tokens) - (self._limit + 1) // 2]:
                self.pop(older, None)

    def __repr__(self) -> str:
        return f"<Seen {len(self)}>"  # tokens are credentials
