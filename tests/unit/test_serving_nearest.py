"""An index gives the nearest cases of other patients, and is refused where it is none or of another release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from components.errors import UserError
from serving.asking import INDEX_VARIABLE
from serving.nearest import Index, Indexed, account_of, labels_of

RELEASE = "ab" * 32


def index(patients: list[str], dim: int = 8) -> Index:
    rng = np.random.default_rng(3)
    cases = tuple(Indexed(f"s{n}", patient, "site", {"finding": ["ich"]}) for n, patient in enumerate(patients))
    return Index(RELEASE, cases, rng.normal(size=(len(patients), dim)).astype(np.float32))


def test_the_nearest_are_those_of_the_largest_cosine_and_no_case_of_the_patient() -> None:
    made = index(["p1", "p2", "p1", "p3", "p2", "p4"])
    vector = 5 * made.vectors[2] + 0.01
    cosine = made.vectors @ vector / np.linalg.norm(made.vectors, axis=1) / np.linalg.norm(vector)
    found, left_out = made.nearest(vector, "", 4)
    assert [one["case"] for one in found] == [f"s{n}" for n in np.argsort(-cosine)[:4]]
    assert [one["similarity"] for one in found] == pytest.approx(np.sort(cosine)[::-1][:4].tolist(), abs=1e-5)
    assert (found[0]["case"], left_out) == ("s2", 0)
    others, left_out = made.nearest(vector, "p1", 10)
    assert left_out == 2
    assert {one["patient"] for one in others} == {"p2", "p3", "p4"}
    assert len(others) == 4, "all there are"
    assert others[0]["labels"] == {"finding": ["ich"]}


def test_an_index_comes_back_as_it_was_written_in_equal_bytes(tmp_path: Path) -> None:
    made = index(["p1", "p2"])
    for name in ("a", "b"):
        made.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = Index.read(tmp_path / "a")
    assert (read.release, read.cases) == (made.release, made.cases)
    np.testing.assert_array_equal(read.vectors, made.vectors)
    assert len(read.digest) == 64
    assert account_of(read) == {"digest": read.digest, "cases": 2, "patients": 2}


def test_one_of_another_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Index.from_environment(RELEASE) is None
    index(["p1"]).write(tmp_path / "cases.safetensors")
    monkeypatch.setenv(INDEX_VARIABLE, str(tmp_path / "cases.safetensors"))
    found = Index.from_environment(RELEASE)
    assert found is not None
    with pytest.raises(UserError, match=r"^CTFOUNDRY_INDEX: 'cases.safetensors' is of release abababababab, and this"):
        Index.from_environment("cd" * 32)


@pytest.mark.parametrize("how", ["text", "cut", "no header", "nan", "another number", "folder", "keys", "no list"])
def test_what_is_no_index_is_one_line(how: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.safetensors"
    made = index(["p1", "p2"])
    made.write(path)
    header: dict[str, Any] = {"vectors": made.vectors}
    if how == "text":
        path.write_text("hello")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    elif how == "no header":
        safetensors.numpy.save_file(header, path)
    elif how == "nan":
        Index(RELEASE, made.cases, np.full_like(made.vectors, np.nan)).write(path)
    elif how == "another number":
        Index(RELEASE, made.cases[:1], made.vectors).write(path)
    elif how == "keys":
        path.write_bytes(path.read_bytes().replace(b"patient", b"Patient"))
    elif how == "no list":
        safetensors.numpy.save_file(header, path, {"ctfoundry": "[1]"})
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(UserError, match=r"^index 'cases.safetensors': [^\n]*$"):
        Index.read(path)


def test_labels_are_names_by_kind_each_once() -> None:
    assert labels_of([("organ", "liver"), ("finding", "ich"), ("organ", "aorta"), ("organ", "liver")]) == {
        "finding": ["ich"], "organ": ["aorta", "liver"],
    }  # fmt: skip
    assert labels_of([]) == {}
