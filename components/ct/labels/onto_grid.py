"""Labels onto a volume's grid: NIfTI label maps, DICOM SEG and RTSTRUCT, with names and codes.

A voxel of the grid has the label that holds at its centre. Segments may overlap, as those of SEG and RTSTRUCT do: the
masks are packed into as few label maps ("layers") as keep them apart.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom._uid_dict import UID_dictionary
from scipy import ndimage

from components.ct.dataset import InflateError, inflated_dataset
from components.ct.labels.contours import read_contours, rois_of
from components.ct.labels.label_map import names_beside, names_within, read_label_map
from components.ct.labels.placing import LabelError, Mask, Placed, covered_shares, nearest_voxels
from components.ct.labels.same_scan import RTSTRUCT, SEG, check_same_scan
from components.ct.labels.segmentation import read_segments
from components.ct.labels.stored import MAX_VALUE, LabelMap
from components.ct.origin import Origin
from components.ct.store import FloatArray, Volume, read_layers, write_layers
from components.errors import UserError

NIFTI_SUFFIXES = (".nii", ".nii.gz")
NEITHER = "not readable as NIfTI, DICOM SEG or RTSTRUCT"
_UID = re.compile(r"\d+(\.\d+){3,}")

Layers = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Segment:
    """One labelled structure.

    Attributes:
        name: as the file gives it; ``label 5`` where it gives none.
        code: scheme, value and meaning, such as ``SCT 10200004 Liver``; '' where it is not coded.
        layer, value: where it is: ``layers[layer] == value``.
        voxels: on the grid; 0 of an empty segment, or one that lies outside.
        covered: share of it that the grid covers; 1 of an empty segment.
    """

    name: str
    code: str
    layer: int
    value: int
    voxels: int
    covered: float


@dataclass(frozen=True)
class Labels:
    """Segments on a volume's grid.

    Attributes:
        layers: uint16 label maps of shape (layers, n0, n1, n2); 0 is background.
        affine: of the grid, as :class:`components.ct.store.Volume` has it.
        segments: empty ones included, in the order of the file.
    """

    layers: Layers
    affine: FloatArray
    segments: tuple[Segment, ...]

    def mask(self, name: str) -> Mask:
        """Shape (n0, n1, n2), of the first segment called ``name``. Raises KeyError where there is none."""
        segment = next((s for s in self.segments if s.name == name), None)
        if segment is None:
            raise KeyError(f"segment {name!r}: allowed: {', '.join(s.name for s in self.segments)}")
        return self.mask_of(segment)

    def mask_of(self, segment: Segment) -> Mask:
        """Shape (n0, n1, n2)."""
        found: Mask = self.layers[segment.layer] == segment.value
        return found

    def combined(self) -> npt.NDArray[np.int32]:
        """One map of all: a segment's place in ``segments``, from 1; where segments overlap, the last."""
        together = np.zeros(self.layers.shape[1:], dtype=np.int32)
        for number, segment in enumerate(self.segments, start=1):
            together[self.mask_of(segment)] = number
        return together


def read_labels(
    path: Path,
    affine: FloatArray,
    shape: tuple[int, ...],
    scan: Origin | None = None,
    only: Collection[str] = (),
) -> Labels:
    """Read a file of labels onto a grid.

    Args:
        path: NIfTI label map (names from ``<name>.json`` or ``labels.json`` beside it: value to name, or to an object
            with ``name`` and ``code``), DICOM SEG or RTSTRUCT, with or without file meta information.
        affine, shape: the grid, such as a stored volume's.
        scan: which the grid is of; labels that say to be of another are refused. None: that is not looked at.
        only: names of the segments that are wanted; none for all.

    Raises:
        UserError: not such a file, labels of another scan, no segment of that name, or nothing of what is labelled in
            the file lies within the grid.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's and highdicom's quote values of headers
            if path.name.endswith(NIFTI_SUFFIXES):
                labels = _from_nifti(path, affine, shape, only)
            else:
                labels = _packed(read_objects(path, affine, shape, scan, only), affine, shape)
    except Exception as error:
        raise told(error, path) from None
    check_wanted(path, labels, only)
    outside = any(s.covered == 0 for s in labels.segments)  # an empty segment is no reason to complain
    if outside and not any(s.covered > 0 and s.voxels for s in labels.segments):
        raise UserError(f"labels {path.name}: nothing labelled lies within the volume; is it of the same scan?")
    return labels


def told(error: Exception, path: Path) -> UserError:
    """In one line, what went wrong in a file of labels: pydicom and highdicom raise many kinds on damaged files."""
    if isinstance(error, LabelError):
        return UserError(f"labels {path.name}: {_printable(str(error))}")
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError):
        return UserError(f"labels {path.name}: they do not fit into the memory")
    said = _UID.sub("(UID)", _printable(str(error)))[:120]
    return UserError(f"labels {path.name}: {NEITHER} ({type(error).__name__}: {said})")


def _printable(text: str) -> str:
    """In one line, without what would steer a terminal: some of it may stand in a damaged file."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def check_wanted(path: Path, labels: Labels, only: Collection[str]) -> None:
    """Raise UserError where a segment that is wanted is not in the file."""
    missing = sorted(set(only) - {segment.name for segment in labels.segments})
    if missing:
        raise UserError(f"labels {path.name}: segment {missing[0]!r} is not in it; `ctfoundry volume label` without "
                        "--segment lists those that are")  # fmt: skip


def label_map(file: Path, volume: Volume, scan: Origin) -> LabelMap:
    """A file of labels on a volume's grid: each voxel has the label that holds at its centre.

    Args:
        file: as :func:`read_labels` takes it.
        volume: oriented, resampled and cropped already; its affine says where its voxels lie.
        scan: which it is of.

    Raises:
        UserError: as there; or values, or segments, that uint8 cannot number.
    """
    labels = read_labels(file, volume.affine, volume.hu.shape, scan)
    values, names = _numbered(labels)
    if max(names, default=0) > MAX_VALUE:
        raise UserError(f"labels {file.name}: a value of {max(names)} is not allowed: at most {MAX_VALUE}")
    return LabelMap(np.ascontiguousarray(values, dtype=np.uint8), names)


def _numbered(labels: Labels) -> tuple[npt.NDArray[np.integer[Any]], dict[int, str]]:
    """One map: a file's own values where it is one; of segments that overlap, the last holds."""
    if len(labels.layers) == 1:
        return labels.layers[0], {segment.value: segment.name for segment in labels.segments}
    return labels.combined(), {number: segment.name for number, segment in enumerate(labels.segments, start=1)}


def labels_of(found: LabelMap, affine: FloatArray, only: Collection[str] = ()) -> Labels:
    """A stored label map as labels. ``only``: as of :func:`read_labels`."""
    counts = np.bincount(found.values.ravel(), minlength=MAX_VALUE + 1)
    segments = tuple(
        Segment(name, found.codes.get(value, ""), 0, value, int(counts[value]), 1.0)
        for value, name in found.names.items()
        if not only or name in only
    )
    layer = np.where(np.isin(found.values, [segment.value for segment in segments]), found.values, 0)
    return Labels(layer.astype(np.uint16)[None], affine, segments)


def write_labels(path: Path, labels: Labels) -> None:
    """Write ``labels`` atomically as one blosc2 file, readable in parts."""
    write_layers(
        path, labels.layers, {"affine": labels.affine.tolist(), "segments": [asdict(s) for s in labels.segments]}
    )


def read_stored_labels(path: Path) -> Labels:
    """What :func:`write_labels` wrote. Raises UserError where it is not that."""
    try:
        layers, meta = read_layers(path)
        return Labels(layers, np.asarray(meta["affine"]), tuple(Segment(**s) for s in meta["segments"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"labels {path.name}: not readable as stored labels ({type(error).__name__})") from None


def _from_nifti(path: Path, affine: FloatArray, shape: tuple[int, ...], only: Collection[str]) -> Labels:
    source, own, labels = read_label_map(path)
    layer = np.asarray(nearest_voxels(source, own, affine, shape), dtype=np.uint16)
    shares = covered_shares(source, own, affine, shape)
    counts = np.bincount(layer.ravel(), minlength=len(shares) + 1)
    names = names_beside(path) or {label: (name, "") for label, name in names_within(path).items()}
    free = iter(sorted(set(range(1, 65_536)) - set(labels)))  # for labels that are named and not there
    values = {label: value for value, label in labels.items()}
    values |= {label: label if label not in labels and 0 < label < 65_536 else next(free)
               for label in sorted(set(names) - set(values))}  # fmt: skip
    segments = []
    for label, value in sorted(values.items()):
        name, code = names.get(label, (f"label {label}", ""))
        if label == 0 or (only and name not in only):
            continue
        there = int(counts[value]) if value < len(counts) else 0
        segments.append(Segment(name, code, 0, value, there, round(shares.get(value, 1.0), 6)))
    if only:
        layer[~np.isin(layer, [segment.value for segment in segments])] = 0
    return Labels(layer[None], affine, tuple(segments))


def read_objects(
    path: Path, affine: FloatArray, shape: tuple[int, ...], scan: Origin | None, only: Collection[str] = ()
) -> Iterator[Placed]:
    """The masks of a SEG or RTSTRUCT, one by one. Raises many kinds, see :func:`told`."""
    dataset = _dataset(path)
    kind = str(dataset.get("SOPClassUID", ""))
    if kind in SEG:
        if scan is not None:
            check_same_scan(scan, dataset, {str(dataset.get("FrameOfReferenceUID") or "")})
        yield from read_segments(dataset, only, affine, shape)
    elif kind == RTSTRUCT:
        rois = [roi for roi in rois_of(dataset) if not only or roi.label in only]
        if scan is not None:
            check_same_scan(scan, dataset, {roi.frame for roi in rois})
        yield from read_contours(rois, affine, shape)
    else:
        known = kind if kind in UID_dictionary else "(none that is known)"  # what else stands there is not repeated
        raise LabelError(f"DICOM of class {known} is not allowed: SEG or RTSTRUCT")


def _dataset(path: Path) -> pydicom.Dataset:
    """Also of a bare data set, as some planning systems write them, without preamble and file meta information."""
    try:
        return inflated_dataset(path, force=False) or pydicom.dcmread(path)
    except InflateError as error:
        raise LabelError(str(error)) from None
    except pydicom.errors.InvalidDicomError:
        dataset = inflated_dataset(path, force=True) or pydicom.dcmread(path, force=True)
    except OSError as error:
        raise LabelError(f"{NEITHER} ({type(error).__name__})") from None
    if not dataset.get("SOPClassUID"):
        raise LabelError(f"{NEITHER} (no DICOM)")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _packed(found: Iterable[Placed], affine: FloatArray, shape: tuple[int, ...]) -> Labels:
    """Each mask into the first layer where it touches no other."""
    layers: list[Layers] = []
    segments: list[Segment] = []
    for number, item in enumerate(found, start=1):
        inside = ndimage.find_objects(item.mask.astype(np.uint8))
        box = inside[0] if inside else (slice(0, 0),) * 3
        here = item.mask[box]
        free = (n for n, layer in enumerate(layers) if not layer[box][here].any())
        place = next(free, len(layers))
        if place == len(layers):
            layers.append(np.zeros(shape, dtype=np.uint16))
        layers[place][box][here] = number
        segments.append(Segment(item.name, item.code, place, number, int(here.sum()), round(item.covered, 6)))
    return Labels(np.stack(layers) if layers else np.zeros((1, *shape), np.uint16), affine, tuple(segments))
