"""Kind ``saliency``: what an answer rests on is found where it was planted; maps equal captum's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from components.ct.labels.stored import LabelMap, write_label_map
from components.ct.store import StoredVolume, Volume, write_volume
from components.models.embed import EmbedConfig, Embedder, untrained_embedder
from components.models.heads import Linear
from components.settings import ParamsError, parse
from components.tasks import classify
from components.tasks.classify import ClassifyConfig
from components.tasks.interface import Outcome, Question, Scanned
from components.tasks.judging import Part, judge_method
from components.tasks.saliency import KIND, SaliencyConfig, cases, judge
from components.tasks.saliency_cases import answer_of
from components.tasks.saliency_maps import (
    STEPS,
    Blocks,
    area,
    deletion,
    integrated_gradients,
    neutral_of,
    occlusion,
)  # fmt: skip
from components.tasks.table import Inputs
from tests.unit.task_inputs import AFFINE, evaluation, inputs, question

EMBED = {
    "encoder": {"kind": "segres", "init_filters": 4, "blocks_down": [1, 1]},
    "input": {
        "orientation": "SPL", "spacing_mm": [3.0, 1.0, 1.0], "sees": "crop", "size_vox": [4, 12, 12],
        "windows": [[512.0, 3072.0], [40.0, 400.0]],
    },
    "pooling": "centre",
}  # fmt: skip
OF = {
    "kind": "classify", "set": "line", "label": "lesion", "serve": False, "specificity": None, "few_shot": None,
}  # fmt: skip
BLOCK = {
    "kind": "saliency", "of": "lesions", "structures": {"lesions": ["lesion_liver"]}, "cases": 4, "block_mm": 4.0,
    "steps": 4, "off_centre_mm": 3.0, "tolerance_mm": 2.0, "untrained": 3,
}  # fmt: skip
TASK, CLASSIFY = parse(SaliencyConfig, BLOCK, "t"), parse(ClassifyConfig, OF, "t")
SIZE, SHAPE = (6, 8, 10), (24, 48, 48)
METHODS = ["encoder", "random_1", "random_2", "random_3"]


def embedder(seed: int = 1, double: bool = False) -> Embedder:
    made = untrained_embedder(parse(EmbedConfig, EMBED, "t"), seed)
    if double:
        made.encoder.double()
    return made


def seen(size: tuple[int, int, int] = SIZE) -> torch.Tensor:
    return torch.rand(1, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def answer(double: bool = True) -> Callable[[torch.Tensor], torch.Tensor]:
    of = embedder(double=double)
    rng = np.random.default_rng(3)
    linear = Linear(rng.normal(size=of.dim), np.full(of.dim, 2.0), rng.normal(size=(2, of.dim)), rng.normal(size=2))
    return answer_of(of, linear)


def test_the_answer_is_the_probes_log_odds() -> None:
    of, rng = embedder(), np.random.default_rng(3)
    linear = Linear(rng.normal(size=of.dim), np.full(of.dim, 2.0), rng.normal(size=(2, of.dim)), rng.normal(size=2))
    x = seen().float()
    logits = linear.logits(of.vectors(x).numpy())
    assert answer_of(of, linear)(x).numpy() == pytest.approx(logits[:, 1] - logits[:, 0], abs=1e-5)


def test_occlusion_equals_captums() -> None:
    from captum import attr

    score, x, blocks = answer(), seen(), Blocks.of(SIZE, (3, 2, 5))
    sides = (2, 2, 4, 2)  # of both channels together
    peer = attr.Occlusion(score).attribute(x, sides, strides=sides, baselines=neutral_of(x))
    ours = occlusion(score, x, blocks, np.arange(blocks.count))[blocks.number]
    assert np.abs(peer[0, 0].numpy()).max() > 1e-3
    assert ours == pytest.approx(peer[0, 0].numpy(), abs=1e-6)


@pytest.mark.parametrize("counts", [(4, 3, 3), (1, 1, 1), (99, 1, 99)])
def test_occlusion_of_unequal_blocks_equals_captums_ablation(counts: tuple[int, int, int]) -> None:
    from captum import attr

    score, x, blocks = answer(), seen(), Blocks.of(SIZE, counts)
    peer = attr.FeatureAblation(score).attribute(
        x, baselines=neutral_of(x).expand_as(x), feature_mask=torch.from_numpy(blocks.number)[None, None].expand_as(x)
    )
    ours = occlusion(score, x, blocks, np.arange(blocks.count))[blocks.number]
    assert ours == pytest.approx(peer[0, 0].numpy(), abs=1e-6)


@pytest.mark.parametrize("steps", [2, 7, 40])
def test_integrated_gradients_equal_captums_and_add_up(steps: int) -> None:
    from captum import attr

    score, x = answer(), seen()
    peer = attr.IntegratedGradients(score).attribute(
        x, baselines=neutral_of(x).expand_as(x), n_steps=steps, method="gausslegendre"
    )
    ours = integrated_gradients(score, x, steps)
    assert np.abs(ours).max() > 1e-4
    assert ours == pytest.approx(peer.sum(dim=1)[0].numpy(), abs=1e-6)
    if steps == 40:
        whole = float(score(x) - score(neutral_of(x).expand_as(x)))
        assert ours.sum() == pytest.approx(whole, rel=0.02)


def test_what_is_not_chosen_is_left_alone() -> None:
    blocks = Blocks.of(SIZE, (3, 2, 5))
    some = occlusion(answer(), seen(), blocks, np.array([3, 17]))
    every = occlusion(answer(), seen(), blocks, np.arange(30))
    assert some[[3, 17]] == pytest.approx(every[[3, 17]], abs=1e-12)
    assert np.count_nonzero(some) == 2


def test_a_constant_image_rests_on_nothing() -> None:
    x, blocks = torch.full((1, 2, *SIZE), 0.25, dtype=torch.float64), Blocks.of(SIZE, (2, 2, 2))
    assert (occlusion(answer(), x, blocks, np.arange(8)) == 0).all()
    assert (integrated_gradients(answer(), x, 3) == 0).all()


def test_blocks_divide_the_input() -> None:
    blocks = Blocks.of((5, 4, 3), (2, 4, 9))
    assert blocks.count == 2 * 4 * 3
    assert blocks.sizes.sum() == 60
    assert set(blocks.sizes.tolist()) == {2, 3}
    assert blocks.centres()[[0, 23]].tolist() == [[1.0, 0.0, 0.0], [3.5, 3.0, 2.0]]


def test_a_deletion_curve_starts_at_the_answer_and_ends_at_nothing() -> None:
    def score(x: torch.Tensor) -> torch.Tensor:  # so many log odds as voxels differ from the mean
        return (x - x.mean(dim=(2, 3, 4), keepdim=True)).abs().sum(dim=(1, 2, 3, 4)) - 4.0

    x = torch.zeros(1, 1, 1, 1, 8, dtype=torch.float64)
    x[..., 2], x[..., 6] = 4.0, -4.0  # of mean 0
    orders = np.array([[2, 6, 0, 1, 3, 4, 5, 7], [0, 1, 3, 4, 5, 7, 6, 2]])
    curves = deletion(score, x, Blocks.of((1, 1, 8), (1, 1, 8)), orders)
    assert curves.shape == (2, STEPS + 1)
    assert curves[:, 0] == pytest.approx(1 / (1 + np.exp(-4.0)))
    assert curves[:, -1] == pytest.approx(1 / (1 + np.exp(4.0)))
    assert area(curves)[0] < 0.4 < 0.8 < area(curves)[1]


@pytest.mark.parametrize("values", [[0.3] * 11, list(np.linspace(0, 1, 11)), [1.0, *[0.0] * 10]])
def test_the_area_is_the_trapezoids(values: list[float]) -> None:
    from sklearn.metrics import auc

    assert area(np.array([values])) == pytest.approx([auc(np.arange(11) / 10, values)], abs=1e-12)


class Stored:
    """Opens volumes of the store."""

    def open(self, name: str) -> StoredVolume:
        return StoredVolume(Path(name))


def line(folder: Path, patients: int = 8) -> Inputs:
    """Patients with a bright lesion and a healthy point in a liver, half of them for training."""
    scans, notes = [], []
    for number in range(patients):
        series, rng = f"s{number}", np.random.default_rng(number)
        hu, values = np.full(SHAPE, -1000.0), np.zeros(SHAPE, dtype=np.uint8)
        hu[2:22, 4:44, 4:44] = 60 + rng.normal(0, 10, (20, 40, 40))
        place, healthy = np.array([7, 14, 14 + 2 * (number % 3)]), np.array([16, 30, 30])
        box = tuple(slice(a - r, a + r + 1) for a, r in zip(place, (0, 2, 2), strict=True))
        hu[box] += 600
        values[box] = 20
        path = folder / "volumes" / f"{series}.b2nd"
        write_volume(path, Volume(hu.astype(np.int16), AFFINE), {})
        write_label_map(folder / "labels" / path.name, LabelMap(values, {1: "liver", 20: "lesion_liver"}), AFFINE)
        scans.append((series, f"p{number}", "train" if number % 2 else "test"))
        for voxel, present in ((place, True), (healthy, False)):
            notes.append((series, "lesion_liver", *(AFFINE[:3, :3] @ voxel + AFFINE[:3, 3]), present))
    found = inputs(scans, [])
    points = pd.DataFrame(notes, columns=["series", "structure", "x", "y", "z", "present"])
    return replace(
        found,
        annotations=points.assign(patient="", kind="lesion", volume_ml=1.0),
        curated=found.curated.assign(volume=[str(folder / "volumes" / f"{s}.b2nd") for s, *_ in scans]),
        tasks={"lesions": CLASSIFY, "saliency": TASK},
    )


def asked(given: Inputs, rows: pd.DataFrame) -> Question:
    places = classify.cases("lesions", CLASSIFY, given).table
    encoders = {name: lambda seed=seed: embedder(seed) for seed, name in enumerate(METHODS)}
    vectors = {
        name: np.concatenate([
            of().embed_points(StoredVolume(Path(row["volume"])), [[row["x"], row["y"], row["z"]]])
            for _, row in places.iterrows()
        ]).astype(np.float64)
        for name, of in encoders.items()
    }  # fmt: skip
    found = question("saliency", TASK, places, vectors, encoders=encoders, volumes=Stored())
    return replace(found, rows=rows)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inputs, pd.DataFrame, Outcome]:
    given = line(tmp_path_factory.mktemp("line"))
    rows = cases("saliency", TASK, given).table
    return given, rows, judge(asked(given, rows))


def values(outcome: Outcome, figure: str) -> dict[str, float]:
    return {score.method: score.value for score in outcome.scores if score.figure == figure}


def test_a_planted_lesion_is_pointed_at(found: tuple[Inputs, pd.DataFrame, Outcome]) -> None:
    for way in ("occlusion", "gradients"):
        pointing, inside, gain = (values(found[2], f"{way}_{name}") for name in ("pointing", "inside", "gain"))
        assert pointing["encoder"] == 1.0
        assert pointing["hu_deviation"] == 1.0
        assert 0 < pointing["chance"] < 0.5
        assert inside["encoder"] > 2 * inside["chance"] > 0
        assert gain["encoder"] > 0
        assert set(pointing) == {*METHODS, "hu_deviation", "middle", "chance"}
        assert set(inside) == {*METHODS, "hu_deviation", "chance"}
        assert set(gain) == {*METHODS, "hu_deviation", "middle"}


def test_crops_are_moved_off_the_lesion_each_its_own_way(found: tuple[Inputs, pd.DataFrame, Outcome]) -> None:
    given, rows, _ = found
    before = classify.cases("lesions", CLASSIFY, given).table.set_index("case")
    test = rows[rows["split"] == "test"].set_index("case")
    off = test[["x", "y", "z"]] - before.loc[test.index, ["x", "y", "z"]]
    assert off.abs().max(axis=None) <= TASK.off_centre_mm
    assert len(np.unique(off.round(6), axis=0)) == len(test) == 4
    train = rows[rows["split"] == "train"].set_index("case")
    pd.testing.assert_frame_equal(train[["x", "y", "z"]], before.loc[train.index, ["x", "y", "z"]])


def test_the_probe_is_that_of_the_task_asked_about(
    found: tuple[Inputs, pd.DataFrame, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, rows, _ = found
    fitted: list[Linear] = []
    real = answer_of
    monkeypatch.setattr(
        "components.tasks.saliency_cases.answer_of", lambda of, linear: (fitted.append(linear), real(of, linear))[1]
    )
    judge(replace(asked(given, rows), task=TASK.model_copy(update={"untrained": 2, "cases": 2, "steps": 2})))
    table = classify.cases("lesions", CLASSIFY, given).table
    part = Part.of("lesions", table, evaluation())
    theirs = judge_method(part, "encoder", asked(given, rows).features.of("encoder", part.rows), evaluation())
    assert np.array_equal(fitted[0].weight, theirs.fitted.linear.weight)
    assert np.array_equal(fitted[0].bias, theirs.fitted.linear.bias)


def test_figures_follow_from_the_cases_in_any_order(found: tuple[Inputs, pd.DataFrame, Outcome]) -> None:
    given, rows, outcome = found
    of = outcome.cases.query("method == 'random_2' and probe == 'gradients_inside'")
    assert values(outcome, "gradients_inside")["random_2"] == pytest.approx(of["score"].mean(), abs=1e-12)
    turned = judge(asked(given, rows.sample(frac=1.0, random_state=3)))
    for one, other in zip(outcome.scores, turned.scores, strict=True):
        assert np.array_equal(one.replicates, other.replicates)
    assert outcome.tables["deletion"].equals(turned.tables["deletion"])
    assert set(outcome.pictures) == {"deletion", "best", "worst"}


def test_cases_do_not_depend_on_the_order_of_scans(found: tuple[Inputs, pd.DataFrame, Outcome]) -> None:
    given, rows, _ = found
    turned = replace(given, curated=given.curated.iloc[::-1], annotations=given.annotations.iloc[::-1])
    assert cases("saliency", TASK, turned).table.equals(rows)
    assert rows[rows["split"] == "test"]["label"].unique().tolist() == ["lesion"]


def test_what_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    given = line(tmp_path)
    (tmp_path / "labels" / "s0.b2nd").unlink()
    built = cases("saliency", TASK, given)
    assert built.remarks == {"saliency": "Of class lesion, 3 of 4 test cases; 1 without the structure in a label map."}
    none = TASK.model_copy(update={"structures": {"lesions": ("lesion_lung",)}})
    assert cases("saliency", none, given).not_evaluated == {
        "saliency": "0 of 4 test patients of class lesion have lesion_lung in a label map; at least 2 are needed"
    }
    parts = TASK.model_copy(update={"structures": {"lesions": ("lesion_liver",), "ich": ("lesion_liver",)}})
    built = cases("saliency", parts, given)
    assert set(built.table["task"]) == {"saliency/lesions"}
    assert built.not_evaluated == {"saliency/ich": "lesions has no part lesions/ich"}
    assert built.table.query("split == 'test'")["patient"].nunique() == 3


def test_a_structure_beyond_the_crop_costs_its_case(found: tuple[Inputs, pd.DataFrame, Outcome]) -> None:
    given, rows, _ = found
    lost = rows[rows["split"] == "test"].index[0]
    moved = rows.copy()
    moved.loc[lost, "z"] += 25.0
    outcome = judge(replace(asked(given, moved), task=TASK.model_copy(update={"steps": 2, "untrained": 2})))
    told = f"Left out, none of the structure is in what the encoder sees: {rows.loc[lost, 'case']}."
    assert outcome.remarks == {"saliency": told}
    assert {score.cases for score in outcome.scores} == {3}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"structures": {}}, "structures: {} is not allowed"),
        ({"structures": {"ich": []}}, "structures.ich"),
        ({"cases": 1}, "cases: 1 is not allowed"),
        ({"block_mm": 0.0}, "block_mm: 0.0 is not allowed"),
        ({"steps": 1}, "steps: 1 is not allowed"),
        ({"tolerance_mm": -1.0}, "tolerance_mm: -1.0 is not allowed"),
    ],
)
def test_mistakes_in_the_block(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ParamsError, match=r"t\.saliency\.") as caught:
        parse(SaliencyConfig, BLOCK | change, "t.saliency")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_asks_about_a_task_that_classifies() -> None:
    tasks = {"lesions": CLASSIFY, "saliency": TASK}
    assert KIND.beside(TASK, tasks) == {}
    for name in ("lesion", "saliency"):
        told = KIND.beside(TASK.model_copy(update={"of": name}), tasks)["of"]
        assert told.startswith(f"{name!r} is not allowed: a task of kind classify with label maps, lesions")


def test_parts_are_those_that_can_be_answered() -> None:
    head = parse(ClassifyConfig, OF | {"label": "finding"}, "t")
    several = TASK.model_copy(update={"of": "findings", "structures": {"ich": ("a",), "sdh": ("b",), "x": ("c",)}})
    scanned = Scanned(False, "scan", False, False, {"findings": head, "lesions": CLASSIFY})
    assert KIND.parts("why", several, scanned) == ["why", "why/ich", "why/sdh"]
    assert KIND.parts("why", TASK, scanned) == []
    assert KIND.parts("why", TASK, replace(scanned, trunk=True)) == ["why"]
