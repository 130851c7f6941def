"""What was verified a moment ago: the same token comes with each request of its quarter of an hour."""

from typing import Final

from sekisho.tokens.access import AccessClaims

DEFAULT_LIMIT: Final = 8192


class Seen(dict[str, AccessClaims]):
    """The claims of verified tokens, by the whole text of the token: a longer or another text is another token.

    Only the signature and the form need no second check; what can change is the verifier's to ask each time. Refused
    tokens never enter, so nobody without a key can fill it.
    """

    __slots__ = ()

    def forget_older_half(self) -> None:
        """Any thread may call it at any time; at worst a token is forgotten early."""
        for token in list(self)[: len(self) // 2 + 1]:
            self.pop(token, None)

    def __repr__(self) -> str:
        return f"<Seen {len(self)}>"  # tokens are credentials
