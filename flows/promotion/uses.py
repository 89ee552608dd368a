"""Which releases used a patient or a series: by their own tables, and by the weights that they began with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from components.ct.keys import patient_key, series_key, uid_key
from components.errors import UserError
from components.progress import track
from flows.promotion.contents import Contents, contents_of
from flows.promotion.tags import Version

_PATIENT, _SERIES = re.compile(r"p[0-9a-f]{16}"), re.compile(r"[su][0-9a-f]{16}")
COLUMNS = ["series", "patient", "role", "status"]
PRETRAIN, EVALUATION, LEFT_OUT = "pretraining", "evaluation", "listed, and left out"


@dataclass(frozen=True)
class Wanted:
    """Whom or what is looked for: the pseudonyms that tables may have of it. No identifier is kept."""

    patients: frozenset[str]
    series: frozenset[str]

    @property
    def name(self) -> str:
        """For people: the first pseudonym."""
        return min(self.patients) if self.patients else min(self.series)


def of_patient(patient: str) -> Wanted:
    """By a PatientID, or its pseudonym (``p`` and 16 hex digits)."""
    if not patient.strip():
        raise UserError("--patient '' is not allowed: a PatientID, or its pseudonym in a table")
    return Wanted(frozenset({patient if _PATIENT.fullmatch(patient) else patient_key(patient)}), frozenset())


def of_series(uid: str) -> Wanted:
    """By a SeriesInstanceUID, or a pseudonym of it (``s`` or ``u`` and 16 hex digits)."""
    if not uid.strip():
        raise UserError("--series '' is not allowed: a SeriesInstanceUID, or its pseudonym in a table")
    known = {uid} if _SERIES.fullmatch(uid) else {series_key(uid.strip()), uid_key(uid)}
    return Wanted(frozenset(), frozenset(known))


@dataclass(frozen=True)
class Use:
    """A release that has to do with it.

    Attributes:
        version: the release.
        series: pseudonyms of its series in the cohort, sorted.
        how: the gravest of pretraining, evaluation, or listed only; or where its weights began.
    """

    version: Version
    series: tuple[str, ...]
    how: str

    @property
    def trained(self) -> bool:
        """Whether the weights may hold something of it."""
        return self.how == PRETRAIN or self.how.startswith("began")


def uses(wanted: Wanted, published: Sequence[Version]) -> list[Use]:
    """Every release that used it, in the order of ``published``.

    Raises:
        UserError: tables of a release are neither here nor at the DVC remote: then nobody can say.
    """
    read: dict[tuple[str, ...], pd.DataFrame] = {}  # most releases of a line share their tables
    found: dict[str, Use] = {}
    encoders: dict[str, str] = {}  # SHA-256 of the weights to the release that made them
    begun: dict[str, str] = {}
    for version in track(published, [1] * len(published), "releases looked through"):
        contents = contents_of(version)
        table = _table(contents, version.line, read)
        rows = table[table["patient"].isin(wanted.patients) | _is_of(table, wanted.series)]
        if len(rows):
            found[version.name] = Use(version, tuple(sorted(set(rows["series"]))), _gravest(rows))
        manifest = contents.json(f"releases/{version.line}/manifest.json")
        encoders[manifest["files"].get("encoder.safetensors", "")] = version.name
        begun[version.name] = manifest["inputs"].get("start", "")
    _follow(found, published, encoders, begun)
    return [found[version.name] for version in published if version.name in found]


def _follow(
    found: dict[str, Use], published: Iterable[Version], encoders: dict[str, str], begun: dict[str, str]
) -> None:
    """Add releases that began with the weights of one that was trained on it, and those that began with theirs."""
    grows = True
    while grows:
        grows = False
        for version in published:
            use, origin = found.get(version.name), encoders.get(begun[version.name])
            if begun[version.name] and origin in found and found[origin].trained and not (use and use.trained):
                found[version.name] = Use(version, use.series if use else (), f"began with the weights of {origin}")
                grows = True


def series_of(contents: Contents, line: str) -> pd.DataFrame:
    """Every series of a release: the cohort's columns, its role and what became of it."""
    cohort = contents.table(f"data/{line}/cohort/cohort.parquet")
    curated = contents.table(f"data/{line}/curate/curated.parquet")[["series", "role", "status"]]
    return cohort.drop(columns=["role", "status"], errors="ignore").merge(curated, on="series", how="left")


def _table(contents: Contents, line: str, read: dict[tuple[str, ...], pd.DataFrame]) -> pd.DataFrame:
    """Series, patient, role and status, by cohort and curation; and who is named in a table of labels only."""
    key = (line, *(contents.hashes.get(f"data/{line}/{stage}", contents.commit) for stage in ("cohort", "curate")))
    if key not in read:
        table = series_of(contents, line)
        labelled = contents.table(f"data/{line}/cohort/labelled.parquet")
        named = pd.DataFrame({"series": "", "patient": labelled["patient"], "role": "labelled", "status": "listed"})
        columns = [*COLUMNS, *(["uid"] if "uid" in table else [])]
        read[key] = pd.concat([table[columns], named], ignore_index=True)
    return read[key]


def _is_of(table: pd.DataFrame, series: frozenset[str]) -> Any:
    found = table["series"].isin(series)
    return found | table["uid"].isin(series) if "uid" in table else found


def _gravest(rows: pd.DataFrame) -> str:
    used = set(rows[rows["status"] == "accepted"]["role"])
    return PRETRAIN if "pretrain" in used else EVALUATION if "evaluation" in used else LEFT_OUT
