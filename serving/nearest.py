"""Which cases of an index are most like a scan: the nearest vectors, of other patients.

An index is one file, safetensors, made by ``ctfoundry index``: the vectors of scans, and beside them, in its header,
whose they are by pseudonym and what is known of them. It lies outside the release, for it is of a site's own patients.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from components.errors import UserError
from components.files import replacing, sha256_file
from serving.asking import INDEX_VARIABLE, NEAREST_CASES
from serving.embedding import DEFAULT_LIMITS, ServedBundle, read_scan, volume_vector
from serving.limits import Limits

FORMAT, VECTORS, HEADER = 1, "vectors", "ctfoundry"
DIGITS = 6
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Indexed:
    """A scan of an index.

    Attributes:
        case: pseudonym of its series.
        patient: pseudonym.
        collection: where it is from.
        labels: what is known of it, kind to names: ``finding`` to ``ich`` and ``sdh``.
    """

    case: str
    patient: str
    collection: str
    labels: dict[str, list[str]]


@dataclass(frozen=True)
class Index:
    """Vectors of scans by one release.

    Attributes:
        release: digest of it.
        cases: N scans.
        vectors: float32 (N, dim).
        digest: hex SHA-256 of the file; empty before it is written.
    """

    release: str
    cases: tuple[Indexed, ...]
    vectors: Float32Array
    digest: str = ""

    def write(self, path: Path) -> None:
        """Write the file atomically; equal indices give equal bytes."""
        told = {"format": FORMAT, "release": self.release, "cases": [asdict(case) for case in self.cases]}
        header = {HEADER: json.dumps(told, sort_keys=True, separators=(",", ":"))}
        with replacing(path) as temporary:
            safetensors.numpy.save_file({VECTORS: np.ascontiguousarray(self.vectors)}, temporary, header)

    @classmethod
    def read(cls, path: Path) -> Index:
        """Raises UserError where there is no such file, or it is no index."""
        if not path.is_file():
            raise UserError(f"index {path.name!r}: no such file; make it with `ctfoundry index`")
        wrong = f"index {path.name!r}: not an index of format {FORMAT}; make it with `ctfoundry index`"
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                told = json.loads((file.metadata() or {})[HEADER])
                vectors = file.get_tensor(VECTORS)
            if told["format"] != FORMAT:
                raise UserError(wrong)
            cases = tuple(Indexed(**case) for case in told["cases"])
            release = str(told["release"])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError):
            raise UserError(wrong) from None
        if vectors.dtype != np.float32 or vectors.shape[:1] != (len(cases),) or vectors.ndim != 2 or not cases:
            raise UserError(
                f"index {path.name!r}: {vectors.dtype} {vectors.shape} of {len(cases)} cases is not allowed"
            )
        if not np.isfinite(vectors).all():
            raise UserError(f"index {path.name!r}: holds vectors that are not finite")
        return cls(release, cases, vectors, sha256_file(path))

    @classmethod
    def from_environment(cls, release: str) -> Index | None:
        """The one that ``CTFOUNDRY_INDEX`` names. Raises UserError as :meth:`read`, or for one of another release."""
        named = os.environ.get(INDEX_VARIABLE, "").strip()
        if not named:
            return None
        index = cls.read(Path(named))
        if index.release != release:
            raise UserError(
                f"{INDEX_VARIABLE}: {Path(named).name!r} is of release {index.release[:12]}, and this one is "
                f"{release[:12]}: their vectors cannot be compared; make the index again with `ctfoundry index`"
            )
        return index

    def nearest(self, vector: Float32Array, patient: str, count: int) -> tuple[list[dict[str, Any]], int]:
        """The cases most like a vector, of other patients, best first; and how many cases of the patient were left
        out.

        Args:
            vector: float32 (dim,).
            patient: pseudonym, empty where it is not known.
            count: of them, at most.
        """
        others = np.array([not patient or case.patient != patient for case in self.cases])
        similarity = _unit(self.vectors) @ _unit(vector[None])[0]
        order = [int(at) for at in np.argsort(-similarity, kind="stable") if others[at]][:count]
        found = [
            {**asdict(self.cases[at]), "similarity": round(float(np.clip(similarity[at], -1, 1)), DIGITS)}
            for at in order
        ]
        return found, int((~others).sum())


def retrieve_file(
    path: Path, bundle: ServedBundle, index: Index, count: int = NEAREST_CASES, limits: Limits = DEFAULT_LIMITS
) -> dict[str, Any]:
    """Find the cases of an index most like one CT scan.

    Args:
        path: as :func:`serving.embedding.embed_file`.
        bundle: the release.
        index: of that release.
        count: of the cases, at most.
        limits: of archive and volume.

    Returns:
        JSON-like: ``nearest``, see :meth:`Index.nearest`, each with ``case``, ``patient``, ``collection``, ``labels``
        and ``similarity``, the cosine of the vectors; ``left_out``, cases of the same patient; ``index``, its digest
        and what it holds; ``limits``, in words; ``model`` and ``found``.

    Raises:
        InputError, UserError: as :func:`serving.embedding.embed_file`.
    """
    scan = read_scan(path, bundle, limits)
    nearest, left_out = index.nearest(volume_vector(scan, bundle), scan.patient, count)
    told = ["Cases are near by what the encoder sees of the whole scan, which need not be what is asked about."]
    if not scan.patient:
        told.append("The scan names no patient: cases of the same patient may be among the nearest.")
    return {
        "nearest": nearest, "left_out": left_out, "index": account_of(index), "limits": told, "model": bundle.model,
        "found": scan.to_json(),
    }  # fmt: skip


def account_of(index: Index) -> dict[str, Any]:
    """What an index holds: ``digest``, ``cases`` and ``patients``."""
    return {"digest": index.digest, "cases": len(index.cases), "patients": len({case.patient for case in index.cases})}


def labels_of(rows: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Kind to names, sorted, of pairs of kind and name."""
    return {kind: sorted({name for of, name in rows if of == kind}) for kind in sorted({of for of, _ in rows})}


def _unit(vectors: Float32Array) -> npt.NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    unit: npt.NDArray[np.float64] = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit
