"""Under load, every route of every release answers as the code offline does: bytes equal, numbers to 1e-5.

Releases are the tests' own, which answers on all routes, and those that lie in ``releases``, or in the folder that
``CTFOUNDRY_RELEASES`` names.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from answering import offline, write_answering, write_index
from client import ct_slice, zipped
from conftest import running
from released import ROOT

from components.ct.store import Volume
from components.errors import UserError
from serving.asking import INDEX_VARIABLE
from serving.embedding import ServedBundle, open_release, read_scan
from serving.limits import Limits
from serving.nearest import Index

OURS = "the tests'"
FOLDER = Path(os.environ.get("CTFOUNDRY_RELEASES") or ROOT / "releases")
RELEASES = sorted(path.parent.name for path in FOLDER.glob("*/manifest.json"))
CLIENTS, AT_ONCE, TIMES = 6, 2, 2
TOLERANCE = 1e-5


@pytest.fixture(params=[OURS, *RELEASES])
def folder(request: pytest.FixtureRequest, bundle: Path, tmp_path: Path) -> Path:
    if request.param == OURS:
        return write_answering(bundle, tmp_path / "wholebody")
    return FOLDER / str(request.param)


def slice_of(number: int, series: str) -> bytes:
    """One of a series that DICOM objects can refer to."""
    return ct_slice(number, series, FrameOfReferenceUID="1.2.5")


def scans(line: str, folder: Path) -> tuple[bytes, bytes]:
    """Two scans of what the line is for."""
    if line == OURS:
        return tuple(zipped({str(n): slice_of(n, series) for n in range(26)}) for series in ("1.2.3", "1.2.9"))  # type: ignore[return-value]
    anatomy = "head" if line == "head" else "trunk"
    command = [sys.executable, "-m", "components.sources.phantom", "--out", str(folder), "--patients", "2"]
    subprocess.run([*command, "--anatomy", anatomy], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    first, second = sorted(folder.iterdir())
    return tuple(zipped({p.name: p.read_bytes() for p in sorted(of.iterdir())}) for of in (first, second))  # type: ignore[return-value]


def queries(release: ServedBundle, scan: Path) -> list[str]:
    """A request for each route and each form, also of those that this release refuses."""
    volume = read_scan(scan, release, Limits()).volume
    at = "point_mm=" + ",".join(f"{mm:.1f}" for mm in middle_of(volume))
    asked = [
        "embed",
        "classify",
        "classify?form=dicom",
        f"classify?{at}",
        "preview",
        "retrieve?nearest=2",
        f"locate?{at}",
    ]
    for part in release.segmenters or ["none"]:
        asked += [f"segment?head={part}&form={form}" for form in ("json", "nifti", "dicom")]
    for part in list(release.heads)[:3]:
        sees = release.heads[part].description.sees
        point = f"&{at}" if sees == "point" else ""
        asked += [f"saliency?head={part}&blocks=2{point}&form={form}" for form in ("json", "nifti")]
        if (sees, release.embedder.config.input.sees) != ("scan", "crop"):
            asked.append(f"saliency?head={part}{point}&way=gradients")
    return asked


def middle_of(volume: Volume) -> list[float]:
    """A place in the patient, RAS mm: the voxel of the body that is nearest to the middle of the volume."""
    body = np.argwhere(volume.hu > -300)
    nearest = body[np.abs(body - np.array(volume.hu.shape) / 2).sum(axis=1).argmin()]
    return [float(mm) for mm in (volume.affine @ [*nearest, 1])[:3]]


def alike(found: Any, expected: Any) -> bool:
    """Numbers to the tolerance, all else equal."""
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(alike(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    if isinstance(expected, float):
        return bool(abs(found - expected) <= TOLERANCE)
    return bool(found == expected)


def test_every_answer_under_load_is_the_offline_one(
    folder: Path, request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    release, line = open_release(folder), str(request.node.callspec.params["folder"])
    index = Index.read(write_index(release, tmp_path / "cases.safetensors"))
    contents = scans(line, tmp_path / "phantoms")
    paths = [tmp_path / "scan", tmp_path / "other"]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    expected: dict[str, dict[str, Any] | bytes | str] = {}
    for query in queries(release, paths[0]):
        try:
            answer = offline(query, *paths, release, index)  # type: ignore[call-arg,arg-type]
            expected[query] = answer if isinstance(answer, bytes) else json.loads(json.dumps(answer))
        except UserError as error:
            expected[query] = str(error)
    variables = {INDEX_VARIABLE: str(tmp_path / "cases.safetensors"), "CTFOUNDRY_CONCURRENCY": str(AT_ONCE)}
    with running(folder, tmp_path_factory.mktemp("bentoml"), **variables) as (url, _):

        def ask(query: str) -> httpx.Response:
            fields = {"scan": ("a", contents[0]), "other": ("b", contents[1])}
            body: dict[str, Any] = {"files": fields} if query.startswith("locate") else {"content": contents[0]}
            return httpx.post(f"{url}/{query}", timeout=300, **body)

        asked = [query for query in expected for _ in range(TIMES)]
        random.Random(7).shuffle(asked)
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(ask, asked))
    refused = 0
    for query, answer in zip(asked, answers, strict=True):
        wanted = expected[query]
        if isinstance(wanted, str):
            assert 400 <= answer.status_code < 500, query
            assert answer.json() == {"error": wanted}
            refused += 1
        else:
            assert answer.status_code == 200, (query, answer.text)
            same = answer.content == wanted if isinstance(wanted, bytes) else alike(answer.json(), wanted)
            assert same, f"{query} is not as offline"
    print(f"{line}: {len(answers)} answers of {len(expected)} kinds, {refused} refused as offline")
    assert refused < len(answers) / 2
    if line == OURS:
        assert refused == 0
