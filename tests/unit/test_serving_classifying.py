"""Heads answer for the vector that the embedding route gives, and say what they cannot answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from released import write_release

from components.bundle.manifest import write_manifest
from components.ct.store import Volume
from components.files import sha256_file
from components.models.heads import Head, HeadDescription, Linear
from components.settings import parse
from serving.asking import form_of, point_of, require_answer, segmenter_of
from serving.classifying import answer_of, classify_file, require_inside
from serving.embedding import ServedBundle, open_release, read_scan, volume_vector
from serving.limits import Limits
from serving.sniff import InputError
from tests.unit.test_serving_embedding import body

RATE = {"value": 0.8, "low": 0.7, "high": 0.9}


def head(folder: Path, part: str, sees: str, threshold: float | None = 0.5, dim: int = 16) -> Head:
    """A head of two classes with made-up weights, written into a release."""
    content: dict[str, Any] = {
        "format": 1, "kind": "classify", "task": part.split("/")[0], "part": part, "classes": ["absent", "present"],
        "positive": "present", "sees": sees, "dim": dim, "encoder": sha256_file(folder / "encoder.safetensors"),
        "temperature": 2.0, "priors": [0.7, 0.3], "figures": {"linear_auc": RATE}, "counts": {},
        "patients": {"train": 1, "test": 1}, "limits": ["Of a test."],
        "operating_point": threshold and {"wanted_specificity": 0.9, "threshold": threshold, "sensitivity": RATE,
                                          "specificity": RATE},
    }  # fmt: skip
    rng = np.random.default_rng(len(part))
    linear = Linear(np.zeros(dim), np.ones(dim), rng.normal(size=(2, dim)), np.zeros(2))
    made = Head(parse(HeadDescription, content, "t"), linear)
    made.write(folder / "heads" / part)
    return made


def release(folder: Path, **heads: str) -> ServedBundle:
    write_release(folder)
    for part, sees in heads.items():
        head(folder, part.replace("__", "/"), sees)
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    return open_release(folder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ServedBundle:
    return release(tmp_path_factory.mktemp("r") / "wholebody", findings__ich="scan", organs="point")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return body(tmp_path_factory.mktemp("s") / "trunk.nii", (170.0, 110.0), 2.0)


def test_a_head_answers_for_the_very_vector_and_one_that_sees_a_point_says_so(bundle: ServedBundle, scan: Path) -> None:
    found = classify_file(scan, bundle)
    assert list(found["answers"]) == ["findings/ich"]
    assert "point_mm=R,A,S" in found["not_answered"]["organs"]
    vector = volume_vector(read_scan(scan, bundle, Limits()), bundle)
    answer = found["answers"]["findings/ich"]
    expected = bundle.heads["findings/ich"].probabilities(vector[None])[0]
    assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=2e-6)
    assert answer["operating_point"]["sensitivity"] == RATE
    assert answer["auc"] == RATE
    assert answer["limits"] == ["Of a test."]
    assert found["model"]["digest"] == bundle.manifest.digest
    assert found["found"]["kind"] == "nifti"


def test_at_a_point_both_kinds_of_head_answer(bundle: ServedBundle, scan: Path) -> None:
    image: Any = nib.load(scan)
    centre = image.affine @ [*(n / 2 for n in image.shape), 1]
    point = (float(centre[0]), float(centre[1]), float(centre[2]))
    found = classify_file(scan, bundle, point)
    assert sorted(found["answers"]) == ["findings/ich", "organs"]
    assert found["not_answered"] == {}
    volume = read_scan(scan, bundle, Limits()).volume
    expected = bundle.heads["organs"].probabilities(bundle.embedder.embed_points(volume, [point]))[0]
    assert list(found["answers"]["organs"]["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(InputError, match=r"point_mm 5000, 0, 0 is not in the scan, which spans .* mm$"):
        classify_file(scan, bundle, (5000.0, 0.0, 0.0))
    corner = (float(image.affine[0, 3]), float(image.affine[1, 3]), float(image.affine[2, 3]))
    with pytest.raises(InputError, match=r": 0% of what is seen there is body, the rest is air; at least 10%$"):
        classify_file(scan, bundle, corner)


def test_the_extent_that_is_told_is_that_of_all_corners() -> None:
    affine = np.eye(4)
    turn = np.radians(30)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    volume = Volume(np.zeros((10, 20, 30), np.int16), affine)
    corners = np.array([affine[:3, :3] @ [x, y, z] for x in (-0.5, 9.5) for y in (-0.5, 19.5) for z in (-0.5, 29.5)])
    extent = ", ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(corners.min(0), corners.max(0), strict=True))
    with pytest.raises(InputError, match=rf"which spans {extent} mm$"):
        require_inside(volume, (500.0, 0.0, 0.0))


def test_a_decision_is_that_of_the_threshold_and_without_one_that_of_the_likeliest_class(tmp_path: Path) -> None:
    write_release(tmp_path)
    vector = np.random.default_rng(0).normal(size=16).astype(np.float32)
    present = float(head(tmp_path, "t", "scan").probabilities(vector[None])[0, 1])
    at, above = (head(tmp_path, "t", "scan", round(present, 6) + more) for more in (0.0, 1e-6))
    assert answer_of(at, vector)["answer"] == "present", "at least the threshold"
    assert answer_of(above, vector)["answer"] == "absent"
    without = answer_of(head(tmp_path, "t", "scan", None), vector)
    assert without["operating_point"] is None
    assert without["answer"] == ("present" if present > 0.5 else "absent")


@pytest.mark.parametrize(
    "text", ["", "1,2", "1,2,3,4", "a,b,c", "1,2,nan", "inf,0,0", "1;2;3", "1_0,2,3", "1,2,3\n", "١,2,3", "0x1,2,3"]
)
def test_what_is_no_point_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"^point_mm '.*' is not allowed: point_mm=R,A,S, three numbers") as raised:
        point_of(text)
    assert raised.value.status == 400


def test_a_point_is_three_numbers_in_mm() -> None:
    assert point_of(None) is None
    assert point_of("12.5,-30, 88") == (12.5, -30.0, 88.0)


def test_a_release_that_cannot_answer_says_so_before_it_reads_anything() -> None:
    with pytest.raises(InputError, match=r"this release has no heads: it gives vectors \(POST /embed\)") as none:
        require_answer({}, None)
    with pytest.raises(InputError, match=r"the heads of this release \(lesions, organs\) see a point: send ") as points:
        require_answer({"lesions": "point", "organs": "point"}, None)
    assert (none.value.status, points.value.status) == (404, 409)
    require_answer({"organs": "point"}, (0.0, 0.0, 0.0))
    require_answer({"organs": "point", "findings/ich": "scan"}, None)


def test_which_head_segments_and_in_which_form_is_known_before_the_file() -> None:
    assert segmenter_of(["organs"], None) == segmenter_of(["lesions", "organs"], "organs") == "organs"
    assert (form_of(None), form_of("dicom")) == ("json", "dicom")
    for asked, parts, status, says in (
        (None, [], 404, "this release has no head that segments"),
        ("organs", [], 404, "this release has no head that segments"),
        (None, ["a", "b"], 400, "several heads segment: head= one of a, b"),
        ("c" * 99, ["a", "b"], 400, f"head '{'c' * 60}' is not allowed: head= one of a, b"),
    ):
        with pytest.raises(InputError, match=says) as refused:
            segmenter_of(parts, asked)
        assert refused.value.status == status
    with pytest.raises(InputError, match="form 'png' is not allowed: json, nifti, dicom") as refused:
        form_of("png")
    assert refused.value.status == 400
