"""The fault catalogue: every fault planted, brought through the real reading, measuring and judging, and looked up.

``python -m tests.fault_catalogue`` prints the table as Markdown.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.cohort.config import CohortConfig
from components.cohort.stage import judged
from components.cohort.suite import cohort_suite
from components.ct.headers import measure_series, read_instance
from components.ct.measure import measure_volume
from components.ct.standardise import find_body, resample_only
from components.curate.config import CurateConfig
from components.curate.suite import volumes_suite
from components.errors import UserError
from components.files import read_json
from components.preprocess.config import PreprocessConfig
from components.preprocess.stage import read_raw
from components.quality import judge
from components.quality.rules import Rule, Suite
from components.screen.config import ScreenConfig
from components.screen.suite import headers_suite
from components.settings import load_stage
from components.sources.config import PhantomConfig
from components.sources.idc import IdcSource
from components.sources.interface import Listed
from components.sources.phantom import dicom
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.faults import FAULTS
from components.sources.phantom.geometry import geometry_of
from components.sources.phantom.plan import ScanPlan
from components.sources.phantom.scanner import _flipped, acquire, paint, scan
from components.sources.phantom.source import PhantomSource
from tests.planted_faults import Planted, header_faults, privacy_faults, voxel_faults
from tests.planted_in_cohort import cohort_faults

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"
SHARDS, SLICES = 4, 24
CLEAN = "clean"


@dataclass(frozen=True)
class Outcome:
    """One row of the catalogue. ``found``: reason codes that were raised; ``expectation``: what was not met."""

    fault: str
    says: str
    suite: str
    severity: str
    reason: str
    expectation: str
    found: tuple[str, ...]

    @property
    def caught(self) -> bool:
        return self.reason in self.found


def small_plan(anatomy: str = "trunk") -> ScanPlan:
    """A clean scan of few pixels, quick to take: 96 x 96, 24 slices of 5 mm."""
    config = PhantomConfig.model_validate(
        {"anatomy": anatomy}
        | {"pretrain_patients": 1, "evaluation_patients": 4, "retest_patients": 0, "fault_share": 0.0, "seed": 11}
    )
    plan = next(p for p in plan_scans(config) if p.vendor == "siemens" or anatomy == "head")
    field = plan.pixel_mm * plan.matrix
    plan = replace(plan, matrix=96, pixel_mm=round(field / 96, 6), increment_mm=5.0, thickness_mm=5.0)
    return replace(plan, slices=SLICES, position="HFS", oblique_deg=0.0, descending=False)


def _files(folder: Path) -> list[Path]:
    """A series' files, whatever their names; the phantom's masks and labels lie beside them."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix not in (".gz", ".json"))


def measured_headers(folder: Path) -> dict[str, Any]:
    """The receipt's row of a series' files."""
    instances = []
    for path in _files(folder):
        with path.open("rb") as stream:
            instances.append(read_instance(stream, path.name, path.stat().st_size))
    return {"status": "acquired", **measure_series(instances)}


def measured_voxels(folder: Path, grid: PreprocessConfig) -> dict[str, Any]:
    """The catalogue's row of a series' files, as stage ``preprocess`` makes it, without the store."""
    try:
        native = read_raw(_files(folder))
    except UserError as error:
        return {"decoded": False, "detail": str(error)}
    standard = resample_only(native, grid)
    return {"decoded": True, "detail": "", **measure_volume(native, standard, find_body(standard, grid.foreground_hu))}


class Catalogue:
    """Plants, measures and judges everything once."""

    def __init__(self, work: Path, line: str = "wholebody") -> None:
        self.work, self.line = work, line
        self.screen = load_stage(ScreenConfig, line, "screen", PARAMS)
        self.curate = load_stage(CurateConfig, line, "curate", PARAMS)
        self.grid = load_stage(PreprocessConfig, line, "preprocess", PARAMS)
        self.anatomy = load_stage(CohortConfig, line, "cohort", PARAMS).phantom.anatomy
        self.plan = small_plan(self.anatomy)
        self.geometry = geometry_of(self.plan)
        canvas, _, self.subject = paint(self.plan, self.geometry)
        self.hu = acquire(self.plan, canvas.hu)

    def outcomes(self) -> list[Outcome]:
        return [*self.headers(), *self.privacy(), *self.volumes(), *self.cohort()]

    def _series(self, planted: Planted) -> Path:
        """The small scan with one fault, written as files."""
        folder = self.work / planted.suite / planted.name
        folder.mkdir(parents=True)
        hu = planted.hu(self.hu.copy()) if planted.hu else self.hu
        slices = dicom.series(self.plan, self.geometry, _flipped(np.asarray(hu), self.geometry), self.subject)
        slices = planted.slices(slices) if planted.slices else slices
        dicom.write(slices, folder)
        return folder

    def _scanned(self, suite: str) -> list[tuple[Planted, Path]]:
        """The phantom's own faults."""
        found = []
        for fault in FAULTS:
            if fault.suite == suite and self.anatomy in fault.anatomies:
                folder = self.work / suite / f"phantom-{fault.name}"
                scan(replace(self.plan, fault=fault.name), folder)
                found.append((Planted(fault.name, fault.description, suite, fault.reason), folder))
        return found

    def _table(self, planted: list[tuple[Planted, Path]], suite: str) -> pd.DataFrame:
        clean = self._series(Planted(CLEAN, "", suite, ""))
        pairs = [(CLEAN, clean), *((fault.name, folder) for fault, folder in planted)]
        rows = [{"series": name, **(measured_headers(folder) if suite == "headers" else
                                    measured_voxels(folder, self.grid))} for name, folder in pairs]  # fmt: skip
        return pd.DataFrame(rows)

    def headers(self) -> list[Outcome]:
        faults = [*self._scanned("headers"), *((fault, self._series(fault)) for fault in header_faults())]
        cut = Planted("cut_short", "one file ends 100 bytes early", "headers", "unreadable_files")
        folder = self._series(cut)
        short = folder / "0009.dcm"
        short.write_bytes(short.read_bytes()[:-100])
        faults.append((cut, folder))
        table = self._table(faults, "headers")
        failed = {"series": "not_received", "status": "failed", **measure_series([])}
        table = pd.concat([table, pd.DataFrame([failed])], ignore_index=True)
        lost = Planted("not_received", "the transfer failed", "headers", "acquire_failed")
        suite = headers_suite(self.screen.model_copy(update={"privacy": "reject"}), len(table))
        return self._looked_up([*(fault for fault, _ in faults), lost], table, suite)

    def privacy(self) -> list[Outcome]:
        """Findings stop the run, all in one line; which series has which is seen where a finding costs the series."""
        faults = [(fault, self._series(fault)) for fault in privacy_faults()]
        table = self._table_of_privacy(faults)
        try:
            judge.judge(table, headers_suite(self.screen, len(table)))
            stopped = ""
        except UserError as error:
            stopped = str(error)
        by_series = headers_suite(self.screen.model_copy(update={"privacy": "reject"}), len(table))
        found = self._looked_up([fault for fault, _ in faults], table, by_series)
        return [outcome if outcome.severity != "critical" or f"{outcome.reason}: " in stopped
                else replace(outcome, found=()) for outcome in found]  # fmt: skip

    def _table_of_privacy(self, faults: list[tuple[Planted, Path]]) -> pd.DataFrame:
        return pd.DataFrame([{"series": fault.name, **measured_headers(folder)} for fault, folder in faults])

    def volumes(self) -> list[Outcome]:
        faults = [*self._scanned("volumes"), *((fault, self._series(fault)) for fault in voxel_faults())]
        table = self._table(faults, "volumes")
        found = self._looked_up([fault for fault, _ in faults], table, volumes_suite(self.curate, len(table)))
        grid = Planted("two_grids", "volumes on two different grids", "volumes", "mixed_grids", "critical")
        table.loc[1, "grid"] = "RAS 1 1 1"
        return [*found, _stopped(grid, lambda: judge.judge(table, volumes_suite(self.curate, len(table))))]

    def _looked_up(self, faults: list[Planted], table: pd.DataFrame, suite: Suite) -> list[Outcome]:
        judgement = judge.judge(table, suite)
        assert CLEAN not in judgement.reasons, f"clean series rejected: {judgement.reasons[CLEAN]}"
        outcomes = []
        for fault in faults:
            if fault.severity == "warning":  # told of the table; that it is this series' doing, its own row shows
                alone = judge.judge(table[table["series"] == fault.name], replace(suite, rules=_warnings(suite)))
                unmet = [r for r in alone.results if not r["success"]]
                outcomes.append(_outcome(fault, suite, [r["reason"] for r in unmet], [r["says"] for r in unmet]))
                continue
            found = judgement.reasons.get(fault.name, []), judgement.expected.get(fault.name, [])
            outcomes.append(_outcome(fault, suite, *found))
        return outcomes

    def cohort(self) -> list[Outcome]:
        config = self.cohort_config()
        clean = self.clean_cohort(config)
        suite, folder = cohort_suite(config, SHARDS, len(clean), config.source == "idc"), self.work / "cohort"

        def run(table: pd.DataFrame, held_out: frozenset[str] = frozenset()) -> pd.DataFrame:
            return judged(table, config, SHARDS, held_out, max(len(table), len(clean)), folder)

        def unmet() -> list[dict[str, str]]:
            return [rule for rule in read_json(folder / "quality.json")["rules"] if not rule["success"]]

        accepted = run(clean)
        assert (accepted["reason"] == "").all(), accepted[accepted["reason"] != ""]
        assert (accepted["shard"] == clean["shard"]).all()
        assert not unmet(), "a clean cohort meets everything"
        outcomes = self._rejected(clean, suite, run)
        for fault in cohort_faults():
            assert fault.cohort is not None
            table = fault.cohort(clean)
            if fault.severity == "critical":
                held_out = frozenset(clean.loc[clean["source"] == "idc", "patient"][:1])
                only = frozenset[str]() if fault.name != "held_out_pretrained" else held_out
                outcomes.append(_stopped(fault, lambda table=table, only=only: run(table, only)))
            elif fault.severity == "warning":
                assert (run(table)["reason"] == "").all()
                found = unmet()
                outcomes.append(_outcome(fault, suite, [r["reason"] for r in found], [r["says"] for r in found]))
        return outcomes

    def _rejected(self, clean: pd.DataFrame, suite: Suite, run: Any) -> list[Outcome]:
        """Faults that cost a series, each in rows of its own, judged together."""
        faults = [fault for fault in cohort_faults() if fault.severity == "reject"]
        table, rows = clean, {}
        for fault in faults:
            assert fault.cohort is not None
            before, table = table, fault.cohort(table)
            rows[fault.name] = list(table.index[(table != before).any(axis=1)])
        out = run(table)
        assert len(out) == len(clean), "counts in are counts out"
        planted = [row for changed in rows.values() for row in changed]
        assert sorted(out.index[out["reason"] != ""]) == sorted(planted), "no other series is rejected"
        assert ((out["shard"] == -1) == (out["reason"] != "")).all(), "rejected series are in no shard"
        expected = judge.judge(table, suite).expected
        return [_outcome(fault, suite, out.loc[row, "reason"].split(";"), expected[out.loc[row, "series"]])
                for fault in faults for row in rows[fault.name][:1]]  # fmt: skip

    def cohort_config(self) -> CohortConfig:
        config = load_stage(CohortConfig, self.line, "cohort", PARAMS)
        chosen = {"collections": ("ct_colonography", "lidc_idri", "tcga_kirc"), "sample": 40}
        phantom = {"pretrain_patients": 1, "evaluation_patients": 8, "retest_patients": 2, "fault_share": 0.0}
        return config.model_copy(update={"source": "idc", "idc": config.idc.model_copy(update=chosen),
                                         "phantom": config.phantom.model_copy(update=phantom)})  # fmt: skip

    def clean_cohort(self, config: CohortConfig) -> pd.DataFrame:
        """Real series of the IDC's index, and the phantom's evaluation series."""
        sources = {"idc": IdcSource(config.idc), "phantom": PhantomSource(config.phantom, pretrain=False)}
        rows: list[tuple[str, Listed]] = [
            (name, series) for name, source in sources.items() for series in source.list_series(frozenset()).series
        ]
        table = pd.DataFrame([{k: v for k, v in vars(s).items() if k != "members"} | {"source": n} for n, s in rows])
        table = table.sort_values("series", ignore_index=True)
        return table.assign(shard=table.index % SHARDS)


def _warnings(suite: Suite) -> tuple[Rule, ...]:
    return tuple(rule for rule in suite.rules if rule.severity == "warning" and rule.reason != "mostly_rejected")


def _outcome(fault: Planted, suite: Suite, found: list[str], unmet: list[str]) -> Outcome:
    says = [rule.says for rule in suite.rules if rule.reason == fault.reason and rule.says in unmet]
    expectation = " / ".join(dict.fromkeys(says))
    return Outcome(fault.name, fault.says, fault.suite, fault.severity, fault.reason, expectation, tuple(found))


def _stopped(fault: Planted, run: Callable[[], object]) -> Outcome:
    """What a critical fault is told as: the run's one line."""
    try:
        run()
    except UserError as error:
        told = str(error).partition("critical expectation failed: ")[2].split("; ")
        said = dict(part.split(": ", 1) for part in told)
        expectation = said.get(fault.reason, "").partition(" (")[0]
        return Outcome(fault.name, fault.says, fault.suite, fault.severity, fault.reason, expectation, tuple(said))
    return Outcome(fault.name, fault.says, fault.suite, fault.severity, fault.reason, "", ())


def markdown(outcomes: list[Outcome]) -> str:
    """The catalogue as a table."""
    lines = ["| fault | suite | expectation | reason | costs | caught |", "|---|---|---|---|---|---|"]
    costs = {"reject": "the series", "critical": "the run", "warning": "a warning"}
    lines += [
        f"| {' | '.join([o.says, o.suite, o.expectation, f'`{o.reason}`', costs[o.severity]])} | "
        f"{'yes' if o.caught else 'NO'} |"
        for o in outcomes
    ]
    caught = sum(o.caught for o in outcomes)
    return "\n".join([*lines, "", f"{caught} of {len(outcomes)} caught."])


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        print(markdown(Catalogue(Path(scratch)).outcomes()))
