"""Prometheus figures of the service, beside BentoML's own on ``/metrics``."""

from __future__ import annotations


class Metrics:
    """Counts requests by outcome and measures their seconds.

    Made when the service starts, not at import: BentoML names the folder its workers share their figures through
    only then, and prometheus_client looks for it when it is first imported.
    """

    def __init__(self, model: str, digest: str) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._requests = Counter("ctfoundry_embed_requests", "Requests to /embed by outcome", ["outcome"])
        self._seconds = Histogram(
            "ctfoundry_embed_seconds",
            "Seconds from first byte to answer, by outcome",
            ["outcome"],
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300),
        )
        loaded = Gauge("ctfoundry_model", "The model served", ["name", "digest"], multiprocess_mode="livemax")
        loaded.labels(model, digest).set(1)

    def count(self, outcome: str, seconds: float) -> None:
        """One request ended so."""
        self._requests.labels(outcome).inc()
        self._seconds.labels(outcome).observe(seconds)
