"""Trees that are not as they should be: what is wrong is told of the right file, and no sound one pays for it."""

from __future__ import annotations

import os
import shutil
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from components.cohort.config import CohortConfig
from components.ct.archive import ArchiveLimits
from components.errors import UserError
from components.settings import load_stage
from components.sources import dicom_tree
from components.sources.dicom_tree import list_tree
from components.sources.tree import Archives, names, tree_digest
from tests.unit.small_pacs import make_series
from tests.unit.small_trees import ROOT, TRANSFER, counts, members_of, pinned, put, zipped
from tests.unit.test_ct_archive import DEFLATE64, add_link, declare


@pytest.fixture(scope="module")
def config() -> CohortConfig:
    return load_stage(CohortConfig, "wholebody", "cohort", ROOT / "params.yaml")


def test_a_link_in_a_zip_costs_itself_only(config: CohortConfig, tmp_path: Path) -> None:
    add_link(zipped(tmp_path / "study.zip", members_of(1)), "latest", "0001.dcm")
    listing = list_tree(tmp_path, config)
    assert counts(listing) == {"archive": 1, "image": 3, "link": 1}
    assert [series.files for series in listing.series] == [3]


@pytest.mark.parametrize(("local", "central", "value", "status", "said"), [
    (8, 10, struct.pack("<H", DEFLATE64), "unsupported_packing", "Deflate64, as Windows does"),
    (6, 8, struct.pack("<H", 1), "encrypted", "members without a password"),
])  # fmt: skip
@pytest.mark.usefixtures("secret")
def test_a_zip_that_is_not_unpacked_is_named(
    config: CohortConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: int, central: int, value: bytes,
    status: str, said: str,
) -> None:  # fmt: skip
    declare(zipped(tmp_path / "a.zip", members_of(1)), local, central, value)
    assert counts(list_tree(tmp_path, config)) == {"archive": 1, status: 3}
    with pytest.raises(UserError, match=f"no CT image below it; its files: archive 1, {status} 3; .*{said}"):
        pinned(config, tmp_path, monkeypatch).list_series(frozenset())


def test_a_member_that_is_not_unpacked_is_judged_with_its_series(config: CohortConfig, tmp_path: Path) -> None:
    """Slices at the end that are packed in another way would otherwise be lost without a gap."""
    path = zipped(tmp_path / "a.zip", members_of(1, 4))
    content = bytearray(path.read_bytes())
    for magic, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.rfind(magic)
        content[at + place : at + place + 2] = struct.pack("<H", DEFLATE64)
    path.write_bytes(content)
    listing = list_tree(tmp_path, config)
    assert counts(listing) == {"archive": 1, "image": 3, "unsupported_packing": 1}
    assert [series.files for series in listing.series] == [4]


@pytest.mark.parametrize(("name", "files"), [("export.log", 3), ("patients.csv", 3), ("IM_0009", 4), ("9.dcm", 4),
                                            ("CT.1.2.840.113619.2.55.9", 4)])  # fmt: skip
def test_a_log_that_is_packed_too_well_is_no_slice(config: CohortConfig, tmp_path: Path, name: str, files: int) -> None:
    """What is not unpacked is a slice perhaps, and costs its series; unless its name says that it is something else."""
    path = zipped(tmp_path / "a.zip", members_of(1))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"exported a slice\n" * 400_000)
    listing = list_tree(tmp_path, config)
    assert counts(listing) == {"archive": 1, "image": 3, "over_limit": 1}
    assert [series.files for series in listing.series] == [files]


def test_a_member_named_as_the_slices_are_is_one_of_them(config: CohortConfig, tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "a.zip", {name.replace(".dcm", ".IMG"): content for name, content in members_of(1).items()}
    )
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0009.img", bytes(6 << 20))
    assert [series.files for series in list_tree(tmp_path, config).series] == [4]


def test_a_zip_beyond_the_limits_is_not_called_damaged(
    config: CohortConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped(tmp_path / "a.zip", members_of(1))
    few = ArchiveLimits(members=2, unpacked_bytes=2**30, ratio=200.0)
    monkeypatch.setattr("components.sources.tree.LOCAL_LIMITS", few)
    assert counts(list_tree(tmp_path, config)) == {"archive_over_limit": 1}


def test_patients_folders_that_are_links_are_read_once_and_no_walk_goes_round(
    config: CohortConfig, tmp_path: Path
) -> None:
    put(tmp_path / "store" / "p1", make_series(1))
    put(tmp_path / "store" / "p2" / "ct", make_series(2))
    root = tmp_path / "root"
    (root / "own").mkdir(parents=True)
    put(root / "own", make_series(3))
    for name, target in {"p1": tmp_path / "store/p1", "p1 again": tmp_path / "store/p1", "p2": tmp_path / "store/p2",
                         "into itself": root / "own", "up": tmp_path}.items():  # fmt: skip
        (root / name).symlink_to(target, target_is_directory=True)
    (tmp_path / "store/p2/back").symlink_to(root, target_is_directory=True)
    (tmp_path / "store/p2/deep").symlink_to(tmp_path / "store/p2/ct", target_is_directory=True)
    (tmp_path / "store/p2/round").symlink_to(tmp_path / "store/p2", target_is_directory=True)
    listing = list_tree(root, config)
    links = {row["location"] for row in listing.files if row["status"] == "link"}
    assert links == {"p1 again", "into itself", "up", "p2/back", "p2/deep", "p2/round"}
    assert [series.files for series in listing.series] == [3, 3, 3]
    assert sorted(series.location for series in listing.series) == ["own", "p1", "p2/ct"]
    before = tree_digest(root)
    (tmp_path / "store/p1/0000.dcm").unlink()
    assert tree_digest(root) != before, "what is read is pinned"


def test_objects_and_other_images_are_accounted_for_and_no_series_of_ours(config: CohortConfig, tmp_path: Path) -> None:
    put(tmp_path / "p1", make_series(1))
    put(tmp_path / "p1", make_series(1))
    pet = make_series(2, Modality="PT", SOPClassUID="1.2.840.10008.5.1.4.1.1.128")
    page = make_series(3, 1, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")  # a dose page: a screenshot that says CT
    magnet = make_series(4, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    structures = make_series(5, 1, Modality="RTSTRUCT", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3")
    del structures[0].Rows, structures[0].Columns, structures[0].PixelData
    other = make_series(7, 1, Modality="OT")  # of a class that is not stated
    del other[0].SOPClassUID
    for number, images in enumerate((pet, page, magnet, structures, other)):
        put(tmp_path / "p1" / str(number), images)
    nameless = make_series(6)  # an export that strips what says so may be CT
    for image in nameless:
        del image.Modality
    put(tmp_path / "p2", nameless)
    listing = list_tree(tmp_path, config)
    assert counts(listing) == {"image": 6, "other_image": 8, "object": 1}
    assert [series.files for series in listing.series] == [3, 3]
    others = {row["series"] for row in listing.files if row["status"] in ("other_image", "object")}
    assert others == {""}


def test_an_odd_image_within_a_series_of_ct_is_left_to_screening(config: CohortConfig, tmp_path: Path) -> None:
    images = make_series(1, 4)
    images[3].SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    put(tmp_path, images)
    listing = list_tree(tmp_path, config)
    assert counts(listing) == {"image": 3, "other_image": 1}
    assert [series.files for series in listing.series] == [4]


def test_an_odd_file_costs_itself_only(config: CohortConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a", make_series(1, 4))
    zipped(tmp_path / "b.zip", members_of(2))
    read = dicom_tree.read_instance

    def breaks(stream: Any, location: str, size: int, listing: bool = False) -> Any:
        if location in ("a/0003.dcm", "b.zip!/0002.dcm"):
            raise RecursionError("too deep")
        return read(stream, location, size, listing)

    monkeypatch.setattr(dicom_tree, "read_instance", breaks)
    listing = list_tree(tmp_path, config)
    assert counts(listing) == {"image": 5, "archive": 1, "unreadable": 2}
    assert sorted(series.files for series in listing.series) == [3, 4]


def test_no_warning_quotes_a_value(config: CohortConfig, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = make_series(1, 2, StudyInstanceUID="1.2.840.113619.02.55", StudyDate="MEIER")
        put(tmp_path, [*images, *_deflated(make_series(2, 1, SeriesInstanceUID="1.2.826.06"))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert counts(list_tree(tmp_path, config)) == {"image": 3}


def _deflated(images: list[Dataset]) -> list[Dataset]:
    for image in images:
        image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    return images


def test_a_change_of_all_values_of_a_large_file_is_seen(tmp_path: Path) -> None:
    content = bytearray(os.urandom(5 << 20))
    (tmp_path / "ct.nii").write_bytes(content)
    before = tree_digest(tmp_path)
    content[352:] = bytes(len(content) - 352)
    content[:4096] = (tmp_path / "ct.nii").read_bytes()[:4096]
    (tmp_path / "ct.nii").write_bytes(content)
    assert tree_digest(tmp_path) != before


def test_a_listing_knows_the_digest_that_was_pinned(config: CohortConfig, tmp_path: Path) -> None:
    put(tmp_path / "b", make_series(1))
    put(tmp_path / "a.x", make_series(2))
    zipped(tmp_path / "a" / "c.zip", members_of(3))
    (tmp_path / "big.dcm").write_bytes(os.urandom(5 << 20))
    (tmp_path / "patients.csv").write_text("file,patient\n" + "x,y\n" * 3000)
    assert list_tree(tmp_path, config).digest == tree_digest(tmp_path)
    assert next(names(tmp_path)).location.startswith("a/"), "folder by folder"


@pytest.mark.usefixtures("secret")
def test_a_tree_that_changed_is_told(config: CohortConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "root", make_series(1))
    source = pinned(config, tmp_path / "root", monkeypatch)
    assert len(source.list_series(frozenset()).series) == 1
    put(tmp_path / "root" / "more", make_series(2))
    with pytest.raises(
        UserError, match=r"its files have changed \(digest [0-9a-f]{12}, wholebody.cohort.source_digest"
    ):
        source.list_series(frozenset())


@pytest.mark.usefixtures("secret")
def test_a_zip_that_is_damaged_since_it_was_listed_fails_the_series(
    config: CohortConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "root/a.zip", members_of(1))
    source = pinned(config, tmp_path / "root", monkeypatch)
    (series,) = source.list_series(frozenset()).series
    path.write_bytes(path.read_bytes()[:-40])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"not readable as an archive.*the source has changed"):
        source.fetch({}, list(series.members), tmp_path / "out", TRANSFER)


@pytest.mark.usefixtures("secret")
def test_members_keep_their_numbers_whatever_the_order_of_the_zips(
    config: CohortConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in members_of(1, 6).items():
        zipped(tmp_path / "root" / f"{name}.zip", {name: content})
    source = pinned(config, tmp_path / "root", monkeypatch)
    members = list(source.list_series(frozenset()).series[0].members)
    shuffled = members[::-2] + members[-2::-2]
    (tmp_path / "out").mkdir()
    source.fetch({}, shuffled, tmp_path / "out", TRANSFER)
    with Archives(tmp_path / "root") as archives:
        for number, member in enumerate(shuffled):
            assert (tmp_path / "out" / f"{number:06d}.dcm").read_bytes() == b"".join(archives.blocks(member))
    shutil.rmtree(tmp_path / "out")


def test_a_series_keeps_its_version_while_others_come_and_change(config: CohortConfig, tmp_path: Path) -> None:
    """So that one series more, or one changed, is all that is transferred."""
    put(tmp_path / "a", make_series(1))
    zipped(tmp_path / "b.zip", members_of(2))
    before = {series.location: series.version for series in list_tree(tmp_path, config).series}
    put(tmp_path / "c", make_series(3))
    images = make_series(1)
    images[2].StudyDate = "20200102"
    put(tmp_path / "a", images)
    after = {series.location: series.version for series in list_tree(tmp_path, config).series}
    assert after["b.zip!"] == before["b.zip!"]
    assert after["a"] != before["a"]
    assert len(set(after.values())) == 3


def test_studies_that_name_no_patient_are_not_one_patients(config: CohortConfig, tmp_path: Path) -> None:
    """As one, all of them would fall into one split, or be held out together."""
    for number, patient in enumerate(("", "", "MRN3", "MRN3 ")):
        put(tmp_path / str(number), make_series(number, PatientID=patient))
    patients = [series.patient for series in sorted(list_tree(tmp_path, config).series, key=lambda s: s.location)]
    assert len(set(patients)) == 3
    assert patients[2] == patients[3]
