"""Kind ``segment``: where the structures of a scan are, from the levels of a frozen encoder and few labelled scans.

A case is a structure in a scan. Beside the encoder stand untrained ones with the same decoder, and the same network
trained from scratch with as many floating-point operations as the encoder's levels of the training scans and its
decoder's training take together; pretraining, which is done once for all tasks, is not counted.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.ct.labels.stored import label_map_of, names_of
from components.errors import UserError
from components.files import read_json
from components.tasks.config import LINE
from components.tasks.interface import Kind, Measure, Outcome, Question, Scanned
from components.tasks.scores import DIGITS, ENCODER, RANDOM, Score, per_case
from components.tasks.segment_config import SegmentConfig
from components.tasks.segment_scans import Scan, open_scan
from components.tasks.table import Built, Inputs, none_built, task_table

if TYPE_CHECKING:
    from components.tasks.dense import Labelled, Segmenter

log = logging.getLogger(__name__)

SCRATCH = "scratch"
UPWARDS = (0.0, float("inf"))
FIGURES = {
    "dice": Measure("Segmentation, Dice"),
    "surface_dice": Measure("Segmentation, surface Dice"),
    "hd95": Measure("Segmentation, HD95 in mm", UPWARDS, lower_is_better=True),
    "volume_error": Measure("Segmentation, relative volume error", UPWARDS, lower_is_better=True),
}
OF_PARTS = ("dice", "volume_error")  # with fewer labelled scans; surfaces take as long as the encoder
LEAST_TESTED = 2  # patients; of one there is no interval
ORGAN = "organ"


def cases(name: str, task: SegmentConfig, inputs: Inputs) -> Built:
    """One row for each structure in each scan, a scan a patient: of the training side as many as are learned from at
    most, of the test side at most ``test_scans``; both by a hash of the seed and the patient.

    Raises:
        UserError: no label map knows a structure that is asked for.
    """
    if inputs.sees == "scan":
        return none_built({name: "such an encoder sees whole scans, resized: it has no levels of a scan's own voxels"})
    all_scans = inputs.scans() if task.set == LINE else labelled_scans(task.set, inputs)
    scans = all_scans[[label_map_of(Path(volume)) is not None for volume in all_scans["volume"]]]
    lacking = len(all_scans) - len(scans)
    scans = scans.drop_duplicates("patient")
    if scans.empty:
        of = "accepted evaluation series" if task.set == LINE else f"accepted scans of {task.set}"
        return none_built({name: f"none of the {len(all_scans)} {of} has a label map"})
    structures = _structures(name, task, inputs, scans)
    drawn = scans.assign(order=[_order(inputs.config.seed, patient) for patient in scans["patient"]])
    drawn = drawn.sort_values("order")
    sides = {
        side: drawn[drawn["split"] == side].head(count)
        for side, count in (("train", task.scans[-1]), ("test", task.test_scans))
    }
    train, test = (len(part) for part in sides.values())
    if not structures or train < task.scans[0] or test < LEAST_TESTED:
        few = f"{train} patients with a label map in train, {test} in test, {len(structures)} structures"
        needed = f"at least {task.scans[0]}, {LEAST_TESTED} and 1 are needed"
        return none_built({name: f"{few}; {needed}"})
    chosen = pd.concat(list(sides.values()))
    nowhere = float("nan")
    rows = [
        chosen.assign(task=name, case=chosen["series"] + "/" + structure, label=structure) for structure in structures
    ]
    table = task_table([pd.concat(rows).assign(x=nowhere, y=nowhere, z=nowhere)])
    return Built(table, remarks={name: _remark(task, structures, train, test, lacking)})


def labelled_scans(of: str, inputs: Inputs) -> pd.DataFrame:
    """The accepted scans of a labelled set, each once, with the set's split; sorted."""
    rows = inputs.labelled[inputs.labelled["set"] == of].merge(
        inputs.curated.loc[inputs.curated["status"] == "accepted", ["series", "volume"]], on="series"
    )
    return rows.drop_duplicates("series").sort_values("series")


def _structures(name: str, task: SegmentConfig, inputs: Inputs, scans: pd.DataFrame) -> list[str]:
    if task.structures is None and task.set == LINE:
        return sorted(set(inputs.annotated(ORGAN, scans)["structure"]))
    maps = [label_map_of(Path(volume)) for volume in scans["volume"]]
    known = {str(structure) for path in maps if path is not None for structure in read_json(names_of(path)).values()}
    if task.structures is None:
        return sorted(known)
    unknown = [structure for structure in task.structures if structure not in known]
    if unknown:
        raise UserError(
            f"params.yaml: {inputs.line}.tasks.{name}.structures: {unknown[0]!r} is not allowed: "
            f"one of {', '.join(sorted(known))}"
        )
    return sorted(task.structures)


def _order(seed: int, patient: str) -> str:
    return hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest()


def _remark(task: SegmentConfig, structures: Sequence[str], train: int, test: int, lacking: int) -> str:
    told = (
        f"{len(structures)} structures ({', '.join(structures)}), {train} labelled scans to learn from, {test} tested."
    )
    if left_out := [number for number in task.scans if number > train]:
        told += f" Left out, too few labelled scans: {', '.join(str(number) for number in left_out)}."
    return told + (f" {lacking} scans have no label map." if lacking else "")


@dataclass(frozen=True)
class Learned:
    """A method with what it learned from so many scans."""

    method: str
    scans: int
    segmenter: Segmenter


def judge(question: Question) -> Outcome:
    """Every figure of every method, with each number of labelled scans."""
    from components.models.embed import fixed_threads
    from components.tasks.segment_pictures import pictures, shown

    structures = sorted(set(question.rows["label"]))
    train, test = (_scans_of(question, side) for side in ("train", "test"))
    numbers = [number for number in question.task.scans if number <= len(train)]
    with fixed_threads():
        learned, missing = _learn(question, train, numbers, structures)
        tables, slices = [], []
        for row in test:
            scan = _open(question, row, structures)
            found, predicted = _judged(scan, learned, numbers[-1], structures, question.task.tolerance_mm)
            tables.append(found)
            slices.append(shown(scan, predicted))
    table = pd.concat(tables, ignore_index=True)
    scores = [score for number in numbers for score in _scores(question, table, number, numbers[-1])]
    remarks = {question.name: " ".join(filter(None, [_compared(learned), missing]))}
    return Outcome(scores, _cases(question, table, numbers[-1]), pictures(table, slices, structures), remarks)


def _scans_of(question: Question, side: str) -> list[dict[str, str]]:
    rows = question.rows[question.rows["split"] == side].assign(series=lambda part: part["case"].str.split("/").str[0])
    scans = rows.drop_duplicates("series")[["series", "patient", "volume"]].to_dict("records")
    found = [{str(key): str(value) for key, value in scan.items()} for scan in scans]
    return sorted(found, key=lambda scan: _order(question.config.seed, scan["patient"]))


def _open(question: Question, row: dict[str, str], structures: Sequence[str]) -> Scan:
    return open_scan(row["series"], row["patient"], row["volume"], question.volumes.open(row["volume"]), structures)


def _learn(
    question: Question, rows: Sequence[dict[str, str]], numbers: Sequence[int], structures: Sequence[str]
) -> tuple[list[Learned], str]:
    """All methods with each number of scans, and what to say of structures that are in none of these."""
    from components.models.embed import check_grid
    from components.tasks import dense
    from components.tasks.decoder import grids_of

    config, seed, classes = question.task.decoder, question.config.seed, len(structures) + 1
    random = [f"{RANDOM}_{seed}" for seed in question.config.random_seeds[: question.task.untrained]]
    embed = question.encoders[ENCODER]().config
    grids = grids_of(embed, config)
    ready: list[Labelled] = []
    there: set[int] = set()
    for row in rows[: numbers[-1]]:
        scan = _open(question, row, structures)
        check_grid(scan.volume, embed.input)
        ready.append(dense.labelled(scan.volume.hu, scan.classes, embed, grids))
        there |= set(np.unique(scan.classes).tolist())
    operations: dict[int, int] = {}
    learned = []
    for method in [ENCODER, *random]:
        embedder = question.encoders[method]()
        segmenters = [dense.frozen(embedder, config, classes, seed) for _ in numbers]
        seen = [segmenters[0].counted_levels(scan.image) for scan in ready]
        levels = [of for of, _ in seen]
        for number, segmenter in zip(numbers, segmenters, strict=True):
            fitted = segmenter.fit(ready[:number], levels[:number], seed)
            if method == ENCODER:
                operations[number] = sum(count for _, count in seen[:number]) + fitted
            learned.append(Learned(method, number, segmenter))
        log.info("task %s: %s has learned", question.name, method)
    for number in numbers:
        segmenter = dense.from_scratch(learned[0].segmenter, classes, seed)
        steps = segmenter.fit_whole(ready[:number], operations[number], seed)
        log.info("task %s: %s took %d steps for %.3g operations", question.name, SCRATCH, steps, operations[number])
        learned.append(Learned(SCRATCH, number, segmenter))
    missing = [name for value, name in enumerate(structures, start=1) if value not in there]
    return learned, f"In no scan that was learned from: {', '.join(missing)}." if missing else ""


def _judged(
    scan: Scan, learned: Sequence[Learned], most: int, structures: Sequence[str], tolerance: float
) -> tuple[pd.DataFrame, npt.NDArray[np.uint8]]:
    """A row per method, number of scans and structure; and the encoder's labels with most scans."""
    from components.figures.segmentation import overlaps
    from components.tasks import dense

    first = learned[0].segmenter
    image = dense.image_of(scan.volume.hu, first.embed, first.grids)
    diagonal = float(np.linalg.norm(np.multiply(scan.volume.hu.shape, scan.volume.spacing)))
    codes = list(range(1, len(structures) + 1))
    rows: list[dict[str, Any]] = []
    of_encoder = np.zeros_like(scan.classes)
    levels: Any = None
    encoder: Any = None
    for one in learned:
        if one.segmenter.encoder is not encoder:  # the levels of one are those of all numbers of scans
            encoder = one.segmenter.encoder
            levels = one.segmenter.levels(image.values) if one.segmenter.fits(image) else None
        predicted = one.segmenter.label(levels, image, scan.volume.hu.shape)
        named = {"series": scan.series, "patient": scan.patient, "method": one.method, "scans": one.scans}
        if one.scans == most:
            found = overlaps(predicted, scan.classes, codes, scan.volume.spacing, tolerance)
            for code, of in found.items():
                hd95 = min(of.hd95_mm, diagonal) if not np.isnan(of.hd95_mm) else np.nan  # a miss: all across the scan
                error = abs(of.volume_error_relative)
                figures = {"dice": of.dice, "surface_dice": of.surface_dice, "hd95": hd95, "volume_error": error}
                rows.append({**named, "structure": structures[code - 1], **figures})
            if one.method == ENCODER:
                of_encoder = predicted
        else:
            rows += [
                {**named, "structure": structures[code - 1], **_volumes(predicted, scan.classes, code)}
                for code in codes
            ]
    table = pd.DataFrame(rows)
    table["volume_error"] = table["volume_error"].replace(np.inf, np.nan)  # of what is not there, Dice tells
    return table, of_encoder


def _volumes(predicted: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], code: int) -> dict[str, float]:
    """Dice and volume error alone; as :func:`components.figures.segmentation.overlap` has them."""
    ours, theirs = predicted == code, truth == code
    both, sizes = int(np.count_nonzero(ours & theirs)), (int(np.count_nonzero(ours)), int(np.count_nonzero(theirs)))
    if not any(sizes):
        return {"dice": np.nan, "surface_dice": np.nan, "hd95": np.nan, "volume_error": np.nan}
    error = abs(sizes[0] - sizes[1]) / sizes[1] if sizes[1] else np.nan
    return {"dice": 2 * both / sum(sizes), "surface_dice": np.nan, "hd95": np.nan, "volume_error": error}


def part_of(name: str, number: int, most: int) -> str:
    """Name of the task, or of its part with fewer labelled scans."""
    return name if number == most else f"{name}/scans_{number}"


def _scores(question: Question, table: pd.DataFrame, number: int, most: int) -> list[Score]:
    """Means over patients of the mean over the structures of each scan."""
    from components.figures.averages import mean_of_cases
    from components.figures.resampling import draws, sample_of

    names = list(FIGURES) if number == most else list(OF_PARTS)
    scores = []
    for method, rows in table[table["scans"] == number].groupby("method", sort=True):
        of_scans = rows.assign(**rows[names].round(DIGITS)).groupby("patient", sort=True)[names].mean()
        patients = [str(patient) for patient in of_scans.index]
        weights = draws(patients, question.config.bootstrap, question.config.seed).weights(patients)
        sample, part = sample_of(patients), part_of(question.name, number, most)
        for figure in names:
            values = of_scans[figure].to_numpy(dtype=np.float64)
            scores.append(Score(part, str(method), figure, mean_of_cases(values, weights), len(patients), sample))
    return scores


def _cases(question: Question, table: pd.DataFrame, most: int) -> pd.DataFrame:
    parts = []
    for keys, rows in table.groupby(["method", "scans"], sort=True):
        method, number = str(keys[0]), int(str(keys[1]))
        named = rows.assign(case=rows["series"] + "/" + rows["structure"], label=rows["structure"])
        for figure in FIGURES if number == most else OF_PARTS:
            values = np.round(named[figure].to_numpy(dtype=np.float64), DIGITS)[:, None]
            part = part_of(question.name, number, most)
            parts.append(per_case(named, part, method, figure, ["value"], values))
    return pd.concat(parts, ignore_index=True)


def _compared(learned: Sequence[Learned]) -> str:
    untrained = len({one.method for one in learned if one.method.startswith(f"{RANDOM}_")})
    return (
        f"Frozen levels and a decoder, beside {untrained} untrained encoders with the same decoder; scratch is the "
        "same network, all weights trained, with as many floating-point operations as the levels of the training "
        "scans and the decoder's training take. Of a structure that is missed HD95 is the scan's diagonal."
    )


def _parts(name: str, task: SegmentConfig, scanned: Scanned) -> list[str]:
    if scanned.sees == "scan" or (task.set == LINE and not scanned.trunk):
        return []
    return [part_of(name, number, task.scans[-1]) for number in task.scans]


KIND = Kind(
    SegmentConfig, FIGURES, cases, judge, placed=False, points=lambda _: True, columns=lambda _: {},
    built_in={LINE: ()}, parts=_parts,
)  # fmt: skip
