"""A Bento is in the store whole or not at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from components.bundle.manifest import read_manifest, write_manifest
from components.files import write_text
from serving import build


def test_a_build_that_was_killed_does_not_hinder_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, home = tmp_path / "releases" / "head", tmp_path / "home"
    write_text(bundle / "weights.txt", "weights")
    write_manifest(bundle, "head", "a model", {"code": "c", "lock": "l"})
    name, _, version = build.bento_tag(read_manifest(bundle)).partition(":")
    half = home / "bentos" / name / version / "src"
    half.mkdir(parents=True)  # as the copy of a killed `bentoml build` leaves it
    monkeypatch.setenv("BENTOML_HOME", str(home))
    monkeypatch.setattr(build, "code_hash", lambda root: "c")
    monkeypatch.setattr(build, "sha256_tree", lambda path: "l")
    monkeypatch.setattr(build, "_stage", lambda *_: None)

    def bentoml(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        place = Path(variables.get("BENTOML_HOME", str(home))) / "bentos" / name / version
        if place.exists():
            return subprocess.CompletedProcess(arguments, 1, "", f"Error: {name}:{version} already exists in the store")
        write_text(place / "bento.yaml", "whole")
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(build, "run_bentoml", bentoml)
    tag = build.build_bento(bundle, {}, tmp_path)
    made = build.bento_path(tag)
    assert made is not None
    assert (made / "bento.yaml").read_text() == "whole"
    assert not (made / "src").exists()
    assert (home / "bentos" / name / "latest").read_text() == version
    assert sorted(path.name for path in (home / "bentos" / name).iterdir()) == [version, "latest"]
