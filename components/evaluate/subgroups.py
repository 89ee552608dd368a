"""Each task's figure in groups of its test cases, by what the headers say of their scans, and the worst group's gap.

Nothing is embedded again: figures follow from the table of cases.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from components.evaluate.bycase import ByCase, by_case
from components.figures.arrays import Array, Bools
from components.figures.averages import mean_defined
from components.figures.resampling import (
    LEVEL,
    Draws,
    Estimate,
    Sample,
    draws,
    figure,
    sample_of,
    standard_error,
)
from components.quality.drift import bin_labels, term
from components.tasks.attributes import AGE, ATTRIBUTES, CONTRAST, KERNEL, SET, SEX, THICKNESS, VENDOR
from components.tasks.config import LINE, EvaluateConfig
from components.tasks.interface import Measure
from components.tasks.scores import DIGITS

# Of drift's edges those that tell thin from thick slices: with all of them, most groups would be too small.
THICKNESS_MM = (1.1, 2.25, 3.5, 5.5)
SEXES = {"F": "female", "M": "male", "O": "other"}
UNKNOWN = "unknown"
COLUMNS = [
    "task", "figure", "attribute", "group", "cases", "patients", "least_patients", "value", "low", "high", "why_not",
]  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A task, or a part of it, whose groups are compared.

    Attributes:
        name: of it.
        measure: of its figure.
        parts: what the figure is the mean of; a task without parts is its own.
        groups: attribute to (cases,) of each part.
    """

    name: str
    measure: Measure
    parts: tuple[ByCase, ...]
    groups: tuple[Mapping[str, np.ndarray[Any, np.dtype[Any]]], ...]

    @property
    def figure(self) -> str:
        return self.parts[0].figure

    @property
    def patients(self) -> list[str]:
        return sorted({patient for part in self.parts for patient in part.patients})


def groups_of(rows: pd.DataFrame, headers: pd.DataFrame, labelled: pd.DataFrame) -> pd.DataFrame:
    """Groups of every case, by the attributes: index task and case; ``unknown`` where nothing is said.

    Args:
        rows: the task table.
        headers: measurements of the series, column ``series`` among them; of a volume without them nothing is known.
        labelled: which series is of which labelled set; others are of the line.
    """
    series = rows["volume"].str.extract(r"([^/]+?)(?:\.[^/]*)?$")[0]
    of = headers.drop_duplicates("series").set_index("series")

    def said(column: str) -> pd.Series:
        known = of[column] if column in of else pd.Series(dtype=object)
        return series.map(known)

    sets = labelled.groupby("series")["set"].agg(lambda names: " + ".join(sorted(set(names))))
    groups = pd.DataFrame(
        {
            SEX: said("sex").map(SEXES).fillna(UNKNOWN),
            AGE: said("age").replace("", None).fillna(UNKNOWN),
            VENDOR: said("manufacturer").fillna("").map(lambda text: term("vendor", str(text)) or UNKNOWN),
            KERNEL: said("kernel").fillna("").map(lambda text: term("kernel", str(text)) or UNKNOWN),
            THICKNESS: said("thickness_max_mm").map(_thickness),
            CONTRAST: said("contrast").replace("", None).fillna(UNKNOWN),
            SET: series.map(sets).fillna(LINE),
        }
    )
    return groups.set_index([rows["task"], rows["case"]])


def _thickness(value: Any) -> str:
    number = pd.to_numeric(value, errors="coerce")
    if not np.isfinite(number):
        return UNKNOWN
    return f"{bin_labels(THICKNESS_MM)[int(np.searchsorted(THICKNESS_MM, number, side='right'))]} mm"


def blocks_of(
    cases: pd.DataFrame, measures: Mapping[str, Measure], groups: pd.DataFrame, judged: Collection[str]
) -> list[Block]:
    """The parts of a task one by one, and before them what they are parts of, where that has a figure: their mean.

    Args:
        cases: rows of ``cases.parquet`` of the task and its parts.
        measures: of its kind.
        groups: see :func:`groups_of`.
        judged: tasks, and parts of them, that have figures.
    """
    found = []
    for part, rows in cases.groupby("task"):
        of = by_case(rows, measures)
        if of is not None:
            own = groups.loc[str(part)].reindex(list(of.cases)).fillna(UNKNOWN)
            found.append((str(part), of, {attribute: own[attribute].to_numpy() for attribute in ATTRIBUTES}))
    names = {part for part, _, _ in found}
    families = sorted({part.rpartition("/")[0] for part in names} & set(judged) - names)  # else it has its own cases
    blocks = [Block(part, measures[of.figure], (of,), (own,)) for part, of, own in found]
    for family in reversed(families):
        of_family = [one for one in found if one[0].rpartition("/")[0] == family]
        if len(of_family) > 1:
            parts, own_groups = tuple(of for _, of, _ in of_family), tuple(own for _, _, own in of_family)
            blocks.insert(0, Block(family, measures[parts[0].figure], parts, own_groups))
    return blocks


def compare(block: Block, config: EvaluateConfig) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Every group's figure with ``COLUMNS``, and per attribute the group that is farthest below all others.

    Returns:
        The table, and by attribute ``figure``, its name; ``patients``, group to number (``of_classes``: of its rarest
        class), of which ``needed`` are; and ``groups``, how many have a figure. Where there are two or more also
        ``gaps``, group to its figure less that of all other cases of known group, with limits that hold for all groups
        of the attribute at once (Bonferroni), since the worst is chosen among them; and that one, ``worst``, with
        ``gap``, ``gap_low`` and ``gap_high``. Where lower is better, the worst gap is the one farthest above.
    """
    drawn = draws(block.patients, config.bootstrap, config.seed)
    tables, gaps = [], {}
    for attribute in ATTRIBUTES:
        rows, gaps[attribute] = _attribute(block, attribute, drawn, config)
        tables += rows
    return pd.DataFrame(tables, columns=COLUMNS), gaps


def _attribute(
    block: Block, attribute: str, drawn: Draws, config: EvaluateConfig
) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    names = sorted({str(name) for of in block.groups for name in of[attribute]})
    large = {
        name: [_least(part, of[attribute] == name) >= config.minimum_patients
               for part, of in zip(block.parts, block.groups, strict=True)]
        for name in names
    }  # fmt: skip
    # Groups are compared on the same parts: on those in which all are large enough that are so in half of them.
    counted = [name for name in names if name != UNKNOWN and sum(large[name]) * 2 >= len(block.parts)]
    shared = [index for index in range(len(block.parts)) if all(large[name][index] for name in counted)]
    rows = []
    for name in names:
        inside = [of[attribute] == name for of in block.groups]
        rows.append(_row(block, attribute, name, inside, shared if name in counted else [], drawn, config))
    least = {row[COLUMNS.index("group")]: row[COLUMNS.index("least_patients")] for row in rows}
    told: dict[str, Any] = {
        "figure": block.figure, "patients": least, "needed": config.minimum_patients,
        "of_classes": block.parts[0].of_classes, "groups": len(counted) if shared else 0,
    }  # fmt: skip
    return rows, told | (_gaps(block, attribute, counted, shared, drawn) if len(counted) > 1 and shared else {})


def _gaps(block: Block, attribute: str, names: Sequence[str], parts: Sequence[int], drawn: Draws) -> dict[str, Any]:
    known = [of[attribute] != UNKNOWN for of in block.groups]
    widest = block.measure.bounds[1] - block.measure.bounds[0]
    found = {}
    for name in names:
        inside = [of[attribute] == name for of in block.groups]
        value, *limits = _gap(block, inside, known, parts, drawn, 1 - (1 - LEVEL) / len(names))
        found[name] = [round(float(number), DIGITS) for number in (value, *np.clip(limits, -widest, widest))]
    sign = -1.0 if block.measure.lower_is_better else 1.0
    worst = min(names, key=lambda name: (sign * found[name][0], name))
    return {"gaps": found, "worst": worst} | dict(zip(("gap", "gap_low", "gap_high"), found[worst], strict=True))


def _least(part: ByCase, inside: Bools) -> int:
    """Patients of the rarest class of a group; of what has no classes, its patients."""
    patients = np.asarray(part.patients)[inside]
    if not part.of_classes:
        return len(set(patients))
    labels = np.asarray(part.labels)[inside]
    return min(len(set(patients[labels == name])) for name in part.classes)


def _row(
    block: Block, attribute: str, name: str, inside: Sequence[Bools], parts: Sequence[int], drawn: Draws,
    config: EvaluateConfig,
) -> tuple[Any, ...]:  # fmt: skip
    cases = max(int(of.sum()) for of in inside)
    patients = {p for part, of in zip(block.parts, inside, strict=True) for p in np.asarray(part.patients)[of]}
    least = min(_least(block.parts[index], inside[index]) for index in parts or range(len(block.parts)))
    start = (block.name, block.figure, attribute, name, cases, len(patients), least)
    if not parts:
        needed = f"fewer than {config.minimum_patients} patients" + (" of a class" if block.parts[0].of_classes else "")
        why = "not known what it is" if name == UNKNOWN else needed
        return (*start, math.nan, math.nan, math.nan, why)
    of = [(block.parts[index], inside[index]) for index in parts]
    own = draws(sorted(patients), config.bootstrap, config.seed)  # of the group's patients alone
    replicates = mean_defined([part.value(chosen, _weights(part, chosen, own)) for part, chosen in of])
    sample = _least_free([_sample(part, chosen) for part, chosen in of])
    estimate = figure(replicates, sample, block.measure.bounds)
    numbers = (estimate.value, *estimate.interval())
    return (*start, *(round(float(value), DIGITS) for value in numbers), "")


def _weights(part: ByCase, chosen: Bools, drawn: Draws) -> Array:
    """(replicates, cases), of cases that are not chosen 0."""
    weights = np.zeros((len(drawn.counts), len(chosen)))
    weights[:, chosen] = drawn.weights(np.asarray(part.patients)[chosen].tolist())
    return weights


def _sample(part: ByCase, chosen: Bools) -> Sample:
    patients, labels = np.asarray(part.patients)[chosen].tolist(), np.asarray(part.labels)[chosen].tolist()
    return sample_of(patients, labels if part.of_classes else None)


def _gap(
    block: Block, inside: Sequence[Bools], known: Sequence[Bools], parts: Sequence[int], drawn: Draws, level: float
) -> tuple[float, float, float]:
    """A group's figure less that of all others, with its limits, all patients drawn together: some have scans in
    both."""
    sides: tuple[list[Array], list[Array]] = [], []
    of_sides: tuple[list[Sample], list[Sample]] = [], []
    samples = []
    for index in parts:
        part, own = block.parts[index], inside[index]
        others = known[index] & ~own
        weights = drawn.weights(list(part.patients))
        for cases, replicates, of_side in zip((own, others), sides, of_sides, strict=True):
            replicates.append(part.value(cases, weights))
            of_side.append(_sample(part, cases))
        samples.append(_of_both(part, own, own | others))
    ours, theirs = (mean_defined(replicates) for replicates in sides)
    difference, sample = ours - theirs, _least_free(samples)
    estimate = Estimate(float(difference[0]), float(standard_error(difference, sample)), sample.freedom)
    if estimate.error:
        return (estimate.value, *estimate.interval(level))
    # Both the same in every draw, as where all cases are right: what their own limits say, as evaluate.falls has it.
    (mine, mine_low, mine_high), (other, other_low, other_high) = (
        (float(of[0]), *figure(of, _least_free(samples), block.measure.bounds).interval(level))
        for of, samples in zip((ours, theirs), of_sides, strict=True)
    )
    below, above = (mine - mine_low, other_high - other), (mine_high - mine, other - other_low)
    return mine - other, mine - other - math.hypot(*below), mine - other + math.hypot(*above)


def _least_free(samples: Sequence[Sample]) -> Sample:
    return min(samples, key=lambda one: one.freedom)


def _of_both(part: ByCase, own: Bools, both: Bools) -> Sample:
    """Of two groups' difference: as unsure as the smaller group, or the rarest class of either."""
    patients = np.asarray(part.patients)[both].tolist()
    group = np.where(own, "in", "out")[both].tolist()
    samples = [sample_of(patients, group)]
    if part.of_classes:
        strata = [f"{side}/{label}" for side, label in zip(group, np.asarray(part.labels)[both], strict=True)]
        samples.append(sample_of(patients, strata))
    return min(samples, key=lambda one: one.freedom)
