"""Faults planted into a genuine cohort: a table of real IDC series and the phantom's evaluation series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from tests.planted_faults import Planted, TableChange


def _set(where: Callable[[pd.DataFrame], Any], **values: Any) -> TableChange:
    """Overwrite columns of the rows that ``where`` chooses (labels of the index)."""

    def plant(cohort: pd.DataFrame) -> pd.DataFrame:
        out = cohort.copy()
        rows = where(out)
        for column, value in values.items():
            out.loc[rows, column] = value(out.loc[rows]) if callable(value) else value
        return out

    return plant


def _of(source: str, role: str, number: int) -> Callable[[pd.DataFrame], Any]:
    return lambda t: t.index[(t["source"] == source) & (t["role"] == role)][number : number + 1]


def _retests(cohort: pd.DataFrame, number: int) -> Any:
    return cohort.index[cohort["retest_of"] != ""][number : number + 1]


def cohort_faults() -> list[Planted]:
    """Into a cohort of real IDC series and the phantom's evaluation series."""
    return [*_listed_faults(), *_assigned_faults()]


def _in_cohort(name: str, reason: str, says: str, severity: str, cohort: TableChange) -> Planted:
    return Planted(name, says, "cohort", reason, severity, cohort=cohort)


def _listed_faults() -> list[Planted]:
    """In what the source says of one series."""
    fault = _in_cohort

    def row(name: str, reason: str, says: str, number: int, **values: Any) -> Planted:
        return fault(name, reason, says, "reject", _set(_of("idc", "pretrain", number), **values))

    def retest_of_another(cohort: pd.DataFrame) -> pd.DataFrame:
        other = cohort.loc[cohort["split"] == "train", "series"].iloc[0]
        return _set(lambda t: _retests(t, 1), retest_of=other)(cohort)

    def two_patients(cohort: pd.DataFrame) -> Any:
        return cohort[(cohort["source"] == "idc")][13:].drop_duplicates("patient").index[:2]

    return [
        row("non_commercial", "licence_not_allowed", "a series under CC BY-NC 3.0", 4, licence="CC BY-NC 3.0"),
        row("no_licence", "licence_not_allowed", "a series without a licence", 5, licence=""),
        row("no_collection", "attribution_missing", "an IDC series without a collection", 6, collection=""),
        row("no_doi", "attribution_missing", "an IDC series without a DOI", 7, doi=""),
        row("no_files", "size_unknown", "a series of no files", 8, files=0),
        row("no_bytes", "size_unknown", "a series of no bytes", 9, bytes=0),
        row("tiny_files", "size_implausible", "files of 100 bytes", 10, bytes=lambda rows: rows["files"] * 100),
        row("huge_files", "size_implausible", "files of 100 MB", 11, files=2, bytes=200_000_000),
        row("huge_series", "size_implausible", "a series of 9 GB", 12, files=9000, bytes=9_000_000_000),
        fault("retest_lost", "retest_unknown", "a second scan of a series that is not there", "reject",
              _set(lambda t: _retests(t, 0), retest_of="s0123456789abcdef")),
        fault("retest_of_another", "retest_unknown", "a second scan of another patient's series", "reject",
              retest_of_another),
        fault("study_of_two", "mixed_patients", "one study under two PatientIDs", "reject",
              _set(two_patients, study="e0123456789abcdef")),
        fault("doi_malformed", "doi_malformed", "a DOI that is a web address", "warning",
              _set(_of("idc", "pretrain", 3), doi="https://example.org/data")),
        fault("licence_not_stated", "licence_not_stated", "a licence that is not stated", "warning",
              _set(_of("phantom", "evaluation", 0), licence="not stated")),
    ]  # fmt: skip


def _assigned_faults() -> list[Planted]:
    """In the table as a whole: keys, roles, splits, shards, shares."""
    fault = _in_cohort
    idc, test = _of("idc", "pretrain", 3), _of("phantom", "evaluation", 0)

    def pretrained(cohort: pd.DataFrame) -> pd.DataFrame:
        patient = cohort.loc[test(cohort)[0], "patient"]
        return _set(idc, patient=patient)(cohort)

    def split_over_two(cohort: pd.DataFrame) -> pd.DataFrame:
        train = cohort.index[cohort["split"] == "train"][0]
        patient = cohort.loc[cohort.index[cohort["split"] == "test"][0], "patient"]
        return _set(lambda t: [train], patient=patient)(cohort)

    def pretrain_rows(cohort: pd.DataFrame) -> Any:
        return cohort.index[cohort["role"] == "pretrain"]

    return [
        fault("listed_twice", "rows_twice", "a series listed twice", "critical",
              lambda t: pd.concat([t, t.iloc[:1]], ignore_index=True)),
        fault("lost", "rows_lost", "a series lost while listing", "critical", lambda t: t.iloc[1:]),
        fault("object_twice", "location_twice", "one IDC object under two keys", "critical",
              _set(lambda t: t.index[t["source"] == "idc"][:2], location="idc-open-data/one object")),
        fault("raw_patient_id", "patient_key", "a PatientID instead of its pseudonym", "critical",
              _set(idc, patient="LIDC-IDRI-0314")),
        fault("no_patient", "patient_key", "no patient", "critical", _set(idc, patient=None)),
        fault("raw_series_uid", "series_key", "a series UID instead of its pseudonym", "critical",
              _set(idc, series="1.3.6.1.4.1.14519.5.2.1")),
        fault("evaluation_pretrained", "evaluation_leak", "a test patient's series to pretrain on", "critical",
              pretrained),
        fault("held_out_pretrained", "evaluation_leak", "a held-out patient's series to pretrain on", "critical",
              lambda t: t),
        fault("two_splits", "patient_in_two_splits", "a patient on both sides of the split", "critical",
              split_over_two),
        fault("role_unknown", "role_split", "a role that no stage knows", "critical", _set(idc, role="validation")),
        fault("split_contradicts", "role_split", "an evaluation series in the split to pretrain on", "critical",
              _set(test, split="pretrain")),
        fault("no_shard", "shard_unknown", "a series in a shard that is never run", "critical", _set(idc, shard=7)),
        fault("nothing_left", "too_few_pretrain", "no series left to pretrain on", "critical",
              _set(pretrain_rows, licence="CC BY-NC 4.0")),
        fault("one_shard", "shards_unbalanced", "nearly all series in one of four shards", "warning",
              _set(lambda t: t.index[4:], shard=0)),
        fault("one_collection", "collection_concentrated", "nine of ten series from one collection", "warning",
              _set(lambda t: pretrain_rows(t)[: len(pretrain_rows(t)) * 9 // 10], collection="nlst")),
        fault("one_patient", "patient_concentrated", "half of the series of one patient", "warning",
              _set(lambda t: pretrain_rows(t)[::2], patient="p0123456789abcdef")),
    ]  # fmt: skip
