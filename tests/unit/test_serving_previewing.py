"""What the page's viewer is given: the volume that the model sees, where it lies in the patient."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from components.errors import UserError
from serving.previewing import Preview, preview_file
from tests.unit.test_serving_classifying import release


def test_a_preview_lies_where_the_volume_lies() -> None:
    hu = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4) - 1000
    affine = np.array([[0, 0, -1.5, 10], [0, -2, 0, 20], [3, 0, 0, -30], [0, 0, 0, 1]], dtype=float)  # SPL
    written = Preview(hu, affine, {}).as_nifti()
    assert written == Preview(hu, affine, {}).as_nifti()
    image = nib.Nifti1Image.from_bytes(gzip.decompress(written))
    assert image.get_data_dtype() == np.int16
    values = np.asanyarray(image.dataobj)
    for index in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        at = np.linalg.solve(image.affine, affine @ [*index, 1])[:3].round().astype(int)
        assert values[tuple(at)] == hu[index]


def test_a_scan_of_which_no_route_could_answer_is_not_shown(tmp_path: Path) -> None:
    bundle, path = release(tmp_path / "wholebody"), tmp_path / "one.nii"
    nib.save(nib.Nifti1Image(np.full((1, 1, 1), 40, np.int16), np.diag([3.0, 3.0, 3.0, 1.0])), path)
    with pytest.raises(UserError, match="holds enough body"):
        preview_file(path, bundle)
