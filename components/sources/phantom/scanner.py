"""The scanner: from a plan to a series of DICOM files, a label map and the annotations taken from it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from components.sources.phantom import dicom, masks
from components.sources.phantom.body import paint_body
from components.sources.phantom.equipment import Kernel, kernels
from components.sources.phantom.faults import fault_named
from components.sources.phantom.geometry import Geometry, geometry_of
from components.sources.phantom.head import paint_head
from components.sources.phantom.lesions import Site
from components.sources.phantom.plan import ScanPlan
from components.sources.phantom.seeds import generator
from components.sources.phantom.shapes import F32, Canvas
from components.sources.phantom.subject import Subject

AIR_HU = -1000.0


def scan(plan: ScanPlan, folder: Path) -> pd.DataFrame:
    """Scan one patient as planned.

    Writes ``folder/*.dcm``, ``folder/mask.nii.gz`` (uint8 label map on the scan's own grid, RAS affine; for a faulty
    scan, the grid as it was before the fault) and ``folder/labels.json`` (label value to structure). Equal plans give
    equal bytes.

    Args:
        plan: from :func:`components.sources.phantom.dealing.plan_scans`.
        folder: created; files of other names in it are left alone.

    Returns:
        Annotations, one row per structure: structure, kind ('organ', 'lesion', 'finding'), x, y, z (RAS mm of a
        voxel in the structure, the nearest to its centroid; NaN for an absent finding), volume_ml, present. An absent
        lesion has a point: a healthy control place in the organ, drawn as lesions are. A faulty scan returns its rows
        all the same: screening, not the scanner, drops the series.

    Raises:
        ValueError: the plan names an unknown fault.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fault = fault_named(plan.fault) if plan.fault else None
    if fault and fault.replan:
        plan = fault.replan(plan)
    geometry = geometry_of(plan)
    canvas, sites, subject = paint(plan, geometry)
    hu = acquire(plan, canvas.hu)
    rng = generator("fault", plan.scan_seed)
    if fault and fault.corrupt_hu:
        hu = fault.corrupt_hu(hu, rng)
    label = _flipped(canvas.label, geometry)
    table = masks.annotate(plan, geometry, label, sites)
    masks.write(folder, geometry, label, masks.label_names(plan.anatomy, sites))
    slices = dicom.series(plan, geometry, _flipped(hu, geometry), subject)
    if fault and fault.corrupt_slices:
        slices = fault.corrupt_slices(slices, rng)
    paths = dicom.write(slices, folder)
    if fault and fault.corrupt_files:
        fault.corrupt_files(paths, rng)
    return table


def paint(plan: ScanPlan, geometry: Geometry) -> tuple[Canvas, list[Site], Subject]:
    """The patient and the table on the scan's grid, sharp and without noise; and who it is."""
    x, y, z = (_coordinate(geometry, axis) for axis in range(3))
    rng = generator("warp", plan.anatomy_seed)
    warp = 5.0 if plan.anatomy == "trunk" else 2.5
    for axis, along in ((x, y), (y, z), (x, z)):
        reach = np.float32(200 if plan.anatomy == "trunk" else 90)
        axis += np.float32(rng.uniform(-warp, warp) / 2) * np.clip(along / reach, -1, 1) ** 2
    hu = np.full(geometry.shape, np.float32(AIR_HU))
    index = np.asarray(np.linalg.inv(geometry.anatomy), np.float64)
    canvas = Canvas(hu, np.zeros(geometry.shape, np.uint8), x, y, z, index, warp, max(plan.pixel_mm, 1.2))
    _table(plan, geometry, canvas)
    if plan.anatomy == "trunk":
        return canvas, *paint_body(canvas, plan.anatomy_seed, plan.habitus)
    return canvas, [], paint_head(canvas, plan.anatomy_seed, plan.habitus, plan.findings)


def _coordinate(geometry: Geometry, axis: int) -> F32:
    """One anatomy coordinate of every voxel, (K, R, C)."""
    a = geometry.anatomy.astype(np.float32)
    k, r, c = (np.arange(n, dtype=np.float32) for n in geometry.shape)
    plane = a[axis, 1] * r[:, None] + a[axis, 2] * c + a[axis, 3]
    return np.asarray(a[axis, 0] * k[:, None, None] + plane[None], np.float32)


def _table(plan: ScanPlan, geometry: Geometry, canvas: Canvas) -> None:
    """A curved table top below the patient: at the back, or in front of a prone patient. Fixed to the scanner."""
    _, rows, columns = geometry.shape
    lateral = (np.arange(columns, dtype=np.float32) - (columns - 1) / 2) * plan.pixel_mm
    vertical = (np.arange(rows, dtype=np.float32) - (rows - 1) / 2) * plan.pixel_mm
    if plan.position in ("HFP", "FFP"):
        vertical = -vertical
    rng = generator("table", plan.vendor)
    half, sag = (200.0, rng.uniform(25, 45)) if plan.anatomy == "trunk" else (95.0, 60.0)
    top = 128.0 * plan.habitus + 12 if plan.anatomy == "trunk" else 104.0
    curve = top - sag * np.minimum((lateral / half) ** 2, 1.0)
    below = vertical[:, None] - curve[None]
    inside = (np.abs(lateral) < half)[None]
    thick = 18.0 if plan.anatomy == "trunk" else 9.0
    image = np.full((rows, columns), np.float32(AIR_HU))
    image[(below > 0) & (below < thick) & inside] = rng.uniform(-930, -850)
    image[((np.abs(below) < 1.5) | (np.abs(below - thick) < 1.5)) & inside] = rng.uniform(-250, 50)
    canvas.hu[...] = image[None]


def acquire(plan: ScanPlan, hu: F32) -> F32:
    """Blur by the kernel, add its noise, and shade a head slightly: (K, R, C) HU to (K, R, C) HU."""
    kernel = kernels(plan.vendor, plan.anatomy)[plan.kernel]
    rng = generator("noise", plan.scan_seed)
    sigma = kernel.psf_mm / plan.pixel_mm
    noise = _noise(plan, kernel, hu.shape, rng)
    out = np.empty_like(hu)
    cup = np.float32(rng.uniform(-2, 2)) * _radius2(plan) if plan.anatomy == "head" else np.float32(0)
    for k in range(hu.shape[0]):
        image = cv2.GaussianBlur(hu[k], (0, 0), sigma)
        if kernel.sharpen:
            wide = cv2.GaussianBlur(image, (0, 0), 1.5 / plan.pixel_mm)
            image = image + np.float32(kernel.sharpen) * (image - wide)
        # More photons are lost in the middle of the body than in the air beside it.
        dense = cv2.GaussianBlur((hu[k] > -500).astype(np.float32), (0, 0), 25 / plan.pixel_mm)
        out[k] = image + noise[k] * (0.25 + dense) + (np.float32(plan.hu_offset) + cup) * dense
    return out


def _radius2(plan: ScanPlan) -> F32:
    axis = (np.arange(plan.matrix, dtype=np.float32) - (plan.matrix - 1) / 2) * np.float32(plan.pixel_mm / 90)
    return np.asarray(axis[:, None] ** 2 + axis[None] ** 2, np.float32)


def _noise(plan: ScanPlan, kernel: Kernel, shape: tuple[int, ...], rng: np.random.Generator) -> F32:
    """Band-limited noise: white noise less its own blur (the ramp filter), blurred to the kernel's grain."""
    noise = rng.standard_normal(shape, np.float32)
    grain = kernel.grain_mm / plan.pixel_mm
    for k in range(shape[0]):
        fine = cv2.GaussianBlur(noise[k], (0, 0), grain)
        noise[k] = fine - np.float32(0.8) * cv2.GaussianBlur(fine, (0, 0), 2.5 * grain)
    thin = min(1.5, (5.0 / plan.thickness_mm) ** 0.5)
    noise *= np.float32(plan.noise_hu * kernel.noise**0.7 * thin / float(noise[shape[0] // 2].std()))
    return noise


def _flipped(volume: npt.NDArray[np.generic], geometry: Geometry) -> npt.NDArray[np.generic]:
    rows, columns = (slice(None, None, -1) if reverse else slice(None) for reverse in geometry.flip)
    return np.ascontiguousarray(volume[:, rows, columns])
