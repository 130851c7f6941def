"""What the rounds of a server's route came to, beside the same rounds of another's; and the targets for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from _load import LoadProcess, Outcome
from _report import median, percentile, table
from _routes import Server


@dataclass(eq=False)
class Measured:
    """Round by round. Compared with others round by round too, since neighbours in time saw the same machine."""

    name: str
    rates: list[float] = field(default_factory=list, init=False)
    p50s_ms: list[float] = field(default_factory=list, init=False)
    p99s_ms: list[float] = field(default_factory=list, init=False)
    cpu_s: float = field(default=0, init=False)
    requests: int = field(default=0, init=False)
    load_shares: list[float] = field(default_factory=list, init=False)

    def measure(
        self, server: Server, load: LoadProcess, clients: Sequence[Sequence[str]], *, seconds: float
    ) -> Outcome:
        """One round. Every answer must be a 200."""
        before = server.cpu_s()
        outcome = load.run(server.port, clients, seconds=seconds).expect(200)
        self.cpu_s += server.cpu_s() - before
        self.requests += len(outcome.latencies_ms)
        self.rates.append(outcome.per_second)
        self.p50s_ms.append(percentile(outcome.latencies_ms, 50))
        self.p99s_ms.append(percentile(outcome.latencies_ms, 99))
        self.load_shares.append(outcome.cpu_share)
        return outcome

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.requests * 1e6

    def times(self, other: "Measured") -> float:
        """How many times the other's rate."""
        return median([mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True)])

    def added_us(self, bare: "Measured") -> float:
        """How much longer a request takes the server."""
        return median([1e6 / mine - 1e6 / theirs for mine, theirs in zip(self.rates, bare.rates, strict=True)])


@dataclass(frozen=True)
class Target:
    text: str
    aim: str
    measured: str
    met: bool


def show_targets(targets: Sequence[Target]) -> None:
    rows = [[target.text, target.aim, target.measured, "yes" if target.met else "NO"] for target in targets]
    table(["target", "aim", "measured", "met"], rows)
