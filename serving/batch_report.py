"""The report of many scans: one page for people, which asks for nothing from elsewhere."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from components.files import write_text
from serving.batch_files import COLOURS, REPORT
from serving.batch_tables import Receipt, found_of, row_of

TEMPLATE = "batch_report.html.j2"
PICTURES = 24  # of the first scans that have one
MAX_ROWS = 1000  # listed one by one; the table has them all
ABOUT = {
    "done": "answered",
    "partly": "answered in part",
    "failed": "not answered",
}
REASONS = {  # of files that are left out
    "broken_link": "links that lead nowhere",
    "dicomdir": "directories of DICOM media",
    "duplicate": "the very bytes of another file",
    "link": "links to what is listed where it lies",
    "localizer": "scouts",
    "no_image": "DICOM without an image",
    "not_ct": "images of no CT",
    "not_dicom": "neither DICOM, nor a zip or NIfTI volume",
    "not_readable": "files that this user may not read",
    "special": "pipes, sockets or devices",
    "unreadable_folder": "folders that this user may not read",
}


def write_report(
    out: Path, run: Mapping[str, Any], receipts: Sequence[Receipt], left_out: Mapping[tuple[str, str], int]
) -> None:
    """Write ``report.html``. Equal answers give equal bytes.

    Args:
        out: the folder, with the pictures.
        run: content of ``run.json``.
        receipts: in the order of the rows.
        left_out: (where, reason) to number of files.
    """
    reasons: Counter[str] = Counter()
    for (_, reason), number in left_out.items():
        reasons[reason] += number
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    statuses = Counter(receipt["status"] for receipt in receipts)
    text = environment.get_template(TEMPLATE).render(
        release=run["release"],
        options=run["options"],
        number=len(receipts),
        statuses=[(status, about, statuses[status]) for status, about in ABOUT.items() if statuses[status]],
        failures=Counter(receipt["reason"] for receipt in receipts if receipt["reason"]).most_common(PICTURES),
        left_out=[(reason, REASONS.get(reason, reason), number) for reason, number in sorted(reasons.items())],
        rows=[_row(receipt) for receipt in receipts[:MAX_ROWS]],
        pictures=_pictures(out, receipts),
        limits=_limits(receipts),
    )
    write_text(out / REPORT, text)


def _row(receipt: Receipt) -> dict[str, Any]:
    row, answers = row_of(receipt), receipt["answers"]
    findings = [
        f"{part}: {answer['answer']} ({answer['probabilities'][answer['answer']]:.3f})"
        for part, answer in answers.get("classify", {}).get("answers", {}).items()
    ]
    volumes = [
        f"{item['name']} {item['volume_ml']:.1f} ml"
        for content in answers.get("segment", {}).values()
        for item in content["structures"].values()
        if item["volume_ml"] > 0
    ]
    names = ("id", "where", "kind", "status", "reason")
    told = {"shape": row.get("shape", ""), "spacing_mm": row.get("spacing_mm", "")}
    warnings = found_of(receipt).get("warnings", ())
    return {name: row[name] for name in names} | told | {"findings": findings, "volumes": volumes, "warnings": warnings}


def _limits(receipts: Sequence[Receipt]) -> list[tuple[str, list[str]]]:
    """What a reader must know, by part: the same in every answer of a release."""
    known: dict[str, list[str]] = {}
    for receipt in receipts:
        answers = receipt["answers"]
        for part, content in (answers.get("classify", {}).get("answers", {}) | answers.get("segment", {})).items():
            known.setdefault(part, content["limits"])
    return sorted(known.items())


def _pictures(out: Path, receipts: Sequence[Receipt]) -> list[dict[str, Any]]:
    """The first pictures: the bytes as an address, id, place and the structures that lie over it, by colour."""
    shown = []
    for receipt in [receipt for receipt in receipts if "picture" in receipt["outputs"]][:PICTURES]:
        content = (out / receipt["outputs"]["picture"]["file"]).read_bytes()
        source = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
        segmented: Mapping[str, Any] = next(iter(receipt["answers"].get("segment", {}).values()), {})
        over = [
            {"name": item["name"], "colour": COLOURS[(int(value) - 1) % len(COLOURS)]}
            for value, item in segmented.get("structures", {}).items()
            if item["volume_ml"] > 0
        ]
        shown.append({"source": source, "id": receipt["id"], "where": receipt["where"], "over": over})
    return shown
