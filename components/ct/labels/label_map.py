"""NIfTI label maps, with names from a JSON file beside them."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.ct.labels.placing import LabelError
from components.ct.nifti import extensions_of, read_values
from components.ct.store import FloatArray
from components.errors import UserError

MAX_LABELS = 65_535  # different ones in a file, as layers are uint16
WHOLE = 1e-4  # a label may be so far from a whole number, by the file's own scaling

# As ITK-SNAP's, Connectome Workbench's and TotalSegmentator's files hold them, in an extension of the header.
WITHIN = re.compile(r'<Label\s[^>]*\bKey="(\d{1,9})"[^>]*>(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))</Label>', re.DOTALL)
EXTENSION_BYTES = 1 << 20

LabelMap = npt.NDArray[np.uint16]


def read_label_map(path: Path) -> tuple[LabelMap, FloatArray, dict[int, int]]:
    """A label map as it lies in the file, slices first.

    Returns:
        uint16 of shape (n0, n1, n2), its affine, and the label that each value in it stands for, 0 not among them:
        itself, unless labels exceed 65,535; then they are numbered.

    Raises:
        UserError: no NIfTI volume, or values that are no labels.
    """
    values, affine = read_values(path)
    found = _whole(values)
    if int(found.min()) < 0:
        raise LabelError(f"a label of {int(found.min())} is not allowed: 0 and above")
    if int(found.max()) <= MAX_LABELS:
        layer = found.astype(np.uint16, order="C")
        return layer, affine, {int(v): int(v) for v in np.flatnonzero(np.bincount(layer.ravel())) if v}
    labels, numbers = np.unique(found, return_inverse=True)
    labelled = labels[labels > 0]
    if len(labelled) > MAX_LABELS:
        raise LabelError(f"{len(labelled)} different labels are too many: at most {MAX_LABELS}")
    first = 1 - (len(labels) - len(labelled))  # the number of the lowest value: 0 where that is the background
    layer = (numbers.reshape(found.shape) + first).astype(np.uint16, order="C")
    return layer, affine, dict(enumerate((int(v) for v in labelled), start=1))


def _whole(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """As integers. Raises LabelError where they are none: a share or a probability says of no voxel what it is."""
    if values.dtype.kind in "iub":
        return values
    rounded = np.rint(values)
    apart = np.abs(values - rounded)
    if float(apart.max()) > WHOLE:
        odd = float(values.ravel()[int(apart.argmax())])
        raise LabelError(f"a label of {odd:g} is not allowed: whole numbers; of shares, write down which voxels count")
    if float(np.abs(rounded).max()) > 2**62:
        raise LabelError(f"a label of {float(np.abs(rounded).max()):g} is not allowed: below 2^62")
    whole: npt.NDArray[Any] = rounded.astype(np.int64)
    return whole


def names_within(path: Path) -> dict[int, str]:
    """Label to name, from the table in the file's own header; none where there is no such table.

    Raises:
        UserError: no NIfTI.
    """
    texts = [bytes(told)[:EXTENSION_BYTES].decode(errors="replace") for told in extensions_of(path)]
    found = {int(key): (quoted or html.unescape(plain)).strip() for text in texts
             for key, quoted, plain in WITHIN.findall(text)}  # fmt: skip
    return {value: name for value, name in found.items() if value and name}


def names_beside(path: Path) -> dict[int, tuple[str, str]]:
    """Label to name and code, from the JSON file beside a label map; none where there is no such file."""
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
