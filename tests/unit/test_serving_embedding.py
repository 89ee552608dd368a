"""An answer tells what the line was not trained on: by the headers, and by the voxels, which no header contradicts."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from released import write_release

from components.bundle.manifest import write_manifest
from serving.embedding import Answer, ServedBundle, embed_file, open_release

SIDE_MM, SLICES = 2.0, 60  # of a pixel; 3 mm each


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ServedBundle]:
    """A release of each line, of an untrained encoder."""
    found = {}
    for line in ("head", "wholebody"):
        folder = tmp_path_factory.mktemp("releases") / line
        write_release(folder, line)
        write_manifest(folder, line, f"ctfoundry-{line}", {"code": "0" * 64})
        found[line] = open_release(folder)
    return found


def body(path: Path, half_mm: tuple[float, float], shell_mm: float) -> Path:
    """A cylinder of soft tissue under a shell of bone as thick as is said, head first, in a NIfTI, which has no header
    to judge."""
    columns, rows = (int((2 * half + 60) / SIDE_MM) for half in half_mm)
    x, y = np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij")
    x, y = ((i - (n - 1) / 2) * SIDE_MM for i, n in ((x, columns), (y, rows)))
    noise = np.random.default_rng(0).normal(0, 10, (columns, rows, SLICES))
    tissue = 40 + 30 * np.sin(np.arange(SLICES) / 5)
    inside, brain = (np.hypot(x / (half_mm[0] - t), y / (half_mm[1] - t)) < 1 for t in (0.0, shell_mm))
    bone = 700 + 400 * x / half_mm[0]
    hu = np.where(inside, bone, -1000.0)[..., None]
    hu = np.where(brain[..., None], tissue, hu) + noise
    image = nib.Nifti1Image(np.rint(hu).clip(-1024, 3071).astype(np.int16), np.diag([-SIDE_MM, -SIDE_MM, 3.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def reasons(answer: Answer) -> list[str]:
    return [text.partition(":")[0] for text in answer.found.warnings]


def test_a_trunk_that_is_sent_to_a_release_for_heads_is_told(released: dict[str, ServedBundle], tmp_path: Path) -> None:
    trunk = body(tmp_path / "trunk.nii", (170.0, 110.0), 2.0)
    answer = embed_file(trunk, released["head"])
    assert reasons(answer) == ["body_size", "little_bone"]
    size = float(answer.found.warnings[0].rpartition("found ")[2])
    assert size == pytest.approx(np.pi * 17.0 * 11.0, rel=0.03), "cm2 of its ellipse"
    assert answer.to_json()["found"]["warnings"] == answer.found.warnings
    assert np.isfinite(answer.embedding).all(), "the vector is given all the same"
    assert reasons(embed_file(trunk, released["wholebody"])) == []


def test_a_head_that_is_sent_to_a_release_for_heads_is_answered_without_a_word(
    released: dict[str, ServedBundle], tmp_path: Path
) -> None:
    head = body(tmp_path / "head.nii", (75.0, 95.0), 6.0)
    assert reasons(embed_file(head, released["head"])) == []
