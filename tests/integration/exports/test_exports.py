"""Exports are loaded by the libraries that they are for, in processes without our code, and give our vectors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from jsonschema import Draft202012Validator

from components.bundle.exports.write import WRITERS, export
from components.errors import UserError
from components.files import sha256_tree
from components.models.embed import Embedder
from flows.export import KINDS
from serving.embedding import embed_file, open_release
from serving.previewing import preview_file

ROOT = Path(__file__).resolve().parents[3]
ASSETS = ROOT / "tests" / "assets" / "bundles" / "0.1.0"
WHOLEBODY, HEAD = (ASSETS / line / "bundle" for line in ("wholebody", "head"))
SCHEMA = Path(__file__).with_name("monai_metadata.schema.json")
RELATIVE = 1e-5  # of a vector's largest number
Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def crops() -> npt.NDArray[np.int16]:
    """Five crops of the whole-body release's size, with all that HU can be."""
    return np.random.default_rng(3).integers(-1024, 3072, (5, 8, 32, 32)).astype(np.int16)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    for to in ("huggingface", "monai", "onnx"):
        export(WHOLEBODY, to, folder / to)
    return folder


def outside(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program run in a folder, by a Python that finds none of our modules."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "2",
        "HOME": str(folder.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def readme(path: Path) -> str:
    """The Python that a page shows."""
    (program,) = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    return str(program)


def near(found: Any, wanted: Array) -> None:
    far = np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()
    assert np.asarray(found).shape == wanted.shape
    assert far < RELATIVE, far


NO_CODE_OF_OURS = "\nassert not [name for name in sys.modules if name.partition('.')[0] in ('components', 'serving')]\n"


def test_lighter_zoo_loads_the_folder_and_its_page_gives_our_vectors(
    out: Path, crops: npt.NDArray[np.int16], tmp_path: Path
) -> None:
    np.save(tmp_path / "crops.npy", crops)
    program = readme(out / "huggingface" / "README.md") + (
        "\nimport numpy as np"
        "\ncrops = torch.from_numpy(np.load(sys.argv[1]))"
        "\nnp.save(sys.argv[2], vectors(crops).numpy())" + NO_CODE_OF_OURS
    )
    outside(out / "huggingface", program, str(tmp_path / "crops.npy"), str(tmp_path / "vectors.npy"))
    near(np.load(tmp_path / "vectors.npy"), Embedder.load(WHOLEBODY).embed_crops(crops))


def test_a_release_with_its_encoders_own_vector_is_told_of_on_its_page(tmp_path: Path) -> None:
    from components.bundle.manifest import write_manifest
    from tests.released import write_release  # its encoder is pooled by itself

    folder = tmp_path / "release"
    write_release(folder)
    (folder / "MODEL_CARD.md").write_text("# Own\n\n| Licence of the weights | CC-BY-4.0 |\n")
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    export(folder, "huggingface", tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "levels[-1].mean(dim=(2, 3, 4))" in page
    assert page.startswith("---\nlicense: cc-by-4.0\n")
    assert (tmp_path / "out" / "LICENSE").read_text() == "SPDX-License-Identifier: CC-BY-4.0\n"
    hu = np.random.default_rng(4).integers(-1024, 2000, (2, 16, 64, 64)).astype(np.int16)
    np.save(tmp_path / "crops.npy", hu)
    program = readme(tmp_path / "out" / "README.md") + (
        "\nimport numpy as np\nnp.save(sys.argv[2], vectors(torch.from_numpy(np.load(sys.argv[1]))).numpy())"
    )
    outside(tmp_path / "out", program, str(tmp_path / "crops.npy"), str(tmp_path / "vectors.npy"))
    near(np.load(tmp_path / "vectors.npy"), Embedder.load(folder).embed_crops(hu))


def test_the_monai_bundle_is_one(out: Path, tmp_path: Path) -> None:
    folder = out / "monai"
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))
    program = (
        "import sys, shutil\nfrom monai.bundle import verify_metadata, verify_net_in_out\n"
        "shutil.copy(sys.argv[1], sys.argv[2])\n"
        "verify_metadata(meta_file='configs/metadata.json', filepath=sys.argv[2])\n"
        "verify_net_in_out(net_id='network_def', meta_file='configs/metadata.json',"
        " config_file='configs/inference.json', device='cpu')\n" + NO_CODE_OF_OURS
    )
    outside(folder, program, str(SCHEMA), str(tmp_path / "schema.json"))
    dim = Embedder.load(WHOLEBODY).dim
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == dim
    for name in ("LICENSE", "MODEL_CARD.md", "docs/README.md", "licences.csv"):
        assert (folder / name).stat().st_size > 0, name


def test_the_monai_bundle_gives_a_scans_vector_as_its_page_says(out: Path, tmp_path: Path) -> None:
    """Of the scan as the service shows it on the model's grid: the very vector of the scan."""
    scan = tmp_path / "scan.nii"
    x, y, z = np.indices((70, 60, 40)) - np.array([34.5, 29.5, 19.5])[:, None, None, None]
    hu = np.where((x / 30) ** 2 + (y / 22) ** 2 < 1, 40 + 3 * z + x, -1000).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, np.diag([-3.0, -3.0, 4.0, 1.0])), scan)
    release = open_release(WHOLEBODY)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "on_grid.nii.gz").write_bytes(preview_file(scan, release).as_nifti())
    (tmp_path / "scans" / "as_it_is.nii").write_bytes(scan.read_bytes())
    (command,) = re.findall(r"python -c \"(.*)\"\n", (out / "monai" / "docs" / "README.md").read_text())
    command = command.replace("'scans'", repr(str(tmp_path / "scans")))
    command = command.replace("'embeddings.json'", repr(str(tmp_path / "embeddings.json")))
    outside(out / "monai", command)
    found = json.loads((tmp_path / "embeddings.json").read_text())
    wanted = embed_file(scan, release).embedding
    near(found["on_grid.nii.gz"], wanted)
    other = np.array(found["as_it_is.nii"], dtype=np.float32)
    likeness = other @ wanted / np.linalg.norm(other) / np.linalg.norm(wanted)
    assert 0.9 < likeness < 1, "MONAI resamples otherwise, and the page says so"


def test_onnxruntime_gives_our_vectors_of_any_number_of_crops(
    out: Path, crops: npt.NDArray[np.int16], tmp_path: Path
) -> None:
    told = json.loads((out / "onnx" / "config.json").read_text())
    np.save(tmp_path / "crops.npy", crops)
    program = (
        "import sys\n"
        + readme(out / "onnx" / "README.md")
        + (
            "\ncrops = np.load(sys.argv[1])"
            "\nnp.save(sys.argv[2], np.concatenate([vectors(crops[:1]), vectors(crops[1:])]))"
            "\nassert 'torch' not in sys.modules" + NO_CODE_OF_OURS
        )
    )
    outside(out / "onnx", program, str(tmp_path / "crops.npy"), str(tmp_path / "vectors.npy"))
    near(np.load(tmp_path / "vectors.npy"), Embedder.load(WHOLEBODY).embed_crops(crops))
    assert told["tolerance"] == RELATIVE
    assert told["input"]["shape"] == ["batch", 1, 8, 32, 32]


def test_a_transformer_goes_as_onnx_and_is_refused_elsewhere(tmp_path: Path) -> None:
    import onnxruntime

    for to in ("huggingface", "monai"):
        with pytest.raises(UserError, match=rf"^release ctfoundry-head: encoder 'vit' is not allowed with --to {to}: "):
            export(HEAD, to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [], "nothing is half-written"
    export(HEAD, "onnx", tmp_path / "out")
    release = open_release(HEAD)
    scan = np.random.default_rng(5).integers(-1024, 200, (1, 32, 32, 32)).astype(np.int16)
    import torch

    from components.models.intensity import apply_windows

    x = apply_windows(torch.from_numpy(scan), release.embedder.config.input.windows)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    with torch.inference_mode():
        near(session.run(None, {"windows": x.numpy()})[0], release.embedder.vectors(x).numpy())


@pytest.mark.parametrize("to", ["huggingface", "monai", "onnx"])
def test_the_same_release_gives_the_same_bytes_and_no_path_of_this_machine(out: Path, to: str, tmp_path: Path) -> None:
    export(WHOLEBODY, to, tmp_path / "again")
    assert sha256_tree(tmp_path / "again") == sha256_tree(out / to)
    for path in (tmp_path / "again").rglob("*"):
        assert not path.is_file() or str(ROOT).encode() not in path.read_bytes(), path.name


def test_a_release_that_does_not_verify_is_not_exported(tmp_path: Path) -> None:
    release = Path(shutil.copytree(WHOLEBODY, tmp_path / "release"))
    with (release / "licences.csv").open("a") as stream:
        stream.write("more\n")
    with pytest.raises(UserError, match=r"^bundle release: licences\.csv: differs from the manifest"):
        export(release, "huggingface", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["release"], "nothing is half-written"


def test_what_is_there_is_not_replaced(out: Path, tmp_path: Path) -> None:
    before = sha256_tree(out / "huggingface")
    with pytest.raises(UserError, match=r"huggingface: is there; allowed: the name of a new folder, or an empty one$"):
        export(WHOLEBODY, "monai", out / "huggingface")
    assert sha256_tree(out / "huggingface") == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: is there"):
        export(WHOLEBODY, "monai", tmp_path / "file")
    (tmp_path / "empty").mkdir()
    export(WHOLEBODY, "huggingface", tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_the_command_knows_every_format() -> None:
    assert tuple(WRITERS) == KINDS


def test_the_command_exports_the_present_release(tmp_path: Path) -> None:
    """As people call it, from a folder that has a release."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "wholebody").symlink_to(WHOLEBODY)
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "export",
        "--line",
        "wholebody",
        "--to",
        "huggingface",
        "--output",
        "hf",
    ]
    for code, says in ((0, "hf: release 027bf1489fec for huggingface"), (1, "ctfoundry: hf: is there;")):
        done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert done.returncode == code, done.stderr
        assert says in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
