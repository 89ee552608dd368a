"""Every block of a line's parameters, and the class that checks it: the one place that knows all stages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from components.bundle.config import BundleConfig
from components.cohort.config import CohortConfig
from components.costs import COSTS, load_costs
from components.ct.grid import GridConfig
from components.curate.config import CurateConfig
from components.evaluate.peers import PeersConfig
from components.evaluate.published import PublishedConfig
from components.gate.config import GateConfig
from components.models.config import InputConfig
from components.preprocess.config import PreprocessConfig
from components.pretrain.config import PretrainConfig
from components.screen.config import ScreenConfig
from components.settings import (
    KEYS,
    PARAMS_FILE,
    REPRODUCIBLE,
    ParamsError,
    StageConfig,
    did_you_mean,
    lines,
    parse,
    read_yaml,
    reproducible,
    shards,
    shown,
)
from components.sources.config import AcquireConfig
from components.sources.lidc import ROOT as LIDC_ROOT
from components.sources.sets import SETS, sets_of
from components.tasks.classify import ORDERING, ClassifyConfig
from components.tasks.config import TASKS, EvaluateConfig
from components.tasks.interface import Scanned
from components.tasks.kinds import kind_of, measures, mistaken_index, of_points, tasks_of

BLOCKS: dict[str, type[StageConfig]] = {
    "cohort": CohortConfig,
    "acquire": AcquireConfig,
    "screen": ScreenConfig,
    "preprocess": PreprocessConfig,
    "curate": CurateConfig,
    "pretrain": PretrainConfig,
    "evaluate": EvaluateConfig,
    "peers": PeersConfig,
    "published": PublishedConfig,
    "gate": GateConfig,
    "bundle": BundleConfig,
}
JUDGED = ("better_than_random", "floors", "external_falls", "champion")  # the lists of gates on a figure


def check_file(path: Path = PARAMS_FILE, nodules_to_come: bool = False) -> None:
    """Validate the whole file, every block of every line, and report all mistakes at once.

    Args:
        path: of the file.
        nodules_to_come: ``evaluate.lidc_nodules`` is still to be pinned: gates on them are no mistake yet.

    Raises:
        ParamsError: all mistakes, one per line.
    """
    content = read_yaml(path)
    mistakes: list[str] = []
    named: tuple[str, ...] = ()
    try:
        named = lines(path)
    except ParamsError as error:
        mistakes.append(str(error))
    known = [*KEYS, COSTS, *named]
    if COSTS in named:
        mistakes.append(f"params.yaml: lines: {COSTS!r} is not allowed: the file's own key of prices has this name")
        named = tuple(name for name in named if name != COSTS)
    for key in content if named else ():
        if key not in known:
            hint = "add it to `lines`, or " if isinstance(content[key], dict) and "cohort" in content[key] else ""
            told = f"{hint}allowed here: {', '.join(known)}{did_you_mean(key, known)}"
            mistakes.append(f"params.yaml: {key}: unknown key; {told}")
    try:
        load_costs(path)
    except ParamsError as error:
        mistakes.append(str(error))
    try:
        shards(path)
    except ParamsError as error:
        mistakes.append(str(error))
    for line in named:
        mistakes += _mistakes(line, content.get(line), path, nodules_to_come)
    if not mistakes:  # else it would repeat them
        mistakes += mistaken_index(path)
    if mistakes:
        raise ParamsError("\n".join(mistakes))


def _mistakes(line: str, block: Any, path: Path, nodules_to_come: bool) -> list[str]:
    """What is wrong in a line's block, one line each."""
    if not isinstance(block, dict):
        return [f"params.yaml: {line}: missing; it needs one block per stage, see `ctfoundry line new --help`"]
    mistakes: list[str] = []
    try:
        reproducible(line, path)
    except ParamsError as error:
        mistakes.append(str(error))
    try:
        own = tasks_of(line, sets_of(line, path), path)
    except ParamsError as error:
        mistakes.append(str(error))
        own = {}
    for stage in block:
        if stage not in (*BLOCKS, REPRODUCIBLE, SETS, TASKS):
            known = [REPRODUCIBLE, SETS, TASKS, *BLOCKS]
            told = f"allowed here: {', '.join(known)}{did_you_mean(stage, known)}"
            mistakes.append(f"params.yaml: {line}.{stage}: unknown key; {told}")
    valid: dict[str, Any] = {}
    for stage, config_class in BLOCKS.items():
        if stage not in block:
            mistakes.append(f"params.yaml: {line}.{stage}: missing")
            continue
        try:
            valid[stage] = parse(config_class, block[stage], f"{line}.{stage}")
        except ParamsError as error:
            mistakes.append(str(error))
    mistakes = _once(line, mistakes)
    if nodules_to_come and "evaluate" in valid and _of_nodules(own):
        valid["evaluate"] = valid["evaluate"].model_copy(update={"lidc_nodules": "0" * 64})
    return mistakes + _contradictions(line, {**valid, TASKS: own})


def _once(line: str, mistakes: list[str]) -> list[str]:
    """Without those that a set's block takes over from the line's cohort, of which the cohort tells."""
    of_set = re.compile(rf"^params\.yaml: {re.escape(line)}\.{SETS}\.\w+\.scans\.")
    every = [one for several in mistakes for one in several.splitlines()]
    of_cohort = [of_set.sub(f"params.yaml: {line}.cohort.", one) for one in every]
    return [one for one, there in zip(every, of_cohort, strict=True) if there == one or there not in every]


def _of_nodules(tasks: dict[str, Any]) -> list[str]:
    return [name for name, task in tasks.items() if isinstance(task, ClassifyConfig) and task.set == LIDC_ROOT]


def _contradictions(line: str, valid: dict[str, Any]) -> list[str]:
    """What valid blocks say of one thing, and differently."""
    mistakes: list[str] = []
    if {"pretrain", "evaluate"} <= valid.keys():
        mistakes += of_points(line, valid["pretrain"].input.sees, valid[TASKS])
        if valid["evaluate"].lidc_nodules is not None and valid[TASKS] and not _of_nodules(valid[TASKS]):
            mistakes.append(
                f"params.yaml: {line}.evaluate.lidc_nodules: pinned, but no task of {line}.tasks is of set "
                f"{LIDC_ROOT}: add one, or set this to null"
            )
        mistakes += _licences(line, valid)
        kept = valid["pretrain"].candidates
        if valid["evaluate"].selection is not None and kept < 2:
            mistakes.append(
                f"params.yaml: {line}.evaluate.selection: not allowed with {line}.pretrain.candidates {kept}: the run "
                "keeps its last encoder only; set candidates above 1, or this to null"
            )
    if {"preprocess", "pretrain"} <= valid.keys():
        mistakes += [
            f"params.yaml: {line}.pretrain.input.{key}: {shown(told)} is not allowed with "
            f"{line}.preprocess.{key} {shown(made)}: the encoder sees the stored volumes as they are"
            for key, told, made in other_grid(valid["pretrain"].input, valid["preprocess"])
        ]
    if {"cohort", "pretrain", "evaluate", "published", "gate"} <= valid.keys() and valid[TASKS] and not mistakes:
        mistakes += _unanswered(line, valid)
    return mistakes


def _licences(line: str, valid: dict[str, Any]) -> list[str]:
    """The release of weights that were given is those weights, under their licence."""
    pretrain, bundle = valid["pretrain"], valid.get("bundle")
    if pretrain.start is None or pretrain.steps or bundle is None or bundle.licence == pretrain.start.licence:
        return []
    return [
        f"params.yaml: {line}.bundle.licence: {shown(bundle.licence)} is not allowed with {line}.pretrain.start of "
        f"licence {shown(pretrain.start.licence)} and steps 0: the release is those weights"
    ]


def _unanswered(line: str, valid: dict[str, Any]) -> list[str]:
    """What is to be judged by a figure that there will not be: told now, not after the training."""
    figures, evaluate, gate = _figures(valid), valid["evaluate"], valid["gate"]
    if not figures:
        return [
            f"params.yaml: {line}.tasks: {shown(list(valid[TASKS]))} is not allowed with {line}.cohort.phantom: "
            "its scans have no labels for any of them"
        ]
    asked = [(f"gate.{key}", wanted) for key in JUDGED for wanted in getattr(gate, key)]
    asked += [("published.figures", wanted) for wanted in valid["published"].figures]
    chosen = evaluate.selection
    mistakes = [
        wrong for key, wanted in asked for wrong in _unknown(f"{line}.{key}", wanted.task, wanted.figure, figures)
    ]
    mistakes += [
        wrong
        for wanted in gate.subgroup_gaps
        for wrong in _unknown(f"{line}.gate.subgroup_gaps", wanted.task, None, figures)
    ]
    if not mistakes:
        mistakes += _other_way(line, gate) + _elsewhere(line, gate, valid[TASKS])
    if chosen is not None:
        of_classes = {name: tuple(ORDERING) for name, of in figures.items() if set(ORDERING) <= set(of)}
        families = {name.split("/")[0] for name in of_classes}
        of_classes |= dict.fromkeys(sorted(families), tuple(ORDERING))
        mistakes += _unknown(f"{line}.evaluate.selection", chosen.task, chosen.figure, of_classes)
    return mistakes


def _other_way(line: str, gate: GateConfig) -> list[str]:
    """Floors on the wrong side."""
    known = measures()
    return [
        f"params.yaml: {line}.gate.floors: {key} {shown(floor.bound)} is not allowed of {floor.task} {floor.figure}: "
        f"{told} is better, write {other}"
        for floor in gate.floors
        for lower in [known[floor.figure].lower_is_better]
        for key, other, told in [("minimum", "maximum", "lower") if lower else ("maximum", "minimum", "higher")]
        if getattr(floor, key) is not None
    ]


def _elsewhere(line: str, gate: GateConfig, tasks: dict[str, Any]) -> list[str]:
    """Falls to sets that a task is not tested on."""
    mistakes = []
    for wanted in gate.external_falls:
        known = list(getattr(tasks.get(wanted.task), "external", ()))
        if wanted.set not in known:
            told = f"of {line}.tasks.{wanted.task}.external, {', '.join(known) or 'of which there is none'}"
            mistakes.append(
                f"params.yaml: {line}.gate.external_falls: set {shown(wanted.set)} is not allowed: "
                f"{told}{did_you_mean(wanted.set, known)}"
            )
    return mistakes


def _unknown(where: str, task: str, figure: str | None, figures: dict[str, tuple[str, ...]]) -> list[str]:
    if task not in figures:
        told = f"one of {', '.join(figures)}" if figures else "there is none to classify"
        return [f"params.yaml: {where}: task {shown(task)} is not allowed, by its tasks and the labels: {told}"]
    if figure is not None and figure not in figures[task]:
        return [f"params.yaml: {where}: figure {shown(figure)} is not allowed: of {task}, {', '.join(figures[task])}"]
    return []


def _figures(valid: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """The tasks that evaluation answers, by the names that they have in the metrics, and their figures."""
    phantom, view = valid["cohort"].phantom, valid["pretrain"].input
    scanned = Scanned(
        trunk=phantom.anatomy == "trunk",
        sees=view.sees,
        retests=phantom.retest_patients > 0,
        nodules=valid["evaluate"].lidc_nodules is not None,
        tasks=valid[TASKS],
    )
    return {
        part: tuple(kind.figures if kind.measured is None else kind.measured(task))
        for name, task in valid[TASKS].items()
        for kind in [kind_of(task)]
        for part in kind.parts(name, task, scanned)
    }


def other_grid(seen: InputConfig, made: GridConfig) -> list[tuple[str, Any, Any]]:
    """Where what the encoder sees is not how volumes are stored: the key, what is seen, what is stored."""
    pairs = [(key, getattr(seen, key), getattr(made, key)) for key in ("spacing_mm", "orientation")]
    return [(key, told, stored) for key, told, stored in pairs if told != stored]
