"""Changes of ``params.yaml`` that keep its comments, order and layout."""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.files import write_text
from components.settings import PARAMS_FILE, block_of

if TYPE_CHECKING:  # `ctfoundry --help` does without it
    from ruamel.yaml import YAML

PLAIN = re.compile(r"\w[\w ()/.-]*")


def pin(line: str, stage: str, values: dict[str, Any]) -> None:
    """Change a stage's block of ``params.yaml`` and nothing else in the file: comments, order and layout stay."""
    current = block_of(line, stage)
    if all(current.get(key) == value for key, value in values.items()):
        return
    editor = yaml_editor()
    content = editor.load(PARAMS_FILE.read_text())
    for key, value in values.items():
        content[line][stage][key] = _like(content[line][stage].get(key), value) if isinstance(value, list) else value
    write_text(PARAMS_FILE, written(editor, content))


def _like(there: Any, wanted: list[Any]) -> Any:
    """A list as it is written: what stands there already stays as it is, and what is new is a line each."""
    from ruamel.yaml.comments import CommentedSeq

    kept = list(there) if isinstance(there, list) else []
    items = [next((one for one in kept if one == value), None) or in_a_line(value) for value in wanted]
    if kept and items[: len(kept)] == kept:
        there.extend(items[len(kept) :])
        return there
    out = CommentedSeq(items)
    if not items:
        out.fa.set_flow_style()
    return out


def written(editor: YAML, content: Any) -> str:
    """The file's text, with the tasks of its lines listed as they are."""
    _list_tasks(content)
    text = io.StringIO()
    editor.dump(content, text)
    return text.getvalue()


def _list_tasks(content: Any) -> None:
    """Put :func:`components.tasks.kinds.index_of` the content into its list of tasks, from which dvc.yaml makes stages;
    what is right stays as it is, comments too."""
    from ruamel.yaml.comments import CommentedMap

    from components.tasks.kinds import INDEX, listed_tasks

    wanted, listed = listed_tasks(content), content.get(INDEX)
    if not isinstance(listed, CommentedMap):
        if not wanted:
            return  # of a file without lines
        listed = content[INDEX] = CommentedMap()
    for name in [name for name in listed if listed[name] != wanted.get(name)]:
        del listed[name]
    for name, entry in wanted.items():
        if name not in listed:
            listed[name] = CommentedMap(entry)
            listed[name].fa.set_flow_style()


def list_tasks() -> bool:
    """Bring the list of tasks up to date; whether it was not."""
    from components.tasks.kinds import mistaken_index

    if not mistaken_index():
        return False
    editor = yaml_editor()
    write_text(PARAMS_FILE, written(editor, editor.load(PARAMS_FILE.read_text())))
    return True


def check_text(text: str) -> None:
    """Raise ParamsError where ``params.yaml`` with this text would have mistakes."""
    from components.registry import check_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS_FILE
        path.write_text(text)
        check_file(path)


def write_checked(editor: YAML, content: Any) -> None:
    """Write ``params.yaml``, where it has no mistakes. Raises ParamsError."""
    text = written(editor, content)
    check_text(text)
    write_text(PARAMS_FILE, text)


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


def in_a_line(value: Any) -> Any:
    """A value as it is written: blocks in one line; in quotes what PyYAML and ruamel.yaml may read differently, such as
    ``:0`` or a line separator."""
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) else DoubleQuotedScalarString(value)
    if not isinstance(value, dict):
        return value
    block = CommentedMap({key: in_a_line(item) for key, item in value.items()})
    block.fa.set_flow_style()
    return block
