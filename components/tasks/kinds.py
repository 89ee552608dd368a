"""The kinds of task, and the tasks of a line. A new kind is a module with a ``KIND``, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from components.settings import PARAMS_FILE, ParamsError, StageConfig, did_you_mean, parse, read_yaml, shown
from components.sources.sets import LabelledSet
from components.tasks import classify, cluster, locate, regress, retrieve, saliency, segment, stability, survive
from components.tasks.config import LINE, STRUCTURE, TASK_NAME, TASKS
from components.tasks.interface import Kind, Measure

KINDS: dict[str, Kind] = {
    str(get_args(kind.config.model_fields["kind"].annotation)[0]): kind
    for kind in (
        classify.KIND, stability.KIND, locate.KIND, cluster.KIND, regress.KIND, survive.KIND, saliency.KIND,
        retrieve.KIND, segment.KIND,
    )
}  # fmt: skip
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
        if kind_of(found[name]).columns is not None:
            mistakes += _of_a_set(f"{line}.{TASKS}.{name}", found[name], sets)
    if not mistakes:
        mistakes = [
            f"params.yaml: {line}.{TASKS}.{name}.{key}: {told}"
            for name, task in found.items()
            for key, told in kind_of(task).beside(task, found).items()
        ]
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


def _of_a_set(where: str, task: Any, sets: Mapping[str, LabelledSet]) -> list[str]:
    """What is wrong in the set of a task and the columns of its table that the task names."""
    kind = kind_of(task)
    assert kind.columns is not None
    columns = kind.columns(task)
    if task.set in kind.built_in:
        labels = list(kind.built_in[task.set])
        told = f"of set {task.set}, {', '.join(labels)}"
        return _external(where, task, sets) + [
            f"params.yaml: {where}.{key}: {shown(value)} is not allowed: {told}{did_you_mean(value, labels)}"
            for key, value in columns.items()
            if value not in labels
        ]
    if task.set not in sets:
        known = [*sets, *kind.built_in]
        allowed = f"one of {', '.join(known)}{did_you_mean(task.set, known)}" if known else "there is no labelled set"
        return [f"params.yaml: {where}.set: {shown(task.set)} is not allowed: {allowed}"]
    config = sets[task.set].config
    mistakes = []
    if _wants_masks(task) and config.masks is None:
        reserved = "" if kind.masked else f"; label {STRUCTURE!r} asks for theirs, not for a column of that name"
        mistakes.append(f"params.yaml: {where}.set: {shown(task.set)} has no masks: its block wants `masks`{reserved}")
    if kind.trained and config.role == "external":
        mistakes.append(f"params.yaml: {where}.set: {shown(task.set)} is external: nothing is trained on it")
    mistakes += _external(where, task, sets)
    for key, value in columns.items():
        if value == config.labels.column:
            mistakes.append(f"params.yaml: {where}.{key}: {shown(value)} is no label: it names the scans")
    return mistakes


def _wants_masks(task: Any) -> bool:
    """Of a labelled set's scans only masks tell points."""
    return kind_of(task).masked or kind_of(task).points(task)


def _external(where: str, task: Any, sets: Mapping[str, LabelledSet]) -> list[str]:
    """External sets that a task cannot be tested on: of the line's own annotations those that have none."""
    known = [name for name, of in sets.items() if of.config.role == "external" and (task.set != LINE or of.planned)]
    masked = task.set != LINE and _wants_masks(task)
    if masked:
        known = [name for name in known if sets[name].config.masks is not None]
    if getattr(task, "external", ()) and task.set not in (LINE, *sets):
        return [f"params.yaml: {where}.external: not allowed with set {task.set}: of a labelled set or the line's only"]
    kind = "an external set" + (" of phantoms" if task.set == LINE else " with masks" if masked else "")
    return [
        f"params.yaml: {where}.external: {shown(site)} is not allowed: "
        f"{kind}, {', '.join(known) or 'of which there is none'}{did_you_mean(site, known)}"
        for site in getattr(task, "external", ())
        if site not in known
    ]


def of_points(line: str, sees: str, tasks: Mapping[str, Any]) -> list[str]:
    """A line of text for each task of points that is asked of an encoder that sees whole scans, and for each that
    trains on whole scans where the encoder sees crops."""
    mistakes = []
    for name, task in tasks.items():
        kind, where = kind_of(task), f"params.yaml: {line}.{TASKS}.{name}"
        if sees == "scan" and kind.points(task):
            mistakes.append(
                f"{where}: not allowed with {line}.pretrain.input.sees 'scan': its cases are points, and such an "
                "encoder has one vector for a whole scan"
            )
        if sees == "crop" and kind.trains(task) and not kind.points(task):
            mistakes.append(
                f"{where}: fine_tune and attentive are not allowed with {line}.pretrain.input.sees 'crop': its cases "
                "are whole scans, of which such an encoder sees many crops; set both to null"
            )
    return mistakes


def listed_tasks(content: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What :data:`INDEX` of the file's content must be: the tasks of all lines, by the names of their stages."""
    blocks = {line: content.get(line) for line in content.get("lines") or ()}
    return {
        f"{line}-{name}": {"line": str(line), "task": str(name)}
        for line, block in blocks.items()
        if isinstance(block, dict) and isinstance(block.get(TASKS), dict)
        for name in block[TASKS]
    }


def mistaken_index(path: Path = PARAMS_FILE) -> list[str]:
    """A line of text where :data:`INDEX` of the file lists other tasks than its lines have."""
    content = read_yaml(path)
    found, wanted = content.get(INDEX), listed_tasks(content)
    if found == wanted:
        return []
    listed = found if isinstance(found, dict) else {}
    told = [f"lacks {name}" for name in wanted if name not in listed]
    told += [f"{shown(name)} is no task of a line" for name in listed if name not in wanted]
    told += [f"{name} is {shown(listed[name])}" for name, of in wanted.items() if name in listed and listed[name] != of]
    return [f"params.yaml: {INDEX}: {'; '.join(told)}; `ctfoundry params --write` puts it right"]
