"""The kinds of task that there are, and the tasks of a line. A new kind is a module with a ``KIND``, and a line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from components.settings import PARAMS_FILE, ParamsError, StageConfig, did_you_mean, parse, read_yaml, shown
from components.sources.lidc import ROOT as LIDC_ROOT
from components.sources.sets import LabelledSet
from components.tasks import classify, cluster, locate, regress, stability, survive
from components.tasks.classify import ANNOTATED, POINTS, RATINGS_LABEL, ClassifyConfig
from components.tasks.cluster import ClusterConfig
from components.tasks.config import LINE, TASK_NAME, TASKS
from components.tasks.interface import Kind, Measure
from components.tasks.locate import LocateConfig
from components.tasks.regress import RegressConfig
from components.tasks.survive import SurviveConfig

KINDS: dict[str, Kind] = {
    str(get_args(kind.config.model_fields["kind"].annotation)[0]): kind
    for kind in (classify.KIND, stability.KIND, locate.KIND, cluster.KIND, regress.KIND, survive.KIND)
}
INDEX = "tasks"  # of the file: which tasks of which lines there are, for dvc.yaml


def kind_of(task: StageConfig) -> Kind:
    """The kind of a task, by its block."""
    return next(kind for kind in KINDS.values() if type(task) is kind.config)


def measures() -> dict[str, Measure]:
    """Every figure that any kind measures."""
    return {name: measure for kind in KINDS.values() for name, measure in kind.figures.items()}


def tasks_of(line: str, sets: Mapping[str, LabelledSet], path: Path = PARAMS_FILE) -> dict[str, Any]:
    """The tasks of a line, each an instance of its kind's class, in their order.

    Args:
        line: model line.
        sets: its labelled sets.
        path: of the file.

    Raises:
        ParamsError: one line per mistake.
    """
    of_line = read_yaml(path).get(line)
    blocks = of_line.get(TASKS) if isinstance(of_line, dict) else None
    if not isinstance(blocks, dict) or not blocks:
        raise ParamsError(
            f"params.yaml: {line}.{TASKS}: {shown(blocks)} is not allowed: a block per task, at least one"
        )
    found: dict[str, Any] = {}
    mistakes: list[str] = []
    for name, values in blocks.items():
        try:
            found[name] = _parsed(line, name, values)
        except ParamsError as error:
            mistakes.append(str(error))
            continue
        if isinstance(found[name], ClassifyConfig):
            mistakes += _of_a_set(f"{line}.{TASKS}.{name}", found[name], sets)
        elif isinstance(found[name], RegressConfig | SurviveConfig):
            mistakes += _of_own(f"{line}.{TASKS}.{name}", found[name], sets, [])
    if mistakes:
        raise ParamsError("\n".join(mistakes))
    return found


def _parsed(line: str, name: Any, values: Any) -> StageConfig:
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise ParamsError(
            f"params.yaml: {line}.{TASKS}: {shown(name)} is not allowed: a-z, 0-9 and _, a letter first, at most 40"
        )
    where = f"{line}.{TASKS}.{name}"
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        told = f"one of {', '.join(KINDS)}{did_you_mean(kind, list(KINDS))}"
        raise ParamsError(f"params.yaml: {where}.kind: {shown(kind)} is not allowed: {told}")
    return parse(KINDS[kind].config, values, where)


def _of_a_set(where: str, task: ClassifyConfig, sets: Mapping[str, LabelledSet]) -> list[str]:
    """What is wrong in the set and the label of a task."""
    built_in = {LINE: list(ANNOTATED), LIDC_ROOT: [RATINGS_LABEL]}
    if task.set in built_in:
        labels = built_in[task.set]
        if task.label in labels:
            return []
        told = f"of set {task.set}, {', '.join(labels)}{did_you_mean(task.label, labels)}"
        return [f"params.yaml: {where}.label: {shown(task.label)} is not allowed: {told}"]
    return _of_own(where, task, sets, list(built_in))


def _of_own(
    where: str,
    task: ClassifyConfig | RegressConfig | SurviveConfig,
    sets: Mapping[str, LabelledSet],
    built_in: Sequence[str],
) -> list[str]:
    """What is wrong in the labelled set of a task and the columns that it names."""
    if task.set not in sets:
        known = [*sets, *built_in]
        allowed = f"one of {', '.join(known)}{did_you_mean(task.set, known)}" if known else "there is no labelled set"
        return [f"params.yaml: {where}.set: {shown(task.set)} is not allowed: {allowed}"]
    config = sets[task.set].config
    mistakes = []
    if config.role == "external":
        mistakes.append(f"params.yaml: {where}.set: {shown(task.set)} is external: nothing is trained on it")
    for name in ("label", "time", "event"):
        if getattr(task, name, None) == config.labels.column:
            told = f"{shown(config.labels.column)} is no label: it names the scans"
            mistakes.append(f"params.yaml: {where}.{name}: {told}")
    return mistakes


def of_points(line: str, sees: str, tasks: Mapping[str, Any]) -> list[str]:
    """A line of text for each task of points that is asked of an encoder that sees whole scans."""
    return [
        f"params.yaml: {line}.{TASKS}.{name}: not allowed with {line}.pretrain.input.sees 'scan': its cases are points, "
        "and such an encoder has one vector for a whole scan"
        for name, task in tasks.items()
        if sees == "scan" and _asks_for_points(task)
    ]


def _asks_for_points(task: Any) -> bool:
    if isinstance(task, ClassifyConfig):
        return task.set in (LINE, LIDC_ROOT) and task.label in POINTS
    return isinstance(task, LocateConfig | ClusterConfig)


def index_of(path: Path = PARAMS_FILE) -> list[dict[str, str]]:
    """What ``tasks`` of the file must be: the tasks of all lines, in their order."""
    content = read_yaml(path)
    blocks = {line: content.get(line) for line in content.get("lines") or ()}
    return [
        {"line": line, "task": str(name)}
        for line, block in blocks.items()
        if isinstance(block, dict) and isinstance(block.get(TASKS), dict)
        for name in block[TASKS]
    ]


def mistaken_index(path: Path = PARAMS_FILE) -> list[str]:
    """A line of text where ``tasks`` of the file is not :func:`index_of` it, up to order."""
    found, wanted = read_yaml(path).get(INDEX), index_of(path)
    listed = found if isinstance(found, list) else []
    lacking = [entry for entry in wanted if entry not in listed]
    surplus = [entry for entry in listed if entry not in wanted]
    if not lacking and not surplus and len(listed) == len(wanted):
        return []
    told = [f"lacks {shown(entry)}" for entry in lacking] + [
        f"has {shown(entry)}, which is no task" for entry in surplus
    ]
    return [
        f"params.yaml: {INDEX}: {'; '.join(told) or 'a task is listed twice'}: `ctfoundry params --write` puts it right"
    ]
