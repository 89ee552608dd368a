"""What a released bundle answered when it was released, and how today's service is held to it.

An asset is a folder ``tests/assets/bundles/<version>/<line>``: the release (``bundle``, with ``bundle.sig`` and the
public key ``team.pub`` beside it), an index of it, and ``answers.json`` with the files that answers are.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
from conftest import running
from pinned_scans import content, digest
from released import ROOT

ASSETS = ROOT / "tests" / "assets" / "bundles"
BUNDLE, INDEX, ANSWERS, KEY = "bundle", "index.safetensors", "answers.json", "team.pub"
TOLERANCE = 1e-5  # of a number beside its size, or beside 1 where it is smaller
WORDS = ("limits", "warnings")  # the service's sentences, which may be put better; of warnings the number counts
Asked = dict[str, Any]


def assets() -> list[Path]:
    """Every folder of an asset, by version and line."""
    return sorted(path.parent for path in ASSETS.glob(f"*/*/{ANSWERS}"))


@contextmanager
def serving(asset: Path, home: Path) -> Iterator[str]:
    """The address of today's service with the release of an asset, which must be signed as it was."""
    variables = {
        # the same last bits on every processor with AVX2: the release may have been recorded on another
        "CTFOUNDRY_REPRODUCIBLE": "portable",
        "CTFOUNDRY_PSEUDONYM_KEY": "the key of recorded answers",
        "CTFOUNDRY_TRUSTED_KEYS": str(asset / KEY),
        "CTFOUNDRY_REQUIRE_SIGNATURE": "1",
    }
    if (asset / INDEX).is_file():
        variables["CTFOUNDRY_INDEX"] = str(asset / INDEX)
    with running(asset / BUNDLE, home, **variables) as (url, _):
        yield url


def ask(url: str, asked: Asked) -> httpx.Response:
    """One request, as it stands in ``answers.json``: ``path``, ``scans`` (file field to name) and ``query``."""
    if not asked["scans"]:
        return httpx.get(f"{url}{asked['path']}", timeout=60)
    files = {field: (name, content(name)) for field, name in asked["scans"].items()}
    return httpx.post(f"{url}{asked['path']}", params=asked["query"], files=files, timeout=300)


def questions(model: Mapping[str, Any]) -> list[Asked]:
    """What a release is asked when it is recorded: every route, every head, as ``GET /model`` tells of it."""
    crops = model["sees"] == "crop"
    name, at = ("trunk.nii", {"point_mm": "10,15,5"}) if crops else ("head.nii", {})
    scan = {"file": name}
    sees_points = "point" in model["heads"].values()
    asked = [
        _question("/model", {}),
        _question("/embed", scan),
        _question("/embed", {"file": name.replace(".nii", ".zip")}),
        _question("/classify", scan, at if sees_points else {}),
        _question("/retrieve", {"file": name.replace(".nii", ".zip")}, {"nearest": "3"}),
        _question("/preview", scan),
    ]
    for part, sees in list(model["heads"].items())[:2]:
        query = {"head": part, "blocks": "3", **(at if sees == "point" else {})}
        asked += [_question("/saliency", scan, query), _question("/saliency", scan, {**query, "form": "nifti"})]
    for part in model["segments"]:
        asked += [_question("/segment", scan, {"head": part, "form": form}) for form in ("json", "nifti")]
    if crops:
        asked.append(_question("/locate", {"scan": name, "other": "other.nii"}, at))
    return asked


def _question(path: str, scans: Mapping[str, str], query: Mapping[str, str] | None = None) -> Asked:
    return {"path": path, "scans": dict(scans), "query": dict(query or {})}


def write_answers(asset: Path, url: str) -> None:
    """Ask everything and keep it in ``answers.json``; an answer that is a file lies beside it."""
    told = []
    for number, asked in enumerate(questions(httpx.get(f"{url}/model", timeout=60).json())):
        response = ask(url, asked)
        if response.status_code != 200:
            raise RuntimeError(f"{asked}: {response.status_code} {response.text[:300]}")
        if response.headers["content-type"].startswith("application/json"):
            told.append({**asked, "answer": response.json()})
        elif asked["path"] == "/preview":  # megabytes of the scan itself
            told.append({**asked, "sha256": voxels_sha256(response.content)})
        else:
            file = f"{number:02d}{asked['path'].replace('/', '_')}.nii.gz"
            (asset / file).write_bytes(gzip.compress(gzip.decompress(response.content), 9, mtime=0))
            told.append({**asked, "file": file})
    names = sorted({name for asked in told for name in asked["scans"].values()})
    recorded = {"scans": {name: digest(name) for name in names}, "asked": told}
    (asset / ANSWERS).write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


def voxels_sha256(content: bytes) -> str:
    """Hex SHA-256 of a NIfTI volume without its compression, of which there are several."""
    return hashlib.sha256(gzip.decompress(content)).hexdigest()


def differences(recorded: Any, found: Any, at: str = "answer") -> list[str]:
    """Where an answer is not what was recorded. What is told beside it is none: answers may grow."""
    name = at.rsplit(".", 1)[-1]
    if name in WORDS:
        same = len(found) == len(recorded) if name == "warnings" else bool(found) >= bool(recorded)
        return [] if same else [f"{at}: {found!r}, recorded {recorded!r}"]
    if isinstance(recorded, dict) and isinstance(found, dict):
        lacking = [f"{at}.{key}: is gone" for key in sorted(recorded.keys() - found.keys())]
        both = sorted(recorded.keys() & found.keys())
        return lacking + [each for key in both for each in differences(recorded[key], found[key], f"{at}.{key}")]
    if isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        pairs = enumerate(zip(recorded, found, strict=True))
        return [each for number, (one, other) in pairs for each in differences(one, other, f"{at}[{number}]")]
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (recorded, found))
    same = math.isclose(recorded, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE) if numbers else recorded == found
    return [] if same else [f"{at}: {found!r}, recorded {recorded!r}"]


def file_differences(recorded: bytes, found: bytes, path: str) -> list[str]:
    """As :func:`differences`, of NIfTI volumes: the same grid and voxels, of maps of log odds within the tolerance."""
    one, other = (nib.Nifti1Image.from_bytes(gzip.decompress(each)) for each in (recorded, found))
    if one.shape != other.shape or not np.array_equal(one.affine, other.affine):
        return [f"{path}: {other.shape} {other.affine.tolist()}, recorded {one.shape} {one.affine.tolist()}"]
    wanted, values = np.asarray(one.dataobj), np.asarray(other.dataobj)
    if wanted.dtype != values.dtype:
        return [f"{path}: {values.dtype}, recorded {wanted.dtype}"]
    far = ~np.isclose(values, wanted, rtol=TOLERANCE, atol=TOLERANCE) if wanted.dtype.kind == "f" else values != wanted
    return [f"{path}: {int(far.sum())} of {far.size} voxels differ"] if far.any() else []
