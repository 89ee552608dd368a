"""Labels of published data sets, from files in the layout and format in which these are handed out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from components.errors import UserError
from components.sources.layouts import READ
from tests.unit.small_pacs import as_file, make_series

FINDINGS = ["ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "BleedLocation-Left", "Fracture", "MassEffect", "MidlineShift"]
META = "image_id;age;gender;split\ns0000;70;m;train\ns0001;60;f;val\ns0002;50;m;test\n"


def reads(folder: Path) -> None:
    """Four patients: of ICH two of three readers, of a fracture one, of a mass effect all; of everything all."""
    columns = [f"R{reader}:{of}" for reader in (1, 2, 3) for of in FINDINGS]
    rows = {"CQ500-CT-0": {"R1:ICH", "R3:ICH", "R1:IPH"}, "CQ500-CT-1": {"R2:Fracture"},
            "CQ500-CT-10": {f"R{reader}:MassEffect" for reader in (1, 2, 3)}, "CQ500-CT-11": set(columns)}  # fmt: skip
    told = [[name, "B1", *("1" if column in seen else "0" for column in columns)] for name, seen in rows.items()]
    pd.DataFrame(told, columns=["name", "Category", *columns]).to_csv(folder / "reads.csv", index=False)


def slices(folder: Path) -> None:
    """Three series of three slices: a haemorrhage on one slice of the first, every kind on one of the last. A slice of
    the table is not there."""
    (folder / "stage_2_train").mkdir()
    rows = []
    for number in (1, 2, 3):
        for n, image in enumerate(make_series(number)):
            name = f"ID_{number}{n}aaaaaa"
            (folder / "stage_2_train" / f"{name}.dcm").write_bytes(as_file(image))
            seen = {(1, 1): {"any", "subdural"}, (3, 0): set(TYPES)}.get((number, n), set())
            rows += [(f"{name}_{of}", int(of in seen)) for of in TYPES]
    rows += [(f"ID_ffffffff_{of}", 1) for of in TYPES] + rows[:2]  # the table is known to have rows twice
    pd.DataFrame(rows, columns=["ID", "Label"]).to_csv(folder / "stage_2_train.csv", index=False)


TYPES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]


def decathlon(folder: Path) -> None:
    (folder / "imagesTr").mkdir()
    (folder / "imagesTr" / "lung_001.nii.gz").touch()
    case = {"image": "./imagesTr/lung_001.nii.gz", "label": "./labelsTr/lung_001.nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "cancer"}, "training": [case]}))


def test_total_segmentator_keeps_its_split(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text(META)
    table = READ["total_segmentator"](tmp_path)
    assert table["file"].tolist() == [f"s000{n}/ct.nii.gz" for n in range(3)]
    assert table["side"].tolist() == ["train", "train", "test"]
    assert table["gender"].tolist() == ["m", "f", "m"]


def test_the_decathlon_names_its_labelled_scans(tmp_path: Path) -> None:
    decathlon(tmp_path)
    assert READ["decathlon"](tmp_path)["file"].tolist() == ["imagesTr/lung_001.nii.gz"]


def test_cq500_is_what_two_of_three_readers_saw(tmp_path: Path) -> None:
    reads(tmp_path)
    table = READ["cq500"](tmp_path).set_index("name")
    assert table["ich"].tolist() == [1, 0, 0, 1]
    assert table["iph"].tolist() == [0, 0, 0, 1]
    assert table["abnormal"].tolist() == [1, 0, 1, 1]


def test_a_series_of_rsna_has_what_a_slice_of_it_has(tmp_path: Path) -> None:
    slices(tmp_path)
    table = READ["rsna_2019"](tmp_path).set_index("series")
    assert table.index.tolist() == ["1.2.826.6.1", "1.2.826.6.2", "1.2.826.6.3"]
    assert table["ich"].tolist() == table["sdh"].tolist() == [1, 0, 1]
    assert (table[["iph", "ivh", "edh", "sah"]].sum() == 1).all()


def _unknown_split(folder: Path) -> None:
    (folder / "meta.csv").write_text(META.replace("val", "later"))


def _commas(folder: Path) -> None:
    (folder / "meta.csv").write_text(META.replace(";", ","))


def _other_read(folder: Path) -> None:
    reads(folder)
    table = pd.read_csv(folder / "reads.csv").astype(str)
    table.loc[1, "R2:SAH"] = "maybe"
    table.to_csv(folder / "reads.csv", index=False)


def _no_slice(folder: Path) -> None:
    slices(folder)
    for file in (folder / "stage_2_train").iterdir():
        file.unlink()


def _headerless(folder: Path) -> None:
    slices(folder)
    for file in (folder / "stage_2_train").iterdir():
        file.write_bytes(b"no DICOM")


def _no_image(folder: Path) -> None:
    decathlon(folder)
    (folder / "imagesTr" / "lung_001.nii.gz").unlink()


@pytest.mark.parametrize(
    ("reader", "make", "said"),
    [
        ("total_segmentator", lambda _: None, "meta.csv: no such file"),
        ("total_segmentator", _unknown_split, "split 'later' is not allowed: train, val or test"),
        ("total_segmentator", _commas, "meta.csv: no column 'image_id'; it has image_id,age,gender,split"),
        ("decathlon", lambda _: None, 'dataset.json: a description with "training"'),
        ("decathlon", _no_image, "1 of 1 images are not there, first ./imagesTr/lung_001.nii.gz"),
        ("cq500", _other_read, "R2:SAH 'maybe' of row 2: 0 or 1 is allowed"),
        ("rsna_2019", _no_slice, "stage_2_train.csv: none of its 10 slices is in"),
        ("rsna_2019", _headerless, "no slice's header has a SeriesInstanceUID"),
    ],
)
def test_what_is_not_laid_out_so_is_one_line(
    reader: str, make: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(UserError) as caught:
        READ[reader](tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
