"""Masks of labelled sets: each finds its scan, or is told; those of another day are told, too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from label_files import saved, structures

from components.cohort.masks import COLUMNS
from components.command import masks_slice
from components.errors import UserError
from components.files import read_json
from components.preprocess.masks import SeriesMasks, masks_by_series
from components.settings import ParamsError, load_stage
from components.sources.config import AcquireConfig
from components.sources.locate import Located, locate
from components.sources.masks import digest_of, find_masks
from components.sources.roots import record_root
from components.sources.series import jobs_of
from components.sources.sets import sets_of, sources_of
from components.sources.tree import tree_digest
from components.tables import read_table
from tests.unit.small_pacs import make_series
from tests.unit.small_sets import LINE, cohort, grow_tree, table_of, with_set

pytestmark = pytest.mark.usefixtures("secret")


@pytest.fixture
def checkout(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(project / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    grow_tree()
    return tmp_path


def files(*locations: str) -> None:
    for location in locations:
        path = Path("masks", location)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(location.encode())


def masked(match: str | None, name: str = "site", key: str = "patient", rows: Any = slice(None), **more: Any) -> None:
    """A set with a table and the masks that lie in ``masks``."""
    record_root("masks", Path("masks"), f"{LINE}-{name}")
    block = {"digest": digest_of(find_masks(Path("masks"), match).masks), "match": match, "names": {1: "liver"}}
    scans = {"source": "dicom", "source_digest": tree_digest(Path("tree")), **more.pop("scans", {})}
    with_set(table_of(key).iloc[rows], key, name, masks=block, role="external", scans=scans, **more)


def account(name: str = "site") -> dict[str, Any]:
    found = read_json(Path("cohort/labelled.json"))[name]["masks"]
    return {key: len(value) if isinstance(value, list) else value for key, value in found.items()}


def by_series_of(shard: int) -> dict[str, SeriesMasks]:
    acquire = load_stage(AcquireConfig, LINE, "acquire")
    jobs = jobs_of(LINE, Path("cohort"), shard, sources_of(LINE), acquire)
    return masks_by_series(jobs, Path("cohort"), shard, sets_of(LINE))


@pytest.mark.parametrize("paths", ["keyed", "shown"])
def test_each_mask_finds_its_scan_or_is_told(paths: str, checkout: Path) -> None:
    """MRN5 was scanned twice, MRN9 never, and MRN4 is in no row; nothing lies beside MRN3's scan."""
    files("MRN0/kidney.nii.gz", "MRN0/liver.nii.gz", "MRN1/liver.nii.gz", "MRN2.nii.gz", "MRN4/liver.nii.gz",
          "MRN5/liver.nii.gz", "MRN9/liver.nii.gz")  # fmt: skip
    masked("{patient}/{structure}", rows=[0, 1, 2, 3, 5], scans={"paths": paths})
    found, _ = cohort()
    assert account() == {
        "masks": 6, "masks_used": 3, "masks_without_scan": 1, "masks_of_no_row": 1, "masks_of_several_scans": 1,
        "files_that_are_no_mask": {"other": 1}, "scans_with_masks": 2, "scans_without_masks": 4,
    }  # fmt: skip
    by_series: dict[str, Any] = {}
    for shard in (0, 1):
        table = read_table(masks_slice(Path("cohort"), shard) / "masks.parquet")
        assert list(table) == list(COLUMNS)
        assert set(table["series"].map(dict(zip(found["series"], found["shard"], strict=True)))) <= {shard}
        assert table["location"].str.startswith("MRN").all() == (paths == "shown") or table.empty
        by_series |= by_series_of(shard)
    assert sorted(tuple(of[1] for of in masks.files) for masks in by_series.values()) == [
        ("kidney", "liver"),
        ("liver",),
    ]
    assert {tuple(masks.names.items()) for masks in by_series.values()} == {(("1", "liver"),)}
    if paths == "keyed":
        shutil.copytree("cohort", Path("data") / LINE / "cohort")
        lost = read_json(Path("cohort/labelled.json"))["site"]["masks"]["masks_without_scan"][0]
        assert locate(LINE, lost) == Located(
            [str(checkout / "masks/MRN9/liver.nii.gz")], ["set site: in the folder of its masks"]
        )
        with pytest.raises(UserError, match="neither a series nor a file"):
            locate(LINE, "f0123")
    both = next(masks for masks in by_series.values() if len(masks.files) == 2)
    assert [file.path.read_text() for file in both.found()] == ["MRN0/kidney.nii.gz", "MRN0/liver.nii.gz"]
    assert [file.shown for file in both.found()] == [of[0] for of in both.files]


def test_an_object_is_of_each_series_that_it_refers_to(checkout: Path) -> None:
    Path("masks").mkdir()
    for number in (0, 1, 5, 77):
        saved(structures(make_series(number, side=64)[0], {}, frame="1.2"), Path(f"masks/{number}.dcm"))
    masked(None, key="series")
    found, _ = cohort()
    told = account()
    assert (told["masks_used"], told["masks_without_scan"], told["scans_without_masks"]) == (3, 1, 3)
    tables = [read_table(masks_slice(Path("cohort"), shard) / "masks.parquet") for shard in (0, 1)]
    assert sum(map(len, tables)) == 3
    assert {s for table in tables for s in table["series"]} <= set(found.loc[found["set"] == "site", "series"])


@pytest.mark.parametrize("match", ["{file}", "{file}/mask", "{series}_of_it", "by_accession/{accession}"])
def test_whatever_a_path_names_its_scan_by(match: str, checkout: Path) -> None:
    files("scan0.nii.gz", "scan0/mask.nii.gz", "1.2.826.6.0_of_it.nii.gz", "by_accession/A0.nii.gz")
    masked(match)
    cohort()
    assert account()["masks_used"] == 1


def test_a_scan_takes_the_masks_of_the_first_set_that_has_some(checkout: Path) -> None:
    files("MRN0.nii.gz", "MRN1.nii.gz", "MRN2.nii.gz")
    masked("{patient}", rows=slice(0, 2))
    masked("{patient}", "other", rows=slice(1, 3))
    cohort()
    tables = [read_table(masks_slice(Path("cohort"), shard) / "masks.parquet") for shard in (0, 1)]
    assert sorted(of for table in tables for of in table["set"]) == ["other", "site", "site"]


def test_masks_that_changed_or_fit_nothing_are_one_line(checkout: Path) -> None:
    files("MRN0.nii.gz", "scan7.nii.gz")
    masked("{patient}")
    Path("masks/MRN0.nii.gz").write_bytes(b"another")
    with pytest.raises(UserError, match=r"sets.site.masks.digest: the masks have digest .* `ctfoundry set pin site"):
        cohort()
    Path("masks/MRN0.nii.gz").rename("masks/nobody.nii.gz")
    masked("{patient}")
    with pytest.raises(UserError, match=r"masks: none of 2 masks is of a scan of the set \(2 without scan\); masks.m"):
        cohort()
    with_set(table_of("patient"), masks={"digest": "x", "match": None})
    with pytest.raises(ParamsError, match=r"sets.site.masks.digest: 'x' is not allowed"):
        sets_of(LINE)


def test_a_mask_that_is_another_when_it_is_read_stops_the_stage(checkout: Path) -> None:
    files("MRN0.nii.gz")
    masked("{patient}")
    cohort()
    Path("masks/MRN0.nii.gz").write_bytes(b"another")
    found = by_series_of(0) | by_series_of(1)
    (masks,) = found.values()
    with pytest.raises(UserError, match=r"masks f[0-9a-f]{16} of set site: not the file that the cohort lists; run"):
        masks.found()
