"""A released bundle, loaded, and a file turned into its vector: the same code offline and in the service."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from components.bundle.manifest import Manifest
from components.bundle.signature import verify_release
from components.ct.grid import GridConfig
from components.ct.measure import measure_volume
from components.ct.standardise import crop_to_body, find_body, resample_only
from components.ct.store import Volume
from components.curate.config import CurateConfig
from components.curate.suite import volumes_suite
from components.errors import UserError
from components.files import read_json
from components.models.embed import Embedder
from components.models.heads import Head, load_heads
from components.models.segment_head import SegmentHead, load_segment_heads
from components.quality.rules import Suite
from components.screen.config import ScreenConfig
from components.screen.suite import headers_suite
from components.settings import parse
from serving.drifting import Profile, bins_of, far_from, profile_of
from serving.judging import warnings_of
from serving.limits import Limits
from serving.reading import Reading, axes_of, check_size, read_upload
from serving.sniff import kind_of

DECIMALS = 4
DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class ServedBundle:
    """A verified release folder in memory; ``heads`` by part, as :func:`components.models.heads.load_heads`, and
    ``figures`` of its evaluation, task to figure to ``value``, ``low``, ``high`` and what stands beside it; the
    ``profile`` of its training data, empty where it has none."""

    manifest: Manifest
    embedder: Embedder
    preprocess: GridConfig
    headers: Suite
    volumes: Suite
    only_largest_stack: bool
    heads: dict[str, Head]
    segmenters: dict[str, SegmentHead] = field(default_factory=dict)
    figures: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    profile: Profile = field(default_factory=dict)

    @property
    def model(self) -> dict[str, str]:
        """What an answer says it comes from."""
        return {"name": self.manifest.name, "digest": self.manifest.digest}


@dataclass(frozen=True)
class Grid:
    """A volume's array: voxels and mm along each axis, and where the axes point, such as SPL."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str


@dataclass(frozen=True)
class Found:
    """What the file held.

    Attributes:
        kind: ``dicom`` or ``nifti``.
        series: pseudonym of the series (never its UID), empty for NIfTI.
        instances: DICOM files used.
        ignored: reason to number of files not used.
        as_sent, standardised: grids before and after preprocessing.
        body_fraction: share of the standardised volume that is body.
        warnings: what training would have rejected, and in what the scan is unlike every training series, one line
            each; the vector is given all the same.
        profile: feature of the training set's data profile to the bin that the scan falls into.
    """

    kind: str
    series: str
    instances: int
    ignored: dict[str, int]
    as_sent: Grid
    standardised: Grid
    body_fraction: float
    warnings: tuple[str, ...]
    profile: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The vector of one scan: float32 of shape (dim,), and where it comes from."""

    embedding: npt.NDArray[np.float32]
    model: dict[str, str]
    found: Found

    def to_json(self) -> dict[str, Any]:
        """JSON-like content of the service's answer."""
        vector = [float(value) for value in self.embedding]
        return {"embedding": vector, "dim": len(vector), "model": self.model, "found": asdict(self.found)}


def open_release(folder: Path, device: str = "cpu") -> ServedBundle:
    """Verify a release folder and load its encoder and heads.

    Raises:
        UserError: as :func:`components.bundle.signature.verify_release`; or this code cannot read it.
    """
    manifest = verify_release(folder).manifest
    grid_file, bounds_file = folder / "preprocess.json", folder / "acceptance.json"
    metrics, profile = folder / "metrics.json", folder / "profile.json"
    preprocess = parse(GridConfig, read_json(grid_file), "", str(grid_file))
    bounds = read_json(bounds_file)
    return ServedBundle(
        manifest,
        Embedder.load(folder, device=device),
        preprocess,
        headers=headers_suite(parse(ScreenConfig, bounds["headers"], "headers", str(bounds_file)), rows=1),
        volumes=volumes_suite(parse(CurateConfig, bounds["volumes"], "volumes", str(bounds_file)), rows=1),
        only_largest_stack=bounds.get("mixed_series") == "largest_stack",
        heads=load_heads(folder),
        segmenters=load_segment_heads(folder),
        figures=read_json(metrics)["tasks"] if metrics.is_file() else {},
        profile=profile_of(read_json(profile)) if profile.is_file() else {},
    )


def embed_file(path: Path, bundle: ServedBundle, limits: Limits = DEFAULT_LIMITS) -> Answer:
    """Embed one CT scan.

    Args:
        path: a zip of one DICOM series, or a NIfTI volume; recognised by content, whatever its name.
        bundle: the release.
        limits: of archive and volume; memory and time are those of the process, see :mod:`components.confined`.

    Raises:
        InputError, UserError: the file holds no single readable CT volume, or is beyond the limits.
    """
    scan = read_scan(path, bundle, limits)
    return Answer(volume_vector(scan, bundle), bundle.model, scan.found)


@dataclass(frozen=True)
class Scan:
    """One scan as it was sent and on the model's grid, what was found in its file, its images' headers where they were
    asked for, and its patient's pseudonym, empty where none is named."""

    sent: Volume
    volume: Volume
    found: Found
    images: tuple[pydicom.Dataset, ...] = ()
    patient: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-like content of what was found."""
        return asdict(self.found)


def read_scan(path: Path, bundle: ServedBundle, limits: Limits, with_images: bool = False) -> Scan:
    """Read and standardise the one scan of a file, and judge it. Raises as :func:`embed_file`."""
    reading = read_upload(path, kind_of(path), limits, bundle.only_largest_stack, with_images)
    sent, grid = reading.volume, bundle.preprocess
    check_size(sent.hu.shape, sent.affine, grid.spacing_mm, limits.voxels)
    resampled = resample_only(sent, grid)
    body = find_body(resampled, grid.foreground_hu)
    volume = crop_to_body(resampled, body, grid.foreground_margin_mm)
    measured = measure_volume(sent, resampled, body)
    both = {**reading.measurements, **measured}
    warnings = (*warnings_of(reading.measurements, bundle.headers), *warnings_of(measured, bundle.volumes),
                *far_from(both, bundle.profile))  # fmt: skip
    found = _found(reading, volume, measured["body_fraction"], warnings, bins_of(both, bundle.profile))
    return Scan(sent, volume, found, reading.images, reading.patient)


def volume_vector(scan: Scan, bundle: ServedBundle) -> npt.NDArray[np.float32]:
    """The vector (dim,) of the whole scan. Raises UserError where it is not finite."""
    vector = np.asarray(bundle.embedder.embed_volume(scan.volume), dtype=np.float32)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise UserError("the model gives no finite vector for this volume; is it a CT in HU?")
    return vector


def _found(
    reading: Reading, volume: Volume, body_fraction: float, warnings: tuple[str, ...], profile: dict[str, str]
) -> Found:
    return Found(
        kind=reading.kind,
        series=reading.series,
        instances=reading.instances,
        ignored=reading.ignored,
        as_sent=_grid(reading.volume),
        standardised=_grid(volume),
        body_fraction=body_fraction,
        warnings=warnings,
        profile=profile,
    )


def _grid(volume: Volume) -> Grid:
    spacing = tuple(round(mm, DECIMALS) for mm in volume.spacing)
    return Grid(tuple(volume.hu.shape), spacing, axes_of(volume.affine))
