"""Labelled sets beside each other and beside the line's own scans: what became of a file, and where it lies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.cohort.config import CohortConfig
from components.cohort.stage import make_cohort
from components.errors import UserError
from components.settings import load_stage, read_yaml
from components.sources.config import AcquireConfig
from components.sources.locate import Located, locate
from components.sources.roots import record_root
from components.sources.series import jobs_of, ready
from components.sources.sets import sets_of, sources_of
from components.sources.tree import MAPS, has_map, resolve, tree_digest
from components.tables import read_table
from flows.parameters import pin, written, yaml_editor
from tests.unit.small_pacs import as_file, make_series
from tests.unit.small_sets import LINE, PATIENTS, grow_tree, table_of, with_set

pytestmark = pytest.mark.usefixtures("secret")


@pytest.fixture
def checkout(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(project / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    grow_tree()
    return tmp_path


def lines_source(**changes: Any) -> None:
    """Pin the tree as the line's own source, too."""
    record_root("dicom", Path("tree"), LINE)
    pin(LINE, "cohort", {"source": "dicom", "source_digest": tree_digest(Path("tree")), **changes})


def as_stage() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cohort and files, made where `dvc repro` makes them."""
    folder = Path("data") / LINE / "cohort"
    found = make_cohort(LINE, load_stage(CohortConfig, LINE, "cohort"), 1, frozenset(), folder, sets_of(LINE))
    return found, read_table(folder / "files.parquet")


def test_a_file_says_which_set_brings_its_scan_in(checkout: Path) -> None:
    """Three sources are one tree: the sets name the scans 0 to 2, and 2 and 3."""
    scans = {"source": "dicom", "source_digest": tree_digest(Path("tree")), "paths": "shown"}
    for name, rows in (("site", slice(3)), ("other", slice(2, 4))):
        with_set(table_of("file").iloc[rows], "file", name, scans=scans, role="external")
    lines_source(paths="shown")
    found, files = as_stage()
    status = files.assign(scan=files["location"].str[4].astype(int)).groupby(["set", "scan"])["status"].unique()
    assert {of: [",".join(status[of, scan]) for scan in range(PATIENTS + 1)] for of in ("site", "other", "")} == {
        "site": ["image", "image", "image", "no_label", "no_label", "no_label", "no_label"],
        "other": ["set:site", "set:site", "set:site", "image", "no_label", "no_label", "no_label"],
        "": ["set:site", "set:site", "set:site", "set:other", "image", "image", "image"],
    }
    assert files["series"].ne("").sum() == 3 * found["source"].eq("dicom").sum() == 3 * (PATIENTS + 1)
    assert locate(LINE, "scan2/0.dcm") == Located(
        [str(checkout / "tree/scan2/0.dcm")],
        ["set other: files of its scans: set:site 1", "set site: files of its scans: image 1",
         "set other: rows of its table that name it: 1", "set site: rows of its table that name it: 1"],
    )  # fmt: skip


def test_a_file_of_a_set_is_found_again_wherever_its_scan_went(checkout: Path) -> None:
    for name, rows in (("site", slice(3)), ("other", slice(2, 4))):
        with_set(table_of("series").iloc[rows], "series", name, role="external")
    lines_source()
    found, files = as_stage()
    places = {of: LINE + (f"-{of}" if of else "") for of in ("", "site", "other")}
    for row in files.to_dict("records"):
        (path,) = locate(LINE, row["location"]).paths
        assert path == f"{checkout / 'tree'}/{resolve('dicom', places[row['set']], [row['location']])[0]}"
    for row in found[found["source"] == "dicom"].to_dict("records"):
        of_series = locate(LINE, row["series"])
        assert len(of_series.paths) == 3
        assert any(f"set {row['set']}: " in told for told in of_series.remarks) == (row["set"] != "")
    elsewhere = files[files["status"] == "set:site"].iloc[0]
    assert locate(LINE, elsewhere["location"]).remarks == (
        [f"set {elsewhere['set']}: files of its scans: set:site 1"] if elsewhere["set"] else []
    )
    shutil.rmtree(MAPS)
    jobs = jobs_of(
        LINE, Path("data") / LINE / "cohort", 0, sources_of(LINE), load_stage(AcquireConfig, LINE, "acquire")
    )
    with ready(jobs, jobs):
        assert all(has_map("dicom", place) for place in places.values()), "once, and not by every worker"
    editor = yaml_editor()
    content = editor.load(Path("params.yaml").read_text())
    del content[LINE]["sets"]["other"]
    Path("params.yaml").write_text(written(editor, content))
    with pytest.raises(UserError, match=r"of the scans of set 'other', which wholebody.sets no longer has; `dvc repro"):
        locate(LINE, files.loc[files["set"] == "other", "location"].iloc[0])


def test_another_trees_file_of_the_same_name_is_nobodys_label(checkout: Path) -> None:
    """Both trees have a folder scan0, of different patients; tables show names."""
    for n, image in enumerate(make_series(50, side=64)):
        path = Path("elsewhere/scan0") / f"{n}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_file(image))
    scans = {"source": "dicom", "source_digest": tree_digest(Path("tree")), "paths": "shown"}
    with_set(table_of("file"), "file", scans=scans)
    record_root("dicom", Path("elsewhere"), LINE)
    pin(LINE, "cohort", {"source": "dicom", "source_digest": tree_digest(Path("elsewhere")), "paths": "shown"})
    found, _ = as_stage()
    assert found.loc[(found["source"] == "dicom") & (found["set"] == ""), "role"].tolist() == ["pretrain"]


def test_scans_say_what_differs_from_the_lines_source(checkout: Path) -> None:
    """Also within a block; collections that the line keeps from pretraining are what a set may be made of."""
    with_set(table_of("patient"), scans={"source": "idc", "idc": {"collections": ["rider_lung_ct"]}})
    idc, of_line = sources_of(LINE)["site"].idc, read_yaml()[LINE]["cohort"]["idc"]
    assert idc.collections == ("rider_lung_ct",)
    assert idc.query == of_line["query"]
    assert "rider_lung_ct" in of_line["evaluation_collections"]
    assert idc.evaluation_collections == ()
