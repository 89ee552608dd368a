"""Intraclass correlations equal pingouin's on every drawn set of copies; second scans find their first."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pingouin
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from components.figures.agreement import compare_pairs, icc
from components.figures.arrays import Array
from tests.unit.figure_draws import copies, draws


def measured(kind: str, patients: int = 12, scans: int = 2) -> Array:
    """(patients, scans) of one feature."""
    rng = np.random.default_rng(7)
    if kind == "few":
        patients = 3
    elif kind == "three scans":
        scans = 3
    own = rng.normal(size=(patients, 1))
    values = own + 0.4 * rng.normal(size=(patients, scans))
    if kind == "offset between scans":
        values[:, 1] += 2
    elif kind == "only an offset":
        values = np.repeat(own, scans, axis=1) + np.arange(scans) * 0.5
    elif kind == "far from 0":
        values += 1e6
    elif kind == "ties":
        values = np.round(values)
    elif kind == "no difference between patients":
        values = rng.normal(size=(1, scans)) + np.zeros((patients, 1))
    elif kind == "nothing shared":
        values = rng.normal(size=(patients, scans))
    return values


def peer(values: Array) -> tuple[float, float]:
    patients, scans = values.shape
    long = pd.DataFrame(
        {"patient": np.repeat(np.arange(patients), scans), "scan": np.tile(np.arange(scans), patients),
         "value": values.ravel()}
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        table = pingouin.intraclass_corr(long, targets="patient", raters="scan", ratings="value").set_index("Type")
    return table.loc["ICC(A,1)", "ICC"], table.loc["ICC(C,1)", "ICC"]


KINDS = ["random", "three scans", "few", "offset between scans", "only an offset", "far from 0", "ties",
         "nothing shared"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_icc(kind: str) -> None:
    values = measured(kind)
    weights = draws(len(values), 4)
    found = icc(values[:, :, None], weights)
    for row, drawn in enumerate(weights):
        (of,) = copies(drawn, values)
        if (drawn > 0).sum() > 1:
            expected = peer(of)
            assert (found.agreement[row, 0], found.consistency[row, 0]) == pytest.approx(expected, abs=1e-6)
        else:
            assert np.isnan([found.agreement[row, 0], found.consistency[row, 0]]).all()


def test_features_are_told_apart() -> None:
    kinds = ["random", "offset between scans", "far from 0", "ties", "nothing shared"]
    values = np.stack([measured(kind) for kind in kinds], axis=2)
    weights = draws(12, 50)
    together = icc(values, weights)
    for column in range(len(kinds)):
        alone = icc(values[:, :, column : column + 1], weights)
        assert together.agreement[:, column] == pytest.approx(alone.agreement[:, 0], abs=1e-12)
        assert together.consistency[:, column] == pytest.approx(alone.consistency[:, 0], abs=1e-12)


def test_what_agrees_or_differs_by_an_offset_alone() -> None:
    same = np.repeat(np.random.default_rng(0).normal(size=(9, 1, 1)), 2, axis=1)
    weights = draws(9)
    offset = same + np.array([[[0.0], [1.0]]])
    found = icc(np.concatenate([same, offset], axis=2), weights)
    assert found.consistency == pytest.approx(np.ones_like(found.consistency), abs=1e-9)
    assert found.agreement[:, 0] == pytest.approx(np.ones(len(weights)), abs=1e-9)
    assert (found.agreement[:, 1] < 0.9).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.3])
def test_a_constant_feature_and_a_single_patient_have_no_icc(value: float) -> None:
    constant = icc(np.full((7, 2, 3), value), draws(7))
    assert np.isnan(constant.agreement).all()
    assert np.isnan(constant.consistency).all()
    weights = np.array([[1.0, 1, 1], [0, 3, 0]])
    one = icc(np.random.default_rng(0).normal(size=(3, 2, 4)) + value, weights)
    assert np.isfinite(one.agreement[0]).all()
    assert np.isnan(one.agreement[1]).all()
    assert np.isnan(one.consistency[1]).all()


def test_patients_who_do_not_differ_have_no_consistency_beyond_chance() -> None:
    values = measured("no difference between patients")[:, :, None]
    found = icc(values, np.ones((1, 12)))
    assert found.agreement[0, 0] == pytest.approx(0, abs=1e-12)


def test_a_single_scan_is_refused() -> None:
    with pytest.raises(ValueError, match="ICC: 1 scan of each patient; at least 2"):
        icc(np.zeros((3, 1, 2)), np.ones((1, 3)))
    with pytest.raises(ValueError, match="ICC: measured: inf for case 0"):
        icc(np.full((3, 2, 2), np.inf), np.ones((1, 3)))


def test_pairs_are_compared_after_the_mean_of_the_first_scans() -> None:
    rng = np.random.default_rng(1)
    first, own = rng.normal(size=(8, 5)) + 4, np.array([3, 0, 7, 7])
    again = first[own] + 0.8 * rng.normal(size=(4, 5))
    cosine, identified = compare_pairs(first, again, own)
    expected = cosine_similarity(again - first.mean(axis=0), first - first.mean(axis=0))
    assert cosine == pytest.approx(expected[np.arange(4), own], abs=1e-12)
    assert identified.tolist() == (expected.argmax(axis=1) == own).astype(float).tolist()


def test_of_equally_near_first_scans_the_first_is_nearest() -> None:
    first = np.array([[1.0, 0], [1.0, 0], [-2.0, 0]])
    _, identified = compare_pairs(first, first[:2], np.array([0, 1]))
    assert identified.tolist() == [1, 0]
    cosine, identified = compare_pairs(np.ones((3, 2)), np.ones((1, 2)), np.array([0]))
    assert (cosine.tolist(), identified.tolist()) == ([0], [1]), "constant features have no direction"
