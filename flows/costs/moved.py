"""Bytes that came in from another machine, by the transfer's own account: the receipts that a stage kept."""

from __future__ import annotations

from pathlib import Path

from components.command import data_dir
from components.sources.receipts import KEPT
from components.tables import read_table

COMPUTED = "phantom"  # a source whose series come from nowhere


def receipts_of(line: str) -> set[str]:
    """Names of the receipts that are there: a series that is transferred has a new one."""
    folder = Path(KEPT) / line
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def moved_bytes(stage: str, line: str, before: set[str]) -> int | None:
    """Bytes of the series that ``acquire@<line>-<shard>`` has received since ``before``; None of another stage, or
    where it wrote no receipt."""
    kind, _, of = stage.partition("@")
    table = data_dir(line, kind) / of.rpartition("-")[2] / "receipt.parquet"
    if kind != "acquire" or not table.is_file():
        return None
    new = {name.rpartition("-")[0] for name in receipts_of(line) - before}
    received = read_table(table)
    return int(received.loc[received["series"].isin(new) & (received["source"] != COMPUTED), "bytes"].sum())
