"""With few labels: the AUC of probes that were fitted on K cases a class, over several draws of patients."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from components.figures.arrays import Array, Integers
from components.figures.classification import macro_auc
from components.figures.resampling import figure as estimate_of
from components.tasks.config import EvaluateConfig
from components.tasks.crossfit import hashed
from components.tasks.judging import Part
from components.tasks.pictures import STYLE
from components.tasks.plain import HU_STATISTICS, RADIOMICS
from components.tasks.probes import fit_linear
from components.tasks.scores import DIGITS, ENCODER, RANDOM

DRAWS, SEEDS = 5, 5
FINE_TUNED, SCRATCH = "fine_tuned", "scratch"
BESIDE = (HU_STATISTICS, RADIOMICS)
COLUMNS = ["task", "method", "cases_per_class", "draws", "value", "low", "high", "lowest", "highest"]
SHOWN = {
    FINE_TUNED: ("this encoder, fine-tuned", "#b3261e"),
    SCRATCH: ("trained from scratch", "#8e5bb5"),
    ENCODER: ("this encoder, frozen", "#1f5fbf"),
    RANDOM: ("untrained encoders, mean", "#8a8f98"),
    RADIOMICS: ("radiomics of the centre", "#d9822b"),
    HU_STATISTICS: ("HU statistics of the centre", "#2f9e7e"),
}
CAPTION = (
    "AUC on all test cases of linear probes that were fitted on a few training cases a class, each of another patient: "
    f"the mean of {DRAWS} draws with its 95 % limits over test patients."
)
OF_TRAINING = " Fine-tuned and from scratch: encoder and head trained together by equal steps, on the first {} of them."
Curves = dict[tuple[str, int], Array]  # method and cases a class to AUC (draws, replicates + 1)


def drawn(part: Part, count: int, draw: int, seed: int) -> Integers | None:
    """Training rows with ``count`` cases of each class, each of another patient; None where a class has too few.

    Patients come in the order of a seeded hash, the same for all classes: a larger ``count`` of a draw holds the
    smaller ones, and as few patients as can be are labelled. Of a patient's cases of a class a hash chooses one.
    """
    chosen: dict[tuple[str, str], int] = {}  # class and patient to a row
    cases = part.rows["case"].tolist()
    for row in sorted(np.flatnonzero(~part.test).tolist(), key=lambda row: hashed(seed, str(draw), cases[row])):
        chosen.setdefault((str(part.labels[row]), str(part.patients[row])), row)
    rows: list[int] = []
    for name in part.classes:
        having = sorted((p for label, p in chosen if label == name), key=lambda p: hashed(seed, str(draw), p))
        if len(having) < count:
            return None
        rows += [chosen[name, patient] for patient in having[:count]]
    return np.sort(np.asarray(rows, dtype=np.int64))


def curves(part: Part, features: Mapping[str, Array], counts: Sequence[int], config: EvaluateConfig) -> Curves:
    """AUC of every method at every count for which there are patients enough.

    Args:
        part: the cases.
        features: method to (cases, dimension), in the order of the part's rows.
        counts: cases a class.
        config: of evaluation.
    """
    random = sorted(method for method in features if method.startswith(f"{RANDOM}_"))[:SEEDS]
    methods = [method for method in (ENCODER, *random, *BESIDE) if method in features]
    labels, weights = part.labels[part.test], part.weights
    found: dict[tuple[str, int], list[Array]] = {}
    for count, draw in itertools.product(sorted(counts), range(DRAWS)):
        rows = drawn(part, count, draw, config.seed)
        for method in methods if rows is not None else ():
            probe = fit_linear(features[method][rows], part.labels[rows], part.classes, config.linear_c)
            scores = np.round(probe.probabilities(features[method][part.test]), DIGITS)
            found.setdefault((method, count), []).append(macro_auc(scores, labels, part.classes, weights))
    stacked = {key: np.stack(aucs) for key, aucs in found.items()}
    for count in {count for _, count in stacked} if random else ():
        stacked[RANDOM, count] = np.mean([stacked.pop((name, count)) for name in random], axis=0)
    return stacked


def few_shot_table(parts: Mapping[str, tuple[Part, Curves]], family: str | None) -> pd.DataFrame:
    """``COLUMNS``: ``value`` with ``low`` and ``high``, the mean over the draws and its 95 % limits over test patients;
    ``lowest`` and ``highest`` of the draws.

    Args:
        parts: by name, with their curves.
        family: name under which the mean over all parts is added; None for none.
    """
    rows = []
    for name, (part, of) in parts.items():
        rows += [_row(name, *key, aucs, part) for key, aucs in of.items()]
    if family is not None:
        least = min((part for part, _ in parts.values()), key=lambda part: part.sample.freedom)
        rows += [
            _row(family, *key, aucs, least) for key, aucs in family_curves([of for _, of in parts.values()]).items()
        ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(["task", "method", "cases_per_class"], ignore_index=True)


def family_curves(parts: Sequence[Curves]) -> Curves:
    """The mean over parts, of what all of them have; replicate by replicate, for they share their patients."""
    common = set.intersection(*(set(of) for of in parts))
    return {key: np.mean([of[key] for of in parts], axis=0) for key in sorted(common)}


def _row(task: str, method: str, count: int, aucs: Array, part: Part) -> tuple[object, ...]:
    estimate = estimate_of(np.clip(aucs.mean(axis=0), 0.0, 1.0), part.sample)
    numbers = (estimate.value, *estimate.interval(), aucs[:, 0].min(), aucs[:, 0].max())
    return (task, method, count, len(aucs), *(round(float(number), DIGITS) for number in numbers))


def draw_curves(table: pd.DataFrame, task: str) -> Figure:
    """AUC against the cases a class, of one task of the table."""
    rows = table[table["task"] == task]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 3.6))
        for method, (label, colour) in SHOWN.items():
            of = rows[rows["method"] == method]
            if of.empty:
                continue
            axes.fill_between(of["cases_per_class"], of["low"], of["high"], color=colour, alpha=0.12, linewidth=0)
            axes.plot(of["cases_per_class"], of["value"], marker="o", markersize=4, color=colour, label=label)
        axes.axhline(0.5, color="#9aa1ab", linewidth=0.8, linestyle=":")
        axes.set(title=task, xlabel="training cases of each class", ylabel="AUC", xscale="log")
        ticks = sorted(set(rows["cases_per_class"]))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.tight_layout()
    return figure
