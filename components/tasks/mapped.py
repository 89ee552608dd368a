"""Places of the structures in the label maps of scans."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from components.ct.labels.stored import label_map_of, read_names
from components.ct.store import StoredVolume
from components.tasks.structures import structures_of
from components.tasks.table import Built, Inputs, none_built, task_table


def with_map(scans: pd.DataFrame) -> pd.Series[bool]:
    """Whether each scan has a label map."""
    return scans["volume"].map(lambda volume: label_map_of(Path(volume)) is not None).astype(bool)


def named(scans: pd.DataFrame) -> pd.DataFrame:
    """The structures that the label map of each scan names: columns series, structure."""
    found = [
        (series, structure)
        for series, volume in zip(scans["series"], scans["volume"], strict=True)
        if (path := label_map_of(Path(volume))) is not None
        for structure in sorted(set(read_names(path).values()))
    ]
    return pd.DataFrame(found, columns=["series", "structure"])


def innermost(volume: str, names: Collection[str]) -> pd.DataFrame:
    """The innermost point of each of ``names`` that has a voxel: columns label, x, y, z in RAS millimetres.

    Args:
        volume: path of a stored volume with a label map.
        names: of structures.

    Raises:
        UserError: the label map is not there any more.
    """
    stored = StoredVolume(Path(volume))
    found = structures_of(Path(volume), stored.spacing, names)
    points = [
        (structure, *(stored.affine[:3, :3] @ of.innermost() + stored.affine[:3, 3])) for structure, of in found.items()
    ]
    return pd.DataFrame(points, columns=["label", "x", "y", "z"])


def structures(name: str, of: str, inputs: Inputs) -> Built:
    """A case per structure of each scan of a labelled set, at its innermost point; the structure is its class.

    Args:
        name: of the task, or of its part.
        of: a labelled set with masks.
        inputs: of the line.
    """
    scans = inputs.scans_of(of)
    mapped = scans[with_map(scans)]
    of_series = named(mapped).groupby("series")["structure"]
    points = []
    for scan in mapped[mapped["series"].isin(of_series.groups)].to_dict("records"):
        found = innermost(scan["volume"], list(of_series.get_group(scan["series"])))
        case = scan["series"] + "/" + found["label"]
        points.append(found.assign(task=name, case=case, **{key: scan[key] for key in ("patient", "volume", "split")}))
    table = task_table(points)
    if table.empty:
        return none_built({name: f"no structure in a label map of the {len(scans)} accepted scans of set {of}"})
    lost = len(scans) - len(mapped)
    return Built(table, remarks={name: f"Left out: {lost} scans without a label map."} if lost else {})
