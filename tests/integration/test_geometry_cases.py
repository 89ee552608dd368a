"""Every geometry that archives hold has its fate, by default and under the parameters that mend what can be mended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.ct.store import Volume
from tests.geometry_cases import CASES, Case, fate, make


@pytest.fixture(scope="module")
def upright(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    folder = tmp_path_factory.mktemp("upright") / "series"
    make(CASES[0], folder)
    found = fate(folder).standard
    assert found is not None
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, upright: Volume, tmp_path: Path) -> None:
    make(case, tmp_path / "series")
    default, corrected = fate(tmp_path / "series"), fate(tmp_path / "series", corrected=True)
    assert sorted(default.reasons) == sorted(case.reasons)
    assert sorted(corrected.reasons) == sorted(case.reasons if case.corrected is None else case.corrected)
    assert default.left_out == 0, "nothing is left out unless the parameters say so"
    for found in (default, corrected):
        if found.standard is not None:
            axes = found.standard.affine[:3, :3]
            np.testing.assert_allclose(axes.T @ axes, np.diag([9.0, 1.0, 1.0]), atol=1e-6)
    volume = corrected.standard
    if case.name in ("reversed", "shuffled", "4D", "localizer inside", "two kernels mixed"):
        assert volume is not None
        np.testing.assert_array_equal(volume.hu, upright.hu)
        np.testing.assert_array_equal(volume.affine, upright.affine)
    left_out = {"4D": 48, "localizer inside": 1, "two kernels mixed": 24, "two fields of view": 11}
    assert corrected.left_out == left_out.get(case.name, 0)
    if case.name == "1,500 slices":
        assert volume is not None
        assert volume.hu.shape[0] == 500


def test_a_real_tilted_head(ct_root: Path) -> None:
    """Its gaps grow with a factor of 1.75 too, which shearing does not mend."""
    folder = ct_root / "dicom" / "ge_head_tilted"
    assert {"gantry_tilt", "uneven_spacing"} <= set(fate(folder, line="head").reasons)
    mended = set(fate(folder, corrected=True, line="head").reasons)
    assert "gantry_tilt" not in mended
    assert "uneven_spacing" in mended


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gantrytilting", "gantry_tilt"), ("sliceincrement", "uneven_spacing"), ("notavolume", "repeated_positions")],
)
def test_bad_geometry(ct_root: Path, name: str, reason: str) -> None:
    folder = ct_root / "bad_geometry" / name
    assert reason in fate(folder).reasons
    corrected = fate(folder, corrected=True)
    assert "too_few_slices" in corrected.reasons, "four slices are no volume, whatever is mended"
    assert (reason in corrected.reasons) == (reason == "uneven_spacing")
