"""Kind ``classify``: which class a place or a scan is of, by probes of frozen features; and is its like found?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import pandas as pd
from pydantic import Field, model_validator

from components.settings import StageConfig
from components.sources.lidc import ROOT as LIDC_ROOT
from components.sources.phantom.plan import FINDINGS as PHANTOM_FINDINGS
from components.tasks import annotated, own
from components.tasks.config import LINE, STRUCTURE
from components.tasks.interface import Kind, Measure, Outcome, Question, Scanned
from components.tasks.nodules import RATINGS, nodules
from components.tasks.scores import ENCODER, family_mean, task_metrics
from components.tasks.table import Built, Inputs, check_splits, usable
from components.tasks.trained import AttentiveConfig, FineTuneConfig

if TYPE_CHECKING:
    from components.models.heads import Head
    from components.tasks.few_shot import Curves
    from components.tasks.judging import Judged, Part
    from components.tasks.scores import Score

DIAMETER = "diameter_only"
FINDINGS = "finding"
# By these an encoder may be chosen: higher is better, and every task has them.
ORDERING = {
    "linear_auc": Measure("Linear probe, AUC"),
    "linear_balanced_accuracy": Measure("Linear probe, balanced accuracy"),
    "knn_auc": Measure("Nearest neighbours, AUC"),
    "knn_balanced_accuracy": Measure("Nearest neighbours, balanced accuracy"),
    "retrieval_map": Measure("Retrieval, mean average precision"),
    "retrieval_p1": Measure("Retrieval, precision at 1"),
    "retrieval_p5": Measure("Retrieval, precision at 5"),
    "average_precision": Measure("Linear probe, average precision"),
}
ATTENTIVE = {
    "attentive_auc": Measure("Attentive probe, AUC"),
    "attentive_balanced_accuracy": Measure("Attentive probe, balanced accuracy"),
}
# Beside an untrained encoder stands its training from scratch.
FINE_TUNED = {
    "fine_tuned_auc": Measure("Fine-tuned, AUC (untrained: from scratch)"),
    "fine_tuned_balanced_accuracy": Measure("Fine-tuned, balanced accuracy (untrained: from scratch)"),
}
PROBED = ORDERING | {
    "brier": Measure("Linear probe, calibrated: Brier score", bounds=(0.0, 2.0), lower_is_better=True),
    "ece": Measure("Linear probe, calibrated: expected calibration error", lower_is_better=True),
    "sensitivity": Measure("Linear probe, sensitivity at the operating point"),
    "specificity": Measure("Linear probe, specificity at the operating point"),
}
FIGURES = PROBED | ATTENTIVE | FINE_TUNED
# Of the set `line`: what its scans' annotations are of.
ANNOTATED: dict[str, Callable[[str, Inputs], Built]] = {
    "organ": annotated.organs,
    "lesion": annotated.lesions,
    FINDINGS: annotated.findings,
}
RATINGS_LABEL = "ratings"
BUILT_IN = {LINE: tuple(ANNOTATED), LIDC_ROOT: (RATINGS_LABEL,)}
POINTS = ("organ", "lesion", RATINGS_LABEL)  # they want an encoder that sees crops


class ClassifyConfig(StageConfig):
    """A block of ``<line>.tasks``: which class a labelled place or scan is of.

    Attributes:
        set: a labelled set; ``line``, the line's own evaluation scans; or ``lidc_nodules``.
        label: of a labelled set the column of its table that holds the class of each scan, or ``structure``: of one
            with masks, each structure of each scan is a case, at its innermost point. Of ``line`` the annotations
            ``organ``, ``lesion`` or ``finding``; of ``lidc_nodules`` its ``ratings``.
        external: labelled sets of other sites with a column of the same name (of set ``line``: of phantoms), on which
            what was trained here is tested as well: ``<task>/<set>``.
        serve: whether the linear probe of the encoder goes into the release as a head.
        specificity: of two classes, at which the threshold of the second one is chosen, on training cases; null for
            none. Tasks of more classes have none.
        few_shot: numbers of training cases a class for a curve of the AUC; null for none.
        attentive: a probe of the frozen encoder's tokens beside those of its vector; null for none.
        fine_tune: the encoder trained further on the task, beside the same from scratch; null for none. It is judged,
            and not served: what ``serve`` releases is the linear probe.
    """

    kind: Literal["classify"]
    set: Annotated[str, Field(min_length=1)]
    label: Annotated[str, Field(min_length=1)]
    external: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    serve: bool
    specificity: Annotated[float, Field(gt=0, le=1)] | None
    few_shot: Annotated[tuple[Annotated[int, Field(ge=1, le=10_000)], ...], Field(min_length=1, max_length=20)] | None
    attentive: AttentiveConfig | None = None
    fine_tune: FineTuneConfig | None = None

    @model_validator(mode="after")
    def _curves(self) -> ClassifyConfig:
        draws = self.fine_tune.few_shot_draws if self.fine_tune else 0
        if draws and self.few_shot is None:
            raise ValueError(f"fine_tune.few_shot_draws {draws} is not allowed with few_shot null: 0")
        return self


def cases(name: str, task: ClassifyConfig, inputs: Inputs) -> Built:
    """The cases of a task; classes with too few patients are left out, with the reason."""
    if task.set == LINE:
        built = annotated.with_sites(ANNOTATED[task.label], name, inputs, task.external)
    elif task.set == LIDC_ROOT:
        built = nodules(name, inputs)
    else:
        built = own.classify(name, task.set, task.label, inputs, task.external)
    check_splits(built.table)
    return usable(built, inputs.config.minimum_patients)


def judge(question: Question) -> Outcome:
    """Every figure of every method on every part of the task, and of findings the mean over them; its heads."""
    from components.tasks.adds import added, with_baselines
    from components.tasks.few_shot import curves
    from components.tasks.judging import Part, judge_method
    from components.tasks.probability_pictures import pictures
    from components.tasks.served import head_of
    from components.tasks.training import trained

    task, config = question.task, question.config
    scores: list[Score] = []
    tables: list[pd.DataFrame] = []
    shown: list[tuple[Part, Judged]] = []
    curved: dict[str, tuple[Part, Curves]] = {}
    heads: dict[str, Head] = {}
    outcome = Outcome(scores, pd.DataFrame(), heads=heads)
    elsewhere = [f"{question.name}/{site}" for site in task.external]  # tests of the same probe, and no head of its own
    family = task.set == LINE and task.label == FINDINGS
    for name, rows in question.rows.groupby("task"):
        part = Part.of(str(name), rows, config, task.specificity)
        inputs = {method: question.features.of(method, part.rows) for method in question.features.methods}
        if part.rows["diameter_mm"].notna().all():
            inputs[DIAMETER] = part.rows[["diameter_mm"]].to_numpy(dtype="float64")
        judged = {method: judge_method(part, method, vectors, config) for method, vectors in inputs.items()}
        scores += [score for of in judged.values() for score in of.scores]
        scores += with_baselines(part, inputs, config)
        tables += [of.cases for of in judged.values()]
        shown.append((part, judged[ENCODER]))
        outside = _is_of(part.name, elsewhere)
        if task.few_shot is not None and not (family and outside):
            curved[part.name] = part, curves(part, inputs, task.few_shot, config)
        if missing := _left_out(task, part, curved):
            outcome.remarks[part.name] = missing
        if task.serve and not outside:
            numbers = task_metrics([score for of in judged.values() for score in of.scores], FIGURES)[part.name]
            heads[part.name] = head_of(question.name, part, judged[ENCODER].fitted, numbers)
    if KIND.trains(task):
        more = trained(question, [part for part, _ in shown], curved)
        scores += more.scores
        tables += more.cases
        for trained_part, of_part in more.curves.items():
            curved[trained_part][1].update(of_part)
    means = {of: family_mean(scores, of) for of in (question.name, *elsewhere) if family}
    for of, (mean, said) in means.items():
        if mean:
            scores += mean
            outcome.remarks[of] = said
    outcome.found["adds_to"] = added(scores)
    outcome.pictures.update(pictures(shown))
    _few_and_gains(outcome, scores, curved, question.name if family else None, task)
    return replace(outcome, cases=pd.concat(tables, ignore_index=True))


def _draw_few_shot(
    outcome: Outcome, curved: Mapping[str, tuple[Part, Curves]], family: str | None, task: ClassifyConfig
) -> None:
    from components.tasks.few_shot import CAPTION, OF_TRAINING, draw_curves, few_shot_table

    outcome.tables["few_shot"] = few = few_shot_table(curved, family)
    draws = task.fine_tune.few_shot_draws if task.fine_tune is not None else 0
    caption = CAPTION + (OF_TRAINING.format(draws) if draws else "")
    for name in sorted({family} if family is not None else set(few["task"])):
        outcome.pictures[f"few_shot_{name.replace('/', '_')}"] = draw_curves(few, name), caption


def _few_and_gains(
    outcome: Outcome, scores: Sequence[Score], curved: Mapping[str, tuple[Part, Curves]], family: str | None,
    task: ClassifyConfig,
) -> None:  # fmt: skip
    """Put the curves against the number of labels, and what fine-tuning gains, into the outcome."""
    from components.tasks.gains import gains, told

    if task.few_shot is not None:
        _draw_few_shot(outcome, curved, family, task)
    if task.fine_tune is not None:
        outcome.tables["fine_tuned"] = table = gains(scores, curved, family)
        for name, sentence in told(table).items():
            outcome.remarks[name] = f"{outcome.remarks.get(name, '')} {sentence}".strip()


def _is_of(part: str, tasks: Sequence[str]) -> bool:
    return any(part == of or part.startswith(f"{of}/") for of in tasks)


def _left_out(task: ClassifyConfig, part: Part, curved: Mapping[str, tuple[Part, Curves]]) -> str:
    """What the block asks for and the cases cannot give."""
    told = []
    if task.specificity is not None and part.specificity is None:
        told.append(f"No operating point: {len(part.classes)} classes, and one is of two.")
    if part.name in curved:
        drawn = {count for _, count in curved[part.name][1]}
        few = [str(count) for count in sorted(set(task.few_shot or ()) - drawn)]
        told += [f"Too few patients of a class in training for few_shot {', '.join(few)}."] if few else []
    return " ".join(told)


def _parts(name: str, task: ClassifyConfig, scanned: Scanned) -> list[str]:
    if task.set == LIDC_ROOT:
        return [f"{name}/{rating}" for rating in RATINGS] if scanned.nodules else []
    if task.set != LINE:
        return [name, *(f"{name}/{site}" for site in task.external)]
    places = [name, *(f"{name}/{site}" for site in task.external)]
    if task.label == FINDINGS:
        parts = [part for of in places for part in (of, *(f"{of}/{finding}" for finding in PHANTOM_FINDINGS))]
        return [] if scanned.trunk else parts
    return places if scanned.trunk else []


KIND = Kind(
    ClassifyConfig,
    FIGURES,
    cases,
    judge,
    points=lambda task: task.label in POINTS if task.set in BUILT_IN else task.label == STRUCTURE,
    columns=lambda task: {"label": task.label},
    built_in=BUILT_IN,
    measured=lambda task: (
        PROBED | (ATTENTIVE if task.attentive is not None else {}) | (FINE_TUNED if task.fine_tune is not None else {})
    ),
    trains=lambda task: task.attentive is not None or task.fine_tune is not None,
    parts=_parts,
)
