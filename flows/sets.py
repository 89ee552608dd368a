"""``ctfoundry set``: labelled sets of the user's own, as blocks of ``params.yaml`` that can be changed there."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.ct.keys import require_secret
from components.errors import UserError
from components.files import sha256_file, write_text
from components.settings import PARAMS_FILE, block_of, lines, read_yaml
from components.sources.kinds import KINDS, spelled
from components.sources.masks import ROOT
from components.sources.roots import place_of, record_root, root_of
from components.sources.sets import KEYS, MASKS, NO_VALUE, SETS, LabelledSet, require_column, set_of, sets_of
from components.sources.tree import tree_digest
from components.tasks.config import STRUCTURE, TASK_NAME, TASKS, check_reserved
from flows import masks
from flows.lines import add_line
from flows.lock import checkout_lock
from flows.parameters import check_text, in_a_line, write_checked, written, yaml_editor
from flows.sources import check_tree


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command ``ctfoundry set`` and what follows it."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser(
        "add", help="scans of your own and a table of labels, to evaluate every release on",
        description="Write a labelled set, and with --label a task for each column, into params.yaml. Its patients are "
        "never pretrained on. Folders are remembered on this machine; params.yaml gets the digests of what is in them.",
    )  # fmt: skip
    add.add_argument("name", help="of the set: a-z, 0-9 and _, a letter first")
    add_line(add)
    add.add_argument(
        "--scans", required=True, metavar="SOURCE",
        help=f"where they are: {spelled('<folder>')}; or `line`, scans of the line's own source",
    )  # fmt: skip
    add.add_argument("--labels", required=True, type=Path, metavar="FILE", help="the table, .csv or .parquet")
    add.add_argument(
        "--key", required=True, metavar="KIND=COLUMN",
        help=f"what names a scan, {', '.join(KEYS)}, and the column that holds it, as in patient=PatientID",
    )  # fmt: skip
    add.add_argument(
        "--label", action="append", default=[], metavar="[TASK=]COLUMN",
        help="a task that asks for a column (again for more); it is named as the column, if nothing else is said",
    )  # fmt: skip
    masks.add_options(add)
    add.add_argument("--patient", metavar="PATTERN", help="of nifti: how a path names its patient, as '{patient}/**'")
    side = add.add_mutually_exclusive_group()
    side.add_argument("--split", metavar="COLUMN", help="of the table, that holds train or test (default: by patient)")
    side.add_argument("--external", action="store_true", help="another site's: tested on only")
    add.set_defaults(run=_add)
    pin = actions.add_parser("pin", help="pin a set's table, scans and masks as they are now, after they changed")
    pin.add_argument("name")
    add_line(pin)
    pin.set_defaults(run=_pin)


def _add(arguments: argparse.Namespace) -> int:
    with checkout_lock(f"set add {arguments.name}"):
        tasks = {task: _classify(arguments.name, column) for task, column in _tasks(arguments.label).items()}
        folders = Folders(arguments.labels, arguments.scans, arguments.masks)
        add_set(arguments.line, arguments.name, _block(arguments), tasks, folders)
    asked = f", tasks {', '.join(tasks)}" if tasks else ""
    print(f"{PARAMS_FILE}: {arguments.line}.{SETS}.{arguments.name}{asked}; then `make release LINE={arguments.line}`")
    return 0


def _tasks(labels: list[str]) -> dict[str, str]:
    """Task to column, of ``[TASK=]COLUMN``: ``Malignant (0/1)`` alone is the task ``malignant_0_1``."""
    tasks: dict[str, str] = {}
    for text in labels:
        name, given, column = text.partition("=")
        if not given:
            name, column = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:40], text
        if not TASK_NAME.fullmatch(name) or name in tasks:
            told = f"{name!r} is taken by another" if name in tasks else f"{name!r} names no task"
            raise UserError(
                f"--label {text!r} is not allowed: {told}; write <task>=<column>, as in second_look={column}"
            )
        tasks[name] = column
    return tasks


def _classify(name: str, column: str) -> dict[str, Any]:
    return {"kind": "classify", "set": name, "label": column, "serve": True, "specificity": 0.9, "few_shot": None}


def _block(arguments: argparse.Namespace) -> dict[str, Any]:
    """The set as it is written, before anything is."""
    kind, _, column = arguments.key.partition("=")
    if kind not in KEYS or not column:
        raise UserError(f"--key {arguments.key!r} is not allowed: <kind>=<column>, the kind one of {', '.join(KEYS)}")
    path = arguments.labels
    if not path.is_file() or path.suffix not in (".csv", ".parquet"):
        raise UserError(f"--labels {path}: {'not a .csv or .parquet file' if path.is_file() else 'no such file'}")
    of_masks = masks.block_of(arguments)
    return {
        "scans": _scans(arguments.scans, arguments.patient),
        "labels": {"table": path.name, "digest": sha256_file(path), "key": kind, "column": column},
        **({} if of_masks is None else {MASKS: of_masks}),
        "split": {"column": arguments.split} if arguments.split else {"seed": 1, "test": 0.5},
        "role": "external" if arguments.external else "internal",
    }


def _check_labels(of_set: LabelledSet, path: Path, columns: Iterable[str]) -> None:
    """Raise UserError where the table is none of a labelled set, or lacks a column of labels, or has one that says the
    same of all."""
    table, _ = of_set.read(path)
    for column in columns:
        if column == STRUCTURE:
            check_reserved(table.columns, f"{path.name}: label")
            continue
        require_column(table, column, path.name)
        values = table[column].str.strip()
        values = values[~values.str.lower().isin(NO_VALUE)]
        if values.nunique() < 2:
            told = "one value only" if len(values) else "no value"
            raise UserError(
                f"{path.name}: column {column!r} has {told} in its {len(table)} rows: there is nothing to tell apart"
            )


def _scans(source: str, patient: str | None) -> dict[str, Any] | None:
    if patient is not None and not source.startswith("nifti:"):
        raise UserError("--patient is not allowed with these --scans: only with nifti:<folder>")
    if source == "line":
        return None
    kind, _, folder = source.partition(":")
    if kind not in KINDS or kind == "phantom" or KINDS[kind].folder != (folder != ""):
        raise UserError(
            f"--scans {source!r} is not allowed: {spelled('<folder>')}, or line; of phantoms, write the block"
        )
    if KINDS[kind].site:
        require_secret(kind)
    if not folder:
        return {"source": kind}
    check_tree(kind, Path(folder))
    found: dict[str, Any] = {"source": kind, "source_digest": tree_digest(Path(folder))}
    return found if patient is None else found | {"nifti": {"patient": patient}}


@dataclass(frozen=True)
class Folders:
    """What lies where on this machine: a set's table, its scans as ``--scans`` has them, the folder of its masks."""

    table: Path
    scans: str
    masks: Path | None


def check_free(line: str, name: str, tasks: Iterable[str], otherwise: str) -> None:
    """Raise UserError where the line has such a set, or one of the tasks; ``otherwise`` says what to do then."""
    content = read_yaml()
    present = content[line] if isinstance(content.get(line), dict) else {}
    if name in (present.get(SETS) or {}):
        raise UserError(f"set {name!r} is not allowed: {line}.{SETS} has it; `ctfoundry set pin` renews its digests")
    taken = [task for task in tasks if task in (present.get(TASKS) or {})]
    if taken:
        raise UserError(f"task {taken[0]!r} is not allowed: {line}.{TASKS} has it; {otherwise}")


def add_set(
    line: str,
    name: str,
    block: dict[str, Any],
    tasks: dict[str, dict[str, Any]],
    folders: Folders,
    published: Sequence[dict[str, Any]] = (),
) -> None:
    """Write the set's block, its tasks and what others have published of them into ``params.yaml``, and remember its
    folders.

    Raises:
        UserError: a set or task of this name is there, or one of the values is not allowed; nothing is then written.
    """
    check_free(line, name, tasks, "write --label <another>=<column>")
    columns = [task["label"] for task in tasks.values() if "label" in task]
    _check_labels(set_of(line, name, block, block_of(line, "cohort")), folders.table, columns)
    editor = yaml_editor()
    content = editor.load(PARAMS_FILE.read_text())
    for of_line in lines():
        _make_room(content[of_line])
    content[line][SETS][name] = {key: in_a_line(value) for key, value in block.items()}
    for task, of in tasks.items():
        content[line][TASKS][task] = in_a_line(of)
    for key in (SETS, TASKS):
        content[line][key].fa.set_block_style()
    _publish(content[line], published)
    text = written(editor, content)
    check_text(text)
    _remember(line, name, folders)
    write_text(PARAMS_FILE, text)


def _publish(block: Any, published: Sequence[dict[str, Any]]) -> None:
    """Put figures of others behind those that are there, a line each."""
    from ruamel.yaml.comments import CommentedSeq

    if not published:
        return
    figures = CommentedSeq([*block["published"]["figures"], *map(in_a_line, published)])
    figures.fa.set_block_style()
    block["published"]["figures"] = figures
    block["published"].fa.set_block_style()


def _make_room(block: Any) -> None:
    """Give a line's block ``sets`` and ``tasks``, which files from before there were any lack."""
    from ruamel.yaml.comments import CommentedMap

    for key, before in ((SETS, "cohort"), (TASKS, "evaluate")):
        if block.get(key) is not None:
            continue
        empty = CommentedMap()
        empty.fa.set_flow_style()
        if key in block:
            block[key] = empty
        else:
            block.insert(list(block).index(before) + 1 if before in block else len(block), key, empty)


def _remember(line: str, name: str, folders: Folders) -> None:
    record_root(f"{name}_labels", folders.table.parent, line)
    if folders.masks is not None:
        record_root(ROOT, folders.masks, place_of(line, name))
    kind, _, folder = folders.scans.partition(":")
    if folder:
        record_root(kind, Path(folder), place_of(line, name))


def _pin(arguments: argparse.Namespace) -> int:
    line, name = arguments.line, arguments.name
    sets = sets_of(line)
    if name not in sets:
        raise UserError(f"set {name!r} is not allowed: {', '.join(sets) or f'{line}.{SETS} has none'}")
    of_set = sets[name]
    if of_set.planned:
        raise UserError(f"set {name!r} is not allowed: its scans are phantoms, and nothing of them is pinned")
    with checkout_lock(f"set pin {name}"):
        path = of_set.table_path
        of_set.read(path)
        editor = yaml_editor()
        content = editor.load(PARAMS_FILE.read_text())
        block = content[line][SETS][name]
        block["labels"]["digest"] = sha256_file(path)
        if of_set.config.masks is not None and of_set.config.masks.digest is not None:
            folder = root_of(ROOT, of_set.place)
            block[MASKS]["digest"] = masks.digest_now(line, name, folder, of_set.config.masks.match)
        if of_set.source is not None and KINDS[of_set.source.source].folder:
            folder = root_of(of_set.source.source, of_set.place)
            check_tree(of_set.source.source, folder)
            block["scans"]["source_digest"] = tree_digest(folder)
        write_checked(editor, content)
    print(f"{PARAMS_FILE}: {line}.{SETS}.{name} is pinned as it is now")
    return 0
