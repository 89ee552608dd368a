"""Every block of a line's parameters, and the class that checks it: the one place that knows all stages."""

from __future__ import annotations

from pathlib import Path

from components.bundle.config import BundleConfig
from components.cohort.config import CohortConfig
from components.curate.config import CurateConfig
from components.evaluate.config import EvaluateConfig
from components.gate.config import GateConfig
from components.preprocess.config import PreprocessConfig
from components.pretrain.config import PretrainConfig
from components.screen.config import ScreenConfig
from components.settings import (
    LINES,
    PARAMS_FILE,
    REPRODUCIBLE,
    ParamsError,
    StageConfig,
    did_you_mean,
    load_stage,
    read_yaml,
    reproducible,
    shards,
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
    known = {"shards", "lines", *LINES}
    mistakes: list[str] = []
    for key in content:
        if key not in known:
            hint = did_you_mean(key, sorted(known))
            mistakes.append(f"params.yaml: {key}: unknown key; allowed here: {', '.join(sorted(known))}{hint}")
    try:
        shards(path)
    except ParamsError as error:
        mistakes.append(str(error))
    lines = content.get("lines")
    if not isinstance(lines, list) or sorted(map(str, lines)) != sorted(LINES):
        mistakes.append(f"params.yaml: lines: {lines!r} is not allowed: a list of {' and '.join(LINES)}, each once")
    for line in LINES:
        block = content.get(line)
        if not isinstance(block, dict):
            mistakes.append(f"params.yaml: {line}: missing; it needs one block per stage")
            continue
        try:
            reproducible(line, path)
        except ParamsError as error:
            mistakes.append(str(error))
        for stage in block:
            if stage not in (*BLOCKS, REPRODUCIBLE):
                hint = did_you_mean(stage, list(BLOCKS))
                mistakes.append(f"params.yaml: {line}.{stage}: unknown key; allowed here: {', '.join(BLOCKS)}{hint}")
        for stage, config_class in BLOCKS.items():
            try:
                load_stage(config_class, line, stage, path)
            except ParamsError as error:
                mistakes.append(str(error))
        if not mistakes:
            mistakes += _contradictions(line, path)
    if mistakes:
        raise ParamsError("\n".join(mistakes))


def _contradictions(line: str, path: Path) -> list[str]:
    """What two valid blocks say of one thing, and differently."""
    grid = load_stage(PreprocessConfig, line, "preprocess", path)
    seen = load_stage(PretrainConfig, line, "pretrain", path).input
    return [
        f"params.yaml: {line}.pretrain.input.{key}: {told!r} is not allowed with {line}.preprocess.{key} {made!r}: "
        "the encoder sees the stored volumes as they are"
        for key, told, made in (
            ("spacing_mm", list(seen.spacing_mm), list(grid.spacing_mm)),
            ("orientation", seen.orientation, grid.orientation),
        )
        if told != made
    ]
