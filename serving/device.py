"""Where a release computes: on a GPU where there is one.

Whoever has initialised CUDA can fork no child that uses it. So the program that forks children loads the release on the
CPU and asks no driver; each child takes the release to the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from components.confined import Bounds, Result, isolated
from components.errors import UserError
from components.models.embed import Embedder, device_of
from serving.embedding import ServedBundle
from serving.limits import DEVICE_VARIABLE

CPU = "cpu"
SPOKEN_OF = ("CUDA error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS")  # in errors that have no class of their own


class GpuError(UserError):
    """The GPU had no memory free, or failed: the file may be sent again."""

    status = 503


def chosen_device(asked: str) -> str:
    """``cpu`` or ``cuda``. What this process has must not be asked of a driver, so a child is.

    Args:
        asked: one of :data:`serving.limits.DEVICES`.

    Raises:
        UserError: ``cuda`` is asked for and there is no GPU, or there is one that does not work.
    """

    def tried() -> str:
        device = device_of(asked)
        try:
            torch.zeros(1, device=device)
        except Exception as error:
            said = " ".join(str(error).split())
            raise UserError(f"the GPU does not work: {said}; {DEVICE_VARIABLE}=cpu does without") from None
        return device

    try:
        built = torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]
        if asked == CPU or not built:  # no driver is asked
            return device_of(asked)
        found = isolated(tried, lambda device: Result({"device": device}), Bounds(), "its check")
    except UserError as error:
        raise UserError(f"{DEVICE_VARIABLE} {asked}: {error}") from None
    return str(found.content["device"])


def on_device(bundle: ServedBundle, device: str) -> ServedBundle:
    """The same release with its encoder on ``device``, where its decoders follow it; other heads stay on the CPU.

    What a library loads when it first computes is loaded when this returns, so that a bound that holds from then on is
    the file's alone. A release's numbers are float32: its products are not rounded to TF32.

    Raises:
        GpuError: there is no memory for it, or the GPU failed.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with gpu_told():
        embedder = Embedder(bundle.embedder.encoder, bundle.embedder.config, device)
        seen = embedder.config.input
        with torch.inference_mode():
            embedder.vectors(torch.zeros((1, len(seen.windows), *seen.size_vox), device=embedder.device))
    return replace(bundle, embedder=embedder)


def of_gpu(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised for, is a GPU's: no memory, or a failure, which is not the file's."""
    if error is None:
        return False
    classes = (torch.OutOfMemoryError, torch.AcceleratorError, GpuError)
    words = isinstance(error, RuntimeError) and any(words in str(error) for words in SPOKEN_OF)
    return isinstance(error, classes) or words or of_gpu(error.__context__)


@contextmanager
def gpu_told() -> Iterator[None]:
    """A GPU's errors within are told as :class:`GpuError`."""
    try:
        yield
    except Exception as error:
        if not of_gpu(error):
            raise
        raise GpuError("the GPU has no memory free for this file, or failed; send it again later") from None
