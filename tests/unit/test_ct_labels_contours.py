"""Every contour of an RTSTRUCT counts: islands, holes and sparse ROIs, as they are drawn and as files round them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_files import Scan, bare, contour, rectangle, saved, scanned, structures

from components.ct.labels.contours import even_odd
from components.ct.labels.onto_grid import Labels, read_labels
from components.ct.labels.placing import nearest_planes
from components.ct.store import voxel_of
from components.errors import UserError


@pytest.fixture(scope="module")
def oblique(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return scanned(tmp_path_factory.mktemp("oblique"), oblique_deg=12.0)


@pytest.fixture(scope="module")
def axial(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return scanned(tmp_path_factory.mktemp("axial"))


def on(scan: Scan, path: Path, *only: str) -> Labels:
    return read_labels(path, scan.volume.affine, scan.volume.hu.shape, only=only)


def slices(mask: np.ndarray) -> list[int]:
    return [int(n) for n in np.flatnonzero(mask.any(axis=(1, 2)))]


@pytest.mark.parametrize("decimals", [1, 2, 6])
def test_contours_of_a_plane_belong_together_however_coordinates_are_rounded(
    oblique: Scan, tmp_path: Path, decimals: int
) -> None:
    islands, ring = [], []
    for item in oblique.items[5:15]:
        islands += [contour(rectangle(item, (20.5, 30.5), (20.5, 30.5), decimals)),
                    contour(rectangle(item, (50.5, 60.5), (70.5, 80.5), decimals))]  # fmt: skip
        ring += [contour(rectangle(item, (20.5, 60.5), (20.5, 60.5), decimals)),
                 contour(rectangle(item, (33.5, 43.5), (29.5, 39.5), decimals))]  # fmt: skip
    path = saved(structures(oblique.items[0], {"islands": islands, "ring": ring}), tmp_path / "RS.dcm")
    labels = on(oblique, path)
    expected = {"islands": np.zeros(oblique.volume.hu.shape, bool), "ring": np.zeros(oblique.volume.hu.shape, bool)}
    expected["islands"][5:15, 21:31, 21:31] = expected["islands"][5:15, 51:61, 71:81] = True
    expected["ring"][5:15, 21:61, 21:61] = True
    expected["ring"][5:15, 34:44, 30:40] = False
    for name, mask in expected.items():
        np.testing.assert_array_equal(labels.mask(name), mask)


def test_a_roi_is_filled_by_the_distance_of_its_own_planes(axial: Scan, tmp_path: Path) -> None:
    dense = [contour(rectangle(i, (20.5, 60.5), (20.5, 60.5))) for i in axial.items]
    sparse = [contour(rectangle(i, (70.5, 80.5), (20.5, 40.5))) for i in axial.items[4:16:2]]
    alone = on(axial, saved(structures(axial.items[0], {"sparse": sparse}), tmp_path / "a.dcm"))
    beside = on(axial, saved(structures(axial.items[0], {"body": dense, "sparse": sparse}), tmp_path / "b.dcm"))
    assert slices(alone.mask("sparse")) == list(range(3, 16))
    np.testing.assert_array_equal(alone.mask("sparse"), beside.mask("sparse"))
    assert slices(beside.mask("body")) == list(range(24))


def test_what_is_drawn_in_one_plane_is_a_slice_of_the_scan_thick(axial: Scan, tmp_path: Path) -> None:
    """On a grid four times as fine as the scan, on which the other ROI was drawn."""
    body = [contour(rectangle(i, (20.5, 60.5), (20.5, 60.5))) for i in axial.items[:8]]
    spot = [contour(rectangle(axial.items[4], (70.5, 80.5), (20.5, 40.5)))]
    path = saved(structures(axial.items[0], {"body": body, "spot": spot}), tmp_path / "RS.dcm")
    fine = axial.volume.affine @ np.diag([0.25, 1.0, 1.0, 1.0])
    labels = read_labels(path, fine, (96, *axial.volume.hu.shape[1:]))
    assert slices(labels.mask("spot")) == [14, 15, 16, 17, 18]
    assert slices(labels.mask("body")) == list(range(0, 31))


def test_a_contour_that_was_written_twice_counts_once(axial: Scan, tmp_path: Path) -> None:
    item = axial.items[3]
    outer = rectangle(item, (20.5, 30.5), (20.5, 30.5))
    points = [outer[n : n + 3] for n in range(0, 12, 3)]
    turned = [v for p in [*points[2:], *points[:2]] for v in p]
    reversed_ = [v for p in points[::-1] for v in p]
    closed = [*outer, *outer[:3]]
    finer = rectangle(item, (20.5, 30.5), (20.5, 30.5), 2)
    for again in (outer, turned, reversed_, closed, finer):
        path = saved(structures(item, {"a": [contour(outer), contour(again)]}), tmp_path / "RS.dcm")
        assert on(axial, path).segments[0].voxels == 100
    ring = rectangle(item, (20.4, 30.4), (20.4, 30.4))  # thinner than a pixel: both hold the same pixel centres
    path = saved(structures(item, {"a": [contour(outer), contour(ring)]}), tmp_path / "RS.dcm")
    assert on(axial, path).segments[0].voxels == 0


def test_what_has_no_inside_is_empty(axial: Scan, tmp_path: Path) -> None:
    line = rectangle(axial.items[3], (20.5, 30.5), (20.5, 30.5))[:6]
    rois = {"none": [], "line": [contour(line)], "point": [contour(line[:3], "POINT")],
            "open": [contour(rectangle(axial.items[3], (1, 9), (1, 9)), "OPEN_PLANAR")]}  # fmt: skip
    labels = on(axial, saved(structures(axial.items[0], rois), tmp_path / "RS.dcm"))
    assert [(s.name, s.voxels, s.covered) for s in labels.segments] == [(name, 0, 1.0) for name in rois]


def test_uneven_planes_leave_no_slice_out() -> None:
    places = np.array([0.0, 4.0, 10.0, 14.0, 26.0])  # one gap half as long again, and one where planes are missing
    expected = [0] * 3 + [1] * 5 + [2] * 5 + [3] * 4 + [-1] * 7 + [4] * 5 + [-1]
    assert nearest_planes(places, 4.0, 30).tolist() == expected
    assert nearest_planes(np.array([1.5, 3.5 - 1e-7]), 2.0, 5).tolist() == [-1, 0, 0, 1, 1], "halfway: the lower"


def test_bare_files_are_read(axial: Scan, tmp_path: Path) -> None:
    dataset = structures(axial.items[0], {"a": [contour(rectangle(axial.items[2], (20.5, 60.5), (20.5, 60.5)))]})
    for implicit in (True, False):
        assert on(axial, bare(dataset, tmp_path / "RS.dcm", implicit)).segments[0].voxels == 1600


MALFORMED = {
    "no data": (None, "CLOSED_PLANAR", r"ROI 'odd': a contour of 0 numbers is not allowed: 3 for each point"),
    "four numbers": ([1.0, 2.0, 3.0, 4.0], "CLOSED_PLANAR", r"ROI 'odd': a contour of 4 numbers is not allowed"),
    "one number": ([1.0], "CLOSED_PLANAR", r"ROI 'odd': a contour of 1 numbers is not allowed"),
    "far away": ([1e30] * 9, "CLOSED_PLANAR", r"ROI 'odd': a contour 1e\+30 mm away is not allowed: 100000"),
    "two lines": ([0.0] * 9, "A\rB\x1b[2J", r"ROI 'odd': a contour of type A B\?\[2J is not allowed: CLOSED_PLANAR, "),
    "no type": ([0.0] * 9, None, r"ROI 'odd': a contour of type \(none\) is not allowed: CLOSED_PLANAR, "),
    "odd type": ([0.0] * 9, "CIRCLE", r"ROI 'odd': a contour of type CIRCLE is not allowed: CLOSED_PLANAR, "),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_broken_roi_is_named_and_the_sound_ones_can_be_had(axial: Scan, tmp_path: Path, what: str) -> None:
    points, kind, says = MALFORMED[what]
    sound = [contour(rectangle(axial.items[2], (20.5, 60.5), (20.5, 60.5)))]
    path = saved(structures(axial.items[0], {"sound": sound, "odd": [contour(points, kind)]}), tmp_path / "RS.dcm")
    with pytest.raises(UserError, match=rf"^labels RS\.dcm: {says}"):
        on(axial, path)
    assert [(s.name, s.voxels) for s in on(axial, path, "sound").segments] == [("sound", 1600)]
    with pytest.raises(UserError, match=r"labels RS\.dcm: segment 'liver' is not in it"):
        on(axial, path, "liver")


@pytest.mark.parametrize("broken", [b"x234.5", b"1,34.5", b"1.2.34", b"12 4.5", b"nan   ", b"-1e999"])
def test_a_broken_number_of_a_contour_is_told(axial: Scan, tmp_path: Path, broken: bytes) -> None:
    """As no library would write it."""
    sound = [contour(rectangle(axial.items[2], (20.5, 60.5), (20.5, 60.5)))]
    odd = contour([1234.5, *rectangle(axial.items[2], (1, 9), (1, 9))[1:]])
    path = saved(structures(axial.items[0], {"sound": sound, "odd": [odd]}), tmp_path / "RS.dcm")
    content = path.read_bytes()
    assert content.count(b"1234.5") == 1
    path.write_bytes(content.replace(b"1234.5", broken))
    with pytest.raises(UserError, match=r"^labels RS\.dcm: ROI 'odd': a contour") as told:
        on(axial, path)
    assert len(str(told.value).splitlines()) == 1
    assert [(s.name, s.voxels) for s in on(axial, path, "sound").segments] == [("sound", 1600)]


@pytest.mark.parametrize(
    ("sequence", "keyword", "says"),
    [
        ("StructureSetROISequence", "ROINumber", "ROINumber is missing from an item of the Structure Set ROI Sequence"),
        ("ROIContourSequence", "ReferencedROINumber", "ReferencedROINumber is missing from an item of the ROI Contour"),
    ],
)
def test_items_of_no_roi_are_told(axial: Scan, tmp_path: Path, sequence: str, keyword: str, says: str) -> None:
    dataset = structures(axial.items[0], {"a": [contour(rectangle(axial.items[2], (1, 9), (1, 9)))]})
    del dataset[sequence].value[0][keyword]
    with pytest.raises(UserError, match=says):
        on(axial, saved(dataset, tmp_path / "RS.dcm"))


def test_what_is_missing_of_names_and_codes_is_left_out(axial: Scan, tmp_path: Path) -> None:
    dataset = structures(axial.items[0], {"a": [contour(rectangle(axial.items[2], (0.5, 9.5), (0.5, 9.5)))]})
    code = structures(axial.items[0], {}).ReferencedFrameOfReferenceSequence[0].__class__()
    code.CodeMeaning = "Liver"
    dataset.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence = [code]
    del dataset.StructureSetROISequence[0].ROIName
    (segment,) = on(axial, saved(dataset, tmp_path / "RS.dcm")).segments
    assert (segment.name, segment.code, segment.voxels) == ("ROI 1", "Liver", 81)
    del dataset.RTROIObservationsSequence[0].ReferencedROINumber
    assert on(axial, saved(dataset, tmp_path / "RS.dcm")).segments[0].code == ""
    dataset.StructureSetROISequence.append(dataset.StructureSetROISequence[0])
    with pytest.raises(UserError, match=r"ROINumber 1 is there twice; allowed: once"):
        on(axial, saved(dataset, tmp_path / "RS.dcm"))


def test_contours_lie_where_their_millimetres_are(oblique: Scan, tmp_path: Path) -> None:
    """The rectangle's corners in RAS mm against the voxels that are filled."""
    points = rectangle(oblique.items[7], (10.5, 30.5), (40.5, 50.5))
    path = saved(structures(oblique.items[0], {"a": [contour(points)]}), tmp_path / "RS.dcm")
    filled = np.argwhere(on(oblique, path).mask("a"))
    corners = voxel_of(oblique.volume.affine, np.reshape(points, (-1, 3)) * [-1, -1, 1])
    np.testing.assert_allclose(filled.mean(axis=0), corners.mean(axis=0), atol=0.01)
    assert len(filled) == 200


POINT = st.tuples(st.floats(-5, 20), st.floats(-5, 20))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(POINT, min_size=1, max_size=12), min_size=1, max_size=4))
def test_a_pixel_is_inside_where_a_ray_from_it_crosses_an_odd_number_of_edges(
    polygons: list[list[tuple[float, float]]],
) -> None:
    """Against a ray downwards instead of along the row, edge by edge; centres on an edge may fall to either side."""
    rng = np.random.default_rng(0)
    moved = [np.array(polygon) + rng.uniform(1e-4, 2e-4, (len(polygon), 2)) for polygon in polygons]
    found = even_odd(moved, (12, 14))
    for column in range(14):
        crossings, near = np.zeros(12, int), np.zeros(12, bool)
        for polygon in moved:
            for (r0, c0), (r1, c1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                if (c0 <= column) != (c1 <= column):
                    at = r0 + (column - c0) / (c1 - c0) * (r1 - r0)
                    crossings += at > np.arange(12)
                    near |= np.abs(at - np.arange(12)) < 1e-6
        np.testing.assert_array_equal(found[~near, column], (crossings % 2 == 1)[~near])


def test_a_contour_of_many_points_takes_little_memory() -> None:
    import tracemalloc

    angle = np.linspace(0, 2 * np.pi, 200_000, endpoint=False)
    zigzag = 250 + np.where(np.arange(200_000) % 2, 240, 200)[:, None] * np.stack([np.sin(angle), np.cos(angle)], -1)
    tracemalloc.start()
    inside = even_odd([zigzag], (512, 512))
    assert tracemalloc.get_traced_memory()[1] < 600_000_000
    tracemalloc.stop()
    assert 190**2 * np.pi < inside.sum() < 241**2 * np.pi
