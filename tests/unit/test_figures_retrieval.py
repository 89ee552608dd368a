"""Retrieval with drawn queries and a drawn gallery equals a search among the drawn copies, ranked one by one."""

from __future__ import annotations

import time as clock

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from components.figures.arrays import Array, Integers, Labels
from components.figures.averages import class_mean
from components.figures.retrieval import over_queries, retrieve
from components.figures.similarity import cosine_similarity
from tests.unit.figure_draws import draws

AT = (1, 3, 5, 40)


def cases(kind: str) -> tuple[Array, Integers, Labels, Labels]:
    """Similarity, queries, labels, patients."""
    rng = np.random.default_rng(8)
    number = 2 if kind == "two cases" else 36
    labels = np.array(list("abc"))[rng.integers(0, 3, number)]
    patients = np.array([f"p{n:02d}" for n in rng.integers(0, number // 2, number)])
    queries = np.sort(rng.permutation(number)[: number // 3])
    similarity = rng.normal(size=(len(queries), number))
    if kind == "ties":
        similarity = np.round(similarity)
    elif kind == "constant":
        similarity = np.zeros_like(similarity)
    elif kind == "one class":
        labels[:] = "a"
    elif kind == "one to find":
        labels[:] = "b"
        labels[[0, 20]], queries, similarity, patients[0] = "a", np.array([0]), similarity[:1], "other"
    elif kind == "two cases":
        labels, patients, queries = np.array(["a", "a"]), np.array(["p", "q"]), np.array([0, 1])
        similarity = rng.normal(size=(2, 2))
    return similarity, queries, labels, patients


KINDS = ["random", "ties", "constant", "one class", "one to find", "two cases"]


def one_by_one(similarity: Array, query: int, labels: Labels, patients: Labels, drawn: Array) -> list[float]:
    """Average precision, precision and hit rate at each k: by sorting the copies that were drawn."""
    others = [n for n in range(len(labels)) if patients[n] != patients[query] for _ in range(int(drawn[n]))]
    ranked = sorted(others, key=lambda n: -similarity[n])
    right = np.array([labels[n] == labels[query] for n in ranked])
    if not len(right):
        return [np.nan] * (1 + 2 * len(AT))
    average = average_precision_score(right, -np.arange(len(right))) if right.any() else np.nan
    return [average, *(right[:k].mean() for k in AT), *(float(right[:k].any()) for k in AT)]


def cut_off(similarity: Array, query: int, labels: Labels, patients: Labels, drawn: Array, k: int) -> float:
    """Average precision among the first k of the copies that were drawn; 0 where none of them is right."""
    others = [n for n in range(len(labels)) if patients[n] != patients[query] for _ in range(int(drawn[n]))]
    first = np.array([labels[n] == labels[query] for n in sorted(others, key=lambda n: -similarity[n])[:k]])
    if not len(first):
        return np.nan
    return float(average_precision_score(first, -np.arange(len(first)))) if first.any() else 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_every_query_in_every_replicate(kind: str) -> None:
    similarity, queries, labels, patients = cases(kind)
    weights = draws(len(labels))
    found = retrieve(similarity, queries, labels, patients, weights, AT, cut=(3, 40))
    together = [found.average_precision, *found.precision.values(), *found.hit_rate.values()]
    for replicate, drawn in enumerate(weights):
        for row, query in enumerate(queries):
            expected = one_by_one(similarity[row], int(query), labels, patients, drawn)
            assert [each[replicate, row] for each in together] == pytest.approx(expected, abs=1e-12, nan_ok=True)
            for k, of in found.cut.items():
                wanted = cut_off(similarity[row], int(query), labels, patients, drawn, k)
                assert of[replicate, row] == pytest.approx(wanted, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_a_part_as_gallery_is_a_search_in_that_part(kind: str) -> None:
    similarity, queries, labels, patients = cases(kind)
    weights = draws(len(labels))
    inside = np.arange(len(labels)) % 2 == 0
    found = retrieve(similarity, queries, labels, patients, weights, AT, (5,), inside)
    alone = weights * inside
    for row, query in enumerate(queries):
        for replicate, drawn in enumerate(alone):
            expected = one_by_one(similarity[row], int(query), labels, patients, drawn)
            figures = [found.average_precision, *found.precision.values(), *found.hit_rate.values()]
            assert [each[replicate, row] for each in figures] == pytest.approx(expected, abs=1e-12, nan_ok=True)
            wanted = cut_off(similarity[row], int(query), labels, patients, drawn, 5)
            assert found.cut[5][replicate, row] == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_more_copies_than_a_small_number_holds() -> None:
    similarity, queries, labels, patients = cases("ties")
    weights = draws(len(labels), 1)
    weights[1] *= 2000
    found = retrieve(similarity[:2], queries[:2], labels, patients, weights, (5, 100000))
    for row in range(2):
        expected = one_by_one(similarity[row], int(queries[row]), labels, patients, weights[1])[0]
        assert found.average_precision[1, row] == pytest.approx(expected, abs=1e-9)
        others = weights[1] * (patients != patients[queries[row]])
        of_class = others[labels == labels[queries[row]]].sum() / min(others.sum(), 100000)
        assert found.precision[100000][1, row] == pytest.approx(of_class)


@pytest.mark.parametrize("kind", KINDS)
def test_means_over_drawn_queries(kind: str) -> None:
    similarity, queries, labels, patients = cases(kind)
    weights = draws(len(labels))
    found = retrieve(similarity, queries, labels, patients, weights, AT)
    of, classes = labels[queries], sorted(set(labels[queries].tolist()))
    means = over_queries(found.average_precision, of, classes, weights[:, queries])
    for replicate, drawn in enumerate(weights):
        by_class = []
        for name in classes:
            each = [
                one_by_one(similarity[row], int(query), labels, patients, drawn)[0]
                for row, query in enumerate(queries)
                for _ in range(int(drawn[query]))
                if labels[query] == name
            ]
            each = [value for value in each if not np.isnan(value)]
            by_class += [np.mean(each)] if each else []
        expected = np.mean(by_class) if by_class else np.nan
        assert means[replicate] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(20))
def test_the_figure_itself_is_to_the_last_digit_what_it_always_was(seed: int) -> None:
    """``expected`` is the code of the first releases."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(30, 90))
    features = np.round(rng.normal(size=(number, 5)), seed % 3)
    labels = np.array(list("ab"))[rng.integers(0, 2, number)]
    patients = np.array([f"p{n // 2}" for n in range(number)])
    is_query = rng.random(number) < 0.4
    queries = np.flatnonzero(is_query)
    similarity = cosine_similarity(features[is_query], features, features[~is_query].mean(axis=0))
    rows = []
    for row, case in enumerate(queries):
        allowed = patients != patients[case]
        hits = (labels == labels[case])[allowed][np.argsort(-similarity[row][allowed], kind="stable")]
        ranks = np.flatnonzero(hits) + 1
        rows.append((float(np.mean(np.arange(1, len(ranks) + 1) / ranks)), float(hits[0]), float(hits[:5].mean())))
    expected = np.asarray(rows)
    weights = draws(number, 30, seed)
    found = retrieve(similarity, queries, labels, patients, weights)
    figures = (found.average_precision, found.precision[1], found.precision[5])
    for column, figure in enumerate(figures):
        assert figure[0].tobytes() == expected[:, column].tobytes()
        mean = class_mean(expected[:, column], labels[is_query], ["a", "b"], weights[:, queries])[0]
        assert over_queries(figure, labels[is_query], ["a", "b"], weights[:, queries])[0] == mean


def test_a_thousand_replicates_of_drawn_galleries_take_seconds() -> None:
    rng = np.random.default_rng(0)
    labels = np.array(list("abcde"))[rng.integers(0, 5, 600)]
    patients = np.array([f"p{n // 2}" for n in range(600)])
    queries = np.arange(0, 600, 6)
    weights = draws(600, 1000)
    start = clock.process_time()
    retrieve(rng.normal(size=(100, 600)), queries, labels, patients, weights)
    assert clock.process_time() - start < 3


def test_wrong_inputs_are_named() -> None:
    similarity, queries, labels, patients = cases("random")
    ones = np.ones((2, 36))
    with pytest.raises(ValueError, match="the similarity of query 1 is not finite"):
        retrieve(np.where(np.arange(12)[:, None] == 1, np.nan, similarity), queries, labels, patients, ones)
    with pytest.raises(ValueError, match="whole numbers"):
        retrieve(similarity, queries, labels, patients, 0.5 * ones)
    with pytest.raises(ValueError, match="ones in row 0"):
        retrieve(similarity, queries, labels, patients, 2 * ones)
    with pytest.raises(ValueError, match="k of 0; 1 or above"):
        retrieve(similarity, queries, labels, patients, ones, at=(0,))
    labels[queries[0]] = "z"
    with pytest.raises(ValueError, match="no case of its class in another patient"):
        retrieve(similarity, queries, labels, patients, ones)
