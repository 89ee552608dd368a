"""An index holds the vector of each accepted scan beside its own pseudonyms and what is known of that very scan."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from released import write_release

from components.bundle.manifest import write_manifest
from components.ct.store import StoredVolume, Volume, write_volume
from components.errors import UserError
from components.tables import write_table
from flows.index import run
from serving.embedding import open_release
from serving.nearest import Index

SPL = np.array([[0.0, 0, -1, 60], [0, -1, 0, 60], [3, 0, 0, 0], [0, 0, 0, 1]])


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release, and a store of four scans of three patients: one for evaluation, one rejected."""
    monkeypatch.chdir(tmp_path)
    write_release(tmp_path / "releases" / "wholebody")
    write_manifest(tmp_path / "releases" / "wholebody", "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    rows = []
    for number, (role, accepted) in enumerate([("pretrain", True), ("evaluation", True), ("pretrain", False),
                                               ("pretrain", True)]):  # fmt: skip
        hu = np.random.default_rng(number).normal(40 + 200 * number, 60, (20, 70, 70)).astype(np.int16)
        path = Path("data") / "wholebody" / f"v{number}.b2nd"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, Volume(hu, SPL), {})
        status = "accepted" if accepted else "rejected"
        rows.append({"series": f"s{3 - number}", "patient": f"p{number % 3}", "collection": "site", "role": role,
                     "accepted": accepted, "status": status, "volume": path.as_posix()})  # fmt: skip
    curate = tmp_path / "data" / "wholebody" / "curate"
    curate.mkdir()
    write_table(curate / "curated.parquet", pd.DataFrame(rows))
    known = [("s3", "organ", "liver", True), ("s3", "organ", "aorta", True), ("s2", "lesion", "lesion_lung", True),
             ("s2", "organ", "liver", False)]  # fmt: skip
    write_table(curate / "annotations.parquet", pd.DataFrame(known, columns=["series", "kind", "structure", "present"]))
    return tmp_path


def made(role: str = "all") -> Index:
    run(argparse.Namespace(line="wholebody", out=Path("cases.safetensors"), role=role))
    return Index.read(Path("cases.safetensors"))


def test_each_case_has_its_own_vector_patient_and_labels(line: Path) -> None:
    index, bundle = made(), open_release(Path("releases/wholebody"))
    assert [(case.case, case.patient) for case in index.cases] == [("s0", "p0"), ("s2", "p1"), ("s3", "p0")]
    assert [case.labels for case in index.cases] == [
        {}, {"lesion": ["lesion_lung"]}, {"organ": ["aorta", "liver"]},
    ]  # fmt: skip
    for case, vector in zip(index.cases, index.vectors, strict=True):
        volume = StoredVolume(Path(f"data/wholebody/v{3 - int(case.case[1])}.b2nd"))
        np.testing.assert_array_equal(vector, bundle.embedder.embed_volume(volume))
    assert len({vector.tobytes() for vector in index.vectors}) == 3
    assert index.release == bundle.manifest.digest


def test_a_role_is_held_to(line: Path) -> None:
    assert [case.case for case in made("evaluation").cases] == ["s2"]
    assert [case.case for case in made("pretrain").cases] == ["s0", "s3"]


def test_a_volume_that_is_gone_is_one_line_and_no_index_is_left(line: Path) -> None:
    Path("data/wholebody/v1.b2nd").unlink()
    with pytest.raises(UserError, match=r"^volume v1.b2nd: not in the store; run `dvc checkout` or `dvc pull`$"):
        made()
    assert not Path("cases.safetensors").exists()
