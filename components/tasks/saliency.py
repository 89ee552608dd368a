"""Kind ``saliency``: does what the line's probe says of a place or a scan rest on what it should rest on?

The answer is that of a classify task of two classes, by the linear probe that is fitted there on frozen features; the
places are structures of label maps. CT-FM showed occlusion maps as pictures (arXiv 2501.09001); here they are counted:
the pointing game (arXiv 1608.00507), the share of the positive saliency that lies inside the structure, and the area
under the answer's probability while its most salient blocks are taken away first (arXiv 1806.07421).

A case of a point lies in the middle of what a crop shows, where encoders look anyhow. So crops are moved off it, each
its own way, and what points to the middle, or to what deviates from the mean, stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from components.ct.labels.stored import label_map_of, read_label_map
from components.settings import StageConfig, did_you_mean, shown
from components.sources.lidc import ROOT as LIDC_ROOT
from components.tasks import classify
from components.tasks.classify import ClassifyConfig
from components.tasks.crossfit import hashed
from components.tasks.interface import Kind, Measure, Outcome, Question, Scanned
from components.tasks.scores import ENCODER, RANDOM, Score, family_mean, per_case
from components.tasks.table import Built, Inputs, none_built, task_table

if TYPE_CHECKING:
    from components.figures.resampling import Draws
    from components.tasks.saliency_cases import Case, Examined

WAYS = {"occlusion": "Occlusion", "gradients": "Integrated gradients"}
FIGURES = {
    f"{way}_{figure}": Measure(f"{title}: {told}", bounds, lower_is_better=lower)
    for way, title in WAYS.items()
    for figure, told, bounds, lower in (
        ("pointing", "its highest place lies in the structure", (0.0, 1.0), False),
        ("inside", "share of it inside the structure", (0.0, 1.0), False),
        ("gain", "area under the answer's deletion curve, at random less most salient first", (-1.0, 1.0), False),
        ("deletion", "area under the answer's deletion curve, most salient first", (0.0, 1.0), True),
    )
}
LEAST = 2  # patients; of one there is no interval
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class SaliencyConfig(StageConfig):
    """A block of ``<line>.tasks``: on what the answers of another task of the line rest.

    Attributes:
        of: a task of kind classify.
        structures: of it, or of each of its parts that is asked (``ich`` of ``findings/ich``), the structures of the
            label maps on which a positive answer should rest.
        cases: positive test cases at most, of each part; of as many patients as there are.
        block_mm: side of the blocks in which what the encoder sees is taken away.
        steps: of the integral.
        off_centre_mm: by how much at most, along each axis, a crop is moved off its point; of scans there is nothing to
            move.
        tolerance_mm: how far from the structure the middle of the highest block may lie.
        untrained: encoders that stand beside, the first of ``random_seeds``.
    """

    kind: Literal["saliency"]
    of: Annotated[str, Field(min_length=1)]
    structures: dict[str, Names]
    cases: Annotated[int, Field(ge=LEAST, le=10_000)]
    block_mm: Annotated[float, Field(ge=1, le=200)]
    steps: Annotated[int, Field(ge=2, le=512)]
    off_centre_mm: Annotated[float, Field(ge=0, le=100)]
    tolerance_mm: Annotated[float, Field(ge=0, le=100)]
    untrained: Annotated[int, Field(ge=2, le=50)]

    @field_validator("structures")
    @classmethod
    def _some(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("{} is not allowed: at least one part, with its structures")
        return value

    def parts(self, name: str) -> dict[str, tuple[str, str]]:
        """Part of this task, by the name it has in the metrics, to the part that it asks about and its key."""
        alone = len(self.structures) == 1
        return {
            name if alone else f"{name}/{key}": (self.of if key == self.of else f"{self.of}/{key}", key)
            for key in self.structures
        }


def cases(name: str, task: SaliencyConfig, inputs: Inputs) -> Built:
    """The training cases of the task that is asked about, and of its positive test cases those whose structure is in a
    label map, each moved off its point."""
    built = classify.cases(task.of, inputs.tasks[task.of], inputs)
    tables: list[pd.DataFrame] = []
    reasons, remarks = {}, {}
    for part, (source, key) in task.parts(name).items():
        rows = built.table[built.table["task"] == source]
        if rows.empty:
            none = f"{task.of} has no part {source}"
            reasons[part] = built.not_evaluated.get(source) or built.not_evaluated.get(task.of) or none
            continue
        classes = sorted(rows["label"].unique())
        if len(classes) != 2:
            reasons[part] = f"{source} has {len(classes)} classes ({', '.join(classes)}), and a positive one is of two"
            continue
        positive = rows[(rows["split"] == "test") & (rows["label"] == classes[1])]
        found, unmapped = _mapped(positive, task.structures[key], task.cases, inputs.config.seed)
        if found["patient"].nunique() < LEAST:
            reasons[part] = (
                f"{found['patient'].nunique()} of {positive['patient'].nunique()} test patients of class {classes[1]} "
                f"have {', '.join(task.structures[key])} in a label map; at least {LEAST} are needed"
            )
            continue
        remarks[part] = f"Of class {classes[1]}, {len(found)} of {len(positive)} test cases" + (
            f"; {unmapped} without the structure in a label map." if unmapped else "."
        )
        moved = _moved(found, task.off_centre_mm, inputs.config.seed)
        tables.append(pd.concat([rows[rows["split"] == "train"], moved]).assign(task=part))
    return Built(task_table(tables), reasons, remarks) if tables else none_built(reasons)


def _mapped(rows: pd.DataFrame, names: Sequence[str], most: int, seed: int) -> tuple[pd.DataFrame, int]:
    """The first cases whose label map holds one of the structures, in an order that depends on the seed and each case
    alone, a case of every patient before any second one; and how many before them had to be passed over."""
    order = sorted(range(len(rows)), key=lambda at: hashed(seed, rows["case"].iloc[at]))
    ordered = rows.iloc[order]
    turn = ordered.groupby("patient").cumcount()
    ordered = ordered.iloc[np.argsort(turn.to_numpy(), kind="stable")]
    there: dict[str, bool] = {}
    kept: list[int] = []
    passed = 0
    for at, volume in enumerate(ordered["volume"]):
        if len(kept) == most:
            break
        if volume not in there:
            there[volume] = _holds(Path(volume), names)
        passed += not there[volume]
        kept += [at] if there[volume] else []
    return ordered.iloc[kept], passed


def _holds(volume: Path, names: Sequence[str]) -> bool:
    path = label_map_of(volume)
    if path is None:
        return False
    found = read_label_map(path)
    return bool(np.isin(found.values, [value for value, name in found.names.items() if name in names]).any())


def _moved(rows: pd.DataFrame, most_mm: float, seed: int) -> pd.DataFrame:
    by = [np.random.default_rng(list(hashed(seed, case))).uniform(-most_mm, most_mm, 3) for case in rows["case"]]
    return rows.assign(**{axis: rows[axis] + np.array(by)[:, at] for at, axis in enumerate("xyz")})  # NaN of scans


def judge(question: Question) -> Outcome:
    """Every figure of every method on every part; of several parts the mean over them."""
    from components.figures.resampling import draws
    from components.tasks.saliency_cases import cases_of, examine
    from components.tasks.saliency_pictures import curve_table, pictures

    task, rows = question.task, question.rows.sort_values("case", ignore_index=True)
    encoder = question.encoders[ENCODER]()
    methods = [ENCODER, *(f"{RANDOM}_{seed}" for seed in question.config.random_seeds[: task.untrained])]
    tested = rows.loc[rows["split"] == "test", "patient"].tolist()
    drawn = draws(tested, question.config.bootstrap, question.config.seed)
    outcome = Outcome([], pd.DataFrame())
    tables: list[pd.DataFrame] = []
    by_part: dict[str, Examined] = {}
    for part, (_, key) in task.parts(question.name).items():
        own = rows[rows["task"] == part]
        if own.empty:
            continue
        found, lost = cases_of(question, own[own["split"] == "test"], encoder, task.structures[key])
        if lost:
            outcome.remarks[part] = f"Left out, none of the structure is in what the encoder sees: {', '.join(lost)}."
        if len({case.row["patient"] for case in found}) < LEAST:
            outcome.remarks[part] += f" Of the rest there are no {LEAST} patients, and no figure."
            continue
        by_part[part] = examined = examine(question, own[own["split"] == "train"], found, methods)
        scores, cases_table = _scored(part, found, examined.figures, drawn)
        outcome.scores.extend(scores)
        tables.append(cases_table)
        outcome.pictures.update(pictures(question, part, found, examined))
    if len(by_part) > 1:
        means, outcome.remarks[question.name] = family_mean(outcome.scores, question.name)
        outcome.scores.extend(means)
    if by_part:
        outcome.tables["deletion"] = curve_table(by_part)
        return Outcome(
            outcome.scores, pd.concat(tables, ignore_index=True), outcome.pictures, outcome.remarks,
            tables=outcome.tables,
        )  # fmt: skip
    from components.tasks.scores import CASE_COLUMNS

    return Outcome([], pd.DataFrame(columns=CASE_COLUMNS), remarks=outcome.remarks)


def _scored(
    part: str, found: Sequence[Case], figures: Mapping[str, Mapping[str, Any]], drawn: Draws
) -> tuple[list[Score], pd.DataFrame]:
    """Scores and the table of cases, of values by method and figure."""
    from components.figures.averages import weighted_mean
    from components.figures.resampling import sample_of

    patients = [str(case.row["patient"]) for case in found]
    weights, sample = drawn.weights(patients), sample_of(patients)
    rows = pd.DataFrame([case.row for case in found])
    scores, tables = [], []
    for method, of in figures.items():
        for figure, values in of.items():
            scores.append(Score(part, method, figure, weighted_mean(values, weights), len(found), sample))
            tables.append(per_case(rows, part, method, figure, [figure], values[:, None]))
    return scores, pd.concat(tables)


def _beside(task: SaliencyConfig, tasks: Mapping[str, Any]) -> dict[str, str]:
    asked = tasks.get(task.of)
    if isinstance(asked, ClassifyConfig) and asked.set != LIDC_ROOT:
        return {}
    known = [name for name, of in tasks.items() if isinstance(of, ClassifyConfig) and of.set != LIDC_ROOT]
    told = f"a task of kind classify with label maps, {', '.join(known) or 'of which there is none'}"
    return {"of": f"{shown(task.of)} is not allowed: {told}{did_you_mean(task.of, known)}"}


def _parts(name: str, task: SaliencyConfig, scanned: Scanned) -> list[str]:
    there = set(classify.KIND.parts(task.of, scanned.tasks[task.of], scanned))
    found = [part for part, (source, _) in task.parts(name).items() if source in there]
    return [name, *found] if len(found) > 1 else found


KIND = Kind(SaliencyConfig, FIGURES, cases, judge, placed=False, parts=_parts, beside=_beside)
