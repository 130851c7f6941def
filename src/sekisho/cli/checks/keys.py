"""The key set and where it is kept. Weak keys are not judged here: a set that holds one cannot be read."""

from collections.abc import Iterator
from typing import Final

from sekisho.cli.checks.finding import Finding, Level
from sekisho.cli.keys import life_s
from sekisho.cli.output import time_text
from sekisho.errors import KeyRefused, SekishoError
from sekisho.settings import Settings
from sekisho.sources import source_from
from sekisho.tokens.keyring import KeySet
from sekisho.tokens.keys import PURPOSES, Key

_DAY_S: Final = 86_400
_LONG_S: Final = 90 * _DAY_S
_CLOCK_S: Final = 600  # a key from further in the future was made by a clock that is wrong, or read by one


class Keys:
    """``read`` fills ``key_set``, if the keys can be read; the other checks look at it."""

    def __init__(self, settings: Settings, *, now: int) -> None:
        self._settings = settings
        self._now = now
        self.key_set: KeySet | None = None

    def read(self) -> Iterator[Finding]:
        """As the server would at its start, except that none are made."""
        try:
            source = source_from(self._settings.keys)
            document = source.load()
        except SekishoError as error:
            do = (
                "Keep the keys where the user that runs the server can read them, and nobody else. If that is not the "
                "user who asks here, ask as that user before you change anything."
            )
            yield Finding(level=Level.ERROR, name="keys", seen=str(error), do=do)
            return
        if document is None:
            made_at_start = "keys" not in self._settings.model_fields_set
            level = Level.NOTE if made_at_start else Level.ERROR
            do = "Type: sekisho keys new" if source.writable else "Set it to a key set."
            do = "sekisho serve will make them." if made_at_start else do
            yield Finding(level=level, name="keys", seen=f"there are no keys in {source.name}", do=do)
            return
        try:
            self.key_set = KeySet.from_json(document)
        except KeyRefused as error:
            do = "Go back to the key set that sekisho keys list could show last. Running servers go on with that one."
            yield Finding(level=Level.ERROR, name="keys", seen=f"{source.name}: {error.detail}", do=do)
            return
        seen = f"{source.name} has {len(self.key_set.keys)} keys, one active for each purpose, none of them weak"
        yield Finding(level=Level.OK, name="keys", seen=seen)

    def algorithm(self, key_set: KeySet) -> Iterator[Finding]:
        """A running server goes on; the next start is refused."""
        active, wanted = key_set.active("sign"), self._settings.signing_algorithm
        if active.alg == wanted:
            yield Finding(level=Level.OK, name="key_algorithm", seen=f"{active.kid} signs, with {active.alg}")
            return
        yield Finding(
            level=Level.ERROR,
            name="key_algorithm",
            seen=f"the active signing key {active.kid} is for {active.alg}, SEKISHO_SIGNING_ALGORITHM is {wanted}: "
            "no server starts",
            do=f"Set SEKISHO_SIGNING_ALGORITHM to {active.alg}, or type: sekisho keys rotate --now",
        )

    def age(self, key_set: KeySet) -> Iterator[Finding]:
        """Counted from when it began to sign: whoever has got hold of it forges tokens until it is replaced."""
        active = key_set.active("sign")
        since = active.state_since or active.created_at
        age_s = self._now - since
        if since and age_s < -_CLOCK_S:
            level, do = Level.WARNING, "Set the clock, of this machine or of the one that made the key."
            seen = f"{active.kid} signs since {time_text(since)}, which is still to come"
        elif not since:
            level, do = Level.NOTE, "Type: sekisho keys rotate"
            seen = f"{active.kid} does not say since when it signs"
        elif age_s > _LONG_S:
            level, do = Level.WARNING, "Type: sekisho keys rotate (nobody is signed out), or have cron type it weekly."
            seen = f"{active.kid} signs since {time_text(since)}, for {age_s // _DAY_S} days"
        else:
            level, do = Level.OK, ""
            seen = f"{active.kid} signs since {time_text(since)}"
        yield Finding(level=level, name="key_age", seen=seen, do=do)

    def waiting(self, key_set: KeySet) -> Iterator[Finding]:
        """One that was made and forgotten."""
        found = [key for key in map(key_set.next, PURPOSES) if key is not None]
        long = [key for key in found if key.created_at and self._now - key.created_at > _LONG_S]
        for key in long:
            yield Finding(
                level=Level.NOTE,
                name="key_waiting",
                seen=f"{_named(key)} is the next one, and waits since {time_text(key.created_at)}",
                do=f"Type: sekisho keys rotate --purpose {key.purpose}",
            )
        if not long:
            seen = f"next: {', '.join(map(_named, found))}" if found else "no next key"
            yield Finding(level=Level.OK, name="key_waiting", seen=seen)

    def retirable(self, key_set: KeySet) -> Iterator[Finding]:
        """What they have signed is over. A key that is no longer there cannot leak."""
        over = [
            key
            for key in key_set.keys
            if key.state == "verify_only" and key.state_since + life_s(self._settings, key.purpose) <= self._now
        ]
        for key in over:
            yield Finding(
                level=Level.NOTE,
                name="key_retirable",
                seen=f"{_named(key)} signs no more since {time_text(key.state_since)}, and nothing it signed is in use",
                do=f"Type: sekisho keys retire {key.kid}",
            )
        if not over:
            yield Finding(level=Level.OK, name="key_retirable", seen="no key is over")


def _named(key: Key) -> str:
    return f"{key.purpose} key {key.kid}"
