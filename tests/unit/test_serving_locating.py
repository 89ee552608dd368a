"""A point of a scan is found in the same scan, and in one that was moved, where it is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from components.errors import UserError
from serving.embedding import ServedBundle
from serving.locating import locate_files
from serving.sniff import InputError
from tests.unit.test_serving_classifying import release

INSIDE = {"value": 0.867284, "low": 0.683751, "high": 0.951811, "random": 0.787037}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ServedBundle:
    return release(tmp_path_factory.mktemp("r") / "wholebody")


def trunk(path: Path, origin: tuple[float, float, float]) -> Path:
    """A trunk with two bright rods of different slant, 3 mm slices; ``origin`` of its first voxel in RAS mm."""
    x, y, z = np.mgrid[:110, :90, :90].astype(float)
    hu = np.where(((x - 55) / 45) ** 2 + ((y - 45) / 32) ** 2 < 1, 40 + 0.4 * z, -1000)
    hu = np.where((x - 40 - z / 9) ** 2 + (y - 40) ** 2 < 40, 700, hu)
    hu = np.where((x - 75) ** 2 + (y - 55 + z / 6) ** 2 < 90, -700, hu)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = origin
    nib.save(nib.Nifti1Image(hu.astype(np.int16), affine), path)
    return path


def test_a_point_is_found_where_it_is_also_in_a_scan_that_lies_elsewhere(bundle: ServedBundle, tmp_path: Path) -> None:
    here = trunk(tmp_path / "here.nii", (-150.0, -120.0, 0.0))
    there = trunk(tmp_path / "there.nii", (-110.0, -150.0, 60.0))
    point = np.array([-150.0, -120.0, 0.0]) + 3.0 * np.array([52.0, 46.0, 47.0])
    found = locate_files(here, there, bundle, (point[0], point[1], point[2]))
    expected = point + np.array([40.0, -30.0, 60.0])
    best = found["places"][0]
    stride = np.array(found["stride_mm"])
    assert np.abs(np.array(best["point_mm"]) - expected).max() <= stride.max() / 2 + 3
    assert best["similarity"] == max(place["similarity"] for place in found["places"])
    assert 1 < len(found["places"]) <= 3
    apart = np.array([place["point_mm"] for place in found["places"]])
    assert np.linalg.norm(apart[0] - apart[1]) > stride.min()
    assert found["found"]["as_sent"] == found["found_other"]["as_sent"]
    assert len(found["limits"]) == 1, "of a release that was not judged so"


def test_the_answer_says_how_often_such_places_were_right(bundle: ServedBundle, tmp_path: Path) -> None:
    scan = trunk(tmp_path / "here.nii", (0.0, 0.0, 0.0))
    judged = replace(bundle, figures={"locate": {"inside": INSIDE, "distance_mm": INSIDE}, "organs": {"auc": INSIDE}})
    limits = locate_files(scan, scan, judged, (165.0, 135.0, 135.0))["limits"]
    assert len(limits) == 2
    assert "task locate, 0.867 [0.684, 0.952] of such places lay inside the structure" in limits[1]
    assert limits[1].endswith("untrained encoders 0.787.")


def test_of_a_few_slices_the_answer_says_that_it_is_a_guess(bundle: ServedBundle, tmp_path: Path) -> None:
    scan = trunk(tmp_path / "here.nii", (0.0, 0.0, 0.0))
    image = nib.load(scan)
    few = nib.Nifti1Image(np.asarray(image.dataobj)[:, :, :12], image.affine)  # type: ignore[attr-defined]
    nib.save(few, tmp_path / "few.nii")
    limits = locate_files(tmp_path / "few.nii", scan, bundle, (165.0, 135.0, 18.0))["limits"]
    assert limits[1].startswith("Only ")
    assert limits[1].endswith("of what lies round the point is in its scan: its place in the other is a guess.")


def test_a_point_in_the_air_or_elsewhere_is_refused(bundle: ServedBundle, tmp_path: Path) -> None:
    scan = trunk(tmp_path / "here.nii", (0.0, 0.0, 0.0))
    with pytest.raises(InputError, match=r"^point_mm 3, 3, 135: 0% of what is seen there is body, the rest"):
        locate_files(scan, scan, bundle, (3.0, 3.0, 135.0))
    with pytest.raises(InputError, match=r"^point_mm -900, 0, 0 is not in the scan, which spans"):
        locate_files(scan, scan, bundle, (-900.0, 0.0, 0.0))
    empty = tmp_path / "empty.nii"
    nib.save(nib.Nifti1Image(np.full((60, 60, 40), -1000, np.int16), np.diag([3.0, 3.0, 3.0, 1.0])), empty)
    with pytest.raises(UserError, match=r"^other: .*holds enough body"):
        locate_files(scan, empty, bundle, (165.0, 135.0, 135.0))
    (tmp_path / "text").write_text("no scan")
    for files, field in (((tmp_path / "text", scan), "scan"), ((scan, tmp_path / "text"), "other")):
        with pytest.raises(InputError, match=rf"^{field}: neither a zip") as refused:
            locate_files(*files, bundle, (165.0, 135.0, 135.0))
        assert refused.value.status == 415
    whole = bundle.embedder.config.input.model_copy(update={"sees": "scan"})
    config = bundle.embedder.config.model_copy(update={"input": whole})
    seeing = replace(bundle, embedder=type(bundle.embedder)(bundle.embedder.encoder, config, "cpu"))
    with pytest.raises(InputError, match=r"sees whole scans, and finds no places in them$") as refused:
        locate_files(scan, scan, seeing, (165.0, 135.0, 135.0))
    assert refused.value.status == 404
