"""Means and medians over cases are NumPy's over the drawn copies, whatever is missing or infinite."""

import numpy as np
import pytest

from components.figures.arrays import check, check_classes
from components.figures.averages import mean_of_cases, median_of_cases
from tests.unit.figure_draws import copies, draws

VALUES = {
    "odd": [3.0, 1.0, 2.0],
    "even": [3.0, 1.0, 2.0, 10.0],
    "ties": [1.0, 1.0, 1.0, 2.0, 2.0],
    "single": [4.0],
    "missing": [np.nan, 1.0, np.nan, 5.0, 2.0],
    "infinite": [np.inf, 1.0, 2.0, np.nan, np.inf, 7.0],
    "all infinite": [np.inf, np.inf],
    "below": [-np.inf, 0.0, 1.0],
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_mean_and_median_are_those_of_the_drawn_values_that_are_defined(values: list[float]) -> None:
    array = np.asarray(values)
    weights = draws(len(array), 60)
    means, medians = mean_of_cases(array, weights), median_of_cases(array, weights)
    for row, drawn in enumerate(weights):
        (of,) = copies(drawn, array)
        of = of[~np.isnan(of)]
        expected = (np.mean(of), np.median(of)) if len(of) else (np.nan, np.nan)
        assert (means[row], medians[row]) == pytest.approx(expected, nan_ok=True)


def test_nothing_defined_has_no_mean() -> None:
    nothing = np.full(3, np.nan)
    assert np.isnan(mean_of_cases(nothing, draws(3))).all()
    assert np.isnan(median_of_cases(nothing, draws(3))).all()


def test_a_figure_says_which_input_is_wrong() -> None:
    ones = np.ones((1, 3))
    with pytest.raises(ValueError, match=r"AUC: scores: 2 cases, but weights for 3"):
        check("AUC", ones, scores=np.zeros(2))
    with pytest.raises(ValueError, match=r"AUC: scores: nan for case 1; a finite number"):
        check("AUC", ones, scores=np.array([[0.0, 0.0], [0.0, np.nan], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"AUC: no case"):
        check("AUC", np.ones((1, 0)), scores=np.zeros(0))
    with pytest.raises(ValueError, match=r"AUC: label 'c'; a, b are allowed"):
        check_classes("AUC", np.array(["a", "c"]), ["a", "b"])
