"""Every block of a line's parameters, and the class that checks it: the one place that knows all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.bundle.config import BundleConfig
from components.cohort.config import CohortConfig
from components.curate.config import CurateConfig
from components.evaluate.config import EvaluateConfig, mistaken_tasks
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
            hint = did_you_mean(stage, list(BLOCKS))
            mistakes.append(f"params.yaml: {line}.{stage}: unknown key; allowed here: {', '.join(BLOCKS)}{hint}")
    valid: dict[str, Any] = {}
    for stage, config_class in BLOCKS.items():
        if stage not in block:
            mistakes.append(f"params.yaml: {line}.{stage}: missing")
            continue
        try:
            valid[stage] = parse(config_class, block[stage], f"{line}.{stage}")
        except ParamsError as error:
            mistakes.append(str(error))
    if {"preprocess", "pretrain", "evaluate"} <= valid.keys():
        mistakes += _contradictions(line, valid["preprocess"], valid["pretrain"].input, valid["evaluate"])
    return mistakes


def _contradictions(line: str, grid: PreprocessConfig, seen: InputConfig, evaluate: EvaluateConfig) -> list[str]:
    """What two valid blocks say of one thing, and differently."""
    return mistaken_tasks(line, seen.sees, evaluate) + [
        f"params.yaml: {line}.pretrain.input.{key}: {shown(told)} is not allowed with "
        f"{line}.preprocess.{key} {shown(made)}: the encoder sees the stored volumes as they are"
        for key, told, made in (
            ("spacing_mm", seen.spacing_mm, grid.spacing_mm),
            ("orientation", seen.orientation, grid.orientation),
        )
        if told != made
    ]
