"""Label maps in the store: which structure each voxel of a stored volume belongs to.

They lie beside the volumes: ``volumes/<series>.b2nd`` has ``labels/<series>.b2nd``, and ``labels/<series>.json``, which
names its values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import blosc2
import numpy as np
import numpy.typing as npt

from components.ct.store import FloatArray, array_blocks, write_array
from components.errors import UserError
from components.files import read_json, write_json

FOLDER = "labels"  # beside the folder of volumes
MAX_VALUE = 255  # of uint8


@dataclass(frozen=True)
class LabelMap:
    """Structures of a stored volume, on its grid.

    Attributes:
        values: uint8 (n0, n1, n2); 0 is background.
        names: value to structure, of structures without a voxel on this grid too; several lesions may share a name. A
            structure that is not among them was not looked for.
        codes: value to scheme, value and meaning, such as ``SCT 10200004 Liver``, of those that are coded.
    """

    values: npt.NDArray[np.uint8]
    names: dict[int, str]
    codes: dict[int, str] = field(default_factory=dict)


def label_map_of(volume: Path) -> Path | None:
    """The label map beside a stored volume; None where it has none, as a nodule's file that a table names has none."""
    path = volume.parent.parent / FOLDER / volume.name
    return path if path.is_file() else None


def names_of(path: Path) -> Path:
    """The file that names the values of a label map."""
    return path.with_suffix(".json")


def write_label_map(path: Path, found: LabelMap, affine: FloatArray) -> None:
    """Write ``path`` and the names beside it, in the blocks of the volume. Equal input gives equal bytes."""
    shape = found.values.shape
    write_array(path, found.values, shape, array_blocks(shape), {"labels": {"affine": affine.tolist()}})
    told = {
        str(value): {"name": name, "code": found.codes[value]} if value in found.codes else name
        for value, name in found.names.items()
    }
    write_json(names_of(path), told)


def read_label_map(path: Path) -> LabelMap:
    """What :func:`write_label_map` wrote. Raises UserError where it is not that, or the names are missing."""
    names, codes = _told(path)
    try:
        array = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
        if array.dtype != np.uint8 or array.ndim != 3:
            raise ValueError(f"{array.dtype} with {array.ndim} axes")
        return LabelMap(np.asarray(array[:], dtype=np.uint8), names, codes)
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        raise _unreadable(path, error) from None


def read_names(path: Path) -> dict[int, str]:
    """Value to structure, without the voxels of the label map. Raises as :func:`read_label_map`."""
    return _told(path)[0]


def _told(path: Path) -> tuple[dict[int, str], dict[int, str]]:
    """Names and codes by value."""
    try:
        told = {
            int(value): of if isinstance(of, dict) else {"name": of} for value, of in read_json(names_of(path)).items()
        }
        names = {value: str(of["name"]) for value, of in told.items()}
        return names, {value: str(of["code"]) for value, of in told.items() if "code" in of}
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"labels {path.name}: not readable as a stored label map ({type(error).__name__})")
