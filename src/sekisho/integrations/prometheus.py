"""Prometheus: ``REGISTRY.register(VerifierCollector(verifier))``."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sekisho.verify import Verifier


class VerifierCollector(Collector):
    """How well a verifier follows its issuer, and what it refuses."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    def describe(self) -> Iterator[Metric]:
        """The names alone: to register it reads nothing, and so starts no thread in a process that forks later."""
        yield from _families()

    def collect(self) -> Iterator[Metric]:
        """The values of now. Without a feed there is no age."""
        age, revocations, reconnects, refused = _families()
        age_s = self._verifier.age_s
        if age_s is not None:
            age.add_metric([], age_s)
        revocations.add_metric([], self._verifier.entries)
        reconnects.add_metric([], self._verifier.reconnects)
        yield from (age, revocations, reconnects, refused_tokens(self._verifier, refused))


def refused_tokens(verifier: Verifier, family: CounterMetricFamily | None = None) -> CounterMetricFamily:
    """``sekisho_access_tokens_refused``, with what this verifier has counted."""
    family = family if family is not None else _families()[3]
    for code, count in dict(verifier.refused).items():  # a copy: other threads count on
        family.add_metric([code], count)
    return family


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, CounterMetricFamily, CounterMetricFamily]:
    return (
        GaugeMetricFamily("sekisho_verifier_feed_age_seconds", "How old the view of the ended sessions is", labels=[]),
        GaugeMetricFamily("sekisho_verifier_revocations", "Ended sessions that are held", labels=[]),
        CounterMetricFamily("sekisho_verifier_reconnects", "Times the feed was left and asked for again", labels=[]),
        CounterMetricFamily("sekisho_access_tokens_refused", "Refused access tokens, by error code", labels=["code"]),
    )
