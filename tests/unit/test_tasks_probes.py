"""Probes and stability on features whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from components.tasks.probes import linear_probe, neighbour_probe, predicted
from components.tasks.stability import compare


def clusters(seed: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.repeat(["a", "b", "c"], 20)
    centres = {"a": [apart, 0, 0, 0], "b": [0, apart, 0, 0], "c": [0, 0, apart, 0]}
    return np.array([centres[name] for name in labels]) + generator.normal(size=(60, 4)), labels


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_both_probes_find_separate_classes_whatever_the_scale(scale: float) -> None:
    train, labels = clusters(0, 8.0)
    test, truth = clusters(1, 8.0)
    offset = 50.0  # what all cases share must not matter
    classes = ["a", "b", "c"]
    linear = linear_probe(train * scale + offset, labels, test * scale + offset, classes, 10.0)
    nearest = neighbour_probe(train * scale + offset, labels, test * scale + offset, classes, 5)
    assert (predicted(linear, classes) == truth).mean() > 0.95
    assert (predicted(nearest, classes) == truth).mean() > 0.95
    assert linear.sum(axis=1) == pytest.approx(1)
    assert nearest.sum(axis=1) == pytest.approx(1)


def test_constant_features_give_equal_probabilities() -> None:
    found = linear_probe(np.ones((4, 3)), np.array(["a", "a", "b", "b"]), np.ones((2, 3)), ["a", "b"], 1.0)
    assert (found == 0.5).all()


def test_stability_matches_pairs_by_case_within_a_structure() -> None:
    rows = pd.DataFrame(
        {
            "case": ["s1/liver", "s2/liver", "s3/liver", "s2/liver/retest", "s1/liver/retest"],
            "patient": ["p1", "p2", "p3", "p2", "p1"],
            "label": "liver",
            "split": ["test", "test", "test", "retest", "retest"],
        }
    )
    first = np.array([[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]])
    retest_of_2_found, retest_of_1_lost = first[1], first[2]
    pairs = compare(rows, np.vstack([first, retest_of_2_found, retest_of_1_lost]))
    assert pairs.patients == ["p2", "p1"]
    assert pairs.identified.tolist() == [1.0, 0.0]
    assert pairs.cosine == pytest.approx([1.0, -0.5])
