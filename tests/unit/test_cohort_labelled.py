"""Labelled sets: a row of a table finds its scan by whatever it names, and nobody who is named is pretrained on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.cohort.config import CohortConfig
from components.cohort.labelled import side_of
from components.cohort.stage import make_cohort
from components.errors import UserError
from components.files import read_json
from components.settings import load_stage, read_yaml
from components.sources.roots import record_root, root_of
from components.sources.sets import KEYS, read_text_table, sets_of
from components.sources.tree import tree_digest
from components.tables import read_table
from tests.unit.small_pacs import as_file, make_series
from tests.unit.small_sets import LINE, PATIENTS, cohort, grow_tree, table_of, with_set

pytestmark = pytest.mark.usefixtures("secret")


@pytest.fixture
def checkout(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(project / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    grow_tree()
    return tmp_path


@pytest.mark.parametrize("paths", ["keyed", "shown"])
@pytest.mark.parametrize("key", list(KEYS))
def test_a_row_finds_its_scan_by_whatever_it_names(key: str, paths: str, checkout: Path) -> None:
    scans = {"source": "dicom", "source_digest": tree_digest(Path("tree")), "paths": paths}
    with_set(table_of(key), key, scans=scans)
    found, labelled = cohort()
    of_set = found[found["set"] == "site"]
    assert set(of_set["series"]) == set(labelled["series"])
    assert labelled["row"].nunique() == PATIENTS
    assert len(of_set) == (PATIENTS + 1 if key == "patient" else PATIENTS), "a patient's row is of all of her scans"
    assert set(of_set["role"] + "/" + of_set["split"]) == {"evaluation/held_out"}
    assert (of_set["reason"] == "").all()
    assert read_json(Path("cohort/labelled.json"))["site"]["rows_without_scan"] == []


def test_nobody_who_is_named_is_pretrained_on(checkout: Path) -> None:
    """The same tree is the line's own source and the set's: what the table does not name stays to train on, but for
    other scans of those who are named."""
    table = table_of("series").iloc[[0, 1, 5]]
    with_set(table, "series")
    found, labelled = cohort("dicom")
    real = found[found["source"] == "dicom"]
    assert real["series"].is_unique
    assert real["set"].value_counts().to_dict() == {"": PATIENTS + 1 - 3, "site": 3}
    assert real["role"].value_counts().to_dict() == {"evaluation": 3, "pretrain": 3, "held_out": 1}
    assert set(real.loc[real["role"] == "pretrain", "patient"]).isdisjoint(labelled["patient"])
    files = read_table(Path("cohort/files.parquet"))
    assert files.groupby("series").size().drop("").eq(3).all(), "no file belongs to a series twice"
    account = read_json(Path("cohort/labelled.json"))["site"]
    assert account["scans_without_row"] == PATIENTS + 1 - 3


def test_who_is_named_without_a_scan_is_not_pretrained_on_either(checkout: Path) -> None:
    shutil.move("tree/scan3", "scan3")
    with_set(table_of("patient"))
    pinned = read_yaml()[LINE]["sets"]["site"]["scans"]["source_digest"]
    Path("elsewhere").mkdir()
    shutil.move("scan3", "elsewhere/scan3")
    shutil.copytree("tree/scan0", "elsewhere/scan9")
    for n, image in enumerate(make_series(50, side=64)):
        Path(f"elsewhere/{n}.dcm").write_bytes(as_file(image))
    record_root("dicom", Path("elsewhere"), LINE)
    config = load_stage(CohortConfig, LINE, "cohort")
    config = config.model_copy(update={"source": "dicom", "source_digest": tree_digest(Path("elsewhere"))})
    found = make_cohort(LINE, config, 2, frozenset(), Path("cohort"), sets_of(LINE))
    assert pinned == tree_digest(Path("tree"))
    real = found[(found["source"] == "dicom") & (found["set"] == "")]
    assert sorted(real["role"]) == ["held_out", "pretrain"], "MRN3's only scan, MRN50's; MRN0's is the set's already"


@pytest.mark.parametrize("key", ["study", "series", "accession"])
def test_who_is_named_by_a_scan_that_only_the_lines_source_has(key: str, checkout: Path) -> None:
    """MRN5 was scanned twice: the first scan is named, and is in the line's own tree alone."""
    Path("elsewhere").mkdir()
    shutil.move("tree/scan5", "elsewhere/scan5")
    shutil.move("tree/scan6", "elsewhere/scan6")
    for n, image in enumerate(make_series(50, side=64)):
        Path(f"elsewhere/{n}.dcm").write_bytes(as_file(image))
    with_set(table_of(key), key)
    record_root("dicom", Path("elsewhere"), LINE)
    config = load_stage(CohortConfig, LINE, "cohort")
    config = config.model_copy(update={"source": "dicom", "source_digest": tree_digest(Path("elsewhere"))})
    found = make_cohort(LINE, config, 2, frozenset(), Path("cohort"), sets_of(LINE))
    real = found[(found["source"] == "dicom") & (found["set"] == "")]
    assert sorted(real["role"]) == ["held_out", "held_out", "pretrain"]


def test_what_is_said_of_the_line_does_not_hold_for_its_sets(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_set(table_of("patient"))
    Path("main").mkdir()
    monkeypatch.setenv("CTFOUNDRY_ROOT_DICOM", str(Path("main").absolute()))
    found, _ = cohort()
    assert (found["set"] == "site").sum() == PATIENTS + 1
    with pytest.raises(
        UserError, match=r"root 'dicom' of set other of line wholebody: .* set CTFOUNDRY_ROOT_WHOLEBODY__"
    ):
        root_of("dicom", "wholebody-other")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,m\nMRN0,1,\nMRN1,0,\n", ""),
        ("id,m\r\nMRN0,1\r\n\r\nMRN1,0\r\n\r\n", ""),
        ('\ufeffid,m\n"MRN0",1\nMRN1\n', ""),
        ("id,m,m\nMRN0,1,2\n", "table labels.csv: a column is named twice"),
        ("id,m\nMRN0,1,2\n", "table labels.csv: row 1 has more values than there are columns"),
        ('id,m\n"MRN0,1\n', "table labels.csv: cannot be read as csv (Error)"),
        ("", "table labels.csv: no row"),
    ],
)
def test_tables_as_people_have_them(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text, newline="")
    if said:
        with pytest.raises(UserError) as caught:
            read_text_table(path)
        assert str(caught.value) == said
        return
    table = read_text_table(path)
    assert table["id"].tolist() == ["MRN0", "MRN1"]
    assert table["m"].iloc[0] == "1"


def test_whole_numbers_of_parquet_are_written_as_such(tmp_path: Path) -> None:
    pd.DataFrame({"id": [4711, None, 12], "m": [0.5, 1.0, None], "t": ["a", None, "b"]}).set_index("id").to_parquet(
        tmp_path / "labels.parquet"
    )
    table = read_text_table(tmp_path / "labels.parquet")
    assert table.to_dict("list") == {"m": ["0.5", "1", ""], "t": ["a", "", "b"], "id": ["4711", "", "12"]}


def test_labels_of_the_lines_own_scans(checkout: Path) -> None:
    with_set(table_of("accession").iloc[:2], "accession", scans=None)
    found, labelled = cohort("dicom")
    real = found[found["source"] == "dicom"]
    assert set(real["set"]) == {""}
    assert set(real.loc[real["role"] == "evaluation", "series"]) == set(labelled["series"])
    assert len(labelled) == 2


def test_sides_are_of_patients_and_of_the_seed_alone(checkout: Path) -> None:
    with_set(table_of("patient"))
    _, labelled = cohort()
    assert set(labelled["split"]) == {"train", "test"}
    assert labelled.groupby("patient")["split"].nunique().eq(1).all()
    with_set(table_of("patient").iloc[::-1])
    _, again = cohort()
    sides = labelled.drop_duplicates("patient").set_index("patient")["split"]
    assert sides.sort_index().equals(again.drop_duplicates("patient").set_index("patient")["split"].sort_index())
    drawn = [side_of(7, f"p{n}", 0.3) for n in range(2000)]
    assert 0.26 < drawn.count("test") / len(drawn) < 0.34


def test_a_column_says_the_side_and_external_sets_are_tested_on(checkout: Path) -> None:
    sides = ["train", "train", "test", "test", "train", "test"]
    with_set(table_of("series", fold=sides), "series", split={"column": "fold"})
    _, labelled = cohort()
    assert labelled.sort_values("row")["split"].tolist() == sides
    with_set(table_of("series", fold=sides), "series", split={"column": "fold"}, role="external")
    _, labelled = cohort()
    assert set(labelled["split"]) == {"test"}


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("patient", lambda t: t.assign(id="MRN0"), "names a patient of column 'id' twice, in row 2, 3, 4, ..."),
        (
            "patient",
            lambda t: t.assign(id="nobody" + t["id"]),
            "no row of labels.csv names a scan of its source: 6 rows",
        ),
        ("patient", lambda t: t.rename(columns={"id": "PatientID"}), "no column 'id' among its 1"),
        ("patient", lambda t: t.iloc[:0], "table labels.csv: no row"),
        ("patient", lambda t: t.assign(id=None, m="1"), "column 'id' names no patient: it is empty in all 6 rows"),
        (
            "file",
            lambda t: t.assign(id=["a", "b", "./a/", "c", "d", "e"]),
            "names a file of column 'id' twice, in row 3",
        ),
        (
            "series",
            lambda t: t.assign(id="a report " + t["id"]),
            "no row of labels.csv names a scan of its source",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(key: str, change: Any, said: str, checkout: Path) -> None:
    with_set(change(table_of(key)), key)
    with pytest.raises(UserError) as caught:
        cohort()
    assert said in str(caught.value)
    assert "MRN" not in str(caught.value), "no value is told: it may be a name"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("paths", ["keyed", "shown"])
def test_a_folder_or_a_zip_names_all_scans_in_it(paths: str, checkout: Path) -> None:
    """MRN5's two scans lie below her folder, MRN4's below a folder of a zip."""
    Path("tree/person5").mkdir()
    for name in ("scan5", "scan6"):
        shutil.move(f"tree/{name}", f"tree/person5/{name}")
    Path("packed/inside").mkdir(parents=True)
    shutil.move("tree/scan4", "packed/inside/scan4")
    shutil.make_archive("tree/person4", "zip", "packed")
    table = pd.DataFrame({"id": ["person5/", "person4.zip", "scan0", "scan1/0.dcm"]})
    with_set(table, "file", scans={"source": "dicom", "source_digest": tree_digest(Path("tree")), "paths": paths})
    _, labelled = cohort()
    assert labelled["row"].tolist() == [0, 0, 1, 2, 3]
    assert labelled["patient"].nunique() == 4


def test_a_side_that_is_none_and_a_patient_on_both(checkout: Path) -> None:
    with_set(table_of("series", fold=["train", "validation"] * 3), "series", split={"column": "fold"})
    with pytest.raises(UserError, match=r"split.column 'fold': 3 rows are not allowed, first row 2 of labels.csv: "):
        cohort()
    both = pd.DataFrame({"id": ["1.2.826.6.5", "1.2.826.6.6"], "fold": ["train", "test"]})
    with_set(both, "series", split={"column": "fold"})
    with pytest.raises(UserError, match=r"1 patients are in train and in test, as in the rows 1, 2 of labels.csv"):
        cohort()


def test_an_external_set_shares_no_patient_with_what_heads_are_trained_on(checkout: Path) -> None:
    with_set(table_of("series", fold=["train"] * 5 + ["test"]), "series", split={"column": "fold"})
    with_set(table_of("series").iloc[:2], "series", name="elsewhere", role="external")
    with pytest.raises(UserError, match=r"sets.elsewhere: 2 of its patients are also in the training side of another"):
        cohort()


def test_a_table_or_a_tree_that_changed_is_told(checkout: Path) -> None:
    with_set(table_of("patient"))
    Path("labels_site/labels.csv").write_text("id\nMRN1\n")
    with pytest.raises(UserError, match=r"sets.site.labels.digest: labels.csv has digest .* `ctfoundry set pin site"):
        cohort()
    with_set(table_of("patient"))
    Path("tree/scan0/0.dcm").write_bytes(b"")
    with pytest.raises(UserError, match=r"wholebody.sets.site.scans.source_digest pins .* `ctfoundry set pin site"):
        cohort()


def test_rows_and_scans_are_all_accounted_for(checkout: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Row 2 has no key, row 4 names nobody, MRN3 and MRN4 are in no row; MRN5 was scanned twice."""
    caplog.set_level("INFO")
    table = pd.DataFrame({
        "id": ["MRN0", "", "MRN1", "MRN99", "MRN2", "MRN5"],
        "fold": ["train", "train", "test", "none", "train", "test"],
    })  # fmt: skip
    with_set(table, split={"column": "fold"})
    cohort()
    assert read_json(Path("cohort/labelled.json")) == {
        "site": {
            "rows": 6,
            "rows_with_scan": 4,
            "rows_without_key": [2],
            "rows_without_scan": [4],
            "scans": 5,
            "scans_without_row": 2,
            "scans_by_split": {"train": 2, "test": 3},
            "patients": 4,
            "patients_by_split": {"train": 2, "test": 2},
        }
    }
    assert "set site: of 6 rows 1 name no scan of the source (row 4), 1 have no patient (row 2); 2 scans" in caplog.text
    with_set(table_of("patient").iloc[:2], role="external")
    cohort()
    assert read_json(Path("cohort/labelled.json"))["site"]["patients_by_split"] == {"train": 0, "test": 2}


@pytest.mark.parametrize(
    ("split", "remedy"),
    [
        ({"seed": 1, "test": 0.01}, "change split.test (0.01), or name the sides in a column of the table"),
        ({"column": "fold"}, "change the sides in column 'fold', or have them drawn (split.seed, split.test)"),
    ],
)
def test_a_side_without_anybody_ends_the_run_and_a_small_one_is_told(
    split: dict[str, Any], remedy: str, checkout: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_set(table_of("patient", fold=["train"] * PATIENTS), split=split)
    with pytest.raises(UserError) as caught:
        cohort()
    assert f"wholebody.sets.site: nobody is on one of the sides (train 6, test 0): {remedy}" in str(caught.value)
    assert "\n" not in str(caught.value)
    with_set(table_of("patient", fold=["train", "test"] * 3), split={"column": "fold"})
    cohort()
    told = [of.getMessage() for of in caplog.records if "sets.site" in of.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("wholebody.sets.site: fewer than 10 patients on a side (train 3, test 3), too few")
    caplog.clear()
    with_set(table_of("patient"), role="external")
    cohort()
    assert "sets.site: fewer than 10 patients on a side (test 6), too few for a figure to say much; label more\n" in (
        caplog.text
    )


def test_what_params_yaml_says_of_sets_is_checked(checkout: Path) -> None:
    assert read_yaml()[LINE]["sets"] == {}
    for changes, said in (
        ({"role": "both"}, "sets.site.role: 'both' is not allowed: Input should be 'internal' or 'external'"),
        ({"split": {"seed": 1}}, "sets.site.split: {column: <of the table>} or {seed: <number>, test:"),
        ({"scans": {"sourc": "dicom"}}, "sets.site.scans.sourc: unknown key"),
        ({"scans": {"source": "phantom"}}, "is not allowed with scans.source 'phantom': what is known of phantoms are"),
        (
            {"scans": {"source": "phantom"}, "labels": None},
            "sets.site.scans.phantom.site: 'home' is not allowed: the line's own; 'other', so that its patients are",
        ),
        ({"labels": None}, "sets.site.labels: null is not allowed"),
        ({"scans": {"source": "nifti"}}, "wholebody.sets.site.scans.nifti.patient: null is not allowed where patients"),
    ):
        with_set(table_of("patient"), **changes)
        with pytest.raises(UserError) as caught:
            sets_of(LINE)
        assert said in str(caught.value)
