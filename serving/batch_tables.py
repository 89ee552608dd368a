"""The tables of many scans: one row a scan, all vectors in one file, and what was left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.files import replacing, write_text
from serving.batch_files import EMBEDDINGS, LEFT_OUT, TABLE

BASE = ("id", "where", "kind", "status", "reason", "series", "instances", "shape", "spacing_mm", "orientation",
        "body_fraction", "warnings")  # fmt: skip

Receipt = Mapping[str, Any]


def write_tables(out: Path, receipts: Sequence[Receipt], left_out: Mapping[tuple[str, str], int]) -> None:
    """Write ``scans.csv``, ``left_out.csv`` and, where there are vectors, ``embeddings.npz``: ``ids`` (text) and
    ``embeddings`` (float32 of shape (scans, dim)), a row each, in the order of the table.

    Args:
        out: the folder.
        receipts: in the order of the rows.
        left_out: (where, reason) to number of files.
    """
    rows = [row_of(receipt) for receipt in receipts]
    more = sorted({name for row in rows for name in row} - set(BASE))
    write_text(out / TABLE, _csv([*BASE, *more], rows))
    files = [{"where": where, "reason": reason, "files": n} for (where, reason), n in sorted(left_out.items())]
    write_text(out / LEFT_OUT, _csv(["where", "reason", "files"], files))
    embedded = [receipt for receipt in receipts if "embed" in receipt["answers"]]
    if embedded:
        vectors = np.array([receipt["answers"]["embed"]["embedding"] for receipt in embedded], dtype=np.float32)
        with replacing(out / EMBEDDINGS) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=np.array([receipt["id"] for receipt in embedded]), embeddings=vectors)


def row_of(receipt: Receipt) -> dict[str, Any]:
    """A scan's row. Of heads: ``<part>``, the answer, and ``<part>:<class>``, its probability; of structures:
    ``<part>:<name>_ml`` and, of the file, ``<part>:file``."""
    row: dict[str, Any] = {name: receipt[name] for name in ("id", "where", "kind", "status", "reason")}
    answers = receipt["answers"]
    found = found_of(receipt)
    if found:
        sent = found["as_sent"]
        row |= {name: found[name] for name in ("series", "instances", "body_fraction")}
        row |= {"shape": _by(sent["shape"]), "spacing_mm": _by(sent["spacing_mm"]), "orientation": sent["orientation"]}
        row |= {"warnings": len(found["warnings"])}
    for part, answer in answers.get("classify", {}).get("answers", {}).items():
        row |= {part: answer["answer"]} | {f"{part}:{name}": p for name, p in answer["probabilities"].items()}
    for part, content in answers.get("segment", {}).items():
        row |= {f"{part}:{item['name']}_ml": item["volume_ml"] for item in content["structures"].values()}
        row |= {f"{part}:file": receipt["outputs"][f"segment {part}"]["file"]}
    return row


def found_of(receipt: Receipt) -> dict[str, Any]:
    """What was found in a scan's files; empty where it has no answer."""
    answers = receipt["answers"]
    contents = [answers.get("embed"), answers.get("classify"), *answers.get("segment", {}).values()]
    found: dict[str, Any] = next((content["found"] for content in contents if content), {})
    return found


def _by(values: Iterable[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
