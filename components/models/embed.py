"""From a volume to a vector: the frozen encoder as evaluation and serving use it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from components import arithmetic
from components.ct.store import StoredVolume, Volume, crop_box, voxel_of
from components.errors import UserError
from components.files import read_json, replacing, write_json
from components.models.build import Encoder, build_encoder
from components.models.config import EncoderConfig, InputConfig
from components.models.intensity import BODY_HU, apply_windows
from components.models.resample import resize_windows
from components.settings import Line, StageConfig, parse

Float32Array = npt.NDArray[np.float32]
Int16Array = npt.NDArray[np.int16]

BODY_FRACTION = 0.1  # a patch with less body than this says nothing about the patient
BATCH, BATCH_VOXELS = 32, 2**20  # at most, but one crop; published CT-FM: 2 crops, 0.4 GB beside its weights
THREADS = 2  # fixed: the order of additions must not depend on the machine's cores
SPACING_TOLERANCE = 0.01  # relative
WEIGHTS, DESCRIPTION = "encoder.safetensors", "encoder.json"


class EmbedConfig(StageConfig):
    """All that is needed to rebuild the encoder and its input; ``encoder.json``."""

    line: Line
    encoder: EncoderConfig
    input: InputConfig


class Embedder:
    """A frozen encoder with the two kinds of vectors that were fixed before any evaluation.

    ``embed_points``: the pooled vector of the input-sized crop centred on a point (whole body).
    ``embed_volume``: whole body: the mean over a regular grid of crops that hold at least 10 % body (HU > -500);
    head: the whole volume resized to the model's cube.
    """

    def __init__(self, encoder: Encoder, config: EmbedConfig, device: str) -> None:
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        self.config = config
        self.device = torch.device(device)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.encoder.embedding_dim

    @classmethod
    def from_encoder(cls, encoder: Encoder, config: EmbedConfig, device: str = "cpu") -> Embedder:
        """Freeze an encoder that was just trained or loaded."""
        return cls(encoder, config, device)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", weights: str = WEIGHTS) -> Embedder:
        """Load ``encoder.safetensors``, or other ``weights`` of the same encoder, and ``encoder.json`` from ``folder``.

        Raises:
            UserError: a file is missing or the weights do not fit the description.
        """
        for name in (weights, DESCRIPTION):
            if not (folder / name).is_file():
                raise UserError(f"encoder {folder}: {name} is missing; run the pretrain stage first")
        config = parse(EmbedConfig, read_json(folder / DESCRIPTION), "", str(folder / DESCRIPTION))
        encoder = build_encoder(config.encoder, config.input, seed=0)
        try:
            encoder.load_state_dict(safetensors.torch.load_file(folder / weights))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise UserError(f"encoder {folder}: {weights} does not fit {DESCRIPTION}: {error}") from None
        return cls(encoder, config, device)

    def save(self, folder: Path) -> None:
        """Write both files; equal weights give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / WEIGHTS, self.encoder.state_dict())
        write_json(folder / DESCRIPTION, self.config.model_dump(mode="json"))

    def embed_points(self, volume: StoredVolume | Volume, points_mm: npt.ArrayLike) -> Float32Array:
        """One vector per point.

        Args:
            volume: preprocessed as for training (orientation and spacing of ``config.input``).
            points_mm: (N, 3) in RAS millimetres. What lies outside the volume counts as air.

        Returns:
            float32 (N, dim).

        Raises:
            UserError: a volume of another spacing or orientation, points of another shape, or the head line (whose
                input is a whole head).
        """
        if self.config.line == "head":
            raise UserError("embed_points: the head encoder sees whole heads; use embed_volume")
        self._check(volume)
        points_N3 = np.asarray(points_mm, dtype=np.float64)
        if points_N3.ndim != 2 or points_N3.shape[1] != 3 or not np.isfinite(points_N3).all():
            raise UserError(f"embed_points: points of shape {points_N3.shape} are not allowed: finite numbers, (N, 3)")
        if len(points_N3) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        size = self.config.input.size_vox
        centre_N3 = np.floor(voxel_of(volume.affine, points_N3) + 0.5).astype(np.int64)
        starts_N3 = centre_N3 - np.array(size) // 2
        return self._embed_crops(np.stack([_crop(volume, (int(a), int(b), int(c)), size) for a, b, c in starts_N3]))

    def embed_volume(self, volume: StoredVolume | Volume) -> Float32Array:
        """One vector for the whole volume, float32 (dim,).

        Raises:
            UserError: a volume of another spacing or orientation, or without any patch that holds enough body.
        """
        self._check(volume)
        whole = volume.read() if isinstance(volume, StoredVolume) else volume
        if self.config.line == "head":
            return self._embed_cube(whole.hu)
        size = self.config.input.size_vox
        crops = [crop_box(whole.hu, _shape(whole), start, size) for start in grid_starts(_shape(whole), size)]
        body = np.stack([crop for crop in crops if (crop > BODY_HU).mean() >= BODY_FRACTION] or [crops[0][:0]])
        if body.size == 0:
            raise UserError(f"embed_volume: no part of the volume {whole.hu.shape} holds enough body (HU > {BODY_HU})")
        return np.asarray(self._embed_crops(body).mean(axis=0, dtype=np.float64), dtype=np.float32)

    def _embed_crops(self, crops_NDHW: Int16Array) -> Float32Array:
        parts, batch = [], batch_of(self.config.input.size_vox)
        with torch.inference_mode(), fixed_threads():
            for part_NDHW in np.split(crops_NDHW, range(batch, len(crops_NDHW), batch)):
                hu = torch.from_numpy(part_NDHW).to(self.device)
                parts.append(self.encoder(apply_windows(hu, self.config.input.windows)).float().cpu().numpy())
        return np.concatenate(parts).astype(np.float32)

    def _embed_cube(self, hu: Int16Array) -> Float32Array:
        with torch.inference_mode(), fixed_threads():
            cube = resize_windows(hu, self.config.input.windows, self.config.input.size_vox)[None].to(self.device)
            return np.asarray(self.encoder(cube)[0].float().cpu().numpy(), dtype=np.float32)

    def _check(self, volume: StoredVolume | Volume) -> None:
        check_grid(volume, self.config.input)


def check_grid(volume: StoredVolume | Volume, wanted: InputConfig) -> None:
    """Raise UserError where a volume has not the spacing or the orientation that an encoder wants."""
    if not np.allclose(volume.spacing, wanted.spacing_mm, rtol=SPACING_TOLERANCE):
        spacing = ", ".join(f"{mm:g}" for mm in volume.spacing)
        raise UserError(f"volume: spacing {spacing} mm is not allowed: {list(wanted.spacing_mm)}; preprocess it")
    found = orientation_of(volume.affine)
    if found != wanted.orientation:
        raise UserError(f"volume: orientation {found} is not allowed: {wanted.orientation}; preprocess it")


def batch_of(size: tuple[int, int, int]) -> int:
    """Crops of ``size`` voxels that are embedded at once, so that memory does not grow with the published sizes."""
    return max(1, min(BATCH, BATCH_VOXELS // math.prod(size)))


def device_of(wanted: str) -> str:
    """The device behind ``auto``, ``cuda`` or ``cpu``. Raises UserError where a GPU is asked for and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda': there is no GPU here; allow device auto or cpu")
    if wanted == "auto" and arithmetic.mode() == arithmetic.PORTABLE:
        return "cpu"  # a GPU keeps no promise of equal bytes
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write ``tensors`` as safetensors; equal weights give equal bytes."""
    plain = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(plain, temporary)


def candidate_file(step: int) -> str:
    """Name, below the encoder's folder, of the weights that were kept after a step."""
    return f"candidates/{step:09d}.safetensors"


def load_candidates(folder: Path, device: str = "cpu") -> dict[int, Embedder]:
    """Step to encoder, in order: those that were kept on the way, and the last one of the run."""
    kept = sorted((folder / "candidates").glob("*.safetensors"))
    steps = {int(path.stem): f"candidates/{path.name}" for path in kept}
    return {step: Embedder.load(folder, device, name) for step, name in steps.items()}


def random_embedder(embedder: Embedder, seed: int) -> Embedder:
    """The same architecture with fresh weights from ``seed``: the baseline that pretraining has to beat."""
    config = embedder.config
    return Embedder(build_encoder(config.encoder, config.input, seed), config, str(embedder.device))


def orientation_of(affine: npt.NDArray[np.float64]) -> str:
    """Axis codes such as 'RAS' or 'SPL', by the world axis that each array axis follows most closely."""
    codes = []
    for column in np.asarray(affine)[:3, :3].T:
        world = int(np.abs(column).argmax())
        codes.append(("LR", "PA", "IS")[world][int(column[world] > 0)])
    return "".join(codes)


def grid_starts(shape: tuple[int, int, int], size: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """First voxels of the fewest boxes of ``size`` that cover ``shape`` side by side, centred on it."""
    axes = []
    for n, k in zip(shape, size, strict=True):
        count = -(-n // k)
        first = (n - count * k) // 2
        axes.append([first + i * k for i in range(count)])
    return [(a, b, c) for a in axes[0] for b in axes[1] for c in axes[2]]


@contextmanager
def fixed_threads() -> Iterator[None]:
    """Compute with a fixed number of threads, then put torch's own number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _shape(volume: Volume) -> tuple[int, int, int]:
    a, b, c = volume.hu.shape
    return int(a), int(b), int(c)


def _crop(volume: StoredVolume | Volume, start: tuple[int, int, int], size: tuple[int, int, int]) -> Int16Array:
    if isinstance(volume, StoredVolume):
        return volume.crop(start, size)
    return crop_box(volume.hu, _shape(volume), start, size)


def imported(weights: Path, config: EmbedConfig, device: str = "cpu") -> Embedder:
    """An encoder from weights that were made elsewhere, such as CT-FM's public ones: every tensor by name and shape.

    Args:
        weights: safetensors; names as in :mod:`segres` or :mod:`vit`, with or without a leading ``encoder.``.
        config: the line, the encoder's sizes and its input.
        device: where it runs.

    Raises:
        UserError: not safetensors, or other tensors than the encoder's; the message names the first of them.
    """
    try:
        tensors = safetensors.torch.load_file(weights)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"weights {weights.name}: not readable as safetensors: {error}") from None
    if tensors and all(name.startswith("encoder.") for name in tensors):
        tensors = {name.removeprefix("encoder."): value for name, value in tensors.items()}
    encoder = build_encoder(config.encoder, config.input, seed=0)
    wanted = encoder.state_dict()
    # Counters of batch norms: torch's own loader does without them, and a frozen encoder never uses them.
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    wrong = {name for name in needed & set(tensors) if tensors[name].shape != wanted[name].shape}
    lacking, surplus = sorted(needed - set(tensors)), sorted(set(tensors) - set(wanted))
    if wrong or lacking or surplus:
        told = [f"{len(lacking)} lacking, first {lacking[0]}"] if lacking else []
        told += [f"{len(surplus)} unknown, first {surplus[0]}"] if surplus else []
        for name in sorted(wrong)[:1]:
            shapes = f"{tuple(tensors[name].shape)}, wanted {tuple(wanted[name].shape)}"
            told.append(f"{len(wrong)} of another shape, first {name}: {shapes}")
        raise UserError(f"weights {weights.name}: do not fit encoder {config.encoder.kind!r}: {'; '.join(told)}")
    encoder.load_state_dict(tensors, strict=False)
    return Embedder(encoder, config, device)
