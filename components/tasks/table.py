"""The task table: every evaluation task is rows of (task, case, patient, volume, place, label, split).

A kind of task builds its cases by a function from :class:`Inputs` to :class:`Built`. What cannot be evaluated comes
back with its reason; nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from components.ct.grid import GridConfig
from components.tasks.config import LINE, EvaluateConfig

COLUMNS = ("task", "case", "patient", "volume", "x", "y", "z", "label", "split", "diameter_mm")
NUMBERS = dict.fromkeys(("x", "y", "z", "diameter_mm"), "float64")
RETEST = "/retest"  # ends the case of the second scan of a pair, after the case of the first


@dataclass(frozen=True)
class Inputs:
    """What cases are built from.

    Attributes:
        line: the model line.
        sees: what the encoder sees, as in ``input.sees``.
        curated: every series that reached curation, accepted or not.
        annotations: points and findings of accepted series.
        config: of evaluation.
        preprocess: the line's grid, for volumes that come from outside the store.
        labelled: which scan each row of a labelled set's table is of, as stage ``cohort`` found it.
        tasks: the line's tasks by name, for a kind that asks about another task.
        site: the labelled set whose scans are asked for, all to be tested on; '' for the line's own.
    """

    line: str
    sees: Literal["crop", "scan"]
    curated: pd.DataFrame
    annotations: pd.DataFrame
    config: EvaluateConfig
    preprocess: GridConfig
    labelled: pd.DataFrame = field(default_factory=pd.DataFrame)
    tasks: Mapping[str, Any] = field(default_factory=dict)
    site: str = ""

    def scans(self) -> pd.DataFrame:
        """Accepted series of the evaluation role, without second scans; sorted. Those of labelled sets are apart."""
        if self.site:
            own = self.labelled.loc[self.labelled["set"] == self.site, "series"]
            rows = self._accepted("evaluation")
            return rows[rows["series"].isin(own)].assign(split="test")
        return self._accepted("evaluation").query("retest_of == '' and split != 'held_out'")

    def scans_of(self, of_set: str) -> pd.DataFrame:
        """Accepted scans of a labelled set, each once, ``split`` saying on which side they are; sorted. Of
        :data:`LINE`, :meth:`scans`."""
        if of_set == LINE:
            return self.scans()
        rows = self.labelled.loc[self.labelled["set"] == of_set, ["series", "split"]].drop_duplicates("series")
        accepted = self.curated[self.curated["status"] == "accepted"].drop(columns="split")
        return accepted.merge(rows, on="series").sort_values("series")

    def retests(self) -> pd.DataFrame:
        """Accepted second scans of the evaluation role; sorted."""
        return self._accepted("evaluation").query("retest_of != ''")

    def pretraining_patients(self) -> set[str]:
        """Keys of the patients that the encoder has seen."""
        return set(self._accepted("pretrain")["patient"])

    def _accepted(self, role: str) -> pd.DataFrame:
        rows = self.curated[(self.curated["status"] == "accepted") & (self.curated["role"] == role)]
        return rows.sort_values("series")

    def annotated(self, kind: str, scans: pd.DataFrame) -> pd.DataFrame:
        """Annotations of one kind with the scan's volume and split; one case per row, sorted by case."""
        rows = self.annotations[self.annotations["kind"] == kind].drop(columns="patient")
        rows = rows[rows["series"].isin(scans["series"])]
        if rows.empty:
            return pd.DataFrame(columns=[*rows.columns, "case", "patient", "volume", "split"])
        rows = rows.sort_values(["series", "structure", "x", "y", "z"])
        rows["case"] = rows["series"] + "/" + rows["structure"]
        repeated = rows.groupby("case").cumcount()  # several lesions of one organ
        rows["case"] = rows["case"].where(repeated == 0, rows["case"] + "-" + (repeated + 1).astype(str))
        return rows.merge(scans[["series", "patient", "volume", "split"]], on="series").sort_values("case")


@dataclass(frozen=True)
class Built:
    """A task's rows, parts without rows and why, and remarks on what was left out of a task.

    Attributes:
        table: rows with ``COLUMNS``.
        not_evaluated: part to reason.
        remarks: part to remark, shown in the report.
        too_few: of the parts without rows, those that had rows of too few patients.
    """

    table: pd.DataFrame
    not_evaluated: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    too_few: list[str] = field(default_factory=list)


def none_built(reasons: dict[str, str]) -> Built:
    """No rows at all, and why."""
    return Built(task_table([]), reasons)


def task_table(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Rows of several tasks with exactly ``COLUMNS``, sorted; a diameter that is not known is NaN."""
    frames = [part.assign(diameter_mm=part.get("diameter_mm", np.nan))[list(COLUMNS)] for part in parts if len(part)]
    if not frames:
        return pd.DataFrame({name: pd.Series(dtype=NUMBERS.get(name, "str")) for name in COLUMNS})
    table = pd.concat(frames, ignore_index=True)
    table = table.astype(NUMBERS)
    return table.sort_values(["task", "case"], ignore_index=True)


def usable(built: Built, minimum_patients: int) -> Built:
    """Leave out classes with too few patients in train or test, and parts with fewer than two classes left; the reasons
    come back beside the rows."""
    kept, reasons, remarks, too_few = [], dict(built.not_evaluated), dict(built.remarks), list(built.too_few)
    for task, rows in built.table.groupby("task"):
        name = str(task)
        counts = {label: _patients(rows, str(label)) for label in sorted(rows["label"].unique())}
        classes = [label for label, count in counts.items() if min(count) >= minimum_patients]
        few = "; ".join(
            f"{label}: {train} patients in train, {test} in test"
            for label, (train, test) in counts.items()
            if min(train, test) < minimum_patients
        )
        if len(classes) < 2:
            alone = "" if len(counts) > 1 else f"one class only ({', '.join(counts)}); "
            reason = f"{alone}at least {minimum_patients} patients per class and split are needed: {few}"
            reasons[name] = ". ".join(filter(None, [reason, remarks.pop(name, "")]))
            too_few.append(name)
            continue
        if few:
            remarks[name] = " ".join(filter(None, [remarks.get(name), f"Classes left out, too few patients: {few}."]))
        kept.append(rows[rows["label"].isin(classes)])
    return Built(task_table(kept), reasons, remarks, too_few)


def _patients(rows: pd.DataFrame, label: str) -> tuple[int, int]:
    of_class = rows[rows["label"] == label]
    train, test = (of_class.loc[of_class["split"] == split, "patient"].nunique() for split in ("train", "test"))
    return train, test


def check_splits(table: pd.DataFrame) -> None:
    """Raise ValueError where a patient is on both sides of a task's split: such figures would mean nothing."""
    sides = table.groupby(["task", "patient"])["split"].nunique()
    both = sides[sides > 1]
    if len(both):
        task, patient = both.index[0]
        raise ValueError(f"task {task}: patient {patient} is in train and in test ({len(both)} such cases)")
