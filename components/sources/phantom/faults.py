"""What goes wrong with series in archives: each fault breaks one scan in one way that screening must name.

A fault acts at one or more of four points: the plan (how the scan is taken), the Hounsfield units, the slices'
datasets, the files on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage

from components.sources.phantom.plan import ScanPlan
from components.sources.phantom.seeds import uid
from components.sources.phantom.shapes import F32

Replan = Callable[[ScanPlan], ScanPlan]
CorruptHU = Callable[[F32, np.random.Generator], F32]
CorruptSlices = Callable[[list[Dataset], np.random.Generator], list[Dataset]]
CorruptFiles = Callable[[list[Path], np.random.Generator], None]


@dataclass(frozen=True)
class Fault:
    """One way to break a series.

    Attributes:
        name: stands in the plan.
        suite: which quality suite must catch it, 'headers' or 'volumes'.
        reason: the reason code that it must be rejected with.
        description: one line.
        lines: model lines it applies to.
        replan, corrupt_hu, corrupt_slices, corrupt_files: what it does, at its point of attack.
    """

    name: str
    suite: str
    reason: str
    description: str
    anatomies: tuple[str, ...] = ("trunk", "head")
    replan: Replan | None = None
    corrupt_hu: CorruptHU | None = None
    corrupt_slices: CorruptSlices | None = None
    corrupt_files: CorruptFiles | None = None


def faults_of(anatomy: str) -> tuple[Fault, ...]:
    """The faults that an anatomy can have."""
    return tuple(fault for fault in FAULTS if anatomy in fault.anatomies)


def fault_named(name: str) -> Fault:
    """Raises ValueError for a name that is not in :data:`FAULTS`."""
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise ValueError(f"fault {name!r} is not known: one of {', '.join(f.name for f in FAULTS)}")


def _as_secondary_capture(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
    for item in slices:
        item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        item.Modality = "OT"
        item.ImageType = ["DERIVED", "SECONDARY"]
        item.ConversionType = "WSD"
    return slices


def _as_mr(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
    for item in slices:
        item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = MRImageStorage
        item.Modality = "MR"
        item.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        item.ScanningSequence = "SE"
        item.SequenceVariant = "NONE"
        item.ScanOptions = ""
        item.MRAcquisitionType = "2D"
        item.EchoTime = "90"
        item.EchoTrainLength = 1
        item.RepetitionTime = "3000"
        for keyword in ("RescaleIntercept", "RescaleSlope", "RescaleType", "KVP", "ConvolutionKernel"):
            delattr(item, keyword)
    return slices


def _localizer(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
    """Scout views: the projection of all slices, from the front and from the side."""
    first = slices[0]
    pixels = np.stack([_pixels(item).astype(np.float32) for item in slices])
    if float(slices[0].ImagePositionPatient[2]) < float(slices[-1].ImagePositionPatient[2]):
        pixels = pixels[::-1]
    z = [float(item.ImagePositionPatient[2]) for item in slices]
    scouts = []
    for axis, direction in ((1, [1, 0, 0]), (2, [0, 1, 0])):
        view = np.rint(pixels.mean(axis=axis)).astype(_pixels(first).dtype)
        item = slices[axis - 1]
        item.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        item.ImageOrientationPatient = [*direction, 0, 0, -1]
        corner = [float(v) for v in first.ImagePositionPatient]
        item.ImagePositionPatient = [round(corner[0], 3), round(corner[1], 3), round(max(z), 3)]
        item.PixelSpacing = [str(item.SpacingBetweenSlices), str(item.PixelSpacing[0])]
        item.Rows, item.Columns = view.shape
        item.PixelData = view.tobytes()
        scouts.append(item)
    return scouts


def _pixels(item: Dataset) -> npt.NDArray[np.generic]:
    dtype = np.int16 if item.PixelRepresentation else np.uint16
    return np.frombuffer(item.PixelData, dtype).reshape(item.Rows, item.Columns)


def _drop(*choices: str) -> CorruptSlices:
    def drop(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
        keyword = str(rng.choice(choices))
        for item in slices:
            delattr(item, keyword)
        return slices

    return drop


def _repeat(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
    """Some slices were sent twice, the second time as new instances."""
    out: list[Dataset] = []
    chosen = set(rng.choice(len(slices), 4, replace=False).tolist())
    for i, item in enumerate(slices):
        out.append(item)
        if i in chosen:
            twin = deepcopy(item)
            twin.SOPInstanceUID = uid(item.SOPInstanceUID, "repeated")
            twin.file_meta.MediaStorageSOPInstanceUID = twin.SOPInstanceUID
            out.append(twin)
    for number, item in enumerate(out, start=1):
        item.InstanceNumber = number
    return out


def _lose_slices(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
    gap = int(rng.integers(len(slices) // 3, len(slices) // 2))
    return slices[:gap] + slices[gap + int(rng.integers(1, 4)) :]


def _crop_half(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
    """The second half was reconstructed again with another matrix and pixel size."""
    for item in slices[len(slices) // 2 :]:
        view = _pixels(item)[::2, ::2]
        item.Rows, item.Columns = view.shape
        item.PixelSpacing = [str(round(float(v) * 2, 6)) for v in item.PixelSpacing]
        item.PixelData = view.tobytes()
    return slices


def _turn_half(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
    """A coronal reformat was filed into the axial series."""
    for item in slices[len(slices) // 2 :]:
        item.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    return slices


def _lossy(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
    """JPEG at some time in the past, uncompressed since: the attribute keeps the memory (PS3.3 C.7.6.1.1.5)."""
    for item in slices:
        view = _pixels(item)
        step = 24
        item.PixelData = (view // step * step).astype(view.dtype).tobytes()
        item.LossyImageCompression = "01"
        item.LossyImageCompressionRatio = "12"
        item.LossyImageCompressionMethod = "ISO_10918_1"
        item.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    return slices


def _burn_in(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
    """A block of bright strokes in the corner, as text burned into the pixels."""
    strokes = rng.random((3, 9, 5, 3)) < 0.55
    for item in slices:
        view = _pixels(item).copy()
        for line in range(3):
            for letter in range(9):
                top, left = 4 + 7 * line, 4 + 5 * letter
                view[top : top + 5, left : left + 3][strokes[line, letter]] = 3000
        item.PixelData = view.tobytes()
        item.BurnedInAnnotation = "YES"
    return slices


def _shorten_pixels(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
    for i in rng.choice(len(slices), 3, replace=False):
        size = int(slices[i].Rows) * int(slices[i].Columns)
        slices[i].PixelData = slices[i].PixelData[: size // 2 * 2]
    return slices


def _miscalibrate(slices: list[Dataset], rng: np.random.Generator) -> list[Dataset]:
    wrong = float(slices[0].RescaleIntercept) + float(rng.choice([1000.0, 1024.0, 500.0]))
    for item in slices:
        item.RescaleIntercept = f"{wrong:g}"
    return slices


def _truncate_files(paths: list[Path], rng: np.random.Generator) -> None:
    """Interrupted copies: one file ends within the preamble, one within the header, one is empty."""
    chosen = rng.choice(len(paths), 3, replace=False)
    for i, length in zip(chosen, (96, 420, 0), strict=True):
        paths[i].write_bytes(paths[i].read_bytes()[:length])


def _empty_table(hu: F32, rng: np.random.Generator) -> F32:
    """Nobody on the table: what a scan of the daily quality check leaves in an archive."""
    out = np.asarray(rng.normal(-1000, 8, hu.shape), np.float32)
    _, rows, columns = hu.shape
    out[:, rows * 4 // 5 : rows * 4 // 5 + 2, columns // 6 : -columns // 6] += 500
    return out


def _blank_slices(hu: F32, rng: np.random.Generator) -> F32:
    out = hu.copy()
    start = int(rng.integers(len(hu) // 4, len(hu) // 2))
    out[start : start + max(5, len(hu) // 8)] = -1024
    return out


def _few_slices(plan: ScanPlan) -> ScanPlan:
    return replace(plan, slices=8, start_mm=plan.start_mm + 60)


def _thick_slices(plan: ScanPlan) -> ScanPlan:
    thick = 8.0 if plan.anatomy == "head" or plan.scan_seed % 2 else 10.0
    extent = plan.slices * plan.increment_mm
    return replace(plan, thickness_mm=thick, increment_mm=thick, slices=max(18, int(extent / thick)))


def _tilt(plan: ScanPlan) -> ScanPlan:
    degrees = 12 + plan.scan_seed % 9
    signed = float(degrees if plan.scan_seed % 2 else -degrees)
    return replace(plan, gantry_tilt_deg=signed, oblique_deg=0.0, position="HFS")


def _short(plan: ScanPlan) -> ScanPlan:
    return replace(plan, slices=20, thickness_mm=1.5, increment_mm=1.5, start_mm=plan.start_mm + 60, oblique_deg=0.0)


FAULTS: tuple[Fault, ...] = (
    Fault("not_ct", "headers", "not_ct", "screenshots filed as a series", corrupt_slices=_as_secondary_capture),
    Fault("localizer", "headers", "localizer", "two scout views, no volume", corrupt_slices=_localizer),
    Fault("unreadable_files", "headers", "unreadable_files", "three files cut short by a broken copy",
          corrupt_files=_truncate_files),
    Fault("missing_tags", "headers", "missing_tags", "no pixel spacing or no slice position",
          corrupt_slices=_drop("PixelSpacing", "ImagePositionPatient")),
    Fault("too_few_slices", "headers", "too_few_slices", "eight slices only", replan=_few_slices),
    Fault("slice_thickness", "headers", "slice_thickness", "slices of 8 or 10 mm", replan=_thick_slices),
    Fault("repeated_positions", "headers", "repeated_positions", "four slices sent twice", corrupt_slices=_repeat),
    Fault("uneven_spacing", "headers", "uneven_spacing", "slices missing in the middle", corrupt_slices=_lose_slices),
    Fault("gantry_tilt", "headers", "gantry_tilt", "sheared, gantry tilted by 12 to 20 degrees", replan=_tilt),
    Fault("mixed_geometry", "headers", "mixed_geometry", "two matrices and pixel sizes in one series",
          corrupt_slices=_crop_half),
    Fault("lossy_compression", "headers", "lossy_compression", "was JPEG-compressed with loss", corrupt_slices=_lossy),
    Fault("burned_in_annotation", "headers", "burned_in_annotation", "text burned into the pixels",
          corrupt_slices=_burn_in),
    Fault("decode_failed", "volumes", "decode_failed", "pixel data shorter than rows and columns say",
          corrupt_slices=_shorten_pixels),
    Fault("scan_too_short", "volumes", "scan_too_short", "20 thin slices that span 30 mm", replan=_short),
    Fault("no_body", "volumes", "no_body", "an empty table", corrupt_hu=_empty_table),
    Fault("hu_calibration", "volumes", "hu_calibration", "rescale intercept off by 500 to 1024 HU",
          corrupt_slices=_miscalibrate),
    Fault("constant_slices", "volumes", "constant_slices", "several blank slices", corrupt_hu=_blank_slices),
    Fault("not_ct_mr", "headers", "not_ct", "an MR series filed among CT", corrupt_slices=_as_mr),
    Fault("mixed_orientation", "headers", "mixed_geometry", "a coronal reformat filed into the axial series",
          corrupt_slices=_turn_half),
)  # fmt: skip
