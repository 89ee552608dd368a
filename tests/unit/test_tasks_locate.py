"""Kind ``locate``: moved organs are found, whoever is asked first; what cannot be searched is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from components.ct.labels.stored import LabelMap, write_label_map
from components.ct.store import Int16Array, StoredVolume, Volume, write_volume
from components.errors import UserError
from components.evaluate.peers import beside_peers
from components.figures.resampling import paired
from components.models.embed import EmbedConfig, untrained_embedder
from components.settings import ParamsError, parse
from components.tasks.features import Peer
from components.tasks.interface import Outcome, Question
from components.tasks.locate import LocateConfig, cases, judge, two_sided
from components.tasks.scores import DIGITS
from components.tasks.table import Inputs
from tests.unit.task_inputs import AFFINE, inputs, question

BLOCK = {"kind": "locate", "set": "line", "targets": 3, "queries": 3, "stride_mm": 6.0, "shells": 1, "untrained": 3}
TASK = parse(LocateConfig, BLOCK, "t")
EMBED = {
    "encoder": {"kind": "segres", "init_filters": 4, "blocks_down": [1, 1]},
    "input": {
        "orientation": "SPL", "spacing_mm": [3.0, 1.0, 1.0], "sees": "crop", "size_vox": [4, 8, 8],
        "windows": [[512.0, 3072.0]],
    },
}  # fmt: skip
# With their innermost points on nodes of the lattice.
ORGANS = {"liver": (slice(5, 8), slice(15, 26), slice(15, 26)), "spleen": (slice(13, 16), slice(33, 44), slice(27, 38))}


class Stored:
    """Opens volumes of the store."""

    def open(self, name: str) -> StoredVolume:
        return StoredVolume(Path(name))


def line(folder: Path, patients: int = 6, split: str = "test") -> Inputs:
    """Patients whose organs are the same, each moved by whole steps of the lattice."""
    body = np.kron(np.random.default_rng(5).normal(0, 150, (10, 8, 8)), np.ones((2, 6, 6)))
    scans, points = [], []
    for number in range(patients):
        series, by = f"s{number}", (2 * (number % 2), 6 * (number % 3), 0)
        hu, values = np.full((24, 66, 60), -1000.0), np.zeros((24, 66, 60), dtype=np.uint8)
        hu[1:21, 3:51, 6:54] = body
        for value, box in enumerate(ORGANS.values(), start=1):
            values[box] = value
        hu, values = np.roll(hu, by, (0, 1, 2)), np.roll(values, by, (0, 1, 2))
        path = folder / "volumes" / f"{series}.b2nd"
        write_volume(path, Volume(hu.astype(np.int16), AFFINE), {})
        names = dict(enumerate(ORGANS, start=1)) | {3: "heart"}
        write_label_map(folder / "labels" / path.name, LabelMap(values, names), AFFINE)
        scans.append((series, f"p{number}", split))
        points += [(series, organ, 0.0, 0.0, 0.0) for organ in (*ORGANS, "heart")]
    found = inputs(scans, points)
    return replace(
        found, curated=found.curated.assign(volume=[str(folder / "volumes" / f"{s}.b2nd") for s, *_ in scans])
    )


def asked(rows: pd.DataFrame) -> Question:
    config = parse(EmbedConfig, EMBED, "t")
    encoders = {name: lambda seed=seed: untrained_embedder(config, seed) for seed, name in enumerate(
        ["encoder", "random_1", "random_2", "random_3"], start=7)}  # fmt: skip
    return question("places", TASK, rows, {}, encoders=encoders, volumes=Stored())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Outcome]:
    rows = cases("places", TASK, line(tmp_path_factory.mktemp("line"))).table
    return rows, judge(asked(rows))


class Corner:
    """A peer with larger crops than ours, whose vectors say which voxels are denser than soft tissue."""

    size_vox = (6, 12, 12)

    def embed_crops(self, hu: Int16Array) -> npt.NDArray[np.floating]:
        assert hu.shape[1:] == self.size_vox
        assert hu.dtype == np.int16
        return (hu > 0).reshape(len(hu), -1).astype(np.float64)

    def embed_volume(self, volume: Any) -> npt.NDArray[np.floating]:
        raise AssertionError("places are asked for, and no scan")


def test_a_peer_is_searched_with_in_crops_of_its_own_size_and_changes_nothing_else(
    found: tuple[pd.DataFrame, Outcome],
) -> None:
    rows, alone = found
    corner = Corner()
    theirs = Peer(corner.size_vox, corner.embed_crops, corner.embed_volume)
    outcome = judge(replace(asked(rows), peers={"peer_corner": lambda: theirs}))
    assert values(outcome, "inside")["peer_corner"] == 1.0, "moved organs are found by any vectors of their voxels"
    told = beside_peers(outcome.scores)["places"]["corner"]
    assert set(told) == {"inside", "distance_mm"}
    by = {(score.method, score.figure): score for score in outcome.scores}
    pair = [by[method, "distance_mm"] for method in ("encoder", "peer_corner")]
    expected = paired(pair[0].replicates, pair[1].replicates, pair[1].sample)
    assert told["distance_mm"]["difference"] == pytest.approx(expected.value, abs=10**-DIGITS)
    others = outcome.cases[outcome.cases["method"] != "peer_corner"].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, alone.cases)
    drawn, before = (of.pictures["by_structure"][0].axes[0].get_legend_handles_labels()[1] for of in (outcome, alone))
    assert drawn == [*before, "peer corner"]


def values(outcome: Outcome, figure: str) -> dict[str, float]:
    return {score.method: score.value for score in outcome.scores if score.figure == figure}


def test_moved_organs_are_found(found: tuple[pd.DataFrame, Outcome]) -> None:
    inside, distance = values(found[1], "inside"), values(found[1], "distance_mm")
    assert set(inside) == {"encoder", "random_1", "random_2", "random_3", "histogram", "place"}
    assert inside["encoder"] == 1.0
    assert distance["encoder"] == 0.0
    assert {score.cases for score in found[1].scores} == {3 * 3 * len(ORGANS)}
    assert {score.sample.patients for score in found[1].scores} == {3}
    assert set(found[1].pictures) == {"by_structure", "best", "worst"}


def test_the_place_baseline_is_the_same_share_of_the_bodys_box(found: tuple[pd.DataFrame, Outcome]) -> None:
    """Bodies of the same size: the same place in it, wherever it was moved to."""
    assert values(found[1], "inside")["place"] == 1.0


def test_no_patient_is_on_both_sides_and_pairs_are_all_with_all(found: tuple[pd.DataFrame, Outcome]) -> None:
    rows, outcome = found
    sides = rows.groupby("split")["patient"].unique()
    assert not set(sides["query"]) & set(sides["target"])
    encoder = outcome.cases[(outcome.cases["method"] == "encoder") & (outcome.cases["probe"] == "inside")]
    assert len(encoder) == len(set(encoder["case"])) == 18


def test_figures_follow_from_the_cases(found: tuple[pd.DataFrame, Outcome]) -> None:
    of = found[1].cases.query("method == 'histogram' and probe == 'distance_mm'")
    by_structure = of.groupby("label")["score"].mean()
    assert values(found[1], "distance_mm")["histogram"] == pytest.approx(by_structure.mean(), abs=10**-DIGITS)


def test_the_order_of_rows_changes_nothing(found: tuple[pd.DataFrame, Outcome]) -> None:
    rows, outcome = found
    turned = judge(asked(rows.sample(frac=1.0, random_state=3)))
    order = ["method", "probe", "case", "of_class"]
    there, back = (of.cases.sort_values(order, ignore_index=True) for of in (outcome, turned))
    pd.testing.assert_frame_equal(there, back)
    for one, other in zip(outcome.scores, turned.scores, strict=True):
        assert np.array_equal(one.replicates, other.replicates)


def test_the_draw_of_patients_does_not_depend_on_the_order_of_scans(tmp_path: Path) -> None:
    given = line(tmp_path)
    turned = replace(given, curated=given.curated.iloc[::-1], annotations=given.annotations.iloc[::-1])
    assert cases("places", TASK, given).table.equals(cases("places", TASK, turned).table)


def test_a_pair_weighs_as_often_as_both_its_patients_were_drawn() -> None:
    pairs = pd.DataFrame([(t, q) for t in "abc" for q in "wxyz"], columns=["patient", "query_patient"])
    weights, sample = two_sided(pairs, 50, 1)
    assert weights[0].tolist() == [1.0] * 12
    by_pair = weights.reshape(51, 3, 4)
    assert (by_pair.sum(axis=(1, 2)) == 12).all()  # 3 targets and 4 queries in every draw
    outer = by_pair.sum(axis=2)[:, :, None] * by_pair.sum(axis=1)[:, None] / 12
    assert np.allclose(by_pair, outer)
    assert by_pair.max() >= 4
    assert sample.patients == 3
    turned = pairs.sample(frac=1.0, random_state=2)
    assert np.array_equal(two_sided(turned, 50, 1)[0], weights[:, turned.index])


def test_what_cannot_be_searched_is_told(tmp_path: Path) -> None:
    given = line(tmp_path, patients=5)
    built = cases("places", TASK, given)
    assert built.remarks["places"] == (
        "2 target and 3 query patients, not 3 and 3. Structures left out, in too few label maps: heart."
    )
    (tmp_path / "labels" / "s0.b2nd").unlink()
    (tmp_path / "labels" / "s1.b2nd").unlink()
    few = "3 of 5 test patients' scans have a label map; at least 4 are needed"
    assert cases("places", TASK, given).not_evaluated == {"places": few}
    trained = replace(given, curated=given.curated.assign(split="train"))
    assert cases("places", TASK, trained).not_evaluated == {"places": "no organ point of a test patient"}


def test_a_labelled_set_is_searched_by_what_its_label_maps_name(tmp_path: Path) -> None:
    """Of seven patients one is trained on, one has a second scan without a label map, one's scan was rejected."""
    given = line(tmp_path, patients=7)
    sides = {"s0": "train"} | {f"s{number}": "test" for number in range(1, 7)}
    again = given.curated.iloc[[1]].assign(series="r1", volume=str(tmp_path / "volumes" / "r1.b2nd"))
    curated = pd.concat([again, given.curated]).assign(role="evaluation", split="held_out")
    curated.loc[curated["series"] == "s6", "status"] = "rejected"
    rows = [(0, series, sides[series]) for series in sides] + [(1, "s2", "test"), (1, "r1", "test")]
    labelled = pd.DataFrame(rows, columns=["row", "series", "split"]).assign(set="site")
    other = labelled.assign(set="other", split="train")
    of_set = replace(
        given, curated=curated, annotations=given.annotations.iloc[:0], labelled=pd.concat([labelled, other])
    )
    task = TASK.model_copy(update={"set": "site"})
    built = cases("places", task, of_set)
    assert set(built.table["case"].str.split("/").str[0]) == {"s1", "s2", "s3", "s4", "s5"}
    assert set(built.table["label"]) == set(ORGANS)
    assert "heart" in built.remarks["places"], "named in the label maps, and without a voxel"
    nothing = cases("places", task.model_copy(update={"set": "other"}), of_set)
    assert nothing.not_evaluated == {"places": "no label map of a test patient's scan"}


def test_a_structure_that_one_target_lacks_costs_its_pairs_only(tmp_path: Path) -> None:
    given = line(tmp_path)
    whole = cases("places", TASK, given).table
    target = whole[whole["split"] == "target"].iloc[0]
    path = Path(target["volume"]).parent.with_name("labels") / Path(target["volume"]).name
    write_label_map(path, LabelMap(np.ones((24, 66, 60), dtype=np.uint8), {1: "liver", 2: "spleen"}), AFFINE)
    rows = cases("places", TASK, given).table
    assert len(rows) == len(whole) - 1
    outcome = judge(asked(rows))
    assert {score.cases for score in outcome.scores} == {3 * 3 * 2 - 3}


def test_a_label_map_that_went_away_is_one_line(tmp_path: Path) -> None:
    rows = cases("places", TASK, line(tmp_path)).table
    target = Path(str(rows.loc[rows["split"] == "target", "volume"].iloc[0]))
    (tmp_path / "labels" / target.name).unlink()
    with pytest.raises(UserError, match=rf"labels {target.name}: no label map in the store; run `dvc repro`"):
        judge(asked(rows))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": 1}, "targets: 1 is not allowed"),
        ({"untrained": 2}, "untrained: 2"),
        ({"stride": 3.0}, "'stride_mm'"),
    ],
)
def test_a_mistake_in_the_block_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        parse(LocateConfig, BLOCK | change, "wholebody.tasks.places")
