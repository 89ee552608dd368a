"""Changes of ``params.yaml`` that keep its comments, order and layout."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from components.files import write_text
from components.settings import PARAMS_FILE, read_yaml

if TYPE_CHECKING:  # `ctfoundry --help` does without it
    from ruamel.yaml import YAML


def pin(line: str, stage: str | None, values: dict[str, Any], recipe: bool = False) -> None:
    """Change a stage's block of ``params.yaml``, or what belongs to no stage, and nothing else in the file: comments,
    order and layout stay; where the values are a ``recipe``'s, see :func:`follow`."""
    current = read_yaml()[line] if stage is None else read_yaml()[line][stage]
    if all(current.get(key) == value for key, value in values.items()):
        return
    editor = yaml_editor()
    content = editor.load(PARAMS_FILE.read_text())
    block = content[line] if stage is None else content[line][stage]
    follow(block, values) if recipe else block.update(values)
    text = io.StringIO()
    editor.dump(content, text)
    write_text(PARAMS_FILE, text.getvalue())


def follow(block: Any, values: dict[str, Any]) -> None:
    """Give keys of a block the values of a recipe. The comment beside an old value explains it, so it goes with it; the
    one beside a new value, where there is one, comes."""
    from ruamel.yaml.error import CommentMark
    from ruamel.yaml.tokens import CommentToken

    for key, value in values.items():
        if key in block and block[key] == value:
            continue
        said, below = _comment(block, key)
        new = _comment(values, key)[0] if hasattr(values, "ca") else ""
        block[key] = value
        if said or new:
            block.ca.items[key] = [None, None, CommentToken(f"{new}{below}" or "\n", CommentMark(0)), None]


def _comment(block: Any, key: str) -> tuple[str, str]:
    """The comment beside a value, and the lines below it, which ruamel.yaml keeps in one."""
    tokens = block.ca.items.get(key)
    if tokens is None or tokens[2] is None:
        return "", ""
    beside, end, below = tokens[2].value.partition("\n")
    return beside, end + below


def yaml_editor() -> YAML:
    """Reads and writes YAML with its comments, order and layout."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096  # never fold a line
    editor.indent(mapping=2, sequence=4, offset=2)
    editor.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return editor
