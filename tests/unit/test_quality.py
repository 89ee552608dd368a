"""Great Expectations judges: every rule can fail, the reason is the rule's, critical failures stop the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from pydicom.uid import AllTransferSyntaxes

from components.cohort.config import CohortConfig
from components.command import shard_of
from components.ct.headers import measure_series
from components.errors import UserError
from components.quality.derived import _shard_load, prepare
from components.quality.geometry import even_stack, orthonormal
from components.quality.judge import judge, write_data_docs
from components.screen.config import ScreenConfig
from components.screen.suite import headers_suite
from components.settings import ParamsError, load_stage, parse

ROOT = Path(__file__).resolve().parents[2]
CLEAN = {
    **measure_series([]), "status": "acquired", "is_ct_image": True, "instances": 60, "positions": 60,
    "orientations": 1, "matrices": 1, "pixel_spacings": 1, "thickness_min_mm": 3.0, "thickness_max_mm": 3.0,
    "gap_ratio": 1.0, "gap_min_ratio": 1.0, "off_line_mm": 0.0, "off_grid_mm": 0.0, "tilt_degrees": 0.0,
    "orientation": r"1\0\0\0\1\0", "identity_removed": True,
}  # fmt: skip
FAULTS: list[tuple[str, dict[str, object]]] = [
    ("acquire_failed", {"status": "failed"}),
    ("not_ct", {"is_ct_image": False}),
    ("localizer", {"is_localizer": True}),
    ("unreadable_files", {"unreadable_files": 1}),
    ("missing_tags", {"missing_tags": "PixelSpacing"}),
    ("too_few_slices", {"instances": 3, "positions": 3}),
    ("slice_thickness", {"thickness_min_mm": 0.1}),
    ("slice_thickness", {"thickness_max_mm": 9.0}),
    ("repeated_positions", {"positions": 58}),
    ("uneven_spacing", {"gap_ratio": 2.0}),
    ("uneven_spacing", {"gap_min_ratio": 0.5}),
    ("uneven_spacing", {"off_line_mm": 9.0}),
    ("uneven_spacing", {"off_grid_mm": 1.1}),
    ("orientation", {"orientation": r"1\0\0\0\2\0"}),
    ("orientation", {"orientation": "no numbers"}),
    ("gantry_tilt", {"tilt_degrees": 12.0}),
    ("mixed_geometry", {"orientations": 2}),
    ("mixed_geometry", {"matrices": 2}),
    ("lossy_compression", {"lossy": True}),
    ("lossy_compression", {"transfer_syntax": "1.2.840.10008.1.2.4.203"}),
    ("burned_in_annotation", {"burned_in": True}),
]


def test_only_syntaxes_known_as_lossless_are() -> None:
    """Of all that pydicom has in its dictionary, by their names; what is not in it yet may lose, too."""
    compressed = [uid for uid in AllTransferSyntaxes if uid.startswith("1.2.840.10008.1.2.4.")]
    names = {str(uid): uid.name for uid in compressed} | {"1.2.840.10008.1.2.4.999": "of the future"}
    assert len(names) > 30
    rows = [{"series": uid, **CLEAN, "transfer_syntax": f"1.2.840.10008.1.2.1|{uid}"} for uid in names]
    lossy = prepare(pd.DataFrame(rows)).set_index("series")["lossy_syntax"]
    expected = {uid: "Lossless" not in name or "Lossy" in name for uid, name in names.items()}
    assert lossy.to_dict() == expected
    plain = [{**CLEAN, "transfer_syntax": syntax} for syntax in ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.5")]
    assert not prepare(pd.DataFrame(plain))["lossy_syntax"].any()


PRIVACY = ("burned_in_annotation", "direct_identifiers", "private_tags", "identity_removed")


@pytest.fixture(scope="module")
def config() -> ScreenConfig:
    return load_stage(ScreenConfig, "wholebody", "screen", ROOT / "params.yaml")


def test_every_header_fault_gives_its_reason_and_clean_series_none(config: ScreenConfig) -> None:
    rows = [{"series": "clean", **CLEAN}]
    rows += [{"series": f"{i:02d}-{reason}", **CLEAN, **fault} for i, (reason, fault) in enumerate(FAULTS)]
    judgement = judge(pd.DataFrame(rows), headers_suite(config, len(rows)))
    assert judgement.reasons == {f"{i:02d}-{reason}": [reason] for i, (reason, _) in enumerate(FAULTS)}
    failed = [rule for rule in judgement.results if not rule["success"]]
    assert {rule["reason"] for rule in failed if rule["severity"] == "reject"} == {reason for reason, _ in FAULTS}
    assert "at least 60% accepted" in judgement.warnings


def test_a_lost_or_doubled_series_stops_the_run(config: ScreenConfig) -> None:
    table = pd.DataFrame([{"series": "a", **CLEAN}, {"series": "a", **CLEAN}])
    with pytest.raises(UserError, match="every series once"):
        judge(table, headers_suite(config, 2))
    with pytest.raises(UserError, match="all 3 series are there"):
        judge(table.drop_duplicates("series"), headers_suite(config, 3))


def test_a_column_that_no_one_measured_stops_the_run(config: ScreenConfig) -> None:
    table = pd.DataFrame([{"series": "a", **CLEAN}]).drop(columns=["identifiers", "private_unknown"])
    with pytest.raises(UserError, match=r"suite headers: column identifiers, private_unknown.* missing"):
        judge(table, headers_suite(config, 1))


@pytest.mark.parametrize(
    ("stated", "accepted", "stops"),
    [(True, True, False), (False, True, True), (True, False, True), (False, False, True)],
)
def test_privacy_stops_the_run_unless_the_header_states_removal_and_the_line_accepts_it(
    config: ScreenConfig, stated: bool, accepted: bool, stops: bool
) -> None:
    config = config.model_copy(update={"accept_stated_deidentification": accepted})
    found = {"identifiers": "PatientName", "private_unknown": 2, "identity_removed": stated}
    table = pd.DataFrame([{"series": "a", **CLEAN, **found}, {"series": "b", **CLEAN}])
    whole = headers_suite(config, 2)
    suite = replace(whole, rules=tuple(rule for rule in whole.rules if rule.reason in PRIVACY))
    if stops:
        with pytest.raises(UserError, match=r"direct_identifiers: .*\(1 series: a\); private_tags: .*\(1 series: a\)"):
            judge(table, suite)
        return
    judgement = judge(table, suite)
    assert judgement.reasons == {}
    assert judgement.warnings == ["no direct identifier at all", "no private element off the safe list at all"]
    counted = {r["reason"]: r["failed"] for r in judgement.results if not r["success"]}
    assert counted == {"direct_identifiers": 1, "private_tags": 1}


@pytest.mark.parametrize(
    ("text", "sound"),
    [(r"1\0\0\0\1\0", True), (r"1\0\0\0\.948324\-.317305", True), (r"1\0\0\.5\.866\0", False), (r"1\0\0", False)],
)
def test_an_orientation_is_two_unit_vectors_at_a_right_angle(text: str, sound: bool) -> None:
    assert orthonormal(text) is sound


def test_what_was_not_measured_of_a_stack_is_not_judged() -> None:
    stack = pd.DataFrame(
        {"gap_ratio": [1.0, None, 1.0], "gap_min_ratio": [None, None, 0.5], "off_line_mm": [0, None, 0]}
    )
    assert even_stack(stack, 1.2, 1.0).tolist() == [True, True, False]


def test_objects_that_are_no_ct_are_not_among_what_is_mostly_rejected(config: ScreenConfig) -> None:
    other = {**CLEAN, "is_ct_image": False, "other_object": True, "modality": "RTSTRUCT"}
    rows = [{"series": "ct", **CLEAN}, *({"series": f"other{n}", **other} for n in range(5))]
    judgement = judge(pd.DataFrame(rows), headers_suite(config, len(rows)))
    assert judgement.warnings == []
    assert set(judgement.reasons) == {f"other{n}" for n in range(5)}, "each is accounted for, with its reason"
    lost = [{**row, "other_object": False} for row in rows]
    assert judge(pd.DataFrame(lost), headers_suite(config, len(rows))).warnings == ["at least 60% accepted"]
    assert judge(pd.DataFrame(rows[1:]), headers_suite(config, 5)).warnings == []


@pytest.mark.parametrize(("body_parts", "rejected"), [(None, []), (("HEAD", "BRAIN"), ["chest"])])
def test_a_line_says_what_it_is_for(
    config: ScreenConfig, body_parts: tuple[str, ...] | None, rejected: list[str]
) -> None:
    named = {"head": "HEAD", "brain": "brain", "chest": "CHEST", "free": "KOPF NATIV", "silent": ""}
    table = pd.DataFrame([{"series": name, **CLEAN, "body_part": text} for name, text in named.items()])
    suite = headers_suite(config.model_copy(update={"body_parts": body_parts}), len(table))
    assert judge(table, suite).reasons == {name: ["body_part"] for name in rejected}


def test_a_body_part_that_no_header_says_is_refused(config: ScreenConfig) -> None:
    with pytest.raises(ParamsError, match=r"'HEADS' is no body part.*allowed: ABDOMEN"):
        parse(ScreenConfig, {**config.model_dump(), "body_parts": ["HEADS"]}, "head.screen")


def shard_loads(shard: npt.ArrayLike, megabytes: npt.ArrayLike, shards: int) -> pd.Series[float]:
    """The column that the suite *cohort* bounds: a series each."""
    dealt = np.asarray(shard)
    columns = ("patient", "collection", "licence", "doi", "retest_of", "study", "location", "plan")
    rows = {"series": [f"s{n:016x}" for n in range(len(dealt))], "shard": dealt, "shards": shards, "files": 1}
    table = pd.DataFrame({**rows, "bytes": megabytes, "role": "pretrain", "split": "", "source": "idc"})
    return prepare(table.assign(**dict.fromkeys(columns, "")))["shard_load"]


def test_no_cohort_dealt_by_key_is_unbalanced_however_small() -> None:
    bound = load_stage(CohortConfig, "wholebody", "cohort", ROOT / "params.yaml").quality.max_shard_load
    rng = np.random.default_rng(1)
    for series, shards in [(n, s) for n in (1, 10, 124, 2000) for s in (1, 2, 32, 156)] * 10:
        dealt = [shard_of(f"s{key:016x}", shards) for key in rng.integers(2**63, size=series)]
        table = pd.DataFrame({"shard": dealt, "bytes": rng.lognormal(4, 1, series)})  # as the IDC's are spread
        assert _shard_load(table, shards).max() <= bound, f"{series} series, {shards} shards"


def test_a_cohort_in_one_of_its_shards_is_unbalanced_also_where_it_is_the_first_of_two() -> None:
    bound = load_stage(CohortConfig, "wholebody", "cohort", ROOT / "params.yaml").quality.max_shard_load
    sizes = np.full(124, 90.0)
    for shards, full in ((2, 0), (2, 1), (4, 0), (32, 31)):
        assert (shard_loads(np.full(124, full), sizes, shards) > bound).all()
    sizes[::4] = 900.0  # as many series in each, and nearly all bytes in one
    loads = shard_loads(np.arange(124) % 4, sizes, 4)
    assert (loads[::4] > bound).all()
    assert (loads.drop(loads.index[::4]) < bound).all()


def test_data_docs_are_built(config: ScreenConfig, tmp_path: Path) -> None:
    table = pd.DataFrame([{"series": "a", **CLEAN, "accepted": 1.0}])
    index = write_data_docs([("headers", table, headers_suite(config, 1))], tmp_path / "docs")
    assert "headers" in index.read_text()
    told = " ".join(page.read_text() for page in index.parent.rglob("*.html"))
    assert "evenly spaced, straight stack" in told
    assert "two unit vectors at a right angle" in told
    for page in index.parent.rglob("*.html"):
        assert 'src="http' not in page.read_text(), f"{page.name} calls out"
        assert '<link rel="stylesheet" href="http' not in page.read_text()
