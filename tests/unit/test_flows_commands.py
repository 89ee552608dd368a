"""Commands with files of the user's: nothing of theirs is lost, and a mistake is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from released import ROOT

from components.tables import write_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout with a scan, and a folder that matters to somebody."""
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    hu = np.full((40, 40, 20), -1000, dtype=np.int16)
    hu[8:32, 8:32] = 40
    nib.save(nib.Nifti1Image(hu, np.diag([2.0, 2.0, 4.0, 1.0])), tmp_path / "scan.nii.gz")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "kept.txt").write_text("kept")
    (tmp_path / "junk.parquet").write_text("junk")
    write_table(tmp_path / "other.parquet", pd.DataFrame({"series": ["s"]}))
    return tmp_path


def ctfoundry(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("volume show scan.nii.gz --output results", "results: a folder; allowed: the name of a file"),
        ("volume show scan.nii.gz --output .", ".: a folder; allowed"),
        ("volume show scan.nii.gz --output scan.nii.gz", "scan.nii.gz: is what is read, and would be replaced"),
        ("volume show scan.nii.gz --segment lung", "--segment lung: of which labels? give them with --mask"),
        ("volume export scan.nii.gz results", "results: a folder; allowed"),
        ("profile --trace results", "results: a folder; allowed"),
        ("serve --ssl-certfile scan.nii.gz", "--ssl-certfile scan.nii.gz: no certificate in it (PEM)"),
        ("serve --ssl-ca-certs scan.nii.gz", "--ssl-ca-certs scan.nii.gz is not allowed without --ssl-certfile"),
        ("cohort diff junk.parquet other.parquet", "cohort 'junk.parquet': not a cohort.parquet"),
        ("cohort diff other.parquet other.parquet", "cohort 'other.parquet': not a cohort.parquet"),
    ],
)
def test_a_mistake_is_one_line_and_costs_nothing(folder: Path, arguments: str, said: str) -> None:
    scan = (folder / "scan.nii.gz").read_bytes()
    done = ctfoundry(folder, *arguments.split())
    assert done.returncode == 1
    (line,) = (text for text in done.stderr.splitlines() if not text.startswith("warning: "))
    assert line.startswith(f"ctfoundry: {said}")
    assert (folder / "results" / "kept.txt").read_text() == "kept"
    assert (folder / "scan.nii.gz").read_bytes() == scan


def test_a_picture_goes_where_it_is_asked_to(folder: Path) -> None:
    done = ctfoundry(folder, "volume", "show", "scan.nii.gz", "--output", "results/scan.png")
    assert (done.returncode, done.stdout) == (0, "results/scan.png\n"), done.stderr
    assert (folder / "results" / "scan.png").read_bytes().startswith(b"\x89PNG")
