"""What one version is, and how two differ, read from their commits: rows of tables."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd

from flows.promotion.contents import contents_of
from flows.promotion.tags import Version

Row = tuple[str, ...]


def facts(version: Version) -> list[tuple[str, str]]:
    """What identifies a version."""
    return [
        ("version", version.name), ("bundle", version.digest), ("commit", version.commit),
        ("published", f"{version.tag.date:%Y-%m-%d %H:%M} by {version.tag.by}"), ("gates", version.gates or "not told"),
    ]  # fmt: skip


def gates_and_figures(version: Version) -> tuple[list[Row], list[Row]]:
    """Rows of the gates' table and of the encoder's figures, from the version's bundle."""
    contents, folder = contents_of(version), f"releases/{version.line}"
    decision = contents.json(f"{folder}/decision.json")
    gates: list[Row] = [(g["gate"], _number(g["figure"]), _number(g["bound"]), g["verdict"]) for g in decision["gates"]]
    primary = contents.json(f"{folder}/metrics.json").get("primary") or {}
    figures = _figures(version)
    wanted = [key for key in figures if primary.get(key[0], key[1]) == key[1]]
    rows: list[Row] = []
    for task, name in wanted:
        row = figures[task, name]
        between = f"{_number(row['low'])} to {_number(row['high'])}"
        rows.append((task, name, _number(row["value"]), between, _number(row["n_patients"])))
    return gates, rows


def parameters_that_differ(first: Version, second: Version) -> list[Row]:
    """Dotted key and the value of each, '-' where one has none."""
    a, b = (_flat(contents_of(version).parameters(version.line)) for version in (first, second))
    return [row for row in beside(a, b) if row[1] != row[2]]


def _flat(block: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(block, dict) or not block:
        return {prefix: block} if prefix else {}
    return {
        key: value
        for name, part in block.items()
        for key, value in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def beside(first: dict[str, Any], second: dict[str, Any]) -> list[Row]:
    """Each key's value in both, '-' where one has none."""
    keys = sorted(first.keys() | second.keys())
    return [(key, str(first.get(key, "-")), str(second.get(key, "-"))) for key in keys]


def funnel(version: Version) -> dict[str, Any]:
    """What became of the series, as counts."""
    funnel = contents_of(version).json(f"releases/{version.line}/funnel.json")
    counts = {"in": funnel["in"], "no CT": funnel["not_ct"], "accepted": funnel["accepted"]}
    counts |= {f"rejected: {reason}": count for reason, count in funnel["rejected"].items()}
    return counts | {f"accepted for: {role}": count for role, count in funnel["accepted_by_role"].items()}


def licence_counts(version: Version) -> dict[str, Any]:
    """Collection and licence to the series that were pretrained on."""
    return {f"{row['collection']}, {row['licence']}": row["pretraining_series"] for row in licences(version)}


def licences(version: Version) -> list[dict[str, Any]]:
    """Rows of the bundle's ``licences.csv``."""
    rows = _csv(version, "licences.csv").fillna("").to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _figures(version: Version) -> dict[tuple[str, str], dict[str, Any]]:
    """Task and figure to value, low, high and the count of patients: the encoder's own."""
    table = _csv(version, "figures.csv")
    rows = table[table["method"] == "encoder"].to_dict("records")
    return {(str(row["task"]), str(row["figure"])): {str(key): value for key, value in row.items()} for row in rows}


def figures_beside(first: Version, second: Version) -> list[Row]:
    """The encoder\'s figures of both, with their intervals, and by how much they differ."""
    a, b = _figures(first), _figures(second)
    rows: list[Row] = []
    for key in sorted(a.keys() | b.keys()):
        difference = f"{b[key]['value'] - a[key]['value']:+.4f}" if key in a and key in b else "-"
        rows.append((*key, _interval(a.get(key)), _interval(b.get(key)), difference))
    return rows


def _interval(row: dict[str, Any] | None) -> str:
    return "-" if row is None else f"{_number(row['value'])} [{_number(row['low'])}, {_number(row['high'])}]"


def _csv(version: Version, name: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(contents_of(version).bytes_of(f"releases/{version.line}/{name}")))


def _number(value: Any) -> str:
    if value is None or value != value:  # NaN: no interval was drawn
        return "-"
    return f"{value:.4f}" if isinstance(value, float) and value != int(value) else f"{value:g}"


def page(version: Version, now: Version | None) -> str:
    """What a person judges by, as Markdown: digest, gates, figures beside the champion's, what differs, the card."""
    gates, figures = gates_and_figures(version)
    parts = [
        f"## {version.name}",
        markdown(("", ""), [(name, f"`{value}`") for name, value in facts(version)]),
        "### Gates",
        markdown(("gate", "figure", "bound", "verdict"), gates),
    ]
    if now is None:
        parts += ["### Figures", markdown(("task", "figure", "value", "95 % interval", "patients"), figures)]
        parts += ["There is no champion to stand beside."]
    else:
        wanted = {row[:2] for row in figures}
        rows = [row for row in figures_beside(now, version) if row[:2] in wanted]
        parts += [f"### Figures beside the champion's, {now.name}"]
        parts += [markdown(("task", "figure", "champion", "this", "difference"), rows)]
        parts += ["### Parameters that differ"]
        parts += [markdown(("parameter", "champion", "this"), parameters_that_differ(now, version))]
    card = contents_of(version).bytes_of(f"releases/{version.line}/MODEL_CARD.md").decode()
    return "\n\n".join([*parts, "---", card])


def markdown(columns: Row, rows: list[Row]) -> str:
    """A table; ``none`` where it has no rows."""
    if not rows:
        return "none"
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
