"""The built image answers for a pinned scan just as the release's code does on this machine, or it is no image.

As MHub tests its models; but equality, not likeness, is asked for: it is the same processor.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from components.bundle.trust import KEYS_VARIABLE, REQUIRED_VARIABLE
from components.errors import UserError
from components.files import read_json, sha256_file, write_json
from flows.image import probe
from flows.image.container import UID, Ended, Mount, run_container
from serving.build import BUNDLE

PORT, SECONDS = 3000, 300
SCAN = "scan.zip"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
NO_CAPABILITIES = ["0000000000000000"]


@dataclass(frozen=True)
class Tested:
    """A self-test that passed: the pinned scan's SHA-256, what was asked, seconds until the service was ready."""

    scan: str
    asked: tuple[str, ...]
    ready_seconds: float


def pinned_scan(anatomy: str, path: Path) -> None:
    """A scan by the phantom scanner as a zip of equal bytes. ``anatomy``: ``trunk`` or ``head``."""
    with tempfile.TemporaryDirectory(prefix="ctfoundry-scan-") as folder:
        command = [sys.executable, "-m", "components.sources.phantom", "--anatomy", anatomy, "--patients", "1"]
        done = subprocess.run([*command, "--out", folder], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(f"pinned scan: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(Path(folder).glob("*/*.dcm")):
                archive.writestr(zipfile.ZipInfo(file.name, ZIP_TIME), file.read_bytes())


def self_test(root: Path, config: Mapping[str, Any], bento: Path, scan: Path, keys: Path | None) -> Tested:
    """Start an image as in production and compare its answers with those of the release here.

    Args:
        root: its root file system, mounted.
        config: OCI's image configuration.
        bento: the release's Bento, whose code answers here.
        scan: zip of one series.
        keys: folder of public keys, one of which has signed the release; None where it is unsigned.

    Raises:
        UserError: the image takes a release without keys, has rights that it does not need, or answers otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="ctfoundry-selftest-") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "in").mkdir()
        (place / "in" / SCAN).write_bytes(scan.read_bytes())
        (place / "out").mkdir()
        os.chown(place / "out", UID, UID)
        _require_refusal(run_container(root, config, _command(config), seconds=SECONDS))
        here = place / "here"
        _answer_here(bento, place / "in", here)
        (receipt,) = (read_json(path) for path in (here / "receipts").glob("*.json"))
        if receipt["status"] != "done":
            raise UserError(f"pinned scan: {receipt['status']}: {receipt['reason']}")
        expected = expected_answers(receipt)
        trusted, variables = _trust(keys)
        told = _serve(root, config, place, list(expected), trusted, variables)
        _require_production(told)
        for path, answer in expected.items():
            _require_same(path, answer, told["answers"][path])
        mounts = [Mount(place / "in", "/in"), Mount(place / "out", "/out", writable=True), *trusted]
        command = [*config["config"]["Entrypoint"], "run", "/in", "--output", "/out/answers"]
        _require_end(run_container(root, config, command, mounts, variables, SECONDS), "ctfoundry run")
        require_same_files(here, place / "out" / "answers")
    return Tested(sha256_file(scan), (*expected, "ctfoundry run"), told["ready_seconds"])


def expected_answers(receipt: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Path of a request to what must come, from the receipt of ``ctfoundry run`` for the same scan."""
    answers, outputs = receipt["answers"], receipt["outputs"]
    expected = {f"/{ask}": {"status": 200, "json": answers[ask]} for ask in ("embed", "classify") if ask in answers}
    for part, content in answers.get("segment", {}).items():
        path = f"/segment?head={quote(part, safe='')}"
        expected[path] = {"status": 200, "json": content}
        expected[f"{path}&form=nifti"] = {"status": 200, "sha256": outputs[f"segment {part}"]["sha256"]}
    return expected


def require_same_files(here: Path, there: Path) -> None:
    """Raise UserError naming the first file that two folders do not have alike."""
    names = {path.relative_to(root).as_posix() for root in (here, there) for path in root.rglob("*") if path.is_file()}
    for name in sorted(names):
        if _content(here / name) != _content(there / name):
            raise UserError(f"image: ctfoundry run: {name} is not that of the release here; it is not tagged")


def _content(path: Path) -> object:
    """Bytes of a file, of an archive those of its members: Python's patch releases write other headers round them."""
    if not path.is_file():
        return None
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _command(config: Mapping[str, Any]) -> list[str]:
    return [*config["config"]["Entrypoint"], *config["config"]["Cmd"]]


def _trust(keys: Path | None) -> tuple[list[Mount], dict[str, str]]:
    """Mounts and variables with which a release is taken."""
    if keys is None:
        return [], {REQUIRED_VARIABLE: "0", KEYS_VARIABLE: ""}
    return [Mount(keys, "/keys")], {}


def _answer_here(bento: Path, scans: Path, out: Path) -> None:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CTFOUNDRY_")}
    environment = {**ours, "PYTHONPATH": str((bento / "src").resolve()), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "serving", "run", str(scans), "--output", str(out)]
    done = subprocess.run(
        command, cwd=(bento / "src").resolve(), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise UserError(f"bundle {BUNDLE}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")


def _serve(
    root: Path,
    config: Mapping[str, Any],
    place: Path,
    paths: list[str],
    trusted: list[Mount],
    variables: Mapping[str, str],
) -> dict[str, Any]:
    healthy = config["config"]["Healthcheck"]["Test"][1:]
    plan = {"command": _command(config), "healthy": healthy, "paths": paths, "port": PORT, "scan": f"/in/{SCAN}"}
    write_json(place / "plan.json", {**plan, "seconds": SECONDS})
    mounts = [
        Mount(place / "in", "/in"),
        Mount(place / "out", "/out", writable=True),
        Mount(Path(probe.__file__), "/probe/probe.py"),
        Mount(place / "plan.json", "/probe/plan.json"),
        *trusted,
    ]
    asked = ["/usr/bin/python3", "/probe/probe.py", "/probe/plan.json", "/out/told.json"]
    _require_end(run_container(root, config, asked, mounts, variables, 2 * SECONDS), "ctfoundry serve")
    told: dict[str, Any] = read_json(place / "out" / "told.json")
    return told


def _require_refusal(ended: Ended) -> None:
    """Without keys, which nobody has mounted, the image must end with one line, and load nothing."""
    lines = [line for line in ended.said.splitlines() if line.strip()]
    if ended.status == 0 or len(lines) != 1 or not lines[0].startswith(f"ctfoundry: {KEYS_VARIABLE}"):
        raise UserError(f"image: serves without trusted keys, or says more than one line: {_last(ended)}")


def _require_end(ended: Ended, what: str) -> None:
    if ended.status != 0:
        raise UserError(f"image: {what}: {_last(ended)}; it is not tagged")


def _require_production(told: Mapping[str, Any]) -> None:
    """Raise UserError where the test itself was laxer than production, or the service does not end as it must."""
    wanted = {
        "uid": UID, "capabilities": NO_CAPABILITIES, "no_new_privileges": True, "read_only": True, "links": ["lo"],
        "healthy": 0, "ended": 0,
    }  # fmt: skip
    for name, value in wanted.items():
        if told[name] != value:
            raise UserError(f"image: {name} is {told[name]!r} in the container; wanted {value!r}")


def _require_same(path: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if found == expected:
        return
    if found["status"] != expected["status"]:
        raise UserError(f"image: {path}: answers {found['status']}: {str(found.get('json'))[:200]}; it is not tagged")
    one, other = expected.get("json", {}), found.get("json", {})
    keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)] or ["content"]
    raise UserError(f"image: {path}: {', '.join(keys)}: not what the release answers here; it is not tagged")


def _last(ended: Ended) -> str:
    lines = [line.strip() for line in ended.said.splitlines() if line.strip()]
    # The command's own line, or the service's; what comes after either says less.
    ours = [line.partition(word)[2] for line in lines for word in ("ctfoundry: ", "not served: ") if word in line]
    return (ours or lines or ["no output"])[-1][:300]
