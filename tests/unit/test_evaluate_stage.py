"""The whole stage on a tiny line: every output, equal bytes for equal inputs, nothing that names the machine."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from components.ct.store import StoredVolume, Volume, crops_at, write_volume
from components.errors import UserError
from components.evaluate.cases import build_cases
from components.evaluate.layout import Layout
from components.evaluate.plots import principal_components
from components.evaluate.stage import evaluate, evaluation_digest
from components.files import sha256_tree
from components.gate.config import GateConfig
from components.gate.rules import Evidence, verdicts_of
from components.models.build import build_encoder
from components.models.embed import EmbedConfig, Embedder
from components.preprocess.config import PreprocessConfig
from components.settings import parse
from components.tables import read_table
from components.tasks.classify import ClassifyConfig
from components.tasks.config import EvaluateConfig
from components.tasks.features import Crops, Volumes, encoder_method
from components.tasks.nodules import RATINGS
from components.tasks.plain import PLAIN
from components.tasks.stability import StabilityConfig
from components.tasks.table import Inputs
from tests.unit.gate_blocks import asking
from tests.unit.test_tasks_cases import EVALUATE, PREPROCESS

AFFINE = np.array([[0, 0, -1.0, 20], [0, -1.0, 0, 20], [3.0, 0, 0, 0], [0, 0, 0, 1]])
ASKED: dict[str, Any] = {"serve": False, "specificity": 0.9, "few_shot": None}
SERVED: dict[str, Any] = {"serve": True, "specificity": 0.9, "few_shot": (1, 2, 50)}
TASKS: dict[str, Any] = {
    "organs": ClassifyConfig(
        kind="classify", set="line", label="organ", serve=True, specificity=None, few_shot=(1, 2, 50)
    ),
    "lesions": ClassifyConfig(kind="classify", set="line", label="lesion", **ASKED),
    "stability": StabilityConfig(kind="stability", gallery=2),
    "lidc_nodules": ClassifyConfig(
        kind="classify", set="lidc_nodules", label="ratings", serve=False, specificity=0.9, few_shot=None
    ),
}
ORGANS = {"liver": 60, "lung_left": -700, "kidney_right": 30}
EMBED = {
    "encoder": {"kind": "segres", "init_filters": 4, "blocks_down": [1, 1]},
    "input": {
        "orientation": "SPL",
        "spacing_mm": [3.0, 1.0, 1.0],
        "sees": "crop",
        "size_vox": [8, 16, 16],
        "windows": [[512.0, 3072.0]],
    },
}


def tiny_line(folder: Path) -> Inputs:
    """Twelve patients of blobs, of which one in four is scanned twice."""
    generator = np.random.default_rng(0)
    scans, notes = [], []
    for number in range(12):
        for scan in range(2 if number % 4 == 0 else 1):
            series, patient = f"s{number:02d}{scan}", f"p{number:02d}"
            hu = generator.normal(-100, 20, (24, 40, 40))
            for place, (organ, value) in enumerate(ORGANS.items()):
                at = np.array([4 + 7 * place, 10 + 8 * place, 20])
                hu[at[0] - 3 : at[0] + 3, at[1] - 5 : at[1] + 5, 12:28] += value
                notes.append((series, patient, organ, "organ", *(AFFINE[:3, :3] @ at + AFFINE[:3, 3]), 5.0, True))
            path = folder / "volumes" / f"{series}.b2nd"
            write_volume(path, Volume(hu.astype(np.int16), AFFINE), {})
            split = "train" if number % 2 else "test"
            first = f"s{number:02d}0" if scan else ""
            scans.append((series, patient, "evaluation", split, first, "phantom", str(path), "accepted", ""))
    columns = ["series", "patient", "role", "split", "retest_of", "source", "volume", "status", "reason"]
    noted = ["series", "patient", "structure", "kind", "x", "y", "z", "volume_ml", "present"]
    return Inputs(
        "wholebody",
        "crop",
        pd.DataFrame(scans, columns=columns),
        pd.DataFrame(notes, columns=noted),
        parse(EvaluateConfig, EVALUATE, "t"),
        parse(PreprocessConfig, PREPROCESS, "t"),
    )


def tiny_embedder() -> Embedder:
    config = parse(EmbedConfig, EMBED, "t")
    return Embedder.from_encoder(build_encoder(config.encoder, config.input, 7), config)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inputs, Path]:
    folder = tmp_path_factory.mktemp("line")
    inputs = tiny_line(folder)
    evaluate(inputs, TASKS, tiny_embedder(), Layout(folder / "out"))
    return inputs, folder / "out" / "evaluate"


def metrics_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "metrics.json").read_text()))


def test_every_figure_has_interval_baseline_and_paired_difference(evaluated: tuple[Inputs, Path]) -> None:
    metrics = metrics_of(evaluated[1])
    assert set(metrics["tasks"]) == {"organs", "stability/organs", "stability/volume"}
    assert set(metrics["not_evaluated"]) == {
        "lesions",
        *(f"lidc_nodules/{name}" for name in RATINGS),
    }
    assert metrics["patients"] == 12
    for figures in metrics["tasks"].values():
        for numbers in figures.values():
            assert numbers["low"] <= numbers["value"] <= numbers["high"]
            assert numbers["difference"] == pytest.approx(numbers["value"] - numbers["random"], abs=2e-6)
            assert numbers["difference_low"] <= numbers["difference_high"]


def test_who_is_worse_is_told_for_all_tasks_together(evaluated: tuple[Inputs, Path]) -> None:
    metrics = metrics_of(evaluated[1])
    assert metrics["primary"] == {
        "organs": "linear_auc", "stability/organs": "identification", "stability/volume": "identification",
    }  # fmt: skip
    alone = [metrics["tasks"][task][figure]["p_worse"] for task, figure in metrics["primary"].items()]
    assert list(metrics["worse"].values()) == pytest.approx(multipletests(alone, method="holm")[1], abs=2e-6)
    assert list(metrics["worse"].values()) != pytest.approx(alone, abs=1e-3)


def test_the_first_figure_is_the_kinds_first_and_not_the_alphabets(evaluated: tuple[Inputs, Path]) -> None:
    metrics, shown = metrics_of(evaluated[1]), json.loads((evaluated[1] / "primary.json").read_text())
    assert metrics["primary"] == {
        "organs": "linear_auc",
        "stability/organs": "identification",
        "stability/volume": "identification",
    }
    numbers = metrics["tasks"]["organs"]["linear_auc"]
    assert shown["organs"] == {"linear_auc": numbers["value"], "above_untrained": numbers["difference"]}


def test_every_method_stands_beside_the_encoder(evaluated: tuple[Inputs, Path]) -> None:
    table = read_table(evaluated[1] / "table.parquet")
    both = table["method"].str.contains("+", regex=False)  # two kinds of features together
    assert set(table[both]["task"]) == {"organs"}
    table = table[~both]
    assert set(table["method"]) == {"encoder", "random", "random_1", "random_2", *PLAIN}
    assert (table.groupby(["task", "figure"])["method"].nunique() == 4 + len(PLAIN)).all()
    assert table["n_patients"].min() > 0


def test_equal_inputs_give_equal_bytes_and_no_output_names_the_machine(
    evaluated: tuple[Inputs, Path], tmp_path: Path
) -> None:
    inputs, out = evaluated
    evaluate(inputs, TASKS, tiny_embedder(), Layout(tmp_path / "again"))
    assert sha256_tree(tmp_path / "again") == sha256_tree(out.parent)
    for path in ("report.html", "metrics.json", "plots/figures.csv"):
        assert str(Path.home()) not in (out / path).read_text()
        assert str(Path.cwd()) not in (out / path).read_text()


def test_other_voxels_or_another_table_have_another_digest(tmp_path: Path) -> None:
    volumes = Volumes(parse(EvaluateConfig, EVALUATE, "t"), parse(PreprocessConfig, PREPROCESS, "t"), (8, 16, 16))
    file, tasks = tmp_path / "s.b2nd", tmp_path / "tasks"
    digests = []
    for value, rows in ((1, "a"), (2, "a"), (1, "b"), (1, "a")):
        write_volume(file, Volume(np.full((4, 4, 4), value, np.int16), AFFINE), {})
        tasks.write_text(rows)
        digests.append(evaluation_digest(tasks, pd.DataFrame({"volume": [str(file)]}), volumes))
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def test_crops_of_many_volumes_give_the_vectors_of_their_points(evaluated: tuple[Inputs, Path]) -> None:
    """What is embedded in batches equals the embedder's own answer for volume and point."""
    inputs, embedder = evaluated[0], tiny_embedder()
    volumes = [StoredVolume(Path(path)) for path in inputs.curated["volume"][:3]]
    point = inputs.annotations[["x", "y", "z"]].to_numpy()[0]
    crops = np.stack([crops_at(volume, [point], (8, 16, 16))[0] for volume in volumes])
    found = encoder_method(embedder).points(Crops(crops, volumes[0].affine[:3, :3]))
    assert found == pytest.approx(np.concatenate([embedder.embed_points(v, [point]) for v in volumes]), abs=1e-5)


def test_the_gate_reads_what_evaluation_writes(evaluated: tuple[Inputs, Path]) -> None:
    inputs, out = evaluated
    block = asking(
        better_than_random=[{"task": "organs", "figure": "linear_auc", "minimum_gain": -1.0}],
        floors=[{"task": "lesions", "figure": "linear_auc", "minimum": 0.5}],
    )
    funnel = {"in": 15, "accepted": 15, "not_ct": 0, "rejected": {}}
    tasks = read_table(out / "tasks.parquet")
    verdicts = verdicts_of(
        parse(GateConfig, block, "t"),
        Evidence("wholebody", metrics_of(out), funnel, inputs.curated.assign(same_scan=""), tasks),
    )
    (failed,) = [verdict for verdict in verdicts if verdict.failed]
    assert "was not evaluated: no lesions among" in failed.detail


def test_principal_components_of_a_line_lie_on_one_axis() -> None:
    places, share = principal_components(np.outer(np.arange(5.0), [3.0, 4.0]))
    assert share[0] == pytest.approx(1.0)
    assert places[:, 0] == pytest.approx((np.arange(5) - 2) / np.std(np.arange(5)) * np.sqrt(2))


@pytest.mark.parametrize("cases", [1, 7])
def test_principal_components_of_what_hardly_varies(cases: int) -> None:
    single = np.arange(cases, dtype=np.float64)[:, None]
    for features in (single, np.column_stack([single, np.full(cases, 3.0)]), np.full((cases, 4), 3.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            places, share = principal_components(features)
        assert places.shape == (cases, 2)
        assert places[:, 1].tolist() == [0.0] * cases
        assert share.sum() == pytest.approx(float(features.std(axis=0).max() > 0))


def test_principal_components_are_those_of_the_correlations_with_the_largest_loading_positive() -> None:
    features = np.random.default_rng(0).normal(size=(30, 8)) @ np.random.default_rng(1).normal(size=(8, 8)) + 5.0
    places, share = principal_components(features)
    values, vectors = np.linalg.eigh(np.corrcoef(features.T))
    top = vectors[:, [-1, -2]]
    top *= np.sign(top[np.abs(top).argmax(axis=0), [0, 1]])
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    np.testing.assert_allclose(places, standard @ top, atol=1e-12)
    np.testing.assert_allclose(share, values[::-1] / 8, atol=1e-12)


def test_only_the_tasks_that_are_asked_for_are_built_and_none_of_points_for_whole_scans(tmp_path: Path) -> None:
    inputs = tiny_line(tmp_path)
    asked = {"organs": TASKS["organs"]}
    (built,) = build_cases(inputs, asked).values()
    assert set(built.built.table["task"]) == {"organs"}
    assert not built.built.not_evaluated
    with pytest.raises(UserError, match=r"wholebody\.tasks\.organs: not allowed with wholebody\.pretrain\.input\.sees"):
        build_cases(replace(inputs, sees="scan"), asked)
