"""What becomes of every geometry that archives hold: each case made, read, measured, judged and brought onto the grid.

``python -m tests.geometry_cases`` prints the table as Markdown; ``tests/integration/test_geometry_cases.py`` holds it.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydicom import Dataset

from components.ct.dicom import read_series
from components.ct.headers import measure_series, read_instance
from components.ct.standardise import resample_only
from components.ct.store import Volume
from components.errors import UserError
from components.preprocess.config import PreprocessConfig
from components.quality import judge
from components.screen.config import ScreenConfig
from components.screen.suite import headers_suite
from components.settings import load_stage
from components.sources.phantom import dicom
from components.sources.phantom.geometry import geometry_of
from components.sources.phantom.plan import ScanPlan
from components.sources.phantom.scanner import _flipped, acquire, paint
from components.sources.phantom.seeds import uid
from tests.fault_catalogue import PARAMS, small_plan

Slices = list[Dataset]
TILT_ACCEPTED = 30.0


@dataclass(frozen=True)
class Case:
    """One geometry.

    Attributes:
        name, says: for the table.
        plan: changes of the scan.
        plant: changes of its headers.
        reasons: why the series is rejected; none where it is accepted.
        corrected: with ``screen.max_tilt_degrees: 30`` or ``acquire.mixed_series: largest_stack``: why it is still
            rejected, none where it is accepted then; None where that changes nothing.
        volume: what becomes of it, in words.
    """

    name: str
    says: str
    volume: str
    reasons: tuple[str, ...] = ()
    corrected: tuple[str, ...] | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    plant: Callable[[Slices], Slices] = lambda items: items


@dataclass(frozen=True)
class Fate:
    """Reasons of the suite *headers*, and the volume on the line's grid where there is none. ``left_out``: images."""

    reasons: tuple[str, ...]
    standard: Volume | None
    left_out: int


def _renamed(item: Dataset, *name: Any) -> Dataset:
    copy = deepcopy(item)
    copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = uid("geometry", *name)
    return copy


def _without_one(items: Slices) -> Slices:
    return [item for number, item in enumerate(items) if number != 9]


def _one_twice(items: Slices) -> Slices:
    return [*items, _renamed(items[9], "twice")]


def _uneven(items: Slices) -> Slices:
    for number, item in enumerate(items):
        x, y, z = (float(v) for v in item.ImagePositionPatient)
        item.ImagePositionPatient = [x, y, round(z + 0.1 * number**2, 4)]
    return items


def _two_protocols(items: Slices) -> Slices:
    """Base and vertex of a head: each gap within the bound of the median, together millimetres off an even grid."""
    half = len(items) // 2
    for number, item in enumerate(items):
        x, y, z = (float(v) for v in item.ImagePositionPatient)
        item.ImagePositionPatient = [x, y, round(z - 0.8 * max(0, number - half), 4)]
    return items


def _reversed(items: Slices) -> Slices:
    """Names and numbers against the positions."""
    items = items[::-1]
    for number, item in enumerate(items, start=1):
        item.InstanceNumber = number
    return items


def _shuffled(items: Slices) -> Slices:
    random.Random(7).shuffle(items)
    for item in items:
        item.InstanceNumber = 1
    return items


def _four_times(items: Slices) -> Slices:
    """Three points in time; contrast comes and goes."""
    phases = []
    for phase in (1, 2, 3):
        for number, item in enumerate(items):
            copy = _renamed(item, "time", phase, number)
            copy.TemporalPositionIdentifier, copy.NumberOfTemporalPositions = phase, 3
            copy.AcquisitionNumber = phase
            copy.RescaleIntercept = str(int(copy.RescaleIntercept) + 50 * (phase - 1))
            phases.append(copy)
    return phases


def _scout_inside(items: Slices) -> Slices:
    scout = _renamed(items[0], "scout")
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    return [scout, *items]


def _two_kernels(items: Slices) -> Slices:
    sharp = []
    for number, item in enumerate(items):
        copy = _renamed(item, "sharp", number)
        copy.ConvolutionKernel, copy.RescaleIntercept = "zz sharp", str(int(copy.RescaleIntercept) + 50)
        sharp.append(copy)
    return [*items, *sharp]


def _two_ranges(items: Slices) -> Slices:
    """The lower half reconstructed with another field of view."""
    for item in items[: len(items) // 2 - 1]:
        item.PixelSpacing = [float(v) * 1.2 for v in item.PixelSpacing]
    return items


CASES = (
    Case("upright", "axial, head first", "as it is"),
    Case("tilt", "gantry tilted by 18.5 degrees", "sheared back", ("gantry_tilt",), (), {"gantry_tilt_deg": 18.5}),
    Case("missing slice", "one of 24 slices is not there", "-", ("uneven_spacing",), plant=_without_one),
    Case("repeated slice", "one position twice", "-", ("repeated_positions",), ("repeated_positions",),
         plant=_one_twice),
    Case("uneven spacing", "the distance grows from slice to slice", "-", ("uneven_spacing",), plant=_uneven),
    Case("two protocols", "5 mm steps below, 4.2 mm above", "-", ("uneven_spacing",), plant=_two_protocols),
    Case("reversed", "file names and instance numbers run downwards", "by position: as upright", plant=_reversed),
    Case("shuffled", "file names at random, every instance number 1", "by position: as upright", plant=_shuffled),
    Case("oblique", "planes turned by 12 degrees, positions along their normal", "on its own oblique axes",
         plan={"oblique_deg": 12.0}),
    Case("feet first", "feet first, prone", "turned to the line's axes", plan={"position": "FFP"}),
    Case("4D", "three points in time at every position", "the first of them",
         ("repeated_positions", "rescale"), (), plant=_four_times),
    Case("localizer inside", "a scout among the slices", "the slices",
         ("localizer", "mixed_geometry", "repeated_positions"), (), plant=_scout_inside),
    Case("two kernels mixed", "two reconstructions in one series", "that with the first kernel's name",
         ("mixed_kernels", "repeated_positions", "rescale"), (), plant=_two_kernels),
    Case("two fields of view", "a part with larger pixels", "the larger part",
         ("mixed_geometry",), (), plant=_two_ranges),
    Case("single slice", "one slice", "-", ("too_few_slices",), ("too_few_slices",),
         plant=lambda items: items[:1]),
    Case("1,500 slices", "from head to foot, 1 mm", "as it is", plan={"slices": 1500, "increment_mm": 1.0,
                                                                      "thickness_mm": 1.0}),
)  # fmt: skip


def make(case: Case, folder: Path) -> None:
    """Write the case's files."""
    folder.mkdir(parents=True)
    plan = small_plan()
    field_mm = plan.matrix * plan.pixel_mm
    plan = replace(plan, **case.plan)
    plan = replace(plan, pixel_mm=round(field_mm / plan.matrix, 6))
    dicom.write(case.plant(scanned(plan)), folder)


def small_scan(folder: Path) -> Path:
    """The upright case's files, for whoever needs a series."""
    make(CASES[0], folder)
    return folder


def scanned(plan: ScanPlan) -> Slices:
    geometry = geometry_of(plan)
    canvas, _, subject = paint(plan, geometry)
    return dicom.series(plan, geometry, _flipped(np.asarray(acquire(plan, canvas.hu)), geometry), subject)


def fate(folder: Path, corrected: bool = False, line: str = "wholebody") -> Fate:
    """What becomes of the series in ``folder``; ``corrected``: under the parameters that mend what can be mended."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    instances = []
    for path in paths:
        with path.open("rb") as stream:
            instances.append(read_instance(stream, path.name, path.stat().st_size))
    screen = load_stage(ScreenConfig, line, "screen", PARAMS).model_copy(update={"privacy": "warning"})
    if corrected:
        screen = screen.model_copy(update={"max_tilt_degrees": TILT_ACCEPTED})
    measured = measure_series(instances, corrected)
    table = pd.DataFrame([{"series": "s", "status": "acquired", **measured}])
    reasons = tuple(judge.judge(table, headers_suite(screen, 1)).reasons.get("s", ()))
    if reasons:
        return Fate(reasons, None, measured["left_out"])
    volume = read_series(paths, corrected)
    standard = resample_only(volume, load_stage(PreprocessConfig, line, "preprocess", PARAMS))
    return Fate((), standard, measured["left_out"])


def markdown() -> str:
    """The table, of what really became of each case."""
    rows = ["| case | series | by default | with `max_tilt_degrees: 30`, `mixed_series: largest_stack` | volume |",
            "|---|---|---|---|---|"]  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        for number, case in enumerate(CASES):
            make(case, Path(work) / str(number))
            fates = [_said(Path(work) / str(number), corrected) for corrected in (False, True)]
            rows.append(f"| {case.name} | {case.says} | {fates[0]} | {fates[1]} | {case.volume} |")
    return "\n".join(rows)


def _said(folder: Path, corrected: bool) -> str:
    try:
        found = fate(folder, corrected)
    except UserError as error:
        return str(error)
    if found.reasons:
        return "rejected: " + ", ".join(found.reasons)
    return "accepted" + (f", {found.left_out} images left out" if found.left_out else "")


if __name__ == "__main__":
    print(markdown())
