"""Where in another scan a point of one scan is, by what the encoder sees at it and round it (CT-FM's semantic search,
arXiv 2501.09001): the search that the kind ``locate`` of evaluation judges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.ct.store import voxel_of
from components.errors import UserError
from components.models.embed import Embedder
from components.tasks.lattice import Describer, Lattice, Scan, best_place, likeness, offsets, sought
from components.tasks.locate import FIGURES
from serving.asking import OTHER, SCAN, require_places
from serving.classifying import require_seen
from serving.embedding import DEFAULT_LIMITS, ServedBundle, read_scan
from serving.limits import Limits
from serving.sniff import InputError

STRIDE_MM = 24.0  # of the lattice at most; no more than a crop's least side, or places between crops would be missed
SHELLS = 4  # rings of neighbours that say what surrounds a point
PLACES = 3
APART = 2  # steps of the lattice between places, or they would be one
LEAST_KNOWN = 0.5
DIGITS = 4


def locate_files(
    path: Path,
    other: Path,
    bundle: ServedBundle,
    point: tuple[float, float, float],
    limits: Limits = DEFAULT_LIMITS,
) -> dict[str, Any]:
    """Find a point of one scan in another.

    Args:
        path: the scan that the point is of; as :func:`serving.embedding.embed_file`.
        other: the one that is searched.
        bundle: the release.
        point: RAS mm of the first scan.
        limits: of archives and volumes.

    Returns:
        JSON-like: ``places``, best first, each with ``point_mm``, RAS of the other scan, and ``similarity``, the mean
        cosine similarity of what lies at and round them, -1 to 1; ``stride_mm``, the distance between places that were
        compared; ``limits``, in words; ``model``; ``found`` and ``found_other``.

    Raises:
        InputError, UserError: as :func:`serving.embedding.embed_file`; or the point is not in the scan or not in the
            patient; or the encoder sees whole scans.
    """
    require_places(bundle.embedder.config.input.sees)
    with _of(SCAN):
        first = read_scan(path, bundle, limits)
    require_seen(first, bundle, point)
    with _of(OTHER):
        second = read_scan(other, bundle, limits)
        bundle.embedder.show(second.volume)  # raises where no place of it holds enough body
    embedder, scan, target = bundle.embedder, Scan.of(first.volume), Scan.of(second.volume)
    step = _step(embedder)
    voxel = np.floor(voxel_of(first.volume.affine, [point]) + 0.5).astype(np.int64)
    if not scan.has(voxel)[0]:
        raise InputError(f"point_mm {', '.join(f'{mm:g}' for mm in point)} is in the air round the patient")
    describer = Describer(embedder.embed_crops, embedder.config.input.size_vox)
    lattice = Lattice.over(target, step, describer)
    around = voxel + offsets(SHELLS) * step
    known = float(((around >= 0) & (around < first.volume.hu.shape)).all(axis=1).mean())
    alike = likeness(lattice, sought(scan, voxel, step, SHELLS, describer), SHELLS, describer.air)[0]
    stride = [round(float(n * mm), DIGITS) for n, mm in zip(step, embedder.config.input.spacing_mm, strict=True)]
    return {
        "places": _places(alike, lattice, target), "stride_mm": stride, "limits": _limits(bundle, known),
        "model": bundle.model, "found": first.to_json(), "found_other": second.to_json(),
    }  # fmt: skip


@contextmanager
def _of(field: str) -> Iterator[None]:
    """What is refused within is told with the scan that it is of."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{field}: {error}", error.status) from None
    except UserError as error:
        raise UserError(f"{field}: {error}") from None


def _step(embedder: Embedder) -> npt.NDArray[np.int64]:
    """Voxels from node to node along each axis."""
    seen = embedder.config.input
    spacing = np.array(seen.spacing_mm)
    stride = min(STRIDE_MM, float((np.array(seen.size_vox) * spacing).min()))
    step: npt.NDArray[np.int64] = np.maximum(1, np.rint(stride / spacing)).astype(np.int64)
    return step


def _places(alike: npt.NDArray[np.float64], lattice: Lattice, target: Scan) -> list[dict[str, Any]]:
    """The best places, some steps apart."""
    left = alike.copy()
    found: list[dict[str, Any]] = []
    nodes = np.indices(alike.shape)
    while len(found) < PLACES and left.max() > -1:
        best = np.unravel_index(int(left.argmax()), left.shape)
        place = best_place(left)
        voxel = np.clip(lattice.voxels(place[None])[0], 0, np.array(target.volume.hu.shape) - 1)
        point = target.volume.affine @ [*voxel, 1.0]
        found.append({"point_mm": [round(float(mm), 2) for mm in point[:3]],
                      "similarity": round(float(alike[best]), DIGITS)})  # fmt: skip
        left[np.abs(nodes - np.array(best)[:, None, None, None]).max(axis=0) < APART] = -1.0
    return found


def _limits(bundle: ServedBundle, known: float) -> list[str]:
    """``known``: share of the places round the point that are in its scan."""
    told = ["A place is found in every scan, also where the other scan does not show what was pointed at."]
    if known < LEAST_KNOWN:
        told.append(f"Only {known:.0%} of what lies round the point is in its scan: its place in the other is a guess.")
    for task, figures in sorted(bundle.figures.items()):
        if set(figures) == set(FIGURES):
            inside = figures["inside"]
            share = f"{inside['value']:.3f} [{inside['low']:.3f}, {inside['high']:.3f}]"
            told.append(f"In the release's task {task}, {share} of such places lay inside the structure that was "
                        f"pointed at; with untrained encoders {inside['random']:.3f}.")  # fmt: skip
    return told
