"""Structures of a labelled set's masks as cases: at their innermost points, from each scan that has a label map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from label_files import scanned, segmentation
from test_tasks_locate import ORGANS, line

from components.ct.labels.masks import Grid, MaskFile, masks_together
from components.ct.labels.stored import read_label_map
from components.ct.origin import Origin
from components.ct.store import StoredVolume, voxel_of
from components.errors import UserError
from components.settings import ParamsError, parse
from components.tasks.kinds import KINDS, of_points, tasks_of
from components.tasks.mapped import structures
from components.tasks.own import classify
from components.tasks.retrieve import RetrieveConfig, cases
from components.tasks.structures import structures as structures_within
from components.tasks.table import Inputs
from flows.parameters import written, yaml_editor

ASKED = {"kind": "retrieve", "set": "site", "label": "structure", "protocol": "organmnist3d", "distance": None,
         "at": [3], "untrained": 2}  # fmt: skip
READ: dict[str, Any] = {"specificity": None, "few_shot": None}


def of_a_set(folder: Path, name: str = "site", patients: int = 6) -> Inputs:
    """Each patient's scan is on a side of the set."""
    given = line(folder, patients)
    curated = given.curated.assign(role="evaluation", split="held_out", accepted=True, reason="")
    labelled = curated[["series", "patient"]].assign(set=name, row=range(patients))
    labelled["split"] = ["train", "test"] * (patients // 2)
    return replace(given, curated=curated, annotations=given.annotations.iloc[:0], labelled=labelled)


def test_every_structure_of_every_scan_is_a_case_that_lies_within_it(tmp_path: Path) -> None:
    given = of_a_set(tmp_path)
    (tmp_path / "labels" / "s1.b2nd").unlink()
    built = classify("like", "site", "structure", given)
    table = built.table
    assert built.remarks == {"like": "Left out: 1 scans without a label map."}
    assert sorted(table["case"]) == sorted(f"s{n}/{organ}" for n in (0, 2, 3, 4, 5) for organ in ORGANS)
    assert dict(zip(table["patient"], table["split"], strict=True)) == {
        "p0": "train", "p2": "train", "p3": "test", "p4": "train", "p5": "test"
    }  # fmt: skip
    for row in table.itertuples():
        labels = read_label_map(tmp_path / "labels" / Path(row.volume).name)
        at = np.round(voxel_of(StoredVolume(Path(row.volume)).affine, [row.x, row.y, row.z])).astype(int)
        assert labels.names[int(labels.values[tuple(at)])] == row.label


def test_retrieval_asks_for_them(tmp_path: Path) -> None:
    task = parse(RetrieveConfig, ASKED, "t")
    assert KINDS["retrieve"].points(task)
    table = cases("like", task, of_a_set(tmp_path)).table
    assert set(table["label"]) == set(ORGANS)
    assert table[["x", "y", "z"]].notna().all(axis=None)


def test_a_set_without_a_label_map_is_told(tmp_path: Path) -> None:
    given = of_a_set(tmp_path)
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    told = {"like": "no structure in a label map of the 6 accepted scans of set site"}
    assert structures("like", "site", given).not_evaluated == told


def test_another_sites_structures_are_found_by_what_was_trained_here(tmp_path: Path) -> None:
    here, there = of_a_set(tmp_path), of_a_set(tmp_path, "other").labelled.assign(split="test")
    here = replace(here, labelled=pd.concat([here.labelled[here.labelled["split"] == "train"], there.iloc[1::2]]))
    of = dict(tuple(classify("like", "site", "structure", here, external=["other"]).table.groupby("task")))
    assert set(of["like"]["split"]) == {"train"}
    assert set(of["like/other"].query("split == 'test'")["patient"]) == {"p1", "p3", "p5"}


@pytest.mark.parametrize("kind", ["retrieve", "classify"])
def test_structures_want_masks_and_an_encoder_that_sees_crops(kind: str, project: Path, tmp_path: Path) -> None:
    read = {"kind": "classify", "set": "site", "label": "structure", "serve": True} | READ
    editor = yaml_editor()
    content = editor.load(Path("params.yaml").read_text())
    content["wholebody"]["tasks"] = {"like": ASKED if kind == "retrieve" else read}
    path = tmp_path / "params.yaml"
    path.write_text(written(editor, content))
    labels = SimpleNamespace(column="id")
    sets: Any = {"site": SimpleNamespace(config=SimpleNamespace(masks=None, role="internal", labels=labels))}
    with pytest.raises(
        ParamsError, match=r"tasks.like.set: 'site' has no masks: its block wants `masks`; label 'structure' asks"
    ):
        tasks_of("wholebody", sets, path)
    sets["site"].config.masks = "some"
    if kind == "classify":
        sets["else"] = SimpleNamespace(config=SimpleNamespace(masks=None, role="external", labels=labels))
        content["wholebody"]["tasks"]["like"]["external"] = ["else"]
        path.write_text(written(editor, content))
        with pytest.raises(ParamsError, match=r"external: 'else' is not allowed: an external set with masks, of which"):
            tasks_of("wholebody", sets, path)
        sets["else"].config.masks = "some"
    tasks = tasks_of("wholebody", sets, path)
    assert of_points("wholebody", "crop", tasks) == []
    assert "its cases are points" in of_points("wholebody", "scan", tasks)[0]


def test_a_column_that_is_named_structure_is_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures would be of the masks, where the column's were meant."""
    table = pd.DataFrame({"id": ["p0"], "structure": ["graft"]})
    of_set: Any = SimpleNamespace(planned=False, table=lambda: (table, []))
    monkeypatch.setattr("components.tasks.own.sets_of", lambda _: {"site": of_set})
    with pytest.raises(UserError, match=r"tasks.like.label: 'structure' is not allowed: .*; rename the column$"):
        classify("like", "site", "structure", of_a_set(tmp_path))


def test_a_nodule_is_what_any_reader_outlined(tmp_path: Path) -> None:
    """As the SEG of LIDC-IDRI have it: an object for each nodule and reader, whose segment is labelled ``Nodule``."""
    of = scanned(tmp_path / "ct", matrix=24)
    files, every = [], np.zeros((24, 24, 24), dtype=bool)
    for number, (first, last) in enumerate([(4, 12), (6, 14), (18, 20)]):
        mask = np.zeros((24, 24, 24, 1), dtype=np.uint8)
        mask[first:last, 5:20, first:last] = 1
        path = tmp_path / f"{number}.dcm"
        segmentation(of.items, mask, names=("Nodule",)).save_as(path)
        files.append(MaskFile(path, f"mask {number}", ""))
        every |= mask[..., 0] > 0
    grid = Grid(of.volume.affine, of.volume.hu.shape)
    found = masks_together(files, {"Nodule": "nodule"}, grid, grid, Origin.of(of.items[0]))
    assert set(found.labels.names.values()) == {"nodule"}
    assert int((found.labels.values > 0).sum()) == int(every.sum())
    nodule = structures_within(found.labels, of.volume.spacing, ["nodule"])["nodule"]
    assert int(nodule.mask.sum()) == int(every.sum())
