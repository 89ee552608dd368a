"""Labelled sets: scans that serve to evaluate, and the table that says what is known of them.

A set's scans come from a source of their own (``scans``, in the terms of ``<line>.cohort``), or are scans of the line's
own source. The table lies in a folder of this machine and is pinned by its digest; it names a scan by its patient, its
study, its series, its accession number or a file. Of phantoms their plans are the table. Nobody who is named in it is
pretrained on.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

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
from components.sources.masks import ROOT, Found, MasksConfig, digest_of, find_masks
from components.sources.nifti import patient_missing
from components.sources.phantom.equipment import HOME, SITES
from components.sources.roots import place_of, root_of
from components.sources.tree import own_names

SETS, MASKS, PHANTOM = "sets", "masks", "phantom"
SET_NAME = r"[a-z][a-z0-9_]{0,39}"
KEYS = {"patient": patient_key, "study": study_key, "series": uid_key, "accession": accession_key, "file": file_key}
SHOWN_ROWS = 3  # named in a line of text
# Of phantoms: how the table that their plans make names a scan.
PLANNED = {"table": "plans.csv", "digest": "0" * 64, "key": "series", "column": "series"}
# Of a set's phantoms, unless it says otherwise: pretraining, second scans and faults are the line's.
CLEAN = {"pretrain_patients": 0, "retest_patients": 0, "fault_share": 0.0}
NO_VALUE = frozenset({"", "nan", "na", "n/a", "null", "none", "unknown"})  # however it is written


class LabelsConfig(StageConfig):
    """Where the labels are, and how they name a scan.

    Attributes:
        table: a .csv or .parquet file in the set's folder of labels.
        digest: its SHA-256.
        key: what names a scan: its ``patient`` (PatientID, or as ``nifti.patient`` tells it), ``study``
            (StudyInstanceUID), ``series`` (SeriesInstanceUID), ``accession`` (AccessionNumber), or ``file``: a file, a
            folder or a zip below the source's root. A row names every scan of its patient, study, accession or folder.
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
        scans: where they come from: what differs from ``<line>.cohort``, also within its blocks, such as
            ``{source: dicom, source_digest: ...}`` or ``{source: idc, idc: {collections: [rider_lung_ct]}}``; null for
            scans of the line's own source.
        labels: the table; null of phantoms, whose plans are one.
        masks: of its scans, where there are any.
        split: of the patients of an internal set.
        role: ``internal``, or ``external``: of another site, tested on only.
    """

    scans: dict[str, Any] | None
    labels: LabelsConfig
    masks: MasksConfig | None = None
    split: SplitConfig
    role: Literal["internal", "external"]


@dataclass(frozen=True)
class LabelledSet:
    """A set with what it needs of its line.

    Attributes:
        line, name: of the set.
        config: its block.
        source: of its scans; None where they are the line's own.
        paths: how tables name the files of its scans, see ``SourceConfig``.
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

    @property
    def planned(self) -> bool:
        """Whether its scans are phantoms, so that nothing of it lies on this machine."""
        return self.source is not None and self.source.source == PHANTOM

    @property
    def table_path(self) -> Path:
        """Of the table, on this machine. Raises UserError where it is not there."""
        table = self.config.labels.table
        path = root_of(f"{self.name}_labels", self.line) / table
        if not path.is_file():
            raise UserError(f"{self._labels}.table: {table!r} is not in the folder of the set's labels")
        return path

    def table(self) -> tuple[pd.DataFrame, list[tuple[str, ...]]]:
        """As :meth:`read`, of the table on this machine. Raises UserError where it is not the pinned one, too."""
        if self.planned:
            from components.sources.phantom.table import planned_table

            assert self.source is not None
            table = planned_table(self.source.phantom)
            return table, [self.keys_of("series", uid) for uid in table["series"]]
        path, pinned = self.table_path, self.config.labels.digest
        found = sha256_file(path)
        if found != pinned:
            raise UserError(
                f"{self._labels}.digest: {path.name} has digest {found[:12]}, pinned is {pinned[:12]}; "
                f"pin it as it is now with `ctfoundry set pin {self.name} --line {self.line}`"
            )
        return self.read(path)

    def read(self, path: Path) -> tuple[pd.DataFrame, list[tuple[str, ...]]]:
        """The table, row by row, every column as text; and for each row the pseudonyms by which it may name a scan,
        none where it names none.

        Raises:
            UserError: it is no table, is without the columns it must have, names no scan, or a scan twice.
        """
        of, where = self.config.labels, f"{self._labels}: {path.name}"
        table = read_text_table(path)
        for column in [of.column, *([self.config.split.column] if self.config.split.column else [])]:
            require_column(table, column, where)
        keys = [self.keys_of(of.key, text) if text else () for text in table[of.column].str.strip()]
        named = [key[0] for key in keys if key]
        if not named:
            raise UserError(f"{where}: column {of.column!r} names no {of.key}: it is empty in all {len(table)} rows")
        if len(set(named)) < len(named):
            twice = pd.Series([key[0] if key else "" for key in keys])
            rows = [int(row) + 1 for row in twice.index[twice.duplicated() & (twice != "")]]
            raise UserError(f"{where} names a {of.key} of column {of.column!r} twice, in row {first_rows(rows)}")
        return table, keys

    @property
    def _labels(self) -> str:
        return f"{self.line}.{SETS}.{self.name}.labels"

    def masks(self, of: MasksConfig) -> Found:
        """Its masks in a folder of this machine. Raises UserError where they are not the pinned ones."""
        found = find_masks(root_of(ROOT, self.place), of.match)
        digest = digest_of(found.masks)
        if digest != of.digest:
            raise UserError(
                f"{self.line}.{SETS}.{self.name}.masks.digest: the masks have digest {digest[:12]}, pinned is "
                f"{str(of.digest)[:12]}; pin them as they are now with `ctfoundry set pin {self.name} --line "
                f"{self.line}`"
            )
        return found

    def keys_of(self, kind: str, text: str) -> tuple[str, ...]:
        """The pseudonyms by which a text of a kind in :data:`KEYS` may name scans."""
        if kind != "file":
            return (KEYS[kind](text),)
        path = str(PurePosixPath(text))
        files = (path, f"{path}!")  # as the folder that a zip counts for
        if self.paths == "shown":
            return files
        prefix = own_names(self.place) if self.source is not None else ""
        return tuple(KEYS[kind](prefix + name) for name in files)


def first_rows(rows: Sequence[int]) -> str:
    """Numbers of rows, the first few of many."""
    return ", ".join(map(str, rows[:SHOWN_ROWS])) + (", ..." if len(rows) > SHOWN_ROWS else "")


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
            found[str(name)] = set_of(line, name, values, cohort if isinstance(cohort, dict) else {})
        except ParamsError as error:
            mistakes.append(str(error))
    first: dict[tuple[str, int], str] = {}
    for name, of_set in found.items():
        if of_set.source is None or not of_set.planned:
            continue
        of = of_set.source.phantom
        if (other := first.setdefault((of.site, of.seed), name)) != name:
            mistakes.append(
                f"params.yaml: {line}.{SETS}.{name}.scans.phantom.seed: {of.seed} is not allowed: set {other!r} has it "
                f"of site {of.site!r}, and so the same patients; another one"
            )
    if mistakes:
        raise ParamsError("\n".join(mistakes))
    return found


def set_of(line: str, name: Any, values: Any, cohort: Mapping[str, Any]) -> LabelledSet:
    """The labelled set of a block.

    Args:
        line, name: of the set.
        values: the block.
        cohort: that of the line.

    Raises:
        ParamsError: one line per mistake.
    """
    where = f"{line}.{SETS}.{name}"
    if not isinstance(name, str) or not re.fullmatch(SET_NAME, name):
        raise ParamsError(
            f"params.yaml: {line}.{SETS}: {shown(name)} is not allowed: a-z, 0-9 and _, a letter first, at most 40"
        )
    config = parse(SetConfig, _with_plans(values, where), where)
    of_index = config.masks is not None and config.masks.analysis_results is not None
    if config.scans is None:
        nifti = cohort.get("nifti")
        if cohort.get("source") == "nifti" and isinstance(nifti, dict) and nifti.get("patient") is None:
            raise ParamsError(patient_missing(f"{line}.cohort"))
        source = None
    else:
        source = source_beside(line, name, config.scans, cohort)
    if of_index and (source is None or source.source != "idc"):
        raise ParamsError(
            f"params.yaml: {where}.masks.analysis_results: not allowed with these scans: only with {{source: idc}}"
        )
    if source is None:
        return LabelledSet(line, name, config, None, str(cohort.get("paths")))
    if source.source == PHANTOM:
        _check_site(source.phantom.site, cohort, f"{where}.scans.phantom")
    if source.source == "nifti" and source.nifti.patient is None:
        raise ParamsError(patient_missing(f"{where}.scans"))
    return LabelledSet(line, name, config, source, source.paths)


def source_beside(line: str, name: str, scans: Mapping[str, Any], cohort: Mapping[str, Any]) -> SourceConfig:
    """Where the scans of a set come from, by its block ``scans`` and the line's ``cohort``. Raises ParamsError."""
    return parse(SourceConfig, _source_block(scans, cohort), f"{line}.{SETS}.{name}.scans")


def _with_plans(values: Any, where: str) -> Any:
    """The block of a set of phantoms with the table that their plans make; another as it is."""
    scans = values.get("scans") if isinstance(values, dict) else None
    if not isinstance(scans, dict) or scans.get("source") != PHANTOM:
        return values
    for key in ("labels", MASKS):
        if values.get(key) is not None:
            raise ParamsError(
                f"params.yaml: {where}.{key}: {shown(values[key])} is not allowed with scans.source '{PHANTOM}': "
                "what is known of phantoms are their plans; null"
            )
    return values | {"labels": PLANNED}


def _check_site(site: str, cohort: Mapping[str, Any], where: str) -> None:
    """The line's own phantoms are patients of the line."""
    phantom = cohort.get(PHANTOM)
    home = phantom.get("site", HOME) if isinstance(phantom, dict) else HOME
    if site == home:
        raise ParamsError(
            f"params.yaml: {where}.site: {shown(site)} is not allowed: the line's own; "
            f"{' or '.join(repr(name) for name in SITES if name != home)}, so that its patients are others"
        )


def _source_block(scans: Mapping[str, Any], cohort: Mapping[str, Any]) -> dict[str, Any]:
    """The line's source, and what differs from it. What holds for its data alone is not taken over: the digest of its
    tree, and collections that are kept from pretraining, which the set may be made of."""
    block = {key: value for key, value in cohort.items() if key in SourceConfig.model_fields} | {"source_digest": None}
    if isinstance(block.get("idc"), dict):
        block["idc"] = block["idc"] | {"evaluation_collections": ()}
    if scans.get("source") == PHANTOM and isinstance(block.get(PHANTOM), dict):
        block[PHANTOM] = block[PHANTOM] | CLEAN
    for key, value in scans.items():
        present = block.get(key)
        block[key] = {**present, **value} if isinstance(present, dict) and isinstance(value, dict) else value
    return block


def sources_of(line: str) -> dict[str, SourceConfig]:
    """Where the series of a cohort come from, by its column ``set``: '' for the line's own source."""
    own = {name: of_set.source for name, of_set in sets_of(line).items() if of_set.source is not None}
    return {"": load_part(SourceConfig, line, "cohort"), **own}
