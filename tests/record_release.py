"""Keep a release for ever: ``python -m tests.record_release --line <line>`` makes a small one and records its answers.

The release is made by the whole graph on a few phantoms, with an encoder small enough for git; ``--release FOLDER``
takes one that is there instead. See ``tests/assets/bundles/README.md``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS / room) for room in ("integration/serving", "integration", ".")]  # as pytest has it

from checkout import Checkout, keep, one_shard  # noqa: E402
from pinned_scans import content  # noqa: E402
from recorded import ASSETS, BUNDLE, INDEX, KEY, serving, write_answers  # noqa: E402
from team_keys import public_pem  # noqa: E402

from components.bundle.manifest import read_manifest, verify_bundle  # noqa: E402
from components.bundle.signing import sign_release  # noqa: E402
from serving.nearest import Index, Indexed  # noqa: E402

PAGE = "<!doctype html>\n<title>report</title>\n<p>The pictures of this report were left out: it is kept in git.</p>\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.record_release", description=__doc__)
    parser.add_argument("--line", required=True, choices=list(SMALLER), help="its release is kept")
    parser.add_argument("--release", type=Path, help="a release folder of that line, of at most 0.5 MB")
    arguments = parser.parse_args()
    version = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]["version"]
    asset = ASSETS / version / arguments.line
    if asset.exists():
        sys.exit(f"{asset}: is there; what was recorded is not recorded again")
    with tempfile.TemporaryDirectory(prefix="ctfoundry-record-") as scratch:
        release = arguments.release or small_release(arguments.line, Path(scratch) / "checkout")
        made = Path(scratch) / "asset"
        record(release, made, Path(scratch))
        shutil.copytree(made, asset)
    size = sum(path.stat().st_size for path in asset.rglob("*") if path.is_file())
    print(f"{asset}: release {read_manifest(asset / BUNDLE).digest[:12]}, {size / 1000:.0f} kB; commit it")


def small_release(line: str, folder: Path) -> Path:
    """A release by every stage of the graph; only the report's pictures, which nothing reads, are left out of it."""
    folder.mkdir(parents=True)

    def smaller(params: dict[str, Any]) -> None:
        one_shard(params)
        for other in [name for name in params["lines"] if name != line]:
            del params[other]
        params["lines"] = [line]
        SMALLER[line](params)
        params["tasks"] = {name: of for name, of in params["tasks"].items() if of["line"] == line}

    checkout = Checkout(folder, smaller)
    report = folder / "data" / line / "evaluate" / "report.html"
    _run(checkout, f"dvc repro champion@{line} drift@{line}")
    report.unlink()  # which may be a link into DVC's cache
    report.write_text(PAGE)
    _run(checkout, f"python -m components.bundle --line {line}")
    return folder / "releases" / line


def _run(checkout: Checkout, command: str) -> None:
    done = checkout.run(*command.split(), timeout=3600)
    if done.returncode != 0:
        raise RuntimeError(f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def _wholebody(params: dict[str, Any]) -> None:
    line = params["wholebody"]
    keep(params, "wholebody", "organs", "organs_segmented")
    line["cohort"]["phantom"].update(evaluation_patients=12, retest_patients=0)
    line["pretrain"]["encoder"].update(init_filters=4, blocks_down=[1, 1, 1])
    line["tasks"]["organs"]["few_shot"] = None
    line["tasks"]["organs_segmented"]["scans"] = [3]
    line["tasks"]["organs_segmented"]["decoder"].update(width=16, steps=300, voxels=6000)


def _head(params: dict[str, Any]) -> None:
    line = params["head"]
    keep(params, "head", "findings")
    line["sets"] = {}
    line["cohort"]["phantom"].update(evaluation_patients=16, retest_patients=0)
    line["pretrain"]["encoder"].update(dim=24, depth=1, heads=2, patch_vox=8)
    line["gate"].update(floors=[], champion=[])
    for name in ("attentive", "fine_tune", "external"):
        del line["tasks"]["findings"][name]
    line["tasks"]["findings"]["few_shot"] = None


SMALLER = {"wholebody": _wholebody, "head": _head}


def record(release: Path, asset: Path, scratch: Path) -> None:
    """Fill an asset's folder with a release, a signature of it, an index and its answers."""
    verify_bundle(release)
    shutil.copytree(release, asset / BUNDLE)
    key = ec.generate_private_key(ec.SECP256R1())  # nobody keeps it: what it signed is all that it will
    (asset / KEY).write_bytes(public_pem(key))
    sign_release(asset / BUNDLE, key)
    for number, index in enumerate((None, asset / INDEX)):
        home = scratch / f"bentoml{number}"
        home.mkdir()
        with serving(asset, home) as url:
            if index is None:
                _indexed(asset, url).write(asset / INDEX)
            else:
                write_answers(asset, url)


def _indexed(asset: Path, url: str) -> Index:
    """The vectors of three scans as cases, two of them of one patient."""
    cases, vectors = [], []
    for number, name in enumerate(("trunk.nii", "other.nii", "third.nii")):
        answer = httpx.post(f"{url}/embed", content=content(name), timeout=300)
        answer.raise_for_status()
        vectors.append(answer.json()["embedding"])
        patient = f"p{number % 2:016x}"
        cases.append(Indexed(f"s{number:016x}", patient, "phantoms", {"organ": ["liver"][:number]}))
    return Index(read_manifest(asset / BUNDLE).digest, tuple(cases), np.array(vectors, dtype=np.float32))


if __name__ == "__main__":
    main()
