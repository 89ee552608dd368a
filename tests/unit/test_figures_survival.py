"""Figures of survival equal scikit-survival's on every drawn set of copies."""

from __future__ import annotations

import time as clock

import numpy as np
import pytest
from sksurv.exceptions import NoComparablePairException
from sksurv.metrics import concordance_index_censored, integrated_brier_score
from sksurv.nonparametric import CensoringDistributionEstimator
from sksurv.util import Surv

from components.figures import survival
from components.figures.arrays import Array, Bools
from components.figures.survival import concordance, integrated_brier, not_censored
from tests.unit.figure_draws import copies, draws


def followed(kind: str, seed: int = 2) -> tuple[Array, Array, Bools]:
    """Risk, time, event."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=45)
    time = rng.exponential(np.exp(-risk)) + 0.05
    event = rng.random(45) < 0.6
    if kind == "ties":
        risk, time = np.round(risk), np.ceil(4 * time)
    elif kind == "constant risk":
        risk = np.zeros(45)
    elif kind == "constant time":
        time = np.ones(45)
    elif kind == "nearly equal risks":
        risk = np.round(risk) + rng.choice([0, 5e-9], 45)
    elif kind == "all censored":
        event = np.zeros(45, dtype=bool)
    elif kind == "none censored":
        event = np.ones(45, dtype=bool)
    elif kind == "one event":
        event = np.arange(45) == np.argsort(time)[10]
    elif kind == "single case":
        risk, time, event = risk[:1], time[:1], np.array([True])
    return risk, time, event


@pytest.mark.parametrize("block", [512, 7])
@pytest.mark.parametrize(
    "kind",
    ["random", "ties", "constant risk", "constant time", "nearly equal risks", "all censored", "none censored",
     "one event", "single case"],
)  # fmt: skip
def test_concordance(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survival, "BLOCK", block)
    risk, time, event = followed(kind)
    weights = draws(len(risk))
    found = concordance(risk, time, event, weights)
    for row, drawn in enumerate(weights):
        of, until, had = copies(drawn, risk, time, event)
        try:
            expected = concordance_index_censored(had, until, of)[0] if had.any() and len(of) > 1 else np.nan
        except NoComparablePairException:
            expected = np.nan
        assert found[row] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_concordance_of_a_thousand_replicates_takes_well_under_a_second() -> None:
    rng = np.random.default_rng(0)
    weights = draws(500, 1000)
    risk, time, event = rng.normal(size=500), rng.exponential(size=500), rng.random(500) < 0.6
    start = clock.process_time()
    concordance(risk, time, event, weights)
    assert clock.process_time() - start < 1


@pytest.mark.parametrize("kind", ["random", "ties", "constant time", "all censored", "none censored", "single case"])
def test_the_share_not_yet_censored(kind: str) -> None:
    _, time, event = followed(kind)
    at = np.concatenate([time, (time[:-1] + time[1:]) / 2])
    peer = CensoringDistributionEstimator().fit(Surv.from_arrays(event, time)) if event.any() else None
    found = not_censored(time, event, at)
    if peer is None:  # scikit-survival refuses
        expected = np.array([np.mean(time > moment) for moment in at])
    else:
        expected = np.ones(len(at))
        after_the_first = at >= peer.unique_time_[0]  # it has no answer before
        expected[after_the_first] = peer.predict_proba(at[after_the_first])
    assert found == pytest.approx(expected, abs=1e-12)


def curves(times: Array, risk: Array) -> Array:
    return np.exp(-times[None] * np.exp(risk[:, None]))


@pytest.mark.parametrize("kind", ["random", "ties", "constant risk", "none censored", "one event"])
@pytest.mark.parametrize("training", ["random", "ties", "none censored"])
def test_integrated_brier(kind: str, training: str) -> None:
    risk, time, event = followed(kind)
    _, train_time, train_event = followed(training, seed=9)
    train_time = np.append(train_time, [time.max() + 1, time.min() / 2])  # scikit-survival wants them longer
    train_event = np.append(train_event, [training == "none censored", True])
    times = np.quantile(time, [0.1, 0.2, 0.3, 0.45, 0.7, 0.9])
    times = np.unique(times)
    weights = draws(len(risk))
    found = integrated_brier(curves(times, risk), times, time, event, weights, train_time, train_event)
    train = Surv.from_arrays(train_event, train_time)
    checked = 0
    for row, drawn in enumerate(weights):
        of, until, had = copies(drawn, risk, time, event)
        if until.max() <= times[-1] or until.min() > times[0] or not had.any():
            continue  # a span that scikit-survival refuses; the weights of what is left are those of the next row
        expected = integrated_brier_score(train, Surv.from_arrays(had, until), curves(times, of), times)
        assert found[row] == pytest.approx(expected, abs=1e-9)
        checked += 1
    assert checked > 5


def test_integrated_brier_of_censored_cases_alone_and_of_one() -> None:
    """By hand: without event at both times, against 1, each weighed by one over the share not censored."""
    times, train_time = np.array([1.0, 2.0]), np.array([0.5, 1.5, 3.0, 4.0])
    train_event = np.array([False, True, True, True])  # G is 3/4 at both times
    estimate = np.array([[0.9, 0.6], [0.8, 0.5]])
    time, event = np.array([2.5, 1.0]), np.array([False, False])  # the second left at 1: counts 0
    weights = np.array([[1.0, 1], [2, 0], [0, 2]])
    found = integrated_brier(estimate, times, time, event, weights, train_time, train_event)
    first = (0.1**2 + 0.4**2) / 2 / 0.75
    assert found == pytest.approx([first / 2, first, 0.0])
    with pytest.raises(ValueError, match=r"times 1 to 2; 2\.5 to below 2\.5"):  # a single case has no span
        integrated_brier(estimate[:1], times, time[:1], event[:1], np.ones((1, 1)), train_time, train_event)


def test_wrong_times_are_named() -> None:
    risk, time, event = followed("random")
    weights = np.ones((1, len(time)))

    def ask(times: list[float], train_time: Array = time) -> Array:
        array = np.asarray(times)
        return integrated_brier(curves(array, risk), array, time, event, weights, train_time, event)

    with pytest.raises(ValueError, match="at least two, rising"):
        ask([0.5])
    with pytest.raises(ValueError, match="at least two, rising"):
        ask([0.5, 0.5])
    with pytest.raises(ValueError, match=r"times 0\.5 to 1e\+09; .* is allowed"):
        ask([0.5, 1e9])
    with pytest.raises(ValueError, match=r"and to 0\.4 \(the training cases"):
        ask([0.3, 0.5], np.full(45, 0.4))
    with pytest.raises(ValueError, match="time: nan for case 0"):
        concordance(risk, np.full(45, np.nan), event, weights)
