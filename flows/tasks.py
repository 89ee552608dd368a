"""``ctfoundry task``: published protocols, as labelled sets and tasks to read and change in ``params.yaml``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from components.ct.keys import require_secret
from components.errors import UserError
from components.files import sha256_file, write_text
from components.settings import PARAMS_FILE, require_line
from flows.environment import STATE
from flows.lock import checkout_lock
from flows.parameters import yaml_editor

FOLDER = Path("components/tasks/recipes")


def names() -> list[str]:
    """The protocols there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_protocol(name: str) -> Any:
    """``title``, ``source``, ``base`` (the line that it goes with), ``layout`` of the data's folder, ``reader`` of its
    labels, ``set``, ``tasks`` and ``published`` of a protocol."""
    return yaml_editor().load((FOLDER / f"{name}.yaml").read_text())


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command ``ctfoundry task`` and what follows it."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="the protocols there are").set_defaults(run=_list)
    recipe = actions.add_parser(
        "recipe", help="a protocol's data, tasks and figures",
        description="Show a published protocol; with --data, write its set, its tasks and the published figures into "
        "params.yaml, where every value can be changed.",
    )  # fmt: skip
    recipe.add_argument("name", choices=names() if FOLDER.is_dir() else None)
    recipe.add_argument("--data", type=Path, metavar="FOLDER", help="where the data set lies, laid out as is shown")
    recipe.add_argument(
        "--line",
        dest="onto",
        metavar="NAME",
        help="whose parameters (default: of the line that the protocol goes with)",
    )
    recipe.add_argument(
        "--external", action="store_true", help="tested on only; no tasks: name the set in `external` of others"
    )
    recipe.set_defaults(run=_recipe)


def _list(_: argparse.Namespace) -> int:
    for name in names():
        print(f"{name:20} {load_protocol(name)['title']}")
    return 0


def _recipe(arguments: argparse.Namespace) -> int:
    protocol = load_protocol(arguments.name)
    line = arguments.onto or protocol["base"]
    if arguments.data is None:
        yaml_editor().dump(protocol, sys.stdout)
        return 0
    require_line(line)
    with checkout_lock(f"task recipe {arguments.name}"):
        write_protocol(line, arguments.name, protocol, arguments.data, arguments.external)
    tasks = [] if arguments.external else list(protocol["tasks"])
    asked = f", tasks {', '.join(tasks)}" if tasks else ""
    print(f"{PARAMS_FILE}: {line}.sets.{arguments.name}{asked}; then `make release LINE={line}`")
    return 0


def write_protocol(line: str, name: str, protocol: Any, folder: Path, external: bool) -> None:
    """Read the labels of the data in ``folder`` and write set, tasks and published figures; or nothing.

    Raises:
        UserError: the folder is not laid out as the protocol wants it, or ``params.yaml`` has the set or a task.
    """
    from components.sources.kinds import KINDS
    from components.sources.layouts import READ, SIDE
    from components.sources.tree import tree_digest
    from flows.sets import Folders, add_set

    if not folder.is_dir():
        raise UserError(f"--data {folder}: not a folder")
    of_set = protocol["set"]
    if KINDS[of_set["scans"]].site:
        require_secret(of_set["scans"])
    table = READ[protocol["reader"]](folder)
    path = STATE / "labels" / f"{line}_{name}.csv"  # made from the data set's own files, which stay as they are
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
    key, _, column = of_set["key"].partition("=")
    block: dict[str, Any] = {
        "scans": {"source": of_set["scans"], "source_digest": tree_digest(folder), **of_set.get("options", {})},
        "labels": {"table": path.name, "digest": sha256_file(path), "key": key, "column": column},
    }
    if "masks" in of_set:
        block["masks"] = _masks(folder, of_set["masks"])
    block["split"] = {"column": SIDE} if of_set["split"] else {"seed": 1, "test": 0.5}
    block["role"] = "external" if external else "internal"
    tasks = {} if external else {task: dict(of) for task, of in protocol["tasks"].items()}
    published = [] if external else [dict(of) for of in protocol["published"]]
    masks = folder if "masks" in of_set else None
    add_set(line, name, block, tasks, Folders(path, f"{of_set['scans']}:{folder}", masks), published)


def _masks(folder: Path, wanted: Any) -> dict[str, Any]:
    from flows.masks import TABLE, digest_now, names_in

    named = dict(wanted["names"]) if wanted["names"] is not None else names_in(folder / TABLE)
    return {"digest": digest_now("", "", folder, wanted["match"]), "match": wanted["match"], "names": named}
