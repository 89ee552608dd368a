"""Kind ``segment``: what it is asked, how it learns from few scans, and what it says of mistakes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics.meandice import DiceMetric

from components.ct.grid import GridConfig
from components.ct.labels.stored import LabelMap, label_map_of, read_label_map, write_label_map
from components.ct.store import StoredVolume, Volume, write_volume
from components.errors import UserError
from components.evaluate.task import write_head
from components.figures.arrays import Array
from components.files import sha256_file
from components.models.embed import EmbedConfig, Embedder, untrained_embedder
from components.models.heads import load_heads
from components.models.segment_head import SegmentHead, load_segment_heads
from components.models.segmenter import image_of
from components.settings import ParamsError, parse
from components.tasks import dense
from components.tasks.config import EvaluateConfig
from components.tasks.features import Features, Volumes
from components.tasks.interface import Outcome, Question, Scanned
from components.tasks.segment import KIND, _fine_tuned, cases, judge
from components.tasks.segment_config import DecoderConfig, FineTuneConfig, SegmentConfig, VariedConfig
from components.tasks.segment_scans import Scan, open_scan
from components.tasks.table import Inputs

SHAPE = (12, 48, 52)
SPACING = (3.0, 1.0, 1.0)
NAMES = {1: "liver", 2: "kidney_left", 3: "body"}
EMBED = parse(
    EmbedConfig,
    {
        "encoder": {"kind": "segres", "init_filters": 4, "blocks_down": [1, 1, 1]},
        "input": {
            "sees": "crop", "orientation": "SPL", "spacing_mm": SPACING, "size_vox": [8, 32, 32],
            "windows": [[50, 1000]],
        },
    },
    "",
)  # fmt: skip
CONFIG = parse(
    EvaluateConfig,
    {
        "selection": None, "device": "cpu", "pooling": "own", "seed": 5, "random_seeds": [1, 2],
        "bootstrap": 100, "linear_c": 1.0,
        "neighbours": 3, "minimum_patients": 2, "histogram": {"bins": 8, "low_hu": -1000, "high_hu": 1000},
        "centre_mm": 8.0, "nodule_window_mm": [6.0, 24.0, 24.0], "lidc_nodules": None,
    },
    "",
)  # fmt: skip
GRID = GridConfig(
    orientation="SPL", spacing_mm=SPACING, enlarging="linear", foreground_hu=-500, foreground_margin_mm=5.0,
    clip_hu=(-1024, 3071),
)  # fmt: skip
DECODER = {
    "varied": {"copies": 1, "zoom": 0.05, "contrast": 0.05, "shift_hu": 5.0, "noise_hu": 10.0},
    "averaged": [1, 2, 2], "finest": 0, "width": 16, "dropout": 0.1, "voxels": 2000, "batch": 256, "steps": 100,
    "crops": 2, "crop_cells": [2, 3, 3], "learning_rate": 0.02, "window_vox": [64, 64, 64], "overlap": 0.25,
    "one_piece": True,
}  # fmt: skip


def affine() -> Array:
    """SPL: the first axis upwards, the second to the back, the third to the left."""
    found = np.zeros((4, 4))
    found[2, 0], found[1, 1], found[0, 2], found[3, 3] = SPACING[0], -SPACING[1], -SPACING[2], 1.0
    return found


def task(**changes: object) -> SegmentConfig:
    block: dict[str, object] = {
        "kind": "segment", "set": "line", "structures": ["liver", "kidney_left"], "scans": [1, 3], "test_scans": 3,
        "untrained": 2, "tolerance_mm": 2.0, "decoder": DECODER,
        "fine_tune": None, "serve": True,
    }  # fmt: skip
    return parse(SegmentConfig, block | changes, "wholebody.tasks.organs")


def scan(folder: Path, series: str, seed: int, labelled: bool = True, without: Sequence[int] = ()) -> Path:
    """A body with a bright liver and a brighter kidney, a little different in each."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    values = np.zeros(SHAPE, np.uint8)
    values[(np.abs(y - 24) < 20) & (np.abs(x - 26) < 22)] = 3
    dy, dx = rng.integers(-2, 3, 2)
    values[((y - 20 - dy) ** 2 + (x - 16 - dx) ** 2 < 81) & (z > 1) & (z < 10)] = 1
    values[((y - 30 - dy) ** 2 + (x - 38 - dx) ** 2 < 49) & (z > 2) & (z < 9)] = 2
    hu = np.array([-1000, 300, 450, 0])[values] + rng.normal(0, 20, SHAPE)
    path = folder / "volumes" / f"{series}.b2nd"
    write_volume(path, Volume(np.rint(hu).astype(np.int16), affine()), {})
    if labelled:
        values[np.isin(values, list(without))] = 3
        write_label_map(folder / "labels" / path.name, LabelMap(values, NAMES), affine())
    return path


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:8]


def inputs(folder: Path, train: int = 4, test: int = 4, unlabelled: int = 1, without: Sequence[int] = ()) -> Inputs:
    rows = []
    for number in range(train + test + unlabelled):
        side = "train" if number < train else "test"
        path = scan(folder, f"s{key(number)}", number, number < train + test, without if side == "train" else ())
        rows.append({"series": f"s{key(number)}", "patient": f"p{key(number)}", "volume": str(path), "split": side,
                     "status": "accepted", "role": "evaluation", "retest_of": ""})  # fmt: skip
    organs = pd.DataFrame(
        {"series": [row["series"] for row in rows], "patient": "p", "structure": "liver", "kind": "organ", "x": 0.0,
         "y": 0.0, "z": 0.0, "volume_ml": 1.0, "present": True}
    )  # fmt: skip
    return Inputs("wholebody", "crop", pd.DataFrame(rows), organs, CONFIG, GRID)


def question(of: Inputs, block: SegmentConfig) -> Question:
    def untrained(seed: int) -> Embedder:
        return untrained_embedder(EMBED, seed)

    encoders = {"encoder": lambda: untrained(9), "random_1": lambda: untrained(1), "random_2": lambda: untrained(2)}
    rows = cases("organs", block, of).table
    return Question(
        "wholebody", "organs", block, rows, CONFIG, Features({}, {}), encoders, Volumes(CONFIG, GRID, (8, 32, 32))
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Question, Outcome]:
    asked = question(inputs(tmp_path_factory.mktemp("line")), task())
    return asked, judge(asked)


def test_cases_are_drawn_by_patient_and_not_by_the_order_of_rows(tmp_path: Path) -> None:
    of = inputs(tmp_path)
    built = cases("organs", task(), of)
    table = built.table
    assert table.groupby("split")["patient"].nunique().to_dict() == {"test": 3, "train": 3}
    assert sorted(table["label"].unique()) == ["kidney_left", "liver"]
    assert "1 scans have no label map of all of these" in built.remarks["organs"]
    shuffled = Inputs("wholebody", "crop", of.curated.sample(frac=1, random_state=3), of.annotations, CONFIG, GRID)
    pd.testing.assert_frame_equal(cases("organs", task(), shuffled).table, table)
    assert cases("organs", task(structures=None), of).table["label"].unique().tolist() == ["liver"]


def test_what_cannot_be_asked_is_said(tmp_path: Path) -> None:
    of = inputs(tmp_path, train=1, test=2)
    built = cases("organs", task(), of)
    assert "Left out, too few labelled scans: 3." in built.remarks["organs"]
    few = cases("organs", task(scans=[2]), of)
    assert few.table.empty
    assert few.not_evaluated["organs"].startswith("1 patients with a label map in train, 2 in test")
    with pytest.raises(UserError, match=r"wholebody.tasks.organs.structures: 'spleen' is not allowed: one of body"):
        cases("organs", task(structures=["spleen"]), of)
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    assert (
        "none of the 4 accepted evaluation series has a label map"
        in cases("organs", task(), of).not_evaluated["organs"]
    )
    whole = Inputs("head", "scan", of.curated, of.annotations, CONFIG, GRID)
    assert "whole scans" in cases("organs", task(), whole).not_evaluated["organs"]
    for wrong in ({"scans": [4, 1]}, {"structures": ["liver", "liver"]}, {"untrained": 1}):
        with pytest.raises(ParamsError):
            task(**wrong)


def test_a_label_map_of_another_shape_is_one_line(tmp_path: Path) -> None:
    path = scan(tmp_path, "s1", 1)
    labels = label_map_of(path)
    assert labels is not None
    write_label_map(labels, LabelMap(np.zeros((2, 3, 4), np.uint8), NAMES), affine())
    with pytest.raises(UserError, match=r"labels s1.b2nd: a shape of \(2, 3, 4\) is not allowed: \(12, 48, 52\)"):
        open_scan("s1", "p1", str(path), StoredVolume(path), ["liver"])
    labels.unlink()
    with pytest.raises(UserError, match=r"volume s1.b2nd: its label map is gone"):
        open_scan("s1", "p1", str(path), StoredVolume(path), ["liver"])


def opened(volume: str) -> Scan:
    return open_scan("s", "p", volume, StoredVolume(Path(volume)), ["kidney_left", "liver"])


def taught(found: Scan, decoder_: DecoderConfig) -> tuple[dense.Learner, dense.Labelled]:
    """A learner whose decoder has learned from a scan, and the scan as it saw it."""
    learner = dense.Learner(untrained_embedder(EMBED, 9), decoder_, 3, 5)
    ready = dense.labelled(found.volume.hu, found.classes, EMBED, learner.grids)
    learner.fit([ready], [learner.levels(ready.image)])
    return learner, ready


def test_few_scans_are_enough_for_bright_structures(judged: tuple[Question, Outcome]) -> None:
    _, outcome = judged
    values = {(score.task, score.method, score.figure): score.value for score in outcome.scores}
    methods = {method for _, method, _ in values}
    assert methods == {"encoder", "random_1", "random_2"}
    assert values["organs", "encoder", "dice"] > 0.8
    assert {figure for name, _, figure in values if name == "organs"} == set(KIND.figures)
    assert {figure for name, _, figure in values if name == "organs/scans_1"} == {"dice", "volume_error"}
    assert set(outcome.pictures) == {"worst_case", "best_case", "dice_by_structure", "dice_by_scans"}
    of_dice = outcome.cases.query("task == 'organs' and method == 'encoder' and probe == 'dice'")
    assert len(of_dice) == 6
    again = of_dice.assign(series=of_dice["case"].str.split("/").str[0]).groupby("series")["score"].mean().mean()
    assert again == pytest.approx(values["organs", "encoder", "dice"], abs=1e-6), "figures follow from the cases"


def test_equal_twice(judged: tuple[Question, Outcome]) -> None:
    asked, outcome = judged
    state = torch.random.get_rng_state()
    again = judge(asked)
    assert torch.equal(torch.random.get_rng_state(), state)
    pd.testing.assert_frame_equal(again.cases, outcome.cases)
    for ours, theirs in zip(again.scores, outcome.scores, strict=True):
        np.testing.assert_array_equal(ours.replicates, theirs.replicates)


def test_a_structure_that_no_training_scan_has_is_missed_and_said(tmp_path: Path) -> None:
    outcome = judge(question(inputs(tmp_path, without=[2]), task(scans=[2])))
    assert "In no scan that was learned from: kidney_left." in outcome.remarks["organs"]
    rows = outcome.cases.query("label == 'kidney_left' and method == 'encoder'")
    assert (rows[rows["probe"] == "dice"]["score"] == 0).all()
    diagonal = float(np.linalg.norm(np.multiply(SHAPE, SPACING)))
    assert rows[rows["probe"] == "hd95"]["score"].to_numpy() == pytest.approx(diagonal, abs=1e-6)


def test_dice_is_monais(judged: tuple[Question, Outcome]) -> None:
    """Of the labels that a segmenter gives, on the volume's own grid."""
    asked, _ = judged
    row = asked.rows[asked.rows["split"] == "test"].iloc[0]
    found = opened(row["volume"])
    segmenter, _ = taught(found, asked.task.decoder)
    image = image_of(found.volume.hu, EMBED, segmenter.grids)
    predicted = segmenter.label(segmenter.levels(image.values), image, found.volume.hu.shape)
    from components.figures.segmentation import overlaps

    ours = [of.dice for of in overlaps(predicted, found.classes, [1, 2], SPACING, 2.0).values()]
    onehot = [
        torch.stack([torch.from_numpy(array == code) for code in (1, 2)])[None] for array in (predicted, found.classes)
    ]
    theirs = np.asarray(DiceMetric()(onehot[0], onehot[1]))[0].tolist()
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert min(ours) > 0.8


def test_windows_give_what_the_whole_gives(judged: tuple[Question, Outcome]) -> None:
    """But for what windows do not see beyond their borders."""
    asked, _ = judged
    row = asked.rows[asked.rows["split"] == "test"].iloc[0]
    found = opened(row["volume"])
    whole, _ = taught(found, asked.task.decoder)
    image = image_of(found.volume.hu, EMBED, whole.grids)
    assert whole.fits(image)
    small = asked.task.decoder.model_copy(update={"window_vox": (12, 16, 16)})
    parts = dense.Learner(untrained_embedder(EMBED, 9), small, 3, 5)
    parts.decoder = whole.decoder
    assert not parts.fits(image)
    expected = whole.label(whole.levels(image.values), image, found.volume.hu.shape)
    predicted = parts.label(None, image, found.volume.hu.shape)
    for code in (1, 2):
        ours, theirs = predicted == code, expected == code
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.8


def test_a_decoder_is_released_read_again_and_labels_as_it_did(
    judged: tuple[Question, Outcome], tmp_path: Path
) -> None:
    asked, outcome = judged
    head = outcome.heads["organs"]
    assert isinstance(head, SegmentHead)
    embedder = untrained_embedder(EMBED, 9)
    embedder.save(tmp_path)
    write_head(tmp_path / "heads" / "organs", head, sha256_file(tmp_path / "encoder.safetensors"))
    (part, again), = load_segment_heads(tmp_path).items()  # fmt: skip
    told = again.description
    assert (part, told.structures, told.patients) == ("organs", ("kidney_left", "liver"), {"train": 3, "test": 3})
    assert set(told.dice) == set(told.structures)
    assert told.figures["dice"]["value"] > 0.8
    assert load_heads(tmp_path) == {}, "it classifies nothing"
    row = asked.rows[asked.rows["split"] == "test"].iloc[0]
    found = opened(row["volume"])
    labels = again.on(embedder, tmp_path).segment(found.volume.hu)
    dice = [
        2 * int(((labels == code) & (found.classes == code)).sum())
        / int((labels == code).sum() + (found.classes == code).sum())
        for code in (1, 2)
    ]  # fmt: skip
    series = row["case"].split("/")[0]
    cases_ = outcome.cases.query("task == 'organs' and method == 'encoder' and probe == 'dice'")
    of_scan = cases_[cases_["case"].str.startswith(series)].sort_values("case")["score"].tolist()
    assert dice == pytest.approx(of_scan, abs=1e-6)
    untrained_embedder(EMBED, 1).save(tmp_path)
    with pytest.raises(UserError, match="head organs: was fitted on encoder"):
        load_segment_heads(tmp_path)


def test_fine_tuning_goes_on_from_the_frozen_decoder_and_from_scratch_beside_it(tmp_path: Path) -> None:
    tuned = {"steps": 6, "encoder_rate": 1e-4, "untrained_rate": 1e-4}
    outcome = judge(question(inputs(tmp_path, train=1, test=2), task(scans=[1], fine_tune=tuned, serve=False)))
    values = {(score.task, score.method): score.value for score in outcome.scores if score.figure == "dice"}
    assert {method for name, method in values if name == "organs/fine_tuned"} == {"encoder", "random_1", "random_2"}
    assert values["organs/fine_tuned", "encoder"] > 0.7
    assert values["organs/fine_tuned", "encoder"] != values["organs", "encoder"]
    assert KIND.parts("organs", task(fine_tune=tuned), Scanned(True, "crop", False, False)) == [
        "organs/scans_1", "organs", "organs/fine_tuned/scans_1", "organs/fine_tuned",
    ]  # fmt: skip


def test_a_lesion_belongs_to_its_organ(tmp_path: Path) -> None:
    path = scan(tmp_path, "s1", 1)
    labels = label_map_of(path)
    assert labels is not None
    before = open_scan("s1", "p1", str(path), StoredVolume(path), ["kidney_left", "liver"]).classes
    values = read_label_map(labels).values
    inside = np.argwhere(before == 2)[len(np.argwhere(before == 2)) // 2]
    values[tuple(inside)] = 9
    write_label_map(labels, LabelMap(values, NAMES | {9: "lesion_liver"}), affine())
    after = open_scan("s1", "p1", str(path), StoredVolume(path), ["kidney_left", "liver"]).classes
    np.testing.assert_array_equal(after, before)


def test_a_labelled_set_with_masks_is_segmented_by_its_own_split(tmp_path: Path) -> None:
    of = inputs(tmp_path)
    rows = of.curated[["series", "patient", "split"]].assign(set="ours", row=0)
    elsewhere = of.curated.assign(role="labelled", split="held_out")
    labelled = Inputs("wholebody", "crop", elsewhere, of.annotations, CONFIG, GRID, rows)
    built = cases("organs", task(set="ours", structures=None), labelled)
    assert built.table.groupby("split")["patient"].nunique().to_dict() == {"test": 3, "train": 3}
    assert sorted(built.table["label"].unique()) == ["body", "kidney_left", "liver"]
    none = cases("organs", task(set="other"), labelled)
    assert none.not_evaluated["organs"] == "none of the 0 accepted scans of other has a label map"


def test_training_from_scratch_settles_its_batch_norms(tmp_path: Path) -> None:
    of = inputs(tmp_path, train=1, test=2)
    block = task(scans=[1], serve=False)
    row = question(of, block).rows.query("split == 'train'").iloc[0]
    found = opened(row["volume"])
    learner, seen = taught(found, block.decoder)
    ready = [seen]
    norms = [name for name in learner.encoder.state_dict() if name.endswith("running_mean")]
    before = {name: learner.encoder.state_dict()[name].clone() for name in norms}
    config = FineTuneConfig(steps=2, encoder_rate=1e-4, untrained_rate=1e-4)
    scratch = _fine_tuned(learner, "random_9", config, ready).encoder.state_dict()
    ours = _fine_tuned(learner, "encoder", config, ready).encoder.state_dict()
    assert any(not torch.allclose(scratch[name], before[name]) for name in norms)
    assert all(torch.equal(ours[name], before[name]) for name in norms)


def test_a_varied_copy_moves_labels_with_their_voxels_and_changes_soft_tissue_alone() -> None:
    rng = np.random.default_rng(4)
    classes = np.zeros((24, 32, 40), dtype=np.uint8)
    classes[4:12, 6:16, 22:38] = 1
    hu = np.where(classes == 1, 300, 0).astype(np.int16)
    changes = {"copies": 1, "zoom": 0.3, "contrast": 0.0, "shift_hu": 0.0, "noise_hu": 0.0}
    for _ in range(4):
        moved, of = dense.varied(hu, classes, VariedConfig(**changes), rng)
        assert moved.shape == of.shape != classes.shape
        found = moved > 150
        assert 2 * (found & (of == 1)).sum() / (found.sum() + (of == 1).sum()) > 0.9
    hu[0], hu[1] = -800, 1200  # lung and bone
    contrast = changes | {"zoom": 0.0, "contrast": 0.3}
    moved, _ = dense.varied(hu, classes, VariedConfig(**contrast), rng)
    factor = moved[classes == 1][0] / 300
    assert 0.7 <= factor <= 1.3
    assert factor != 1
    assert moved[classes == 1] == pytest.approx(300 * factor, abs=1)
    lung, bone = (end + (factor - 1) * soft for end, soft in ((-800, -150), (1200, 350)))
    assert moved[0] == pytest.approx(lung, abs=1), "as much as the end of the soft range"
    assert moved[1] == pytest.approx(bone, abs=1)


def test_a_small_structure_is_drawn_by_the_root_of_its_size() -> None:
    target = np.zeros((20, 50, 50), dtype=np.uint8)
    target[:4, :10, :10] = 1  # 400 of 50,000
    drawn = dense.drawn_voxels(target, 2000, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == len(drawn) == 2000
    share = (target.ravel()[drawn] == 1).mean()
    wanted = np.sqrt(400) / (np.sqrt(400) + np.sqrt(49_600))
    assert share == pytest.approx(wanted, abs=0.02), "not .008, its share of the voxels"
