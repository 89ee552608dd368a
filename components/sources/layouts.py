"""Labels of published data sets, from the files that these are handed out with to a table of one row a scan.

A reader takes the data set's folder and gives a table as :mod:`components.sources.sets` reads it: a column that names
the scan, the labels, and ``side`` (train or test) where the data set fixes one.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd

from components.ct.dataset import open_dataset
from components.errors import UserError
from components.progress import track
from components.sources.tree import READERS, stop_if_machine

SIDE, TRAIN, TEST = "side", "train", "test"
HAEMORRHAGES = {"ICH": "ich", "IPH": "iph", "IVH": "ivh", "SDH": "sdh", "EDH": "edh", "SAH": "sah"}
RSNA_TYPES = {
    "any": "ich", "intraparenchymal": "iph", "intraventricular": "ivh", "subdural": "sdh", "epidural": "edh",
    "subarachnoid": "sah",
}  # fmt: skip
MIR3D_TASKS = ("Task03_Liver", "Task06_Lung", "Task07_Pancreas", "Task10_Colon")
MIR3D_LABELS = ("cancer_flag", "lesion_group")


def total_segmentator(folder: Path) -> pd.DataFrame:
    """``meta.csv`` of TotalSegmentator v2 (Zenodo 10047292): its columns, ``file``, and its own split with ``val`` in
    training. Raises UserError where it is none."""
    table = _csv(folder / "meta.csv", ["image_id", "split"], ";")
    table["file"] = table["image_id"] + "/ct.nii.gz"
    other = sorted(set(table["split"]) - {"train", "val", "test"})
    if other:
        raise UserError(f"{folder / 'meta.csv'}: split {other[0]!r} is not allowed: train, val or test")
    table[SIDE] = table["split"].where(table["split"] == TEST, TRAIN)
    return table.drop(columns="split")


def decathlon(folder: Path) -> pd.DataFrame:
    """The labelled scans of a task of the Medical Segmentation Decathlon, by ``dataset.json``: column ``file``. Raises
    UserError where it is none."""
    return pd.DataFrame({"file": _images(folder, "training")})


def decathlon_sides(folder: Path) -> pd.DataFrame:
    """All scans of a task of the Decathlon, column ``file``: its ``training`` and its ``test`` are the sides, for
    masks from elsewhere. Raises UserError where it is none."""
    return pd.concat(
        [pd.DataFrame({"file": _images(folder, of), SIDE: side}) for of, side in (("training", TRAIN), ("test", TEST))],
        ignore_index=True,
    )


def _images(folder: Path, of: str) -> list[str]:
    """Files that ``dataset.json`` names: in ``training`` as the images of cases, in ``test`` by themselves."""
    path = folder / "dataset.json"
    try:
        cases = json.loads(path.read_text(encoding="utf-8-sig"))[of]
        images = [str(case["image"] if isinstance(case, dict) else case) for case in cases]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'{path}: a description with "{of}", each with an "image", as the Decathlon has it') from None
    if not images:
        raise UserError(f'{path}: "{of}" is empty: at least one image is wanted')
    missing = [name for name in images if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{path}: {len(missing)} of {len(images)} images are not there, first {missing[0]}")
    return [Path(name).as_posix() for name in images]


def mir3d(organ: str, folder: Path) -> pd.DataFrame:
    """One of the four parts of 3D-MIR (arXiv 2311.13752): scans of the Decathlon's colon, liver, lung and pancreas, of
    which the part's organ has a lesion or not (``cancer_flag``), and of which size (``lesion_group``; -1 for none). Its
    own split. Column ``file``.

    Raises:
        UserError: the benchmark's tables or the tasks of the Decathlon are not there, or do not fit.
    """
    data = folder / "3D-MIR" / "Data"
    path = data / "3DMIR_labels" / f"{organ}_labels_and_captions.csv"
    labels = _csv(path, ["name", *MIR3D_LABELS]).drop_duplicates("name").set_index("name")
    sides: dict[str, str] = {}
    for side, column in ((TRAIN, "training"), (TEST, "testing")):
        listed = _csv(data / "Data_Splits" / f"{organ}_full_{side}_split.csv", [column])[column]
        twice = sorted(sides.keys() & set(listed))
        if twice:
            raise UserError(f"{data / 'Data_Splits'}: {twice[0]} is in both splits of {organ}")
        sides |= dict.fromkeys(listed, side)
    there = {Path(file).name: f"{of}/{file}" for of in MIR3D_TASKS for file in decathlon(folder / of)["file"]}
    for known, what in ((set(labels.index), path), (set(there), f"{folder}, {', '.join(MIR3D_TASKS)}")):
        if unknown := sorted(sides.keys() - known):
            raise UserError(f"{what}: {len(unknown)} scans of the splits of {organ} are not there, first {unknown[0]}")
    table = pd.DataFrame({"file": [there[name] for name in sides], SIDE: list(sides.values())})
    return table.join(labels.loc[list(sides), list(MIR3D_LABELS)].reset_index(drop=True))


def sinoct(folder: Path) -> pd.DataFrame:
    """``labels.csv`` of SinoCT: ``abnormal``, 0 where its ``label`` is ``1,0`` and 1 where it is ``0,1``. Column
    ``file`` is the series' folder, its ``patient_id``.

    Raises:
        UserError: it is none, or no folder that it names is there.
    """
    path = folder / "labels.csv"
    rows = _csv(path, ["patient_id", "label"])
    abnormal = rows["label"].str.replace(" ", "").map({"1,0": 0, "0,1": 1})
    if abnormal.isna().any():
        at = int(abnormal.isna().to_numpy().argmax())
        raise UserError(f"{path}: label {rows['label'][at]!r} of row {at + 1} is not allowed: 1,0 (normal) or 0,1")
    if not any((folder / name).is_dir() for name in rows["patient_id"] if name):
        raise UserError(f"{path}: none of the {len(rows)} folders that its patient_id names is in {folder}")
    return pd.DataFrame({"file": rows["patient_id"], "abnormal": abnormal.astype(int)})


def cq500(folder: Path) -> pd.DataFrame:
    """``reads.csv`` of CQ500 (Lancet 392, 2388): what at least two of the three readers saw, 0 or 1, and ``abnormal``,
    a haemorrhage, fracture, midline shift or mass effect. Column ``name`` is the PatientID. Raises UserError where it
    is none."""
    others = ("Fracture", "MassEffect", "MidlineShift")
    columns = [f"R{reader}:{of}" for reader in (1, 2, 3) for of in (*HAEMORRHAGES, *others)]
    reads = _csv(folder / "reads.csv", ["name", *columns])
    for column in columns:
        wrong = ~reads[column].isin(["0", "1"])
        if wrong.any():
            at = int(wrong.to_numpy().argmax())
            raise UserError(
                f"{folder / 'reads.csv'}: {column} {reads[column][at]!r} of row {at + 1}: 0 or 1 is allowed"
            )

    def majority(of: str) -> pd.Series:
        return (reads[[f"R{reader}:{of}" for reader in (1, 2, 3)]].astype(int).sum(axis=1) >= 2).astype(int)

    table = pd.DataFrame({"name": reads["name"], **{ours: majority(of) for of, ours in HAEMORRHAGES.items()}})
    table["abnormal"] = pd.concat([table["ich"], *map(majority, others)], axis=1).max(axis=1)
    return table


def rsna_2019(folder: Path) -> pd.DataFrame:
    """``stage_2_train.csv`` of the RSNA intracranial haemorrhage challenge (Radiology AI 2, e190211), which labels
    slices: a series has what one of its slices has. The slices' headers say which series they are of. Column ``series``
    is the SeriesInstanceUID.

    Raises:
        UserError: it is none, or no slice of it is in ``stage_2_train``.
    """
    path = folder / "stage_2_train.csv"
    rows = _csv(path, ["ID", "Label"]).drop_duplicates("ID", ignore_index=True)
    wrong = ~rows["Label"].isin(["0", "1"])
    if wrong.any():
        of = rows[wrong].iloc[0]
        raise UserError(f"{path}: Label {of['Label']!r} of {of['ID']} is not allowed: 0 or 1")
    parts = rows["ID"].str.rpartition("_")
    slices = pd.DataFrame({"slice": parts[0], "type": parts[2].map(RSNA_TYPES), "label": rows["Label"].astype(int)})
    wide = slices.dropna().pivot(index="slice", columns="type", values="label")
    if sorted(wide.columns) != sorted(RSNA_TYPES.values()) or wide.isna().any(axis=None):
        raise UserError(f"{path}: IDs such as ID_0123abcd_epidural are wanted, of each slice {', '.join(RSNA_TYPES)}")
    files = [folder / "stage_2_train" / f"{name}.dcm" for name in wide.index]
    there = [file for file in files if file.is_file()]
    if not there:
        raise UserError(f"{path}: none of its {len(files)} slices is in {folder / 'stage_2_train'}")
    with ThreadPoolExecutor(READERS) as readers:
        series = list(track(readers.map(_series_of, there), [1] * len(there), "reading headers"))
    known = wide.loc[[file.stem for file in there]].assign(series=series)
    table = known[known["series"] != ""].groupby("series").max().astype(int).reset_index()
    if table.empty:
        raise UserError(f"{folder / 'stage_2_train'}: no slice's header has a SeriesInstanceUID")
    return table


READ: dict[str, Callable[[Path], pd.DataFrame]] = {
    **{of.__name__: of for of in (total_segmentator, decathlon, decathlon_sides, cq500, rsna_2019, sinoct)},
    **{f"mir3d_{organ}": partial(mir3d, organ) for organ in ("colon", "liver", "lung", "pancreas")},
}


def _series_of(path: Path) -> str:
    """'' where the header does not say, or is none."""
    try:
        with path.open("rb") as stream:
            header = open_dataset(stream, path.stat().st_size, ("SeriesInstanceUID",)).dataset
        return str(header.get("SeriesInstanceUID", ""))
    except Exception as error:  # pydicom raises many kinds on what is no DICOM
        if isinstance(error, OSError):
            stop_if_machine(error)
        return ""


def _csv(path: Path, columns: Sequence[str], separator: str = ",") -> pd.DataFrame:
    """Every value as text. Raises UserError where the file cannot be read, lacks a column or has no row."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig",
                index_col=False,  # else rows longer than the head have their first value taken for an index
            )  # fmt: skip
    except pd.errors.ParserWarning:
        raise UserError(f"{path}: its rows have more values than its head has columns") from None
    except (OSError, ValueError) as error:
        told = "no such file" if isinstance(error, FileNotFoundError) else f"no table separated by {separator!r}"
        raise UserError(f"{path}: {told}") from None
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; it has {', '.join(map(str, table.columns[:12]))}")
    if table.empty:
        raise UserError(f"{path}: no row")
    return table
