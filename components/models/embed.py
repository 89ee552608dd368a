"""From a volume to a vector: the frozen encoder as evaluation and serving use it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from components import arithmetic
from components.ct.store import StoredVolume, Volume, crop_of, crops_at
from components.errors import UserError
from components.files import read_json, replacing, write_json
from components.models.build import Encoder, build_encoder
from components.models.config import EncoderConfig, InputConfig
from components.models.intensity import BODY_HU, apply_windows
from components.models.pooling import PARTS, Pooling, pool_levels
from components.models.resample import resize_windows
from components.models.weights import parted, put, read_weights
from components.settings import StageConfig, parse

Float32Array = npt.NDArray[np.float32]
Int16Array = npt.NDArray[np.int16]
Shown = (
    Int16Array | torch.Tensor
)  # of a whole volume: its crops (N, D, H, W) in HU, or it all, resized, (1, C, D, H, W)

BODY_FRACTION = 0.1  # a patch with less body than this says nothing about the patient
BATCH, BATCH_VOXELS = 32, 2**20  # at most, but one crop; published CT-FM: 2 crops, 0.4 GB beside its weights
THREADS = 2  # fixed: the order of additions must not depend on the machine's cores
SPACING_TOLERANCE = 0.01  # relative
WEIGHTS, DESCRIPTION = "encoder.safetensors", "encoder.json"


class EmbedConfig(StageConfig):
    """All that is needed to rebuild the encoder, its input and its vectors; ``encoder.json``.

    Attributes:
        pooling: ``own``, the encoder's own vector, by which it was trained; or of all its levels, see
            :func:`components.models.pooling.pool_levels`. Files of earlier versions do not say: it was its own.
    """

    encoder: EncoderConfig
    input: InputConfig
    pooling: Pooling = "own"


@dataclass(frozen=True)
class Grid:
    """Places side by side over a volume, and their vectors.

    Attributes:
        points_mm: centres of the crops, (N, 3) in RAS millimetres.
        vectors: float32 (N, dim).
    """

    points_mm: npt.NDArray[np.float64]
    vectors: Float32Array


class Embedder:
    """A frozen encoder, and its vectors as they were fixed before any evaluation.

    An encoder that sees crops has one for each crop: of a point (:meth:`embed_points`), of places side by side over a
    volume (:meth:`embed_grid`), of crops that were cut already (:meth:`embed_crops`); a volume's is the mean over its
    places. One that sees scans has one for a volume, which is resized to its input. :meth:`levels` gives what lies
    before pooling.
    """

    def __init__(self, encoder: Encoder, config: EmbedConfig, device: str) -> None:
        self.device = torch.device(device_of(device))
        self.encoder = encoder.to(self.device).eval().requires_grad_(False)
        self.config = config

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        if self.config.pooling == "own":
            return self.encoder.embedding_dim
        return PARTS[self.config.pooling] * sum(self.encoder.widths)

    def pooled_by(self, pooling: Pooling) -> Embedder:
        """The same encoder with other vectors."""
        return Embedder(self.encoder, self.config.model_copy(update={"pooling": pooling}), str(self.device))

    @classmethod
    def from_encoder(cls, encoder: Encoder, config: EmbedConfig, device: str = "cpu") -> Embedder:
        """Freeze an encoder that was just trained or loaded. ``device``: auto, cuda or cpu, see :func:`device_of`."""
        return cls(encoder, config, device)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", weights: str = WEIGHTS) -> Embedder:
        """Load ``encoder.safetensors``, or other ``weights`` of the same encoder, and ``encoder.json`` from ``folder``.

        Raises:
            UserError: a file is missing, the weights do not fit the description, or there is no such device.
        """
        _require(folder, weights)
        config = described(folder)
        encoder = build_encoder(config.encoder, config.input, seed=0)
        put(encoder, read_weights(folder / weights), f"encoder {folder}: {weights} does not fit {DESCRIPTION}")
        return cls(encoder, config, device)

    def save(self, folder: Path) -> None:
        """Write both files; equal weights give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / WEIGHTS, self.encoder.state_dict())
        write_json(folder / DESCRIPTION, self.config.model_dump(mode="json"))

    def embed_crops(self, crops_NDHW: Int16Array) -> Float32Array:
        """One vector per crop, float32 (N, dim).

        Args:
            crops_NDHW: int16 HU of ``config.input.size_vox``, at its spacing and orientation. They are embedded in
                batches, see :func:`batch_of`; a vector does not depend on its neighbours.

        Raises:
            UserError: crops of another size, or an encoder that sees whole scans.
        """
        self._sees_crops("embed_crops")
        size = self.config.input.size_vox
        if crops_NDHW.shape[1:] != size or crops_NDHW.dtype != np.int16:
            found = f"{crops_NDHW.dtype} {crops_NDHW.shape}"
            raise UserError(f"embed_crops: {found} is not allowed: int16 HU of shape (N, {', '.join(map(str, size))})")
        if len(crops_NDHW) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        return self._batched(crops_NDHW)

    def embed_points(self, volume: StoredVolume | Volume, points_mm: npt.ArrayLike) -> Float32Array:
        """One vector per point.

        Args:
            volume: preprocessed as for training (orientation and spacing of ``config.input``).
            points_mm: (N, 3) in RAS millimetres. What lies outside the volume counts as air.

        Returns:
            float32 (N, dim).

        Raises:
            UserError: a volume of another spacing or orientation, points of another shape, or an encoder that
                sees whole scans.
        """
        self._sees_crops("embed_points")
        check_grid(volume, self.config.input)
        points_N3 = _points("embed_points", points_mm)
        if len(points_N3) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        return self.embed_crops(crops_at(volume, points_N3, self.config.input.size_vox))

    def embed_grid(self, volume: StoredVolume | Volume) -> Grid:
        """The places that cover the volume side by side and hold at least 10 % body (HU > -500), with their vectors.

        Raises:
            UserError: a volume of another spacing or orientation, or without such a place; or an encoder that sees
                whole scans.
        """
        self._sees_crops("embed_grid")
        points_mm, crops_NDHW = self._covering(volume)
        return Grid(points_mm, self.embed_crops(crops_NDHW))

    def embed_volume(self, volume: StoredVolume | Volume) -> Float32Array:
        """One vector for the whole volume, float32 (dim,).

        Raises:
            UserError: a volume of another spacing or orientation, or without any place that holds enough body.
        """
        return self.embed_shown(self.show(volume))

    def show(self, volume: StoredVolume | Volume) -> Shown:
        """What the encoder is shown of a whole volume, for :meth:`embed_shown` of every encoder of the same input.

        Raises:
            UserError: as :meth:`embed_volume`.
        """
        if self.config.input.sees == "crop":
            return self._covering(volume)[1]
        with fixed_threads():
            return self._resized(volume)

    def embed_shown(self, shown: Shown) -> Float32Array:
        """The volume's vector, float32 (dim,), of what :meth:`show` gave."""
        if isinstance(shown, np.ndarray):
            return np.asarray(self.embed_crops(shown).mean(axis=0, dtype=np.float64), dtype=np.float32)
        with torch.inference_mode(), fixed_threads():
            return np.asarray(self.vectors(shown)[0].float().cpu().numpy(), dtype=np.float32)

    def levels(self, volume: StoredVolume | Volume, point_mm: npt.ArrayLike | None = None) -> list[Float32Array]:
        """The feature maps before pooling, of the crop round a point or of the whole scan, whichever the encoder sees.

        Args:
            volume: as in :meth:`embed_points`.
            point_mm: (3,) in RAS millimetres; None for an encoder that sees scans.

        Returns:
            float32 (C, d, h, w) of each level: of a SegRes encoder from fine to coarse, each half the sides of the one
            before; of a transformer the patches after each block. The last one is what the vector is pooled from.

        Raises:
            UserError: as :meth:`embed_points`; or a point where the encoder sees scans, or none where it sees crops.
        """
        with torch.inference_mode(), fixed_threads():
            seen = self.seen(volume, point_mm, "levels")
            return [level[0].float().cpu().numpy() for level in self.encoder.levels(seen)]

    def seen(
        self, volume: StoredVolume | Volume, point_mm: npt.ArrayLike | None = None, asked: str = "seen"
    ) -> torch.Tensor:
        """What the encoder is shown, float32 (1, C, D, H, W), a channel for each window; see :meth:`levels`."""
        sees = self.config.input.sees
        if (point_mm is None) != (sees == "scan"):
            allowed = "a point in mm" if sees == "crop" else "none"
            raise UserError(f"{asked}: point {point_mm!r} is not allowed: {allowed}, for this encoder sees a {sees}")
        if point_mm is None:
            return self._resized(volume)
        check_grid(volume, self.config.input)
        return self._windowed(crops_at(volume, _points(asked, [point_mm]), self.config.input.size_vox))

    def _batched(self, crops_NDHW: Int16Array) -> Float32Array:
        parts, batch, first = [], batch_of(self.config.input.size_vox), 0
        with torch.inference_mode(), fixed_threads():
            while first < len(crops_NDHW):
                try:
                    vectors = self.vectors(self._windowed(crops_NDHW[first : first + batch])).float().cpu().numpy()
                except torch.OutOfMemoryError:  # of a GPU that others use too
                    if batch == 1:
                        raise UserError(
                            f"{self.device}: not enough memory free for one crop; device cpu has more"
                        ) from None
                    batch //= 2
                    continue
                parts.append(vectors)
                first += len(vectors)
        return np.concatenate(parts).astype(np.float32)

    def vectors(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """Vectors (B, dim) of what :meth:`seen` gives; gradients flow to it, for all else is frozen."""
        if self.config.pooling == "own":
            own: torch.Tensor = self.encoder(x_BCDHW)
            return own
        return pool_levels(self.encoder.levels(x_BCDHW), self.config.pooling)

    def _covering(self, volume: StoredVolume | Volume) -> tuple[npt.NDArray[np.float64], Int16Array]:
        """Centres in RAS mm, and crops, of the places of :meth:`embed_grid`."""
        check_grid(volume, self.config.input)
        size = self.config.input.size_vox
        whole = volume.read() if isinstance(volume, StoredVolume) else volume
        a, b, c = whole.hu.shape
        found = [(start, crop_of(whole, start, size)) for start in grid_starts((a, b, c), size)]
        found = [(start, crop) for start, crop in found if (crop > BODY_HU).mean() >= BODY_FRACTION]
        if not found:
            raise UserError(f"volume: no part of the volume {whole.hu.shape} holds enough body (HU > {BODY_HU})")
        centres_N3 = np.array([start for start, _ in found]) + np.array(size) // 2
        points_mm = centres_N3 @ whole.affine[:3, :3].T + whole.affine[:3, 3]
        return points_mm, np.stack([crop for _, crop in found])

    def _windowed(self, crops_NDHW: Int16Array) -> torch.Tensor:
        return apply_windows(torch.from_numpy(crops_NDHW).to(self.device), self.config.input.windows)

    def _resized(self, volume: StoredVolume | Volume) -> torch.Tensor:
        check_grid(volume, self.config.input)
        whole = volume.read() if isinstance(volume, StoredVolume) else volume
        return resize_windows(whole.hu, self.config.input.windows, self.config.input.size_vox)[None].to(self.device)

    def _sees_crops(self, asked: str) -> None:
        if self.config.input.sees == "scan":
            raise UserError(f"{asked}: this encoder sees whole scans; use embed_volume")


def _points(asked: str, points_mm: Any) -> npt.NDArray[np.float64]:
    try:
        points_N3 = np.asarray(points_mm, dtype=np.float64)
    except (TypeError, ValueError):  # ragged, or no numbers
        raise UserError(f"{asked}: points {points_mm!r} are not allowed: finite numbers, (N, 3)") from None
    if points_N3.ndim != 2 or points_N3.shape[1] != 3 or not np.isfinite(points_N3).all():
        raise UserError(f"{asked}: points of shape {points_N3.shape} are not allowed: finite numbers, (N, 3)")
    return points_N3


def described(folder: Path) -> EmbedConfig:
    """What ``encoder.json`` of ``folder`` says. Raises UserError where it is missing or not of this version."""
    _require(folder, DESCRIPTION)
    return parse(EmbedConfig, read_json(folder / DESCRIPTION), "", str(folder / DESCRIPTION))


def _require(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise UserError(f"encoder {folder}: {name} is missing; run the pretrain stage first")


def check_grid(volume: StoredVolume | Volume, wanted: InputConfig) -> None:
    """Raise UserError where a volume has not the spacing or the orientation that an encoder wants."""
    if not np.allclose(volume.spacing, wanted.spacing_mm, rtol=SPACING_TOLERANCE):
        spacing = ", ".join(f"{mm:g}" for mm in volume.spacing)
        raise UserError(f"volume: spacing {spacing} mm is not allowed: {list(wanted.spacing_mm)}; preprocess it")
    found = orientation_of(volume.affine)
    if found != wanted.orientation:
        raise UserError(f"volume: orientation {found} is not allowed: {wanted.orientation}; preprocess it")


def batch_of(size: tuple[int, int, int]) -> int:
    """Crops of ``size`` voxels that are embedded at once, so that memory does not grow with the published sizes; where
    a GPU has less, half of them, and so on."""
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


def untrained_embedder(config: EmbedConfig, seed: int, device: str = "cpu") -> Embedder:
    """The architecture with fresh weights from ``seed``: what pretraining has to beat."""
    return Embedder(build_encoder(config.encoder, config.input, seed), config, device)


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
def fixed_threads(count: int = THREADS) -> Iterator[None]:
    """Compute with a fixed number of threads, then put torch's own number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def imported(weights: Path, config: EmbedConfig, device: str = "cpu") -> Embedder:
    """An encoder from weights that were made elsewhere, such as CT-FM's public ones: every tensor by name and shape.

    Args:
        weights: safetensors; names as in :mod:`segres` or :mod:`vit`, with or without a leading ``encoder.``.
        config: the encoder's sizes and its input.
        device: where it runs.

    Raises:
        UserError: not safetensors, or other tensors than the encoder's; the message tells of all that is wrong.
    """
    own, rest = parted(read_weights(weights))
    encoder = build_encoder(config.encoder, config.input, seed=0)
    put(encoder, {**own, **rest}, f"weights {weights.name}: do not fit encoder {config.encoder.kind!r}")
    return Embedder(encoder, config, device)
