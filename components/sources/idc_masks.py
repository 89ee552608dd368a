"""SEG and RTSTRUCT that the Imaging Data Commons holds for series of it, by analysis result."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pandas as pd

from components.ct.keys import study_key
from components.errors import UserError
from components.settings import did_you_mean
from components.sources.config import IdcConfig
from components.sources.idc_index import database_in_memory, table_path
from components.sources.masks import Found, Mask

OWN = "own"  # in place of an analysis result: objects that came with the collection itself
COLUMNS = ("analysis", "crdc_series_uuid", "aws_bucket", "StudyInstanceUID", "license_short_name", "source_DOI",
           "collection_id", "instanceCount", "series_size_MB")  # fmt: skip


def find_idc_masks(config: IdcConfig, analysis_results: Collection[str], studies: Collection[str]) -> Found:
    """Series of SEG and RTSTRUCT of these studies. Which of a study's series an object was drawn on, it says itself.

    Args:
        config: what of the index is taken: a licence that is not allowed here leaves an object out.
        analysis_results: names in the index, or :data:`OWN`.
        studies: pseudonyms.

    Raises:
        UserError: an analysis result that the index does not know, or nothing of these studies.
    """
    rows = _rows(analysis_results)
    rows = rows[rows["StudyInstanceUID"].map(study_key).isin(list(studies))]
    licensed = rows["license_short_name"].isin(config.licences)
    others = {"licence": int((~licensed).sum())} if not licensed.all() else {}
    masks = [
        Mask(
            f"{row['aws_bucket']}/{row['crdc_series_uuid']}", "", "study", (row["StudyInstanceUID"],), "",
            int(row["instanceCount"]), round(row["series_size_MB"] * 1e6),
        )
        for row in rows[licensed].sort_values("crdc_series_uuid").to_dict("records")
    ]  # fmt: skip
    if not masks:
        told = f"; {len(rows)} are of a licence that cohort.idc.licences leaves out" if len(rows) else ""
        raise UserError(
            f"masks.analysis_results: {', '.join(analysis_results)} hold no SEG or RTSTRUCT of the scans' studies{told}"
        )
    return Found(masks, others)


def cited(masks: Collection[Mask]) -> pd.DataFrame:
    """Whose objects these are: columns collection, licence, doi and citation, a row each."""
    locations = pd.DataFrame({"location": [mask.location for mask in masks]})
    query = """
        SELECT DISTINCT i.collection_id AS collection, i.license_short_name AS licence,
               coalesce(i.source_DOI, '') AS doi, coalesce(a.citation, '') AS citation
        FROM read_parquet(?) i JOIN locations l ON concat(i.aws_bucket, '/', i.crdc_series_uuid) = l.location
        LEFT JOIN read_parquet(?) a ON i.analysis_result_id = a.analysis_result_id
        ORDER BY ALL
    """
    with database_in_memory() as database:
        database.register("locations", locations)
        paths = [str(table_path(name)) for name in ("idc_index", "analysis_results_index")]
        return database.execute(query, paths).df()


def _rows(analysis_results: Collection[str]) -> pd.DataFrame:
    columns = ", ".join(COLUMNS[1:])
    query = f"""
        SELECT coalesce(analysis_result_id, '{OWN}') AS analysis, {columns} FROM read_parquet(?)
        WHERE Modality IN ('SEG', 'RTSTRUCT')
    """
    with database_in_memory() as database:
        every = database.execute(query, [str(table_path("idc_index"))]).df()
    known = sorted(every["analysis"].unique())
    unknown: list[Any] = [name for name in analysis_results if name not in known]
    if unknown:
        raise UserError(
            f"masks.analysis_results: {unknown[0]!r} has no SEG or RTSTRUCT in the index: one of "
            f"{', '.join(known)}{did_you_mean(unknown[0], known)}"
        )
    return every[every["analysis"].isin(list(analysis_results))]
