"""Cases of the line's own annotated scans: organs, lesions, head findings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from components.tasks.table import Built, Inputs, none_built, task_table

SIDES = frozenset({"left", "right", "l", "r"})
LESION = "lesion_"
FINDING = "finding_"


def structure_class(structure: str) -> str:
    """Organ without its side: ``kidney_left`` and ``kidney_right`` are one class, ``kidney``."""
    return "_".join(part for part in structure.split("_") if part not in SIDES) or structure


def organs(name: str, inputs: Inputs) -> Built:
    """Which organ lies at the centre of the crop? One case per organ point; sides are merged."""
    points = inputs.annotated("organ", inputs.scans())
    if points.empty:
        return none_built({name: _nothing(inputs, "organ points")})
    return Built(task_table([points.assign(task=name, label=points["structure"].map(structure_class))]))


def lesions(name: str, inputs: Inputs) -> Built:
    """Lesion at the centre of the crop, or healthy tissue of the same organ?

    Healthy crops are the annotation's control points (kind lesion, not present), which lie where lesions might; where
    it has none, organ points of patients without lesions. Within each split, every organ gives the same number of
    healthy crops per lesion crop, so that knowing the organ says nothing about the label.
    """
    scans = inputs.scans()
    sites = inputs.annotated("lesion", scans)
    sites["organ"] = sites["structure"].str.removeprefix(LESION).map(structure_class)
    found, healthy = sites[sites["present"] == True], sites[sites["present"] == False]  # noqa: E712
    remark = "Healthy crops are control points, placed as lesions are."
    if healthy.empty:
        points = inputs.annotated("organ", scans)
        healthy = points[~points["patient"].isin(found["patient"])]
        healthy = healthy.assign(organ=healthy["structure"].map(structure_class))
        remark = "Healthy crops are centred on organs of patients without lesions: place within the organ may tell."
    if found.empty or healthy.empty:
        return none_built({name: _nothing(inputs, "lesions" if found.empty else "healthy points beside lesions")})
    both = pd.concat([found.assign(label="lesion"), healthy.assign(label="healthy")], ignore_index=True)
    # A seeded order, in which surplus crops are left out.
    both["order"] = both["case"].map(lambda case: hashlib.sha256(f"{inputs.config.seed}/{case}".encode()).hexdigest())
    matched = [_matched(part) for _, part in both.sort_values("order").groupby("split")]
    table = task_table([part.assign(task=name) for part in matched])
    if table.empty:
        return none_built({name: "no organ has both lesions and healthy points in the same split"})
    kept = table["label"].value_counts()
    remark += (
        f" {kept['lesion']} of {len(found)} lesions and {kept['healthy']} of {len(healthy)} healthy points matched."
    )
    return Built(table, remarks={name: remark})


def _matched(rows: pd.DataFrame) -> pd.DataFrame:
    counts = rows.groupby(["organ", "label"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=["healthy", "lesion"], fill_value=0)
    counts = counts[(counts["healthy"] > 0) & (counts["lesion"] > 0)]
    if counts.empty:
        return rows.iloc[:0]
    per_lesion = max(1, int((counts["healthy"] // counts["lesion"]).min()))
    kept = []
    for organ, count in counts.iterrows():
        lesions_kept = int(min(count["lesion"], count["healthy"]))
        of_organ = rows[rows["organ"] == organ]
        kept.append(of_organ[of_organ["label"] == "lesion"].head(lesions_kept))
        kept.append(of_organ[of_organ["label"] == "healthy"].head(lesions_kept * per_lesion))
    return pd.concat(kept)


def findings(name: str, inputs: Inputs) -> Built:
    """Is the finding present in the head? One binary task per finding, the whole volume as one case."""
    rows = inputs.annotated("finding", inputs.scans())
    if rows.empty:
        return none_built({name: _nothing(inputs, "findings")})
    rows["task"] = f"{name}/" + rows["structure"].str.removeprefix(FINDING)
    rows["label"] = rows["present"].map({True: "present", False: "absent"})
    return Built(task_table([rows.assign(x=float("nan"), y=float("nan"), z=float("nan"))]))


def with_sites(build: Callable[[str, Inputs], Built], name: str, inputs: Inputs, sites: Sequence[str]) -> Built:
    """The cases of the line's own scans, and of each labelled set of annotated scans: parts of their own below
    ``<task>/<set>``, which train on the line's training cases and test on all cases of that set."""
    built = build(name, inputs)
    trained = built.table[built.table["split"] == "train"]
    tables, reasons, remarks = [built.table], dict(built.not_evaluated), dict(built.remarks)
    for site in sites:
        there = build(f"{name}/{site}", replace(inputs, site=site))
        parts = f"{name}/{site}" + trained["task"].str.removeprefix(name)
        tables += [trained.assign(task=parts), there.table] if len(there.table) else []
        reasons, remarks = reasons | there.not_evaluated, remarks | there.remarks
    return Built(task_table(tables), reasons, remarks)


def _nothing(inputs: Inputs, what: str) -> str:
    scans = len(inputs.scans())
    return f"no {what} among the {scans} accepted evaluation series" if scans else "no accepted evaluation series"
