"""A small line that was evaluated: a release with heads, stored scans with label maps, and the tables of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from released import ROOT, write_release, write_segmenter

from components.bundle.manifest import write_manifest
from components.ct.labels.stored import LabelMap, label_map_of, write_label_map
from components.ct.store import StoredVolume, Volume, write_volume
from components.figures.segmentation import overlaps
from components.files import write_json
from components.tables import write_table
from components.tasks.scores import CASE_COLUMNS
from serving.embedding import ServedBundle, open_release
from tests.unit.test_serving_classifying import RATE, head

LINE, SEGMENTED = "wholebody", "organs_segmented"
STRUCTURES = ("aorta", "liver", "spleen")
SPL = np.array([[0.0, 0, -1, 60], [0, -1, 0, 60], [3, 0, 0, 0], [0, 0, 0, 1]])
SERIES = ("s0", "s1", "s2")
POINTS = {"liver": (20.0, 5.0, 30.0), "spleen": (-25.0, 0.0, 33.0)}


def write_line(root: Path) -> ServedBundle:
    """The whole of it below ``root``, which is to be the working directory; what the heads say is in the tables."""
    for name in ("dvc.yaml", "params.yaml"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    folder = root / "releases" / LINE
    write_release(folder)
    write_segmenter(folder, SEGMENTED, STRUCTURES)
    head(folder, "organs", "point")
    metrics = {"line": LINE, "tasks": {"lesions": {"linear_auc": RATE}, "organs": {"linear_auc": RATE}}}
    write_json(folder / "metrics.json", metrics)
    write_json(root / "data" / LINE / "evaluate" / "metrics.json", metrics)
    write_manifest(folder, LINE, f"ctfoundry-{LINE}", {"code": "0" * 64})
    bundle = open_release(folder)
    for number, series in enumerate(SERIES):
        _write_scan(root, bundle, series, number)
    _write_tables(root, bundle)
    return bundle


def volume_of(series: str) -> str:
    """Of a series, as tables name it."""
    return f"data/{LINE}/preprocess/0/volumes/{series}.b2nd"


def _write_scan(root: Path, bundle: ServedBundle, series: str, number: int) -> None:
    """A scan, and its reference: what the head finds, moved by some voxels; the first has no last structure."""
    z, y, x = np.mgrid[:20, :80, :100] - np.array([10, 40, 50])[:, None, None, None]
    body = (x / 42) ** 2 + (y / 32) ** 2 < 1
    hu = np.where(body, 40 + 10 * number, -1000) + np.random.default_rng(number).normal(0, 15, body.shape)
    for value, (across, along) in enumerate([(0, 12), (-20, -5), (20, 0)], start=1):
        hu[((x - across) / 9) ** 2 + ((y - along) / 9) ** 2 + (z / 6) ** 2 < 1] += 60 * value
    volume = Volume(hu.astype(np.int16), SPL)
    path = root / volume_of(series)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, volume, {})
    found = bundle.segmenters[SEGMENTED].on(bundle.embedder, Path(SEGMENTED)).segment(volume.hu)
    truth = np.roll(found, 1 + number, axis=2)
    truth[(truth == len(STRUCTURES)) & (number == 0)] = 0
    labels = LabelMap(truth, dict(enumerate(STRUCTURES, start=1)))
    write_label_map(path.parent.parent / "labels" / path.name, labels, SPL)


def _write_tables(root: Path, bundle: ServedBundle) -> None:
    scores, places = _segmented(root, bundle), []
    for series in SERIES:
        named = {"patient": f"p{series}", "volume": volume_of(series), "split": "test"}
        nowhere = {"x": np.nan, "y": np.nan, "z": np.nan}
        places += [{"task": SEGMENTED, "case": f"{series}/{name}", **nowhere, **named} for name in STRUCTURES]
        for name, point in POINTS.items():
            vector = bundle.embedder.embed_points(StoredVolume(root / volume_of(series)), [point])
            share = float(bundle.heads["organs"].probabilities(vector)[0][1].round(6))
            for task, of in (("organs", share), ("lesions", 0.25)):
                of_case = {"task": task, "case": f"{series}/{name}"}
                places.append({**of_case, **dict(zip("xyz", point, strict=True)), **named})
                label = "present" if name == "liver" else "absent"
                scores.append(
                    {**of_case, **_own(series, "calibrated"), "label": label, "of_class": "present", "score": of}
                )
    other = [{**row, "method": "random_101", "score": 0.0} for row in scores]  # worse than all, and not to be shown
    folder = root / "data" / LINE / "evaluate"
    write_table(folder / "cases.parquet", pd.DataFrame(scores + other)[CASE_COLUMNS])
    write_table(folder / "tasks.parquet", pd.DataFrame(places))


def _own(series: str, probe: str) -> dict[str, Any]:
    return {"method": "encoder", "probe": probe, "patient": f"p{series}"}


def _segmented(root: Path, bundle: ServedBundle) -> list[dict[str, Any]]:
    """The Dice of every structure, by the code that evaluates."""
    segmenter = bundle.segmenters[SEGMENTED].on(bundle.embedder, Path(SEGMENTED))
    rows = []
    for series in SERIES:
        volume = StoredVolume(root / volume_of(series)).read()
        found, truth = segmenter.segment(volume.hu), _labels(root / volume_of(series))
        for value, of in overlaps(found, truth, [1, 2, 3], volume.spacing, 3.0).items():
            name = STRUCTURES[value - 1]
            rows.append({"task": SEGMENTED, "case": f"{series}/{name}", **_own(series, "dice"), "label": name,
                         "of_class": "value", "score": round(of.dice, 6)})  # fmt: skip
    return rows


def _labels(volume: Path) -> Any:
    from components.ct.labels.stored import read_label_map

    path = label_map_of(volume)
    assert path is not None
    return read_label_map(path).values
