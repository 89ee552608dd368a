"""Suite *release*: is the training set still like the one that the champion was trained on?

A profile holds, for every feature, how many accepted pretraining series fall into each of a fixed set of bins, so that
profiles of different releases compare. Two profiles are compared by the population stability index (PSI).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from components.errors import UserError
from components.files import read_json
from components.quality import judge
from components.quality.derived import REGIONS, region
from components.quality.rules import Rule, Suite
from components.settings import StageConfig

FORMAT = 1
RELEASE = "release"
NO_CHAMPION = "no champion: this is the line's first release, there is nothing to compare with"
NO_PROFILE = "the champion carries no data profile; promote a release that has one"
MISSING, OTHER = "missing", "OTHER"
RARE = 5  # bins with fewer series, in both profiles together, are compared as one: so few tell nothing by themselves
LENGTHS_MM = (0.55, 0.7, 0.9, 1.1, 1.4, 1.75, 2.25, 2.75, 3.5, 4.5, 5.5, 7.5)  # between the usual slice spacings


@dataclass(frozen=True)
class Feature:
    """What is compared.

    Attributes:
        title: for people.
        column: of the receipt or the catalogue.
        unit: of the values, where they have one.
        edges: bins are below the first, between neighbours (the lower edge belongs to the bin), from the last on; empty
            for categories.
    """

    title: str
    column: str
    unit: str = ""
    edges: tuple[float, ...] = ()


FeatureName = Literal[
    "slice_spacing", "slice_thickness", "pixel_spacing", "slices", "extent", "body_region", "vendor", "kernel", "kvp",
    "body_fraction", "body_median_hu", "hu_p01", "hu_p50", "hu_p99", "noise_hu",
]  # fmt: skip


class DriftConfig(StageConfig):
    """How far the training set may be from the champion's.

    Attributes:
        warn_psi: population stability index above which a feature has shifted.
        critical_psi: above which it has shifted strongly.
        confidence: where two samples of one population would exceed a bound more often than 1 - confidence, the bound
            rises to what they stay below.
        critical_features: features whose strong shift stops the run; the others warn.
    """

    warn_psi: Annotated[float, Field(gt=0, le=10)]
    critical_psi: Annotated[float, Field(gt=0, le=10)]
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    critical_features: tuple[FeatureName, ...]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.warn_psi > self.critical_psi:
            raise ValueError(f"allowed: warn_psi at most critical_psi, {self.critical_psi:g}")
        return self


FEATURES: dict[str, Feature] = {
    "slice_spacing": Feature("Slice spacing", "gap_median_mm", "mm", LENGTHS_MM),
    "slice_thickness": Feature("Slice thickness", "thickness_max_mm", "mm", LENGTHS_MM),
    "pixel_spacing": Feature("Pixel spacing", "spacing_row_mm", "mm",
                             (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.5, 2, 2.4, 2.8)),
    "slices": Feature("Slices", "instances", "", (25, 50, 75, 100, 150, 200, 300, 400, 600, 1000)),
    "extent": Feature("Scan length", "extent_mm", "mm", (100, 150, 200, 250, 300, 350, 400, 500, 700, 1000)),
    "body_region": Feature("Body region", "body_part"),
    "vendor": Feature("Vendor", "manufacturer"),
    "kernel": Feature("Kernel", "kernel"),
    "kvp": Feature("Tube voltage", "kvp", "kVp"),
    "body_fraction": Feature("Patient's share of the volume", "body_fraction", "",
                             (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)),
    "body_median_hu": Feature("HU of the patient, median", "body_median_hu", "HU",
                              (-100, -60, -30, -10, 0, 10, 20, 30, 40, 50, 70, 100)),
    "hu_p01": Feature("HU, 1st percentile", "hu_p01", "HU", (-2000, -1100, -1023, -1010, -1000, -980, -900, -500)),
    "hu_p50": Feature("HU, median", "hu_p50", "HU", (-1005, -995, -985, -960, -900, -800, -600, -400, -100, 0, 50)),
    "hu_p99": Feature("HU, 99th percentile", "hu_p99", "HU", (100, 150, 200, 250, 300, 400, 500, 700, 1000, 1500)),
    "noise_hu": Feature("Noise", "noise_hu", "HU", (5, 10, 15, 20, 25, 30, 40, 50, 70, 100)),
}  # fmt: skip


@dataclass(frozen=True)
class Drift:
    """One feature beside the champion's.

    Attributes:
        feature: its name.
        psi: None where the profiles do not compare.
        noise: what chance alone stays below, see :func:`noise_level`.
        warn_bound, critical_bound: the thresholds, or the noise where that is higher.
        verdict: ``stable``, ``shifted``, ``strongly shifted`` or ``not compared``.
    """

    feature: str
    psi: float | None
    noise: float
    warn_bound: float
    critical_bound: float
    verdict: str


def profile(curated: pd.DataFrame, screened: pd.DataFrame, catalogue: pd.DataFrame) -> dict[str, Any]:
    """The data profile of a training set: what ``profile.json`` holds.

    Args:
        curated: every series with ``accepted`` and ``role``.
        screened: header measurements of the same series.
        catalogue: voxel measurements of the series that passed the headers.

    Returns:
        ``format``, ``series``, ``patients`` and ``features``: per feature ``counts`` (bins in order, or by category),
        ``missing``, and for numbers ``edges``, ``unit`` and ``percentiles`` 5, 50 and 95. No series is named.
    """
    chosen = curated[curated["accepted"] & (curated["role"] == "pretrain")]
    voxels, headers = catalogue.set_index("series"), screened.set_index("series")
    features = {}
    for name, feature in FEATURES.items():
        table = voxels if feature.column in voxels else headers
        values = table[feature.column] if feature.column in table else pd.Series(dtype=object)
        of_chosen = values.reindex(chosen["series"])
        features[name] = _histogram(of_chosen, feature) if feature.edges else _categories(of_chosen, name)
    return {
        "format": FORMAT, "series": len(chosen), "patients": int(chosen["patient"].nunique()), "features": features,
    }  # fmt: skip


def _histogram(values: pd.Series, feature: Feature) -> dict[str, Any]:
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    known = numbers[np.isfinite(numbers)]
    places = np.searchsorted(np.asarray(feature.edges), known, side="right")
    percentiles = [round(float(v), 3) for v in np.percentile(known, [5, 50, 95])] if len(known) else None
    return {
        "edges": list(feature.edges),
        "unit": feature.unit,
        "counts": np.bincount(places, minlength=len(feature.edges) + 1).tolist(),
        "missing": len(numbers) - len(known),
        "percentiles": percentiles,
    }


def _categories(values: pd.Series, name: str) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for text, count in values.fillna("").value_counts().items():
        found = term(name, str(text))
        counts[found] = counts.get(found, 0) + int(count)
    missing = counts.pop("", 0)
    return {"counts": dict(sorted(counts.items())), "missing": missing}


def term(feature: str, text: str) -> str:
    """A header's text as a category, '' where it says nothing.

    Vendors go by their first word (GE MEDICAL SYSTEMS is GE), kernels by their first value, kVp by its number, body
    regions by the standard's terms.
    """
    text = text.split("\\")[0].strip().upper()
    if feature == "vendor":
        first = re.search(r"[A-Z0-9]+", text)
        return first.group() if first else ""
    if feature == "kvp":
        number = pd.to_numeric(text, errors="coerce")
        return f"{number:g}" if np.isfinite(number) else ""
    if feature == "body_region":
        plain = region(text)
        return plain if plain in REGIONS or not plain else OTHER
    return text


def psi(now: Sequence[int], before: Sequence[int]) -> float:
    """Population stability index of two sets of counts over the same bins.

    PSI = sum over bins of (p - q) ln(p / q), with the shares p and q of the two sets (the symmetric Kullback-Leibler
    divergence; Siddiqi, Credit Risk Scorecards, Wiley 2006, which also gives the bounds 0.1 and 0.25). Half a series is
    added to every bin, so that an empty one gives a finite figure; bins that are empty in both do not count, and
    bins with fewer than ``RARE`` series in both together are taken as one.

    Returns:
        0 for equal counts, and where one of the two holds nothing.
    """
    p, q = _merged(now, before)
    if not p.sum() or not q.sum():
        return 0.0
    p, q = (p + 0.5) / (p + 0.5).sum(), (q + 0.5) / (q + 0.5).sum()
    return round(float(((p - q) * np.log(p / q)).sum()), 6)


def noise_level(now: Sequence[int], before: Sequence[int], samples: tuple[int, int], confidence: float) -> float:
    """The PSI that two samples of one population stay below, with probability ``confidence``.

    Without drift, PSI is distributed as (1/n + 1/m) chi-square with (bins - 1) degrees of freedom (Yurdakul,
    Statistical Properties of Population Stability Index, Western Michigan University 2018). ``samples`` n and m are
    numbers of patients: series of one patient often come from one scanner and are no independent draws.
    """
    from scipy.stats import chi2  # takes long to import

    bins = len(_merged(now, before)[0])
    if bins < 2 or not min(samples):
        return 0.0
    return round(float(chi2.ppf(confidence, bins - 1)) * (1 / samples[0] + 1 / samples[1]), 6)


def _merged(now: Sequence[int], before: Sequence[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Counts of the bins that are compared: none empty in both, the rare ones as one."""
    p, q = np.asarray(now, dtype=np.float64), np.asarray(before, dtype=np.float64)
    often, rare = p + q >= RARE, (p + q > 0) & (p + q < RARE)
    if not rare.any():
        return p[often], q[often]
    return np.append(p[often], p[rare].sum()), np.append(q[often], q[rare].sum())


def bins(now: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[list[str], list[int], list[int]]:
    """Labels and both counts of one feature over common bins, ``missing`` last; no labels where edges differ."""
    if now.get("edges") != before.get("edges"):
        return [], [], []
    if "edges" in now:
        labels, p, q = bin_labels(now["edges"]), list(now["counts"]), list(before["counts"])
    else:
        labels = sorted({*now["counts"], *before["counts"]})
        p, q = ([side["counts"].get(label, 0) for label in labels] for side in (now, before))
    return [*labels, MISSING], [*p, now["missing"]], [*q, before["missing"]]


def bin_labels(edges: Sequence[float]) -> list[str]:
    """Bins in words, as many as edges and one more."""
    between = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    return [f"below {edges[0]:g}", *between, f"from {edges[-1]:g}"]


def compare(now: Mapping[str, Any], before: Mapping[str, Any], config: DriftConfig) -> list[Drift]:
    """Every feature of two profiles, in the order of ``FEATURES``."""
    return [_compare(name, now, before, config) for name in FEATURES]


def _compare(name: str, now: Mapping[str, Any], before: Mapping[str, Any], config: DriftConfig) -> Drift:
    missing = {"counts": {}, "missing": 0, "edges": None}
    _, p, q = bins(now["features"][name], before["features"].get(name, missing))
    if not p:
        return Drift(name, None, 0.0, config.warn_psi, config.critical_psi, "not compared")
    figure = psi(p, q)
    noise = noise_level(p, q, (now["patients"], before["patients"]), config.confidence)
    warn, critical = max(config.warn_psi, noise), max(config.critical_psi, noise)
    verdict = "strongly shifted" if figure > critical else "shifted" if figure > warn else "stable"
    return Drift(name, figure, noise, warn, critical, verdict)


def release(drifts: Sequence[Drift], config: DriftConfig) -> Suite:
    """The suite: two bounds per feature that compares. Its table has one row per feature, see :func:`table`."""
    rules = [
        Rule("rows_lost", "ExpectTableRowCountToEqual", {"value": len(FEATURES)},
             f"all {len(FEATURES)} features are compared", "critical"),
        Rule("rows_twice", "ExpectColumnValuesToBeUnique", {"column": judge.KEY}, "every feature once", "critical"),
    ]  # fmt: skip
    for drift in drifts:
        if drift.psi is None:
            continue
        rules.append(_bounded("drift", drift, drift.warn_bound, "warning"))
        if drift.feature in config.critical_features:
            rules.append(_bounded("strong_drift", drift, drift.critical_bound, "critical"))
        elif drift.critical_bound > drift.warn_bound:  # with few patients both are the noise level
            rules.append(_bounded("strong_drift", drift, drift.critical_bound, "warning"))
    return Suite(RELEASE, tuple(rules))


def _bounded(reason: str, drift: Drift, bound: float, severity: Any) -> Rule:
    says = f"{FEATURES[drift.feature].title}: PSI at most {bound:.3g}"
    where = {"row_condition": f'{judge.KEY}=="{drift.feature}"', "condition_parser": "pandas"}
    return Rule(reason, "ExpectColumnValuesToBeBetween", {"column": "psi", "max_value": bound, **where}, says, severity)


def table(drifts: Sequence[Drift]) -> pd.DataFrame:
    """What the suite judges: one row per feature, named in the column that names the series elsewhere."""
    rows = [asdict(drift) for drift in drifts]
    return pd.DataFrame(rows).rename(columns={"feature": judge.KEY}).astype({"psi": "float64"})


def judge_release(now: Mapping[str, Any], champion: Mapping[str, Any] | None, config: DriftConfig) -> dict[str, Any]:
    """Judge a profile against the champion's: what ``drift.json`` holds.

    Args:
        now: the profile of the present training set.
        champion: see :func:`champion_of`.
        config: thresholds.

    Returns:
        ``suite``, ``judged``, ``why`` (where it was not judged), ``champion`` (its bundle's digest), ``features``,
        ``rules`` and ``warnings``. A release without a champion is not judged: that is no pass.

    Raises:
        UserError: a feature that must not drift did.
    """
    before, why = comparable(champion)
    found: dict[str, Any] = {"suite": RELEASE, "judged": before is not None, "why": why}
    found["champion"] = champion["bundle"] if champion else None
    if before is None:
        return {**found, "features": [], "rules": [], "warnings": []}
    drifts = compare(now, before, config)
    judgement = judge.judge(table(drifts), release(drifts, config))
    titles = [FEATURES[drift.feature].title for drift in drifts if drift.psi is None]
    return {
        **found,
        "features": [asdict(drift) for drift in drifts],
        "rules": judgement.results,
        "warnings": [*judgement.warnings, *(f"{title}: bins as in the champion's profile" for title in titles)],
    }


def comparable(champion: Mapping[str, Any] | None) -> tuple[Mapping[str, Any] | None, str]:
    """The champion's profile, or None and why there is none to compare with."""
    if champion is None:
        return None, NO_CHAMPION
    found = champion.get("profile")
    if found is None:
        return None, NO_PROFILE
    if found.get("format") != FORMAT:
        raise UserError(f"champion's data profile: format {found.get('format')!r} is not known: allowed is {FORMAT}; "
                        "promote a release of this version")  # fmt: skip
    return found, ""


def champion_of(data: Path) -> dict[str, Any] | None:
    """The champion of a line as ``ctfoundry promote`` tracks it in ``infra/champions``; None where there is none.

    Args:
        data: the line's data folder, ``data/<line>`` below the project's root.
    """
    path = data.parents[1] / "infra" / "champions" / f"{data.name}.json"
    champion = read_json(path).get("champion") if path.is_file() else None
    return None if champion is None else dict(champion)
