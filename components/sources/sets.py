"""Labelled sets: scans that serve to evaluate, and the table that says what is known of them.

A set's scans come from a source of their own (``scans``, in the terms of ``<line>.cohort``), or are scans of the line's
own source. The table lies in a folder of this machine and is pinned by its digest; it names a scan by its patient, its
study, its series, its accession number or a file. Nobody who is named in it is pretrained on.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from components.ct.keys import accession_key, file_key, patient_key, study_key, uid_key
from components.errors import UserError
from components.files import sha256_file
from components.settings import (
    PARAMS_FILE,
    ParamsError,
    Seed,
    StageConfig,
    did_you_mean,
    load_part,
    parse,
    read_yaml,
    shown,
)
from components.sources.config import Name, SourceConfig
from components.sources.nifti import patient_missing
from components.sources.roots import place_of, root_of
from components.sources.tree import own_names

SETS = "sets"
SET_NAME = r"[a-z][a-z0-9_]{0,39}"
KEYS = {"patient": patient_key, "study": study_key, "series": uid_key, "accession": accession_key, "file": file_key}
SHOWN_ROWS = 3  # named in an error


class LabelsConfig(StageConfig):
    """Where the labels are, and how they name a scan.

    Attributes:
        table: a .csv or .parquet file in the set's folder of labels.
        digest: its SHA-256.
        key: what names a scan: its ``patient`` (PatientID, or as ``nifti.patient`` tells it), ``study``
            (StudyInstanceUID), ``series`` (SeriesInstanceUID), ``accession`` (AccessionNumber), or ``file``: a file, a
            folder of files or a zip below the source's root. A row names every scan of its patient, study or accession.
        column: of the table, that holds the key.
    """

    table: Annotated[str, Field(pattern=r"^[^/\\]+\.(csv|parquet)$")]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    key: Literal["patient", "study", "series", "accession", "file"]
    column: Name


class SplitConfig(StageConfig):
    """Which side of a split a patient is on: as a ``column`` of the table says, with ``train`` and ``test``, or by a
    hash of patient and ``seed``, so that about the share ``test`` of them is tested on."""

    column: Name | None = None
    seed: Seed | None = None
    test: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> SplitConfig:
        if (self.column is None) == (self.seed is None) or (self.seed is None) != (self.test is None):
            raise ValueError("{column: <of the table>} or {seed: <number>, test: <share of the patients>}")
        return self


class SetConfig(StageConfig):
    """A block of ``<line>.sets``.

    Attributes:
        scans: where they come from: what differs from ``<line>.cohort``, such as
            ``{source: dicom, source_digest: ...}``; null for scans of the line's own source.
        labels: the table.
        split: of the patients of an internal set.
        role: ``internal``, or ``external``: of another site, tested on only.
    """

    scans: dict[str, Any] | None
    labels: LabelsConfig
    split: SplitConfig
    role: Literal["internal", "external"]


@dataclass(frozen=True)
class LabelledSet:
    """A set with what it needs of its line.

    Attributes:
        line, name: of the set.
        config: its block.
        source: of its scans; None where they are the line's own.
    """

    line: str
    name: str
    config: SetConfig
    source: SourceConfig | None

    paths: str

    @property
    def place(self) -> str:
        """Under which the roots and maps of its scans are kept on this machine, as a line's are under its name."""
        return place_of(self.line, self.name)

    def table(self) -> tuple[pd.DataFrame, list[tuple[str, ...]]]:
        """The table, row by row, every column as text; and for each row the pseudonyms by which it may name a scan,
        none where it names none.

        Raises:
            UserError: it is not on this machine, not the pinned one, no table, or without the columns it must have;
                or a key is named twice.
        """
        of, where = self.config.labels, f"{self.line}.sets.{self.name}.labels"
        path = root_of(f"{self.name}_labels", self.line) / of.table
        if not path.is_file():
            raise UserError(f"{where}.table: {of.table!r} is not in the folder of the set's labels")
        found = sha256_file(path)
        if found != of.digest:
            raise UserError(
                f"{where}.digest: {of.table} has digest {found[:12]}, pinned is {of.digest[:12]}; "
                f"pin it as it is now with `ctfoundry set pin {self.name} --line {self.line}`"
            )
        table = read_text_table(path)
        for column in [of.column, *([self.config.split.column] if self.config.split.column else [])]:
            require_column(table, column, f"{where}: {of.table}")
        keys = table[of.column].str.strip()
        twice = sorted(np.flatnonzero((keys != "") & keys.duplicated()) + 1)
        if twice:
            told = ", ".join(map(str, twice[:SHOWN_ROWS])) + (", ..." if len(twice) > SHOWN_ROWS else "")
            raise UserError(f"{where}: {of.table} names a {of.key} of column {of.column!r} twice, in row {told}")
        return table, [self._keys(text) if text else () for text in keys]

    def _keys(self, text: str) -> tuple[str, ...]:
        kind = self.config.labels.key
        if kind != "file":
            return (KEYS[kind](text),)
        files = (text.rstrip("/"), f"{text}!")  # as the folder that a zip counts for
        if self.paths == "shown":
            return files
        prefix = own_names(self.place) if self.source is not None else ""
        return tuple(KEYS[kind](prefix + name) for name in files)


def require_column(table: pd.DataFrame, column: str, where: str) -> None:
    """Raise UserError where the table has no such column. Its others are not named: of a table without a head, they are
    its first row's values."""
    if column not in table:
        near = did_you_mean(column, list(table.columns), cutoff=0.8)
        raise UserError(f"{where}: no column {column!r} among its {len(table.columns)}{near}")


def read_text_table(path: Path) -> pd.DataFrame:
    """A .csv or .parquet file with every value as text, '' where there is none. Whole numbers are written as such,
    though a column with a gap holds them as floating point ones.

    Raises:
        UserError: it is none, has no row, or names a column twice.
    """
    try:
        if path.suffix == ".parquet":
            table = pd.DataFrame(pq.read_table(path).to_pandas(ignore_metadata=True).map(_as_text))
        else:
            table = _csv_table(path)
    except UserError:
        raise
    except UnicodeDecodeError:
        raise UserError(f"table {path.name}: not UTF-8 text") from None
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's own among them
        raise UserError(f"table {path.name}: cannot be read as {path.suffix[1:]} ({type(error).__name__})") from None
    if table.columns.duplicated().any():
        raise UserError(f"table {path.name}: a column is named twice")
    if table.empty:
        raise UserError(f"table {path.name}: no row")
    return table.rename(columns=str)


def _as_text(value: Any) -> str:
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _csv_table(path: Path) -> pd.DataFrame:
    # Not pandas': of rows that end in a comma it takes the first column for an index, and moves every label by one.
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = [row for row in csv.reader(stream, strict=True) if any(cell.strip() for cell in row)]
    if not rows:
        return pd.DataFrame()
    head = [name.strip() for name in rows[0]]
    while head and not head[-1]:
        head.pop()
    for number, row in enumerate(rows[1:], start=1):
        if any(cell.strip() for cell in row[len(head) :]):
            raise UserError(f"table {path.name}: row {number} has more values than there are columns")
    return pd.DataFrame([(row + [""] * len(head))[: len(head)] for row in rows[1:]], columns=head, dtype=str)


def sets_of(line: str, path: Path = PARAMS_FILE) -> dict[str, LabelledSet]:
    """The labelled sets of a line, in their order.

    Raises:
        ParamsError: one line per mistake.
    """
    content = read_yaml(path).get(line)
    block = content if isinstance(content, dict) else {}
    sets, cohort = block.get(SETS), block.get("cohort")
    if not isinstance(sets, dict):
        raise ParamsError(
            f"params.yaml: {line}.{SETS}: {shown(sets)} is not allowed: a block per labelled set, or {{}}"
        )
    found, mistakes = {}, []
    for name, values in sets.items():
        try:
            found[str(name)] = _parsed(line, name, values, cohort if isinstance(cohort, dict) else {})
        except ParamsError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ParamsError("\n".join(mistakes))
    return found


def _parsed(line: str, name: Any, values: Any, cohort: Mapping[str, Any]) -> LabelledSet:
    where = f"{line}.{SETS}.{name}"
    if not isinstance(name, str) or not re.fullmatch(SET_NAME, name):
        raise ParamsError(
            f"params.yaml: {line}.{SETS}: {shown(name)} is not allowed: a-z, 0-9 and _, a letter first, at most 40"
        )
    config = parse(SetConfig, values, where)
    if config.scans is None:
        nifti = cohort.get("nifti")
        if cohort.get("source") == "nifti" and isinstance(nifti, dict) and nifti.get("patient") is None:
            raise ParamsError(patient_missing(f"{line}.cohort"))
        return LabelledSet(line, name, config, None, str(cohort.get("paths")))
    known = {key: value for key, value in cohort.items() if key in SourceConfig.model_fields}
    unpinned = {} if "source_digest" in config.scans else {"source_digest": None}  # never the line's own
    source = parse(SourceConfig, {**known, **unpinned, **config.scans}, f"{where}.scans")
    if source.source == "phantom":
        raise ParamsError(f"params.yaml: {where}.scans.source: 'phantom' is not allowed: no table names its scans")
    if source.source == "nifti" and source.nifti.patient is None:
        raise ParamsError(patient_missing(f"{where}.scans"))
    return LabelledSet(line, name, config, source, source.paths)


def sources_of(line: str) -> dict[str, SourceConfig]:
    """Where the series of a cohort come from, by its column ``set``: '' for the line's own source."""
    own = {name: of_set.source for name, of_set in sets_of(line).items() if of_set.source is not None}
    return {"": load_part(SourceConfig, line, "cohort"), **own}
