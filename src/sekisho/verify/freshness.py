"""How old a verifier's view of the ended sessions is, and what that means. Pure: the clock is a parameter."""

from typing import Final, Literal, TypeAlias

from sekisho.verify.stream import Heartbeat

State: TypeAlias = Literal["starting", "fresh", "stale", "lost"]
WhenLost: TypeAlias = Literal["allow", "refuse", "ask"]
"""What happens to a token that is good as far as a verifier knows, while it does not know what has ended since."""

FRESH_S: Final = 3.0
LOST_S: Final = 30.0


class Freshness:
    """The moment as of which every ended session is known, by the seconds of ``since_boot``."""

    def __init__(self, *, now: float) -> None:
        self._began_at = now
        self._complete_as_of: float | None = None

    def restart(self, *, now: float) -> None:
        """The time to start begins anew, unless there is a view already."""
        self._began_at = now

    def heard(self, heartbeat: Heartbeat, *, opened_at: float, now: float) -> None:
        """Takes a heartbeat of the stream that was asked for at ``opened_at``.

        How long it was on its way does not count, for nobody can know that: the node opened the stream after it was
        asked for, and by its own clock ``open_ms`` have passed since. What a proxy held back for a minute is a minute
        old here. A view never grows older by another node's being behind: entries are only added. Nor does it come
        from the future, as a node whose clock runs fast would have it: it would be young for too long.
        """
        if heartbeat.age_ms is not None:
            as_of = min(now, opened_at + (heartbeat.open_ms - heartbeat.age_ms) / 1000)
            self._complete_as_of = as_of if self._complete_as_of is None else max(as_of, self._complete_as_of)

    def age_s(self, *, now: float) -> float:
        """Seconds since every ended session was known; infinite before the first time."""
        return float("inf") if self._complete_as_of is None else max(0.0, now - self._complete_as_of)

    def lost_in_s(self, *, now: float) -> float:
        """In how many seconds the view is lost, if nothing more is heard; not above 0 if it is."""
        return LOST_S - self.age_s(now=now)

    def state(self, *, now: float) -> State:
        """*fresh* to 3 s, *stale* to 30 s, *lost* after. Before the first view *starting*, for 30 s at the most."""
        if self._complete_as_of is None:
            return "starting" if now - self._began_at <= LOST_S else "lost"
        age_s = self.age_s(now=now)
        return "fresh" if age_s <= FRESH_S else "stale" if age_s <= LOST_S else "lost"
