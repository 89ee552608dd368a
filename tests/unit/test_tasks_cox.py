"""Cox's model against scikit-survival's, and what is known of it by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from components.tasks.cox import fit, log_partial_likelihood


@pytest.mark.parametrize(("cases", "dimension"), [(60, 4), (40, 70)])
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_scikit_survivals(cases: int, dimension: int, tied: bool) -> None:
    generator = np.random.default_rng(dimension)
    features = generator.normal(size=(cases, dimension))
    time = generator.exponential(np.exp(-features[:, 0]))
    time = np.ceil(time * 4) if tied else time
    event = generator.random(cases) < 0.6
    peer = CoxPHSurvivalAnalysis(alpha=2.0, ties="breslow", tol=1e-12, n_iter=200)
    peer.fit(features, Surv.from_arrays(event, time))
    ours = fit(features, time, event, 2.0)
    assert ours.coefficients == pytest.approx(peer.coef_, abs=1e-6)
    at = np.quantile(time, [0.1, 0.5, 0.8])
    theirs = np.array([curve(at) for curve in peer.predict_survival_function(features)])
    assert ours.survival(features, at) == pytest.approx(theirs, abs=1e-6)


def test_without_features_the_hazard_is_events_over_those_at_risk() -> None:
    time, event = np.array([1.0, 2.0, 2.0, 3.0]), np.array([True, True, False, True])
    found = fit(np.zeros((4, 1)), time, event, 1.0)
    assert found.moments.tolist() == [1.0, 2.0, 3.0]
    assert found.hazard == pytest.approx([1 / 4, 1 / 4 + 1 / 3, 1 / 4 + 1 / 3 + 1])
    assert found.survival(np.zeros((1, 1)), np.array([0.5, 1.0]))[0] == pytest.approx([1.0, np.exp(-1 / 4)])


def test_the_likelihood_is_that_of_who_was_next() -> None:
    risk, time = np.log([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])
    event = np.array([True, True, False])
    assert log_partial_likelihood(risk, time, event) == pytest.approx(np.log(1 / 6) + np.log(2 / 5))
    assert log_partial_likelihood(risk[::-1], time[::-1], event[::-1]) == pytest.approx(np.log(1 / 6 * 2 / 5))


def test_order_of_cases_changes_nothing_that_shows() -> None:
    generator = np.random.default_rng(3)
    features, time = generator.normal(size=(30, 5)), np.round(generator.exponential(size=30), 1)
    event = generator.random(30) < 0.5
    turned = generator.permutation(30)
    there, back = fit(features, time, event, 0.5), fit(features[turned], time[turned], event[turned], 0.5)
    assert there.coefficients == pytest.approx(back.coefficients, abs=1e-9)


def test_no_event_is_refused() -> None:
    with pytest.raises(ValueError, match="Cox: 0 events and penalty 1"):
        fit(np.zeros((2, 1)), np.ones(2), np.array([False, False]), 1.0)
