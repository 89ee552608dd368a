"""``ctfoundry embed``: the service's vector without a server; what kills its reader is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from client import nifti
from released import ROOT

from serving.embedding import embed_file, open_release


@pytest.fixture
def checkout(bundle: Path, tmp_path: Path) -> Path:
    """A folder with a release in it."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text("lines: [wholebody]\n")
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "wholebody").symlink_to(bundle)
    (tmp_path / "scan.nii.gz").write_bytes(nifti())
    return tmp_path


def embed(checkout: Path, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", "from flows.cli import main; main()", "embed", name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_the_vector_is_that_of_the_library(checkout: Path, bundle: Path) -> None:
    done = embed(checkout, "scan.nii.gz")
    assert done.returncode == 0, done.stderr
    expected = embed_file(checkout / "scan.nii.gz", open_release(bundle)).embedding
    np.testing.assert_array_equal(np.float32(json.loads(done.stdout)["embedding"]), expected)


def test_what_is_beyond_the_bounds_or_missing_is_one_line(checkout: Path) -> None:
    slow = embed(checkout, "scan.nii.gz", CTFOUNDRY_MAX_MEMORY_BYTES=str(2**16))
    assert (slow.returncode, slow.stdout) == (1, "")
    assert slow.stderr.startswith("ctfoundry: scan.nii.gz: needs more than 6.1e-05 GiB of memory")
    assert len(slow.stderr.splitlines()) == 1
    missing = embed(checkout, "other.zip")
    assert (missing.returncode, missing.stderr) == (1, "ctfoundry: file 'other.zip': no such file\n")
