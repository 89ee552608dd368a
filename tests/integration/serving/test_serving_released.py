"""Bundles of every released version verify, load and answer as they did when they were released."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from pinned_scans import digest
from recorded import (
    ANSWERS,
    ASSETS,
    BUNDLE,
    KEY,
    ask,
    assets,
    differences,
    file_differences,
    questions,
    serving,
    voxels_sha256,
)

from components.bundle.signature import verify_release
from components.bundle.trust import trusted_keys
from components.errors import UserError


@dataclass(frozen=True)
class Kept:
    """An asset, served by today's code."""

    folder: Path
    url: str
    recorded: dict[str, Any]


@pytest.fixture(scope="module", params=assets(), ids=lambda path: path.relative_to(ASSETS).as_posix())
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    with serving(request.param, tmp_path_factory.mktemp("bentoml")) as url:
        yield Kept(request.param, url, json.loads((request.param / ANSWERS).read_text()))


def test_both_kinds_of_line_are_kept() -> None:
    assert {path.name for path in assets()} >= {"wholebody", "head"}


def test_it_verifies_and_its_signature_still_means_something(kept: Kept, tmp_path: Path) -> None:
    keys = trusted_keys(kept.folder / KEY)
    verified = verify_release(kept.folder / BUNDLE, keys)
    assert verified.key is not None
    copied = Path(shutil.copytree(kept.folder, tmp_path / "asset"))
    metrics = copied / BUNDLE / "metrics.json"
    metrics.write_text(metrics.read_text().replace("0.", "0.1", 1))
    with pytest.raises(UserError, match=r"metrics\.json"):
        verify_release(copied / BUNDLE, keys)


def test_the_scans_that_it_is_asked_about_are_those_of_then(kept: Kept) -> None:
    assert {name: digest(name) for name in kept.recorded["scans"]} == kept.recorded["scans"]


def test_it_answers_as_it_did(kept: Kept) -> None:
    wrong = []
    for asked in kept.recorded["asked"]:
        response = ask(kept.url, asked)
        at = f"{asked['path']} {asked['query']}"
        if response.status_code != 200:
            wrong.append(f"{at}: {response.status_code} {response.text}")
        elif "answer" in asked:
            wrong += [f"{at}: {each}" for each in differences(asked["answer"], response.json())]
        elif "sha256" in asked:
            wrong += [at] if voxels_sha256(response.content) != asked["sha256"] else []
        else:
            wrong += file_differences((kept.folder / asked["file"]).read_bytes(), response.content, at)
    assert wrong == []


def test_every_route_and_head_that_it_has_was_asked(kept: Kept) -> None:
    """What :func:`recorded.questions` asks today of a release as it tells of itself is among what was recorded."""
    model = next(asked["answer"] for asked in kept.recorded["asked"] if asked["path"] == "/model")
    routes = {asked["path"] for asked in kept.recorded["asked"]}
    assert routes >= {asked["path"] for asked in questions(model)}
    assert routes >= {"/embed", "/classify", "/saliency", "/retrieve", "/preview"}
    assert ("/locate" in routes, "/segment" in routes) == (model["sees"] == "crop", bool(model["segments"]))


def test_another_answer_is_noticed() -> None:
    answer = {"embedding": [0.5, -2.0], "found": {"kind": "nifti", "warnings": []}, "limits": ["Few."]}
    assert differences(answer, {**copy.deepcopy(answer), "more": 1, "limits": ["But few."]}) == []
    for change, said in (
        ({"embedding": [0.5, -2.0001]}, "embedding[1]"), ({"embedding": [0.5]}, "embedding"),
        ({"found": {"kind": "dicom", "warnings": []}}, "kind"), ({"limits": []}, "limits"),
        ({"found": {"kind": "nifti", "warnings": ["thin"]}}, "warnings"),
    ):  # fmt: skip
        (told,) = differences(answer, answer | change)
        assert said in told
    del (lacking := copy.deepcopy(answer))["found"]["kind"]  # type: ignore[attr-defined]
    assert differences(answer, lacking) == ["answer.found.kind: is gone"]


def test_another_label_map_is_noticed() -> None:
    labels = np.zeros((4, 3, 2), np.uint8)
    other = labels.copy()
    other[1, 1, 1] = 2

    def packed(values: Any, mm: float = 1.0, level: int = 9) -> bytes:
        return gzip.compress(nib.Nifti1Image(values, np.diag([mm, 1, 1, 1])).to_bytes(), level)

    assert file_differences(packed(labels), packed(labels, level=1), "labels") == []
    assert file_differences(packed(labels), packed(other), "labels") == ["labels: 1 of 24 voxels differ"]
    assert len(file_differences(packed(labels), packed(labels, mm=1.01), "labels")) == 1
    log_odds = labels.astype(np.float32)
    assert file_differences(packed(log_odds), packed(log_odds + np.float32(1e-6)), "map") == []
    assert file_differences(packed(log_odds), packed(log_odds + np.float32(1e-3)), "map") != []


def test_each_scan_that_is_answered_is_counted_in_its_bins(kept: Kept) -> None:
    def counted() -> dict[str, float]:
        text = httpx.get(f"{kept.url}/metrics", timeout=10).text
        lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("ctfoundry_scans_total{")]
        return {name: float(value) for name, _, value in lines}

    (asked, *_) = (each for each in kept.recorded["asked"] if each["path"] == "/embed")
    before = counted()
    profile = ask(kept.url, asked).json()["found"]["profile"]
    risen = {name for name, value in counted().items() if value == before[name] + 1}
    assert profile
    assert risen == {f'ctfoundry_scans_total{{bin="{label}",feature="{name}"}}' for name, label in profile.items()}
