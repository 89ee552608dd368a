"""The model lines: option ``--line`` of every command, and ``ctfoundry line``, which lists them and writes new ones."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from components import yaml12
from components.errors import UserError
from components.files import write_text
from components.settings import LINE_NAME, PARAMS_FILE, RESERVED, block_of, lines, read_yaml, require_line
from flows.lock import checkout_lock
from flows.parameters import check_text, written, yaml_editor
from flows.recipes import follow_recipe, load_recipe, names

DVC_FILE = Path("dvc.yaml")
METRICS = "data/{line}/evaluate/primary.json"


def add_line(parser: argparse.ArgumentParser, text: str = "model line") -> None:
    """Add ``--line``; :func:`chosen_line` checks it when the command runs, for ``--help`` needs no params.yaml."""
    parser.add_argument("--line", metavar="NAME", help=f"{text} (default: the first of `lines` in params.yaml)")


def chosen_line(wanted: str | None) -> str:
    """The line that a command is about. Raises ParamsError where there is none of this name."""
    return lines()[0] if wanted is None else require_line(wanted)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command ``ctfoundry line`` and what follows it."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    known = actions.add_parser("list", help="the lines of params.yaml, and what each sees and learns")
    known.set_defaults(run=_list)
    new = actions.add_parser(
        "new", help="write a new line: a block of params.yaml, its metrics, its champion",
        description="Write a new line. Its block of params.yaml is a copy of another line's, or of the one that a "
        "published recipe goes with, changed as the recipe says. Then change there what is to differ: the source, the "
        "steps, the tasks, the words of the model card.",
    )  # fmt: skip
    new.add_argument("name", help="a-z, 0-9 and _, a letter first, at most 40 characters; not yet in params.yaml")
    new.add_argument(
        "--from", dest="origin", required=True, metavar="LINE|RECIPE",
        help=f"a line of params.yaml, or a published recipe: {', '.join(names())}",
    )  # fmt: skip
    new.add_argument(
        "--as-coded", action="store_true", help="a recipe as its authors' code does it, where it differs from the text"
    )
    new.set_defaults(run=_new)


def _list(_: argparse.Namespace) -> int:
    from rich.table import Table

    from components.progress import wide_console
    from components.registry import check_file

    check_file()
    table = Table("line", "source", "sees", "encoder", "objective", "tasks", "release")
    content = read_yaml()
    for line in lines():
        block, manifest = content[line], Path("releases") / line / "manifest.json"
        pretrain = block["pretrain"]
        table.add_row(
            line, block["cohort"]["source"], pretrain["input"]["sees"], pretrain["encoder"]["kind"],
            pretrain["objective"]["kind"], ", ".join(block["tasks"]), "made" if manifest.is_file() else "",
        )  # fmt: skip
    wide_console().print(table)
    return 0


def _new(arguments: argparse.Namespace) -> int:
    with checkout_lock(f"line new {arguments.name}"):
        new_line(arguments.name, arguments.origin, arguments.as_coded)
    for unknown in unknown_roots(arguments.name):
        print(unknown)
    print(
        f"{PARAMS_FILE}: {arguments.name} follows {arguments.origin}; change its block, commit it with {DVC_FILE} and "
        f"infra/champions/{arguments.name}.json, then `make release LINE={arguments.name}`"
    )
    return 0


def new_line(name: str, origin: str, as_coded: bool = False) -> None:
    """Write the line ``name``: its block and its place in ``lines``, its metrics in dvc.yaml, its champion, none. What
    this machine knows of the origin's folders, it knows of the line's, too: they are the same.

    Args:
        name: of the line.
        origin: a line, or a recipe.
        as_coded: of a recipe, as its authors' code differs from their text.

    Raises:
        UserError: a name that is not allowed or taken, an origin that is neither, or one with mistakes. Nothing is
            then written.
    """
    from components.gate.champion import CHAMPIONS
    from components.registry import check_file
    from components.sources.roots import copy_roots

    present = read_yaml()
    if not LINE_NAME.fullmatch(name) or name in RESERVED or yaml12.load(name) != name:
        raise UserError(
            f"line {name!r} is not allowed: a-z, 0-9 and _, a letter first, at most 40 characters; not "
            f"{', '.join(RESERVED)}, nor what YAML reads as something else than text, such as true"
        )
    if name in present:
        raise UserError(f"line {name!r} is not allowed: {PARAMS_FILE} has one of this name")
    champion = CHAMPIONS / f"{name}.json"
    if champion.is_file() and '"champion": null' not in champion.read_text():
        raise UserError(f"line {name!r} is not allowed: {champion} holds a champion; remove it, or take another name")
    recipe = load_recipe(origin, as_coded) if origin in names() and origin not in lines() else None
    if recipe is None and as_coded:
        raise UserError(f"--as-coded is not allowed with --from {origin}: only with a recipe, {', '.join(names())}")
    base = origin if recipe is None else str(recipe["base"])
    if base not in lines():
        raise UserError(f"--from {origin!r} is not allowed: {_allowed(recipe, base)}")
    check_file()  # of the origin nothing but what is right is copied
    before = PARAMS_FILE.read_text().rstrip() + "\n"
    block = re.search(rf"^{base}:[ \t]*(?:#.*)?\n((?:[ \t].*\n|\n|#.*\n)*)", before, re.MULTILINE)
    if block is None:
        raise UserError(f"{PARAMS_FILE}: {base}: to be copied it must be a block of indented lines of its own")
    text = _with(name, f"{before}\n{name}:\n{block[1].rstrip()}\n", recipe)
    check_text(text)
    graph = _with_metrics(name, DVC_FILE.read_text())
    files = {DVC_FILE: graph, PARAMS_FILE: text}  # in this order: the last one makes the line
    if not champion.is_file():
        files = {champion: '{\n  "champion": null\n}\n', **files}
    _write_all(files)
    copy_roots(base, name)


def unknown_roots(line: str) -> list[str]:
    """A line of text for each folder that the line's block wants and this machine does not know: of its source, of the
    scans, labels and masks of its sets."""
    from components.pretrain.start_config import ROOT as WEIGHTS
    from components.sources.kinds import KINDS
    from components.sources.masks import ROOT
    from components.sources.roots import place_of, root_of
    from components.sources.sets import sets_of, sources_of

    wanted: list[tuple[str, str]] = [
        (of.source, place_of(line, name)) for name, of in sources_of(line).items() if KINDS[of.source].folder
    ]
    wanted += [(f"{name}_labels", line) for name, of_set in sets_of(line).items() if not of_set.planned]
    wanted += [(ROOT, of.place) for of in sets_of(line).values() if of.config.masks and of.config.masks.digest]
    start = block_of(line, "pretrain").get("start") or {}
    wanted += [(WEIGHTS, line)] if start.get("kind") in ("file", "release") else []
    told = []
    for root, place in wanted:
        try:
            root_of(root, place)
        except UserError as error:
            told.append(str(error))
    return told


def _write_all(files: dict[Path, str]) -> None:
    """All of them, or none: on an error, such as a full disk, those already written are put back."""
    before = {path: path.read_text() if path.is_file() else None for path in files}
    done: list[Path] = []
    try:
        for path, text in files.items():
            write_text(path, text)
            done.append(path)
    except BaseException:
        for path in done:
            earlier = before[path]
            if earlier is None:
                path.unlink()
            else:
                write_text(path, earlier)
        raise


def _allowed(recipe: Any, base: str) -> str:
    if recipe is not None:
        return f"the recipe goes with line {base}, which {PARAMS_FILE} no longer has"
    return f"one of the lines {', '.join(lines())} or of the recipes {', '.join(names())}"


def _with(name: str, text: str, recipe: Any) -> str:
    """params.yaml with its new block named, listed and changed as the recipe says; comments and layout stay."""
    editor = yaml_editor()
    content = editor.load(text)
    content["lines"].append(name)
    content[name]["bundle"].update({"name": f"ctfoundry-{name}", "title": f"ctfoundry {name} encoder"})
    if recipe is not None:
        follow_recipe(content[name], recipe)
    return written(editor, content)


def _with_metrics(name: str, graph: str) -> str:
    """dvc.yaml with the line's figures among those that ``dvc metrics`` shows; DVC has no ``foreach`` for them."""
    entry = f"  - {METRICS.format(line=name)}\n"
    if entry in graph:
        return graph
    changed, count = re.subn(r"^metrics:\n(?:  - .*\n)*", lambda found: found[0] + entry, graph, flags=re.MULTILINE)
    if count != 1:
        raise UserError(f"{DVC_FILE}: no list `metrics` at the left margin, where the line's figures belong")
    return changed
