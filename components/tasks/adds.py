"""Does the encoder add to what costs nothing? Both together against the plain baseline alone, on the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from components.figures.arrays import Array
from components.figures.resampling import paired
from components.tasks.config import EvaluateConfig
from components.tasks.judging import Part, judge_method
from components.tasks.plain import HU_STATISTICS, RADIOMICS, WINDOWS
from components.tasks.scores import DIGITS, ENCODER, RANDOM, Score

BASELINES = (HU_STATISTICS, RADIOMICS, WINDOWS)
BOTH = "+"  # between the names of two kinds of features
UNTRAINED = "untrained"  # the mean of a few, in the encoder's place
SEEDS = 3
Found = dict[str, dict[str, dict[str, dict[str, float]]]]


def with_baselines(part: Part, features: Mapping[str, Array], config: EvaluateConfig) -> list[Score]:
    """Scores of ``encoder+<baseline>``, and of ``untrained+<baseline>``, the mean of a few untrained encoders.

    Each of the two blocks of features is standardised and scaled as the linear probe does with one, so that they weigh
    alike, and the baseline's block is worth what it is worth alone.

    Args:
        part: the cases.
        features: method to (cases, dimension), in the order of the part's rows.
        config: of evaluation.
    """
    seeds = sorted(method for method in features if method.startswith(f"{RANDOM}_"))[:SEEDS]
    found: list[Score] = []
    for baseline in [name for name in BASELINES if name in features]:
        found += _together(part, ENCODER, baseline, features, config)
        of_seeds = [_together(part, seed, baseline, features, config) for seed in seeds]
        for scores in zip(*of_seeds, strict=True):
            mean: Array = np.mean([score.replicates for score in scores], axis=0)
            found.append(replace(scores[0], method=f"{UNTRAINED}{BOTH}{baseline}", replicates=mean))
    return found


def _together(
    part: Part, method: str, baseline: str, features: Mapping[str, Array], config: EvaluateConfig
) -> list[Score]:
    blocks = (features[method].shape[1], features[baseline].shape[1])
    both = np.hstack([features[method], features[baseline]])
    return judge_method(part, f"{method}{BOTH}{baseline}", both, config, blocks).scores


def added(scores: Sequence[Score]) -> Found:
    """What both together are better than the baseline alone: task, baseline, figure, then numbers.

    ``value`` of both; ``alone``, the baseline's; ``difference``, both less alone, with ``low`` and ``high``, its paired
    95 % limits over patients; ``untrained_difference``, ``untrained_low``, ``untrained_high``, the same of untrained
    encoders. Signs are the figure's own: of a Brier score a difference below 0 is a gain.
    """
    by_name = {(score.task, score.method, score.figure): score for score in scores}
    found: Found = {}
    for (task, method, figure), both in sorted(by_name.items()):
        with_encoder, _, baseline = method.partition(BOTH)
        if with_encoder != ENCODER or not baseline:
            continue
        alone = by_name[task, baseline, figure]
        numbers = {"value": both.value, "alone": alone.value, **_difference(both, alone, "")}
        untrained = by_name.get((task, f"{UNTRAINED}{BOTH}{baseline}", figure))
        if untrained is not None:
            numbers |= _difference(untrained, alone, f"{UNTRAINED}_")
        rounded = {name: round(number, DIGITS) for name, number in numbers.items()}
        found.setdefault(task, {}).setdefault(baseline, {})[figure] = rounded
    return found


def _difference(both: Score, alone: Score, prefix: str) -> dict[str, float]:
    estimate = paired(both.replicates, alone.replicates, both.sample)
    low, high = estimate.interval()
    return {f"{prefix}difference": estimate.value, f"{prefix}low": low, f"{prefix}high": high}
