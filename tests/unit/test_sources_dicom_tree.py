"""A site's tree of files, whatever is in it: every file has a row, and a status that says what it is."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet

from components.cohort.config import CohortConfig
from components.cohort.labelled import joined
from components.errors import UserError
from components.settings import load_stage
from components.sources.config import TransferConfig
from components.sources.dicom import DicomSource
from components.sources.dicom_tree import BLOCK, list_tree, read_file
from components.sources.interface import Listing
from components.sources.locate import Located, locate
from components.sources.nifti import NiftiSource
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.scanner import scan
from components.sources.tree import MAPS, Name, keyed, names, resolve, shown, tree_digest
from components.tables import write_table

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
TRANSFER = TransferConfig(attempts=1, backoff_s=0.0, stall_s=1.0, slowest_mb_s=0.1, connections=1)


@pytest.fixture(scope="module")
def config() -> CohortConfig:
    return load_stage(CohortConfig, "wholebody", "cohort", PARAMS)


@pytest.fixture(scope="module")
def slices(config: CohortConfig, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of one phantom series."""
    sizes = {"pretrain_patients": 1, "evaluation_patients": 4, "retest_patients": 0, "fault_share": 0.0}
    folder = tmp_path_factory.mktemp("series")
    scan(plan_scans(config.phantom.model_copy(update=sizes))[0], folder)
    return sorted(folder.glob("*.dcm"))[:12]


def put(root: Path, place: str, files: list[Path]) -> None:
    (root / place).mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, root / place / file.name)


def changed(file: Path, **values: Any) -> bytes:
    """The file's bytes with other values."""
    dataset = pydicom.dcmread(file)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def statuses(listing: Listing) -> dict[str, str]:
    return {row["location"]: row["status"] for row in listing.files}


def owners(listing: Listing) -> dict[str, str]:
    return {row["location"]: row["series"] for row in listing.files}


def test_nested_folders_and_what_is_no_image(slices: list[Path], config: CohortConfig, tmp_path: Path) -> None:
    put(tmp_path, "export/2020/a/b", slices)
    (tmp_path / "readme.txt").write_text("not DICOM")
    (tmp_path / "export" / "note").write_bytes(b"")
    (tmp_path / "export/2020/a/b" / f"._{slices[0].name}").write_bytes(b"\0\5\x16\7" + bytes(200))
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3.4"
    report.PatientID, report.StudyInstanceUID, report.SeriesInstanceUID = "x", "1.2.3", "1.2.3.5"
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    listing = list_tree(tmp_path, config)
    assert Counter(statuses(listing).values()) == {"image": 12, "not_dicom": 2, "empty": 1, "object": 1}
    assert [s.files for s in listing.series] == [12], "a report is no series of CT"
    assert sum(row["bytes"] for row in listing.files) == sum(p.stat().st_size for p in tmp_path.rglob("*.*"))


def test_a_study_tells_patients_apart_that_one_patient_may_be(
    slices: list[Path], config: CohortConfig, tmp_path: Path
) -> None:
    """Half of a series under another PatientID, and two series of a study that name no patient at all."""
    for number, file in enumerate(slices):
        renamed = changed(file, PatientID="another") if number % 2 else file.read_bytes()
        nobodys = changed(
            file,
            PatientID="",
            StudyInstanceUID="1.2.3",
            SeriesInstanceUID=f"1.2.3.{number % 2}",
            SOPInstanceUID=f"1.2.3.4.{number}",
        )
        for place, content in (("renamed", renamed), ("nobodys", nobodys)):
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / file.name).write_bytes(content)
    listed = pd.DataFrame([vars(series) for series in list_tree(tmp_path, config).series])
    patients = listed.groupby("study")["patient"].nunique()
    assert len(listed) == 4
    assert sorted(patients) == [1, 2], "a study of two patients is seen; one without a name is one patient's"


def test_dicomdir(slices: list[Path], config: CohortConfig, tmp_path: Path) -> None:
    media = FileSet()
    for file in slices:
        media.add(file)
    media.write(tmp_path / "cd")
    listing = list_tree(tmp_path, config)
    assert statuses(listing)["cd/DICOMDIR"] == "dicomdir"
    assert [s.files for s in listing.series] == [12]


def test_zips_and_a_zip_in_a_zip(slices: list[Path], config: CohortConfig, tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.write(slices[0], "again.dcm")
    with zipfile.ZipFile(tmp_path / "rest.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in slices:
            archive.write(file, f"x/{file.name}")
        archive.writestr("inner.zip", inner.getvalue())
        archive.writestr("readme.txt", "no image")
    whole = (tmp_path / "rest.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    put(tmp_path, "odd!", slices[:1])  # a folder whose name looks like that of a zip
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.txt", "one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.txt", "two")
    listing = list_tree(tmp_path, config)
    found = statuses(listing)
    assert found["rest.zip"] == found["twice.zip"] == "archive"
    assert found["rest.zip!/inner.zip"] == "nested_archive"
    assert found["rest.zip!/readme.txt"] == found["twice.zip!/a.txt"] == found["twice.zip!/a.txt#2"] == "not_dicom"
    assert found["cut.zip"] == "damaged_archive"
    assert found[f"rest.zip!/x/{slices[0].name}"] == "duplicate"
    (series,) = listing.series
    assert series.files == 12


def test_a_damaged_member_stays_with_its_series(slices: list[Path], config: CohortConfig, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in slices:
            archive.write(file, file.name)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(bytes(content))
    listing = list_tree(tmp_path, config)
    assert Counter(statuses(listing).values()) == {"image": 11, "archive": 1, "unreadable": 1}
    assert [s.files for s in listing.series] == [12], "screening will name the damage"


def test_identical_duplicates_do_no_harm(slices: list[Path], config: CohortConfig, tmp_path: Path) -> None:
    put(tmp_path, "a", slices)
    alone = list_tree(tmp_path, config)
    put(tmp_path, "backup/a", slices)
    (tmp_path / "a" / "copy.dcm").write_bytes(slices[3].read_bytes())
    both = list_tree(tmp_path, config)
    assert Counter(statuses(both).values()) == {"image": 12, "duplicate": 13}
    assert both.series == alone.series
    assert {owners(both)[place] for place, status in statuses(both).items() if status == "duplicate"} == {""}


def test_one_uid_with_differing_bytes_is_for_screening(
    slices: list[Path], config: CohortConfig, tmp_path: Path
) -> None:
    put(tmp_path, "a", slices)
    (tmp_path / "a" / "other.dcm").write_bytes(changed(slices[0], InstanceNumber=99))
    listing = list_tree(tmp_path, config)
    assert {k for k, v in statuses(listing).items() if v == "conflicting"} == {f"a/{slices[0].name}", "a/other.dcm"}
    assert [s.files for s in listing.series] == [13]


def test_series_are_told_apart_by_uid_not_by_folder(slices: list[Path], config: CohortConfig, tmp_path: Path) -> None:
    for number, place in enumerate(("a", "b/c", "b/d")):
        put(tmp_path, place, slices[4 * number : 4 * number + 4])
    for file in slices[:5]:
        uid = pydicom.dcmread(file).SOPInstanceUID
        content = changed(file, SeriesInstanceUID="1.2.3.4.5", SOPInstanceUID=f"{uid}.1")
        (tmp_path / "a" / f"second-{file.name}").write_bytes(content)
    listing = list_tree(tmp_path, config)
    assert sorted(s.files for s in listing.series) == [5, 12]
    assert sorted(s.location for s in listing.series) == ["a", "a;b/c;b/d"]


def test_empty_series_uids_fall_apart_by_folder(slices: list[Path], config: CohortConfig, tmp_path: Path) -> None:
    for place, part in (("a", slices[:6]), ("b", slices[6:])):
        (tmp_path / place).mkdir()
        for file in part:
            (tmp_path / place / file.name).write_bytes(changed(file, SeriesInstanceUID=""))
    assert [s.files for s in list_tree(tmp_path, config).series] == [6, 6]


def test_truncated_files_count_to_their_series(slices: list[Path], config: CohortConfig, tmp_path: Path) -> None:
    put(tmp_path, "a", slices)
    content = slices[0].read_bytes()
    (tmp_path / "a" / slices[0].name).write_bytes(content[:-100])  # within the pixels
    (tmp_path / "a" / slices[1].name).write_bytes(content[:600])  # within the header
    (tmp_path / "a" / slices[2].name).write_bytes(content[:90])  # within the preamble
    (tmp_path / "a" / slices[3].name).write_bytes(b"")
    (tmp_path / "a" / slices[4].name).write_bytes(bytes(len(content)))  # space was reserved, nothing came
    listing = list_tree(tmp_path, config)
    found = Counter(statuses(listing).values())
    assert found == {"image": 7, "truncated": 1, "unreadable": 3, "empty": 1}
    assert [s.files for s in listing.series] == [12]


def test_links_and_pipes(slices: list[Path], config: CohortConfig, tmp_path: Path) -> None:
    put(tmp_path, "a", slices)
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "linked.dcm").symlink_to(tmp_path / "a" / slices[0].name)
    os.mkfifo(tmp_path / "pipe.dcm")
    listing = list_tree(tmp_path, config)
    found = statuses(listing)
    assert (found["a/up"], found["itself"], found["gone"]) == ("link", "broken_link", "broken_link")
    assert (found["pipe.dcm"], found["b/linked.dcm"]) == ("special", "duplicate")
    assert [s.files for s in listing.series] == [12]


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of a user without rights, who reads it: root may read everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    if os.geteuid() != os.getuid():
        os.seteuid(os.getuid())
    shutil.rmtree(folder)


def test_files_and_folders_without_permission(slices: list[Path], config: CohortConfig, as_nobody: Path) -> None:
    put(as_nobody, "a", slices)
    put(as_nobody, "closed", slices[:1])
    for path in as_nobody.rglob("*"):
        path.chmod(0o755)
    (as_nobody / "a" / slices[0].name).chmod(0)
    (as_nobody / "closed").chmod(0)
    if os.getuid() == 0:
        os.seteuid(65534)
    listing = list_tree(as_nobody, config)
    found = statuses(listing)
    assert (found[f"a/{slices[0].name}"], found["closed/"]) == ("unreadable", "unreadable_folder")
    assert [s.files for s in listing.series] == [12]


def test_a_file_that_vanishes(slices: list[Path], tmp_path: Path) -> None:
    put(tmp_path, "a", slices[:2])
    found = list(names(tmp_path))
    (tmp_path / "a" / slices[0].name).unlink()
    assert [file.status for name in found for file in read_file(tmp_path, name)[2]] == ["vanished", "image"]
    assert found == [Name(f"a/{slices[0].name}"), Name(f"a/{slices[1].name}")]


def test_several_processes_list_the_same(slices: list[Path], config: CohortConfig, tmp_path: Path) -> None:
    for number in range(BLOCK // len(slices) + 2):
        put(tmp_path, f"{number:02d}", slices)
    assert list_tree(tmp_path, config, workers=2) == list_tree(tmp_path, config, workers=1)


@pytest.fixture
def site(
    slices: list[Path], config: CohortConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> tuple[Path, CohortConfig]:
    """A site's export, with patients' names for names."""
    root = tmp_path / "root"
    put(root, "MEIER^ANNA/CT", slices[:5])
    with zipfile.ZipFile(root / "SCHMIDT.zip", "w") as archive:
        for file in slices[5:]:
            archive.write(file, f"SCHMIDT/{file.name}")
    (root / "SCHMIDT.txt").write_text("letter")
    monkeypatch.setenv("CTFOUNDRY_ROOT_DICOM", str(root))
    monkeypatch.chdir(tmp_path)
    return root, config.model_copy(update={"source": "dicom", "source_digest": tree_digest(root), "paths": "keyed"})


def test_names_of_patients_stay_on_this_machine(
    site: tuple[Path, CohortConfig], slices: list[Path], tmp_path: Path
) -> None:
    source = DicomSource(site[1], "wholebody")
    listing = source.list_series(frozenset())
    assert not any(name in repr(listing) for name in ("MEIER", "SCHMIDT", "CT", slices[1].stem))
    (series,) = listing.series
    assert series.name == series.series
    assert oct(next(MAPS.iterdir()).stat().st_mode)[-3:] == "600"
    shutil.rmtree(MAPS)  # another machine
    (tmp_path / "out").mkdir()
    source.check()
    assert source.fetch({}, list(series.members), tmp_path / "out", TRANSFER) is None
    received = {pydicom.dcmread(p).SOPInstanceUID for p in (tmp_path / "out").iterdir()}
    assert received == {pydicom.dcmread(p).SOPInstanceUID for p in slices}


def test_a_process_without_the_secret_leaves_the_map_alone(
    site: tuple[Path, CohortConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker on another machine that was not told it: it would write other pseudonyms into the shared map."""
    source = DicomSource(site[1], "wholebody")
    (series,) = source.list_series(frozenset()).series
    (before,) = [path.read_bytes() for path in MAPS.iterdir()]
    monkeypatch.delenv("CTFOUNDRY_PSEUDONYM_KEY")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="CTFOUNDRY_PSEUDONYM_KEY: not set"):
        source.fetch({}, [*series.members, "f0000000000000000"], tmp_path / "out", TRANSFER)
    assert [path.read_bytes() for path in MAPS.iterdir()] == [before]


def test_errors_show_no_name(site: tuple[Path, CohortConfig], tmp_path: Path) -> None:
    root, config = site
    source = DicomSource(config, "wholebody")
    (series,) = source.list_series(frozenset()).series
    (tmp_path / "out").mkdir()
    (root / "SCHMIDT.zip").unlink()
    with pytest.raises(UserError, match=r"7 of 12 files are not below it, first f[0-9a-f]{16}") as caught:
        source.fetch({}, list(series.members), tmp_path / "out", TRANSFER)
    assert "SCHMIDT" not in str(caught.value)


def test_a_name_that_is_not_utf8(
    slices: list[Path], config: CohortConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    place = os.fsdecode(os.fsencode(tmp_path / "root") + b"/M\xfcller.dcm")
    shutil.copyfile(slices[0], place)
    monkeypatch.setenv("CTFOUNDRY_ROOT_DICOM", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    listing = list_tree(tmp_path / "root", config)
    key = keyed(listing, "dicom", "wholebody").files[0]["location"]
    assert resolve("dicom", "wholebody", [key]) == [Path(place).name]
    with pytest.raises(UserError, match=r"cohort\.paths: shown is not allowed"):
        shown(listing, "dicom")


def test_locate_leads_back_to_the_bytes(site: tuple[Path, CohortConfig], tmp_path: Path) -> None:
    root, config = site
    text = PARAMS.read_text().replace("    source: phantom\n", "    source: dicom\n")
    (tmp_path / "params.yaml").write_text(text)
    listing = DicomSource(config, "wholebody").list_series(frozenset())
    folder = tmp_path / "data" / "wholebody" / "cohort"
    rows = [{"series": of.series, "source": "dicom", "set": "", "location": of.location} for of in listing.series]
    rows.append({"series": "s0", "source": "phantom", "set": "", "location": ""})
    write_table(folder / "cohort.parquet", pd.DataFrame(rows))
    write_table(folder / "files.parquet", listing.files.table().assign(set=""))
    write_table(folder / "labelled.parquet", joined([]))
    found = locate("wholebody", listing.series[0].series).paths
    assert len(found) == 12
    assert str(root / "MEIER^ANNA" / "CT" / "0001.dcm") in found
    assert f"{root}/SCHMIDT.zip!/SCHMIDT/0012.dcm" in found
    letter = next(row["location"] for row in listing.files if row["status"] == "not_dicom")
    assert locate("wholebody", letter) == Located([str(root / "SCHMIDT.txt")], [])
    with pytest.raises(UserError, match="neither a series nor a file"):
        locate("wholebody", "f0000000000000000")
    with pytest.raises(UserError, match="keeps no files"):
        locate("wholebody", "s0")


@pytest.mark.usefixtures("secret")
def test_nifti_names_are_keyed_too(config: CohortConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    (root / "MEIER").mkdir(parents=True)
    (root / "MEIER" / "ct.nii.gz").write_bytes(b"volume")
    (root / "MEIER" / "empty.nii").write_bytes(b"")
    (root / "notes.txt").write_text("notes")
    monkeypatch.setenv("CTFOUNDRY_ROOT_NIFTI", str(root))
    monkeypatch.chdir(tmp_path)
    of_site = {"source": "nifti", "source_digest": tree_digest(root), "paths": "keyed"}
    source = NiftiSource(config.model_copy(update=of_site), "wholebody")
    listing = source.list_series(frozenset())
    assert sorted(statuses(listing).values()) == ["empty", "image", "not_nifti"]
    assert "MEIER" not in repr(listing)
    (tmp_path / "out").mkdir()
    source.fetch({}, list(listing.series[0].members), tmp_path / "out", TRANSFER)
    assert (tmp_path / "out" / "volume.nii.gz").read_bytes() == b"volume"
