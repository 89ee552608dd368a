"""Choose series from the index of the NCI Imaging Data Commons: a query, then the line's options, and the funnel.

The index ships with idc-index-data, so the selection needs no network. ``ct_index`` and ``volume_geometry_index`` do
not ship; where they are not on this machine, criteria on them are left to header screening, and the funnel says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import idc_index_data
import pandas as pd

from components.cohort.config import IdcConfig
from components.files import sha256_file
from components.params import UserError, nearest

QUERIES = Path(__file__).parent / "queries"
CRITERION = "keep: "
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
    series: the chosen ones with the index's own columns, sorted by ``crdc_series_uuid``.
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
    with duckdb.connect(":memory:", config={"threads": 2}) as database:
        tables = _open_tables(database)
        _check_names(database, config)
        database.execute(f"CREATE TABLE kept AS {sql}", {"idc_version": config.idc_version})
        funnel = [_count(database, "CT series in the index")]
        for words, condition, values in _criteria(database, config, evaluation_patients):
            deferred = database.execute(f"SELECT count(*) FILTER (({condition}) IS NULL) FROM kept", values).fetchone()
            database.execute(
                f"CREATE OR REPLACE TABLE kept AS SELECT * FROM kept WHERE coalesce({condition}, TRUE)", values
            )
            funnel.append(_count(database, words, deferred[0] if deferred else 0))
        for words, ranked in _draws(config):
            database.execute(f"CREATE OR REPLACE TABLE kept AS SELECT * FROM kept QUALIFY {ranked}")
            funnel.append(_count(database, words))
        columns = ", ".join(f'"{c}"' for c in _columns(database) if not c.startswith(CRITERION))
        chosen = database.execute(f"SELECT {columns} FROM kept ORDER BY crdc_series_uuid").df()
        attribution = _attribution(database)
    receipt = {
        "query": config.query,
        "query_sha256": sha256_file(known[config.query]),
        "index": f"idc-index-data {version('idc-index-data')}",
        "tables": tables,
        "parameters": json.loads(config.model_dump_json()),
        "evaluation_patients": len(evaluation_patients),
    }
    return Selection(chosen, funnel, attribution, receipt)


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
        columns = ", ".join(f'"{c["name"]}" {TYPES.get(c["type"], "VARCHAR")}' for c in schema["columns"])
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
                raise UserError(f"cohort {what} {name!r} has no CT in the index{nearest(name, known)}")


def _criteria(
    database: duckdb.DuckDBPyConnection, config: IdcConfig, evaluation_patients: frozenset[str]
) -> Iterator[tuple[str, str, list[Any]]]:
    """Words, SQL condition and its values: the query's own criteria, then the options that are set."""
    for column in [c for c in _columns(database) if c.startswith(CRITERION)]:
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
            "one reconstruction per acquisition",
            "row_number() OVER (PARTITION BY StudyInstanceUID, instanceCount ORDER BY crdc_series_uuid) = 1",
        )
    if config.max_series_per_patient is not None:
        limit = int(config.max_series_per_patient)
        yield (
            f"at most {limit} per patient",
            f"row_number() OVER (PARTITION BY PatientID ORDER BY {drawn}) <= {limit}",
        )
    if config.sample is not None:
        yield f"a sample of {config.sample}", f"row_number() OVER (ORDER BY {drawn}) <= {int(config.sample)}"


def _columns(database: duckdb.DuckDBPyConnection) -> list[str]:
    return [str(row[0]) for row in database.execute("DESCRIBE kept").fetchall()]


def _count(database: duckdb.DuckDBPyConnection, criterion: str, deferred: int = 0) -> Step:
    row = database.execute(
        "SELECT count(*), count(DISTINCT PatientID), coalesce(sum(series_size_MB), 0) / 1000 FROM kept"
    ).fetchone()
    assert row is not None
    return Step(criterion, int(row[0]), int(row[1]), round(float(row[2]), 3), int(deferred))


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
    path = table_path("idc_index")
    rows = duckdb.sql(f"SELECT DISTINCT PatientID FROM read_parquet('{path}') WHERE Modality = 'CT' ORDER BY 1")
    return [str(row[0]) for row in rows.fetchall()]
