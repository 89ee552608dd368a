"""Kind ``segment``: where the structures of a scan are, from the levels of a frozen encoder and few labelled scans.

A case is a structure in a scan. Beside the encoder stand untrained ones, each with a decoder of its own; with
``fine_tune`` they are the training from scratch: their batch norms know the labelled scans first, then the decoder
learns, then both, by as many steps as the encoder takes. Peers learn as the encoder does.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.ct.labels.stored import label_map_of, read_names
from components.errors import UserError
from components.tasks.config import LINE
from components.tasks.crossfit import hashed
from components.tasks.interface import Kind, Measure, Outcome, Question, Scanned
from components.tasks.scores import DIGITS, ENCODER, PEER, RANDOM, Score, per_case, task_metrics
from components.tasks.segment_config import FineTuneConfig, SegmentConfig
from components.tasks.segment_peers import with_levels
from components.tasks.segment_scans import Scan, open_scan
from components.tasks.table import Built, Inputs, none_built, task_table

if TYPE_CHECKING:
    from components.models.segment_head import SegmentHead
    from components.tasks.dense import Labelled, Learner

log = logging.getLogger(__name__)

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
POOR = 0.7  # Dice of a structure, below which its head says so


def cases(name: str, task: SegmentConfig, inputs: Inputs) -> Built:
    """One row for each structure in each scan, a scan a patient: of the training side as many as are learned from at
    most, of the test side at most ``test_scans``; both by a hash of the seed and the patient.

    Raises:
        UserError: no label map knows a structure that is asked for.
    """
    if inputs.sees == "scan":
        return none_built({name: "such an encoder sees whole scans, resized: it has no levels of a scan's own voxels"})
    everything = inputs.scans_of(task.set)
    mapped = everything[[label_map_of(Path(volume)) is not None for volume in everything["volume"]]]
    if mapped.empty:
        of = "evaluation series" if task.set == LINE else f"scans of {task.set}"
        return none_built({name: f"none of the {len(everything)} accepted {of} has a label map"})
    structures = _structures(name, task, inputs, mapped)
    scans = mapped[[set(structures) <= _names(volume) for volume in mapped["volume"]]]
    lacking = len(everything) - len(scans)
    scans = scans.drop_duplicates("patient")
    drawn = scans.assign(order=[hashed(inputs.config.seed, patient) for patient in scans["patient"]])
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


def _structures(name: str, task: SegmentConfig, inputs: Inputs, scans: pd.DataFrame) -> list[str]:
    if task.structures is None and task.set == LINE:
        return sorted(set(inputs.annotated(ORGAN, scans)["structure"]))
    known = sorted(set().union(*(_names(volume) for volume in scans["volume"])))
    unknown = [structure for structure in task.structures or () if structure not in known]
    if unknown:
        raise UserError(
            f"params.yaml: {inputs.line}.tasks.{name}.structures: {unknown[0]!r} is not allowed: "
            f"one of {', '.join(known)}"
        )
    return known if task.structures is None else sorted(task.structures)


def _names(volume: str) -> set[str]:
    """The structures that were looked for in a scan."""
    path = label_map_of(Path(volume))
    return set() if path is None else set(read_names(path).values())


def _remark(task: SegmentConfig, structures: Sequence[str], train: int, test: int, lacking: int) -> str:
    told = (
        f"{len(structures)} structures ({', '.join(structures)}), {train} labelled scans to learn from, {test} tested."
    )
    if left_out := [number for number in task.scans if number > train]:
        told += f" Left out, too few labelled scans: {', '.join(str(number) for number in left_out)}."
    return told + (f" {lacking} scans have no label map of all of these." if lacking else "")


@dataclass(frozen=True)
class Learned:
    """A method with what it learned from so many scans.

    Attributes:
        method: ``encoder``, ``random_<seed>`` or ``peer_<name>``.
        tuned: whether the encoder's weights were trained, after its decoder's.
        scans: how many.
        learner: trained.
    """

    method: str
    tuned: bool
    scans: int
    learner: Learner


def judge(question: Question) -> Outcome:
    """Every figure of every method, with each number of labelled scans."""
    from components.models.embed import fixed_threads
    from components.tasks.segment_pictures import pictures, shown

    structures = sorted(set(question.rows["label"]))
    train, test = (_scans_of(question, side) for side in ("train", "test"))
    numbers = [number for number in question.task.scans if number <= len(train)]
    with fixed_threads():
        learned, missing = _learn(question, train[: numbers[-1]], numbers, structures)
        tables, slices = [], []
        for row in test:
            scan = _open(question, row, structures)
            found, predicted = _judged(scan, learned, structures, question.task.tolerance_mm)
            tables.append(found)
            slices.append(shown(scan, predicted))
    table = pd.concat(tables, ignore_index=True)
    parts = [
        _part(question, rows, part_of(question.name, bool(tuned), int(str(scans)), numbers[-1]))
        for (tuned, scans), rows in table.groupby(["tuned", "scans"], sort=True)
    ]
    scores = [score for of, _ in parts for score in of]
    remarks = {question.name: " ".join(filter(None, [_compared(learned), missing]))}
    frozen = table[~table["tuned"]]
    drawn, found = pictures(frozen, slices, structures), pd.concat([of for _, of in parts], ignore_index=True)
    heads = {question.name: _head(question, learned, scores, frozen, structures)} if question.task.serve else {}
    return Outcome(scores, found, drawn, remarks, heads)


def _scans_of(question: Question, side: str) -> list[dict[str, str]]:
    rows = question.rows[question.rows["split"] == side].assign(series=lambda part: part["case"].str.split("/").str[0])
    scans = rows.drop_duplicates("series")[["series", "patient", "volume"]].to_dict("records")
    found = [{str(key): str(value) for key, value in scan.items()} for scan in scans]
    return sorted(found, key=lambda scan: hashed(question.config.seed, scan["patient"]))


def _open(question: Question, row: dict[str, str], structures: Sequence[str]) -> Scan:
    return open_scan(row["series"], row["patient"], row["volume"], question.volumes.open(row["volume"]), structures)


def _learn(
    question: Question, rows: Sequence[dict[str, str]], numbers: Sequence[int], structures: Sequence[str]
) -> tuple[list[Learned], str]:
    """All methods with each number of scans, and what to say of structures that are in none of these, and of peers
    without levels."""
    from components.tasks import dense

    config, seed, classes = question.task.decoder, question.config.seed, len(structures) + 1
    peers, told = with_levels(question.peers, config)
    made = {method: question.encoders[method] for method in (ENCODER, *_untrained(question))}
    of_number = {number: number * (1 + config.varied.copies) for number in numbers}
    learned: list[Learned] = []
    seen: Any = None
    ready: list[Labelled] = []
    for method in (*made, *peers):
        embedder = made[method]() if method in made else peers[method]
        learners = [dense.Learner(embedder, config, classes, seed) for _ in numbers]
        if learners[0].sees != seen:  # a peer may have other windows, or another number of levels
            ready = []  # the last ones' images go before new ones come
            seen, (ready, there) = learners[0].sees, _ready(question, rows, structures, learners[0])
        levels = [learners[0].levels(scan.image) for scan in ready]
        for (number, count), learner in zip(of_number.items(), learners, strict=True):
            learner.fit(ready[:count], levels[:count])
            learned.append(Learned(method, False, number, learner))
            if question.task.fine_tune is not None:
                tuned = _fine_tuned(learner, method, question.task.fine_tune, ready[:count])
                learned.append(Learned(method, True, number, tuned))
        log.info("task %s: %s has learned", question.name, method)
    if missing := [name for value, name in enumerate(structures, start=1) if value not in there]:
        told = " ".join(filter(None, [f"In no scan that was learned from: {', '.join(missing)}.", told]))
    return learned, told


def _ready(
    question: Question, rows: Sequence[dict[str, str]], structures: Sequence[str], learner: Learner
) -> tuple[list[Labelled], set[int]]:
    """Each scan and its copies, as a learner sees them; and the classes that are in any of the scans."""
    from components.models.embed import check_grid
    from components.tasks import dense

    ready: list[Labelled] = []
    there: set[int] = set()
    for row in rows:
        scan = _open(question, row, structures)
        check_grid(scan.volume, learner.embed.input)
        varied, seed = question.task.decoder.varied, question.config.seed
        pairs = dense.with_copies(scan.volume.hu, scan.classes, varied, seed, row["patient"])
        ready += [dense.labelled(hu, classes, learner.embed, learner.grids) for hu, classes in pairs]
        there |= set(np.unique(scan.classes).tolist())
    return ready, there


def _fine_tuned(learner: Learner, method: str, config: FineTuneConfig, scans: Sequence[Labelled]) -> Learner:
    """Of an untrained encoder, training from scratch: its batch norms know these scans first, and its decoder them."""
    if not method.startswith(f"{RANDOM}_"):
        return learner.fine_tuned(scans, config.steps, config.encoder_rate)
    settled = copy.deepcopy(learner)
    settled.settle(scans)
    settled.fit(scans, [settled.levels(scan.image) for scan in scans])
    return settled.fine_tuned(scans, config.steps, config.untrained_rate)


def _untrained(question: Question) -> list[str]:
    return [f"{RANDOM}_{seed}" for seed in question.config.random_seeds[: question.task.untrained]]


def _judged(
    scan: Scan, learned: Sequence[Learned], structures: Sequence[str], tolerance: float
) -> tuple[pd.DataFrame, npt.NDArray[np.uint8]]:
    """A row per method, number of scans and structure; and the labels of the encoder with most scans, frozen."""
    from components.figures.segmentation import overlaps
    from components.models.segmenter import image_of

    most = max(one.scans for one in learned)
    diagonal = float(np.linalg.norm(np.multiply(scan.volume.hu.shape, scan.volume.spacing)))
    codes = list(range(1, len(structures) + 1))
    rows: list[dict[str, Any]] = []
    of_encoder = np.zeros_like(scan.classes)
    levels: Any = None
    encoder: Any = None
    seen: Any = None
    image: Any = None
    for one in learned:
        if one.learner.sees != seen:
            seen, image = one.learner.sees, image_of(scan.volume.hu, one.learner.embed, one.learner.grids)
        if one.learner.encoder is not encoder:  # the levels of one are those of all numbers of scans
            encoder = one.learner.encoder
            levels = one.learner.levels(image.values) if one.learner.fits(image) else None
        predicted = one.learner.label(levels, image, scan.volume.hu.shape)
        named = {"series": scan.series, "patient": scan.patient, "method": one.method, "tuned": one.tuned,
                 "scans": one.scans}  # fmt: skip
        if one.scans == most:
            for code, of in overlaps(predicted, scan.classes, codes, scan.volume.spacing, tolerance).items():
                hd95 = min(of.hd95_mm, diagonal) if not np.isnan(of.hd95_mm) else np.nan  # a miss: all across the scan
                error = abs(of.volume_error_relative)
                figures = {"dice": of.dice, "surface_dice": of.surface_dice, "hd95": hd95, "volume_error": error}
                rows.append({**named, "structure": structures[code - 1], **figures})
            if one.method == ENCODER and not one.tuned:
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


def part_of(name: str, tuned: bool, number: int, most: int) -> str:
    """Name of the task, or of its part with the encoder fine-tuned, or with fewer labelled scans."""
    return name + ("/fine_tuned" if tuned else "") + (f"/scans_{number}" if number < most else "")


def _part(question: Question, table: pd.DataFrame, part: str) -> tuple[list[Score], pd.DataFrame]:
    """Means over patients of the mean over the structures of each scan; and what they are computed from."""
    from components.figures.averages import mean_of_cases
    from components.figures.resampling import draws, sample_of

    names = list(FIGURES) if table["surface_dice"].notna().any() else list(OF_PARTS)
    scores, cases_ = [], []
    for method, rows in table.groupby("method", sort=True):
        rounded = rows.assign(**rows[names].round(DIGITS), case=rows["series"] + "/" + rows["structure"])
        of_scans = rounded.groupby("patient", sort=True)[names].mean()
        patients = [str(patient) for patient in of_scans.index]
        weights = draws(patients, question.config.bootstrap, question.config.seed).weights(patients)
        for figure in names:
            values = of_scans[figure].to_numpy(dtype=np.float64)
            means = mean_of_cases(values, weights)
            scores.append(Score(part, str(method), figure, means, len(patients), sample_of(patients)))
            named = rounded.assign(label=rounded["structure"])
            each = rounded[figure].to_numpy(dtype=np.float64)[:, None]
            cases_.append(per_case(named, part, str(method), figure, ["value"], each))
    return scores, pd.concat(cases_, ignore_index=True)


def _compared(learned: Sequence[Learned]) -> str:
    untrained = len({one.method for one in learned if one.method.startswith(f"{RANDOM}_")})
    told = f"Frozen levels and a decoder, beside {untrained} untrained encoders with a decoder of their own."
    if any(one.tuned for one in learned):
        told += " Fine-tuned, these are the training from scratch, by as many steps."
    if peers := sorted({one.method.removeprefix(PEER) for one in learned if one.method.startswith(PEER)}):
        told += f" Peers with a decoder of their own, trained as the encoder's: {', '.join(peers)}."
    return f"{told} Of a structure that is missed HD95 is the scan's diagonal."


def _head(
    question: Question, learned: Sequence[Learned], scores: Sequence[Score], table: pd.DataFrame, structures: list[str]
) -> SegmentHead:
    """The decoder of the encoder with most scans, whose figures are the task's."""
    from components.models.segment_head import SegmentDescription, SegmentHead
    from components.models.segmenter import SegmenterConfig
    from components.tasks.served import SHOWN

    most = max(one.scans for one in learned)
    ours = next(one for one in learned if one.method == ENCODER and one.scans == most and not one.tuned)
    figures = task_metrics(scores, FIGURES)[question.name]
    rows = table[(table["method"] == ENCODER) & (table["scans"] == most)]
    means = rows.groupby("structure")["dice"].mean().dropna()
    dice = {str(name): round(float(value), DIGITS) for name, value in means.items()}
    poor = [f"{name} {value:.2f}" for name, value in dice.items() if value < POOR]
    told = [f"It learned from {most} labelled scans and was tested on {table['patient'].nunique()} others."]
    told += [f"Mean Dice under {POOR:g}: {', '.join(poor)}."] if poor else []
    if figures["dice"]["difference_low"] <= 0:
        told.append(f"Its Dice is not clearly above that of untrained encoders, {figures['dice']['random']:.3f}.")
    told.append("It knows these structures only, and looks for them in whatever it is shown.")
    description = SegmentDescription(
        format=1,
        kind="segment",
        task=question.name,
        part=question.name,
        structures=tuple(structures),
        segmenter=SegmenterConfig(**{key: getattr(ours.learner.config, key) for key in SegmenterConfig.model_fields}),
        orientation=ours.learner.embed.input.orientation,
        spacing_mm=ours.learner.embed.input.spacing_mm,
        encoder="",
        figures={name: {key: numbers[key] for key in SHOWN} for name, numbers in figures.items()},
        dice=dice,
        patients={"train": most, "test": int(table["patient"].nunique())},
        limits=tuple(told),
    )
    return SegmentHead.of(ours.learner, description)


def _parts(name: str, task: SegmentConfig, scanned: Scanned) -> list[str]:
    if scanned.sees == "scan" or (task.set == LINE and not scanned.trunk):
        return []
    tuned = (False, True) if task.fine_tune is not None else (False,)
    return [part_of(name, of, number, task.scans[-1]) for of in tuned for number in task.scans]


KIND = Kind(
    SegmentConfig, FIGURES, cases, judge, placed=False, masked=True, columns=lambda _: {},
    built_in={LINE: ()}, parts=_parts,
)  # fmt: skip
