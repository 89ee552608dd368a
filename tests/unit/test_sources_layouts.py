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


MIR3D = {"Task03_Liver": "liver_0", "Task06_Lung": "lung_001", "Task07_Pancreas": "pancreas_001",
         "Task10_Colon": "colon_001"}  # fmt: skip


def mir3d(folder: Path) -> None:
    """Two scans of each task, the second to be asked; each is a scan without a lesion of the three other organs."""
    data = folder / "3D-MIR" / "Data"
    for name in ("3DMIR_labels", "Data_Splits"):
        (data / name).mkdir(parents=True)
    scans = [f"{first}{second}.nii.gz" for first in MIR3D.values() for second in ("", "7")]
    for task, first in MIR3D.items():
        cases = [{"image": f"./imagesTr/{name}"} for name in scans if name.startswith(first)]
        (folder / task / "imagesTr").mkdir(parents=True)
        for case in cases:
            (folder / task / case["image"]).touch()
        (folder / task / "dataset.json").write_text(json.dumps({"training": cases}))
        organ = first.split("_")[0]
        own = [int(name.startswith(organ)) for name in scans]
        of = {
            "name": scans,
            "organ": [name.split("_")[0] for name in scans],
            "lesion_group": [3 * o or -1 for o in own],
        }
        labels = pd.DataFrame(of | {"cancer_flag": own, "CaptionV1": 'two\nlines, "quotes"'})
        labels.to_csv(data / "3DMIR_labels" / f"{organ}_labels_and_captions.csv", index=False)
        for side, column in (("train", "training"), ("test", "testing")):
            listed = [name for n, name in enumerate(scans) if (n % 2 == 1) == (side == "test")]
            pd.DataFrame({column: listed}).to_csv(data / "Data_Splits" / f"{organ}_full_{side}_split.csv")


def sinoct(folder: Path) -> None:
    (folder / "series_1").mkdir()
    (folder / "labels.csv").write_text('patient_id,label\nseries_1,"1,0"\nseries_20,"0,1"\n')


def test_total_segmentator_keeps_its_split(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text(META)
    table = READ["total_segmentator"](tmp_path)
    assert table["file"].tolist() == [f"s000{n}/ct.nii.gz" for n in range(3)]
    assert table["side"].tolist() == ["train", "train", "test"]
    assert table["gender"].tolist() == ["m", "f", "m"]


def test_the_decathlon_names_its_labelled_scans(tmp_path: Path) -> None:
    decathlon(tmp_path)
    assert READ["decathlon"](tmp_path)["file"].tolist() == ["imagesTr/lung_001.nii.gz"]


def test_the_decathlons_test_set_is_a_side_where_masks_are_from_elsewhere(tmp_path: Path) -> None:
    decathlon(tmp_path)
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs" / "lung_002.nii.gz").touch()
    told = json.loads((tmp_path / "dataset.json").read_text()) | {"test": ["./imagesTs/lung_002.nii.gz"]}
    (tmp_path / "dataset.json").write_text(json.dumps(told))
    table = READ["decathlon_sides"](tmp_path)
    sides = {"imagesTr/lung_001.nii.gz": "train", "imagesTs/lung_002.nii.gz": "test"}
    assert dict(zip(table["file"], table["side"], strict=True)) == sides


@pytest.mark.parametrize("organ", ["colon", "liver", "lung", "pancreas"])
def test_a_part_of_3d_mir_has_the_flags_of_its_organ_and_its_own_split(organ: str, tmp_path: Path) -> None:
    mir3d(tmp_path)
    table = READ[f"mir3d_{organ}"](tmp_path).set_index("file")
    assert len(table) == 8
    assert all((tmp_path / file).is_file() for file in table.index)
    own = table.index.str.contains(f"/{organ}_")
    assert table.loc[own, ["cancer_flag", "lesion_group"]].to_numpy().tolist() == [["1", "3"]] * 2
    assert table.loc[~own, ["cancer_flag", "lesion_group"]].to_numpy().tolist() == [["0", "-1"]] * 6
    assert (table["side"] == "test").to_numpy().tolist() == table.index.str.contains("7.nii").tolist()


def test_sinoct_is_normal_or_not_by_the_series_folder(tmp_path: Path) -> None:
    sinoct(tmp_path)
    table = READ["sinoct"](tmp_path).set_index("file")
    assert table["abnormal"].to_dict() == {"series_1": 0, "series_20": 1}


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


def _no_flag(folder: Path) -> None:
    mir3d(folder)
    path = folder / "3D-MIR/Data/3DMIR_labels/liver_labels_and_captions.csv"
    pd.read_csv(path).query("name != 'colon_0017.nii.gz'").to_csv(path, index=False)


def _no_scan(folder: Path) -> None:
    mir3d(folder)
    path = folder / "Task06_Lung/dataset.json"
    path.write_text(json.dumps({"training": json.loads(path.read_text())["training"][:1]}))


def _both_sides(folder: Path) -> None:
    mir3d(folder)
    with (folder / "3D-MIR/Data/Data_Splits/liver_full_test_split.csv").open("a") as stream:
        stream.write("9,liver_0.nii.gz\n")


def _third_label(folder: Path) -> None:
    sinoct(folder)
    (folder / "labels.csv").write_text('patient_id,label\nseries_1,"1,0"\nseries_20,"1,1"\n')


def _no_series(folder: Path) -> None:
    sinoct(folder)
    (folder / "series_1").rmdir()


def written(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def _beyond_01(folder: Path) -> None:
    slices(folder)
    path = folder / "stage_2_train.csv"
    path.write_text(path.read_text().replace("ID_ffffffff_any,1", "ID_ffffffff_any,yes", 1))


@pytest.mark.parametrize(
    ("reader", "make", "said"),
    [
        ("total_segmentator", lambda _: None, "meta.csv: no such file"),
        ("total_segmentator", _unknown_split, "split 'later' is not allowed: train, val or test"),
        ("total_segmentator", _commas, "meta.csv: no column 'image_id'; it has image_id,age,gender,split"),
        ("decathlon", lambda _: None, 'dataset.json: a description with "training"'),
        ("decathlon", _no_image, "1 of 1 images are not there, first ./imagesTr/lung_001.nii.gz"),
        ("cq500", _other_read, "R2:SAH 'maybe' of row 2: 0 or 1 is allowed"),
        ("decathlon_sides", decathlon, 'dataset.json: a description with "test"'),
        ("mir3d_liver", lambda _: None, "liver_labels_and_captions.csv: no such file"),
        ("mir3d_liver", _no_flag, "captions.csv: 1 scans of the splits of liver are not there, first colon_0017.nii"),
        ("mir3d_liver", _no_scan, "Task10_Colon: 1 scans of the splits of liver are not there, first lung_0017.nii"),
        ("mir3d_liver", _both_sides, "Data_Splits: liver_0.nii.gz is in both splits of liver"),
        ("sinoct", _third_label, "labels.csv: label '1,1' of row 2 is not allowed: 1,0 (normal) or 0,1"),
        ("sinoct", _no_series, "labels.csv: none of the 2 folders that its patient_id names is in"),
        ("rsna_2019", _no_slice, "stage_2_train.csv: none of its 10 slices is in"),
        ("sinoct", written("labels.csv", "patient_id,label\ns,1,0\n"), "csv: its rows have more values than its head"),
        ("sinoct", written("labels.csv", 'patient_id,label\ns,"1,0",\n'), "csv: its rows have more values than its"),
        ("sinoct", written("labels.csv", 'patient_id,label\n,"1,0"\n'), "none of the 1 folders that its patient_id"),
        ("total_segmentator", written("meta.csv", "image_id;split\n"), "meta.csv: no row"),
        ("decathlon", written("dataset.json", '{"training": []}'), 'dataset.json: "training" is empty'),
        ("rsna_2019", _beyond_01, "stage_2_train.csv: Label 'yes' of ID_ffffffff_any is not allowed: 0 or 1"),
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


def test_a_description_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    decathlon(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert READ["decathlon"](tmp_path)["file"].tolist() == ["imagesTr/lung_001.nii.gz"]
