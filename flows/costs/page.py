"""The account of a release for people: rows for a terminal and Prefect's page, and one HTML file with a plot."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2

from components.files import write_text

TEMPLATE = "cost.html.j2"
# Figure to heading; those that nobody measured are left out.
COLUMNS = {
    "wall_h": "wall h", "cpu_h": "CPU h", "gpu_h": "GPU h", "memory_gib_h": "memory GiB h", "peak_gib": "peak GiB",
    "read_gb": "disk read GB", "written_gb": "disk written GB", "moved_gb": "moved GB", "stored_gb": "stored GB",
    "kwh": "kWh", "co2_g": "g CO2e", "cost": "cost",
}  # fmt: skip
PEAKS = ("peak_gib",)  # no sum of these means anything


def number(value: float | None) -> str:
    """Three digits, without an exponent; nothing where nobody measured it."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.6f}".rstrip("0") if value >= 5e-7 else "<0.000001"


def kinds(told: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per kind of stage, its shards, sets and tasks added up, then the total; figures are numbers."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in told["stages"]:
        found.setdefault(row["stage"].partition("@")[0], []).append(row)
    rows = [{"stage": kind if len(of) == 1 else f"{kind} ({len(of)})", **_added(of), "made": _when(of)}
            for kind, of in found.items()]  # fmt: skip
    return [*rows, {"stage": "release", **{name: told["total"].get(name) for name in COLUMNS}, "made": ""}]


def _added(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    added: dict[str, float | None] = {}
    for name in COLUMNS:
        values = [row[name] for row in rows if row.get(name) is not None]
        added[name] = None if not values else max(values) if name in PEAKS else sum(values)
    return added


def _when(rows: list[dict[str, Any]]) -> str:
    """When they were made, or that nobody here knows."""
    made = [row["made"] for row in rows if row["made"] is not None]
    told = ["this run"] if any(one["this_run"] for one in made) else []
    earlier = sorted(one["began"][:16].replace("T", " ") for one in made if not one["this_run"])
    if earlier:
        told.append(earlier[0] if earlier[0] == earlier[-1] else f"{earlier[0]} to {earlier[-1]}")
    if len(made) < len(rows):
        told.append(f"no record of {len(rows) - len(made)}")
    return ", ".join(told)


def table_rows(told: dict[str, Any]) -> list[dict[str, str]]:
    """:func:`kinds` as text, under the headings of people, without empty columns."""
    rows = kinds(told)
    shown = {name: heading for name, heading in COLUMNS.items() if any(row[name] is not None for row in rows)}
    if told["prices"] is not None:
        shown["cost"] = told["prices"]["currency"]
    return [
        {"stage": row["stage"], **{heading: number(row[name]) for name, heading in shown.items()}, "made": row["made"]}
        for row in rows
    ]


def summary(told: dict[str, Any]) -> str:
    """One line for the table that ends a release, and for the head of the page."""
    total, prices = told["total"], told["prices"]
    text = f"{number(total['cpu_h'])} CPU h, {number(total['memory_gib_h'])} GiB h"
    text += f", {number(total['gpu_h'])} GPU h" if total["gpu_h"] is not None else ""
    if prices is not None:
        currency = prices["currency"]
        text = (
            f"{number(total['cost'])} {currency}, {number(total['kwh'])} kWh, {number(total['co2_g'])} g CO2e "
            f"({text}); to keep it: {number(total['stored_per_month'])} {currency} a month"
        )
    missing = sum(row["made"] is None for row in told["stages"])
    return text + (f"; without {missing} of {len(told['stages'])} stages, made elsewhere" if missing else "")


def remarks(told: dict[str, Any]) -> list[str]:
    """What the table does not say: lost runs, this run, how it was measured."""
    said = []
    if told["lost"]["runs"]:
        said.append(
            f"In it: runs of stages that were killed, failed or cut short: {told['lost']['runs']}, "
            f"{number(told['lost']['cpu_h'])} CPU h."
        )
    if (ours := told.get("this_run")) is not None:
        said.append(
            f"This run itself: {number(ours['cpu_h'])} CPU h in {ours['stages']} stages, "
            f"{number(ours['flow_cpu_h'])} CPU h in the flow. What was made before is listed as it was then."
        )
    return [*said, *told["method"]]


def write_page(told: dict[str, Any], path: Path) -> Path:
    """One HTML file that needs no network; returns its path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flows.costs", ""), undefined=jinja2.StrictUndefined, autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = number
    text = environment.get_template(TEMPLATE).render(
        told=told,
        rows=table_rows(told),
        summary=summary(told),
        remarks=remarks(told),
        plot=_plot(told),
        columns=COLUMNS,
    )
    write_text(path, text)
    return path


def _plot(told: dict[str, Any]) -> str:
    """CPU and memory hours by kind of stage, as a PNG in a data address."""
    from matplotlib.figure import Figure

    rows = [row for row in kinds(told)[:-1] if row["cpu_h"] is not None]
    if not rows:
        return ""
    names = [row["stage"] for row in rows]
    drawing = Figure(figsize=(9, 1.2 + 0.28 * len(rows)), layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True)
    for axes, figure, told_as, colour in (
        (left, "cpu_h", "CPU hours", "#2f6f9f"), (right, "memory_gib_h", "memory, GiB hours", "#b0652b"),
    ):  # fmt: skip
        axes.barh(names, [row[figure] for row in rows], color=colour)
        axes.set_xlabel(told_as)
        axes.locator_params(axis="x", nbins=4)
        axes.spines[["top", "right"]].set_visible(False)
    left.invert_yaxis()
    image = io.BytesIO()
    drawing.savefig(image, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(image.getvalue()).decode()
