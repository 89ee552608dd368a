"""What fine-tuning gained: above training from scratch by equal steps, and above the frozen probe; paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from components.figures.resampling import Estimate, Sample, beside_untrained, paired
from components.tasks.few_shot import FINE_TUNED, SCRATCH, Curves, family_curves
from components.tasks.judging import Part
from components.tasks.scores import DIGITS, ENCODER, RANDOM, Score

ALL = "all"
ABOVE = ("above_scratch", "above_frozen")
LIMITS = [f"{name}{limit}" for name in ABOVE for limit in ("", "_low", "_high")]
COLUMNS = ["task", "cases_per_class", "draws", "fine_tuned", "scratch", "frozen", *LIMITS]
AUC = f"{FINE_TUNED}_auc"


def gains(scores: Sequence[Score], parts: Mapping[str, tuple[Part, Curves]], family: str | None) -> pd.DataFrame:
    """``COLUMNS``: AUC of the three, and by how much the first is above the others, with 95 % limits.

    Of ``all`` training cases the gain above scratch is one above another initialisation: its limits hold patients'
    chance and initialisations', as in ``metrics.json``. Of a few cases a class all three are means over the same draws,
    each with an initialisation of its own, and limits are over test patients. Empty where nothing was fine-tuned.

    Args:
        scores: of all tasks.
        parts: by name, with their curves.
        family: under which the mean over all parts is added; None for none.
    """
    rows = _of_all(scores)
    for name, (part, curves) in parts.items():
        rows += _of_few(name, curves, part.sample)
    if family is not None and parts:
        least = min((part for part, _ in parts.values()), key=lambda part: part.sample.freedom)
        rows += _of_few(family, family_curves([curves for _, curves in parts.values()]), least.sample)
    return pd.DataFrame(rows, columns=COLUMNS)


def told(table: pd.DataFrame) -> dict[str, str]:
    """A sentence for each task, of all its training cases."""
    found = {}
    for row in table[table["cases_per_class"] == ALL].to_dict("records"):
        beside = []
        for name, of, above in (("from scratch", "scratch", ABOVE[0]), ("frozen", "frozen", ABOVE[1])):
            limits = f"[{row[f'{above}_low']:+.3f}, {row[f'{above}_high']:+.3f}]"
            beside.append(f"{name} {row[of]:.3f}, difference {row[above]:+.3f} {limits}")
        found[str(row["task"])] = f"Fine-tuned, AUC {row['fine_tuned']:.3f}; {'; '.join(beside)}."
    return found


def _of_all(scores: Sequence[Score]) -> list[tuple[object, ...]]:
    of = {(score.task, score.method, score.figure): score for score in scores}
    rows = []
    for (task, method, figure), ours in sorted(of.items()):
        if (method, figure) != (ENCODER, AUC):
            continue
        named = [score for key, score in of.items() if (key[0], key[2]) == (task, AUC) and key[1].startswith(RANDOM)]
        scratch, frozen = np.stack([score.replicates for score in named]), of[task, ENCODER, "linear_auc"]
        above = beside_untrained(ours.replicates, scratch, ours.sample).to_another
        numbers = (ours.value, float(scratch[:, 0].mean()), frozen.value)
        rows.append(_row(task, ALL, 1, numbers, above, paired(ours.replicates, frozen.replicates, ours.sample)))
    return rows


def _of_few(task: str, curves: Curves, sample: Sample) -> list[tuple[object, ...]]:
    rows = []
    for method, count in sorted(curves):
        if method != FINE_TUNED:
            continue
        draws = len(curves[FINE_TUNED, count])
        ours, scratch, frozen = (curves[name, count][:draws].mean(axis=0) for name in (FINE_TUNED, SCRATCH, ENCODER))
        numbers = tuple(float(of[0]) for of in (ours, scratch, frozen))
        rows.append(_row(task, count, draws, numbers, paired(ours, scratch, sample), paired(ours, frozen, sample)))
    return rows


def _row(
    task: str, count: int | str, draws: int, numbers: Sequence[float], above_scratch: Estimate, above_frozen: Estimate
) -> tuple[object, ...]:
    limits = [of for estimate in (above_scratch, above_frozen) for of in (estimate.value, *estimate.interval())]
    return (task, count, draws, *(round(number, DIGITS) for number in (*numbers, *limits)))
