"""Lattices of vectors: a place that was moved is found where it was moved to; structures know their inside."""

from __future__ import annotations

import numpy as np
import pytest

from components.ct.labels.stored import LabelMap
from components.ct.store import Int16Array, Volume
from components.figures.arrays import Array, Integers
from components.tasks.lattice import Describer, Lattice, Scan, best_place, likeness, offsets, sought
from components.tasks.structures import structures
from tests.unit.task_inputs import AFFINE

SIZE = (4, 8, 8)
STEP = np.array([2, 6, 6])


def describe(crops: Int16Array) -> Array:
    """Mean HU of each eighth of a crop."""
    halves = crops.reshape(len(crops), 2, SIZE[0] // 2, 2, SIZE[1] // 2, 2, SIZE[2] // 2)
    vectors: Array = halves.mean(axis=(2, 4, 6)).reshape(len(crops), 8)
    return vectors


def patient(seed: int) -> Int16Array:
    """A body of coarse, random tissue in air."""
    hu = np.full((24, 60, 60), -1000.0)
    tissue = np.random.default_rng(seed).normal(0, 150, (10, 8, 8))
    hu[2:22, 6:54, 6:54] = np.kron(tissue, np.ones((2, 6, 6)))
    return hu.astype(np.int16)


def find(query: Int16Array, target: Int16Array, voxel: list[int], shells: int) -> Integers:
    describer = Describer(describe, SIZE)
    wanted = sought(Scan.of(Volume(query, AFFINE)), np.array([voxel]), STEP, shells, describer)
    lattice = Lattice.over(Scan.of(Volume(target, AFFINE)), STEP, describer)
    return lattice.voxels(best_place(likeness(lattice, wanted, shells, describer.air)[0])[None])[0]


@pytest.mark.parametrize("shells", [0, 1])
def test_a_place_is_found_where_it_was_moved_to(shells: int) -> None:
    query = patient(1)
    found = find(query, np.roll(query, (2, 6, -6), axis=(0, 1, 2)), [12, 32, 32], shells)
    assert np.abs(found - [14, 38, 26]).max() <= 1  # voxels: neighbouring nodes draw it a little


def test_neighbours_tell_like_crops_apart() -> None:
    """The same crop twice in the target, once among other neighbours."""
    query = patient(1)
    target = query.copy()
    target[4:8, 12:24, 12:24] = query[10:14, 28:40, 28:40]
    assert np.abs(find(query, target, [12, 32, 32], 1) - [12, 32, 32]).max() <= 1


def test_offsets_are_rings_of_neighbours() -> None:
    assert offsets(0).tolist() == [[0, 0, 0]]
    assert len(offsets(2)) == len({tuple(offset) for offset in offsets(2)}) == 53
    assert sorted(set(np.abs(offsets(2)).max(axis=1))) == [0, 1, 2]


def test_lungs_lie_inside_and_a_table_does_not() -> None:
    hu = np.full((10, 80, 80), -1000, dtype=np.int16)
    hu[:, 8:60, 8:72] = 40
    hu[:, 20:48, 20:40] = -850  # a lung
    hu[:, 70:73, :] = 200  # a board of 3 mm
    scan = Scan.of(Volume(hu, AFFINE))
    assert scan.has(np.array([[5, 30, 30], [5, 50, 50]])).all()
    assert not scan.has(np.array([[5, 71, 40], [5, 2, 2], [-1, 30, 30], [10, 30, 30]])).any()
    low, high = scan.box
    assert low.tolist() == [0, 8, 8]
    assert high.tolist() == [9, 56, 68]


def test_crops_outside_the_patient_share_the_vector_of_air() -> None:
    hu = patient(2)
    describer = Describer(describe, SIZE)
    found = describer.at(Scan.of(Volume(hu, AFFINE)), np.array([[0, 0, 0], [12, 30, 30]]))
    assert found[0].tolist() == describer.air.tolist() == [-1024.0] * 8
    assert found[1] == pytest.approx(describe(hu[None, 10:14, 26:34, 26:34])[0])


def test_the_best_place_lies_between_nodes() -> None:
    at = np.stack(np.meshgrid(*[np.arange(5.0)] * 3, indexing="ij"), axis=-1)
    alike = 1 - 0.01 * np.square(at - [2.0, 1.7, 3.2]).sum(axis=-1)
    assert best_place(alike) == pytest.approx([2.0, 1.7, 3.2])
    assert best_place(np.zeros((3, 3, 3))).tolist() == [0, 0, 0]
    edge = np.full((3, 3, 3), -1.0)
    edge[1, 1, 1] = 0.5
    assert best_place(edge).tolist() == [1, 1, 1]


def labelled() -> LabelMap:
    values = np.zeros((20, 40, 40), dtype=np.uint8)
    values[5:14, 10:31, 10:31] = 1
    values[7:9, 12:14, 12:14] = 12
    values[0:3, 0:5, 0:5] = 2
    values[0, 39, 39] = 12
    return LabelMap(values, {1: "kidney_left", 2: "kidney_right", 3: "liver", 12: "lesion_kidney"})


def test_distance_is_that_of_the_nearest_voxel_in_mm() -> None:
    kidney = structures(labelled(), (3.0, 1.0, 1.0), ["kidney_left"])["kidney_left"]
    assert kidney.distance(np.array([9, 20, 20])) == 0
    assert kidney.distance(np.array([15, 20, 20])) == pytest.approx(6.0)
    assert kidney.distance(np.array([13, 33, 34])) == pytest.approx(5.0)
    assert kidney.innermost().tolist() == [8, 20, 20]  # 11 mm from all sides; so are the next two


def test_a_lesion_belongs_to_the_organ_in_whose_box_it_lies() -> None:
    found = structures(labelled(), (3.0, 1.0, 1.0), ["kidney_left", "kidney_right", "liver", "heart"])
    assert set(found) == {"kidney_left", "kidney_right"}  # the others have no voxel
    assert found["kidney_left"].distance(np.array([7, 12, 12])) == 0
    assert found["kidney_left"].distance(np.array([0, 39, 39])) > 0
    assert found["kidney_right"].distance(np.array([7, 12, 12])) > 0
