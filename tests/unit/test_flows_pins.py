"""Stages depend on the versions of what they import: a new linter makes nothing stale, a new numpy all that compute."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from components.errors import UserError
from flows import pins


def test_the_files_of_pins_are_what_lock_file_and_imports_say(project: Path) -> None:
    for path, text in pins.expected().items():
        assert path.read_text() == text, f"{path}: run `python -m flows.pins --write`"
    assert sorted(pins.PINS.glob("*")) == sorted(pins.expected())


def test_the_graph_names_each_stages_own_pins_and_never_the_whole_lock_file(project: Path) -> None:
    for name, stage in yaml.safe_load(Path("dvc.yaml").read_text())["stages"].items():
        deps = (stage.get("do") or stage)["deps"]
        assert "constraints.txt" not in deps
        assert (f"infra/pins/{name}.txt" if name != "bundle" else "infra/pins") in deps


def test_what_decides_a_stage_is_pinned_for_it_and_what_does_not_is_not(project: Path) -> None:
    names = {
        stage: {line.partition("==")[0].lower() for line in pins.stage_pins(command)}
        for stage, command in pins.commands().items()
    }
    assert {"torch", "monai", "numpy", "blosc2"} <= names["pretrain"]
    assert {"dicomsdl", "pydicom", "pylibjpeg-openjpeg", "opencv-python-headless"} <= names["preprocess"]
    assert "scikit-learn" in names["task"]
    assert not names["gate"] & {"torch", "numpy", "pydicom"}
    everywhere = set.union(*names.values())
    assert not everywhere & {"ruff", "mypy", "pytest", "prefect", "dvc", "bentoml", "ray", "rich"}


def test_a_late_import_counts_and_a_comment_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "# import scipy\nimport json\ndef f():\n    import numpy.linalg\n    from components import files\n"
    )
    assert pins.foreign(path) == {"numpy"}


def test_a_package_that_the_lock_file_does_not_pin_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "pins_of", lambda _: {})
    with pytest.raises(UserError, match=r"constraints.txt: does not pin .*torch"):
        pins.stage_pins(pins.commands()["pretrain"])


def test_on_a_newer_python_the_services_pins_stay_those_of_the_oldest(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer Python needs fewer packages, so that developers on two of them would undo each other's file."""
    path = pins.PINS / f"{pins.SERVING}.txt"
    fewer = path.read_text().splitlines()[:-1]
    monkeypatch.setattr(pins, "commands", dict)
    monkeypatch.setattr(pins, "pinned_requirements", lambda lock_file: fewer)
    newer = SimpleNamespace(version_info=(3, 12, 1), stdlib_module_names=sys.stdlib_module_names)
    monkeypatch.setattr(pins, "sys", newer)
    assert pins.expected()[path] == path.read_text()
    newer.version_info = (3, 11, 9)
    assert pins.expected()[path] == "\n".join(fewer) + "\n"
