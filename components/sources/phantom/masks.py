"""Label map and annotations of a scan."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from components.files import replacing, write_json
from components.sources.phantom.body import LABELS as BODY_LABELS
from components.sources.phantom.body import ORGANS
from components.sources.phantom.geometry import Geometry
from components.sources.phantom.lesions import Site
from components.sources.phantom.patient_head import LABELS as HEAD_LABELS
from components.sources.phantom.plan import FINDINGS, ICH_KINDS, ScanPlan
from components.sources.phantom.shapes import F64

COLUMNS = ("structure", "kind", "x", "y", "z", "volume_ml", "present")
MIN_ORGAN_ML = {"aorta": 3.0}  # less than this in the field of view: not annotated
DEFAULT_MIN_ML = 8.0
# These findings change existing structures; their place and size are the structure's.
_STANDS_FOR = {"hydrocephalus": "ventricles", "dementia": "csf"}

Row = tuple[str, str, float, float, float, float, bool]
Labels = npt.NDArray[np.generic]


def label_names(anatomy: str, sites: list[Site]) -> dict[str, str]:
    """Label value (as text, for JSON) to structure; every lesion has its own value."""
    names = {str(value): name for name, value in (BODY_LABELS if anatomy == "trunk" else HEAD_LABELS).items()}
    return names | {str(site.label): site.structure for site in sites if site.label}


def write(folder: Path, geometry: Geometry, label: Labels, names: dict[str, str]) -> None:
    """Write ``mask.nii.gz`` (axes column, row, slice; RAS affine in mm) and ``labels.json``."""
    image = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        np.asarray(label, np.uint8).transpose(2, 1, 0), geometry.affine_ras()
    )
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    with replacing(folder / "mask.nii.gz") as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    write_json(folder / "labels.json", names)


def annotate(plan: ScanPlan, geometry: Geometry, label: Labels, sites: list[Site]) -> pd.DataFrame:
    """The annotation rows, from the label map (K, R, C) as stored; sorted as they are made."""
    measure = _Measure(geometry, label)
    rows = _body_rows(measure, geometry, sites) if plan.anatomy == "trunk" else _head_rows(measure, plan)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"volume_ml": float, "present": bool})


class _Measure:
    """Place and volume of each label value."""

    def __init__(self, geometry: Geometry, label: Labels) -> None:
        self.label = np.asarray(label, np.uint8)
        self.affine: F64 = geometry.stored
        self.voxel_ml = abs(float(np.linalg.det(geometry.stored[:3, :3]))) / 1000
        self.boxes = ndimage.find_objects(self.label)

    def place(self, value: int) -> tuple[float, float, float, float]:
        """RAS mm of the voxel nearest to the centroid, and the volume in ml; NaN and 0 where there is none."""
        box = self.boxes[value - 1] if value <= len(self.boxes) else None
        if box is None:
            return np.nan, np.nan, np.nan, 0.0
        index = np.argwhere(self.label[box] == value)
        weights = np.linalg.norm(self.affine[:3, :3], axis=0)
        gaps = (((index - index.mean(axis=0)) * weights) ** 2).sum(axis=1)
        nearest = index[int(np.argmin(gaps))] + [s.start for s in box]
        return *self.ras(nearest), len(index) * self.voxel_ml

    def ras(self, index: npt.ArrayLike) -> tuple[float, float, float]:
        x, y, z = self.affine[:3, :3] @ np.asarray(index, float) + self.affine[:3, 3]
        return round(-float(x), 4), round(-float(y), 4), round(float(z), 4)


def _body_rows(measure: _Measure, geometry: Geometry, sites: list[Site]) -> list[Row]:
    rows: list[Row] = []
    for name in ORGANS:
        x, y, z, volume = measure.place(BODY_LABELS[name])
        if volume >= MIN_ORGAN_ML.get(name, DEFAULT_MIN_ML):
            rows.append((name, "organ", x, y, z, round(volume, 4), True))
    for site in sites:
        if site.label:
            x, y, z, volume = measure.place(site.label)
            if volume > 0.05:
                rows.append((site.structure, "lesion", x, y, z, round(volume, 4), True))
            continue
        index = np.rint(_stored_index(geometry, site.point)).astype(int)
        if measure.label[tuple(index)] == site.organ:
            rows.append((site.structure, "lesion", *measure.ras(index), 0.0, False))
    return rows


def _stored_index(geometry: Geometry, point: tuple[float, float, float]) -> F64:
    """Stored index (k, r, c) of an anatomy point."""
    index = np.linalg.inv(geometry.anatomy) @ np.array([*point, 1.0])
    for axis, reverse in ((1, geometry.flip[0]), (2, geometry.flip[1])):
        if reverse:
            index[axis] = geometry.shape[axis] - 1 - index[axis]
    return np.asarray(index[:3])


def _head_rows(measure: _Measure, plan: ScanPlan) -> list[Row]:
    """Exactly ten rows. Intracranial haemorrhage is any of its five kinds and lies where the largest of them does."""
    found: dict[str, tuple[float, float, float, float]] = {}
    for finding in FINDINGS[1:]:
        if finding in plan.findings:
            found[finding] = measure.place(HEAD_LABELS[_STANDS_FOR.get(finding, f"finding_{finding}")])
    bleeds = sorted((found[kind] for kind in ICH_KINDS if kind in found and found[kind][3] > 0), key=lambda p: -p[3])
    if bleeds:
        found["ich"] = (*bleeds[0][:3], sum(place[3] for place in bleeds))
    rows: list[Row] = []
    for finding in FINDINGS:
        x, y, z, volume = found.get(finding, (np.nan, np.nan, np.nan, 0.0))
        rows.append((f"finding_{finding}", "finding", x, y, z, round(volume, 4), volume > 0))
    return rows
