"""``ctfoundry task``: published protocols, as labelled sets and tasks to read and change in ``params.yaml``."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.ct.keys import require_secret
from components.errors import UserError
from components.files import STATE, write_text
from components.settings import PARAMS_FILE, require_line
from flows.lock import checkout_lock
from flows.parameters import yaml_editor

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path("components/tasks/recipes")
IDC = "idc"  # as `--data`: the Imaging Data Commons, whose index is on this machine


def names() -> list[str]:
    """The protocols there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_protocol(name: str) -> Any:
    """``title``, ``source``, ``base`` (the line that it goes with), ``layout`` of the data's folder, ``reader`` of its
    labels (null of scans of the Imaging Data Commons, whose index is the table), ``set``, ``tasks`` and ``published``
    of a protocol."""
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
    recipe.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help=f"where the data set lies, laid out as is shown; `{IDC}` where the protocol says so",
    )
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
        if arguments.external or arguments.onto:
            raise UserError("--line and --external are not allowed without --data: a protocol is shown as it is")
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

    Args:
        line: whose parameters.
        name: of the protocol, and of the set.
        protocol: as :func:`load_protocol` reads it.
        folder: of the data; ``idc`` for scans of the Imaging Data Commons.
        external: whether the set is tested on only, by tasks that name it.

    Raises:
        UserError: the folder is not laid out as the protocol wants it, or ``params.yaml`` has the set or a task.
    """
    from components.sources.layouts import READ, SIDE
    from components.sources.tree import tree_digest
    from flows.sets import Folders, add_set, check_free

    of_set = protocol["set"]
    tasks = {} if external else {task: dict(of) for task, of in protocol["tasks"].items()}
    check_free(line, name, tasks, "give that one another name first")
    of_index = of_set["scans"] == IDC
    _check_place(name, of_set["scans"], folder)
    if of_index:
        scans = {"source": IDC, **of_set["options"]}
        table = _index_table(line, name, scans)
    else:
        table = READ[protocol["reader"]](folder)
        scans = {"source": of_set["scans"], "source_digest": tree_digest(folder), **of_set.get("options", {})}
    path = STATE / "labels" / f"{line}_{name}.csv"  # made from the data set's own files, which stay as they are
    text = table.to_csv(index=False, lineterminator="\n")
    digest = hashlib.sha256(text.encode()).hexdigest()
    key, _, column = of_set["key"].partition("=")
    block: dict[str, Any] = {
        "scans": scans,
        "labels": {
            "table": path.name,
            "digest": digest,
            "key": key,
            "column": column,
        },
    }
    if "masks" in of_set:
        block["masks"] = _masks(line, name, folder, of_set["masks"])
    split = of_set["split"]
    block["split"] = {"column": SIDE} if split == SIDE else dict(split or {"seed": 1, "test": 0.5})
    block["role"] = "external" if external else of_set.get("role", "internal")
    published = [] if external else [dict(of) for of in protocol["published"]]
    masks = folder if "masks" in of_set and not of_index else None
    place = IDC if of_index else f"{of_set['scans']}:{folder}"
    with _written(path, text):
        add_set(line, name, block, tasks, Folders(path, place, masks), published)


@contextmanager
def _written(path: Path, text: str) -> Iterator[None]:
    """With a file's new text in place; what was there before comes back where the block fails."""
    before = path.read_bytes() if path.is_file() else None
    write_text(path, text)
    try:
        yield
    except BaseException:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
        raise


def _check_place(name: str, source: str, folder: Path) -> None:
    """Raise UserError where the scans are not where ``--data`` says."""
    from components.sources.kinds import KINDS

    if source == IDC and str(folder) != IDC:
        raise UserError(
            f"--data {folder} is not allowed: the scans of {name} are those of the Imaging Data Commons; --data {IDC}"
        )
    if source != IDC and not folder.is_dir():
        raise UserError(f"--data {folder}: not a folder")
    if KINDS[source].site:
        require_secret(source)


def _index_table(line: str, name: str, scans: dict[str, Any]) -> pd.DataFrame:
    """What the index of the Imaging Data Commons lists of a set: PatientID, StudyInstanceUID and SeriesInstanceUID,
    sorted by the first and the last."""
    from components.settings import block_of
    from components.sources.idc_index import select
    from components.sources.sets import source_beside

    columns = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID"]
    source = source_beside(line, name, scans, block_of(line, "cohort"))
    return select(source.idc).series[columns].sort_values([columns[0], columns[-1]])


def _masks(line: str, name: str, folder: Path, wanted: Any) -> dict[str, Any]:
    from flows.masks import TABLE, digest_now, names_in

    if "analysis_results" in wanted:
        return dict(wanted)
    named = dict(wanted["names"]) if wanted["names"] is not None else names_in(folder / TABLE)
    return {"digest": digest_now(line, name, folder, wanted["match"]), "match": wanted["match"], "names": named}
