"""What a release took: the records of the runs that made its stages, with their price and energy."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from components.costs import CostsConfig, EnergyConfig, load_costs
from components.files import read_json, write_json
from flows.costs.energy import JOULES_PER_KWH
from flows.costs.usage import MADE, UNDER_WAY, Record, Usage, entry_hash, lock_entries, records_of, stored_bytes
from flows.graph import stages_for

GB = 1e9
HOUR = 3600.0


@dataclass(frozen=True)
class StageCost:
    """One stage of the release.

    Attributes:
        stage: its address.
        made: the run that made its outputs; None where there is no record of one: another checkout or `dvc repro`.
        lost: runs before it that ended without.
        stored: bytes of its outputs.
    """

    stage: str
    made: Record | None
    lost: tuple[Record, ...]
    stored: int

    @property
    def usage(self) -> Usage:
        """Of the run that made it, and of those that were lost."""
        runs = [*self.lost, *([self.made] if self.made else [])]
        total = Usage()
        for run in runs:
            total = total + run.usage
        return total


def stage_costs(line: str) -> list[StageCost]:
    """Every stage of the line's present release, in order; none where ``dvc.lock`` has none of them."""
    names = [node.name for node in stages_for(f"bundle@{line}")]
    entries = lock_entries(names)
    return [_stage_cost(name, entries[name]) for name in names if name in entries]


def _stage_cost(name: str, entry: Mapping[str, Any]) -> StageCost:
    known, wanted = records_of(name), entry_hash(entry)
    places = [place for place, record in enumerate(known) if record.outcome == MADE and record.lock == wanted]
    if not places:
        return StageCost(name, None, (), stored_bytes(entry))
    earlier = known[: places[-1]]
    last = max((place for place, record in enumerate(earlier) if record.outcome == MADE), default=-1)
    lost = tuple(record for record in earlier[last + 1 :] if record.told != UNDER_WAY)
    return StageCost(name, known[places[-1]], lost, stored_bytes(entry))


def kwh(usage: Usage, energy: EnergyConfig) -> dict[str, float]:
    """Energy by part, in kWh, the building's share included. Of the processor metered where it was, else estimated; a
    GPU without a meter has no part."""
    processor = usage.cpu_j if usage.cpu_j is not None else usage.cpu_s * energy.watts_per_core
    parts = {"processor": processor, "memory": usage.memory_gib_s * energy.watts_per_gib}
    if usage.gpu_j is not None:
        parts["gpu"] = usage.gpu_j
    return {name: joules * energy.overhead / JOULES_PER_KWH for name, joules in parts.items()}


def price(usage: Usage, costs: CostsConfig) -> float:
    """What it costs once, in the currency of ``costs``: hours and what was moved."""
    hours = usage.cpu_s * costs.cpu_hour + usage.memory_gib_s * costs.memory_gib_hour
    hours += (usage.gpu_s or 0.0) * costs.gpu_hour
    return hours / HOUR + (usage.moved_bytes or 0) / GB * costs.moved_gb


def figures(usage: Usage, stored: int, costs: CostsConfig | None) -> dict[str, Any]:
    """A usage in the units that people read; None is what nobody measured."""
    told: dict[str, Any] = {
        "wall_h": usage.wall_s / HOUR, "cpu_h": usage.cpu_s / HOUR, "memory_gib_h": usage.memory_gib_s / HOUR,
        "peak_gib": usage.peak_gib, "gpu_h": None if usage.gpu_s is None else usage.gpu_s / HOUR,
        "read_gb": usage.read_bytes / GB, "written_gb": usage.written_bytes / GB,
        "moved_gb": None if usage.moved_bytes is None else usage.moved_bytes / GB, "stored_gb": stored / GB,
    }  # fmt: skip
    if costs is not None:
        parts = kwh(usage, costs.energy)
        told |= {"cost": price(usage, costs), "stored_per_month": stored / GB * costs.stored_gb_month,
                 "kwh": sum(parts.values()), "kwh_parts": parts,
                 "co2_g": sum(parts.values()) * costs.energy.grams_per_kwh}  # fmt: skip
    return told


def account(line: str, this_run: Mapping[str, Usage] | None = None, flow_cpu_s: float | None = None) -> dict[str, Any]:
    """All of it as JSON holds it.

    Args:
        line: model line.
        this_run: what each stage used in the run that is ending, whether or not it had something to do.
        flow_cpu_s: processor seconds of the flow itself: Prefect, its server, the Bento.
    """
    costs, stages = load_costs(), stage_costs(line)
    total, lost = Usage(), Usage()
    for stage in stages:
        total = total + stage.usage
        for record in stage.lost:
            lost = lost + record.usage
    bundle = Path("releases") / line / "manifest.json"
    told: dict[str, Any] = {
        "line": line,
        "bundle": read_json(bundle)["digest"] if bundle.is_file() else None,
        "stages": [_row(stage, costs, this_run is not None) for stage in stages],
        "total": figures(total, sum(stage.stored for stage in stages), costs),
        "lost": {"runs": sum(len(stage.lost) for stage in stages), **figures(lost, 0, costs)},
        "prices": None if costs is None else costs.model_dump(),
        "method": method(stages, costs),
    }
    if this_run is not None:
        ours = Usage()
        for usage in this_run.values():
            ours = ours + usage
        told["this_run"] = {"stages": len(this_run), **figures(ours, 0, costs), "flow_cpu_h": (flow_cpu_s or 0) / HOUR}
    return told


def _row(stage: StageCost, costs: CostsConfig | None, of_a_run: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"stage": stage.stage, **figures(stage.usage, stage.stored, costs)}
    if stage.made is None:
        row = {
            name: value if name in ("stage", "stored_gb", "stored_per_month") else None for name, value in row.items()
        }
        return row | {"made": None, "lost_runs": []}
    made = {name: value for name, value in asdict(stage.made).items() if name not in ("usage", "stage", "maker")}
    made["this_run"] = of_a_run and stage.made.maker[0] == os.getpid()
    return row | {"made": made, "lost_runs": [{"began": run.began, "outcome": run.told} for run in stage.lost]}


def method(stages: list[StageCost], costs: CostsConfig | None) -> list[str]:
    """How it was measured and reckoned, and what is not in it: for whoever judges the figures."""
    made = [stage.made for stage in stages if stage.made is not None]
    counted = sorted({record.counted_by for record in made})
    ways = {"cgroup": "by the kernel for each stage's control group", "samples": "from looks at each stage's processes"}
    told = [
        f"Processor time is counted {' or '.join(ways[way] for way in counted) or 'by nobody yet'}; memory is the "
        "integral of what is in use, shared pages by share.",
        "Disks: what the processes read and wrote there. Moved: bytes of the series that acquire received from "
        "another machine, by its receipts. Stored: outputs as dvc.lock has them.",
        "Not in it: Ray workers on other machines, Data Docs, the flow itself, the image, and transfers by the index "
        "or by DVC.",
    ]
    missing = [stage.stage for stage in stages if stage.made is None]
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if missing[3:] else "")
        told.append(
            f"{len(missing)} of {len(stages)} stages have no record here, so the total is without them: made in "
            f"another checkout or by `dvc repro` ({named})."
        )
    if costs is None:
        return [*told, "No money and no energy: params.yaml has no block `costs`."]
    energy, metered = costs.energy, sum(record.usage.cpu_j is not None for record in made)
    told.append(
        f"Energy of the processors is metered (RAPL, by share of busy time) in {metered} of {len(made)} stages. In the "
        f"others it is an estimate, as codecarbon makes it: {energy.watts_per_core:g} W a busy hardware thread. Memory "
        f"is an estimate, too: {energy.watts_per_gib:g} W a GiB in use. All times {energy.overhead:g} for the "
        f"building; {energy.grams_per_kwh:g} g of CO2 equivalent a kWh."
    )
    if any(record.usage.gpu_s and record.usage.gpu_j is None for record in made):
        told.append("A GPU was held that has no meter: its energy is missing.")
    return told


def own_cpu_seconds() -> float:
    """What this process and those that it started, and that live, have used: the flow, the Bento, Prefect's server."""
    own = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            own += sum(child.cpu_times()[:2])
    return own


def write_account(line: str, told: dict[str, Any]) -> Path:
    """Write ``reports/<line>/cost.json`` and ``cost.html``, and, beside the bundle, ``releases/<line>.cost.json``; the
    path of the page."""
    from flows.costs.page import write_page

    folder = Path("reports") / line
    write_json(folder / "cost.json", told)
    if told["bundle"] is not None:
        write_json(Path("releases") / f"{line}.cost.json", told)
    return write_page(told, folder / "cost.html")
