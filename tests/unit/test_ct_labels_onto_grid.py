"""Labels land where they belong: real contours, real segmentations, made-up ones on every kind of grid."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from phantom_plans import small
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from components.ct.dicom import read_series
from components.ct.labels.onto_grid import Labels, read_labels, read_stored_labels
from components.ct.labels.placing import nearest_voxels
from components.ct.standardise import resample_only
from components.ct.store import Volume
from components.errors import UserError
from components.looking.volume import export_labels
from components.preprocess.config import PreprocessConfig
from components.settings import load_stage
from components.sources.phantom.scanner import scan

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
SARCOMAS = [f"sts_{number:03d}" for number in range(1, 13)]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def standard(volume: Volume, line: str = "wholebody") -> Volume:
    return resample_only(volume, load_stage(PreprocessConfig, line, "preprocess", PARAMS))


def on(volume: Volume, path: Path) -> Labels:
    return read_labels(path, volume.affine, volume.hu.shape)


def middle_mm(mask: np.ndarray, volume: Volume) -> np.ndarray:
    found: np.ndarray = volume.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + volume.affine[:3, 3]
    return found


@pytest.mark.parametrize("name", SARCOMAS)
def test_contours_of_sarcomas(ct_root: Path, name: str) -> None:
    """Against the same contour as voxels, by other software; then both on the line's grid."""
    volume = read_series(sorted((ct_root / "dicom" / name).iterdir()))
    contours, voxels = (ct_root / "labels" / name / file for file in ("RS.dcm", "mask.nii.gz"))
    ours = on(volume, contours)
    assert [(s.name, s.code, s.covered) for s in ours.segments] == [("GTV_Mass_CT", "GTV", 1.0)]
    assert dice(ours.mask("GTV_Mass_CT"), on(volume, voxels).mask("label 1")) >= 0.98
    grid = standard(volume)
    mask = on(grid, contours).mask("GTV_Mass_CT")
    assert dice(mask, on(grid, voxels).mask("label 1")) >= 0.95, "each by its own nearest slice"
    native = ours.mask("GTV_Mass_CT")
    assert np.abs(middle_mm(mask, grid) - middle_mm(native, volume)).max() < 0.5 * max(grid.spacing)
    millilitres = [m.sum() * np.prod(v.spacing) for m, v in ((mask, grid), (native, volume))]
    assert millilitres[0] == pytest.approx(millilitres[1], rel=0.03)


@pytest.mark.parametrize("name", ["liver_seg", "partial_overlaps"])
def test_segmentations_of_dcmqi_are_exact(ct_root: Path, name: str) -> None:
    """Against the frames as they stand in the file, each put at the slice whose position it states."""
    volume = read_series(sorted((ct_root / "dicom" / "abdomen_3slices").iterdir()))
    path = ct_root / "labels" / "abdomen_3slices" / f"{name}.dcm"
    seg = pydicom.dcmread(path)
    expected = {item.SegmentNumber: np.zeros(volume.hu.shape, bool) for item in seg.SegmentSequence}
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        height = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        index = round((height - volume.affine[2, 3]) / volume.affine[2, 0])
        expected[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber][index] |= frame.astype(bool)
    labels = on(volume, path)
    assert len(labels.segments) == len(expected)
    for item, segment in zip(seg.SegmentSequence, labels.segments, strict=True):
        np.testing.assert_array_equal(labels.mask(segment.name), expected[item.SegmentNumber])
        type_code = item.SegmentedPropertyTypeCodeSequence[0]
        assert segment.name == item.SegmentLabel
        assert segment.code == f"{type_code.CodingSchemeDesignator} {type_code.CodeValue} {type_code.CodeMeaning}"
        assert (segment.covered, segment.voxels) == (1.0, expected[item.SegmentNumber].sum())
    if name == "partial_overlaps":
        assert len(labels.layers) == 3, "overlapping segments are kept apart"


def test_votes_lie_on_the_nodule(ct_root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(ct_root / "dicom" / "lidc_idri_0314.zip") as archive:
        archive.extractall(tmp_path)
    volume = read_series(sorted(tmp_path.rglob("*.dcm")))
    path = ct_root / "labels" / "lidc_idri_0314" / "nodule_reader_votes_0to4.nii.gz"
    votes = on(volume, path)
    image = nib.load(path)
    given = np.asarray(image.dataobj)
    assert [s.voxels for s in votes.segments] == [int((given == vote).sum()) for vote in (1, 2, 3, 4)]
    all_four, any_vote = votes.mask("label 4"), votes.layers[0] > 0
    shell = np.asarray(nearest_voxels(any_vote, volume.affine, volume.affine, volume.hu.shape))
    low, high = (f(np.argwhere(shell), axis=0) for f in (np.min, np.max))
    around = volume.hu[tuple(slice(a - 6, b + 7) for a, b in zip(low, high, strict=True))]
    assert np.median(volume.hu[all_four]) > -200, "tissue"
    assert np.median(around) < -600, "in the lung"
    grid = standard(volume)
    on_grid = on(grid, path)
    assert np.abs(middle_mm(on_grid.mask("label 4"), grid) - middle_mm(all_four, volume)).max() < 1.5
    assert np.median(grid.hu[on_grid.mask("label 4")]) > -200


def test_many_labels(ct_root: Path, tmp_path: Path) -> None:
    """117 classes, stored with another orientation; names from the file beside it; back through the store."""
    volume = read_series(sorted((ct_root / "dicom" / "abdomen_jpeg2000").iterdir()))
    source = ct_root / "labels" / "abdomen_jpeg2000" / "labels_totalsegmentator.nii.gz"
    (tmp_path / "many.nii.gz").write_bytes(source.read_bytes())
    names = {str(n): {"name": f"class {n}", "code": f"X {n} thing"} for n in range(1, 118)}
    (tmp_path / "many.json").write_text(json.dumps(names))
    labels = on(volume, tmp_path / "many.nii.gz")
    assert len(labels.segments) == 117, "those that are empty here, too"
    given = nib.as_closest_canonical(nib.load(source))
    ours = nib.as_closest_canonical(nib.Nifti1Image(labels.layers[0].astype(np.int16), labels.affine))
    np.testing.assert_allclose(ours.affine, given.affine, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(given.dataobj))
    export_labels(labels, tmp_path / "stored.b2nd")
    again = read_stored_labels(tmp_path / "stored.b2nd")
    np.testing.assert_array_equal(again.layers, labels.layers)
    assert again.segments == labels.segments
    export_labels(labels, tmp_path / "back.nii.gz")
    back = on(volume, tmp_path / "back.nii.gz")
    np.testing.assert_array_equal(back.layers, labels.layers)
    assert back.segments == labels.segments


def test_written_segmentation_on_an_oblique_scan(tmp_path: Path) -> None:
    """Binary and fractional, overlapping, empty, with frames left out; on the scan and on the line's grid."""
    scan(small("trunk", oblique_deg=9.0, descending=True), tmp_path / "ct")
    paths = sorted((tmp_path / "ct").glob("*.dcm"))
    volume = read_series(paths)
    sources = [pydicom.dcmread(path) for path in paths]
    order = np.argsort([-float(s.ImagePositionPatient[2]) for s in sources])[::-1]  # volume's order among the files
    masks = np.zeros((*volume.hu.shape, 3), dtype=bool)
    masks[3:9, 30:50, 20:60, 0] = True
    masks[6:12, 40:70, 30:50, 1] = True
    stored = np.empty_like(masks)
    stored[order] = masks
    for kind in ("BINARY", "FRACTIONAL"):
        values = stored if kind == "BINARY" else np.where(stored, 0.75, 0.25 * stored[..., :1]).astype(np.float32)
        seg = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=values,
            segmentation_type=kind,
            segment_descriptions=[
                highdicom.seg.SegmentDescription(
                    number, label, codes.SCT.Organ, codes.SCT.Liver,
                    highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
                )
                for number, label in enumerate(("one", "two", "empty"), start=1)
            ],
            series_instance_uid=generate_uid(), series_number=1, sop_instance_uid=generate_uid(), instance_number=1,
            manufacturer="t", manufacturer_model_name="t", software_versions="1", device_serial_number="1",
        )  # fmt: skip
        seg.save_as(tmp_path / f"{kind}.dcm")
        labels = on(volume, tmp_path / f"{kind}.dcm")
        assert [(s.name, s.code, s.voxels) for s in labels.segments] == [
            ("one", "SCT 10200004 Liver", 6 * 20 * 40), ("two", "SCT 10200004 Liver", 6 * 30 * 20),
            ("empty", "SCT 10200004 Liver", 0),
        ]  # fmt: skip
        assert len(labels.layers) == 2
        for number, name in enumerate(("one", "two", "empty")):
            np.testing.assert_array_equal(labels.mask(name), masks[..., number])
    grid = standard(volume)
    moved = on(grid, tmp_path / "BINARY.dcm").mask("one")
    assert np.abs(middle_mm(moved, grid) - middle_mm(masks[..., 0], volume)).max() < 0.5 * max(grid.spacing)


def test_holes_and_the_order_of_points() -> None:
    from components.ct.labels.contours import even_odd as _even_odd

    outer = np.array([[2.0, 2.0], [2.0, 12.0], [12.0, 12.0], [12.0, 2.0]]) + 0.5
    inner = np.array([[5.0, 5.0], [9.0, 5.0], [9.0, 9.0], [5.0, 9.0]]) + 0.5  # the other way round
    filled = _even_odd([outer, inner], (16, 16))
    assert filled.sum() == 100 - 16
    assert filled[3, 3]
    assert not filled[7, 7]
    assert _even_odd([outer - 8], (16, 16)).sum() == 25, "partly outside"


def test_partly_outside_and_empty(tmp_path: Path) -> None:
    labels = np.zeros((20, 20, 10), np.uint8)
    labels[:10, :, :] = 3
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "half.nii.gz")
    affine = np.eye(4)
    affine[0, 3] = 5.0
    found = read_labels(tmp_path / "half.nii.gz", affine, (20, 20, 10))
    (segment,) = found.segments
    assert (segment.voxels, segment.covered) == (5 * 20 * 10, 0.5)
    nib.save(nib.Nifti1Image(labels * 0, np.eye(4)), tmp_path / "empty.nii.gz")
    assert read_labels(tmp_path / "empty.nii.gz", affine, (20, 20, 10)).segments == ()
    affine[0, 3] = 500.0
    with pytest.raises(UserError, match=r"labels half\.nii\.gz: nothing labelled lies within the volume"):
        read_labels(tmp_path / "half.nii.gz", affine, (20, 20, 10))
    (tmp_path / "half.json").write_text('{"3": "half", "4": "empty"}')
    with pytest.raises(UserError, match=r"labels half\.nii\.gz: nothing labelled lies within the volume"):
        read_labels(tmp_path / "half.nii.gz", affine, (20, 20, 10))  # a second segment that is empty changes nothing


def test_every_turn_of_the_axes_is_as_a_general_resampling() -> None:
    random = np.random.default_rng(5)
    source = random.integers(0, 4, (9, 11, 13)).astype(np.uint16)
    own = np.diag([2.0, 1.0, 1.5, 1.0])
    for turn in ([2, 0, 1], [0, 2, 1], [1, 2, 0], [0, 1, 2]):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, turn] * random.choice([-1.1, 1.3, 0.7], 3)
        affine[:3, 3] = [8.03, 5.02, 9.04]
        straight = nearest_voxels(source, own, affine, (12, 14, 10))
        affine[:3, 0] += 2e-4 * affine[:3, 1]  # too little to matter, enough to go the general way
        np.testing.assert_array_equal(straight, nearest_voxels(source, own, affine, (12, 14, 10)))


def test_mistakes_are_one_line(ct_root: Path, tmp_path: Path) -> None:
    eye, shape = np.eye(4), (4, 4, 4)
    (tmp_path / "a.dcm").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"labels a\.dcm: not readable as NIfTI, DICOM SEG or RTSTRUCT"):
        read_labels(tmp_path / "a.dcm", eye, shape)
    image = next((ct_root / "dicom" / "sts_001").iterdir())
    with pytest.raises(UserError, match=r"of class 1\.2\.840\.10008\.5\.1\.4\.1\.1\.2 is not allowed: SEG or RTSTRUCT"):
        read_labels(image, eye, shape)
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), -1, np.int16), eye), tmp_path / "b.nii")
    with pytest.raises(UserError, match=r"labels b\.nii: a label of -1 is not allowed: 0 and above"):
        read_labels(tmp_path / "b.nii", eye, shape)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.int16), eye), tmp_path / "c.nii")
    (tmp_path / "c.json").write_text('{"liver": 1}')
    with pytest.raises(UserError, match=r"labels c\.json: allowed is JSON such as"):
        read_labels(tmp_path / "c.nii", eye, shape)
    turned = np.eye(4)
    turned[:3, :3] = [[1, 0, 0], [0, 0.9, -0.43], [0, 0.43, 0.9]]
    with pytest.raises(UserError, match=r"labels RS\.dcm: contours leave the volume's planes by"):
        read_labels(ct_root / "labels" / "sts_001" / "RS.dcm", turned, shape)
    overlapping = Labels(np.zeros((2, *shape), np.uint16), eye, ())
    with pytest.raises(UserError, match=r"labels to d\.nii: segments overlap"):
        export_labels(overlapping, tmp_path / "d.nii")
