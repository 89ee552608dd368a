"""Cases of kind ``saliency``: what the encoder sees of each, where its structure lies in that, and how maps fare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from components.ct.labels.stored import label_map_of, read_label_map
from components.ct.store import Int16Array, crop_box, voxel_of
from components.errors import UserError
from components.figures.arrays import Array, Bools, Integers
from components.models.embed import Embedder
from components.models.heads import Linear
from components.models.resample import resize_windows
from components.progress import track
from components.tasks.crossfit import hashed
from components.tasks.interface import Question
from components.tasks.lattice import Scan
from components.tasks.probes import fit_linear
from components.tasks.saliency_maps import (
    Answer,
    Blocks,
    area,
    deletion,
    integrated_gradients,
    neutral_of,
    occlusion,
)  # fmt: skip
from components.tasks.scores import DIGITS, ENCODER

DEVIATION, MIDDLE, CHANCE = "hu_deviation", "middle", "chance"  # what points without an encoder
ORDERS = 3  # random ones, with whose mean a deletion is compared
MASK = ((0.5, 1.0),)  # window that leaves 0 and 1 as they are


@dataclass(frozen=True)
class Region:
    """What an encoder sees of a scan, as it is stored.

    Attributes:
        scan: all of it.
        first: (3,) voxel of the scan.
        hu, mask: (n0, n1, n2) from there on; the structure.
    """

    scan: Scan
    first: Integers
    hu: Int16Array
    mask: Bools


@dataclass(frozen=True)
class Case:
    """A case, divided into blocks.

    Attributes:
        row: of the task's table.
        seen: (1, C, D, H, W) the encoder's input.
        blocks: of it.
        chosen: (M,) blocks whose middle lies in the patient; the others are left alone.
        distance: (K,) mm from each block's middle to the structure.
        inside: (K,) share of each block that is the structure.
        off: (K,) mm from each block's middle to that of the input.
    """

    row: Mapping[str, Any]
    seen: Tensor
    blocks: Blocks
    chosen: Integers
    distance: Array
    inside: Array
    off: Array


@dataclass(frozen=True)
class Examined:
    """What was found of the cases of a part.

    Attributes:
        figures: method to figure to (cases,).
        maps: of the encoder, way to (K,) of each case.
        curves: of the encoder, order to (cases, STEPS + 1) probabilities; ``chance`` is the mean of random orders.
    """

    figures: dict[str, dict[str, Array]]
    maps: dict[str, list[Array]]
    curves: dict[str, Array]


def region_of(question: Question, row: Mapping[str, Any], size: tuple[int, int, int], names: Sequence[str]) -> Region:
    """The crop round the row's place, or its whole scan. Raises UserError where its label map is not there any more."""
    path = label_map_of(Path(row["volume"]))
    if path is None:
        name = Path(row["volume"]).name
        raise UserError(f"labels {name}: no label map in the store; run `dvc repro` to make it again")
    scan, labels = Scan.of(question.volumes.open(str(row["volume"]))), read_label_map(path)
    mask = np.isin(labels.values, [value for value, name in labels.names.items() if name in names])
    if np.isnan(row["x"]):
        return Region(scan, np.zeros(3, dtype=np.int64), scan.volume.hu, mask)
    voxel = np.floor(voxel_of(scan.volume.affine, [row["x"], row["y"], row["z"]]) + 0.5).astype(np.int64)
    first = voxel - np.array(size) // 2
    a, b, c = scan.volume.hu.shape
    start = int(first[0]), int(first[1]), int(first[2])
    cut = crop_box(mask.astype(np.int16), (a, b, c), start, size) == 1
    return Region(scan, first, crop_box(scan.volume.hu, (a, b, c), start, size), cut)


def cases_of(
    question: Question, rows: pd.DataFrame, encoder: Embedder, names: Sequence[str]
) -> tuple[list[Case], list[str]]:
    """The cases of rows, and the names of those that show nothing of the structure."""
    found, lost = [], []
    for record in track(rows.to_dict("records"), [1] * len(rows), "opening"):
        row = {str(name): value for name, value in record.items()}
        region = region_of(question, row, encoder.config.input.size_vox, names)
        case = _case(region, row, encoder, question.task.block_mm) if region.mask.any() else None
        if case is None:
            lost.append(str(row["case"]))
        else:
            found.append(case)
    return found, lost


def _case(region: Region, row: Mapping[str, Any], encoder: Embedder, block_mm: float) -> Case | None:
    volume, size = region.scan.volume, encoder.config.input.size_vox
    spacing, pace = np.array(volume.spacing), np.array(region.hu.shape) / size  # voxels of the scan to one that is seen
    a, b, c = (max(1, round(float(side) / block_mm)) for side in spacing * region.hu.shape)
    blocks = Blocks.of(size, (a, b, c))
    middles = region.first + (blocks.centres() + 0.5) * pace - 0.5
    chosen = np.flatnonzero(region.scan.has(np.rint(middles).astype(np.int64)))
    if not len(chosen):
        return None
    whole = np.isnan(row["x"])
    share = resize_windows(region.mask.astype(np.int16), MASK, size)[0].numpy() if whole else region.mask
    structure = cKDTree((np.argwhere(region.mask) + region.first) * spacing)
    middle = region.first + np.array(region.hu.shape) / 2 - 0.5
    return Case(
        row,
        encoder.seen(volume, None if whole else [row["x"], row["y"], row["z"]]),
        blocks,
        chosen.astype(np.int64),
        structure.query(middles * spacing)[0],
        blocks.sums(share.astype(np.float64)) / blocks.sizes,
        np.linalg.norm((middles - middle) * spacing, axis=1),
    )


def answer_of(encoder: Embedder, linear: Linear) -> Answer:
    """Log odds of the second of two classes, by a linear probe of the encoder's vectors."""
    weight = (linear.weight[1] - linear.weight[0]) / linear.scale
    bias = float(linear.bias[1] - linear.bias[0] - linear.mean @ weight)
    along = torch.from_numpy(weight).to(encoder.device)
    return lambda seen: encoder.vectors(seen).double() @ along + bias


def examine(question: Question, train: pd.DataFrame, cases: Sequence[Case], methods: Sequence[str]) -> Examined:
    """Maps and figures of the encoder, the untrained ones and what points without one.

    Args:
        question: of the task.
        train: cases on which each method's probe is fitted.
        cases: that are looked at.
        methods: of encoders; the first is the one that is judged.
    """
    figures: dict[str, dict[str, Array]] = {}
    maps: dict[str, list[Array]] = {}
    curves: dict[str, Array] = {}
    labels = train["label"].to_numpy(dtype=np.str_)
    classes = sorted(set(labels.tolist()))
    for method in track(methods, [1] * len(methods), "explaining"):
        encoder = question.encoders[method]()
        linear = fit_linear(question.features.of(method, train), labels, classes, question.config.linear_c)
        answer = answer_of(encoder, linear)
        ways = _ways(cases, answer, question.task.steps)
        plain = _without_encoder(cases) if method == ENCODER else {}
        of = _curves(cases, answer, ways | plain, question.config.seed)
        figures[method] = {
            f"{way}_{name}": values
            for way in ways
            for name, values in _figures(cases, ways[way], of[way], of[CHANCE], question.task.tolerance_mm).items()
        }
        if method == ENCODER:
            maps, curves = ways, of
            for name, of_plain in plain.items():
                told = _figures(cases, of_plain, of[name], of[CHANCE], question.task.tolerance_mm)
                if name == MIDDLE:
                    del told["inside"]  # an order, and no amounts
                figures[name] = {f"{way}_{figure}": values for way in ways for figure, values in told.items()}
            told = _by_chance(cases, of[CHANCE], question.task.tolerance_mm)
            figures[CHANCE] = {f"{way}_{figure}": values for way in ways for figure, values in told.items()}
    return Examined(figures, maps, curves)


def _ways(cases: Sequence[Case], answer: Answer, steps: int) -> dict[str, list[Array]]:
    return {
        "occlusion": [occlusion(answer, case.seen, case.blocks, case.chosen) for case in cases],
        "gradients": [case.blocks.sums(integrated_gradients(answer, case.seen, steps)) for case in cases],
    }


def _without_encoder(cases: Sequence[Case]) -> dict[str, list[Array]]:
    """How far each block deviates from the mean of what is seen, and how near it is to the middle."""
    off = [(case.seen - neutral_of(case.seen)).abs().double().sum(dim=1)[0].cpu().numpy() for case in cases]
    deviation = [case.blocks.sums(of) for case, of in zip(cases, off, strict=True)]
    return {DEVIATION: deviation, MIDDLE: [-case.off for case in cases]}


def _curves(cases: Sequence[Case], answer: Answer, maps: Mapping[str, Sequence[Array]], seed: int) -> dict[str, Array]:
    found: dict[str, list[Array]] = {name: [] for name in (*maps, CHANCE)}
    for number, case in enumerate(cases):
        ordered = [case.chosen[np.argsort(-of[number][case.chosen], kind="stable")] for of in maps.values()]
        generator = np.random.default_rng(list(hashed(seed, str(case.row["case"]), "deletion")))
        shuffled = [generator.permutation(case.chosen) for _ in range(ORDERS)]
        curves = deletion(answer, case.seen, case.blocks, np.stack(ordered + shuffled))
        for name, curve in zip(maps, curves, strict=False):
            found[name].append(curve)
        found[CHANCE].append(curves[len(maps) :].mean(axis=0))
    return {name: np.stack(of) for name, of in found.items()}


def _figures(
    cases: Sequence[Case], maps: Sequence[Array], curves: Array, chance: Array, tolerance_mm: float
) -> dict[str, Array]:
    """Of every case; rounded first, for figures follow from the table of cases."""
    best = [case.chosen[int(np.argmax(of[case.chosen]))] for case, of in zip(cases, maps, strict=True)]
    pointing = [case.distance[at] <= tolerance_mm for case, at in zip(cases, best, strict=True)]
    inside = []
    for case, of in zip(cases, maps, strict=True):
        positive = np.maximum(of[case.chosen], 0.0)  # where nothing speaks for the class, nothing does inside
        inside.append(float(positive @ case.inside[case.chosen]) / max(float(positive.sum()), 1e-300))
    found = {
        "pointing": np.array(pointing, dtype=np.float64),
        "inside": np.array(inside),
        "gain": area(chance) - area(curves),
        "deletion": area(curves),
    }
    return {name: np.round(values, DIGITS) for name, values in found.items()}


def _by_chance(cases: Sequence[Case], curves: Array, tolerance_mm: float) -> dict[str, Array]:
    """What a place, an amount and an order without any reason would have on average."""
    pointing = [(case.distance[case.chosen] <= tolerance_mm).mean() for case in cases]
    sizes = [case.blocks.sizes[case.chosen] for case in cases]
    inside = [of @ case.inside[case.chosen] / of.sum() for case, of in zip(cases, sizes, strict=True)]
    found = {"pointing": np.array(pointing), "inside": np.array(inside), "deletion": area(curves)}
    return {name: np.round(values, DIGITS) for name, values in found.items()}
