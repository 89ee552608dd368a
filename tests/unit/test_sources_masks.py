"""A folder of masks: which files are masks, which scans they name, and when the folder is another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
from label_files import bare, saved, scanned, structures

from components.errors import UserError
from components.settings import ParamsError, parse
from components.sources.masks import MasksConfig, digest_of, find_masks

DIGEST = "0" * 64


def folder(root: Path, *locations: str) -> Path:
    for location in locations:
        (root / location).parent.mkdir(parents=True, exist_ok=True)
        (root / location).write_bytes(location.encode())
    return root


@pytest.mark.parametrize(
    ("match", "named"),
    [
        ("{patient}/segmentations/{structure}", [("patient", "s1", "kidney"), ("patient", "s1", "liver")]),
        ("labelsTr/{patient}", [("patient", "lung_001", ""), ("patient", "lung_002", "")]),
        ("labelsTr/{file}", [("file", "lung_001", ""), ("file", "lung_002", "")]),
        ("{file}_seg", [("file", "a/b/ct", "")]),
        ("a/**/{accession}_seg", [("accession", "ct", "")]),
        (r"labelsTr/lung_(?P<patient>\d+)", [("patient", "001", ""), ("patient", "002", "")]),
    ],
)
def test_a_path_names_its_scan_and_structure(match: str, named: list[Any], tmp_path: Path) -> None:
    folder(tmp_path, "s1/segmentations/liver.nii.gz", "s1/segmentations/kidney.nii", "labelsTr/lung_001.nii.gz",
           "labelsTr/lung_002.nii.gz", "a/b/ct_seg.dcm", "labelsTr/notes.txt", "dataset.json")  # fmt: skip
    found = find_masks(tmp_path, match)
    assert [(of.kind, of.named[0], of.structure) for of in found.masks] == named
    assert found.others == {"other": 7 - len(named)}


def test_objects_name_the_series_that_they_were_drawn_on(tmp_path: Path) -> None:
    ct = scanned(tmp_path / "ct", matrix=16).items[0]
    root = folder(tmp_path / "masks", "notes.txt", "a.nii.gz", "cut.dcm")
    saved(structures(ct, {}), root / "drawn.dcm")
    saved(structures(ct, {}), root / "1.2.3")
    bare(structures(ct, {}), root / "bare")
    of_nothing = structures(ct, {})
    del of_nothing.ReferencedFrameOfReferenceSequence
    saved(of_nothing, root / "of_nothing.dcm")
    pydicom.dcmread(next((tmp_path / "ct").glob("*.dcm"))).save_as(root / "ct.dcm")
    found = find_masks(root, None)
    assert {of.location: of.named for of in found.masks} == {
        "1.2.3": (ct.SeriesInstanceUID,),
        "bare": (ct.SeriesInstanceUID,),
        "drawn.dcm": (ct.SeriesInstanceUID,),
        "of_nothing.dcm": (),
    }
    assert {of.kind for of in found.masks} == {"series"}
    assert found.others == {"other": 4}


def test_a_mask_that_was_edited_in_place_makes_another_digest(tmp_path: Path) -> None:
    folder(tmp_path, "a.nii", "b.nii")
    (tmp_path / "a.nii").write_bytes(bytes(1 << 20))
    before = digest_of(find_masks(tmp_path, "{patient}").masks)
    folder(tmp_path, "notes.txt")
    assert digest_of(find_masks(tmp_path, "{patient}").masks) == before
    with (tmp_path / "a.nii").open("r+b") as stream:
        stream.seek(1 << 19)
        stream.write(b"1")
    assert digest_of(find_masks(tmp_path, "{patient}").masks) != before


def test_a_folder_without_a_mask_says_what_is_in_it(tmp_path: Path) -> None:
    folder(tmp_path, "a.nii.gz", "b.txt")
    with pytest.raises(UserError, match=r"^masks: no SEG or RTSTRUCT object below their folder; its files: other 2; "):
        find_masks(tmp_path, None)
    with pytest.raises(UserError, match=r"^masks: no file that 'x/\{patient\}' fits below their folder; its files: "):
        find_masks(tmp_path, "x/{patient}")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"match": "{structure}"}, "masks.match: '{structure}' is not allowed: a pattern with one of {patient}, {st"),
        ({"match": "{patient}/{series}"}, "a pattern with one of"),
        ({"match": "{patient}/{patient}"}, "one {patient} is allowed in a pattern"),
        ({"match": "labels_[0"}, "no pattern with {patient} or {study} or"),
        ({"match": None, "names": {0: "air"}}, "values of 1 and above; 0 is the background"),
        ({"match": None, "names": {1: ""}}, "at least 1 character"),
        ({"analysis_results": ()}, "at least 1 item"),
        ({"analysis_results": ("own",)}, "masks: {digest: ..., match: ...} of a folder, or {analysis_results: [...]}"),
    ],
)
def test_a_mistake_in_the_block_is_one_line(block: dict[str, Any], said: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parse(MasksConfig, {"digest": DIGEST, **block}, "wholebody.sets.site.masks")
    assert said in str(caught.value)
