"""``reproducible: portable``: the same bytes whatever the environment caps, and on processors of two vendors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import Checkout, one_shard
from pretrain_project import write_project

from components import arithmetic
from components.files import sha256_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not arithmetic._holds_avx2(), reason="this processor has no AVX2"),
]
ROOT = Path(__file__).resolve().parents[2]
EMULATOR = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
# What users, images and clusters set: each chooses other kernels than the processor would.
CAPS = {
    "oldest": {"OPENBLAS_CORETYPE": "Nehalem", "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default",
               "NPY_DISABLE_CPU_FEATURES": "X86_V3", "MKL_CBWR": "SSE4_2", "OPENCV_IPP": "disabled"},
    "avx": {"OPENBLAS_CORETYPE": "Zen", "ONEDNN_MAX_CPU_ISA": "AVX", "MKL_CBWR": "AVX", "OPENCV_IPP": "sse42",
            "OMP_NUM_THREADS": "2"},
}  # fmt: skip


def _mode(path: Path, line: str, mode: str) -> None:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    content[line]["reproducible"] = mode
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def _weights(folder: Path, line: str, command: list[str], **variables: str) -> str:
    """Train ``line`` of the tiny project in ``folder`` anew; the hash of its encoder."""
    shutil.rmtree(folder / "data" / line / "pretrain", ignore_errors=True)
    shutil.rmtree(folder / ".ctfoundry", ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [*command, "-m", "components.pretrain", "--line", line]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    return sha256_file(folder / "data" / line / "pretrain" / "encoder" / "encoder.safetensors")


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_weights_are_the_same_bytes_under_every_cap(tmp_path: Path, line: str) -> None:
    folder = write_project(tmp_path, line)
    _mode(folder / "params.yaml", line, "portable")
    python = [sys.executable]
    plain = _weights(folder, line, python)
    assert {name: _weights(folder, line, python, **caps) for name, caps in CAPS.items()} == dict.fromkeys(CAPS, plain)
    # That the caps do choose other kernels, where nothing holds them:
    _mode(folder / "params.yaml", line, "machine")
    assert _weights(folder, line, python, **CAPS["oldest"]) != _weights(folder, line, python)


@pytest.mark.skipif(EMULATOR is None, reason="needs Debian's qemu-user")
@pytest.mark.parametrize("line", ["wholebody", "head"])
@pytest.mark.parametrize("processor", ["Haswell", "EPYC"])  # of Intel and of AMD
def test_weights_are_the_same_bytes_on_an_emulated_processor(tmp_path: Path, line: str, processor: str) -> None:
    folder = write_project(tmp_path, line, steps=2)
    _mode(folder / "params.yaml", line, "portable")
    plain = _weights(folder, line, [sys.executable])
    assert EMULATOR is not None
    # The emulator starts no other program: the interpreter by its own path, and the mode set before.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    variables = {**arithmetic.variables("portable"), "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    emulated = [EMULATOR, "-cpu", processor, os.path.realpath(sys.executable)]
    assert _weights(folder, line, emulated, **variables) == plain


def test_a_whole_small_release_is_the_same_bytes_under_every_cap(tmp_path: Path) -> None:
    def portable(content: dict[str, Any]) -> None:
        one_shard(content)
        content["wholebody"]["reproducible"] = "portable"

    locks = {}
    for name, caps in {"plain": {}, **CAPS}.items():
        checkout = Checkout(tmp_path / name, portable)
        done = subprocess.run(
            ["dvc", "repro", "bundle@wholebody"], cwd=checkout.folder, env={**checkout.environment(), **caps},
            capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        locks[name] = (checkout.folder / "dvc.lock").read_text()
    assert locks["oldest"] == locks["plain"]
    assert locks["avx"] == locks["plain"]
