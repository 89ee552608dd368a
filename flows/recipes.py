"""The published recipes: shown, or written into ``params.yaml`` as a block that can be read and changed there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from components.arithmetic import MACHINE
from components.settings import PARAMS_FILE, REPRODUCIBLE, require_line
from flows.lock import checkout_lock
from flows.parameters import follow, write_checked, yaml_editor

FOLDER = Path("components/pretrain/recipes")


def names() -> list[str]:
    """The recipes there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_file(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def load_recipe(name: str, as_coded: bool = False) -> Any:
    """``base`` (the line whose other stages it goes with), ``preprocess`` and ``pretrain`` of a recipe, with comments;
    with ``as_coded`` as its authors' code differs from their text."""
    recipe = yaml_editor().load(recipe_file(name).read_text())
    changes = recipe.pop("as_coded")
    if as_coded:
        _merge(recipe, changes)
    return recipe


def _merge(block: Any, changes: Any) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and key in block:
            _merge(block[key], value)
        else:
            block[key] = value


def pin_recipe(line: str, recipe: Any) -> None:
    """Put a recipe in the place of a line's parameters: all of it, or nothing. Raises ParamsError where it contradicts
    the line's other blocks."""
    editor = yaml_editor()
    content = editor.load(PARAMS_FILE.read_text())
    follow_recipe(content[line], recipe)
    write_checked(editor, content)


def follow_recipe(block: Any, recipe: Any) -> None:
    """Give a line's block the recipe's values, with their comments."""
    for stage in ("preprocess", "pretrain"):
        follow(block[stage], recipe[stage])
    if recipe["pretrain"]["precision"] != "float32":
        follow(block, {REPRODUCIBLE: MACHINE})  # narrow arithmetic differs between processors


def add_options(sub: argparse.ArgumentParser) -> None:
    """The command ``ctfoundry recipe``."""
    sub.description = f"{sub.description} Its sizes want GPUs; every number can be changed."
    sub.add_argument("name", choices=names() if FOLDER.is_dir() else None)
    sub.add_argument(
        "--as-coded", action="store_true", help="as the authors' code does it, where it differs from the text"
    )
    sub.add_argument(
        "--line", dest="onto", metavar="NAME", help="whose parameters (default: of the line that the recipe goes with)"
    )
    sub.add_argument("--write", action="store_true", help="put it in the place of the line's parameters")
    sub.set_defaults(run=_recipe)


def _recipe(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(arguments.name, arguments.as_coded)
    line = arguments.onto or recipe["base"]
    if arguments.onto or arguments.write:
        require_line(line)
    if not arguments.write:
        yaml_editor().dump({line: {key: recipe[key] for key in ("preprocess", "pretrain")}}, sys.stdout)
        return 0
    with checkout_lock(f"recipe {arguments.name} --write"):
        pin_recipe(line, recipe)
    print(f"{PARAMS_FILE}: {line} follows {arguments.name}; `git diff {PARAMS_FILE}` shows what changed")
    return 0
