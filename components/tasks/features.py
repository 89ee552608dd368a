"""Features of every place that a task asks for, by every method: a volume is opened once, a place embedded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.ct.grid import GridConfig
from components.ct.store import Int16Array, StoredVolume, Volume, crops_at
from components.errors import UserError
from components.figures.arrays import Array
from components.files import replacing, sha256_file
from components.models.embed import Embedder
from components.progress import track
from components.sources.lidc import ROOT, nodule_file, read_ratings
from components.sources.roots import root_of
from components.tasks.config import EvaluateConfig
from components.tasks.nodules import read_nodule

AnyVolume = StoredVolume | Volume
PLACE = ["volume", "x", "y", "z"]
ARRAY = ".npy"
BATCH = 64  # crops given to a method at once, from as many volumes as it takes


@dataclass(frozen=True)
class Crops:
    """Crops of equal size, voxel size and orientation, each with its point in the middle.

    Attributes:
        hu: int16 (N, n0, n1, n2).
        directions: (3, 3), the first three rows and columns of the volumes' affines.
    """

    hu: npt.NDArray[np.int16]
    directions: Array


@dataclass(frozen=True)
class Method:
    """One way to turn CT into a vector.

    Attributes:
        points: crops round N points to features (N, dimension).
        whole: volume, or what ``show`` makes of it, to a feature (dimension,).
        patch: size of the crops in voxels; None for those of the encoder that is judged.
        show: what is made of a volume once for all methods of equal ``view``; None: ``whole`` takes the volume.
        view: names what ``show`` makes.
    """

    points: Callable[[Crops], npt.NDArray[np.floating]]
    whole: Callable[[Any], npt.NDArray[np.floating]]
    patch: tuple[int, int, int] | None = None
    show: Callable[[AnyVolume], Any] | None = None
    view: str = ""


@dataclass(frozen=True)
class Peer:
    """An encoder of others, which stands beside ours on the same cases.

    Attributes:
        size_vox: of the crops that it sees, or to which it resizes a scan.
        embed_crops: int16 HU (N, *size_vox) on the line's grid to finite vectors (N, dimension).
        embed_volume: a volume on the line's grid to a finite vector (dimension,).
        embedder: of a release, whose levels a decoder can be trained on; None of a user's function, which returns
            vectors and nothing else.
    """

    size_vox: tuple[int, int, int]
    embed_crops: Callable[[Int16Array], npt.NDArray[np.floating]]
    embed_volume: Callable[[AnyVolume], npt.NDArray[np.floating]]
    embedder: Embedder | None = None


def encoder_method(embedder: Embedder) -> Method:
    """An encoder, untouched."""
    view = f"{embedder.config.input.model_dump_json()} {embedder.device}"
    return Method(lambda crops: embedder.embed_crops(crops.hu), embedder.embed_shown, show=embedder.show, view=view)


def peer_method(peer: Peer) -> Method:
    """Another's encoder, in crops of its own size."""
    return Method(lambda crops: peer.embed_crops(crops.hu), peer.embed_volume, peer.size_vox)


class Volumes:
    """Opens what the task table names: stored volumes by path, nodules by ``lidc_nodules:<row>``."""

    def __init__(self, config: EvaluateConfig, preprocess: GridConfig, patch: tuple[int, int, int]) -> None:
        self._config, self._preprocess, self._patch = config, preprocess, patch
        self._nodules: dict[str, Path] = {}
        if config.lidc_nodules is not None:
            root = root_of(ROOT)
            labels = read_ratings(root, config.lidc_nodules)
            named = zip(labels["volume"], labels["file"], strict=True)
            self._nodules = {str(volume): nodule_file(root, str(name)) for volume, name in named}

    def open(self, name: str) -> AnyVolume:
        """Raises UserError where a stored volume is missing."""
        if name in self._nodules:
            return read_nodule(self._nodules[name], self._preprocess, self._config.nodule_window_mm, self._patch)
        try:
            return StoredVolume(Path(name))
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{error}; run `dvc repro` to make it again") from None

    def sha256(self, name: str) -> str:
        """Digest of the file behind a name."""
        return sha256_file(self._nodules.get(name, Path(name)))


@dataclass(frozen=True)
class Features:
    """Features by place.

    Attributes:
        places: place (see :func:`place_of`) to row.
        by_method: method to (rows, dimension).
    """

    places: Mapping[str, int]
    by_method: Mapping[str, npt.NDArray[np.floating]]

    @property
    def methods(self) -> list[str]:
        """All methods, sorted."""
        return sorted(self.by_method)

    def of(self, method: str, rows: pd.DataFrame) -> Array:
        """Features (cases, dimension) of rows of a task's table."""
        found = self.by_method[method][[self.places[place] for place in place_of(rows)]]
        return np.asarray(found, dtype=np.float64)

    def write(self, folder: Path) -> None:
        """One array per method, in the order of the places, beside each other."""
        for name, found in self.by_method.items():
            with replacing(folder / f"{name}{ARRAY}") as temporary, temporary.open("wb") as stream:
                np.save(stream, found, allow_pickle=False)

    @classmethod
    def read(cls, places: pd.DataFrame, *folders: Path) -> Features:
        """What was written, opened and not loaded: a task reads the rows that it needs.

        Raises:
            UserError: an array is not of these places.
        """
        paths = [path for folder in folders for path in sorted(folder.glob(f"*{ARRAY}"))]
        found = {path.name.removesuffix(ARRAY): np.load(path, mmap_mode="r", allow_pickle=False) for path in paths}
        for path in paths:
            if len(found[path.name.removesuffix(ARRAY)]) != len(places):
                raise UserError(f"{path}: features of other places; run `dvc repro` to make it again")
        return cls({place: row for row, place in enumerate(place_of(places))}, found)


def place_of(rows: pd.DataFrame) -> list[str]:
    """One text per row that is equal for equal (volume, point)."""
    return [f"{volume} {x:.4f} {y:.4f} {z:.4f}" for volume, x, y, z in rows[PLACE].itertuples(index=False)]


def places_of(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The distinct places of several tables: volume, x, y, z, sorted."""
    rows = pd.concat([table[PLACE] for table in tables]) if tables else pd.DataFrame(columns=PLACE)
    distinct = rows.assign(place=place_of(rows)).drop_duplicates("place").sort_values(["volume", "place"])
    return distinct[PLACE].reset_index(drop=True)


def _of_whole(volume: AnyVolume, methods: Mapping[str, Method]) -> Iterator[tuple[str, npt.NDArray[np.floating]]]:
    shown: dict[str, Any] = {}  # by view: twenty untrained encoders are shown the same
    for name, method in methods.items():
        if method.show is not None and method.view not in shown:
            shown[method.view] = method.show(volume)
        yield name, method.whole(volume if method.show is None else shown[method.view])


def extract(
    places: pd.DataFrame, methods: Mapping[str, Method], volumes: Volumes, patch: tuple[int, int, int]
) -> Features:
    """Features of every place by every method; progress goes to stderr.

    Args:
        places: see :func:`places_of`.
        methods: by name.
        volumes: opens what the places name.
        patch: of a crop round a point.
    """
    found: dict[str, dict[int, npt.NDArray[np.floating]]] = {name: {} for name in methods}
    sizes = {name: method.patch or patch for name, method in methods.items()}
    waiting: dict[int, dict[tuple[int, int, int], Int16Array]] = {}  # of a row its crop of every size
    directions = np.eye(3)

    def embed_waiting() -> None:
        for name, method in methods.items() if waiting else ():
            crops = Crops(np.stack([of[sizes[name]] for of in waiting.values()]), directions)
            found[name].update(zip(waiting, method.points(crops), strict=True))
        waiting.clear()

    for volume_name, rows in track(places.groupby("volume"), [1] * places["volume"].nunique(), "embedding"):
        volume = volumes.open(str(volume_name))
        directions = volume.affine[:3, :3]  # of every volume the same: they are on the line's grid
        for row, x, y, z in rows[["x", "y", "z"]].itertuples():
            if np.isnan(x):
                whole = volume.read() if isinstance(volume, StoredVolume) else volume
                for name, feature in _of_whole(whole, methods):
                    found[name][row] = feature
            else:
                waiting[row] = {size: crops_at(volume, [[x, y, z]], size)[0] for size in set(sizes.values())}
        if len(waiting) >= BATCH:
            embed_waiting()
    embed_waiting()
    by_method = {name: np.stack([of[row] for row in range(len(places))]) for name, of in found.items() if of}
    for name, features in by_method.items():
        wrong = int((~np.isfinite(features)).sum())
        if wrong:
            raise ValueError(f"features of method {name!r}: {wrong} values are not finite")
    return Features({place: row for row, place in enumerate(place_of(places))}, by_method)
