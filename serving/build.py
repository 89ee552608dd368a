"""A Bento from a release folder: code, bundle and pinned requirements, built offline and once per digest."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from components.bundle.inputs import SOURCE_PACKAGES, SOURCE_SUFFIXES, code_hash
from components.bundle.manifest import Manifest, verify_bundle
from components.bundle.signature import IN_BENTO, SUFFIX, is_of, signature_file
from components.errors import UserError
from components.files import STATE, replacing, sha256_tree, write_text

log = logging.getLogger(__name__)

SERVICE = "serving.service:CTEmbed"
REQUIREMENTS = "infra/pins/serving.txt"
DEFAULT_HOME = STATE / "bentoml"
VERSION_DIGITS = 16
BUNDLE = "bundle"  # the release folder in a Bento's sources


def bento_tag(manifest: Manifest) -> str:
    """``ctfoundry-<line>:<first 16 hex digits of the bundle's digest>``."""
    return f"ctfoundry-{manifest.line}:{manifest.digest[:VERSION_DIGITS]}"


def build_bento(bundle: Path, labels: dict[str, str], root: Path = Path()) -> str:
    """Build the Bento of a release, or find the one that was built from the same bundle.

    Args:
        bundle: the release folder.
        labels: put on the Bento, such as the git commit.
        root: the project, whose code and pinned versions go into the Bento.

    Returns:
        The Bento's tag.

    Raises:
        UserError: the bundle does not verify, code or pinned versions are not those it was made from, or BentoML fails.
    """
    manifest = verify_bundle(bundle)
    tag = bento_tag(manifest)
    existing = bento_path(tag)
    if existing is not None:
        verify_bundle(existing / "src" / BUNDLE)
        carry_signature(bundle, existing / "src")
        return tag
    for name, found in (("code", code_hash(root)), ("lock", sha256_tree((root / REQUIREMENTS).parent))):
        if found != manifest.inputs.get(name):
            raise UserError(f"bundle {bundle.name}: {name} has changed since it was made; make the release again")
    with tempfile.TemporaryDirectory(prefix="ctfoundry-bento-") as folder:
        stage, home = Path(folder) / "sources", Path(folder) / "home"
        stage.mkdir()
        _stage(stage, bundle, root, manifest, labels)
        arguments = ["build", ".", "-f", "bentofile.yaml", "--version", tag.partition(":")[2]]
        done = run_bentoml(*arguments, cwd=stage, BENTOML_ENABLE_FEATURES="no_image", BENTOML_HOME=str(home))
        made = bento_path(tag, home)
        if done.returncode != 0 or made is None:
            raise UserError(f"bento {tag}: bentoml build failed: {_last_line(done)}")
        _into_store(made, tag)
    return tag


def carry_signature(bundle: Path, sources: Path) -> None:
    """Put the signature that lies beside a release folder into the ``sources`` of its Bento, where there is one.

    One of another release stays behind, with a warning: this one has been made since, and was not signed.
    """
    signature, carried = signature_file(bundle), sources / IN_BENTO / f"{BUNDLE}{SUFFIX}"
    if not signature.is_file():
        return
    if not is_of(signature, bundle):
        log.warning("%s: is of another release, and not in the Bento; sign this one with `ctfoundry sign`", signature)
    elif not carried.is_file() or carried.read_bytes() != signature.read_bytes():
        with replacing(carried) as temporary:
            shutil.copyfile(signature, temporary)


def _into_store(made: Path, tag: str) -> None:
    """Put a Bento into the local store, whole or not at all: BentoML would refuse the tag of one that is half there."""
    place = _place(tag, Path(bento_environment()["BENTOML_HOME"]))
    with replacing(place) as temporary:
        shutil.copytree(made, temporary)
    write_text(place.with_name("latest"), place.name)


def _place(tag: str, home: Path) -> Path:
    # `bentoml get -o path` folds a long path to the terminal's width: the store's layout is the steadier interface.
    name, _, version = tag.partition(":")
    return home / "bentos" / name / version


def bento_path(tag: str, home: Path | None = None) -> Path | None:
    """Where a Bento lies in a store, the local one by default, or None where there is none of this tag."""
    path = _place(tag, home or Path(bento_environment()["BENTOML_HOME"]))
    return path if (path / "bento.yaml").is_file() else None


def bento_environment() -> dict[str, str]:
    """This environment for a BentoML process: no telemetry, and a store of the project unless one is named."""
    home = Path(os.environ.get("BENTOML_HOME") or DEFAULT_HOME).resolve()
    home.mkdir(parents=True, exist_ok=True)
    return {**os.environ, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(home)}


def run_bentoml(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run BentoML's command line in a process of its own: the Bento's code is imported there, not ours."""
    command = [sys.executable, "-m", "bentoml", *arguments]
    environment = {**bento_environment(), **variables}
    return subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, check=False)


def _stage(stage: Path, bundle: Path, root: Path, manifest: Manifest, labels: dict[str, str]) -> None:
    for package in SOURCE_PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and path.suffix in SOURCE_SUFFIXES and "__pycache__" not in path.parts:
                target = stage / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    shutil.copytree(bundle, stage / BUNDLE)
    carry_signature(bundle, stage)
    shutil.copyfile(root / REQUIREMENTS, stage / "requirements.txt")
    content = {
        "name": f"ctfoundry-{manifest.line}",
        "service": SERVICE,
        "description": "file:bundle/MODEL_CARD.md",
        "labels": {**labels, "digest": manifest.digest[:63], "line": manifest.line},
        "include": ["*"],
        # The requirements are complete and pinned: nothing is left to resolve, and no network is needed to build.
        "python": {"requirements_txt": "requirements.txt", "lock_packages": False},
    }
    (stage / "bentofile.yaml").write_text(yaml.safe_dump(content, sort_keys=True))


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "ERROR" in line]
    return (errors or lines or ["no output"])[-1][:300]
