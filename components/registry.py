"""Every block of a line's parameters, and the class that checks it: the one place that knows all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.bundle.config import BundleConfig
from components.cohort.config import CohortConfig
from components.ct.grid import GridConfig
from components.curate.config import CurateConfig
from components.evaluate.config import OF_ANATOMY, EvaluateConfig, answered, mistaken_figure, mistaken_tasks
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

BLOCKS: dict[str, type[StageConfig]] = {
    "cohort": CohortConfig,
    "acquire": AcquireConfig,
    "screen": ScreenConfig,
    "preprocess": PreprocessConfig,
    "curate": CurateConfig,
    "pretrain": PretrainConfig,
    "evaluate": EvaluateConfig,
    "gate": GateConfig,
    "bundle": BundleConfig,
}


def check_file(path: Path = PARAMS_FILE) -> None:
    """Validate the whole file, every block of every line, and report all mistakes at once.

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
    known = [*KEYS, *named]
    for key in content if named else ():
        if key not in known:
            hint = "add it to `lines`, or " if isinstance(content[key], dict) and "cohort" in content[key] else ""
            told = f"{hint}allowed here: {', '.join(known)}{did_you_mean(key, known)}"
            mistakes.append(f"params.yaml: {key}: unknown key; {told}")
    try:
        shards(path)
    except ParamsError as error:
        mistakes.append(str(error))
    for line in named:
        mistakes += _mistakes(line, content.get(line), path)
    if mistakes:
        raise ParamsError("\n".join(mistakes))


def _mistakes(line: str, block: Any, path: Path) -> list[str]:
    """What is wrong in a line's block, one line each."""
    if not isinstance(block, dict):
        return [f"params.yaml: {line}: missing; it needs one block per stage, see `ctfoundry line new --help`"]
    mistakes: list[str] = []
    try:
        reproducible(line, path)
    except ParamsError as error:
        mistakes.append(str(error))
    for stage in block:
        if stage not in (*BLOCKS, REPRODUCIBLE):
            known = [REPRODUCIBLE, *BLOCKS]
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
    return mistakes + _contradictions(line, valid)


def _contradictions(line: str, valid: dict[str, Any]) -> list[str]:
    """What valid blocks say of one thing, and differently."""
    mistakes: list[str] = []
    if {"pretrain", "evaluate"} <= valid.keys():
        mistakes += mistaken_tasks(line, valid["pretrain"].input.sees, valid["evaluate"])
    if {"preprocess", "pretrain"} <= valid.keys():
        mistakes += [
            f"params.yaml: {line}.pretrain.input.{key}: {shown(told)} is not allowed with "
            f"{line}.preprocess.{key} {shown(made)}: the encoder sees the stored volumes as they are"
            for key, told, made in other_grid(valid["pretrain"].input, valid["preprocess"])
        ]
    if {"cohort", "evaluate", "gate"} <= valid.keys():
        mistakes += _unanswered(line, valid["cohort"].phantom.anatomy, valid["evaluate"], valid["gate"])
    return mistakes


def _unanswered(line: str, anatomy: str, evaluate: EvaluateConfig, gate: GateConfig) -> list[str]:
    """What is to be judged by a figure that there will not be: told now, not after the training."""
    tasks = answered(anatomy, evaluate)
    if not tasks:
        return [
            f"params.yaml: {line}.evaluate.tasks: {shown(evaluate.tasks)} is not allowed with "
            f"{line}.cohort.phantom.anatomy {shown(anatomy)}: those scans have labels for "
            f"{', '.join(sorted(OF_ANATOMY[anatomy]))}"
        ]
    mistakes: list[str] = []
    for key in ("better_than_random", "floors", "champion"):
        for wanted in getattr(gate, key):
            mistakes += mistaken_figure(f"{line}.gate.{key}", wanted.task, wanted.figure, tasks)
    chosen = evaluate.selection
    if chosen is not None:
        classified = [task for task in tasks if task != "stability"]
        mistakes += mistaken_figure(f"{line}.evaluate.selection", chosen.task, chosen.figure, classified)
    return mistakes


def other_grid(seen: InputConfig, made: GridConfig) -> list[tuple[str, Any, Any]]:
    """Where what the encoder sees is not how volumes are stored: the key, what is seen, what is stored."""
    pairs = [(key, getattr(seen, key), getattr(made, key)) for key in ("spacing_mm", "orientation")]
    return [(key, told, stored) for key, told, stored in pairs if told != stored]
