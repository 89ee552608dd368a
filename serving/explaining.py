"""On what a head's answer for one scan rests: a map on the grid of the scan as it was sent.

By occlusion, a block of what the encoder sees is replaced by the mean of it all, and the map says by how much the log
odds of a class fall; by integrated gradients, what each voxel adds to them. Where the encoder sees crops and the head
the mean over a whole scan, the places are left out of that mean one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import torch
from scipy.special import expit

from components.ct.store import FloatArray, voxel_of
from components.errors import UserError
from components.models.embed import Embedder
from components.models.heads import Head
from components.tasks.lattice import Scan as Body
from components.tasks.saliency_maps import Blocks, integrated_gradients, occlusion
from serving.asking import BLOCKS_AN_AXIS, CLASS, WAYS, head_of, one_of, require_gradients, require_point
from serving.classifying import require_seen
from serving.embedding import DEFAULT_LIMITS, Scan, ServedBundle, read_scan
from serving.limits import Limits
from serving.overlays import nifti_bytes, onto
from serving.reading import header_values
from serving.sniff import InputError

DIGITS = 6
STEPS = 12  # of the integral
LEAST = 0.001  # log odds: a map below it is rounding
LIMITS = (
    "The map shows what the answer rests on, which may be a cause, a companion or chance; it is no segmentation.",
    "Where the head is wrong, so is what its map points at.",
)
Float32Array = npt.NDArray[np.float32]
LogOdds = Callable[[torch.Tensor], torch.Tensor]  # vectors (B, dim), float64, to (B,)


@dataclass(frozen=True)
class Wanted:
    """What is to be explained, and how; see the parameters of ``POST /saliency``.

    Attributes:
        part: the head; None where the release has one.
        of_class: one of its classes; None for the positive one, or of several the likeliest.
        point: RAS mm, for a head that sees a point.
        way: occlusion or gradients.
        blocks: along each axis, for occlusion.
    """

    part: str | None = None
    of_class: str | None = None
    point: tuple[float, float, float] | None = None
    way: str = WAYS[0]
    blocks: int = BLOCKS_AN_AXIS


DEFAULT = Wanted()


@dataclass(frozen=True)
class Explained:
    """What an answer rests on.

    Attributes:
        values: float32, of the shape of the scan as it was sent; log odds, 0 where nothing was seen.
        affine: of them, to RAS mm.
        content: JSON-like: ``part``, ``of_class``, ``way``, ``blocks``; ``log_odds`` and ``probability`` of the
            class; ``highest`` and ``lowest``, the ``value`` and the ``point_mm`` of its middle; ``limits``, in words;
            ``model`` and ``found``.
        hu: of the scan as it was sent.
        asked: the point, where one was asked for; with the content, it says what the map is of.
        images: headers of the scan's images, where they were asked for.
    """

    values: Float32Array
    affine: FloatArray
    content: dict[str, Any]
    hu: npt.NDArray[np.int16]
    asked: tuple[float, float, float] | None = None
    images: tuple[pydicom.Dataset, ...] = ()

    def as_nifti(self) -> bytes:
        """The map as .nii.gz; equal maps give equal bytes."""
        return nifti_bytes(self.values, self.affine)

    def as_dicom(self) -> bytes:
        """The map as a DICOM Parametric Map in the scan's study. Raises InputError where the scan was sent as NIfTI, or
        as :func:`serving.dicom_map.dicom_map`."""
        from serving.dicom_map import dicom_map  # highdicom takes half a second

        self._require_images()
        with header_values():
            return dicom_map(self.images, self.values, self.affine, self._told(), self.content["model"])

    def as_capture(self) -> bytes:
        """The slice with the highest value as a DICOM Secondary Capture. Raises as :meth:`as_dicom`."""
        from serving.dicom_map import dicom_capture

        self._require_images()
        with header_values():
            return dicom_capture(
                self.images, self.values, self.hu, self.affine, self._told(), self.content["model"]
            )  # fmt: skip

    def _told(self) -> dict[str, Any]:
        return {**self.content, "point_mm": self.asked}

    def _require_images(self) -> None:
        if not self.images:
            raise InputError("a DICOM map refers to DICOM images, and the scan was sent as NIfTI; ask for NIfTI")


@dataclass(frozen=True)
class _Map:
    """Of what was seen.

    Attributes:
        values: (a, b, c) log odds.
        affine: of them, to RAS mm.
        looked: (a, b, c) what the values are of; elsewhere there is no patient.
        number: (a, b, c) the block of each.
        blocks: along each axis.
    """

    values: npt.NDArray[np.float64]
    affine: FloatArray
    looked: npt.NDArray[np.bool_]
    number: npt.NDArray[np.int64]
    blocks: tuple[int, ...]


def saliency_file(
    path: Path,
    bundle: ServedBundle,
    wanted: Wanted = DEFAULT,
    limits: Limits = DEFAULT_LIMITS,
    with_images: bool = False,
) -> Explained:
    """Explain a head's answer for one CT scan.

    Args:
        path: as :func:`serving.embedding.embed_file`.
        bundle: the release.
        wanted: what of it.
        limits: of archive and volume.
        with_images: whether the headers of its images are kept.

    Raises:
        InputError, UserError: as :func:`serving.embedding.embed_file`; or there is no such head or class; or a point is
            missing, not allowed, or not in the scan; or the way is not one for this head.
    """
    part = head_of(bundle.heads, wanted.part, "classify")
    head, embedder = bundle.heads[part], bundle.embedder
    require_point(wanted.point, head.description.sees, f"head {part}")
    places = head.description.sees == "scan" and embedder.config.input.sees == "crop"
    if wanted.way == "gradients":
        require_gradients(head.description.sees, embedder.config.input.sees)
    if wanted.of_class is not None:
        one_of(CLASS, wanted.of_class, head.description.classes)
    scan = read_scan(path, bundle, limits, with_images)
    if wanted.point is not None:
        require_seen(scan, bundle, wanted.point)
    vector = _vector(scan, embedder, wanted.point)
    name = wanted.of_class or head.description.positive or _likeliest(head, vector)
    log_odds = log_odds_of(head, name)
    score = float(log_odds(torch.from_numpy(vector[None].astype(np.float64)))[0])
    found = _of_places(scan, embedder, log_odds) if places else _of_seen(scan, embedder, log_odds, wanted)
    if not (np.isfinite(score) and np.isfinite(found.values).all()):
        raise UserError("the model gives no finite answer for this volume; is it a CT in HU?")
    content = {
        "part": part, "of_class": name, "way": wanted.way, "blocks": list(found.blocks),
        "log_odds": round(score, DIGITS), "probability": round(float(expit(score)), DIGITS),
        "highest": _extreme(found, 1), "lowest": _extreme(found, -1),
        "limits": [*LIMITS, *_unmoved(found), *head.description.limits], "model": bundle.model, "found": scan.to_json(),
    }  # fmt: skip
    values = onto(found.values.astype(np.float32), found.affine, scan.sent)
    return Explained(values, scan.sent.affine, content, scan.sent.hu, wanted.point, scan.images)


def log_odds_of(head: Head, name: str) -> LogOdds:
    """Log odds of one class against all others, calibrated as the head's answers are."""
    linear, told = head.linear, head.description
    weight = linear.weight / linear.scale / told.temperature
    bias = (linear.bias - (linear.mean / linear.scale) @ linear.weight.T) / told.temperature + np.log(told.priors)
    weight_KD, bias_K = torch.from_numpy(weight), torch.from_numpy(bias)
    at = told.classes.index(name)
    others = [index for index in range(len(told.classes)) if index != at]

    def log_odds(vectors_BD: torch.Tensor) -> torch.Tensor:
        logits_BK = vectors_BD @ weight_KD.to(vectors_BD.device).T + bias_K.to(vectors_BD.device)
        return logits_BK[:, at] - torch.logsumexp(logits_BK[:, others], dim=1)

    return log_odds


def _vector(scan: Scan, embedder: Embedder, point: tuple[float, float, float] | None) -> Float32Array:
    if point is None:
        return embedder.embed_volume(scan.volume)
    of_point: Float32Array = embedder.embed_points(scan.volume, [point])[0]
    return of_point


def _likeliest(head: Head, vector: Float32Array) -> str:
    return head.description.classes[int(head.probabilities(vector[None])[0].argmax())]


def _of_seen(scan: Scan, embedder: Embedder, log_odds: LogOdds, wanted: Wanted) -> _Map:
    """Of the crop round a point, or of a whole scan that the encoder sees at once."""
    volume, size = scan.volume, embedder.config.input.size_vox
    seen = embedder.seen(volume, wanted.point)
    shape = size if wanted.point is not None else volume.hu.shape
    pace = np.array(shape) / size  # voxels of the volume to one that is seen
    first = np.zeros(3)
    if wanted.point is not None:
        first = np.floor(voxel_of(volume.affine, wanted.point) + 0.5) - np.array(size) // 2
    blocks = Blocks.of(size, (wanted.blocks, wanted.blocks, wanted.blocks))
    middles = first + (blocks.centres() + 0.5) * pace - 0.5
    inside = Body.of(volume).has(np.rint(middles).astype(np.int64))
    if not inside.any():
        raise InputError("nothing of the patient is in what the head sees there: there is nothing to explain")

    def answer(x_BCDHW: torch.Tensor) -> torch.Tensor:
        return log_odds(embedder.vectors(x_BCDHW).double())

    affine, looked = _scaled(volume.affine, first + 0.5 * pace - 0.5, pace), inside[blocks.number]
    if wanted.way == "gradients":
        values = integrated_gradients(answer, seen, STEPS)
        return _Map(values, affine, looked, np.arange(values.size).reshape(size), size)
    values = occlusion(answer, seen, blocks, np.flatnonzero(inside).astype(np.int64))[blocks.number]
    return _Map(values, affine, looked, blocks.number, tuple(min(wanted.blocks, n) for n in size))


def _of_places(scan: Scan, embedder: Embedder, log_odds: LogOdds) -> _Map:
    """Of the mean over the places that cover a volume: what it loses without each."""
    grid, size = embedder.embed_grid(scan.volume), np.array(embedder.config.input.size_vox)
    vectors_ND = grid.vectors.astype(np.float64)
    count = len(vectors_ND)
    if count == 1:
        raise InputError("the whole scan is one place to this encoder: there is nothing to compare it with")
    without_ND = (vectors_ND.sum(axis=0) - vectors_ND) / (count - 1)
    score = log_odds(torch.from_numpy(vectors_ND.mean(axis=0, keepdims=True)))
    fall = (score - log_odds(torch.from_numpy(without_ND))).numpy()
    starts = np.rint(voxel_of(scan.volume.affine, grid.points_mm)).astype(np.int64) - size // 2
    first = starts.min(axis=0)
    cells = (starts - first) // size
    shape = tuple(int(n) for n in cells.max(axis=0) + 1)
    values, looked = np.zeros(shape), np.zeros(shape, dtype=np.bool_)
    values[tuple(cells.T)], looked[tuple(cells.T)] = fall, True
    number = np.arange(values.size).reshape(shape)
    return _Map(values, _scaled(scan.volume.affine, first + size / 2 - 0.5, size), looked, number, shape)


def _scaled(affine: FloatArray, first: npt.NDArray[np.float64], pace: npt.NDArray[np.number]) -> FloatArray:
    """Affine of a coarser grid: the middle of its first cell in voxels, and voxels to a cell along each axis."""
    cell = np.eye(4)
    cell[:3, :3], cell[:3, 3] = np.diag(pace), first
    scaled: FloatArray = affine @ cell
    return scaled


def _unmoved(found: _Map) -> list[str]:
    most = float(np.abs(found.values[found.looked]).max())
    return [] if most >= LEAST else [f"Nothing that was looked at changes the log odds by {LEAST}: ignore the places."]


def _extreme(found: _Map, sign: int) -> dict[str, Any]:
    """The highest block, or with -1 the lowest, of those that were looked at: its value, and its middle."""
    top = np.where(found.looked, sign * found.values, -np.inf)
    at = np.unravel_index(int(top.argmax()), top.shape)
    point = found.affine @ [*np.argwhere(found.number == found.number[at]).mean(axis=0), 1.0]
    return {"value": round(float(found.values[at]), DIGITS), "point_mm": [round(float(mm), 2) for mm in point[:3]]}
