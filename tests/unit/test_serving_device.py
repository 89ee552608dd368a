"""Where a release computes: chosen without a driver in the process that forks, and by all that computes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from components.bundle.manifest import write_manifest
from components.errors import UserError
from components.models import embed
from serving import device
from serving.device import GpuError, chosen_device, gpu_told, of_gpu, on_device
from serving.embedding import ServedBundle, open_release
from serving.limits import device_asked
from tests.released import ROOT, write_release


@pytest.fixture
def bundle(tmp_path: Path) -> ServedBundle:
    folder = tmp_path / "wholebody"
    write_release(folder)
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    return open_release(folder)


def test_the_environment_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CTFOUNDRY_DEVICE", raising=False)
    assert device_asked() == "auto"
    monkeypatch.setenv("CTFOUNDRY_DEVICE", " cuda ")
    assert device_asked() == "cuda"
    monkeypatch.setenv("CTFOUNDRY_DEVICE", "tpu")
    with pytest.raises(UserError, match=r"^CTFOUNDRY_DEVICE: 'tpu' is not allowed: auto, cpu, cuda$"):
        device_asked()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_the_cpu_and_a_gpu_that_is_asked_for_is_one_line() -> None:
    assert (chosen_device("auto"), chosen_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(UserError, match=r"^CTFOUNDRY_DEVICE cuda: device 'cuda': there is no GPU here; "):
        chosen_device("cuda")


@pytest.mark.parametrize("gpu", [True, False])
def test_this_process_asks_no_driver(gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a build of torch for GPUs, a child asks; what it says is believed only where it could compute there."""
    asked = tmp_path / "asked"

    def is_available() -> bool:
        asked.write_text(str(os.getpid()))
        return gpu

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    if gpu:  # which does not work
        with pytest.raises(UserError, match=r"^CTFOUNDRY_DEVICE auto: the GPU does not work: .*=cpu does without$"):
            chosen_device("auto")
        real = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *shape, device: real(*shape))
        assert chosen_device("auto") == chosen_device("cuda") == "cuda"
    else:
        assert chosen_device("auto") == "cpu"
    assert asked.read_text() != str(os.getpid())
    asked.unlink()
    assert chosen_device("cpu") == "cpu"
    assert not asked.exists()


def test_a_program_that_loads_a_release_initialises_no_cuda(bundle: ServedBundle, tmp_path: Path) -> None:
    """Whatever is imported: no call of torch's goes to the driver."""
    code = f"""
import sys, torch
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = lambda *_: sys.exit("the driver was asked")
from pathlib import Path
import serving.dicom_map, serving.dicom_sr
from serving.embedding import open_release
from serving.working import Work
open_release(Path({str(tmp_path / "wholebody")!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_all_that_computes_goes_to_the_device(bundle: ServedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's ``meta`` stands for a GPU: what mixes it with the CPU is refused as there."""
    monkeypatch.setattr(embed, "device_of", lambda wanted: wanted)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    before, moved = bundle.embedder, on_device(bundle, "meta")
    assert {value.device.type for value in moved.embedder.encoder.state_dict().values()} == {"meta"}
    assert moved.embedder.device.type == "meta"
    assert before.device.type == "cpu"
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)
    assert (moved.manifest, moved.heads) == (bundle.manifest, bundle.heads)


def test_the_encoder_has_computed_when_it_is_there(bundle: ServedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its libraries are loaded on its first step, and take memory that is not the file's."""
    seen: list[tuple[int, ...]] = []
    real = embed.Embedder.vectors
    monkeypatch.setattr(embed.Embedder, "vectors", lambda self, x: seen.append(tuple(x.shape)) or real(self, x))
    found = on_device(bundle, "cpu")
    assert seen == [(1, len(found.embedder.config.input.windows), *found.embedder.config.input.size_vox)]


def no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def no_memory_for_a_crop() -> None:
    """As :meth:`components.models.embed.Embedder.embed_crops` tells it."""
    try:
        no_memory()
    except torch.OutOfMemoryError:
        raise UserError("cuda: not enough memory free for one crop; device cpu has more") from None


def failed() -> None:
    raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")


@pytest.mark.parametrize("fault", [no_memory, no_memory_for_a_crop, failed])
def test_a_gpu_without_memory_or_that_fails_is_no_fault_of_the_file(fault: Callable[[], None]) -> None:
    says = "no memory free for this file, or failed; send it again later"
    with pytest.raises(GpuError, match=says) as found, gpu_told():
        fault()
    assert (found.value.status, found.value.__suppress_context__) == (503, True)


@pytest.mark.parametrize("error", [UserError("not a CT"), KeyError("x"), RuntimeError("can't allocate memory")])
def test_other_errors_are_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as found, gpu_told():
        raise error
    assert found.value is error
    assert not of_gpu(error)


def test_a_release_that_finds_no_room_on_the_gpu_is_told_so(
    bundle: ServedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "Embedder", lambda *_: no_memory())
    with pytest.raises(GpuError):
        on_device(bundle, "cuda")
