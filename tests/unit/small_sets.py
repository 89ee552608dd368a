"""Labelled sets of a small tree, written into the params.yaml of the present folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from components.cohort.config import CohortConfig
from components.cohort.stage import make_cohort
from components.files import sha256_file
from components.settings import load_stage
from components.sources.roots import record_root
from components.sources.sets import sets_of
from components.sources.tree import tree_digest
from components.tables import read_table
from flows.parameters import written, yaml_editor
from tests.unit.small_pacs import as_file, make_series

LINE, PATIENTS = "wholebody", 6


def grow_tree() -> None:
    """A tree of a folder of slices for each of six patients, MRN0 to MRN5; MRN5 was scanned twice."""
    for number in range(PATIENTS + 1):
        tags = {"AccessionNumber": f"A{number}", "PatientID": f"MRN{min(number, PATIENTS - 1)}"}
        for n, image in enumerate(make_series(number, side=64, **tags)):
            path = Path("tree") / f"scan{number}" / f"{n}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_file(image))


def table_of(key: str, **columns: list[str]) -> pd.DataFrame:
    names = {
        "patient": [f"MRN{n}" for n in range(PATIENTS)],
        "study": [f"1.2.826.5.{n}" for n in range(PATIENTS)],
        "series": [f"1.2.826.6.{n}" for n in range(PATIENTS)],
        "accession": [f"A{n}" for n in range(PATIENTS)],
        "file": [f"scan{n}" for n in range(PATIENTS)],
    }
    return pd.DataFrame({"id": names[key], **columns})


def with_set(table: pd.DataFrame, key: str = "patient", name: str = "site", **changes: Any) -> None:
    """Write a set into params.yaml, its table beside it, and remember both."""
    folder = Path(f"labels_{name}")
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / "labels.csv", index=False)
    record_root(f"{name}_labels", folder, LINE)
    record_root("dicom", Path("tree"), f"{LINE}-{name}")
    block = {
        "scans": {"source": "dicom", "source_digest": tree_digest(Path("tree"))},
        "labels": {"table": "labels.csv", "digest": sha256_file(folder / "labels.csv"), "key": key, "column": "id"},
        "split": {"seed": 1, "test": 0.5},
        "role": "internal",
    } | changes
    editor = yaml_editor()
    content = editor.load(Path("params.yaml").read_text())
    content[LINE]["sets"][name] = block
    content[LINE]["cohort"]["phantom"].update(pretrain_patients=2, evaluation_patients=4, retest_patients=0)
    Path("params.yaml").write_text(written(editor, content))


def cohort(source: str = "phantom", held_out: frozenset[str] = frozenset()) -> tuple[pd.DataFrame, pd.DataFrame]:
    config = load_stage(CohortConfig, LINE, "cohort")
    if source == "dicom":
        record_root("dicom", Path("tree"), LINE)
        config = config.model_copy(update={"source": "dicom", "source_digest": tree_digest(Path("tree"))})
    found = make_cohort(LINE, config, 2, held_out, Path("cohort"), sets_of(LINE))
    return found, read_table(Path("cohort/labelled.parquet"))
