"""Labelled sets: scans that serve to evaluate, and the table that says what is known of them.

A set's scans come from a source of their own (``scans``, in the terms of ``<line>.cohort``), or are scans of the line's
own source. The table lies in a folder of this machine and is pinned by its digest; it names a scan by its patient, its
study, its series, its accession number or a file. Nobody who is named in it is pretrained on.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, model_validator

from components.ct.keys import accession_key, file_key, patient_key, study_key, uid_key
from components.errors import UserError
from components.files import sha256_file
from components.settings import PARAMS_FILE, ParamsError, Seed, StageConfig, load_part, parse, read_yaml, shown
from components.sources.config import Name, SourceConfig
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

    @property
    def place(self) -> str:
        """Under which the roots and maps of its scans are kept on this machine, as a line's are under its name."""
        return place_of(self.line, self.name)

    def table(self) -> pd.DataFrame:
        """The table, row by row, every column as text, with ``keys``: the pseudonyms by which a row may name a scan,
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
        wanted = [of.column, *([self.config.split.column] if self.config.split.column else [])]
        for column in wanted:
            if column not in table:
                raise UserError(f"{where}: {of.table} has no column {column!r}; it has {', '.join(table.columns)}")
        keys = table[of.column].str.strip()
        twice = sorted(keys[(keys != "") & keys.duplicated()].index + 2)  # as an editor counts, after the head
        if twice:
            told = ", ".join(map(str, twice[:SHOWN_ROWS])) + (", ..." if len(twice) > SHOWN_ROWS else "")
            raise UserError(f"{where}: {of.table} names a {of.key} of column {of.column!r} twice, in line {told}")
        return table.assign(
            keys=pd.Series([self._keys(text) if text else () for text in keys], index=table.index, dtype=object)
        )

    def _keys(self, text: str) -> tuple[str, ...]:
        kind = self.config.labels.key
        if kind != "file":
            return (KEYS[kind](text),)
        files = (text, f"{text}!")  # as the folder that a zip counts for
        if self.source is not None and self.source.paths == "shown":
            return files
        prefix = own_names(self.place) if self.source is not None else ""
        return tuple(KEYS[kind](prefix + name) for name in files)


def read_text_table(path: Path) -> pd.DataFrame:
    """A .csv or .parquet file with every value as text, '' where there is none. Raises UserError where it is none, or
    names a column twice."""
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            table = table.map(lambda value: "" if pd.isna(value) else str(value))
        else:
            text = path.read_text(encoding="utf-8-sig")
            table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, skip_blank_lines=False)
    except UnicodeDecodeError:
        raise UserError(f"table {path.name}: not UTF-8 text") from None
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own among them
        raise UserError(f"table {path.name}: cannot be read as {path.suffix[1:]} ({type(error).__name__})") from None
    if table.empty:
        raise UserError(f"table {path.name}: no row")
    return table.rename(columns=str)


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
        return LabelledSet(line, name, config, None)
    known = {key: value for key, value in cohort.items() if key in SourceConfig.model_fields}
    unpinned = {} if "source_digest" in config.scans else {"source_digest": None}  # never the line's own
    return LabelledSet(line, name, config, parse(SourceConfig, {**known, **unpinned, **config.scans}, f"{where}.scans"))


def sources_of(line: str) -> dict[str, SourceConfig]:
    """Where the series of a cohort come from, by its column ``set``: '' for the line's own source."""
    own = {name: of_set.source for name, of_set in sets_of(line).items() if of_set.source is not None}
    return {"": load_part(SourceConfig, line, "cohort"), **own}
