"""Every series of a cohort has one fate; an object that is no CT is no CT that was rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.ct.headers import CT_IMAGE_STORAGE, measure_series
from components.ct.instance import Instance
from components.curate.stage import ACCOUNT, _account, funnel, write_funnel
from components.errors import UserError
from components.files import read_json

RTSTRUCT, PET = "1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.5.1.4.1.1.128"
SECONDARY, ENHANCED = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.2.1"


def instance(status: str = "image", **tags: Any) -> Instance:
    return Instance("a.dcm", 1000, status, tags={name: value for name, value in tags.items() if value is not None})


@pytest.mark.parametrize(
    ("instances", "other"),
    [
        ([instance(Modality="CT", SOPClassUID=CT_IMAGE_STORAGE)], False),
        ([instance(Modality="CT", SOPClassUID=ENHANCED)], False),
        ([instance(Modality="CT")], False),
        ([instance(SOPClassUID=CT_IMAGE_STORAGE)], False),
        ([instance("object", Modality="RTSTRUCT", SOPClassUID=RTSTRUCT)], True),
        ([instance(Modality="PT", SOPClassUID=PET)] * 2, True),
        ([instance(Modality="CT", SOPClassUID=SECONDARY)], True),  # a dose page
        (
            [instance(Modality="CT", SOPClassUID=CT_IMAGE_STORAGE), instance(Modality="CT", SOPClassUID=SECONDARY)],
            False,
        ),
        ([instance(Modality="CT", SOPClassUID=CT_IMAGE_STORAGE), instance("object", Modality="PR")], False),
        ([instance("unreadable"), instance("object", Modality="SR")], True),
        ([instance("unreadable")], False),
        ([], False),
    ],
)
def test_what_is_no_ct_is_told_from_ct_that_is_broken(instances: list[Instance], other: bool) -> None:
    assert measure_series(instances)["other_object"] is other


def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Six series: accepted, rejected by each suite, an RTSTRUCT, and one that the cohort rejected."""
    names = ["good", "tilted", "empty", "structures", "unlicensed", "broken"]
    cohort = pd.DataFrame({name: ["x"] * len(names) for name in ACCOUNT} | {"series": names, "shard": 0})
    cohort["reason"] = ["", "", "", "", "licence_not_allowed", ""]
    screened = pd.DataFrame({
        "series": ["good", "tilted", "empty", "structures", "broken"],
        "reason": ["", "gantry_tilt", "", "not_ct;missing_tags", "not_ct;unreadable_files"],
        "other_object": [False, False, False, True, False],
        "detail": "",
    })  # fmt: skip
    catalogue = pd.DataFrame({"series": ["good", "empty"], "reason": ["", "no_body"], "detail": "", "n0": 3, "n1": 4,
                              "n2": 5, "sha256": "ab"})  # fmt: skip
    return cohort, screened, catalogue


def test_every_series_has_one_fate_and_the_counts_add_up() -> None:
    curated = _account(*tables(), Path("data"))
    assert dict(zip(curated["series"], curated["status"], strict=True)) == {
        "good": "accepted", "tilted": "rejected", "empty": "rejected", "structures": "not_ct", "unlicensed": "rejected",
        "broken": "rejected",
    }  # fmt: skip
    assert curated.set_index("series").loc["structures", "reason"] == "not_ct;missing_tags"
    counts = funnel(curated)
    assert (counts["in"], counts["accepted"], counts["not_ct"]) == (6, 1, 1)
    assert counts["rejected"] == {"gantry_tilt": 1, "licence_not_allowed": 1, "no_body": 1, "not_ct": 1}
    assert counts["in"] == counts["accepted"] + counts["not_ct"] + sum(counts["rejected"].values())
    assert {row["name"] for row in counts["series"]} == {"x"}
    assert len(counts["series"]) == 6


def test_a_cohort_without_a_series_to_train_on_says_why_and_where_to_look(tmp_path: Path) -> None:
    cohort, screened, catalogue = tables()
    catalogue["reason"] = "no_body"
    curated = _account(cohort, screened, catalogue, Path("data"))
    said = r"0 of 6 series are left to pretrain on \(no_body 2, gantry_tilt 1, licence_not_allowed 1, not_ct 1\); see "
    with pytest.raises(UserError, match=said):
        write_funnel(curated, tmp_path / "funnel.json")
    assert read_json(tmp_path / "funnel.json")["rejected"]["no_body"] == 2
