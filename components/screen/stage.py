"""Stage ``screen``: judge one shard's header measurements with the suite *headers*."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from components.errors import UserError
from components.files import write_json
from components.quality import judge
from components.screen.config import ScreenConfig
from components.screen.suite import headers_suite
from components.tables import read_table, write_table

log = logging.getLogger(__name__)

PRIVACY = ("direct_identifiers:", "private_tags:", "burned_in_annotation:")


def screen_shard(acquired: Path, cohort: pd.DataFrame, shard: int, config: ScreenConfig, folder: Path) -> pd.DataFrame:
    """Write ``screened.parquet`` (the receipt with ``accepted`` and ``reason``) and ``quality.json``.

    Args:
        acquired: folder of the shard's receipt.
        cohort: the cohort, or the shard's part of it, so that a series lost on the way is noticed.
        shard: number of the shard.
        config: thresholds.
        folder: output.

    Raises:
        UserError: a critical expectation failed.
    """
    receipt = read_table(acquired / "receipt.parquet")
    suite = headers_suite(config, rows=int((cohort["shard"] == shard).sum()))
    try:
        judgement = judge.judge(receipt, suite)
    except UserError as error:
        raise UserError(f"{error}{_advice(receipt, str(error))}") from None
    screened = receipt.assign(
        reason=[";".join(judgement.reasons.get(s, [])) for s in receipt["series"]],
        accepted=[s not in judgement.reasons for s in receipt["series"]],
    )
    write_table(folder / "screened.parquet", screened)
    write_json(
        folder / "quality.json", {"suite": suite.name, "rules": judgement.results, "warnings": judgement.warnings}
    )
    log.info("shard %d: %d of %d series accepted", shard, int(screened["accepted"].sum()), len(screened))
    for warning in judgement.warnings:
        log.warning("shard %d: expected %s", shard, warning)
    return screened


def _advice(receipt: pd.DataFrame, said: str) -> str:
    """What to do about a privacy finding, with the attributes' names; their values are nowhere."""
    if not any(reason in said for reason in PRIVACY):
        return ""
    found = sorted({name for names in receipt["identifiers"] for name in names.split("|") if name})
    return (
        f"; attributes with a value: {', '.join(found) or 'none'}; de-identify the source, or set screen.privacy to "
        "reject (costs these series) or warning (for data known to be harmless)"
    )
