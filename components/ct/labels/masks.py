"""The masks of a scan, one file or many, as one label map on its volume's grid."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from components.confined import Bounds, Result, isolated
from components.ct.labels.label_map import names_within, read_label_map
from components.ct.labels.onto_grid import NIFTI_SUFFIXES, read_objects, told
from components.ct.labels.placing import LabelError, Mask, covered_shares, nearest_voxels
from components.ct.labels.stored import MAX_VALUE, LabelMap
from components.ct.origin import Origin
from components.ct.store import FloatArray, voxel_of
from components.errors import UserError

Box = tuple[slice, ...]


@dataclass(frozen=True)
class MaskFile:
    """A file of labels of a scan.

    Attributes:
        path: on this machine.
        shown: what messages call it: its name may be a patient's.
        structure: that all of a NIfTI's values but 0 are; '' where the values are structures.
    """

    path: Path
    shown: str
    structure: str


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: affine to RAS mm, and shape."""

    affine: FloatArray
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Put:
    """One structure of a file on the volume's grid.

    Attributes:
        name, code: as they are in the label map.
        value: that the file has for it; 0 where it is no label map.
        box, mask: its voxels, in the box that holds them.
        covered: share of it that the grid covers; 1 of an empty one.
    """

    name: str
    code: str
    value: int
    box: Box
    mask: Mask
    covered: float

    @property
    def voxels(self) -> int:
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True)
class Masked:
    """The masks of a scan, together.

    Attributes:
        labels: the label map.
        overlapped: value to voxels that a smaller structure has taken.
        covered: value to the share that the grid covers.
    """

    labels: LabelMap
    overlapped: dict[int, int]
    covered: dict[int, float]


def masks_apart(
    files: Sequence[MaskFile], names: Mapping[str, str], volume: Grid, native: Grid, scan: Origin
) -> Masked:
    """As :func:`masks_together`, in a child and within the environment's bounds.

    Raises:
        UserError: as it does; and, in one line, for files that crash their reader or need more memory or time.
    """

    def work(_: None) -> Result:
        found = masks_together(files, names, volume, native, scan)
        told = {"names": list(found.labels.names.items()), "codes": list(found.labels.codes.items()),
                "overlapped": list(found.overlapped.items()), "covered": list(found.covered.items())}  # fmt: skip
        return Result(told, found.labels.values.data.cast("B"))

    result = isolated(lambda: None, work, Bounds.from_environment(), f"labels {files[0].shown}")
    values = np.frombuffer(result.data, dtype=np.uint8).reshape(volume.shape)
    told = {key: dict(pairs) for key, pairs in result.content.items()}
    return Masked(LabelMap(values, told["names"], told["codes"]), told["overlapped"], told["covered"])


def masks_together(
    files: Sequence[MaskFile], names: Mapping[str, str], volume: Grid, native: Grid, scan: Origin
) -> Masked:
    """Masks onto a volume's grid: each voxel has the structure that holds at its centre; where structures overlap, the
    smallest of them, which is a part of the others more often than not.

    Args:
        files: at least one; all of one scan.
        names: value of a label map, as text, or name of a structure, to the name that it gets.
        volume: the grid.
        native: that of the scan itself, which a NIfTI must cover.
        scan: which SEG and RTSTRUCT must be of.

    Raises:
        UserError: a file that cannot be read, is of another scan or covers another room; more than 255 structures; or
            nothing of what is labelled lies within the volume. Without one of its files a scan has no label map: what
            that holds would be taken for background.
    """
    found = [put for file in files for put in _of_file(file, names, volume, native, scan)]
    if any(put.covered == 0 for put in found) and not any(put.voxels for put in found):
        raise UserError(f"labels {files[0].shown}: nothing labelled lies within the volume; is it of the same scan?")
    if len(found) > MAX_VALUE:
        raise UserError(
            f"labels {files[0].shown}: {len(found)} structures of one scan are too many: at most {MAX_VALUE}"
        )
    own = [put.value for put in found]
    # A label map alone keeps its own values, as people know them.
    numbers = own if len(files) == 1 and all(0 < value <= MAX_VALUE for value in own) else list(range(1, len(own) + 1))
    sizes = [put.voxels for put in found]
    values: npt.NDArray[np.uint8] = np.zeros(volume.shape, dtype=np.uint8)
    for at in sorted(range(len(found)), key=lambda n: -sizes[n]):
        values[found[at].box][found[at].mask] = numbers[at]
    left = np.bincount(values.ravel(), minlength=MAX_VALUE + 1)
    return Masked(
        LabelMap(
            values,
            {number: put.name for number, put in zip(numbers, found, strict=True)},
            {number: put.code for number, put in zip(numbers, found, strict=True) if put.code},
        ),
        {number: lost for number, size in zip(numbers, sizes, strict=True) if (lost := size - int(left[number]))},
        {number: round(put.covered, 6) for number, put in zip(numbers, found, strict=True)},
    )


def _of_file(file: MaskFile, names: Mapping[str, str], volume: Grid, native: Grid, scan: Origin) -> Iterator[Put]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's and highdicom's quote values of headers
            if file.path.name.endswith(NIFTI_SUFFIXES):
                found = _of_nifti(file, names, volume, native)
            else:
                found = [
                    replace(put, name=names.get(put.name, put.name)) for put in _of_object(file.path, volume, scan)
                ]
    except Exception as error:
        raise UserError(str(told(error, file.path)).replace(file.path.name, file.shown)) from None
    yield from found


def _of_object(path: Path, volume: Grid, scan: Origin) -> Iterator[Put]:
    for placed in read_objects(path, volume.affine, volume.shape, scan):
        box, mask = _boxed(placed.mask)
        yield Put(placed.name, placed.code, 0, box, mask, placed.covered)


def _of_nifti(file: MaskFile, names: Mapping[str, str], volume: Grid, native: Grid) -> list[Put]:
    source, own, labels = read_label_map(file.path)
    check_reach(Grid(own, source.shape), native)
    if file.structure:
        source, labels = (source > 0).astype(np.uint16), {1: 1}
        called = {1: names.get(file.structure, file.structure)}
    else:
        # Of those that are named and not there, a scan is known to have none.
        called = names_within(file.path) | {int(value): name for value, name in names.items() if value.isdecimal()}
    layer = nearest_voxels(source, own, volume.affine, volume.shape)
    shares = covered_shares(source, own, volume.affine, volume.shape)
    boxes = ndimage.find_objects(layer.astype(np.int32))
    values = {label: value for value, label in labels.items()}
    found = []
    for label in sorted({*values, *called} - {0}):
        value = values.get(label, 0)
        box = boxes[value - 1] if 0 < value <= len(boxes) else None
        box, mask = _boxed(np.zeros((1, 1, 1), dtype=np.bool_)) if box is None else (box, layer[box] == value)
        found.append(Put(called.get(label, f"label {label}"), "", label, box, mask, shares.get(value, 1.0)))
    return found


def _boxed(mask: Mask) -> tuple[Box, Mask]:
    found = ndimage.find_objects(mask.astype(np.uint8))
    box: Box = found[0] if found else (slice(0, 0),) * 3
    return box, mask[box].copy()


def check_reach(mask: Grid, native: Grid) -> None:
    """Raise LabelError where a label map covers another room than the scan: then what it leaves out was not looked at,
    or it is of another scan. Its voxels may be larger or smaller than the scan's; to one of them, both must end at the
    same places."""
    sides = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in mask.shape])).reshape(3, -1).T
    corners = voxel_of(native.affine, sides @ mask.affine[:3, :3].T + mask.affine[:3, 3])
    size = np.abs(np.linalg.inv(native.affine[:3, :3]) @ mask.affine[:3, :3]).max(axis=1)
    off = np.maximum(np.abs(corners.min(axis=0) + 0.5), np.abs(corners.max(axis=0) - np.array(native.shape) + 0.5))
    if (off > np.maximum(1.0, size) + 1e-3).any():
        millimetres = float((off * np.linalg.norm(native.affine[:3, :3], axis=0)).max())
        shapes = [" x ".join(map(str, grid.shape)) for grid in (mask, native)]
        raise LabelError(
            f"a grid of {shapes[0]} voxels that ends {millimetres:.1f} mm from where the scan's, of {shapes[1]}, does "
            "is not allowed: labels of the whole scan, and of nothing else"
        )
