"""Kind ``locate``: a point in one patient's scan finds its place in another's, by the vectors of crops alone.

CT-FM's semantic search (arXiv 2501.09001), judged by label maps: does the place that is found lie in the structure that
was pointed at? Every query scan is looked for in every target scan. Query patients and target patients are others, and
each side is drawn by itself: a pair counts as often as its query patient was drawn times its target patient, which
holds the chance of both (Owen, Ann. Appl. Stat. 2007, of two-way arrays: on the safe side where the two interact).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from components.ct.store import voxel_of
from components.figures.arrays import Array, Integers
from components.progress import track
from components.settings import StageConfig
from components.sources.config import Name
from components.tasks.config import LINE
from components.tasks.interface import Kind, Measure, Outcome, Question, Scanned, of_organs
from components.tasks.lattice import Describer, Lattice, Scan, best_place, likeness, sought
from components.tasks.mapped import innermost, named, with_map
from components.tasks.scores import DIGITS, ENCODER, RANDOM, Score, per_case
from components.tasks.structures import Structure, structures_of
from components.tasks.table import Built, Inputs, none_built, task_table

if TYPE_CHECKING:
    from components.figures.resampling import Sample

FIGURES = {
    "inside": Measure("Places found inside the structure"),
    "distance_mm": Measure("Distance to the structure's nearest voxel, mm", (0.0, np.inf), lower_is_better=True),
}
QUERY, TARGET = "query", "target"  # sides, as splits of the table
HISTOGRAM, PLACE = "histogram", "place"  # baselines: what is seen without an encoder; where it is in the body's box
LEAST = 2  # patients on each side; of one there is no interval


class LocateConfig(StageConfig):
    """A block of ``<line>.tasks``: points of structures are looked for in other patients' scans.

    Attributes:
        set: ``line``, the annotated organs of the line's own evaluation scans; or a labelled set that has masks, the
            structures of its test side.
        targets: scans that are searched, of a patient each.
        queries: scans whose organs are looked for in each of them, of a patient each. A structure has so many pairs as
            the product says.
        stride_mm: of the lattice of crops over a target.
        shells: how many rings of neighbours, a stride apart, say what surrounds a point; 0: its crop alone.
        untrained: encoders that stand beside, the first of ``random_seeds``; their lattices are half of the work.
    """

    kind: Literal["locate"]
    set: Name
    targets: Annotated[int, Field(ge=LEAST, le=200)]
    queries: Annotated[int, Field(ge=LEAST, le=200)]
    stride_mm: Annotated[float, Field(ge=2, le=100)]
    shells: Annotated[int, Field(ge=0, le=4)]
    untrained: Annotated[int, Field(ge=3, le=50)]


def cases(name: str, task: LocateConfig, inputs: Inputs) -> Built:
    """A row for each structure of each query and target scan, at its innermost point by the label map.

    An annotated centre may lie on an organ's edge, as that of a lung round the heart does: then it says which organ is
    meant to a few millimetres only. Pairs are all query rows with all target rows of the same structure.
    """
    scans = inputs.scans_of(task.set)
    scans = scans[scans["split"] == "test"]
    has_map = with_map(scans)
    if task.set != LINE:  # of several scans of a patient masks may be of any
        scans, has_map = scans[has_map], has_map[has_map]
    scans = scans.drop_duplicates("patient")
    mapped = scans[has_map.reindex(scans.index)]
    organs = inputs.annotated("organ", scans) if task.set == LINE else named(mapped)
    if organs.empty:
        told = "no organ point of a test patient" if task.set == LINE else "no label map of a test patient's scan"
        return none_built({name: told})
    drawn = _drawn(mapped["patient"].tolist(), inputs.config.seed)
    targets = drawn[: min(task.targets, len(drawn) // 2)]
    queries = drawn[len(targets) : len(targets) + task.queries]
    if min(len(targets), len(queries)) < LEAST:
        few = f"{len(mapped)} of {len(scans)} test patients' scans have a label map; at least {2 * LEAST} are needed"
        return none_built({name: few})
    of_side = [(QUERY, patient) for patient in queries] + [(TARGET, patient) for patient in targets]
    rows = pd.concat([_points(name, scans[scans["patient"] == of], organs, side) for side, of in of_side])
    return _paired(name, task, rows, organs["structure"].unique().tolist())


def _drawn(patients: list[str], seed: int) -> list[str]:
    """In an order that depends on the seed and each patient alone."""
    return sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest())


def _parts(name: str, task: LocateConfig, scanned: Scanned) -> list[str]:
    return of_organs(name, task, scanned) if task.set == LINE else [name]


def _points(name: str, scan: pd.DataFrame, organs: pd.DataFrame, side: str) -> pd.DataFrame:
    row = scan.iloc[0]
    names = organs.loc[organs["series"] == row["series"], "structure"].unique()
    table = innermost(row["volume"], names)
    return table.assign(
        task=name, case=row["series"] + "/" + table["label"], patient=row["patient"], volume=row["volume"], split=side
    )


def _paired(name: str, task: LocateConfig, rows: pd.DataFrame, annotated: list[str]) -> Built:
    """Without structures that fewer than two patients of either side have."""
    counts = rows.groupby(["label", "split"])["patient"].nunique().unstack(fill_value=0)
    counts = counts.reindex(index=sorted(annotated), columns=[QUERY, TARGET], fill_value=0)
    few = counts.index[(counts < LEAST).any(axis=1)]
    kept = rows[~rows["label"].isin(few)]
    if kept.empty:
        return none_built({name: f"no structure in the label maps of {LEAST} query and {LEAST} target patients"})
    remarks = []
    targets, queries = (rows.loc[rows["split"] == side, "patient"].nunique() for side in (TARGET, QUERY))
    if (targets, queries) != (task.targets, task.queries):
        remarks.append(f"{targets} target and {queries} query patients, not {task.targets} and {task.queries}.")
    if len(few):
        remarks.append(f"Structures left out, in too few label maps: {', '.join(few)}.")
    return Built(task_table([kept]), remarks={name: " ".join(remarks)} if remarks else {})


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        pairs: a row per method, query and target: method, case, patient (the target's), query_patient, label, x, y, z
            of the place found, inside (0 or 1), distance_mm.
        maps: of the encoder, case to the likeness of each node of the target's lattice.
        lattices: of the encoder, target volume to lattice.
    """

    pairs: pd.DataFrame
    maps: dict[str, Array]
    lattices: dict[str, Lattice]


def judge(question: Question) -> Outcome:
    """Search every target for every query, by every method."""
    from components.figures.averages import class_mean
    from components.tasks.locate_pictures import pictures

    found = search(question)
    scores, parts = [], []
    for method, pairs in found.pairs.groupby("method"):
        weights, sample = two_sided(pairs, question.config.bootstrap, question.config.seed)
        labels = pairs["label"].to_numpy(dtype=np.str_)
        classes = np.unique(labels).tolist()
        for figure in FIGURES:
            replicates = class_mean(pairs[figure].to_numpy(dtype=np.float64), labels, classes, weights)
            scores.append(Score(question.name, str(method), figure, replicates, len(pairs), sample))
            parts.append(
                per_case(pairs, question.name, str(method), figure, [figure], pairs[[figure]].to_numpy(np.float64))
            )
        places = np.round(pairs[["x", "y", "z"]].to_numpy(np.float64), DIGITS)
        parts.append(per_case(pairs, question.name, str(method), "place", ["x", "y", "z"], places))
    return Outcome(
        scores, pd.concat(parts, ignore_index=True), pictures(question, found.pairs, found.maps, found.lattices)
    )


def two_sided(pairs: pd.DataFrame, replicates: int, seed: int) -> tuple[Array, Sample]:
    """Weights (replicates + 1, pairs), how often the query's patient was drawn times how often the target's; and the
    sample of the side with fewer patients, which a figure cannot be surer than.

    Args:
        pairs: with ``patient`` and ``query_patient``; no patient is on both sides.
        replicates, seed: of the draws.
    """
    from components.figures.resampling import draws, sample_of

    sides = [pairs[name].tolist() for name in ("patient", "query_patient")]
    weights = [draws(side, replicates, seed).weights(side) for side in sides]
    return weights[0] * weights[1], min((sample_of(side) for side in sides), key=lambda sample: sample.freedom)


def describers(question: Question) -> dict[str, Describer]:
    """Method to what turns places into vectors: the encoder, the untrained ones, peers with crops of their own size,
    and the histogram of what the encoder sees."""
    from components.tasks.plain import histogram

    encoder = question.encoders[ENCODER]()
    size = encoder.config.input.size_vox
    seeds = question.config.random_seeds[: question.task.untrained]
    names = [f"{RANDOM}_{seed}" for seed in seeds]
    found = {ENCODER: Describer(encoder.embed_crops, size)}
    found |= {name: Describer(question.encoders[name]().embed_crops, size) for name in names}
    peers = {name: make() for name, make in sorted(question.peers.items())}
    found |= {name: Describer(peer.embed_crops, peer.size_vox) for name, peer in peers.items()}
    bins = question.config.histogram
    return found | {HISTOGRAM: Describer(lambda crops: np.stack([histogram(hu, bins) for hu in crops]), size)}


def search(question: Question) -> Searched:
    """Each scan is opened once, and each crop of a target embedded once by each method, for all queries."""
    methods, rows = describers(question), question.rows.sort_values("case", ignore_index=True)
    queries, targets = rows[rows["split"] == QUERY], rows[rows["split"] == TARGET]
    wanted, relative = _queries(question, queries, methods)
    tables: list[pd.DataFrame] = []
    maps: dict[str, Array] = {}
    lattices: dict[str, Lattice] = {}
    for volume, of_target in track(targets.groupby("volume"), [1] * targets["volume"].nunique(), "searching"):
        scan = Scan.of(question.volumes.open(str(volume)))
        inside = structures_of(Path(str(volume)), scan.volume.spacing, of_target["label"].tolist())
        asked = queries["label"].isin(of_target["label"]).to_numpy()
        pairs = queries[asked].assign(
            query_patient=queries.loc[asked, "patient"],
            patient=of_target["patient"].iloc[0],
            case=queries.loc[asked, "case"] + ">" + of_target["case"].iloc[0].split("/")[0],
        )
        for method, describer in methods.items():
            lattice = Lattice.over(scan, steps(scan, question.task), describer)
            alike = likeness(lattice, wanted[method][asked], question.task.shells, describer.air)
            places = lattice.voxels(np.stack([best_place(of) for of in alike]))
            tables.append(_judged(pairs, method, places, scan, inside))
            if method == ENCODER:
                maps |= dict(zip(pairs["case"], alike, strict=True))
                lattices[str(volume)] = lattice
        low, high = scan.box
        tables.append(_judged(pairs, PLACE, np.rint(low + relative[asked] * (high - low)), scan, inside))
    return Searched(pd.concat(tables, ignore_index=True), maps, lattices)


def steps(scan: Scan, task: LocateConfig) -> Integers:
    """Voxels from node to node (3,)."""
    return np.maximum(1, np.rint(task.stride_mm / np.array(scan.volume.spacing))).astype(np.int64)


def _queries(
    question: Question, queries: pd.DataFrame, methods: dict[str, Describer]
) -> tuple[dict[str, Array], Array]:
    """Vectors of the query rows by method, and their places (rows, 3) as shares of the body's box."""
    vectors: dict[str, list[Array]] = {method: [] for method in methods}
    relative, order = [], []
    for volume, of_scan in queries.groupby("volume"):
        scan = Scan.of(question.volumes.open(str(volume)))
        voxels = np.rint(voxel_of(scan.volume.affine, of_scan[["x", "y", "z"]].to_numpy())).astype(np.int64)
        for method, describer in methods.items():
            found = sought(scan, voxels, steps(scan, question.task), question.task.shells, describer)
            vectors[method].append(found)
        low, high = scan.box
        relative.append((voxels - low) / np.maximum(high - low, 1))
        order += of_scan.index.tolist()
    back = np.argsort(order)
    return {method: np.concatenate(found)[back] for method, found in vectors.items()}, np.concatenate(relative)[back]


def _judged(pairs: pd.DataFrame, method: str, places: Any, scan: Scan, inside: dict[str, Structure]) -> pd.DataFrame:
    """The pairs of one target with the places (pairs, 3) found, in voxels."""
    voxels = np.clip(places.astype(np.int64), 0, np.array(scan.volume.hu.shape) - 1)
    distances = [inside[label].distance(voxel) for label, voxel in zip(pairs["label"], voxels, strict=True)]
    millimetres = np.round(np.array(distances), DIGITS)
    x, y, z = (voxels @ scan.volume.affine[:3, :3].T + scan.volume.affine[:3, 3]).T
    return pairs.assign(
        method=method, x=x, y=y, z=z, distance_mm=millimetres, inside=(millimetres == 0).astype(np.float64)
    )


KIND = Kind(LocateConfig, FIGURES, cases, judge, placed=False, points=lambda _: True, columns=lambda _: {},
            trained=False, masked=True, built_in={LINE: ()}, parts=_parts)  # fmt: skip
