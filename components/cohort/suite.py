"""Suite *cohort*: what a cohort must be before anything is transferred."""

from __future__ import annotations

from components.cohort.config import CohortConfig
from components.quality.rules import Rule, Suite, accounting, among, between, matching


def cohort_suite(config: CohortConfig, shards: int, rows: int, from_idc: bool) -> Suite:
    """What a cohort must be before anything is transferred.

    Args:
        config: the source with the licences that it may bring, and the thresholds.
        shards: number of data shards.
        rows: series that the sources listed.
        from_idc: some of them come from the Imaging Data Commons.
    """
    bounds = config.quality
    low_kb, high_kb = bounds.file_kb
    allowed = sorted({*bounds.licences, *(config.idc.licences if from_idc else ())})
    uses = ["pretrain/pretrain", "evaluation/train", "evaluation/test", "held_out/held_out", "evaluation/held_out"]
    return Suite(
        "cohort",
        (
            among("licence_not_allowed", "licence", allowed, f"licence among {', '.join(allowed)}"),
            among("attribution_missing", "attributed", [True], "collection and DOI known, if from the IDC"),
            between("size_unknown", "files_known", 1, None, "the source lists at least one file"),
            between("size_unknown", "bytes_known", 1, None, "the source lists more than 0 bytes"),
            between("size_implausible", "file_kb", low_kb, high_kb, f"{low_kb:g} to {high_kb:g} kB per DICOM file"),
            between("size_implausible", "series_mb", None, bounds.max_series_mb,
                     f"at most {bounds.max_series_mb:g} MB per series"),
            among("retest_unknown", "retest_found", [True], "a second scan names a series of the same patient"),
            between("mixed_patients", "study_patients", None, 1, "every study of one patient"),
            matching("series_key", "series", "^s[0-9a-f]{16}$", "every series under a pseudonym", "critical"),
            matching("patient_key", "patient", "^p[0-9a-f]{16}$", "every patient under a pseudonym", "critical"),
            among("role_split", "role_split", uses, "role and split known and consistent", "critical"),
            among("evaluation_leak", "leaks", [False],
                   "no patient of an evaluation set, or held out, is pretrained on", "critical"),
            between("patient_in_two_splits", "patient_splits", None, 1, "every patient in one split", "critical"),
            among("shard_unknown", "shard_dealt", [float(n) for n in range(shards)],
                   f"shard among 0 to {shards - 1}", "critical"),
            between("location_twice", "location_uses", None, 1, "no object of the IDC listed twice", "critical"),
            Rule("too_few_pretrain", "ExpectColumnSumToBeBetween",
                 {"column": "pretrain_left", "min_value": bounds.min_pretrain_series},
                 f"at least {bounds.min_pretrain_series} series left to pretrain on", "critical"),
            between("shards_unbalanced", "shard_load", None, bounds.max_shard_load,
                     f"no shard holds more than {bounds.max_shard_load:g} times its even share, beyond chance",
                     "warning"),
            between("collection_concentrated", "collection_share", None, bounds.max_collection_share,
                     f"no collection gives more than {bounds.max_collection_share:.0%} of the series", "warning"),
            between("patient_concentrated", "patient_share", None, bounds.max_patient_share,
                     f"no patient gives more than {bounds.max_patient_share:.0%} of the series", "warning"),
            matching("doi_malformed", "doi", r"^$|^10\.\d{4,9}/\S+$", "a DOI reads 10.<registrant>/<item>", "warning"),
            Rule("licence_not_stated", "ExpectColumnValuesToNotBeInSet",
                 {"column": "licence", "value_set": ["", "not stated"]}, "a licence is stated", "warning"),
            *accounting(rows, bounds.min_accepted_rate),
        ),
    )  # fmt: skip
