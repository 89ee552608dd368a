"""Whose chance a figure carries: whole patients, both sides of a retrieval, untrained encoders of any seed; Holm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from components.figures.classification import weighted_auc
from components.figures.families import holm, p_value, replicates_needed
from components.figures.resampling import (
    SHARE,
    Estimate,
    Sample,
    beside_untrained,
    draws,
    figure,
    gate_level,
    paired,
    percentile_interval,
    sample_of,
    standard_error,
    together,
)

KEYS = [f"p{n:03d}" for n in range(40)]


def of(patients: int) -> Sample:
    return Sample(patients, patients - 1, patients / (patients - 1))


def rows_of(values: Sequence[float], errors: Sequence[float], seed: int = 0, replicates: int = 4000) -> np.ndarray:
    """Replicates of several figures whose errors are independent: (figures, replicates + 1)."""
    noise = np.random.default_rng(seed).normal(size=(len(values), replicates))
    noise = (noise - noise.mean(axis=1, keepdims=True)) / noise.std(axis=1, ddof=1, keepdims=True)
    centre = np.asarray(values)[:, None]
    return np.hstack([centre, centre + np.asarray(errors)[:, None] * noise])


# Draws


def test_a_patient_is_drawn_whole_and_rows_may_come_in_any_order() -> None:
    patients = ["b", "a", "b", "c", "a"]
    drawn = draws(patients, 200, 7)
    weights = drawn.weights(patients)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (drawn.counts.sum(axis=1) == 3).all()
    shuffled = [3, 1, 4, 0, 2]
    again = draws([patients[row] for row in shuffled], 200, 7).weights([patients[row] for row in shuffled])
    assert (again == weights[:, shuffled]).all()
    assert (draws(patients, 200, 8).counts != drawn.counts).any()


def test_figures_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(1)
    patients = np.repeat(KEYS, 2)
    scores, positive = rng.normal(size=80), rng.random(80) < 0.4
    order = rng.permutation(80)
    found = []
    for rows in (np.arange(80), order):
        weights = draws(patients[rows].tolist(), 300, 1).weights(patients[rows].tolist())
        found.append(figure(weighted_auc(scores[rows], positive[rows], weights), of(40)).interval())
    assert found[0] == pytest.approx(found[1], abs=1e-12)


def test_tasks_with_the_same_patients_share_draws_whatever_their_cases() -> None:
    ours, theirs = draws(["a", "b", "c", "c"], 50, 3), draws(["c", "b", "a"], 50, 3)
    assert ours.patients == theirs.patients
    assert (ours.counts == theirs.counts).all()


def test_queries_and_gallery_of_one_figure_are_one_draw() -> None:
    test, train = draws(["t1", "t2", "t3"], 100, 3), draws(["a", "u", "z", "b"], 100, 3)
    both = together(test, train)
    assert both.patients == ("a", "b", "t1", "t2", "t3", "u", "z")
    queries, gallery = both.weights(["t2", "t1"]), both.weights(["z", "t1", "t2", "a"])
    assert (queries[:, 0] == gallery[:, 2]).all()
    assert (queries[:, 1] == gallery[:, 1]).all()
    assert (queries == test.weights(["t2", "t1"])).all(), "the queries' draw is that of the task's other figures"
    assert (gallery[:, [0, 3]] == train.weights(["z", "a"])).all()
    assert (both.weights(["t1", "t2", "t3"]).sum(axis=1) == 3).all(), "each side as large as it is"
    assert abs(np.corrcoef(test.counts[1:, 0], train.counts[1:, 0])[0, 1]) < 0.4, "the sides are drawn independently"


def test_what_cannot_be_drawn_is_told_without_naming_patients() -> None:
    with pytest.raises(ValueError, match="0 patients"):
        draws([], 10, 1)
    with pytest.raises(ValueError, match="replicates 0 is not allowed"):
        draws(["a"], 0, 1)
    with pytest.raises(ValueError, match="2 patients with cases are not among the 1 drawn") as told:
        draws(["a"], 10, 1).weights(["a", "secret", "secret", "other"])
    assert "secret" not in str(told.value)
    with pytest.raises(ValueError, match="1 patients are on two sides"):
        together(draws(["a", "b"], 10, 1), draws(["b"], 10, 1))
    with pytest.raises(ValueError, match=r"\[11, 21\] rows"):
        together(draws(["a"], 10, 1), draws(["b"], 20, 1))


# One figure, and paired differences


def test_the_standard_error_of_a_mean_is_the_textbooks() -> None:
    values = np.random.default_rng(2).normal(size=30)
    weights = draws(KEYS[:30], 20_000, 1).weights(KEYS[:30])
    found = standard_error(weights @ values / weights.sum(axis=1), of(30))
    assert found == pytest.approx(values.std(ddof=1) / math.sqrt(30), rel=0.02)


def test_a_difference_of_means_has_the_paired_t_interval() -> None:
    rng = np.random.default_rng(3)
    common = rng.normal(size=12)
    ours, theirs = common + rng.normal(0.4, 0.3, 12), common + rng.normal(0, 0.3, 12)
    weights = draws(KEYS[:12], 20_000, 1).weights(KEYS[:12])
    found = paired(weights @ ours / 12, weights @ theirs / 12, of(12))
    peer = stats.ttest_rel(ours, theirs)
    assert found.interval() == pytest.approx(tuple(peer.confidence_interval()), abs=0.02)
    assert found.p_two_sided() == pytest.approx(peer.pvalue, rel=0.15)
    assert found.freedom == 11


def test_replicates_without_a_figure_are_left_out_and_too_few_are_an_error() -> None:
    rows = rows_of([0.7], [0.05])[0]
    rows[1::4] = np.nan
    assert standard_error(rows, of(20)) == pytest.approx(0.05 * math.sqrt(20 / 19), rel=0.1)
    rows[1::2] = np.nan
    rows[2] = np.nan
    with pytest.raises(ValueError, match="only 1999 of 4000 replicates have a figure; too few patients"):
        standard_error(rows, of(20))


def test_a_sample_is_as_large_as_its_patients_and_its_rarest_class_allow() -> None:
    assert sample_of(["a", "b", "b", "c"]) == Sample(3, 2, 1.5)
    few, many = [f"few{n}" for n in range(3)], [f"many{n}" for n in range(21)]
    found = sample_of([*few, *many, *many], ["x"] * 3 + ["y"] * 42)
    assert found.patients == 24
    assert found.freedom == pytest.approx(1 / (0.875**2 / 2 + 0.125**2 / 20))
    each = sample_of([*many, *many], ["x"] * 21 + ["y"] * 21)
    assert (each.freedom, each.inflation) == (20, pytest.approx(21 / 20)), "patients of both classes count once"
    with pytest.raises(ValueError, match="of 1 patients has no interval"):
        sample_of(["a", "a"])
    with pytest.raises(ValueError, match="a class of 1 patients has no interval"):
        sample_of(["a", "b", "c"], ["x", "y", "y"])


def test_the_freedom_of_two_classes_is_welchs() -> None:
    """Of a difference of class means: the error is scipy's of unequal variances, where both vary alike."""
    rng = np.random.default_rng(6)
    values, labels = rng.normal(size=40), np.array(["x"] * 5 + ["y"] * 35)
    values[:5] = (values[:5] - values[:5].mean()) / values[:5].std(ddof=1)
    values[5:] = (values[5:] - values[5:].mean()) / values[5:].std(ddof=1)
    peer = stats.ttest_ind(values[:5], values[5:], equal_var=False)
    peer_error = math.sqrt(1 / 5 + 1 / 35)
    sample = sample_of(KEYS, labels.tolist())
    assert sample.freedom == pytest.approx(peer.df)
    weights = draws(KEYS, 20_000, 1).weights(KEYS)
    of_x, of_y = (weights * (labels == name) for name in "xy")
    with np.errstate(invalid="ignore"):
        rows = of_x @ values / of_x.sum(axis=1) - of_y @ values / of_y.sum(axis=1)
    assert standard_error(rows, sample) == pytest.approx(peer_error, rel=0.02)


@pytest.mark.parametrize("bounds", [SHARE, (0.0, math.inf), (-math.inf, math.inf), (-1.0, 1.0)])
def test_limits_and_p_values_say_the_same(bounds: tuple[float, float]) -> None:
    estimate = Estimate(0.8, 0.1, 17, bounds)
    low, high = estimate.interval()
    assert max(bounds[0], 0.0) < low < 0.8 < high < bounds[1]
    assert estimate.p_above(low) == pytest.approx(0.025)
    assert estimate.p_below(high) == pytest.approx(0.025)
    assert estimate.p_two_sided(low) == pytest.approx(0.05)
    assert estimate.p_above(0.75) == pytest.approx(1 - estimate.p_below(0.75))
    assert estimate.p_above(0.75) < 0.5 < estimate.p_above(0.85)


def test_limits_of_a_share_stay_inside_and_lean_to_the_middle() -> None:
    low, high = Estimate(0.97, 0.03, 20, SHARE).interval()
    assert 0 < low < high < 1
    assert 0.97 - low > high - 0.97
    assert Estimate(0.97, 0.03, 20, SHARE).p_below(1.0) == 0.0
    assert Estimate(0.97, 0.03, 20, SHARE).p_above(1.0) == 1.0


def test_right_in_all_of_eight_patients_is_not_right_in_all() -> None:
    all_right, none_right = figure(np.ones(101), of(8)), figure(np.zeros(101), of(8))
    exact = stats.binomtest(8, 8).proportion_ci(0.95, method="exact")
    assert all_right.interval() == pytest.approx((exact.low, 1.0))
    assert none_right.interval() == pytest.approx((0.0, 1 - exact.low))
    assert all_right.p_above(0.7) == pytest.approx(0.7**8)
    assert none_right.p_below(0.3) == pytest.approx(0.7**8)
    assert all_right.p_below(0.7) == none_right.p_above(0.3) == 1.0


def test_a_difference_that_all_patients_share_is_as_sure_as_a_sign_test() -> None:
    same = paired(np.full(101, 0.5), np.full(101, 0.5), of(8))
    assert (same.interval(), same.p_above(), same.p_below()) == ((0.0, 0.0), 1.0, 1.0)
    above = paired(np.full(101, 0.5), np.full(101, 0.4), of(4))
    assert above.error == 0
    assert above.p_above() == 2**-4
    assert above.p_below() == 1.0


@pytest.mark.parametrize(("value", "bounds"), [(1.2, SHARE), (-0.1, (0.0, math.inf)), (math.nan, SHARE)])
def test_a_figure_outside_its_bounds_is_refused(value: float, bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=f"a figure of {value} is not allowed: from 0.0 to"):
        Estimate(value, 0.1, 10, bounds)


# Untrained encoders


def test_one_more_encoder_of_the_sample_is_tested_as_students_t_does() -> None:
    """With patients beyond number only the seeds' chance is left, and theirs is the textbook's prediction interval."""
    seeds = np.random.default_rng(4).normal(0.6, 0.03, 12)
    found = beside_untrained(rows_of([0.7], [1e-9])[0], rows_of(seeds.tolist(), [1e-9] * 12, 1), of(10_000))
    half = stats.t.ppf(0.975, 11) * seeds.std(ddof=1)
    centre = 0.7 - seeds.mean()
    assert found.to_another.interval() == pytest.approx(
        (centre - half * math.sqrt(13 / 12), centre + half * math.sqrt(13 / 12)), abs=1e-6
    )
    assert found.to_mean.interval() == pytest.approx(
        (centre - half / math.sqrt(12), centre + half / math.sqrt(12)), abs=1e-6
    )
    assert found.spread == pytest.approx(seeds.std(ddof=1), rel=1e-6)
    assert found.untrained == pytest.approx(seeds.mean())
    assert found.rank == (1 + (seeds >= 0.7).sum()) / 13


def test_without_seeds_of_their_own_only_the_patients_chance_is_left() -> None:
    ours, theirs = rows_of([0.7, 0.6], [0.04, 0.03])
    found = beside_untrained(ours, np.stack([theirs] * 5), of(25))
    alone = paired(ours, theirs, of(25))
    assert found.to_another == found.to_mean == alone
    assert found.spread == 0


def test_what_patients_do_to_one_encoder_is_not_counted_twice() -> None:
    """sigma .03, tau .04: the variance is the patients' plus (1 + 1/S) sigma^2, not (1 + 1/S) (sigma^2 + tau^2)."""
    rng = np.random.default_rng(5)
    many = 400  # so that the seeds' variance is what it says, to 7 %
    seeds = 0.6 + rng.normal(0, math.hypot(0.03, 0.04), many)
    rows = rows_of([0.8, *seeds], [0.06] + [0.04] * many, 6, 1000)
    found = beside_untrained(rows[0], rows[1:], of(10_000))
    assert found.spread == pytest.approx(0.03, rel=0.15)
    assert found.to_another.error == pytest.approx(math.hypot(0.06, 0.03), rel=0.05)
    assert found.to_mean.error == pytest.approx(0.06, rel=0.02)


def test_few_seeds_show_what_patients_do_to_each_as_many_do() -> None:
    values = [0.5, 0.6, 0.7, 0.8]
    found = beside_untrained(rows_of([0.9], [0.01], 9)[0], rows_of(values, [0.05] * 4), of(10_000))
    assert found.spread == pytest.approx(math.sqrt(np.var(values, ddof=1) - 0.05**2), rel=0.01)


def test_at_the_gates_level_at_most_5_percent_pass_in_95_percent_of_samples_of_seeds() -> None:
    """Of encoders whose figures are normal, with patients beyond number: what passes is known for each sample."""
    rng = np.random.default_rng(7)
    for seeds in (3, 20, 40):
        figures = rng.normal(size=(20_000, seeds))
        reach = stats.t.isf(gate_level(seeds), seeds - 1) * math.sqrt(1 + 1 / seeds)
        passing = stats.norm.sf(figures.mean(axis=1) + reach * figures.std(axis=1, ddof=1))
        assert np.mean(passing > 0.05) == pytest.approx(0.05, abs=0.006)
    assert gate_level(20) == pytest.approx(0.0153, abs=1e-4)


def test_the_prediction_is_never_surer_than_the_patients_allow() -> None:
    seeds = rows_of([0.5, 0.6, 0.7, 0.8], [0.2] * 4)  # patients explain more than what the seeds vary
    ours = rows_of([0.9], [0.3], 9)[0]
    found = beside_untrained(ours, seeds, of(30))
    assert found.spread == 0
    assert found.to_another == found.to_mean == paired(ours, seeds.mean(axis=0), of(30))


def test_an_encoder_that_patients_move_less_than_untrained_ones_is_judged_by_its_own_chance() -> None:
    seeds = rows_of(np.linspace(0.4, 0.8, 9).tolist(), [0.1] * 9)
    steady, unsteady = (beside_untrained(rows_of([0.9], [e], 9)[0], seeds, of(30)).to_another for e in (0.01, 0.2))
    assert steady.error < math.sqrt(10 / 9) * seeds[:, 0].std(ddof=1) < unsteady.error
    assert steady.freedom == 8 < unsteady.freedom


def test_the_order_of_seeds_changes_nothing_and_one_seed_is_no_sample() -> None:
    ours, *seeds = rows_of([0.9, 0.6, 0.7, 0.5], [0.02] * 4)
    found, again = (beside_untrained(ours, np.stack(each), of(30)) for each in (seeds, seeds[::-1]))
    assert found.to_another.interval() == pytest.approx(again.to_another.interval(), abs=1e-12)
    with pytest.raises(ValueError, match="1 untrained encoders are not allowed: at least 2, better 20"):
        beside_untrained(ours, np.stack(seeds[:1]), of(30))


# Counting, and families


def test_percentiles_leave_out_replicates_without_a_figure() -> None:
    rows = rows_of([0.7], [0.05])[0]
    rows[5] = np.nan
    assert percentile_interval(rows) == pytest.approx(tuple(np.nanpercentile(rows[1:], [2.5, 97.5])))
    with pytest.raises(ValueError, match="only 2 of 5 replicates have a figure"):
        percentile_interval(np.array([0.5, np.nan, np.nan, np.nan, 0.1, 0.2]))


def test_a_counted_p_value_is_never_zero_and_agrees_with_the_percentiles() -> None:
    figures = np.concatenate([[0.2], np.arange(1, 1000) / 1000])
    assert p_value(figures) == 1 / 1000
    assert p_value(figures, two_sided=True) == 2 / 1000
    assert p_value(figures, bound=0.0251) == pytest.approx(0.026)
    assert p_value(-figures) == 1.0
    assert p_value(-figures, two_sided=True) == 2 / 1000
    low, high = percentile_interval(figures)
    assert p_value(figures, low) == pytest.approx(0.025, abs=0.0015)
    assert p_value(-figures, -high) == pytest.approx(0.025, abs=0.0015)


def test_a_figure_that_ties_with_the_bound_counts_against_it() -> None:
    assert p_value(np.zeros(100)) == 1.0
    assert p_value(np.zeros(100), two_sided=True) == 1.0


def test_how_many_replicates_a_family_takes() -> None:
    assert replicates_needed(1) == 19
    assert replicates_needed(10) == 199
    assert replicates_needed(10, two_sided=True) == 399
    assert replicates_needed(25, two_sided=True) == 999, "1,000 replicates end at 25 gates on both sides"
    for gates in (1, 7, 10, 33):
        figures = np.ones(replicates_needed(gates, two_sided=True) + 1)
        assert holm([p_value(figures, two_sided=True)] + [1.0] * (gates - 1))[0] <= 0.05 + 1e-12
        assert holm([p_value(figures[:-1], two_sided=True)] + [1.0] * (gates - 1))[0] > 0.05
    assert replicates_needed(10, precision=0.2) == 4975
    assert replicates_needed(1, precision=0.2) == 475


def test_holms_adjusted_values_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.04, 0.04]) == pytest.approx([0.08, 0.08])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)
    with pytest.raises(ValueError, match="a p-value of nan is not allowed"):
        holm([0.1, math.nan])


def test_holm_decides_as_its_steps_do() -> None:
    """Significant one after the other, the smallest first, each against alpha over those left; the first miss ends."""
    rng = np.random.default_rng(8)
    for _ in range(200):
        found = rng.random(6) ** 3
        significant = np.zeros(6, dtype=bool)
        for step, gate in enumerate(np.argsort(found)):
            if found[gate] > 0.05 / (6 - step):
                break
            significant[gate] = True
        assert ((holm(found.tolist()) <= 0.05) == significant).all()
