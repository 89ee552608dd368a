"""Choose series from the index of the NCI Imaging Data Commons: a query, then the line's options, and the funnel.

The index ships with idc-index-data, so the selection needs no network. ``ct_index`` and ``volume_geometry_index`` do
not ship; where they are not on this machine, criteria on them are left to header screening, and the funnel says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import idc_index_data
import numpy as np
import numpy.typing as npt
import pandas as pd

from components.errors import UserError
from components.files import sha256_file
from components.settings import did_you_mean
from components.sources.config import IdcConfig

QUERIES = Path(__file__).parent / "queries"
CRITERION = "keep: "
# Of the index's columns, those that somebody reads here or in a table of ours.
COLUMNS = (
    "crdc_series_uuid", "collection_id", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "license_short_name",
    "source_DOI", "instanceCount", "series_size_MB", "series_init_idc_version", "aws_bucket", "Manufacturer",
    "ManufacturerModelName", "BodyPartExamined", "SeriesDescription", "transfer_syntax_name",
)  # fmt: skip
FETCHED = ("ct_index", "volume_geometry_index")  # idc-index downloads them on demand, into its own data folder
# Types of idc-index-data's schemas as DuckDB names them: a table that is not here is an empty one of these columns.
TYPES = {"STRING": "VARCHAR", "FLOAT": "DOUBLE", "INTEGER": "BIGINT", "BOOLEAN": "BOOLEAN"}


@dataclass(frozen=True)
class Step:
    """One row of the funnel.

    Attributes:
        criterion: in words.
        series, patients, gigabytes: what is left after it.
        deferred: series that it could not judge from the tables at hand; header screening will.
    """

    criterion: str
    series: int
    patients: int
    gigabytes: float
    deferred: int = 0


@dataclass(frozen=True)
class Selection:
    """Attributes:
    series: the chosen ones with the index's own ``COLUMNS``, sorted by ``crdc_series_uuid``.
    funnel: from all CT series down to the chosen.
    attribution: collection, licence, DOI, citation, series, patients; sorted.
    receipt: query, its SHA-256, parameters, versions and tables of the index.
    """

    series: pd.DataFrame
    funnel: list[Step]
    attribution: pd.DataFrame
    receipt: dict[str, Any]


def queries() -> dict[str, Path]:
    """Query names to their SQL files."""
    return {path.stem: path for path in sorted(QUERIES.glob("*.sql"))}


def select(config: IdcConfig, evaluation_patients: frozenset[str] = frozenset()) -> Selection:
    """Run the query, apply the options in a fixed order, count after each.

    Args:
        config: the query's name and the options.
        evaluation_patients: PatientIDs of which no series may be taken, besides those of the evaluation collections.

    Raises:
        UserError: an unknown query, collection or licence.
    """
    known = queries()
    if config.query not in known:
        raise UserError(f"cohort query {config.query!r} is not allowed: {', '.join(known)}")
    sql = known[config.query].read_text(encoding="utf-8")
    with database_in_memory() as database:
        tables = _open_tables(database)
        _check_names(database, config)
        _find_candidates(database, sql, config.idc_version)
        kept, funnel = _apply_criteria(database, _criteria(database, config, evaluation_patients))
        database.register("kept_rows", pd.DataFrame({"candidate": kept}))
        columns = ", ".join(COLUMNS)
        database.execute(
            f"CREATE TABLE kept AS SELECT {columns} FROM candidates c JOIN kept_rows k ON c.rowid = k.candidate"
        )
        for words, ranked in _draws(config):
            database.execute(f"CREATE OR REPLACE TABLE kept AS SELECT * FROM kept QUALIFY {ranked}")
            funnel.append(_count(database, words))
        chosen = database.execute(f"SELECT {columns} FROM kept ORDER BY crdc_series_uuid")
        series = chosen.to_arrow_table().to_pandas()  # strings stay Arrow's: twice as fast as .df(), half the memory
        attribution = _attribution(database)
    receipt = {
        "query": config.query,
        "query_sha256": sha256_file(known[config.query]),
        "index": f"idc-index-data {version('idc-index-data')}",
        "tables": tables,
        "parameters": json.loads(config.model_dump_json()),
        "evaluation_patients": len(evaluation_patients),
    }
    return Selection(series, funnel, attribution, receipt)


@contextmanager
def database_in_memory() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database that leaves standard output, which is the command's, alone."""
    with duckdb.connect(":memory:", config={"threads": 2}) as database:
        database.execute("SET enable_progress_bar = false")  # DuckDB shows one where Python runs no file
        yield database


def _find_candidates(database: duckdb.DuckDBPyConnection, sql: str, idc_version: int | None) -> None:
    """Run the query into a table ``candidates``; columns that nobody reads are not even decoded."""
    bound = {"idc_version": idc_version}
    described = database.execute(f"SELECT * FROM ({sql}) LIMIT 0", bound).description or []
    criteria = [f'"{column[0]}"' for column in described if column[0].startswith(CRITERION)]
    database.execute(f"CREATE TABLE candidates AS SELECT {', '.join([*COLUMNS, *criteria])} FROM ({sql})", bound)


def _apply_criteria(
    database: duckdb.DuckDBPyConnection, criteria: Iterable[tuple[str, str, list[Any]]]
) -> tuple[npt.NDArray[np.int64], list[Step]]:
    """Judge all candidates by every criterion in one pass, then count them down in order.

    Returns:
        Row numbers of the candidates that are left, and the funnel.
    """
    listed = list(criteria)
    conditions = ", ".join(f"({condition})::TINYINT AS c{n}" for n, (_, condition, _) in enumerate(listed))
    values = [value for _, _, given in listed for value in given]
    found = database.execute(
        "SELECT rowid AS candidate, dense_rank() OVER (ORDER BY PatientID) AS patient, "
        f"coalesce(series_size_MB, 0) AS mb, {conditions} FROM candidates ORDER BY rowid",
        values,
    ).fetchnumpy()
    kept = np.ones(len(found["candidate"]), bool)
    patient, megabytes = np.asarray(found["patient"]), np.asarray(found["mb"])

    def count(words: str, deferred: int = 0) -> Step:
        patients = int(np.count_nonzero(np.bincount(patient[kept])))
        return Step(words, int(kept.sum()), patients, round(float(megabytes[kept].sum()) / 1000, 3), deferred)

    funnel = [count("CT series in the index")]
    for n, (words, _, _) in enumerate(listed):
        verdict = np.ma.asarray(found[f"c{n}"])  # masked where the tables at hand cannot tell
        unknown = np.ma.getmaskarray(verdict)
        deferred = int((kept & unknown).sum())
        kept &= unknown | (verdict.filled(1) != 0)
        funnel.append(count(words, deferred))
    return np.asarray(found["candidate"])[kept], funnel


def _open_tables(database: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Make the index's tables known by their names; returns name to SHA-256, or 'not on this machine'."""
    found = {}
    for name in ("idc_index", "collections_index", *FETCHED):
        path = table_path(name)
        found[name] = "not on this machine" if path is None else sha256_file(path)
        if path is not None:
            quoted = str(path).replace("'", "''")
            database.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{quoted}')")
            continue
        schema = idc_index_data.INDEX_METADATA[name]["schema"]
        assert isinstance(schema, dict)
        described: Any = schema["columns"]
        columns = ", ".join(f'"{c["name"]}" {TYPES.get(c["type"], "VARCHAR")}' for c in described)
        database.execute(f"CREATE TABLE {name} ({columns})")
    return found


def table_path(name: str) -> Path | None:
    """Where a table of the index lies: in idc-index-data, or where idc-index has put it; None where it is not."""
    shipped = idc_index_data.INDEX_METADATA[name]["parquet_filepath"]
    if isinstance(shipped, Path):
        return shipped
    import platformdirs

    folder = Path(platformdirs.user_data_dir("idc_index_data", "IDC", version=version("idc-index-data")))
    fetched = folder / f"{name}.parquet"
    return fetched if fetched.is_file() else None


def _check_names(database: duckdb.DuckDBPyConnection, config: IdcConfig) -> None:
    """Raise UserError for a collection or licence that the index does not know: a typo must not empty a list."""
    for column, names, what in (
        ("collection_id", (*(config.collections or ()), *config.excluded_collections, *config.evaluation_collections),
         "collection"),
        ("license_short_name", config.licences, "licence"),
    ):  # fmt: skip
        rows = database.execute(f"SELECT DISTINCT {column} FROM idc_index WHERE Modality = 'CT'").fetchall()
        known = sorted(str(row[0]) for row in rows)
        for name in names:
            if name not in known:
                raise UserError(f"cohort {what} {name!r} has no CT in the index{did_you_mean(name, known)}")


def _criteria(
    database: duckdb.DuckDBPyConnection, config: IdcConfig, evaluation_patients: frozenset[str]
) -> Iterator[tuple[str, str, list[Any]]]:
    """Words, SQL condition and its values: the query's own criteria, then the options that are set."""
    described = database.execute("SELECT * FROM candidates LIMIT 0").description or []
    for column in [str(c[0]) for c in described if str(c[0]).startswith(CRITERION)]:
        yield column.removeprefix(CRITERION), f'"{column}"', []
    yield f"licence among {', '.join(config.licences)}", "list_contains(?, license_short_name)", [list(config.licences)]
    if config.collections is not None:
        yield "in the collections taken", "list_contains(?, collection_id)", [list(config.collections)]
    if config.excluded_collections:
        names = list(config.excluded_collections)
        yield f"not in {', '.join(names)}", "NOT list_contains(?, collection_id)", [names]
    held = database.execute(
        "SELECT DISTINCT PatientID FROM idc_index WHERE list_contains(?, collection_id)",
        [list(config.evaluation_collections)],
    ).fetchall()
    patients = sorted({str(row[0]) for row in held} | evaluation_patients)
    if patients:
        yield (
            f"no patient of an evaluation set ({len(patients)} patients)",
            "PatientID NOT IN (SELECT unnest(?))",
            [patients],
        )
    if config.max_series_mb is not None:
        yield f"at most {config.max_series_mb:g} MB", "series_size_MB <= ?", [config.max_series_mb]


def _draws(config: IdcConfig) -> Iterator[tuple[str, str]]:
    """Words and QUALIFY condition of the options that choose among the series that are left."""
    drawn = f"md5(concat({int(config.seed)}, crdc_series_uuid)), crdc_series_uuid"
    if config.one_reconstruction:
        yield (
            "one reconstruction per study",
            "row_number() OVER (PARTITION BY StudyInstanceUID ORDER BY instanceCount DESC, crdc_series_uuid) = 1",
        )
    if config.max_series_per_patient is not None:
        limit = int(config.max_series_per_patient)
        yield (
            f"at most {limit} per patient",
            f"row_number() OVER (PARTITION BY PatientID ORDER BY {drawn}) <= {limit}",
        )
    if config.sample is not None:
        yield f"a sample of {config.sample}", f"row_number() OVER (ORDER BY {drawn}) <= {int(config.sample)}"


def _count(database: duckdb.DuckDBPyConnection, criterion: str) -> Step:
    row = database.execute(
        "SELECT count(*), count(DISTINCT PatientID), coalesce(sum(series_size_MB), 0) / 1000 FROM kept"
    ).fetchone()
    assert row is not None
    return Step(criterion, int(row[0]), int(row[1]), round(float(row[2]), 3))


def _attribution(database: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """Whose data these are: one row per collection, licence and DOI, with the citation that its owners ask for."""
    return database.execute(
        """
        WITH cited AS (
            SELECT lower(source.source_doi) AS doi, min(source.citation) AS citation
            FROM (SELECT unnest(sources) AS source FROM collections_index) GROUP BY ALL
        )
        SELECT collection_id AS collection, license_short_name AS licence, source_DOI AS doi,
               coalesce(min(citation), '') AS citation,
               count(*) AS series, count(DISTINCT PatientID) AS patients
        FROM kept LEFT JOIN cited ON lower(kept.source_DOI) = cited.doi
        GROUP BY collection_id, license_short_name, source_DOI
        ORDER BY collection_id, license_short_name, source_DOI
        """
    ).df()


def patients_of_ct() -> list[str]:
    """PatientIDs of all CT in the index, sorted."""
    query = "SELECT DISTINCT PatientID FROM read_parquet(?) WHERE Modality = 'CT' ORDER BY 1"
    with database_in_memory() as database:
        return [str(row[0]) for row in database.execute(query, [str(table_path("idc_index"))]).fetchall()]
