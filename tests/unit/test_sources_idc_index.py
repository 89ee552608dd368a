"""The selection from the IDC index: published counts, nothing lost without a line in the funnel, equal bytes twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from components.cohort.diff import compare, of_cohort, of_selection
from components.errors import UserError
from components.settings import parse, read_yaml
from components.sources import idc_index as selection
from components.sources.config import IdcConfig
from components.sources.idc_index import queries, select
from components.sources.idc_preview import write_selection

ROOT = Path(__file__).resolve().parents[2]
OPEN = {
    "query": "ct_fm",
    "idc_version": 14,
    "licences": ["CC BY 3.0", "CC BY 4.0"],
    "collections": None,
    "excluded_collections": [],
    "evaluation_collections": [],
    "max_series_mb": None,
    "one_reconstruction": False,
    "max_series_per_patient": None,
    "sample": None,
    "seed": 1,
}
SMALL = OPEN | {"collections": ["lidc_idri", "rider_lung_ct"], "idc_version": None}


def config(**changes: object) -> IdcConfig:
    return parse(IdcConfig, OPEN | changes, "idc")


@pytest.fixture
def no_fetched_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has fetched neither ct_index nor volume_geometry_index."""
    found = selection.table_path
    monkeypatch.setattr(selection, "table_path", lambda name: None if name in selection.FETCHED else found(name))


def test_ct_fm_has_the_published_counts(no_fetched_tables: None) -> None:
    funnel = select(config()).funnel
    assert [(step.series, step.patients) for step in funnel[:3]] == [(270_830, 39_512), (178_517, 38_792),
                                                                     (155_221, 33_176)]  # fmt: skip
    assert [step.deferred for step in funnel[3:6]] == [155_221] * 3, "left to header screening"
    assert funnel[6].criterion.startswith("licence among")
    assert funnel[6].series < 155_221, "non-commercial data are out unless they are allowed"


def test_equal_selections_have_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_selection(select(parse(IdcConfig, SMALL, "idc")), tmp_path / name)
    for file in ("selection.parquet", "attribution.parquet", "selection.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    keys = pd.read_parquet(tmp_path / "a" / "selection.parquet")["crdc_series_uuid"]
    assert keys.is_monotonic_increasing
    assert keys.is_unique


def test_the_receipt_names_query_index_and_parameters() -> None:
    receipt = select(parse(IdcConfig, SMALL, "idc")).receipt
    assert receipt["query"] == "ct_fm"
    assert len(receipt["query_sha256"]) == len(receipt["tables"]["idc_index"]) == 64
    assert receipt["index"].startswith("idc-index-data ")
    assert receipt["parameters"]["collections"] == ["lidc_idri", "rider_lung_ct"]


def test_every_option_drops_what_it_names_and_the_funnel_counts_it() -> None:
    options = SMALL | {"evaluation_collections": ["rider_lung_ct"], "max_series_mb": 200.0, "one_reconstruction": True,
                       "max_series_per_patient": 1, "sample": 50}  # fmt: skip
    chosen = select(parse(IdcConfig, options, "idc"), frozenset({"LIDC-IDRI-0314"}))
    assert len(chosen.series) == 50 == chosen.funnel[-1].series
    assert set(chosen.series["collection_id"]) == {"lidc_idri"}
    assert "LIDC-IDRI-0314" not in set(chosen.series["PatientID"])
    assert chosen.series["PatientID"].is_unique
    assert chosen.series["series_size_MB"].max() <= 200
    counts = [step.series for step in chosen.funnel]
    assert counts == sorted(counts, reverse=True)
    other = select(parse(IdcConfig, options | {"seed": 2}, "idc"), frozenset({"LIDC-IDRI-0314"}))
    assert set(other.series["crdc_series_uuid"]) != set(chosen.series["crdc_series_uuid"])


def test_a_fetched_table_is_judged_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    thin = select(parse(IdcConfig, SMALL, "idc")).series["SeriesInstanceUID"].iloc[:10]
    table = pd.DataFrame({"SeriesInstanceUID": thin, "SliceThickness": 0.6, "ImageType": "ORIGINAL"})
    path = tmp_path / "ct_index.parquet"
    duckdb.from_df(table).write_parquet(str(path))
    found = selection.table_path
    monkeypatch.setattr(selection, "table_path", lambda name: path if name == "ct_index" else found(name))
    chosen = select(parse(IdcConfig, SMALL, "idc"))
    assert not set(chosen.series["SeriesInstanceUID"]) & set(thin)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"query": "ctfm"}, "'ctfm' is not allowed: ct_fm, every_ct, head"),
        ({"collections": ["lidc-idri"]}, "'lidc-idri' has no CT in the index; did you mean 'lidc_idri'?"),
        ({"evaluation_collections": ["kits"]}, "'kits' has no CT"),
        ({"licences": ["CC BY 4"]}, "did you mean 'CC BY 4.0'?"),
    ],
)
def test_a_name_that_the_index_does_not_know_is_an_error(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        select(config(**changes))


def test_every_query_and_the_lines_own_parameters_run() -> None:
    assert set(queries()) == {"ct_fm", "every_ct", "head"}
    for line in ("wholebody", "head"):
        block = read_yaml(ROOT / "params.yaml")[line]["cohort"]["idc"]
        chosen = select(parse(IdcConfig, block, "idc"))
        assert len(chosen.series) > 100
        assert not set(chosen.series["license_short_name"]) - {"CC BY 3.0", "CC BY 4.0"}
        assert chosen.attribution["citation"].str.len().min() > 0
        assert chosen.attribution["series"].sum() == len(chosen.series)


def test_a_query_that_takes_long_shows_no_bar_on_standard_output() -> None:
    """DuckDB shows one after two seconds, there, where Python was given no file to run."""
    code = """from components.sources.idc_index import database_in_memory
with database_in_memory() as database:
    print(database.execute("SELECT current_setting('enable_progress_bar')").fetchall())"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[(False,)]\n"


def test_two_selections_are_compared_by_series_and_patient() -> None:
    after = of_selection(select(parse(IdcConfig, SMALL, "idc")).series)
    before = after.iloc[5:].assign(bytes=lambda t: t["bytes"].where(t.index != 7, 1))
    before = pd.concat([before, after.iloc[:1].assign(series="s0", patient="p0", collection="gone")])
    difference = compare(before, after)
    sums = difference.by_collection.sum()
    assert (sums["added"], sums["removed"], sums["changed"]) == (5, 1, 1)
    assert sums["after"] == len(after)
    assert difference.patients["removed"] == 1
    cohort = after.assign(role=["pretrain"] * (len(after) - 1) + ["evaluation"])
    assert len(of_cohort(cohort)) == len(after) - 1


def test_one_reconstruction_leaves_a_series_a_study_the_one_of_most_images() -> None:
    """Reconstructions of one scan often differ by an image or two: 14,415 studies of one collection kept several."""
    changes = {"collections": ["nlst"], "idc_version": None, "licences": ["CC BY 4.0"]}
    every = select(config(**changes)).series
    one = select(config(**changes, one_reconstruction=True)).series
    assert one["StudyInstanceUID"].is_unique
    assert set(one["StudyInstanceUID"]) == set(every["StudyInstanceUID"])
    most = every.groupby("StudyInstanceUID")["instanceCount"].max()
    assert (one.set_index("StudyInstanceUID")["instanceCount"].sort_index() == most.sort_index()).all()
    best = every[every["instanceCount"] == every["StudyInstanceUID"].map(most)]
    smallest = best.groupby("StudyInstanceUID")["crdc_series_uuid"].min()
    assert set(one["crdc_series_uuid"]) == set(smallest)
