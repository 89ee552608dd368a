"""Figures: what they say, and that nothing a client sends makes more of them."""

from __future__ import annotations

import itertools

import pytest

from serving.limits import Limits
from serving.load import Load
from serving.metrics import OUTCOMES, STEPS, Metrics
from serving.routes import ROUTES


def lines(metrics: Metrics, load: Load | None = None, ready: bool = True) -> list[str]:
    text = metrics.text(load or Load(Limits()), ready).decode()
    return [line for line in text.splitlines() if not line.startswith("#") and "_created" not in line]


def test_requests_are_counted_by_route_and_outcome() -> None:
    metrics = Metrics("m", "d")
    for _ in range(2):
        metrics.count("embed", "embedded")
    metrics.count("classify", "timed_out")
    assert 'ctfoundry_requests_total{outcome="embedded",route="embed"} 2.0' in lines(metrics)
    assert 'ctfoundry_requests_total{outcome="timed_out",route="classify"} 1.0' in lines(metrics)
    assert 'ctfoundry_model{digest="d",name="m"} 1.0' in lines(metrics)


def test_the_load_is_that_of_the_moment() -> None:
    metrics, load = Metrics("m", "d"), Load(Limits())
    with load.uploading(), load.queueing():
        found = lines(metrics, load, ready=False)
    for line in ("uploads 1.0", "waiting 1.0", "working 0.0", "ready 0.0"):
        assert f"ctfoundry_{line}" in found
    assert "ctfoundry_uploads 0.0" in lines(metrics, load)


def test_steps_are_measured_in_seconds() -> None:
    metrics = Metrics("m", "d")
    for step in STEPS:
        metrics.took(step, 0.3)
        assert f'ctfoundry_step_seconds_bucket{{le="0.1",step="{step}"}} 0.0' in lines(metrics)
        assert f'ctfoundry_step_seconds_bucket{{le="0.5",step="{step}"}} 1.0' in lines(metrics)
    with pytest.raises(ValueError, match="step 'nap' is not allowed: one of upload, wait, work"):
        metrics.took("nap", 1)


def test_their_number_is_bounded() -> None:
    metrics = Metrics("m", "d")
    for route, outcome in itertools.product([r.name for r in ROUTES], OUTCOMES):
        metrics.count(route, outcome)
    metrics.count("other", "refused_404")
    before = {line.rpartition(" ")[0] for line in lines(metrics)}
    for number in range(1000):
        metrics.count(f"/{number}", "refused_404")
        metrics.count("embed", f"refused_{number + 1000}")
    assert {line.rpartition(" ")[0] for line in lines(metrics)} == before
    assert 'ctfoundry_requests_total{outcome="refused_404",route="other"} 1001.0' in lines(metrics)


def test_each_service_has_its_own() -> None:
    first, second = Metrics("m", "d"), Metrics("m", "d")
    first.count("embed", "embedded")
    assert not any("embedded" in line for line in lines(second))
