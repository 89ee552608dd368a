"""Prometheus figures of the service. Their number is bounded: no label comes from what a client sends."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.load import Load
from serving.routes import ROUTES, UNKNOWN

MEDIA_TYPE = CONTENT_TYPE_LATEST
STEPS = ("upload", "wait", "work")
REFUSED = (400, 401, 404, 405, 408, 409, 413, 415, 422, 502)
OUTCOMES = (
    "answered",  # any route but those below
    *(route.done for route in ROUTES if route.done),
    *(f"refused_{status}" for status in REFUSED),
    "busy_uploads", "busy_queue", "draining", "not_loaded",
    "killed_memory", "killed_deadline", "killed_crash", "unreadable", "no_room", "gpu", "reader_gone",
    "timed_out", "cut_short", "disconnected", "cancelled", "failed",
)  # fmt: skip
OTHER = "failed"  # for what is none of these
_NAMES = (*(route.name for route in ROUTES), UNKNOWN)


class Metrics:
    """Counts requests by route and outcome, and measures the seconds of each step."""

    def __init__(
        self, model: str, digest: str, bins: Mapping[str, Mapping[str, int]] | None = None, device: str = "cpu"
    ) -> None:
        """``bins``: of the training set's data profile, feature to bin to training series. ``device``: that answers."""
        # One process serves, so its own registry holds all, and nobody's figures are gathered over files.
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ctfoundry_requests", "Requests by route and outcome", ["route", "outcome"], registry=self._registry
        )
        self._seconds = Histogram(
            "ctfoundry_step_seconds",
            "Seconds that files took, by step: upload, wait for a turn, work",
            ["step"],
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300),
            registry=self._registry,
        )
        told = {
            "uploads": "Files that are being sent",
            "waiting": "Files that wait for their turn",
            "working": "Files that are worked on",
            "ready": "1 while the service takes work, 0 from the moment on that it is to end",
        }
        self._now = {name: Gauge(f"ctfoundry_{name}", says, registry=self._registry) for name, says in told.items()}
        loaded = Gauge("ctfoundry_model", "The model served", ["name", "digest"], registry=self._registry)
        loaded.labels(model, digest).set(1)
        Gauge("ctfoundry_device", "The device that answers", ["device"], registry=self._registry).labels(device).set(1)
        says, labels = "by feature and bin of the training set's data profile", ["feature", "bin"]
        training = Gauge("ctfoundry_training_series", f"Training series {says}", labels, registry=self._registry)
        self._scans = Counter("ctfoundry_scans", f"Scans answered {says}", labels, registry=self._registry)
        self._bins = {(feature, label) for feature, counts in (bins or {}).items() for label in counts}
        for feature, counts in (bins or {}).items():
            for label, count in counts.items():
                training.labels(feature, label).set(count)
                self._scans.labels(feature, label)

    def count(self, route: str, outcome: str) -> None:
        """One request to a route ended so."""
        route = route if route in _NAMES else UNKNOWN
        self._requests.labels(route, outcome if outcome in OUTCOMES else OTHER).inc()

    def took(self, step: str, seconds: float) -> None:
        """A step of one request took so long. Raises ValueError for a step that is none."""
        if step not in STEPS:
            raise ValueError(f"step {step!r} is not allowed: one of {', '.join(STEPS)}")
        self._seconds.labels(step).observe(seconds)

    def saw(self, profile: Mapping[str, str]) -> None:
        """A scan was answered that falls into these bins; those that the training set's profile has not do not
        count."""
        for found in profile.items():
            if found in self._bins:
                self._scans.labels(*found).inc()

    def text(self, load: Load, ready: bool) -> bytes:
        """All figures, as Prometheus reads them."""
        now = {"uploads": load.uploads, "waiting": load.waiting, "working": load.working, "ready": int(ready)}
        for name, value in now.items():
            self._now[name].set(value)
        return generate_latest(self._registry)
