"""Labels onto a volume's grid: NIfTI label maps, DICOM SEG and RTSTRUCT, with names and codes.

A voxel of the grid has the label that holds at its centre. Segments may overlap, as those of SEG and RTSTRUCT do: the
masks are packed into as few label maps ("layers") as keep them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from scipy import ndimage

from components.labels.contours import read_contours
from components.params import UserError
from components.preprocess.nifti import read_nifti
from components.preprocess.store import FloatArray, read_layers, voxel_of, write_layers

SEG = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # Segmentation, Label Map Segmentation
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
NIFTI_SUFFIXES = (".nii", ".nii.gz")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Layers = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]


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
        affine: of the grid, as :class:`components.preprocess.store.Volume` has it.
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
        found: Mask = self.layers[segment.layer] == segment.value
        return found

    def combined(self) -> npt.NDArray[np.int32]:
        """One map of all: a segment's place in ``segments``, from 1; where segments overlap, the last."""
        together = np.zeros(self.layers.shape[1:], dtype=np.int32)
        for number, segment in enumerate(self.segments, start=1):
            together[self.layers[segment.layer] == segment.value] = number
        return together


@dataclass(frozen=True)
class Found:
    """A segment on the grid, before it is packed."""

    name: str
    code: str
    mask: Mask
    covered: float


def read_labels(path: Path, affine: FloatArray, shape: tuple[int, ...]) -> Labels:
    """Read a file of labels onto a grid.

    Args:
        path: NIfTI label map (names from ``<name>.json`` or ``labels.json`` beside it: value to name, or to an object
            with ``name`` and ``code``), DICOM SEG or RTSTRUCT.
        affine, shape: the grid, such as a stored volume's.

    Raises:
        UserError: not such a file, or nothing of what is labelled in it lies within the grid.
    """
    if path.name.endswith(NIFTI_SUFFIXES):
        labels = _from_nifti(path, affine, shape)
    else:
        labels = _packed(_from_dicom(path, affine, shape), affine, shape)
    outside = any(s.covered == 0 for s in labels.segments)  # an empty segment is no reason to complain
    if outside and not any(s.covered > 0 and s.voxels for s in labels.segments):
        raise UserError(f"labels {path.name}: nothing labelled lies within the volume; is it of the same scan?")
    return labels


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


def nearest(mask: npt.NDArray[Any], own: FloatArray, affine: FloatArray, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A label map on another grid: the label at each voxel's centre, 0 where the map does not reach.

    Args:
        mask: labels; own: its affine.
        affine, shape: the grid that is wanted.
    """
    if mask.shape == tuple(shape) and np.allclose(own, affine, atol=1e-6):
        return mask
    change = np.linalg.inv(own) @ affine
    axes = np.abs(change[:3, :3]).argmax(axis=0)  # for each axis of the grid, the map's axis that it runs along
    along = np.zeros((3, 3))
    along[axes, range(3)] = change[axes, range(3)]
    if sorted(axes) != [0, 1, 2] or np.abs(change[:3, :3] - along).max() * max(shape) > 1e-3:
        turned: npt.NDArray[Any] = ndimage.affine_transform(
            mask, change[:3, :3], change[:3, 3], tuple(shape), order=0, mode="grid-constant"
        )
        return turned
    out = np.zeros(shape, dtype=mask.dtype)
    picked: list[npt.NDArray[np.intp]] = [np.empty(0, np.intp)] * 3
    inside: list[npt.NDArray[np.intp]] = []
    for axis, size in zip(axes, shape, strict=True):
        grid_axis = len(inside)
        place = np.floor(change[axis, grid_axis] * np.arange(size) + change[axis, 3] + 0.5).astype(np.intp)
        there = np.flatnonzero((place >= 0) & (place < mask.shape[axis]))
        inside.append(there)
        picked[axis] = place[there]
    values = mask[np.ix_(*picked)].transpose(axes)
    out[np.ix_(*inside)] = values
    return out


def _covered(mask: npt.NDArray[Any], own: FloatArray, affine: FloatArray, shape: tuple[int, ...]) -> float:
    """Share of the labelled voxels whose centre lies within the grid; 1 where none is labelled."""
    places = np.argwhere(mask)
    if not len(places):
        return 1.0
    voxels = voxel_of(affine, places @ own[:3, :3].T + own[:3, 3])
    return float(((voxels >= -0.5) & (voxels <= np.asarray(shape) - 0.5)).all(axis=1).mean())


def _from_nifti(path: Path, affine: FloatArray, shape: tuple[int, ...]) -> Labels:
    image = read_nifti(path)
    if int(image.hu.min()) < 0:
        raise UserError(f"labels {path.name}: a label of {int(image.hu.min())} is not allowed: 0 and above")
    source = image.hu.astype(np.uint16)
    layer = nearest(source, image.affine, affine, shape)
    names = _names(path)
    counts, total = np.bincount(layer.ravel()), np.bincount(source.ravel())
    segments = []
    for value in sorted({int(v) for v in np.flatnonzero(total)} | set(names)):
        if value == 0:
            continue
        name, code = names.get(value, (f"label {value}", ""))
        there = int(counts[value]) if value < len(counts) else 0
        covered = 1.0
        if value < len(total) and total[value]:
            covered = _covered(source == value, image.affine, affine, shape)
        segments.append(Segment(name, code, 0, value, there, round(covered, 6)))
    return Labels(layer[None], affine, tuple(segments))


def _names(path: Path) -> dict[int, tuple[str, str]]:
    """Value to name and code, from the JSON file beside a label map; none where there is no such file."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    beside = next((p for p in (path.with_name(f"{stem}.json"), path.with_name("labels.json")) if p.is_file()), None)
    if beside is None:
        return {}
    try:
        told = json.loads(beside.read_text())
        return {
            int(value): (str(item["name"]), str(item.get("code", ""))) if isinstance(item, dict) else (str(item), "")
            for value, item in told.items()
        }
    except (ValueError, KeyError, AttributeError):
        raise UserError(f'labels {beside.name}: allowed is JSON such as {{"1": "liver"}} or '
                        '{"1": {"name": "liver", "code": "SCT 10200004 Liver"}}') from None  # fmt: skip


def _from_dicom(path: Path, affine: FloatArray, shape: tuple[int, ...]) -> Iterable[Found]:
    try:
        dataset = pydicom.dcmread(path)
        kind = str(dataset.get("SOPClassUID", ""))
    except (OSError, pydicom.errors.InvalidDicomError) as error:
        raise UserError(f"labels {path.name}: not readable as NIfTI, DICOM SEG or RTSTRUCT "
                        f"({type(error).__name__})") from None  # fmt: skip
    if kind in SEG:
        return _from_seg(path, dataset, affine, shape)
    if kind == RTSTRUCT:
        return [Found(*found) for found in read_contours(dataset, path.name, affine, shape)]
    raise UserError(f"labels {path.name}: DICOM of class {kind or '(none)'} is not allowed: SEG or RTSTRUCT")


def _from_seg(path: Path, dataset: pydicom.Dataset, affine: FloatArray, shape: tuple[int, ...]) -> Iterable[Found]:
    """Segment by segment: all at once, those of a whole body would not fit into memory."""
    import highdicom

    try:
        seg = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
        for number in seg.segment_numbers:
            description = seg.get_segment_description(number)
            volume = seg.get_volume(segment_numbers=[number], allow_missing_positions=True)
            values = volume.array[..., 0]
            mask = values >= (0.5 if values.dtype.kind == "f" else 1)  # of fractional ones: more in than out
            own = LPS_TO_RAS @ volume.affine
            code = description.segmented_property_type
            yield Found(
                str(description.segment_label),
                f"{code.scheme_designator} {code.value} {code.meaning}",
                np.asarray(nearest(mask, own, affine, shape), dtype=np.bool_),
                _covered(mask, own, affine, shape),
            )
    except (AttributeError, ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
        said = " ".join(str(error).split())[:120]
        raise UserError(f"labels {path.name}: not readable as DICOM SEG: {said}") from None


def _packed(found: Iterable[Found], affine: FloatArray, shape: tuple[int, ...]) -> Labels:
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
