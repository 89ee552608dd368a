"""Prometheus figures of the service, beside BentoML's own on ``/metrics``."""

from __future__ import annotations

ROUTES = ("embed", "classify")


class Metrics:
    """Counts requests by outcome and measures their seconds.

    Made when the service starts, not at import: BentoML names the folder its workers share their figures through
    only then, and prometheus_client looks for it when it is first imported.
    """

    def __init__(self, model: str, digest: str) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._requests = {
            route: Counter(f"ctfoundry_{route}_requests", f"Requests to /{route} by outcome", ["outcome"])
            for route in ROUTES
        }
        self._seconds = {
            route: Histogram(
                f"ctfoundry_{route}_seconds",
                "Seconds from first byte to answer, by outcome",
                ["outcome"],
                buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300),
            )
            for route in ROUTES
        }
        loaded = Gauge("ctfoundry_model", "The model served", ["name", "digest"], multiprocess_mode="livemax")
        loaded.labels(model, digest).set(1)

    def count(self, route: str, outcome: str, seconds: float) -> None:
        """One request to a route ended so."""
        self._requests[route].labels(outcome).inc()
        self._seconds[route].labels(outcome).observe(seconds)
