"""Kind ``retrieve``: CT-FM's protocols equal their definitions by scikit-learn, one query at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_distances
from sklearn.neighbors import NearestNeighbors

from components.ct.store import Volume
from components.figures.arrays import Array
from components.models.embed import EmbedConfig, Embedder, untrained_embedder
from components.settings import ParamsError, parse
from components.tasks.interface import Outcome, Scanned
from components.tasks.retrieve import KIND, RetrieveConfig, judge, least_patch
from tests.unit.task_inputs import AFFINE, evaluation, question

BLOCK = {
    "kind": "retrieve", "set": "line", "label": "organ", "protocol": None, "distance": "cosine", "at": [1, 3, 5],
    "untrained": 2,
}  # fmt: skip
CROPS = {
    "encoder": {"kind": "segres", "init_filters": 4, "blocks_down": [1, 1]},
    "input": {
        "orientation": "SPL", "spacing_mm": [3.0, 1.0, 1.0], "sees": "crop", "size_vox": [4, 8, 8],
        "windows": [[512.0, 3072.0]],
    },
}  # fmt: skip
SCANS = {
    "encoder": {
        "kind": "vit", "patch_vox": 4, "dim": 12, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "registers": 1,
        "position_waves": "grid", "pooling": "whole_centre",
    },
    "input": CROPS["input"] | {"sees": "scan", "size_vox": [8, 8, 8]},
}  # fmt: skip
KINDS = ["random", "ties", "one class has one query", "constant"]


def task(**changed: Any) -> RetrieveConfig:
    return parse(RetrieveConfig, BLOCK | changed, "t")


def table(kind: str = "random") -> tuple[pd.DataFrame, Array]:
    """Cases of organs, two to a patient, and their vectors."""
    rng = np.random.default_rng(4)
    labels = np.array(list("abc"))[np.arange(60) % 3]
    if kind == "one class has one query":
        labels[40:] = np.array(["a", "b"])[np.arange(20) % 2]
        labels[[2, 5, 41, 55]] = "c"
    vectors = rng.normal(size=(60, 6)) + 0.8 * (labels[:, None] == np.array(list("abcabc")))
    vectors = np.round(vectors) if kind == "ties" else np.ones((60, 6)) if kind == "constant" else vectors
    at = np.arange(60)
    rows = pd.DataFrame({
        "task": "r", "case": [f"c{n:02d}" for n in at], "patient": [f"p{n // 2:02d}" for n in at],
        "volume": [f"v{n // 2:02d}" for n in at], "x": at * 1.0, "y": 0.0, "z": 0.0, "label": labels,
        "split": np.where(at < 40, "train", "test"), "diameter_mm": np.nan,
    })  # fmt: skip
    return rows, vectors


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


class NoVolumes:
    """Pictures are drawn of it."""

    def open(self, name: str) -> Volume:
        return Volume(np.zeros((4, 8, 8), dtype=np.int16), AFFINE)


def judged(of: RetrieveConfig, rows: pd.DataFrame, vectors: Array, **given: Any) -> Outcome:
    methods = {"encoder": vectors, "random_1": vectors[:, :2], "random_2": vectors[:, 2:], "histogram": vectors**2}
    return judge(question("r", of, rows, methods, volumes=NoVolumes(), **given))


def values(outcome: Outcome, method: str = "encoder") -> dict[str, float]:
    return {score.figure: score.value for score in outcome.scores if score.method == method}


@pytest.mark.parametrize("kind", KINDS)
def test_organmnist3d_is_as_ct_fm_has_it(kind: str) -> None:
    rows, vectors = table(kind)
    found = values(judged(task(protocol="organmnist3d", distance=None, at=[3, 5, 10]), rows, vectors))
    train, labels = (rows["split"] == "train").to_numpy(), rows["label"].to_numpy()
    expected: dict[str, list[float]] = {}
    for query in np.flatnonzero(~train):
        distances = np.linalg.norm(vectors[query] - vectors[train], axis=1)
        nearest = np.argsort(distances, kind="stable")
        by_tree = NearestNeighbors(n_neighbors=10).fit(vectors[train]).kneighbors(vectors[[query]])[0][0]
        assert distances[nearest[:10]] == pytest.approx(by_tree)
        right = labels[train][nearest] == labels[query]
        expected.setdefault("map", []).append(average_precision_score(right, -np.arange(len(right))))
        for k in (3, 5, 10):
            ap = average_precision_score(right[:k], -np.arange(k)) if right[:k].any() else 0.0
            hit = float(right[:k].any())
            expected.setdefault(f"ap_{k}", []).append(ap)
            expected.setdefault(f"hit_{k}", []).append(hit)
            expected.setdefault(f"f1_{k}", []).append(2 * ap * hit / (ap + hit) if ap + hit else 0.0)
    assert found == pytest.approx({name: np.mean(of) for name, of in expected.items()}, abs=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ties"])  # cosines that tie in theory only
def test_3d_mir_is_as_ct_fm_has_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vectors = table(kind)
    monkeypatch.setattr("components.tasks.retrieve.least_patches", lambda *_: {"encoder": vectors})
    outcome = judged(task(protocol="3d_mir", distance=None, at=[3, 5, 10]), rows, vectors)
    train, labels = (rows["split"] == "train").to_numpy(), rows["label"].to_numpy()
    expected: dict[str, list[float]] = {}
    for query in np.flatnonzero(~train):
        distances = cosine_distances(vectors[[query]], vectors[train])[0].round(12)
        right = (labels[train] == labels[query])[np.argsort(distances, kind="stable")]
        for k in (3, 5, 10):
            expected.setdefault(f"precision_{k}", []).append(right[:k].mean())
        first = average_precision_score(right[:10], -np.arange(10)) if right[:10].any() else 0.0
        expected.setdefault("ap_10", []).append(first)
        expected.setdefault("map", []).append(average_precision_score(right, -np.arange(len(right))))
    wanted = {name: np.mean(of) for name, of in expected.items()}
    assert values(outcome) == pytest.approx(wanted, abs=1e-9)
    assert {score.method for score in outcome.scores} == {"encoder", "histogram"}  # no untrained patches were asked for


def test_without_a_protocol_it_is_the_retrieval_of_classify() -> None:
    from components.tasks.judging import score_task

    rows, vectors = table()
    found = {score.figure: score for score in judged(task(), rows, vectors).scores if score.method == "encoder"}
    scores, _ = score_task("r", rows, {"encoder": vectors}, evaluation())
    theirs = {score.figure: score for score in scores}
    for ours, name in (("map", "retrieval_map"), ("precision_1", "retrieval_p1"), ("precision_5", "retrieval_p5")):
        assert np.array_equal(found[ours].replicates, theirs[name].replicates, equal_nan=True)
        assert found[ours].sample == theirs[name].sample
    assert set(found) == {"map", *(f"{name}_{k}" for name in ("precision", "hit") for k in (1, 3, 5))}


@pytest.mark.parametrize("changed", [{}, {"protocol": "organmnist3d", "distance": None}, {"distance": "euclidean"}])
def test_the_order_of_rows_changes_nothing(changed: dict[str, Any]) -> None:
    rows, vectors = table("ties")
    turn = np.random.default_rng(1).permutation(len(rows))
    one, other = judged(task(**changed), rows, vectors), judged(task(**changed), rows.iloc[turn], vectors[turn])
    for first, second in zip(one.scores, other.scores, strict=True):
        assert np.array_equal(first.replicates, second.replicates)
    assert len(one.cases) == len(other.cases)
    assert set(one.pictures) == {"r_best", "r_worst"}


def test_queries_and_gallery_are_both_drawn() -> None:
    rows, vectors = table()
    of = task(protocol="organmnist3d", distance=None)
    (score,) = (s for s in judged(of, rows, vectors).scores if s.method == "encoder" and s.figure == "map")
    spread = score.replicates[1:].std()
    outcome = judged(of, rows, vectors)
    per_query = outcome.cases.query("method == 'encoder' and probe == 'map'")
    assert score.value == pytest.approx(per_query["score"].mean(), abs=1e-6)
    by_patient = per_query.groupby("patient")["score"].mean()
    queries_alone = by_patient.std() / np.sqrt(len(by_patient))
    assert spread > 1.1 * queries_alone


def embedders(block: dict[str, Any]) -> dict[str, Embedder]:
    config = parse(EmbedConfig, block, "t")
    return {name: untrained_embedder(config, seed) for seed, name in enumerate(["encoder", "random_1", "random_2"])}


def body(seed: int) -> Volume:
    rng = np.random.default_rng(seed)
    return Volume(rng.integers(-400, 400, (9, 20, 17)).astype(np.int16), AFFINE)


def test_the_least_patch_is_the_elementwise_least() -> None:
    volume = body(1)
    for name, of in (found := embedders(CROPS)).items():
        grid = least_patch(found, volume, None)[name]
        assert grid == pytest.approx(np.min([*of.embed_grid(volume).vectors], axis=0))
        crop = least_patch(found, volume, [10.0, 10.0, 12.0])[name]
        last = of.levels(volume, [10.0, 10.0, 12.0])[-1]
        assert crop.tolist() == [float(channel.min()) for channel in last]
    for name, of in (found := embedders(SCANS)).items():
        last = of.levels(volume)[-1]
        assert last[0].size == 8
        assert least_patch(found, volume, None)[name].tolist() == [float(channel.min()) for channel in last]


def test_patches_of_scans_stand_beside_those_of_untrained_encoders() -> None:
    class Scans:
        def open(self, name: str) -> Volume:
            return body(int(name[1:]))

    rows, vectors = table()
    rows = rows.drop_duplicates("volume").assign(x=np.nan, y=np.nan, z=np.nan)
    vectors = vectors[rows.index]
    encoders = {name: lambda of=of: of for name, of in embedders(SCANS).items()}
    of = task(distance="least_patch", untrained=2)
    features = {"encoder": vectors, "histogram": vectors, "peer_theirs": vectors}
    outcome = judge(question("r", of, rows, features, encoders=encoders, volumes=Scans()))
    assert outcome.remarks == {"r": "Without theirs: of peers there are vectors, and no patches."}
    assert {score.method for score in outcome.scores} == {"encoder", "random_1", "random_2", "histogram"}
    values_of = {method: values(outcome, method)["map"] for method in ("encoder", "histogram")}
    assert values_of["encoder"] != values_of["histogram"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"protocol": "3d_mir"}, "distance cosine is not allowed with protocol 3d_mir, which has its own, least_patch"),
        ({"distance": None}, "distance null is not allowed with no protocol, which needs one"),
        ({"at": [5, 1]}, "at [5, 1] is not allowed: each k once, the least first"),
        ({"at": [2]}, "at.0: 2 is not allowed"),
        ({"protocol": "organmnist"}, "protocol: 'organmnist' is not allowed"),
    ],
)
def test_mistakes_in_the_block(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ParamsError, match=r"t\.r") as caught:
        parse(RetrieveConfig, BLOCK | change, "t.r")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_its_parts_are_those_of_classify() -> None:
    trunk, head = Scanned(True, "crop", True, False), Scanned(False, "scan", True, False)
    assert KIND.parts("r", task(), trunk) == ["r"]
    assert KIND.parts("r", task(), head) == []
    assert KIND.parts("r", task(label="finding"), head)[:2] == ["r", "r/ich"]
    assert KIND.points(task())
    assert not KIND.points(task(label="finding"))
